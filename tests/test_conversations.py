"""Test `prepare conversations`: the formats, pictures and validation, what is rejected and why, and hostile files."""

import json
import os
import time
import tracemalloc

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fvjax.data.readers import json_stream
from fvjax.data.readers.chat_formats import parse
from fvjax.data.stores.conversations import ConversationStore
from tests.test_conversation_store import picture
from tests.test_images import png_that_claims
from tests.test_prepare import fails, run

# The questions that FairFaceGPT stores; the answers are our own.
ATTRIBUTES = (
    "demographic attributes",
    "facial structure",
    "skin texture",
    "expression and emotion",
    "lighting and image quality",
    "face pose",
    "forensic considerations",
)
QUESTIONS = [
    *(f"Describe the {attribute} of the image based on the visual information." for attribute in ATTRIBUTES),
    "Describe this image.",
]


def llava(*texts: str, image=None, roles=("human", "assistant"), **more) -> dict:
    """Return one object as LLaVA writes it: question and answer in turns."""
    turns = [{"from": roles[i % 2], "value": text} for i, text in enumerate(texts)]
    return {**({} if image is None else {"image": image}), "conversations": turns, **more}


@pytest.fixture
def people(tmp_path):
    """Write a set of the schema of FairFaceGPT: six pictures, of each eight conversations of one turn."""
    folder = tmp_path / "pictures" / "val"
    folder.mkdir(parents=True)
    for i in range(6):
        (folder / f"{i}.jpg").write_bytes(picture(i, kind="JPEG"))
    return [
        llava(question, f"Answer {n} about drawing {i}.", image=f"val/{i}.jpg")
        for i in range(6)
        for n, question in enumerate(QUESTIONS)
    ]


def convert(tmp_path, capsys, records, *flags, name="data.json", split="train") -> tuple[ConversationStore, str]:
    """Convert records, or the bytes of a file, with the pictures in tmp_path/pictures."""
    write(tmp_path / name, records)
    arguments = f"--src={tmp_path / name}", f"--images={tmp_path / 'pictures'}", f"--dst={tmp_path / 's'}"
    code, out, err = run(capsys, "conversations", *arguments, *flags)
    assert code == 0, err
    return ConversationStore(tmp_path / "s", split), out


def write(file, records) -> None:
    if isinstance(records, bytes):
        file.write_bytes(records)
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    else:
        file.write_text(json.dumps(records, indent=1))


def test_fairfacegpt(people, tmp_path, capsys):
    s, out = convert(tmp_path, capsys, people)
    assert f"{tmp_path / 's'}: 48 conversations with 48 pictures, 0 without a picture, split 'train'; data " in out
    assert "48 records read = 48 written + 0 for validation + 0 rejected; <image> put first in 48" in out
    record = s.conversation(10)
    assert record.messages == [
        {"role": "user", "content": f"<image>\n{QUESTIONS[2]}"},
        {"role": "assistant", "content": "Answer 2 about drawing 1."},
    ]
    assert record.pictures == ((tmp_path / "pictures/val/1.jpg").read_bytes(),)
    assert record.source == "data.json record 10 (line 132)"
    assert record.meta == {"image": "val/1.jpg"}
    line = (tmp_path / "data.json").read_text().splitlines()[131]
    assert line.strip() == "{"
    expected = {"read": 48, "written": 48, "validation": 0, "rejected": 0, "placeholder_added": 48}
    assert s.manifest["conversion"] == {**expected, "val": 0.0, "seed": 0}
    assert s.manifest["sources"] == [str(tmp_path / "data.json"), str(tmp_path / "pictures")]


