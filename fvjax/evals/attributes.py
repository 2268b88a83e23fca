"""Figures of attribute recognition: accuracy, precision, recall and F1 in three averages, average precision, rules.

An attribute is predicted if its probability is at least the threshold. Unlabelled cells count nowhere, and attributes
and pictures without any label are left out. A ratio 0/0 counts as 0, as in scikit-learn: a picture with neither
predicted nor true attributes has a sample F1 of 0. Every F1 stands with precision and recall of its own average.

Intervals are percentile bootstraps over people where they are known, else over pictures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fvjax import attribute_rules, co_occurrence
from fvjax.attribute_rules import RuleTable
from fvjax.evals.intervals import wilson

THRESHOLD = 0.5
AVERAGES = ("macro", "samples", "micro")
_CELLS = 1 << 22  # weights in memory at a time


@dataclass(frozen=True)
class Decisions:
    """Probabilities and labels as arrays of what counts, each [N, K].

    Attributes:
        p: float64. predicted, positive, known: bool; `positive` only where `known`.
    """

    p: NDArray[np.float64]
    predicted: NDArray[np.bool_]
    positive: NDArray[np.bool_]
    known: NDArray[np.bool_]


def decide(p: ArrayLike, labels: ArrayLike, labelled: ArrayLike | None, threshold: float) -> Decisions:
    """Check probabilities and labels and compare the former with the threshold.

    Raises:
        ValueError: other shapes than [N, K] for both, probabilities outside 0 to 1 or not finite, or labels of another
            form (:func:`fvjax.co_occurrence.read_labels`).
    """
    probabilities = np.asarray(p, np.float64)
    positive, known = co_occurrence.read_labels(labels, labelled)
    if probabilities.shape != positive.shape:
        raise ValueError(f"probabilities {list(probabilities.shape)} and labels {list(positive.shape)} differ in shape")
    if not ((probabilities >= 0) & (probabilities <= 1)).all():
        raise ValueError("a probability is outside 0 to 1, or not finite")
    if not known.any():
        raise ValueError("not one attribute of any picture is labelled")
    return Decisions(probabilities, (probabilities >= threshold) & known, positive, known)


# ---- figures ---------------------------------------------------------------------------------------------------------


def metrics(
    p: ArrayLike, labels: ArrayLike, labelled: ArrayLike | None = None, threshold: float = THRESHOLD
) -> dict[str, Any]:
    """Compute all figures of predicted probabilities, as plain Python numbers (JSON-ready).

    - ``accuracy_labelled_cells``; ``mean_accuracy_over_attributes``: the mean of the attributes' accuracies, the same
      where everything is labelled; ``exact_match``: the share of pictures without a wrong attribute.
    - ``macro``: precision, recall and F1 per attribute over pictures, then their means; ``samples``: per picture over
      attributes, then their means; ``micro``: over all cells.
    - ``average_precision`` per attribute, as scikit-learn's (None without a positive picture);
      ``mean_over_attributes_with_positives`` is the mAP, and ``mean_with_undefined_as_zero`` counts None as 0.
    - ``per_attribute``: precision, recall, f1, accuracy and support (positives), as lists [K]; None if unlabelled.
    - ``attributes_counted`` and ``rows_counted``: what has any label.

    Args:
        p: [N, K], from 0 to 1.
        labels, labelled: see :func:`fvjax.co_occurrence.read_labels`.
        threshold: from which probability on an attribute is predicted.
    Raises:
        ValueError: as :func:`decide`.
    """
    decisions = decide(p, labels, labelled, threshold)
    weights = np.ones((1, len(decisions.p)))
    values = {name: value[0] for name, value in _counted_figures(decisions, weights).items()}
    per_attribute = {name: value[0] for name, value in _per_attribute(decisions, weights).items()}
    counted = np.asarray(decisions.known.any(0))
    precisions = [float(x[0]) for x in _average_precisions(decisions, weights)]
    defined = [x for x in precisions if not np.isnan(x)]
    figures: dict[str, Any] = {name: float(values[name]) for name in values if "/" not in name}
    for average in AVERAGES:
        figures[average] = {name: float(values[f"{average}/{name}"]) for name in ("precision", "recall", "f1")}
    figures["per_attribute"] = {
        name: [float(x) if use else None for x, use in zip(column, counted.tolist())]
        for name, column in per_attribute.items()
    }
    figures["per_attribute"]["support"] = decisions.positive.sum(0).tolist()
    figures["average_precision"] = [None if np.isnan(x) else x for x in precisions]
    figures["mean_over_attributes_with_positives"] = float(np.mean(defined)) if defined else None
    figures["mean_with_undefined_as_zero"] = float(np.sum(defined) / counted.sum())
    figures["attributes_counted"] = np.flatnonzero(counted).tolist()
    figures["rows_counted"] = int(decisions.known.any(1).sum())
    return figures


def _per_attribute(d: Decisions, weights: NDArray) -> dict[str, NDArray]:
    """Return precision, recall, f1 and accuracy for weights [B, N] of the pictures, each [B, K]."""
    right, predicted, positive, agree, known = (
        weights @ cells
        for cells in (d.predicted & d.positive, d.predicted, d.positive, d.known & (d.predicted == d.positive), d.known)
    )
    return {**_ratios(right, predicted, positive), "accuracy": _divide(agree, known)}


def _counted_figures(d: Decisions, weights: NDArray) -> dict[str, NDArray]:
    """Return every figure that follows from counts, for weights [B, N] of the pictures: arrays [B]."""
    columns, rows = d.known.any(0), d.known.any(1)
    per_attribute = _per_attribute(d, weights)
    out = {f"macro/{name}": per_attribute[name][:, columns].mean(1) for name in ("precision", "recall", "f1")}
    out["mean_accuracy_over_attributes"] = per_attribute["accuracy"][:, columns].mean(1)
    right, predicted, positive = d.predicted & d.positive, d.predicted, d.positive
    total = weights @ rows
    per_row = _ratios(right.sum(1), predicted.sum(1), positive.sum(1))
    out |= {f"samples/{name}": _divide(weights @ (value * rows), total) for name, value in per_row.items()}
    micro = _ratios(*(weights @ cells.sum(1) for cells in (right, predicted, positive)))
    out |= {f"micro/{name}": value for name, value in micro.items()}
    wrong = d.known & (d.predicted != d.positive)
    out["accuracy_labelled_cells"] = 1.0 - _divide(weights @ wrong.sum(1), weights @ d.known.sum(1))
    out["exact_match"] = _divide(weights @ (rows & ~wrong.any(1)), total)
    return out


def _ratios(right: NDArray, predicted: NDArray, positive: NDArray) -> dict[str, NDArray]:
    """Return precision, recall and F1 of counts; 0/0 is 0."""
    return {
        "precision": _divide(right, predicted),
        "recall": _divide(right, positive),
        "f1": _divide(2 * right, predicted + positive),
    }


def _divide(count: NDArray, total: NDArray) -> NDArray[np.float64]:
    count, total = np.asarray(count, np.float64), np.asarray(total, np.float64)
    return np.divide(count, total, out=np.zeros_like(count), where=total > 0)


def _average_precisions(d: Decisions, weights: NDArray) -> Iterator[NDArray]:
    """Yield each attribute's average precision for weights [B, N] of the pictures, [B]; nan without positives."""
    for column in range(d.p.shape[1]):
        rows = np.flatnonzero(d.known[:, column])
        yield average_precision(d.p[rows, column], d.positive[rows, column], weights[:, rows])


