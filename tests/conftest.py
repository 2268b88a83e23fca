"""Every test runs on the CPU with eight fake devices; set before jax is imported anywhere."""

import gc
import os
import resource
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import numpy as np
import pytest


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
