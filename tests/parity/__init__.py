"""Compare fvjax with the PyTorch references: stored results (tests/golden), and small torch models run here."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from weights_convert import build, open_checkpoint
from weights_convert.rules import join


def load(path, kind=None, **changes):
    """Load the module and the flat parameters of a checkpoint directory."""
    ckpt = open_checkpoint(path, kind)
    params = {name.removeprefix("params/"): jnp.asarray(np.asarray(leaf)) for name, leaf in ckpt.params.items()}
    return build(ckpt.kind, ckpt.model_config, **changes), params


@functools.partial(jax.jit, static_argnames=("model", "method", "text", "pool", "pools", "rows", "tokens"))
def run(model, variables, *given, method="__call__", **settings):
    """Apply a module as one program, which takes less time than to compile and start one operation after another."""
    return model.apply(variables, *given, method=method, **settings)


def in_torch_layout(ckpt, flat):
    """Convert a flat tree to the original's keys and layouts."""
    out = {}
    for name, leaf in flat.items():
        source = ckpt.sources[f"params/{name}"]
        layers = np.asarray(leaf) if source.stacked else np.asarray(leaf)[None]
        for key, layer in zip(source.keys, layers):
            out.setdefault(key, []).append(source.transform.to_original(layer))
    return {key: join(parts) for key, parts in out.items()}


def close(got, expected, tolerance: float, what: str = "") -> float:
    """Assert ||got - expected|| <= tolerance ||expected|| and equal shapes; return the relative error."""
    got, expected = np.asarray(got), np.asarray(expected)
    assert got.shape == expected.shape, (what, got.shape, expected.shape)
    error = float(np.linalg.norm(got - expected) / max(np.linalg.norm(expected), 1e-30))
    print(f"{what}: relative error {error:.1e}")
    assert error <= tolerance, f"{what}: relative error {error:.2e} > {tolerance:.0e}"
    return error


def gradients_close(got: dict, expected: dict, tolerance: float) -> None:
    """Assert that every leaf is close, norm-relative.

    A leaf that is 0 in exact arithmetic, because normalisation removes its effect, must stay 0.
    """
    assert set(got) == set(expected)
    total = np.sqrt(sum(np.sum(np.square(g, dtype=np.float64)) for g in expected.values()))
    for name, grad in expected.items():
        if np.linalg.norm(grad) < 1e-6 * total:
            assert np.linalg.norm(got[name]) < 1e-5 * total, f"{name} should be 0"
        else:
            close(got[name], grad, tolerance, name)
