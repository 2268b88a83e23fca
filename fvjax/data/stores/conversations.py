"""Stores of conversations about pictures: TFDS dataset directories in ArrayRecord format, like face stores.

    DIR/features.json, dataset_info.json              read by any TFDS user (builder_from_directory)
    DIR/conversations-SPLIT.array_record-00000-of-00001   messages (JSON), pictures (encoded files), source, meta (JSON)
    DIR/index.npz                                     sources, pictures of each record, and their widths and heights
    DIR/manifest.json                                 counts, hashes, sources, rejections, and if it has clips or
                                                      landmarks, "frames" and "landmarks"

`messages` is a list of {"role", "content"}: perhaps a system message, then questions (user) and answers (assistant) in
turns, the last one an answer. Each `<image>` in a question stands for one picture, in order. Other placeholders and the
control tokens of chat templates are refused in any text, because a tokenizer would take them for what they stand for.

In a store with clips, `<video>` in a question stands for `frames` pictures, the frames of a clip in order; the number
is the same for all clips. In a store with landmarks, a record has for each `<image>` and `<video>` the facial points of
its pictures, or none: float32 [pictures, 68, 2], little-endian, (x, y) from 0 to 1 across the picture. The manifest
names their detector.

The pictures are JPEG, PNG or WebP files of any size, byte for byte as they came. The index holds their sizes as they
are when upright, so that tiles can be counted without decoding.

A record's digest is sha256 over messages, source and meta as they are stored, over the pictures in order, and over the
landmarks in order if the store has them; each of these parts follows its length (8 bytes, little-endian). The data_hash
is sha256 over the records' digests in order.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from google.protobuf.message import DecodeError
from PIL import Image

from fvjax.data import face_points, tiling
from fvjax.data.face_points import Points
from fvjax.data.stores import manifest, shards
from fvjax.data.stores.shards import EXAMPLE, ShardWriter, shard_names
from fvjax.data.stores.store import RecordStore
from fvjax.data.stores.writer import StoreWriter, printable, shard_entries, write_tfds_files

PLACEHOLDER, CLIP = "<image>", "<video>"
ROLES = ("system", "user", "assistant")
SHARD_BYTES = 1 << 30  # a shard is full with so many, or with shards.SHARD_RECORDS records
MAX_TEXT_BYTES = 1 << 24  # of the messages of one record, and of its meta
MAX_PICTURES = 256  # of one record
MAX_PICTURE_BYTES = 1 << 28  # of the pictures of one record together
DESCRIPTION = "Conversations about pictures. Written by fvjax.data.stores.conversations."
# What tokenizers and chat templates of vision-language models take for something else than text.
_SPECIAL = re.compile(r"<\|[^<>|\s]{1,64}\|>|</?img>|<IMG_CONTEXT>|<(?:image|video|audio)>|</?s>")
_PLACES = re.compile("<image>|<video>")
_SIZES_REMEMBERED = 4096


class Unusable(ValueError):
    """A conversation that cannot be stored.

    Attributes:
        reason: what is wrong, without the source; what stands before its first colon is the kind of mistake.
    """

    def __init__(self, source: str, reason: str):
        super().__init__(f"{source}: {reason}")
        self.reason = reason


@dataclass(frozen=True)
class Conversation:
    """One record of a store of conversations.

    Attributes:
        messages: {"role": "system" | "user" | "assistant", "content": text} in order; `<image>` stands for a picture.
        pictures: the encoded files.
        source: where the conversation came from.
        meta: what else is known about it, such as "options", "answer" or "tag".
        landmarks: for each `<image>` and `<video>` in order, its points float32 [pictures, 68, 2], or None; () in a
            store without landmarks.
    """

    messages: list[dict[str, str]]
    pictures: tuple[bytes, ...]
    source: str
    meta: dict[str, Any]
    landmarks: tuple[Points | None, ...] = field(default=(), compare=False)  # arrays have no single truth value


def group_sizes(messages: Sequence[Mapping[str, str]], frames: int) -> list[int]:
    """Return how many pictures stand behind each `<image>` and `<video>` of a conversation, in order: 1 or `frames`."""
    return [1 if place == PLACEHOLDER else frames for place in places_in(messages)]


def places_in(messages: Sequence[Mapping[str, str]]) -> list[str]:
    """Return the `<image>` and `<video>` of a conversation in order."""
    return [place for message in messages for place in _PLACES.findall(message["content"])]


def check_messages(messages: Any, pictures: int, frames: int = 0) -> None:
    """Check the messages of one record.

    Args:
        messages: see :mod:`fvjax.data.stores.conversations`.
        pictures: how many pictures the record has.
        frames: of each clip; 0 if there are none, and `<video>` is refused.
    Raises:
        ValueError: messages that are malformed, out of order or empty, without an answer, with special tokens in a
            text, or with another number of `<image>` than of pictures. What stands before the colon is the kind of
            mistake.
    """
    if not isinstance(messages, list) or not messages:
        raise ValueError("no messages: expected a list of role and content")
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ValueError(f"malformed message: message {number} must have exactly role and content")
        if message["role"] not in ROLES:
            raise ValueError(f"unknown role: message {number} has {message['role']!r:.100}, expected {'|'.join(ROLES)}")
        if not isinstance(message["content"], str):
            raise ValueError(f"malformed message: the content of message {number} is no text")
        if not message["content"].strip():
            raise ValueError(f"empty text: message {number} ({message['role']})")
        if "\0" in message["content"]:
            raise ValueError(f"NUL in a text: message {number} ({message['role']})")
        _check_special_tokens(message, number, (PLACEHOLDER, CLIP) if frames else (PLACEHOLDER,))
    _check_turns([message["role"] for message in messages])
    groups = group_sizes(messages, frames) if frames else [1] * _count(messages, PLACEHOLDER)
    if sum(groups) != pictures:
        clips = f" and {_count(messages, CLIP)} {CLIP} of {frames} frames" if frames else ""
        places = f"{_count(messages, PLACEHOLDER)} {PLACEHOLDER}{clips}"
        raise ValueError(f"placeholders and pictures differ: {places}, {pictures} pictures")


class Writer(StoreWriter):
    """Write one store of conversations; use it as a context manager, as every :class:`StoreWriter`.

    The manifest counts what :meth:`reject` was told by the kind of mistake, which stands before the reason's colon.

    Args:
        dst, split, sources: see :class:`StoreWriter`.
        frames: of each clip; 0 for a store without clips.
        detector: where landmarks come from, such as a detector's name; None for a store without landmarks.
    """

    content = "conversations"
    record_name = "conversation"

    def __init__(
        self,
        dst: str | os.PathLike,
        *,
        split: str,
        sources: Sequence[str],
        frames: int = 0,
        detector: str | None = None,
    ):
        super().__init__(dst, split=split, sources=sources)
        if not 0 <= frames <= MAX_PICTURES:
            raise ValueError(f"frames={frames}: a clip has 1 to {MAX_PICTURES} frames; 0 means no clips")
        self.frames, self.detector = frames, detector
        self.info |= {"frames": frames} if frames else {}
        if detector is not None:
            self.info["landmarks"] = {"detector": detector, "points": face_points.POINTS}
        self._without_landmarks = 0  # pictures and clips
        self._counts = array("q")  # pictures of each record
        self._widths = array("q")
        self._heights = array("q")
        self._sizes: dict[bytes, tuple[int, int]] = {}  # of the latest pictures, by digest

    def add(
        self,
        messages: list[dict[str, str]],
        pictures: Sequence[bytes],
        source: str,
        landmarks: Sequence[Points | None] = (),
        /,
        **meta: Any,
    ) -> int:
        """Append one record and return its number.

        Args:
            messages: see :func:`check_messages`.
            pictures: encoded JPEG, PNG or WebP files, one for each `<image>`, `frames` for each `<video>`.
            source: where the conversation came from, one line of text.
            landmarks: for each `<image>` and `<video>` its points [pictures, 68, 2], from 0 to 1, or None; () in a
                store without landmarks.
            meta: anything that JSON can express.
        Raises:
            Unusable: a mistake in the messages, a picture that cannot be read, landmarks that are none, or a meta that
                JSON cannot express. The message names the source.
        """
        if "\n" in source or printable(source) != source:
            raise Unusable(printable(source)[:200], "malformed source: expected plain UTF-8 text of one line")
        try:
            check_messages(messages, len(pictures), self.frames)
            points = self._encode_landmarks(landmarks, group_sizes(messages, self.frames))
            texts = _encode(messages, "messages"), source.encode(), _encode(meta, "meta")
            _check_amount(pictures)
            sizes = [self._size(data, number) for number, data in enumerate(pictures, 1)]
        except ValueError as error:
            raise Unusable(source, str(error)) from error
        example = EXAMPLE()
        feature = example.features.feature
        for name, data in zip(("messages", "source", "meta"), texts):
            feature[name].bytes_list.value.append(data)
        feature["pictures"].bytes_list.value.extend(pictures)
        if self.detector is not None:
            feature["landmarks"].bytes_list.value.extend(points)
            self._without_landmarks += points.count(b"")
        self._open_shard().append(example)
        self._hash.update(shards.digest([*texts, *pictures, *points]))
        self._sources += texts[1] + b"\n"
        self._counts.append(len(pictures))
        self._widths.extend(width for width, _ in sizes)
        self._heights.extend(height for _, height in sizes)
        return len(self._counts) - 1

    def _size(self, data: bytes, number: int) -> tuple[int, int]:
        """Return (width, height) of a picture, which is decoded in order to know that it can be."""
        digest = hashlib.sha256(data).digest()
        if digest not in self._sizes:
            if len(self._sizes) == _SIZES_REMEMBERED:
                self._sizes.clear()
            try:
                self._sizes[digest] = tiling.decode_picture(data, f"picture {number}").size
            except ValueError as error:
                raise ValueError(f"unreadable picture: {error}") from error
        return self._sizes[digest]

    def _encode_landmarks(self, landmarks: Sequence[Points | None], groups: Sequence[int]) -> list[bytes]:
        """Return the bytes of each group's points, b"" for none."""
        if self.detector is None:
            if len(landmarks):
                raise ValueError("landmarks: the store has none; open the writer with their detector")
            return []
        if len(landmarks) != len(groups):
            raise ValueError(f"landmarks: of {len(landmarks)} pictures and clips, the conversation has {len(groups)}")
        return [b"" if one is None else face_points.encode(one, count) for one, count in zip(landmarks, groups)]

    def _is_full(self, shard: ShardWriter) -> bool:
        return super()._is_full(shard) or shard.bytes >= SHARD_BYTES

    def _complete(self, shard_sizes: Sequence[tuple[int, int]]) -> None:
        text, files = tfds.features.Text(), tfds.features.Sequence(tfds.features.Text())
        connectors = {"messages": text, "pictures": files, "source": text, "meta": text}
        if self.detector is not None:
            connectors["landmarks"] = files
            self.info["landmarks"]["missing"] = self._without_landmarks
        write_tfds_files(self._tmp, self.split, shard_sizes, connectors, DESCRIPTION)
        np.savez_compressed(
            self._tmp / "index.npz",
            sources=np.frombuffer(self._sources, np.uint8)[:-1],
            counts=np.asarray(self._counts),
            widths=np.asarray(self._widths),
            heights=np.asarray(self._heights),
        )
        names = shard_names(self.split, len(shard_sizes), self.content)
        kinds = Counter(entry["reason"].partition(":")[0] for entry in self.rejected)
        entries = {
            "format": manifest.CONVERSATIONS.format,
            "split": self.split,
            "counts": {
                "conversations": len(self._counts),
                "pictures": len(self._widths),
                "without_picture": self._counts.count(0),
                "rejected": len(self.rejected),
            },
            "data_hash": self._hash.hexdigest(),
            "index_hash": hashlib.sha256((self._tmp / "index.npz").read_bytes()).hexdigest(),
            **self.info,
            "shards": shard_entries(self._tmp, names, shard_sizes),
            "rejected_by_reason": dict(kinds.most_common()),
            "rejected": self.rejected,
        }
        manifest.write_manifest(self._tmp, entries)


