"""Every test runs on the CPU with eight fake devices; set before jax is imported anywhere."""

import os
from pathlib import Path

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import pytest


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Folder with `faces/` (aligned LFW and CFP crops and their protocols); skips where it is not."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    path = Path(os.environ.get("FVJAX_DATA", beside))
    if not (path / "faces").is_dir():
        pytest.skip("real faces not here: set FVJAX_DATA to the folder that holds faces/lfw112_pairs and faces/cfp112")
    return path
