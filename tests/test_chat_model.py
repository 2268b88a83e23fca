"""Test `fvjax.load(scenario="chat")`: golden logits and generated ids, answers, choices, and what is refused."""

import json
import re
import shutil
from functools import cache
from itertools import islice
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fvjax
from fvjax import api, chat_model, trees
from fvjax.config import base
from fvjax.data import chat, tiling
from fvjax.data.conversations import Size
from fvjax.models import generation
from fvjax.tasks.dialogue import Dialogue, Prompt
from tests import tiny_chat
from tests.parity.test_conversation import LOGITS, ROWS, TINY
from weights_convert.write import convert, invert

ADAPTERS = TINY / "adapters_remote"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(TINY / "golden.npz"))


@cache
def of_layout(layout: str, adapters: str = "") -> chat_model.ChatModel:
    return fvjax.load(TINY / layout, "chat", adapters=TINY / f"adapters_{adapters}" if adapters else None)


def rows_of(golden) -> tuple[list[np.ndarray], list[list[dict]]]:
    """Return ids and media of the four golden rows; the second picture of a row is a medium of its own."""
    ends = np.cumsum(golden["tile_counts"])
    tiles = [golden["tiles"][end - n : end] for end, n in zip(ends, golden["tile_counts"])]
    media = [[{"tiles": tiles[0]}], [{"tiles": tiles[1]}], [{"tiles": tiles[2][:1]}, {"tiles": tiles[2][1:]}], []]
    return [golden[f"{row}_ids"] for row in ROWS], media


# ---- token ids


@pytest.mark.parametrize("layout", ["remote", "hf"])
def test_forward_has_the_golden_logits(golden, layout):
    """The remote layout does not know the context id: it is inferred from the rows."""
    model = of_layout(layout)
    assert (model.tokenizer, model.context_id) == (None, {"remote": None, "hf": 393}[layout])
    ids, media = rows_of(golden)
    for row, got in zip(ROWS, model.forward([list(row) for row in ids], media)):
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, golden[f"{row}_logits"], atol=LOGITS, rtol=1e-5, err_msg=row)


@pytest.mark.parametrize("adapters", ["remote", "hf"])
def test_forward_with_adapters(golden, adapters):
    """The row of three tiles and the one of text; packed rows of all are in tests/parity/test_conversation.py."""
    model = of_layout("remote" if adapters == "hf" else "hf", adapters)
    ids, media = rows_of(golden)
    for r, got in zip((1, 3), model.forward(ids[1::2], media[1::2])):
        assert len(got) == len(ids[r])
        np.testing.assert_allclose(got, golden["batch_logits_lora"][r, : len(got)], atol=LOGITS, rtol=1e-5)


def bits(model: chat_model.ChatModel) -> dict[str, bytes]:
    return {name: np.asarray(leaf).tobytes() for name, leaf in trees.flatten(model.variables).items()}


def test_every_layout_and_form_of_adapters_is_the_same_model(tmp_path):
    for layout in ("remote", "hf"):
        convert(TINY / layout, tmp_path / layout, "vlm")
    file = TINY / "adapters_hf/adapter_model.safetensors"
    expected = of_layout("remote", "remote")
    others = [
        fvjax.load(TINY / "hf", "chat", adapters=str(file)),
        fvjax.load(tmp_path / "remote", "chat", adapters=file),
        fvjax.load(tmp_path / "hf", "chat", adapters=ADAPTERS),
    ]
    assert bits(expected) != bits(of_layout("remote"))
    for other in others:
        assert other.encoder == expected.encoder
        assert bits(other) == bits(expected)
    assert [m.settings.template for m in (expected, *others)] == [
        *("internvl2_5", "internvl2_5_hf", "internvl2_5", "internvl2_5_hf")
    ]
    assert [m.context_id for m in others] == [393, None, 393]
    with pytest.raises(ValueError, match=r"has no adapter_model\.safetensors"):
        fvjax.load(TINY / "hf", "chat", adapters=tmp_path)


