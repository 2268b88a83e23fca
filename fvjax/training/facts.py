"""What a run's checkpoints belong to, and the work directory that all of its processes share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from fvjax import files
from fvjax.data.plans import Plan
from fvjax.data.stores.store import RecordStore
from fvjax.parallel import distributed


def run_facts(
    base_hash: str,
    store: RecordStore | None,
    plan: Plan | None,
    seed: int,
    validation_hash: str,
    plugin_sources: Mapping[str, str],
    prompt: Mapping[str, Any],
    task: Mapping[str, Any],
) -> dict[str, Any]:
    """Return what must agree with a checkpoint for a run to resume from it (JSON).

    Args:
        base_hash: of the pretrained files. validation_hash: of the data by which the best checkpoint is chosen.
        plugin_sources: hashes of the user's own code. prompt: token ids, see `prompt_facts` in training/model.py.
        task: what the task adds.
    """
    facts = {
        "base_hash": base_hash,
        "train_data_hash": store.data_hash if store else "",
        "plan": [seed, plan.examples_per_step if plan else 0],
        **prompt,
        **task,
    }
    optional = {"val_data_hash": validation_hash, "plugin_sources": dict(plugin_sources)}
    return facts | {key: value for key, value in optional.items() if value}


def create_workdir(workdir: Path, config: str, facts: Mapping[str, Any]) -> None:
    """Write config.json into a new work directory, and check that all processes agree on the facts and see the file.

    The error of int8 kernels, if it is among the facts, is written to int8_error.json.
    This comes after all other user errors, so that nothing is written for a command that cannot run.
    """
    file = workdir / "config.json"
    if jax.process_index() == 0 and not file.exists():
        workdir.mkdir(parents=True, exist_ok=True)
        if "int8_error" in facts:
            files.replace_file(workdir / "int8_error.json", json.dumps(facts["int8_error"], indent=1))
        files.replace_file(file, config)
    distributed.agree(facts)
    problem = f"{workdir} of process 0 is not seen here; choose a --workdir on a file system that all processes share"
    distributed.agree({}, "" if file.exists() else problem)
