"""Test the evaluation of Face-LLaVA's tasks: parsers on tables of answers, figures against the golden ones, files."""

import json
from pathlib import Path

import numpy as np
import pytest

from fvjax.data import face_instruct
from fvjax.data.face_labels import ACTION_UNITS, ATTRIBUTES, DISFA, EXPRESSIONS, TASKS
from fvjax.evals import face_answers, face_lexicon, face_tasks
from fvjax.evals.face_tasks import Answer, parse, read_answers, score, write_answers
from fvjax.evals.negation import clauses

GOLDEN = json.loads(Path("tests/golden/facellava/face_metrics.json").read_text())


# ---- parsers


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The person looks happy.", "happy"),
        ("HAPPINESS", "happy"),
        ("The notable nose shows happiness.", "happy"),  # "no" is in neither word
        ("The person is not happy but sad.", "sad"),
        ("The person looks sad rather than happy.", "sad"),
        ("Unhappy.", "sad"),
        ("There is no sign of anger, sadness or fear; the face is neutral.", "neutral"),
        ("He isn't angry, he is disgusted.", "disgust"),
        ("The man appears angry, not surprised.", "angry"),
        ("Fear is not present; the person is calm.", "neutral"),
        ("Her expression is not only sad but deeply sorrowful. She smiles.", "sad"),
        ("The face shows no particular emotion.", "neutral"),
        ("It could be anger or disgust. Mostly disgust.", "disgust"),
        ("A mix of fear and surprise.", "fear"),  # the first of equally frequent ones
        ("The mouth is wide. He is surprised, though he was scared before and was startled.", "surprise"),
        ("The eyes show curiosity, discomfort and displeasure.", None),
        ("A face with a nose.", None),
        ("A nomad.", None),  # who is not mad
        ("", None),
        ("He is not sad.", None),
    ],
)
def test_expressions(text, expected):
    assert face_answers.expression(text) == expected


def test_no_word_stands_for_two_expressions():
    import re

    words = (
        "happy joy smiling sad unhappy sorrow neutral calm angry rage mad surprised shocked disgusted afraid fearful"
    )
    for word in words.split():
        assert sum(bool(re.fullmatch(p, word)) for p in face_lexicon.EXPRESSIONS.values()) == 1, word
    assert set(face_lexicon.EXPRESSIONS) == set(EXPRESSIONS)
    assert set(face_lexicon.ACTION_UNITS) == set(ACTION_UNITS)
    assert list(face_lexicon.ATTRIBUTES) == list(ATTRIBUTES)


def test_classes_that_do_not_count_are_not_read():
    assert face_answers.expression("surprised or angry", ("angry", "sad")) == "angry"
    with pytest.raises(ValueError, match="expression 'contempt': no words for it"):
        face_answers.expression("contempt", ("contempt",))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Active action units: AU1 (inner brow raiser), AU2 (outer brow raiser).", {1, 2}),
        ("AU1, 2 and 4 are active, AU12 is not.", {1, 2, 4}),
        ("AU 06 and AU12; AU25 is absent", {6, 12}),
        ("Action units 1, 2, 25", {1, 2, 25}),
        ("AU12+25", {12, 25}),
        ("AU4 is not active but AU9 is.", {9}),
        ("No AU4, AU6 or AU9. AU1 is active.", {1}),
        ("The lip corners are pulled up and the cheeks are raised.", {6, 12}),
        ("The brows are raised.", {1, 2}),
        ("The corners of the lips are pulled down, with lips parted and no jaw drop.", {15, 25}),
        ("No action unit is active: the face is at rest.", set()),
        ("AU3 and AU99", set()),  # there are none of these numbers
        ("The person is 12 years old and has 2 eyes.", None),
        ("A notable nose.", None),
    ],
)
def test_action_units(text, expected):
    assert face_answers.action_units(text) == expected


def test_units_that_do_not_count_are_left_out():
    assert face_answers.action_units("AU1, AU10, AU25", DISFA) == {1, 25}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The face has a big nose, eyeglasses, a smile.", {"Big_Nose", "Eyeglasses", "Smiling"}),
        ("He has no beard, mustache or glasses but bushy eyebrows.", {"No_Beard", "Bushy_Eyebrows"}),
        ("A young woman without eyeglasses.", {"Young"}),  # the man in "woman" is no man
        ("A clean-shaven man.", {"No_Beard", "Male"}),
        ("He has a beard.", set()),
        ("She has long brown hair and is not smiling.", {"Brown_Hair"}),
        ("The capture is blurry.", {"Blurry"}),  # no cap
        ("The face has no attribute that stands out.", set()),
        ("A picture.", None),
    ],
)
def test_attributes(text, expected):
    assert face_answers.attributes(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The person looks 34 years old, judging by the dark hair.", 34),
        ("27", 27),
        ("thirty-five years old", 35),
        ("Between 30 and 40 years old.", 35),
        ("aged 30-40", 35),
        ("30–40 years", 35),
        ("The age range is 20 to 29.", 24.5),
        ("She is in her thirties.", 35),
        ("in the early thirties", 32),
        ("late 20s to early 30s", 30),
        ("He is in his mid-50s.", 55),
        ("not 30 but 40 years old", 40),
        ("A 25-year-old man with 2 earrings.", 25),
        ("There are 2 people. The age is about 60.", 60),
        ("age: 45.5", 45.5),
        ("six years old", 6),
        ("117 years old", None),
        ("about 200 years", None),
        ("No one can tell.", None),
        ("I see 3 wrinkles.", None),
    ],
)
def test_ages(text, expected):
    assert face_answers.age(text) == expected


