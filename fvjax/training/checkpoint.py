"""Checkpoints: what trains, its optimizer state, statistics and the data position, but never the frozen base."""

import hashlib
import json
import logging
import shutil
import threading
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from fvjax import files, trees
from fvjax.config import CheckpointConfig
from fvjax.parallel import distributed


def _is_worth_showing(record: logging.LogRecord) -> bool:
    """Filter out messages about a save that failed in the background: Orbax writes many lines and raises it too."""
    return not ("orbax" in record.pathname or "never retrieved" in record.getMessage())


for _name in ("absl", "asyncio"):
    logging.getLogger(_name).addFilter(_is_worth_showing)


class Unreadable(ValueError):
    """A checkpoint is cut short, damaged, or not what was saved."""

    def __init__(self, path: Path, why: object):
        super().__init__(f"{path} is damaged ({_short(why)}); the training's command falls back to the one before")


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, MemoryError):  # too little memory or a lost process: the file may be fine
        raise
    except Exception as error:  # tensorstore's and Orbax's own types
        raise Unreadable(path, error) from error


class Checkpoints:
    """WORKDIR/checkpoints. Saves are atomic; the newest `keep` stay, and the one with the best validation accuracy.

    With `read_only` nothing is created or cleaned up, and `restore` reads only the parts that it is asked for.

    Attributes:
        accuracies: validation accuracy by step, of the validated ones (WORKDIR/validation.json).
    """

    def __init__(self, workdir: Path, config: CheckpointConfig, read_only: bool = False):
        self.path, self.read_only, self.keep = (workdir / "checkpoints").absolute(), read_only, config.keep
        self.file = workdir / "validation.json"
        saved = json.loads(self.file.read_text()) if self.file.exists() else {}
        self.accuracies = {int(step): accuracy for step, accuracy in saved.items()}
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy([policy.LatestN(config.keep), _Best(self.accuracies)]),
            create=True,
            cleanup_tmp_directories=True,
        )
        if read_only:
            options = ocp.CheckpointManagerOptions(create=False)
        state = ocp.PyTreeCheckpointHandler() if read_only else ocp.StandardCheckpointHandler()
        handlers = {"state": state, "meta": ocp.JsonCheckpointHandler()}
        self.manager = ocp.CheckpointManager(self.path, options=options, item_handlers=handlers)

    def latest(self) -> int | None:
        """Return the newest complete step, None if there is none."""
        return max(self.manager.all_steps(), default=None)

    def best(self) -> int | None:
        """Return the step with the best validation accuracy (of equals the newest), or the newest step without any."""
        return best(self.manager.all_steps(), self.accuracies)

    def save(self, step: int, state: dict[str, Any], meta: dict[str, Any]) -> None:
        """Save the state as it is now, in the background: its arrays may be donated at once.

        When this returns, the save before it is complete.

        Args:
            state: nested tree of arrays. meta: facts that must agree on restore (JSON).
        Raises OSError: this save or the one before it failed.
        """
        if step in self.manager.all_steps():
            return
        hashes = {part: digest(tree) for part, tree in state.items()}
        if "head" in state["trainable"]:
            hashes |= {f"{part} without head": digest(without_head(state[part])) for part in ("trainable", "stats")}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({**meta, "hashes": hashes})
        )
        if not self._named(step, lambda: self.manager.save(step, args=items)):
            raise OSError(f"{self.path}: step {step} was not saved, the last complete one is {self.latest()}")

    def validated(self, step: int, accuracy: float) -> None:
        """Note the validation accuracy of a step; delete steps that are no longer among the newest or the best."""
        self.accuracies[step] = accuracy
        if jax.process_index() == 0:
            files.replace_file(self.file, json.dumps(self.accuracies))
        self.wait()
        steps = sorted(self.manager.all_steps())
        for old in set(steps[: -self.keep]) - {self.best()}:
            self.manager.delete(old)

    def wait(self) -> None:
        """Wait until all saves are complete. Raises OSError: one failed."""
        self._named(self.manager.latest_step(), self.manager.wait_until_finished)

    def _named(self, step: int | None, call: Callable[[], Any]) -> Any:
        """Call a function of Orbax; its errors become an OSError that names the step and the last complete one."""
        try:
            return call()
        except Exception as error:  # tensorstore has its own types, whose texts quote many lines of its source
            if distributed.broken(error):  # the disk is not the problem
                raise
            for thread in threading.enumerate():  # one part of a save failed; another might complete it later
                if thread.name == "async_save":  # Orbax's
                    thread.join(60)
            for left in self.path.glob("*.orbax-checkpoint-tmp"):
                shutil.rmtree(left, ignore_errors=True)
            complete = self._complete()
            result = "was saved, and something went wrong then" if step in complete else "was not saved"
            problem = f"{self.path}: step {step} {result}, the last complete one is {max(complete, default=None)}"
            raise OSError(f"{problem} ({' '.join(str(error).split()).split(' [')[0]})") from error

    def _complete(self) -> list[int]:
        # Folders with other names are saves in progress, renamed when they are complete.
        return [int(p.name) for p in self.path.iterdir() if p.name.isdigit()]

    def meta(self, step: int) -> dict[str, Any]:
        """Return the facts that were saved beside the state. Raises Unreadable."""
        with _reading(self.path / str(step)):
            return self.manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def restore(
        self, step: int, abstract: dict[str, Any], meta: dict[str, Any], *, head: bool = True
    ) -> dict[str, Any]:
        """Read a step straight onto the shardings of `abstract`.

        head: False leaves out what :func:`without_head` does; `abstract` then lacks it.

        Raises:
            ValueError: the checkpoint's base, data, prompt or parameters are not those of this run.
            Unreadable: it is damaged, or its hash is not that of what was saved.
        """
        saved = self.meta(step)
        if "hashes" not in saved:
            problem = "is of another version of fvjax, without a hash of its contents"
            raise ValueError(f"{self.path}/{step} {problem}; choose another --workdir")
        wrong = [
            f"{k} is {saved.get(k)!r}, this run has {value!r}" for k, value in meta.items() if saved.get(k) != value
        ]
        if wrong:
            raise ValueError(f"{self.path}/{step}: {'; '.join(wrong)}; choose another --workdir")
        with _reading(self.path / str(step)):
            theirs = self.manager.item_metadata(step)["state"]["trainable"]
        theirs = trees.flatten(theirs if head else without_head(theirs))
        ours = trees.flatten(abstract["trainable"])
        trees.strict_diff(ours, theirs, str(self.path / str(step)), "choose another --workdir")
        args = ocp.args.StandardRestore(abstract)
        if self.read_only:
            # Without the head, statistics that are the head's alone are left out altogether.
            present = {part: tree for part, tree in abstract.items() if tree or head}
            arrays = ocp.checkpoint_utils.construct_restore_args(present)
            args = ocp.args.PyTreeRestore(present, restore_args=arrays, partial_restore=True)
        with _reading(self.path / str(step)):
            state = self.manager.restore(step, args=ocp.args.Composite(state=args))["state"]
        for part, tree in state.items():
            expected = saved["hashes"][part if head else f"{part} without head"]
            if (now := digest(tree)) != expected:
                raise Unreadable(self.path / str(step), f"{part} has hash {now}, not {expected}")
        return {part: state.get(part, {}) for part in abstract}

    def newest(
        self, abstract: dict[str, Any], meta: dict[str, Any], report: Callable[[str], None]
    ) -> tuple[int, dict[str, Any]] | None:
        """Return the newest (step, state) that is whole, None if there is none. Damaged ones are moved aside.

        Raises ValueError: a checkpoint is not of this run, or all are damaged.
        """
        damaged = 0
        for step in sorted(self.manager.all_steps(), reverse=True):
            problem, state = "", {}
            try:
                state = self.restore(step, abstract, meta)
            except Unreadable as error:
                problem = str(error)
            problems = [p for p in distributed.exchange(problem) if p]
            if not problems:
                return step, state
            damaged += 1
            aside = self.path.parent / "damaged_checkpoints" / str(step)
            report(f"{problems[0]}; it is moved to {aside}")
            if jax.process_index() == 0:
                aside.parent.mkdir(exist_ok=True)
                (self.path / str(step)).rename(_free(aside))
            distributed.exchange("moved")
            self.manager.reload()
        if damaged:
            raise ValueError(f"{self.path}: none of {damaged} checkpoints can be read; choose another --workdir")
        return None

    def close(self) -> None:
        """Wait until everything is saved, then close. Raises OSError: a save failed."""
        self.wait()
        self.manager.close()


