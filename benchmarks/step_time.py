"""Compare a training step with two PyTorch twins: same weights, batch and precision, in turn, in one session.

    python benchmarks/step_time.py --case=CASE [--device=cpu|gpu] [--against seed best] [--rounds=3] [--batch=N]
                                   [--steps=N] [--also KEY=VALUE …] … [--json=FILE]
    python benchmarks/step_time.py --everything --device=gpu    the four full-size cases, and the ledger's table of them
    python benchmarks/step_time.py --ledger                     writes that table again from benchmarks/results/*.json

The cases are those of cases.py; twins.py describes the twins `seed` and `best`. --also measures fvjax once more with
other config values, e.g. `--also remat=full --also remat=none attention=xla`. On a CPU everything is float32. On a
GPU it is bfloat16 with a bfloat16 base, and the same run compares fvjax's bfloat16 step of a small batch with its
float32 step (embeddings or log probabilities, and the loss).

Every variant runs in its own process, because allocators and precision are set at the start; the order is A B C … A B
C …. Other programs change the speed of a CPU. There, the processes keep running between their turns if all fit into
memory, so that turns are only seconds apart and no compilation lies between them.

    time           median of the steps of a turn, then median over rounds, with (lowest to highest) of the rounds
    ratio          median over rounds of twin / fvjax
    peak memory    on a GPU what the frameworks' allocators counted, on a CPU that of the process
    first step     includes tracing and compilation
    model FLOPs    of fvjax's step without any recomputation, for all variants
    hardware FLOPs of each variant itself, including recomputation

The losses of the first step must agree. On a CPU, glibc's allocator uses huge pages in all processes, as in
fvjax.main, so that PyTorch benefits from them too.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import platform
import resource
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from benchmarks import cases

ROOT = Path(__file__).parent.parent
TUNABLES = "glibc.malloc.hugetlb=1"
RESULTS, LEDGER = ROOT / "benchmarks/results", ROOT / "benchmarks/README.md"
MARKS = "<!-- steps: python benchmarks/step_time.py --ledger -->\n", "<!-- end of steps -->\n"
FULL = ("resnet50", "internvit", "mllm_2b", "pair_2b")
CLOSE = {"float32": 1e-3, "bfloat16": 3e-2}  # relative tolerance of first losses, which are rounded
WIDEST = {"avx512f": "AVX-512", "avx2": "AVX2"}  # vector instructions by flag in /proc/cpuinfo, widest first
COLUMNS = "step | machine, versions | program | step, s | images/s | time / fvjax's time | peak GiB | first step, s"
COLUMNS += " | model, hardware TFLOP/s"

# ---- one variant, in its own process -------------------------------------------------------------------------------


def configured(options: argparse.Namespace, weights: Path | None, dtype: str):
    """Return the case's config with the values of --set."""
    c = cases.our_config(options.case, options.batch, weights)
    c.dtype, c.base_dtype = dtype, dtype if options.case not in cases.IRESNET else "float32"
    if options.case == "internvit" and options.device == "cpu":
        c.remat = "dots"  # without remat, it would need 24 GB
    for key, _, value in (pair.partition("=") for pair in options.set):
        section, _, leaf = key.rpartition(".")
        owner = c
        for name in section.split(".") if section else ():
            owner = owner[name]
        owner[leaf] = type(owner[leaf])(value)
    return c


def ready_jax(options: argparse.Namespace) -> None:
    """Select JAX's platform and number of devices."""
    import jax

    jax.config.update("jax_platforms", {"cpu": "cpu", "gpu": "cuda"}[options.device])
    if options.device == "cpu":
        jax.config.update("jax_num_cpu_devices", cases.cpu_devices(options.batch))


def turns(steps: Iterator[dict], warm: int, measured: int) -> Iterator[dict]:
    """Yield turns: the seconds of `measured` steps each, the first step's seconds and its values."""

    def seconds() -> float:
        start = time.perf_counter()
        next(steps)
        return time.perf_counter() - start

    start = time.perf_counter()
    values = next(steps)
    first = {"first": time.perf_counter() - start, **values}
    for _ in range(warm):
        next(steps)
    while True:
        yield {"seconds": [seconds() for _ in range(measured)], **first}
        for _ in range(2):  # slow after a pause, because a virtual machine returns free memory to its host
            next(steps)


