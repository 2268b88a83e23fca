"""Test clips: frames of video files, and the importer of conversations with clips and facial points.

A reader that stands in for PyAV plays videos of its own; the tests of real files need the extra `video`.
"""

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from fvjax.data import frames, prepare
from fvjax.data.describing import control
from fvjax.data.frames import extract
from fvjax.data.stores.conversations import ConversationStore
from tests.test_conversation_store import picture


class Broken(Exception):
    pass


class Frame:
    rotation = 0

    def __init__(self, grey: int, size=(20, 30)):
        self.height, self.width = size
        self.grey = grey

    def to_ndarray(self, format):
        return np.full((self.height, self.width, 3), self.grey, np.uint8)


class Reader:
    """Plays a file "N frames", or breaks."""

    error = SimpleNamespace(FFmpegError=Broken)

    def open(self, stream, format):
        text = stream.read().decode()
        if text == "junk":
            raise Broken("invalid data")
        video = SimpleNamespace(width=9000 if text == "wide" else 30, height=9000)
        if text == "sound":
            return contextlib.nullcontext(SimpleNamespace(streams=SimpleNamespace(video=[])))
        video.height = 9000 if text == "wide" else 20
        container = SimpleNamespace(streams=SimpleNamespace(video=[video]), decode=lambda _: self.play(text))
        return contextlib.nullcontext(container)

    def play(self, text):
        for number in range(int(text.split()[0]) if text[0].isdigit() else 3):
            if text == "torn" and number == 2:
                raise Broken("truncated")
            yield Frame(number * 10, (20 + number * (text == "growing"), 30))


@pytest.fixture
def videos(tmp_path, monkeypatch):
    """Return a folder of videos that the stand-in reader plays."""
    monkeypatch.setattr(frames, "_av", Reader)
    folder = tmp_path / "videos"
    folder.mkdir()
    for name, text in {"nine": "9 frames", "one": "1 frame", "none": "0 frames"}.items():
        (folder / f"{name}.mp4").write_text(text)
    for name in ("junk", "torn", "sound", "wide", "growing"):
        (folder / f"{name}.mp4").write_text(name)
    (folder / "list.m3u8").write_text("9 frames")
    return folder


def greys(clip):
    return [int(frame[0, 0, 0]) // 10 for frame in clip]


def test_frames_are_evenly_spaced(videos):
    clip, total = extract(videos / "nine.mp4")
    assert greys(clip) == [0, 1, 2, 3, 4, 5, 6, 8]
    assert total == 9
    clip, total = extract(videos / "one.mp4", 4)
    assert greys(clip) == [0] * 4
    assert total == 1
    assert len(frames.to_jpegs(clip)) == 4


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("none.mp4", "^empty video: none.mp4 has no frames"),
        ("junk.mp4", r"^broken video: junk.mp4 \(invalid data\)"),
        ("torn.mp4", r"^broken video: torn.mp4 \(truncated\)"),
        ("sound.mp4", "^unreadable video: sound.mp4 has no video stream"),
        ("wide.mp4", "^too large video: wide.mp4 has 9000x9000 pixels"),
        ("growing.mp4", "^broken video: growing.mp4 has frames of several sizes"),
        ("list.m3u8", "^unreadable video: list.m3u8 is none of .mp4"),
        ("away.mp4", "^missing video: away.mp4"),
    ],
)
def test_videos_that_cannot_be_used(videos, name, error):
    with pytest.raises(ValueError, match=error):
        extract(videos / name)


def test_long_videos_are_refused(videos, monkeypatch):
    monkeypatch.setattr(frames, "MAX_FRAMES", 5)
    with pytest.raises(ValueError, match=r"too long video: nine[.]mp4 has more than 5 frames"):
        extract(videos / "nine.mp4")


def record(name: str, text="<video>\nWhat?", landmarks=None, **more) -> dict:
    turns = [{"from": "human", "value": text}, {"from": "gpt", "value": "Joy."}]
    points = {"landmarks_2d": landmarks} if landmarks else {}
    return {"id": name, "video": f"{name}.mp4", "conversations": turns} | points | more


