"""Test what is printed about searches and templates, line by line, from figures written by hand."""

import pytest

from fvjax.evals import search_text
from fvjax.evals.templates import FARS

FIRST_FAR, *OTHER_FARS = FARS


def share(value: float | None = 0.5, **more):
    return {"value": value, "ci95": [0.25, 0.75], **more}


def figures(**changes):
    return {
        "probes": 1200,
        "mated": 1000,
        "non_mated": 200,
        "rank-1": share(0.9),
        "rank-5": share(None),
        "fnir@fpir=0.1": share(0.2, threshold=0.41234, false_positives=1020),
        "fnir@fpir=0.01": share(threshold=None, non_mated=1050, needed=10000),
        "fnir@fpir=0.3": share(None, threshold=0.1, false_positives=3),
    } | changes


def test_figures_of_a_search():
    assert search_text.figure_lines(figures()) == [
        "  1,200 probes: 1,000 of people in the gallery, 200 of others",
        "  rank-1: 90.00% (25.00% to 75.00%)",
        "  FNIR at FPIR 0.1: 20.00% (25.00% to 75.00%); at threshold 0.4123, which 1,020 strangers reach",
        "  FNIR at FPIR 0.01: not measured, 1,050 probes of people who are not in the gallery, 10,000 needed",
        "  FNIR at FPIR 0.3: not measured, nobody is in the gallery; at threshold 0.1000, which 3 strangers reach",
    ]


def result(**changes):
    gallery = {"path": "g", "pictures": 1200, "identities": 30, "left_out": [], "left_out_by_reason": {}}
    left_out = {"left_out": [{}] * 1003, "left_out_by_reason": {"hidden": 3, "no face": 1000}}
    probe = {"path": "p", "pictures": 5, "identities": None, **left_out}
    best = [{"score": 0.51239, "file": "g/a.jpg"}, {"score": -0.1, "file": "g/b.jpg"}]
    results = [
        {"file": f"p/{number}.jpg", "above_threshold": above, "candidates": best[:count]}
        for number, (above, count) in enumerate(((None, 2), (True, 1), (False, 1)))
    ]
    entries = {"gallery": gallery, "probe": probe, "copies": [], "results": results}
    return entries | {"figures": None, "no_figures": "nobody says who is who"} | changes


SEARCH = """\
gallery g: 1,200 faces of 30 people
probe p: 5 faces; 1,003 files left out: 3 hidden, 1000 no face
p/0.jpg
  1. 0.5124  g/a.jpg
  2. -0.1000  g/b.jpg
p/1.jpg
  1. 0.5124  g/a.jpg
p/2.jpg: nobody (below the threshold)
  1. 0.5124  g/a.jpg
"""


def test_a_search_is_described():
    assert search_text.search_text(result()) == f"{SEARCH}no figures: nobody says who is who"
    described = "\n".join(search_text.figure_lines(figures()))
    assert search_text.search_text(result(figures=figures())) == f"{SEARCH}identification:\n{described}"


def test_the_first_of_several_copies_is_named():
    copies = [{"probe": "p/1.jpg", "gallery": "g/7.jpg"}, {"probe": "p/2.jpg", "gallery": "g/8.jpg"}]
    line = "2 probes are pictures of the gallery; the first: p/1.jpg is g/7.jpg"
    assert search_text.search_text(result(copies=copies)).splitlines()[2] == line


@pytest.mark.parametrize(("probes", "more"), [(20, None), (21, "1"), (1525, "1,505")])
def test_twenty_probes_are_shown(probes, more):
    row = result()["results"][0]
    lines = search_text.search_text(result(results=[row] * probes)).splitlines()
    assert lines.count("p/0.jpg") == 20
    said = [line for line in lines if line.endswith("more probes (--json=FILE has all)")]
    assert said == ([] if more is None else [f"and {more} more probes (--json=FILE has all)"])


def templates(**changes):
    pairs = {"n_genuine": 19557, "n_impostor": 15638932}
    pairs |= {f"tar@far={far}": share(0.9, threshold=0.3, impostors_above=1563) for far in FARS}
    pairs |= {f"tar@far={FIRST_FAR}": share(None, impostors=15638932, needed=100000000)}
    searches = {name: figures(templates=1772) for name in ("gallery_1", "gallery_2")}
    searches["mean"] = {"rank-1": 0.95678, "rank-5": None}
    head = {"set": "ijbc", "data_hash": "0123456789abcdef", "pictures": 469375, "templates": 23124, "weighted": True}
    return head | {"1:1": pairs, "1:N": searches} | changes


def test_figures_of_templates():
    lines = search_text.template_text(templates()).splitlines()
    assert lines[:3] == [
        "IJBC (data 01234567): 469,375 pictures of 23,124 templates, weighted by the detector's score",
        "1:1, 19,557 genuine and 15,638,932 impostor pairs of templates",
        f"  TAR at FAR {FIRST_FAR}: not measured: 15,638,932 impostor pairs, 100,000,000 needed",
    ]
    shown = "90.00% (25.00% to 75.00%) at threshold 0.3000, 1,563 impostor pairs above"
    assert lines[3 : 2 + len(FARS)] == [f"  TAR at FAR {far}: {shown}" for far in OTHER_FARS]
    described = search_text.figure_lines(figures())
    both = [
        line for number in (1, 2) for line in (f"1:N, gallery {number} of 1,772 templates", *described)
    ]  # fmt: skip
    assert lines[2 + len(FARS) :] == [*both, "1:N, mean of both galleries: rank-1 95.68%, rank-5 not measured"]


def test_templates_without_lists_of_galleries():
    lines = search_text.template_text(templates(weighted=False, **{"1:N": None})).splitlines()
    assert lines[0].endswith("23,124 templates, not weighted by the detector's score")
    assert lines[-1] == "1:N: the store has no lists of galleries and probes"
    assert len(lines) == 3 + len(FARS)
