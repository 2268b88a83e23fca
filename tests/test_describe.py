"""Test conversations from FairFace's labels, the audit of answers by a person, and the control run's store."""

import base64
import hashlib
import io
import json
import os
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fvjax.data import describe, images
from fvjax.data.describing import control, label_questions
from fvjax.data.readers import fairface
from fvjax.data.stores.conversations import ConversationStore, Writer

GOLDEN = Path("tests/golden/fairface_labels")
AGES = [
    "3-9",
    "0-2",
    "50-59",
    "3-9",
    "60-69",
    "40-49",
    "20-29",
    "10-19",
    "30-39",
    "more than 70",
]  # of the golden files


def fails(capsys, *arguments):
    """Run a command that must fail, and return its one line."""
    capsys.readouterr()
    assert describe.main([str(argument) for argument in arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line.removeprefix("error: ")


@pytest.fixture
def faces(tmp_path):
    """Ten pictures with the golden labels."""
    (tmp_path / "faces/val").mkdir(parents=True)
    for number in range(1, 11):
        picture = np.full((112, 112, 3), 20 * number, np.uint8)
        (tmp_path / f"faces/val/{number}.jpg").write_bytes(images.encode(picture))
    return tmp_path / "faces"


def labels(faces, dst, *more):
    file = GOLDEN / "fairface_label_val.csv"
    return describe.main(["labels", f"--src={faces}", f"--labels={file}", f"--dst={faces.parent / dst}", *more])


# ---- FairFace's labels -----------------------------------------------------------------------------------------------


def test_labels_are_read():
    rows = fairface.read_labels(GOLDEN / "fairface_label_val.csv")
    assert rows[0] == fairface.Label("val/1.jpg", "3-9", "Male", "Middle Eastern")
    assert [row.age for row in rows] == AGES


@pytest.mark.parametrize(("copy", "first"), [("a", "9-Mar"), ("b", "03-Sep")])
def test_ages_that_a_spreadsheet_mangled(copy, first):
    file = GOLDEN / f"fairface_label_val_spreadsheet_{copy}.csv"
    assert [row.age for row in fairface.read_labels(file, repair_ages=True)] == AGES
    with pytest.raises(ValueError, match=f"line 2: the age '{first}' was 3-9 before a spreadsheet made a date of it"):
        fairface.read_labels(file)


HEAD = "file,age,gender,race,service_test\n"


def test_a_byte_order_mark_before_the_labels_is_no_part_of_them(tmp_path):
    (tmp_path / "labels.csv").write_text("\ufeff" + HEAD + "a.jpg,3-9,Male,White,True\n", encoding="utf-8")
    assert fairface.read_labels(tmp_path / "labels.csv") == [fairface.Label("a.jpg", "3-9", "Male", "White")]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no column 'file'"),
        ("file,age,gender\na,3-9,Male\n", "no column 'race'"),
        (HEAD, "no picture is listed"),
        (HEAD + "a.jpg,3-9,Male,White,True\na.jpg,0-2,Male,White,True\n", "line 3: 'a.jpg' is listed twice"),
        (HEAD + "a.jpg,3-9,Male,Martian,True\n", "line 2: the race 'Martian' is none of White, "),
        (HEAD + "a.jpg,31,Male,White,True\n", "line 2: the age '31' is none of 0-2, "),
        (HEAD + "a.jpg,3-9,male,White,True\n", "line 2: the gender 'male' is none of Male, Female"),
        (HEAD + "a.jpg,3-9,Male\n", "line 2: not as many values as the first line has"),
        (HEAD + "a.jpg,3-9,Male,White,True,more\n", "line 2: not as many values"),
        (HEAD + ",3-9,Male,White,True\n", "line 2: no file name"),
        (HEAD + '"a.jpg,3-9,Male,White,True\n', "not a CSV file in UTF-8"),
        (HEAD.encode() + b"\xff,3-9,Male,White,True\n", "not a text file in UTF-8"),
    ],
)
def test_mistakes_in_label_files(tmp_path, text, problem):
    (tmp_path / "labels.csv").write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(problem)):
        fairface.read_labels(tmp_path / "labels.csv")
    with pytest.raises(ValueError, match="no such file"):
        fairface.read_labels(tmp_path / "other.csv")


