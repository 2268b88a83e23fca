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
        hide_pictures: a grey picture takes the place of every picture, as in a control that sees the text alone.
    """

    template: str
    system: str | None = "default"
    max_tiles: int = 12
    tile_rule: str = "each"
    hide_pictures: bool = False


def chat_of(path: str | Path) -> Chat:
    """Read from config.json how a checkpoint in Hugging Face layout, or a converted one, wants to be spoken to.

    Raises ValueError: its largest number of tiles is no positive integer, or tiles come without a thumbnail.
    """
    file = Path(path) / "config.json"
    config = load_json(file)
    template = "internvl2_5_hf" if "text_config" in config else str(config.get("template", ""))
    tiles = config.get("max_dynamic_patch", 12) if config.get("dynamic_image_size", True) else 1
    if type(tiles) is not int or tiles < 1:
        raise ValueError(f"{file}: max_dynamic_patch={tiles!r}, expected the most tiles of a picture, 1 or more")
    if tiles > 1 and config.get("use_thumbnail") is False:
        raise ValueError(f"{file}: use_thumbnail=false is not supported; set dynamic_image_size to false for one tile")
    return Chat(template, max_tiles=tiles)


@partial(jax.jit, static_argnames="encoder")
def _logits(encoder: Encoder, variables: Variables, tokens, tiles, places) -> jax.Array:
    """Compute the logits after every token of some rows, float32 [N,T,vocab]."""
    return encoder.logits(variables, encoder.read_conversation(variables, tokens, tiles, places))


@partial(jax.jit, static_argnames="encoder")
def _embed(encoder: Encoder, variables: Variables, tokens, tiles, places) -> jax.Array:
    """Embed the tokens and pictures of some rows, [N,T,D]."""
    return encoder.embed_conversation(variables, tokens, tiles, places)


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
        self._dialogue: Dialogue | None = None

    # ---- text in, text out

    @property
    def format(self) -> Format:
        """How messages become tokens. Raises ValueError: no tokenizer, or an unknown template."""
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
            s.hide_pictures,
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
            max_tokens: the answer ends there if it has not ended before, without a character that it cuts through.
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
        """Yield the answer of :meth:`generate` in pieces of whole characters, as soon as they are there."""
        format = self.format
        _check_asked(messages)
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
            embedded = _embed(self.encoder, self.variables, row.tokens, tiles, places)
            for new in generation.stream(
                self.encoder.net.decoder, decoder, embedded, length, max_tokens=max_tokens, eos=stop, **sampling
            ):
                fresh = new[0].tolist()
                end = next((i for i, token in enumerate(fresh) if token in stop), None)
                ids += fresh if end is None else fresh[:end]
                text = format.tokenizer.decode(ids)
                if end is None:
                    text = text.rstrip("\ufffd")  # the first bytes of a character whose others are still to come
                if text != said:
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
        their tokens and of the answer's end. Raises ValueError: the last message is not the user's, or fewer than two
        options, equal ones, or one without tokens.
        """
        format = self.format
        _check_asked(messages)
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
        rows = [self._ids(r, row) for r, row in enumerate(ids)]
        tiles = [self._tiles(row) for row in media]
        visual = [len(row) * self._tile_tokens for row in tiles]
        context = self._context_id(rows, visual)
        out = []
        for r, row in enumerate(rows):
            places = np.flatnonzero(row == context)
            if len(places) != visual[r]:
                raise ValueError(
                    f"forward: row {r} has {len(places)} placeholders (id {context}), its {len(tiles[r])} tiles become "
                    f"{visual[r]} visual tokens"
                )
            out.append(self._logits_of(row, tiles[r], places))
        return out

    def _ids(self, number: int, row: Sequence[int]) -> np.ndarray:
        ids, vocabulary = np.asarray(row), self.encoder.net.decoder.vocab
        if ids.ndim != 1 or ids.dtype.kind not in "iu" or not len(ids) or ids.min() < 0 or ids.max() >= vocabulary:
            raise ValueError(f"forward: row {number} needs ids, integers from 0 to {vocabulary - 1}")
        return ids.astype(np.int32)

    def _context_id(self, rows: Sequence[np.ndarray], visual: Sequence[int]) -> int:
        """Return the id of visual tokens: known, or the only one that rows have as often as they have visual tokens."""
        if self.context_id is not None:
            return self.context_id
        template = chat.TEMPLATES.get(self.settings.template)
        if self.tokenizer is not None and template and template.image[1] in self.tokenizer.added:
            return self.tokenizer.added[template.image[1]]
        if not any(visual):
            return -1
        counts = [np.bincount(row, minlength=self.encoder.net.decoder.vocab) for row in rows]
        fitting = np.flatnonzero(np.all([count == n for count, n in zip(counts, visual)], axis=0))
        if len(fitting) != 1:
            raise ValueError(
                f"forward: {len(fitting)} token ids occur as often as there are visual tokens; set model.context_id"
            )
        return int(fitting[0])

    def _tiles(self, row: Sequence[Mapping[str, Any]]) -> np.ndarray:
        size = self._tile_size
        parts = [np.empty((0, size, size, 3), np.uint8)]
        for number, medium in enumerate(row):
            tiles = np.asarray(medium.get("tiles"))
            if set(medium) != {"tiles"} or tiles.dtype != np.uint8 or tiles.shape[1:] != (size, size, 3):
                kind = f"{tiles.dtype} {list(tiles.shape)}"
                names = ", ".join(map(str, medium))
                raise ValueError(f"media {number}: expected tiles uint8 [k,{size},{size},3], got {names}: {kind}")
            parts.append(tiles)
        return np.concatenate(parts)

    # ---- rows of arrays

    def _piece(self, messages: Messages, images: Sequence[np.ndarray]) -> Piece:
        pictures = [self._picture(number, image) for number, image in enumerate(images)]
        format = self.format
        read = piece(format, list(messages), pictures)  # type: ignore[arg-type]
        # InternVL3's -hf tokenizers have a token, <video>, that the decoder does not know; no template uses it.
        if (largest := max(read.rendered.ids)) >= (vocabulary := self.encoder.net.decoder.vocab):
            raise ValueError(
                f"{format.tokenizer.path}: the messages have the id {largest}, the decoder's vocabulary has "
                f"{vocabulary}; use the tokenizer of the checkpoint"
            )
        return read

    def _picture(self, number: int, image: np.ndarray) -> Image.Image:
        array = np.asarray(image)
        if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or not array.size:
            raise ValueError(f"image {number}: expected uint8 [H,W,3] RGB, got {array.dtype} {list(array.shape)}")
        return Image.fromarray(array)

    def _all_logits(self, piece: Piece) -> np.ndarray:
        ids, places = (np.array(x, np.int32) for x in (piece.rendered.ids, piece.rendered.visual_places))
        return self._logits_of(ids, piece.tiles, places)

    def _logits_of(self, ids: np.ndarray, tiles: np.ndarray, places: np.ndarray) -> np.ndarray:
        row, tiles, places = self._arrays(ids, tiles, places)
        with jax.default_matmul_precision(self._precision):
            return np.asarray(_logits(self.encoder, self.variables, row.tokens, tiles, places))[0, : row.length]

    def _row(self, piece: Piece) -> tuple[_Row, np.ndarray, np.ndarray]:
        ids, places = (np.array(x, np.int32) for x in (piece.rendered.ids, piece.rendered.visual_places))
        return self._arrays(ids, piece.tiles, places)

    def _arrays(self, ids: np.ndarray, tiles: np.ndarray, places: np.ndarray) -> tuple[_Row, np.ndarray, np.ndarray]:
        """Fill a row up -> (its tokens [1,T] and length, tiles [1,K,H,W,3], places [1,V])."""
        self.encoder.net.decoder.check_length(len(ids))
        decoder = self.encoder.net.decoder  # padding beyond `positions` would set off dynamic scaling
        most = decoder.positions if len(ids) <= decoder.positions else decoder.max_tokens
        room = min(-(-len(ids) // ROUND) * ROUND, most)
        count = 1 << (max(1, len(tiles)) - 1).bit_length()
        all_tiles = np.zeros((1, count, self._tile_size, self._tile_size, 3), np.uint8)
        all_tiles[0, : len(tiles)] = tiles
        all_places = np.full((1, count * self._tile_tokens), room, np.int32)
        all_places[0, : len(places)] = places
        return _Row(np.pad(ids, (0, room - len(ids)))[None], len(ids)), all_tiles, all_places

    def with_settings(self, **changes: Any) -> ChatModel:
        """Return the same model with another template, system message or tiling, see :class:`Chat`."""
        settings = replace(self.settings, **changes)
        return ChatModel(self.encoder, self.variables, self.tokenizer, settings, self._precision, self.context_id)


@dataclass(frozen=True)
class _Row:
    tokens: np.ndarray
    length: int


def _check_asked(messages: Messages) -> None:
    """Raise ValueError unless the last message is the user's."""
    last = messages[-1] if messages else None
    if not isinstance(last, Mapping) or last.get("role") != "user":
        raise ValueError("messages: the last one must be the user's, for the model to answer")


def _same(piece: Piece) -> Piece:
    return piece
