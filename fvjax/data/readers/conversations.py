"""Conversations about pictures, as LLaVA, ShareGPT, FairFaceGPT and OpenAI write them, to a store of conversations."""

from __future__ import annotations

import hashlib
import math
import stat
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

from rich.progress import Progress

from fvjax.data import face_points, picture_bytes
from fvjax.data.face_points import Points
from fvjax.data.frames import FRAMES, extract, indices, require_reader, to_jpegs
from fvjax.data.progress import progress_bar
from fvjax.data.readers import chat_formats, json_stream
from fvjax.data.readers.files import FileNames, require_directory
from fvjax.data.stores import manifest
from fvjax.data.stores.conversations import (
    CLIP,
    MAX_PICTURE_BYTES,
    ConversationStore,
    Unusable,
    Writer,
    places_in,
)

MISSING_LANDMARKS = ("drop", "without", "fail")
BROKEN_VIDEOS = ("drop", "fail")


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
        """Return the bytes of a picture, without what a camera appended to it. Raises ValueError as :meth:`file`."""
        file = self.file(path)
        try:
            if file.stat().st_size > MAX_PICTURE_BYTES:
                raise ValueError(f"unreadable picture: {path!r:.300} has {file.stat().st_size} bytes")
            return picture_bytes.trim(file.read_bytes())
        except OSError as error:
            raise ValueError(f"unreadable picture: {path!r:.300} ({error})") from error

    def file(self, path: str) -> Path:
        """Return the file of a picture, or of whatever else lies in the folder.

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
            if not stat.S_ISREG(file.stat().st_mode):
                raise ValueError(f"unreadable picture: {path!r:.300} is no file")
            return file
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


@dataclass(frozen=True)
class Media:
    """Where clips and facial points are, and what is done about those that cannot be used.

    Attributes:
        videos: the folder that clips' paths are relative to; None: clips are refused.
        frames: that are taken of each clip, evenly spaced.
        landmarks: the folder of the files of points (:func:`fvjax.data.face_points.read_npy`); None: none are read.
        detector: what found the points; the store's manifest names it.
        side: of the crop that the points are in, in pixels.
        missing_landmarks: what happens to a record whose points are not named or cannot be used: "drop" leaves it out,
            "without" keeps it without points, "fail" ends the conversion.
        broken_videos: what happens to a record whose clip cannot be used: "drop" or "fail".
    Raises:
        ValueError: a policy, a number or a combination that makes no sense.
    """

    videos: Path | None = None
    frames: int = FRAMES
    landmarks: Path | None = None
    detector: str | None = None
    side: float = face_points.CROP
    missing_landmarks: str = "drop"
    broken_videos: str = "drop"

    def __post_init__(self):
        if self.missing_landmarks not in MISSING_LANDMARKS or self.broken_videos not in BROKEN_VIDEOS:
            policies = f"--missing-landmarks={self.missing_landmarks} --broken-videos={self.broken_videos}"
            expected = f"{', '.join(MISSING_LANDMARKS)}; {', '.join(BROKEN_VIDEOS)}"
            raise ValueError(f"{policies}: expected of {expected}")
        if self.frames < 1 or not self.side > 0:
            raise ValueError(f"--frames={self.frames} --landmark-side={self.side}: expected numbers above 0")
        if (self.landmarks is None) != (self.detector is None):
            raise ValueError("--landmarks and --detector: give both, the folder and what found its points, or neither")

    @property
    def store_frames(self) -> int:
        """Frames of a clip in the store, 0 if there are no clips."""
        return self.frames if self.videos else 0

    def sources(self) -> list[str]:
        return [str(folder) for folder in (self.videos, self.landmarks) if folder]


class _Policy(Exception):
    """A record cannot be used, and the policy is to end the conversion."""


def convert(
    src: Path,
    dst: Path,
    *,
    images: Path | None,
    split: str,
    val: float,
    seed: int,
    videos: Path | None = None,
    frames: int = FRAMES,
    landmarks: Path | None = None,
    detector: str | None = None,
    landmark_side: float = face_points.CROP,
    missing_landmarks: str = "drop",
    broken_videos: str = "drop",
) -> ConversationStore:
    """Convert conversations in JSON and the pictures that they name to a store of conversations.

    Conversations that cannot be used are left out, listed and counted by reason. A record's source is
    "FILE record N (line M)", N counted from 0 and M from 1.

    Args:
        src: a .json with a list of objects, or a .jsonl (see :mod:`fvjax.data.readers.chat_formats`).
        images: the folder that the pictures' paths are relative to; None for texts without pictures.
        videos, frames, landmarks, detector, landmark_side, missing_landmarks, broken_videos: see :class:`Media`.
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
    media = Media(videos, frames, landmarks, detector, landmark_side, missing_landmarks, broken_videos)
    loader = _Loader(PictureFolder(images), media)
    sources = [str(src), *([str(images)] if images else []), *media.sources()]
    contents: dict[str, Any] = {"sources": sources, "frames": media.store_frames, "detector": detector}
    with progress_bar() as bar, Writer(dst, split=split, **contents) as writer, ExitStack() as stack:
        chosen, validation = frozenset(), None
        if val and (chosen := choose_validation(_read(src, bar, "choosing pictures"), loader, val, seed)):
            path = writer.path_within("val")
            validation = stack.enter_context(Writer(path, split="val", **contents))
        conversion = _Conversion(src.name, loader, writer, validation, chosen)
        for item in _read(src, bar, "conversations"):
            conversion.add(item)
        conversion.finish({"val": val, "seed": seed})
    return ConversationStore(dst, split)


