"""How this process is set up before it computes: memory pages, devices, compiled programs that are kept."""

from __future__ import annotations

import math
import os
import platform
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import jax
import numpy as np

from fvjax import errors


def set_up_devices(batches: Iterable[int], processes: int) -> None:
    """Have a CPU act as several devices, unless the environment says how many; see :func:`cpu_devices`."""
    if "JAX_NUM_CPU_DEVICES" not in os.environ and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cpu_devices(batches, processes))


def cores() -> int:
    """Return how many cores this process may use, which a scheduler or taskset can limit."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_devices(batches: Iterable[int], processes: int) -> int:
    """Return one device per core, as far as the batches divide: on a CPU two half batches are faster than a whole one.

    batches: sizes of the batches that are split over all devices of all processes.
    """
    batch = math.gcd(*batches)
    return max(n for n in range(1, min(cores(), 8) + 1) if batch // processes % n == 0)


def backend() -> str:
    """Return the kind of device that computes. Raises ValueError if JAX_PLATFORMS asks for one that is not there."""
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        if (problem := errors.of_environment(error)) is None:
            raise
        raise ValueError(problem) from None


def keep_programs() -> None:
    """Have jax keep what it compiles in ~/.cache/fvjax/xla, so that a run's next start need not compile it again.

    Not on a CPU: its programs compile fast, and they are of no use to another kind of CPU that sees the same folder.
    jax's own variables have priority: JAX_COMPILATION_CACHE_DIR, or JAX_ENABLE_COMPILATION_CACHE=false.
    """
    if backend() != "cpu" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fvjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", 10 * 2**30)  # bytes; the longest unused go first


def version() -> str:
    """Return the version of jax, in which all processes of a run must agree."""
    return jax.__version__


def environment() -> dict[str, str]:
    """Return what computes here, for people who want to repeat a figure: versions, system, processor, devices."""
    kinds = Counter(device.device_kind for device in jax.devices())
    return {
        "python": platform.python_version(),
        "jax": jax.__version__,
        "numpy": np.__version__,
        "system": platform.platform(),
        "processor": _processor(),
        "devices": ", ".join(f"{count} x {kind}" for kind, count in kinds.items()),
    }


def _processor() -> str:
    """Return the name of this machine's processor; "" if the system does not say."""
    file = Path("/proc/cpuinfo")
    lines = file.read_text().splitlines() if file.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def be_deterministic() -> None:
    """Ask XLA for the same bits in every run on a GPU, before it starts."""
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
