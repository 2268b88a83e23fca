"""Conversations out of a store, or out of a file of conversations with the folder of its pictures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fvjax.data.readers import chat_formats, json_stream
from fvjax.data.readers.conversations import PictureFolder
from fvjax.data.stores import manifest
from fvjax.data.stores.conversations import Conversation, ConversationStore


def open_store(path: Path) -> ConversationStore:
    """Open a store of conversations, whatever its split."""
    return ConversationStore(path, manifest.read_manifest(path, manifest.CONVERSATIONS)["split"])


def choose(src: Path, images: Path | None, numbers: Callable[[int], list[int]]) -> tuple[list[Conversation], list[int]]:
    """Return some conversations and their record numbers.

    Args:
        src: a store of conversations, or a .json or .jsonl as :mod:`fvjax.data.readers.chat_formats` describes them.
        images: the folder of a file's pictures; None for a store.
        numbers: maps the number of records to the numbers of those to return, in this order.
    Raises:
        ValueError: no such store or file, `images` missing or superfluous, or a sample that cannot be used.
    """
    if src.is_dir():
        if images:
            raise ValueError(f"--images={images}: {src} is a store, which has its pictures; leave the flag out")
        store = open_store(src)
        chosen = numbers(len(store))
        return [store.conversation(number) for number in chosen], chosen
    if not images:
        raise ValueError(f"{src}: say with --images=DIR where the pictures of this file are")
    chosen = numbers(sum(1 for _ in json_stream.items(src)))
    folder, wanted = PictureFolder(images), set(chosen)
    found = {item.number: item for item in json_stream.items(src) if item.number in wanted}
    return [_sample(src, found[number], folder) for number in chosen], chosen


def _sample(src: Path, item: json_stream.Item, folder: PictureFolder) -> Conversation:
    location = f"{src.name} record {item.number} (line {item.line})"
    try:
        if item.problem:
            raise ValueError(item.problem)
        sample = chat_formats.parse(item.value)
        pictures = tuple(folder.read(path) for path in sample.pictures)
    except ValueError as error:
        raise ValueError(f"{src}: {location}: {error}; `prepare conversations` lists such records") from error
    return Conversation(sample.messages, pictures, location, sample.meta)
