"""Compare InternVL2 with results of the PyTorch reference, and its exact shortcuts with the full computation."""

import json
import os
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fvjax import trees
from fvjax.config import base
from fvjax.losses import contrastive, pair_answer
from fvjax.models import encoder, lora, preprocess, presets, vlm
from fvjax.models.projector import pixel_shuffle
from fvjax.training import optimizer
from tests.parity import close, load, run
from tests.reference.recipe import GOLDEN, write_checkpoint
from weights_convert import internvl, open_checkpoint, read_adapters

TINY = GOLDEN / "internvl_tiny"
MODULES = {  # adapted fvjax module -> the original's
    "vision/blocks/mlp/fc1": "vision_model.encoder.layers.{}.mlp.fc1",
    "vision/blocks/mlp/fc2": "vision_model.encoder.layers.{}.mlp.fc2",
    "decoder/blocks/mlp/gate": "language_model.model.layers.{}.feed_forward.w1",
    "decoder/blocks/mlp/up": "language_model.model.layers.{}.feed_forward.w3",
    "decoder/blocks/mlp/down": "language_model.model.layers.{}.feed_forward.w2",
}

TARGETS = r"vision_model\..*\.mlp\.fc[12]|language_model\..*\.feed_forward\.w[123]"  # the same as one regex


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(TINY / "golden.npz"))


@pytest.fixture(scope="module")
def tiny():
    """Return the module, and its variables without and with adapters."""
    model, params = load(TINY, "vlm")
    flat, scale = read_adapters(TINY / "adapters.safetensors", TINY, "vlm")
    plain = {"params": trees.unflatten(params)}
    return model, plain, plain | {"lora": trees.unflatten(lora.scaled(flat, scale))}


def halves(golden):
    """Return the pixels of faces[:4] and faces[4:]."""
    pixels = preprocess.for_vit(golden["faces"])
    return pixels[:4], pixels[4:]


def ids(golden, name):
    return tuple(golden[name].tolist())


def test_visual_tokens(tiny, golden):
    model, variables, _ = tiny
    assert model.image_tokens == 256
    got = run(model, variables, preprocess.for_vit(golden["faces"][:2]), method="visual")
    close(got, golden["visual_embeds"], 1e-5, "visual_embeds")


def test_pools_of_one_pass(tiny, golden):
    """All three poolings in one pass agree with the reference's figures of each."""
    model, variables, _ = tiny
    given = preprocess.for_vit(golden["faces"]), ids(golden, "prompt_ids")
    got = run(model, variables, given[0], text=given[1], pools=vlm.POOLS, method="pools")
    for number, pool in enumerate(vlm.POOLS):
        close(got[:, number], golden[f"mllm_{pool}"], 1e-5, pool)


@pytest.mark.parametrize("pool", vlm.POOLS)
def test_pools_of_given_visual_tokens(tiny, golden, pool):
    """Test the decoder alone, on the reference's own visual tokens of two faces."""
    model, variables, _ = tiny
    got = run(model, variables, golden["visual_embeds"], method="pooled", text=ids(golden, "prompt_ids"), pool=pool)
    close(got, golden[f"mllm_{pool}"][:2], 1e-5, pool)


@pytest.mark.parametrize("pool", vlm.POOLS)
def test_embeddings(tiny, golden, pool):
    model, variables, adapted = tiny
    text, pixels = ids(golden, "prompt_ids"), preprocess.for_vit(golden["faces"])
    got = run(model, variables, pixels, method="embed", text=text, pool=pool)
    assert got.dtype == jnp.float32
    close(got, golden[f"mllm_{pool}"], 1e-5, pool)
    if pool == "visual_mean":
        got = run(model, adapted, pixels, method="embed", text=text, pool=pool)
        close(got, golden["mllm_lora_visual_mean"], 1e-5, "mllm_lora_visual_mean")


