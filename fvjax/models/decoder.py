"""One causal decoder for InternLM2, Qwen2 and LLaMA: pre-norm, rotary positions, grouped queries, gated MLP.

The architectures differ only in attributes. Sources: OpenGVLab/InternVL (internvl_chat/…/modeling_internlm2.py) and
transformers' modeling_qwen2.py and modeling_llama.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fvjax.models.cache import Cache, append
from fvjax.models.layers import REMAT, Attend, Dense, DType, GatedMlp, RMSNorm, attend, last_token, self_attend
from fvjax.models.rotary import Positions, Scaling, packed_positions, positions_at, rotate


class Attention(nn.Module):
    """Causal self-attention in which query head h uses key head h // (heads / kv_heads).

    x [N,T,D] -> (y [N,T,D], (k, v) of the cached and the new tokens). `last`: y of the last token only.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool
    out_bias: bool
    implementation: Attend
    dtype: DType
    last: bool

    @nn.compact
    def __call__(self, x, past, positions: Positions):
        def project(x, heads, name):
            y = Dense(heads * self.head_dim, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:2], heads, self.head_dim)

        n, width = x.shape[0], x.shape[-1]
        k = rotate(project(x, self.kv_heads, "k"), positions)
        v = project(x, self.kv_heads, "v")
        queries = positions
        if self.last:
            lengths = positions.lengths
            x = last_token(x, lengths)
            cos, sin, index = (last_token(jnp.broadcast_to(y, (n, *y.shape[1:])), lengths) for y in positions[:3])
            queries = positions._replace(cos=cos, sin=sin, index=index)
        q = rotate(project(x, self.heads, "q"), queries)
        if past is not None:
            k, v = past = append(past, (k, v), positions.start)
        if positions.segments is not None:
            same = positions.segments[:, :, None] == positions.segments[:, None]
            y = attend(q, k, v, same & (positions.index[:, None] <= positions.index[:, :, None]))
        elif positions.start is None and not self.last:
            y = self_attend(q, k, v, causal=True, implementation=self.implementation)
        else:
            y = attend(q, k, v, jnp.arange(k.shape[1]) <= queries.index[:, :, None])
        y = y.reshape(n, x.shape[1], self.heads * self.head_dim)
        return Dense(width, use_bias=self.out_bias, dtype=self.dtype, name="o")(y), past


class Block(nn.Module):
    """Attention and MLP, each on normalised input. `last`: compute the output of the last token only, [N,1,D]."""

    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    qkv_bias: bool
    out_bias: bool
    mlp_bias: bool
    norm_eps: float
    attention: Attend
    dtype: DType
    last: bool = False

    @nn.compact
    def __call__(self, x, past, positions: Positions):
        norm = partial(RMSNorm, self.norm_eps, self.dtype)
        sizes = self.heads, self.kv_heads, self.head_dim
        attend = Attention(*sizes, self.qkv_bias, self.out_bias, self.attention, self.dtype, self.last, name="attn")
        y, past = attend(norm(name="norm1")(x), past, positions)
        x = (last_token(x, positions.lengths) if self.last else x) + y
        return x + GatedMlp(self.mlp_dim, self.mlp_bias, self.dtype, name="mlp")(norm(name="norm2")(x)), past


