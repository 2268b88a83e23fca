"""Compare InternVL3's tower and projector, read from both layouts, with results of the PyTorch reference."""

import jax
import numpy as np
import pytest

from fvjax import trees
from tests.parity import close, load
from tests.reference.recipe import GOLDEN

TINY = GOLDEN / "internvl3_tiny"


@pytest.mark.parametrize("layout", ["remote", "hf"])
def test_visual_tokens(layout):
    golden = np.load(TINY / "golden.npz")
    model, params = load(TINY / layout, "vlm")
    variables = {"params": trees.unflatten(params)}
    assert model.image_tokens == 16
    with jax.default_matmul_precision("highest"):
        pixels = model.preprocess(golden["tiles"])
        tokens = model.apply(variables, pixels[:1], method=lambda m, x: m.vision(x))
        close(tokens, golden["vit_tokens_first"], 1e-5, "vit_tokens_first")
        close(model.apply(variables, pixels, method="visual"), golden["visual_embeds"], 1e-5, "visual_embeds")