class _Best(policy.PreservationPolicy):
    """Tells Orbax to keep the step with the best validation accuracy."""

    def __init__(self, accuracies: dict[int, float]):
        self.accuracies = accuracies

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> Sequence[bool]:
        steps = [c.step for c in checkpoints]
        chosen = best(steps, self.accuracies) if set(steps) & set(self.accuracies) else None
        return [step == chosen for step in steps]


def best(steps: Sequence[int], accuracies: dict[int, float]) -> int | None:
    """Return the step with the best accuracy (of equals the newest), the newest if none is known, None of no steps."""
    known = [step for step in steps if step in accuracies]
    return max(known or steps, key=lambda step: (accuracies.get(step, 0.0), step), default=None)


def without_head(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Return a part of a state without a task's own parameters and the running statistics of its loss."""
    return {name: one for name, one in tree.items() if name not in ("head", "head_stats")}


def _free(path: Path) -> Path:
    """Return a path that does not exist: this one, or with a number behind it."""
    names = (path.with_name(f"{path.name}{end}") for end in ("", *(f".{i}" for i in range(1, 1000))))
    return next(name for name in names if not name.exists())


def _short(error: object) -> str:
    return " ".join(str(error).split()).split(" [")[0][:200] or type(error).__name__


# ---- hashes --------------------------------------------------------------------------------------------------------


def digest(tree: Any) -> str:
    """Hash every bit of a tree's arrays, their names, shapes and types: 16 hexadecimal digits.

    Waits for the arrays, and computes where they are. The hash does not depend on how they are sharded. All of several
    processes must call it.
    """
    total = np.zeros(2, np.uint32)
    for path, x in jax.tree_util.tree_flatten_with_path(tree)[0]:
        name = f"{jax.tree_util.keystr(path)} {x.shape} {x.dtype}"
        total = _digest(x, np.uint32(zlib.crc32(name.encode())), total)
    return "".join(f"{half:08x}" for half in np.asarray(total).tolist())


@jax.jit
def _digest(x: jax.Array, name: jax.Array, total: jax.Array) -> jax.Array:
    x = jnp.atleast_1d(x)
    if x.dtype.itemsize == 4:
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    else:
        bits = jax.lax.bitcast_convert_type(x, {1: jnp.uint8, 2: jnp.uint16}[x.dtype.itemsize]).astype(jnp.uint32)
    place = jnp.zeros(x.shape, jnp.uint32)
    for axis, size in enumerate(x.shape):
        place = place * np.uint32(size % 2**32) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)

    def mixed(seed):  # murmur3's finalizer; sums of integers do not depend on their order
        h = (bits + np.uint32(seed)) * np.uint32(0x9E3779B1) ^ (place + name) * np.uint32(0x85EBCA77)
        h = (h ^ h >> 16) * np.uint32(0x85EBCA6B)
        h = (h ^ h >> 13) * np.uint32(0xC2B2AE35)
        return jnp.sum(h ^ h >> 16, dtype=jnp.uint32)

    return total + jnp.stack([mixed(0x2545F491), mixed(0x7F4A7C15)])


def base_hash(path: str | Path) -> str:
    """Return the sha256 over the weights and config of a pretrained directory: what adapters belong to."""
    digest = hashlib.sha256()
    files = sorted(p for p in Path(path).iterdir() if p.suffix == ".safetensors" or p.name == "config.json")
    for file in files:
        with file.open("rb") as stream:
            digest.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
