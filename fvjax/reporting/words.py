"""Words and numbers of reports and model cards: figures in per cent, and protocols in plain sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fvjax.evals import folds, intervals, operating_points
from fvjax.evals.finished import FinishedRun
from fvjax.evals.pair_text import FEW

UNKNOWN = "not known"
FIGURES = {  # of a benchmark's entry in results.json -> what tables call them
    "accuracy@best_threshold": "accuracy, best threshold",
    "accuracy@far=1e-3": "accuracy at FAR 1e-3",
    **{f"tar@far={far}": f"TAR at FAR {far}" for far in folds.FARS},
    "auc": "AUC",
    "eer": "EER",
}
POLICIES = {
    "fail": "a picture that is missing or has no face would have stopped the preparation of the data",
    "drop": "pairs with a picture that is missing or has no face were left out",
    "fallback": "where no face was found, a crop of the middle of the picture stands in",
}


def percent(share: float, sign: str = "") -> str:
    """Format a share in per cent, without the sign of per cent."""
    return f"{100 * share:{sign}.2f}"


def interval(edges: Sequence[float] | None, sign: str = "") -> str:
    """Format an interval of a share in per cent; say so if there is none."""
    return "no interval" if edges is None else " to ".join(percent(edge, sign) for edge in edges)


def small_share(share: float) -> str:
    """Format a share that may be much below a per cent, in per cent with two significant digits."""
    return f"{100 * share:.2g}"


def value(figure: Mapping[str, Any]) -> str:
    """Format a figure of results.json in per cent: mean ± std over folds, or a single value."""
    if "mean" in figure:
        return f"{percent(figure['mean'])} ± {percent(figure['std'])}"
    return UNKNOWN if figure["value"] is None else percent(figure["value"])


def measure(run: FinishedRun) -> str:
    """Return what a score of a run's pairs is."""
    return "P(Yes)" if run.settings.get("task") == "pair_answer" else "cosine"


def protocol(run: FinishedRun, entry: Mapping[str, Any]) -> list[str]:
    """Describe in sentences how the figures of a benchmark were made."""
    n_folds = entry["n_folds"]
    parts = "one fold" if n_folds == 1 else f"{n_folds} folds"
    out = [
        f"{entry['n_pairs']:,} pairs of pictures: {entry['n_genuine']:,} genuine ones (one person) and "
        f"{entry['n_impostor']:,} impostor pairs (two persons), in {parts}.",
        _score_sentence(run),
        "A pair is accepted as one person if its score is at or above a threshold.",
    ]
    if n_folds == 1:
        out.append(f"Thresholds of accuracies are {entry.get('thresholds', folds.ONE_FOLD)}.")
    else:
        out.append(
            "Accuracies are means ± population standard deviations over the folds. “Best threshold”: the one that is "
            "most accurate on the other folds. “At FAR 1e-3”: the k-th highest of the n impostor scores of the other "
            "folds, k = n / 1000 rounded down."
        )
    out.append("TAR (1 - FNMR) at a FAR (FMR), AUC and EER: all pairs pooled, without folds.")
    out.append(f"Intervals: {entry.get('intervals', UNKNOWN)}.")
    return out


def _score_sentence(run: FinishedRun) -> str:
    if measure(run) == "P(Yes)":
        return "A score is the probability with which the model answers Yes, rather than No, to both pictures."
    flip = run.results.get("flip_sum")
    if flip is None:
        return f"A score is the cosine of two embeddings; whether mirrored pictures were added to them is {UNKNOWN}."
    whole = "each the sum of those of a picture and of its mirror image" if flip else "of the pictures as they are"
    return f"A score is the cosine of two embeddings, {whole}."


def acquisition(entry: Mapping[str, Any]) -> str:
    """Describe the failures to acquire, and how the people of a benchmark are known."""
    failed, policy = entry.get("failure_to_acquire"), entry.get("policy", UNKNOWN)
    count = UNKNOWN if failed is None else f"{failed:,} pictures"
    meaning = f": {POLICIES[policy]}" if policy in POLICIES else ""
    identities = entry.get("identities", UNKNOWN)
    people = "People are named in the data." if identities == "named" else f"Identities: {identities}."
    return f"Failure to acquire: {count} (policy “{policy}”{meaning}). {people}"


def seen_sentence(entry: Mapping[str, Any]) -> str:
    """Say whether training has seen people of a benchmark."""
    seen = entry.get("identities_seen_in_training")
    if seen is None:
        return (
            f"Whether training saw people of this benchmark is {UNKNOWN}: the model was trained elsewhere, or its "
            "training data name people in another way."
        )
    if not seen:
        return "Training saw none of the people of this benchmark."
    if entry.get("identity_disjoint"):
        return f"Training saw {seen:,} of these people; the row “unseen people only” leaves their pairs out."
    return (
        f"Training saw {seen:,} of these people, and too few pairs of other people are left for figures of their own."
    )


def threshold_sentence(entry: Mapping[str, Any]) -> str:
    """Describe the threshold that `fvjax verify` uses: its false accept rate, the interval, and what it rests on."""
    threshold, above, others = operating_points.of_entry(entry)
    low, high = (small_share(edge) for edge in intervals.wilson(above, others))
    if not above:
        rests = f"It lies just above all of some {others:,} impostor scores, too few for that rate."
    else:
        few = ": few, so take the rate as a rough one" if above < FEW else ""
        rests = f"It rests on the {above} highest of some {others:,} impostor scores{few}."
    return (
        f"Threshold for FAR 0.1%, which fvjax verify uses: {threshold:.4f}, the mean over folds. {rests} 95% "
        f"interval of its FAR: {low}% to {high}% (Wilson)."
    )


def or_unknown(found: Any, reason: str = "") -> str:
    """Return a fact as text; if there is none, say so and why."""
    if found not in (None, ""):
        return str(found)
    return f"{UNKNOWN}: {reason}" if reason else UNKNOWN


def model_facts(run: FinishedRun) -> list[tuple[str, str]]:
    """Describe what was evaluated."""
    settings = run.settings
    if run.is_foreign:
        names = {"embedder": "model", "channels": "order of colours", "pixels": "values of pixels"}
        given = [(words, str(settings[key])) for key, words in names.items() if key in settings]
        return [*given, ("trained", f"{UNKNOWN}: fvjax did not train this model")]
    model, trained = settings.get("model", {}), bool(settings.get("epochs") or settings.get("steps"))
    length = f"{settings['steps']} steps" if settings.get("steps") else f"{settings.get('epochs')} epochs"
    adapters = settings.get("lora", {}).get("rank")
    return [
        ("experiment", or_unknown(settings.get("name"))),
        ("task", or_unknown(settings.get("task"))),
        ("model", " ".join(filter(None, (model.get("kind"), model.get("pooling")))) or UNKNOWN),
        ("weights that it started from", Path(settings.get("init_from") or "").name or "none: initialised at random"),
        ("adapters", f"LoRA, rank {adapters}" if adapters else "none"),
        ("trained", f"{length}, seed {settings.get('seed')}" if trained else "no: evaluated as it is"),
        ("step that was evaluated", or_unknown(run.results.get("step"))),
    ]
