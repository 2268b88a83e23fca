"""A user's own task: estimate the yaw and pitch of a head from one picture, on synthetic faces with known angles.

Everything that makes it a task is in this file, and everything that makes it a run is in head_pose_config.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from fvjax.data import pipeline, synthetic
from fvjax.data.plans import ShufflePlan
from fvjax.data.stores import Store
from fvjax.losses.accumulation import Additive
from fvjax.parallel import distributed
from fvjax.tasks.task import Evaluator, Examples, Report, Task, Validation

ANGLES = ("yaw", "pitch")


class HeadPose(Task):
    def __init__(self, config, workdir: Path):
        self.seed, self.name, self.folder = config.seed, config.name, Path(config.data.synthetic.dir or workdir)
        self.people, self.batch_size = config.plugin["people"], config.batch_size
        self.eval_batch, self.image_size = config.eval.batch_size, (112, 112)

    def _store(self, split: str) -> Store:
        path, people = self.folder / f"head_pose_{split}", self.people
        if jax.process_index() == 0 and not path.exists():
            numbers = range(people) if split == "train" else range(people, people + people // 4)
            synthetic.write(path, numbers, 4, 0, split=split, difficulty=2.0, features=ANGLES)
        distributed.exchange("drawn")
        return Store(path, split)

    def open_store(self) -> Store:
        return self._store("train")

    def examples(self, store: Store) -> Examples:
        plan = ShufflePlan(len(store), self.batch_size, self.seed)
        return Examples(store, plan, f"{len(store):,} pictures with their head poses", features=ANGLES)

    def batch_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        angle = jax.ShapeDtypeStruct((count, 1), jnp.float32)
        return {
            "images": jax.ShapeDtypeStruct((count, 1, *self.image_size, 3), jnp.uint8),
            "index": jax.ShapeDtypeStruct((count,), jnp.int32),
            **dict.fromkeys(ANGLES, angle),
        }

    def data_hashes(self) -> dict[str, str]:
        return {"data of head pose": self._store("test").data_hash}

    def init_head(self, key: jax.Array, encoder) -> dict[str, Any]:
        width = encoder.net.width
        return {"kernel": jax.random.normal(key, (width, len(ANGLES))) * width**-0.5, "bias": jnp.zeros(len(ANGLES))}

    def prepare(self, batch):
        return {"images": batch["images"][:, 0], "angles": jnp.concatenate([batch[name] for name in ANGLES], axis=1)}

    def _angles(self, encoder, variables, images, train: bool = False) -> jax.Array:
        """Return (yaw, pitch) in radians [N, 2] for pictures uint8 [N,112,112,3]."""
        head = variables["head"]
        network = {name: tree for name, tree in variables.items() if name != "head"}
        return encoder(network, images, train=train)[0] @ head["kernel"] + head["bias"]

    def objective(self, encoder):
        def loss(variables, inputs):
            errors = self._angles(encoder, variables, inputs["images"], train=True) - inputs["angles"]
            return jnp.square(errors).sum(), jnp.float32(errors.size), {}

        return Additive(loss)

    def predict(self, encoder, variables, batch) -> jax.Array:
        return self._angles(encoder, variables, batch["images"][:, 0])

    def evaluator(self, encoder, predictor, seen: set[str]) -> Evaluator:
        return HeadPoseEvaluator(self, self._store("test"), encoder, predictor)

    @staticmethod
    def comparison(results) -> Table:
        return table({row: found["benchmarks"]["head pose"] for row, found in results.items()})


def table(entries: dict[str, dict[str, Any]]) -> Table:
    out = Table("row", "pictures", *(f"{name}, mean error in degrees" for name in ANGLES))
    for row, entry in entries.items():
        out.add_row(row, str(entry["n"]), *(f"{entry[name]:.2f}" for name in ANGLES))
    return out


class HeadPoseEvaluator(Evaluator):
    def __init__(self, task: HeadPose, store: Store, encoder, predictor):
        self.task, self.store, self.put = task, store, predictor.put
        self.angles = predictor.compile(lambda variables, images: task._angles(encoder, variables, images))

    def entries(self, state, title: str) -> dict[str, Any]:
        everything = np.arange(len(self.store))
        batches = pipeline.eval_batches(self.store, everything, self.task.eval_batch)
        found = np.concatenate([np.asarray(self.angles(state, self.put(x)))[:n] for x, n in batches])
        truth = np.stack([self.store.read(everything, ANGLES)[name] for name in ANGLES], axis=1)
        errors = np.degrees(np.abs(found - truth).mean(axis=0))
        return {"head pose": {"n": len(truth), "data_hash": self.store.data_hash, **dict(zip(ANGLES, errors.tolist()))}}

    def during(self, state, title: str) -> dict[str, dict[str, float]]:
        return self.summary(self.entries(state, title))

    def validate(self, state, title: str) -> Validation:
        raise AssertionError("its config names no validation data")

    def summary(self, entries) -> dict[str, dict[str, float]]:
        return {benchmark: {name: entry[name] for name in ANGLES} for benchmark, entry in entries.items()}

    def report(self, state, before, validation) -> Report:
        entries = self.entries(state, "head pose")
        rows = {f"{self.task.name}, before training": before["head pose"]} if before else {}
        shown = table({**rows, self.task.name: entries["head pose"]})
        return Report({"benchmarks": entries}, self.summary(entries), shown, lambda workdir: None)
