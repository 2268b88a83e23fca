"""Test the tower that comes with the project: small, in Hugging Face layout, and trained as its model card says."""

from pathlib import Path

import numpy as np
import pytest

import fvjax
from fvjax.data import synthetic

TOWER = Path("fvjax/pretrained/tiny_internvit")


def test_it_is_small_and_has_a_card():
    assert {p.name for p in TOWER.iterdir()} == {"config.json", "model.safetensors", "README.md"}
    assert sum(p.stat().st_size for p in TOWER.iterdir()) <= 2_000_000


@pytest.mark.parametrize("name", ["yaw", "light_x", "mouth_open"])
def test_a_linear_probe_reads_attributes_of_people_it_never_saw(name):
    """Fit ridge regression on frozen embeddings of some of quickstart's people, and test it on others."""
    faces, people, attributes = synthetic.faces(range(120), 3, 0, 2.0)
    x = fvjax.load(TOWER, scenario="vit").embed(faces)
    assert x.shape == (360, 128)
    y = (attributes[name] - attributes[name].mean()) / attributes[name].std()
    x = (x - x.mean(0)) / (x.std(0) + 1e-6)
    fit = people < 90
    weights = np.linalg.solve(x[fit].T @ x[fit] + 30 * np.eye(x.shape[1]), x[fit].T @ y[fit])
    explained = 1 - np.mean((x[~fit] @ weights - y[~fit]) ** 2) / np.var(y[~fit])
    assert explained > 0.2, f"{name}: {explained:.2f} of the variance explained"
