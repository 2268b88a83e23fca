"""Conversations as arrays: the token ids, targets and tiles of a batch's rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from fvjax.data import chat, tiling
from fvjax.data.stores.conversations import Conversation, ConversationStore
from fvjax.data.tokenizers import Tokenizer

NO_TARGET = -1  # as fvjax.losses.language.NONE: the position has no loss
GREY = 128  # value of every pixel of the picture that stands for all pictures in a text-only control


@dataclass(frozen=True)
class Format:
    """How a conversation becomes tokens and tiles. Picklable, so that data workers can have it.

    Attributes:
        template: a key of chat.TEMPLATES. system: "default" (the template's message), None, or a text.
        labels: which tokens of an answer are learned, see chat.render.
        max_tiles: the most tiles of a picture, the thumbnail apart. tile_rule: what several pictures do to it, see
            tiling.max_tiles_for.
        tile_size: side of a tile in pixels. tile_tokens: visual tokens of a tile.
        hide_pictures: put a grey picture in the place of every picture, for a control that sees the text alone.
    """

    tokenizer: Tokenizer
    template: str
    system: str | None
    labels: str
    max_tiles: int
    tile_rule: str
    tile_size: int
    tile_tokens: int
    hide_pictures: bool = False

    def tile_counts(self, sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Return how many tiles the pictures of one conversation have; `sizes`: (width, height) of each."""
        limit = tiling.max_tiles_for(len(sizes), self.max_tiles, self.tile_rule)
        return [tiling.count(width, height, limit, self.tile_size) for width, height in sizes]

    def tiles(self, pictures: Sequence[Image.Image]) -> np.ndarray:
        """Cut the pictures of one conversation into tiles, uint8 [k, tile_size, tile_size, 3]."""
        limit = tiling.max_tiles_for(len(pictures), self.max_tiles, self.tile_rule)
        parts = [tiling.tiles(picture, limit, self.tile_size) for picture in pictures]
        parts.append(np.empty((0, self.tile_size, self.tile_size, 3), np.uint8))
        tiles = np.concatenate(parts)
        return np.full_like(tiles, GREY) if self.hide_pictures else tiles

    def render(self, messages: list[dict[str, str]], tile_counts: Sequence[int]) -> chat.Rendered:
        """Return token ids and label mask, see :func:`chat.render`."""
        return chat.render(
            self.template,
            messages,
            self.tokenizer,
            image_tokens=[self.tile_tokens * count for count in tile_counts],
            system=self.system,
            labels=self.labels,
        )


class Size(NamedTuple):
    """How long a conversation is: its tokens (those of its pictures included), tokens with a loss, and tiles."""

    tokens: int
    learned: int
    tiles: int


def measure(format: Format, conversation: Conversation, sizes: Sequence[tuple[int, int]]) -> Size:
    """Return the size of a conversation without decoding its pictures, whose (width, height) are `sizes`."""
    counts = format.tile_counts(sizes)
    rendered = format.render(conversation.messages, counts)
    return Size(len(rendered.ids), sum(rendered.label_mask), sum(counts))


@dataclass(frozen=True)
class Reader:
    """Reads the rows of a batch from a store. Picklable."""

    store: ConversationStore
    format: Format

    def __call__(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the arrays of some rows.

        Args:
            columns: "ids" int64 [p, S], the records that follow each other in each row (-1: none); "length" and
                "tiles" int [p], the same in all rows: how many tokens and tiles the arrays have room for.
        Returns:
            see :func:`pack_rows`.
        """
        rows = [[self._piece(int(i)) for i in ids if i >= 0] for ids in columns["ids"]]
        return pack_rows(rows, self.format, int(columns["length"][0]), int(columns["tiles"][0]))

    def _piece(self, i: int) -> Piece:
        return piece(self.format, self.store.conversation(i).messages, self.store.images(i))


class Piece(NamedTuple):
    """One conversation: its rendering, and its tiles uint8 [k,H,W,3]."""

    rendered: chat.Rendered
    tiles: np.ndarray


def piece(format: Format, messages: list[dict[str, str]], pictures: Sequence[Image.Image]) -> Piece:
    """Turn one conversation with its decoded pictures into token ids and tiles."""
    rendered = format.render(messages, format.tile_counts([picture.size for picture in pictures]))
    return Piece(rendered, format.tiles(pictures))


def pack_rows(rows: Sequence[Sequence[Piece]], format: Format, length: int, tiles: int) -> dict[str, np.ndarray]:
    """Put conversations one after the other into rows of `length` tokens and `tiles` tiles.

    Returns:
        "tokens" int32 [p, length] (0 beyond a row's end), "targets" int32 [p, length] (the id that follows, or
        NO_TARGET), "segments" int32 [p, length] (which conversation of the row; the number of conversations beyond
        its end), "tiles" uint8 [p, tiles, H, W, 3] and "places" int32 [p, tiles * tile_tokens] (where each visual
        token stands; `length` for tiles that a row does not have).
    Raises:
        ValueError: a row has more tokens or tiles. Nothing is ever cut.
    """
    side = format.tile_size
    tokens = np.zeros((len(rows), length), np.int32)
    targets = np.full((len(rows), length), NO_TARGET, np.int32)
    segments = np.zeros((len(rows), length), np.int32)
    pixels = np.zeros((len(rows), tiles, side, side, 3), np.uint8)
    places = np.full((len(rows), tiles * format.tile_tokens), length, np.int32)
    for r, row in enumerate(rows):
        end = used = 0
        for number, (rendered, own) in enumerate(row):
            start, end = end, end + len(rendered.ids)
            if end > length or used + len(own) > tiles:
                raise ValueError(f"a row of {end} tokens and {used + len(own)} tiles, room is for {length} and {tiles}")
            ids = np.array(rendered.ids, np.int32)
            tokens[r, start:end] = ids
            targets[r, start : end - 1] = np.where(rendered.label_mask[1:], ids[1:], NO_TARGET)
            segments[r, start:end] = number
            pixels[r, used : used + len(own)] = own
            at = start + np.array(rendered.visual_places, int)
            places[r, used * format.tile_tokens : (used + len(own)) * format.tile_tokens] = at
            used += len(own)
        segments[r, end:] = len(row)
    return {"tokens": tokens, "targets": targets, "segments": segments, "tiles": pixels, "places": places}


def text_of(messages: Sequence[Mapping[str, Any]]) -> str:
    """Return the last answer of a conversation."""
    return next(m["content"] for m in reversed(messages) if m["role"] == "assistant")