def test_lines_lists_and_line_ends_give_the_same(people, tmp_path, capsys):
    text = json.dumps(people, indent=1)
    lines = "".join(json.dumps(record) + "\n\n" for record in people)
    files = {
        "a.json": text,
        "b.json": "\ufeff" + text,
        "c.json": text.replace("\n", "\r\n"),
        "d.jsonl": lines,
        "e.jsonl": "\ufeff\r\n" + lines.replace("\n", "\r\n").rstrip(),
        "f.json": json.dumps(people),
    }
    contents = set()
    for name, text in files.items():
        target = tmp_path / name[0]
        target.mkdir()
        (target / "pictures").symlink_to(tmp_path / "pictures")
        s, _ = convert(target, capsys, text.encode(), name=name)
        contents.add(json.dumps([s.conversation(i).messages for i in range(48)]))
        first_line = {"a": 2, "b": 2, "c": 2, "d": 1, "e": 2, "f": 1}[name[0]]
        assert s.sources[0] == f"{name} record 0 (line {first_line})"
    assert len(contents) == 1


# ---- formats


MESSAGES = [{"role": "user", "content": "<image>\nWho?"}, {"role": "assistant", "content": "Me."}]
TEXT = [{"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."}]
SYSTEM = {"role": "system", "content": "Be kind."}
GREETING = [{"role": "user", "content": "Hi."}, {"role": "assistant", "content": "Hi."}]
IMAGE_PART = {"type": "image_url", "image_url": {"url": "a/b.png"}}
WHO = {"type": "text", "text": "Who?"}


@pytest.mark.parametrize(
    ("record", "messages", "pictures", "meta"),
    [
        (llava("<image>\nWho?", "Me.", image="a.png", id=7), MESSAGES, ["a.png"], {"image": "a.png", "id": 7}),
        (
            llava("<image>\nWho?", "Me.", image=["a.png"], roles=("user", "gpt")),
            MESSAGES,
            ["a.png"],
            {"image": ["a.png"]},
        ),
        (llava("<image>\nWho?", "Me.", images=["a.png"]), MESSAGES, ["a.png"], {"images": ["a.png"]}),
        (llava("Who?", "Me."), TEXT, [], {}),
        (llava("Who?", "Me.", image=[], images=None, tools=""), TEXT, [], {"image": [], "images": None}),
        (llava("Who?", "Me.", system="Be kind."), [SYSTEM, *TEXT], [], {}),
        (llava("Who?", "Me.", system=" "), TEXT, [], {}),
        (
            llava("Hi.", "Hi.", "<image>\nWho?", "Me.", image="a.png", system="Be kind."),
            [SYSTEM, *GREETING, *MESSAGES],
            ["a.png"],
            {"image": "a.png"},
        ),
        ({"messages": MESSAGES, "images": ["a.png"]}, MESSAGES, ["a.png"], {"images": ["a.png"]}),
        ({"messages": [SYSTEM, *TEXT], "tag": "x"}, [SYSTEM, *TEXT], [], {"tag": "x"}),
        (
            {"messages": [{"role": "user", "content": [IMAGE_PART, WHO]}, TEXT[1]]},
            MESSAGES,
            ["a/b.png"],
            {"images": ["a/b.png"]},
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image"}, WHO]}, TEXT[1]], "image": "a.png"},
            MESSAGES,
            ["a.png"],
            {"image": "a.png"},
        ),
    ],
)
def test_formats(record, messages, pictures, meta):
    sample = parse(record)
    assert (sample.messages, sample.pictures, sample.meta) == (messages, pictures, meta)
    assert not sample.placeholder_added


def test_missing_placeholders_are_put_before_the_first_question():
    sample = parse(llava("Same?", "No.", "Why?", "So.", image=["a.png", "b.png"], system="Be kind."))
    assert [m["content"] for m in sample.messages] == ["Be kind.", "<image>\n<image>\nSame?", "No.", "Why?", "So."]
    assert sample.placeholder_added


