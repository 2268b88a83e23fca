"""`python -m fvjax.main --config=configs/NAME.py [--workdir=DIR] [--mode=train|eval] [--config.any.key=value]`

`--config` takes a file, or the name of a config that comes with fvjax: `quickstart`, or its row `quickstart:vit_lora`.

Trains (or resumes DIR), evaluates every benchmark of the config and of `--benchmark=STORE`, and prints one table. Exit
code 0; 2 with one line on standard error for what the caller can mend: a wrong key, a missing file, another config's
workdir; 75 after SIGTERM, SIGUSR1 or Ctrl-C: what was trained is saved, and the same command goes on; 69 if one of
several processes or a data worker was lost: the same commands go on from the last checkpoint.

Several processes, one for each host or GPU, are started with the same command. Slurm and Open MPI say who they are;
elsewhere each gets --coordinator=HOST:PORT --processes=N --process=I.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from absl import flags, logging

import fvjax
from fvjax import checks, cli, errors
from fvjax.config import Config, experiments, flatten
from fvjax.parallel import distributed
from fvjax.prepared import add_benchmarks
from fvjax.training import preemption

WORKDIR = flags.DEFINE_string("workdir", None, "where everything of this run goes (default: runs/NAME)")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "train and evaluate, or only evaluate what is there")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several make up one run")
PROCESSES = flags.DEFINE_integer("processes", None, "how many processes make up this run", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "this one's number, from 0", lower_bound=0)
SHOW = flags.DEFINE_integer("show", 0, "print so many training examples first (config.log.show)", lower_bound=0)
PROFILE = flags.DEFINE_integer("profile", 0, "trace so many steps into WORKDIR/profile and print them", lower_bound=0)
BENCHMARK = flags.DEFINE_multi_string("benchmark", [], "STORE[:PAIRS]: a prepared benchmark to evaluate as well")
FLAGS = (cli.CONFIG, WORKDIR, MODE, BENCHMARK, COORDINATOR, PROCESSES, PROCESS, SHOW, PROFILE, cli.TRACEBACK)


def run(
    config: Any,
    workdir: Path,
    mode: str,
    place: distributed.Place = distributed.ALONE,
    request: preemption.Request | None = None,
    profile: int = 0,
) -> None:
    """Run every experiment of a config file's config, and compare them in one table if there are several.

    Imports of jax are inside, so that errors which need none of it, and the restart below, come at once.
    """
    request = request or preemption.Request()
    todo, problem, sizes = experiments(config, workdir), "", [1]
    try:
        checks.check_all(todo, mode)
        sizes = batches(list(todo.values()))
    except (ValueError, OSError) as error:  # of several processes, all must learn of it
        if place.processes == 1:
            raise
        problem = errors.line(error)
    from fvjax import experiment, results, runtime, tasks

    if config.deterministic:
        runtime.be_deterministic()
    runtime.set_up_devices(sizes, place.processes)
    distributed.start(place, config.heartbeat_seconds)
    runtime.keep_programs()
    request.take_over()  # jax's runtime has taken SIGTERM for itself
    facts = {"--mode": mode, "--profile": profile, "--workdir": str(workdir), "code": fvjax.code_version()}
    facts |= {"jax": runtime.version(), **{f"config.{k}": v for k, v in flatten(config.to_dict()).items()}}
    distributed.agree(facts, problem)
    try:
        options: dict[str, Any] = {"train": mode == "train", "request": request, "profile": profile}
        finished = {path: experiment.run(one, path, **options) for path, one in todo.items()}
    except preemption.Preempted:
        request.before_leaving()
        raise
    if config.rows:
        results.compare({path: tasks.get(one.task).comparison for path, one in todo.items()})
    distributed.finished()
    results.check_complete(finished)


def batches(configs: list[Config]) -> list[int]:
    """Check each config's task; return the sizes that should divide over all devices, in examples or predictions."""
    from fvjax import tasks

    sizes = []
    for c in configs:
        task = tasks.get(c.task)
        task.check(c)
        sizes += [c.batch_size // task.images_per_example // c.accumulation, c.eval.batch_size]
    return sizes


def place() -> distributed.Place:
    """Return which of how many processes this is, by the flags or the scheduler. Raises ValueError."""
    values: dict[str, Any] = {"coordinator": COORDINATOR.value, "processes": PROCESSES.value, "process": PROCESS.value}
    absent = [name for name, value in values.items() if value is None]
    if len(absent) == 3:
        if "SLURM_STEP_NODELIST" in os.environ:  # a step of srun; a batch script itself is one process
            return distributed.Place(int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)))
        return distributed.Place(int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)))
    if absent:
        raise ValueError(f"--{absent[0]} is missing: --coordinator, --processes and --process go together")
    if values["process"] >= values["processes"]:
        raise ValueError(f"--process={values['process']}: {values['processes']} processes are numbered from 0")
    return distributed.Place(**values)


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        cli.fail(f"unexpected argument {argv[1]!r}; settings look like --config.key=value")
    logging.set_verbosity(logging.WARNING)
    config = cli.CONFIG.value
    config.log.show = SHOW.value or config.log.show
    workdir = Path(WORKDIR.value or f"runs/{config.name}").absolute()  # also after a plug-in's os.chdir
    try:
        with errors.naming(workdir):
            add_benchmarks(config, BENCHMARK.value)
            request = preemption.Request()
            request.listen()
            run(config, workdir, MODE.value, place(), request, PROFILE.value)
    except preemption.Preempted as stopped:
        print(f"fvjax: {stopped}; all is saved, and the same command goes on from there", file=sys.stderr)
        distributed.leave(preemption.EXIT_CODE, str(stopped))
    except errors.WorkerLost as lost:
        print(f"fvjax: error: {lost}; the same command goes on from the last checkpoint", file=sys.stderr)
        distributed.leave(distributed.PEER_LOST, str(lost))
    except (ValueError, OSError, FloatingPointError, RuntimeError) as error:
        if distributed.broken(error):
            print(f"fvjax: error: {errors.line(error)}", file=sys.stderr)
            distributed.lost(error)
        if cli.TRACEBACK.value or isinstance(error, RuntimeError):
            raise
        cli.fail(errors.line(error))


if __name__ == "__main__":
    cli.use_huge_pages()
    cli.start(main, __doc__ or "", FLAGS)
