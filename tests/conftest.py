"""Run every test on the CPU with eight fake devices. These are set before jax is imported anywhere."""

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
# Level 1 compiles in about half the time, and golden and parity tests hold at it as they do at XLA's default. Programs
# that tests start with XLA_FLAGS of their own are optimised as users' are.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=1"


def share_compiled_programs() -> None:
    """Let all processes of this run of the tests share what one of them has compiled, in a folder that goes with it.

    These are XLA's programs, and Python's bytecode where PYTHONDONTWRITEBYTECODE keeps it from being written beside the
    sources: every process that a test starts would compile some 1,500 modules again. The folder is new for each run,
    as a program that is read from it says nothing about the compiler. Two processes may write the same program at the
    same time; who reads half of one warns and compiles it again.
    """
    if "PYTEST_XDIST_WORKER" in os.environ:
        return  # it has what the process that started it was given
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
    """Folder with `faces/` (aligned LFW and CFP crops and their protocols); skips where it is not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("FVJAX_DATA", beside))
    if not (path / "faces").is_dir():
        pytest.skip("real faces not here: set FVJAX_DATA to the folder that holds faces/lfw112_pairs and faces/cfp112")
    return path


def address_space() -> int:
    """Bytes of this process, used or not."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


@pytest.fixture
def little_memory():
    """256 MB of address space more than now. Threads that libraries start later count too, at megabytes each."""
    if not Path("/proc/self/statm").exists():
        yield  # macOS has no such bound
        return
    gc.collect()  # what it frees later would be room beyond the bound, and so are holes in glibc's heap, filled here
    before, holes = address_space(), []
    while address_space() == before:
        holes.append(np.empty(16 << 20, np.uint8))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (address_space() + (256 << 20), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
