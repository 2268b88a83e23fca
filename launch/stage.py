"""Copies the face stores that a config names to this node's own disk, $SLURM_TMPDIR:

    python -m launch.stage --config=configs/NAME.py [--config.key=value …]

prints the flags by which fvjax.main reads the copies. launch/slurm.sh runs it once on each node. Exit code 2 with one
line for what the caller can mend, 75 if a signal asks it to end, as fvjax.main does. What has a store's name is
complete: a copy gets it at the end.
"""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from fvjax import errors
from fvjax.config import Config, experiments
from fvjax.data.stores import Store
from fvjax.main import CONFIG, fail, parse
from fvjax.training import preemption


def stores(config: Config) -> dict[str, tuple[Path, str]]:
    """Config key -> (store, its split), of the stores that are there. fvjax.main says which are missing."""
    trains = any(one.epochs for one in experiments(config, Path()).values())
    found = {f"eval.benchmarks.{name}.store": (b.store, "test") for name, b in config.eval.benchmarks.items()}
    if trains:
        found |= {"data.train": (config.data.train, config.data.split), "data.val": (config.data.val, "val")}
    return {key: (Path(path), split) for key, (path, split) in found.items() if path and Path(path).exists()}


def copy(store: Path, split: str, to: Path) -> Path:
    """The store's copy under `to`, made if it is not there. Raises ValueError, OSError.

    The manifest has the hashes of all that a store holds, so a copy with another manifest is of another store.
    """
    dst = to / store.absolute().relative_to("/")
    Store(store, split)  # whole? Otherwise this names the file
    if dst.exists():
        if (dst / "manifest.json").read_bytes() != (store / "manifest.json").read_bytes():
            raise ValueError(f"{dst}: copied from {store} before that changed; remove the copy")
        return dst
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dst.parent) as tmp:
        try:
            made = Path(shutil.copytree(store, Path(tmp) / store.name))
        except shutil.Error as error:  # a list: of each file that failed source, destination and what happened
            raise OSError(error.args[0][0][2]) from error
        Store(made, split)
        try:
            made.rename(dst)
        except OSError:  # another node was first: $SLURM_TMPDIR is one for all
            if not dst.exists():
                raise
    return dst


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: sys.exit(preemption.EXIT_CODE))
    parse(sys.argv)
    try:
        wanted = stores(CONFIG.value)
        for key, (store, split) in sorted(wanted.items(), key=lambda item: len(item[1][0].parts)):  # val lies in train
            print(f"--config.{key}={copy(store, split, Path(os.environ['SLURM_TMPDIR']))}")
    except (ValueError, OSError) as error:
        fail(errors.line(error))


if __name__ == "__main__":
    main()