@pytest.mark.parametrize(
    ("text", "question", "expected"),
    [
        ("The face is fake: a seam runs around it.", "", "fake"),
        ("The face is real: nothing is pasted in.", "", "real"),
        ("There is no evidence of manipulation.", "", "real"),
        ("No signs of tampering, forgery or editing: it is authentic.", "", "real"),
        ("Not authentic.", "", "fake"),
        ("The video isn't genuine; it was manipulated.", "", "fake"),
        ("Yes", "Is there any evidence of manipulation or fakery in the video?", "fake"),
        ("No.", "Is there any evidence of manipulation or fakery in the video?", "real"),
        ("No.", "Is the video real?", "fake"),
        ("Yes", "Is the face real or fake?", None),
        ("Yes", "", None),
        ("Notable, really.", "", None),
    ],
)
def test_deepfakes(text, question, expected):
    assert face_answers.deepfake(text, question) == expected


def test_negations_end_with_their_clause():
    parts = clauses("She is not sad, but happy. No anger, fear or disgust. A nose, notable.")
    assert [(part.text.strip(), part.denied_from is not None) for part in parts] == [
        ("she is not sad", True),
        ("happy.", False),
        ("no anger or fear or disgust.", True),
        ("a nose", False),
        ("notable.", False),
    ]


def test_templated_answers_are_read_as_their_labels():
    for identity in range(60):
        face = face_instruct.face(identity, 0, 0)
        for task in TASKS[:4]:
            label = face.label(task)
            row = Answer("a", task, label, face_instruct.answer(task, label))
            assert parse(row) == (set(label) if isinstance(label, list) else label), row.answer
    for label in ("real", "fake"):
        assert parse(Answer("a", "deepfake", label, face_instruct.answer("deepfake", label))) == label


@pytest.mark.parametrize(
    "text", ["a, " * 7000, "no " * 7000, "AU1, " * 4000, "1" * 20000, "is not a " * 3000, " " * 20000]
)
def test_long_texts_take_no_long_time(text):
    for parser in face_answers.PARSERS.values():
        parser(text)


# ---- figures


def close(got, want):
    assert (got is None) == (want is None)
    if want is not None:
        assert got == pytest.approx(want, abs=1e-12)


@pytest.mark.parametrize("case", GOLDEN["multiclass"], ids=lambda case: case["note"])
def test_classes_are_scored_as_scikit_learn_does(case):
    got = face_tasks.multiclass(case["true"], case["predicted"], case["classes"])
    close(got["uar"], case["uar_present_classes"])
    close(got["war"], case["war"])
    close(got["macro_f1"], case["macro_f1_all_classes_zero0"])
    for ours, theirs in (
        ("recall_per_class", "recall_per_class"),
        ("precision_per_class", "precision_per_class_zero0"),
        ("f1_per_class", "f1_per_class_zero0"),
        ("confusion_rows_true", "confusion_rows_true"),
        ("support", "support"),
    ):
        for one, other in zip(got[ours], case[theirs], strict=True):
            close(one, other)


def test_action_units_are_averaged_over_units():
    case = GOLDEN["action_units"]
    got = face_tasks.unit_f1(np.array(case["true"]), np.array(case["predicted"]))
    close(got["mean_f1"], case["average_f1_zero0"])
    close(got["f1_per_unit"], case["f1_zero0"])
    rows, parsed = [], []
    for number, (true, predicted) in enumerate(zip(case["true"], case["predicted"], strict=True)):
        rows.append(Answer(str(number), "action_units", [u for u, on in zip(case["units"], true) if on], ""))
        parsed.append({u for u, on in zip(case["units"], predicted) if on})
    entry = score("action_units", rows, parsed, names=case["units"])
    close(entry["mean_f1"]["value"], case["average_f1_zero0"])
    assert entry["f1"]["AU26"] == {"value": 0.0, "ci95": [0.0, 0.0]}
    low, high = entry["mean_f1"]["ci95"]
    assert low < entry["mean_f1"]["value"] < high
    assert high - low < 0.3


@pytest.mark.parametrize("case", GOLDEN["age"])
def test_ages_are_scored_by_their_mean_error(case):
    rows = [Answer(str(n), "age", label, "") for n, label in enumerate(case["true"])]
    close(score("age", rows, case["predicted"])["mae"]["value"], case["mae"])


