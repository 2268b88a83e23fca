"""Code of a user's own, named `module:name` in a config: a task, a loss, a backbone, a tracker.

The module is imported as Python would import it (the folder a command is started in comes first), so only name modules
that you trust as much as your own code. Its source is part of a run's hashes: a run does not resume on changed code.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import sys
from importlib.util import find_spec
from typing import Any


def is_spec(value: object) -> bool:
    """Whether a config value is `module:name`."""
    return isinstance(value, str) and re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", value) is not None


def load(spec: str) -> Any:
    """Return the object that `module:name` names. Raises ValueError: there is no such module or name."""
    module, _, name = spec.partition(":")
    _search_working_folder()
    try:
        loaded = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ValueError(f"{spec}: there is no module {error.name!r} here or in this environment") from error
    if not hasattr(loaded, name):
        raise ValueError(f"{spec}: the module {module} has no {name!r}")
    return getattr(loaded, name)


def source_hash(spec: str) -> str:
    """Return the sha256 of the source file behind `module:name`, 16 digits. Raises ValueError: it has none."""
    module = spec.partition(":")[0]
    _search_working_folder()
    try:
        spec_of_module = find_spec(module)
    except ModuleNotFoundError:
        spec_of_module = None
    if spec_of_module is None or not spec_of_module.has_location or spec_of_module.origin is None:
        raise ValueError(f"{spec}: there is no module {module!r} with a source file here or in this environment")
    with open(spec_of_module.origin, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _search_working_folder() -> None:
    """A console script has its own folder on the path instead of the one it is started in."""
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.insert(0, os.getcwd())
