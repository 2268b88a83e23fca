"""`python -m fvjax.main --config=configs/NAME.py [--workdir=DIR] [--mode=train|eval] [--config.any.key=value]`

`--config` takes a file, or the name of an experiment that comes with fvjax (`--config=quickstart`, one of its rows with
`--config=quickstart:vit_lora`).

Trains (or resumes DIR), evaluates every benchmark of the config and prints one table. Exit code 0; 2 with one line
on standard error for what the caller can mend: a wrong key, a missing file, a workdir of another config. Exit code 75
after SIGTERM, SIGUSR1 or Ctrl-C: what was trained is saved, and the same command goes on. Exit code 69: one of several
processes, or a data worker, was lost; the same commands go on from the last checkpoint.

Several processes, one for each host or GPU, are started with the same command. Slurm and Open MPI say who they are;
elsewhere each gets --coordinator=HOST:PORT --processes=N --process=I.
"""

import json
import math
import os
import sys
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

import fvjax
from fvjax import errors, shipped
from fvjax.config import Config, check, differences, experiments, flatten, to_json
from fvjax.parallel import distributed
from fvjax.training import preemption

CONFIG = config_flags.DEFINE_config_file("config", help_string="the experiment: configs/NAME.py", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "where everything of this run goes (default: runs/NAME)")
MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "train and evaluate, or only evaluate what is there")
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, where several make up one run")
PROCESSES = flags.DEFINE_integer("processes", None, "how many processes make up this run", lower_bound=1)
PROCESS = flags.DEFINE_integer("process", None, "this one's number, from 0", lower_bound=0)
PROFILE = flags.DEFINE_integer(
    "profile", 0, "trace so many training steps into WORKDIR/profile and print where their time went", lower_bound=0
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "show where an error came from")
FLAGS = (CONFIG, WORKDIR, MODE, COORDINATOR, PROCESSES, PROCESS, PROFILE, TRACEBACK)  # that --help tells of


def missing(config: Config) -> list[str]:
    """One line for each file or directory the config needs and that is not there, with its remedy."""
    wanted = {"init_from": config.init_from, **{f"init_parts.{k}": v for k, v in config.init_parts.items()}}
    if not config.data.synthetic.identities:
        wanted["data.train"] = config.data.train if config.epochs else ""
    wanted |= {f"eval.benchmarks.{name}": where.store for name, where in config.eval.benchmarks.items()}
    remedies = dict(config.prepare)
    lines = {
        path: f"config.{key}: {path} is not there. {remedies.get(key, 'Supply it or name another.')}"
        for key, path in reversed(wanted.items())  # one line a path: the first key that names it
        if path and not Path(shipped.weights(path)).exists()
    }
    return list(reversed(lines.values()))


def check_workdir(config: Config, workdir: Path, mode: str) -> None:
    """See that the workdir is new or of this config. Raises ValueError naming the keys that differ."""
    file = workdir / "config.json"
    if file.exists():
        if diff := differences(json.loads(to_json(config)), json.loads(file.read_text())):
            raise ValueError(f"{workdir} is of another config ({'; '.join(diff[:3])}); choose another --workdir")
    elif workdir.exists() and any(p.name != "config.json.tmp" for p in workdir.iterdir()):
        raise ValueError(f"{workdir} is not empty and has no config.json; choose another --workdir")
    elif mode == "eval" and config.epochs:
        raise ValueError(f"{workdir} has no config.json, so there is nothing trained to evaluate")


def check_writable(workdir: Path) -> None:
    """See that the workdir can be made or written to, before a model is read. Raises ValueError."""
    there = next(p for p in (workdir, *workdir.absolute().parents) if p.exists())
    if not there.is_dir():
        raise ValueError(f"--workdir={workdir}: {there} is a file; choose another --workdir")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ValueError(f"--workdir={workdir}: {there} cannot be written to; choose another --workdir")


