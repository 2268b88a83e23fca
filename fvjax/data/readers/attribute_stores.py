"""Stores of pictures with attribute labels, from the official files of six data sets or from a TFDS dataset.

Pictures are extended to squares with CLIP's mean colour and resized (:mod:`fvjax.data.loose_crops`). STORE has the
split "train", and within it STORE/val and STORE/test have the others; without training pictures, STORE has the first
split that there is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from fvjax.data import attributes, images, loose_crops, names
from fvjax.data.alignment.detectors import DETECTORS
from fvjax.data.attributes import FEATURE, Attributes
from fvjax.data.loose_crops import LooseCrop
from fvjax.data.progress import track
from fvjax.data.readers import celeba, expressions, fairface, label_files, maad, utkface
from fvjax.data.readers.conversations import PictureFolder
from fvjax.data.readers.label_files import LabelledPicture, LabelSet
from fvjax.data.readers.tfds_source import Source, split_names
from fvjax.data.stores import Store, Writer
from fvjax.data.stores.manifest import SPLITS

VAL = 0.05  # share of the training pictures of data sets without official validation
EXPW_MARGIN = 0.15  # of a face's box, on each side
_FAIRFACE = Attributes(
    (*fairface.AGES, *fairface.GENDERS, *fairface.RACES),
    {"age": fairface.AGES, "gender": fairface.GENDERS, "race": fairface.RACES},
    dataset="fairface",
)
_TFDS_SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "test": "test"}


def prepare_celeba(
    src: Path, dst: Path, *, labels: Path, partition: Path, identities: Path | None, share: float, **crop: Any
) -> Store:
    """Convert CelebA: 40 attributes, official splits, people if identity_CelebA.txt is given."""
    return write(celeba.read(labels, partition, identities, share), PictureFolder(src).read, dst, str(src), **crop)


def prepare_maad(src: Path, dst: Path, *, labels: Path, val: float, share: float, **crop: Any) -> Store:
    """Convert MAAD-Face: 47 attributes of VGGFace2's pictures; undefined ones are unlabelled."""
    folder = PictureFolder(src)

    def read(file: str) -> bytes:
        for part in ("", "train/", "test/"):  # VGGFace2 has a folder for each of its sets
            if (src / part / file).is_file():
                return folder.read(f"{part}{file}")
        return folder.read(file)

    return write(maad.read(labels, _check_val(val), share), read, dst, str(src), **crop)


def prepare_fairface(
    src: Path,
    dst: Path,
    *,
    labels: Sequence[Path],
    repair_ages: bool,
    split: str,
    val: float,
    share: float,
    **crop: Any,
) -> Store:
    """Convert FairFace: nine age groups, gender and seven races; its validation set is the test split."""
    labelled = read_fairface(labels, repair_ages=repair_ages, split=split, val=_check_val(val), share=share)
    return write(labelled, PictureFolder(src).read, dst, str(src), **crop)


def prepare_utkface(src: Path, dst: Path, *, share: float, **crop: Any) -> Store:
    """Convert UTKFace: age in FairFace's groups, gender and five races, from the files' names."""
    return write(utkface.read(src, share), PictureFolder(src).read, dst, str(src), **crop)


def prepare_expw(src: Path, dst: Path, *, labels: Path, share: float, **crop: Any) -> Store:
    """Convert ExpW: seven expressions of the faces in photographs, cropped with a margin."""
    return write(expressions.expw(labels, share), PictureFolder(src).read, dst, str(src), **crop)


def prepare_rafdb(src: Path, dst: Path, *, labels: Path, val: float, share: float, **crop: Any) -> Store:
    """Convert RAF-DB: seven basic expressions of its aligned pictures."""
    labelled = expressions.rafdb(labels, _check_val(val), share)
    return write(labelled, PictureFolder(src).read, dst, str(src), **crop)


def prepare_tfds(
    src: Path,
    dst: Path,
    *,
    attribute_feature: str,
    image_feature: str | None,
    identity_feature: str | None,
    share: float,
    **crop: Any,
) -> Store:
    """Convert a TFDS dataset with nested boolean features, such as celeb_a."""
    name = str(src)
    if not name.startswith("tfds:"):
        raise ValueError(f"--src={name}: expected tfds:NAME")
    available = split_names(name.removeprefix("tfds:"))
    sources = {
        _TFDS_SPLITS[split]: Source(name.removeprefix("tfds:"), split, image_feature, identity_feature)
        for split in available
        if split in _TFDS_SPLITS
    }
    if not sources:
        raise ValueError(f"{name}: none of its splits is train, validation or test; it has {', '.join(available)}")

    def read(file: str) -> bytes:
        split, _, number = file.partition("#")
        return sources[split].image(int(number))

    return write(_read_tfds(sources, attribute_feature, share), read, dst, name, **crop)