def test_label_files_of_as_many_bytes_as_may_be_read(tmp_path, monkeypatch):
    file = tmp_path / "labels.csv"
    file.touch()
    os.truncate(file, 2**28 + 1)  # takes no space on the disk
    with pytest.raises(ValueError, match="268435457 bytes, at most 268435456; is it a label file"):
        fairface.read_labels(file)
    file.write_text(HEAD + "a.jpg,3-9,Male,White,True\n")
    monkeypatch.setattr(fairface, "MAX_BYTES", file.stat().st_size)
    (label,) = fairface.read_labels(file)
    assert hash(label) == hash(fairface.Label("a.jpg", "3-9", "Male", "White"))


# ---- Questions about labels ------------------------------------------------------------------------------------------


def test_wordings_name_all_options():
    for options, wordings, _ in label_questions.KINDS.values():
        assert len(wordings) == len(set(wordings)) >= 3
        for wording in wordings:
            assert wording.count("{}") == 1
        shown = label_questions.questions(fairface.Label("x", "3-9", "Male", "White"), 0)
        assert all(option in question.text for question in shown for option in question.options)
        assert len(set(options)) == len(options)


def test_answers_say_the_labels():
    label = fairface.Label("val/1.jpg", "more than 70", "Female", "Latino_Hispanic")
    answers = {question.kind: question.answer for question in label_questions.questions(label, 0)}
    assert answers == {"age": "70 or more", "gender": "woman", "race": "Latino or Hispanic"}
    assert label_questions.questions(label, 0) == label_questions.questions(label, 0)
    texts = {tuple(q.text for q in label_questions.questions(label, seed)) for seed in range(20)}
    assert len(texts) > 15


def test_a_store_of_the_labels(faces, tmp_path, capsys):
    assert labels(faces, "s") == 0
    store = ConversationStore(tmp_path / "s")
    assert len(store) == 10
    rows = fairface.read_labels(GOLDEN / "fairface_label_val.csv")
    for i, row in enumerate(rows):
        record = store.conversation(i)
        asked = label_questions.questions(row, 0)
        assert record.source == row.file
        assert record.pictures == ((faces / row.file).read_bytes(),)
        assert record.messages[0]["content"] == "<image>\n" + asked[0].text
        assert [m["content"] for m in record.messages[1::2]] == [question.answer for question in asked]
        assert record.meta == {"kinds": [question.kind for question in asked]}
    counts = store.manifest["questions"]["answers"]
    assert counts["gender"] == {"man": 4, "woman": 6}
    assert counts["age"]["3-9"] == 2
    assert "gender: man 4 (40%), woman 6 (60%)" in capsys.readouterr().out


def test_one_question_a_record(faces, tmp_path):
    assert labels(faces, "s", "--single", "--split=test") == 0
    store = ConversationStore(tmp_path / "s", "test")
    assert len(store) == 30
    record = store.conversation(0)
    assert len(record.messages) == 2
    assert record.source == f"val/1.jpg#{record.meta['tag']}"
    assert record.meta["answer"] == record.messages[1]["content"]
    assert record.meta["answer"] in record.meta["options"]
    assert Counter(store.conversation(i).meta["tag"] for i in range(30)) == {"age": 10, "gender": 10, "race": 10}


def test_kinds_of_questions(faces, tmp_path):
    labels(faces, "all", "--single", "--split=test")
    labels(faces, "some", "--single", "--split=test", "--kinds=gender,age")
    every, some = (ConversationStore(tmp_path / name, "test") for name in ("all", "some"))
    kept = [i for i in range(len(every)) if every.conversation(i).meta["tag"] != "race"]
    assert [some.conversation(i).messages for i in range(len(some))] == [every.conversation(i).messages for i in kept]
    assert len(kept) == 20


def test_seeds_change_wordings(faces, tmp_path):
    hashes = set()
    for name, more in (("a", ()), ("b", ()), ("c", ("--seed=1",))):
        labels(faces, name, *more)
        hashes.add(ConversationStore(tmp_path / name).data_hash)
    assert len(hashes) == 2


