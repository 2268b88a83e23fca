"""Copy the face stores that a config names to this node's own disk, $SLURM_TMPDIR:

    python -m launch.stage --config=configs/NAME.py [--config.key=value …]

It prints the flags with which fvjax.main reads the copies. launch/slurm.sh runs it once on each node. As in fvjax.main,
the exit code is 2, with a one-line message, for user errors, and 75 if a signal asks the program to stop. A copy gets
the store's name only when it is complete.
"""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from fvjax import cli, errors, startup
from fvjax.config import EditableConfig, experiments
from fvjax.data.stores import Store
from fvjax.training import preemption


def stores(config: EditableConfig) -> dict[str, tuple[Path, str]]:
    """Return {config key: (store, split)} of the stores that the run reads and that exist."""
    trains = any(one.trains for one in experiments(config, Path()).values())
    named = {f"eval.benchmarks.{name}.store": (b.store, "test") for name, b in config.eval.benchmarks.items()}
    if trains:
        named |= {"data.train": (config.data.train, config.data.split), "data.val": (config.data.val, "val")}
    return {key: (Path(path), split) for key, (path, split) in named.items() if path and Path(path).exists()}


def copy(store: Path, split: str, to: Path) -> Path:
    """Copy the store to a folder under `to`, unless it is there already, and return the copy's path.

    The manifest has the hashes of everything in a store, so a copy with a different manifest belongs to another store.
    Raises ValueError for such a copy and for a damaged store, OSError if it cannot be copied.
    """
    dst = to / store.absolute().relative_to("/")
    Store(store, split)  # raises an error that names the file if the store is incomplete
    if dst.exists():
        if (dst / "manifest.json").read_bytes() != (store / "manifest.json").read_bytes():
            raise ValueError(f"{dst}: copied from {store} before that store changed; remove the copy")
        return dst
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dst.parent) as tmp:
        try:
            copied = Path(shutil.copytree(store, Path(tmp) / store.name))
        except shutil.Error as error:  # its argument lists (source, destination, reason) of each failure
            raise OSError(error.args[0][0][2]) from error
        Store(copied, split)
        try:
            copied.rename(dst)
        except OSError:  # another node was faster: $SLURM_TMPDIR is shared by all nodes
            if not dst.exists():
                raise
    return dst


def main() -> None:
    """Copy the stores and print one flag per copy."""
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: sys.exit(preemption.EXIT_CODE))
    cli.parse(sys.argv, __doc__ or "", [cli.CONFIG])
    try:
        # Short paths first, because the validation store may be inside the training store.
        ordered = sorted(stores(cli.CONFIG.value).items(), key=lambda item: len(item[1][0].parts))
        for key, (store, split) in ordered:
            print(f"--config.{key}={copy(store, split, Path(os.environ['SLURM_TMPDIR']))}")
    except (ValueError, OSError) as error:
        cli.fail(errors.line(error))


if __name__ == "__main__":
    startup.run(main)
