"""Test the judge of answers: what it sees, how ratings are aggregated, both controls, and the four backends."""

import json
import re

import numpy as np
import pytest

from fvjax.data import images
from fvjax.data.describing.endpoint import Budget, Endpoint
from fvjax.evals import judge, judge_backends
from fvjax.evals.judge import ASPECTS, Case, Indistinct, Judge, Rating, label_text, parse_reply, rate
from tests.test_describe_endpoint import answer, server  # noqa: F401


def jpeg(grey: int) -> bytes:
    return images.encode(np.full((112, 112, 3), grey, np.uint8))


LABELS = ["happy", "sad"] * 6
CASES = [
    Case(
        str(n),
        "expression",
        label,
        f"The person looks {label if n % 3 else 'angry'}.",
        f"The person looks {label}: the lips and brows of {n} show it.",
        (jpeg(n),) * (8 if n % 2 else 1),
        group=str(n // 2),
    )
    for n, label in enumerate(LABELS)
]


def fair(request) -> Rating:
    """Rate 9 if the answer names the label, else 2, and a little more for reasons."""
    ((label, given),) = re.findall(r"label is: (\w+)\nThe answer was: (.*)\n", request.prompt)
    right = 9 if label in given else 2
    return Rating(right, right, 8 if "brows" in given else 5)


def of(rating_of) -> Judge:
    return Judge("test", lambda requests: [rating_of(request) for request in requests], weights="abc")


def test_ratings_are_aggregated_with_both_controls():
    entry = rate(CASES, of(fair), repeats=2, seed=1)
    assert entry["ceiling"]["overall"]["value"] == pytest.approx((9 + 9 + 8) / 3)
    assert entry["floor"]["consistency_label"]["value"] == 2
    right = sum(n % 3 > 0 for n in range(12)) / 12
    assert entry["answer"]["consistency_label"]["value"] == pytest.approx(9 * right + 2 * (1 - right))
    low, high = entry["answer"]["overall"]["ci95"]
    assert low < entry["answer"]["overall"]["value"] < high
    assert entry["by_task"]["expression"] == pytest.approx(entry["answer"]["overall"]["value"])
    assert entry["judge"]["name"] == "test"
    assert entry["judge"]["weights"] == "abc"
    assert entry["judge"]["scale"] == [1, 10]
    assert entry["judge"]["repeats"] == 2
    assert len(entry["judge"]["prompt_sha256"]) == 64
    assert (entry["n"], entry["unparsed"], entry["repeat_std"]) == (12, 0, 0)
    assert "over 6 groups" in entry["intervals"]
    assert judge.summary(entry)[0] == "judge test: 12 cases, 2 ratings each; 0 unparsed"


@pytest.mark.parametrize("value", [Rating(7, 7, 7), None])
def test_a_judge_that_cannot_tell_the_controls_apart_is_refused(value):
    with pytest.raises(Indistinct, match="test: rates ground truth no higher than"):
        rate(CASES, of(lambda request: value))


def test_a_judge_that_rates_by_length_alone_is_refused():
    with pytest.raises(Indistinct):
        rate(CASES, of(lambda request: Rating(*[min(10, len(request.prompt) // 60)] * 3)))


def test_requests_do_not_tell_answers_from_controls_and_differ_by_repeat():
    seen = []

    def rated(request):
        seen.append(request)
        return fair(request)

    rate(CASES, of(rated), repeats=2)
    assert len({request.id for request in seen}) == len(seen) == 2 * 3 * 12
    kinds = ["brows" in request.prompt for request in seen]
    assert kinds != sorted(kinds)
    assert not any("ceiling" in request.prompt + request.id for request in seen)
    assert {len(request.pictures) for request in seen} == {1, 8}


def test_the_floor_has_another_label():
    for number, other in enumerate(judge.floor(CASES, 0)):
        assert CASES[other].label != CASES[number].label
    with pytest.raises(ValueError, match="1 cases: at least two"):
        rate(CASES[:1], of(fair))
    with pytest.raises(ValueError, match="with different ids"):
        rate([CASES[0], CASES[0]], of(fair))


def test_repeats_that_differ_have_a_deviation():
    state = iter(range(10**6))
    entry = rate(CASES, of(lambda request: Rating(*(np.array(fair(request)) - next(state) % 2).tolist())), repeats=3)
    assert 0 < entry["repeat_std"] < 1
    with pytest.raises(ValueError, match="repeats=0: expected 1 to 20"):
        rate(CASES, of(fair), repeats=0)


def test_replies_that_are_no_rating_are_counted():
    def sometimes(request):
        return None if "angry" in request.prompt else fair(request)

    entry = rate(CASES, of(sometimes))
    assert entry["unparsed"] == 4
    assert entry["answer"]["consistency_label"]["value"] == 9
    for bad in (Rating(0, 5, 5), (1, 2), Rating(1, 2, 11), (1.5, 2, 3)):
        with pytest.raises(ValueError, match="is no rating of three whole numbers"):
            rate(CASES, of(lambda request, bad=bad: bad))


RIGHT = {"consistency_video": 7, "consistency_label": 8, "completeness": 9}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (json.dumps(RIGHT), Rating(7, 8, 9)),
        (f"Sure!\n```json\n{json.dumps(RIGHT)}\n``` That is 3 numbers.", Rating(7, 8, 9)),
        ("consistency_video: 7/10, consistency_label = 8, **completeness**: 9", Rating(7, 8, 9)),
        (json.dumps(RIGHT | {"completeness": 11}), None),
        (json.dumps(RIGHT | {"completeness": 0}), None),
        (json.dumps(RIGHT | {"completeness": 8.5}), None),
        (json.dumps(RIGHT | {"completeness": True}), None),
        ("consistency_video: 7, consistency_label: 8, completeness: 8.5", None),
        ("consistency_video: 7, consistency_label: -8, completeness: 8", None),
        ("7 8 9", None),
        ("{" * 100_000, None),
    ],
)
def test_replies(text, expected):
    assert parse_reply(text) == expected


def test_labels_in_words():
    assert label_text("action_units", [1, 12]) == "AU1, AU12"
    assert label_text("attributes", ["Big_Nose"]) == "Big Nose"
    assert label_text("age", 30) == "30 years"
    assert label_text("action_units", []) == "no action unit is active"


# ---- backends


def test_the_file_backend_waits_for_ratings(tmp_path):
    asked = Judge("people", judge_backends.file_backend(tmp_path))
    with pytest.raises(judge_backends.Waiting, match="36 of 36 requests have no line"):
        rate(CASES, asked)
    lines = [json.loads(line) for line in (tmp_path / "judge_requests.jsonl").read_text().splitlines()]
    assert all((tmp_path / name).is_file() for line in lines for name in line["media"])
    ratings = []
    for number, line in enumerate(lines):
        one = fair(judge.Request(line["id"], line["prompt"], ()))._asdict()
        ratings.append({"id": line["id"], **(one if number % 2 else {"reply": json.dumps(one)})})
    file = tmp_path / "judge_ratings.jsonl"
    file.write_text("".join(json.dumps(one) + "\n" for one in ratings[:-1]))
    with pytest.raises(judge_backends.Waiting, match="1 of 36 requests"):
        rate(CASES, asked)
    file.write_text("".join(json.dumps(one) + "\n" for one in ratings))
    assert rate(CASES, asked)["floor"] == rate(CASES, of(fair))["floor"]
    with pytest.raises(ValueError, match="is in no request; the answers or the seed changed"):
        rate(CASES[:4], asked)


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"id": "a", **RIGHT, "completeness": 11}, "expected whole numbers from 1 to 10"),
        ({"id": "a", "completeness": 3}, "expected consistency_video, consistency_label, completeness, or reply"),
        ({"reply": "x"}, "expected an object with an id"),
        ([], "expected an object with an id"),
    ],
)
def test_ratings_that_are_none(tmp_path, line, error):
    (tmp_path / "judge_ratings.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=f"judge_ratings.jsonl:1: {error}"):
        rate(CASES, Judge("people", judge_backends.file_backend(tmp_path)))


def test_the_endpoint_backend_sends_all_frames(server):  # noqa: F811
    def reply(number, request):
        content = request["messages"][1]["content"]
        one = fair(judge.Request("", content[-1]["text"], ()))
        return answer("no idea" if "angry" in content[-1]["text"] else json.dumps(one._asdict()))

    server.reply = reply
    endpoint = Endpoint(server.url, "judge", "", max_tokens=100, timeout=10, budget=Budget(100))
    entry = rate(CASES, Judge("local", judge_backends.endpoint_backend(endpoint)))
    assert entry["unparsed"] == 4
    assert entry["ceiling"]["consistency_label"]["value"] == 9
    pictures = {len(request["messages"][1]["content"]) - 1 for request in server.requests}
    assert pictures == {1, 8}
    uri = server.requests[0]["messages"][1]["content"][0]["image_url"]["url"]
    assert uri.startswith("data:image/jpeg;base64,")


class Model:
    """Chooses as `fair` rates."""

    def choose(self, messages, images, options):
        (message,) = messages
        assert message["content"].count("<image>") == len(images)
        assert options == [str(n) for n in range(1, 11)]
        (aspect,) = re.findall(r"number for (\w+) alone", message["content"])
        one = fair(judge.Request("", message["content"], ()))._asdict()[aspect]
        return options.index(str(one)), None


def test_a_model_of_ours_is_a_judge():
    entry = rate(CASES, Judge("ours", judge_backends.model_backend(Model())))
    assert entry["unparsed"] == 0
    assert entry["answer"] == rate(CASES, of(fair))["answer"]


def test_rules_are_no_ratings():
    entry = judge_backends.rules(CASES, LABELS)
    assert entry["ceiling"]["names_label"]["value"] == 1
    assert entry["floor"]["names_label"]["value"] == 0
    assert entry["floor"]["names_another"]["value"] == 1
    assert entry["answer"]["names_label"]["value"] == pytest.approx(8 / 12)
    assert entry["ceiling"]["regions"]["value"] == 2, "lips and brows"
    assert entry["answer"]["words"]["value"] == 4
    assert not set(ASPECTS) & set(entry["answer"])