def test_the_context_id_is_set_inferred_or_asked_for(golden):
    shared = of_layout("remote")
    model = chat_model.ChatModel(shared.encoder, shared.variables, None, shared.settings, "highest")
    ids, media = (part[:1] for part in rows_of(golden))
    model.context_id = 393
    assert model.with_settings(max_tiles=1).context_id == 393
    (known,) = model.forward(ids, media)
    np.testing.assert_allclose(known, golden["one_tile_logits"], atol=LOGITS, rtol=1e-5)
    model.context_id = 392
    with pytest.raises(ValueError, match=r"row 0 has 1 placeholders \(id 392\), its 1 tiles become 16 visual tokens"):
        model.forward(ids, media)
    model.context_id = None
    twice = [np.concatenate([ids[0], np.full(16, 7)])]
    twice[0][twice[0] == 7] = 7
    seven = int((twice[0] == 7).sum())
    assert seven == 16, "another id of the row occurs as often"
    with pytest.raises(ValueError, match=r"2 token ids occur as often as there are visual tokens; set model\.context"):
        model.forward(twice, media)
    with pytest.raises(ValueError, match="0 token ids occur"):
        model.forward([ids[0][:30]], media)


def media(**changes) -> dict:
    return {"tiles": np.zeros((1, 112, 112, 3), np.uint8)} | changes


