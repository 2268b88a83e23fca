"""Attributes read from a VLM (FaceInsight, arXiv 2504.15624): every attribute has a slot at the end of the sequence.

The decoder reads

    [BOS] + visual tokens of the picture + visual tokens of its map + text ids + one slot per attribute

and the logits of Yes and No at a slot say whether the picture has the attribute. A slot is the text feature of the
attribute's prompt, refined by a graph convolution over the attributes' correlations. The tower reads the map as a
picture in the colours of its classes; the map has an adapter of its own. What is here beside the VLM, whose projector
is the picture's adapter, are the parameters of :class:`AttributeSlots`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fvjax.face_classes import PALETTE
from fvjax.models.graph import CorrelationGraph
from fvjax.models.layers import Dense, DType
from fvjax.models.projector import Projector
from fvjax.models.vlm import VLM


class Adapter(nn.Module):
    """Two linear layers with a GELU between them, [..., W] -> [..., width] in ``dtype``: LLaVA-1.5's projector."""

    width: int
    dtype: DType = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = jax.nn.gelu(Dense(self.width, dtype=self.dtype, name="fc1")(x), approximate=False)
        return Dense(self.width, dtype=self.dtype, name="fc2")(x)


class AttributeSlots(nn.Module):
    """The adapters of maps and text, and the graph: parameters ``maps/…``, ``text/…`` and ``graph/…``.

    Attributes:
        width: of the decoder.
        map_adapter: None for a model that reads no maps.
        hidden: of the graph convolution; 0 for a model without.
    """

    width: int
    map_adapter: Projector | None
    hidden: int
    dtype: DType = jnp.float32

    def setup(self):
        if self.map_adapter is not None:
            self.maps = self.map_adapter.clone(name=None)
        if self.hidden:
            self.graph = CorrelationGraph(self.hidden)
        self.text = Adapter(self.width, self.dtype)

    def visual(self, patches: jax.Array) -> jax.Array:
        """Turn the tower's patch tokens of maps [N,P,W] into visual tokens [N,V,D]."""
        return self.maps(patches)

    def slots(self, features: jax.Array, adjacency: jax.Array) -> jax.Array:
        """Turn text features [K,d] and the graph [K,K] into slots [K,D]."""
        return self.text(self.graph(features, adjacency) if self.hidden else features)

    def __call__(self, patches: jax.Array, features: jax.Array, adjacency: jax.Array) -> jax.Array:
        """Return all outputs as one array; for initialisation."""
        tokens = [self.visual(patches).reshape(-1, self.width)] if self.map_adapter is not None else []
        return jnp.concatenate([*tokens, self.slots(features, adjacency)])


def of(net: VLM, maps: bool, hidden: int) -> AttributeSlots:
    """Return the module that fits a VLM; the maps' adapter has the shape of its projector."""
    adapter = net.projector.clone(parent=None, name=None) if maps else None
    return AttributeSlots(net.decoder.width, adapter, hidden, net.decoder.dtype)


def init(slots: AttributeSlots, net: VLM, key: jax.Array, text_width: int) -> dict[str, Any]:
    """Return random parameters of the slots."""
    patches = jnp.zeros((1, (net.vision.image_size // net.vision.patch_size) ** 2, net.vision.width))
    variables: Any = slots.init(key, patches, jnp.zeros((1, text_width)), jnp.zeros((1, 1)))
    return variables["params"]


def coloured(maps: jax.Array, size: int) -> jax.Array:
    """Turn maps of class ids uint8 [N,H,W] into pictures uint8 [N,size,size,3]; ids keep their classes (nearest)."""
    if maps.shape[1:] != (size, size):
        maps = jax.image.resize(maps, (maps.shape[0], size, size), "nearest")
    return jnp.asarray(PALETTE)[maps]


def logits(
    net: VLM,
    slots: AttributeSlots,
    variables: Mapping[str, Any],
    images: jax.Array,
    maps: jax.Array | None,
    text: Sequence[int],
    yes_no: Sequence[int],
) -> jax.Array:
    """Return the logit of every attribute of every picture, float32 [N,K]: that of Yes minus that of No.

    Args:
        variables: of the VLM, with the slots' parameters as "head", and as "head_stats" the constants "features" [K,d]
            and "adjacency" [K,K].
        images: uint8 [N,H,W,3]. maps: class ids uint8 [N,H,W], for slots with a map adapter.
        text: ids of the query. yes_no: ids of (Yes, No).
    """
    own, constants = variables["head"], variables["head_stats"]
    others = {name: tree for name, tree in variables.items() if name not in ("head", "head_stats")}
    parts: list[Any] = [net.apply(others, net.preprocess(images), method="visual")]
    if slots.map_adapter is not None:
        if maps is None:
            raise ValueError("this model reads a segmentation map beside each picture; give maps")
        pictures = net.preprocess(coloured(maps, net.vision.image_size))
        tower = {name: tree["vision"] for name, tree in others.items() if "vision" in tree}
        tokens: Any = net.vision.apply(tower, pictures)
        parts.append(slots.apply({"params": own}, tokens[:, 1:], method="visual"))
    last: Any = slots.apply({"params": own}, constants["features"], constants["adjacency"], method="slots")
    before: Any = net.apply(others, jnp.concatenate(parts, axis=1), tuple(text), method="sequence")
    last = jnp.broadcast_to(last.astype(before.dtype), (len(images), *last.shape))
    decoder = {n: t["decoder"] for n, t in others.items() if "decoder" in t}
    states: Any = net.decoder.apply(decoder, jnp.concatenate([before, last], axis=1))
    answers: Any = net.decoder.apply(decoder, states[:, -last.shape[1] :], tuple(yes_no), method="logits")
    return answers[..., 0] - answers[..., 1]
