"""Compare LanguageBind's towers, Face-LLaVA and LLaVA-1.5 with the stored results of their references."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fvjax import api, trees
from fvjax.config import OptimizerConfig
from fvjax.losses import language
from fvjax.models import conversation
from fvjax.models.landmarks import LandmarkProjector, RegionAttention
from fvjax.training import optimizer
from tests.parity import close, in_torch_layout, load
from tests.reference import facellava
from tests.reference.recipe import GOLDEN
from weights_convert import build, open_checkpoint

VARIANTS = ("simple", "masked", "paper")
EVERY = 4  # the stored logits are those of every fourth id


@pytest.fixture(scope="module", autouse=True)
def exact():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def directories(tmp_path_factory):
    folder = tmp_path_factory.mktemp("golden")
    names = [f"facellava_tiny/{variant}" for variant in VARIANTS]
    names += ["languagebind_tiny/image", "languagebind_tiny/video", "clip_tiny/llava", "clip_tiny/clip"]
    return {name: facellava.write(name, folder) for name in names}


def golden(name: str) -> dict[str, np.ndarray]:
    return dict(np.load(GOLDEN / name / "golden.npz"))


def largest(got, expected, tolerance: float, what: str = "") -> None:
    """Assert that no value is off by more than a share of the largest one."""
    error = np.abs(np.asarray(got) - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"{what}: {error:.1e}"


# towers


def test_the_image_tower(directories):
    stored = golden("languagebind_tiny")
    net, params = load(directories["languagebind_tiny/image"])
    got = jax.jit(lambda params, images: net.apply({"params": params}, net.preprocess(images)))(
        trees.unflatten(params), stored["images"]
    )
    largest(got[:, 1:], stored["image_features"], 1e-5)
    largest(got[0], stored["image0_hidden_states"][-2], 1e-5)


@pytest.fixture(scope="module")
def video_tower(directories):
    """Return a function (parameters, clips uint8 [N,8,H,W,3]) -> tokens, and the parameters."""
    net, params = load(directories["languagebind_tiny/video"])

    @jax.jit
    def run(params, videos):
        pixels = net.preprocess(videos.reshape(-1, *videos.shape[2:]))
        tokens = net.apply({"params": params}, pixels, clip=videos.shape[1])
        return tokens.reshape(*videos.shape[:2], *tokens.shape[1:])

    return run, trees.unflatten(params)


def test_the_video_tower(video_tower):
    run, params = video_tower
    stored = golden("languagebind_tiny")
    largest(run(params, stored["videos"]), stored["video_features"], 1e-5)
    constant = np.broadcast_to(stored["images"][0], (2, 8, *stored["images"].shape[1:]))
    got = np.asarray(run(params, constant))[:1]
    largest(got, stored["constant_video_features"], 1e-5)
    assert np.abs(got - got[:, :1]).max() > 0.1, "the temporal embedding tells equal frames apart"


def test_without_temporal_weights_a_frame_is_a_picture(video_tower, directories):
    run, params = video_tower
    stored = golden("languagebind_tiny")
    zeroed = jax.tree.map(lambda x: x, params)
    temporal = zeroed["blocks"]["temporal"]
    temporal["embedding"] = temporal["embedding"] * 0
    temporal["attn"]["proj"] = jax.tree.map(lambda x: x * 0, temporal["attn"]["proj"])
    got = np.asarray(run(zeroed, stored["videos"]))
    largest(got[0], stored["zero_temporal_video0_features"], 1e-5)


def test_a_clip_that_the_tower_cannot_read(directories):
    net, params = load(directories["languagebind_tiny/video"])
    variables = {"params": trees.unflatten(params)}
    with pytest.raises(ValueError, match="a clip of 9 frames: this tower reads clips of 1 to 8 frames"):
        net.apply(variables, np.zeros((9, 56, 56, 3), np.float32), clip=9)
    with pytest.raises(ValueError, match="9 images are not whole clips of 8 frames"):
        net.apply(variables, np.zeros((9, 56, 56, 3), np.float32), clip=8)


def test_clips_own_tower(directories):
    """Its states are those of the last layer but one, as LLaVA takes them; its pooled output is normalised."""
    stored, weights = golden("clip_tiny"), facellava.tensors("clip_tiny/clip")
    net, params = load(directories["clip_tiny/clip"])
    pixels = net.preprocess(stored["images"])
    pooled = jax.jit(net.apply)({"params": trees.unflatten(params)}, pixels)[:, 0]
    largest(pooled @ weights["visual_projection.weight"].T, stored["image_embeds"], 1e-5)
    shorter = {name: x[:2] if name.startswith("blocks/") else x for name, x in params.items()}
    tower = net.clone(select_layer=-2, final_norm=False)
    largest(jax.jit(tower.apply)({"params": trees.unflatten(shorter)}, pixels), stored["vision_features"], 1e-5)


def test_llava_1_5(directories):
    stored = golden("clip_tiny")
    model = api.load(directories["clip_tiny/llava"], "chat")
    ids = np.where(stored["llava/input_ids"][0] == 110, -200, stored["llava/input_ids"][0])
    (logits,) = model.forward([ids], [[{"image": stored["images"][0]}]])
    largest(logits, stored["llava/logits"][0], 1e-5)


# landmark modules


@pytest.mark.parametrize("variant", ["simple", "masked"])
def test_landmark_modules(variant):
    stored, weights = golden("facellava_frgca"), facellava.tensors("facellava_frgca")
    points = stored["landmarks"].reshape(1, 2, 68, 2)
    dense = lambda key: {"kernel": weights[f"{key}.weight"].T, "bias": weights[f"{key}.bias"]}  # noqa: E731
    regions = {
        f"local_{key.split('.')[2]}": dense(key.removesuffix(".weight"))
        for key in weights
        if key.startswith("landmarks_projector.region_layers.") and key.endswith(".weight")
    }
    tokens: Any = LandmarkProjector(64).apply(
        {"params": {**regions, "global": dense("global_landmarks_projector")}}, points
    )
    np.testing.assert_allclose(tokens, stored["landmark_tokens"], atol=2e-6)
    base = f"{variant}.landmarks_cross_attn."
    norm = {"scale": weights[f"{base}cross_attn.ln.weight"], "bias": weights[f"{base}cross_attn.ln.bias"]}
    params = {"norm": norm, "linear": dense(f"{base}linear_proj")}
    if variant == "simple":
        matrices = np.split(weights[f"{base}cross_attn.attn.in_proj_weight"], 3)
        biases = np.split(weights[f"{base}cross_attn.attn.in_proj_bias"], 3)
        params |= {x: {"kernel": w.T, "bias": b} for x, w, b in zip("qkv", matrices, biases)}
        params["out"] = dense(f"{base}cross_attn.attn.out_proj")
    else:
        params |= {x: dense(f"{base}cross_attn.{x}_proj") for x in "qkv"}
    net = RegionAttention(variant, grid="rowcol" if variant == "masked" else "xy")
    got: Any = net.apply({"params": params}, stored["visual_tokens"], tokens, points)
    np.testing.assert_allclose(got, stored[f"{variant}_out"], atol=2e-6)
    if variant == "masked":
        np.testing.assert_allclose(np.asarray(net.bias(jnp.asarray(points), 257, 9)), stored["mask"], atol=1e-6)
        right = RegionAttention(variant).bias(jnp.asarray(points), 257, 9)
        assert right is not None
        assert np.abs(right - stored["mask"]).max() > 0.03, "the reference's grid is transposed"


# the whole model


def rows(stored) -> tuple[list, list]:
    """Return ids and media of the four golden rows: a picture, a clip, a picture, and a picture without landmarks."""
    ids = [row[row != 0] for row in stored["input_ids"]]
    points = stored["landmarks_images"].reshape(-1, 68, 2)
    images, video = stored["images"], stored["video"]
    clip = {"video": video, "landmarks": stored["landmarks_video"].reshape(-1, 68, 2)}
    media = [
        [{"image": images[0], "landmarks": points[0]}],
        [clip],
        [{"image": images[1], "landmarks": points[1]}],
        [{"image": images[2], "landmarks": None}],
    ]
    return ids, media


REFINED = {"simple": {}, "simple_0.001": {"scale": 0.001}, "masked": {}, "paper": {}}


@pytest.mark.parametrize("name", REFINED)
def test_refined_tokens(directories, name):
    """The golden "masked" has the transposed grid, which is what its checkpoint says."""
    stored = golden("facellava_tiny")
    ckpt = open_checkpoint(directories[f"facellava_tiny/{name.split('_')[0]}"])
    parts = [f"params/{part}/" for part in ("landmarks", "attention")]
    params = {n.removeprefix("params/"): np.asarray(x) for n, x in ckpt.params.items() if n.startswith(tuple(parts))}
    net = build("llava", ckpt.model_config, **REFINED[name])
    for kind, count in (("images", 2), ("video", 8)):
        visual, points = stored[f"projected_{kind}"][:count], stored[f"landmarks_{kind}"].reshape(-1, 68, 2)
        variables, present = {"params": trees.unflatten(params)}, np.arange(count) != 1
        got = net.apply(variables, visual, points, present, method="refine")
        expected = stored[f"{name}/refined_{kind}"].reshape(-1, *visual.shape[1:])[:count]
        largest(got[present], expected[present], 1e-5, kind)
        np.testing.assert_array_equal(got[1], visual[1], "without landmarks a picture keeps its tokens")


@pytest.fixture(scope="module")
def models(directories):
    return functools.cache(lambda variant: api.load(directories[f"facellava_tiny/{variant}"], "chat"))


@pytest.mark.parametrize("variant", [pytest.param("simple", marks=pytest.mark.slow), "paper"])
def test_logits_of_rows_with_and_without_landmarks(models, variant):
    stored = golden("facellava_tiny")
    got = models(variant).forward(*rows(stored))
    assert [len(row) for row in got] == stored["spliced_lengths"].tolist()
    for number, row in enumerate(got):
        if (name := f"{variant}/logits_row{number}") in stored:
            largest(row[:, ::EVERY], stored[name], 1e-5, name)
    losses = [row_losses(row, labels) for row, labels in zip(got, stored["spliced_labels"])]
    np.testing.assert_allclose([x.mean() for x in losses], stored[f"{variant}/row_losses"], rtol=1e-5)
    np.testing.assert_allclose(np.concatenate(losses).mean(), stored[f"{variant}/loss"], rtol=1e-5)


def row_losses(logits, labels) -> np.ndarray:
    """Return the losses of a row's label tokens."""
    logits, targets = logits[:-1].astype(np.float64), labels[1 : len(logits)]
    log_sums = np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1)) + logits.max(-1)
    at = np.flatnonzero(targets >= 0)
    return log_sums[at] - logits[at, targets[at]]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["simple", "paper"])
