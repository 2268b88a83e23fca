"""IJB-B and IJB-C in the layout that insightface distributes, to a store with templates.

    SRC/loose_crop/1.jpg …                            pictures, not aligned
    SRC/meta/ijbc_name_5pts_score.txt                 picture, five points x y, score of the detector
    SRC/meta/ijbc_face_tid_mid.txt                    picture, template, medium
    SRC/meta/ijbc_template_pair_label.txt             template, template, 1 (one person) or 0
    SRC/meta/ijbc_1N_gallery_G1.csv, …_G2.csv         TEMPLATE_ID,SUBJECT_ID,…; in IJB-B _S1 and _S2
    SRC/meta/ijbc_1N_probe_mixed.csv                  likewise

Source of the layout: insightface's recognition/_evaluation_/ijb (ijb_11.py, ijb_1n.py). The three 1:N lists may be
missing together.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvjax.data import names
from fvjax.data.alignment import aligner as alignment
from fvjax.data.alignment.geometry import TEMPLATE, similarity
from fvjax.data.progress import track
from fvjax.data.readers.files import MAX_LIST_BYTES, read_lines, read_text, require_directory
from fvjax.data.stores import Store, Writer
from fvjax.data.stores.templates import FILE, Templates, check, encode

GALLERIES = {"ijbb": ("S1", "S2"), "ijbc": ("G1", "G2")}  # by set, what the lists of its galleries are called
PICTURES = "loose_crop"
MAX_NUMBER = 2**31 - 1  # of a template, medium or subject


class Lists(NamedTuple):
    """The official lists of IJB-B or IJB-C."""

    name: str  # ijbb or ijbc
    files: list[str]  # [N], pictures relative to loose_crop, in the order of the list of templates
    points: dict[str, NDArray]  # by picture, float64 [5, 2]
    templates: Templates

    @property
    def points_file(self) -> str:
        return f"{self.name}_name_5pts_score.txt"


def read(src: Path) -> Lists:
    """Read the lists in SRC/meta.

    Raises:
        ValueError: a list is missing or malformed, a picture has no points, a pair, gallery or probe has a template
            without pictures, or a template is in both galleries, or in one and a probe. The message names the file.
    """
    meta = require_directory(src / "meta")
    name = next((name for name in GALLERIES if (meta / f"{name}_face_tid_mid.txt").is_file()), None)
    if name is None:
        raise ValueError(f"{meta}: neither ijbb_face_tid_mid.txt nor ijbc_face_tid_mid.txt is here")
    listed = meta / f"{name}_face_tid_mid.txt"
    files, template, medium = _read_pictures(listed)
    points_file = meta / f"{name}_name_5pts_score.txt"
    points, detection = _read_points(points_file)
    if missing := next((file for file in files if file not in points), None):
        raise ValueError(f"{listed}: {missing} has no row in {points_file.name}; supply its points and score")
    scores = np.array([detection[file] for file in files], np.float32)
    pairs = _read_pairs(meta / f"{name}_template_pair_label.txt")
    _check_known(meta / f"{name}_template_pair_label.txt", pairs[:, :2], template)
    searches = [array for file in _search_lists(meta, name) for array in _read_people(file, template)]
    templates = Templates(template, medium, scores, *pairs.T, *(searches or [np.empty(0, np.int32)] * 6))
    check(templates, len(files), str(meta))
    return Lists(name, files, points, templates)


def convert(src: Path, dst: Path, *, policy: str, workers: int) -> Store:
    """Convert IJB-B or IJB-C (lists and loose crops as insightface distributes them) to a store with templates.

    Every picture is aligned by its five points. The identity of a record is its template's subject if a 1:N list says
    who it is, otherwise the template.

    Args:
        policy: what to do about pictures that are missing or cannot be read: "fail", or "drop" them, counted.
        workers: processes that align.
    Raises:
        ValueError: see :func:`read`; a picture that cannot be used, or a template whose pictures are all dropped.
    """
    lists = read(src)
    root = require_directory(src / PICTURES)
    aligner = alignment.Aligner(None, (src / "meta" / lists.points_file, lists.points), policy=policy, workers=workers)
    with Writer(dst, split="test", sources=[str(src)]) as writer:
        with alignment.crops(aligner, root, lists.files, writer.info) as crops:
            stored = _add_records(writer, root, lists, crops, policy)
        t = lists.templates
        if len(empty := np.setdiff1d(t.template, t.template[stored])):
            remedy = "supply some, or remove it from the lists"
            raise ValueError(f"{root}: template {empty[0]} is left without pictures ({len(empty)} such); {remedy}")
        kept = t.of_pictures(stored)
        data, digest = encode(kept)
        writer.path_within(FILE).write_bytes(data)
        writer.info["templates"] = {"set": lists.name, "hash": digest, "policy": policy, **_counts(kept, lists)}
    return Store(dst, "test")


def _add_records(
    writer: Writer, root: Path, lists: Lists, crops: Iterator[alignment.Crop | None], policy: str
) -> NDArray:
    """Add a record for each picture, in order; return bool [N], which of them there are."""
    subjects = lists.templates.subjects
    stored = np.zeros(len(lists.files), bool)
    for row, file in enumerate(track(lists.files)):
        template = int(lists.templates.template[row])
        identity = f"subject {subjects[template]}" if template in subjects else f"template {template}"
        try:
            writer.add(alignment.face_jpeg(root, file, resize=False, crop=next(crops)), identity, names.plain(file))
        except ValueError as error:
            if policy == "fail":
                raise ValueError(f"{root}: {error}; supply it, or leave it out with --policy=drop") from error
            writer.reject(file, str(error))
            continue
        stored[row] = True
    return stored


def _counts(templates: Templates, lists: Lists) -> dict[str, int]:
    """Return the manifest's counts: pictures_read = pictures_written + pictures_dropped."""
    same, t = templates.pair_same, templates
    written, read_in = len(t.template), len(lists.files)
    return {
        "pictures_read": read_in,
        "pictures_written": written,
        "pictures_dropped": read_in - written,
        "templates": len(np.unique(t.template)),
        "media": len(np.unique(np.stack([t.template, t.medium]), axis=1).T),
        "pairs": len(same),
        "genuine": int(same.sum()),
        "gallery_1": len(t.gallery_1),
        "gallery_2": len(t.gallery_2),
        "probes": len(t.probe),
    }