def average_precision(scores: NDArray, positive: NDArray, weights: NDArray) -> NDArray[np.float64]:
    """Sum (R_n - R_{n-1}) P_n over the distinct scores, from the highest on, without interpolation.

    Args:
        scores, positive: [N].
        weights: [B, N], how often each picture counts.
    Returns:
        float64 [B]; nan where no positive has a weight.
    """
    if not len(scores):
        return np.full(len(weights), np.nan)
    order = np.argsort(-scores, kind="stable")
    ends = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))  # the last of equal scores
    taken = np.cumsum(weights[:, order], axis=1)[:, ends]
    found = np.cumsum((weights * positive)[:, order], axis=1)[:, ends]
    steps = np.diff(found, axis=1, prepend=0)
    total = found[:, -1]
    return np.where(total > 0, _divide((steps * _divide(found, taken)).sum(1), total), np.nan)


# ---- classes ---------------------------------------------------------------------------------------------------------


def classes(true: ArrayLike, predicted: ArrayLike, count: int) -> dict[str, Any]:
    """Compute the figures of a question with exactly one right class.

    "war" is the accuracy, "uar_present_classes" the balanced accuracy: the mean of the recalls of the classes that
    occur. A class without examples has no recall (None) and is listed in "absent_classes".

    Args:
        true, predicted: int [N], from 0 to `count` - 1.
    Raises:
        ValueError: no picture, different lengths, or a class outside that range.
    """
    true, predicted = np.asarray(true), np.asarray(predicted)
    if not len(true) or true.shape != predicted.shape:
        raise ValueError(f"{len(true)} right classes and {len(predicted)} predicted ones; expected as many, above 0")
    if min(true.min(), predicted.min()) < 0 or max(true.max(), predicted.max()) >= count:
        raise ValueError(f"a class is outside 0 to {count - 1}")
    confusion = np.zeros((count, count), np.int64)
    np.add.at(confusion, (true, predicted), 1)
    support, right = confusion.sum(1), np.diag(confusion)
    ratios = _ratios(right, confusion.sum(0), support)
    present = support > 0
    return {
        "confusion_rows_true": confusion.tolist(),
        "support": support.tolist(),
        "recall_per_class": [float(x) if use else None for x, use in zip(ratios["recall"], present)],
        "precision_per_class_zero0": ratios["precision"].tolist(),
        "f1_per_class_zero0": ratios["f1"].tolist(),
        "uar_present_classes": float(ratios["recall"][present].mean()),
        "uar_all_classes_absent_as_zero": float(ratios["recall"].mean()),
        "war": float(right.sum() / support.sum()),
        "support_weighted_recall": float((ratios["recall"] * support).sum() / support.sum()),
        "macro_f1_all_classes_zero0": float(ratios["f1"].mean()),
        "macro_f1_present_classes_zero0": float(ratios["f1"][present].mean()),
        "macro_precision_all_classes_zero0": float(ratios["precision"].mean()),
        "absent_classes": np.flatnonzero(~present).tolist(),
        "majority": float(support.max() / support.sum()),
    }


