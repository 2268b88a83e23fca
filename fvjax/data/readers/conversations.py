"""Conversations about pictures, as LLaVA, ShareGPT, FairFaceGPT and OpenAI write them, to a store of conversations."""

from __future__ import annotations

import hashlib
import math
import stat
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from rich.progress import Progress

from fvjax.data import picture_bytes
from fvjax.data.progress import progress_bar
from fvjax.data.readers import chat_formats, json_stream
from fvjax.data.readers.files import FileNames, require_directory
from fvjax.data.stores import manifest
from fvjax.data.stores.conversations import MAX_PICTURE_BYTES, ConversationStore, Unusable, Writer


class PictureFolder:
    """The folder that all pictures must lie in.

    Args:
        root: the folder; None if there are no pictures.
    Raises:
        ValueError: no such folder.
    """

    def __init__(self, root: Path | None):
        self._root = require_directory(root).resolve() if root else None
        self._names = FileNames(self._root) if self._root else None

    def read(self, path: str) -> bytes:
        """Return the bytes of a picture, without what a camera appended to it.

        Args:
            path: relative to the folder. A name in another Unicode form, with backslashes or another picture's suffix
                is found too (:class:`fvjax.data.readers.files.FileNames`).
        Raises:
            ValueError: the path leads out of the folder, directly or by a symbolic link, there is no such file, or it
                cannot be read. What stands before the colon is the kind of mistake.
        """
        if self._root is None or self._names is None:
            raise ValueError(f"missing picture: {path!r:.300}; say where pictures are with --images=DIR")
        if "\0" in path or PurePosixPath(path).is_absolute() or PureWindowsPath(path).anchor or "://" in path:
            raise ValueError(f"picture outside the folder: {path!r:.300} is no relative path")
        try:
            file = (self._root / self._find(self._names, path)).resolve()
            if not file.is_relative_to(self._root):
                raise ValueError(f"picture outside the folder: {path!r:.300}")
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                raise ValueError(f"unreadable picture: {path!r:.300} is no file")
            if status.st_size > MAX_PICTURE_BYTES:
                raise ValueError(f"unreadable picture: {path!r:.300} has {status.st_size} bytes")
            return picture_bytes.trim(file.read_bytes())
        except FileNotFoundError as error:
            raise ValueError(f"missing picture: {path!r:.300}") from error
        except (OSError, RuntimeError, UnicodeError) as error:  # a loop of links is a RuntimeError
            raise ValueError(f"unreadable picture: {path!r:.300} ({error})") from error

    @staticmethod
    def _find(names: FileNames, path: str) -> str:
        try:
            return names.find(path) or path
        except ValueError as error:
            raise ValueError(f"ambiguous picture: {error}") from error


def convert(src: Path, dst: Path, *, images: Path | None, split: str, val: float, seed: int) -> ConversationStore:
    """Convert conversations in JSON and the pictures that they name to a store of conversations.

    Conversations that cannot be used are left out, listed and counted by reason. A record's source is
    "FILE record N (line M)", N counted from 0 and M from 1.

    Args:
        src: a .json with a list of objects, or a .jsonl (see :mod:`fvjax.data.readers.chat_formats`).
        images: the folder that the pictures' paths are relative to; None for texts without pictures.
        split: of the store.
        val: the share of the pictures whose conversations go to DST/val (split "val"), see :func:`choose_validation`.
        seed: of that choice.
    Returns:
        the store ``dst``. In its manifest and in that of DST/val, "conversion" counts the records of both together:
        read = written + validation + rejected. What was rejected is listed in the manifest of ``dst``.
    Raises:
        ValueError: an invalid option, a file that is no JSON, nothing usable, or ``dst`` exists.
        OSError: the disk is full or cannot be written to.
    """
    if not 0 <= val < 1 or seed < 0:
        raise ValueError(f"--val={val} --seed={seed}: expected 0 <= val < 1 and seed >= 0")
    if val and split != "train":
        raise ValueError(f"--val={val} --split={split}: only the split 'train' has a part for validation")
    if not src.name.isprintable():
        raise ValueError(f"{src.name!r}: the file's name goes into the store and must be plain text; rename it")
    folder = PictureFolder(images)
    sources = [str(src), *([str(images)] if images else [])]
    with progress_bar() as bar, Writer(dst, split=split, sources=sources) as writer, ExitStack() as stack:
        chosen, validation = frozenset(), None
        if val and (chosen := choose_validation(_read(src, bar, "choosing pictures"), folder, val, seed)):
            path = writer.path_within("val")
            validation = stack.enter_context(Writer(path, split="val", sources=sources))
        conversion = _Conversion(src.name, folder, writer, validation, chosen)
        for item in _read(src, bar, "conversations"):
            conversion.add(item)
        conversion.finish({"val": val, "seed": seed})
    return ConversationStore(dst, split)


def choose_validation(
    items: Iterable[json_stream.Item], folder: PictureFolder, val: float, seed: int
) -> frozenset[bytes]:
    """Choose the pictures whose conversations are for validation.

    Pictures that occur in one conversation stay together, so all conversations of a picture are on the same side. Which
    ones are chosen depends on the seed and the pictures' contents, not on their names or order. Conversations without
    a picture are never chosen.

    Args:
        items: the elements of the file of conversations.
        val: 0 <= val < 1. No more than floor(val * pictures) are chosen.
    Returns:
        the sha256 digests of the chosen pictures.
    """
    groups = _Groups()
    digests: dict[str, bytes] = {}
    for item in items:
        try:
            paths = chat_formats.parse(item.value).pictures
            digests |= {path: _digest(folder.read(path)) for path in paths if path not in digests}
        except ValueError:
            continue  # rejected with its reason when it is converted
        groups.join([digests[path] for path in paths])
    allowed = math.floor(len(groups) * val + 1e-9)
    chosen: set[bytes] = set()
    for group in sorted(groups.lists(), key=lambda group: _digest(f"{seed} ".encode() + min(group))):
        if len(chosen) + len(group) <= allowed:
            chosen.update(group)
    return frozenset(chosen)