def test_unparsed_answers_are_wrong_and_counted():
    rows = [Answer(str(n), "expression", label, "") for n, label in enumerate(["happy", "happy", "sad", "sad"])]
    entry = score("expression", rows, ["happy", None, "sad", "sad"])
    assert entry["unparsed"]["n"] == 1
    assert entry["unparsed"]["value"] == 0.25
    assert (entry["uar"]["value"], entry["war"]["value"]) == (0.75, 0.75)
    assert entry["recall"]["happy"] == 0.5
    assert entry["recall"]["fear"] is None
    assert entry["confusion"]["rows_true"][0] == [1, 0, 0, 0, 0, 0, 0, 1]
    assert entry["constant"] == {"uar": 0.5, "war": 0.5}
    ages = [Answer(str(n), "age", label, "") for n, label in enumerate([10, 20, 60])]
    entry = score("age", ages, [12, None, 60])
    assert (entry["mae"]["value"], entry["mae_unparsed_as_median"]["value"]) == (1, pytest.approx(2 / 3))
    assert score("age", ages, [None] * 3)["mae"] is None
    assert entry["constant"]["mae"] == pytest.approx(50 / 3)


def test_attributes_and_deepfakes():
    rows = [Answer(str(n), "attributes", label, "") for n, label in enumerate([["Smiling"], [], ["Smiling", "Bald"]])]
    entry = score("attributes", rows, [{"Smiling"}, {"Bald"}, None])
    assert entry["accuracy"] == {"Bald": pytest.approx(1 / 3), "Smiling": pytest.approx(2 / 3)}
    assert entry["mean_accuracy"]["value"] == pytest.approx(0.5)
    assert entry["constant"]["mean_accuracy"] == pytest.approx(2 / 3)
    fakes = [Answer(str(n), "deepfake", "fake" if n else "real", "", scores={"real": 0.9, "fake": n}) for n in range(5)]
    entry = score("deepfake", fakes, ["fake"] * 5)
    assert (entry["accuracy"]["value"], entry["constant"]["war"]) == (0.8, 0.8)
    assert entry["by_scores"]["accuracy"]["value"] == 1


def test_intervals_resample_groups():
    rows = [Answer(str(n), "deepfake", "real", "", group=str(n // 10)) for n in range(100)]
    parsed = ["real" if n // 10 < 7 else "fake" for n in range(100)]
    grouped = score("deepfake", rows, parsed)
    alone = score("deepfake", [Answer(row.id, row.task, row.label, "") for row in rows], parsed)
    width = [one["accuracy"]["ci95"][1] - one["accuracy"]["ci95"][0] for one in (grouped, alone)]
    assert width[0] > 2 * width[1]
    assert "over 10 groups" in grouped["intervals"]
    assert "over 100 answers" in alone["intervals"]


# ---- files


def test_answers_come_back(tmp_path):
    rows = [Answer("a", "age", 30, "30 é"), Answer("b", "deepfake", "fake", "Yes", "Fake?", "p1", {"fake": 1.0})]
    write_answers(tmp_path / "answers.jsonl", rows)
    assert read_answers(tmp_path / "answers.jsonl") == rows


GOOD = {"id": "a", "task": "age", "label": 30, "answer": "30"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"answer": None}, "'answer' is no text: None"),
        ({"task": "gaze"}, "task 'gaze': choose of expression"),
        ({"label": 200}, "label 200: expected years, 0 to 116"),
        ({"label": True}, "label True: expected years"),
        ({"task": "expression", "label": "glee"}, "label 'glee': expected of happy"),
        ({"task": "action_units", "label": [3]}, "label 3: expected of 1, 2"),
        ({"task": "action_units", "label": 1}, "label 1: expected a list"),
        ({"extra": 1}, "unknown key 'extra'"),
        ({"scores": {"a": 1}}, "'scores': expected a number for each class, of an expression"),
        ({"task": "deepfake", "label": "real", "scores": {"real": float("nan")}}, "'scores': 'real' is nan"),
    ],
)
def test_lines_that_are_no_answers(tmp_path, change, error):
    file = tmp_path / "answers.jsonl"
    file.write_text(json.dumps(GOOD | {"id": "b"}) + "\n" + json.dumps(GOOD | change) + "\n")
    with pytest.raises(ValueError, match=f"answers.jsonl:2: {error}"):
        read_answers(file)


def test_files_that_are_no_answers(tmp_path):
    file = tmp_path / "answers.jsonl"
    with pytest.raises(ValueError, match="no such file"):
        read_answers(file)
    for text, error in (
        ("", "no answers"),
        ("[1]\n", "not an object"),
        ('{"id": "a"}\n', "no 'task'"),
        ("x\n", ":1: "),
    ):
        file.write_text(text)
        with pytest.raises(ValueError, match=error):
            read_answers(file)
    file.write_text((json.dumps(GOOD) + "\n") * 2)
    with pytest.raises(ValueError, match=":2: id 'a' a second time"):
        read_answers(file)
    with pytest.raises(ValueError, match="1 answers and 0 readings"):
        score("age", [Answer("a", "age", 30, "")], [])
