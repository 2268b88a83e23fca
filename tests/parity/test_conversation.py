"""Compare conversations through a tiny InternVL3 with results of the PyTorch references."""

import functools

import jax
import numpy as np
import optax
import pytest

from fvjax import trees
from fvjax.config import OptimizerConfig
from fvjax.losses import language
from fvjax.models import conversation, lora
from fvjax.models.generation import generate
from fvjax.models.rotary import packed_positions, positions_at
from fvjax.training import optimizer
from tests.parity import close, gradients_close, load, run
from tests.reference.recipe import GOLDEN
from weights_convert import open_checkpoint, read_adapters

TINY = GOLDEN / "internvl3_tiny"
REMOTE = TINY / "remote"
ROWS = ("one_tile", "three_tiles", "two_images", "text_only")
CONTEXT = 393  # <IMG_CONTEXT>
PER_TILE = 16
LOGITS = 5e-5  # absolute; the reference in float32 differs from itself in float64 by 5e-6


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"):
        yield


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(TINY / "golden.npz"))


@pytest.fixture(scope="module")
def tiny():
    """Return the module, its variables without and with adapters, and the adapters' scale."""
    model, params = load(REMOTE, "vlm")
    flat, scale = read_adapters(TINY / "adapters_remote" / "adapter_model.safetensors", REMOTE, "vlm")
    plain = {"params": trees.unflatten(params)}
    return model, plain, plain | {"lora": trees.unflatten(lora.scaled(flat, scale))}, (flat, scale)


def tiles_by_row(golden, rows=(0, 1, 2, 3)):
    """Return tiles uint8 [N,K,112,112,3], filled up with black ones."""
    counts = golden["tile_counts"]
    first = np.concatenate([[0], np.cumsum(counts)])
    most = max(1, *(counts[r] for r in rows)) if len(rows) > 1 else max(1, counts[rows[0]])
    out = np.zeros((len(rows), most, 112, 112, 3), np.uint8)
    for i, row in enumerate(rows):
        out[i, : counts[row]] = golden["tiles"][first[row] : first[row + 1]]
    return out


def places(ids, tiles):
    """Return where each visual token goes, int32 [N,V]; beyond the row for tiles that it does not have."""
    out = np.full((len(ids), tiles * PER_TILE), ids.shape[1], np.int32)
    for row, one in zip(out, ids):
        at = np.flatnonzero(one == CONTEXT)
        row[: len(at)] = at
    return out


def batch(golden, rows=(0, 1, 2, 3), ids=None):
    """Return ids, tiles and places of a batch of rows."""
    ids = golden["batch_ids"][list(rows)] if ids is None else ids
    tiles = tiles_by_row(golden, rows)
    return ids, tiles, places(ids, tiles.shape[1])


@functools.partial(jax.jit, static_argnames="model")
def read(model, variables, ids, tiles, at, segments=None):
    """Return the logits of every position, float32 [N,T,vocab]."""
    states = model.apply(variables, ids, tiles, at, segments, method=conversation.read)
    return model.apply(variables, states, method=conversation.logits)


@functools.partial(jax.jit, static_argnames=("model", "chunk"))
def loss(model, variables, ids, tiles, at, targets, segments=None, chunk=None):
    states = model.apply(variables, ids, tiles, at, segments, method=conversation.read)
    logits = functools.partial(model.apply, variables, method=conversation.logits)
    return language.next_token_loss(logits, states, targets, chunk)


def targets_of(golden, convention):
    """Shift the reference's labels: the id that follows each token, NONE where it does not count."""
    labels = golden[f"batch_labels_{convention}"]
    following = np.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=-100)
    return np.where(following == -100, language.NONE, following).astype(np.int32)


def test_visual_tokens(tiny, golden):
    model, variables = tiny[:2]
    visual = run(model, variables, golden["tiles"][:, None], method=conversation.visual_tokens)
    close(visual, golden["visual_embeds"], 1e-5, "visual_embeds")


@pytest.mark.parametrize("row", [1, 3])
def test_logits_of_every_position_of_a_row_alone(tiny, golden, row):
    ids = golden[f"{ROWS[row]}_ids"][None]
    got = read(tiny[0], tiny[1], *batch(golden, (row,), ids))
    np.testing.assert_allclose(got[0], golden[f"{ROWS[row]}_logits"], atol=LOGITS, rtol=1e-5)


