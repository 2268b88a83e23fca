"""Run every test on the CPU with eight fake devices. They must be configured before anything imports jax."""

import atexit
import gc
import os
import resource
import shutil
import tempfile
from pathlib import Path

import numpy as np
import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
# Optimisation level 1 halves the compile time, and golden and parity tests pass as they do with XLA's default level.
# Level 0 saves another fifth of it, but the programs take longer than that. Those that tests/test_main.py starts are
# optimised as they are for users.
# Without the fusion emitters, the code generator of XLA's default, compilation takes another third less.
QUICK_TO_COMPILE = "--xla_backend_optimization_level=1 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count=8 {QUICK_TO_COMPILE}"


def share_compiled_programs() -> None:
    """Share compiled programs between all processes of this test run, in a folder that is deleted afterwards.

    These are XLA's programs, and Python's bytecode if PYTHONDONTWRITEBYTECODE prevents it from being written beside
    the sources; without it, every process that a test starts would compile some 1,500 modules again. The folder is new
    for each run, because a program that is read from it does not test the compiler. Two processes may write the same
    program at the same time. A process that reads half of a program warns and compiles it again.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # a worker inherits the environment of the process that started it
    folder = tempfile.mkdtemp(prefix="fvjax-tests-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = f"{folder}/xla"
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
    if os.environ.pop("PYTHONDONTWRITEBYTECODE", ""):
        os.environ["PYTHONPYCACHEPREFIX"] = f"{folder}/bytecode"


share_compiled_programs()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder with `faces/` (aligned LFW and CFP crops and their protocols), or skip the test without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("FVJAX_DATA", beside))
    if not (path / "faces").is_dir():
        pytest.skip("real faces not here: set FVJAX_DATA to the folder that holds faces/lfw112_pairs and faces/cfp112")
    return path


def address_space() -> int:
    """Return the bytes of address space of this process, used or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.fixture
def little_memory():
    """Limit the process to 256 MB more address space than now. Threads that libraries start later count as well."""
    if not Path("/proc/self/statm").exists():
        yield  # macOS has no such limit
        return
    gc.collect()  # memory freed later, and holes in glibc's heap (filled here), would add to the limit
    holes, grown = [], 0
    while grown < 3:  # more than one, because another thread may also have made the space grow
        before = address_space()
        holes.append(np.empty(16 << 20, np.uint8))
        grown += address_space() > before
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + (256 << 20), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
