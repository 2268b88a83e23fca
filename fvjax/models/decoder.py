"""One causal decoder for InternLM2, Qwen2 and LLaMA: pre-norm, rotary positions, grouped queries, gated MLP.

What differs between them is an attribute; the sources are OpenGVLab/InternVL (internvl_chat/…/modeling_internlm2.py)
and transformers' modeling_qwen2.py and modeling_llama.py.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from fvjax.models.layers import REMAT, Attend, Dense, DType, RMSNorm, attend, self_attend
from fvjax.typing import Keys


class Cache(NamedTuple):
    """Keys and values of the tokens so far, so that a call computes only what is new.

    With ``length`` a call's tokens are written behind each row's own; without, all rows are full and it makes a longer
    one of both, which is faster.
    """

    k: jax.Array  # [depth, N, capacity, kv_heads, head_dim]
    v: jax.Array
    length: jax.Array | None  # int32 [N]: tokens of each row


class Where(NamedTuple):
    """Where a call's tokens stand, the same in all layers."""

    cos: jax.Array  # float32 [N or 1, T, head_dim / 2]
    sin: jax.Array
    at: jax.Array  # int32 [N or 1, T]: places in the sequence
    start: jax.Array | None  # int32 [N]: where the cache is written; None without one, or if the tokens are appended
    lengths: jax.Array | None  # int32 [N]: real tokens of each row, the rest is padding; None means T


def rotate(x: jax.Array, where: Where) -> jax.Array:
    """Rotary positions on x [N,T,heads,dim]: dimension i turns with i + dim/2, in float32."""
    a, b = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = where.cos[:, :, None], where.sin[:, :, None]
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x.dtype)


def last_of(x: jax.Array, lengths: jax.Array | None) -> jax.Array:
    """The last real token of each row: x [N,T,…] -> [N,1,…]."""
    if lengths is None:
        return x[:, -1:]
    return jnp.take_along_axis(x, (lengths - 1).reshape(-1, *[1] * (x.ndim - 1)), axis=1)


