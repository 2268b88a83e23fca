"""Test reading token by token with sliced layers: it equals the scan, copies nothing per token, and reads no more."""

from itertools import chain

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from fvjax import trees
from fvjax.models import decode, generation
from fvjax.models.decoder import Decoder
from fvjax.parallel.sharding import make_mesh

TINY = Decoder(vocab=32, width=16, depth=2, heads=4, kv_heads=2, head_dim=8, mlp_dim=32, positions=96, rope_theta=100.0)
LENGTHS = np.array([3, 7], np.int32)
NEVER = (32,)  # an id that no token has


@pytest.fixture(scope="module")
def variables():
    """Random weights, in which the norms are not 1 and one projection is adapted."""
    shapes = trees.flatten(jax.eval_shape(TINY.init, jax.random.key(0), jnp.zeros((1, 2, 16)))["params"])
    keys = jax.random.split(jax.random.key(0), len(shapes) + 2)
    params = {name: jax.random.normal(key, leaf.shape) / 3 for (name, leaf), key in zip(shapes.items(), keys)}
    adapter = {"a": jax.random.normal(keys[-1], (2, 4, 16)) / 3, "b": jax.random.normal(keys[-2], (2, 4, 32)) / 3}
    return {"params": trees.unflatten(params), "lora": {"blocks": {"mlp": {"up": adapter}}}}


@pytest.fixture(scope="module")
def x():
    return jax.random.normal(jax.random.key(1), (2, 7, 16))


@pytest.fixture
def scanned(monkeypatch):
    """Return a function that calls another one, in which no decoder is small enough to be sliced."""

    def call(function, *given, **settings):
        with monkeypatch.context() as patch:
            patch.setattr(decode, "SLICED_BYTES", 0)
            return function(*given, **settings)

    return call


def generate(decoder, variables, x):
    ids, counts = generation.generate(decoder, variables, x, LENGTHS, max_tokens=20, eos=NEVER)
    assert counts.tolist() == [20, 20]
    return ids.tolist()


def test_sliced_layers_generate_what_the_scan_does(variables, x, scanned):
    """Adapters included; also from a caller's compiled program."""
    assert len(decode.slice_layers(TINY, variables)) == 2
    assert scanned(decode.slice_layers, TINY, variables) is None
    expected = scanned(generate, TINY, variables, x)
    assert generate(TINY, variables, x) == expected
    in_a_program = jax.jit(lambda *given: generation.generate(TINY, *given, LENGTHS, max_tokens=20, eos=NEVER)[0])
    assert in_a_program(variables, x).tolist() == expected


def test_a_stream_is_what_is_generated_at_once(variables, x, scanned, monkeypatch):
    """The cache grows to 96 tokens instead of twice 71: more would change the frequencies of dynamic scaling."""
    assert TINY.rope == "dynamic"
    assert TINY.max_tokens > 142
    expected = generation.generate(TINY, variables, x, LENGTHS, max_tokens=80, eos=NEVER)[0].tolist()
    grown = []
    grow = decode.grow
    monkeypatch.setattr(decode, "grow", lambda cache, capacity: grown.append(capacity) or grow(cache, capacity))
    for stream in (lambda: streamed(variables, x), lambda: scanned(streamed, variables, x)):
        grown.clear()
        assert stream() == expected
        assert grown == [96]


def streamed(variables, x):
    parts = generation.stream(TINY, variables, x, LENGTHS, max_tokens=80, eos=NEVER)
    return np.concatenate(list(parts), axis=1).tolist()


def test_half_precision(variables, x, scanned):
    """Matrices are converted as the layers convert them; norms are not, as they compute in float32."""
    model = TINY.clone(dtype=jnp.bfloat16)
    stored = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), variables)
    sliced = decode.slice_layers(model, stored)
    for name, leaf in chain.from_iterable(trees.flatten(layer).items() for layer in sliced):
        assert leaf.dtype == (jnp.float16 if "norm" in name else jnp.bfloat16), name
    assert generate(model, stored, x) == scanned(generate, model, stored, x)


