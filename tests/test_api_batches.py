"""Test a loaded model's functions for any number of faces, also if the batch size does not divide it."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.api import BATCH, KINDS, POOLS, Model

RNG = np.random.default_rng(0)
A, B = (RNG.integers(0, 256, (11, 112, 112, 3)).astype(np.uint8) for _ in "ab")


class Colours:
    """A stand-in for an encoder: a face's embedding is its mean colour, and the answer depends on the order of the
    faces.
    """

    def __init__(self, *yes_no: int):
        self.yes_no, self.sizes = yes_no, []

    def __call__(self, variables, faces):
        self.sizes.append(len(faces))  # once for each compilation
        return faces.astype(jnp.float32).mean((1, 2)) * variables["scale"], {}

    def answer(self, variables, a, b, rows):
        assert rows == self.yes_no
        self.sizes.append(len(a))
        first, second = (self(variables, faces)[0].sum(-1) for faces in (a, b))
        return jnp.stack([first, second / 2], axis=1)  # the columns are those of Yes and No


@pytest.fixture(scope="module")
def of_one():
    """Return embed and p_same with a batch size that divides nothing."""
    variables = {"scale": jnp.float32(0.01)}
    return Model(Colours(), variables, 5, "highest"), Model(Colours(7, 3), variables, 5, "highest")


@pytest.mark.parametrize("count", [0, 1, 4, 5, 6, 10, 11])
def test_any_number_of_faces_in_their_order(of_one, count):
    embedder, comparer = of_one
    got = embedder.embed(A[:count])
    assert (got.shape, got.dtype) == ((count, 3), np.float32)
    np.testing.assert_allclose(got, 0.01 * A[:count].mean((1, 2)), rtol=1e-5)
    p = comparer.p_same(A[:count], B[:count])
    assert (p.shape, p.dtype) == ((count,), np.float32)
    difference = 0.01 * (A[:count].mean((1, 2)).sum(-1) - B[:count].mean((1, 2)).sum(-1) / 2)
    np.testing.assert_allclose(p, 1 / (1 + np.exp(-difference)), rtol=1e-4)


def test_few_shapes_are_compiled(of_one):
    """Rows are padded to powers of two, so that a caller with varying counts waits for few compilations."""
    for count in range(12):
        of_one[0].embed(A[:count])
    assert sorted(set(of_one[0].encoder.sizes)) == sorted(of_one[0].encoder.sizes) == [1, 2, 4, 8]


def test_no_more_than_a_batch_at_a_time():
    seen = []
    model = SimpleNamespace(batch_size=4, variables={}, _precision="default")

    def look(variables, faces):
        seen.append(len(faces))
        return np.zeros((len(faces), 1))

    assert Model._in_batches(model, look, A).shape == (11, 1)  # type: ignore[arg-type]
    assert seen == [4, 4, 4]


def test_every_scenario_has_a_kind_a_pool_and_a_batch_size():
    assert set(BATCH) == {"resnet", "vit", "mllm", "pair"}
    assert set(KINDS) == set(POOLS) == set(BATCH) | {"chat"}, "a conversation is one row"


@pytest.mark.parametrize("precision", ["highest", "default"])
def test_the_models_precision_is_the_matrix_products(precision):
    """Float32 weights are multiplied in float32, even on devices that would use a shorter format by default."""
    model = Model(Colours(), {"scale": jnp.float32(1)}, 2, precision)
    seen = []
    model._embed = lambda variables, faces: (seen.append(jax.config.jax_default_matmul_precision), faces[:, 0, 0])[1]
    model.embed(A[:1])
    assert seen == [precision]