REJECTED = [
    (3, "not an object: a int"),
    (llava("a", "b", video="a.mp4"), "not supported: 'video'"),
    (llava("a", "b", tools="[]"), "not supported: 'tools'"),
    ({"text": "a"}, "no messages: expected either 'conversations' or 'messages'"),
    ({**llava("a", "b"), "messages": TEXT}, "no messages: expected either"),
    ({"conversations": {}}, "no messages: expected a list of turns"),
    ({"messages": []}, "no messages: expected a list of turns"),
    (llava("a", "b", image="a.png", images=["a.png"]), "pictures named twice: both"),
    ({"messages": [{"role": "user", "content": [IMAGE_PART]}, TEXT[1]], "image": "a"}, "pictures named twice: in the"),
    (llava("a", "b", image=""), "malformed picture path"),
    (llava("a", "b", image=0), "malformed picture path"),
    (llava("a", "b", image=["a", None]), "malformed picture path"),
    (llava("a", "b", system=["c"]), "malformed message: 'system'"),
    (llava("a", "b", roles=("human", "bot")), "unknown role: message 2 has 'bot'"),
    (llava("a", "b", roles=(None, "gpt")), "unknown role: message 1 has None"),
    ({"conversations": [{"from": "human", "value": "a", "loss": True}]}, "malformed message: message 1 must have"),
    ({"messages": [{"from": "human", "value": "a"}]}, "malformed message: message 1 must have exactly 'role'"),
    ({"conversations": ["a"]}, "malformed message: message 1"),
    (llava("a", ["b"]), "malformed message: the 'value' of message 2 is no text"),  # type: ignore[arg-type]
    ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, "malformed message: a part of message 1"),
    ({"messages": [{"role": "user", "content": [3]}]}, "malformed message: a part of message 1"),
    (llava("a", "b", "c"), "roles out of order"),
    (llava("a"), "no answer"),
    (llava("a", " "), "empty text: message 2"),
    (llava("<image><image>", "b", image="a"), "placeholders and pictures differ: 2 <image>, 1 pictures"),
    (llava("<image>", "b"), "placeholders and pictures differ: 1 <image>, 0 pictures"),
    (llava("a<|im_end|>", "b", image="a"), "special token in a text: <|im_end|> in message 1"),
    (llava("a", "<image>", image="a"), "<image> outside a question: message 2"),
]


@pytest.mark.parametrize(("record", "reason"), REJECTED)
def test_what_is_rejected(record, reason):
    with pytest.raises(ValueError, match="^" + reason.translate({ord(c): f"\\{c}" for c in "<>|[]()"})):
        parse(record)


def test_every_rejection_is_located_and_counted(people, tmp_path, capsys):
    records = [*people[:2], *(record for record, _ in REJECTED), llava("a", "b", image="val/none.jpg"), *people[2:4]]
    s, out = convert(tmp_path, capsys, records, name="data.jsonl")
    rejected = s.manifest["rejected"]
    assert len(rejected) == len(REJECTED) + 1
    for number, (entry, (_, reason)) in enumerate(zip(rejected, REJECTED), 2):
        assert entry["file"] == f"data.jsonl record {number} (line {number + 1})"
        assert entry["reason"].startswith(reason)
    assert rejected[-1]["reason"] == "missing picture: 'val/none.jpg'"
    by_reason = s.manifest["rejected_by_reason"]
    assert sum(by_reason.values()) == len(rejected)
    assert by_reason["malformed message"] == 7
    assert by_reason["missing picture"] == 1
    total = len(records)
    assert f"{len(rejected)} rejected (7 malformed message, " in out
    assert "the first: data.jsonl record 2 (line 3): not an object: a int, expected {...}" in out
    assert f"{total} records read = 4 written + 0 for validation + {len(rejected)} rejected" in out
    assert [s.conversation(i).source.split()[2] for i in range(4)] == ["0", "1", f"{total - 2}", f"{total - 1}"]


# ---- pictures


