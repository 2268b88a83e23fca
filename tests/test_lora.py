"""Test adapters: initialisation, count, scaling, precision, drop-path, and the errors."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax import trees
from fvjax.models import layers, lora
from fvjax.models.decoder import Decoder
from fvjax.models.layers import Dense
from fvjax.models.projector import Projector
from fvjax.models.vision_transformer import VisionTransformer, pool, resize_positions
from fvjax.models.vlm import VLM

TARGETS = ("blocks/mlp/fc1", "blocks/mlp/fc2")
SMALL = VisionTransformer(image_size=28, patch_size=14, width=16, depth=3, heads=2, mlp_dim=32)


@pytest.fixture(scope="module")
def params():
    return trees.flatten(SMALL.init(jax.random.key(0), jnp.zeros((1, 28, 28, 3)))["params"])


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(5), (4, 28, 28, 3))


def apply(params, adapters, x, model=SMALL, **kwargs):
    return model.apply({"params": trees.unflatten(params), "lora": trees.unflatten(adapters)}, x, **kwargs)


def test_init(params, x):
    adapters = lora.init(params, TARGETS, rank=4, count=6, key=jax.random.key(1))
    assert {name: (leaf.shape, leaf.dtype) for name, leaf in adapters.items()} == {
        "blocks/mlp/fc1/a": ((3, 16, 4), jnp.float32),
        "blocks/mlp/fc1/b": ((3, 4, 32), jnp.float32),
        "blocks/mlp/fc2/a": ((3, 32, 4), jnp.float32),
        "blocks/mlp/fc2/b": ((3, 4, 16), jnp.float32),
    }
    for name, inputs in (("fc1", 16), ("fc2", 32)):  # the bound comes from the input width, not from the stack
        largest = np.abs(adapters[f"blocks/mlp/{name}/a"]).max()
        assert 0.95 * (6 / inputs) ** 0.5 < largest <= (6 / inputs) ** 0.5
    layers = adapters["blocks/mlp/fc1/a"]
    assert np.abs(layers[0] - layers[1]).max() > 0.1
    np.testing.assert_array_equal(
        apply(params, lora.scaled(adapters, 1.0), x), SMALL.apply({"params": trees.unflatten(params)}, x)
    )


def test_pefts_initialisation(params):
    """PEFT's bound is 1 / sqrt(in), 2.45 times smaller than the other; the draw is uniform in both."""
    for name, factor in (("kaiming", 6), ("peft", 1)):
        adapters = lora.init(params, TARGETS, rank=64, count=6, key=jax.random.key(1), init=name)
        for module, inputs in (("fc1", 16), ("fc2", 32)):
            a, bound = np.abs(adapters[f"blocks/mlp/{module}/a"]), (factor / inputs) ** 0.5
            assert 0.99 * bound < a.max() <= bound
            np.testing.assert_allclose(a.mean(), bound / 2, rtol=0.05)
            assert np.abs(adapters[f"blocks/mlp/{module}/b"]).max() == 0
    with pytest.raises(ValueError, match="LoRA initialisation 'normal' is unknown; known are"):
        lora.init(params, TARGETS, 4, 6, jax.random.key(1), init="normal")  # type: ignore[arg-type]


def test_a_modules_draw_does_not_depend_on_the_other_targets(params):
    both = lora.init(params, TARGETS, 4, 6, jax.random.key(1))
    alone = lora.init(params, TARGETS[1:], 4, 3, jax.random.key(1))
    np.testing.assert_array_equal(both["blocks/mlp/fc2/a"], alone["blocks/mlp/fc2/a"])


def test_scale_and_merge(params, x):
    adapters = lora.init(params, ("blocks/attn/.*", "blocks/mlp/.*"), 4, 12, jax.random.key(1))
    adapters = {n: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape) for n, leaf in adapters.items()}
    got = apply(params, lora.scaled(adapters, 0.5), x)
    merged = lora.merge(params, adapters, 0.5)
    expected = SMALL.apply({"params": trees.unflatten(merged)}, x)
    np.testing.assert_allclose(got, expected, atol=1e-5)
    assert np.abs(got - apply(params, lora.scaled(adapters, 1.0), x)).max() > 0.01
    half = {name: leaf.astype(jnp.float16) for name, leaf in params.items()}
    assert {leaf.dtype for leaf in lora.merge(half, adapters, 0.5).values()} == {jnp.dtype(jnp.float16)}


def test_gradients_reach_a_only_through_b_and_are_scaled(params, x):
    adapters = lora.init(params, TARGETS, 4, 6, jax.random.key(1))
    grads = {
        scale: jax.grad(lambda a, s=scale: pool(apply(params, lora.scaled(a, s), x), "mean").sum())(adapters)
        for scale in (1.0, 2.0)
    }
    assert np.abs(grads[1.0]["blocks/mlp/fc1/a"]).max() == 0  # b is 0
    np.testing.assert_allclose(2 * grads[1.0]["blocks/mlp/fc1/b"], grads[2.0]["blocks/mlp/fc1/b"], rtol=1e-4)