def convert(tmp_path, videos, records, *flags) -> int:
    (tmp_path / "data.json").write_text(json.dumps(records))
    images = tmp_path / "images"
    images.mkdir(exist_ok=True)
    (images / "a.png").write_bytes(picture(0))
    paths = [f"--src={tmp_path / 'data.json'}", f"--dst={tmp_path / 'store'}", f"--images={images}"]
    return prepare.main(["conversations", *paths, f"--videos={videos}", *flags])


def rejected(tmp_path) -> list[str]:
    return [entry["reason"] for entry in ConversationStore(tmp_path / "store").manifest["rejected"]]


def test_clips_are_imported_and_broken_ones_counted(tmp_path, videos):
    image = {"image": "a.png", "conversations": record("x", "<image>\nWho?")["conversations"]}
    names = ("nine", "junk", "none", "one", "away")
    records = [*map(record, names), image, record("nine", "Where?")]
    assert convert(tmp_path, videos, records, "--frames=4") == 0
    store = ConversationStore(tmp_path / "store")
    assert (len(store), store.frames, store.detector) == (4, 4, None)
    assert [len(store.conversation(i).pictures) for i in range(4)] == [4, 4, 1, 4]
    assert greys(np.asarray(frame) for frame in store.images(0)) == [0, 2, 5, 8]
    assert store.conversation(3).messages[0]["content"] == "<video>\nWhere?", "as pictures, a clip comes first"
    assert store.conversation(0).meta["id"] == "nine"
    kinds = store.manifest["rejected_by_reason"]
    assert kinds == {"broken video": 1, "empty video": 1, "missing video": 1}
    assert store.manifest["conversion"]["read"] == 7
    copy = control.write(tmp_path / "store", tmp_path / "control")
    assert copy.frames == 4
    assert len(copy.conversation(0).pictures) == 4


@pytest.mark.parametrize(
    ("changed", "error"),
    [
        ({"video": ["nine.mp4", "one.mp4"]}, "several videos: 2, one is allowed"),
        ({"conversations": record("x", "<image>\nWhat?")["conversations"]}, "video where the text has <image>"),
        (
            {"conversations": record("x", "<video><video>")["conversations"]},
            "placeholders and pictures differ: 0 <image>",
        ),
        ({"video": "../nine.mp4"}, "video outside the folder"),
        ({"video": 3}, "malformed video path"),
    ],
)
def test_records_that_have_no_clip(tmp_path, videos, changed, error):
    assert convert(tmp_path, videos, [record("nine"), record("nine") | changed]) == 0
    assert rejected(tmp_path)[0].startswith(error)


def test_without_videos_they_are_refused(tmp_path, videos, capsys):
    (tmp_path / "data.json").write_text(json.dumps([record("nine")]))
    flags = [f"--src={tmp_path / 'data.json'}", f"--dst={tmp_path / 'store'}"]
    assert prepare.main(["conversations", *flags]) == 2
    assert "say where videos are with --videos=DIR" in capsys.readouterr().err


def test_a_broken_video_can_end_the_conversion(tmp_path, videos, capsys):
    assert convert(tmp_path, videos, [record("nine"), record("junk")], "--broken-videos=fail") == 2
    assert "data.json record 1 (line 1): broken video: junk.mp4" in capsys.readouterr().err
    assert not (tmp_path / "store").exists()


@pytest.fixture
def points(tmp_path):
    """Return a folder of files of points in pixels of a crop of 128: right ones, and some that cannot be used."""
    folder = tmp_path / "points"
    folder.mkdir()
    nine = np.arange(9 * 136, dtype=float).reshape(9, 68, 2) / 20
    for name, array in {"nine": nine, "short": nine[:8], "nan": nine * np.nan, "image": nine[3]}.items():
        np.save(folder / f"{name}.npy", array)
    return folder


def landmarked(tmp_path, videos, points, policy):
    image = {"image": "a.png", "conversations": record("x", "<image>\nWho?")["conversations"]}
    records = [record("nine", landmarks=f"{name}.npy") for name in ("nine", "short", "nan", "away")]
    records += [record("nine"), image | {"landmarks_2d": "image.npy"}]
    flags = [f"--landmarks={points}", "--detector=FAN", "--landmark-side=128", f"--missing-landmarks={policy}"]
    return convert(tmp_path, videos, records, *flags)