def group_answers(d: Decisions, columns: Sequence[int]) -> tuple[NDArray, NDArray, NDArray]:
    """Return for a group of classes which pictures have exactly one right class, and the right and predicted one.

    Returns:
        rows int64 [M], and int64 [M] twice: numbers within the group. The most probable class is predicted.
    """
    positive = d.positive[:, columns]
    rows = np.flatnonzero(positive.sum(1) == 1)
    return rows, positive[rows].argmax(1), d.p[rows][:, columns].argmax(1)


# ---- rules -----------------------------------------------------------------------------------------------------------


def violations(
    p: ArrayLike, table: RuleTable, threshold: float = THRESHOLD, conflicts: ArrayLike | None = None
) -> dict[str, Any]:
    """Compute how often thresholded predictions break rules.

    Args:
        conflicts: bool [N], descriptions that affirm and deny an attribute, which count as violations; "conflicts" is
            their share.
    Returns:
        "rate": share of pictures that break at least one rule; "impossible": that break an exclusion or an implication;
        "incomplete": without any of a group of which one is required; "by_rule": the share for each rule's name.
    """
    broken = attribute_rules.violated(np.asarray(p, np.float64) >= threshold, table)
    incomplete = np.array([rule.kind == "at_least_one" for rule in table.rules], bool)
    conflicting = np.zeros(len(broken), bool) if conflicts is None else np.asarray(conflicts, bool)

    def share(rules: NDArray[np.bool_]) -> float:
        return float(broken[:, rules].any(1).mean())

    return {
        "rate": float((broken.any(1) | conflicting).mean()),
        **({} if conflicts is None else {"conflicts": float(conflicting.mean())}),
        "impossible": share(~incomplete),
        "incomplete": share(incomplete),
        "by_rule": {rule.name: float(broken[:, i].mean()) for i, rule in enumerate(table.rules)},
    }