def summary(store: ConversationStore) -> str:
    """Describe a new store in a few lines for the user."""
    counts = store.manifest["counts"]
    pictures = f"{counts['pictures']} pictures, {counts['without_picture']} without a picture"
    lines = [
        f"{store.path}: {len(store)} conversations with {pictures}, split {store.split!r}; data {store.data_hash[:16]}"
    ]
    if rejected := store.manifest["rejected"]:
        reasons = ", ".join(f"{n} {reason}" for reason, n in store.manifest["rejected_by_reason"].items())
        lines.append(f"  {len(rejected)} rejected ({reasons}), listed in manifest.json")
        lines.append(f"  the first: {rejected[0]['file']}: {rejected[0]['reason']}")
    conversion = store.manifest.get("conversion")
    if not conversion or store.split == "val":
        return "\n".join(lines)
    if conversion["val"]:
        val = store.path / "val"
        lines.append(summary(ConversationStore(val, "val")) if val.is_dir() else "no picture is for validation")
    lines.append(
        f"{conversion['read']} records read = {conversion['written']} written + {conversion['validation']} for "
        f"validation + {conversion['rejected']} rejected; <image> put first in {conversion['placeholder_added']}"
    )
    return "\n".join(lines)


def add_command(commands: Any) -> None:
    """Add the command ``conversations`` with its flags to an argparse parser."""
    sub = commands.add_parser("conversations", help=(convert.__doc__ or "").split("\n")[0], allow_abbrev=False)
    sub.add_argument("--src", type=Path, required=True, help="FILE.json or FILE.jsonl, as LLaVA, ShareGPT or OpenAI")
    sub.add_argument("--dst", type=Path, required=True, help="the store to make; must not exist")
    sub.add_argument("--images", type=Path, help="the folder that the pictures' paths are relative to")
    sub.add_argument("--split", choices=manifest.SPLITS, default="train", help="of the store (train)")
    sub.add_argument("--val", type=float, default=0.0, help="validation's part of the pictures, such as 0.05 (0)")
    sub.add_argument("--seed", type=int, default=0, help="of the choice of pictures for validation (0)")
    sub.set_defaults(run=convert, summary=summary)


class _Conversion:
    """The records of one file, each written to the right store or rejected.

    Args:
        name: of the file, for locations.
        writer: of the store, which also takes what is rejected.
        validation: writer of the store for validation, if any.
        chosen: digests of the pictures for validation.
    """

    def __init__(
        self, name: str, folder: PictureFolder, writer: Writer, validation: Writer | None, chosen: frozenset[bytes]
    ):
        self._name, self._folder, self._chosen = name, folder, chosen
        self._writer, self._validation = writer, validation
        self._read = self._placeholder_added = 0

    def add(self, item: json_stream.Item) -> None:
        location = f"{self._name} record {item.number} (line {item.line})"
        self._read += 1
        try:
            if item.problem:
                raise ValueError(item.problem)
            sample = chat_formats.parse(item.value)
            pictures = [self._folder.read(path) for path in sample.pictures]
            is_chosen = bool(pictures) and _digest(pictures[0]) in self._chosen
            writer = self._validation if self._validation and is_chosen else self._writer
            writer.add(sample.messages, pictures, location, **sample.meta)
        except Unusable as error:
            self._writer.reject(location, error.reason)
        except ValueError as error:
            self._writer.reject(location, str(error))
        else:
            self._placeholder_added += sample.placeholder_added

    def finish(self, options: dict[str, Any]) -> None:
        """Note counts and options in the manifests. Without a conversation for validation there is no such store."""
        counts = {
            "read": self._read,
            "written": self._writer.records,
            "validation": self._validation.records if self._validation else 0,
            "rejected": len(self._writer.rejected),
        }
        assert counts["read"] == counts["written"] + counts["validation"] + counts["rejected"], counts
        counts["placeholder_added"] = self._placeholder_added
        for writer in (self._writer, self._validation):
            if writer:
                writer.info["conversion"] = {**counts, **options}
        if self._validation and not self._validation.records:
            self._validation.discard()


class _Groups:
    """Pictures in groups: those that occur together, directly or through others (union and find)."""

    def __init__(self):
        self._parents: dict[bytes, bytes] = {}

    def __len__(self) -> int:
        return len(self._parents)

    def join(self, pictures: list[bytes]) -> None:
        for picture in pictures:
            self._parents.setdefault(picture, picture)
            self._parents[self._root(picture)] = self._root(pictures[0])

    def lists(self) -> list[list[bytes]]:
        groups: dict[bytes, list[bytes]] = {}
        for picture in self._parents:
            groups.setdefault(self._root(picture), []).append(picture)
        return list(groups.values())

    def _root(self, picture: bytes) -> bytes:
        while (parent := self._parents[picture]) != picture:
            self._parents[picture] = picture = self._parents[parent]
        return picture


def _read(src: Path, bar: Progress, description: str) -> Iterator[json_stream.Item]:
    task = bar.add_task(description, total=src.stat().st_size if src.is_file() else None)
    return json_stream.items(src, lambda n: bar.advance(task, n))


def _digest(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()
