"""Conversations about pictures and clips as arrays, for models that splice visual tokens in (Face-LLaVA, LLaVA).

A row has places for pictures and for clips, and each of these may have facial points; the arrays say which do, so that
rows with and without them share a batch. See :func:`pack_rows`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fvjax.data import chat, resizing
from fvjax.data.conversation_plan import ConversationPlan
from fvjax.data.conversations import NO_TARGET
from fvjax.data.face_points import Points
from fvjax.data.frames import FRAMES
from fvjax.data.placeholders import PLACEHOLDER_ID
from fvjax.data.stores.conversations import CLIP, Conversation, ConversationStore, group_sizes, places_in
from fvjax.data.tokenizers import Tokenizer
from fvjax.face_regions import POINTS

LANDMARKS = ("own", "none", "shuffled")
_TRIES = 1000  # to find another record


@dataclass(frozen=True)
class Format:
    """How a conversation becomes tokens, pictures and clips. Picklable.

    Attributes:
        template: a template with placeholders of chat.TEMPLATES.
        image_tokens, frame_tokens: visual tokens of a picture, and of one frame of a clip. The published towers keep
            the class token of frames only: 256 and 257.
        frames: of a clip; a store's must be the same.
        size: side of the towers' pictures in pixels.
        square: "pad" pictures to a square before they are resized (the published training), or "crop" their centre
            (the published inference). Clips are always cropped.
        antialias: of the pictures' bicubic resizing. Clips are resized bilinearly without it.
        landmarks: "own"; "none": hide them; "shuffled": take those of another record, for controls.
    """

    tokenizer: Tokenizer
    template: str = "vicuna_v1"
    image_tokens: int = 256
    frame_tokens: int = 257
    frames: int = FRAMES
    size: int = 224
    square: str = "pad"
    antialias: bool = True
    landmarks: str = "own"

    def __post_init__(self):
        if self.landmarks not in LANDMARKS:
            raise ValueError(f"landmarks={self.landmarks!r}: choose one of {', '.join(LANDMARKS)}")

    def render(self, messages: Sequence[Mapping[str, str]]) -> chat.Rendered:
        """Return token ids with a placeholder for each picture and frame, and the mask of what is learned."""
        return chat.render(self.template, messages, self.tokenizer, frames=self.frames)

    def picture(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize a picture for the tower: uint8 [size, size, 3]."""
        return resizing.to_square(pixels, self.size, square=self.square, antialias=self.antialias)

    def clip(self, frames: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """Resize the frames of a clip for the tower: uint8 [frames, size, size, 3]."""
        return np.stack([resizing.to_square(f, self.size, kernel="bilinear", antialias=False) for f in frames])


class Size(NamedTuple):
    """How large a conversation is: its tokens (visual ones included), tokens with a loss, pictures and clips."""

    tokens: int
    learned: int
    images: int
    videos: int


class Piece(NamedTuple):
    """One conversation for :func:`pack_rows`.

    Attributes:
        ids, label_mask: visual tokens included, which have id 0.
        images: uint8 [size, size, 3] each. image_places: where their visual tokens stand.
        videos, video_places: the same of clips, uint8 [frames, size, size, 3].
        image_landmarks, video_landmarks: float32 [68, 2] and [frames, 68, 2] each, or None.
    """

    ids: NDArray[np.int32]
    label_mask: NDArray[np.bool_]
    images: list[NDArray[np.uint8]]
    image_places: NDArray[np.int64]
    videos: list[NDArray[np.uint8]]
    video_places: NDArray[np.int64]
    image_landmarks: list[Points | None]
    video_landmarks: list[Points | None]


def measure(format: Format, conversation: Conversation) -> Size:
    """Return the size of a conversation without decoding its pictures. Raises ValueError as chat.render does."""
    rendered = format.render(conversation.messages)
    kinds = places_in(conversation.messages)
    videos = kinds.count(CLIP)
    images = len(kinds) - videos
    visual = images * (format.image_tokens - 1) + videos * format.frames * (format.frame_tokens - 1)
    return Size(len(rendered.ids) + visual, sum(rendered.label_mask), images, videos)


def piece(
    format: Format,
    messages: Sequence[Mapping[str, str]],
    pictures: Sequence[NDArray[np.uint8]],
    landmarks: Sequence[Points | None] = (),
) -> Piece:
    """Turn one conversation into token ids, resized pictures and points.

    Args:
        pictures: uint8 [H, W, 3], one for each `<image>`, `frames` for each `<video>`, in order.
        landmarks: float32 [pictures, 68, 2] or None for each `<image>` and `<video>`; () for none at all. Points move
            with their picture as it is padded and cropped.
    """
    kinds, sizes = places_in(messages), group_sizes(messages, format.frames)
    if sum(sizes) != len(pictures):
        raise ValueError(f"the conversation has places for {sum(sizes)} pictures and frames, {len(pictures)} are given")
    points = list(landmarks) or [None] * len(kinds)
    if len(points) != len(kinds):
        raise ValueError(f"landmarks of {len(points)} pictures and clips, the conversation has {len(kinds)}")
    ids, mask, spans = _expand(format, format.render(messages), kinds)
    images, videos, of_images, of_videos = [], [], [], []
    at = 0
    for kind, count, one in zip(kinds, sizes, points, strict=True):
        group = pictures[at : at + count]
        at += count
        moved = None if one is None or format.landmarks == "none" else _move(format, one, group, kind)
        if kind == CLIP:
            videos.append(format.clip(group))
            of_videos.append(moved)
        else:
            images.append(format.picture(group[0]))
            of_images.append(None if moved is None else moved[0])
    places = {video: [np.arange(*span) for kind, *span in spans if (kind == CLIP) is video] for video in (False, True)}
    of_image, of_video = (np.concatenate([*places[video], np.empty(0, np.int64)]) for video in (False, True))
    return Piece(ids, mask, images, of_image, videos, of_video, of_images, of_videos)


def pack_rows(
    rows: Sequence[Sequence[Piece]], format: Format, length: int, images: int, videos: int
) -> dict[str, np.ndarray]:
    """Put conversations one after the other into rows of `length` tokens, `images` pictures and `videos` clips.

    Returns:
        "tokens" int32 [p, length] (0 at visual tokens and beyond a row's end), "targets" int32 [p, length] (the id that
        follows, or NO_TARGET), "segments" int32 [p, length] (which conversation of the row; the number of conversations
        beyond its end); "images" uint8 [p, images, size, size, 3], "image_places" int32 [p, images * image_tokens]
        (where each visual token stands; `length` for pictures that a row does not have), "image_landmarks" float32
        [p, images, 68, 2] (0 if there are none) and "image_has_landmarks" bool [p, images]; "videos" uint8 [p, videos,
        frames, size, size, 3], "video_places" int32 [p, videos * frames * frame_tokens], "video_landmarks" float32
        [p, videos, frames, 68, 2] and "video_has_landmarks" bool [p, videos].
    Raises:
        ValueError: a row has more tokens, pictures or clips. Nothing is ever cut.
    """
    count, side, frames = len(rows), format.size, format.frames
    image_tokens, video_tokens = format.image_tokens, frames * format.frame_tokens
    arrays = {
        "tokens": np.zeros((count, length), np.int32),
        "targets": np.full((count, length), NO_TARGET, np.int32),
        "segments": np.zeros((count, length), np.int32),
        "images": np.zeros((count, images, side, side, 3), np.uint8),
        "image_places": np.full((count, images * image_tokens), length, np.int32),
        "image_landmarks": np.zeros((count, images, POINTS, 2), np.float32),
        "image_has_landmarks": np.zeros((count, images), bool),
        "videos": np.zeros((count, videos, frames, side, side, 3), np.uint8),
        "video_places": np.full((count, videos * video_tokens), length, np.int32),
        "video_landmarks": np.zeros((count, videos, frames, POINTS, 2), np.float32),
        "video_has_landmarks": np.zeros((count, videos), bool),
    }
    for r, row in enumerate(rows):
        own = {name: array[r] for name, array in arrays.items()}
        end = used_images = used_videos = 0
        for number, one in enumerate(row):
            start, end = end, end + len(one.ids)
            if end > length or used_images + len(one.images) > images or used_videos + len(one.videos) > videos:
                raise ValueError(
                    f"a row of {end} tokens, {used_images + len(one.images)} pictures and "
                    f"{used_videos + len(one.videos)} clips; room is for {length}, {images} and {videos}"
                )
            own["tokens"][start:end] = one.ids
            own["targets"][start : end - 1] = np.where(one.label_mask[1:], one.ids[1:], NO_TARGET)
            own["segments"][start:end] = number
            _put(own, "image", used_images, one.images, start + one.image_places, image_tokens, one.image_landmarks)
            _put(own, "video", used_videos, one.videos, start + one.video_places, video_tokens, one.video_landmarks)
            used_images += len(one.images)
            used_videos += len(one.videos)
        own["segments"][end:] = len(row)
    return arrays


@dataclass(frozen=True)
class Reader:
    """Reads the rows of a batch from a store. Picklable.

    Raises:
        ValueError: the store's clips have another number of frames than the format's.
    """

    store: ConversationStore
    format: Format

    def __post_init__(self):
        if self.store.frames not in (0, self.format.frames):
            clips = f"{self.store.path}: its clips have {self.store.frames} frames"
            raise ValueError(f"{clips}, the model takes {self.format.frames}; prepare it with --frames")

    def __call__(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays of some rows, see :func:`pack_rows`.

        Args:
            columns: of :class:`Plan`: "ids" int64 [p, S] (-1: none), and "length", "images" and "videos" int
                [p], the same in all rows.
        """
        rows = [[self._piece(int(i)) for i in ids if i >= 0] for ids in columns["ids"]]
        room = (int(columns[name][0]) for name in ("length", "images", "videos"))
        return pack_rows(rows, self.format, *room)

    def prompt(self, i: int) -> Piece:
        """Return a record without its last answer, for a model to give one."""
        return self._piece(i, answered=False)

    def _piece(self, i: int, answered: bool = True) -> Piece:
        record = self.store.conversation(i)
        messages = record.messages if answered else record.messages[:-1]
        landmarks = record.landmarks
        if self.format.landmarks == "shuffled" and landmarks:
            landmarks = self._landmarks_of_another(i, record)
        pictures = [np.asarray(picture) for picture in self.store.images(i)]
        return piece(self.format, messages, pictures, landmarks)

    def _landmarks_of_another(self, i: int, record: Conversation) -> tuple[Points | None, ...]:
        """Return the points of a record with other pictures in the same places, chosen by the record's number."""
        shapes = _shapes(record.landmarks)
        for j in np.random.default_rng(i).integers(len(self.store), size=_TRIES).tolist():
            other = self.store.conversation(j)
            if other.pictures != record.pictures and _shapes(other.landmarks) == shapes:
                return other.landmarks
        raise ValueError(f"{self.store.path} record {i}: no other record has landmarks of its shape to take")


class Plan(ConversationPlan):
    """A :class:`ConversationPlan` whose columns have "images" and "videos": room for these in the rows of a step.

    Args:
        tokens, images, videos: int [n], of each conversation. settings: of ConversationPlan.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        images: np.ndarray,
        videos: np.ndarray,
        rows_per_step: int,
        seed: int,
        **settings: Any,
    ):
        super().__init__(tokens, images, rows_per_step, seed, **settings)
        self.videos = np.asarray(videos, np.int64)

    def __reduce__(self):
        settings = {name: getattr(self, name) for name in ("buckets", "by_length", "packed", "leave_out")}
        return partial(Plan, **settings), (
            self.tokens,
            self.tiles,
            self.videos,
            self.examples_per_step,
            self.seed,
        )

    def epoch_columns(self, bits: np.random.PCG64) -> dict[str, np.ndarray]:
        """Return "ids", "length", "images" and "videos"; the last two are 0 or powers of two."""
        columns = super().epoch_columns(bits)
        del columns["tiles"]
        taken = columns["ids"] >= 0
        for name, amounts in (("images", self.tiles), ("videos", self.videos)):
            most = np.where(taken, amounts[columns["ids"]], 0).sum(1).reshape(-1, self.examples_per_step).max(1)
            room = np.where(most > 0, 1 << np.ceil(np.log2(np.maximum(most, 1))).astype(np.int64), 0)
            columns[name] = np.repeat(room, self.examples_per_step)
        return columns


def _expand(
    format: Format, rendered: chat.Rendered, kinds: Sequence[str]
) -> tuple[NDArray[np.int32], NDArray[np.bool_], list[tuple[str, int, int]]]:
    """Return ids and mask with all visual tokens, and (kind, start, end) of the tokens of each picture and frame."""
    of_each = [kind for kind in kinds for _ in range(format.frames if kind == CLIP else 1)]
    ids: list[int] = []
    mask: list[bool] = []
    spans: list[tuple[str, int, int]] = []
    for id, counted in zip(*rendered):
        if id != PLACEHOLDER_ID:
            ids.append(id)
            mask.append(counted)
            continue
        kind = of_each[len(spans)]
        tokens = format.frame_tokens if kind == CLIP else format.image_tokens
        spans.append((kind, len(ids), len(ids) + tokens))
        ids += [0] * tokens
        mask += [False] * tokens
    return np.array(ids, np.int32), np.array(mask, bool), spans


def _move(format: Format, points: Points, pictures: Sequence[NDArray[np.uint8]], kind: str) -> Points:
    """Return points in the square that the tower sees, from 0 to 1."""
    height, width, _ = pictures[0].shape
    side = max(height, width) if kind != CLIP and format.square == "pad" else min(height, width)
    scale = np.array([width / side, height / side], np.float32)
    return (points - np.float32(0.5)) * scale + np.float32(0.5) if height != width else points


def _put(
    row: dict[str, np.ndarray],
    kind: str,
    used: int,
    pixels: Sequence[NDArray[np.uint8]],
    places: NDArray[np.int64],
    tokens: int,
    landmarks: Sequence[Points | None],
) -> None:
    """Write the pictures or clips of one conversation, their places and points into a row that has `used` already."""
    row[f"{kind}_places"][used * tokens : used * tokens + len(places)] = places
    for at, (picture, points) in enumerate(zip(pixels, landmarks, strict=True), used):
        row[f"{kind}s"][at] = picture
        if points is not None:
            row[f"{kind}_landmarks"][at] = points
            row[f"{kind}_has_landmarks"][at] = True


def _shapes(landmarks: Sequence[Points | None]) -> list[tuple[int, ...] | None]:
    return [None if one is None else one.shape for one in landmarks]
