"""One vision transformer for InternViT, InternViT-6B, CLIP and LanguageBind, which differ only in attributes."""

from __future__ import annotations

from functools import partial
from typing import Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from fvjax.models import preprocess
from fvjax.models.layers import DROP_PATH, REMAT, Attend, Dense, DType, LayerNorm, RMSNorm, fold_in, self_attend
from fvjax.typing import Embeddings, Images, Keys, Pixels

NORM = {"layer": LayerNorm, "rms": RMSNorm}
ACT = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}


class Attention(nn.Module):
    """Self-attention, full unless ``causal``; the fused qkv's columns are ordered (3, head, dim)."""

    heads: int
    qkv_bias: bool
    qk_norm: bool
    norm_eps: float
    implementation: Attend
    dtype: DType
    causal: bool = False

    @nn.compact
    def __call__(self, x):
        n, tokens, width = x.shape
        qkv = Dense(3 * width, use_bias=self.qkv_bias, dtype=self.dtype, name="qkv")(x)
        q, k, v = jnp.split(qkv, 3, axis=-1)
        if self.qk_norm:  # normalised over all heads together, as in InternViT-6B
            q = RMSNorm(self.norm_eps, self.dtype, name="q_norm")(q)
            k = RMSNorm(self.norm_eps, self.dtype, name="k_norm")(k)
        q, k, v = (y.reshape(n, tokens, self.heads, width // self.heads) for y in (q, k, v))
        y = self_attend(q, k, v, causal=self.causal, implementation=self.implementation)
        return Dense(width, dtype=self.dtype, name="proj")(y.reshape(n, tokens, width))


class Mlp(nn.Module):
    """Two-layer MLP with the activation ``act``."""

    dim: int
    act: str
    dtype: DType

    @nn.compact
    def __call__(self, x):
        y = ACT[self.act](Dense(self.dim, dtype=self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(y)


class TemporalAttention(nn.Module):
    """Attention of one token position over the frames of its clip, with a residual: x [N * T, tokens, width] -> like x.

    The residual contains the temporal embedding, of which a clip of T frames uses the first T; a single frame uses
    none. Source: PKU-YuanGroup/LanguageBind (languagebind/video/modeling_video.py).
    """

    frames: int  # of the trained embedding
    heads: int
    norm: str
    norm_eps: float
    dtype: DType

    @nn.compact
    def __call__(self, x, clip: int):
        _, tokens, width = x.shape
        embedding = self.param("embedding", nn.initializers.normal(width**-0.5), (self.frames, width))
        x = x.reshape(-1, clip, tokens, width).swapaxes(1, 2).reshape(-1, clip, width)
        if clip > 1:
            x = x + embedding[:clip].astype(self.dtype)
        y = NORM[self.norm](self.norm_eps, self.dtype, name="norm")(x)
        # "xla": clips are short, and rows are as many as tokens
        x = x + Attention(self.heads, True, False, self.norm_eps, "xla", self.dtype, name="attn")(y)
        return x.reshape(-1, tokens, clip, width).swapaxes(1, 2).reshape(-1, tokens, width)


class Block(nn.Module):
    """Pre-norm attention and MLP, each with LayerScale and, in training, dropped for some images (drop-path).

    With ``frames`` there is attention over the frames of a clip before them.
    """

    heads: int
    mlp_dim: int
    qkv_bias: bool
    norm: str
    norm_eps: float
    qk_norm: bool
    layer_scale: bool
    act: str
    dtype: DType
    attention: Attend
    drop: bool
    frames: int
    clip: int

    @nn.compact
    def __call__(self, x, keys, index, rate):
        norm = partial(NORM[self.norm], self.norm_eps, self.dtype)
        if self.frames:
            temporal = TemporalAttention(self.frames, self.heads, self.norm, self.norm_eps, self.dtype, name="temporal")
            x = temporal(x, self.clip)
        attn = Attention(
            self.heads, self.qkv_bias, self.qk_norm, self.norm_eps, self.attention, self.dtype, name="attn"
        )
        mlp = Mlp(self.mlp_dim, self.act, self.dtype, name="mlp")
        for i, branch in ((1, attn), (2, mlp)):
            y = branch(norm(name=f"norm{i}")(x))
            if self.layer_scale:
                y = y * self.param(f"ls{i}", nn.initializers.constant(0.1), x.shape[-1:]).astype(self.dtype)
            if self.drop:
                branch_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, 2 * index + i)
                keep = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate))(branch_keys)
                y = jnp.where(keep[:, None, None], y / (1 - rate).astype(self.dtype), 0)
            x = x + y
        return x, None


class VisionTransformer(nn.Module):
    """Pixels [N,H,W,3] (see preprocess.for_vit) -> tokens [N, 1 + patches, width] in ``dtype``, CLS first.

    Layers are scanned: ``blocks/mlp/fc1/kernel`` is [depth, width, mlp_dim]. Sizes: see ``fvjax.models.presets``; the
    other defaults are InternViT-300M's (OpenGVLab/InternVL, internvl_chat/…/modeling_intern_vit.py).
    """

    image_size: int  # sets the number of position embeddings, which are interpolated for other input sizes
    patch_size: int
    width: int
    depth: int
    heads: int
    mlp_dim: int
    qkv_bias: bool = True
    norm: Literal["layer", "rms"] = "layer"
    norm_eps: float = 1e-6
    qk_norm: bool = False
    layer_scale: bool = True
    pre_norm: bool = False  # CLIP: a norm after the embedding
    final_norm: bool = False
    patch_bias: bool = True
    act: Literal["gelu", "quick_gelu"] = "gelu"
    drop_path: float = 0.0  # rate of the last layer; rates grow linearly from 0 in the first
    select_layer: int = -1  # index of the output in [embedding, layer 1, …]; later layers are not built
    frames: int = 0  # LanguageBind's video tower: the most frames of a clip; 0: a tower for images
    pixels: Literal["imagenet", "clip"] = "imagenet"  # whose mean and deviation normalise the input
    dtype: DType = jnp.float32
    remat: Literal["none", "dots", "full"] = "none"
    attention: Attend = "auto"

    @property
    def layers(self) -> int:
        """Number of layers that are built."""
        return self.select_layer if self.select_layer >= 0 else self.depth + 1 + self.select_layer

    @nn.nowrap
    def preprocess(self, images: Images) -> Pixels:
        """Convert uint8 images [N,H,W,3] to the tower's input, resized to its image size."""
        return preprocess.for_vit(images, self.image_size, *preprocess.STATISTICS[self.pixels])

    @nn.nowrap  # a wrapped method would add a level to the module names in a profile
    def embed(self, x: Pixels, text, pooling: str, *, train: bool = False, keys: Keys | None = None) -> Embeddings:
        """Embed pixels, float32 [N, width], by one of the poolings of :func:`pool`; a tower reads no text."""
        del text
        return pool(self(x, train=train, keys=keys), pooling)

    @nn.compact
    def __call__(self, x: Pixels, *, train: bool = False, keys: Keys | None = None, clip: int = 1) -> jax.Array:
        """Compute the tokens.

        Args:
            keys: one PRNG key per image, [N], for drop-path.
            clip: every ``clip`` images that follow each other are the frames of a clip; at most ``frames``.
        Raises:
            ValueError: an image that is not a whole number of patches, keys that are needed and missing, or clips of
                more frames than the tower was trained on.
        """
        self._check_clips(len(x), clip)
        if not 0 < self.layers <= self.depth:
            raise ValueError(f"select_layer={self.select_layer} is outside a tower of {self.depth} layers")
        drop = train and self.drop_path > 0
        if drop and keys is None:
            raise ValueError("VisionTransformer: training with drop_path needs keys, one PRNG key per image")
        x = self._embed_patches(x)
        if self.pre_norm:
            x = NORM[self.norm](self.norm_eps, self.dtype, name="pre_norm")(x)
        keys = fold_in(keys, DROP_PATH) if drop else None
        # as torch's linspace over the whole tower, even if its last layers are not built
        rates = jnp.linspace(0, self.drop_path, self.depth)[: self.layers]
        x, _ = self._blocks(drop, clip)(x, keys, jnp.arange(self.layers), rates)
        if self.final_norm:
            x = NORM[self.norm](self.norm_eps, self.dtype, name="final_norm")(x)
        return x

    @nn.nowrap
    def _check_clips(self, images: int, clip: int) -> None:
        """Raise ValueError unless the images are whole clips of a length that the tower can read."""
        if not 1 <= clip <= max(1, self.frames):
            kind = f"reads clips of 1 to {self.frames} frames" if self.frames else "reads single images"
            raise ValueError(f"a clip of {clip} frames: this tower {kind}; choose frames before (data.frames does)")
        if images % clip:
            raise ValueError(f"{images} images are not whole clips of {clip} frames")

    @nn.nowrap
    def _embed_patches(self, x: Pixels) -> jax.Array:
        """Embed patches, put CLS first and add position embeddings: [N,H,W,3] -> [N, 1 + patches, width]."""
        n, height, width, _ = x.shape
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"image {height}x{width} is not a whole number of {self.patch_size}-pixel patches")
        rows, cols = height // self.patch_size, width // self.patch_size
        x = x.reshape(n, rows, self.patch_size, cols, self.patch_size, 3).transpose(0, 1, 3, 2, 4, 5)
        x = x.reshape(n, rows * cols, -1)
        x = Dense(self.width, use_bias=self.patch_bias, dtype=self.dtype, name="patch")(x)
        grid = self.image_size // self.patch_size
        cls = self.param("cls", nn.initializers.normal(0.02), (self.width,)).astype(self.dtype)
        pos = self.param("pos", nn.initializers.normal(0.02), (1 + grid * grid, self.width))
        x = jnp.concatenate([jnp.broadcast_to(cls, (n, 1, self.width)), x], axis=1)
        return x + resize_positions(pos, (grid, grid), (rows, cols)).astype(self.dtype)

    @nn.nowrap
    def _blocks(self, drop: bool, clip: int):
        """Build the scanned stack of layers."""
        block = Block if self.remat == "none" else nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
        return nn.scan(
            block,
            variable_axes={"params": 0, "scales": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, 0, 0),  # type: ignore[arg-type]
            length=self.layers,
        )(
            heads=self.heads,
            mlp_dim=self.mlp_dim,
            qkv_bias=self.qkv_bias,
            norm=self.norm,
            norm_eps=self.norm_eps,
            qk_norm=self.qk_norm,
            layer_scale=self.layer_scale,
            act=self.act,
            dtype=self.dtype,
            attention=self.attention,
            drop=drop,
            frames=self.frames,
            clip=clip,
            name="blocks",
        )