def variant(options: argparse.Namespace) -> Iterator[dict]:
    """Yield the measurements of the child process, turn by turn."""
    warm, measured = cases.STEPS[options.case] if options.device == "cpu" else cases.ON_GPU
    measured = options.steps or measured
    half = options.precision == "bfloat16"
    if options.child == "ours":
        import jax

        ready_jax(options)
        peak = lambda: (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)  # noqa: E731
        steps = cases.our_steps(configured(options, options.weights, options.precision))
    else:
        import torch

        from benchmarks import twins

        device = {"cpu": "cpu", "gpu": "cuda"}[options.device]
        peak = lambda: torch.cuda.max_memory_allocated() if options.device == "gpu" else 0  # noqa: E731
        steps = twins.steps(*twins.made(options.case, options.batch, options.weights, options.child, device, half))
    for found in turns(steps, warm, measured):
        yield found | {"gib": (peak() or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**30}


def counted(options: argparse.Namespace) -> dict:
    """Return the FLOPs of a step; nothing is computed."""
    if options.child == "count ours":
        ready_jax(options)
        return dict(zip(("model", "hardware"), cases.our_flops(configured(options, None, options.precision))))
    from benchmarks import twins

    return {"hardware": twins.count(options.case, options.batch, options.child.removeprefix("count "))}


def checked(options: argparse.Namespace) -> dict:
    """Return the differences between fvjax's bfloat16 and float32 outputs and losses."""
    ready_jax(options)
    outputs, losses = [], []
    for dtype in ("float32", "bfloat16"):
        c = configured(options, options.weights, dtype)
        c.attention = "auto" if dtype == "float32" else c.attention
        outputs.append(cases.our_embeddings(c))
        losses.append(next(cases.our_steps(c))["loss"])
    loss = abs(losses[1] - losses[0]) / abs(losses[0])
    return {"batch": options.batch, "outputs": float(np.abs(outputs[0] - outputs[1]).max()), "loss": loss}


def child(options: argparse.Namespace) -> None:
    """Print a line of JSON for each line read from standard input."""
    if options.child == "write":
        from benchmarks import twins

        return twins.write_weights(options.case, options.weights)
    answers, sys.stdout = sys.stdout, sys.stderr
    if options.child == "check" or options.child.startswith("count"):
        found = iter([(checked if options.child == "check" else counted)(options)])
    else:
        found = variant(options)
    for _ in sys.stdin:
        print(json.dumps(next(found)), file=answers, flush=True)


# ---- all variants --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def started(
    options: argparse.Namespace,
    what: str,
    changes: Sequence[str] = (),
    script: Path = Path(__file__),
    tunables: str = TUNABLES,
    **other,
) -> Iterator[Callable[[], dict]]:
    """Start a child process and yield a function that returns its next turn.

    If the child fails on a CPU, the program ends. On a GPU the function returns {"error": …}, so that the other
    variants are still measured.
    """
    given = {"case": options.case, "device": options.device, "batch": options.batch, "precision": options.precision}
    given |= {"steps": options.steps}
    command = [sys.executable, str(script), "--child", what, *(f"--{k}={v}" for k, v in (given | other).items())]
    command += [f"--weights={options.weights}", *(["--set", *changes] if changes else [])]
    environment = {**os.environ, "GLIBC_TUNABLES": tunables} if options.device == "cpu" else os.environ
    pipe = subprocess.PIPE
    with (
        tempfile.TemporaryFile("w+") as errors,
        subprocess.Popen(command, env=environment, stdin=pipe, stdout=pipe, stderr=errors, text=True) as process,
    ):
        stdin, stdout = process.stdin, process.stdout
        assert stdin
        assert stdout

        def turn() -> dict:
            with contextlib.suppress(BrokenPipeError):
                print(file=stdin, flush=True)
            if line := stdout.readline():
                return json.loads(line)
            if not process.wait():
                return {}
            errors.seek(0)
            why = errors.read().strip()[-2000:] or f"exit code {process.returncode}; -9 usually means no memory left"
            if options.device == "cpu":
                sys.exit(f"{options.case}, {what}: {why}")
            print(f"{options.case}, {what} {changes or ''}: {why}", file=sys.stderr, flush=True)
            return {"error": why.splitlines()[-1][:300]}

        try:
            yield turn
        finally:
            with contextlib.suppress(BrokenPipeError):  # of a child that has failed
                stdin.close()


