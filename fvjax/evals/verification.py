"""Evaluate embeddings or answers on a benchmark's pairs: entries of results.json and the terminal table.

This module knows no model and reads no file. The caller provides images, an embedding function and pairs: any object
with the arrays a and b (record numbers), same (bool), fold, identity_a and identity_b, all [M], as ``read_pairs``
returns it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.markup import escape

from fvjax.evals import folds
from fvjax.evals.wide_table import WideTable

# Benchmarks that are parts of one, by the name of the whole: RFW's four groups of people.
GROUPS = {"rfw": ("rfw_african", "rfw_asian", "rfw_caucasian", "rfw_indian")}


def embed(
    embed_faces: Callable[[NDArray], NDArray], batches: Iterable[tuple[NDArray, int]], *, flip_sum: bool = False
) -> NDArray:
    """Embed every image of ``batches`` once, in order.

    Args:
        embed_faces: uint8 [b, H, W, 3] -> float [b, D].
        batches: (uint8 [b, H, W, 3], number of rows before the padding), as ``pipeline.eval_batches`` yields them.
        flip_sum: add the embedding of the mirrored image.
    Returns:
        float32 [N, D], not normalised.
    """
    parts = []
    for faces, count in batches:
        part = np.asarray(embed_faces(faces), np.float32)
        if flip_sum:
            part = part + np.asarray(embed_faces(np.ascontiguousarray(faces[:, :, ::-1])), np.float32)
        parts.append(part[:count])
    return np.concatenate(parts)


def scores(embeddings: NDArray, pairs: Any) -> NDArray:
    """Compute the cosine similarity of every pair, float32 [M].

    Raises ValueError for a record that is missing, or whose embedding is not finite or all zero.
    """
    used = np.union1d(pairs.a, pairs.b)
    if len(used) and (used[0] < 0 or used[-1] >= len(embeddings)):
        missing = used[0] if used[0] < 0 else used[-1]
        raise ValueError(f"the pairs name record {missing}, but there are {len(embeddings)} embeddings")
    norms = np.sqrt(np.einsum("nd,nd->n", embeddings, embeddings, dtype=np.float64))
    broken = used[~(np.isfinite(norms[used]) & (norms[used] > 0))]
    if len(broken):
        raise ValueError(f"the embedding of record {broken[0]} is zero or not finite (records affected: {len(broken)})")
    out = np.empty(len(pairs.a), np.float32)
    # A few pairs at a time, because the raw-pixel baseline has embeddings of 150 kB.
    for rows in np.array_split(np.arange(len(out)), 1 + len(out) * embeddings.shape[1] // 2**22):
        a, b = pairs.a[rows], pairs.b[rows]
        products = np.einsum("md,md->m", embeddings[a], embeddings[b], dtype=np.float64)
        out[rows] = products / norms[a] / norms[b]
    return out


def answers(
    prefix: Callable[[NDArray], Any],
    after: Callable[[Any, NDArray, NDArray], NDArray],
    visual: NDArray,
    pairs: Any,
    *,
    batch_size: int,
    multiple: int,
    track: Callable[[range], Iterable[int]] = iter,
) -> NDArray:
    """Compute a model's answer to every pair (image a, then b). Pairs with the same first image share its prefix.

    Args:
        prefix: visual tokens [u, V, D] of first images -> the model's cache after them.
        after: (cache, its row for each pair int [b], visual tokens [b, V, D] of second images) -> float [b].
        visual: [N, V, D], visual tokens by record number.
        batch_size: the number of pairs b per call.
        multiple: u is rounded up to a multiple of this, so that few shapes are compiled.
        track: wraps the loop over batches, to show its progress.
    Returns:
        float32 [M].
    """
    order = np.argsort(pairs.a, kind="stable")
    out = np.empty(len(order), np.float32)
    for start in track(range(0, len(order), batch_size)):
        rows = order[start : start + batch_size]
        padded = np.append(rows, np.repeat(rows[-1:], batch_size - len(rows)))
        firsts, cache_rows = np.unique(pairs.a[padded], return_inverse=True)
        cache = prefix(visual[np.append(firsts, np.repeat(firsts[-1:], -len(firsts) % multiple))])
        out[rows] = np.asarray(after(cache, cache_rows, visual[pairs.b[padded]]))[: len(rows)]
    if not np.isfinite(out).all():
        raise ValueError(f"the answer to pair {np.flatnonzero(~np.isfinite(out))[0]} is not finite")
    return out


def entry(
    pair_scores: NDArray,
    pairs: Any,
    benchmark: Mapping[str, Any],
    data_hash: str,
    *,
    seen: Collection[int] | None = None,
    bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Make one benchmark's entry of results.json: :func:`fvjax.evals.folds.verification` and the origin of the pairs.

    Args:
        pair_scores: float [M], for instance from :func:`scores`.
        benchmark: the store manifest's record of this benchmark ("policy", "failure_to_acquire").
        data_hash: hash of the store.
        seen: identities (numbers as in ``pairs.identity_a``) in the training data. If it is not None,
            ``identity_disjoint`` has the same figures over the pairs without these identities. A fold that has no
            genuine or no impostor pairs left is omitted (see ``n_folds``), and with fewer than two folds left
            of several ``identity_disjoint`` is None.
    """
    missing = {"policy", "failure_to_acquire"} - set(benchmark)
    if missing:
        raise ValueError(f"the manifest's benchmark lacks {sorted(missing)}; prepare the store again")

    def figures(rows: NDArray) -> dict[str, Any]:
        rows = rows[np.argsort(pairs.fold[rows], kind="stable")]
        return folds.verification(
            pair_scores[rows],
            pairs.same[rows],
            np.unique(pairs.fold[rows], return_counts=True)[1].tolist(),
            identities_a=pairs.identity_a[rows],
            identities_b=pairs.identity_b[rows],
            bootstrap=bootstrap,
            seed=seed,
        )

    if np.shape(pair_scores) != np.shape(pairs.same):
        raise ValueError(f"{np.shape(pair_scores)} scores for {len(pairs.same)} pairs; expected one score per pair")
    disjoint = None
    if seen is not None:
        unseen = ~(np.isin(pairs.identity_a, list(seen)) | np.isin(pairs.identity_b, list(seen)))
        complete_folds = np.intersect1d(pairs.fold[unseen & pairs.same], pairs.fold[unseen & ~pairs.same])
        if len(complete_folds) >= min(2, len(np.unique(pairs.fold))):
            disjoint = figures(np.flatnonzero(unseen & np.isin(pairs.fold, complete_folds)))
    return {
        **figures(np.arange(len(pairs.same))),
        "failure_to_acquire": benchmark["failure_to_acquire"],
        "policy": benchmark["policy"],
        "identities": benchmark.get("identities", "named"),  # older stores lack the key; theirs are named
        "identity_disjoint": disjoint,
        "data_hash": data_hash,
    }