class ConversationStore(RecordStore):
    """A store of conversations opened for reading. Picklable, and safe to read from several threads.

    Args:
        path: the store's directory.
        split: the split that the store must have ("train", "val" or "test").
    Attributes:
        manifest: the parsed manifest.json.
        data_hash: hash of the records' contents in order (see :mod:`fvjax.data.stores.conversations`).
        identities: empty; conversations are not labelled with people.
        frames: of each clip; 0 in a store without clips.
        detector: where the landmarks come from; None in a store without landmarks.
    Raises:
        ValueError: no store there, a face store, another format or split, or files that do not agree with the manifest.
    """

    def __init__(self, path: str | os.PathLike, split: str = "train"):
        super().__init__(path, split, manifest.CONVERSATIONS)
        columns = {"sources": np.uint8, "counts": np.int64, "widths": np.int64, "heights": np.int64}
        self._source_lines, self._counts, self._widths, self._heights = self._read_index(columns)
        self._check_counts()
        self.identities: list[str] = []
        self.frames: int = self.manifest.get("frames", 0)
        if not isinstance(self.frames, int) or not 0 <= self.frames <= MAX_PICTURES:
            raise ValueError(f"{self.path}: manifest.json: 'frames' is malformed; prepare the store again")
        points = self.manifest.get("landmarks")
        if points is not None and not (isinstance(points, dict) and isinstance(points.get("detector"), str)):
            raise ValueError(f"{self.path}: manifest.json: 'landmarks' is malformed; prepare the store again")
        self.detector: str | None = points["detector"] if points else None

    @cached_property
    def sources(self) -> list[str]:
        return self._source_lines.tobytes().decode().split("\n")

    @cached_property
    def picture_sizes(self) -> list[tuple[tuple[int, int], ...]]:
        """For each record the (width, height) of its pictures, upright, from the index alone."""
        sizes = list(zip(self._widths.tolist(), self._heights.tolist()))
        ends = np.cumsum(self._counts).tolist()
        return [tuple(sizes[end - count : end]) for end, count in zip(ends, self._counts.tolist())]

    def conversation(self, i: int) -> Conversation:
        """Return record ``i``.

        Raises:
            IndexError: there is no such record.
            ValueError: the record is damaged. The message names store and record.
        """
        self._check_number(i)
        try:
            entries = self._read_example(i)
            (messages,) = entries["messages"].bytes_list.value
            (source,) = entries["source"].bytes_list.value
            (meta,) = entries["meta"].bytes_list.value
            pictures = tuple(entries["pictures"].bytes_list.value)
            if len(pictures) != self._counts[i]:
                raise ValueError(f"{len(pictures)} pictures, {self._counts[i]} in the index")
            record = Conversation(json.loads(messages), pictures, source.decode(), json.loads(meta))
            check_messages(record.messages, len(pictures), self.frames)
            if self.detector is not None:
                groups = group_sizes(record.messages, self.frames)
                points = entries["landmarks"].bytes_list.value
                decoded = [
                    face_points.decode(data, n) if data else None for data, n in zip(points, groups, strict=True)
                ]
                record = replace(record, landmarks=tuple(decoded))
        except (RuntimeError, IndexError, ValueError, DecodeError) as error:  # the first is ArrayRecord's checksums
            raise ValueError(f"{self.path} record {i}: damaged ({error}); prepare the store again") from error
        return record

    def images(self, i: int) -> list[Image.Image]:
        """Return the decoded pictures of record ``i``, in RGB and upright.

        Raises:
            ValueError: the record is damaged, or a picture has another size than the index says.
        """
        record = self.conversation(i)
        decoded = []
        for number, data in enumerate(record.pictures):
            location = f"{self.path} record {i} ({record.source}), picture {number + 1}"
            decoded.append(tiling.decode_picture(data, location))
            expected = self.picture_sizes[i][number]
            if decoded[-1].size != expected:
                width, height = decoded[-1].size
                raise ValueError(f"{location}: {width}x{height}, but index.npz says {expected}; prepare it again")
        return decoded

    def _check_counts(self) -> None:
        sizes = np.concatenate([self._widths, self._heights])
        counts_fit = len(self._counts) == len(self) > 0 and set(self._counts.tolist()) <= set(range(MAX_PICTURES + 1))
        sizes_fit = len(self._widths) == len(self._heights) == self._counts.sum() and (sizes > 0).all()
        if not counts_fit or not sizes_fit:
            raise ValueError(f"{self.path}: index.npz and manifest.json disagree; prepare the store again")


