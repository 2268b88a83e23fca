"""Test what a long run says: lines without a terminal, progress of evaluations, trackers, the picture of a batch."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from tensorboardX.proto import event_pb2

from fvjax import console, durations
from fvjax.config import Config, LogConfig, base, typed
from fvjax.data.conversations import Reader
from fvjax.tasks.conversation import Conversation
from fvjax.tasks.face_verification import FaceVerification
from fvjax.tasks.pair_answer import PairAnswer
from fvjax.tasks.task import Shown
from fvjax.tasks.verification import Verification
from fvjax.training import first_batch
from fvjax.training.metrics import Writer
from tests.test_conversation_store import chat, make, picture

# ---- durations and progress


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (0.4, "0 s"),
        (599, "599 s"),
        (600, "10 min"),
        (3599, "1 h"),
        (7500, "2 h 5 min"),
        (172799, "2 days"),
        (273600, "3 days 4 h"),
    ],
)
def test_durations_are_read_at_a_glance(seconds, told):
    assert durations.text(seconds) == told


@pytest.fixture
def lines(monkeypatch) -> list[str]:
    """Let every item of an iteration take 25 s by a simulated clock without a terminal; return what is printed."""
    clock, said = iter(range(0, 10_000, 25)), []
    monkeypatch.setattr(console, "time", SimpleNamespace(perf_counter=lambda: float(next(clock))))
    monkeypatch.setattr(console, "console", SimpleNamespace(is_terminal=False))
    monkeypatch.setattr(console, "say", said.append)
    return said


def test_an_evaluation_says_now_and_then_how_far_it_is(lines):
    """The clock is read at the start and before each item: after item 3 75 s have passed, and 75 s later 6 are done."""
    items = list(console.progress(range(8), "vit: lfw", 8, count=1000, unit="images"))
    assert items == list(range(8))
    assert lines == [
        "vit: lfw: 250 of 1,000 images, 3.33 images/s, about 225 s left",
        "vit: lfw: 625 of 1,000 images, 4.17 images/s, about 90 s left",
    ]


def test_what_is_done_sooner_prints_nothing(lines, monkeypatch):
    list(console.progress(range(2), "lfw", 2))
    assert lines == []
    monkeypatch.setattr(console.jax, "process_index", lambda: 1)
    list(console.progress(range(9), "lfw", 9))
    assert lines == [], "only process 0 prints"


# ---- what trackers get


class Own:
    """A tracker of a user's own that has everything."""

    opened: ClassVar[list[Own]] = []

    def __init__(self, name, workdir, step):
        self.calls: list[tuple] = []
        self.opened.append(self)

    def write(self, step, values):
        self.calls.append(("write", step, values))

    def settings(self, config):
        self.calls.append(("settings", config))

    def picture(self, step, name, pixels):
        self.calls.append(("picture", step, name, pixels.shape))

    def close(self):
        self.calls.append(("close",))


@pytest.fixture
def own():
    Own.opened.clear()
    return Own.opened


def events(folder: Path) -> list:
    """Return TensorBoard's events; tests/test_run_files.py checks their framing."""
    out = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            out.append(event_pb2.Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return out


SUMMARY = {"lfw": {"accuracy@best_threshold": 0.75, "note": "text"}, "validation": {"loss": 2}}
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)


def write_all(workdir: Path, **log: Any) -> None:
    (workdir / "config.json").write_text('{"seed": 3, "model": {"kind": "vlm"}}')
    writer = Writer("run", workdir, LogConfig(trackers=(f"{__name__}:Own",), **log))
    with writer.opened(4):
        writer.evaluated(6, SUMMARY)
        writer.evaluated(0, {"questions": {}})
        writer.picture(4, "first_batch", PIXELS)


def test_trackers_get_evaluations_and_the_config(own, tmp_path):
    write_all(tmp_path)
    figures = {"eval/lfw/accuracy@best_threshold": 0.75, "eval/validation/loss": 2.0}
    settings = {"seed": 3, "model": {"kind": "vlm"}}
    assert own[0].calls == [("settings", settings), ("write", 5, figures), ("close",)]


