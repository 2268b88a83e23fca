"""Files of a work directory: replaced as a whole, or JSON lines that are cut back when a run resumes."""

from __future__ import annotations

import json
from pathlib import Path

from fvjax import errors


def replace_file(path: Path, content: str | bytes) -> None:
    """Write a whole file at once: a kill or a full disk leaves either the old file or the new one."""
    tmp = path.with_name(f"{path.name}.tmp")
    with errors.naming(path):
        try:
            tmp.write_bytes(content if isinstance(content, bytes) else content.encode())
            tmp.replace(path)
        finally:
            tmp.unlink(missing_ok=True)


def read_lines(path: Path) -> list[dict]:
    """Read a JSON-lines file, leaving out a line that a kill cut short; [] if there is no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if _step(line) < float("inf")]


def keep_before(path: Path, step: int) -> None:
    """Cut a JSON-lines file back to the lines before `step`; a line that a kill cut short goes too."""
    earlier = [line for line in path.read_text().splitlines() if _step(line) < step] if path.exists() else []
    replace_file(path, "".join(f"{line}\n" for line in earlier))


def _step(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")  # a line cut short by a kill