def _count(messages: Sequence[Mapping[str, str]], placeholder: str) -> int:
    return sum(message["content"].count(placeholder) for message in messages)


def _check_special_tokens(message: dict[str, str], number: int, placeholders: Sequence[str]) -> None:
    for token in _SPECIAL.findall(message["content"]):
        if token not in placeholders:
            raise ValueError(f"special token in a text: {token} in message {number} ({message['role']}); remove it")
        if message["role"] != "user":
            raise ValueError(f"{token} outside a question: message {number} ({message['role']})")


def _check_turns(roles: list[str]) -> None:
    turns = roles[1:] if roles[0] == "system" else roles
    if "system" in turns:
        raise ValueError("roles out of order: a system message that is not the first")
    if "assistant" not in turns:
        raise ValueError("no answer: the assistant says nothing, so there is nothing to learn")
    if turns != ["user", "assistant"] * (len(turns) // 2):
        raise ValueError(f"roles out of order: {', '.join(roles[:8])}; expected user and assistant in turns")


def _check_amount(pictures: Sequence[bytes]) -> None:
    if len(pictures) > MAX_PICTURES or sum(map(len, pictures)) > MAX_PICTURE_BYTES:
        limits = f"{MAX_PICTURES} pictures and {MAX_PICTURE_BYTES} bytes"
        raise ValueError(f"too many pictures: {len(pictures)} of {sum(map(len, pictures))} bytes, at most {limits}")


def _encode(value: Any, name: str) -> bytes:
    """Return a value as JSON in UTF-8, the same bytes for equal values."""
    try:
        data = json.dumps(value, ensure_ascii=False, allow_nan=False, sort_keys=True).encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {name} ({error})") from error
    if len(data) > MAX_TEXT_BYTES:
        raise ValueError(f"too long: {name} of {len(data)} bytes, at most {MAX_TEXT_BYTES}")
    return data