def over_groups(entries: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Summarise the accuracies at the best threshold over the parts of a benchmark; only if all of GROUPS are there.

    Returns:
        by the name of the whole {"mean", "std" (population), "lowest", "highest"}; the last two are [part, accuracy].
    """
    result = {}
    for whole, parts in GROUPS.items():
        if all(part in entries for part in parts):
            means = {part: entries[part]["accuracy@best_threshold"]["mean"] for part in parts}
            lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
            values = np.array(list(means.values()))
            result[whole] = {
                "mean": float(values.mean()),
                "std": float(values.std()),
                "lowest": [lowest, means[lowest]],
                "highest": [highest, means[highest]],
            }
    return result


def groups_line(groups: Mapping[str, Mapping[str, Any]]) -> str:
    """Describe the result of :func:`over_groups` in a sentence for each benchmark; "" if there is none."""
    return " ".join(
        f"{whole} over its groups, best threshold: mean {100 * g['mean']:.2f}, std {100 * g['std']:.2f}, lowest "
        f"{100 * g['lowest'][1]:.2f} ({g['lowest'][0]}), highest {100 * g['highest'][1]:.2f} ({g['highest'][0]})."
        for whole, g in groups.items()
    )


def table(rows: Sequence[tuple[str, str, Mapping[str, Any]]], remark: str = "") -> WideTable:
    """Format the terminal's table. rows: (row name, benchmark name, entry of results.json).

    `remark` is added to the caption. TAR at FAR 1e-4 and below has a column only if a row has enough impostor pairs for
    it.
    """
    small = [far for far in folds.SMALL_FARS if any(_is_measured(figures, far) for _, _, figures in rows)]
    fars = [*folds.FARS, *small]
    folds_used = "/".join(str(n) for n in sorted({figures["n_folds"] for _, _, figures in rows}))
    single = any(figures["n_folds"] == 1 for _, _, figures in rows)
    one_fold = "With 1 fold, thresholds are chosen on the pairs that they are judged on. " if single else ""
    heads = ["pairs\n", f"{folds_used}-fold\nbest", f"{folds_used}-fold\n@FAR 1e-3"]
    heads += [f"TAR\n@FAR {far}" for far in fars]
    out = WideTable(
        title="Face verification (%); second lines are 95% bootstrap intervals",
        caption=f"Accuracy: {folds_used}-fold mean ± std. 'best' uses the threshold that is most accurate on the other "
        "folds; '@FAR 1e-3' uses the threshold with that false accept rate on them, the k-th highest of their n "
        f"impostor scores, k = floor(n / 1000) (LLM-FaceVerification's protocol). {one_fold}"
        "TAR, AUC and EER: all pairs pooled; "
        "in parentheses the number of impostor pairs that a TAR rests on. FTA: number of images not acquired."
        + (f" {remark}" if remark else ""),
        first="benchmark\nmodel",
        columns=[*heads, "AUC\n", "EER\n"],
    )
    for name, benchmark, figures in rows:
        head = f"[bold]{escape(benchmark)}[/bold]\n{escape(name)}"
        out.rows.append((head, *_cells(figures, fars)))
    return out


def _is_measured(figures: Mapping[str, Any], far: str) -> bool:
    """Tell whether an entry, perhaps of an older version, has TAR at a small FAR."""
    return figures.get(f"tar@far={far}", {"value": None})["value"] is not None


def _cells(figures: Mapping[str, Any], fars: Sequence[str]) -> list[str]:
    """Format the cells of one row."""
    failed = figures.get("failure_to_acquire", 0)
    cells = [f"{figures['n_pairs']}" + (f"\n{failed} FTA" if failed else "")]
    for key in ("accuracy@best_threshold", "accuracy@far=1e-3"):
        figure = figures[key]
        cells.append(f"{100 * figure['mean']:.2f} ± {100 * figure['std']:.2f}{_interval(figure)}")
    for far in fars:
        if far in folds.SMALL_FARS and not _is_measured(figures, far):
            cells.append(f"of {figures['n_impostor']}")
            continue
        figure = figures[f"tar@far={far}"]
        cells.append(f"{100 * figure['value']:.2f} ({figure['impostors_above']}){_interval(figure)}")
    return cells + [f"{100 * figures[key]['value']:.2f}{_interval(figures[key])}" for key in ("auc", "eer")]


def _interval(figure: Mapping[str, Any]) -> str:
    """Format a figure's interval as the second line of its cell."""
    return "" if figure["ci95"] is None else "\n[dim]{:.1f}–{:.1f}[/dim]".format(*(100 * x for x in figure["ci95"]))
