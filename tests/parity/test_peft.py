"""Compare adapters with those of peft, on a torch InternVL2 with the original's module names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fvjax import trees
from fvjax.models import lora, preprocess
from tests.parity import close, load
from tests.reference.recipe import GOLDEN
from weights_convert import read_adapters, write_adapters

torch = pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")
peft = pytest.importorskip("peft", reason="needs tests/requirements-torch.txt")
TINY = GOLDEN / "internvl_tiny"


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"), torch.no_grad():
        yield


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(TINY / "golden.npz"))


@pytest.fixture
def twin():
    from tests.reference.internvl_torch import InternVL2

    model = InternVL2(json.loads((TINY / "config.json").read_text()))
    model.load_state_dict({k: torch.as_tensor(v) for k, v in load_file(TINY / "model.safetensors").items()})
    return model.eval()


def theirs(model, golden):
    """Return (visual_mean of the first two faces, logits of the first pair) of the torch model."""
    pixels = torch.as_tensor(np.array(preprocess.for_vit(golden["faces"]))).permute(0, 3, 1, 2)
    logits = model.pair(pixels[:1], pixels[4:5], golden["pair_prompt_ids"])
    return model.visual_mean(pixels[:2]).numpy(), logits.numpy()


def ours(adapters, scale, golden):
    model, params = load(TINY, "vlm")
    flat = {name: jnp.asarray(leaf) for name, leaf in adapters.items()}
    variables = {"params": trees.unflatten(params), "lora": trees.unflatten(lora.scaled(flat, scale))}
    pixels, text = preprocess.for_vit(golden["faces"]), tuple(golden["pair_prompt_ids"].tolist())
    embeddings = model.apply(variables, pixels[:2], (), "visual_mean", method="embed")
    return embeddings, model.apply(variables, pixels[:1], pixels[4:5], text, method="pair")


def test_the_whole_model_in_peft(twin, golden, tmp_path):
    """Adapters on fc1, fc2, w1, w2 and w3 of every layer agree with peft and with the reference's own figures."""
    plain = theirs(twin, golden)
    close(plain[0], golden["mllm_visual_mean"][:2], 1e-5, "the twin, embeddings")
    close(plain[1], golden["pair_logits"][:1], 1e-5, "the twin, logits")
    adapters, scale = read_adapters(TINY / "adapters.safetensors", TINY, "vlm")
    write_adapters(tmp_path / "out", adapters, 8 * scale, TINY, "vlm")
    wrapped = peft.PeftModel.from_pretrained(twin, tmp_path / "out")
    assert len([n for n, _ in wrapped.named_modules() if n.endswith("lora_A.default")]) == 15
    got = theirs(wrapped.base_model.model, golden)
    close(got[0], golden["mllm_lora_visual_mean"][:2], 1e-5, "peft, embeddings")
    close(got[1], golden["pair_lora_logits"][:1], 1e-5, "peft, logits")
    for mine, other, what in zip(ours(adapters, scale, golden), got, ("embeddings", "logits")):
        close(mine, other, 1e-5, what)


@pytest.mark.parametrize("parts", ["qkv", "qv"])
def test_heads_of_their_own_in_one_matrix(twin, golden, tmp_path, recwarn, parts):
    """Adapters with an A matrix each for q, k and v, beside ones of the usual rank, work in peft and are read back."""
    _, params = load(TINY, "vlm")
    targets = (f"decoder/blocks/attn/[{parts}o]", "decoder/blocks/mlp/up")
    adapters = lora.init(params, targets, 2, 3 * (len(parts) + 2), jax.random.key(0))
    adapters = {n: np.asarray(x + 0.2 * jax.random.normal(jax.random.key(1), x.shape)) for n, x in adapters.items()}
    plain = theirs(twin, golden)
    write_adapters(tmp_path / "out", adapters, 3, TINY, "vlm")
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    fused = "base_model.model.language_model.model.layers.1.attention.wqkv.lora_"
    assert written[f"{fused}A.weight"].shape == (2 * len(parts), 64)
    assert (written[f"{fused}B.weight"] != 0).sum(1).max() == 2, "a row is of one part"
    wrapped = peft.PeftModel.from_pretrained(twin, tmp_path / "out")
    got = theirs(wrapped.base_model.model, golden)
    wrapped.save_pretrained(tmp_path / "again")
    assert np.abs(got[1] - plain[1]).max() > 0.1
    for folder in ("out", "again"):
        back, scale = read_adapters(tmp_path / folder / "adapter_model.safetensors", TINY, "vlm")
        assert scale == 1.5
        assert back["decoder/blocks/attn/q/a"].shape[-1] == 2 * len(parts)
        for part in "qkv":
            one = f"decoder/blocks/attn/{part}"
            expected = adapters[f"{one}/a"] @ adapters[f"{one}/b"] if part in parts else 0
            np.testing.assert_allclose(back[f"{one}/a"] @ back[f"{one}/b"] - expected, 0, atol=1e-6)
        np.testing.assert_array_equal(back["decoder/blocks/mlp/up/a"], adapters["decoder/blocks/mlp/up/a"])
        for mine, other, what in zip(ours(back, scale, golden), got, ("embeddings", "logits")):
            close(mine, other, 1e-5, what)
    for mine, other, what in zip(ours(adapters, 1.5, golden), got, ("embeddings", "logits")):
        close(mine, other, 1e-5, what)
    write_adapters(tmp_path / "twice", back, 3, TINY, "vlm")
    twice = load_file(tmp_path / "twice/adapter_model.safetensors")
    assert {k: v.tobytes() for k, v in twice.items()} == {k: v.tobytes() for k, v in written.items()}
    assert not [w for w in recwarn if "adapter" in str(w.message).lower()], "peft complains of our files"