@pytest.mark.parametrize("adapted", [False, True])
def test_a_padded_batch_of_rows_with_and_without_pictures(tiny, golden, adapted):
    got = np.asarray(read(tiny[0], tiny[1 + adapted], *batch(golden)))
    mask = golden["batch_mask"].astype(bool)
    expected = golden["batch_logits_lora" if adapted else "batch_logits"]
    np.testing.assert_allclose(got[mask], expected[mask], atol=LOGITS, rtol=1e-5)


@pytest.mark.parametrize("convention", ["llamafactory", "internvl_chat"])
@pytest.mark.parametrize("adapted", [False, True])
def test_loss(tiny, golden, convention, adapted):
    total, count = loss(tiny[0], tiny[1 + adapted], *batch(golden), targets_of(golden, convention))
    assert count == golden[f"label_tokens_{convention}"]
    expected = golden[f"loss_{convention}{'_lora' if adapted else ''}"]
    np.testing.assert_allclose(total / count, expected, rtol=1e-5)


def pack(golden, rows):
    """Put rows one after the other into one row, without their padding: ids, tiles, places, targets, segments."""
    targets = targets_of(golden, "llamafactory")
    lengths = golden["batch_mask"].sum(1)
    ids = np.concatenate([golden["batch_ids"][r, : lengths[r]] for r in rows])[None]
    targets = np.concatenate([targets[r, : lengths[r]] for r in rows])[None]
    segments = np.repeat(np.arange(len(rows)), [lengths[r] for r in rows]).astype(np.int32)[None]
    tiles = np.concatenate([tiles_by_row(golden, (r,))[0, : golden["tile_counts"][r]] for r in rows])[None]
    return ids, tiles, places(ids, tiles.shape[1]), targets, segments


def test_packed_rows_have_the_loss_and_logits_of_rows_of_their_own(tiny, golden):
    model, _, variables, _ = tiny
    apart = loss(model, variables, *batch(golden), targets_of(golden, "llamafactory"))
    ids, tiles, at, targets, segments = pack(golden, (2, 0, 3, 1))
    together = loss(model, variables, ids, tiles, at, targets, segments)
    np.testing.assert_allclose(together, apart, rtol=1e-6)
    got = np.asarray(read(model, variables, ids, tiles, at, segments))[0]
    parts = np.split(got, np.flatnonzero(np.diff(segments[0])) + 1)
    mask = golden["batch_mask"].astype(bool)
    for row, part in zip((2, 0, 3, 1), parts):
        expected = golden["batch_logits_lora"][row][mask[row]]
        np.testing.assert_allclose(part, expected, atol=LOGITS, rtol=1e-5)


def test_positions_count_from_zero_in_every_packed_sequence(tiny):
    """Rotations depend on distances alone, so that logits hide positions which go on; their precision would suffer."""
    decoder = tiny[0].decoder
    segments = np.array([[0, 0, 0, 1, 1, 2], [5, 3, 3, 3, 3, 3]], np.int32)
    got = packed_positions(decoder, segments)
    np.testing.assert_array_equal(got.index, [[0, 1, 2, 0, 1, 0], [0, 0, 1, 2, 3, 4]])
    alone = positions_at(decoder, np.arange(6)[None], 6)
    np.testing.assert_array_equal(got.cos, alone.cos[0][got.index])
    np.testing.assert_array_equal(got.sin, alone.sin[0][got.index])


def test_packed_rows_beyond_the_positions_of_dynamic_scaling_are_refused(tiny, golden):
    model, _, variables, _ = tiny
    short = model.clone(decoder=model.decoder.clone(positions=100))
    ids, tiles, at, _, segments = pack(golden, (2, 0))
    with pytest.raises(ValueError, match="longer than the decoder's 100 positions"):
        read(short, variables, ids, tiles, at, segments)


def test_the_loss_does_not_depend_on_the_chunks(tiny, golden):
    model, _, variables, _ = tiny
    states, targets = (
        run(model, variables, *batch(golden), method=conversation.read),
        targets_of(golden, "llamafactory"),
    )
    logits = functools.partial(model.apply, variables, method=conversation.logits)
    in_chunks = jax.jit(functools.partial(language.next_token_loss, logits), static_argnums=2)
    whole = in_chunks(states, targets, 88)
    for chunk in (1, 7, 64):
        np.testing.assert_allclose(in_chunks(states, targets, chunk), whole, rtol=1e-6)