def test_sharded_weights(variables, x):
    """Weights split over four devices and rows over two give the tokens of one device."""
    mesh = make_mesh({"data": 2, "fsdp": 2, "tensor": 2})
    specs = {1: (), 2: (), 3: (None, "fsdp", "tensor")}

    def put(leaf, spec):
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*spec)))

    split = jax.tree.map(lambda leaf: put(leaf, specs[leaf.ndim]), variables)
    kernel = decode.slice_layers(TINY, split)[0]["params"]["mlp"]["up"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (8, 16), "a slice should stay split"
    assert generate(TINY, split, put(x, ("data",))) == generate(TINY, variables, x)


def test_large_decoders_are_scanned(variables, monkeypatch):
    count = sum(leaf.size for leaf in jax.tree.leaves([tree["blocks"] for tree in variables.values()]))
    for dtype, itemsize in ((jnp.float32, 4), (jnp.bfloat16, 2)):
        monkeypatch.setattr(decode, "SLICED_BYTES", itemsize * count)
        assert decode.slice_layers(TINY.clone(dtype=dtype), variables) is not None
        monkeypatch.setattr(decode, "SLICED_BYTES", itemsize * count - 1)
        assert decode.slice_layers(TINY.clone(dtype=dtype), variables) is None


def test_accelerators_scan(variables, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert decode.slice_layers(TINY, variables) is None


def test_no_stack_enters_the_loop_over_tokens(x):
    """What a loop uses of a stack it would have to copy for every token. `jaxpr` is that of a caller's program."""
    deep = TINY.clone(depth=5)
    shapes = jax.eval_shape(deep.init, jax.random.key(0), x)
    jaxpr = jax.make_jaxpr(lambda *given: generation.generate(deep, *given, max_tokens=9, eos=NEVER))(shapes, x)
    loops = list(of_kind("while", jaxpr.jaxpr))
    assert len(loops) == 1
    shapes = {value.aval.shape for value in loops[0].invars if hasattr(value, "aval")}
    assert (16, 32) in shapes, "a layer's weights should be among them"
    assert (2, 16, 2, 8) in shapes, "and its cache"
    assert not [shape for shape in shapes if len(shape) > 2 and shape[0] == deep.depth]
    assert not list(of_kind("scan", loops[0].params["body_jaxpr"].jaxpr)), "the layers should follow each other"


def of_kind(primitive, jaxpr):
    """Yield the equations of a primitive, also of inner programs, but not those inside of such an equation."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == primitive:
            yield equation
            continue
        for inner in jax.core.jaxprs_in_params(equation.params):
            yield from of_kind(primitive, inner)


def test_a_prompt_is_read_without_copies_of_the_weights():
    """The memory that the program needs besides its inputs and results is less than half of the weights."""
    wide = TINY.clone(width=128, mlp_dim=512, depth=6)
    shapes = jax.eval_shape(wide.init, jax.random.key(0), jnp.zeros((1, 2, 128)))
    layer = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]["blocks"])) // wide.depth
    x = jax.ShapeDtypeStruct((1, 4, 128), jnp.float32)
    program = generation.read_prompt.lower(wide, shapes, x, None, 8).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * 3 * layer


def test_the_last_token_is_not_read(variables, x, monkeypatch):
    """Reading it would only serve to choose the token after it."""
    read, calls = decode.read_token, []

    def counted(*given):
        jax.debug.callback(lambda: calls.append(1))
        return read(*given)

    monkeypatch.setattr(decode, "read_token", counted)
    every = tuple(range(TINY.vocab))
    for eos, count in ((NEVER, 5), (every, 1)):
        _, counts = generation.generate(TINY, variables, x, max_tokens=5, eos=eos)
        jax.effects_barrier()
        assert counts.tolist() == [count, count]
        assert len(calls) == count - 1
        calls.clear()


def test_the_cache_is_overwritten_in_place(variables, x):
    layers = decode.slice_layers(TINY, variables)
    logits, read = generation.read_prompt(TINY, variables, x, LENGTHS, 16)
    cache = decode.slice_cache(read, layers)
    _, _, longer = generation.next_tokens(TINY, variables, layers, logits, cache, 0, count=4)
    assert longer.length.tolist() == [7, 11]
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(cache))
