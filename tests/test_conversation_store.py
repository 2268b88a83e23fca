"""Test stores of conversations: round trips, what the data_hash depends on, damage, and which messages are refused."""

import io
import json
import pickle
import subprocess
import sys
import textwrap
import threading
import zipfile
from hashlib import sha256

import numpy as np
import pytest
import tensorflow_datasets as tfds
from PIL import Image

from fvjax import errors
from fvjax.data import stores, synthetic
from fvjax.data.stores import conversations, shards
from fvjax.data.stores.conversations import ConversationStore, Unusable, Writer, check_messages
from tests.full_disk import files_up_to
from tests.test_images import file_bytes, png_that_claims, smooth_face


def picture(seed: int, width: int = 42, height: int = 28, kind: str = "PNG", **options) -> bytes:
    return file_bytes(Image.fromarray(smooth_face(seed, 140)).crop((0, 0, width, height)), kind, **options)


def chat(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Return messages: user and assistant in turns."""
    roles = ["user", "assistant"] * len(texts)
    start = [{"role": "system", "content": system}] if system else []
    return start + [{"role": role, "content": text} for role, text in zip(roles, texts)]


RECORDS = [
    (
        chat("<image>\nWho?", "Nobödy.\nAt all."),
        [picture(0)],
        "x.json record 0 (line 2)",
        {"tag": "a", "options": ["b"]},
    ),
    (
        chat("<image><image> Same?", "No", "Why?", "So.", system="Be kind."),
        [picture(1, 70), picture(2, kind="JPEG")],
        "y",
        {},
    ),
    (chat("No picture?", "None"), [], "z é", {"answer": {"x": [1.5, None]}}),
    (chat("<image>?", "A"), [picture(3, 30, 20, "WEBP")], "w", {"self": 1, "source": "theirs"}),
]


def make(path, records=RECORDS, split="train") -> ConversationStore:
    with Writer(path, split=split, sources=["here"]) as writer:
        for number, (messages, pictures, source, meta) in enumerate(records):
            assert writer.add(messages, pictures, source, **meta) == number
    return ConversationStore(path, split)


@pytest.mark.parametrize("size", [0, 100, 2000])
def test_a_full_disk_leaves_no_half_store(tmp_path, size):
    with pytest.raises(OSError, match=r"File too large|No space") as full, files_up_to(size):
        make(tmp_path / "s")
    assert errors.line(full.value).startswith(f"{tmp_path}/")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("shard_records", [2, 100])
def test_round_trip(tmp_path, monkeypatch, shard_records):
    monkeypatch.setattr(shards, "SHARD_RECORDS", shard_records)
    s = make(tmp_path / "s", split="val")
    assert len(s) == 4
    assert len(s.manifest["shards"]) == (2 if shard_records == 2 else 1)
    assert (s.split, s.path, s.identities) == ("val", tmp_path / "s", [])
    assert s.sources == [source for _, _, source, _ in RECORDS]
    assert s.picture_sizes == [((42, 28),), ((70, 28), (42, 28)), (), ((30, 20),)]
    for i, (messages, pictures, source, meta) in enumerate(RECORDS):
        record = s.conversation(i)
        assert (record.messages, record.pictures, record.source, record.meta) == (
            messages,
            tuple(pictures),
            source,
            meta,
        )
        assert [image.size for image in s.images(i)] == list(s.picture_sizes[i])
    assert s.manifest["counts"] == {"conversations": 4, "pictures": 4, "without_picture": 1, "rejected": 0}
    assert s.manifest["sources"] == ["here"]
    for i in (-1, 4):
        with pytest.raises(IndexError, match=f"no record {i}, the store has 4"):
            s.conversation(i)


def test_shards_are_bounded_in_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(conversations, "SHARD_BYTES", 1)
    s = make(tmp_path / "s")
    assert [shard["records"] for shard in s.manifest["shards"]] == [1, 1, 1, 1]
    assert s.data_hash == make(tmp_path / "t").data_hash
    assert s.conversation(3).messages == RECORDS[3][0]


def test_tfds_reads_the_same(tmp_path):
    s = make(tmp_path / "s")
    source = tfds.builder_from_directory(tmp_path / "s").as_data_source("train")
    assert len(source) == 4
    for i in range(4):
        record = s.conversation(i)
        assert tuple(source[i]["pictures"]) == record.pictures
        assert json.loads(source[i]["messages"]) == record.messages
        assert json.loads(source[i]["meta"]) == record.meta
        assert source[i]["source"].decode() == record.source


def test_the_data_hash_depends_on_every_ingredient(tmp_path):
    (messages, pictures, source, meta), *rest = RECORDS
    two = chat("<image><image>", "A")
    variants = [
        RECORDS,
        RECORDS[::-1],
        RECORDS[:-1],
        [(chat("<image>\nWho?", "Nobody."), pictures, source, meta), *rest],
        [(chat("<image>\nWho?", "Nobödy.\nAt all.", system="x"), pictures, source, meta), *rest],
        [(messages, [picture(9)], source, meta), *rest],
        [(messages, pictures, "elsewhere", meta), *rest],
        [(messages, pictures, source, {**meta, "tag": "b"}), *rest],
        [(messages, pictures, source, {"tag": "a"}), *rest],
        [(two, [picture(0), picture(1)], source, meta)],
        [(two, [picture(1), picture(0)], source, meta)],
    ]
    hashes = [make(tmp_path / f"{i}", records).data_hash for i, records in enumerate(variants)]
    assert len(set(hashes)) == len(variants)
    reordered = dict(reversed(meta.items()))
    again = [([dict(reversed(m.items())) for m in messages], pictures, source, reordered), *rest]
    assert make(tmp_path / "again", again).data_hash == hashes[0]


def test_sizes_are_those_of_upright_pictures(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    s = make(tmp_path / "s", [(chat("<image>", "A"), [picture(0, kind="JPEG", exif=exif)], "x", {})])
    assert s.picture_sizes == [((28, 42),)]
    assert s.images(0)[0].size == (28, 42)


def test_a_pickled_store_and_threads_read_the_same(tmp_path):
    """Grain pickles the store for worker processes. Nothing that was pickled is ever read from a file."""
    s = make(tmp_path / "s")
    s.conversation(0)
    copy = pickle.loads(pickle.dumps(s))  # noqa: S301 (our own bytes)
    assert isinstance(copy, ConversationStore)
    results = []
    threads = [threading.Thread(target=lambda i=i: results.append(copy.conversation(i % 4))) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(record.source for record in results) == sorted(source for _, _, source, _ in RECORDS * 4)


def test_a_store_of_the_other_kind_is_one_clear_line(tmp_path):
    synthetic.write(tmp_path / "faces", range(2), 2, 0, split="train")
    make(tmp_path / "chats")
    with pytest.raises(ValueError, match=r"/faces: this is a face store, expected a store of conversations; choose"):
        ConversationStore(tmp_path / "faces")
    with pytest.raises(ValueError, match=r"/chats: this is a store of conversations, expected a face store; choose"):
        stores.Store(tmp_path / "chats")
    with pytest.raises(ValueError, match="/none: no store of conversations here"):
        ConversationStore(tmp_path / "none")
    with pytest.raises(ValueError, match="its split is 'train', but 'val' was requested"):
        ConversationStore(tmp_path / "chats", "val")


# ---- all or nothing


def test_an_existing_store_is_never_overwritten(tmp_path):
    s = make(tmp_path / "s")
    with pytest.raises(ValueError, match="exists already"):
        make(tmp_path / "s", RECORDS[:1])
    assert len(ConversationStore(s.path)) == 4
    with pytest.raises(ValueError, match="'train', 'val' or 'test', not 'dev'"):
        make(tmp_path / "t", split="dev")


def test_an_exception_and_nothing_usable_leave_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), Writer(tmp_path / "s", split="train", sources=[]) as writer:  # noqa: PT012
        writer.add(*RECORDS[0][:3])
        raise KeyboardInterrupt
    with (
        pytest.raises(ValueError, match=r"not one usable conversation; first rejected: .*too dark"),
        Writer(tmp_path / "s", split="train", sources=[]) as writer,
    ):
        writer.reject("a", "too dark: all of it")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("when", ["while adding", "before the manifest", "before the rename"])
def test_a_killed_writer_leaves_nothing_that_opens(tmp_path, when):
    script = f"""
        import os, pathlib, signal
        from fvjax.data.stores import conversations, manifest
        from tests.test_conversation_store import RECORDS, make
        def die(*_): os.kill(os.getpid(), signal.SIGKILL)
        if {when!r} == "before the manifest": manifest.write_manifest = die
        if {when!r} == "before the rename":
            rename = pathlib.Path.rename
            pathlib.Path.rename = lambda a, b: die() if pathlib.Path(b).name == "s" else rename(a, b)
        def records():
            yield from RECORDS
            if {when!r} == "while adding": die()
        make(pathlib.Path({str(tmp_path / "s")!r}), records())
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, timeout=120)
    assert done.returncode == -9, done.stderr.decode()
    with pytest.raises(ValueError, match="no store of conversations here"):
        ConversationStore(tmp_path / "s")
    assert all(x.name.startswith(".s.partial-") for x in tmp_path.iterdir())
    assert len(make(tmp_path / "s")) == 4


