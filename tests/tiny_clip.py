"""Write a small CLIP checkpoint, with a tokenizer of single letters."""

import json
from pathlib import Path

from fvjax.data.tokenizers import clip
from tests.reference import facellava


def write(path: Path) -> Path:
    """Write the golden set's CLIP into a new directory; return the directory with the files."""
    path.mkdir(exist_ok=True)
    directory = facellava.write("clip_tiny/clip", path)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + ["'", "-", *"0123456789"]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters)]
    ids = {token: id for id, token in enumerate(tokens)}
    fill = {f"{n}.": n for n in range(len(ids), 98)}
    (directory / "vocab.json").write_text(json.dumps({**ids, **fill, clip.BEGIN: 98, clip.END: 99}))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    return directory