def test_points_are_imported_and_missing_ones_counted(tmp_path, videos, points):
    assert landmarked(tmp_path, videos, points, "drop") == 0
    store = ConversationStore(tmp_path / "store")
    assert store.manifest["landmarks"] == {"detector": "FAN", "points": 68, "missing": 0}
    kinds = store.manifest["rejected_by_reason"]
    assert kinds == {"missing landmarks": 2, "landmarks of another length": 1, "landmarks that are not finite": 1}
    (clip,), (image,) = store.conversation(0).landmarks, store.conversation(1).landmarks
    pixels = np.load(points / "nine.npy")
    assert clip is not None
    assert image is not None
    np.testing.assert_allclose(clip, pixels[[0, 1, 2, 3, 4, 5, 6, 8]] / 128, rtol=1e-6)
    np.testing.assert_allclose(image, pixels[3:4] / 128, rtol=1e-6)


def test_records_can_be_kept_without_points(tmp_path, videos, points):
    assert landmarked(tmp_path, videos, points, "without") == 0
    store = ConversationStore(tmp_path / "store")
    assert [store.conversation(i).landmarks[0] is None for i in range(6)] == [False, True, True, True, True, False]
    assert store.manifest["landmarks"]["missing"] == 4
    assert store.manifest["conversion"]["without_landmarks_by_reason"]["missing landmarks"] == 2


def test_missing_points_can_end_the_conversion(tmp_path, videos, points, capsys):
    assert landmarked(tmp_path, videos, points, "fail") == 2
    assert "record 1 (line 1): landmarks of another length: short.npy" in capsys.readouterr().err


def test_clips_for_validation_stay_together(tmp_path, videos):
    (videos / "other.mp4").write_text("4 frames")
    records = [record(name) for name in ("nine", "one", "other", "nine")]
    assert convert(tmp_path, videos, records, "--val=0.4", "--seed=1") == 0
    train, val = ConversationStore(tmp_path / "store"), ConversationStore(tmp_path / "store/val", "val")
    assert len(train) + len(val) == 4
    assert val.frames == 8
    of = [{store.conversation(i).meta["id"] for i in range(len(store))} for store in (train, val)]
    assert not of[0] & of[1]
    assert of[1]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--landmarks=."], "--landmarks and --detector: give both"),
        (["--detector=FAN"], "--landmarks and --detector: give both"),
        (["--frames=0"], "--frames=0 --landmark-side=256"),
        (["--landmarks=.", "--detector=FAN", "--landmark-side=0"], "--landmark-side=0"),
    ],
)
def test_flags_that_make_no_sense(tmp_path, videos, capsys, flags, error):
    assert convert(tmp_path, videos, [record("nine")], *flags) == 2
    assert error in capsys.readouterr().err


def test_the_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    (tmp_path / "a.mp4").touch()
    with pytest.raises(frames.NoVideoReader, match=r"videos need PyAV: python -m pip install 'fvjax\[video\]'"):
        extract(tmp_path / "a.mp4")


# ---- real files


def write_video(path: Path, count: int, size: int = 64) -> Path:
    """Write a video whose frames get lighter."""
    av = pytest.importorskip("av", reason="the extra `video` is not installed")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=24)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((size, size, 3), 20 * number, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def test_frames_of_a_real_video(tmp_path):
    clip, total = extract(write_video(tmp_path / "a.mp4", 9))
    assert total == 9
    assert {frame.shape for frame in clip} == {(64, 64, 3)}
    means = [float(frame.mean()) for frame in clip]
    np.testing.assert_allclose(means, [0, 20, 40, 60, 80, 100, 120, 160], atol=4)


def test_real_videos_that_are_broken(tmp_path):
    whole = write_video(tmp_path / "a.mp4", 9).read_bytes()
    for name, data in (("half.mp4", whole[: len(whole) // 2]), ("text.mp4", b"x" * 5000), ("empty.mp4", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"^(broken|empty|unreadable) video: {name}"):
            extract(tmp_path / name)


def test_playlists_are_not_followed(tmp_path):
    write_video(tmp_path / "a.mp4", 3)
    (tmp_path / "list.mp4").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path / 'a.mp4'}\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match=r"^broken video: list\.mp4"):
        extract(tmp_path / "list.mp4")