# ---- what is refused


BAD_MESSAGES = [
    ("nothing", 0, "no messages"),
    ([], 0, "no messages"),
    (["hello"], 0, "malformed message: message 1"),
    ([{"role": "user", "content": "a", "weight": 0}], 0, "malformed message: message 1"),
    ([{"role": "user"}], 0, "malformed message: message 1"),
    (chat("a", 3), 0, "malformed message: the content of message 2 is no text"),  # type: ignore[arg-type]
    ([{"role": "tool", "content": "a"}], 0, "unknown role: message 1 has 'tool'"),
    ([{"role": ["user"], "content": "a"}], 0, "unknown role: message 1"),
    (chat(" \n", "a"), 0, r"empty text: message 1 \(user\)"),
    (chat("a", ""), 0, r"empty text: message 2 \(assistant\)"),
    (chat("a\0", "b"), 0, r"NUL in a text: message 1 \(user\)"),
    (chat("a"), 0, "no answer"),
    ([{"role": "system", "content": "a"}], 0, "no answer"),
    (chat("a", "b", "c"), 0, "roles out of order: user, assistant, user"),
    ([*chat("a", "b"), *chat("c", system="d"), *chat("e", "f")], 0, "roles out of order: a system message"),
    (chat("a", "b")[::-1], 0, "roles out of order: assistant, user"),
    (chat("a", "b"), 1, "placeholders and pictures differ: 0 <image>, 1 pictures"),
    (chat("<image><image>", "b"), 1, "placeholders and pictures differ: 2 <image>, 1 pictures"),
    (chat("<image>", "see <image>"), 2, r"<image> outside a question: message 2 \(assistant\)"),
    (chat("<image>", "b", system="<image>"), 2, r"<image> outside a question: message 1 \(system\)"),
    *[
        (chat(f"<image> a{token}b", "c"), 1, f"special token in a text: {token.replace('|', '[|]')} in message 1")
        for token in (
            "<|im_end|>",
            "<|endoftext|>",
            "<IMG_CONTEXT>",
            "<img>",
            "</img>",
            "<video>",
            "<audio>",
            "<s>",
            "</s>",
        )
    ],
    (chat("a", "b<|im_start|>"), 0, r"special token in a text: <\|im_start\|> in message 2 \(assistant\)"),
]