class _Loader:
    """Reads the pictures, frames and points of records."""

    def __init__(self, pictures: PictureFolder, media: Media):
        self._pictures, self._media = pictures, media
        self._videos, self._points = PictureFolder(media.videos), PictureFolder(media.landmarks)
        if media.videos:
            require_reader()
        self._picture_digests: dict[str, bytes] = {}
        self._video_digests: dict[str, bytes] = {}
        self.without_landmarks: Counter[str] = Counter()  # kept records by reason

    def parse(self, value: Any) -> chat_formats.Sample:
        return chat_formats.parse(value, self._media.store_frames)

    def digests(self, sample: chat_formats.Sample) -> list[bytes]:
        """Return the digest of each picture and clip of a record."""
        for path in sample.pictures:
            if path not in self._picture_digests:
                self._picture_digests[path] = _digest(self._pictures.read(path))
        if (path := sample.video) and path not in self._video_digests:
            with _video_file(self._videos, path).open("rb") as file:
                self._video_digests[path] = hashlib.file_digest(file, "sha256").digest()
        clip = [self._video_digests[path]] if path else []
        return [self._picture_digests[path] for path in sample.pictures] + clip

    def read(self, sample: chat_formats.Sample) -> tuple[list[bytes], list[Points | None]]:
        """Return the encoded pictures of a record in the order of its text, and the points of each place.

        Raises:
            ValueError: something cannot be used, and the policy is to leave the record out.
            _Policy: the same, and the policy is to end.
        """
        pictures = iter([self._pictures.read(path) for path in sample.pictures])
        clip, total = self._clip(sample.video) if sample.video else ([], None)
        places = places_in(sample.messages)
        encoded = [data for place in places for data in (clip if place == CLIP else [next(pictures)])]
        if self._media.landmarks is None:
            return encoded, []
        points = self._landmarks(sample, total) if places else None
        return encoded, [points if len(places) == 1 else None for _ in places]

    def _clip(self, path: str) -> tuple[list[bytes], int]:
        try:
            pixels, total = extract(_video_file(self._videos, path), self._media.frames)
            return to_jpegs(pixels), total
        except ValueError as error:
            if self._media.broken_videos == "fail":
                raise _Policy(f"{error} (--broken-videos=fail)") from error
            raise

    def _landmarks(self, sample: chat_formats.Sample, total: int | None) -> Points | None:
        """Return the points of the only picture, or of the frames that are taken of the only clip of `total` frames."""
        try:
            if sample.landmarks is None:
                raise ValueError(f"missing landmarks: the record has no {chat_formats.LANDMARKS!r}")
            points = face_points.read_npy(_landmark_file(self._points, sample.landmarks), total, self._media.side)
            return points if total is None else points[indices(total, self._media.frames)]
        except ValueError as error:
            if self._media.missing_landmarks == "fail":
                raise _Policy(f"{error} (--missing-landmarks=fail)") from error
            if self._media.missing_landmarks == "drop":
                raise
            self.without_landmarks[str(error).partition(":")[0]] += 1
            return None


