"""Checkpoints: what trains, its optimizer, statistics and the data position; never the frozen base."""

import hashlib
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from fvjax import trees
from fvjax.config import Config

UNKNOWN = -1.0  # accuracy of what was not validated: Orbax warns at every save without one


def _accuracy(metrics: dict[str, float]) -> float:
    return metrics["accuracy"]


class Checkpoints:
    """WORKDIR/checkpoints: atomic, the newest `keep` are kept, and the one with the best validation accuracy.

    With `read_only` nothing is created or cleaned up, and `restore` reads no more than it is asked for.
    """

    def __init__(self, workdir: Path, config: Config, read_only: bool = False):
        self.path, self.read_only = (workdir / "checkpoints").absolute(), read_only
        # Not in the background: the next step donates these buffers, and what trains is small.
        best = policy.BestN(get_metric_fn=_accuracy, n=1, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(config.keep), best]),
            best_fn=_accuracy,
            create=True,
            enable_async_checkpointing=False,
            cleanup_tmp_directories=True,
        )
        if read_only:
            options = ocp.CheckpointManagerOptions(create=False, best_fn=_accuracy)
        state = ocp.PyTreeCheckpointHandler() if read_only else ocp.StandardCheckpointHandler()
        handlers = {"state": state, "meta": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(self.path, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """The newest complete step, None if there is none."""
        return self.manager.latest_step()

    def best(self) -> int | None:
        """The step of the best validation accuracy, of equals the newest; the newest of all where there is none."""
        return self.manager.best_step()

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any], accuracy: float = UNKNOWN) -> None:
        """Save; complete when this returns.

        Args:
            state: nested tree of arrays. meta: what must agree on restore (JSON). accuracy: of the validation.
        Raises OSError.
        """
        if self.manager.latest_step() == step:
            return
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        told = f"{self.path}: step {step} was not saved, the last complete one is {self.latest()}"
        try:
            saved = self.manager.save(step, args=items, metrics={"accuracy": accuracy})
        except Exception as error:  # tensorstore's own types, with many lines about where in its source
            raise OSError(f"{told} ({' '.join(str(error).split()).split(' [')[0]})") from error
        if not saved:
            raise OSError(told)

    def meta(self, step: int) -> dict[str, Any]:
        return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(self, step: int, abstract: dict[str, Any], meta: dict[str, Any]) -> dict[str, Any]:
        """Read `step` straight onto the shardings of `abstract`.

        Raises ValueError if the checkpoint's base, data or parameters are not those of this run.
        """
        found = self.meta(step)
        for key, value in meta.items():
            if found.get(key) != value:
                raise ValueError(
                    f"{self.path}/{step}: {key} is {found.get(key)!r}, this run has {value!r}; choose another --workdir"
                )
        there = self.manager.item_metadata(step)["state"]
        ours, theirs = (trees.flatten(tree["trainable"]) for tree in (abstract, there))
        trees.strict_diff(ours, theirs, str(self.path / str(step)), "choose another --workdir")
        args = ocp.args.StandardRestore(abstract)
        if self.read_only:
            arrays = ocp.checkpoint_utils.construct_restore_args(abstract)
            args = ocp.args.PyTreeRestore(abstract, restore_args=arrays, partial_restore=True)
        items = ocp.args.Composite(state=args)
        return self.manager.restore(step, args=items)["state"]

    def close(self) -> None:
        self.manager.wait_until_finished()
        self.manager.close()


def base_hash(path: str | Path) -> str:
    """sha256 over the weights and config of a pretrained directory: what adapters belong to."""
    digest = hashlib.sha256()
    files = sorted(p for p in Path(path).iterdir() if p.suffix == ".safetensors" or p.name == "config.json")
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