@pytest.mark.parametrize(("messages", "pictures", "message"), BAD_MESSAGES)
def test_messages_that_are_refused(messages, pictures, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        check_messages(messages, pictures)


def test_texts_that_only_look_special():
    check_messages(chat("Is 1 <| 2 |> 3? <b>bold</b> <imgs> a<b, c>d", "<Image> no"), 0)


BAD_RECORDS = [
    ((chat("a"), [], "x"), {}, "x: no answer"),
    ((chat("<image>", "b"), [b"GIF89a"], "x"), {}, "x: unreadable picture: picture 1: cannot be read as an image"),
    ((chat("<image><image>", "b"), [picture(0), picture(1)[:99]], "x"), {}, "x: unreadable picture: picture 2"),
    ((chat("<image>", "b"), [png_that_claims(9000, 9000)], "x"), {}, "9000x9000 pixels in the header, refused"),
    ((chat("a", "b"), [], "x"), {"value": float("nan")}, "x: not JSON: meta"),
    ((chat("a", "b"), [], "x"), {"value": {1, 2}}, "x: not JSON: meta"),
    ((chat("a\udcff", "b"), [], "x"), {}, "x: not JSON: messages"),
    ((chat("a", "b"), [], "x\ny"), {}, "malformed source"),
    ((chat("a", "b"), [], "x\udcff"), {}, "malformed source"),
]


@pytest.mark.parametrize(("arguments", "meta", "message"), BAD_RECORDS)
def test_a_bad_record_is_refused_and_can_be_skipped(tmp_path, arguments, meta, message):
    with Writer(tmp_path / "s", split="train", sources=[]) as writer:
        with pytest.raises(Unusable, match=message) as error:
            writer.add(*arguments, **meta)
        writer.reject("first", error.value.reason)
        writer.reject("second", "too dark: \udcff")
        assert writer.add(*RECORDS[0][:3]) == 0
    manifest = ConversationStore(tmp_path / "s").manifest
    kind = error.value.reason.partition(":")[0]
    assert manifest["rejected_by_reason"] == {kind: 1, "too dark": 1}
    assert manifest["rejected"][1] == {"file": "second", "reason": "too dark: \\udcff"}
    assert manifest["counts"]["rejected"] == 2


def test_limits(tmp_path, monkeypatch):
    monkeypatch.setattr(conversations, "MAX_TEXT_BYTES", 100)
    monkeypatch.setattr(conversations, "MAX_PICTURES", 2)
    one = picture(0)
    with Writer(tmp_path / "s", split="train", sources=[]) as writer:
        with pytest.raises(Unusable, match=r"x: too long: messages of 1.. bytes, at most 100"):
            writer.add(chat("a" * 60, "b"), [], "x")
        with pytest.raises(Unusable, match=r"x: too long: meta of 1.. bytes, at most 100"):
            writer.add(chat("a", "b"), [], "x", tag="a" * 100)
        with pytest.raises(Unusable, match="x: too many pictures: 3 of"):
            writer.add(chat("<image>" * 3, "b"), [one] * 3, "x")
        monkeypatch.setattr(conversations, "MAX_PICTURE_BYTES", len(one))
        with pytest.raises(Unusable, match="x: too many pictures: 2 of"):
            writer.add(chat("<image>" * 2, "b"), [one] * 2, "x")
        writer.add(chat("<image>", "b"), [one], "x")


def test_a_picture_of_many_conversations_is_decoded_once(tmp_path, monkeypatch):
    decoded = []
    decode = conversations.tiling.decode_picture
    monkeypatch.setattr(
        conversations.tiling, "decode_picture", lambda data, where: decoded.append(data) or decode(data, where)
    )
    make(tmp_path / "s", [(chat("<image>", f"{i}"), [picture(i % 2)], "x", {}) for i in range(8)])
    assert len(decoded) == 2


# ---- damage


def damage(path, name, change):
    (file,) = path.glob(name)
    file.write_bytes(change(file.read_bytes()))


def test_damage_is_noticed(tmp_path):
    make(tmp_path / "s")
    stored = RECORDS[1][1][0]
    damage(tmp_path / "s", "conversations-*", lambda data: data.replace(stored[60:70], bytes(10)))
    s = ConversationStore(tmp_path / "s")
    assert s.conversation(0).source == RECORDS[0][2]
    with pytest.raises(ValueError, match=r"/s record 1: damaged .*; prepare the store again"):
        s.conversation(1)
    damage(tmp_path / "s", "index.npz", lambda data: data[:-1])
    with pytest.raises(ValueError, match=r"index\.npz: missing or changed"):
        ConversationStore(tmp_path / "s")
    damage(tmp_path / "s", "conversations-*", lambda data: data[:-1])
    with pytest.raises(ValueError, match="array_record-00000-of-00001: missing or not"):
        ConversationStore(tmp_path / "s")


def forge(path, **columns) -> None:
    """Replace columns of the index, with the right hash."""
    with np.load(path / "index.npz") as arrays:
        index = dict(arrays) | {name: np.asarray(values) for name, values in columns.items()}
    out = io.BytesIO()
    np.savez_compressed(out, **index)
    (path / "index.npz").write_bytes(out.getvalue())
    manifest = json.loads((path / "manifest.json").read_text())
    manifest["index_hash"] = sha256(out.getvalue()).hexdigest()
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    "columns",
    [
        {"counts": [1, 2, 0]},
        {"counts": [1, 2, -1, 2]},
        {"counts": [1, 1, 0, 1]},
        {"counts": [300, -296, 0, 0]},
        {"widths": [1, 2, 3]},
        {"widths": [1, 2, 3, 0]},
        {"heights": [1, 2, -3, 4]},
        {"heights": [[1, 2, 3, 4]]},
        {"widths": [1.0, 2.0, 3.0, 4.0]},
        {"sources": np.zeros(10_000_000, np.uint8)},
    ],
)
def test_a_forged_index_is_refused(tmp_path, columns):
    make(tmp_path / "s")
    forge(tmp_path / "s", **columns)
    with pytest.raises(ValueError, match="prepare the store again"):
        ConversationStore(tmp_path / "s")


