"""The control run of text alone: the same conversations with one fixed picture in place of every real one."""

from __future__ import annotations

import io
from pathlib import Path

from PIL import Image

from fvjax.data.describing.samples import open_store
from fvjax.data.progress import track
from fvjax.data.stores.conversations import ConversationStore, Writer

SIDE = 448  # pixels, one tile of InternVL's
GREY = 128


def fixed_picture() -> bytes:
    """Return the picture that says nothing: plain grey, as PNG."""
    png = io.BytesIO()
    Image.new("RGB", (SIDE, SIDE), (GREY,) * 3).save(png, "PNG")
    return png.getvalue()


def write(src: Path, dst: Path) -> ConversationStore:
    """Copy a store of conversations with a fixed picture in place of each of its pictures, and without landmarks.

    What a model learns from the copy, it learns from the texts: the difference to training on `src` is what the
    pictures give.

    Raises:
        ValueError: no store of conversations at `src`, or `dst` exists.
    """
    store = open_store(src)
    picture = fixed_picture()
    with Writer(dst, split=store.split, sources=[f"{src} with a fixed picture"], frames=store.frames) as writer:
        for number in track(range(len(store)), "conversations"):
            record = store.conversation(number)
            writer.add(record.messages, [picture] * len(record.pictures), record.source, **record.meta)
        writer.info["control_of"] = store.data_hash
    return ConversationStore(dst, store.split)