def test_pictures_of_training_data_go_to_trackers_only_if_asked(own, tmp_path):
    write_all(tmp_path, send_pictures=True)
    assert ("picture", 4, "first_batch", PIXELS.shape) in own[0].calls


def test_tensorboard_has_evaluations_the_config_and_the_picture(own, tmp_path):
    write_all(tmp_path)
    found = {v.tag: (e.step, v) for e in events(tmp_path / "tb") for v in e.summary.value}
    assert set(found) == {
        "eval/lfw/accuracy_best_threshold",
        "eval/validation/loss",
        "config/text_summary",
        "first_batch",
    }
    step, value = found["eval/lfw/accuracy_best_threshold"]
    assert (step, value.simple_value) == (5, 0.75)
    step, value = found["config/text_summary"]
    text = value.tensor.string_val[0].decode()
    assert step == 4
    assert all(line.startswith("    ") for line in text.splitlines()), "a block of code"
    assert json.loads(text) == {"seed": 3, "model": {"kind": "vlm"}}
    step, value = found["first_batch"]
    (tmp_path / "x.png").write_bytes(value.image.encoded_image_string)
    assert step == 4
    assert np.array_equal(np.asarray(Image.open(tmp_path / "x.png")), PIXELS)


def test_a_run_that_only_evaluates_opens_nothing(own, tmp_path):
    writer = Writer("run", tmp_path, LogConfig(trackers=(f"{__name__}:Own",)), active=False)
    with writer.opened(4), writer.showing(4, 9):
        writer.evaluated(4, SUMMARY)
        writer.write(4, {"loss": 1.0})
        writer.picture(4, "x", PIXELS)
    assert own == []
    assert list(tmp_path.iterdir()) == []


# ---- the picture of the first batch


def at(pixels: np.ndarray, row: int, column: int, size: tuple[int, int], across: int, place: int) -> np.ndarray:
    """Return the part of a grid where a picture of an example should be."""
    height, width = size
    top = first_batch.GAP + row * (height + first_batch.CAPTION + first_batch.GAP)
    left = first_batch.GAP + column * (across * width + first_batch.GAP) + place * width
    return pixels[top : top + height, left : left + width]


def faces_of(task: type[FaceVerification], **changes: Any) -> FaceVerification:
    config = base()
    config.update_from_flattened_dict({"data.synthetic.identities": 4, "batch_size": 8, **changes})
    return task(typed(config), Path())


def batch_of(count: int, images: int) -> dict[str, np.ndarray]:
    pixels = np.random.default_rng(1).integers(0, 256, (count, images, 24, 20, 3), np.uint8)
    return {"images": pixels, "labels": np.arange(count, dtype=np.int32) % 2, "index": np.arange(count, dtype=np.int32)}


def test_faces_are_shown_as_the_model_gets_them():
    """Some of 16 pictures are mirrored, by the keys that the training step uses."""
    task, batch = faces_of(Verification), batch_of(9, 2)
    shown = task.pictures(batch, 16)
    assert [each.caption for each in shown] == ["identity 0", "identity 1"] * 4
    expected = np.asarray(task.prepare({name: jnp.asarray(x) for name, x in batch.items()})["images"])
    mirrored = [np.array_equal(expected[i, k], batch["images"][i, k, :, ::-1]) for i in range(8) for k in range(2)]
    assert 0 < sum(mirrored) < 16
    pixels = first_batch.grid(shown)
    for number in range(8):
        for place in range(2):
            part = at(pixels, *divmod(number, 2), (24, 20), 2, place)
            assert np.array_equal(part, expected[number, place]), (number, place)
    assert pixels.shape[1] < 4 * 20 + 4 * first_batch.GAP
    below = pixels[first_batch.GAP + 24 : first_batch.GAP + 24 + first_batch.CAPTION, first_batch.GAP :]
    assert (below < 128).any(), "there is a caption"