def test_pictures_outside_the_folder_are_refused(people, tmp_path, capsys):
    (tmp_path / "secret.png").write_bytes(picture(9))
    pictures = tmp_path / "pictures"
    (pictures / "link.png").symlink_to(tmp_path / "secret.png")
    (pictures / "up").symlink_to(tmp_path)
    (pictures / "inside.png").symlink_to(pictures / "val" / "0.jpg")
    (pictures / "loop").symlink_to(pictures / "loop")
    os.mkfifo(pictures / "pipe.png")
    outside = ["../secret.png", "val/../../secret.png", str(tmp_path / "secret.png"), "link.png", "up/secret.png"]
    outside += [
        "C:\\secret.png",
        "C:secret.png",
        "\\\\host\\secret.png",
        "file:///secret.png",
        "a\0b",
        "https://x.org/a.png",
    ]
    unreadable = ["val", ".", "pipe.png", "loop", "a" * 5000]
    records = [llava("a", "b", image=path) for path in [*outside, *unreadable, "inside.png", "val/../val/1.jpg"]]
    s, _ = convert(tmp_path, capsys, records)
    reasons = [entry["reason"].partition(":")[0] for entry in s.manifest["rejected"]]
    assert reasons == ["picture outside the folder"] * len(outside) + ["unreadable picture"] * len(unreadable)
    assert [s.conversation(i).meta["image"] for i in range(2)] == ["inside.png", "val/../val/1.jpg"]


def test_pictures_that_cannot_be_read_are_rejected_by_name(people, tmp_path, capsys):
    val = tmp_path / "pictures" / "val"
    (val / "bomb.png").write_bytes(png_that_claims(10_000, 10_000))
    (val / "cut.jpg").write_bytes((val / "0.jpg").read_bytes()[:-200])
    (val / "empty.jpg").write_bytes(b"")
    bad = [llava("a", "b", image=f"val/{name}") for name in ("bomb.png", "cut.jpg", "empty.jpg")]
    s, _ = convert(tmp_path, capsys, bad + people[:1])
    reasons = [entry["reason"] for entry in s.manifest["rejected"]]
    assert all(reason.startswith("unreadable picture: picture 1: ") for reason in reasons)
    assert "10000x10000 pixels" in reasons[0]
    assert "truncated" in reasons[1]
    assert s.manifest["rejected_by_reason"] == {"unreadable picture": 3}


def test_texts_need_no_folder_and_pictures_do(people, tmp_path, capsys):
    write(tmp_path / "data.json", [llava("a", "b"), *people])
    common = "conversations", f"--src={tmp_path / 'data.json'}"
    code, out, _ = run(capsys, *common, f"--dst={tmp_path / 's'}")
    assert code == 0
    assert "48 missing picture" in out
    assert "say where pictures are with --images=DIR" in out
    assert len(ConversationStore(tmp_path / "s")) == 1


# ---- validation


def test_validation_has_all_conversations_of_its_pictures(people, tmp_path, capsys):
    (tmp_path / "pictures/val/copy.jpg").write_bytes((tmp_path / "pictures/val/0.jpg").read_bytes())
    records = [*people, llava("a", "b", image="val/copy.jpg"), llava("no picture", "b"), llava("a", "b", image="none")]
    s, out = convert(tmp_path, capsys, records, "--val=0.34", "--seed=3")
    val = ConversationStore(tmp_path / "s" / "val", "val")
    sides = [{picture for i in range(len(store)) for picture in store.conversation(i).pictures} for store in (s, val)]
    assert [len(side) for side in sides] == [4, 2]
    assert not sides[0] & sides[1]
    assert len(s) + len(val) == 50
    assert len(val) in (16, 17)
    assert s.manifest["counts"]["without_picture"] == 1
    expected = {"read": 51, "written": len(s), "validation": len(val), "rejected": 1, "placeholder_added": 49}
    assert s.manifest["conversion"] == val.manifest["conversion"] == {**expected, "val": 0.34, "seed": 3}
    assert f"51 records read = {len(s)} written + {len(val)} for validation + 1 rejected" in out
    assert f"{val.path}: {len(val)} conversations" in out
    assert s.manifest["sources"] == val.manifest["sources"]