def test_pictures_are_on_one_side_of_the_split(faces, tmp_path, capsys):
    (faces / "val/2.jpg").write_bytes((faces / "val/1.jpg").read_bytes())  # a copy stays with the original
    sides = []
    for seed in range(3):
        labels(faces, f"s{seed}", "--val=0.4", f"--seed={seed}")
        train, val = ConversationStore(tmp_path / f"s{seed}"), ConversationStore(tmp_path / f"s{seed}/val", "val")
        assert sorted(train.sources + val.sources) == sorted(f"val/{n}.jpg" for n in range(1, 11))
        assert ("val/1.jpg" in val.sources) == ("val/2.jpg" in val.sources)
        assert sum(train.manifest["questions"]["answers"]["gender"].values()) == len(train)
        assert sum(val.manifest["questions"]["answers"]["gender"].values()) == len(val)
        sides.append(tuple(val.sources))
    assert len(set(sides)) > 1
    assert f"{tmp_path / 's2/val'}: " in capsys.readouterr().out


def test_the_shares_of_the_parts():
    pictures = [f"{n}".encode() for n in range(2000)]
    narrow, wide = (
        [label_questions.part_of(picture, {"val": val, "test": 0.2}, 3) for picture in pictures] for val in (0.1, 0.15)
    )
    counts = Counter(narrow)
    assert set(counts) == {"", "val", "test"}
    assert 150 < counts["val"] < 250
    assert 330 < counts["test"] < 470
    assert all(b == "val" for a, b in zip(narrow, wide, strict=True) if a == "val")


def test_a_part_for_testing_has_one_question_a_record(faces, tmp_path, capsys):
    labels(faces, "s", "--test=0.4")
    train, test = ConversationStore(tmp_path / "s"), ConversationStore(tmp_path / "s/test", "test")
    tested = {source.split("#")[0] for source in test.sources}
    assert len(test) == 3 * len(tested)
    assert 0 < len(tested) < 10
    assert sorted(tested | set(train.sources)) == sorted(f"val/{n}.jpg" for n in range(1, 11))
    assert not (tmp_path / "s/val").exists()
    assert f"{tmp_path / 's/test'}: " in capsys.readouterr().out
    labels(faces, "t", "--test=1e-9")
    assert "no picture is in the part 'test'" in capsys.readouterr().out
    assert not (tmp_path / "t/test").exists()


def test_pictures_that_cannot_be_used_are_counted(faces, tmp_path, capsys):
    (faces / "val/1.jpg").unlink()
    (faces / "val/2.jpg").write_bytes(b"\xff\xd8 broken")
    (faces / "val/3.jpg").unlink()
    (faces / "val/3.jpg").symlink_to("/etc/passwd")
    assert labels(faces, "s") == 0
    manifest = ConversationStore(tmp_path / "s").manifest
    assert manifest["rejected_by_reason"] == {
        "missing picture": 1, "unreadable picture": 1, "picture outside the folder": 1
    }  # fmt: skip
    assert [entry["file"] for entry in manifest["rejected"]] == ["val/1.jpg", "val/2.jpg", "val/3.jpg"]
    assert sum(manifest["questions"]["answers"]["gender"].values()) == 7
    assert "3 rejected" in capsys.readouterr().out


def test_mistakes_of_the_labels_command(faces, tmp_path, capsys):
    given = "labels", f"--src={faces}", f"--labels={GOLDEN / 'fairface_label_val.csv'}", f"--dst={tmp_path / 's'}"
    assert "--val=1.0 --test=0.0 --seed=0: expected shares" in fails(capsys, *given, "--val=1")
    assert "together below 1" in fails(capsys, *given, "--val=0.5", "--test=0.5")
    assert "only the split 'train' is divided into parts" in fails(capsys, *given, "--val=0.1", "--split=test")
    assert "no such folder" in fails(capsys, *given, f"--src={tmp_path / 'none'}")
    (tmp_path / "empty").mkdir()
    assert "not one usable conversation" in fails(capsys, *given, f"--src={tmp_path / 'empty'}")
    assert not (tmp_path / "s").exists()
    for wrong in ("hair", "age,age", ""):
        assert f"--kinds={wrong}: expected some of age, gender, race" in fails(capsys, *given, f"--kinds={wrong}")
    mangled = f"--labels={GOLDEN / 'fairface_label_val_spreadsheet_a.csv'}"
    assert "--repair-ages reads such dates as ages" in fails(capsys, *given, mangled)
    assert describe.main([*given, mangled, "--repair-ages"]) == 0


# ---- The audit -------------------------------------------------------------------------------------------------------


HOSTILE = '</p></script><script>alert("1")</script><img src=x onerror=alert(2)>&amp; ünï @SCRIPT@ \' "'