def test_greedy_answers(models, variant):
    stored = golden("facellava_tiny")
    prompt = stored["prompt_ids"][0]
    with_points, without = rows(stored)[1][0], [{"image": stored["images"][0]}]
    ids = models(variant).continue_ids([prompt, prompt], [with_points, without], 10, eos=[319])
    assert ids == [stored[f"{variant}/generated"].tolist(), stored[f"{variant}/generated_no_landmarks"].tolist()]


# training


STAGE_1 = (("params/(landmarks|attention)/.*", "landmarks"), (".*", "frozen"))
STAGE_2 = (("params/(vision|video)/.*", "frozen"), (".*", "model"))


def padded_batch(stored) -> dict[str, np.ndarray]:
    """Return the four golden rows as one batch: a picture or a clip in each, and the ids that follow."""
    lengths, tokens = stored["spliced_lengths"], stored["spliced_labels"].shape[1]
    ids, media = rows(stored)
    out = {
        "tokens": np.zeros((4, tokens), np.int32),
        "targets": np.full((4, tokens), -1, np.int32),
        "images": np.zeros((4, 1, 56, 56, 3), np.uint8),
        "image_places": np.full((4, 16), tokens, np.int32),
        "image_landmarks": np.zeros((4, 1, 68, 2), np.float32),
        "image_has_landmarks": np.zeros((4, 1), bool),
        "videos": np.zeros((4, 1, 8, 56, 56, 3), np.uint8),
        "video_places": np.full((4, 8 * 17), tokens, np.int32),
        "video_landmarks": np.zeros((4, 1, 8, 68, 2), np.float32),
        "video_has_landmarks": np.zeros((4, 1), bool),
    }
    for r, (row, (medium,), length) in enumerate(zip(ids, media, lengths)):
        kind = "video" if "video" in medium else "image"
        start, visual = int(np.argmax(row == -200)), out[f"{kind}_places"].shape[1]
        text = row[row != -200]
        out["tokens"][r, [*range(start), *range(start + visual, length)]] = text
        following = stored["spliced_labels"][r, 1:]
        out["targets"][r, :-1] = np.where(following == -100, -1, following)
        out[f"{kind}s"][r, 0], out[f"{kind}_places"][r] = medium[kind], start + np.arange(visual)
        if medium.get("landmarks") is not None:
            out[f"{kind}_landmarks"][r, 0], out[f"{kind}_has_landmarks"][r, 0] = medium["landmarks"], True
    return out