def _read_pictures(file: Path) -> tuple[list[str], NDArray, NDArray]:
    """Parse "picture template medium" lines: the pictures, and int32 [N] of each its template and medium."""
    rows: dict[str, tuple[int, int]] = {}
    for number, line in read_lines(file):
        cells = line.split()
        if len(cells) != 3 or not all(cell.isdecimal() and int(cell) <= MAX_NUMBER for cell in cells[1:]):
            raise ValueError(f"{file}:{number}: expected 'picture template medium', got {line!r}")
        name = _picture(cells[0], f"{file}:{number}")
        if name in rows:
            raise ValueError(f"{file}:{number}: {name} a second time; remove one of the rows")
        rows[name] = int(cells[1]), int(cells[2])
    template, medium = np.array(list(rows.values()), np.int32).T
    return list(rows), template, medium


def _read_points(file: Path) -> tuple[dict[str, NDArray], dict[str, float]]:
    """Parse "picture x y x y x y x y x y score" lines: points [5, 2] and the score by picture."""
    points, scores = {}, {}
    for number, line in read_lines(file):
        cells = line.split()
        try:
            values = np.array([float(cell) for cell in cells[1:]])
            if len(values) != 11 or not np.isfinite(values).all():
                raise ValueError("expected a picture, five points x y and a score")
            similarity(values[:10].reshape(5, 2), TEMPLATE)
        except ValueError as error:
            raise ValueError(f"{file}:{number}: {error}, got {line!r}") from error
        name = _picture(cells[0], f"{file}:{number}")
        if name in points:
            raise ValueError(f"{file}:{number}: {name} a second time; remove one of the rows")
        points[name], scores[name] = values[:10].reshape(5, 2), float(values[10])
    return points, scores


def _picture(cell: str, location: str) -> str:
    """Return a picture's path in the form in which paths are compared; it must lie below loose_crop."""
    if os.path.isabs(cell) or ".." in (path := names.path(cell)).split("/"):
        raise ValueError(f"{location}: {cell!r} is no path below {PICTURES}")
    return path


def _read_pairs(file: Path) -> NDArray:
    """Parse "template template label" lines, of which IJB-C has 15.7 million: int32 [M, 3]."""
    size = file.stat().st_size if file.is_file() else 0
    if not 0 < size <= MAX_LIST_BYTES:
        raise ValueError(f"{file}: missing, empty or larger than {MAX_LIST_BYTES} bytes; expected the list of pairs")
    try:
        pairs = np.loadtxt(file, np.int64, ndmin=2, comments=None)
    except (ValueError, OverflowError) as error:
        raise ValueError(f"{file}: expected 'template template label' in every line ({error})") from error
    if pairs.shape[1] != 3:
        raise ValueError(f"{file}:1: expected 'template template label', got {pairs.shape[1]} columns")
    right = np.isin(pairs[:, 2], (0, 1)) & (pairs[:, :2] >= 0).all(axis=1) & (pairs[:, :2] <= MAX_NUMBER).all(axis=1)
    if not right.all():
        row = int(np.argmin(right))
        raise ValueError(f"{file}:{row + 1}: expected 'template template label', got {pairs[row].tolist()}")
    return pairs.astype(np.int32)


