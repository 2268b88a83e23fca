"""Test frozen kernels as int8: the exact bound, products and gradients, one and eight devices, and what is refused."""

import dataclasses
import functools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import configs.facellm_38b
import fvjax
from fvjax import api, checks, experiment, export, pretrain, trees
from fvjax.config import base, typed
from fvjax.console import console
from fvjax.models import decode, int8
from fvjax.models.decoder import Decoder
from fvjax.models.layers import Dense
from fvjax.parallel import sharding
from fvjax.planning import estimate, programs
from fvjax.training import checkpoint, int8_base
from fvjax.training.checkpoint import Checkpoints
from fvjax.training.model import Pretrained, open_model, pretrained_hash
from fvjax.training.step import Recipe, gradients
from tests.parts import check, model_of, state_with, task_of
from tests.test_images import smooth_face
from tests.test_resume import abstract
from tests.test_resume import state as saved_state
from weights_convert import read_adapters
from weights_convert.write import write_original

SIZES = {"image_size": 28, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
CONFIG = {**pretrain.CONFIG, **SIZES, "torch_dtype": "float32"}

# ---- one kernel


def kernel(dtype: type = np.float32, shape: tuple[int, int] = (200, 7), seed: int = 0) -> np.ndarray:
    """Return weights whose channels differ in size; one channel is zero, one has weights of very different size."""
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=shape) * 10.0 ** (np.arange(shape[1]) % 7 - 3)
    weights[:, 1] = 0
    weights[:, 2] *= 10.0 ** rng.uniform(-6, 0, shape[0])
    return weights.astype(dtype)


def half_way(scales: int = 40) -> np.ndarray:
    """Return float32 channels full of weights that lie as near to half-way between two integers as they can."""
    largest = np.random.default_rng(1).uniform(0.5, 2, scales).astype(np.float32)
    scale = int8.quantise(largest[None]).scale.astype(np.float64)
    middle = ((np.arange(126)[:, None] + 0.5) * scale).astype(np.float32)
    return np.concatenate([largest[None], middle, np.nextafter(middle, np.float32(9)), -np.nextafter(middle, -9)])


@pytest.mark.parametrize(
    "weights",
    [kernel(), kernel(np.float16, seed=1), kernel(ml_dtypes.bfloat16, seed=2), half_way(), kernel(shape=(70, 1100))],
    ids=["float32", "float16", "bfloat16", "half_way", "several_blocks"],
)
def test_no_weight_is_off_by_more_than_a_254th_of_its_channels_largest(weights):
    """The bound holds in exact arithmetic, and the integers are the nearest ones."""
    weights = weights[:, -40:]
    found = int8.quantise(weights)
    assert (found.q.dtype, found.scale.dtype) == (np.int8, np.float32)
    for channel, q, scale in zip(weights.T.tolist(), found.q.T.tolist(), found.scale.tolist()):
        exact, s = [Fraction(w) for w in channel], Fraction(scale)
        largest = max(map(abs, exact))
        errors = [abs(w - i * s) for w, i in zip(exact, q)]
        assert max(errors) <= largest / 254
        assert not largest or max(map(abs, q)) == 127
        assert all(abs(w - (i + step) * s) >= e for w, i, e in zip(exact, q, errors) for step in (-1, 1))


def test_the_errors_that_are_recorded_are_those_of_the_dequantised_kernel():
    weights = kernel(shape=(150, 1100))
    found = int8.quantise(weights)
    error = np.abs(weights.astype(np.float64) - found.q * found.scale.astype(np.float64))
    largest = np.abs(weights).max(0)
    np.testing.assert_allclose(found.squared_error, np.square(error).sum(0), rtol=1e-3)
    np.testing.assert_allclose(found.squared_weight, np.square(weights.astype(np.float64)).sum(0), rtol=1e-5)
    np.testing.assert_allclose(found.largest_error * largest, error.max(0), rtol=1e-4)
    assert found.squared_error[1] == found.squared_weight[1] == found.largest_error[1] == 0, "the channel of zeros"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(value):
    weights = np.stack([kernel(), kernel()])
    weights[1, 3, 2] = value
    at = sharding.replicated(sharding.one_device())
    name = "params/blocks/mlp/fc1/kernel"
    with pytest.raises(ValueError, match=r"^blocks/mlp/fc1/kernel has weights that are not finite"):
        int8_base.read({name: weights}, {name: at, int8.scale_name(name): at})


