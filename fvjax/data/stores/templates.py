"""Template protocols over a store's records, as of IJB-B and IJB-C, in templates.npz.

A template is some pictures of one person, from one or more media: a photograph, or a video of which there are several
pictures. Templates are compared in pairs (1:1), and probes are searched for in two galleries (1:N).
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fvjax.data.stores.store import Store, parse_arrays

FILE = "templates.npz"
MAX_ARRAY_BYTES = 1 << 30  # IJB-C's largest array has 63 MB
FLOATS = ("detection",)


@dataclass(frozen=True)
class Templates:
    """The pictures of templates, the pairs of templates that are compared, and who is searched for in which gallery.

    All arrays are int32 unless something else is said. Templates, media and subjects have the numbers of the official
    lists. Without 1:N lists the arrays of galleries and probes are empty.
    """

    template: np.ndarray  # [N], of each record
    medium: np.ndarray  # [N]
    detection: np.ndarray  # float32 [N], the score of the detector of faces
    pair_a: np.ndarray  # [M], template
    pair_b: np.ndarray  # [M]
    pair_same: np.ndarray  # [M], 1 for one person, 0 for two
    gallery_1: np.ndarray  # [G1], template
    gallery_1_subject: np.ndarray  # [G1]
    gallery_2: np.ndarray  # [G2]
    gallery_2_subject: np.ndarray  # [G2]
    probe: np.ndarray  # [P]
    probe_subject: np.ndarray  # [P]

    @property
    def has_search(self) -> bool:
        """Whether there are 1:N lists."""
        return len(self.probe) > 0

    @property
    def subjects(self) -> dict[int, int]:
        """The subject of each template that the 1:N lists name."""
        known = ("gallery_1", "gallery_2", "probe")
        columns = [(getattr(self, name), getattr(self, f"{name}_subject")) for name in known]
        return {t: s for templates, people in columns for t, s in zip(templates.tolist(), people.tolist())}

    def of_pictures(self, kept: np.ndarray) -> Templates:
        """Return the same templates with some of the pictures; `kept` bool [N]."""
        columns = {name: getattr(self, name)[kept] for name in ("template", "medium", "detection")}
        return dataclasses.replace(self, **columns)


def encode(templates: Templates) -> tuple[bytes, str]:
    """Return the contents of templates.npz, and their SHA-256."""
    data = io.BytesIO()
    np.savez_compressed(data, **_columns(templates))
    return data.getvalue(), hashlib.sha256(data.getvalue()).hexdigest()


def read_templates(path: str | os.PathLike) -> tuple[Store, Templates]:
    """Open a store that `prepare ijb` made, and read its templates.

    Raises:
        ValueError: no such store, or a file that is missing, changed or malformed. The message says which.
    """
    path = Path(path)
    store = Store(path, "test")
    entry = store.manifest.get("templates")
    if not isinstance(entry, dict) or not isinstance(entry.get("hash"), str):
        raise ValueError(f"{path}: this store has no templates; python -m fvjax.data.prepare ijb makes one that has")
    file = path / FILE
    data = file.read_bytes() if file.is_file() else b""
    if hashlib.sha256(data).hexdigest() != entry["hash"]:
        raise ValueError(f"{file}: missing or changed since writing; prepare the store again")
    types = {field.name: np.float32 if field.name in FLOATS else np.int32 for field in dataclasses.fields(Templates)}
    templates = Templates(*parse_arrays(data, types, MAX_ARRAY_BYTES, file))
    check(templates, len(store), str(file))
    return store, templates


def check(templates: Templates, records: int, location: str) -> None:
    """Raise ValueError, which begins with ``location``, if templates do not agree with each other or the records."""
    t = templates
    lengths = {
        "pictures": (records, len(t.template), len(t.medium), len(t.detection)),
        "pairs": (len(t.pair_a), len(t.pair_b), len(t.pair_same)),
        "gallery 1": (len(t.gallery_1), len(t.gallery_1_subject)),
        "gallery 2": (len(t.gallery_2), len(t.gallery_2_subject)),
        "probes": (len(t.probe), len(t.probe_subject)),
    }
    for name, counts in lengths.items():
        if len(set(counts)) != 1:
            raise ValueError(f"{location}: the columns of the {name} have different lengths {counts}")
    if not np.isfinite(t.detection).all():
        raise ValueError(f"{location}: a score of the detector is not finite")
    known = np.unique(t.template)
    for name in ("pair_a", "pair_b", "gallery_1", "gallery_2", "probe"):
        unknown = np.setdiff1d(getattr(t, name), known)
        if len(unknown):
            raise ValueError(f"{location}: template {unknown[0]} of {name} has no picture")
    galleries = {"gallery 1": t.gallery_1, "gallery 2": t.gallery_2}
    if len(both := np.intersect1d(t.gallery_1, t.gallery_2)):
        raise ValueError(
            f"{location}: template {both[0]} is in both galleries of one set of probes ({len(both)} such templates)"
        )
    for name, gallery in galleries.items():
        if len(both := np.intersect1d(gallery, t.probe)):
            raise ValueError(
                f"{location}: template {both[0]} is a probe and in {name}, where it would find itself ({len(both)} "
                "such templates)"
            )


def _columns(templates: Templates) -> dict[str, Any]:
    """Return the arrays by name, in the types in which they are stored."""
    return {
        name: np.asarray(values, np.float32 if name in FLOATS else np.int32) for name, values in vars(templates).items()
    }