def test_pairs_say_whether_they_are_of_one_person():
    task = faces_of(PairAnswer, **{"prompt.ids": (1,), "prompt.yes_no_ids": (2, 3), "data.flip": False})
    batch = batch_of(3, 2)
    shown = task.pictures(batch, 4)
    assert [each.caption for each in shown] == ["two people", "one person"]
    assert np.array_equal(np.array([each.pictures for each in shown]), batch["images"][:2])


def test_conversations_are_shown_with_their_beginning(tmp_path):
    config: Config = typed(talking())
    task = Conversation(config, tmp_path)
    conversations = [
        (chat("<image>\nIs the hair dark?", "Yes."), [picture(1, 28)], "x", {}),
        (chat("Hello.", "Hello."), [], "y", {}),
        (chat("<image>\n<image>\nWho?", "Two."), [picture(2, 28), picture(3, 28)], "z", {}),
    ]
    store = make(tmp_path / "store", conversations)
    columns = {"ids": np.arange(3)[:, None], "length": np.full(3, 128), "tiles": np.full(3, 4)}
    batch = Reader(store, task.format)(columns)
    shown = task.pictures(batch, 16)
    assert [len(each.pictures) for each in shown] == [1, 2], "a conversation without pictures is left out"
    assert shown[0].caption.startswith("Is the hair dark?")
    assert np.array_equal(shown[0].pictures[0], batch["tiles"][0, 0])
    assert np.array_equal(shown[1].pictures[1], batch["tiles"][2, 1])
    assert len(task.pictures(batch, 2)[1].pictures) == 1, "no more than asked for"


def talking():
    config = base()
    config.task, config.model.kind = "conversation", "vlm"
    config.model.vision_transformer.update({"image_size": 28, "patch_size": 14})
    config.chat.update({"tokenizer": "fvjax/pretrained/tiny_chat", "system": "", "length": 128})
    config.data.flip = False
    return config


def stepping(workdir: Path, monkeypatch, shown: list[Shown], **log: Any) -> tuple[list, list]:
    """Pass three batches through `drawn`; return them, and how many rows were asked for."""
    asked: list[tuple[int, int]] = []

    def pictures(batch, count):
        asked.append((len(batch["x"]), count))
        return shown

    writer = Writer("run", workdir, LogConfig(**log))
    batches = [{"x": jnp.full(40, number)} for number in range(3)]
    with writer.opened(0):
        out = list(first_batch.drawn(batches, pictures, writer, 0))
    assert all(a is b for a, b in zip(out, batches, strict=True)), "batches pass unchanged, none is lost"
    return out, asked


def test_the_first_batch_is_drawn_once_into_the_runs_own_folder(tmp_path, monkeypatch):
    shown = [Shown([PIXELS[:20, :20]], "one"), Shown([PIXELS[:20, 10:]], "two")]
    _, asked = stepping(tmp_path, monkeypatch, shown, pictures=7)
    assert asked == [(7, 7)]
    drawn = np.asarray(Image.open(tmp_path / "first_batch.png"))
    assert np.array_equal(drawn, first_batch.grid(shown))
    assert np.array_equal(at(drawn, 0, 1, (20, 20), 1, 0), PIXELS[:20, 10:])
    tags = {v.tag: v.image for e in events(tmp_path / "tb") for v in e.summary.value}
    assert tags["first_batch"].height == drawn.shape[0]
    assert stepping(tmp_path, monkeypatch, shown)[1] == [], "a resumed run keeps its file"


def test_no_picture_is_drawn_if_there_is_none_or_the_config_says_so(tmp_path, monkeypatch):
    for number, (shown, log) in enumerate([([], {}), ([Shown([PIXELS], "x")], {"pictures": 0})]):
        folder = tmp_path / str(number)
        folder.mkdir()
        stepping(folder, monkeypatch, shown, tensorboard=False, **log)
        assert not (folder / "first_batch.png").exists()


def test_long_captions_are_cut_to_their_pictures():
    narrow = first_batch.grid([Shown([PIXELS[:20, :20]], "W" * 200), Shown([PIXELS[:20, :20]], "")])
    assert (at(narrow, 0, 1, (20 + first_batch.CAPTION, 20), 1, 0)[20:] == 255).all(), "the neighbour's is empty"