# ---- one layer


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_a_layer_multiplies_with_the_dequantised_kernel(dtype):
    """The output, with an adapter and a bias, and its gradient by the input are those of a float kernel q * scale."""
    found = int8.quantise(kernel(shape=(64, 5)))
    x, dy = (jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate([(3, 4, 64), (3, 4, 5)]))
    bias, a, b = (jax.random.normal(jax.random.key(i), s) for i, s in ((2, 5), (3, (2, 64)), (4, (2, 5))))
    params, rest = {"kernel": found.q, "bias": bias}, {"lora": {"a": a, "b": b}}
    layer = Dense(5, dtype=dtype)

    @jax.jit
    def both(variables):
        out, backward = jax.vjp(lambda x: layer.apply(variables, x).astype(jnp.float32), x)
        return out, backward(dy)[0]

    got = both({"params": params, "scales": {"kernel": found.scale}, **rest})
    dequantised = found.q * found.scale
    expected = both({"params": {**params, "kernel": dequantised}, **rest})
    for one, other in zip(got, expected):
        tolerance = 2e-6 if dtype == jnp.float32 else 0.02
        size = np.abs(other).max(tuple(range(other.ndim - 1)))  # by channel, which differ in size
        assert (np.abs(one - other).max((0, 1)) <= tolerance * size).all()


def test_the_backward_pass_keeps_integers_and_no_dequantised_kernels():
    """The layers' loop of a tower without rematerialisation stacks no float kernel up for the backward pass."""
    c = tower(depth=3)
    model = model_of(c)
    variables = jax.eval_shape(model.init, model.key)

    def loss(images, frozen, trainable):
        pixels = images.astype(jnp.float32)
        return model.encoder.net.apply(model.variables(trainable, {}, frozen), pixels).sum()

    pixels = jax.ShapeDtypeStruct((2, 28, 28, 3), jnp.float32)
    trainable = {"lora": variables["lora"]}
    closed = jax.make_jaxpr(jax.grad(loss, argnums=(0, 2)))(pixels, model.frozen, trainable)
    loops = [eqn for eqn in closed.jaxpr.eqns if eqn.primitive.name == "scan"]
    assert len(loops) == 2, "forward and backward"
    stacked = [v.aval for loop in loops for v in (*loop.invars, *loop.outvars) if v.aval.shape == (3, 8, 24)]
    assert stacked, "qkv's kernel is among the loops' operands"
    assert {aval.dtype for aval in stacked} == {jnp.dtype(jnp.int8)}


# ---- whole models


def tower(depth: int = 1):
    c = base()
    c.model.kind, c.model.pooling = "vision_transformer", "mean"
    sizes = {"image_size": 28, "patch_size": 14, "width": 8, "depth": depth, "heads": 2, "mlp_dim": 16}
    c.model.vision_transformer.update(sizes)
    c.lora.update({"rank": 2, "alpha": 4.0, "targets": ("blocks/mlp/fc[12]",), "count": 2 * depth})
    c.trainable = (("lora/.*", "adapter"), (".*", "frozen"))
    c.base_kernels = "int8"
    return c


