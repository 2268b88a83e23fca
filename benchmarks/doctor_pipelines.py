"""Spoil real crops in the ways that people report, and see whether `python -m fvjax.doctor` names the fault.

    python -m benchmarks.doctor_pipelines --lfw=STORE [--pairs=1000]

STORE is LFW as `python -m fvjax.data.prepare lfw` makes it. Every row of the table is a store or a .bin that is made
anew from its pictures and pairs, and what the doctor finds in it. docs/doctor.md has the table.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fvjax import doctor
from fvjax.data import images
from fvjax.data.stores import Pairs, Store, Writer, read_pairs

SEED = 0


class Material(NamedTuple):
    """Sound crops with labels and pairs.

    Attributes:
        faces: uint8 [n, 112, 112, 3]. names, files: of each picture.
        pairs: their `a` and `b` are rows of `faces`.
    """

    faces: NDArray
    names: list[str]
    files: list[str]
    pairs: Pairs


def material(store: Store, name: str, count: int) -> Material:
    """Take ``count`` pairs of a benchmark, from every fold as many genuine as impostor ones, and their pictures."""
    pairs = read_pairs(store.path, name)
    each = count // (2 * (pairs.fold[-1] + 1))
    kinds = [
        (pairs.fold == fold) & (pairs.same == same) for fold in range(pairs.fold[-1] + 1) for same in (True, False)
    ]
    rows = np.concatenate([np.flatnonzero(kind)[:each] for kind in kinds])
    ids, index = np.unique(np.stack([pairs.a[rows], pairs.b[rows]]), return_inverse=True)
    a, b = index.reshape(2, -1)
    names = [store.identities[label] for label in store.labels[ids]]
    labels = np.unique(names, return_inverse=True)[1]
    chosen = Pairs(a, b, pairs.same[rows], pairs.fold[rows], labels[a], labels[b])
    return Material(store.images(ids), names, [store.sources[i] for i in ids], chosen)


def write_store(sound: Material, dst: Path, spoil: Callable[[NDArray], NDArray] | None = None) -> Path:
    """Write a benchmark store "lfw" of (spoiled) pictures."""
    with Writer(dst, split="test", sources=["lfw"]) as writer:
        for face, name, file in zip(spoil(sound.faces) if spoil else sound.faces, sound.names, sound.files):
            writer.add(images.encode(np.ascontiguousarray(face)), name, file)
        labels = np.asarray(writer.labels)
        a, b, same, fold, *_ = (getattr(sound.pairs, field) for field in Pairs.__dataclass_fields__)
        writer.add_pairs("lfw", Pairs(a, b, same, fold, labels[a], labels[b]))
    return dst


def write_bin(sound: Material, dst: Path, spoil: Callable[[NDArray], NDArray] | None = None) -> Path:
    """Write insightface's kind of file of (spoiled) pictures."""
    faces = spoil(sound.faces) if spoil else sound.faces
    encoded = [images.encode(np.ascontiguousarray(face)) for face in faces]
    ends = np.stack([sound.pairs.a, sound.pairs.b], 1).ravel().tolist()
    dst.write_bytes(pickle.dumps(([encoded[i] for i in ends], sound.pairs.same.tolist())))
    return dst


def shift_labels(sound: Material) -> Material:
    """Give every picture the label of the next one."""
    return sound._replace(names=[*sound.names[1:], sound.names[0]])


def shuffle_pairs(sound: Material) -> Material:
    """Shuffle the list of pairs, and cut it into folds afterwards."""
    order = np.random.default_rng(SEED).permutation(len(sound.pairs.a))
    columns = {name: getattr(sound.pairs, name)[order] for name in ("a", "b", "same", "identity_a", "identity_b")}
    return sound._replace(pairs=Pairs(fold=sound.pairs.fold, **columns))


def relabel(sound: Material, same: NDArray) -> Material:
    return sound._replace(pairs=Pairs(**{**vars(sound.pairs), "same": same}))


def moved(scale: float, shift: tuple[float, float], scatter: tuple[float, float, float] = (0, 0, 0)) -> Callable:
    """Return what enlarges and shifts faces as another template or a detector's box does.

    Args:
        scatter: standard deviations of a random rotation (degrees), scale (its logarithm) and shift (pixels).
    """

    def change(faces: NDArray) -> NDArray:
        rng = np.random.default_rng(SEED)
        out = []
        for face in faces:
            angle, size = np.deg2rad(rng.normal(0, scatter[0])), scale * np.exp(rng.normal(0, scatter[1]))
            inverse = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) / size
            centre = (images.SIZE - 1) / 2
            offset = centre - inverse @ (centre + np.array(shift) + rng.normal(0, scatter[2], 2))
            matrix = [*inverse[0], offset[0], *inverse[1], offset[1]]
            picture = Image.fromarray(face).transform(images.FACE_SIZE, Image.Transform.AFFINE, matrix, 2)
            out.append(np.asarray(picture))
        return np.stack(out)

    return change


