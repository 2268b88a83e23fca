"""IResNet, the face-recognition ResNet of insightface (recognition/arcface_torch/backbones/iresnet.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from fvjax.models import preprocess
from fvjax.models.layers import BatchNorm, Conv, Dense, DType, PReLU, dropout
from fvjax.typing import Embeddings, Images, Keys, Pixels

CONV_INIT = {
    "normal": nn.initializers.normal(0.1),  # as in the reference
    "kaiming": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),  # torch's kaiming_normal_ with its defaults
}


class Block(nn.Module):
    """Residual block: bn - conv - bn - prelu - conv(stride) - bn, added to the (down-sampled) input."""

    width: int
    stride: int
    conv_init: str
    dtype: DType
    on_cpu: bool

    @nn.compact
    def __call__(self, x, *, train: bool):
        def conv(width, size, stride, name):
            return Conv(width, size, stride, CONV_INIT[self.conv_init], self.dtype, self.on_cpu, name=name)

        y = BatchNorm(dtype=self.dtype, name="bn1")(x, train=train)
        y = conv(self.width, 3, 1, "conv1")(y)
        y = BatchNorm(dtype=self.dtype, name="bn2")(y, train=train)
        y = PReLU(name="prelu")(y)
        y = conv(self.width, 3, self.stride, "conv2")(y)
        y = BatchNorm(dtype=self.dtype, name="bn3")(y, train=train)
        if self.stride != 1 or x.shape[-1] != self.width:
            x = conv(self.width, 1, self.stride, "downsample_0")(x)
            x = BatchNorm(dtype=self.dtype, name="downsample_1")(x, train=train)
        return x + y


class IResNet(nn.Module):
    """Images [N,112,112,3] in [-1, 1] -> float32 embeddings [N, num_features], not normalised.

    Other image sizes work if the network is initialised with them. Names follow insightface's keys
    (``layer1_0/conv1/kernel``). ``features/scale`` is a parameter that the reference fixes at 1: freeze it with a rule
    of ``config.trainable``. As in the reference, the last two layers are float32 whatever ``dtype`` is.
    ``on_cpu`` selects convolutions arranged for XLA's CPU backend, which compute the same sums.
    """

    layers: Sequence[int]  # residual blocks per stage
    num_features: int  # size of the embedding
    widths: Sequence[int] = (64, 128, 256, 512)  # channels per stage, the same in every published IResNet
    dropout: float = 0.0
    conv_init: Literal["normal", "kaiming"] = "normal"
    dtype: DType = jnp.float32
    on_cpu: bool = False

    @nn.nowrap
    def preprocess(self, images: Images) -> Pixels:
        """Convert uint8 images [N,H,W,3] to the network's input."""
        return preprocess.for_resnet(images)

    @nn.nowrap  # a wrapped method would add a level to the module names in a profile
    def embed(self, x: Pixels, text, pooling: str, *, train: bool = False, keys: Keys | None = None) -> Embeddings:
        """Embed pixels, float32 [N, num_features]; an IResNet reads no text and needs no pooling."""
        del text, pooling
        return self(x, train=train, keys=keys).astype(jnp.float32)

    @nn.compact
    def __call__(self, x: Pixels, *, train: bool = False, keys: Keys | None = None) -> Embeddings:
        """Embed pixels. ``keys`` [N]: one PRNG key per image for dropout; ValueError if they are needed and missing."""
        if len(self.layers) != len(self.widths):
            raise ValueError(f"IResNet: {len(self.layers)} stage depths but {len(self.widths)} widths")
        x = Conv(self.widths[0], 3, 1, CONV_INIT[self.conv_init], self.dtype, self.on_cpu, name="conv1")(x)
        x = BatchNorm(dtype=self.dtype, name="bn1")(x, train=train)
        x = PReLU(name="prelu")(x)
        for stage, (depth, width) in enumerate(zip(self.layers, self.widths), start=1):
            for i in range(depth):
                stride, name = 2 if i == 0 else 1, f"layer{stage}_{i}"
                x = Block(width, stride, self.conv_init, self.dtype, self.on_cpu, name=name)(x, train=train)
        x = BatchNorm(dtype=self.dtype, name="bn2")(x, train=train)
        x = x.reshape(x.shape[0], -1)  # (H, W, C); conversion permutes the fc's rows from torch's (C, H, W)
        if train and self.dropout > 0:
            if keys is None:
                raise ValueError("IResNet: training with dropout needs keys, one PRNG key per image")
            x = dropout(x, self.dropout, keys)
        full = jnp.promote_types(self.dtype, jnp.float32)
        x = Dense(self.num_features, dtype=full, name="fc")(x)
        return BatchNorm(dtype=full, name="features")(x, train=train)