def store_of(path, texts):
    png = io.BytesIO()
    Image.new("RGB", (900, 300), (200, 30, 30)).save(png, "PNG")
    with Writer(path, split="test", sources=["x"]) as writer:
        for number, text in enumerate(texts):
            messages = [{"role": "user", "content": f"<image>\nQuestion {number}?"}]
            messages += [{"role": "assistant", "content": text}]
            messages += [{"role": "user", "content": "And?"}, {"role": "assistant", "content": "No."}]
            writer.add(messages, [png.getvalue()], f"file{number}.png {HOSTILE}")
    return path


class Page(HTMLParser):
    """What a page consists of: the tags with their attributes, and the texts outside scripts."""

    def __init__(self, html):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.scripts: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script" and self.cdata_elem == "script":
            self.scripts.append(data)
        else:
            self.text += data


def make_page(tmp_path, *more, texts=("Good.", HOSTILE, "Bad."), name="audit.html"):
    if not (tmp_path / "s").exists():
        store_of(tmp_path / "s", texts)
    assert describe.main(["audit", f"--src={tmp_path / 's'}", f"--out={tmp_path / name}", *more]) == 0
    return (tmp_path / name).read_text()


def test_the_page_shows_samples_and_needs_nothing_else(tmp_path):
    html = make_page(tmp_path)
    assert html.isascii()
    page = Page(html)
    kinds = Counter(tag for tag, _ in page.tags)
    assert (kinds["script"], kinds["img"], kinds["section"]) == (2, 3, 3)
    boxes = [attributes for tag, attributes in page.tags if tag == "input"]
    assert {box["name"] for box in boxes} == {f"{n}:{turn}" for n in range(3) for turn in (1, 2)}
    assert Counter(box["value"] for box in boxes) == {"right": 6, "hallucinated": 6, "unsure": 6}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not {"href", "action"} & set(attributes)
        assert attributes.get("src", "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
    picture = next(attributes["src"] for tag, attributes in page.tags if tag == "img")
    shown = Image.open(io.BytesIO(base64.b64decode(picture.partition(",")[2])))
    assert (shown.format, shown.size) == ("JPEG", (512, 171))
    for text in ("Good.", "Bad.", HOSTILE, "Question 2?", f"file1.png {HOSTILE}"):
        assert text in page.text
    assert "<image>" not in page.text


def test_only_the_page_s_own_script_may_run(tmp_path):
    page = Page(make_page(tmp_path))
    data, script = page.scripts
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert "default-src 'none'" in policy
    assert json.loads(data)["answers"].__len__() == 6
    assert "http" not in script


def test_samples_are_a_random_choice(tmp_path):
    store_of(tmp_path / "s", [f"Text {n}." for n in range(50)])
    chosen = {}
    for name, more in (("a", ["--count=5"]), ("b", ["--count=5"]), ("c", ["--count=5", "--seed=1"]), ("d", [])):
        html = make_page(tmp_path, *more, name=name)
        chosen[name] = re.findall(r"Text (\d+)\.", html)
    assert len(set(chosen["a"])) == 5
    assert chosen["a"] == chosen["b"] != chosen["c"]
    assert chosen["a"] != sorted(chosen["a"], key=int)
    assert len(chosen["d"]) == 50  # fewer than the usual 100


def test_samples_of_a_file_of_conversations(tmp_path, capsys):
    (tmp_path / "a.png").write_bytes(control.fixed_picture())
    rows = [
        {"image": "a.png", "conversations": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": f"Text {n}."}]}
        for n in range(9)
    ]
    file = tmp_path / "f.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = "audit", f"--src={file}", "--count=4", f"--out={tmp_path / 'p.html'}"
    assert "say with --images=DIR where the pictures of this file are" in fails(capsys, *given)
    assert describe.main([*given, f"--images={tmp_path}"]) == 0
    html = (tmp_path / "p.html").read_text()
    numbers = re.findall(r"Text (\d)\.", html)
    assert len(set(numbers)) == 4
    assert set(re.findall(r'name="(\d):1"', html)) == set(numbers)
    assert "p.html exists; choose another --out" in fails(capsys, *given, f"--images={tmp_path}")
    (tmp_path / "a.png").unlink()
    line = fails(capsys, *given, f"--images={tmp_path}", f"--out={tmp_path / 'q.html'}")
    assert re.search(r"f\.jsonl: f\.jsonl record \d \(line \d\): missing picture", line)


def test_a_store_has_its_own_pictures(tmp_path, capsys):
    store_of(tmp_path / "s", ["x"])
    given = "audit", f"--src={tmp_path / 's'}", f"--out={tmp_path / 'p.html'}"
    assert "which has its pictures; leave the flag out" in fails(capsys, *given, f"--images={tmp_path}")
    assert "--count=0: expected at least one sample" in fails(capsys, *given, "--count=0")


def save_marks(tmp_path, marks, audit_id=None, page="audit.html"):
    data = json.loads(Page((tmp_path / page).read_text()).scripts[0])
    (tmp_path / "marks.json").write_text(json.dumps({"audit": audit_id or data["id"], "marks": marks}))
    return ["audit-result", str(tmp_path / "marks.json"), f"--audit={tmp_path / page}"]


def test_the_rate_and_its_interval(tmp_path, capsys):
    make_page(tmp_path)
    marks = {"0:1": "right", "0:2": "right", "1:1": "hallucinated", "1:2": "right", "2:1": "unsure"}
    capsys.readouterr()
    assert describe.main(save_marks(tmp_path, marks)) == 0
    assert capsys.readouterr().out.splitlines() == [
        "hallucinated: 1 of 4 judged answers, 25.0% (95% Wilson interval 4.6% to 69.9%; answers count as independent)",
        "left out: 1 unsure, 1 not marked",
    ]


def test_marks_of_another_audit_are_refused(tmp_path, capsys):
    make_page(tmp_path)
    make_page(tmp_path, "--seed=4", "--count=2", name="other.html")
    marks = save_marks(tmp_path, {"0:1": "right"}, page="other.html")
    line = fails(capsys, *marks[:2], f"--audit={tmp_path / 'audit.html'}")
    assert "marks.json: marks of another audit than" in line
    assert "'9:1' is no answer or mark" in fails(capsys, *save_marks(tmp_path, {"9:1": "right"}))
    assert "'wrong' is no answer or mark" in fails(capsys, *save_marks(tmp_path, {"0:1": "wrong"}))
    assert "no answer is marked right or hallucinated" in fails(capsys, *save_marks(tmp_path, {"0:1": "unsure"}))


def test_another_answer_makes_another_audit(tmp_path):
    ids = []
    for name, texts in (("a", ["A.", "B."]), ("b", ["A.", "C."])):
        (tmp_path / name).mkdir()
        ids.append(json.loads(Page(make_page(tmp_path / name, texts=texts)).scripts[0])["id"])
    assert ids[0] != ids[1]


@pytest.mark.parametrize("text", ["", "[]", "3", '{"marks": 3, "audit": ""}', '{"marks": {"0:1": []}, "audit": ""}'])
def test_files_that_are_no_marks_or_page(tmp_path, capsys, text):
    make_page(tmp_path)
    command = save_marks(tmp_path, {"0:1": "right"})
    (tmp_path / "wrong").write_text(text)
    line = fails(capsys, "audit-result", tmp_path / "wrong", command[2])
    assert "no marks of an audit" in line
    assert "no page of an audit" in fails(capsys, *command[:2], f"--audit={tmp_path / 'wrong'}")
    assert "no such file" in fails(capsys, *command[:2], f"--audit={tmp_path / 'none'}")


# ---- The control run -------------------------------------------------------------------------------------------------


def test_the_control_has_the_texts_and_one_fixed_picture(tmp_path, capsys):
    source = ConversationStore(store_of(tmp_path / "s", ["A.", "B."]), "test")
    assert describe.main(["control", f"--src={tmp_path / 's'}", f"--dst={tmp_path / 'c'}"]) == 0
    made = ConversationStore(tmp_path / "c", "test")
    assert len(made) == 2
    pictures = set()
    for i in range(2):
        before, after = source.conversation(i), made.conversation(i)
        assert (after.messages, after.source, after.meta) == (before.messages, before.source, before.meta)
        assert len(after.pictures) == len(before.pictures)
        pictures |= set(after.pictures)
    (picture,) = pictures
    decoded = Image.open(io.BytesIO(picture))
    assert decoded.size == (448, 448)
    assert decoded.getextrema() == ((128, 128),) * 3
    assert made.manifest["control_of"] == source.data_hash
    assert "2 conversations" in capsys.readouterr().out
    assert "no store of conversations" in fails(capsys, "control", f"--src={tmp_path}", f"--dst={tmp_path / 'd'}")