def stretched(faces: NDArray) -> NDArray:
    """Cut 96x112 crops out of the middle and resize them to 112x112."""
    cut = faces[:, :, 8:104]
    return np.stack([np.asarray(Image.fromarray(face).resize(images.FACE_SIZE)) for face in cut])


def swapped(faces: NDArray) -> NDArray:
    return faces[..., ::-1]


def half_swapped(faces: NDArray) -> NDArray:
    return np.where(np.arange(len(faces))[:, None, None, None] % 2, swapped(faces), faces)


def grey(faces: NDArray) -> NDArray:
    return np.repeat(faces.mean(-1, keepdims=True).astype(np.uint8), 3, -1)


def normalised(faces: NDArray) -> NDArray:
    """Normalise to -1 to 1 and store that as bytes."""
    return ((faces.astype(np.float32) - 127.5) / 127.5).astype(np.int8).astype(np.uint8)


# What is spoiled, the finding that must be named ("" for none), and how the data is made: (sound, folder) -> path.
PIPELINES: dict[str, tuple[str, Callable[[Material, Path], Path]]] = {
    "sound store": ("", lambda sound, folder: write_store(sound, folder / "store")),
    "sound .bin": ("", lambda sound, folder: write_bin(sound, folder / "lfw.bin")),
    "BGR pictures": ("channel-order", lambda sound, folder: write_store(sound, folder / "s", swapped)),
    ".bin in BGR": (
        "channel-order",
        lambda sound, folder: write_bin(sound, folder / "lfw.bin", swapped),
    ),
    "grey pictures": ("grey-pictures", lambda sound, folder: write_store(sound, folder / "s", grey)),
    "half of the pictures in BGR": (
        "channel-order-mixed",
        lambda sound, folder: write_store(sound, folder / "s", half_swapped),
    ),
    "normalised values as bytes": (
        "normalised-pixels",
        lambda sound, folder: write_store(sound, folder / "s", normalised),
    ),
    "upside down": ("orientation", lambda sound, folder: write_store(sound, folder / "s", lambda x: x[:, ::-1])),
    "turned by 90 degrees": (
        "orientation",
        lambda sound, folder: write_store(sound, folder / "s", lambda x: np.rot90(x, 1, (1, 2))),
    ),
    "template without its 8 px": (
        "template",
        lambda sound, folder: write_store(sound, folder / "s", moved(1, (-8, 0))),
    ),
    "looser crops (0.8)": ("template", lambda sound, folder: write_store(sound, folder / "s", moved(0.8, (0, 0)))),
    "96x112 stretched to 112x112": ("template", lambda sound, folder: write_store(sound, folder / "s", stretched)),
    "unaligned crops": (
        "unaligned",
        lambda sound, folder: write_store(sound, folder / "s", moved(1, (0, 0), (8, 0.08, 5))),
    ),
    "labels of the next record": (
        "labels-not-of-files",
        lambda sound, folder: write_folder_of_labels(shift_labels(sound), folder / "s"),
    ),
    "folds shuffled": ("folds-shuffled", lambda sound, folder: write_store(shuffle_pairs(sound), folder / "s")),
    ".bin with folds shuffled": (
        "folds-shuffled",
        lambda sound, folder: write_bin(shuffle_pairs(sound), folder / "lfw.bin"),
    ),
    ".bin with inverted labels": (
        "labels-inverted",
        lambda sound, folder: write_bin(relabel(sound, ~sound.pairs.same), folder / "lfw.bin"),
    ),
    ".bin with labels in another order": (
        "labels-unrelated",
        lambda sound, folder: write_bin(
            relabel(sound, np.random.default_rng(SEED).permutation(sound.pairs.same)), folder / "lfw.bin"
        ),
    ),
}


def write_folder_of_labels(sound: Material, dst: Path) -> Path:
    """Write a training store."""
    with Writer(dst, split="train", sources=["lfw"]) as writer:
        for face, name, file in zip(sound.faces, sound.names, sound.files):
            writer.add(images.encode(face), name, file)
    return dst


def found_in(name: str, sound: Material) -> list[str]:
    """Return the names of what the doctor finds in a pipeline."""
    with tempfile.TemporaryDirectory() as folder:
        checks = doctor.diagnose(PIPELINES[name][1](sound, Path(folder)))
    return [finding.name for check in checks for finding in check.findings]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--lfw", type=Path, required=True, help="the store of LFW")
    parser.add_argument("--pairs", type=int, default=1000, help="of LFW that each pipeline is made of")
    options = parser.parse_args()
    sound = material(Store(options.lfw, "test"), "lfw", options.pairs)
    print("| pipeline | expected | found |\n|---|---|---|")
    for name, (expected, _) in PIPELINES.items():
        found = found_in(name, sound)
        print(f"| {name} | {expected or 'nothing'} | {', '.join(found) or 'nothing'} |", flush=True)


if __name__ == "__main__":
    main()
