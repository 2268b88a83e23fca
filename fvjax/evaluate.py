"""`python -m fvjax.evaluate --embedder=module:function --benchmark=STORE --workdir=DIR`

Evaluates a model that is not fvjax's, an ONNX file or a Python function, or a checkpoint without a run, on prepared
benchmarks: the same pairs, protocols, intervals, plots and files as of a trained model, so that `fvjax compare` sets it
beside others. Evaluating again adds to DIR and replaces nothing.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import fvjax
from fvjax import files, foreign, foreign_workdir, startup
from fvjax.config import BenchmarkConfig, DataConfig, EvalConfig
from fvjax.prepared import benchmarks_of


def evaluate(
    embed: foreign.Embed,
    benchmarks: dict[str, BenchmarkConfig],
    workdir: Path,
    *,
    identity: dict[str, Any],
    flip_sum: bool = False,
    batch_size: int = 64,
    bootstrap: int = 1000,
    name: str = "",
    devices: str = "",
) -> dict[str, Any]:
    """Evaluate an embedder on benchmarks, write what a run's evaluation writes into `workdir`, and print the table.

    Args:
        embed: uint8 [N, 112, 112, 3] RGB -> float [N, D].
        identity: what the embedder is and where, JSON-ready, see :mod:`fvjax.foreign_workdir`. It becomes config.json,
            and its "hash" the base_hash of the results.
        name: of this evaluation, see docs/results.md.
        devices: on what the embedder computes, if not on jax's devices; results.json notes it.
    Returns:
        the contents of results.json as far as this evaluation goes.
    Raises:
        ValueError: a benchmark cannot be used, or `workdir` is of another embedder. OSError.
    """
    from fvjax import results
    from fvjax.tasks import benchmarks as judge

    started = time.perf_counter()
    settings = EvalConfig(batch_size=batch_size, flip_sum=flip_sum, bootstrap=bootstrap, benchmarks=benchmarks)
    judges = judge.Benchmarks(settings, DataConfig(), 0, workdir)
    judges.check(foreign.IMAGE_SIZE)
    _claim(workdir, identity)
    title = identity["embedder"]
    entries, scored = judges.run(judge.CosineScore(settings, embed), seen=set(), title=title)
    found: dict[str, Any] = {
        "benchmarks": {key: {**entry, "before_training": None} for key, entry in entries.items()},
        "pools": {},
        "baselines": {},
        "validation": None,
        "flip_sum": flip_sum,
        "step": 0,
        "config_hash": "",
        "base_hash": identity["hash"],
        "train_data_hash": "",
        "code_version": fvjax.code_version(),
        "dtype": "float32",
        "seconds": round(time.perf_counter() - started, 3),
    }
    if judges.failed:
        found["failed"] = dict(judges.failed)
    report = judge.report(workdir.name, found, scored, judges.stores)
    if devices:
        report.origin["devices"] = devices
    found = results.publish(workdir, found, report, name)
    results.check_complete({workdir: found})
    return found


def _claim(workdir: Path, identity: dict[str, Any]) -> None:
    """Write config.json, or raise ValueError if it is another embedder's or a training run's."""
    file = workdir / "config.json"
    text = json.dumps(identity, indent=1)
    if file.exists() and not foreign_workdir.is_same(foreign_workdir.read_config(workdir), json.loads(text)):
        raise ValueError(f"{workdir} is of another model ({file}); choose another --workdir")
    workdir.mkdir(parents=True, exist_ok=True)
    files.replace_file(file, text)


@startup.errors_in_one_line
def main(argv: Sequence[str] | None = None) -> int:
    about = "Evaluate a model that is not fvjax's, or a checkpoint without a run, on prepared benchmarks."
    parser = startup.Parser(prog="python -m fvjax.evaluate", description=about, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--embedder", metavar="MODULE:NAME", help="a function uint8 [N,112,112,3] RGB -> float [N,D]")
    which.add_argument("--model", type=Path, metavar="FILE.onnx|DIR", help="an ONNX network, or a checkpoint")
    parser.add_argument("--benchmark", action="append", required=True, metavar="STORE[:PAIRS]", help="once or more")
    parser.add_argument("--workdir", type=Path, required=True, metavar="DIR", help="where everything is written")
    parser.add_argument("--channels", choices=foreign.CHANNELS, default="rgb", help="of an ONNX network (%(default)s)")
    parser.add_argument("--pixels", choices=list(foreign.PIXELS), default="-1..1", help="likewise (%(default)s)")
    parser.add_argument("--flip-sum", action="store_true", help="add the embedding of the mirrored face")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="faces at a time (%(default)s)")
    parser.add_argument("--bootstrap", type=int, default=1000, metavar="N", help="resamples (%(default)s)")
    parser.add_argument("--name", default="", help="of this evaluation in results.json")
    flags = parser.parse_args(argv)
    if flags.batch_size < 1 or flags.bootstrap < 0:
        raise ValueError(f"--batch-size={flags.batch_size} --bootstrap={flags.bootstrap}: at least 1, at least 0")
    benchmarks = benchmarks_of(flags.benchmark)
    embed, identity = _open(flags)
    evaluate(
        embed,
        benchmarks,
        flags.workdir,
        identity=identity,
        flip_sum=flags.flip_sum,
        batch_size=flags.batch_size,
        bootstrap=flags.bootstrap,
        name=flags.name,
        devices=_devices(flags),
    )
    return 0


def _open(flags: Any) -> tuple[foreign.Embed, dict[str, Any]]:
    """Open the model that the flags name; return it with what identifies it."""
    if flags.embedder:
        embed, source = foreign.of_function(flags.embedder)
        return embed, {"embedder": flags.embedder, "hash": source, "kind": "function", "folder": str(Path.cwd())}
    path = str(flags.model.absolute())
    if flags.model.suffix.lower() == ".onnx":
        embed, digest = foreign.of_onnx(flags.model, flags.channels, flags.pixels)
        reads = {"channels": flags.channels, "pixels": flags.pixels}
        return embed, {"embedder": flags.model.name, "hash": digest, **reads, "kind": "onnx", "path": path}
    from fvjax import api
    from fvjax.training.checkpoint import base_hash

    if api.is_workdir(flags.model):
        again = f"python -m fvjax.main --mode=eval --workdir={flags.model}"
        raise ValueError(f"{flags.model} is a run, which keeps its own results: {again}")
    if foreign_workdir.is_evaluated(flags.model):
        raise ValueError(f"{flags.model} holds an evaluation; give the model itself, which config.json there names")
    embed = foreign.checked(api.Embedder(flags.model), str(flags.model))
    digest = base_hash(str(flags.model))
    return embed, {"embedder": str(flags.model), "hash": digest, "kind": "checkpoint", "path": path}


def _devices(flags: Any) -> str:
    """Say on what the model computes, if not on jax's devices."""
    if flags.embedder:
        return "not known: a Python function chooses them itself"
    onnx = flags.model.suffix.lower() == ".onnx"
    return f"CPU, by onnxruntime {metadata.version('onnxruntime')}" if onnx else ""


if __name__ == "__main__":
    startup.run(main)