@pytest.mark.parametrize(
    ("ids", "row", "message"),
    [
        ([1, -1], [], "row 0 needs ids, integers from 0 to 399"),
        ([1, 400], [], "row 0 needs ids, integers from 0 to 399"),
        ([], [], "row 0 needs ids"),
        ([[1]], [], "row 0 needs ids"),
        ([1.5, 2], [], "row 0 needs ids"),
        ([1], [{"tiles": np.zeros((1, 112, 112, 3))}], "expected tiles uint8 [k,112,112,3], got tiles: float64"),
        ([1], [{"tiles": np.zeros((1, 56, 56, 3), np.uint8)}], "got tiles: uint8 [1, 56, 56, 3]"),
        ([1], [{"image": np.zeros((112, 112, 3), np.uint8)}], "got image: object []"),
        ([1], [media(landmarks=None)], "got tiles, landmarks: uint8"),
        ([393] * 15, [media()], "0 token ids occur"),
    ],
)
def test_rows_that_forward_refuses(ids, row, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        of_layout("remote").forward([ids], [row])


def test_forward_needs_media_for_every_row():
    with pytest.raises(ValueError, match="2 rows of ids and 1 of media"):
        of_layout("remote").forward([[1], [2]], [[]])


# ---- generated ids


@pytest.fixture(scope="module")
def prompts(golden):
    """Return (decoder, its variables, embedded prompts [4,128,D], lengths) of the golden prompts."""
    model = of_layout("hf")
    ids = [golden[f"prompt_{row}"] for row in ROWS]
    tiles, places = np.zeros((4, 4, 112, 112, 3), np.uint8), np.full((4, 64), 128, np.int32)
    tokens = np.stack([np.pad(row, (0, 128 - len(row))) for row in ids])
    ends = np.cumsum(golden["tile_counts"])
    for r, (end, n) in enumerate(zip(ends, golden["tile_counts"])):
        tiles[r, :n] = golden["tiles"][end - n : end]
        places[r, : 16 * n] = np.flatnonzero(ids[r] == 393)
    with jax.default_matmul_precision("highest"):
        embedded = chat_model._embed(model.encoder, model.variables, tokens, tiles, places)
        yield (
            model.encoder.net.decoder,
            {"params": model.variables["params"]["decoder"]},
            embedded,
            np.array([len(row) for row in ids], np.int32),
        )


def streamed(prompts, max_tokens, at_a_time=8, eos=(399,), **sampling) -> np.ndarray:
    parts = generation.stream(*prompts, max_tokens=max_tokens, eos=eos, at_a_time=at_a_time, **sampling)
    return np.concatenate(list(parts), axis=1)


NEVER = (395,)  # no row generates it in 128 tokens; checked where it matters


@pytest.mark.parametrize("at_a_time", [5, 8])
def test_greedy_ids_are_the_golden_ones(golden, prompts, at_a_time):
    got = streamed(prompts, 12, at_a_time, NEVER)
    assert got.shape == (4, 12)
    compared = [r for r, row in enumerate(ROWS) if f"generate_{row}" in golden]
    assert compared == [1, 2, 3]
    for r in compared:
        np.testing.assert_array_equal(got[r], golden[f"generate_{ROWS[r]}"])


def test_a_stream_that_outgrows_its_cache_is_what_generate_makes(prompts):
    """Rows end by themselves in generate; the stream goes on for the others until its cache of 192 tokens doubles."""
    eos = (211, 113)
    ids, counts = generation.generate(*prompts, max_tokens=160, eos=eos)
    got = streamed(prompts, 160, eos=eos)
    assert counts.tolist() == [3, 160, 4, 66]
    for row, expected, count in zip(got, np.asarray(ids), np.asarray(counts)):
        np.testing.assert_array_equal(row[:count], expected[:count])


def test_a_stream_ends_when_every_row_has_ended(golden, prompts):
    firsts = tuple(int(golden[f"generate_{row}"][0]) for row in ROWS[1:])
    one_tile = int(streamed(prompts, 1, eos=NEVER)[0, 0])
    parts = list(generation.stream(*prompts, max_tokens=400, eos=(*firsts, one_tile)))
    assert [part.shape for part in parts] == [(4, 8)]


def test_samples_depend_on_the_key_alone(prompts):
    def sample(seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        return streamed(prompts, 8, eos=NEVER, keys=keys, temperature=1.0, top_p=0.9)

    np.testing.assert_array_equal(sample(0), sample(0))
    assert (sample(1) != sample(0)).any()
    keys = jax.random.split(jax.random.key(0), 4)
    expected, _ = generation.generate(*prompts, max_tokens=8, eos=NEVER, keys=keys, temperature=1.0, top_p=0.9)
    np.testing.assert_array_equal(sample(0), expected)


# ---- messages and pictures


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return tiny_chat.write(tmp_path_factory.mktemp("chat"))


@pytest.fixture(scope="module")
def model(checkpoint):
    """Return the tiny model; its prompts have no system message."""
    return fvjax.load(checkpoint, "chat").with_settings(system=None)


def ask(text: str = "<image>\nHair?", **more) -> list[dict[str, str]]:
    return [{"role": "user", "content": text, **more}]


def picture(width: int = 50, height: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def by_hand(model, ids, pictures, max_tiles=2) -> np.ndarray:
    """Compute logits from token ids and tiles by forward."""
    tiles = [{"tiles": tiling.tiles(one, max_tiles, 56)} for one in pictures]
    return model.forward([ids], [tiles])[0]


def markup(model, *parts) -> list[int]:
    """Encode texts, and place the visual tokens of so many tiles where a number stands."""
    encode = model.tokenizer.encode
    pieces = [encode(p) if isinstance(p, str) else [509, *[tiny_chat.CONTEXT] * 4 * p, 510] for p in parts]
    return [id for piece in pieces for id in piece]


def test_logits_are_of_every_token(model):
    """One picture of one tile; one of two tiles and a thumbnail."""
    for size, tiles in (((50, 40), 1), ((120, 50), 3)):
        got = model.logits(ask(), [picture(*size)])
        ids = markup(model, "<|im_start|>user\n", tiles, "\nHair?<|im_end|>\n<|im_start|>assistant\n")
        assert got.shape == (len(ids), 512)
        assert got.dtype == np.float32
        np.testing.assert_allclose(got, by_hand(model, ids, [picture(*size)]), atol=1e-5)


def test_several_pictures_of_different_sizes_and_text_alone(model):
    one = model.with_settings(max_tiles=1)
    pictures = [picture(120, 50), picture(30, 90, seed=1)]
    got = one.logits(ask("A <image> and <image>?"), pictures)
    ids = markup(model, "<|im_start|>user\nA ", 1, " and ", 1, "?<|im_end|>\n<|im_start|>assistant\n")
    np.testing.assert_allclose(got, by_hand(model, ids, pictures, 1), atol=1e-5)
    swapped = one.logits(ask("A <image> and <image>?"), pictures[::-1])
    assert np.abs(swapped[-1] - got[-1]).max() > 1e-3
    ids = markup(model, "<|im_start|>user\nHair?<|im_end|>\n<|im_start|>assistant\n")
    np.testing.assert_allclose(model.logits(ask("Hair?")), by_hand(model, ids, []), atol=1e-5)


def test_the_last_row_belongs_to_the_answers_first_token(model):
    answered = [*ask(), {"role": "assistant", "content": "light"}]
    prompt, whole = model.logits(ask(), [picture()]), model.logits(answered, [picture()])
    np.testing.assert_allclose(whole[: len(prompt)], prompt, atol=1e-5)
    assert len(whole) == len(prompt) + len(model.tokenizer.encode("light<|im_end|>\n"))
    first = model.generate(ask(), [picture()], max_tokens=1)
    assert first == model.tokenizer.decode([int(prompt[-1].argmax())])


def shown(model, messages=None) -> str:
    """Return the text that the model reads."""
    return model.tokenizer.decode(model._piece(messages or ask("Hair?"), []).rendered.ids)


def test_system_messages_and_templates(checkpoint, model):
    turn = "<|im_start|>user\nHair?<|im_end|>\n<|im_start|>assistant\n"
    default = fvjax.load(checkpoint, "chat")
    assert default.settings == chat_model.Chat("internvl2_5", max_tiles=2)
    assert shown(default) == f"<|im_start|>system\n{chat.INTERNVL_MESSAGE}<|im_end|>\n{turn}"
    assert shown(default.with_settings(template="internvl2_5_hf")) == turn
    assert shown(model) == turn
    assert shown(model.with_settings(system="Be brief.")) == f"<|im_start|>system\nBe brief.<|im_end|>\n{turn}"
    own = [{"role": "system", "content": "Be kind."}, *ask("Hair?")]
    assert shown(default, own) == f"<|im_start|>system\nBe kind.<|im_end|>\n{turn}"


def test_converted_directories_keep_tokenizer_and_template(checkpoint, tmp_path):
    convert(checkpoint, tmp_path / "ours", "vlm")
    invert(checkpoint, tmp_path / "hf", layout="hf")
    original = fvjax.load(checkpoint, "chat")
    ours, hf = (fvjax.load(tmp_path / name, "chat") for name in ("ours", "hf"))
    assert (ours.settings, ours.context_id) == (original.settings, original.context_id)
    assert shown(ours) == shown(original)
    assert bits(ours) == bits(hf) == bits(original)
    assert hf.settings == chat_model.Chat("internvl2_5_hf", max_tiles=12)
    assert hf.context_id == tiny_chat.CONTEXT
    assert shown(hf) == "<|im_start|>user\nHair?<|im_end|>\n<|im_start|>assistant\n"


def test_hidden_pictures_are_grey(model):
    grey = np.full((40, 50, 3), 128, np.uint8)
    hidden = model.with_settings(hide_pictures=True)
    np.testing.assert_array_equal(hidden.logits(ask(), [picture()]), model.logits(ask(), [grey]))


def test_a_stream_has_the_pieces_of_the_answer(model):
    pieces = list(model.stream(ask(), [picture()], max_tokens=20))
    assert len(pieces) > 1
    assert "".join(pieces) == model.generate(ask(), [picture()], max_tokens=20)
    assert all(pieces)


def test_sampling_by_seed(model):
    def sample(seed):
        return model.generate(ask(), [picture()], max_tokens=8, temperature=1.0, top_p=0.95, seed=seed)

    assert sample(3) == sample(3)
    assert len({sample(seed) for seed in range(4)}) == 4
    assert sample(3) != model.generate(ask(), [picture()], max_tokens=8)


@pytest.fixture
def generated(monkeypatch):
    """Return a function that lets the model generate these ids, so many at a time."""

    def set_ids(ids, at_a_time=1):
        def stream(*_, max_tokens, **__):
            chosen = iter(ids[:max_tokens])
            while part := list(islice(chosen, at_a_time)):
                yield np.array([part])

        monkeypatch.setattr(chat_model.generation, "stream", stream)

    return set_ids


@pytest.mark.parametrize("at_a_time", [1, 2, 3, 8])
def test_characters_of_several_bytes_are_never_split(model, generated, at_a_time):
    text = "né 你好 🙂!"
    ids = [*model.tokenizer.encode(text), tiny_chat.END, 32, 32]
    generated(ids, at_a_time)
    pieces = list(model.stream(ask("Hair?"), max_tokens=99))
    assert "".join(pieces) == text == model.generate(ask("Hair?"), max_tokens=99)
    assert not any("\ufffd" in piece for piece in pieces)
    assert all(pieces)


def test_bytes_that_are_no_character_are_shown_and_cut_ones_left_out(model, generated):
    bad, good = model.tokenizer.encode("你")[:1], model.tokenizer.encode("a")
    generated([*bad, *good, tiny_chat.END])
    assert model.generate(ask("Hair?"), max_tokens=9) == "\ufffda"
    generated([*good, *bad, tiny_chat.END])
    assert model.generate(ask("Hair?"), max_tokens=9) == "a\ufffd"
    assert model.generate(ask("Hair?"), max_tokens=2) == "a"


def test_the_answer_ends_before_its_end_token(model, monkeypatch):
    whole = model.generate(ask(), [picture()], max_tokens=8)
    ids = [int(id) for id in islice(_greedy(model), 5)]
    assert whole.startswith(model.tokenizer.decode(ids))
    assert ids[4] not in ids[:4]
    monkeypatch.setattr(chat_model.chat, "stop_ids", lambda *_: (ids[4],))
    assert model.generate(ask(), [picture()], max_tokens=8) == model.tokenizer.decode(ids[:4])


def _greedy(model):
    """Yield the greedy ids of the answer, by whole forward passes."""
    ids = markup(model, "<|im_start|>user\n", 1, "\nHair?<|im_end|>\n<|im_start|>assistant\n")
    while True:
        ids.append(int(by_hand(model, ids, [picture()])[-1].argmax()))
        yield ids[-1]


# ---- choices


def softmax(scores) -> np.ndarray:
    return np.exp(scores - np.max(scores)) / np.exp(scores - np.max(scores)).sum()


def test_options_of_one_token_are_compared_by_their_logits(model):
    options = ["yes", "A", "no", "B"]
    ids = [model.tokenizer.encode(option) for option in options]
    assert [len(one) for one in ids] == [1] * 4
    index, probabilities = model.choose(ask(), [picture()], options)
    scores = model.logits(ask(), [picture()])[-1][[one[0] for one in ids]]
    np.testing.assert_allclose(probabilities, softmax(scores), rtol=1e-5)
    assert index == scores.argmax()
    assert (probabilities.dtype, type(index)) == (np.float32, int)


def test_options_of_several_tokens_are_compared_by_all_of_them(model):
    """By the answer's own tokens, its end and the line break after it, which LLaMA-Factory's models learn."""
    options = ["A man.", "B", "so is it"]
    scores = []
    for option in options:
        logits = model.logits([*ask(), {"role": "assistant", "content": option}], [picture()])
        ids = model.tokenizer.encode(f"{option}<|im_end|>\n")
        log_p = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
        scores.append(sum(log_p[len(log_p) - len(ids) - 1 + i, id] for i, id in enumerate(ids)))
    index, probabilities = model.choose(ask(), [picture()], options)
    np.testing.assert_allclose(probabilities, softmax(scores), rtol=1e-3)
    assert index == np.argmax(scores)
    assert probabilities.sum() == pytest.approx(1)


@pytest.mark.parametrize("options", [["A"], [], ["A", "B", "A"], ["A", ""]])
def test_options_that_are_no_choice(model, options):
    with pytest.raises(ValueError, match="needs two or more different texts"):
        model.choose(ask(), [picture()], options)


# ---- what is refused


@pytest.mark.parametrize(
    ("messages", "pictures", "message"),
    [
        ([], [], "the last one must be the user's"),
        ([*ask("a"), {"role": "assistant", "content": "b"}], [], "the last one must be the user's"),
        (["Hair?"], [], "the last one must be the user's"),
        ([*ask("a"), *ask("b")], [], "two messages of the user in a row"),
        (["a", *ask("b")], [], "message 1: expected the keys role and content"),
        (ask("a", name="b"), [], "expected the keys role and content"),
        (ask("Hair?"), [picture()], "the conversation has 0 <image> but 1 pictures"),
        (ask(), [picture(), picture()], "the conversation has 1 <image> but 2 pictures"),
        (ask(), [], "the conversation has 1 <image> but 0 pictures"),
        (ask(), [picture().astype(np.float32)], "image 0: expected uint8 [H,W,3] RGB, got float32 [40, 50, 3]"),
        (ask(), [picture()[..., 0]], "image 0: expected uint8 [H,W,3] RGB, got uint8 [40, 50]"),
        (ask(), [np.zeros((4, 4, 4), np.uint8)], "got uint8 [4, 4, 4]"),
        (ask(), [np.zeros((0, 4, 3), np.uint8)], "got uint8 [0, 4, 3]"),
    ],
)
def test_conversations_that_are_refused(model, messages, pictures, message):
    for call in (model.generate, lambda *args: model.choose(*args, ["A", "B"])):
        with pytest.raises(ValueError, match=re.escape(message)):
            call(messages, pictures)


@pytest.mark.parametrize(
    "settings", [{"max_tokens": 0}, {"temperature": -0.1}, {"top_p": 0.0}, {"top_p": 1.1}], ids=lambda s: next(iter(s))
)
def test_settings_out_of_range(model, settings):
    with pytest.raises(ValueError, match="out of range"):
        model.generate(ask("Hair?"), **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"template": "vicuna"}, "its chat template 'vicuna' is not known; choose the one .* of internvl2_5, "),
        ({"template": "smollm2"}, "has no token <issue_start>"),
        ({"max_tiles": 0}, "1 to 0 tiles a picture"),
        ({"system": ""}, "the system message is empty"),
    ],
)
def test_settings_that_do_not_fit(model, settings, message):
    with pytest.raises(ValueError, match=message):
        model.with_settings(**settings).generate(ask(), [picture()])


