"""Test conversations as arrays: targets, places of visual tokens, segments and tiles, against rows made by hand."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image

from fvjax.data import tokenizers
from fvjax.data.chat import Rendered
from fvjax.data.conversations import Format, Piece, Reader, measure, pack_rows, piece, text_of
from fvjax.data.stores.conversations import ConversationStore
from tests.test_conversation_store import chat, make, picture
from tests.test_images import smooth_face

SIDE, TILE_TOKENS = 28, 2


@pytest.fixture(scope="module")
def format() -> Format:
    tokenizer = tokenizers.load("fvjax/pretrained/tiny_chat")
    return Format(tokenizer, "internvl2_5", None, "llamafactory", 3, "each", SIDE, TILE_TOKENS)


def tiles(*values: int) -> np.ndarray:
    """Return tiles of one grey each."""
    return np.stack([np.full((SIDE, SIDE, 3), value, np.uint8) for value in values])


NO_TILES = np.empty((0, SIDE, SIDE, 3), np.uint8)
# Ids 90 and 91 surround a picture and 92 stands for a visual token; the tokens with loss are 14 and 15, and 23.
PICTURE = Piece(Rendered([11, 90, 92, 92, 91, 14, 15], [False] * 5 + [True] * 2, (range(1, 5),)), tiles(7))
TEXT = Piece(Rendered([21, 22, 23], [False, False, True]), NO_TILES)
TWO = Piece(
    Rendered(
        [90, 92, 92, 91, 31, 90, 92, 92, 92, 92, 91, 32, 33],
        [False] * 11 + [True, False],
        (range(4), range(5, 11)),
    ),
    tiles(1, 2, 3),
)


# ---- rows by hand


def test_a_row_of_one_conversation(format):
    row = pack_rows([[PICTURE]], format, 9, 2)
    assert row["tokens"].tolist() == [[11, 90, 92, 92, 91, 14, 15, 0, 0]]
    assert row["targets"].tolist() == [[-1, -1, -1, -1, 14, 15, -1, -1, -1]], "the token before predicts each one"
    assert row["segments"].tolist() == [[0] * 7 + [1] * 2]
    assert row["places"].tolist() == [[2, 3, 9, 9]], "9, beyond the row, for the tile that is missing"
    assert row["tiles"].shape == (1, 2, SIDE, SIDE, 3)
    assert row["tiles"][0, :, 0, 0, 0].tolist() == [7, 0]
    assert {name: x.dtype.name for name, x in row.items()} == {
        "tokens": "int32",
        "targets": "int32",
        "segments": "int32",
        "tiles": "uint8",
        "places": "int32",
    }


def test_conversations_in_a_row_do_not_predict_each_other(format):
    first_learned = Piece(Rendered([41, 42], [True, True]), NO_TILES)
    row = pack_rows([[TEXT, PICTURE, first_learned]], format, 13, 1)
    assert row["tokens"].tolist() == [[21, 22, 23, 11, 90, 92, 92, 91, 14, 15, 41, 42, 0]]
    assert row["targets"].tolist() == [[-1, 23, -1, -1, -1, -1, -1, 14, 15, -1, 42, -1, -1]], "15 does not predict 41"
    assert row["segments"].tolist() == [[0] * 3 + [1] * 7 + [2] * 2 + [3]]
    assert row["places"].tolist() == [[5, 6]]


def test_several_pictures_and_tiles_stand_in_order(format):
    row = pack_rows([[PICTURE, TWO], [TEXT]], format, 20, 4)
    assert row["places"][0].tolist() == [2, 3, 8, 9, 13, 14, 15, 16]
    assert row["tiles"][0, :, 0, 0, 0].tolist() == [7, 1, 2, 3]
    assert row["places"][1].tolist() == [20] * 8
    assert not row["tiles"][1].any()


def test_an_empty_row_has_no_target_and_no_picture(format):
    row = pack_rows([[], [TEXT]], format, 4, 1)
    assert row["tokens"][0].tolist() == [0] * 4
    assert row["targets"][0].tolist() == [-1] * 4
    assert row["places"][0].tolist() == [4] * 2
    assert row["segments"].tolist() == [[0] * 4, [0, 0, 0, 1]]


@pytest.mark.parametrize(("length", "most", "problem"), [(9, 1, "10 tokens and 1"), (10, 0, "7 tokens and 1")])
def test_what_does_not_fit_is_an_error_and_never_cut(format, length, most, problem):
    with pytest.raises(ValueError, match=f"a row of {problem} tiles, room is for {length} and {most}"):
        pack_rows([[PICTURE, TEXT]], format, length, most)
    assert pack_rows([[PICTURE, TEXT]], format, 10, 1)["tokens"].all()


# ---- real conversations


def image(seed: int, width: int, height: int) -> Image.Image:
    return Image.fromarray(smooth_face(seed, 140)).crop((0, 0, width, height))


def decoded(format: Format, ids: list[int]) -> str:
    return format.tokenizer.decode(ids)


def test_a_piece_has_a_visual_token_for_each_of_its_tiles(format):
    one = piece(format, chat("<image>\nWho?", "Ann.", "<image> And?", "Bob."), [image(0, 28, 28), image(1, 84, 28)])
    assert [len(places) - 2 for places in one.rendered.images] == [1 * TILE_TOKENS, 4 * TILE_TOKENS]
    assert one.tiles.shape == (5, SIDE, SIDE, 3), "three tiles and a thumbnail"
    assert np.array_equal(one.tiles[0], np.asarray(image(0, 28, 28)))
    assert np.array_equal(one.tiles[1], np.asarray(image(1, 84, 28))[:, :28])
    row = pack_rows([[one]], format, 128, 8)
    context = format.tokenizer.added["<IMG_CONTEXT>"]
    assert np.flatnonzero(row["tokens"][0] == context).tolist() == row["places"][0, :10].tolist()
    assert decoded(format, [t for t in row["targets"][0].tolist() if t >= 0]) == "Ann.<|im_end|>\nBob.<|im_end|>\n"


def test_targets_follow_the_convention_of_the_labels(format):
    other = dataclasses.replace(format, labels="internvl_chat")
    row = pack_rows([[piece(other, chat("Who?", "Ann."), [])]], other, 64, 1)
    assert decoded(other, [t for t in row["targets"][0].tolist() if t >= 0]) == "Ann.<|im_end|>"


def test_hidden_pictures_are_grey_and_have_the_same_tokens(format):
    hidden = dataclasses.replace(format, hide_pictures=True)
    messages, pictures = chat("<image><image>\nWho?", "Ann."), [image(0, 28, 28), image(1, 84, 28)]
    seen, unseen = piece(format, messages, pictures), piece(hidden, messages, pictures)
    assert unseen.rendered == seen.rendered
    assert unseen.rendered.images == seen.rendered.images
    assert unseen.tiles.shape == seen.tiles.shape
    assert (unseen.tiles == 128).all()
    assert np.ptp(seen.tiles) > 100


def test_the_rule_for_several_pictures_counts_the_pictures_of_one_conversation(format):
    shared = dataclasses.replace(format, tile_rule="internvl_chat")
    assert format.tile_counts([(84, 28), (84, 28)]) == [4, 4]
    assert shared.tile_counts([(84, 28), (84, 28)]) == [1, 1], "3 tiles over 2 pictures"
    assert shared.tile_counts([(84, 28)]) == [4]
    assert shared.tiles([image(0, 84, 28)] * 2).shape[0] == 2
    assert format.tiles([]).shape == (0, SIDE, SIDE, 3)


def test_the_last_answer():
    assert text_of(chat("Who?", "Ann.", "Sure?", "Yes.")) == "Yes."


# ---- stores


RECORDS = [
    (chat("<image>\nWho?", "Ann."), [picture(0, 28, 28)], "a", {}),
    (
        chat("<image><image> Which?", "The first.", system="Be brief."),
        [picture(1, 84, 28), picture(2, 28, 28)],
        "b",
        {},
    ),
    (chat("No picture?", "None."), [], "c", {}),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ConversationStore:
    return make(tmp_path_factory.mktemp("arrays") / "store", RECORDS)


def columns(*rows: tuple[int, ...], length: int, tiles: int) -> dict[str, np.ndarray]:
    return {"ids": np.array(rows), "length": np.full(len(rows), length), "tiles": np.full(len(rows), tiles)}


def test_sizes_are_known_without_decoding(format, store):
    sizes = [measure(format, store.conversation(i), store.picture_sizes[i]) for i in range(3)]
    for i, size in enumerate(sizes):
        whole = piece(format, store.conversation(i).messages, store.images(i))
        assert size == (len(whole.rendered.ids), sum(whole.rendered.label_mask), len(whole.tiles))
    assert [size.tiles for size in sizes] == [1, 5, 0]


def test_a_reader_gives_the_rows_of_its_columns(format, store):
    pieces = [piece(format, store.conversation(i).messages, store.images(i)) for i in range(3)]
    expected = pack_rows([[pieces[2], pieces[0]], [pieces[1]], []], format, 96, 8)
    for reader in (Reader(store, format), pickle.loads(pickle.dumps(Reader(store, format)))):  # noqa: S301 (our own bytes)
        batch = reader(columns((2, 0), (1, -1), (-1, -1), length=96, tiles=8))
        assert set(batch) == set(expected)
        for name, array in expected.items():
            assert np.array_equal(batch[name], array), name


def test_a_reader_needs_the_room_that_the_plan_gives(format, store):
    with pytest.raises(ValueError, match=r"a row of \d+ tokens and 5 tiles, room is for 96 and 4"):
        Reader(store, format)(columns((1,), length=96, tiles=4))