def call(options: argparse.Namespace, what: str, changes: Sequence[str] = (), **other) -> dict:
    """Return one turn of a child process."""
    with started(options, what, changes, **other) as turn:
        return turn()


def machine(device: str) -> dict:
    """Return the names of the device and the versions of the packages."""
    import importlib.metadata as packages

    names = ("jax", "torch") if device == "cpu" else ("jax", "jax-cuda12-plugin", "jax-cuda13-plugin", "torch")
    versions = {name: packages.version(name) for name in names if importlib.util.find_spec(name.replace("-", "_"))}
    if device == "gpu":
        query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
        name = subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0]
    else:
        lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
        cpu = {key.strip(): value for key, _, value in (line.partition(": ") for line in lines)}
        model = cpu.get("model name", platform.processor()).replace("(R)", "")
        widest = [what for flag, what in WIDEST.items() if flag in cpu.get("flags", "").split()]
        name = f"{' with '.join((model, *widest[:1]))}, {len(os.sched_getaffinity(0))} cores"
    return {"device": name, "python": platform.python_version(), **versions}


def result_file(folder: Path, found: dict) -> Path:
    """Return the path of a case's results, which names the machine."""
    machine = found["machine"]["device"].partition(",")[0]
    return folder / f"{found['case']}_{machine.replace(' ', '_').lower()}.json"


def measure(options: argparse.Namespace) -> dict:
    """Measure one case and return its results as JSON values."""
    names = ["ours", *(" ".join(("ours", *changes)) for changes in options.also), *options.against]
    runs: dict[str, list[dict]] = {name: [] for name in names}
    if not (options.weights / "config.json").exists():
        call(options, "write")
    check = {}
    if options.precision == "bfloat16":
        check = call(options, "check", batch=min(options.batch, 4))
    together = options.device == "cpu" and not options.case.endswith("_2b")  # two of these do not fit into memory
    with contextlib.ExitStack() as stack:
        running: dict[str, Callable[[], dict]] = {}
        for i in range(options.rounds):
            for name in names:
                kind, *changes = name.split()
                if not together:
                    runs[name].append(call(options, kind, changes))
                else:
                    running[name] = running.get(name) or stack.enter_context(started(options, kind, changes))
                    runs[name].append(running[name]())
                print(f"{options.case}, round {i + 1} of {options.rounds}, {name}: {runs[name][-1]}", flush=True)
    flops = {}
    for name in names:
        kind, *changes = name.split()
        flops[name] = call(options, f"count {kind}", changes)
    return {
        "case": options.case,
        "batch": options.batch,
        "precision": options.precision,
        "date": datetime.date.today().isoformat(),
        "command": "python " + " ".join(shlex.quote(a) for a in ["benchmarks/step_time.py", *sys.argv[1:]]),
        "machine": machine(options.device),
        "check": check,
        "runs": runs,
        "flops": flops,
    }


def problems(found: dict) -> str:
    """Return a message if the first losses do not agree, or ""."""
    losses = {name: runs[0]["loss"] for name, runs in found["runs"].items() if "loss" in runs[0]}
    ours = losses.get("ours", next(iter(losses.values()), 0.0))
    wrong = [n for n, x in losses.items() if not abs(x - ours) <= CLOSE[found["precision"]] * abs(ours) + 1e-5]
    return f"{found['case']}: first losses differ: {losses}" if wrong else ""


def rows(found: dict) -> list[str]:
    """Return one case's lines of the ledger's table."""
    versions = ", ".join(f"{k} {v}" for k, v in found["machine"].items() if k != "device")
    system = f"{found['machine']['device']}; {versions}; {found['date']}"
    unit = f"{found['batch'] // 2} pairs" if found["case"].startswith("pair") else f"{found['batch']} images"
    lines = []
    for name, runs in found["runs"].items():
        what = name.replace("ours", "fvjax", 1) if name.startswith("ours") else f"torch, {name}"
        first = f"{found['case']}, {unit}, {found['precision']} | {system}" if not lines else " | "
        if failed := [run["error"] for run in runs if "error" in run]:
            lines.append(f"| {first} | {what} | {failed[0].replace('|', '/')} | | | | | |")
            continue
        times = [statistics.median(run["seconds"]) for run in runs]
        ratios = [time / statistics.median(ours["seconds"]) for time, ours in zip(times, found["runs"]["ours"])]
        seconds, flops = statistics.median(times), found["flops"]["ours"] | found["flops"][name]
        rates = ", ".join(f"{flops[kind] / seconds / 1e12:.3g}" for kind in ("model", "hardware"))
        spread = [f"{middle} ({low} to {high})" for middle, low, high in (
            (f"{seconds:.3g}", f"{min(times):.3g}", f"{max(times):.3g}"),
            (f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}", f"{max(ratios):.2f}"),
        )]  # fmt: skip
        peak, start = max(run["gib"] for run in runs), statistics.median(run["first"] for run in runs)
        lines.append(
            f"| {first} | {what} | {spread[0]} | {found['batch'] / seconds:.3g} | {spread[1]} | {peak:.1f} | "
            f"{start:.1f} | {rates} |"
        )
    return lines


