"""From uint8 faces to embeddings, or to answers about two: a network with the input and the pooling it was made for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from fvjax.models import preprocess, vlm
from fvjax.models.decoder import Cache
from fvjax.models.iresnet import IResNet
from fvjax.models.vision_transformer import VisionTransformer, pool
from fvjax.typing import Embeddings, Faces, Keys


@dataclass(frozen=True)
class Encoder:
    """`pooling`: "mean" or "cls" for a vision transformer, "" for an IResNet, which pools by itself.

    For a VLM one of `vlm.POOLS`, or "" for one that answers `prompt` about pairs. `prompt`: ids of a VLM's text.
    `yes_no`: ids of the answers (Yes, No). `norm_group`: images that an IResNet's batch statistics are of in training,
    the running ones being the first group's, as on several GPUs of PyTorch; 0: all.
    """

    net: nn.Module
    pooling: str
    prompt: tuple[int, ...] = ()
    yes_no: tuple[int, ...] = ()
    norm_group: int = 0

    def pixels(self, faces: Faces) -> jax.Array:
        if isinstance(self.net, vlm.VLM):
            return preprocess.for_vit(faces, self.net.vision.image_size)
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
        if isinstance(self.net, vlm.VLM):
            given = (self.pixels(faces), self.prompt, self.pooling)
            return self.net.apply(variables, *given, train=train, keys=keys, method="embed"), {}  # type: ignore[return-value]
        mutable = ["batch_stats"] if train and "batch_stats" in variables else False
        if mutable and self.norm_group:
            whole = replace(self, norm_group=0)
            groups = jax.tree.map(lambda x: x.reshape(-1, self.norm_group, *x.shape[1:]), (faces, keys))
            x, new = jax.vmap(lambda faces, keys: whole(variables, faces, train=True, keys=keys))(*groups)
            return x.reshape(-1, x.shape[-1]), jax.tree.map(lambda s: s[0], new)
        out: Any = self.net.apply(variables, self.pixels(faces), train=train, keys=keys, mutable=mutable)
        x, new = out if mutable else (out, {})
        return (pool(x, self.pooling) if self.pooling else x).astype(jnp.float32), dict(new)

    def pools(self, variables: Mapping[str, Any], faces: Faces, pools: Sequence[str]) -> jax.Array:
        """Embeddings of a VLM by several poolings at the price of one: float32 [N, len(pools), D]."""
        return self.net.apply(variables, self.pixels(faces), self.prompt, tuple(pools), method="pools")  # type: ignore[return-value]

    def visual(self, variables: Mapping[str, Any], faces: Faces) -> jax.Array:
        """Faces uint8 [N,112,112,3] -> a VLM's visual tokens [N,V,D], in its dtype."""
        return self.net.apply(variables, self.pixels(faces), method="visual")  # type: ignore[return-value]

    def prefix(self, variables: Mapping[str, Any], visual: jax.Array) -> Cache:
        """What a VLM keeps of first images, from their visual tokens [N,V,D]: see `answer_after`."""
        return self.net.apply(variables, visual, visual.shape[1] + len(self.prompt), method="prefix")  # type: ignore[return-value]

    def answer_after(
        self, variables: Mapping[str, Any], prefix: Cache, visual: jax.Array, rows: Sequence[int] | None = None
    ) -> jax.Array:
        """Logits as `answer` gives them, from first images' `prefix` and second images' visual tokens [N,V,D]."""
        return self.net.apply(variables, prefix, visual, self.prompt, rows, method="pair_after")  # type: ignore[return-value]

    def answer(
        self,
        variables: Mapping[str, Any],
        a: Faces,
        b: Faces,
        rows: Sequence[int] | None = None,
        *,
        train: bool = False,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Faces uint8 [N,112,112,3] twice -> logits of the answer's first token, float32 [N, vocab] or [N, len(rows)].

        Only for a VLM. ``keys`` [N,2]: one PRNG key for each image of a pair, for drop-path in training.
        """
        given = (self.pixels(a), self.pixels(b), self.prompt, rows)
        return self.net.apply(variables, *given, train=train, keys=keys, method="pair")  # type: ignore[return-value]


def build(
    kind: str,
    attributes: Mapping[str, Any],
    pooling: str,
    prompt: Sequence[int] = (),
    yes_no: Sequence[int] = (),
    /,
    **changes: Any,
) -> Encoder:
    """The encoder of a config or of a checkpoint.

    Args:
        kind: "iresnet" | "vision_transformer" | "vlm". attributes: of that module; `changes` override some.
        pooling, prompt, yes_no: see :class:`Encoder`.
    Raises ValueError for an unknown kind, a pooling that the kind does not have, a prompt that is missing, not wanted
    or outside the vocabulary, answers that are not two or outside it.
    """
    poolings = {"iresnet": ("",), "vision_transformer": ("mean", "cls"), "vlm": ("", *vlm.POOLS)}
    if kind not in poolings:
        raise ValueError(f"model kind {kind!r} is unknown; there are {sorted(poolings)}")
    if pooling not in poolings[kind]:
        raise ValueError(f"pooling {pooling!r} is not for {kind}; choose from {poolings[kind]}")
    if kind != "vlm":
        if prompt or yes_no:
            raise ValueError(f"{kind} reads no prompt and gives no answers")
        attributes = {**attributes, **changes}
        return Encoder(IResNet(**attributes) if kind == "iresnet" else VisionTransformer(**attributes), pooling)
    net = vlm.build(attributes, **changes)
    prompt, yes_no = (tuple(int(i) for i in ids) for ids in (prompt, yes_no))
    if not prompt and pooling != "visual_mean":  # whose figures do not depend on the text
        raise ValueError(f"a VLM with pooling {pooling!r} needs a prompt")
    outside = [i for i in prompt if not 0 <= i < net.decoder.vocab]
    if outside:
        raise ValueError(f"prompt id {outside[0]} is outside the decoder's vocabulary of {net.decoder.vocab}")
    if yes_no and len(set(yes_no)) != 2:
        raise ValueError(f"the answers {yes_no} must be two different ids, of Yes and of No")
    outside = [i for i in yes_no if not 0 <= i < net.decoder.vocab]
    if outside:
        raise ValueError(f"yes_no_ids: {outside[0]} is outside the vocabulary of {net.decoder.vocab}")
    images, text = (1 if pooling else 2), (0 if pooling == "visual_mean" else len(prompt))
    tokens = 1 + images * net.image_tokens + text
    if tokens > net.decoder.max_tokens:
        told = f"{images} image(s) of {net.image_tokens} tokens and a prompt of {text} make {tokens} with BOS"
        raise ValueError(f"{told}, more than the decoder's {net.decoder.max_tokens} positions; shorten the prompt")
    return Encoder(net, pooling, prompt, yes_no)
