"""A vision-language model of the LLaVA kind: pictures and clips of video, with landmarks that refine their tokens.

It is LLaVA-1.5 with an image tower alone, Video-LLaVA with two towers, and Face-LLaVA with landmark modules besides.
Sources: haotian-liu/LLaVA, PKU-YuanGroup/Video-LLaVA, Face-LLaVA (arXiv:2504.07198).
"""

from __future__ import annotations

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from fvjax.models.decoder import Decoder
from fvjax.models.landmarks import LandmarkProjector, RegionAttention
from fvjax.models.projector import Projector
from fvjax.models.vision_transformer import VisionTransformer
from fvjax.typing import Images, Keys, Pixels

Media = Mapping[str, jax.Array]
"""The pictures and clips of N rows of text, in the order in which they stand in each row:

    images                uint8 [N,I,H,W,3]       of the tower's size
    image_places          int32 [N, I * V]        where in its row each visual token stands; T or more: nowhere
    image_landmarks       float32 [N,I,68,2]      (x, y) from 0 to 1 across the picture
    image_has_landmarks   bool [N,I]              without landmarks a picture keeps the projector's tokens
    videos                uint8 [N,C,F,H,W,3]     with video_places [N, C * F * W], video_landmarks [N,C,F,68,2] and
                                                  video_has_landmarks [N,C]

Only the keys of images, or only those of videos, may be there (or I or C be 0), and the landmarks' keys may be missing.
"""


class LLaVA(nn.Module):
    """Parameters ``vision/…``, ``video/…``, ``projector/…``, ``landmarks/…``, ``attention/…`` and ``decoder/…``.

    A picture becomes one token a patch. A frame becomes one more, because the video tower's CLS tokens are kept.

    Attributes:
        bos: id of the first token.
        video: tower for clips; None: the model reads pictures only.
        landmarks, attention: how landmarks become tokens, and refine the visual tokens of their picture or frame. With
            `landmarks` alone, its tokens follow the visual tokens instead, and are zero where landmarks are missing.
    """

    vision: VisionTransformer
    projector: Projector
    decoder: Decoder
    bos: int
    video: VisionTransformer | None = None
    landmarks: LandmarkProjector | None = None
    attention: RegionAttention | None = None

    @property
    def appended(self) -> int:
        """Number of landmark tokens that follow the visual tokens of a picture or frame."""
        return self.landmarks.tokens if self.landmarks is not None and self.attention is None else 0

    @property
    def image_tokens(self) -> int:
        """Number of tokens of one picture."""
        return (self.vision.image_size // self.vision.patch_size) ** 2 + self.appended

    @property
    def frame_tokens(self) -> int:
        """Number of tokens of one frame of a clip; 0 without a video tower."""
        return 0 if self.video is None else (self.video.image_size // self.video.patch_size) ** 2 + 1 + self.appended

    @nn.nowrap
    def preprocess(self, images: Images) -> Pixels:
        """Convert uint8 images [N,H,W,3] to the towers' input."""
        return self.vision.preprocess(images)

    def visual(self, pixels: Pixels, *, train: bool = False, keys: Keys | None = None) -> jax.Array:
        """Compute the projected tokens [N,V,D] of pictures [N,H,W,3], without landmarks."""
        return self.projector(self.vision(pixels, train=train, keys=keys)[:, 1:])

    def frames(self, pixels: Pixels, clip: int) -> jax.Array:
        """Compute the projected tokens [N * clip, V, D] of the frames of N clips, without landmarks."""
        assert self.video is not None
        return self.projector(self.video(pixels, clip=clip))

    def refine(self, visual: jax.Array, points: jax.Array, present: jax.Array) -> jax.Array:
        """Refine tokens [N,V,D] of pictures by their landmarks [N,68,2], or append them; where ``present`` [N] is true.

        Returns [N,V,D], or [N,V+R,D] if landmark tokens are appended.
        """
        assert self.landmarks is not None
        tokens = self.landmarks(points)
        if self.attention is None:
            return jnp.concatenate([visual, jnp.where(present[:, None, None], tokens, 0)], axis=1)
        return jnp.where(present[:, None, None], self.attention(visual, tokens, points), visual)

    def media_tokens(self, media: Media) -> tuple[jax.Array, jax.Array]:
        """Compute the tokens of all pictures and clips of each row -> (tokens [N,S,D], their places int32 [N,S])."""
        tokens, places = [], []
        for name, kind in (("images", "image"), ("videos", "video")):
            if name in media and media[name].size:
                tokens.append(self._tokens_of(media, name, kind))
                places.append(media[f"{kind}_places"])
        if not tokens:
            rows = len(next(iter(media.values())))
            return jnp.zeros((rows, 0, self.decoder.width), self.decoder.dtype), jnp.zeros((rows, 0), jnp.int32)
        return jnp.concatenate(tokens, axis=1), jnp.concatenate(places, axis=1)

    def _tokens_of(self, media: Media, name: str, kind: str) -> jax.Array:
        """Compute the tokens of all pictures, or of all clips, of each row, [N,S,D]."""
        pictures = media[name]
        rows, size = len(pictures), pictures.shape[-3:]
        pixels = self.preprocess(pictures.reshape(-1, *size))
        visual = self.visual(pixels) if kind == "image" else self.frames(pixels, pictures.shape[2])
        if self.landmarks is not None:
            points, present = self._landmarks_of(media, kind)
            visual = self.refine(visual, points, present)
        return visual.reshape(rows, -1, visual.shape[-1])

    @nn.nowrap
    def _landmarks_of(self, media: Media, kind: str) -> tuple[jax.Array, jax.Array]:
        """Return landmarks [M,68,2] and whether they are there, [M], of all pictures or frames of a batch."""
        pictures = media["images" if kind == "image" else "videos"]
        shape = pictures.shape[:-3]
        points = media.get(f"{kind}_landmarks", jnp.zeros((*shape, 68, 2)))
        present = media.get(f"{kind}_has_landmarks", jnp.zeros(shape[:2], bool))
        present = jnp.broadcast_to(present.reshape(*present.shape, *[1] * (len(shape) - 2)), shape)
        return points.reshape(-1, 68, 2), present.reshape(-1)

    def answer(self, visual: jax.Array, ids: jax.Array) -> jax.Array:
        """Read visual tokens [N,V,D] and then ids int32 [N,T] -> logits of the next token, float32 [N, vocab]."""
        x = jnp.concatenate([visual, self.decoder.embed_tokens(ids)], axis=1)
        return self.decoder.logits(self.decoder(x, last=True)[:, 0])

    def __call__(self, pixels: Pixels) -> jax.Array:
        """Read one picture [N,H,W,3] and BOS, also as a clip and with landmarks, so that all parameters exist."""
        visual = self.visual(pixels)
        if self.video is not None:
            visual = jnp.concatenate([visual, self.frames(pixels, 1)], axis=1)
        if self.landmarks is not None:
            points, present = jnp.full((len(pixels), 68, 2), 0.5), jnp.ones(len(pixels), bool)
            visual = jnp.concatenate(
                [visual, self.refine(visual[:, : self.image_tokens - self.appended], points, present)], axis=1
            )
        return self.answer(visual, jnp.full((len(pixels), 1), self.bos, jnp.int32))