def pool(tokens: jax.Array, how: str) -> Embeddings:
    """Pool tokens [N, 1+P, width] to float32 [N, width]: "mean" of the patch tokens (without CLS), or "cls"."""
    if how == "mean":
        return tokens[:, 1:].astype(jnp.float32).mean(axis=1)
    if how == "cls":
        return tokens[:, 0].astype(jnp.float32)
    raise ValueError(f"pool={how!r}; known are 'mean' and 'cls'")


def resize_positions(pos: jax.Array, old: tuple[int, int], new: tuple[int, int]) -> jax.Array:
    """Interpolate position embeddings [1 + old patches, width] to another grid, bicubic as in torch (a = -0.75).

    The embedding of CLS stays as it is.
    """
    if old == new:
        return pos
    grid = pos[1:].astype(jnp.float32).reshape(*old, -1)
    grid = jnp.einsum("hH,wW,HWc->hwc", _bicubic(old[0], new[0]), _bicubic(old[1], new[1]), grid, precision="highest")
    return jnp.concatenate([pos[:1], grid.reshape(-1, pos.shape[-1]).astype(pos.dtype)])


def _bicubic(old: int, new: int) -> np.ndarray:
    """Return weights [new, old] of torch's bicubic interpolation, align_corners=False; jax.image uses a = -0.5."""
    a = -0.75
    centers = (np.arange(new) + 0.5) * old / new - 0.5
    weights = np.zeros((new, old), np.float32)
    for tap in range(-1, 3):
        source = np.floor(centers) + tap
        d = np.abs(centers - source)
        near = ((a + 2) * d - (a + 3)) * d * d + 1
        far = a * (((d - 5) * d + 8) * d - 4)
        clamped = np.clip(source, 0, old - 1).astype(int)  # torch repeats the border pixels
        np.add.at(weights, (np.arange(new), clamped), np.where(d <= 1, near, far))
    return weights