def _search_lists(meta: Path, name: str) -> list[Path]:
    """Return the lists of gallery 1, gallery 2 and the probes; [] if there is none of them."""
    ends = [*(f"gallery_{gallery}" for gallery in GALLERIES[name]), "probe_mixed"]
    lists = [meta / f"{name}_1N_{end}.csv" for end in ends]
    missing = [file for file in lists if not file.is_file()]
    if missing and len(missing) < len(lists):
        raise ValueError(f"{missing[0]}: no such file, but other 1:N lists are here; supply all three or none")
    return [] if missing else lists


def _read_people(file: Path, known: NDArray) -> tuple[NDArray, NDArray]:
    """Parse a CSV whose first two columns are a template and its subject, with a head and a row for each picture.

    Returns:
        int32 [n] templates, each once, and int32 [n] their subjects.
    """
    subjects: dict[int, int] = {}
    rows = csv.reader(read_text(file).split("\n"))
    for number, cells in enumerate(rows, 1):
        if number == 1 or not cells:
            continue
        if len(cells) < 2 or not all(cell.strip().isdecimal() and int(cell) <= MAX_NUMBER for cell in cells[:2]):
            raise ValueError(f"{file}:{number}: expected TEMPLATE_ID,SUBJECT_ID,…, got {','.join(cells)!r}")
        template, subject = int(cells[0]), int(cells[1])
        if subjects.setdefault(template, subject) != subject:
            raise ValueError(f"{file}:{number}: template {template} is of subject {subject}, and above of another")
    if not subjects:
        raise ValueError(f"{file}: empty; expected a head and rows of TEMPLATE_ID,SUBJECT_ID,…")
    templates = np.array(list(subjects), np.int32)
    _check_known(file, templates[:, None], known)
    return templates, np.array(list(subjects.values()), np.int32)


def _check_known(file: Path, templates: NDArray, known: NDArray) -> None:
    """Raise ValueError for a template, in [n, columns], that has no picture."""
    unknown = ~np.isin(templates, known)
    if unknown.any():
        row, column = np.argwhere(unknown)[0]
        count = len(np.unique(templates[unknown]))
        raise ValueError(
            f"{file}: template {templates[row, column]} is unknown: no picture of it is listed in "
            f"{file.name.split('_')[0]}_face_tid_mid.txt ({count} such templates)"
        )


def add_command(commands: Any) -> None:
    """Add the command ``ijb`` with its flags to an argparse parser."""
    sub = commands.add_parser("ijb", help=(convert.__doc__ or "").split("\n")[0], allow_abbrev=False)
    sub.add_argument("--src", type=Path, required=True, help="folder with meta and loose_crop, such as IJBC")
    sub.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    sub.add_argument("--policy", choices=("fail", "drop"), default="fail", help="for pictures that cannot be used")
    sub.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes that align (one per core)")
    sub.set_defaults(run=convert, summary=summary)


def summary(store: Store) -> str:
    """Describe a new store in a few lines for the user."""
    c = store.manifest["templates"]
    lines = [
        f"{store.path}: {c['set'].upper()}, {c['pictures_written']} pictures of {c['templates']} templates and "
        f"{c['media']} media; data {store.data_hash[:16]}",
        f"  {c['pictures_read']} pictures read = {c['pictures_written']} written + {c['pictures_dropped']} dropped "
        f"(policy {c['policy']})",
        f"  1:1: {c['pairs']} pairs of templates, {c['genuine']} genuine",
    ]
    if c["probes"]:
        lines.append(f"  1:N: {c['probes']} probes, {c['gallery_1']} and {c['gallery_2']} templates in the galleries")
    else:
        lines.append("  1:N: no lists of galleries and probes are there")
    if rejected := store.manifest["rejected"]:
        kinds = ", ".join(f"{n} {kind}" for kind, n in store.manifest["rejected_by_reason"].items())
        lines.append(f"  dropped: {kinds}; the first: {rejected[0]['file']}: {rejected[0]['reason']}")
    return "\n".join(lines)
