"""IResNet, the face-recognition ResNet of insightface (recognition/arcface_torch/backbones/iresnet.py)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import flax.linen as nn
import jax.numpy as jnp

from fvjax.models.layers import BatchNorm, Conv, Dense, DType, PReLU, dropout
from fvjax.typing import Embeddings, Keys, Pixels

CONV_INIT = {
    "normal": nn.initializers.normal(0.1),  # the reference's
    "kaiming": nn.initializers.variance_scaling(2.0, "fan_in", "normal"),  # torch's kaiming_normal_ as it comes
}


class Block(nn.Module):
    """bn - conv - bn - prelu - conv(stride) - bn, added to the (down-sampled) input."""

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
    """Faces [N,112,112,3] in [-1, 1] -> float32 embeddings [N, num_features], not normalised.

    Names follow insightface's keys (``layer1_0/conv1/kernel``). ``features/scale`` is a parameter, but the reference
    fixes it at 1: freeze it with a rule. The last two layers are float32 whatever ``dtype``, as in the reference.
    ``on_cpu`` arranges the convolutions for XLA's CPU backend; the sums are the same.
    """

    layers: Sequence[int] = (3, 4, 14, 3)
    widths: Sequence[int] = (64, 128, 256, 512)
    num_features: int = 512
    dropout: float = 0.0
    conv_init: Literal["normal", "kaiming"] = "normal"
    dtype: DType = jnp.float32
    on_cpu: bool = False

    @nn.compact
    def __call__(self, x: Pixels, *, train: bool = False, keys: Keys | None = None) -> Embeddings:
        """``keys`` [N]: one PRNG key per image, for dropout. Raises ValueError if they are needed and not given."""
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
        x = x.reshape(x.shape[0], -1)  # (H, W, C); the fc's rows are permuted from torch's (C, H, W) in conversion
        if train and self.dropout > 0:
            if keys is None:
                raise ValueError("IResNet: training with dropout needs keys, one PRNG key per image")
            x = dropout(x, self.dropout, keys)
        full = jnp.promote_types(self.dtype, jnp.float32)
        x = Dense(self.num_features, dtype=full, name="fc")(x)
        return BatchNorm(dtype=full, name="features")(x, train=train)