class Attention(nn.Module):
    """Causal self-attention, query head h with key head h // (heads / kv_heads).

    x [N,T,D] -> (y [N,T,D], (k, v) of the cache and this call's tokens). `last`: y at the last token only.
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
    def __call__(self, x, past, where: Where):
        def project(x, heads, name):
            y = Dense(heads * self.head_dim, use_bias=self.qkv_bias, dtype=self.dtype, name=name)(x)
            return y.reshape(*x.shape[:2], heads, self.head_dim)

        n, width = x.shape[0], x.shape[-1]
        k, v = rotate(project(x, self.kv_heads, "k"), where), project(x, self.kv_heads, "v")
        queries = where
        if self.last:
            x = last_of(x, where.lengths)
            cos, sin, at = (last_of(jnp.broadcast_to(y, (n, *y.shape[1:])), where.lengths) for y in where[:3])
            queries = where._replace(cos=cos, sin=sin, at=at)
        q = rotate(project(x, self.heads, "q"), queries)
        if past is not None and where.start is None:
            k, v = past = jnp.concatenate([past[0], k], 1), jnp.concatenate([past[1], v], 1)
        elif past is not None:
            write = jax.vmap(lambda old, new, start: lax.dynamic_update_slice(old, new, (start, 0, 0)))
            k, v = past = write(past[0], k, where.start), write(past[1], v, where.start)
        if where.start is None and not self.last:
            y = self_attend(q, k, v, causal=True, implementation=self.implementation)
        else:
            y = attend(q, k, v, jnp.arange(k.shape[1]) <= queries.at[:, :, None])
        y = y.reshape(n, x.shape[1], self.heads * self.head_dim)
        return Dense(width, use_bias=self.out_bias, dtype=self.dtype, name="o")(y), past


class Mlp(nn.Module):
    dim: int
    bias: bool
    dtype: DType

    @nn.compact
    def __call__(self, x):
        dense = partial(Dense, use_bias=self.bias, dtype=self.dtype)
        y = jax.nn.silu(dense(self.dim, name="gate")(x)) * dense(self.dim, name="up")(x)
        return dense(x.shape[-1], name="down")(y)


class Block(nn.Module):
    """Attention and MLP on normed input. `last`: of the output only the last token, [N,1,D]."""

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
    def __call__(self, x, past, where: Where):
        norm = partial(RMSNorm, self.norm_eps, self.dtype)
        y, past = Attention(
            self.heads,
            self.kv_heads,
            self.head_dim,
            self.qkv_bias,
            self.out_bias,
            self.attention,
            self.dtype,
            self.last,
            name="attn",
        )(norm(name="norm1")(x), past, where)
        x = (last_of(x, where.lengths) if self.last else x) + y
        return x + Mlp(self.mlp_dim, self.mlp_bias, self.dtype, name="mlp")(norm(name="norm2")(x)), past


class Decoder(nn.Module):
    """Embeddings [N,T,D] -> states after the final norm [N,T,D] in ``dtype``; vocabulary in and out by methods.

    The defaults are InternVL2-2B's InternLM2. Layers are scanned: ``blocks/mlp/gate/kernel`` is [depth, D, mlp_dim].
    ``embed`` and ``head`` are [vocab, D] as in the checkpoints, so that single rows can be read.
    """

    vocab: int = 92553
    width: int = 2048
    depth: int = 24
    heads: int = 16
    kv_heads: int = 8
    head_dim: int = 128
    mlp_dim: int = 8192
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False  # the head is the embedding
    norm_eps: float = 1e-5
    positions: int = 32768  # what was trained on; see max_tokens
    rope: Literal["plain", "linear", "dynamic", "llama3"] = "dynamic"
    rope_theta: float = 1e6
    rope_factor: float = 2.0  # not for "plain"
    rope_original: int = 8192  # this and the next two for "llama3" only
    rope_low: float = 1.0
    rope_high: float = 4.0
    dtype: DType = jnp.float32
    remat: Literal["none", "dots", "full"] = "none"
    attention: Attend = "auto"

    def setup(self):
        block = Block if self.remat == "none" else nn.remat(Block, policy=REMAT[self.remat], prevent_cse=False)
        self.blocks = nn.scan(
            block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast),  # type: ignore[arg-type]
            length=self.depth,
        )(**self._block())
        self.final_norm = RMSNorm(self.norm_eps, self.dtype)
        normal, shape = nn.initializers.normal, (self.vocab, self.width)
        self.table = self.param("embed", normal(0.02), shape)
        # so that logits of a random head are of order one at any width: 0.022 at InternLM2's, transformers' 0.02
        self.classes = self.table if self.tied else self.param("head", normal(self.width**-0.5), shape)

    @nn.nowrap
    def _block(self) -> dict[str, Any]:
        mine = set(Decoder.__dataclass_fields__) & set(Block.__dataclass_fields__) - {"parent", "name"}
        return {name: getattr(self, name) for name in mine}

    @property
    def max_tokens(self) -> int:
        """Longest sequence: linear and dynamic scaling are made for going beyond the positions trained on."""
        return int(self.positions * (self.rope_factor if self.rope in ("linear", "dynamic") else 1))

    def embed_tokens(self, ids: jax.Array | np.ndarray) -> jax.Array:
        """ids int [...] -> [..., D]. Ids must be below ``vocab``: an accelerator cannot check."""
        return self.table[ids].astype(self.dtype)

    def logits(self, states: jax.Array, rows: Sequence[int] | None = None) -> jax.Array:
        """States [..., D] -> float32 [..., vocab], or for some vocabulary ``rows`` only [..., len(rows)]."""
        kernel = self.classes if rows is None else self.classes[jnp.asarray(rows)]
        states, kernel = states.astype(self.dtype), kernel.astype(self.dtype)
        return jnp.einsum("...d,vd->...v", states, kernel, preferred_element_type=jnp.float32)

    def __call__(self, x: jax.Array, *, last: bool = False, lengths: jax.Array | None = None) -> jax.Array:
        """Embeddings [N,T,D] -> states [N,T,D].

        Args:
            last: only the last token's state is needed, [N,1,D]: the last layer then computes keys and values for all
                tokens and the rest for that one.
            lengths: int32 [N], real tokens of right-padded rows; decides which token is the last.
        Raises ValueError for more tokens than ``max_tokens``.
        """
        return self._run(x, None, lengths, last)[0]

    def extend(
        self,
        x: jax.Array,
        cache: Cache,
        *,
        last: bool = False,
        lengths: jax.Array | None = None,
        tokens: int | None = None,
    ) -> tuple[jax.Array, Cache]:
        """Run x [N,T,D] after the tokens in the cache -> (states as in __call__, the longer cache).

        A cache with a length needs room for T more tokens in every row, also for padding: more would overwrite what is
        there. One without takes no ``lengths``, and is told how many ``tokens`` there will be in the end (None: no more
        than now), which dynamic scaling depends on. ValueError: more than ``max_tokens``.
        """
        if cache.length is None and lengths is not None:
            raise ValueError("rows of different lengths need a cache with room for them: new_cache(n, capacity)")
        return self._run(x, cache, lengths, last, tokens)  # type: ignore[return-value]

    @nn.nowrap
    def new_cache(self, n: int, capacity: int | None = None) -> Cache:
        """An empty cache for n rows of up to ``capacity`` tokens, or None: for rows that grow by the same calls.

        ValueError: more than ``max_tokens``.
        """
        self._check(capacity or 0)
        empty = jnp.zeros((self.depth, n, capacity or 0, self.kv_heads, self.head_dim), self.dtype)
        return Cache(empty, empty, None if capacity is None else jnp.zeros(n, jnp.int32))

    @nn.nowrap
    def _check(self, tokens: int):
        if tokens > self.max_tokens:
            told = f"a sequence of {tokens} tokens is longer than the decoder's {self.max_tokens}"
            raise ValueError(f"{told} (positions={self.positions}, rope={self.rope!r}); shorten the prompt")

    def _run(self, x, cache: Cache | None, lengths, last: bool, tokens: int | None = None):
        capacity, start = (0, None) if cache is None else (cache.k.shape[2], cache.length)
        at = jnp.arange(x.shape[1])[None] + (capacity if start is None else start[:, None])
        # dynamic scaling looks at the tokens there will be: frequencies must not change while a cache fills
        tokens = tokens or (capacity + x.shape[1] if start is None else capacity)
        self._check(max(tokens, x.shape[1]))
        angles = at[:, :, None].astype(jnp.float32) * rope_frequencies(self, tokens)
        where = Where(jnp.cos(angles), jnp.sin(angles), at, start, lengths)
        past = None if cache is None else (cache.k, cache.v)
        run: Any = self._last_only if last and not self.is_initializing() else self.blocks
        y, past = run(x.astype(self.dtype), past, where)
        if cache is None:
            return self.final_norm(y), None
        length = None if start is None else start + (x.shape[1] if lengths is None else lengths)
        return self.final_norm(y), Cache(past[0], past[1], length)

    def _last_only(self, x, past, where: Where):
        """All layers but one as ever, that one for the last token. Takes a slice (a copy) of the stacked weights."""
        stacks = {c: self.variables[c]["blocks"] for c in ("params", "lora") if "blocks" in self.variables.get(c, {})}
        block, final = (Block(**self._block(), last=last, parent=None) for last in (False, True))

        def layer(x, given):
            return block.apply(given[0], x, given[1], where)

        if self.remat != "none":
            layer = jax.checkpoint(layer, policy=REMAT[self.remat], prevent_cse=False)
        x, kept = lax.scan(layer, x, jax.tree.map(lambda s: s[:-1], (stacks, past)))
        stacks, past = jax.tree.map(lambda s: s[-1], (stacks, past))
        x, past = final.apply(stacks, x, past, where)  # type: ignore[misc]
        return x, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), kept, past)


def rope_frequencies(model: Decoder, tokens: int) -> np.ndarray:
    """Radians per position, float32 [head_dim / 2], for a sequence of ``tokens``.

    Sources: "dynamic" (NTK-aware) modeling_internlm2.py, "llama3" and the rest transformers' modeling_rope_utils.py.
    """
    dim, theta, factor = model.head_dim, model.rope_theta, model.rope_factor
    if model.rope == "dynamic" and tokens > model.positions:
        theta *= (factor * tokens / model.positions - (factor - 1)) ** (dim / (dim - 2))
    plain = 1.0 / theta ** (np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))
    if model.rope == "linear":
        return (plain / factor).astype(np.float32)
    if model.rope != "llama3":
        return plain.astype(np.float32)
    turns = model.rope_original * plain / (2 * math.pi)  # within the length trained on first
    smooth = np.clip((turns - model.rope_low) / (model.rope_high - model.rope_low), 0, 1)
    return ((1 - smooth) * plain / factor + smooth * plain).astype(np.float32)


@partial(jax.jit, static_argnames=("decoder", "max_tokens", "eos", "temperature", "top_p"))
def generate(
    decoder: Decoder,
    variables: dict[str, Any],
    x: jax.Array,
    lengths: jax.Array | None = None,
    *,
    max_tokens: int,
    eos: tuple[int, ...],
    keys: Keys | None = None,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Continue a prompt token by token until every row has ended; greedy without ``keys``, else sampled.

    Args:
        variables: the decoder's: {"params": …} and "lora" where there is one.
        x: embeddings [N,T,D] of the prompt; ``lengths`` int32 [N] of right-padded rows.
        eos: ids any of which ends a row.
        keys: one typed PRNG key per row, [N]; a row's draws depend on its own key and the step alone.
        temperature, top_p: of sampling. top_p keeps the most probable tokens that together have at least that much.
    Returns:
        (ids int32 [N, max_tokens], filled up with eos[0]; number of tokens [N], the one that ended the row included).
    Raises ValueError: prompt and answer longer than the decoder's positions, or settings that make no sense.
    """
    if not eos or max_tokens < 1 or temperature <= 0 or not 0 < top_p <= 1:
        told = f"max_tokens={max_tokens}, eos={eos}, temperature={temperature}, top_p={top_p}"
        raise ValueError(f"generate: {told}; needs at least 1 token, an eos, temperature > 0, 0 < top_p <= 1")
    n, tokens, _ = x.shape

    def choose(states, step):
        logits: Any = decoder.apply(variables, states[:, 0], method="logits")
        if keys is None:
            return logits.argmax(-1).astype(jnp.int32)
        logits = logits / temperature
        order = jnp.sort(logits, axis=-1, descending=True)
        probability = jax.nn.softmax(order, axis=-1)
        before = jnp.cumsum(probability, axis=-1) - probability  # of all that are more probable
        least = jnp.where(before < top_p, order, jnp.inf).min(-1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
        step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        return jax.vmap(jax.random.categorical)(step_keys, logits).astype(jnp.int32)

    def ends(ids):
        return jnp.isin(ids, jnp.array(eos))

    def body(carry):
        step, ids, counts, done, token, cache = carry
        token = jnp.where(done, eos[0], token)
        ids, counts = ids.at[:, step].set(token), counts + ~done
        done = done | ends(token)
        embedded = decoder.apply(variables, token[:, None], method="embed_tokens")
        states, cache = decoder.apply(variables, embedded, cache, method="extend")
        return step + 1, ids, counts, done, choose(states, step + 1), cache

    cache = decoder.new_cache(n, tokens + max_tokens)
    states, cache = decoder.apply(variables, x, cache, last=True, lengths=lengths, method="extend")
    ids, counts = jnp.full((n, max_tokens), eos[0], jnp.int32), jnp.zeros(n, jnp.int32)
    start = (0, ids, counts, jnp.zeros(n, bool), choose(states, 0), cache)
    _, ids, counts, *_ = lax.while_loop(lambda c: (c[0] < max_tokens) & ~c[3].all(), body, start)
    return ids, counts