def test_a_template_that_nobody_knows_leaves_forward(tmp_path):
    model = fvjax.load(tiny_chat.write(tmp_path, template="internlm2-chat"), "chat")
    with pytest.raises(ValueError, match="its chat template 'internlm2-chat' is not known"):
        model.logits(ask("Hair?"))
    assert model.forward([[1, *[tiny_chat.CONTEXT] * 4]], [[{"tiles": np.zeros((1, 56, 56, 3), np.uint8)}]])
    assert shown(model.with_settings(template="internvl2_5_hf")).startswith("<|im_start|>user")


def test_a_checkpoint_without_a_tokenizer(tmp_path):
    model = fvjax.load(tiny_chat.write(tmp_path, tokenizer=False), "chat")
    for call in (lambda: model.generate(ask("Hair?")), lambda: model.choose(ask("Hair?"), [], ["A", "B"])):
        with pytest.raises(ValueError, match=r"has no tokenizer; copy its files beside config\.json, or"):
            call()


def test_a_tokenizer_of_another_model(golden, tmp_path):
    """Its ids would be beyond the embedding, where an accelerator silently reads another row."""
    directory = shutil.copytree(TINY / "remote", tmp_path / "larger")
    for file in tiny_chat.TOKENIZER.glob("*.json"):
        shutil.copy(file, directory)
    with pytest.raises(ValueError, match="the messages have the id 508, the decoder's vocabulary has 400"):
        fvjax.load(directory, "chat").logits(ask("Hair?"))


