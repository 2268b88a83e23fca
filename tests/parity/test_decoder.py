"""Compare the decoder with transformers' tiny Qwen2 and LLaMA, and its shortcuts with the full computation."""

import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax import trees
from fvjax.models.decoder import Decoder
from fvjax.models.generation import generate
from tests.parity import close, gradients_close, in_torch_layout, load
from weights_convert import open_checkpoint

TORCH_NEEDED = "needs tests/requirements-torch.txt"
SMALL = {
    "vocab_size": 61,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-2,  # large enough that a wrong value is visible
    "max_position_embeddings": 64,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 32}
CASES = {
    "qwen2": ("Qwen2", {}, {}),
    "qwen2 tied": ("Qwen2", {"tie_word_embeddings": True}, {}),
    "llama": ("Llama", {}, {}),
    "llama without groups": ("Llama", {"num_key_value_heads": 6}, {}),
    "llama biases": ("Llama", {"attention_bias": True, "mlp_bias": True}, {}),
    "llama head_dim": ("Llama", {"head_dim": 16}, {}),
    "llama linear": ("Llama", {}, {"rope_type": "linear", "factor": 4.0}),
    "llama dynamic": ("Llama", {"max_position_embeddings": 16}, {"rope_type": "dynamic", "factor": 2.0}),
    "llama dynamic, short": ("Llama", {}, {"rope_type": "dynamic", "factor": 2.0}),
    "llama llama3": ("Llama", {}, {"rope_type": "llama3", **LLAMA3}),
}


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.mark.parametrize("case", CASES)
def test_transformers_every_gradient(tmp_path, case):
    """States, logits and every parameter's gradient agree for a saved checkpoint, in both spellings of its config."""
    torch = pytest.importorskip("torch", reason=TORCH_NEEDED)
    import transformers

    family, changes, rope = CASES[case]
    rope = {"rope_type": "default", "rope_theta": 500.0, **rope}
    config = getattr(transformers, f"{family}Config")(**SMALL | changes, rope_parameters=rope)
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    theirs = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():  # initial biases and norms are 0 and 1: they hide mistakes
            parameter.add_((0.3 if "q_proj" in name or "k_proj" in name else 0.05) * torch.randn_like(parameter))
    theirs.save_pretrained(tmp_path)
    ids = np.random.default_rng(0).integers(0, 61, (2, 24))
    weights = np.random.default_rng(1).standard_normal(61).astype(np.float32)
    out = theirs(torch.as_tensor(ids), output_hidden_states=True)
    (out.logits.tanh() @ torch.as_tensor(weights)).sum().backward()

    model, params = load(tmp_path)

    def loss_fn(params):
        variables = {"params": trees.unflatten(params)}
        states = model.apply(variables, model.apply(variables, ids, method="embed_tokens"))
        logits = model.apply(variables, states, method="logits")
        return (jnp.tanh(logits) @ weights).sum(), (states, logits)

    grads, (states, logits) = jax.jit(jax.grad(loss_fn, has_aux=True))(params)
    close(states, out.hidden_states[-1].detach(), 1e-5, "states")
    close(logits, out.logits.detach(), 1e-5, "logits")
    got = in_torch_layout(open_checkpoint(tmp_path), grads)
    gradients_close(got, {key: value.grad.numpy() for key, value in theirs.named_parameters()}, 1e-4)

    written = json.loads((tmp_path / "config.json").read_text())
    rope = written.pop("rope_parameters")
    written["rope_theta"], kind = rope.pop("rope_theta"), rope.pop("rope_type")
    written["rope_scaling"] = None if kind == "default" else {"type": kind, **rope}
    (tmp_path / "config.json").write_text(json.dumps(written))
    changed = open_checkpoint(tmp_path).model_config
    assert {name: getattr(model, name) for name in changed} == changed


# cache, shortcut, generation: compared with the plain forward pass


TINY = Decoder(vocab=32, width=24, depth=3, heads=4, kv_heads=2, head_dim=6, mlp_dim=40, positions=64, rope_theta=100.0)
forward = jax.jit(TINY.apply)  # much faster to compile than one operation after another


@pytest.fixture(scope="module")
def variables():
    made = jax.jit(TINY.init)(jax.random.key(0), jnp.zeros((1, 2, 24)))
    params = {n: leaf * (20 if n in ("embed", "head") else 1) for n, leaf in trees.flatten(made["params"]).items()}
    lora = {  # one adapted stack, so that the lora collection takes the same paths
        "blocks/mlp/up/a": jax.random.normal(jax.random.key(1), (3, 2, 24)),
        "blocks/mlp/up/b": jax.random.normal(jax.random.key(2), (3, 2, 40)) / 10,
    }
    return {"params": trees.unflatten(params), "lora": trees.unflatten(lora)}