@pytest.fixture(scope="module")
def mean_loss(tiny, golden):
    """Return the function adapters -> mean loss of the batch, jitted with its gradient."""
    model, plain, _, (_, scale) = tiny
    inputs = (*batch(golden), targets_of(golden, "llamafactory"))

    def mean(adapters):
        variables = plain | {"lora": trees.unflatten(lora.scaled(adapters, scale))}
        total, count = loss(model, variables, *inputs)
        return total / count

    return jax.jit(jax.value_and_grad(mean))


def by_reference_names(ckpt, adapters):
    """Convert a flat tree of adapters to {"language_model….lora_A.weight": array in torch's layout}."""
    out = {}
    for name, leaf in adapters.items():
        module, half = name.rsplit("/", 1)
        for key, layer in zip(ckpt.sources[f"params/{module}/kernel"].keys, np.asarray(leaf)):
            out[f"{key.removesuffix('.weight')}.lora_{half.upper()}.weight"] = layer.T
    return out


def test_gradients_and_five_steps(tiny, golden, mean_loss):
    """AdamW with clipping over a cosine without warm-up, as in the reference."""
    flat, _ = tiny[3]
    ckpt = open_checkpoint(REMOTE, "vlm")
    _, grads = mean_loss(flat)
    expected = {k.removeprefix("grad/"): v for k, v in golden.items() if k.startswith("grad/")}
    gradients_close(by_reference_names(ckpt, grads), expected, 1e-4)
    np.testing.assert_allclose(optax.global_norm(grads), golden["grad_norm"], rtol=1e-5)

    config = OptimizerConfig(name="adamw", lr=1e-3, weight_decay=0.0, clip=1.0, schedule="cosine")
    rate = optimizer.schedule(config, epochs=0, steps_per_epoch=1, steps=5)
    np.testing.assert_allclose([rate(s) for s in range(5)], golden["steps_rates"], rtol=1e-6)
    tx = optimizer.make(config, dict.fromkeys(flat, "adapter"), rate)
    state, adapters = tx.init(flat), dict(flat)
    losses, norms = [], []
    for _ in range(5):
        value, grads = mean_loss(adapters)
        losses.append(value)
        norms.append(optax.global_norm(grads))
        updates, state = tx.update(grads, state, adapters)
        adapters = optax.apply_updates(adapters, updates)
    losses.append(mean_loss(adapters)[0])
    np.testing.assert_allclose(losses, golden["steps_losses"], rtol=1e-5)
    np.testing.assert_allclose(norms, golden["steps_grad_norms"], rtol=1e-4)
    start, got = by_reference_names(ckpt, flat), by_reference_names(ckpt, adapters)
    for name, value in got.items():
        expected = golden[f"final/{name}"]
        moved = np.linalg.norm(expected - start[name])
        assert np.linalg.norm(value - expected) <= 1e-3 * moved, name


@pytest.mark.parametrize("adapted", [False, True])
def test_letters_and_greedy_generation(tiny, golden, adapted):
    """Four prompts of different lengths, padded on the right to one batch."""
    model, variables, ending = tiny[0], tiny[1 + adapted], "_lora" if adapted else ""
    prompts = [golden[f"prompt_{name}"] for name in ROWS]
    lengths = np.array([len(prompt) for prompt in prompts], np.int32)
    ids = np.stack([np.pad(prompt, (0, lengths.max() - len(prompt)), constant_values=369) for prompt in prompts])
    ids, tiles, at = batch(golden, ids=ids)
    logits = read(model, variables, ids, tiles, at)[np.arange(4), lengths - 1]
    for name, row in zip(ROWS, np.asarray(logits)):
        expected = golden[f"letters_{name}{ending}"]
        np.testing.assert_allclose(row[golden["letter_ids"]], expected, atol=LOGITS, rtol=1e-5)

    expected = {i: golden[key] for i, name in enumerate(ROWS) if (key := f"generate_{name}{ending}") in golden}
    unused = next(i for i in range(model.decoder.vocab) if not any(i in ids for ids in expected.values()))
    x = run(model, variables, ids, tiles, at, method=conversation.embed)
    decoder = {name: tree["decoder"] for name, tree in variables.items()}
    got, _ = generate(model.decoder, decoder, x, lengths, max_tokens=12, eos=(unused,))
    assert len(expected) >= 3
    for row, ids in expected.items():
        np.testing.assert_array_equal(got[row], ids)