def test_a_token_that_the_decoder_lacks_may_be_there(checkpoint, tmp_path):
    """As <video> in InternVL3's -hf checkpoints; a text that has it is refused."""
    directory = shutil.copytree(checkpoint, tmp_path / "with_video")
    document = json.loads((directory / "tokenizer.json").read_text())
    document["added_tokens"].append({**document["added_tokens"][-1], "id": 512, "content": "<video>"})
    (directory / "tokenizer.json").write_text(json.dumps(document))
    model = fvjax.load(directory, "chat")
    assert model.tokenizer is not None
    assert model.tokenizer.size == 513
    assert shown(model, ask("Hair?")).endswith("assistant\n")
    with pytest.raises(ValueError, match="the messages have the id 512, the decoder's vocabulary has 512"):
        shown(model, ask("<video>Hair?"))


def test_a_conversation_beyond_the_models_positions(tmp_path):
    """Rows are not filled up beyond them, and an answer may go on to the last one."""
    model = fvjax.load(tiny_chat.write(tmp_path, positions=96), "chat").with_settings(system=None)
    with pytest.raises(ValueError, match=r"a sequence of 1\d\d tokens is longer than the decoder's 96"):
        model.logits(ask("A" * 100))
    long = ask("A" * 82)
    length = len(model._piece(long, []).rendered.ids)
    assert 64 < length < 96, "rows of 64 and of 128 tokens do not fit"
    assert 96 - length < 8, "the last tokens are not generated eight at a time"
    assert model.generate(long, max_tokens=96 - length)
    with pytest.raises(ValueError, match="a sequence of 97 tokens is longer than the decoder's 96"):
        model.generate(long, max_tokens=96 - length + 1)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"max_dynamic_patch": 6}, 6),
        ({"max_dynamic_patch": None}, 12),
        ({"dynamic_image_size": False}, 1),
        ({"max_dynamic_patch": "6"}, "max_dynamic_patch='6', expected"),
        ({"max_dynamic_patch": 0}, "max_dynamic_patch=0, expected"),
        ({"use_thumbnail": False}, "use_thumbnail=false is not supported"),
    ],
)
def test_the_most_tiles_of_a_checkpoint(tmp_path, changes, expected):
    config = json.loads((TINY / "remote/config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps(config))
    if isinstance(expected, int):
        assert chat_model.chat_of(tmp_path).max_tiles == expected
    else:
        with pytest.raises(ValueError, match=expected):
            chat_model.chat_of(tmp_path)


def test_what_does_not_go_with_chat(checkpoint):
    with pytest.raises(ValueError, match="takes neither pool nor prompt_ids nor yes_no_ids"):
        fvjax.load(checkpoint, "chat", pool="mean")
    with pytest.raises(ValueError, match='dtype=\'float16\' is unknown; there are "float32" and "bfloat16"'):
        fvjax.load(checkpoint, "chat", dtype="float16")  # type: ignore[arg-type]


def test_bfloat16_is_near(checkpoint, model):
    half = fvjax.load(checkpoint, "chat", dtype="bfloat16").with_settings(system=None)
    expected, got = model.logits(ask(), [picture()]), half.logits(ask(), [picture()])
    assert got.dtype == np.float32
    error = np.abs(got - expected).max() / np.abs(expected).max()
    assert 1e-4 < error < 0.05
    assert half.encoder.net.decoder.dtype == jnp.bfloat16


# ---- work directories of runs


@pytest.fixture
def workdir(checkpoint, model, monkeypatch, tmp_path):
    """Return a function (changes of chat) -> work directory of a run that trained the tiny model."""

    def make(task="conversation", kind="vlm", **changes):
        config = base()
        config.task, config.model.kind, config.init_from = task, kind, str(checkpoint)
        config.chat.update(changes)
        (tmp_path / "config.json").write_text(config.to_json())
        trained = SimpleNamespace(model=SimpleNamespace(encoder=model.encoder), variables=lambda: model.variables)
        monkeypatch.setattr(api, "restore", lambda config, path: trained)
        return tmp_path

    return make


def test_a_run_is_spoken_to_as_in_its_evaluation(workdir, model):
    loaded = fvjax.load(workdir(system="", max_tiles=2), "chat")
    assert loaded.settings == model.settings
    assert loaded.generate(ask(), [picture()], max_tokens=8) == model.generate(ask(), [picture()], max_tokens=8)
    trained = fvjax.load(workdir(max_tiles=3, tile_rule="vlmevalkit", hide_pictures=True), "chat")
    assert trained.settings == chat_model.Chat("internvl2_5", "default", 3, "vlmevalkit", hide_pictures=True)
    evaluated = fvjax.load(workdir(eval_template="internvl2_5_hf", eval_max_tiles=4), "chat")
    assert evaluated.settings == chat_model.Chat("internvl2_5_hf", "default", 4)


def test_runs_that_do_not_hold_conversations(workdir, tmp_path):
    with pytest.raises(ValueError, match="its model does not hold conversations"):
        fvjax.load(workdir(task="contrastive", kind="iresnet"), "chat")
    with pytest.raises(ValueError, match="is a workdir, which has its own adapters; load the run's base with a"):
        fvjax.load(tmp_path, "chat", adapters="a")
    with pytest.raises(ValueError, match=r"is a workdir of python -m fvjax\.main; open it with"):
        fvjax.load(tmp_path, "pair", prompt_ids=[1], yes_no_ids=[2, 3])


# ---- many prompts at a time


def test_prompts_answered_together_are_answered_as_alone(model):
    """Three prompts in batches of two: the last batch is filled up. Answers keep the order of the prompts."""
    dialogue = Dialogue(model.encoder, model.format, jax.jit, jnp.asarray, 2)
    texts = ["Hair, and skin, and light?", "Hair?", "Skin?"]
    pieces = [model._piece(ask(text), []) for text in texts]
    prompts = [Prompt(Size(len(p.rendered.ids), 0, 0), lambda p=p: p) for p in pieces]
    with jax.default_matmul_precision("highest"):
        answers = dialogue.generate(model.variables, prompts, 8)
        logits = dialogue.next_logits(model.variables, prompts)
    assert [a.text.rstrip("\ufffd") for a in answers] == [model.generate(ask(text), max_tokens=8) for text in texts]
    assert all(answer.cut for answer in answers)
    np.testing.assert_allclose(logits, [model.logits(ask(text))[-1] for text in texts], atol=1e-5)


def test_every_prompt_is_sampled_with_its_own_key(model):
    """Rows that fill up a batch have a key, too."""
    dialogue = Dialogue(model.encoder, model.format, lambda f: f, np.asarray, 2)
    pieces = [model._piece(ask(text), []) for text in ("Hair, and skin, and light?", "Hair?", "Skin?")]
    prompts = [Prompt(Size(len(p.rendered.ids), 0, 0), lambda p=p: p) for p in pieces]
    used = []

    def generated(_state, tokens, _tiles, _places, lengths, keys):
        used.extend(zip(lengths.tolist(), keys.tolist()))
        return np.full((2, 8), tiny_chat.END), np.array([1, 1])

    dialogue._generate[(8, 1.0, 1.0, False)] = generated
    dialogue.generate(SimpleNamespace(), prompts, 8, keys=np.array([10, 11, 12]))  # type: ignore[arg-type]
    lengths = [len(p.rendered.ids) for p in pieces]
    assert sorted(used) == sorted([(lengths[0], 10), (lengths[0], 10), (lengths[1], 11), (lengths[2], 12)])


def test_answers_are_sampled_with_the_settings_of_each_call(model, monkeypatch):
    dialogue = Dialogue(model.encoder, model.format, lambda f: f, np.asarray, 1)
    prompts = [Prompt(Size(1, 0, 0), lambda: model._piece(ask("Hair?"), []))]
    used = []

    def answered(*arrays, temperature, top_p, **_):
        used.append((temperature, top_p))
        return np.full((1, 8), tiny_chat.END), np.array([1])

    monkeypatch.setattr(dialogue, "_continue", answered)
    calls = [(1.0, 1.0), (0.5, 1.0), (1.0, 0.9), (1.0, 1.0)]
    for temperature, top_p in calls:
        dialogue.generate({}, prompts, 8, keys=np.array([10]), temperature=temperature, top_p=top_p)  # type: ignore[arg-type]
    assert used == calls


def test_an_answer_that_ends_is_not_cut(model):
    """An answer whose last token, at the limit, is the end token has ended as well."""
    dialogue = Dialogue(model.encoder, model.format, lambda f: f, np.asarray, 4)
    prompts = [Prompt(Size(1, 0, 0), lambda: model._piece(ask("Hair?"), []))] * 4
    a, end = 32, tiny_chat.END
    ids = np.array([[a, a, a], [a, a, end], [a, end, end], [end, end, end]])
    settings = (3, 1.0, 1.0, True)
    dialogue._generate[settings] = lambda *_: (ids, np.array([3, 3, 2, 1]))
    answers = dialogue.generate(SimpleNamespace(), prompts, 3)
    assert [tuple(answer) for answer in answers] == [("AAA", True), ("AA", False), ("A", False), ("", False)]
