"""Test what is said about two compared pictures, line by line, without a model."""

from typing import Any

import pytest

from fvjax.evals import pair_text

MEASURED_ON = {
    "benchmark": "lfw",
    "n_impostor": 3000,
    "n_impostor_per_fold": 2700,
    "impostors_above_per_fold": 10,
    "data_hash": "0123456789abcdef",
    "step": 12,
    "identities_seen_in_training": 0,
    "evaluated": None,
}


def picture(faces: int = 0, enlargement: float = 1.0, chosen: int = 1) -> dict[str, Any]:
    """Return what is told of a picture: a crop, or one with so many faces, of which `chosen` are compared."""
    face = {"box": [10.2, 20.0, 110.4, 140.0], "score": 0.987, "enlargement": enlargement}
    chosen_faces = [{**face, "number": number} for number in range(chosen)]
    return {"is_crop": not faces, "size": [640, 480], "faces": max(faces, 1), "chosen": chosen_faces}


def result(**changes: Any) -> dict[str, Any]:
    """Return the result of comparing two crops of one person, with changes."""
    return {
        "score": 0.41234,
        "measure": "cosine",
        "threshold": 0.3,
        "same": True,
        "far": 0.001,
        "far_ci95": [0.00201, 0.00681],
        "measured_on": MEASURED_ON,
        "model": "runs/x",
        "images": ["a.jpg", "b.jpg"],
        "pictures": [picture(), picture()],
        "comparisons": [{"a": 0, "b": 0, "score": 0.41234}],
        "face": "centre",
        "caution": "",
        "notes": [],
    } | changes


def measured(**changes: Any) -> dict[str, Any]:
    return result(measured_on=MEASURED_ON | changes)


def test_crops_of_one_person():
    assert pair_text.text(result()).splitlines() == [
        "same person: score 0.4123 (cosine) >= threshold 0.3000, for FAR 0.001",
        "measured on lfw: 3,000 impostor pairs, data 01234567, model at step 12",
        "the threshold rests on the 10 highest of some 2,700 impostor scores",
        "95% interval of its FAR: 0.002 to 0.0068 (Wilson's, of 10 in 2,700)",
    ]
    first = pair_text.text(result(same=False, score=0.1, measure="P(Yes)")).splitlines()[0]
    assert first == "different persons: score 0.1000 (P(Yes)) < threshold 0.3000, for FAR 0.001"


@pytest.mark.parametrize(
    ("above", "said"),
    [
        (10, "the threshold rests on the 10 highest of some 2,700 impostor scores"),
        (9, "the threshold rests on the 9 highest of some 2,700 impostor scores: few, so take the FAR as a rough one"),
        (0, "too few for FAR 0.001: the threshold lies just above all of some 2,700 impostor scores"),
    ],
)
def test_what_a_threshold_rests_on(above, said):
    assert pair_text.text(measured(impostors_above_per_fold=above)).splitlines()[2] == said


@pytest.mark.parametrize(
    ("seen", "said"),
    [
        (
            None,
            "whether training saw identities of lfw is not known: another naming, or no model of fvjax",
        ),
        (3, "training saw 3 of its identities: expect more false accepts among strangers"),
    ],
)
def test_people_that_training_saw(seen, said):
    assert pair_text.text(measured(identities_seen_in_training=seen)).splitlines()[4:] == [said]


def test_without_a_threshold_or_its_origin():
    lines = pair_text.text(result(threshold=None, same=None)).splitlines()
    assert lines[0] == "score 0.4123 (cosine)"
    assert lines[1].startswith("no threshold is known for runs/x, so no verdict: give --threshold=X")
    lines = pair_text.text(result(measured_on=None, far=None)).splitlines()
    assert lines == [
        "same person: score 0.4123 (cosine) >= threshold 0.3000",
        "FAR of this threshold: not known",
    ]


@pytest.mark.parametrize(
    ("face", "faces", "chosen", "said"),
    [
        ("centre", 1, 1, "a.jpg: 1 face in 640x480 pixels, 100x120 pixels, detected with 0.99"),
        (
            "centre",
            3,
            1,
            "a.jpg: 3 faces in 640x480 pixels; took the one nearest the centre, 100x120 pixels, detected with 0.99 "
            "(--face=largest|all for others)",
        ),
        (
            "largest",
            2,
            1,
            "a.jpg: 2 faces in 640x480 pixels; took the largest, 100x120 pixels, detected with 0.99 "
            "(--face=centre|all for others)",
        ),
        ("all", 2, 2, "a.jpg: 2 faces in 640x480 pixels, all compared"),
        ("all", 1, 1, "a.jpg: 1 face in 640x480 pixels, 100x120 pixels, detected with 0.99"),
    ],
)
def test_faces_that_were_found(face, faces, chosen, said):
    told = result(face=face, pictures=[picture(faces, chosen=chosen), picture()])
    assert pair_text.text(told).splitlines()[4:] == [said, "b.jpg: 640x480 pixels, taken as an aligned crop"]