class Stage:
    """One stage of training on the golden batch: what trains, and the mean loss with its gradient."""

    def __init__(self, directory, rules):
        self.ckpt = open_checkpoint(directory)
        self.net = build("llava", self.ckpt.model_config)
        flat = {name: np.asarray(leaf) for name, leaf in self.ckpt.params.items()}
        trainable, frozen, self.groups = optimizer.split(trees.unflatten(flat), rules)
        self.start = trees.flatten(trainable)
        batch = padded_batch(golden("facellava_tiny"))

        def mean(trained):
            variables = optimizer.merge(trees.unflatten(trained), frozen)
            states = self.net.apply(variables, batch["tokens"], batch, None, method=conversation.read)
            logits = functools.partial(self.net.apply, variables, method=conversation.logits)
            total, count = language.next_token_loss(logits, states, jnp.asarray(batch["targets"]))
            return total / count

        self.mean = jax.jit(jax.value_and_grad(mean))

    def theirs(self, flat) -> dict[str, np.ndarray]:
        """Convert what trains to the reference's keys and layouts, without the bias of the keys: it has no gradient."""
        named = {n.removeprefix("params/"): np.array(x) for n, x in flat.items()}
        named["attention/k/bias"][:] = 0
        return {k: v for k, v in in_torch_layout(self.ckpt, named).items() if not k.endswith("k_proj.bias")}

    def train(self, lr: float, steps: int):
        """Return losses before each step and after the last, norms of the gradients, rates, and what has trained."""
        config = OptimizerConfig(name="adamw", lr=lr, weight_decay=0.0, clip=1.0, schedule="cosine", warmup_ratio=0.03)
        rate = optimizer.schedule(config, epochs=0, steps_per_epoch=1, steps=steps)
        tx = optimizer.make(config, self.groups, rate)
        state, trained = tx.init(self.start), dict(self.start)
        losses, norms = [], []
        for _ in range(steps):
            value, grads = self.mean(trained)
            losses.append(value)
            norms.append(optax.global_norm(grads))
            updates, state = tx.update(grads, state, trained)
            trained = optax.apply_updates(trained, updates)
        return [*losses, self.mean(trained)[0]], norms, [rate(s) for s in range(steps)], trained