def chosen(tmp_path, capsys, records, name, *flags) -> set[bytes]:
    (tmp_path / name).mkdir()
    (tmp_path / name / "pictures").symlink_to(tmp_path / "pictures")
    convert(tmp_path / name, capsys, records, *flags)
    if not (tmp_path / name / "s" / "val").exists():
        return set()
    val = ConversationStore(tmp_path / name / "s" / "val", "val")
    return {picture for i in range(len(val)) for picture in val.conversation(i).pictures}


def test_the_choice_depends_on_the_seed_and_not_on_the_order(people, tmp_path, capsys):
    choices = [
        chosen(tmp_path, capsys, records, f"{i}", "--val=0.5", f"--seed={seed}")
        for i, (records, seed) in enumerate([(people, 0), (people[::-1], 0), (people, 1), (people, 2)])
    ]
    assert choices[0] == choices[1]
    assert {len(choice) for choice in choices} == {3}
    assert len({frozenset(choice) for choice in choices}) > 1


def test_pictures_of_one_conversation_stay_together(people, tmp_path, capsys):
    """Pictures 0-1-2 are linked through 1, so they are chosen together or not at all."""
    linked = [llava("a", "b", image=["val/0.jpg", "val/1.jpg"]), llava("a", "b", image=["val/2.jpg", "val/1.jpg"])]
    three = {(tmp_path / f"pictures/val/{i}.jpg").read_bytes() for i in range(3)}
    choices = [chosen(tmp_path, capsys, people + linked, f"{i}", "--val=0.5", f"--seed={i}") for i in range(6)]
    assert {len(three & choice) for choice in choices} == {0, 3}
    assert not chosen(tmp_path, capsys, people + linked, "few", "--val=0.1")


def test_no_validation_without_a_usable_conversation(people, tmp_path, capsys):
    """A picture is chosen before it is known whether it can be decoded."""
    (tmp_path / "pictures/val/cut.jpg").write_bytes((tmp_path / "pictures/val/0.jpg").read_bytes()[:-200])
    records = [llava("a", "b", image=f"val/{name}.jpg") for name in ("cut", "1")]
    outcomes = set()
    for seed in range(5):
        (tmp_path / f"{seed}").mkdir()
        (tmp_path / f"{seed}" / "pictures").symlink_to(tmp_path / "pictures")
        flags = "--val=0.5", f"--seed={seed}"
        write(tmp_path / f"{seed}" / "data.json", records)
        target = tmp_path / f"{seed}"
        code, out, err = run(
            capsys,
            "conversations",
            f"--src={target / 'data.json'}",
            f"--images={target / 'pictures'}",
            f"--dst={target / 's'}",
            *flags,
        )
        outcomes.add((code, "no picture is for validation" in out, "not one usable conversation" in err))
    assert outcomes == {(0, True, False), (2, False, True)}
    assert not list(tmp_path.glob("*/s/val"))


def test_split(people, tmp_path, capsys):
    s, _ = convert(tmp_path, capsys, people, "--split=test", split="test")
    assert s.manifest["split"] == "test"


# ---- mistakes and hostile files