@pytest.fixture(scope="module")
def x(variables):
    return TINY.apply(variables, np.random.default_rng(0).integers(0, 32, (3, 12)), method="embed_tokens")


def test_causal(variables, x):
    before, after = forward(variables, x), forward(variables, x.at[:, 7:].add(1.0))
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert np.abs(before[:, 7:] - after[:, 7:]).min(-1).max(-1).min() > 0 or np.abs(before - after)[:, 7:].max() > 0.1


def test_cache_step_by_step(variables, x):
    @jax.jit
    def steps(variables, x):
        cache, out = TINY.new_cache(3, 14), []
        for start, end in ((0, 5), (5, 6), (6, 7), (7, 12)):
            states, cache = TINY.apply(variables, x[:, start:end], cache, method="extend")
            out.append(states)
        return jnp.concatenate(out, axis=1), cache.length

    states, length = steps(variables, x)
    close(states, forward(variables, x), 1e-5, "states with a cache")
    assert length.tolist() == [12, 12, 12]


def test_a_cache_that_grows(variables, x):
    """Rows of one length need no capacity; dynamic scaling uses the length of the whole sequence from the start."""
    model = TINY.clone(rope="dynamic", rope_factor=2.0, positions=8)

    @jax.jit
    def steps(variables, x):
        cache, out = model.new_cache(3), []
        for start, end in ((0, 5), (5, 6), (6, 12)):
            states, cache = model.apply(variables, x[:, start:end], cache, tokens=12, method="extend")
            out.append(states)
            assert cache.k.shape[2] == end
            assert cache.length is None
        _, first = model.apply(variables, x[:, :5], model.new_cache(3), last=True, tokens=12, method="extend")
        last, _ = model.apply(variables, x[:, 5:], first, last=True, method="extend")
        return jnp.concatenate(out, axis=1), last[:, 0]

    naive, plain = jax.jit(model.apply)(variables, x), jax.jit(TINY.clone(positions=12).apply)(variables, x)
    assert np.abs(naive - plain).max() > 1e-2, "12 tokens must be more than the positions"
    states, last = steps(variables, x)
    close(states, naive, 1e-5, "states with a cache that grows")
    close(last, naive[:, -1], 1e-5, "the last token, after only keys and values of the first ones")
    with pytest.raises(ValueError, match="capacity"):
        model.apply(variables, x, model.new_cache(3), lengths=jnp.array([4, 12, 9]), method="extend")
    with pytest.raises(ValueError, match="17 tokens"):
        model.apply(variables, x, model.new_cache(3), tokens=17, method="extend")


def test_cache_with_rows_of_different_length(variables, x):
    lengths = jnp.array([4, 12, 9])

    @jax.jit
    def with_and_without_cache(variables, x):
        cache = TINY.new_cache(3, 16)
        last, cache = TINY.apply(variables, x, cache, last=True, lengths=lengths, method="extend")
        step, cache = TINY.apply(variables, x[:, :1], cache, method="extend")
        return last, step, cache.length, TINY.apply(variables, x, last=True, lengths=lengths)

    last, step, length, without_cache = with_and_without_cache(variables, x)
    assert length.tolist() == [5, 13, 10]
    for row, count in enumerate(lengths.tolist()):
        alone = jnp.concatenate([x[row : row + 1, :count], x[row : row + 1, :1]], axis=1)
        naive = forward(variables, jnp.pad(alone, ((0, 0), (0, 13 - alone.shape[1]), (0, 0))))  # one program for all
        close(last[row, 0], naive[0, count - 1], 1e-5, "last token of a padded row")
        close(step[row, 0], naive[0, count], 1e-5, "token after a padded row")
        close(without_cache[row, 0], naive[0, count - 1], 1e-5, "the same, no cache")


@pytest.mark.parametrize("depth", [1, 3])
@pytest.mark.parametrize("remat", ["none", pytest.param("dots", marks=pytest.mark.slow), "full"])
def test_last_token_only(variables, x, remat, depth):
    """The shortcut of the last layer has the same value and the same gradients by weights, adapters and input."""
    model = TINY.clone(remat=remat, depth=depth)
    cut = trees.unflatten({n: v[:depth] if "/blocks/" in n else v for n, v in trees.flatten(variables).items()})

    def loss(given, x, last):
        states = model.apply(given, x, last=last)
        assert states.shape == (3, 1 if last else 12, 24)
        return jnp.tanh(states[:, -1]).sum(), states[:, -1]

    step = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True), static_argnums=2)
    got, naive = (step(cut, x, last) for last in (True, False))
    close(got[0][1], naive[0][1], 1e-5, "the last token's state")
    flat = [trees.flatten({**trees.flatten(grads[0]), "x": grads[1]}) for _, grads in (got, naive)]
    gradients_close(flat[0], flat[1], 1e-4)