@pytest.mark.parametrize(
    ("targets", "count", "message"),
    [
        (("blocks/mlp/fc3",), 6, "'blocks/mlp/fc3' matches no module; the modules are"),
        (("blocks/0/mlp/fc1",), 1, "matches no module"),  # a single layer of a stack has no name
        (("mlp/fc1",), 3, "matches no module"),  # the whole name must match
        (TARGETS, 48, "give 6 adapters, expected 48"),
    ],
)
def test_wrong_targets(params, targets, count, message):
    with pytest.raises(ValueError, match=message):
        lora.init(params, targets, 4, count, jax.random.key(0))


def test_merge_names_the_missing_half(params):
    adapters = lora.init(params, TARGETS, 4, 6, jax.random.key(1))
    del adapters["blocks/mlp/fc1/b"]
    with pytest.raises(ValueError, match="blocks/mlp/fc1: needs"):
        lora.merge(params, adapters, 1.0)


def test_half_precision_base_and_bfloat16_compute(params, x):
    """The base is float16, products are bfloat16, adapters and their gradients float32."""
    half = {name: leaf.astype(jnp.float16) for name, leaf in params.items()}
    adapters = lora.init(params, TARGETS, 4, 6, jax.random.key(1))
    adapters = {n: leaf + 0.1 * jax.random.normal(jax.random.key(2), leaf.shape) for n, leaf in adapters.items()}
    model = SMALL.clone(dtype=jnp.bfloat16)
    tokens = apply(half, lora.scaled(adapters, 1.0), x, model)
    assert tokens.dtype == jnp.bfloat16
    exact = apply(params, lora.scaled(adapters, 1.0), x)
    error = np.linalg.norm(tokens.astype(jnp.float32) - exact) / np.linalg.norm(exact)
    assert 1e-4 < error < 2e-2, error
    grads = jax.grad(lambda a: pool(apply(half, lora.scaled(a, 1.0), x, model), "mean").sum())(adapters)
    assert {leaf.dtype for leaf in grads.values()} == {jnp.dtype(jnp.float32)}


def test_dense_without_adapters_ignores_an_empty_collection():
    dense, x = Dense(3), jnp.ones((2, 4))
    variables = dense.init(jax.random.key(0), x)
    np.testing.assert_array_equal(dense.apply(variables | {"lora": {}}, x), dense.apply(variables, x))


def gradients(params, x, scale=1.0):
    """Compute flat gradients of the pooled tokens at steps 1 and 2 of gradient descent."""
    adapters = lora.init(params, TARGETS, 4, 6, jax.random.key(1))
    grad = jax.jit(jax.grad(lambda a: pool(apply(params, lora.scaled(a, 1.0), x), "mean").std()))
    first = grad(adapters)
    return first, grad({name: leaf - scale * first[name] for name, leaf in adapters.items()})


def test_adapters_that_learn_pass_the_gate(params, x):
    lora.check_alive(*(jax.jit(lora.is_zero)(g) for g in gradients(params, x)))


def test_dead_adapters_are_named_by_layer(params, x):
    """LayerScale 0 cuts off layer 1's MLP: b has no gradient and stays 0, so that a has none either."""
    first, second = gradients({**params, "blocks/ls2": params["blocks/ls2"].at[1].set(0)}, x)
    assert lora.is_zero(first)["blocks/mlp/fc1/b"].tolist() == [False, True, False]
    with pytest.raises(ValueError, match="exactly zero") as error:
        lora.check_alive(lora.is_zero(first), lora.is_zero(second))
    names = ["fc1/b layers [1] (first step)", "fc2/b layers [1] (first step)"]
    names += ["fc1/a layers [1] (after the first update)", "fc2/a layers [1] (after the first update)"]
    assert f": {', '.join(f'blocks/mlp/{name}' for name in names)}. Check" in str(error.value)


def test_the_gate_looks_at_b_first_and_then_at_a(params, x):
    """Without an update after step 1, a is still dead at step 2; one element that is not zero makes it alive."""
    zero = [lora.is_zero(g) for g in gradients(params, x, scale=0.0)]
    with pytest.raises(
        ValueError, match=r"zero: blocks/mlp/fc1/a layers \[0, 1, 2\] \(after the first update\), blocks/mlp/fc2/a"
    ):
        lora.check_alive(*zero)
    one = {"fc/a": jnp.zeros((4, 2)), "fc/b": jnp.zeros((2, 3)).at[1, 2].set(1e-30)}
    with pytest.raises(ValueError, match=r"zero: fc/a \(after the first update\)\. Check"):
        lora.check_alive(lora.is_zero(one), lora.is_zero(one))
    lora.check_alive(lora.is_zero(one), lora.is_zero({"fc/a": one["fc/b"], "fc/b": one["fc/a"]}))