def test_mistakes(people, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    dst = tmp_path / "out" / "s"
    write(tmp_path / "data.json", people)
    common = "conversations", f"--src={tmp_path / 'data.json'}"
    images = f"--images={tmp_path / 'pictures'}"
    fails(capsys, dst, "none.json: no such file", "conversations", f"--src={tmp_path / 'none.json'}", images)
    fails(capsys, dst, "nowhere: no such folder", *common, f"--images={tmp_path / 'nowhere'}")
    fails(capsys, dst, "--val=1.0 --seed=0: expected", *common, images, "--val=1")
    fails(capsys, dst, "--seed=-1: expected", *common, images, "--seed=-1")
    fails(capsys, dst, "only the split 'train'", *common, images, "--val=0.1", "--split=test")
    fails(capsys, dst, "not one usable conversation; first rejected", *common)
    with pytest.raises(SystemExit, match="2"):
        run(capsys, *common, f"--dst={dst}", "--split=dev")
    dst.mkdir()
    fails(capsys, dst, "s: exists already", *common, images)


GOOD = json.dumps(llava("a", "b"))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it is empty; expected a JSON list of objects, or one object a line"),
        (b" \r\n\n", "it is empty"),
        (b"\0\0\0\0", "it begins with '\\x00'"),
        (b"hello", "it begins with 'h'"),
        (b"\x80\x04\x95", "not UTF-8"),
        (b"\xff\xfe[\0", "not UTF-8"),
        (f"[{GOOD}]".encode("utf-16"), "not UTF-8"),
        (f'[{GOOD}, {{"a": "\xff'.encode("latin-1"), "not UTF-8"),
        (b"[]", "not one usable conversation"),
        (b"[", "record 0 (line 1): not JSON or cut off (Expecting value, line 1)"),
        (f"[{GOOD}".encode(), "record 1 (line 1): not JSON (the list is cut off)"),
        (f"[\n{GOOD},\n".encode(), "record 1 (line 3): not JSON or cut off"),
        (f"[\n{GOOD},\n{GOOD[:30]}".encode(), "record 1 (line 3): not JSON or cut off (Unterminated string"),
        (f"[\n{GOOD}\n{GOOD}]".encode(), "record 1 (line 3): not JSON (expected ',' or ']', not '{')"),
        (f"[{GOOD},]".encode(), "record 1 (line 1): not JSON or cut off"),
        (f"[{GOOD}]\n{GOOD}".encode(), "line 2: '{' after the end of the list"),
        (f"[{GOOD},\n\0{GOOD}]".encode(), "record 1 (line 2): not JSON"),
        (f'[{{"a": "x\0y"}}, {GOOD}]'.encode(), "record 0 (line 1): not JSON or cut off (Invalid control character at"),
        (f"[{{\n\n'a': 1}}, {GOOD}]".encode(), "record 0 (line 1): not JSON or cut off (Expecting property name"),
        (b"[" * 100_000, "record 0 (line 1): too deeply nested"),
        (b'{"a":' * 100_000, "record 0 (line 1): not JSON"),
        (b"[" + b"9" * 10_000 + b"]", "record 0 (line 1): not JSON (Exceeds the limit"),
        (b'{\n"data": []\n}', "record 0 (line 1): not JSON (Expecting property name"),
    ],
)
def test_hostile_files(tmp_path, capsys, data, message):
    (tmp_path / "out").mkdir()
    (tmp_path / "data.json").write_bytes(data)
    fails(capsys, tmp_path / "out" / "s", message, "conversations", f"--src={tmp_path / 'data.json'}")


def test_a_broken_line_is_rejected_and_the_next_is_read(tmp_path, capsys):
    lines = [GOOD, GOOD[:-5], "", "\0", '{"a":' * 50_000, '{"a": 1}', "NaN", GOOD]
    (tmp_path / "data.jsonl").write_text("\n".join(lines))
    code, _, _ = run(capsys, "conversations", f"--src={tmp_path / 'data.jsonl'}", f"--dst={tmp_path / 's'}")
    assert code == 0
    s = ConversationStore(tmp_path / "s")
    assert s.sources == ["data.jsonl record 0 (line 1)", "data.jsonl record 6 (line 8)"]
    assert s.manifest["rejected_by_reason"] == {"not JSON": 3, "no messages": 1, "not an object": 1}
    assert [entry["file"] for entry in s.manifest["rejected"]] == [
        f"data.jsonl record {number} (line {line})" for number, line in ((1, 2), (2, 4), (3, 5), (4, 6), (5, 7))
    ]