def read_fairface(files: Sequence[Path], *, repair_ages: bool, split: str, val: float, share: float) -> LabelSet:
    """Read FairFace's label files.

    Args:
        repair_ages: see :func:`fvjax.data.readers.fairface.read_labels`.
        split: "official" takes the folder that a file is in: train, of which about `val` is for validation, or val, the
            test split. "names" divides all pictures by their names: 80 % train, 10 % val, 10 % test.
        share: of all pictures, chosen by their names.
    Raises:
        ValueError: as the reader of a file, a picture that is listed in two, or one in another folder.
    """
    label_files.check_share("--share", share)
    result, seen = LabelSet(_FAIRFACE, []), set()
    for file in files:
        for label in fairface.read_labels(file, repair_ages=repair_ages):
            path = names.path(label.file)
            if path in seen:
                raise ValueError(f"{file}: {label.file!r:.100} is listed in another file too; remove it from one")
            seen.add(path)
            folder = path.split("/")[0]
            if split == "official" and folder not in ("train", "val"):
                raise ValueError(
                    f"{file}: {label.file!r:.100} is in neither train nor val; --split=names needs no folder"
                )
            if label_files.is_chosen(path, share):
                official = "test" if folder == "val" else label_files.part(path, val)
                chosen = official if split == "official" else label_files.part(path, 0.1, 0.1)
                row = _FAIRFACE.row((label.age, label.gender, label.race)).tobytes()
                result.pictures.append(LabelledPicture(label.file, row, chosen))
    return result


def _read_tfds(sources: dict[str, Source], attribute_feature: str, share: float) -> LabelSet:
    label_files.check_share("--share", share)
    first = next(iter(sources.values()))
    features = first.booleans(f"{attribute_feature}/")
    columns = Attributes(
        tuple(feature.removeprefix(f"{attribute_feature}/") for feature in features),
        dataset=first.name,
        has_identities=True,
    )
    result = LabelSet(columns, [])
    for split, source in sources.items():
        for i, identity in enumerate(source.identities):
            if label_files.is_chosen(f"{split}#{i}", share):
                values = np.array(source.values(i, features))
                row = np.where(values != 0, attributes.POSITIVE, attributes.NEGATIVE).astype(np.int8)
                result.pictures.append(LabelledPicture(f"{split}#{i}", row.tobytes(), split, names.identity(identity)))
    return result


# ---- writing ---------------------------------------------------------------------------------------------------------


def write(
    labelled: LabelSet,
    read: Callable[[str], bytes],
    dst: Path,
    source: str,
    *,
    size: int = loose_crops.SIZE,
    margin: float = 0.0,
    align: str | None = None,
    policy: str = "drop",
) -> Store:
    """Write the pictures of a data set as stores, one for each split that has any.

    The manifest of `dst` lists what was left out, counted by reason: what the reader left out, and pictures that are
    missing or cannot be read.

    Args:
        read: returns the bytes of a picture's file; raises ValueError.
        source: what the pictures were made from, for the manifest.
        size, margin, align: see :class:`fvjax.data.loose_crops.LooseCrop`.
        policy: "fail" makes a picture that is missing or cannot be read an error.
    Raises:
        ValueError: `dst` exists, an invalid option, or not one usable picture.
    """
    crop = LooseCrop(size, margin, align)
    splits = [split for split in SPLITS if any(picture.split == split for picture in labelled.pictures)]
    if not splits:
        left_out = labelled.left_out
        first = f"; the first of {len(left_out)} left out: {left_out[0].file}: {left_out[0].reason}" if left_out else ""
        raise ValueError(f"{source}: not one usable picture with labels{first}")
    options: dict[str, Any] = {
        "sources": [source],
        "image_size": (size, size),
        "features": {FEATURE: labelled.attributes.feature},
    }
    with ExitStack() as stack:
        main = stack.enter_context(Writer(dst, split=splits[0], **options))
        writers = {splits[0]: main}
        for split in splits[1:]:
            writers[split] = stack.enter_context(Writer(main.path_within(split), split=split, **options))
        for entry in labelled.left_out:
            main.reject(entry.file, entry.reason)
        for picture in track(labelled.pictures, "pictures"):
            _add(picture, writers[picture.split], main, read, crop, policy)
        _finish(labelled, main, writers, crop)
    return Store(dst, splits[0])


def _add(
    picture: LabelledPicture,
    writer: Writer,
    main: Writer,
    read: Callable[[str], bytes],
    crop: LooseCrop,
    policy: str,
) -> None:
    name = names.plain(picture.source or picture.file)
    try:
        pixels = images.photograph(read(picture.file), picture.file)
        jpeg = images.encode(crop(pixels, picture.box), size=(crop.size, crop.size))
    except ValueError as error:
        if policy == "fail":
            raise ValueError(f"{name}: {error}; supply it, or leave it out with --policy=drop") from error
        main.reject(name, str(error))
        return
    writer.add(jpeg, picture.identity or name, name, attributes=np.frombuffer(picture.labels, np.int8))


