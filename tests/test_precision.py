"""Test what is computed in float32 whatever the model's dtype: norms, statistics, softmax, losses, means, last layers.

The inputs are first rounded to bfloat16, and the reference is computed from the rounded values in float64. A result in
bfloat16 may therefore differ from it by one rounding, half a unit in the last place, and a float32 result by next to
nothing. The inputs are chosen so that the same sums in bfloat16 would be far off: large means with small variances,
long sums, large logits.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.special import erf, log_softmax

from fvjax import trees
from fvjax.config import OptimizerConfig
from fvjax.losses import accumulation, contrastive, pair_answer
from fvjax.models import encoder, layers, lora, preprocess, presets, vlm
from fvjax.models.decoder import Decoder
from fvjax.models.iresnet import IResNet
from fvjax.models.projector import Projector
from fvjax.models.rotary import Positions, rope_frequencies, rotate
from fvjax.models.vision_transformer import Attention, pool, resize_positions
from fvjax.training import optimizer

HALF = jnp.bfloat16


def half(seed: int, *shape: int, mean: float = 0.0, std: float = 1.0) -> jax.Array:
    """Return normal random numbers, rounded to bfloat16."""
    return jnp.asarray(np.random.default_rng(seed).normal(mean, std, shape), HALF)


def wide(x) -> np.ndarray:
    """Return the same values in float64."""
    return np.asarray(x, np.float64)


def rounding(exact: np.ndarray) -> np.ndarray:
    """Return half a unit in the last place of bfloat16 (8 binary digits), the largest error of one rounding."""
    return 2.0 ** (np.floor(np.log2(np.maximum(np.abs(exact), 1e-30))) - 8)


def assert_one_rounding(got: jax.Array, exact: np.ndarray, more: float | np.ndarray = 0.0) -> None:
    """Assert that ``got`` is bfloat16 and as near to ``exact`` as possible; ``more`` is an additional allowed error."""
    assert got.dtype == HALF
    slack = 0.02 * rounding(exact) + 1e-5 * np.abs(exact).max() + more  # of the sums in float32
    worst = (np.abs(wide(got) - exact) / (rounding(exact) + slack)).max()
    assert worst <= 1, f"{worst:.2f} roundings"


def assert_full(got: jax.Array, exact: np.ndarray, tolerance: float = 2e-6) -> None:
    """Assert that ``got`` is float32 with float32 precision; bfloat16 would be off by 4e-3."""
    assert got.dtype == jnp.float32
    error = np.linalg.norm(wide(got) - exact) / np.linalg.norm(exact)
    assert error <= tolerance, error


def parameters(net, *args) -> dict:
    """Return flat random parameters of a module without compiling its initialisation.

    Kernels are of order 1 / sqrt(in).
    """
    shapes = trees.flatten(jax.eval_shape(net.init, jax.random.key(0), *args)["params"])
    rng = np.random.default_rng(0)
    return {
        name: np.asarray(
            rng.normal(size=leaf.shape) * (leaf.shape[-2] ** -0.5 if name.endswith("kernel") else 0.3)
            + name.endswith("scale"),
            np.float32,
        )
        for name, leaf in shapes.items()
    }


# norms and their statistics


@pytest.mark.parametrize("stored", [jnp.float32, jnp.float16, HALF])
def test_rms_norm(stored):
    x, scale = half(0, 40, 96, mean=3.0), half(1, 96, mean=1.0).astype(stored)
    got = layers.RMSNorm(1e-5, HALF).apply({"params": {"scale": scale}}, x)
    exact = wide(x) / np.sqrt((wide(x) ** 2).mean(-1, keepdims=True) + 1e-5) * wide(scale)
    assert_one_rounding(got, exact)


@pytest.mark.parametrize("stored", [jnp.float32, jnp.float16, HALF])
def test_layer_norm_of_a_large_mean_with_a_small_variance(stored):
    x, scale, bias = half(0, 40, 96, mean=60.0), half(1, 96, mean=1.0).astype(stored), half(2, 96).astype(stored)
    got = layers.LayerNorm(1e-6, HALF).apply({"params": {"scale": scale, "bias": bias}}, x)
    centred = wide(x) - wide(x).mean(-1, keepdims=True)
    exact = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * wide(scale) + wide(bias)
    assert_one_rounding(got, exact)


@pytest.mark.parametrize("train", [True, False])
def test_batch_norm_and_its_running_statistics(train):
    x, scale, bias = half(0, 6, 8, 8, 12, mean=40.0), half(1, 12, mean=1.0), half(2, 12)
    old = {"mean": jnp.full(12, 39.7, jnp.float32), "var": jnp.full(12, 1.3, jnp.float32)}
    variables = {"params": {"scale": scale, "bias": bias}, "batch_stats": old}
    got, new = layers.BatchNorm(dtype=HALF).apply(variables, x, train=train, mutable=["batch_stats"])
    mean, var = (wide(x).mean((0, 1, 2)), wide(x).var((0, 1, 2))) if train else (wide(old["mean"]), wide(old["var"]))
    exact = (wide(x) - mean) / np.sqrt(var + 1e-5) * wide(scale) + wide(bias)
    assert_one_rounding(got, exact, more=2e-5)  # x * factor and mean * factor are 40 times their difference
    if train:
        count = x.size // 12
        assert_full(new["batch_stats"]["mean"], 0.9 * wide(old["mean"]) + 0.1 * mean)
        assert_full(new["batch_stats"]["var"], 0.9 * wide(old["var"]) + 0.1 * var * count / (count - 1))


def test_norms_of_queries_and_keys_are_rounded_once():
    """The norms are over all heads together, as in InternViT-6B."""
    net = Attention(2, True, True, 1e-6, "xla", HALF)
    x = half(0, 2, 5, 32)
    variables = {"params": trees.unflatten(parameters(net, x))}
    _, state = net.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])
    seen = {name: value["__call__"][0] for name, value in state["intermediates"].items() if name != "__call__"}
    for name, given in zip(("q_norm", "k_norm"), np.split(wide(seen["qkv"]), 3, axis=-1)):
        exact = given / np.sqrt((given**2).mean(-1, keepdims=True) + 1e-6) * wide(variables["params"][name]["scale"])
        assert_one_rounding(seen[name], exact)


# attention


def exact_attention(q, k, v, causal: bool):
    """Return attention float64 [N,T,heads,dim], and the sum of |v| with its weights, which bounds rounding."""
    q, k, v = wide(q), wide(k), wide(v)
    k, v = (np.repeat(x, q.shape[2] // x.shape[2], axis=2) for x in (k, v))
    logits = np.einsum("nthd,nshd->nhts", q, k) / np.sqrt(q.shape[-1])
    if causal:
        logits = np.where(np.tri(q.shape[1], k.shape[1], k.shape[1] - q.shape[1], dtype=bool), logits, -np.inf)
    p = np.exp(log_softmax(logits, axis=-1))
    return np.einsum("nhts,nshd->nthd", p, v), np.einsum("nhts,nshd->nthd", p, np.abs(v))


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["xla", "by_head", "auto"])
def test_softmax_of_large_logits(implementation, causal):
    """bfloat16 has logits of up to 40 only to 1/8, so the weights would be off by a tenth.

    There are several blocks of queries.
    """
    q, k, v = half(0, 1, 140, 4, 16, std=2.5), half(1, 1, 140, 2, 16, std=2.5), half(2, 1, 140, 2, 16, mean=1.0)
    got = layers.self_attend(q, k, v, causal=causal, implementation=implementation)
    exact, weighted = exact_attention(q, k, v, causal)
    assert_one_rounding(got, exact, more=2.0**-8 * weighted)  # the weights are rounded for their product with v


def test_softmax_with_a_mask():
    q, k, v = half(0, 2, 9, 4, 16, std=2.5), half(1, 2, 30, 2, 16, std=2.5), half(2, 2, 30, 2, 16)
    mask = jnp.tri(9, 30, 21, dtype=bool)[None]
    exact, weighted = exact_attention(q, k, v, True)
    assert_one_rounding(layers.attend(q, k, v, mask), exact, more=2.0**-8 * weighted)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("implementation", ["xla", "by_head"])
def test_gradients_of_attention(implementation, causal):
    q, k, v = half(0, 1, 140, 2, 16, std=2.0), half(1, 1, 140, 1, 16, std=2.0), half(2, 1, 140, 1, 16, mean=1.0)
    dy = half(3, 1, 140, 2, 16)

    def run(implementation):
        return lambda *x: layers.self_attend(*x, causal=causal, implementation=implementation)

    @jax.jit
    def both(q, k, v, dy):
        full = jax.vjp(run("xla"), *(x.astype(jnp.float32) for x in (q, k, v)))[1](dy.astype(jnp.float32))
        return jax.vjp(run(implementation), q, k, v)[1](dy), full

    for name, got, exact in zip("qkv", *both(q, k, v, dy)):
        assert got.dtype == HALF
        error = np.linalg.norm(wide(got) - wide(exact)) / np.linalg.norm(wide(exact))
        assert error < 8e-3, (name, error)


# rotary positions


@pytest.mark.parametrize("kind", ["plain", "linear", "dynamic", "llama3"])
def test_rotary_frequencies(kind):
    rope = {"rope": kind, "rope_theta": 1e6, "rope_factor": 4.0, "rope_original": 32}
    model = Decoder(**presets.internlm2_1_8b() | {"head_dim": 64, "positions": 64} | rope)
    got = rope_frequencies(model, 200)
    theta = 1e6 * (4 * 200 / 64 - 3) ** (64 / 62) if kind == "dynamic" else 1e6
    exact = theta ** -(np.arange(0, 64, 2) / 64)
    if kind == "linear":
        exact = exact / 4
    if kind == "llama3":
        smooth = np.clip((32 * exact / (2 * np.pi) - 1) / 3, 0, 1)
        exact = (1 - smooth) * exact / 4 + smooth * exact
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, exact, rtol=2e-6)


def test_rotation_is_rounded_once():
    x, angles = half(0, 2, 50, 3, 16), np.random.default_rng(1).uniform(0, 7, (1, 50, 8))
    table = [jnp.asarray(f(angles), jnp.float32) for f in (np.cos, np.sin)]
    got = rotate(x, Positions(*table, jnp.zeros((1, 50), jnp.int32), None, None))
    a, b, (cos, sin) = wide(x)[..., :8], wide(x)[..., 8:], (wide(t)[:, :, None] for t in table)
    assert_one_rounding(got, np.concatenate([a * cos - b * sin, b * cos + a * sin], -1))


def test_positions_beyond_256_are_different_ones():
    """bfloat16 has every integer only up to 256. A late token must attend to its neighbours by exact position."""
    net = Decoder(
        vocab=8,
        width=16,
        depth=1,
        heads=1,
        kv_heads=1,
        head_dim=16,
        mlp_dim=16,
        rope="plain",
        rope_theta=1e4,
        norm_eps=1e-6,
    )
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 601, 16)), HALF).astype(jnp.float32)
    params = {n: 3 * v if n.endswith(("q/kernel", "k/kernel")) else v for n, v in parameters(net, x[:, :4]).items()}
    variables = {"params": trees.unflatten(params)}
    full, got = jax.jit(lambda v: [net.clone(dtype=dtype).apply(v, x) for dtype in (jnp.float32, HALF)])(variables)
    error = np.linalg.norm(wide(got - full), axis=-1)[0] / np.linalg.norm(wide(full), axis=-1)[0]
    early, late = error[:256].mean(), error[256:].mean()
    assert late < 1.5 * early, (early, late)


# losses


@pytest.mark.parametrize("group", [0, 8])
@pytest.mark.parametrize("chunk", [2**26, 60])
def test_contrastive_loss_of_half_precision_embeddings(chunk, group, monkeypatch):
    """Similarities of nearly equal embeddings, precise to 1/256 in bfloat16, differ by less and are divided by 0.07."""
    monkeypatch.setattr(contrastive, "CHUNK", chunk)
    z = half(0, 1, 300, std=3.0) + half(1, 16, 300, std=0.3)
    got = contrastive.loss(z, jnp.arange(8), 0.07, group)
    unit = wide(z) / np.linalg.norm(wide(z), axis=-1, keepdims=True)
    values = []
    for part in np.split(unit, 16 // (group or 16)):
        similarity = part @ part.T / 0.07
        np.fill_diagonal(similarity, -np.inf)
        own = np.arange(len(part))
        values.append(-log_softmax(similarity, axis=-1)[own, own ^ 1].mean())
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(float(got), np.mean(values), rtol=1e-5)


@pytest.mark.parametrize("over", ["vocab", "yes_no"])
def test_answers_of_large_half_precision_logits(over):
    logits = half(0, 7, 900, mean=80.0, std=2.0).at[:, 5].add(half(1, 7, std=2.0))
    labels = jnp.array([1, 0, 1, 1, 0, 0, 1])
    got = pair_answer.losses(logits, labels, (5, 9), over)
    columns = wide(logits) if over == "vocab" else wide(logits)[:, [5, 9]]
    right = np.where(labels == 1, wide(logits)[:, 5], wide(logits)[:, 9])
    shift = columns.max(-1)
    exact = (np.log(np.exp(columns - shift[:, None]).sum(-1)) + shift - right).mean()
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(float(got.mean()), exact, rtol=1e-5)
    difference = wide(logits)[:, 5] - wide(logits)[:, 9]
    assert_full(pair_answer.p_yes(logits, (5, 9)), 1 / (1 + np.exp(-difference)))


# means and last layers


@pytest.mark.parametrize("how", ["mean", "cls"])
def test_pooling_of_many_patches(how):
    tokens = half(0, 2, 1025, 24, mean=5.0, std=0.05)
    assert_full(pool(tokens, how), wide(tokens)[:, 1:].mean(1) if how == "mean" else wide(tokens)[:, 0])


@pytest.mark.parametrize("how", vlm.POOLS)
def test_pooling_of_a_decoders_states(how):
    states = half(0, 2, 270, 24, mean=5.0, std=0.05)
    rows = {"visual_mean": slice(1, 257), "all_mean": slice(None), "last_token": slice(-1, None)}[how]
    assert_full(vlm.pool_states(states, how, 256), wide(states)[:, rows].mean(1))


def test_the_last_layers_of_an_iresnet_are_float32():
    """The reference leaves fc and features, the embedding itself, out of autocast."""
    net = IResNet(layers=(1,), widths=(4,), num_features=10, dtype=HALF)
    faces = half(0, 5, 16, 16, 3).astype(jnp.float32)
    names = ("bn2", "fc", "features")
    shapes = jax.eval_shape(net.init, jax.random.key(0), faces)["batch_stats"]
    stats = jax.tree.map_with_path(lambda path, s: np.full(s.shape, path[-1].key == "var", np.float32), shapes)
    variables = {"params": trees.unflatten(parameters(net, faces)), "batch_stats": stats}

    @jax.jit
    def run(variables):
        def one(train):
            return net.apply(
                variables,
                faces,
                train=train,
                mutable=["batch_stats", "intermediates"],
                capture_intermediates=lambda module, _: module.name in names and module.path == (module.name,),
            )

        return one(False), one(True)

    for train, (out, state) in zip((False, True), run(variables)):
        before, fc, features = (state["intermediates"][name]["__call__"][0] for name in names)
        assert before.dtype == HALF
        weights = variables["params"]["fc"]
        exact = wide(before).reshape(5, -1) @ wide(weights["kernel"]) + wide(weights["bias"])
        assert_full(fc, exact, 1e-5)
        mean, var = (exact.mean(0), exact.var(0)) if train else (0.0, 1.0)
        last = {name: wide(value) for name, value in variables["params"]["features"].items()}
        assert_full(features, (exact - mean) / np.sqrt(var + 1e-5) * last["scale"] + last["bias"], 1e-4)
        np.testing.assert_array_equal(out, features)
        if train:
            new = state["batch_stats"]["features"]
            assert_full(new["mean"], 0.1 * mean, 1e-5)
            assert_full(new["var"], 0.9 + 0.1 * var * 5 / 4, 1e-5)


def test_logits_are_float32_sums():
    """For all or some rows of the vocabulary, half-precision states and rows have products summed in float32."""
    net = Decoder(vocab=50, width=400, depth=1, heads=2, kv_heads=1, head_dim=4, mlp_dim=8, dtype=HALF)
    states, head = half(0, 3, 400), half(1, 50, 400)
    for tied in (False, True):
        model = net.clone(tied=tied)
        variables = {"params": {"embed": head if tied else half(2, 50, 400), "head": head}}
        exact = wide(states) @ wide(head).T
        assert_full(model.apply(variables, states, method="logits"), exact)
        assert_full(model.apply(variables, states, (7, 3), method="logits"), exact[:, [7, 3]])


TOWER = {"image_size": 28, "patch_size": 7, "width": 16, "depth": 1, "heads": 2, "mlp_dim": 16}
WORDS = {"vocab": 9, "width": 16, "depth": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_dim": 16}
WHOLE = {"vision": TOWER, "projector": {"width": 16}, "decoder": WORDS, "bos": 1}


def random_variables(model) -> dict:
    """Return random variables of an encoder."""
    return {"params": trees.unflatten(parameters(model.net, model.pixels(jnp.zeros((1, 112, 112, 3), jnp.uint8))))}


@pytest.mark.parametrize("kind", ["vision_transformer", "vlm"])
def test_embeddings_of_a_half_precision_model_are_not_rounded_to_half_precision(kind):
    attributes, pooling = {"vision_transformer": (TOWER, "mean"), "vlm": (WHOLE, "visual_mean")}[kind]
    model = encoder.build(kind, attributes, pooling, dtype=HALF)
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3)).astype(np.uint8)
    got, _ = jax.jit(model)(random_variables(model), faces)
    assert got.dtype == jnp.float32
    assert (got != got.astype(HALF).astype(jnp.float32)).mean() > 0.5


# pixels and positions


def test_pixels_are_float32():
    faces = np.random.default_rng(0).integers(0, 256, (2, 112, 112, 3)).astype(np.uint8)
    assert_full(preprocess.for_resnet(faces), faces / 127.5 - 1)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    assert_full(preprocess.for_vit(faces, 112), (faces / 255 - mean) / std)


@pytest.mark.parametrize("stored", [jnp.float16, HALF])
def test_stored_position_embeddings_are_interpolated_in_float32(stored):
    pos = half(0, 1 + 16, 6, mean=2.0).astype(stored)
    got = resize_positions(pos, (4, 4), (7, 5))
    assert got.dtype == stored
    with jax.default_matmul_precision("highest"):
        exact = resize_positions(pos.astype(jnp.float32), (4, 4), (7, 5))
    np.testing.assert_array_equal(got, exact.astype(stored))


# adapters


@pytest.mark.parametrize("bias", [True, False])
def test_dense_with_adapters_adds_up_long_sums(bias):
    """bfloat16 products have float32 sums: the product, the adapter and the result are rounded once each."""
    x, kernel = half(0, 6, 4096, mean=1.0), half(1, 4096, 12, std=0.05)
    a, b = half(2, 8, 4096, std=0.05), half(3, 8, 12)
    variables = {"params": {"kernel": kernel, "bias": half(4, 12)}, "lora": {"a": a, "b": b}}
    got = layers.Dense(12, bias, HALF).apply(variables, x)
    plain, inner = wide(x) @ wide(kernel), wide(x) @ wide(a).T
    exact = plain + inner @ wide(b) + (wide(half(4, 12)) if bias else 0)
    partial = 4 * rounding(plain) + rounding(inner @ wide(b)) + rounding(inner) @ np.abs(wide(b))
    assert_one_rounding(got, exact, more=partial)
    error = np.linalg.norm(wide(got) - exact) / np.linalg.norm(exact)
    assert error < 2.0**-8, error


@pytest.mark.parametrize("stored", [jnp.float16, HALF, jnp.float32])
def test_merging_adds_in_float32_and_rounds_once(stored):
    """A half-precision sum would lose part of a small change. It is therefore added before the kernel is rounded."""
    kernel = half(0, 300, 20, mean=1.0).astype(stored)
    a, b = half(1, 300, 4, std=0.1).astype(jnp.float32), half(2, 4, 20, std=0.1).astype(jnp.float32)
    merged = lora.merge({"m/kernel": kernel, "other": kernel}, {"m/a": a, "m/b": b}, 0.3)
    exact = wide(kernel) + 0.3 * wide(a) @ wide(b)
    got = merged["m/kernel"]
    assert got.dtype == stored
    assert merged["other"] is kernel
    np.testing.assert_allclose(wide(got), exact, rtol=float(jnp.finfo(stored).eps) * 0.51 + 1e-7, atol=1e-6)


def test_adapters_scale_and_gradients_stay_float32():
    """alpha / rank multiplies b in float32, and a gradient through a half-precision product is float32."""
    x, kernel = half(0, 5, 64), half(1, 64, 6)
    adapters = lora.init({"m/kernel": kernel}, ("m",), 4, 1, jax.random.key(0))
    adapters["m/b"] = jax.random.normal(jax.random.key(1), adapters["m/b"].shape)
    for alpha, rank in ((8, 4), (1, 3)):
        scaled = lora.scaled(adapters, alpha / rank)
        np.testing.assert_array_equal(scaled["m/b"], adapters["m/b"] * np.float32(alpha / rank))
        np.testing.assert_array_equal(scaled["m/a"], adapters["m/a"].T)
        assert {leaf.dtype for leaf in scaled.values()} == {jnp.dtype(jnp.float32)}

    def summed(adapters):
        variables = {"params": {"kernel": kernel}, "lora": trees.unflatten(lora.scaled(adapters, 2.0))["m"]}
        return layers.Dense(6, False, HALF).apply(variables, x).astype(jnp.float32).sum()

    for name, grad in jax.grad(summed)(adapters).items():
        a, b, ones = wide(adapters["m/a"]), wide(adapters["m/b"]), np.ones((5, 6))
        exact = 2 * (wide(x) @ a).T @ ones if name == "m/b" else 2 * wide(x).T @ ones @ b.T
        assert_full(grad, exact, 1e-2)


def test_new_adapters_are_drawn_for_each_module_and_each_layer():
    """Modules of the same shape, and the layers of a stack, start from different numbers. Every b is zero."""
    shapes = {f"blocks/{name}/kernel": (3, 24, 16) for name in ("q", "k", "v")} | {"fc/kernel": (24, 16)}
    params = {name: jax.ShapeDtypeStruct(shape, jnp.float16) for name, shape in shapes.items()}
    key = jax.random.key(0)
    adapters = lora.init(params, ("blocks/[qkv]", "fc"), 8, 10, key)
    draws = [(name, layer) for name, a in adapters.items() if name.endswith("/a") for layer in a.reshape(-1, 24, 8)]
    assert len(draws) == 10
    for i, (name, one) in enumerate(draws):
        assert one.dtype == jnp.float32
        bound = (6 / 24) ** 0.5
        assert np.abs(one).max() <= bound
        np.testing.assert_allclose(wide(one).std(), bound / 3**0.5, rtol=0.12, err_msg=name)
        assert abs(wide(one).mean()) < 0.1 * bound
        for other_name, other in draws[:i]:
            assert abs(np.corrcoef(np.ravel(one), np.ravel(other))[0, 1]) < 0.35, (name, other_name)
    for name, leaf in adapters.items():
        assert leaf.dtype == jnp.float32
        if name.endswith("/b"):
            assert not np.asarray(leaf).any()
    again, another = (lora.init(params, ("fc",), 8, 1, k)["fc/a"] for k in (key, jax.random.key(1)))
    np.testing.assert_array_equal(again, adapters["fc/a"])
    assert abs(np.corrcoef(np.ravel(again), np.ravel(another))[0, 1]) < 0.35


# gradients that are added up, optimizer


@pytest.mark.parametrize("how", ["mean", "grad_cache"])
def test_gradients_of_chunks_are_added_up_in_float32(how):
    """For 64 half-precision gradients, a bfloat16 sum would stop growing at 256 times the added value."""
    n, weights = 512, half(0, 6, mean=1.0)
    x = half(1, n, 6, mean=1.0, std=0.02)

    def add_up(variables, x):
        return (x @ variables["w"]).sum().astype(HALF), jnp.float32(len(x)), {}

    def compare(z, x):
        return z.astype(jnp.float32).mean(0).sum()

    whole = accumulation.WholeBatch(lambda variables, x: (x * variables["w"], {}), compare)
    objective = accumulation.Additive(add_up) if how == "mean" else whole
    loss, _, grads = objective.gradients(lambda w: {"w": w}, weights, x, {}, 64)
    exact = wide(x).mean(0)
    assert (loss.dtype, grads.dtype) == (jnp.float32, jnp.float32)
    assert np.linalg.norm(wide(grads) - exact) < 3e-3 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", ["sgd", "adamw"])
def test_optimizer_state_and_small_updates_are_float32(name):
    """300 updates of 1e-4 change a weight of 1 by 0.03. In bfloat16, whose next number is 0.996, they would not."""
    config = OptimizerConfig(name=name, momentum=0.0, weight_decay=0.0, clip=10.0)
    params = {"fc": {"kernel": jnp.ones(4, jnp.float32)}}
    tx = optimizer.make(config, {"fc/kernel": "head"}, lambda step: jnp.float32(1e-4))
    state = tx.init(params)
    grads = {"fc": {"kernel": jnp.ones(4, jnp.float32)}}

    @jax.jit
    def run(params, state):
        def one(_, carry):
            params, state = carry
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        return jax.lax.fori_loop(0, 300, one, (params, state))

    params, state = run(params, state)
    assert_full(params["fc"]["kernel"], np.full(4, 0.97), 1e-4)
    moments = [x for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert {x.dtype for x in moments} == {jnp.dtype(jnp.float32)}


def test_a_learning_rate_is_not_rounded():
    config = OptimizerConfig(lr=0.1, warmup_epochs=2)
    rate = optimizer.schedule(config, epochs=40, steps_per_epoch=5)
    exact = [0.1 * 0.5 * (1 + np.cos(np.pi * (e - 2) / 38)) for e in range(2, 40)]
    got = jnp.stack([rate(5 * e) for e in range(2, 40)])
    assert_full(got, np.array(exact), 1e-6)


# activations


def test_gelu_is_the_exact_one():
    """The projector uses the error function, not the tanh approximation used elsewhere.

    Its norm's epsilon is tested too.
    """
    x = half(0, 2, 4, 8, std=0.01).astype(jnp.float32)  # a variance of ten epsilons
    net = Projector(width=8, shuffle=2)
    variables = {"params": trees.unflatten(parameters(net, x))}
    p = variables["params"]
    block = wide(x).reshape(2, 1, 32)
    centred = block - block.mean(-1, keepdims=True)
    normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * wide(p["norm"]["scale"])
    y = (normed + wide(p["norm"]["bias"])) @ wide(p["fc1"]["kernel"]) + wide(p["fc1"]["bias"])
    y = y * (1 + erf(y / 2**0.5)) / 2
    with jax.default_matmul_precision("highest"):
        got = net.apply(variables, x)
    assert_full(got, y @ wide(p["fc2"]["kernel"]) + wide(p["fc2"]["bias"]), 1e-5)


# a shared prefix


def test_a_shared_prefix_knows_how_long_the_sequence_will_be():
    """Dynamic rotary frequencies depend on the whole sequence. The prefix of one image alone would have others."""
    decoder = WORDS | {"depth": 2, "positions": 8, "rope": "dynamic", "rope_factor": 8.0, "rope_theta": 50.0}
    model = encoder.build("vlm", WHOLE | {"decoder": decoder}, "", (3, 4, 5, 6, 7), (1, 2))
    visual = jax.random.normal(jax.random.key(1), (2, 4, 16))

    @jax.jit
    def answers(variables):
        whole = model.net.apply(variables, visual.reshape(1, 8, 16), model.prompt, method="answer")
        too_short = model.net.apply(variables, visual[:1], 0, method="prefix")
        prefixes = model.prefix(variables, visual[:1]), too_short
        return whole, [model.answer_after(variables, prefix, visual[1:]) for prefix in prefixes]

    expected, (got, other) = answers(random_variables(model))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
    assert np.abs(other - expected).max() > 1e-2, "frequencies of the prefix's own length must show"


@pytest.mark.parametrize(("rope", "positions"), [("plain", 12), ("llama3", 12), ("linear", 6), ("dynamic", 6)])
def test_a_sequence_may_be_as_long_as_the_decoder_allows_and_no_longer(rope, positions):
    """Test the boundary alone, with a cache and as an encoder's prompt. Nothing is computed.

    Of checkpoints with llama3 scaling, the positions already are those that the scaling reaches.
    """
    decoder = WORDS | {"positions": positions, "rope": rope, "rope_factor": 2.0}
    net = Decoder(**decoder)
    assert net.max_tokens == 12

    def tokens(count, capacity=None):
        x = jax.ShapeDtypeStruct((1, count, 16), jnp.float32)
        variables = jax.eval_shape(net.init, jax.random.key(0), jnp.zeros((1, 1, 16)))
        if capacity is None:
            return jax.eval_shape(net.apply, variables, x).shape
        run = lambda v, x: net.apply(v, x, net.new_cache(1, capacity), method="extend")[0]  # noqa: E731
        return jax.eval_shape(run, variables, x).shape

    assert tokens(12) == tokens(12, 12) == (1, 12, 16)
    for too_many in (lambda: tokens(13), lambda: tokens(12, 13)):
        with pytest.raises(ValueError, match="a sequence of 13 tokens is longer than the decoder's 12"):
            too_many()
    whole = WHOLE | {"decoder": decoder}
    encoder.build("vlm", whole, "", (3, 4, 5), (1, 2))  # BOS, twice 4 visual tokens, 3 ids
    encoder.build("vlm", whole, "all_mean", range(7))
    encoder.build("vlm", whole, "visual_mean", (0,) * 50)  # this pool reads no text
    for pooling, prompt in (("", (3, 4, 5, 6)), ("all_mean", range(8))):
        with pytest.raises(ValueError, match="make 13 with BOS, more than the decoder's 12"):
            encoder.build("vlm", whole, pooling, prompt, () if pooling else (1, 2))
    for pooling in ("", "all_mean"):  # the last id of the vocabulary, and the first beyond it
        encoder.build("vlm", whole, pooling, (8,), () if pooling else (8, 0))
        with pytest.raises(ValueError, match="9 is outside"):
            encoder.build("vlm", whole, pooling, (9,), () if pooling else (8, 0))
    with pytest.raises(ValueError, match="9 is outside"):
        encoder.build("vlm", whole, "", (8,), (8, 9))
