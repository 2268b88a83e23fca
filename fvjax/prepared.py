"""Benchmarks that a command line names by their stores: `--benchmark=STORE` or `--benchmark=STORE:PAIRS`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fvjax.config import BenchmarkConfig, EditableConfig, benchmark
from fvjax.data.stores.manifest import read_manifest


def benchmarks_of(arguments: Sequence[str]) -> dict[str, BenchmarkConfig]:
    """Return the benchmarks that `STORE` or `STORE:PAIRS` mean, by the name of their pairs.

    A store without a name stands for all of its lists of pairs. Raises ValueError: no such store or list, or two
    benchmarks of one name.
    """
    out: dict[str, BenchmarkConfig] = {}
    for argument in arguments:
        store, _, wanted = (argument, "", "") if Path(argument).is_dir() else argument.rpartition(":")
        store = store or argument
        if not Path(store).is_dir():
            raise ValueError(f"--benchmark={argument}: {store} is not there; python -m fvjax.data.prepare makes stores")
        there = sorted(read_manifest(Path(store))["benchmarks"])
        if not there or (wanted and wanted not in there):
            raise ValueError(f"--benchmark={argument}: {store} has the pairs {', '.join(there) or 'of no benchmark'}")
        for name in [wanted] if wanted else there:
            if name in out:
                raise ValueError(f"--benchmark={argument}: {name} is given twice, also by {out[name].store}")
            out[name] = BenchmarkConfig(store, name)
    return out


def add_benchmarks(config: EditableConfig, arguments: Sequence[str]) -> None:
    """Add the benchmarks that `arguments` mean to a config.

    Raises ValueError as :func:`benchmarks_of`, or if the config has another benchmark of such a name.
    """
    for name, found in benchmarks_of(arguments).items():
        known = config.eval.benchmarks.get(name)
        if known is not None and (known.store, known.pairs) != (found.store, found.pairs):
            other = f"config.eval.benchmarks has another {name}, of {known.store}"
            raise ValueError(f"--benchmark: {other}; prepare one of them under another name")
        if known is None:
            config.eval.benchmarks[name] = benchmark(found.store, found.pairs)