def _finish(labelled: LabelSet, main: Writer, writers: dict[str, Writer], crop: LooseCrop) -> None:
    """Note columns and counts in the manifests, and leave no store without a picture."""
    counts = {split: writer.records for split, writer in writers.items()}
    for writer in writers.values():
        writer.info["attributes"] = labelled.attributes.to_json()
        writer.info["crop"] = crop.to_json()
        if writer is not main and not writer.records:
            writer.discard()
    main.info["labels"] = {"splits": counts, "notes": [names.plain(note) for note in labelled.notes]}


def summary(store: Store) -> str:
    """Describe a new store, and the stores in it, in a few lines for the user."""
    counts = store.manifest["counts"]
    columns = attributes.of(store)
    people = f"{counts['identities']} people" if columns.has_identities else "nobody says who they are of"
    height, _ = store.image_size
    lines = [
        f"{store.path}: {counts['images']} pictures of {height} pixels, split {store.split!r}, {people}; data "
        f"{store.data_hash[:16]}",
        *attributes.describe(columns, attributes.labels(store)),
    ]
    lines += [f"  note: {note}" for note in store.manifest.get("labels", {}).get("notes", [])]
    if rejected := store.manifest["rejected"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in store.manifest["rejected_by_reason"].items())
        lines.append(f"  {len(rejected)} left out ({reasons}), listed in manifest.json")
        lines.append(f"  the first: {rejected[0]['file']}: {rejected[0]['reason']}")
    for split, number in store.manifest.get("labels", {}).get("splits", {}).items():
        if split != store.split:
            path = store.path / split
            lines.append(summary(Store(path, split)) if number else f"  no picture of the split {split!r} is usable")
    return "\n".join(lines)


# ---- commands --------------------------------------------------------------------------------------------------------


def add_commands(commands: Any) -> None:
    """Add the data sets' commands with their flags to an argparse parser."""
    parsers = {name: _add_command(commands, name, run) for name, run in COMMANDS.items()}
    for name in ("celeba", "maad", "expw", "rafdb"):
        parsers[name].add_argument("--labels", type=Path, required=True, help=LABEL_FILES[name])
    parsers["celeba"].add_argument("--partition", type=Path, required=True, help="list_eval_partition.txt, or .csv")
    parsers["celeba"].add_argument("--identities", type=Path, help="identity_CelebA.txt, for intervals by person")
    fair = parsers["fairface"]
    fair.add_argument("--labels", type=Path, required=True, nargs="+", help="fairface_label_train.csv, …_val.csv")
    fair.add_argument("--repair-ages", action="store_true", help="read 03-Sep as 3-9, Oct-19 as 10-19, and so on")
    fair.add_argument(
        "--split", choices=("official", "names"), default="official", help="by folder, or 80:10:10 by names (official)"
    )
    for name in ("maad", "fairface", "rafdb"):
        parsers[name].add_argument("--val", type=float, default=VAL, help=f"validation's part of training ({VAL})")
    own = parsers["attributes"]
    own.add_argument("--attribute-feature", default="attributes", help="with the booleans in it (attributes)")
    own.add_argument("--image-feature", help="of tfds:NAME, if it has several")
    own.add_argument("--identity-feature", help="of tfds:NAME, if it has several, such as identity/Identity_No")


def _add_command(commands: Any, name: str, run: Callable[..., Store]) -> Any:
    sub = commands.add_parser(name, help=(run.__doc__ or "").split("\n")[0], allow_abbrev=False)
    src = "tfds:NAME" if name == "attributes" else "the folder of the pictures"
    sub.add_argument("--src", type=Path, required=True, help=src)
    sub.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    sub.add_argument("--size", type=int, default=loose_crops.SIZE, help=f"pixels of a side ({loose_crops.SIZE})")
    margin = EXPW_MARGIN if name == "expw" else 0.0
    what = "the face's box" if name == "expw" else "the picture"
    sub.add_argument("--margin", type=float, default=margin, help=f"around {what}, relative to it ({margin})")
    if name != "expw":  # whose faces have boxes
        what = "find the face nearest the centre, and take its surroundings upright"
        sub.add_argument("--align", nargs="?", const=DETECTORS[0], choices=DETECTORS, help=f"{what} ({DETECTORS[0]})")
    sub.add_argument("--share", type=float, default=1.0, help="take about this share of the pictures (1)")
    sub.add_argument("--policy", choices=("drop", "fail"), default="drop", help="on missing and broken pictures (drop)")
    sub.set_defaults(run=run, summary=summary)
    return sub


def _check_val(val: float) -> float:
    if not 0 <= val < 1:
        raise ValueError(f"--val={val}: expected a share of at least 0, below 1")
    return val


COMMANDS: dict[str, Callable[..., Store]] = {
    "celeba": prepare_celeba,
    "maad": prepare_maad,
    "fairface": prepare_fairface,
    "utkface": prepare_utkface,
    "expw": prepare_expw,
    "rafdb": prepare_rafdb,
    "attributes": prepare_tfds,
}
LABEL_FILES = {
    "celeba": "list_attr_celeba.txt, or .csv",
    "maad": "MAAD-Face.csv",
    "expw": "label.lst",
    "rafdb": "list_patition_label.txt",
}
