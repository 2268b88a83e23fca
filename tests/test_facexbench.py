"""Test FaceXBench's figures by hand and against the golden results, the kept answers, and every table's cells."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from fvjax.data.readers.facexbench import Question
from fvjax.evals import facexbench, facexbench_answers, facexbench_tables
from fvjax.evals.facexbench_answers import Prediction, evaluate, pending
from fvjax.evals.intervals import wilson

EXPECTED = json.loads(Path("tests/golden/facexbench_sample/expected.json").read_text())


def make(file, number, answer, options=4, category="bias_fairness", sub_category="age", num_images="single"):
    texts = tuple(f"option {i}" for i in range(options))
    overlaps = file.startswith("fairface_")
    return Question(file, str(number), category, sub_category, num_images, (), f"Q{number}", texts, answer, overlaps)


def predict(output, letter, cut=False):
    """Answer by both ways; the output is a letter or a text without any."""
    probabilities = tuple(0.7 if name == letter else 0.1 for name in "ABCD")
    return Prediction(output, cut, output if output in "ABCD" else None, probabilities, letter)


QUESTIONS = [
    make("fairface_x.json", 1, "A"),
    make("fairface_x.json", 2, "B"),
    make("utk.json", 1, "B", sub_category="gender"),
    make("utk.json", 2, "B", sub_category="gender"),
    make("lfw.json", 1, "D", category="face_recognition", sub_category="hr_fr", num_images="multiple"),
    make("lfw.json", 2, "C", 2 + 1, category="face_recognition", sub_category="hr_fr", num_images="multiple"),
]
PREDICTIONS = [
    predict("A", "A"),
    predict("?", "B", cut=True),
    predict("C", "B"),
    predict("B", "B"),
    predict("D", "A"),
    predict("?", "C"),
]


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_wilson_by_hand():
    """The roots of (p - x)² = z² x (1 - x) / n, and two published values (Newcombe 1998: 81 of 263, 0 of 20)."""
    for k, n in ((1, 4), (3000, 4998), (7, 8)):
        for edge in wilson(k, n):
            assert (k / n - edge) ** 2 == pytest.approx(1.959963985**2 * edge * (1 - edge) / n, rel=1e-6)
    assert wilson(81, 263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert wilson(0, 20) == pytest.approx([0, 0.1611], abs=5e-5)
    assert wilson(20, 20) == pytest.approx([0.8389, 1], abs=5e-5)
    low, high = wilson(2806, 4998)
    assert (high - low) / 2 == pytest.approx(0.014, abs=5e-4)  # half-width in the specification


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_no_proportion(k, n):
    with pytest.raises(ValueError, match=f"{k} of {n} is no proportion"):
        wilson(k, n)


# ---- figures ---------------------------------------------------------------------------------------------------------


def test_generation_by_hand():
    entry = facexbench.entry(QUESTIONS, PREDICTIONS, data_hash="x")
    assert entry["data_hash"] == "x"
    assert entry["n_questions"] == 6
    generation = entry["generation"]
    counts = {"correct": 3, "n_questions": 6, "unparsed": 2, "cut": 1}
    assert generation["overall"] == {"accuracy": 0.5, "ci95": wilson(3, 6), **counts}
    assert generation["category"] == {
        "bias_fairness": {**generation["category"]["bias_fairness"], "correct": 2, "n_questions": 4, "unparsed": 1},
        "face_recognition": {**generation["category"]["face_recognition"], "correct": 1, "n_questions": 2, "cut": 0},
    }
    assert generation["sub_category"]["gender"]["accuracy"] == 0.5
    assert generation["num_images"]["multiple"]["unparsed"] == 1
    assert {file: figure["correct"] for file, figure in generation["file"].items()} == {
        "fairface_x.json": 1,
        "lfw.json": 1,
        "utk.json": 1,
    }


def test_letters_by_hand():
    letters = facexbench.entry(QUESTIONS, PREDICTIONS)["letters"]
    assert letters["overall"] == {"accuracy": 5 / 6, "ci95": wilson(5, 6), "correct": 5, "n_questions": 6}
    assert letters["file"]["lfw.json"]["correct"] == 1


def test_agreement_by_hand():
    agreement = facexbench.entry(QUESTIONS, PREDICTIONS)["agreement"]
    assert agreement["overall"] == {
        "share": 2 / 6,  # an answer without a letter agrees with none
        "ci95": wilson(2, 6),
        "agree": 2,
        "both_correct": 2,
        "only_generation_correct": 1,
        "only_letters_correct": 3,
        "neither_correct": 0,
        "n_questions": 6,
    }
    assert agreement["file"]["utk.json"]["share"] == 0.5


def test_majority_and_random_by_hand():
    entry = facexbench.entry(QUESTIONS, PREDICTIONS)
    majority = entry["majority"]
    assert majority["overall"] == {"letter": "B", "accuracy": 0.5, "correct": 3, "n_questions": 6}
    assert majority["file"]["fairface_x.json"] == {"letter": "A", "accuracy": 0.5, "correct": 1, "n_questions": 2}
    assert majority["file"]["lfw.json"]["letter"] == "C"  # the first of equally frequent ones
    assert majority["sub_category"]["gender"]["accuracy"] == 1
    assert majority["overall_by_file"] == {"accuracy": 4 / 6, "correct": 4, "n_questions": 6}
    assert majority["overall_by_sub_category"] == {"accuracy": 4 / 6, "correct": 4, "n_questions": 6}
    assert majority["category"]["bias_fairness"]["correct"] == 3
    assert entry["random"]["overall"] == {"accuracy": pytest.approx((5 / 4 + 1 / 3) / 6), "n_questions": 6}
    assert entry["random"]["file"]["lfw.json"]["accuracy"] == pytest.approx(7 / 24)


def test_without_fairface():
    entry = facexbench.entry(QUESTIONS, PREDICTIONS)
    rest = entry["without_fairface"]
    assert rest["n_questions"] == 4
    assert rest["generation"]["overall"]["correct"] == 2
    assert "fairface_x.json" not in rest["generation"]["file"]
    assert rest["majority"]["overall"]["correct"] == 2
    assert rest == {key: facexbench.entry(QUESTIONS[2:], PREDICTIONS[2:])[key] for key in rest}
    assert facexbench.entry(QUESTIONS[2:], PREDICTIONS[2:])["without_fairface"] is None
    assert facexbench.entry(QUESTIONS[:2], PREDICTIONS[:2])["without_fairface"] is None
    assert facexbench.entry(QUESTIONS[1:3], PREDICTIONS[1:3])["without_fairface"]["n_questions"] == 1


def test_a_single_question_has_figures():
    entry = facexbench.entry(QUESTIONS[2:3], PREDICTIONS[2:3])
    assert entry["n_questions"] == 1
    assert (entry["generation"]["overall"]["correct"], entry["letters"]["overall"]["correct"]) == (0, 1)


def test_order_does_not_matter():
    order = [3, 5, 0, 2, 4, 1]
    shuffled = facexbench.entry([QUESTIONS[i] for i in order], [PREDICTIONS[i] for i in order])
    assert shuffled == facexbench.entry(QUESTIONS, PREDICTIONS)


def test_one_way_alone():
    only_text = [replace(p, probabilities=None, letter=None) for p in PREDICTIONS]
    entry = facexbench.entry(QUESTIONS, only_text)
    assert entry["letters"] is None
    assert entry["agreement"] is None
    assert entry["generation"] == facexbench.entry(QUESTIONS, PREDICTIONS)["generation"]
    only_letters = [replace(p, output=None, extracted=None) for p in PREDICTIONS]
    entry = facexbench.entry(QUESTIONS, only_letters)
    assert entry["generation"] is None
    assert entry["letters"] == facexbench.entry(QUESTIONS, PREDICTIONS)["letters"]


def test_an_entry_is_plain_json():
    entry = facexbench.entry(QUESTIONS, PREDICTIONS)
    assert json.loads(json.dumps(entry)) == entry


def test_what_has_no_figures():
    with pytest.raises(ValueError, match="5 answers to 6 questions"):
        facexbench.entry(QUESTIONS, PREDICTIONS[1:])
    with pytest.raises(ValueError, match="0 answers to 0 questions"):
        facexbench.entry([], [])
    with pytest.raises(ValueError, match="some questions have no answers"):
        facexbench.entry(QUESTIONS, [Prediction(), *PREDICTIONS[1:]])
    with pytest.raises(ValueError, match="some questions have no answers"):
        facexbench.entry(QUESTIONS, [Prediction()] * 6)
    with pytest.raises(ValueError, match=r"fairface_x.json question 1: the answer '' is the letter of none"):
        facexbench.entry([replace(QUESTIONS[0], answer=""), *QUESTIONS[1:]], PREDICTIONS)
    other = replace(QUESTIONS[5], sub_category="age")
    with pytest.raises(ValueError, match="sub-category 'age' is in 'face_recognition' here and in 'bias_fairness'"):
        facexbench.entry([*QUESTIONS[:5], other], PREDICTIONS)


# ---- golden ----------------------------------------------------------------------------------------------------------


def golden_benchmark(setting):
    """Return the golden questions with what their files say, and the made-up texts."""
    files = {
        path.name: json.loads(path.read_text()) for path in Path("tests/golden/facexbench_sample").rglob("syn*.json")
    }
    questions, texts = [], []
    for case in EXPECTED[setting]["questions"]:
        file = files[case["file"]]
        options = tuple(str(option) for option in file["questions"][case["question"]]["options"])
        labels = file["category"], file["sub-category"], file["num_images"]
        answer = case["correct_answer_option"]
        questions.append(Question(case["file"], case["question"], *labels, (), case["prompt"], options, answer, False))
        texts.append(case["prediction"])
    return questions, texts


@pytest.mark.parametrize("setting", ["zero_shot", "in_context"])
def test_golden_results(tmp_path, setting):
    questions, texts = golden_benchmark(setting)
    by_prompt = {question.prompt: text for question, text in zip(questions, texts)}
    generate = lambda asked: [(by_prompt[question.prompt], False) for question in asked]  # noqa: E731
    predictions = evaluate(questions, generate, None, tmp_path, "recorder")
    expected = [case["prediction_answer_option"] for case in EXPECTED[setting]["questions"]]
    assert [prediction.extracted for prediction in predictions] == expected
    text = facexbench_tables.results_text(facexbench.entry(questions, predictions), "recorder")
    assert sorted(line for line in text.splitlines() if line) == EXPECTED[setting]["results_txt_sorted_lines"]


# ---- answers that are kept -------------------------------------------------------------------------------------------


class Model:
    """Answers B, and notes which questions it was asked; it dies at the file ``until``."""

    def __init__(self, until=None):
        self.asked, self.until = [], until

    def generate(self, questions):
        if questions[0].file == self.until:
            raise KeyboardInterrupt
        self.asked += [("text", question.file, question.number) for question in questions]
        return [(f"Answer: {question.answer}\u2028", question.number == "2") for question in questions]

    def letters(self, questions):
        self.asked += [("letters", question.file, question.number) for question in questions]
        return [np.linspace(0.1, 0.4, len(question.options)) for question in questions]


def test_evaluation_resumes_by_file_after_a_kill(tmp_path):
    folder = tmp_path / "answers"
    whole, killed, resumed = Model(), Model(until="utk.json"), Model()
    expected = evaluate(QUESTIONS, whole.generate, whole.letters, tmp_path / "other", "f")
    with pytest.raises(KeyboardInterrupt):
        evaluate(QUESTIONS, killed.generate, killed.letters, folder, "f")
    assert pending(QUESTIONS, folder, "f") == QUESTIONS[2:]
    assert evaluate(QUESTIONS, resumed.generate, resumed.letters, folder, "f") == expected
    assert {file for _, file, _ in killed.asked} == {"fairface_x.json"}
    assert {file for _, file, _ in resumed.asked} == {"utk.json", "lfw.json"}
    assert len(killed.asked) + len(resumed.asked) == len(whole.asked) == 12
    assert pending(QUESTIONS, folder, "f") == []
    again = Model()
    assert evaluate(QUESTIONS, again.generate, again.letters, folder, "f") == expected
    assert again.asked == []
    assert sorted(path.name for path in folder.iterdir()) == ["fairface_x.jsonl", "lfw.jsonl", "utk.jsonl"]


def test_what_the_files_of_answers_say(tmp_path):
    model = Model()
    predictions = evaluate(QUESTIONS, model.generate, model.letters, tmp_path, "f")
    header, *lines = map(json.loads, (tmp_path / "lfw.jsonl").read_text().splitlines())
    assert header == {"file": "lfw.json", "fingerprint": "f"}
    assert lines[1] == {
        "question": "2",
        "prompt_hash": facexbench_answers.prompt_hash(QUESTIONS[5]),
        "output": "Answer: C\u2028",
        "cut": True,
        "extracted": "C",
        "probabilities": [0.1, 0.25, 0.4],
        "letter": "C",
    }
    assert predictions[5] == Prediction("Answer: C\u2028", True, "C", (0.1, 0.25, 0.4), "C")
    assert [prediction.letter for prediction in predictions] == [*"DDDDD", "C"]


def test_kept_answers_are_of_the_same_prompt_in_every_version():
    """Another hash would refuse the answers that an earlier version kept, and ask every question again."""
    assert facexbench_answers.prompt_hash(QUESTIONS[0]) == "c769165db598cabf"
    hashes = {
        facexbench_answers.prompt_hash(replace(QUESTIONS[0], **change))
        for change in ({}, {"prompt": "Q"}, {"options": ("a", "b")}, {"answer": "B"})
    }
    assert len(hashes) == 4
    assert Prediction.__hash__ is not None  # Python gives a hash to frozen dataclasses only


def test_a_way_that_is_added_or_left_out(tmp_path):
    first, second = Model(), Model()
    texts = evaluate(QUESTIONS, first.generate, None, tmp_path, "f")
    assert {prediction.letter for prediction in texts} == {None}
    assert pending(QUESTIONS, tmp_path, "f", letters=False) == []
    assert pending(QUESTIONS, tmp_path, "f") == QUESTIONS
    both = evaluate(QUESTIONS, second.generate, second.letters, tmp_path, "f")
    assert {way for way, _, _ in second.asked} == {"letters"}
    assert [replace(p, probabilities=None, letter=None) for p in both] == texts
    assert evaluate(QUESTIONS, second.generate, None, tmp_path, "f") == texts
    with pytest.raises(ValueError, match="neither generate nor letters"):
        evaluate(QUESTIONS, None, None, tmp_path, "f")


def test_some_of_the_questions_first(tmp_path):
    model = Model()
    evaluate(QUESTIONS[::2], model.generate, None, tmp_path, "f")
    assert pending(QUESTIONS, tmp_path, "f", letters=False) == QUESTIONS[1::2]
    evaluate(QUESTIONS[1::2], model.generate, None, tmp_path, "f")
    assert len(model.asked) == len(set(model.asked)) == 6
    assert pending(QUESTIONS, tmp_path, "f", letters=False) == []


def test_another_fingerprint_is_refused_and_nothing_is_asked(tmp_path):
    model = Model()
    evaluate(QUESTIONS, model.generate, None, tmp_path, "model one")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    other = Model()
    message = (
        r"fairface_x.jsonl: these answers are another model's .* \(model one, now model two\); choose another folder"
    )
    for call in (
        lambda: evaluate(QUESTIONS, other.generate, None, tmp_path, "model two"),
        lambda: pending(QUESTIONS, tmp_path, "model two"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert other.asked == []
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("change", [{"prompt": "else"}, {"options": ("a", "b", "c", "d")}, {"answer": "D"}])
def test_another_prompt_is_refused(tmp_path, change):
    model = Model()
    evaluate(QUESTIONS, model.generate, None, tmp_path, "f")
    changed = [*QUESTIONS[:3], replace(QUESTIONS[3], **change), *QUESTIONS[4:]]
    with pytest.raises(ValueError, match=r"utk.jsonl: question 2 was asked with another prompt; delete"):
        evaluate(changed, model.generate, None, tmp_path, "f")


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"fingerprint"', '"finger"'),
        lambda text: text.replace('"output"', '"out"').replace('"extracted"', '"output"').replace('"B"', "7"),
        lambda text: text.replace('"probabilities": [', '"probabilities": ["x", '),
        lambda text: text.replace('"probabilities": [', '"probabilities": [0.5, '),
        lambda text: f"{text}[]\n",
    ],
)
def test_damaged_answers_are_refused_by_name(tmp_path, damage):
    model = Model()
    evaluate(QUESTIONS, model.generate, model.letters, tmp_path, "f")
    file = tmp_path / "utk.jsonl"
    file.write_text(damage(file.read_text()))
    with pytest.raises(ValueError, match=r"utk.jsonl: .*; delete .*utk.jsonl to ask its questions again"):
        evaluate(QUESTIONS, model.generate, model.letters, tmp_path, "f")


def test_letters_are_read_anew_from_kept_texts(tmp_path):
    model = Model()
    evaluate(QUESTIONS, model.generate, model.letters, tmp_path, "f")
    for file in tmp_path.iterdir():
        file.write_text(
            file.read_text().replace('"extracted": "', '"extracted": "x').replace('"letter": "', '"letter": "x')
        )
    predictions = evaluate(QUESTIONS, model.generate, model.letters, tmp_path, "f")
    assert [prediction.extracted for prediction in predictions] == [question.answer for question in QUESTIONS]
    assert {prediction.letter for prediction in predictions} == {"C", "D"}


def test_processes_that_do_not_write(tmp_path):
    model = Model()
    evaluate(QUESTIONS, model.generate, None, tmp_path / "answers", "f", write=False)
    assert list(tmp_path.iterdir()) == []


def test_progress_is_tracked_by_file(tmp_path):
    seen = []
    model = Model()
    evaluate(QUESTIONS, model.generate, None, tmp_path, "f", lambda files: (seen.append(f) or f for f in files))
    assert seen == ["fairface_x.json", "utk.json", "lfw.json"]


@pytest.mark.parametrize(
    ("letters", "problem"),
    [
        (lambda asked: [], "probabilities of 0 questions; expected 2"),
        (lambda asked: [np.ones(5)] * 2, r"question 1: probabilities .*; expected 4 numbers"),
        (lambda asked: [np.full(4, np.nan)] * 2, "expected 4 numbers"),
        (lambda asked: [np.array([-1, 0, 1, 1])] * 2, "none below 0"),
    ],
)
def test_unusable_probabilities(tmp_path, letters, problem):
    with pytest.raises(ValueError, match=problem):
        evaluate(QUESTIONS[:2], None, letters, tmp_path, "f")
    assert list(tmp_path.iterdir()) == []


def test_unusable_texts_and_names(tmp_path):
    with pytest.raises(ValueError, match="1 texts for 2 questions"):
        evaluate(QUESTIONS[:2], lambda asked: [("A", False)], None, tmp_path, "f")
    with pytest.raises(ValueError, match="several questions have the same number"):
        pending([QUESTIONS[0]] * 2, tmp_path, "f")
    with pytest.raises(ValueError, match="differ by the suffix"):
        pending([make("a.json", 1, "A"), make("a", 1, "A")], tmp_path, "f")
    for name in ("../a.json", "/a.json", ""):
        with pytest.raises(ValueError, match="no plain file name"):
            pending([make(name, 1, "A")], tmp_path, "f")


# ---- tables ----------------------------------------------------------------------------------------------------------


def printed(table, width=80):
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(table)
    lines = capture.get().splitlines()
    assert max(map(len, lines)) <= width
    assert "…" not in capture.get()
    return lines


def row(lines, title):
    """Return the words of the line that begins with a title, without it, and those of the next line."""
    i = next(i for i, line in enumerate(lines) if line.strip().startswith(title))
    return lines[i].strip().removeprefix(title).split(), lines[i + 1].split()


def in_order(lines, titles):
    """Return the titles that lines begin with."""
    return [title for line in lines for title in titles if f"{line.strip()}  ".startswith(f"{title}  ")]


def test_table_cells():
    lines = printed(facexbench_tables.table(facexbench.entry(QUESTIONS, PREDICTIONS), "FaceLLM-1B"))
    assert "FaceXBench (%): FaceLLM-1B" in lines[0]
    assert lines[2].split() == ["questions", "generated", "letters", "majority", "random"]
    overall = ["6", "50.00", "83.33", "50.00", "B", "26.39"], ["18.8–81.2", "43.6–97.0"]
    assert row(lines, "Overall") == overall
    assert row(lines, "without FairFace")[0] == ["4", "50.00", "75.00", "50.00", "B", "27.08"]
    assert row(lines, "Bias & Fairness")[0] == ["4", "50.00", "100.00", "75.00", "B", "25.00"]
    assert row(lines, "Bias & Fairness")[1] == ["15.0–85.0", "51.0–100"]
    assert row(lines, "Recognition")[0] == ["2", "50.00", "50.00", "50.00", "C", "29.17"]
    assert sum("without FairFace" in line for line in lines) == 2  # not of Recognition, which has no FairFace
    caption = " ".join(line.strip() for line in lines[-7:])
    assert "Of 6 generated answers, 2 had no letter and 1 were cut." in caption
    assert "The two ways agree on 2 of 6 questions (33.3%)." in caption


TABLE = """\
                           FaceXBench (%): x

                     questions  generated    letters  majority  random
 ─────────────────────────────────────────────────────────────────────
 Overall                     6      50.00      83.33   50.00 B   26.39
                                18.8–81.2  43.6–97.0
   without FairFace          4      50.00      75.00   50.00 B   27.08
                                15.0–85.0  30.1–95.4
 Bias & Fairness             4      50.00     100.00   75.00 B   25.00
                                15.0–85.0   51.0–100
   without FairFace          2      50.00     100.00  100.00 B   25.00
                                 9.5–90.5   34.2–100
 Recognition                 2      50.00      50.00   50.00 C   29.17
                                 9.5–90.5   9.5–90.5