def test_pairs(tiny, golden):
    model, variables, adapted = tiny
    text, yes_no = ids(golden, "pair_prompt_ids"), ids(golden, "yes_no_ids")
    got = run(model, variables, *halves(golden), method="pair", text=text)
    close(got, golden["pair_logits"], 1e-5, "pair_logits")
    two = run(model, variables, *halves(golden), method="pair", text=text, rows=yes_no)
    close(two, got[:, list(yes_no)], 1e-6, "only the rows of Yes and No")
    close(pair_answer.p_yes(two, (0, 1)), golden["pair_pyes"], 1e-5, "pair_pyes")
    got = run(model, adapted, *halves(golden), method="pair", text=text)
    close(got, golden["pair_lora_logits"], 1e-5, "pair_lora_logits")


def embedding_loss(model, golden, variables):
    emb = model.apply(variables, preprocess.for_vit(golden["faces"]), (), "visual_mean", method="embed")
    return contrastive.loss(emb, jnp.arange(4), 0.07)


def answer_loss(model, golden, variables):
    logits = model.apply(variables, *halves(golden), ids(golden, "pair_prompt_ids"), method="pair")
    yes, no = ids(golden, "yes_no_ids")
    answers = jnp.where(golden["pair_labels"] == 1, yes, no)
    return optax.softmax_cross_entropy_with_integer_labels(logits, answers).mean()


@pytest.mark.parametrize(("which", "loss"), [("s2", embedding_loss), ("s3", answer_loss)])
def test_gradients_and_ten_steps(tiny, golden, which, loss):
    """With the reference's AdamW, compare every adapter's gradient at the first step and its value after the last."""
    model, variables, _ = tiny
    adapters, scale = read_adapters(TINY / "adapters.safetensors", TINY, "vlm")
    adapters = {name: jnp.asarray(leaf) for name, leaf in adapters.items()}

    def loss_fn(adapters):
        return loss(model, golden, variables | {"lora": trees.unflatten(lora.scaled(adapters, scale))})

    settings = base().optimizer
    settings.update({"name": "adamw", "weight_decay": 0.01, "clip": 5.0})
    chain = optimizer.make(settings, dict.fromkeys(adapters, "all"), lambda _: 2e-4)

    @jax.jit
    def step(adapters, state):
        value, grads = jax.value_and_grad(loss_fn)(adapters)
        updates, state = chain.update(grads, state, adapters)
        return optax.apply_updates(adapters, updates), state, value, grads

    def check(flat, which, tolerance):
        assert {name[:-2] for name in flat} == set(MODULES)
        for name, stack in flat.items():
            for i, leaf in enumerate(np.asarray(stack)):
                path = f"{which}/{MODULES[name[:-2]].format(i)}.lora_{name[-1].upper()}.weight"
                close(leaf.T, golden[path], tolerance, path)

    state, losses = chain.init(adapters), []
    for i in range(10):
        adapters, state, value, grads = step(adapters, state)
        losses.append(float(value))
        if i == 0:
            check(grads, f"{which}_grad", 1e-4)
    np.testing.assert_allclose(losses[0], golden[f"{which}_loss0"], rtol=1e-5)
    np.testing.assert_allclose(losses, golden[f"{which}_losses"], rtol=1e-5)
    check(adapters, f"{which}_final", 1e-5)


def test_torch_twin(golden):
    """The torch twin used in the timing of steps computes the reference's figures and gradients with adapters."""
    torch = pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")
    from safetensors.torch import load_file

    from tests.reference import internvl_torch
    from tests.reference.internvit_torch import pixels
    from tests.reference.iresnet_torch import nt_xent

    twin = internvl_torch.InternVL2(json.loads((TINY / "config.json").read_text()))
    twin.load_state_dict(load_file(TINY / "model.safetensors"))
    x, text = pixels(golden["faces"], 448), ids(golden, "pair_prompt_ids")
    with torch.no_grad():
        close(twin.visual_mean(x), golden["mllm_visual_mean"], 1e-5, "mllm_visual_mean")
        close(twin.pair(x[:4], x[4:], text), golden["pair_logits"], 1e-5, "pair_logits")
    internvl_torch.adapt(twin, TARGETS)
    given = load_file(TINY / "adapters.safetensors")
    adapters = {name: leaf for name, leaf in twin.named_parameters() if leaf.requires_grad}
    theirs = {name: f"{name[:-2]}.lora_{name[-1].upper()}.weight" for name in adapters}
    assert set(theirs.values()) == set(given)
    with torch.no_grad():
        for name, leaf in adapters.items():
            leaf.copy_(given[theirs[name]])
        close(twin.visual_mean(x), golden["mllm_lora_visual_mean"], 1e-5, "mllm_lora_visual_mean")
    yes, no = ids(golden, "yes_no_ids")
    answers = torch.where(torch.as_tensor(golden["pair_labels"]) == 1, yes, no)
    for which, loss in [
        ("s2", nt_xent(twin.visual_mean(x))),
        ("s3", torch.nn.functional.cross_entropy(twin.pair(x[:4], x[4:], text), answers)),
    ]:
        twin.zero_grad()
        loss.backward()
        np.testing.assert_allclose(loss.item(), golden[f"{which}_loss0"], rtol=1e-5)
        for name, leaf in adapters.items():
            close(leaf.grad, golden[f"{which}_grad/{theirs[name]}"], 1e-4, f"{which} {name}")