@pytest.fixture
def traced_memory():
    """Return a function that returns the most bytes in use since its last call."""
    tracemalloc.start()

    def peak() -> int:
        bytes_ = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        return bytes_

    yield peak
    tracemalloc.stop()


@pytest.mark.parametrize("form", ["[{}]", "{}\n{}"])
def test_a_huge_object_is_refused_without_reading_it_all(tmp_path, monkeypatch, traced_memory, form):
    monkeypatch.setattr(json_stream, "MAX_OBJECT", 10_000)
    monkeypatch.setattr(json_stream, "CHUNK", 1000)
    file = tmp_path / "data.json"
    allowed = json.dumps({"a": "x" * 9990})
    assert len(allowed) == 10_000 - 1
    file.write_text(form.replace("{}", allowed))
    assert next(json_stream.items(file)).value == json.loads(allowed)
    file.write_text(form.replace("{}", json.dumps({"a": "x" * 5_000_000})))
    traced_memory()
    with pytest.raises(ValueError, match=r"data\.json record 0 \(line 1\): more than 10000 characters; split it up"):
        list(json_stream.items(file))
    assert traced_memory() < 1_000_000
    file.write_text('[{"a": oops, "b": "' + "x" * 5_000_000)
    with pytest.raises(ValueError, match=r"not JSON or cut off .Expecting value, line 1"):
        list(json_stream.items(file))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1 << 20])
def test_elements_across_chunks(tmp_path, monkeypatch, chunk):
    """Whatever the borders of the chunks: numbers, escapes and white space between them."""
    monkeypatch.setattr(json_stream, "CHUNK", chunk)
    values = [{"a": 'é"\\{[', "b": [1, {}]}, 12345, -1.5e10, "x,]", [], None, True, {}]
    file = tmp_path / "data.json"
    file.write_text("\n" + json.dumps(values, indent=2).replace(",\n", " ,\r\n"))
    items = list(json_stream.items(file))
    assert [item.value for item in items] == values
    assert [item.number for item in items] == list(range(8))
    text = file.read_text().split("\n")
    assert [text[item.line - 1].strip()[:1] for item in items] == ["{", "1", "-", '"', "[", "n", "t", "{"]


def test_a_large_file_is_read_in_constant_memory_and_linear_time(tmp_path, traced_memory):
    file = tmp_path / "data.json"
    record = json.dumps(llava("question " * 20, "answer " * 20))
    file.write_text("[" + ",\n".join([record] * 30_000) + "]")
    assert file.stat().st_size > 10_000_000
    advanced = []
    traced_memory()
    before = time.process_time()
    count = sum(1 for _ in json_stream.items(file, advanced.append))
    assert time.process_time() - before < 5
    assert traced_memory() < 9_000_000
    assert count == 30_000
    assert sum(advanced) == file.stat().st_size


PIECES = st.sampled_from(
    ["[", "]", ",", '{"a": 1}', '{"a": "', '"}', "\n", " ", "\0", "\ufeff", "7", "null", "\\", "[[["]
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pieces=st.lists(PIECES, max_size=12), tail=st.binary(max_size=3), chunk=st.integers(1, 9))
def test_any_file_gives_elements_or_one_error(tmp_path, pieces, tail, chunk):
    """A list is read as json.loads reads it, or refused; what it refuses is never read in part without an error."""
    file = tmp_path / "data.json"
    data = "".join(pieces).encode() + tail
    file.write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_stream, "CHUNK", chunk)
        try:
            items = list(json_stream.items(file))
        except ValueError as error:
            assert str(error).startswith(f"{file}")  # noqa: PT017
            items = None
    try:
        text = data.decode("utf-8-sig")
        expected = json.loads(text) if text.lstrip(" \t\r\n")[:1] == "[" else None
    except ValueError:
        expected = None
        assert items is None or text.lstrip(" \t\r\n")[:1] == "{"
    if expected is not None:
        assert items is not None
        assert [item.value for item in items] == expected
