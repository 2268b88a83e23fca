"""A LLaVA that reads pictures and clips with landmarks, for programs: `fvjax.load(DIR, scenario="chat")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fvjax.data import chat, frames, spliced, tokenizers
from fvjax.data.stores.conversations import CLIP, places_in
from fvjax.face_regions import POINTS
from fvjax.losses.accumulation import Variables
from fvjax.models.encoder import Encoder

PLACEHOLDER = -200  # stands for a picture, or for a frame of a clip
ROUND = 64  # rows are filled up to a multiple of so many tokens, so that few shapes are compiled
KEYS = ({"image"}, {"image", "landmarks"}, {"video"}, {"video", "landmarks"})

Medium = Mapping[str, Any]
Messages = Sequence[
    Mapping[str, str]
]  # {"role": "system" | "user" | "assistant", "content": text with <image>, <video>}


class Row(NamedTuple):
    """One row as arrays for the model: its tokens [1,T], how many of them are no padding, and its media."""

    tokens: np.ndarray
    length: int
    media: dict[str, np.ndarray]


@partial(jax.jit, static_argnames="encoder")
def _logits(encoder: Encoder, variables: Variables, tokens: jax.Array, media: dict[str, jax.Array]) -> jax.Array:
    """Compute the logits after every token of some rows, float32 [N,T,vocab]."""
    return encoder.logits(variables, encoder.read_conversation(variables, tokens, media, None))


class MediaModel:
    """A model of the LLaVA kind.

    Args:
        tokenizer: None if the checkpoint has none.
        precision: of matrix products, as jax.default_matmul_precision takes it.
        notes: what a user should know about the checkpoint.
        template: of conversations; the published models are asked with another one than they were trained with.
    """

    def __init__(
        self,
        encoder: Encoder,
        variables: Variables,
        tokenizer: tokenizers.Tokenizer | None,
        precision: str,
        notes: Sequence[str] = (),
        template: str = "llava_v1",
    ):
        self.encoder, self.variables, self.tokenizer = encoder, variables, tokenizer
        self._precision, self.notes, self.template = precision, tuple(notes), template

    @property
    def reads_landmarks(self) -> bool:
        """Whether the model has landmark weights; without them it refuses media with landmarks."""
        return self.encoder.net.landmarks is not None

    # ---- text in, text out

    @cached_property
    def format(self) -> spliced.Format:
        """How messages become tokens and arrays. Raises ValueError: no tokenizer."""
        if self.tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer; copy its files beside config.json, or use forward")
        net = self.encoder.net
        return spliced.Format(
            self.tokenizer,
            self.template,
            image_tokens=net.image_tokens,
            frame_tokens=net.frame_tokens,
            frames=net.video.frames if net.video else 1,
            size=net.vision.image_size,
            square="crop",
        )

    def generate(
        self,
        messages: Messages,
        images: Sequence[np.ndarray] = (),
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
        *,
        video: np.ndarray | None = None,
        landmarks: Sequence[np.ndarray | None] = (),
        video_landmarks: np.ndarray | None = None,
    ) -> str:
        """Return the model's answer to the last message.

        Args:
            messages: the last one is the user's. Each `<image>` stands for one picture, `<video>` for the clip.
            images: uint8 [H,W,3] RGB, of any size; their centre is cut out.
            max_tokens, temperature, top_p, seed: as for :meth:`fvjax.chat_model.ChatModel.generate`.
            video: frames uint8 [n,H,W,3]; of more frames than the model reads, equally spaced ones are taken, of fewer
                some are repeated.
            landmarks: of each picture [68,2] or None; () for none. video_landmarks: [n,68,2] or None. (x, y) from 0 to
                1 across the picture.
        Raises:
            ValueError: no conversation, media that the messages do not name, or too many tokens.
        """
        if not messages or messages[-1].get("role") != "user":
            raise ValueError("messages: the last one must be the user's, for the model to answer")
        if max_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(f"max_tokens={max_tokens}, temperature={temperature}, top_p={top_p}: out of range")
        row = self._asked(messages, images, video, landmarks, video_landmarks)
        self.encoder.net.decoder.check_length(row.length + max_tokens)
        sampling: dict[str, Any] = {}
        if temperature:
            keys = jax.random.split(jax.random.key(seed), 1)
            sampling = {"keys": keys, "temperature": float(temperature), "top_p": float(top_p)}
        stop = chat.stop_ids(self.template, self.format.tokenizer)
        with jax.default_matmul_precision(self._precision):
            ids, count = self._continue(row, max_tokens=max_tokens, eos=stop, **sampling)
        answer = np.asarray(ids)[0, : int(count[0])].tolist()
        return self.format.tokenizer.decode(answer[:-1] if answer[-1] in stop else answer).strip()

    def _asked(
        self,
        messages: Messages,
        images: Sequence[np.ndarray],
        video: np.ndarray | None,
        landmarks: Sequence[np.ndarray | None],
        video_landmarks: np.ndarray | None,
    ) -> Row:
        """Turn a conversation and its media into arrays."""
        kinds = places_in(messages)
        if (clips := kinds.count(CLIP)) != (video is not None) or len(kinds) - clips != len(images):
            given = f"{len(images)} pictures and {int(video is not None)} clips"
            raise ValueError(f"messages: they name {len(kinds) - clips} pictures and {clips} clips, given are {given}")
        if landmarks and len(landmarks) != len(images):
            raise ValueError(f"landmarks of {len(landmarks)} pictures, given are {len(images)}; None where unknown")
        net, format = self.encoder.net, self.format
        none = [None] * len(images)
        groups = [self._group(f"image {i}", (x,), one) for i, (x, one) in enumerate(zip(images, landmarks or none))]
        if video is not None:
            if net.video is None:
                raise ValueError("this model has no video tower; give single frames as images")
            if not len(video):
                raise ValueError("video: a clip of no frames")
            chosen = frames.indices(len(video), net.video.frames)
            points = None if video_landmarks is None else self._landmarks("video", video_landmarks, (len(video),))
            clip = self._group("video", [video[i] for i in chosen], None if points is None else points[chosen])
            groups.insert(kinds.index(CLIP), clip)
        pictures = [picture for group, _ in groups for picture in group]
        piece = spliced.piece(format, list(messages), pictures, [points for _, points in groups])
        room = -(-len(piece.ids) // ROUND) * ROUND
        batch = spliced.pack_rows([[piece]], format, room, len(piece.images), len(piece.videos))
        media = {name: batch[name] for name in batch if name.startswith(("image", "video"))}
        media = {n: x for n, x in media.items() if len(piece.images if n.startswith("image") else piece.videos)}
        return Row(batch["tokens"], len(piece.ids), media)

    def _group(
        self, name: str, pictures: Sequence[np.ndarray], points: np.ndarray | None
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        """Check the pictures of one `<image>` or `<video>` and their landmarks, which get an axis for the frames."""
        checked = [_checked(f"{name}, frame {i}" if len(pictures) > 1 else name, x) for i, x in enumerate(pictures)]
        if points is None:
            return checked, None
        points = np.asarray(points)
        lead = () if points.ndim < 3 and len(pictures) == 1 else (len(pictures),)
        return checked, self._landmarks(name, points, lead).reshape(len(pictures), POINTS, 2)

    # ---- token ids in, logits out

    def forward(self, ids: Sequence[Sequence[int]], media: Sequence[Sequence[Medium]]) -> list[np.ndarray]:
        """Read token ids without a tokenizer -> for each row the logits after every token, float32 [T_i, vocab].

        Args:
            ids: for each row its ids, with -200 for every picture and for every frame of a clip. A placeholder counts
                in T_i as the tokens that it becomes.
            media: for each row its pictures and its clip, in the order of the placeholders. A picture is {"image":
                uint8 [H,W,3], "landmarks": float [68,2] or None}, a clip {"video": uint8 [frames,H,W,3], "landmarks":
                float [frames,68,2] or None}; both of the tower's size, and landmarks (x, y) from 0 to 1 across it.
        Raises:
            ValueError: rows and media that do not fit each other or the model, with the number of the row.
        """
        out = []
        with jax.default_matmul_precision(self._precision):
            for row in self._rows(ids, media):
                logits = _logits(self.encoder, self.variables, row.tokens, row.media)
                out.append(np.asarray(logits)[0, : row.length])
        return out

    def continue_ids(
        self, ids: Sequence[Sequence[int]], media: Sequence[Sequence[Medium]], max_tokens: int, eos: Sequence[int]
    ) -> list[list[int]]:
        """Continue rows of token ids greedily -> for each row the new ids, up to one of `eos`.

        Args and errors as for :meth:`forward`.
        """
        out = []
        with jax.default_matmul_precision(self._precision):
            for row in self._rows(ids, media):
                new, count = self._continue(row, max_tokens=max_tokens, eos=tuple(eos))
                out.append(np.asarray(new)[0, : int(count[0])].tolist())
        return out

    def _continue(self, row: Row, **settings: Any) -> tuple[jax.Array, jax.Array]:
        """Continue one row: (ids [1, max_tokens], their number [1])."""
        tokens, media, lengths = jax.tree.map(jnp.asarray, (row.tokens, row.media, np.array([row.length], np.int32)))
        return self.encoder.continue_conversation(self.variables, tokens, media, None, lengths, **settings)

    def _rows(self, ids: Sequence[Sequence[int]], media: Sequence[Sequence[Medium]]) -> list[Row]:
        """Check all rows and turn them into arrays."""
        if len(ids) != len(media):
            raise ValueError(f"forward: {len(ids)} rows of ids and {len(media)} of media")
        return [self._row(number, *row) for number, row in enumerate(zip(ids, media))]

    def _row(self, number: int, ids: Sequence[int], media: Sequence[Medium]) -> Row:
        net, name = self.encoder.net, f"row {number}"
        given = np.asarray(ids)
        vocabulary = net.decoder.vocab
        if given.ndim != 1 or given.dtype.kind not in "iu" or not len(given):
            raise ValueError(f"{name} needs ids, whole numbers")
        if len(wrong := given[(given != PLACEHOLDER) & ((given < 0) | (given >= vocabulary))]):
            raise ValueError(f"{name}: id {wrong[0]} is neither {PLACEHOLDER} nor from 0 to {vocabulary - 1}")
        checked = [self._medium(f"{name}, medium {i}", medium) for i, medium in enumerate(media)]
        if sum("video" in medium for medium in checked) > 1:
            raise ValueError(f"{name}: more than one video; the model reads one clip at a time")
        kinds = [kind for medium in checked for kind in _placeholders(medium)]
        if (count := int((given == PLACEHOLDER).sum())) != len(kinds):
            raise ValueError(
                f"{name}: {count} placeholders ({PLACEHOLDER}) for {len(kinds)} pictures and frames; a picture takes "
                "one, a clip one for each frame"
            )
        return self._arrays(given, checked, kinds)

    def _medium(self, name: str, medium: Medium) -> dict[str, np.ndarray]:
        """Check one picture or clip; return it without landmarks that are None."""
        net = self.encoder.net
        if not isinstance(medium, Mapping) or set(medium) not in KEYS:
            raise ValueError(f'{name}: expected {{"image": …}} or {{"video": …}}, with or without "landmarks"')
        kind = "image" if "image" in medium else "video"
        if kind == "video" and net.video is None:
            raise ValueError(f"{name}: this model has no video tower; give single frames as images")
        pixels, size = np.asarray(medium[kind]), net.vision.image_size
        lead = pixels.shape[:-3]
        if pixels.dtype != np.uint8 or pixels.shape[-3:] != (size, size, 3) or len(lead) != (kind == "video"):
            expected = f"[{'frames,' if kind == 'video' else ''}{size},{size},3]"
            raise ValueError(f"{name}: {kind} is {pixels.dtype} {list(pixels.shape)}, expected uint8 {expected}")
        if kind == "video" and not 1 <= lead[0] <= net.video.frames:
            raise ValueError(f"{name}: a clip of {lead[0]} frames; the model reads 1 to {net.video.frames}")
        if medium.get("landmarks") is None:
            return {kind: pixels}
        return {kind: pixels, "landmarks": self._landmarks(name, medium["landmarks"], lead)}

    def _landmarks(self, name: str, landmarks: Any, lead: tuple[int, ...]) -> np.ndarray:
        """Check the landmarks of a picture or clip."""
        if not self.reads_landmarks:
            raise ValueError(f"{name}: this model has no landmark weights; it reads rows without landmarks only")
        points = np.asarray(landmarks)
        if points.dtype.kind != "f" or points.shape != (*lead, POINTS, 2):
            expected = f"float {[*lead, POINTS, 2]}"
            raise ValueError(f"{name}: landmarks are {points.dtype} {list(points.shape)}, expected {expected}")
        if not np.isfinite(points).all():
            raise ValueError(f"{name}: landmarks with NaN or infinity; give None where they are not known")
        return points.astype(np.float32)

    def _arrays(self, ids: np.ndarray, media: Sequence[dict[str, np.ndarray]], kinds: Sequence[str]) -> Row:
        """Expand the placeholders of a row, fill it up, and stack its pictures and its clip."""
        net = self.encoder.net
        sizes = {"image": net.image_tokens, "video": net.frame_tokens}
        counts = np.ones(len(ids), int)
        counts[ids == PLACEHOLDER] = [sizes[kind] for kind in kinds]
        starts = np.cumsum(counts) - counts
        length = int(counts.sum())
        net.decoder.check_length(length)
        tokens = np.zeros((1, -(-length // ROUND) * ROUND), np.int32)
        tokens[0, starts[ids != PLACEHOLDER]] = ids[ids != PLACEHOLDER]
        begin = starts[ids == PLACEHOLDER]
        arrays: dict[str, np.ndarray] = {}
        for kind, name in (("image", "images"), ("video", "videos")):
            ours = [medium for medium in media if kind in medium]
            if not ours:
                continue
            places = [start + np.arange(sizes[kind]) for start, each in zip(begin, kinds) if each == kind]
            missing = np.zeros((*ours[0][kind].shape[:-3], POINTS, 2), np.float32)
            arrays[name] = np.stack([medium[kind] for medium in ours])[None]
            arrays[f"{kind}_places"] = np.concatenate(places)[None].astype(np.int32)
            arrays[f"{kind}_landmarks"] = np.stack([medium.get("landmarks", missing) for medium in ours])[None]
            arrays[f"{kind}_has_landmarks"] = np.array([["landmarks" in medium for medium in ours]])
        return Row(tokens, length, arrays)


def _checked(name: str, picture: np.ndarray) -> np.ndarray:
    """Return a picture. Raises ValueError unless it is uint8 [H,W,3]."""
    array = np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
        raise ValueError(f"{name}: expected uint8 [H,W,3] RGB, got {array.dtype} {list(array.shape)}")
    return array


def _placeholders(medium: Mapping[str, np.ndarray]) -> list[str]:
    """Return the kind of each placeholder of a picture (one) or a clip (one for each frame)."""
    return ["video"] * len(medium["video"]) if "video" in medium else ["image"]