def pairs():
    """Return the config of a VLM that answers about pairs: its decoder runs a last layer of its own."""
    c = tower()
    c.task, c.model.kind, c.model.pooling = "pair_answer", "vlm", ""
    c.model.decoder.update(
        {"vocab": 11, "width": 16, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp_dim": 16}
    )
    c.prompt.update({"ids": (2, 3), "yes_no_ids": (5, 6)})
    c.lora.update({"targets": ("decoder/blocks/(attn|mlp)/(o|down)",), "count": 4})
    c.batch_size, c.data.flip, c.attention = 8, False, "xla"
    c.sharding = (
        ("params/.*blocks/.*/(qkv|q|k|v|fc1|gate|up)/kernel", (None, "fsdp", "tensor")),
        ("params/.*blocks/.*/kernel", (None, "tensor")),
        (".*", ()),
    )
    return c


def drawn(shapes, seed: int) -> dict[str, np.ndarray]:
    """Return random float32 values of a nested tree of shapes, by name."""
    rng = np.random.default_rng(seed)
    return {n: 0.3 * rng.normal(size=x.shape).astype(np.float32) for n, x in trees.flatten(shapes).items()}


def first_gradient(c, model, frozen, mesh) -> tuple[float, dict[str, np.ndarray]]:
    """Return the loss of a batch and its gradient by name, with adapters that have a value already."""
    recipe = Recipe(model, task_of(c), None)  # type: ignore[arg-type]
    trainable = trees.unflatten(drawn(jax.eval_shape(model.initial, model.key)["trainable"], 1))
    rng = np.random.default_rng(2)
    batch = {
        "images": rng.integers(0, 256, (4, 2, 112, 112, 3), np.uint8),
        "labels": np.array([0, 1, 1, 0], np.int32),
        "index": np.arange(4, dtype=np.int32),
    }
    step = jax.jit(functools.partial(gradients, recipe))
    loss, _, grads = step(state_with(trainable), frozen, sharding.batch(batch, mesh))
    return float(loss), {n: np.asarray(g) for n, g in trees.flatten(grads).items()}


def with_base(c, mesh):
    """Return the model of a config on a mesh, as if it had pretrained weights, and these by name."""
    float32 = typed(c).replace({"base_kernels": "base_dtype"})
    weights = drawn(open_model(float32, task_of(c), mesh).frozen, 0)
    return dataclasses.replace(model_of(c, mesh), pretrained=Pretrained(weights, {}, "", "")), weights


def test_eight_devices_learn_as_one_does_with_the_dequantised_weights():
    """Adapters get the same loss and gradients, with the last layer of the decoder apart, as for pairs.

    Scales live where their channels live. Their inputs may be split, and they still depend on all of them.
    """
    c, one = pairs(), sharding.one_device()
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    model, weights = with_base(c, mesh)
    frozen, errors = model.read_base()
    flat = trees.flatten(frozen)
    gate, down = "scales/decoder/blocks/mlp/gate/kernel", "scales/decoder/blocks/mlp/down/kernel"
    assert model.shardings[gate].spec == flat[gate].sharding.spec == jax.P(None, "tensor")
    assert model.shardings[down].spec == jax.P(None, None)
    assert flat["params/decoder/blocks/mlp/gate/kernel"].addressable_shards[0].data.shape == (2, 8, 8)

    alone, errors_alone = with_base(c, one)[0].read_base()
    assert errors == errors_alone
    dequantised = dict(weights)
    for name, x in trees.flatten(alone).items():
        np.testing.assert_array_equal(flat[name], x)
        if x.dtype == jnp.int8:
            dequantised[name] = np.asarray(x * trees.flatten(alone)[int8.scale_name(name)][:, None])
            bound = np.abs(weights[name]).max(1, keepdims=True) / 254
            assert (np.abs(dequantised[name] - weights[name]) <= 1.0001 * bound).all()

    loss, grads = first_gradient(c, model, frozen, mesh)
    expected_loss, expected = first_gradient(c, with_base(c, one)[0], trees.unflatten(dequantised), one)
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert set(grads) == set(expected)
    for name, g in expected.items():
        assert np.linalg.norm(g) > 0
        assert np.linalg.norm(grads[name] - g) <= 1e-5 * np.linalg.norm(g), name


def test_only_kernels_of_attention_and_mlp_are_integers():
    model, weights = with_base(pairs(), sharding.one_device())
    frozen = trees.flatten(model.read_frozen())
    kernels = {n for n, x in frozen.items() if x.dtype == jnp.int8}
    of_tower = {f"params/vision/blocks/{m}/kernel" for m in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")}
    of_decoder = ("attn/q", "attn/k", "attn/v", "attn/o", "mlp/gate", "mlp/up", "mlp/down")
    assert kernels == of_tower | {f"params/decoder/blocks/{m}/kernel" for m in of_decoder}
    assert set(frozen) == set(weights) | {int8.scale_name(n) for n in kernels}
    for name in set(weights) - kernels:
        np.testing.assert_array_equal(frozen[name], weights[name])


def test_random_weights_become_integers_too(monkeypatch):
    quantised = []
    quantise = int8.quantise
    monkeypatch.setattr(int8, "quantise", lambda weights: quantised.append(weights) or quantise(weights))
    frozen = trees.flatten(model_of(tower()).read_frozen())
    weights = next(w for w in quantised if w.shape == (8, 16))
    assert weights.dtype == np.float32
    assert 0.3 < np.abs(weights).max() <= 8**-0.5, "as Dense draws them"
    name = "params/blocks/mlp/fc1/kernel"
    np.testing.assert_array_equal(frozen[name], quantise(weights).q[None])
    np.testing.assert_array_equal(frozen[int8.scale_name(name)], quantise(weights).scale[None])


def test_generation_slices_integers_without_loss_and_keeps_scales_in_float32():
    """On a CPU, layers are sliced once and matrices converted to the compute dtype, see fvjax/models/decode.py."""
    sizes = {"vocab": 11, "width": 16, "depth": 2, "heads": 4, "kv_heads": 2, "head_dim": 4, "mlp_dim": 16}
    decoder = Decoder(**sizes, dtype=jnp.bfloat16)
    stack = [int8.quantise(kernel(shape=(16, 16), seed=i)) for i in range(2)]
    q, scale = np.stack([one.q for one in stack]), np.stack([one.scale for one in stack])
    tree = {"params": {"gate": {"kernel": q}}, "scales": {"gate": {"kernel": scale}}}
    layers = decode.slice_layers(decoder, {name: {"blocks": {"mlp": part}} for name, part in tree.items()})
    assert layers is not None
    for layer, one in zip(layers, stack):
        integers, scales = layer["params"]["mlp"]["gate"]["kernel"], layer["scales"]["mlp"]["gate"]["kernel"]
        assert (integers.dtype, scales.dtype) == (jnp.bfloat16, jnp.float32)
        np.testing.assert_array_equal(integers.astype(np.float32), one.q)
        np.testing.assert_array_equal(scales, one.scale)


class Counted:
    """A stack of kernels in a checkpoint, which counts how often each layer is read."""

    def __init__(self, array: np.ndarray):
        self.array, self.shape, self.reads = array, array.shape, []

    def __getitem__(self, index):
        layer, inputs, outputs = index
        assert isinstance(layer, int), "one layer at a time"
        assert inputs == slice(None)
        self.reads.append((layer, outputs.start, outputs.stop))
        return self.array[index]


def test_each_weight_is_read_once_and_only_integers_reach_the_devices(monkeypatch):
    """Four devices share the inputs and outputs of a stack; two copies of each part do not cost a second reading."""
    source = Counted(np.stack([kernel(shape=(64, 8), seed=i) for i in range(3)]))
    mesh = sharding.make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    name = "params/blocks/mlp/fc1/kernel"
    shapes = {name: jax.ShapeDtypeStruct(source.shape, jnp.float32)}
    rules = {name: jax.NamedSharding(mesh, jax.P(None, "fsdp", "tensor"))}
    shapes, shardings = int8_base.with_int8_kernels(shapes, rules)
    made = []
    make = jax.make_array_from_callback

    def watch(shape, at, callback):
        return made.append(make(shape, at, callback)) or made[-1]

    monkeypatch.setattr(jax, "make_array_from_callback", watch)
    arrays, errors = int8_base.read({name: source}, shardings)
    assert sorted(source.reads) == [(layer, left, left + 4) for layer in range(3) for left in (0, 4)]
    assert [x.dtype for x in made if x.shape == source.shape] == [jnp.int8]
    assert {n: (x.shape, x.dtype) for n, x in arrays.items()} == {n: (x.shape, x.dtype) for n, x in shapes.items()}
    expected = [int8.quantise(weights) for weights in source.array]
    np.testing.assert_array_equal(arrays[name], [one.q for one in expected])
    np.testing.assert_array_equal(arrays[int8.scale_name(name)], [one.scale for one in expected])
    relative = [
        np.linalg.norm(w - one.q * one.scale.astype(float)) / np.linalg.norm(w)
        for w, one in zip(source.array.astype(float), expected)
    ]
    found = errors["blocks/mlp/fc1"]
    assert found["mean"] == pytest.approx(np.mean(relative), rel=1e-3)
    assert found["worst"] == pytest.approx(max(relative), rel=1e-3)
    assert 0.9 / 254 < found["largest"] <= 1.0001 / 254
    at = sharding.replicated(sharding.one_device())
    assert int8_base.read({name: source}, dict.fromkeys(shardings, at))[1] == errors, "the same on one device"


# ---- what is refused


@pytest.mark.parametrize("rule", ["params/decoder/.*", ".*mlp/fc1/kernel"])
def test_a_kernel_that_is_kept_as_integers_cannot_train(rule):
    c = pairs()
    c.trainable = (("lora/.*", "adapter"), (rule, "backbone"), (".*", "frozen"))
    with pytest.raises(ValueError, match=r"^config\.base_kernels=int8: the rule ") as error:
        model_of(c)
    assert f"the rule {rule!r} of config.trainable trains params/" in str(error.value)
    c.trainable = (("lora/.*", "adapter"), ("params/projector/.*", "projector"), (".*", "frozen"))
    assert "params/projector/fc1/kernel" in model_of(c).groups, "what is not kept as integers may train"


def test_other_kinds_of_models_have_no_such_kernels():
    c = base()
    c.base_kernels = "int8"
    with pytest.raises(ValueError, match=r"config\.base_kernels=int8: not for model\.kind=iresnet"):
        check(c)
    check(tower())


def test_a_run_belongs_to_its_kind_of_base(tmp_path):
    """By its config and by the hash in its checkpoints, in both directions."""
    ours, theirs = typed(tower()), typed(tower()).replace({"base_kernels": "base_dtype"})
    assert ours.hash() != theirs.hash()
    hashes = [pretrained_hash("", {}, c.base_kernels) for c in (ours, theirs)]
    assert hashes == ["int8:", ""]
    for i, (saved, now) in enumerate(((ours, theirs), (theirs, ours))):
        workdir = tmp_path / str(i)
        workdir.mkdir()
        (workdir / "config.json").write_text(saved.to_json())
        with pytest.raises(ValueError, match=rf"is of another config \(base_kernels: '{saved.base_kernels}' there"):
            checks.check_workdir(now.to_json(), workdir, False)
        checkpoints = Checkpoints(workdir, saved.checkpoint)
        checkpoints.save(3, saved_state(), {"base_hash": hashes[i]})
        with pytest.raises(ValueError, match=f"base_hash is '{hashes[i]}', this run has '{hashes[1 - i]}'"):
            checkpoints.restore(3, abstract(saved_state()), {"base_hash": hashes[1 - i]})
        checkpoints.close()


# ---- a run, from training to export


class Base(NamedTuple):
    config: Any
    folder: Path
    params: dict[str, np.ndarray]


@pytest.fixture(scope="module")
def tower_base(tmp_path_factory) -> Base:
    """Return the config of adapters beside an int8 tower, its folder, and its weights."""
    folder = tmp_path_factory.mktemp("int8") / "tower"
    c = tower(depth=2)
    params = drawn({"params": jax.eval_shape(model_of(c).init, jax.random.key(0))["params"]}, 3)
    write_original(folder, params, CONFIG)
    c.name, c.init_from, c.eval.batch_size = "small", str(folder), 8
    return Base(c, folder, params)


def test_a_run_says_how_far_its_base_is_from_the_original(tower_base, tmp_path, monkeypatch):
    """At its start and in its directory. What it computes is what a checkpoint of the dequantised weights does."""
    c, printed = tower_base.config.copy_and_resolve_references(), []
    monkeypatch.setattr(console, "print", lambda *what, **_: printed.extend(map(str, what)))
    results = experiment.run(typed(c), tmp_path / "run", train=True)
    assert results["base_hash"] == f"int8:{checkpoint.base_hash(tower_base.folder)}"
    errors = json.loads((tmp_path / "run/int8_error.json").read_text())
    assert set(errors) == {f"blocks/{m}" for m in ("attn/qkv", "attn/proj", "mlp/fc1", "mlp/fc2")}
    worst = max(one["worst"] for one in errors.values())
    text = "\n".join(printed)
    assert "int8 base: 8 kernels in 0.000 GB. |W - q s| / |W| is 0." in text
    assert f"at most {worst:.3%} (blocks/" in text
    adapters = 2 * 2 * 2 * (8 + 16)
    assert f"{sum(x.size for x in tower_base.params.values()) + adapters:,} parameters, {adapters} train;" in text

    dequantised = dict(tower_base.params)
    for name in filter(int8.is_quantised, dequantised):
        found = [int8.quantise(weights) for weights in dequantised[name]]
        dequantised[name] = np.stack([one.q * one.scale for one in found])
    write_original(tmp_path / "dequantised", dequantised, CONFIG)
    faces = np.stack([smooth_face(i) for i in range(4)])
    got = api.load_workdir(tmp_path / "run").embed(faces)
    np.testing.assert_allclose(got, fvjax.load(tmp_path / "dequantised", "vit").embed(faces), rtol=1e-5, atol=1e-5)


def test_adapters_are_exported_and_merged_weights_refused(tower_base, tmp_path, capsys):
    c = tower_base.config.copy_and_resolve_references()
    c.epochs = 1
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(typed(c).to_json())
    trained = drawn(jax.eval_shape(model_of(c).initial, jax.random.key(0))["trainable"], 4)
    checkpoints = Checkpoints(workdir, typed(c).checkpoint)
    state = {"trainable": trees.unflatten(trained), "stats": {}, "opt": {}, "step": np.int32(5)}
    checkpoints.save(5, state, {"base_hash": pretrained_hash(c.init_from, {}, "int8")})
    checkpoints.close()
    assert export.main([f"--workdir={workdir}", f"--dst={tmp_path / 'adapters'}"]) == 0
    found, scale = read_adapters(tmp_path / "adapters", tower_base.folder, "vision_transformer")
    assert scale == 2
    assert {f"lora/{n}" for n in found} == set(trained)
    for name, x in found.items():
        np.testing.assert_array_equal(x, trained[f"lora/{name}"])
    capsys.readouterr()
    assert export.main([f"--workdir={workdir}", f"--dst={tmp_path / 'merged'}", "--merged"]) == 2
    said = capsys.readouterr().err
    assert f"{workdir}: its base has int8 kernels (config.base_kernels)" in said
    assert "export its adapters alone" in said
    assert not (tmp_path / "merged").exists()


# ---- planning


def test_facellm_38b_fits_a_device_of_80_gb():
    """With batches of 12 in 6 parts as published, rematerialised; in bfloat16 the base alone takes 77 GB."""
    c = configs.facellm_38b.get_config()
    c.base_kernels, c.remat, c.attention = "int8", "full", "cudnn"
    config = estimate.without_files(typed(c))[0]
    planner = programs.Planner(config, sharding.one_device())
    sizes, _ = planner.sizes()
    frozen = trees.flatten(planner.step.arguments[1])
    integers = sum(x.size for x in frozen.values() if x.dtype == jnp.int8)
    scales = sum(x.size for n, x in frozen.items() if n.startswith("scales/"))
    others = sum(x.size for n, x in frozen.items() if x.dtype == jnp.bfloat16)
    assert int8.parameters(planner.step.arguments[1]) == integers + others == 38_388_138_240
    assert sizes["base"] == integers + 4 * scales + 2 * others
    assert 36.5e9 < integers < 37e9
    assert sum(sizes.values()) + sizes["working set"] < 0.9 * 80e9
