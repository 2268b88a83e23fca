"""A VLM that holds conversations, for programs: `fvjax.load(DIR, scenario="chat")`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from fvjax.data import chat, tokenizers
from fvjax.data.conversations import Format, Piece, Size, piece
from fvjax.losses.accumulation import Variables
from fvjax.models import generation
from fvjax.models.encoder import Encoder
from fvjax.tasks.dialogue import Dialogue, Prompt
from weights_convert.read import load_json

Messages = Sequence[Mapping[str, str]]  # {"role": "system" | "user" | "assistant", "content": text with <image>}
ROUND = 64  # rows are filled up to a multiple of so many tokens, so that few shapes are compiled


@dataclass(frozen=True)
class Chat:
    """How a checkpoint wants to be spoken to.

    Attributes:
        template: a key of chat.TEMPLATES. system: "default" for the template's message, None, or a text.
        max_tiles: the most tiles of a picture, the thumbnail apart. tile_rule: see tiling.max_tiles_for.
    """

    template: str
    system: str | None = "default"
    max_tiles: int = 12
    tile_rule: str = "each"


def chat_of(path: str | Path) -> Chat:
    """Read from config.json how a checkpoint in Hugging Face layout, or a converted one, wants to be spoken to."""
    config = load_json(Path(path) / "config.json")
    template = "internvl2_5_hf" if "text_config" in config else str(config.get("template", ""))
    return Chat(template, max_tiles=int(config.get("max_dynamic_patch", 12)))


class ChatModel:
    """A model for conversations.

    Args:
        tokenizer: None if the checkpoint has none; then :meth:`forward` alone works.
        context_id: the token id that stands for a visual token; None: the tokenizer's, or see :meth:`forward`.
        precision: of matrix products, as jax.default_matmul_precision takes it.
    """

    def __init__(
        self,
        encoder: Encoder,
        variables: Variables,
        tokenizer: tokenizers.Tokenizer | None,
        settings: Chat,
        precision: str,
        context_id: int | None = None,
    ):
        self.encoder, self.variables, self.settings, self._precision = encoder, variables, settings, precision
        self.tokenizer, self.context_id = tokenizer, context_id
        vision = encoder.net.vision
        self._tile_size, self._tile_tokens = vision.image_size, encoder.net.image_tokens
        self._read = jax.jit(self._logits)
        self._embed = jax.jit(encoder.embed_conversation)
        self._dialogue: Dialogue | None = None

    # ---- text in, text out

    @property
    def format(self) -> Format:
        """How messages become tokens. Raises ValueError without a tokenizer."""
        if self.tokenizer is None:
            raise ValueError("this checkpoint has no tokenizer; copy its files beside config.json, or use forward")
        s = self.settings
        if s.template not in chat.TEMPLATES:
            raise ValueError(
                f"{self.tokenizer.path}: its chat template {s.template!r} is not known; choose the one that the model "
                f"was trained with, of {', '.join(chat.TEMPLATES)}"
            )
        return Format(
            self.tokenizer,
            s.template,
            s.system,
            "llamafactory",
            s.max_tiles,
            s.tile_rule,
            self._tile_size,
            self._tile_tokens,
        )

    def generate(
        self,
        messages: Messages,
        images: Sequence[np.ndarray] = (),
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> str:
        """Return the model's answer to the last message.

        Args:
            messages: the last one is the user's. Each `<image>` stands for one picture, in order.
            images: uint8 [H,W,3] RGB, of any size.
            max_tokens: the answer ends there if it has not ended before.
            temperature: 0 is greedy. top_p: for sampling, keep the most probable tokens that together have so much.
            seed: equal seeds give equal samples.
        Raises:
            ValueError: no conversation, or too many tokens for the model.
        """
        parts = self.stream(messages, images, max_tokens, temperature, top_p, seed)
        return "".join(parts)

    def stream(
        self,
        messages: Messages,
        images: Sequence[np.ndarray] = (),
        max_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 0,
    ) -> Iterator[str]:
        """Yield the answer of :meth:`generate` in pieces, as soon as they are there."""
        format = self.format
        if not messages or messages[-1].get("role") != "user":
            raise ValueError("messages: the last one must be the user's, for the model to answer")
        if max_tokens < 1 or temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(f"max_tokens={max_tokens}, temperature={temperature}, top_p={top_p}: out of range")
        stop = chat.stop_ids(format.template, format.tokenizer)
        row, tiles, places = self._row(self._piece(messages, images))
        length = np.array([row.length], np.int32)
        decoder = {name: tree["decoder"] for name, tree in self.variables.items() if "decoder" in tree}
        sampling = {}
        if temperature:
            keys = jax.random.split(jax.random.key(seed), 1)
            sampling = {"keys": keys, "temperature": float(temperature), "top_p": float(top_p)}
        ids: list[int] = []
        said = ""
        with jax.default_matmul_precision(self._precision):
            embedded = self._embed(self.variables, row.tokens, tiles, places)
            for new in generation.stream(
                self.encoder.net.decoder, decoder, embedded, length, max_tokens=max_tokens, eos=stop, **sampling
            ):
                fresh = new[0].tolist()
                end = next((i for i, token in enumerate(fresh) if token in stop), None)
                ids += fresh if end is None else fresh[:end]
                text = format.tokenizer.decode(ids)
                if end is None:
                    text = text.rstrip("\ufffd")  # the first bytes of a character whose others are still to come
                yield text[len(said) :]
                said = text
                if end is not None:
                    return

    def logits(self, messages: Messages, images: Sequence[np.ndarray] = ()) -> np.ndarray:
        """Return the logits after every token of a conversation, float32 [T, vocab].

        If the last message is the user's, the last row belongs to the first token of the answer.
        """
        return self._all_logits(self._piece(messages, images))

    def choose(
        self, messages: Messages, images: Sequence[np.ndarray], options: Sequence[str]
    ) -> tuple[int, np.ndarray]:
        """Choose between answers -> (index of the most probable one, probabilities float32 [n] that sum to 1).

        Options of one token are compared by the logits of the answer's first token, others by the probability of all
        their tokens. Raises ValueError: fewer than two options, equal ones, or one without tokens.
        """
        format = self.format
        ids = [tuple(format.tokenizer.encode(option)) for option in options]
        if len(ids) < 2 or len(set(ids)) < len(ids) or not all(ids):
            raise ValueError(f"options={list(options)}: needs two or more different texts")
        if all(len(tokens) == 1 for tokens in ids):
            scores = self.logits(messages, images)[-1][[tokens[0] for tokens in ids]]
        else:
            answered = [self._piece([*messages, {"role": "assistant", "content": o}], images) for o in options]
            prompts = [Prompt(Size(0, 0, 0), partial(_same, one)) for one in answered]
            with jax.default_matmul_precision(self._precision):
                scores = self.dialogue.log_likelihoods(self.variables, prompts)
        scores = np.exp(scores - scores.max())
        probabilities = (scores / scores.sum()).astype(np.float32)
        return int(probabilities.argmax()), probabilities

    @property
    def dialogue(self) -> Dialogue:
        """Answers many prompts at a time."""
        if self._dialogue is None:
            self._dialogue = Dialogue(self.encoder, self.format, jax.jit, jnp.asarray, 1)
        return self._dialogue

    # ---- token ids in, logits out

    def forward(self, ids: Sequence[Sequence[int]], media: Sequence[Sequence[Mapping[str, Any]]]) -> list[np.ndarray]:
        """Read token ids without a tokenizer -> for each row the logits after every token, float32 [T_i, vocab].

        Args:
            ids: for each row its ids, with one context id for every visual token.
            media: for each row its pictures, {"tiles": uint8 [k,H,W,3]} with tiles of the tower's own size.
        Raises:
            ValueError: rows and media that do not fit each other, tiles of another size, or no context id is known
                and none can be inferred.
        """
        if len(ids) != len(media):
            raise ValueError(f"forward: {len(ids)} rows of ids and {len(media)} of media")
        tiles = [self._tiles(row) for row in media]
        visual = [len(row) * self._tile_tokens for row in tiles]
        context = self._context_id(ids, visual)
        out = []
        for r, row in enumerate(ids):
            row = np.asarray(row, np.int32)
            if row.ndim != 1 or not len(row) or row.min() < 0 or row.max() >= self.encoder.net.decoder.vocab:
                raise ValueError(f"forward: row {r} needs ids from 0 to {self.encoder.net.decoder.vocab - 1}")
            places = np.flatnonzero(row == context)
            if len(places) != visual[r]:
                raise ValueError(
                    f"forward: row {r} has {len(places)} placeholders (id {context}), its {len(tiles[r])} tiles become "
                    f"{visual[r]} visual tokens"
                )
            out.append(self._logits_of(row, tiles[r], places))
        return out

    def _context_id(self, ids: Sequence[Sequence[int]], visual: Sequence[int]) -> int:
        """Return the id of visual tokens: known, or the only one that rows have as often as they have visual tokens."""
        if self.context_id is not None:
            return self.context_id
        if self.tokenizer is not None:
            return self.tokenizer.added[chat.TEMPLATES[self.settings.template].image[1]]
        if not any(visual):
            return -1
        counts = [np.bincount(np.asarray(row, np.int64), minlength=self.encoder.net.decoder.vocab) for row in ids]
        fitting = np.flatnonzero(np.all([count == n for count, n in zip(counts, visual)], axis=0))
        if len(fitting) != 1:
            raise ValueError("forward: no token id occurs as often as there are visual tokens; set model.context_id")
        return int(fitting[0])

    def _tiles(self, row: Sequence[Mapping[str, Any]]) -> np.ndarray:
        size = self._tile_size
        parts = [np.empty((0, size, size, 3), np.uint8)]
        for number, medium in enumerate(row):
            tiles = np.asarray(medium.get("tiles"))
            if set(medium) != {"tiles"} or tiles.dtype != np.uint8 or tiles.shape[1:] != (size, size, 3):
                kind = f"{tiles.dtype} {list(tiles.shape)}"
                raise ValueError(f"media {number}: expected tiles uint8 [k,{size},{size},3], got {set(medium)}, {kind}")
            parts.append(tiles)
        return np.concatenate(parts)

    # ---- rows of arrays

    def _piece(self, messages: Messages, images: Sequence[np.ndarray]) -> Piece:
        pictures = [self._picture(number, image) for number, image in enumerate(images)]
        return piece(self.format, [dict(message) for message in messages], pictures)

    def _picture(self, number: int, image: np.ndarray) -> Image.Image:
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
            raise ValueError(f"image {number}: expected uint8 [H,W,3] RGB, got {array.dtype} {list(array.shape)}")
        return Image.fromarray(array)

    def _all_logits(self, piece: Piece) -> np.ndarray:
        places = [place for image in piece.rendered.images for place in image[1:-1]]
        return self._logits_of(np.array(piece.rendered.ids, np.int32), piece.tiles, np.array(places, np.int32))

    def _logits_of(self, ids: np.ndarray, tiles: np.ndarray, places: np.ndarray) -> np.ndarray:
        row, tiles, places = self._arrays(ids, tiles, places)
        with jax.default_matmul_precision(self._precision):
            return np.asarray(self._read(self.variables, row.tokens, tiles, places))[0, : row.length]

    def _row(self, piece: Piece) -> tuple[_Row, np.ndarray, np.ndarray]:
        places = [place for image in piece.rendered.images for place in image[1:-1]]
        return self._arrays(np.array(piece.rendered.ids, np.int32), piece.tiles, np.array(places, np.int32))

    def _arrays(self, ids: np.ndarray, tiles: np.ndarray, places: np.ndarray) -> tuple[_Row, np.ndarray, np.ndarray]:
        """Fill a row up -> (its tokens [1,T] and length, tiles [1,K,H,W,3], places [1,V])."""
        self.encoder.net.decoder.check_length(len(ids))
        room = -(-len(ids) // ROUND) * ROUND
        count = 1 << (max(1, len(tiles)) - 1).bit_length()
        all_tiles = np.zeros((1, count, self._tile_size, self._tile_size, 3), np.uint8)
        all_tiles[0, : len(tiles)] = tiles
        all_places = np.full((1, count * self._tile_tokens), room, np.int32)
        all_places[0, : len(places)] = places
        return _Row(np.pad(ids, (0, room - len(ids)))[None], len(ids)), all_tiles, all_places

    def _logits(self, variables: Variables, tokens, tiles, places) -> jax.Array:
        return self.encoder.logits(variables, self.encoder.read_conversation(variables, tokens, tiles, places))

    def with_settings(self, **changes: Any) -> ChatModel:
        """Return the same model with another template, system message or tiling, see :class:`Chat`."""
        settings = replace(self.settings, **changes)
        return ChatModel(self.encoder, self.variables, self.tokenizer, settings, self._precision, self.context_id)


@dataclass(frozen=True)
class _Row:
    tokens: np.ndarray
    length: int


def _same(piece: Piece) -> Piece:
    return piece