@jax.jit
def most_probable(variables, row, length):
    """Return the most probable token after `length` embedded tokens, and its embedding; the rest of the row is zero."""
    token = TINY.apply(variables, TINY.apply(variables, row)[:, length - 1], method="logits").argmax(-1)
    return token[0], TINY.apply(variables, token, method="embed_tokens")[0]


def greedy(variables, x, count, eos):
    """Generation equals an argmax loop without a cache, one row at a time."""
    out = []
    for row in np.pad(x, ((0, 0), (0, count), (0, 0)))[:, None]:
        length, ids = x.shape[1], []
        while len(ids) < count and not set(ids) & set(eos):
            token, row[0, length] = most_probable(variables, row, length)
            ids.append(int(token))
            length += 1
        out.append(ids)
    return out


def test_generate_greedy_is_an_argmax_loop(variables, x):
    free = greedy(variables, x, 8, ())
    assert len({tuple(row) for row in free}) == 3, "the rows should differ"
    eos = (free[0][3], free[1][5])
    expected = greedy(variables, x, 8, eos)
    ids, counts = generate(TINY, variables, x, max_tokens=8, eos=eos)
    assert counts.tolist() == [len(row) for row in expected]
    assert ids.tolist() == [row + [eos[0]] * (8 - len(row)) for row in expected]
    assert min(counts) < 8, "a row should end early"


def test_generate_from_rows_of_different_length(variables, x):
    lengths = [5, 12, 8]
    expected = [greedy(variables, x[i : i + 1, :length], 6, ())[0] for i, length in enumerate(lengths)]
    ids, counts = generate(TINY, variables, x, jnp.array(lengths), max_tokens=6, eos=(32,))
    assert ids.tolist() == expected
    assert counts.tolist() == [6, 6, 6]


def test_sampling(variables, x):
    """A row's samples depend on its own key; frequencies follow the softmax; top_p cuts off the tail."""
    keys = jax.random.split(jax.random.key(3), 3)
    settings = {"max_tokens": 6, "eos": (32,)}
    ids, _ = generate(TINY, variables, x, keys=keys, **settings)
    other, _ = generate(TINY, variables, x[::-1], keys=keys[::-1], **settings)
    assert ids.tolist() == other[::-1].tolist()
    assert ids.tolist() != generate(TINY, variables, x, keys=keys[::-1], **settings)[0].tolist()
    best, _ = generate(TINY, variables, x, max_tokens=6, eos=(32,))
    for cold in ({"temperature": 1e-4}, {"top_p": 1e-6}):
        assert generate(TINY, variables, x, keys=keys, **settings | cold)[0].tolist() == best.tolist()

    n, temperature = 4000, 3.0 / (0.02 * TINY.width**0.5)  # so flat that several words share half of the probability
    logits = TINY.apply(variables, forward(variables, x[:1])[:, -1], method="logits")[0]
    expected = jax.nn.softmax(logits / temperature)
    keys = jax.random.split(jax.random.key(4), n)
    many = jnp.broadcast_to(x[:1], (n, *x.shape[1:]))
    drawn, _ = generate(TINY, variables, many, keys=keys, max_tokens=1, eos=(32,), temperature=temperature)
    frequency = np.bincount(np.asarray(drawn[:, 0]), minlength=32) / n
    assert np.abs(frequency - expected).max() < 5 * math.sqrt(0.25 / n)
    order = np.argsort(-expected)
    kept = order[: 1 + int(np.searchsorted(np.cumsum(expected[order]), 0.5))]
    assert 1 < len(kept) < 32
    drawn, _ = generate(TINY, variables, many, keys=keys, max_tokens=1, eos=(32,), temperature=temperature, top_p=0.5)
    assert set(np.unique(drawn)) == set(kept.tolist())


def test_what_cannot_be(variables, x):
    model = TINY.clone(positions=8, rope="plain")
    with pytest.raises(ValueError, match="12 tokens is longer than the decoder's 8"):
        model.apply(variables, x)
    with pytest.raises(ValueError, match="17 tokens is longer"):
        generate(TINY.clone(positions=8), variables, x, max_tokens=5, eos=(2,))
    for wrong in ({"eos": ()}, {"temperature": 0.0}, {"top_p": 0.0}, {"max_tokens": 0}):
        with pytest.raises(ValueError, match="generate: "):
            generate(TINY, variables, x, **{"max_tokens": 2, "eos": (2,), **wrong})


def test_bfloat16_logits_are_float32_and_close(variables, x):
    half = TINY.clone(dtype=jnp.bfloat16)
    states = jax.jit(half.apply)(variables, x)
    assert states.dtype == jnp.bfloat16
    got = half.apply(variables, states, method="logits")
    assert got.dtype == jnp.float32
    naive = TINY.apply(variables, forward(variables, x), method="logits")
    assert 1e-5 < np.linalg.norm(got - naive) / np.linalg.norm(naive) < 5e-2