# shortcuts


def test_text_after_the_image_changes_no_visual_state(tiny, golden):
    model, variables, _ = tiny
    visual, text = golden["visual_embeds"], ids(golden, "prompt_ids")
    states = run(model, variables, method=lambda m: m.decoder(m.sequence(visual, text)))
    assert states.shape[1] == 1 + 256 + 8
    got = run(model, variables, visual, method="pooled", text=(), pool="visual_mean")
    close(got, states[:, 1:257].mean(axis=1), 1e-6, "visual_mean without the text")


def test_pairs_on_a_shared_prefix(tiny, golden):
    """The first image's cache is computed once and repeated for the pairs that share it."""
    model, _, variables = tiny
    text, yes_no = ids(golden, "pair_prompt_ids"), ids(golden, "yes_no_ids")
    visual = golden["visual_embeds"]
    visual = jnp.concatenate([visual, visual[:, ::-1]])  # four images
    first, second = np.array([0, 0, 1, 0]), np.array([2, 3, 2, 1])
    both = jnp.concatenate([visual[first], visual[second]], axis=1)
    naive = run(model, variables, both, method="answer", text=text, rows=yes_no)
    prefix = run(model, variables, visual[:2], tokens=visual.shape[1] + len(text), method="prefix")
    shared = prefix._replace(k=prefix.k[:, first], v=prefix.v[:, first])
    got = run(model, variables, shared, visual[second], text=text, rows=yes_no, method="pair_after")
    close(got, naive, 1e-5, "answers on a shared prefix")
    wrong = prefix._replace(k=prefix.k[:, 1 - first], v=prefix.v[:, 1 - first])
    other = run(model, variables, wrong, visual[second], text=text, rows=yes_no, method="pair_after")
    assert np.linalg.norm(other - naive) > 1e-3 * np.linalg.norm(naive), "another image's prefix must show"


def test_encoder_and_remat(tiny, golden):
    _, _, variables = tiny
    attributes = open_checkpoint(TINY, "vlm").model_config
    text = ids(golden, "pair_prompt_ids")
    model = encoder.build("vlm", attributes, "visual_mean", remat="full")
    embeddings, _ = jax.jit(model)(variables, golden["faces"])
    close(embeddings, golden["mllm_lora_visual_mean"], 1e-5, "embeddings")
    model = encoder.build("vlm", attributes, "", text, remat="dots")
    answers = jax.jit(model.answer)(variables, *np.split(golden["faces"], 2))
    close(answers, golden["pair_lora_logits"], 1e-5, "answers")
    for pooling, prompt, message in [
        ("mean", (), "vlm has no pooling 'mean'"),
        ("all_mean", (), "needs a prompt"),
        ("all_mean", (256,), "prompt id 256 is outside the decoder's vocabulary of 256"),
    ]:
        with pytest.raises(ValueError, match=message):
            encoder.build("vlm", attributes, pooling, prompt)
    with pytest.raises(ValueError, match="needs a prompt"):
        encoder.build("vlm", attributes, "", (), (1, 2))
    with pytest.raises(ValueError, match="reads no prompt"):
        encoder.build("iresnet", {}, "", (1,))
    with pytest.raises(TypeError, match="depht"):
        encoder.build("vlm", attributes, "", (1,), depht=3)