def cpu_devices(configs: Collection[Config], processes: int) -> int:
    """One device per core, as far as the batches divide: on a CPU, two half batches are faster than one whole."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    batch = math.gcd(*(n for c in configs for n in (c.batch_size // 2 // c.accumulation, c.eval.batch_size)))
    return max(n for n in range(1, min(cores, 8) + 1) if batch // processes % n == 0)


def place() -> distributed.Place:
    """Which of how many processes this is, as the flags or the scheduler say. Raises ValueError."""
    given: dict[str, Any] = {"coordinator": COORDINATOR.value, "processes": PROCESSES.value, "process": PROCESS.value}
    absent = [name for name, value in given.items() if value is None]
    if len(absent) == 3:
        if "SLURM_STEP_NODELIST" in os.environ:  # a step of srun; a batch script itself is one process
            return distributed.Place(int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)))
        return distributed.Place(int(os.environ.get("OMPI_COMM_WORLD_SIZE", 1)))
    if absent:
        raise ValueError(f"--{absent[0]} is missing: --coordinator, --processes and --process go together")
    if given["process"] >= given["processes"]:
        raise ValueError(f"--process={given['process']}: {given['processes']} processes are numbered from 0")
    return distributed.Place(**given)


def check_all(todo: dict[Path, Config], mode: str) -> None:
    """What can be seen to be wrong before a model is read. Raises ValueError, OSError."""
    for where, one in todo.items():
        check(one)
        if lines := missing(one):
            raise FileNotFoundError("\n".join(lines))
        check_workdir(one, where, mode)
        check_writable(where)


def run(
    config: Config,
    workdir: Path,
    mode: str,
    where: distributed.Place = distributed.ALONE,
    request: preemption.Request | None = None,
    profile: int = 0,
) -> None:
    todo, problem, request = experiments(config, workdir), "", request or preemption.Request()
    try:
        check_all(todo, mode)
    except (ValueError, OSError) as error:  # of several processes, all must hear of it
        if where.processes == 1:
            raise
        problem = errors.line(error)
    if config.deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    import jax  # here, so that the errors above and the restart below come at once

    if "JAX_NUM_CPU_DEVICES" not in os.environ and "device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", cpu_devices(todo.values(), where.processes))
    from fvjax import evaluate
    from fvjax.training import loop

    distributed.start(where, config.heartbeat_seconds)
    keep_programs(jax.default_backend())
    request.take_over()  # jax's runtime has taken SIGTERM for itself
    told = {
        "--mode": mode,
        "--profile": profile,
        "--workdir": str(workdir),
        "jax": jax.__version__,
        "code": fvjax.code_version(),
    }
    distributed.agree(told | {f"config.{k}": v for k, v in flatten(config.to_dict()).items()}, problem)
    try:
        for path, one in todo.items():
            loop.run(one, path, train=mode == "train", request=request, profile=profile)
    except preemption.Preempted:
        request.before_leaving()
        raise
    if config.rows:
        evaluate.compare(list(todo))
    distributed.finished()


def main(argv: list[str]) -> None:
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}; settings look like --config.key=value")
    logging.set_verbosity(logging.WARNING)
    config = CONFIG.value
    workdir = Path(WORKDIR.value or f"runs/{config.name}")
    try:
        with errors.naming(workdir):
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
        if TRACEBACK.value or isinstance(error, RuntimeError):
            raise
        fail(errors.line(error))


def fail(text: str) -> None:
    for line in text.splitlines():
        print(f"fvjax: error: {line}", file=sys.stderr)
    distributed.leave(2, text)


def help_text(about: str, holders: Sequence[flags.FlagHolder]) -> str:
    """What a command's --help prints: what it is for, then its own flags and none of absl's."""
    lines = [about.strip(), "", "flags:"]
    for flag in (flags.FLAGS[holder.name] for holder in holders):
        default = "" if flag.default in (None, False, 0, []) else f" (default: {flag.default})"
        lines.append(f"  --[no]{flag.name}" if flag.boolean else f"  --{flag.name}=…")
        lines.append(f"        {' '.join(flag.help.split())}{default}")
    return "\n".join(lines)


def find_config(argv: list[str]) -> list[str]:
    """The arguments with `--config=NAME[:ROW]` naming the file that is meant (see `shipped.config_file`)."""
    out = list(argv)
    for i, argument in enumerate(argv):
        flag, equals, value = argument.partition("=")
        if flag not in ("--config", "-config") or (not equals and i + 1 == len(argv)):
            continue
        name, colon, row = (value if equals else argv[i + 1]).partition(":")
        file = shipped.config_file(name)
        shipped.importable(file)
        if equals:
            out[i] = f"{flag}={file}{colon}{row}"
        else:
            out[i + 1] = f"{file}{colon}{row}"
    return out


def parse(argv: list[str], about: str = __doc__ or "", holders: Sequence[flags.FlagHolder] = FLAGS) -> list[str]:
    """Flags, with every complaint in one line and exit code 2; --help prints `about` and those of `holders`."""
    if {"--help", "-h", "-help"} & set(argv):
        print(help_text(about, holders))
        sys.exit(0)
    try:
        rest = flags.FLAGS(find_config(argv))
        if CONFIG.value is None:
            fail(f"--config=NAME is missing; there are {', '.join(shipped.config_names())}, or give a file of your own")
        to_json(CONFIG.value)  # a config that could not be loaded complains at its first use
        return rest
    except Exception as error:  # a config file is Python: anything can be wrong in it
        if "--traceback" in argv:
            raise
        file = next((arg[9:].partition(":")[0] for arg in argv if arg.startswith("--config=")), "")
        if file and not shipped.config_file(file).is_file():
            fail(f"--config={file}: no such file; there are {', '.join(shipped.config_names())}")
        kind = "" if isinstance(error, flags.Error | LookupError | AttributeError) else f"{type(error).__name__}: "
        text = str(error.args[0] if error.args else error).replace("\\n", " ").replace("\\'", "'")
        fail(kind + " ".join(text.split()).lstrip("'\""))
        raise  # not reached


def keep_programs(platform: str) -> None:
    """Have jax keep what it compiles in ~/.cache/fvjax/xla, so that a run's next start need not compile it again.

    Not on a CPU: its programs compile fast, and are of no use to another kind of CPU that sees the same folder. jax's
    own variables come first: JAX_COMPILATION_CACHE_DIR, or JAX_ENABLE_COMPILATION_CACHE=false.
    """
    import jax

    if platform != "cpu" and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "fvjax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(folder))
        jax.config.update("jax_compilation_cache_max_size", 10 * 2**30)  # bytes; the longest unused go first


def huge_pages() -> None:
    """Restart this process once with glibc told to take memory in huge pages.

    XLA's CPU backend takes gigabytes of scratch memory anew in every step, and faults of small pages cost time
    (measured in benchmarks/README.md, as is why freed memory is not kept). glibc reads its tunables at start only.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    huge_pages()
    app.run(main, flags_parser=parse)