class Decoder(nn.Module):
    """Embeddings [N,T,D] -> states after the final norm [N,T,D] in ``dtype``.

    ``embed_tokens`` and ``logits`` convert between token ids and states. Layers are scanned:
    ``blocks/mlp/gate/kernel`` is [depth, D, mlp_dim]. ``embed`` and ``head`` are [vocab, D] as in the checkpoints, so
    that single rows can be read. Sizes: see ``fvjax.models.presets``; the other defaults are InternLM2's.
    """

    vocab: int
    width: int
    depth: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False  # the output head is the embedding
    norm_eps: float = 1e-5
    positions: int = 32768  # sequence length of training; see max_tokens
    rope: Scaling = "dynamic"
    rope_theta: float = 1e6
    rope_factor: float = 2.0  # not used by "plain"
    rope_original: int = 8192  # this and the next two are used by "llama3" only
    rope_low: float = 1.0
    rope_high: float = 4.0
    dtype: DType = jnp.float32
    remat: Literal["none", "dots", "full"] = "none"
    attention: Attend = "auto"

    def setup(self):
        block = Block if self.remat == "none" else nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0, "scales": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # type: ignore[arg-type]
            length=self.depth,
        )(**self.block_attributes())
        self.final_norm = RMSNorm(self.norm_eps, self.dtype)
        normal, shape = nn.initializers.normal, (self.vocab, self.width)
        self.embedding = self.param("embed", normal(0.02), shape)
        # With this std a random head's logits are of order one at any width. At InternLM2's width it is 0.022;
        # transformers uses 0.02.
        self.head = self.embedding if self.tied else self.param("head", normal(self.width**-0.5), shape)

    @nn.nowrap
    def block_attributes(self) -> dict[str, Any]:
        """Return the attributes of the decoder's blocks."""
        shared = set(Decoder.__dataclass_fields__) & set(Block.__dataclass_fields__) - {"parent", "name"}
        return {name: getattr(self, name) for name in shared}

    @property
    def max_tokens(self) -> int:
        """Longest sequence. Linear and dynamic scaling extend it beyond the positions of training."""
        return int(self.positions * (self.rope_factor if self.rope in ("linear", "dynamic") else 1))

    def embed_tokens(self, ids: jax.Array | np.ndarray) -> jax.Array:
        """Embed ids int [...] -> [..., D]. Ids must be below ``vocab``: an accelerator cannot check."""
        return self.embedding[ids].astype(self.dtype)

    def logits(self, states: jax.Array, rows: Sequence[int] | None = None) -> jax.Array:
        """Compute logits of states [..., D]: float32 [..., vocab], or [..., len(rows)] for these ids only."""
        kernel = self.head if rows is None else self.head[jnp.asarray(rows)]
        states, kernel = states.astype(self.dtype), kernel.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", states, kernel, preferred_element_type=jnp.float32)

    def __call__(
        self,
        x: jax.Array,
        *,
        last: bool = False,
        lengths: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> jax.Array:
        """Run the layers on embeddings [N,T,D] -> states [N,T,D].

        Args:
            last: return only the last token's state, [N,1,D]. The last layer then computes keys and values of all
                tokens, and everything else for the last one only.
            lengths: int32 [N], number of tokens before the padding of right-padded rows; decides which token is last.
            segments: int32 [N,T], for rows in which several sequences follow each other: a number for each token, equal
                within a sequence. Each sequence then has the states that it has in a row of its own.
        Raises ValueError for more tokens than ``max_tokens``, or for the last token of packed rows.
        """
        positions = self._next_positions(x.shape[1], None, lengths, None)
        if segments is not None:
            if last:
                raise ValueError("rows of several sequences have no last token; ask for all states")
            positions = packed_positions(self, segments)
        return self.final_norm(self._run(x, None, positions, last)[0])

    def extend(
        self,
        x: jax.Array,
        cache: Cache,
        *,
        last: bool = False,
        lengths: jax.Array | None = None,
        tokens: int | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Run x [N,T,D] after the cached tokens -> (states as in __call__, the longer cache).

        A cache with ``length`` needs free capacity for T more tokens in every row, padding included; beyond it, cached
        tokens are overwritten. A cache without takes no ``lengths``. For it, ``tokens`` is the final length of the
        sequence (None: the length after this call), which dynamic scaling depends on.
        Raises ValueError for more tokens than ``max_tokens``.
        """
        if cache.length is None and lengths is not None:
            raise ValueError("rows of different lengths need a cache with capacity for them: new_cache(n, capacity)")
        positions = self._next_positions(x.shape[1], cache, lengths, tokens)
        y, (k, v) = self._run(x, (cache.k, cache.v), positions, last)
        start = cache.length
        length = None if start is None else start + (x.shape[1] if lengths is None else lengths)
        return self.final_norm(y), Cache(k, v, length)

    @nn.nowrap
    def new_cache(self, n: int, capacity: int | None = None) -> Cache:
        """Create an empty cache for n rows of up to ``capacity`` tokens each.

        Without ``capacity``, every call adds the same number of tokens to all rows.
        Raises ValueError for more tokens than ``max_tokens``.
        """
        self.check_length(capacity or 0)
        empty = jnp.zeros((self.depth, n, capacity or 0, self.kv_heads, self.head_dim), self.dtype)
        return Cache(empty, empty, None if capacity is None else jnp.zeros(n, jnp.int32))

    @nn.nowrap
    def check_length(self, tokens: int) -> None:
        """Raise ValueError for a sequence that is longer than `max_tokens`."""
        if tokens > self.max_tokens:
            raise ValueError(
                f"a sequence of {tokens} tokens is longer than the decoder's {self.max_tokens} "
                f"(positions={self.positions}, rope={self.rope!r}); shorten the prompt"
            )

    @nn.nowrap
    def _next_positions(
        self, count: int, cache: Cache | None, lengths: jax.Array | None, tokens: int | None
    ) -> Positions:
        """Return the positions of ``count`` tokens after the cached ones. Raise ValueError if there are too many."""
        capacity, start = (0, None) if cache is None else (cache.k.shape[2], cache.length)
        # Dynamic scaling depends on the final length, because frequencies must not change while a cache fills.
        tokens = tokens or (capacity + count if start is None else capacity)
        self.check_length(max(tokens, count))
        index = jnp.arange(count)[None] + (capacity if start is None else start[:, None])
        return positions_at(self, index, tokens)._replace(start=start, lengths=lengths)

    def _run(self, x, past, positions: Positions, last: bool):
        """Run all layers -> (states before the final norm, keys and values of the cached and the new tokens)."""
        run: Any = self._run_to_last_token if last and not self.is_initializing() else self.blocks
        return run(x.astype(self.dtype), past, positions)

    def _run_to_last_token(self, x, past, positions: Positions):
        """Run all layers, the last of them for the last token only."""
        stacks = {name: tree["blocks"] for name, tree in self.variables.items() if "blocks" in tree}
        block, last_block = (Block(**self.block_attributes(), last=last, parent=None) for last in (False, True))

        def at(index):
            return jax.tree.map(lambda stack: jnp.asarray(stack)[index], (stacks, past))

        def layer(x, variables_and_past):
            variables, past = variables_and_past
            return block.apply(variables, x, past, positions)

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[self.remat], prevent_cse=False)
        if past is None:  # in training: copies the weights, but does not add up the gradients of whole stacks
            x, earlier = lax.scan(layer, x, at(slice(-1)))
        else:
            x, earlier = lax.scan(lambda x, index: layer(x, at(index)), x, jnp.arange(self.depth - 1))
        variables, past = at(-1)
        x, past = last_block.apply(variables, x, past, positions)  # type: ignore[misc]
        return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), earlier, past)
