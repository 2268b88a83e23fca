"""Describe searches (1:N), and the figures of templates, in a few lines for people."""

from __future__ import annotations

from typing import Any

from fvjax.evals.templates import FARS

SHOWN = 20  # probes; a file has all


def figure_lines(figures: dict[str, Any]) -> list[str]:
    """Describe the figures of :func:`fvjax.evals.identification.figures`."""
    mated, others = figures["mated"], figures["non_mated"]
    lines = [f"  {figures['probes']:,} probes: {mated:,} of people in the gallery, {others:,} of others"]
    for name, figure in figures.items():
        if name.startswith("rank-") and figure["value"] is not None:
            lines.append(f"  {name}: {_percent(figure)}")
        elif name.startswith("fnir@fpir="):
            lines.append(f"  {_fnir(name.removeprefix('fnir@fpir='), figure)}")
    return lines


def _fnir(fpir: str, figure: dict[str, Any]) -> str:
    if figure["threshold"] is None:
        problem = f"{figure['non_mated']:,} probes of people who are not in the gallery, {figure['needed']:,} needed"
        return f"FNIR at FPIR {fpir}: not measured, {problem}"
    at = f"at threshold {figure['threshold']:.4f}, which {figure['false_positives']:,} strangers reach"
    shown = "not measured, nobody is in the gallery" if figure["value"] is None else _percent(figure)
    return f"FNIR at FPIR {fpir}: {shown}; {at}"


def search_text(result: dict[str, Any]) -> str:
    """Describe the result of :func:`fvjax.search.search`."""
    lines = [_collection_line(name, result[name]) for name in ("gallery", "probe")]
    if result["copies"]:
        first = result["copies"][0]
        lines.append(
            f"{len(result['copies'])} probes are pictures of the gallery; the first: {first['probe']} is "
            f"{first['gallery']}"
        )
    for probe in result["results"][:SHOWN]:
        lines.append(f"{probe['file']}{_reached(probe['above_threshold'])}")
        lines += [
            f"  {number}. {each['score']:.4f}  {each['file']}" for number, each in enumerate(probe["candidates"], 1)
        ]
    if len(result["results"]) > SHOWN:
        lines.append(f"and {len(result['results']) - SHOWN:,} more probes (--json=FILE has all)")
    if result["figures"] is None:
        return "\n".join([*lines, f"no figures: {result['no_figures']}"])
    return "\n".join([*lines, "identification:", *figure_lines(result["figures"])])


def _collection_line(name: str, collection: dict[str, Any]) -> str:
    """Describe the gallery or the probes: how many there are, and what was left out."""
    people, reasons = collection["identities"], collection["left_out_by_reason"]
    line = f"{name} {collection['path']}: {collection['pictures']:,} faces"
    line += "" if people is None else f" of {people:,} people"
    if reasons:
        line += f"; {len(collection['left_out']):,} files left out: "
        line += ", ".join(f"{count} {reason}" for reason, count in reasons.items())
    return line


def _reached(above_threshold: bool | None) -> str:
    if above_threshold is None:
        return ""
    return "" if above_threshold else ": nobody (below the threshold)"


def template_text(result: dict[str, Any]) -> str:
    """Describe the result of :func:`fvjax.ijb.evaluate`."""
    pairs, searches = result["1:1"], result["1:N"]
    lines = [
        f"{result['set'].upper()} (data {result['data_hash'][:8]}): {result['pictures']:,} pictures of "
        f"{result['templates']:,} templates, {'weighted' if result['weighted'] else 'not weighted'} by the detector's "
        "score",
        f"1:1, {pairs['n_genuine']:,} genuine and {pairs['n_impostor']:,} impostor pairs of templates",
    ]
    for far in FARS:
        figure = pairs[f"tar@far={far}"]
        if figure["value"] is None:
            shown = f"not measured: {figure['impostors']:,} impostor pairs, {figure['needed']:,} needed"
        else:
            shown = f"{_percent(figure)} at threshold {figure['threshold']:.4f}"
            shown += f", {figure['impostors_above']:,} impostor pairs above"
        lines.append(f"  TAR at FAR {far}: {shown}")
    if searches is None:
        return "\n".join([*lines, "1:N: the store has no lists of galleries and probes"])
    for name in ("gallery_1", "gallery_2"):
        lines += [f"1:N, {name.replace('_', ' ')} of {searches[name]['templates']:,} templates"]
        lines += figure_lines(searches[name])
    means = ", ".join(
        f"{name} {'not measured' if value is None else f'{value:.2%}'}" for name, value in searches["mean"].items()
    )
    return "\n".join([*lines, f"1:N, mean of both galleries: {means}"])


def _percent(figure: dict[str, Any]) -> str:
    """Format a share and its 95% interval."""
    low, high = figure["ci95"]
    return f"{figure['value']:.2%} ({low:.2%} to {high:.2%})"