# ---- intervals and the whole -----------------------------------------------------------------------------------------


def intervals(
    d: Decisions,
    *,
    identities: ArrayLike | None,
    broken: NDArray[np.bool_] | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Compute 95 % percentile bootstrap intervals of the figures.

    Args:
        identities: [N], numbers or names of people, who are drawn with replacement with all their pictures; None draws
            pictures.
        broken: [N], which pictures break a rule.
        groups: columns of the classes of each question.
        bootstrap: number of resamples.
    Returns:
        figure -> [low, high]: those of :func:`metrics` ("macro/f1"), "map", "violations" and "classes/GROUP/accuracy".
    """
    samples: dict[str, list[NDArray]] = {}
    answers = {name: group_answers(d, columns) for name, columns in (groups or {}).items()}
    for weights in _resamples(len(d.p), identities, bootstrap, seed):
        figures = _counted_figures(d, weights)
        precisions = np.stack(list(_average_precisions(d, weights)))
        defined = ~np.isnan(precisions)
        figures["map"] = _divide(np.where(defined, precisions, 0.0).sum(0), defined.sum(0))
        if broken is not None:
            figures["violations"] = _divide(weights @ broken, weights.sum(1))
        for name, (rows, true, predicted) in answers.items():
            part = weights[:, rows]
            figures[f"classes/{name}/accuracy"] = _divide(part @ (true == predicted), part.sum(1))
        for name, values in figures.items():
            samples.setdefault(name, []).append(values)
    edges = {name: np.percentile(np.concatenate(parts), [2.5, 97.5]) for name, parts in samples.items()}
    return {name: [float(low), float(high)] for name, (low, high) in edges.items()}


def _resamples(count: int, identities: ArrayLike | None, number: int, seed: int) -> Iterator[NDArray]:
    """Yield the weights of the pictures in resamples, float64 [rows, N], a few rows at a time."""
    owners = np.arange(count) if identities is None else np.unique(np.asarray(identities), return_inverse=True)[1]
    if len(owners) != count:
        raise ValueError(f"{len(owners)} identities for {count} pictures")
    people, rng = int(owners.max()) + 1, np.random.default_rng(seed)
    chunk = max(1, _CELLS // count)  # bounds the memory, not the result
    for start in range(0, number, chunk):
        rows = min(chunk, number - start)
        draws = rng.integers(0, people, (rows, people)) + people * np.arange(rows)[:, None]
        multiplicity = np.bincount(draws.ravel(), minlength=rows * people).reshape(rows, people)
        yield multiplicity[:, owners].astype(np.float64)


def entry(
    p: ArrayLike,
    labels: ArrayLike,
    names: Sequence[str],
    *,
    labelled: ArrayLike | None = None,
    identities: ArrayLike | None = None,
    table: RuleTable | None = None,
    groups: Mapping[str, Sequence[int]] | None = None,
    threshold: float = THRESHOLD,
    bootstrap: int = 1000,
    seed: int = 0,
    data_hash: str = "",
) -> dict[str, Any]:
    """Return a benchmark's entry in results.json: every figure with its interval, by attribute, class and rule.

    "majority" is the mean accuracy of always giving each attribute's more frequent label, "violations_of_labels" how
    often the labels themselves break a rule (unlabelled attributes counting as negative).

    Args:
        p, labels, labelled, threshold: as for :func:`metrics`.
        names: of the K attributes.
        identities, groups, bootstrap, seed: as for :func:`intervals`.
        table: rules whose violations are counted.
        data_hash: of the store.
    """
    d = decide(p, labels, labelled, threshold)
    figures = metrics(p, labels, labelled, threshold)
    broken = attribute_rules.violated(d.p >= threshold, table).any(1) if table else None
    options: dict[str, Any] = {"identities": identities, "broken": broken, "groups": groups}
    edges = intervals(d, **options, bootstrap=bootstrap, seed=seed) if bootstrap else {}

    def figure(value: float | None, name: str) -> dict[str, Any]:
        return {"value": value, "ci95": edges.get(name)}

    out: dict[str, Any] = {"n": figures["rows_counted"], "attributes": len(figures["attributes_counted"])}
    for name in ("mean_accuracy_over_attributes", "accuracy_labelled_cells", "exact_match"):
        out[name] = figure(figures[name], name)
    for average in AVERAGES:
        out[average] = {name: figure(value, f"{average}/{name}") for name, value in figures[average].items()}
    out["map"] = figure(figures["mean_over_attributes_with_positives"], "map")
    out["majority"] = majority(d)
    out["by_attribute"] = _by_attribute(names, figures, d)
    out["classes"] = {
        name: {
            **_class_entry(d, columns, names, figure, f"classes/{name}/accuracy"),
            "by": _by_group(d, name, groups, names),
        }
        for name, columns in (groups or {}).items()
    }
    if table:
        found = violations(d.p, table, threshold)
        out["violations"] = {**found, "rate": figure(found["rate"], "violations")}
        out["violations_of_labels"] = violations(d.positive, table)["rate"]
    unit = "pictures" if identities is None else "people"
    described = f"95% percentile bootstrap over {unit}, {bootstrap} resamples, seed {seed}"
    out["intervals"] = described if bootstrap else "none (bootstrap=0)"
    return {**out, "threshold": threshold, "data_hash": data_hash}


def majority(d: Decisions) -> float:
    """Return the mean accuracy over attributes of always giving each one's more frequent label."""
    columns = d.known.any(0)
    share = _divide(d.positive.sum(0), d.known.sum(0))[columns]
    return float(np.maximum(share, 1 - share).mean())


def _by_attribute(names: Sequence[str], figures: dict[str, Any], d: Decisions) -> dict[str, dict[str, Any]]:
    per = figures["per_attribute"]
    return {
        name: {
            "labelled": int(d.known[:, i].sum()),
            "positive": per["support"][i],
            **{key: per[key][i] for key in ("accuracy", "precision", "recall", "f1")},
            "average_precision": figures["average_precision"][i],
        }
        for i, name in enumerate(names)
    }


def _by_group(
    d: Decisions, question: str, groups: Mapping[str, Sequence[int]], names: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the accuracy of a question for the pictures of each class of every other question.

    Returns:
        other question -> its class -> n, accuracy with a 95 % Wilson interval, and majority: the share of the most
        frequent right answer there. Classes without pictures are left out.
    """
    rows, true, predicted = group_answers(d, groups[question])
    out: dict[str, dict[str, dict[str, Any]]] = {}
    for other, columns in groups.items():
        if other == question:
            continue
        out[other] = {}
        for column in columns:
            here = d.positive[rows, column]
            if count := int(here.sum()):
                right = int((true == predicted)[here].sum())
                accuracy = {"value": right / count, "ci95": wilson(right, count)}
                majority = float(np.bincount(true[here]).max() / count)
                out[other][names[column]] = {"n": count, "accuracy": accuracy, "majority": majority}
    return out


def _class_entry(d: Decisions, columns: Sequence[int], names: Sequence[str], figure: Any, key: str) -> dict[str, Any]:
    rows, true, predicted = group_answers(d, columns)
    own = [names[i] for i in columns]
    if not len(rows):
        return {"n": 0, "names": own}
    found = classes(true, predicted, len(columns))
    return {"n": len(rows), "names": own, "accuracy": figure(found["war"], key), **found}