def _video_file(folder: PictureFolder, path: str) -> Path:
    try:
        return folder.file(path)
    except ValueError as error:
        raise ValueError(str(error).replace("picture", "video", 1)) from error


def _landmark_file(folder: PictureFolder, path: str) -> Path:
    try:
        return folder.file(path)
    except ValueError as error:
        raise ValueError(str(error).replace("picture", "landmarks", 1)) from error


def choose_validation(items: Iterable[json_stream.Item], loader: _Loader, val: float, seed: int) -> frozenset[bytes]:
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
    for item in items:
        try:
            digests = loader.digests(loader.parse(item.value))
        except ValueError:
            continue  # rejected with its reason when it is converted
        groups.join(digests)
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
    sub.add_argument("--videos", type=Path, help="the folder that the clips' paths are relative to (extra `video`)")
    sub.add_argument("--frames", type=int, default=FRAMES, help=f"taken of each clip, evenly spaced ({FRAMES})")
    sub.add_argument("--landmarks", type=Path, help="the folder of .npy files with 68 points, named by landmarks_2d")
    sub.add_argument("--detector", help="what found the points, such as 'FAN'; the manifest names it")
    side = f"pixels a side of the crop that the points are in ({face_points.CROP})"
    sub.add_argument("--landmark-side", type=float, default=face_points.CROP, help=side)
    drop = "records whose points cannot be used: leave out, keep without points, or stop (drop)"
    sub.add_argument("--missing-landmarks", choices=MISSING_LANDMARKS, default="drop", help=drop)
    broken = "records whose clip cannot be used: leave out, or stop (drop)"
    sub.add_argument("--broken-videos", choices=BROKEN_VIDEOS, default="drop", help=broken)
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

    def __init__(self, name: str, loader: _Loader, writer: Writer, validation: Writer | None, chosen: frozenset[bytes]):
        self._name, self._loader, self._chosen = name, loader, chosen
        self._writer, self._validation = writer, validation
        self._read = self._placeholder_added = 0

    def add(self, item: json_stream.Item) -> None:
        location = f"{self._name} record {item.number} (line {item.line})"
        self._read += 1
        try:
            if item.problem:
                raise ValueError(item.problem)
            sample = self._loader.parse(item.value)
            is_chosen = bool(self._chosen) and not self._chosen.isdisjoint(self._loader.digests(sample))
            pictures, landmarks = self._loader.read(sample)
            writer = self._validation if self._validation and is_chosen else self._writer
            writer.add(sample.messages, pictures, location, landmarks, **sample.meta)
        except _Policy as error:
            raise ValueError(f"{location}: {error}") from error
        except Unusable as error:
            self._writer.reject(location, error.reason)
        except ValueError as error:
            self._writer.reject(location, str(error))
        else:
            self._placeholder_added += sample.placeholder_added

    def finish(self, options: dict[str, Any]) -> None:
        """Note counts and options in the manifests. Without a conversation for validation there is no such store."""
        counts: dict[str, Any] = {
            "read": self._read,
            "written": self._writer.records,
            "validation": self._validation.records if self._validation else 0,
            "rejected": len(self._writer.rejected),
        }
        assert counts["read"] == counts["written"] + counts["validation"] + counts["rejected"], counts
        counts["placeholder_added"] = self._placeholder_added
        if without := self._loader.without_landmarks:
            counts["without_landmarks_by_reason"] = dict(without.most_common())
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