def test_a_face_is_small_above_the_limit():
    small = "face 1 is small, enlarged 2.6 times: expect little of its score"
    for enlargement, said in ((2.5, []), (2.6, [f"a.jpg: {small}"])):
        told = result(pictures=[picture(1, enlargement), picture(1)])
        assert [line for line in pair_text.text(told).splitlines() if "small" in line] == said


def test_scores_of_several_faces_come_highest_first():
    def lines(count: int) -> list[str]:
        comparisons = [{"a": i, "b": 1, "score": i / 100} for i in range(count)]
        return pair_text.text(result(comparisons=comparisons)).splitlines()[4:]

    assert lines(1) == []
    assert lines(3)[0].startswith("that is the highest of 3 scores, and so many comparisons accept a stranger more")
    assert lines(3)[1:] == [f"  face {i + 1} and face 2: {i / 100:.4f}" for i in (2, 1, 0)]
    assert len(lines(20)) == 21
    assert lines(22)[-2:] == ["  face 3 and face 2: 0.0200", "  and 2 lower ones (--json has all)"]


def test_the_caution_comes_first_and_notes_last():
    told = result(caution="trained on drawings", notes=["a note"])
    lines = pair_text.text(told).splitlines()
    assert lines[0] == "caution: trained on drawings"
    assert lines[-1] == "a note"
    verdict, caution, *origin = pair_text.caption(told)
    assert verdict.startswith("same person: ")
    assert caution == "caution: trained on drawings"
    assert origin == lines[2:5], "a drawing has the verdict first, and no notes"
    both = [{"a": 0, "b": 0, "score": 0.4}, {"a": 0, "b": 1, "score": 0.2}]
    heading, several, *_ = pair_text.caption(result(comparisons=both))
    assert (heading[:11], several[:29]) == ("same person", "that is the highest of 2 scor")


LOWER = {
    "fnmr": 0.05,
    "threshold": 0.2,
    "n_genuine_per_fold": 2700,
    "genuine_below_per_fold": 135,
    "fnmr_ci95": [0.04241, 0.05892],
    "has_range": True,
}


@pytest.mark.parametrize(
    ("same", "score", "said"),
    [
        (True, 0.4, "same person: score 0.4000 (cosine) >= threshold 0.3000, for FAR 0.001"),
        (None, 0.25, "cannot tell: score 0.2500 (cosine) lies between 0.2000 (FNMR 0.05) and 0.3000 (FAR 0.001)"),
        (False, 0.1, "different persons: score 0.1000 (cosine) < threshold 0.2000, for FNMR 0.05"),
    ],
)
def test_a_score_between_two_thresholds(same, score, said):
    lines = pair_text.text(result(same=same, score=score, lower=LOWER)).splitlines()
    assert (lines[0], len(lines)) == (said, 6)
    assert lines[4:] == [
        "cannot tell from 0.2000 for FNMR 0.05 up to 0.3000 for FAR 0.001; 135 of some 2,700 genuine scores lie below "
        "0.2000",
        "95% interval of its FNMR: 0.042 to 0.059 (Wilson's, of 135 in 2,700)",
    ]


def test_thresholds_without_a_range_between_them():
    lower = LOWER | {"threshold": 0.35, "has_range": False}
    lines = pair_text.text(result(same=False, score=0.1, lower=lower)).splitlines()
    assert lines[0] == "different persons: score 0.1000 (cosine) < threshold 0.3000, for FAR 0.001"
    assert lines[4] == (
        "no scores are in doubt: the threshold 0.3500 for FNMR 0.05 is not below that of 0.3000 for FAR 0.001; 135 of "
        "some 2,700 genuine scores lie below 0.3500"
    )


def test_evaluations_have_a_date():
    line = pair_text.text(measured(evaluated="2026-01-02 first")).splitlines()[1]
    assert line.endswith("model at step 12, evaluated 2026-01-02 first")


def test_small_faces_are_named_beside_a_drawing():
    told = result(pictures=[picture(1, 1.0), picture(2, 3.04, chosen=2)])
    assert pair_text.small_face_lines(told) == [
        f"b.jpg: face {number} is small, enlarged 3.0 times: expect little of its score" for number in (1, 2)
    ]
    assert pair_text.small_face_lines(result(pictures=[picture(0, 9.0), picture(0, 9.0)])) == []
