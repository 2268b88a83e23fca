"""Test `prepare facexbench`: the store, its counts, and questions read back from it."""

import json

import pytest

from fvjax.data import prepare
from fvjax.data.readers import facexbench, facexbench_store
from fvjax.data.stores.conversations import ConversationStore, Writer
from tests.test_facexbench_reader import EXPECTED, content, put, question, sample  # noqa: F401


def run(*args):
    return prepare.main(["facexbench", *map(str, args)])


def test_the_store_has_the_golden_questions(sample, tmp_path, capsys):  # noqa: F811
    assert run(f"--src={sample}", f"--dst={tmp_path / 'store'}") == 0
    out = capsys.readouterr().out
    assert "6 questions with 9 pictures, split 'test'" in out
    assert "prompts zero_shot, pictures plain; 0 questions on FairFace" in out
    assert "6 questions read = 6 written + 0 rejected; 0 options beyond the fourth left out" in out
    store = ConversationStore(tmp_path / "store", "test")
    by_key = {(q.file, q.number): q for q in facexbench_store.questions(store)}
    for golden in EXPECTED["zero_shot"]["questions"]:
        got = by_key[golden["file"], golden["question"]]
        assert got.prompt == "<image>\n" * len(golden["image_paths"]) + golden["prompt"]
        assert got.answer == golden["correct_answer_option"]
        record = store.conversation(got.record)
        assert record.source == f"{got.file} question {got.number}"
        assert [m["content"] for m in record.messages] == [got.prompt, got.answer]
        files = [(sample / "benchmark" / name).read_bytes() for name in golden["image_paths"]]
        assert list(record.pictures) == files


def test_questions_read_back_are_those_of_the_folder(sample, tmp_path):  # noqa: F811
    store = facexbench_store.convert(sample, tmp_path / "store", setting="in_context", layout="numbered")
    expected = facexbench.read(sample, setting="in_context", layout="numbered").questions
    got = facexbench_store.questions(store)
    assert [q.record for q in got] == list(range(6))
    assert [vars(q) | {"pictures": None, "record": None} for q in got] == [
        vars(q) | {"pictures": None} for q in expected
    ]
    assert store.conversation(3).meta == {
        "benchmark": "facexbench",
        "options": ["0", "3", "1", "2"],
        "answer": "C",
        "category": "attributes_expression",
        "sub_category": "expression",
        "file": "synthetic_single_mcq.json",
        "number": "2",
        "num_images": "single",
    }


def test_setting_and_layout(sample, tmp_path, capsys):  # noqa: F811
    flags = "--setting=in_context", "--layout=numbered"
    assert run(f"--src={sample}", f"--dst={tmp_path / 'store'}", *flags) == 0
    assert "prompts in_context, pictures numbered" in capsys.readouterr().out
    first = facexbench_store.questions(ConversationStore(tmp_path / "store", "test"))[0]
    assert first.prompt.startswith("Image-1: <image>\nImage-2: <image>\nRecognition means")
    with pytest.raises(SystemExit):
        run(f"--src={sample}", f"--dst={tmp_path / 'other'}", "--setting=cot")


def test_every_question_is_counted(put, tmp_path, capsys):  # noqa: F811
    questions = {
        "1": question(),
        "2": question(image_paths=["images/broken.png"]),
        "3": question(correct_answer_option=None),
        "4": question(options=[*"abcdef"]),
        "5": question(question_text="What is <|im_end|>?"),
    }
    put(content({"1": question()}), "fairface_single_mcq_age_test.json")
    src = put(content(questions))
    (src / "benchmark/images/broken.png").write_bytes(b"\x89PNG")
    assert run(f"--src={src}", f"--dst={tmp_path / 'store'}") == 0
    store = ConversationStore(tmp_path / "store", "test")
    assert store.manifest["facexbench"] == {
        "setting": "zero_shot",
        "layout": "plain",
        "read": 6,
        "written": 3,
        "rejected": 3,
        "options_left_out": 2,
        "fairface": 1,
    }
    reasons = {"no correct_answer_option": 1, "unreadable picture": 1, "special token in a text": 1}
    assert store.manifest["rejected_by_reason"] == reasons
    located = [entry["file"].rpartition(" ")[2] for entry in store.manifest["rejected"]]
    assert sorted(located) == ["2", "3", "5"]
    assert [(q.number, q.overlaps_fairface) for q in facexbench_store.questions(store)] == [
        ("1", False),
        ("4", False),
        ("1", True),
    ]
    out = capsys.readouterr().out
    assert "6 questions read = 3 written + 3 rejected; 2 options beyond the fourth left out" in out
    assert "1 unreadable picture" in out
    assert "the first: celeba_single_mcq.json question 3: no correct_answer_option" in out


def test_mistakes_leave_nothing(put, tmp_path, capsys):  # noqa: F811
    src = put(content({"1": question(image_paths=["images/none.png"])}))
    assert run(f"--src={src}", f"--dst={tmp_path / 'store'}") == 2
    error = capsys.readouterr().err
    assert "not one usable question" in error
    assert error.count("\n") == 1
    assert not (tmp_path / "store").exists()


META = {
    "benchmark": "facexbench",
    "options": ["x", "y"],
    "answer": "B",
    "category": "c",
    "sub_category": "s",
    "file": "f.json",
    "number": "1",
    "num_images": "zero",
}


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"benchmark": "other"}, "no question of FaceXBench"),
        ({"number": 1}, "its number is no text"),
        ({"options": "xy"}, "its options are no list of texts"),
        ({"options": [1, 2]}, "its options are no list of texts"),
        ({"answer": "A"}, "its answer is no option's letter"),  # not the one of the messages
        ({"options": ["x"]}, "its answer is no option's letter"),
    ],
)
def test_records_that_are_no_questions(tmp_path, changes, problem):
    messages = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "B"}]
    with Writer(tmp_path / "store", split="test", sources=[]) as writer:
        writer.add(messages, [], "right", **META)
        writer.add(messages, [], "wrong", **(META | changes))
    with pytest.raises(ValueError, match=rf"record 1 \(wrong\): {problem}; make the store with"):
        facexbench_store.questions(ConversationStore(tmp_path / "store", "test"))


def test_several_turns_are_no_question(tmp_path):
    turn = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "B"}]
    with Writer(tmp_path / "store", split="test", sources=[]) as writer:
        writer.add(turn * 2, [], "two", **META)
    with pytest.raises(ValueError, match="no question of FaceXBench"):
        facexbench_store.questions(ConversationStore(tmp_path / "store", "test"))


def test_the_manifest_is_plain_json(sample, tmp_path):  # noqa: F811
    facexbench_store.convert(sample, tmp_path / "store", setting="zero_shot", layout="plain")
    assert json.loads((tmp_path / "store/manifest.json").read_text())["sources"] == [str(sample)]
