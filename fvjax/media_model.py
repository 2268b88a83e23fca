"""A LLaVA that reads pictures and clips with landmarks, for programs: `fvjax.load(DIR, scenario="chat")`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np

from fvjax.data import tokenizers
from fvjax.face_regions import POINTS
from fvjax.losses.accumulation import Variables
from fvjax.models.encoder import Encoder

PLACEHOLDER = -200  # stands for a picture, or for a frame of a clip
ROUND = 64  # rows are filled up to a multiple of so many tokens, so that few shapes are compiled
KEYS = ({"image"}, {"image", "landmarks"}, {"video"}, {"video", "landmarks"})

Medium = Mapping[str, Any]


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
    """

    def __init__(
        self,
        encoder: Encoder,
        variables: Variables,
        tokenizer: tokenizers.Tokenizer | None,
        precision: str,
        notes: Sequence[str] = (),
    ):
        self.encoder, self.variables, self.tokenizer = encoder, variables, tokenizer
        self._precision, self.notes = precision, tuple(notes)

    @property
    def reads_landmarks(self) -> bool:
        """Whether the model has landmark weights; without them it refuses media with landmarks."""
        return self.encoder.net.landmarks is not None

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
                given = (self.variables, row.tokens, row.media, None, np.array([row.length], np.int32))
                new, count = self.encoder.continue_conversation(*given, max_tokens=max_tokens, eos=tuple(eos))
                out.append(np.asarray(new)[0, : int(count[0])].tolist())
        return out

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


def _placeholders(medium: Mapping[str, np.ndarray]) -> list[str]:
    """Return the kind of each placeholder of a picture (one) or a clip (one for each frame)."""
    return ["video"] * len(medium["video"]) if "video" in medium else ["image"]