def test_an_index_that_disagrees_with_the_records(tmp_path):
    make(tmp_path / "s")
    forge(tmp_path / "s", widths=[42, 70, 41, 30], counts=[1, 2, 1, 0])
    s = ConversationStore(tmp_path / "s")
    with pytest.raises(ValueError, match=r"record 2: damaged \(0 pictures, 1 in the index\)"):
        s.conversation(2)
    with pytest.raises(ValueError, match=r"record 1 \(y\), picture 2: 42x28, but index\.npz says \(41, 28\); prepare"):
        s.images(1)


def test_an_index_without_a_column(tmp_path):
    s = make(tmp_path / "s")
    with zipfile.ZipFile(s.path / "index.npz", "w") as archive:
        archive.writestr("counts.npy", b"")
    manifest = json.loads((s.path / "manifest.json").read_text())
    manifest["index_hash"] = sha256((s.path / "index.npz").read_bytes()).hexdigest()
    (s.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=r"index\.npz: cannot be read"):
        ConversationStore(s.path)


@pytest.mark.parametrize("key", ["split", "shards", "index_hash", "data_hash", "counts", "rejected"])
def test_a_manifest_without_an_entry(tmp_path, key):
    s = make(tmp_path / "s")
    manifest = json.loads((s.path / "manifest.json").read_text())
    del manifest[key]
    (s.path / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ValueError, match=rf"manifest\.json: '{key}' is missing or malformed"):
        ConversationStore(s.path)
