"""What can be seen to be wrong with a command before a model is read or a file is written."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

from fvjax import shipped
from fvjax.config import Config, differences


def check_all(experiments: Mapping[Path, Config], mode: str) -> None:
    """Check every experiment of a command, by work directory; its task is checked apart. Raises ValueError, OSError."""
    for workdir, config in experiments.items():
        config.check()
        if lines := missing(config.required_paths, dict(config.prepare)):
            raise FileNotFoundError("\n".join(lines))
        check_workdir(config.to_json(), workdir, needs_trained=mode == "eval" and config.trains)
        check_writable(workdir)


def missing(required: Mapping[str, str], remedies: Mapping[str, str]) -> list[str]:
    """Return a line for each required path that does not exist, with its remedy; both by config key."""
    lines = {
        path: f"config.{key}: {path} is not there. {remedies.get(key, 'Supply it or name another.')}"
        for key, path in reversed(list(required.items()))  # one line for each path: of the first key that names it
        if path and not Path(shipped.weights(path)).exists()
    }
    return list(reversed(lines.values()))


def check_workdir(config: str, workdir: Path, needs_trained: bool) -> None:
    """Check that the work directory is new or belongs to this config. Raises ValueError naming the keys that differ."""
    file = workdir / "config.json"
    if file.exists():
        if diff := differences(json.loads(config), json.loads(file.read_text())):
            raise ValueError(f"{workdir} is of another config ({'; '.join(diff[:3])}); choose another --workdir")
    elif workdir.exists() and any(p.name != "config.json.tmp" for p in workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and has no config.json; choose another --workdir")
    elif needs_trained:
        raise ValueError(f"{workdir} has no config.json, so there is nothing trained to evaluate")


def check_writable(workdir: Path) -> None:
    """Check that the work directory can be made or written to. Raises ValueError."""
    existing = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not existing.is_dir():
        raise ValueError(f"--workdir={workdir}: {existing} is a file; choose another --workdir")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"--workdir={workdir}: {existing} cannot be written to; choose another --workdir")
