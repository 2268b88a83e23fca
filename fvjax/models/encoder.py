"""From uint8 images to embeddings, or to an answer about two images.

A network says itself how images become its input (`preprocess`) and how its output becomes an embedding (`embed`).
`KINDS` is the list of networks that a config or a checkpoint can name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from fvjax.models import conversation, vlm
from fvjax.models.cache import Cache
from fvjax.models.decoder import Decoder
from fvjax.models.generation import generate
from fvjax.models.iresnet import IResNet
from fvjax.models.landmarks import LandmarkProjector, RegionAttention
from fvjax.models.llava import LLaVA, Media
from fvjax.models.projector import Projector
from fvjax.models.vision_transformer import VisionTransformer
from fvjax.typing import Embeddings, Images, Keys


@dataclass(frozen=True)
class Encoder:
    """A network with the pooling and the text that it is used with.

    Attributes:
        net: the network, one of `KINDS`.
        pooling: how its output becomes an embedding, see `KINDS`; "" for a VLM that answers `prompt` about pairs.
        prompt: token ids of the text that a VLM reads after the images.
        yes_no: token ids of a VLM's answers (Yes, No).
        norm_group: number of images that share batch statistics in training, as the images of one GPU do in PyTorch;
            the running statistics are the first group's. 0: all images.
    """

    net: Any
    pooling: str
    prompt: tuple[int, ...] = ()
    yes_no: tuple[int, ...] = ()
    norm_group: int = 0

    def pixels(self, images: Images) -> jax.Array:
        """Convert uint8 images [N,H,W,3] to the network's input."""
        return self.net.preprocess(images)

    def init(self, key: jax.Array, image_size: tuple[int, int] = (112, 112)) -> dict[str, Any]:
        """Create random variables, nested {"params": …} and, for an IResNet, {"batch_stats": …}.

        ``image_size``: (height, width) of the images, which an IResNet's last layer depends on.
        """
        return dict(self.net.init(key, self.pixels(jnp.zeros((2, *image_size, 3), jnp.uint8))))

    def __call__(
        self, variables: Mapping[str, Any], images: Images, *, train: bool = False, keys: Keys | None = None
    ) -> tuple[Embeddings, dict[str, Any]]:
        """Embed images uint8 [N,H,W,3].

        Args:
            variables: {"params": …}, with "lora" and "batch_stats" if the network has them.
            keys: one PRNG key per image, for dropout and drop-path in training.
        Returns:
            float32 [N, D], not normalised, and the new batch statistics (empty unless `train`).
        """
        mutable = ["batch_stats"] if train and "batch_stats" in variables else False
        if mutable and self.norm_group:
            return self._embed_in_groups(variables, images, keys)
        inputs = (self.pixels(images), self.prompt, self.pooling)
        out: Any = self.net.apply(variables, *inputs, train=train, keys=keys, mutable=mutable, method="embed")
        embeddings, new = out if mutable else (out, {})
        return embeddings, dict(new)

    def _embed_in_groups(self, variables, images, keys):
        """Embed in training, with batch statistics of each group of images; return the first group's new ones."""
        encoder = replace(self, norm_group=0)
        groups = jax.tree.map(lambda x: x.reshape(-1, self.norm_group, *x.shape[1:]), (images, keys))
        x, new = jax.vmap(lambda images, keys: encoder(variables, images, train=True, keys=keys))(*groups)
        return x.reshape(-1, x.shape[-1]), jax.tree.map(lambda s: s[0], new)

    # ---- for vision-language models only

    def pools(self, variables: Mapping[str, Any], images: Images, pools: Sequence[str]) -> jax.Array:
        """Embed by several poolings at the cost of one: float32 [N, len(pools), D]."""
        return self.net.apply(variables, self.pixels(images), self.prompt, tuple(pools), method="pools")

    def visual(self, variables: Mapping[str, Any], images: Images) -> jax.Array:
        """Compute the visual tokens [N,V,D] of images uint8 [N,H,W,3], in the network's dtype."""
        return self.net.apply(variables, self.pixels(images), method="visual")

    def prefix(self, variables: Mapping[str, Any], visual: jax.Array) -> Cache:
        """Compute the decoder's cache after the first images' visual tokens [N,V,D], for `answer_after`."""
        return self.net.apply(variables, visual, visual.shape[1] + len(self.prompt), method="prefix")

    def answer_after(
        self, variables: Mapping[str, Any], prefix: Cache, visual: jax.Array, rows: Sequence[int] | None = None
    ) -> jax.Array:
        """Compute the logits of `answer` from the first images' `prefix` and the second images' visual tokens."""
        return self.net.apply(variables, prefix, visual, self.prompt, rows, method="pair_after")

    def answer(
        self,
        variables: Mapping[str, Any],
        a: Images,
        b: Images,
        rows: Sequence[int] | None = None,
        *,
        train: bool = False,
        keys: jax.Array | None = None,
    ) -> jax.Array:
        """Compute the logits of the answer's first token for pairs of images, twice uint8 [N,H,W,3].

        ``keys`` [N,2]: one PRNG key for each image of a pair, for drop-path in training.
        Returns float32 [N, vocab], or [N, len(rows)] for these ids only.
        """
        inputs = (self.pixels(a), self.pixels(b), self.prompt, rows)
        return self.net.apply(variables, *inputs, train=train, keys=keys, method="pair")

    # ---- conversations, see fvjax.models.conversation

    def read_conversation(
        self,
        variables: Mapping[str, Any],
        tokens: jax.Array,
        tiles: jax.Array | Media,
        places: jax.Array | None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Read rows of conversations -> the decoder's states, [N,T,D]."""
        return self.net.apply(variables, tokens, tiles, places, segments, method=conversation.read)

    def embed_conversation(
        self,
        variables: Mapping[str, Any],
        tokens: jax.Array,
        tiles: jax.Array | Media,
        places: jax.Array | None,
    ) -> jax.Array:
        """Embed the tokens and pictures of rows of conversations, [N,T,D]."""
        return self.net.apply(variables, tokens, tiles, places, method=conversation.embed)

    def logits(self, variables: Mapping[str, Any], states: jax.Array) -> jax.Array:
        """Compute logits of the decoder's states, [..., D] -> float32 [..., vocab]."""
        return self.net.apply(variables, states, method=conversation.logits)

    def continue_conversation(
        self,
        variables: Mapping[str, Any],
        tokens: jax.Array,
        tiles: jax.Array | Media,
        places: jax.Array | None,
        lengths: jax.Array,
        **settings: Any,
    ) -> tuple[jax.Array, jax.Array]:
        """Answer the prompts of some rows: (ids, numbers of tokens) as :func:`fvjax.models.generation.generate`.

        lengths: int32 [N], tokens of each row before its padding. settings: of that function.
        """
        embedded = self.embed_conversation(variables, tokens, tiles, places)
        decoder = {name: tree["decoder"] for name, tree in variables.items() if "decoder" in tree}
        return generate(self.net.decoder, decoder, embedded, lengths, **settings)


def _construct(network: Callable[..., Any], attributes: Mapping[str, Any], **changes: Any) -> Any:
    return network(**{**attributes, **changes})


class Kind(NamedTuple):
    """How one kind of network is built and used."""

    build: Callable[..., Any]  # (attributes, **changes) -> network
    poolings: tuple[str, ...]
    check_text: Callable[[Any, str, tuple[int, ...], tuple[int, ...]], None] | None  # None: it reads no text


def _check_text(net: vlm.VLM, pooling: str, prompt: tuple[int, ...], yes_no: tuple[int, ...]) -> None:
    """Raise ValueError if the prompt or the answers' ids do not fit the VLM."""
    if not prompt and (yes_no or pooling not in ("", "visual_mean")):  # visual_mean does not depend on the text
        raise ValueError(f"a VLM with pooling {pooling!r} needs a prompt")
    vocab = net.decoder.vocab
    outside = [i for i in prompt if not 0 <= i < vocab]
    if outside:
        raise ValueError(f"prompt id {outside[0]} is outside the decoder's vocabulary of {vocab}")
    if yes_no and len(set(yes_no)) != 2:
        raise ValueError(f"the answers {yes_no} must be two different ids, of Yes and of No")
    outside = [i for i in yes_no if not 0 <= i < vocab]
    if outside:
        raise ValueError(f"yes_no_ids: {outside[0]} is outside the vocabulary of {vocab}")
    images = 1 if pooling else 2
    text = 0 if pooling == "visual_mean" else len(prompt)
    tokens = 1 + images * net.image_tokens + text
    if tokens > net.decoder.max_tokens:
        sequence = f"{images} image(s) of {net.image_tokens} tokens and a prompt of {text} make {tokens} with BOS"
        raise ValueError(f"{sequence}, more than the decoder's {net.decoder.max_tokens} positions; shorten the prompt")


def build_vlm(attributes: Mapping[str, Any], **changes: Any) -> vlm.VLM:
    """Build a VLM from {"vision": {…}, "projector": {…}, "decoder": {…}, "bos": …}.

    ``changes`` override attributes of every part that has them (dtype=…, remat=…). Raises TypeError if no part does.
    """
    parts = {"vision": VisionTransformer, "projector": Projector, "decoder": Decoder}
    return vlm.VLM(**_build_parts(parts, attributes, changes), bos=attributes["bos"])


def build_llava(attributes: Mapping[str, Any], **changes: Any) -> LLaVA:
    """Build a LLaVA from {"vision": {…}, "projector": {…}, "decoder": {…}, "bos": …} and its optional parts.

    Those are "video", "landmarks" and "attention". ``changes`` as for :func:`build_vlm`.
    """
    parts = {
        **{"vision": VisionTransformer, "projector": Projector, "decoder": Decoder, "video": VisionTransformer},
        **{"landmarks": LandmarkProjector, "attention": RegionAttention},
    }
    present = {name: cls for name, cls in parts.items() if attributes.get(name) is not None}
    return LLaVA(**_build_parts(present, attributes, changes), bos=attributes["bos"])


def _build_parts(parts: Mapping[str, Any], attributes: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Build modules by name; each takes its attributes, and those of the changes that it has."""
    fields = {name: set(cls.__dataclass_fields__) for name, cls in parts.items()}
    unknown = set(changes) - set().union(*fields.values())
    if unknown:
        raise TypeError(f"no part of a VLM has {sorted(unknown)}")
    return {
        name: cls(**{**attributes[name], **{k: v for k, v in changes.items() if k in fields[name]}})
        for name, cls in parts.items()
    }


KINDS: dict[str, Kind] = {
    "iresnet": Kind(partial(_construct, IResNet), ("",), None),
    "vision_transformer": Kind(partial(_construct, VisionTransformer), ("mean", "cls"), None),
    "vlm": Kind(build_vlm, ("", *vlm.POOLS), _check_text),
    "llava": Kind(build_llava, ("",), None),
}


def build(
    kind: str,
    attributes: Mapping[str, Any],
    pooling: str,
    prompt: Sequence[int] = (),
    yes_no: Sequence[int] = (),
    /,
    **changes: Any,
) -> Encoder:
    """Build the encoder of a config or of a checkpoint.

    Args:
        kind: a key of `KINDS`.
        attributes: of that network; `changes` override some of them.
        pooling, prompt, yes_no: see :class:`Encoder`.
    Raises ValueError for an unknown kind, a pooling that the kind does not have, a prompt that is missing, not used
    or outside the vocabulary, answers that are not two ids or outside the vocabulary.
    """
    if kind not in KINDS:
        raise ValueError(f"model kind {kind!r} is unknown; known are {sorted(KINDS)}")
    build_network, poolings, check_text = KINDS[kind]
    if pooling not in poolings:
        raise ValueError(f"{kind} has no pooling {pooling!r}; choose from {poolings}")
    if check_text is None and (prompt or yes_no):
        raise ValueError(f"{kind} reads no prompt and gives no answers")
    net = build_network(attributes, **changes)
    encoder = Encoder(net, pooling, tuple(int(i) for i in prompt), tuple(int(i) for i in yes_no))
    if check_text is not None:
        check_text(net, pooling, encoder.prompt, encoder.yes_no)
    return encoder
