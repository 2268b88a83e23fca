"""Comparison with the PyTorch references: stored figures (tests/golden) and small torch models run beside ours."""

import numpy as np


def close(got, expected, tolerance: float, what: str = "") -> float:
    """Assert ||got - expected|| <= tolerance ||expected|| and equal shapes; returns the relative error."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    error = float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30))
    print(f"{what}: relative error {error:.1e}")
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"
    return error


def gradients_close(got: dict, expected: dict, tolerance: float) -> None:
    """Every leaf close, norm-relative; a leaf that is 0 in exact arithmetic (its effect is normalised away) stays 0."""
    assert set(got) == set(expected)
    total = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in expected.values()))
    for name, grad in expected.items():
        if np.linalg.norm(grad) < 1e-6 * total:
            assert np.linalg.norm(got[name]) < 1e-5 * total, f"{name} should be 0"
        else:
            close(got[name], grad, tolerance, name)
