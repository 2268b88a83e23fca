"""A folder with one sub-folder an identity, or a TFDS dataset, to a training store."""

from __future__ import annotations

import os
from pathlib import Path

from fvjax.data import images
from fvjax.data.alignment import aligner as alignment
from fvjax.data.progress import track
from fvjax.data.readers.files import add_file, read_lines, require_directory
from fvjax.data.readers.tfds_source import Source
from fvjax.data.stores import Store, Writer


def folder(
    src: Path,
    dst: Path,
    *,
    exclude: Path | None,
    limit: int | None,
    resize: bool,
    policy: str,
    aligner: alignment.Aligner | None = None,
    split: str | None = None,
    image_feature: str | None = None,
    identity_feature: str | None = None,
) -> Store:
    """Convert DIR/identity/**/*.{jpg,png,…} or tfds:NAME to a store with the split "train", identities sorted by name.

    Files that are no images, or broken, are left out and listed in the manifest, unless ``policy`` is "fail". A size
    other than 112x112 is an error unless ``resize`` or ``aligner``.

    Args:
        exclude: a tab-separated file whose first column names identity folders to leave out ('#' starts a comment).
        limit: keep only the first so many identities.
        split, image_feature, identity_feature: of a TFDS dataset, see :class:`fvjax.data.readers.tfds_source.Source`.
    Raises:
        ValueError: nothing usable, a wrong size, or an excluded identity that ``src`` does not have.
    """
    selection = split, image_feature, identity_feature
    dataset = str(src).removeprefix("tfds:")
    is_dataset = dataset != str(src)
    if not is_dataset and any(selection):
        raise ValueError(f"--split, --image-feature and --identity-feature are of tfds:NAME, and --src is {src}")
    source = Source(dataset, *selection) if is_dataset else None
    people = source.identities if source else _list_identities(src)
    names = _select_identities(people, src, exclude, limit)
    if source:
        if aligner:
            raise ValueError(
                f"--src={src}: a TFDS dataset's faces are taken as they are; leave out --align, --landmarks"
            )
        return _convert_tfds(source, dst, names, resize, policy)
    files = _list_files(src, names)
    with (
        Writer(dst, split="train", sources=[str(src)]) as writer,
        alignment.crops(aligner, src, files, writer.info) as crops,
    ):
        for file in track(files):
            identity = file.split(os.sep)[0]
            add_file(writer, src, file, identity, resize=resize, drop=policy != "fail", crop=next(crops))
    return Store(dst)


def _list_identities(src: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(require_directory(src)) if entry.is_dir())


def _select_identities(people: list[str], src: Path, exclude: Path | None, limit: int | None) -> list[str]:
    names = sorted(set(people))
    if limit is not None and limit < 1:
        raise ValueError(f"--limit={limit}: at least one identity must be left")
    if exclude is not None:
        excluded = {line.split("\t")[0].strip() for _, line in read_lines(exclude)}
        if unknown := sorted(excluded - set(names)):
            raise ValueError(
                f"{exclude}: {unknown[0]!r} (and {len(unknown) - 1} more) is no folder of {src}; "
                "the first column must hold folder names, correct or remove the line"
            )
        names = [name for name in names if name not in excluded]
    return names[:limit]


def _list_files(src: Path, names: list[str]) -> list[str]:
    """List all files of these identities relative to ``src``, sorted. Raises ValueError if there are none."""
    files = [
        os.path.relpath(os.path.join(root, file), src)
        for name in names
        for root, _, children in sorted(os.walk(src / name, followlinks=True))
        for file in sorted(children)
    ]
    if not files:
        raise ValueError(f"{src}: not one usable image; expected files such as {src / 'IDENTITY' / '1.jpg'}")
    return files


def _convert_tfds(source: Source, dst: Path, names: list[str], resize: bool, policy: str) -> Store:
    with Writer(dst, split="train", sources=[source.name]) as writer:
        for i, name in source.records(names):
            record = f"{source.split}#{i}"
            try:
                writer.add(images.to_jpeg(source.image(i), record, resize), name, record)
            except images.WrongSize as error:
                raise ValueError(f"{source.name}: {error}") from error
            except ValueError as error:
                if policy == "fail":
                    raise ValueError(f"{source.name}: {error}") from error
                writer.reject(record, str(error))
    return Store(dst)
