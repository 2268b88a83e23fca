"""Copy the face stores that a config names to this node's own disk, $SLURM_TMPDIR.

    python -m launch.stage --config=configs/NAME.py [--config.key=value …]

It prints the flags with which fvjax.main reads the copies. launch/slurm.sh runs it once on each node. The exit code is
2, with one line, for a user error, and 75 if a signal asks it to end, as for fvjax.main. A copy gets the store's name
only when it is complete.
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
    """Return (store, its split) by config key, for the stores that exist. fvjax.main reports missing ones."""
    trains = any(one.epochs for one in experiments(config, Path()).values())
    configured = {f"eval.benchmarks.{name}.store": (b.store, "test") for name, b in config.eval.benchmarks.items()}
    if trains:
        configured |= {"data.train": (config.data.train, config.data.split), "data.val": (config.data.val, "val")}
    return {key: (Path(path), split) for key, (path, split) in configured.items() if path and Path(path).exists()}


def copy(store: Path, split: str, to: Path) -> Path:
    """Copy a store below the directory `to`, unless it is there already, and return the copy.

    The manifest has the hashes of the store's contents, so a copy with another manifest is one of another store.

    Raises:
        ValueError: the store is damaged, or has changed since an earlier copy.
        OSError: it cannot be copied.
    """
    dst = to / store.absolute().relative_to("/")
    Store(store, split)  # raises an error that names the file if the store is not complete
    if dst.exists():
        if (dst / "manifest.json").read_bytes() != (store / "manifest.json").read_bytes():
            raise ValueError(f"{dst}: copied from {store} before that changed; remove the copy")
        return dst
    dst.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=dst.parent) as tmp:
        try:
            made = Path(shutil.copytree(store, Path(tmp) / store.name))
        except shutil.Error as error:  # its argument lists (source, destination, reason) of each file
            raise OSError(error.args[0][0][2]) from error
        Store(made, split)
        try:
            made.rename(dst)
        except OSError:  # another node was faster, where all share one $SLURM_TMPDIR
            if not dst.exists():
                raise
    return dst


def main() -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda *_: sys.exit(preemption.EXIT_CODE))
    parse(sys.argv)
    try:
        wanted = stores(CONFIG.value)
        for key, (store, split) in sorted(
            wanted.items(), key=lambda item: len(item[1][0].parts)
        ):  # data.val is inside data.train
            print(f"--config.{key}={copy(store, split, Path(os.environ['SLURM_TMPDIR']))}")
    except (ValueError, OSError) as error:
        fail(errors.line(error))


if __name__ == "__main__":
    main()
