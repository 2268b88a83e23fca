"""The script that pretrains the tiny tower writes a checkpoint that loads like any other."""

import subprocess
import sys

import numpy as np

import fvjax
from fvjax.data import synthetic


def test_a_short_run_writes_a_tower_that_loads(tmp_path):
    dst = tmp_path / "tower"
    command = [sys.executable, "-m", "fvjax.pretrain", f"--dst={dst}", "--people=24", "--shots=3", "--epochs=1"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "variance explained on people not trained on" in done.stdout
    assert sum(p.stat().st_size for p in dst.iterdir()) <= 2_000_000
    faces, _, _ = synthetic.faces([0, 1], 2, 0)
    embeddings = fvjax.load(dst, scenario="vit").embed(faces)
    assert embeddings.shape == (4, 128)
    assert np.isfinite(embeddings).all()
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2
    assert "exists; choose a new directory" in again.stderr