# attributes of the vision transformer that no reference figure covers


def test_drop_path_follows_the_image_not_its_row(params, x):
    model, keys = SMALL.clone(drop_path=0.5), jax.random.split(jax.random.key(3), 4)
    variables = {"params": trees.unflatten(params)}
    run = jax.jit(lambda x, keys: model.apply(variables, x, train=True, keys=keys))
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_allclose(run(x[order], keys[order]), run(x, keys)[order], atol=1e-5)
    np.testing.assert_array_equal(model.apply(variables, x), SMALL.apply(variables, x))  # off in evaluation
    draws = jax.vmap(lambda key: run(x[:1], key[None])[0])(jax.random.split(jax.random.key(4), 400))
    assert len({float(value) for value in draws[:, 0, 0].round(4)}) > 4  # layers and branches drop independently
    with pytest.raises(ValueError, match="needs keys"):
        model.apply(variables, x, train=True)


def test_drop_path_rates_and_scaling(params, x):
    """Without MLPs, two layers with rates 0 and 1/2 (torch's linspace) have two possible results per image."""
    two = {name: leaf[:2] if name.startswith("blocks/") else leaf for name, leaf in params.items()}
    two["blocks/ls2"] = 0 * two["blocks/ls2"]
    variables = {"params": trees.unflatten(two)}
    model = SMALL.clone(depth=2, drop_path=0.5)
    kept = model.apply(variables, x[:1])[0]
    one = {"params": trees.unflatten({n: v[:1] if n.startswith("blocks/") else v for n, v in two.items()})}
    dropped = model.clone(select_layer=-2).apply(one, x[:1], train=True, keys=jax.random.split(jax.random.key(0), 1))[0]
    run = jax.jit(lambda keys: model.apply(variables, jnp.repeat(x[:1], 100, 0), train=True, keys=keys))
    results = run(jax.random.split(jax.random.key(1), 100))
    is_dropped = np.isclose(results, dropped, atol=1e-5).all((1, 2))
    is_kept = np.isclose(results, dropped + 2 * (kept - dropped), atol=1e-5).all((1, 2))
    assert (is_dropped ^ is_kept).all()
    assert 30 <= is_kept.sum() <= 70


def test_embeddings_of_a_vision_language_model_drop_the_towers_paths(x):
    """They are those of the visual tokens that are left with the same keys; evaluation drops nothing."""
    decoder = Decoder(vocab=9, width=16, depth=1, heads=2, kv_heads=1, head_dim=8, mlp_dim=16)
    model = VLM(vision=SMALL.clone(drop_path=0.5), projector=Projector(width=16), decoder=decoder, bos=1)
    embed = functools.partial(model.apply, text=(), pool="visual_mean", method="embed")
    variables = model.init(jax.random.key(0), x, (), "visual_mean", method="embed")
    keys = jax.random.split(jax.random.key(3), 4)
    got = embed(variables, x, train=True, keys=keys)
    left = model.apply(variables, x, train=True, keys=keys, method="visual")
    expected = model.apply(variables, left, (), "visual_mean", method="pooled")
    np.testing.assert_allclose(got, expected, atol=1e-6)
    assert np.abs(got - embed(variables, x)).max() > 1e-2


def test_select_layer_builds_no_more_than_it_needs(params, x):
    shorter = SMALL.clone(select_layer=-2)
    built = trees.flatten(shorter.init(jax.random.key(0), x)["params"])
    assert built["blocks/ls1"].shape == (2, 16)
    cut = {name: leaf[:2] if name.startswith("blocks/") else leaf for name, leaf in params.items()}
    got = shorter.apply({"params": trees.unflatten(cut)}, x)
    np.testing.assert_allclose(got, SMALL.clone(depth=2).apply({"params": trees.unflatten(cut)}, x), atol=1e-6)
    with pytest.raises(ValueError, match="select_layer=-5"):
        SMALL.clone(select_layer=-5).init(jax.random.key(0), x)


