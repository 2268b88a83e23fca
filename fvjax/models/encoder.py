"""From uint8 faces to embeddings: a network with the input and the pooling it was made for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fvjax.models import preprocess
from fvjax.models.iresnet import IResNet
from fvjax.models.vision_transformer import VisionTransformer, pool
from fvjax.typing import Embeddings, Faces, Keys


@dataclass(frozen=True)
class Encoder:
    """`pooling`: "mean" or "cls" for a vision transformer, "" for an IResNet, which pools by itself."""

    net: nn.Module
    pooling: str

    def pixels(self, faces: Faces) -> jax.Array:
        if isinstance(self.net, VisionTransformer):
            return preprocess.for_vit(faces, self.net.image_size)
        return preprocess.for_resnet(faces)

    def init(self, key: jax.Array) -> dict[str, Any]:
        """Random variables: nested {"params": …} and, for an IResNet, {"batch_stats": …}."""
        return dict(self.net.init(key, self.pixels(jnp.zeros((2, 112, 112, 3), jnp.uint8))))

    def __call__(
        self, variables: Mapping[str, Any], faces: Faces, *, train: bool = False, keys: Keys | None = None
    ) -> tuple[Embeddings, dict[str, Any]]:
        """Embed faces uint8 [N,112,112,3].

        Args:
            variables: {"params": …} with "lora" and "batch_stats" where there are any.
            keys: one PRNG key per face, for dropout and drop-path in training.
        Returns:
            float32 [N, D], not normalised, and the new batch statistics (empty unless `train`).
        """
        mutable = ["batch_stats"] if train and "batch_stats" in variables else False
        out: Any = self.net.apply(variables, self.pixels(faces), train=train, keys=keys, mutable=mutable)
        x, new = out if mutable else (out, {})
        return (pool(x, self.pooling) if self.pooling else x).astype(jnp.float32), dict(new)


def build(kind: str, attributes: Mapping[str, Any], pooling: str, **changes: Any) -> Encoder:
    """The encoder of a config or of a checkpoint.

    Args:
        kind: "iresnet" | "vision_transformer". attributes: of that module; `changes` override some.
        pooling: see :class:`Encoder`.
    Raises ValueError for an unknown kind or a pooling that the kind does not have.
    """
    poolings = {"iresnet": ("",), "vision_transformer": ("mean", "cls")}
    if kind not in poolings:
        raise ValueError(f"model kind {kind!r} is unknown; there are {sorted(poolings)}")
    if pooling not in poolings[kind]:
        raise ValueError(f"pooling {pooling!r} is not for {kind}; choose from {poolings[kind]}")
    attributes = {**attributes, **changes}
    return Encoder(IResNet(**attributes) if kind == "iresnet" else VisionTransformer(**attributes), pooling)
