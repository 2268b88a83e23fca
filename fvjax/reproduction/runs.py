"""The runs behind the rows of a table: their commands, how far they are, and what keeps them from running."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_flags

from fvjax import checks, cli, errors, tasks
from fvjax.config import Config, typed
from fvjax.reproduction.published import Row

FACES = "faces"  # folder of the embedded faces, which all runs of a work directory share


class Progress(Enum):
    """How far a run is."""

    FINISHED = "finished"
    BEGUN = "begun"
    NEW = "new"
    BLOCKED = "cannot run"


@dataclass(frozen=True, eq=False)
class Run:
    """One row with one seed.

    Attributes:
        settings: what the command sets beside the seed, as `--config.KEY=VALUE`.
    """

    row: Row
    seed: int
    config: Config
    workdir: Path
    settings: tuple[str, ...]

    @property
    def command(self) -> list[str]:
        """The command that starts the run, or goes on with it."""
        own = [f"--config={self.row.config}", f"--config.seed={self.seed}", f"--workdir={self.workdir}"]
        return [sys.executable, "-m", "fvjax.main", *own, *self.settings]

    def results(self) -> dict[str, Any] | None:
        """Return results.json if this run is finished: a benchmark that could not be evaluated is still to be done."""
        file = self.workdir / "results.json"
        try:
            found = json.loads(file.read_text()) if file.is_file() else None
        except ValueError as error:
            raise ValueError(f"{file}: not JSON ({error}); evaluate again or remove it") from error
        return None if found is None or found.get("failed") else found

    def saved_step(self) -> int:
        """Return the step of the newest checkpoint, from which the run goes on; 0 without any."""
        folder = self.workdir / "checkpoints"
        names = [path.name for path in sorted(folder.iterdir())] if folder.is_dir() else []
        return max((int(name) for name in names if name.isdigit()), default=0)

    def problem(self) -> str:
        """Say what keeps the run from starting, a line for each file that is missing with its remedy; "" if nothing."""
        try:
            checks.check_all({self.workdir: self.config}, "train")
            tasks.get(self.config.task).check(self.config)
        except (ValueError, OSError) as error:
            return errors.line(error)
        return ""

    def progress(self) -> tuple[Progress, str]:
        """Return how far the run is, and what keeps it from starting or going on."""
        if self.results() is not None:  # its data and weights are not needed any more
            try:
                checks.check_workdir(self.config.to_json(), self.workdir, False)
            except ValueError as error:
                return Progress.BLOCKED, errors.line(error)
            return Progress.FINISHED, ""
        if problem := self.problem():
            return Progress.BLOCKED, problem
        return (Progress.BEGUN if (self.workdir / "config.json").exists() else Progress.NEW), ""


def plan(rows: Sequence[Row], seeds: int, workdir: Path, settings: Sequence[str]) -> list[Run]:
    """Return a run for each row and seed, or one run for a row in which nothing is random.

    Raises ValueError: a setting that a config does not have or that is of another type.
    """
    out = []
    for row in rows:
        config = read_config(row.config, settings)
        for seed in range(seeds if depends_on_seed(config) else 1):
            own = [*settings]
            if config.data.synthetic.identities:
                own.append(f"--config.data.synthetic.dir={workdir / FACES}")
            whole = read_config(row.config, [f"--config.seed={seed}", *own])
            out.append(Run(row, seed, whole, workdir / row.name / f"seed{seed}", tuple(own)))
    return out


def depends_on_seed(config: Config) -> bool:
    """Whether another seed gives another model: one that is trained, or has parts without pretrained weights."""
    return config.trains or not config.init_from


def read_config(name: str, settings: Sequence[str]) -> Config:
    """Return the config that `--config=NAME` with settings stands for, as `fvjax.main` reads it. Raises ValueError."""
    arguments = cli.find_config(["reproduce", f"--config={name}", *settings])
    cli.check_config(arguments)
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, lock_config=True, sys_argv=arguments)
    try:
        values(arguments)
        cli.expand_homes(values["config"].value)
        return typed(values["config"].value)
    except (flags.Error, TypeError, KeyError) as error:
        raise ValueError(f"--config={name}: {' '.join(str(error).split())}") from error
