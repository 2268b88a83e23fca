"""A folder with one sub-folder an identity, or a TFDS dataset, to a training store."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from fvjax.data import images, names
from fvjax.data.alignment import aligner as alignment
from fvjax.data.progress import track
from fvjax.data.readers.files import Copies, read_lines
from fvjax.data.readers.picture_tree import LeftOut, People, PictureTree, list_people
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

    An identity's name is its folder's in the form of :func:`fvjax.data.names.identity`; folders that differ in Unicode
    form or blanks alone are one identity. Hidden files, tools' leftovers, links to files that are taken already and
    copies of pictures are left out and listed in the manifest. So are files that are no images, or broken, unless
    ``policy`` is "fail". A size other than 112x112 is an error unless ``resize`` or ``aligner``. The manifest's entry
    "folders" has what else is noteworthy: see :func:`_notes`.

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
    if source:
        if aligner:
            raise ValueError(
                f"--src={src}: a TFDS dataset's faces are taken as they are; leave out --align, --landmarks"
            )
        chosen = _select_identities({names.identity(name) for name in source.identities}, src, exclude, limit)
        return _convert_tfds(source, dst, chosen, resize, policy)
    people = list_people(src)
    chosen = _select_identities(people.folders, src, exclude, limit)
    tree = PictureTree(src, [folder for name in chosen for folder in people.folders[name]])
    left_out = people.left_out + tree.left_out
    _check_files(src, tree.files, left_out, policy)
    with (
        Writer(dst, split="train", sources=[str(src)]) as writer,
        alignment.crops(aligner, src, tree.files, writer.info) as crops,
    ):
        for entry in left_out:
            writer.reject(entry.file, entry.reason)
        copies = Copies()
        for file in track(tree.files):
            _add_file(writer, src, file, copies, resize=resize, drop=policy != "fail", crop=next(crops))
        writer.info["folders"] = _notes(people, chosen, writer.identities)
    return Store(dst)


def _select_identities(people: Iterable[str], src: Path, exclude: Path | None, limit: int | None) -> list[str]:
    chosen = sorted(people)
    if limit is not None and limit < 1:
        raise ValueError(f"--limit={limit}: at least one identity must be left")
    if exclude is not None:
        excluded = {names.identity(line.split("\t")[0]) for _, line in read_lines(exclude)}
        if unknown := sorted(excluded - set(chosen)):
            raise ValueError(
                f"{exclude}: {unknown[0]!r} (and {len(unknown) - 1} more) is no folder of {src}; "
                "the first column must hold folder names, correct or remove the line"
            )
        chosen = [name for name in chosen if name not in excluded]
    return chosen[:limit]


def _check_files(src: Path, files: list[str], left_out: list[LeftOut], policy: str) -> None:
    """Raise ValueError if there is no picture, or with the policy "fail" any other file than leftovers and links."""
    if not files:
        problem = f"{src}: not one usable image; expected files such as {src / 'IDENTITY' / '1.jpg'}"
        if left_out:
            problem += f"; the first of {len(left_out)} files left out: {left_out[0].file}: {left_out[0].reason}"
        raise ValueError(problem)
    for file, reason in left_out:
        if policy == "fail" and reason.partition(":")[0] not in ("hidden", "a tool's files", "link"):
            raise ValueError(f"{src}: {file}: {reason}; remove it, or leave it out with --policy=drop")


def _add_file(
    writer: Writer, src: Path, file: str, copies: Copies, *, resize: bool, drop: bool, crop: alignment.Crop | None
) -> None:
    """Store one image file, or its aligned crop, unless the store has the same picture."""
    identity = names.identity(file.split(os.sep)[0])
    try:
        jpeg = alignment.face_jpeg(src, file, resize=resize, crop=crop)
    except images.WrongSize as error:  # the whole source is likely to have that size, so it is never dropped
        raise ValueError(f"{src}: {error}") from error
    except ValueError as error:
        if not drop:
            raise ValueError(f"{src}: {error}; supply it, or leave it out with --policy=drop") from error
        writer.reject(file, str(error))
        return
    first = copies.first(jpeg, file)
    if first == file:
        writer.add(jpeg, identity, names.plain(file))
    elif names.identity(first.split(os.sep)[0]) == identity:
        writer.reject(file, f"copy: the same picture as {names.plain(first)}")
    else:
        writer.reject(file, f"copy under another identity: the same picture as {names.plain(first)}, which is taken")


def _notes(people: People, chosen: list[str], stored: Iterable[str]) -> dict[str, Any]:
    """Return the manifest's entry about folders.

    "not_chosen" counts the identities that --exclude or --limit left out, "without_picture" names those of which no
    picture is stored, "of_several_folders" has the folders of identities that have several, and "differing_in_case"
    groups of names that are taken for different people.
    """
    without = set(chosen) - set(stored)
    return {
        "not_chosen": len(people.folders) - len(chosen),
        "without_picture": [name for name in chosen if name in without],
        "of_several_folders": {
            name: [names.plain(folder) for folder in people.folders[name]]
            for name in chosen
            if len(people.folders[name]) > 1
        },
        "differing_in_case": [group for group in people.differing_in_case if set(group) <= set(chosen)],
    }


def _convert_tfds(source: Source, dst: Path, people: list[str], resize: bool, policy: str) -> Store:
    with Writer(dst, split="train", sources=[source.name]) as writer:
        for i, name in source.records(people):
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
