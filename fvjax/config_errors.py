"""Say in one line what is wrong with a config file or a key: the file, the line, the key, and what there is instead."""

from __future__ import annotations

import contextlib
import importlib.util
import re
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from fvjax.config import EditableConfig, base
from fvjax.config_keys import has, unknown_key

NO_KEY = re.compile(r'Key "([^"]+)" does not exist'), re.compile(r"^'?([A-Za-z_]\w*)\b")  # as ml_collections names it


def load(file: Path, row: str) -> EditableConfig:
    """Run a config file's `get_config`, with `row` if it is not empty.

    Raises ValueError in one line, whatever was wrong: a key that no config has, a row that the file does not have, or
    an error in its code, with the number of the line.
    """
    spec = importlib.util.spec_from_file_location("fvjax_config_file", file)
    if spec is None or spec.loader is None:
        raise ValueError(f"--config={file}: a config is a Python file, or the config.json of a run")
    try:
        with contextlib.chdir(Path.cwd()):  # a file may go elsewhere; its later loading must find it where it was
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module.get_config(row) if row else module.get_config()
    except Exception as error:  # a config file is Python: anything can be wrong in it
        raise ValueError(_explain(error, file)) from error


def check_overrides(arguments: Sequence[str], config: EditableConfig) -> None:
    """Raise ValueError for the first `--config.KEY=…` among the arguments whose key the config does not have."""
    for argument in arguments:
        match = re.match(r"--?(?:no)?config\.([^=]+)", argument)
        key = match.group(1) if match else ""
        if key and not has(config, key):
            raise ValueError(unknown_key(key, config))


def _explain(error: Exception, file: Path) -> str:
    """Describe an exception of a config file's code."""
    frames = list(traceback.walk_tb(error.__traceback__))
    own = [(frame, line) for frame, line in frames if Path(frame.f_code.co_filename).resolve() == file.resolve()]
    where = f"{file}, line {own[-1][1]}" if own else str(file)
    holders = [frame.f_locals.get("self") for frame, _ in reversed(frames)]
    section = next((each for each in holders if isinstance(each, ConfigDict)), None)
    if isinstance(error, SyntaxError):
        return f"{file}, line {error.lineno}: {error.msg}"
    if section is not None and isinstance(error, AttributeError | KeyError):
        match = next(filter(None, (pattern.search(str(error.args[0])) for pattern in NO_KEY)), None)
        configs = [each for frame, _ in own for each in frame.f_locals.values() if isinstance(each, ConfigDict)]
        root = next((each for each in configs if "model" in each), None)
        path = None if root is None else _path(root, section)
        if match and path is not None and root is not None:
            key = ".".join(filter(None, (path, match.group(1))))
            return f"{where}: {unknown_key(key, root, base().to_dict())}"
    text = " ".join(str(error.args[0] if error.args else error).split())
    if isinstance(error, ValueError):  # the file's own words, which name it
        return text if str(file.name) in text else f"{where}: {text}"
    return f"{where}: {type(error).__name__}: {text[:300]}"


def _path(root: ConfigDict, wanted: ConfigDict, path: str = "") -> str | None:
    """Return the dotted name of a section in a config, "" for the config itself; None if it is not in there."""
    if root is wanted:
        return path
    for name in root:
        child: Any = root[name]
        if isinstance(child, ConfigDict):
            found = _path(child, wanted, f"{path}.{name}" if path else name)
            if found is not None:
                return found
    return None
