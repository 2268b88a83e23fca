"""Test the figures of attribute recognition against tests/golden/face_metrics.json and scikit-learn."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn import metrics as reference

from fvjax.attribute_rules import compile_rules
from fvjax.evals import attribute_text, attributes, faceinsight_published
from fvjax.evals.attributes import classes, entry, metrics, violations

GOLDEN = json.loads(Path("tests/golden/face_metrics.json").read_text())
EXACT = {"rtol": 1e-12, "atol": 1e-12}
RULES = [
    {"name": "ab", "antecedent": "a", "consequents": ["b"], "kind": "excludes"},
    {"name": "any", "antecedent": None, "consequents": ["b", "c"], "kind": "at_least_one"},
]


def close(found, expected):
    np.testing.assert_allclose(np.array(found, float), np.array(expected, float), **EXACT)


# ---- golden ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", GOLDEN["multilabel"], ids=lambda case: case["note"][:20])
def test_three_averages(case):
    found = metrics(np.array(case["predicted"], float), case["true"])
    close(found["accuracy_labelled_cells"], case["accuracy_all_cells_by_hand"])
    for name in ("mean_accuracy_over_attributes", "exact_match"):
        close(found[name], case[name])
    for average in ("samples", "macro", "micro"):
        for name, value in case[f"{average}_zero0"].items():
            close(found[average][name], value)
    for name, values in case["per_attribute_zero0"].items():
        close(found["per_attribute"][name], values)


def test_unlabelled_cells_count_nowhere():
    case = GOLDEN["multilabel_with_unlabelled"]
    case = case[0] if isinstance(case, list) else case
    found = metrics(np.array(case["predicted"], float), case["labels"])
    for name in ("accuracy_labelled_cells", "mean_accuracy_over_attributes", "attributes_counted", "rows_counted"):
        close(found[name], case[name])
    for average in ("samples", "macro", "micro"):
        for name, value in case[average].items():
            close(found[average][name], value)
    labels = np.array(case["labels"])
    assert found == metrics(np.array(case["predicted"], float), labels == 1, labelled=labels != 0)
    assert found["per_attribute"]["f1"][5] is None


def test_average_precision():
    case = GOLDEN["average_precision"]
    case = case[0] if isinstance(case, list) else case
    found = metrics(case["scores"], case["true"])
    close(found["average_precision"], case["average_precision"])
    assert found["average_precision"][4] is None
    for name in ("mean_over_attributes_with_positives", "mean_with_undefined_as_zero"):
        close(found[name], case[name])


@pytest.mark.parametrize("case", GOLDEN["multiclass"], ids=lambda case: case["note"][:20])
def test_classes(case):
    found = classes(case["true"], case["predicted"], case["classes"])
    expected = {key: value for key, value in case.items() if key not in ("note", "classes", "true", "predicted")}
    for name, value in expected.items():
        close(found[name], value)
    assert found["absent_classes"] == [i for i, n in enumerate(case["support"]) if n == 0]


# ---- scikit-learn, weights -------------------------------------------------------------------------------------------


def random_case(n=60, k=5, seed=0):
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, k)) < 0.3).astype(int)
    p = np.round(np.clip(0.35 * labels + rng.random((n, k)) * 0.65, 0, 1), 2)
    return p, labels


def test_against_scikit_learn():
    p, labels = random_case()
    found = metrics(p, labels, threshold=0.4)
    for average in ("samples", "macro", "micro"):
        expected = reference.precision_recall_fscore_support(labels, p >= 0.4, average=average, zero_division=0)[:3]
        close(list(found[average].values()), expected)
    close(found["mean_over_attributes_with_positives"], reference.average_precision_score(labels, p, average="macro"))


def test_weights_count_like_repeated_pictures():
    p, labels = random_case()
    weights = np.random.default_rng(1).integers(0, 3, len(p))
    d = attributes.decide(p, labels, None, 0.5)
    repeated = metrics(np.repeat(p, weights, 0), np.repeat(labels, weights, 0))
    found = attributes._counted_figures(d, weights[None].astype(float))
    for name in ("mean_accuracy_over_attributes", "accuracy_labelled_cells", "exact_match"):
        close(found[name][0], repeated[name])
    for average in ("samples", "macro", "micro"):
        close(found[f"{average}/f1"][0], repeated[average]["f1"])
    close([x[0] for x in attributes._average_precisions(d, weights[None])], repeated["average_precision"])


def test_the_threshold_itself_is_positive():
    assert metrics([[0.5, 0.49]], [[1, 1]])["micro"]["recall"] == 0.5


# ---- intervals -------------------------------------------------------------------------------------------------------


def test_intervals_by_people_are_wider_than_by_pictures():
    p, labels = random_case(40)
    p, labels = np.repeat(p, 5, 0), np.repeat(labels, 5, 0)  # five equal pictures of each of 40 people
    d = attributes.decide(p, labels, None, 0.5)
    by_picture = attributes.intervals(d, identities=None, bootstrap=400)
    by_person = attributes.intervals(d, identities=[f"p{i // 5:02d}" for i in range(200)], bootstrap=400)
    for name in ("mean_accuracy_over_attributes", "macro/f1", "map"):
        widths = [high - low for low, high in (by_picture[name], by_person[name])]
        assert widths[1] > 1.6 * widths[0], name
    assert by_person == attributes.intervals(d, identities=np.arange(200) // 5, bootstrap=400)


def test_intervals_do_not_depend_on_the_memory_for_weights(monkeypatch):
    p, labels = random_case()
    d = attributes.decide(p, labels, None, 0.5)
    first = attributes.intervals(d, identities=None, bootstrap=20)
    monkeypatch.setattr(attributes, "_CELLS", 7 * len(p))
    assert attributes.intervals(d, identities=None, bootstrap=20) == first


# ---- rules, the entry, tables ----------------------------------------------------------------------------------------


def test_violations_after_thresholding():
    table = compile_rules(RULES, "abc")
    p = [[0.9, 0.6, 0.1], [0.9, 0.1, 0.1], [0.1, 0.1, 0.6], [0.5, 0.5, 0.5]]
    found = violations(p, table)
    assert found == {"rate": 0.75, "impossible": 0.5, "incomplete": 0.25, "by_rule": {"ab": 0.5, "any": 0.25}}


def test_accuracy_by_group():
    groups = {"gender": (0, 1), "race": (2, 3)}
    labels = np.array([[1, -1, 1, -1], [-1, 1, 1, -1], [1, -1, 1, -1], [-1, 1, -1, 1]])
    p = np.array([[0.9, 0.1, 0.9, 0.1], [0.9, 0.1, 0.9, 0.1], [0.9, 0.1, 0.1, 0.9], [0.2, 0.1, 0.1, 0.9]])
    found = entry(p, labels, ["man", "woman", "x", "y"], groups=groups, bootstrap=0)["classes"]
    rows = found["gender"]["by"]["race"]
    assert {name: (row["n"], row["accuracy"]["value"], row["majority"]) for name, row in rows.items()} == {
        "x": (3, pytest.approx(2 / 3), pytest.approx(2 / 3)),
        "y": (1, 0.0, 1.0),
    }
    assert found["race"]["by"]["gender"]["man"]["accuracy"]["value"] == 0.5
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(attribute_text.by_group({"classes": found}, "gender"))
    assert "race: y" in console.export_text()


def test_entry_and_tables():
    rng = np.random.default_rng(2)
    labels = np.where(rng.random((50, 3)) < 0.4, 1, -1)
    labels[:, 2] = -labels[:, 1]  # b and c are the classes of a question
    labels[0] = 0
    p = np.clip(0.5 + 0.3 * labels + 0.3 * rng.standard_normal((50, 3)), 0, 1)
    options = {"identities": np.arange(50) // 2, "table": compile_rules(RULES, "abc"), "groups": {"kind": (1, 2)}}
    found = entry(p, labels, "abc", **options, bootstrap=50, data_hash="x")
    json.dumps(found, allow_nan=False)
    assert found["n"] == 49
    assert found["intervals"].startswith("95% percentile bootstrap over people, 50 resamples")
    accuracy = found["classes"]["kind"]["accuracy"]
    for figure in (found["map"], found["micro"]["f1"], found["violations"]["rate"], accuracy):
        low, high = figure["ci95"]
        assert low <= figure["value"] <= high
    right = (p[1:, 2] > p[1:, 1]) == (labels[1:, 2] == 1)
    assert accuracy["value"] == pytest.approx(right.mean())
    shares = (labels[1:] == 1).mean(0)
    assert found["majority"] == pytest.approx(np.maximum(shares, 1 - shares).mean())
    assert found["by_attribute"]["b"]["positive"] == (labels[:, 1] == 1).sum()
    without = entry(p, labels, "abc", bootstrap=0)
    assert "violations" not in without
    assert without["map"]["ci95"] is None
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(attribute_text.table({"model": found, "other": without}))
    console.print(attribute_text.by_attribute(found, "model"))
    console.print(attribute_text.confusion(found, "kind"))
    text = console.export_text()
    assert f"{100 * found['map']['value']:.2f}" in text
    assert "right in rows" in text


@pytest.mark.parametrize(
    ("p", "labels", "message"),
    [
        ([[0.5]], [[1, 1]], "differ in shape"),
        ([[1.5]], [[1]], "outside 0 to 1"),
        ([[np.nan]], [[1]], "outside 0 to 1, or not finite"),
        ([[0.5]], [[2]], "other than -1, 0 and 1"),
        (np.zeros((0, 2)), np.zeros((0, 2)), "none of them 0"),
    ],
)
def test_refused_predictions(p, labels, message):
    with pytest.raises(ValueError, match=message):
        metrics(p, labels)


def test_nothing_labelled_and_wrong_classes():
    with pytest.raises(ValueError, match="not one attribute of any picture is labelled"):
        metrics([[0.5]], [[1]], labelled=[[False]])
    with pytest.raises(ValueError, match="outside 0 to 1"):
        classes([0, 2], [0, 1], 2)
    with pytest.raises(ValueError, match="expected as many"):
        classes([], [], 2)
    d = attributes.decide([[0.5]], [[1]], None, 0.5)
    with pytest.raises(ValueError, match="2 identities for 1 pictures"):
        attributes.intervals(d, identities=[1, 2])


# ---- the published figures -------------------------------------------------------------------------------------------


def test_three_published_rows_are_of_no_single_averaging():
    rows = [(row.task, row.model) for row in faceinsight_published.contradictions()]
    assert rows == [("MAAD-Face", "FaceInsight"), ("FairFace age", "LLaVA-v1.5-7b"), ("UTKFace gender", "FaceInsight")]


def test_f1_is_at_most_the_mean_of_precision_and_recall_in_each_average():
    p, labels = random_case(200)
    found = metrics(p, labels)
    for average in ("samples", "macro", "micro"):
        assert found[average]["f1"] <= (found[average]["precision"] + found[average]["recall"]) / 2


def test_celebas_published_f1_is_no_average_over_all_cells():
    row = next(row for row in faceinsight_published.ROWS if (row.task, row.model) == ("CelebA", "FaceInsight"))
    rate = faceinsight_published.POSITIVE_RATE
    possible = [faceinsight_published.micro_f1(row.accuracy / 100, rate, missed) for missed in np.linspace(0, 1, 11)]
    assert min(possible) > 0.80 > row.f1 / 100
    assert faceinsight_published.micro_f1(row.accuracy / 100, rate, 0.6) == pytest.approx(0.830, abs=1e-3)
    with pytest.raises(ValueError, match="missed"):
        faceinsight_published.micro_f1(0.5, 0.2, 1)


def test_at_celebas_accuracy_the_mean_over_attributes_is_far_below_that_over_pictures():
    """Errors as the specification simulates them, on independent attributes as frequent as those of CelebA's rules."""
    rates = [0.023, 0.151, 0.078, 0.316, 0.212, 0.243, 0.149, 0.203, 0.042, 0.832, 0.062, 0.039, 0.058, 0.043, 0.063]
    rates = np.array([*rates, 0.05, 0.385, 0.471, 0.112, 0.074, 0.78])
    rng = np.random.default_rng(0)
    labels = rng.random((4000, len(rates))) < rates
    errors = 0.0742 * rates * (1 - rates) / (rates * (1 - rates)).mean()
    missed = np.minimum(0.6 * errors, 0.9 * rates)
    flip = np.where(labels, missed / rates, (errors - missed) / (1 - rates))
    predicted = labels ^ (rng.random(labels.shape) < flip)
    found = metrics(predicted.astype(float), labels)
    assert found["mean_accuracy_over_attributes"] == pytest.approx(0.9258, abs=3e-3)
    assert found["macro"]["f1"] < found["samples"]["f1"] - 0.03
    assert found["macro"]["f1"] < found["micro"]["f1"] - 0.05
