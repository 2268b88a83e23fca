"""How long a run will take and how much of the disk it needs, before it is started. Each figure says where it is from.

In order of preference: what this run did so far, what the row did with another seed, a measurement that comes with the
row, and the least time of its arithmetic on the GPUs that are here.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from fvjax import durations, files, tasks
from fvjax.config import Config, DataConfig
from fvjax.data.stores import Store
from fvjax.parallel import sharding
from fvjax.planning import devices, programs
from fvjax.planning.estimate import without_files
from fvjax.reproduction.runs import Run

RECENT = 200  # steps whose speed counts
BYTES_PER_FACE = 14_000  # of the embedded faces, measured


@dataclass(frozen=True)
class Estimate:
    """Seconds that are left, None if nobody knows, and how they were estimated."""

    seconds: float | None
    basis: str


@dataclass(frozen=True)
class Gpus:
    """GPUs of one kind: the name that their driver gives them, and how many there are."""

    name: str
    count: int


def find_gpus() -> Gpus | None:
    """Return the GPUs that nvidia-smi lists, those like the first; None without any. Takes no memory on them."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True).stdout.split("\n")
    except (subprocess.SubprocessError, OSError):
        return None
    names = [name.strip() for name in listed if name.strip()]
    return Gpus(names[0], names.count(names[0])) if names else None


# ---- time


def time_left(run: Run, siblings: Sequence[Run], gpus: Gpus | None) -> Estimate:
    """Estimate the seconds until a run is finished.

    siblings: the same row with other seeds.
    """
    if (results := run.results()) is not None:
        return Estimate(0.0, f"took {durations.text(results['seconds'])}")
    total, saved = most_steps(run.config), run.saved_step()
    if total and saved and (seconds := step_seconds(run)):
        return Estimate((total - saved) * seconds, f"steps {saved} to {total} at {seconds:.3g} s, as the last ones")
    for other in siblings:
        if (results := other.results()) is not None:
            return Estimate(results["seconds"], f"as seed {other.seed} took")
    for other in siblings:
        if total and (seconds := step_seconds(other)):
            return Estimate(total * seconds, f"{total} steps at {seconds:.3g} s, as those of seed {other.seed}")
    if run.row.seconds:
        return Estimate(run.row.seconds, f"measured on {run.row.measured_on}")
    return least_time(run.config, gpus)


def most_steps(config: Config) -> int:
    """Return how many steps a run trains at most: plans leave out what does not fill a batch."""
    if not config.trains:
        return 0
    if config.steps:
        return config.steps
    task = tasks.get(config.task)
    known = task(config, Path()).steps_per_epoch(config.batch_size // task.images_per_example)
    return config.epochs * (known or training_images(config.data) // config.batch_size)


def training_images(data: DataConfig) -> int:
    """Return the number of images in the training data."""
    if data.synthetic.identities:
        return data.synthetic.identities * data.synthetic.images
    return len(Store(data.train, data.split))


def step_seconds(run: Run) -> float | None:
    """Return the seconds of a step of a run so far, the median of the last ones; None if there are none."""
    lines = files.read_lines(run.workdir / "metrics.jsonl")[-RECENT:]
    rates = [line["images_per_s"] for line in lines if line.get("images_per_s")]
    return run.config.batch_size / median(rates) if rates else None


def least_time(config: Config, gpus: Gpus | None) -> Estimate:
    """Return the time of a run's arithmetic at the peak of the GPUs, without recomputation, input or communication."""
    peak = devices.peak_flops(gpus.name, config.dtype) * gpus.count if gpus else 0.0
    if gpus is None or not peak:
        here = f"{gpus.name}: its peak is not known" if gpus else "no GPU here"
        return Estimate(None, f"not measured yet, {here}; fvjax plan --config=… --devices=N plans it for others")
    count = most_steps(config) if config.trains else evaluation_batches(config)
    planned, _ = without_files(config)
    flops = programs.Planner(planned.replace({"remat": "none"}), sharding.one_device()).model_flops()
    what = "steps" if config.trains else "batches of evaluation"
    basis = f"at least: {count:,} {what} of {flops / 1e12:.3g} TFLOP at the peak of {gpus.count} {gpus.name}"
    return Estimate(count * flops / peak, f"{basis}; often twice that")


def evaluation_batches(config: Config) -> int:
    """Return how many batches the benchmarks take: of pictures, or of pairs if a prediction is about two."""
    of_pairs, total = tasks.get(config.task).images_per_prediction > 1, 0
    for benchmark in config.eval.benchmarks.values():
        store = Store(benchmark.store, "test")
        count = store.manifest["benchmarks"][benchmark.pairs]["pairs"] if of_pairs else len(store)
        total += -(-count // config.eval.batch_size)
    return total


# ---- disk


def disk(run: Run) -> int:
    """Return the bytes that a run needs on the disk: checkpoints, and for a time what its evaluation keeps there."""
    config, total = run.config, 0
    if config.trains:
        kept = config.checkpoint.keep + bool(config.data.val) + 1  # a new one is written before the oldest goes
        total += kept * state_bytes(config)
    if run.row.scratch:
        stores = [Store(each.store, "test") for each in config.eval.benchmarks.values()]
        total += run.row.scratch * max((len(store) for store in stores), default=0)
    return total


def faces_on_disk(runs: Sequence[Run]) -> int:
    """Return the bytes of the embedded faces, which runs share."""
    drawn = {run.config.data.synthetic for run in runs if run.config.data.synthetic.identities}
    images = [c.identities * c.images + c.test_identities * c.test_images for c in drawn]
    return BYTES_PER_FACE * sum(images)


def state_bytes(config: Config) -> int:
    """Return the bytes of a checkpoint: what trains, its optimizer and running statistics. Nothing is computed."""
    planned, _ = without_files(config)
    program = programs.Planner(planned.replace({"remat": "none"}), sharding.one_device()).program()
    return programs.bytes_per_device(program.arguments[0], program.shardings[0])