def test_a_tower_that_ends_early_drops_paths_at_the_whole_towers_rates(params, x):
    """Of three layers with rates 0, 1/4 and 1/2 the first two are built; the second's branch is kept 3 times in 4."""
    two = {n: v[:2] if n.startswith("blocks/") else v for n, v in params.items()}
    two["blocks/ls2"] = 0 * two["blocks/ls2"]  # leaves only attention to be dropped
    variables, model = {"params": trees.unflatten(two)}, SMALL.clone(select_layer=-2, drop_path=0.5)
    keys = jax.random.split(jax.random.key(1), 400)
    results = jax.jit(lambda keys: model.apply(variables, jnp.repeat(x[:1], 400, 0), train=True, keys=keys))(keys)
    values = np.unique(np.round(results[:, 0, 0], 4))
    assert len(values) == 2, "with or without the second layer's attention"
    kept = model.apply(variables, x[:1])[0, 0, 0]
    whole = np.abs(results[:, 0, 0] - kept) < np.abs(values - kept).max() * 0.99  # the nearer value: scaled by 4/3
    assert 260 <= whole.sum() <= 340, whole.sum()
    assert np.ptp(values) == pytest.approx(
        4 / 3 * np.ptp(np.append(values[np.abs(values - kept).argmax()], kept)), rel=0.02
    )


def test_clip_like_tower(x):
    """A CLIP tower has norms after the embedding and at the end, no LayerScale, no patch bias, and quick_gelu."""
    model = SMALL.clone(pre_norm=True, final_norm=True, layer_scale=False, patch_bias=False, act="quick_gelu")
    params = trees.flatten(model.init(jax.random.key(0), x)["params"])
    assert {"pre_norm/scale", "final_norm/bias"} <= set(params)
    assert not {"patch/bias", "blocks/ls1"} & set(params)
    tokens = model.apply({"params": trees.unflatten(params)}, x)
    np.testing.assert_allclose(tokens.mean(-1), 0, atol=1e-5)
    np.testing.assert_allclose(tokens.std(-1), 1, atol=1e-2)


def test_bad_image_size_and_pool(params):
    with pytest.raises(ValueError, match="30x28 is not a whole number of 14-pixel patches"):
        SMALL.apply({"params": trees.unflatten(params)}, jnp.zeros((1, 30, 28, 3)))
    with pytest.raises(ValueError, match="pool='max'"):
        pool(jnp.zeros((1, 2, 3)), "max")


def test_positions_on_their_own_grid_are_untouched():
    pos = jax.random.normal(jax.random.key(0), (1 + 16, 8))
    assert resize_positions(pos, (4, 4), (4, 4)) is pos
    np.testing.assert_allclose(resize_positions(jnp.ones((17, 8)), (4, 4), (7, 3)), 1, atol=1e-6)


def test_low_rank_is_two_products_and_nothing_large_is_turned_for_its_gradients():
    """The gradients of rank-8 products once took a fifth of a step, because XLA transposed activations for them."""
    x, dy = (jax.random.normal(jax.random.key(i), (2, 50, width)) for i, width in enumerate((32, 48)))
    a, b = jax.random.normal(jax.random.key(2), (4, 32)), jax.random.normal(jax.random.key(3), (4, 48))
    got, back = jax.vjp(layers.low_rank, x, a, b)
    expected, written = jax.vjp(lambda x, a, b: (x @ a.T) @ b, x, a, b)
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-4)
    for ours, theirs in zip(back(dy), written(dy)):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)

    def turned(low_rank):
        """List the operations that transpose x or its gradient in a loop over layers with stored adapters."""

        def summed(weights, x):
            def layer(x, w):
                return jnp.tanh(low_rank(x, w["m/a"], w["m/b"])), None

            return jax.lax.scan(layer, x, lora.scaled(weights, 1.0))[0].sum()

        stacks = {"m/a": jnp.ones((3, 256, 8)), "m/b": jnp.ones((3, 8, 256))}
        text = jax.jit(jax.grad(summed)).lower(stacks, jnp.ones((2, 512, 256))).compile().as_text()
        return re.findall(r"(?:transpose|copy)[\w.]* = f32\[256,1024\]", text)

    assert not turned(layers.low_rank)
    assert turned(lambda x, a, b: (x @ a.T) @ b), "XLA does it by itself now"


def test_a_layers_mlp_and_the_next_layers_attention_drop_independently(params, x):
    """Only the second layer's MLP (rate 1/4) and the third layer's attention (rate 1/2) contribute."""
    changed = {name: np.array(leaf) for name, leaf in params.items()}
    changed["blocks/ls1"][:2] = 0
    changed["blocks/ls2"][[0, 2]] = 0
    variables, model = {"params": trees.unflatten(changed)}, SMALL.clone(drop_path=0.5)
    keys = jax.random.split(jax.random.key(1), 400)
    results = jax.jit(lambda keys: model.apply(variables, jnp.repeat(x[:1], 400, 0), train=True, keys=keys))(keys)
    counts = np.unique(np.round(results[:, 0], 3), axis=0, return_counts=True)[1]
    # Both are kept in 3/8 of the cases, both dropped in 1/8, one of them in 3/8 and 1/8. With one key for both, the
    # rarest case would not occur.
    np.testing.assert_allclose(np.sort(counts) / 400, [1 / 8, 1 / 8, 3 / 8, 3 / 8], atol=0.08)