def table(results: list[dict]) -> str:
    """Return the ledger's table of all results and the commands that made them."""
    text = f"| {COLUMNS} |\n|{'---|' * (COLUMNS.count('|') + 1)}\n"
    text += "".join(f"{line}\n" for found in results for line in rows(found))
    text += "\n" + "".join(f"{line}\n" for line in sorted({f"{r['case']}: `{r['command']}`" for r in results}))
    for found in results:
        if found["check"]:
            c = found["check"]
            text += f"{found['case']}, bfloat16 against float32, batch {c['batch']}: outputs {c['outputs']:.1e} apart, "
            text += f"loss {c['loss']:.1e} of it\n"
    return text


def ledger(folder: Path, marks: tuple[str, str], table: Callable[[list[dict]], str]) -> None:
    """Write the table of all results in the folder between the marks in benchmarks/README.md."""
    before, _, rest = LEDGER.read_text().partition(marks[0])
    _, end_mark, after = rest.partition(marks[1])
    if not end_mark:
        sys.exit(f"{LEDGER}: the lines {marks} are missing")
    results = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    LEDGER.write_text(before + marks[0] + "\n" + table(results) + "\n" + marks[1] + after)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=list(cases.BATCH), default="small_real")
    parser.add_argument("--everything", action="store_true", help=f"measure the cases {', '.join(FULL)}")
    parser.add_argument("--device", choices=["cpu", "gpu"], default="cpu")
    parser.add_argument("--against", nargs="*", choices=["seed", "best"], default=["seed", "best"])
    parser.add_argument("--also", nargs="+", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, help="images per step (two per pair)")
    parser.add_argument("--steps", type=int, default=0, help="measured steps after the warm-up (default: the case's)")
    parser.add_argument("--precision", choices=list(CLOSE), help="default: float32 on a CPU, bfloat16 on a GPU")
    parser.add_argument("--weights", type=Path, help="folder of the weights; they are written there if missing")
    parser.add_argument("--json", type=Path, help="file for the results (default: in benchmarks/results)")
    parser.add_argument("--ledger", action="store_true", help="only write the table into benchmarks/README.md")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--set", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.ledger:
        return ledger(RESULTS, MARKS, table)
    options.precision = options.precision or {"cpu": "float32", "gpu": "bfloat16"}[options.device]
    if options.child:
        return child(options)
    if not importlib.util.find_spec("torch"):
        sys.exit("torch is not installed: pip install -r tests/requirements-torch.txt")
    wrong = []
    given, also = options.weights, options.also
    with tempfile.TemporaryDirectory() as directory:
        for case in FULL if options.everything else (options.case,):
            options.case = case
            if options.everything and options.device == "gpu" and case not in cases.IRESNET:
                options.also = also or [["attention=cudnn"]]  # not the choice of "auto" until it has run on a GPU
            batch = options.batch or cases.BATCH[case][options.device == "gpu"]
            # mllm_… and pair_… of one size share their weights.
            weights = given or Path(directory) / ("_".join(case.split("_")[1:]) or case)
            one = argparse.Namespace(**vars(options) | {"batch": batch, "weights": weights})
            found = measure(one)
            path = options.json or result_file(RESULTS, found)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(found, indent=1) + "\n")
            print(table([found]), flush=True)
            wrong.append(problems(found))
    if options.everything:
        ledger(RESULTS, MARKS, table)
    if any(wrong):
        sys.exit("\n".join(filter(None, wrong)))


if __name__ == "__main__":
    main()
