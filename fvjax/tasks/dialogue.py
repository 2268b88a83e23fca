"""A VLM that answers: generated text, and the probabilities of given answers, for many prompts at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from fvjax.data import chat
from fvjax.data.conversations import Format, Piece, Size, pack_rows
from fvjax.losses.accumulation import Variables
from fvjax.models.encoder import Encoder

ROUND = 64  # rows are filled up to a multiple of so many tokens, so that few shapes are compiled
Track = Callable[[Iterable, int], Iterable]


class Prompt(NamedTuple):
    """A conversation whose pictures are decoded when they are needed."""

    size: Size
    load: Callable[[], Piece]


class Answer(NamedTuple):
    """A generated answer; `cut`: it reached the limit of tokens before it ended."""

    text: str
    cut: bool


class Dialogue:
    """Answers rows of prompts with one model in any of its states.

    Args:
        format: how prompts become tokens; its tokenizer also reads the answers.
        compile: turns function(variables, *arrays) into a compiled function of (state, *arrays). put: places rows of
            an array on the devices.
        batch_size: prompts at a time.
    """

    def __init__(
        self,
        encoder: Encoder,
        format: Format,
        compile: Callable[[Callable], Callable],
        put: Callable[[np.ndarray], Any],
        batch_size: int,
    ):
        self.encoder, self.format, self.put, self.batch_size = encoder, format, put, batch_size
        self.stop = chat.stop_ids(format.template, format.tokenizer)
        self._compile = compile
        self._generate: dict[tuple, Callable] = {}
        self._next = compile(self._next_logits)
        self._scores = compile(self._option_scores)

    def generate(
        self,
        state: Any,
        prompts: Sequence[Prompt],
        max_tokens: int,
        *,
        keys: jax.Array | None = None,
        temperature: float = 1.0,
        top_p: float = 1.0,
        track: Track = lambda batches, count: batches,
    ) -> list[Answer]:
        """Generate an answer of at most `max_tokens` tokens to each prompt: greedily, or by sampling with `keys` [n].

        temperature, top_p: for sampling, see :func:`fvjax.models.generation.generate`. track: shows progress.
        """
        settings = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p}
        name = (*settings.values(), keys is None)
        if name not in self._generate:
            self._generate[name] = self._compile(lambda *arrays: self._continue(*arrays, **settings))
        answers: list[Answer] = [Answer("", False)] * len(prompts)
        for chosen, arrays, lengths in self._batches(prompts, track):
            drawn = () if keys is None else (keys[np.pad(chosen, (0, len(lengths) - len(chosen)), mode="edge")],)
            ids, counts = self._generate[name](state, *arrays, self.put(lengths), *drawn)
            for i, row, count in zip(chosen, np.asarray(ids), np.asarray(counts)):
                ended = row[count - 1] in self.stop
                answers[i] = Answer(self.format.tokenizer.decode(row[: count - ended].tolist()), not ended)
        return answers

    def next_logits(
        self, state: Any, prompts: Sequence[Prompt], track: Track = lambda batches, count: batches
    ) -> np.ndarray:
        """Return the logits of each answer's first token, float32 [n, vocab]."""
        out = np.empty((len(prompts), self.encoder.net.decoder.vocab), np.float32)
        for chosen, arrays, lengths in self._batches(prompts, track):
            out[chosen] = np.asarray(self._next(state, *arrays, self.put(lengths)))[: len(chosen)]
        return out

    def log_likelihoods(
        self, state: Any, answered: Sequence[Prompt], track: Track = lambda batches, count: batches
    ) -> np.ndarray:
        """Return the log probability of the tokens that are labelled in each conversation, float32 [n], in nats."""
        out = np.empty(len(answered), np.float32)
        for chosen, (tokens, tiles, places), _, targets in self._batches_with_targets(answered, track):
            scores = self._scores(state, tokens, tiles, places, self.put(targets))
            out[chosen] = np.asarray(scores)[: len(chosen)]
        return out

    # ---- compiled functions

    def _continue(self, variables: Variables, tokens, tiles, places, lengths, *keys, **settings):
        sampling = {"keys": keys[0]} if keys else {}
        return self.encoder.continue_conversation(
            variables, tokens, tiles, places, lengths, eos=self.stop, **settings, **sampling
        )

    def _next_logits(self, variables: Variables, tokens, tiles, places, lengths) -> jax.Array:
        states = self.encoder.read_conversation(variables, tokens, tiles, places)
        last = jax.vmap(lambda row, length: row[length - 1])(states, lengths)
        return self.encoder.logits(variables, last)

    def _option_scores(self, variables: Variables, tokens, tiles, places, targets) -> jax.Array:
        states = self.encoder.read_conversation(variables, tokens, tiles, places)
        log_p = jax.nn.log_softmax(self.encoder.logits(variables, states))
        chosen = jnp.take_along_axis(log_p, jnp.maximum(targets, 0)[..., None], axis=-1)[..., 0]
        return jnp.where(targets >= 0, chosen, 0).sum(-1)

    # ---- batches of similar length

    def _batches(self, prompts: Sequence[Prompt], track: Track) -> Iterator[tuple[np.ndarray, tuple, np.ndarray]]:
        for chosen, arrays, lengths, _ in self._batches_with_targets(prompts, track):
            yield chosen, arrays, lengths

    def _batches_with_targets(
        self, prompts: Sequence[Prompt], track: Track
    ) -> Iterator[tuple[np.ndarray, tuple, np.ndarray, np.ndarray]]:
        """Yield (which prompts, (tokens, tiles, places) on the devices, lengths, targets), similar lengths together.

        A batch has `batch_size` rows; what is missing is filled up with its last prompt.
        """
        order = sorted(range(len(prompts)), key=lambda i: (prompts[i].size.tiles, prompts[i].size.tokens))
        chunks = [order[start : start + self.batch_size] for start in range(0, len(order), self.batch_size)]
        for chunk in track(chunks, len(chunks)):
            pieces = [prompts[i].load() for i in chunk]
            pieces += pieces[-1:] * (self.batch_size - len(chunk))
            lengths = np.array([len(piece.rendered.ids) for piece in pieces], np.int32)
            tiles = 1 << (max(1, *(len(piece.tiles) for piece in pieces), 1) - 1).bit_length()
            rows = [[piece] for piece in pieces]
            room = min(-(-int(lengths.max()) // ROUND) * ROUND, self.encoder.net.decoder.max_tokens)
            batch = pack_rows(rows, self.format, room, tiles)
            arrays = tuple(self.put(batch[name]) for name in ("tokens", "tiles", "places"))
            yield np.array(chunk), arrays, lengths, batch["targets"]
