"""A checkpoint goes back into the run it is of, and into no other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.checkpoint import Checkpoints
from fvjax.config import base


def test_a_checkpoint_of_another_base_data_or_model_is_refused(tmp_path):
    state = {"trainable": {"w": jnp.arange(3.0)}, "step": jnp.asarray(5)}
    meta = {"base_hash": "b", "train_data_hash": "d", "pairs": [0, 4]}
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(5, state, {**meta, "seconds": 1.0})
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    back = checkpoints.restore(5, shapes, meta)
    np.testing.assert_array_equal(back["trainable"]["w"], state["trainable"]["w"])
    assert int(back["step"]) == 5
    for key, value in (("base_hash", "x"), ("train_data_hash", "x"), ("pairs", [1, 4])):
        with pytest.raises(ValueError, match=f"checkpoints/5: {key} is .*, this run has"):
            checkpoints.restore(5, shapes, {**meta, key: value})
    other = {**shapes, "trainable": {"v": shapes["trainable"]["w"]}}
    with pytest.raises(ValueError, match=r"1 missing .v.; 1 unexpected .w"):
        checkpoints.restore(5, other, meta)
    checkpoints.close()