# parts


def test_pixel_shuffle_by_hand():
    """The tokens of a 4x4 grid hold their (row, column), which shows where both versions move them."""
    grid = np.stack(np.meshgrid(np.arange(4), np.arange(4), indexing="ij"), -1).reshape(1, 16, 2)
    top_right = [0, 2, 0, 3, 1, 2, 1, 3]
    assert pixel_shuffle(jnp.asarray(grid), 2, "v2")[0, 1].tolist() == top_right
    assert pixel_shuffle(jnp.asarray(grid), 2, "v1")[0, 2].tolist() == top_right
    for size, patches in ((2, 15), (3, 16)):
        with pytest.raises(ValueError, match="do not form a square grid"):
            pixel_shuffle(jnp.zeros((1, patches, 2)), size, "v2")


def test_splice():
    """Tokens are inserted at positions that differ from row to row."""
    x = jnp.arange(12.0).reshape(2, 6, 1)
    got = vlm.splice(x, -jnp.arange(1.0, 5).reshape(2, 2, 1), np.array([[0, 3], [5, 1]]))
    assert got[..., 0].tolist() == [[-1, 1, 2, -2, 4, 5], [6, -4, 8, 9, 10, -3]]


def test_the_preset_is_the_published_internvl2_2b():
    file = GOLDEN / "internvl2_2b/config.json"
    assert encoder.build_vlm(presets.internvl2_2b()) == encoder.build_vlm(
        internvl.model_config(json.loads(file.read_text()), str(file))
    )


def test_parameter_counts():
    """Count InternVL2-2B and 120 adapters of rank 8 on fc1, fc2, w1, w2, w3, without computing anything."""
    model = encoder.build_vlm(presets.internvl2_2b())
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, 448, 448, 3))))
    params = trees.flatten(shapes["params"])
    assert sum(leaf.size for leaf in params.values()) == 2_205_754_368
    targets = ("vision/blocks/mlp/fc[12]", "decoder/blocks/mlp/(gate|up|down)")
    adapters = jax.eval_shape(lambda key: lora.init(params, targets, 8, 120, key), jax.random.key(0))
    assert sum(leaf.size for leaf in (params | adapters).values()) == 2_213_618_688


@pytest.mark.slow
def test_golden_internvl2_2b_full_size(tmp_path):
    """Run 2.2 billion parameters of the recipe, rounded to float16, in float32: under 20 GB and 10 minutes."""
    golden = dict(np.load(GOLDEN / "internvl2_2b/golden.npz"))
    shapes = json.loads((GOLDEN / "internvl2_2b/state_dict_shapes.json").read_text())
    config = json.loads((GOLDEN / "internvl2_2b/config.json").read_text())
    start = time.time()
    write_checkpoint(tmp_path / "vlm", config, shapes, dtype=np.float16)
    written = time.time()
    model, params = load(tmp_path / "vlm", "vlm")
    assert params["decoder/blocks/mlp/gate/kernel"].dtype == jnp.float16
    variables = {"params": trees.unflatten(params)}
    pixels = preprocess.for_vit(golden["faces"])
    text, yes_no = ids(golden, "pair_prompt_ids"), ids(golden, "yes_no_ids")
    emb = run(model, variables, pixels[:1], method="embed", text=(), pool="visual_mean")
    logits = run(model, variables, pixels[:1], pixels[1:], method="pair", text=text)
    jax.block_until_ready((emb, logits))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    seconds = time.time() - start
    print(f"{seconds:.0f} s ({written - start:.0f} of them writing) on {os.cpu_count()} cores, peak {peak:.1f} GiB")
    close(emb, golden["mllm_visual_mean"], 1e-4, "mllm_visual_mean")
    close(logits[:, :512], golden["pair_logits_first512"], 1e-4, "pair_logits_first512")
    close(pair_answer.p_yes(logits, yes_no), golden["pair_pyes"], 1e-4, "pair_pyes")
    assert peak < 20e9 / 2**30
