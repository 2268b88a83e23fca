"""Test the command that parses, scores and judges answers, on a small FaceInstruct."""

import json

import pytest

from fvjax.data import face_instruct
from fvjax.data.face_labels import TASKS
from fvjax.evals.face_tasks import Answer, write_answers
from fvjax.face_tasks import INCOMPLETE, main
from tests.test_describe_endpoint import answer as reply_of
from tests.test_describe_endpoint import server  # noqa: F401


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return the folder of a store and of answers to it: every third one is that of another record."""
    folder = tmp_path_factory.mktemp("answers")
    kinds = {"images_per_identity": 1, "clips_per_identity": 0, "seed": 0, "split": "test"}
    store = face_instruct.write(folder / "store", range(10), **kinds)
    records = [store.conversation(i) for i in range(len(store))]
    rows = []
    for number, record in enumerate(records):
        said = records[(number + 5 * (number % 3 == 0)) % len(records)].messages[1]["content"]
        meta = record.meta
        rows.append(Answer(record.source, meta["task"], meta["label"], said, group=str(meta["identity"])))
    write_answers(folder / "answers.jsonl", rows)
    return folder


def run(made, command, *flags):
    return main([command, f"--answers={made / 'answers.jsonl'}", *flags])


def test_parse_and_score(made, tmp_path, capsys):
    parsed, scores, again = tmp_path / "parsed.jsonl", tmp_path / "scores.json", tmp_path / "again.json"
    assert run(made, "parse", f"--out={parsed}") == 0
    assert "50 answers, 0 unparsed" in capsys.readouterr().out
    assert run(made, "score", f"--parsed={parsed}", f"--out={scores}") == 0
    assert "age: mae " in capsys.readouterr().out
    assert run(made, "score", f"--out={again}") == 0
    entries = json.loads(scores.read_text())
    assert json.loads(again.read_text()) == entries
    assert set(entries) == set(TASKS)
    assert 0.5 < entries["expression"]["war"]["value"] < 1
    assert run(made, "score", f"--out={again}", "--seed=5") == 0
    assert json.loads(again.read_text())["age"]["mae"]["ci95"] != entries["age"]["mae"]["ci95"]
    lines = parsed.read_text().splitlines()
    parsed.write_text("\n".join(json.dumps(json.loads(line) | {"parsed": None}) for line in lines))
    assert run(made, "score", f"--parsed={parsed}", f"--out={scores}") == 0
    assert json.loads(scores.read_text())["age"]["unparsed"]["n"] == 10


def test_parsed_lines_of_other_answers_are_refused(made, tmp_path, capsys):
    parsed = tmp_path / "parsed.jsonl"
    for text, error in (
        ("{}", ":1: expected id, task and parsed"),
        ("", "nothing about 50 answers"),
        ("x", "not JSON"),
    ):
        parsed.write_text(text)
        assert run(made, "score", f"--parsed={parsed}") == 2
        assert error in capsys.readouterr().err


def judged(prompt: str) -> dict[str, int]:
    """Rate a little higher what names more of the label's words."""
    label, given = prompt.partition("label is: ")[2].split("\nThe answer was: ")
    same = sum(word.strip(",.") in given for word in label.split()) / len(label.split())
    return dict.fromkeys(("consistency_video", "consistency_label", "completeness"), 2 + round(7 * same))


def test_judge_by_file(made, tmp_path, capsys):
    flags = [f"--store={made / 'store'}", "--backend=file", f"--folder={tmp_path}", "--repeats=2", "--seed=3"]
    assert run(made, "judge", *flags) == INCOMPLETE
    assert "222 of 222 requests have no line" in capsys.readouterr().out
    requests = [json.loads(line) for line in (tmp_path / "judge_requests.jsonl").read_text().splitlines()]
    ratings = [{"id": request["id"], **judged(request["prompt"].split("\n\nRate")[0])} for request in requests]
    (tmp_path / "judge_ratings.jsonl").write_text("\n".join(map(json.dumps, ratings)))
    assert run(made, "judge", *flags, f"--out={tmp_path / 'judge.json'}") == 0
    entry = json.loads((tmp_path / "judge.json").read_text())
    assert (
        entry["ceiling"]["overall"]["value"] > entry["answer"]["overall"]["value"] > entry["floor"]["overall"]["value"]
    )
    assert entry["judge"]["repeats"] == 2
    for rating in ratings:
        rating |= dict.fromkeys(("consistency_video", "consistency_label", "completeness"), 5)
    (tmp_path / "judge_ratings.jsonl").write_text("\n".join(map(json.dumps, ratings)))
    assert run(made, "judge", *flags) == 2
    assert "rates ground truth no higher" in capsys.readouterr().err


def test_judge_at_an_endpoint(made, server, capsys):  # noqa: F811
    def reply(number, request):
        assert request["model"] == "local"
        return reply_of(json.dumps(judged(request["messages"][1]["content"][-1]["text"].split("\n\nRate")[0])))

    server.reply = reply
    flags = [f"--store={made / 'store'}", "--backend=endpoint", f"--url={server.url}", "--model=local"]
    assert run(made, "judge", *flags, "--max-requests=200") == 0
    assert "judge local: 50 cases, 1 ratings each; 0 unparsed" in capsys.readouterr().out
    assert run(made, "judge", *flags, "--max-requests=3") == 2
    assert "--max-requests=3 is reached" in capsys.readouterr().err


def test_judge_by_rules(made, tmp_path, capsys):
    assert run(made, "judge", f"--store={made / 'store'}", "--backend=rules", f"--out={tmp_path / 'rules.json'}") == 0
    entry = json.loads((tmp_path / "rules.json").read_text())
    assert entry["ceiling"]["names_label"]["value"] == 1 > entry["floor"]["names_label"]["value"]


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--backend=file"], "--backend=file: --folder is missing"),
        (["--backend=endpoint", "--model=x"], "--backend=endpoint: --url is missing"),
        (["--backend=model"], "--backend=model: --model is missing"),
    ],
)
def test_flags_that_a_judge_needs(made, capsys, flags, error):
    assert run(made, "judge", f"--store={made / 'store'}", *flags) == 2
    assert error in capsys.readouterr().err


def test_answers_to_other_questions_are_refused(made, tmp_path, capsys):
    write_answers(tmp_path / "answers.jsonl", [Answer("elsewhere", "age", 30, "30")])
    flags = [f"--answers={tmp_path / 'answers.jsonl'}", f"--store={made / 'store'}", "--backend=rules"]
    assert main(["judge", *flags]) == 2
    assert "no record has the source 'elsewhere'" in capsys.readouterr().err