def without_key_bias(key: str, value: np.ndarray) -> np.ndarray:
    """Zero the bias of the keys in a fused bias: adding it to all scores of a query changes nothing."""
    value = np.array(value)
    if key.endswith("in_proj_bias"):
        value[64:128] = 0
    return value


@pytest.mark.parametrize("variant", [pytest.param("simple", marks=pytest.mark.slow), "paper"])
def test_stage_1(directories, variant):
    """Gradients of the landmark modules, and four steps from the file's weights."""
    stored = golden("facellava_tiny")
    stage = Stage(directories[f"facellava_tiny/{variant}"], STAGE_1)
    loss, grads = stage.mean(stage.start)
    np.testing.assert_allclose(loss, stored[f"{variant}/loss"], rtol=1e-5)
    expected = {k.removeprefix(f"{variant}/grad/"): v for k, v in stored.items() if k.startswith(f"{variant}/grad/")}
    got = stage.theirs(grads)
    assert set(got) == {k for k in expected if not k.endswith("k_proj.bias")}
    for key, value in got.items():
        close(value, without_key_bias(key, expected[key]), 1e-5, key)
    losses, norms, rates, trained = stage.train(1e-3, 4)
    np.testing.assert_allclose(losses, stored[f"{variant}/stage1_losses"], rtol=1e-5)
    np.testing.assert_allclose(norms, stored[f"{variant}/stage1_grad_norms"], rtol=1e-4)
    np.testing.assert_allclose(rates, stored[f"{variant}/stage1_rates"], rtol=1e-5)
    for key, value in stage.theirs(trained).items():
        if (name := f"{variant}/stage1_final/{key}") in stored:
            close(value, without_key_bias(key, stored[name]), 1e-4, key)


@pytest.mark.slow
def test_stage_2(directories):
    """Three steps of everything but the towers."""
    stored = golden("facellava_tiny")
    stage = Stage(directories["facellava_tiny/simple"], STAGE_2)
    assert not any("/vision/" in name or "/video/" in name for name in stage.start)
    losses, norms, rates, trained = stage.train(1e-4, 3)
    np.testing.assert_allclose(losses, stored["simple/stage2_losses"], rtol=1e-5)
    np.testing.assert_allclose(norms, stored["simple/stage2_grad_norms"], rtol=1e-4)
    np.testing.assert_allclose(rates, stored["simple/stage2_rates"], rtol=1e-5)
    start, end = stage.theirs(stage.start), stage.theirs(trained)
    moved = dict(zip(stored["simple/stage2_update_keys"].tolist(), stored["simple/stage2_update_norms"]))
    compared = {key for key in end if not key.endswith("in_proj_bias")}
    assert compared <= set(moved)
    for key in compared:
        np.testing.assert_allclose(np.linalg.norm(end[key] - start[key]), moved[key], rtol=1e-3, err_msg=key)