"""
COMPARISON = """\
               FaceXBench (%)
                  Overall      Bias  Recogn.
────────────────────────────────────────────
one                 50.00     50.00    50.00
generated       18.8–81.2 15.0–85.0 9.5–90.5
                      n=6       n=4      n=2
 without            50.00     50.00    50.00
 FairFace       15.0–85.0  9.5–90.5 9.5–90.5
                      n=4       n=2      n=2
"""


def test_tables_line_by_line():
    entry = facexbench.entry(QUESTIONS, PREDICTIONS)
    made = [
        facexbench_tables.table(entry, "x"),
        facexbench_tables.comparison({"one": entry}),
        facexbench_tables.details(entry, "x"),
    ]
    for table, text in zip(made, (TABLE, COMPARISON)):
        expected = text.splitlines()
        assert [line.rstrip() for line in printed(table)[: len(expected)]] == expected
    assert [table.columns[0].min_width for table in made] == [16, 9, 20], "rows have names in narrow terminals too"
    for table in made:
        assert all(column.no_wrap for column in table.columns[1:])


def test_table_of_letters_alone():
    only_letters = [replace(p, output=None, extracted=None) for p in PREDICTIONS]
    lines = printed(facexbench_tables.table(facexbench.entry(QUESTIONS, only_letters), "x"))
    assert lines[2].split() == ["questions", "letters", "majority", "random"]
    assert row(lines, "Overall") == (["6", "83.33", "50.00", "B", "26.39"], ["43.6–97.0"])
    assert "generated answers" not in " ".join(lines)


def test_details_cells():
    lines = printed(facexbench_tables.details(facexbench.entry(QUESTIONS, PREDICTIONS), "x"))
    assert row(lines, "age")[0] == ["2", "50.00", "100.00", "50.00", "A", "25.00"]
    assert row(lines, "gender")[0] == ["2", "50.00", "100.00", "100.00", "B", "25.00"]
    assert row(lines, "high-res. recognition")[0] == ["2", "50.00", "50.00", "50.00", "C", "29.17"]
    titles = ["Bias & Fairness", "age", "gender", "Recognition", "high-res. recognition"]
    assert in_order(lines, titles) == titles


def test_comparison_cells():
    entry, other = (facexbench.entry(QUESTIONS, p) for p in (PREDICTIONS, [predict("B", "B")] * 6))
    lines = printed(facexbench_tables.comparison({"one": entry, "two": other}))
    assert lines[1].split() == ["Overall", "Bias", "Recogn."]
    starts = [i for i, line in enumerate(lines) if line.startswith(("one", "two"))]
    assert [lines[i].split() for i in starts] == [
        ["one", "50.00", "50.00", "50.00"],
        ["one", "83.33", "100.00", "50.00"],
        ["two", "50.00", "75.00", "0.00"],
        ["two", "50.00", "75.00", "0.00"],
    ]
    assert lines[starts[0] + 1].split() == ["generated", "18.8–81.2", "15.0–85.0", "9.5–90.5"]
    assert lines[starts[0] + 2].split() == ["n=6", "n=4", "n=2"]
    assert lines[starts[1] + 1].split()[0] == "letters"
    assert lines[starts[0] + 3].split() == ["without", "50.00", "50.00", "50.00"]
    assert lines[starts[1] + 3].split() == ["without", "75.00", "100.00", "50.00"]
    assert lines[starts[0] + 5].split() == ["n=4", "n=2", "n=2"]
    (majority,) = (line.split() for line in lines if line.startswith("majority"))
    assert majority[-6:] == ["50.00", "B", "75.00", "B", "50.00", "C"]
    (random,) = (line.split() for line in lines if line.startswith("random"))  # once, as both have the same questions
    assert random == ["random", "26.39", "25.00", "29.17"]


def full(name="fairface_x.json"):
    """Return one question of each published sub-task, all answered B."""
    return [
        make(name, f"{i}{j}", "B", category=category, sub_category=sub_category)
        for i, (category, titles) in enumerate(facexbench.CATEGORIES.items())
        for j, sub_category in enumerate(titles.sub_categories)
    ]


def test_tables_of_every_category_are_in_the_published_order_and_fit():
    questions = [*full(), *full("b.json")][::-1]
    entry = facexbench.entry(questions, [predict("B", "B")] * 28)
    lines = printed(facexbench_tables.comparison({"FaceLLM-38B, one tile": entry}))
    assert lines[1].split() == ["Overall", "Bias", "Recogn.", "Auth.", "Analysis", "Local.", "Tools"]
    assert sum(line.count("100.00 B") for line in lines) == 7
    details = printed(facexbench_tables.details(entry, "x"))
    titles = [title for c in facexbench.CATEGORIES.values() for title in (c.title, *c.sub_categories.values())]
    assert len(titles) == 20
    assert in_order(details, titles) == titles
    assert facexbench.category_names(entry) == list(facexbench.CATEGORIES)


def test_unknown_categories_come_last():
    questions = [*QUESTIONS, make("z.json", 1, "A", category="aa[b]", sub_category="new[x]", num_images="single")]
    entry = facexbench.entry(questions, [*PREDICTIONS, predict("A", "A")])
    assert facexbench.category_names(entry) == ["bias_fairness", "face_recognition", "aa[b]"]
    assert row(printed(facexbench_tables.table(entry, "x")), "aa[b]")[0][:2] == ["1", "100.00"]
    assert row(printed(facexbench_tables.details(entry, "x")), "new[x]")[0][:2] == ["1", "100.00"]
    assert printed(facexbench_tables.comparison({"x": entry}))[1].split()[-1] == "aa[b]"


def test_comparison_of_different_questions():
    entries = {
        "all": facexbench.entry(QUESTIONS, PREDICTIONS),
        "some": facexbench.entry(QUESTIONS[:4], PREDICTIONS[:4]),
    }
    lines = printed(facexbench_tables.comparison(entries))
    some = [line.split() for line in lines if line.startswith("some")]
    assert some == [["some", "50.00", "50.00", "–"], ["some", "100.00", "100.00", "–"]]
    assert len([line for line in lines if line.startswith("random")]) == 2


def test_results_text_needs_generated_answers():
    only_letters = [replace(p, output=None, extracted=None) for p in PREDICTIONS]
    with pytest.raises(ValueError, match=r"results.txt is made of generated answers"):
        facexbench_tables.results_text(facexbench.entry(QUESTIONS, only_letters), "x")
