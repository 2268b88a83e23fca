"""Run a config's benchmarks on an embedding function: results.json, the table on the terminal, ROC and DET plots."""

import json
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from rich.progress import track

from fvjax import errors
from fvjax.config import Config, benchmark
from fvjax.data import pairs as draw
from fvjax.data import pipeline
from fvjax.data.stores import Pairs, Store, read_pairs
from fvjax.evals import baselines as knows_nothing
from fvjax.evals import plots, verification
from fvjax.training import metrics

Embed = Callable[[np.ndarray], np.ndarray]  # uint8 [b,112,112,3] -> float32 [b,D], or [b,pools,D]
Score = Callable[[Store, Pairs, str], np.ndarray]  # (store, its pairs, title of the progress bar) -> float32 [M]


def run(
    config: Config,
    score: Score,
    *,
    workdir: Path,
    seen: set[str],
    title: str,
    only: tuple[str, ...] = (),
    bootstrap: int | None = None,
) -> tuple[dict, dict]:
    """Every benchmark of the config (or `only` some).

    Args:
        score: :func:`cosine` of an embedding function, or a model's answers (`fvjax.predict`).
        seen: names of the identities trained on. A benchmark that follows the same naming (config.data.names) says how
            many of its identities are among them, and gets an `identity_disjoint` entry if there are any; for others
            that is not known, and both are None.
        bootstrap: resamples behind the intervals, None: the config's.
    Returns:
        entries as in results.json by benchmark, and (scores [M], same [M]) by benchmark for the plots.
    """
    entries, curves = {}, {}
    for name, where in benchmarks(config, workdir).items():
        if only and name not in only:
            continue
        store, pairs = Store(where.store, "test"), read_pairs(where.store, where.pairs)
        scores = score(store, pairs, f"{title}: {name}")
        comparable = seen and where.names and where.names == config.data.names
        known = [i for i, identity in enumerate(store.identities) if identity in seen] if comparable else []
        entries[name] = verification.entry(
            scores,
            pairs,
            store.manifest["benchmarks"][where.pairs],
            store.data_hash,
            seen=known or None,
            bootstrap=config.eval.bootstrap if bootstrap is None else bootstrap,
            seed=config.seed,
        )
        entries[name]["identities_seen_in_training"] = len(known) if comparable else None
        curves[name] = (scores, pairs.same)
    return entries, curves


def cosine(config: Config, embed: Embed) -> Callable[..., np.ndarray]:
    """Scores by the cosine of embeddings; an image of a store is embedded once, when a pair first asks for it.

    Where `embed` gives several embeddings of a face, `pool` says which of them.
    """
    embeddings: dict[Path, tuple[np.ndarray, np.ndarray]] = {}  # store -> (which records are there [N], theirs [N,…])

    def score(store: Store, pairs: Pairs, title: str, pool: int | None = None) -> np.ndarray:
        there = embeddings[store.path][0] if store.path in embeddings else np.zeros(len(store), bool)
        new = np.setdiff1d(np.union1d(pairs.a, pairs.b), np.flatnonzero(there))
        if len(new):
            batches = pipeline.eval_batches(store, new, config.eval.batch_size)
            bar = progress(batches, title, -(-len(new) // config.eval.batch_size))
            found = verification.embed(embed, bar, flip_sum=config.eval.flip_sum)
            if store.path not in embeddings:
                embeddings[store.path] = there, np.zeros((len(store), *found.shape[1:]), found.dtype)
            there[new], embeddings[store.path][1][new] = True, found
        every = embeddings[store.path][1]
        return verification.scores(every if pool is None else every[:, pool], pairs)

    return score


def validate(config: Config, score: Score, title: str) -> dict:
    """Verification on pairs of config.data.val, always the same ones, in ten folds: an entry as of a benchmark."""
    store = Store(config.data.val, "val")
    pairs = draw.validation(store.labels, config.data.val_pairs, config.seed)
    scores = score(store, pairs, f"{title}: validation")
    where = {"policy": "drawn from config.data.val", "failure_to_acquire": 0}
    entry = verification.entry(scores, pairs, where, store.data_hash, bootstrap=0)
    return {**entry, "identities_seen_in_training": len(store.identities)}


def progress(what, title: str, total: int):
    """The same with a bar, where somebody watches."""
    shown = metrics.console.is_terminal and jax.process_index() == 0
    return track(what, title, total, console=metrics.console, disable=not shown, transient=True)


def benchmarks(config: Config, workdir: Path) -> dict[str, Config]:
    """The config's benchmarks, and with embedded synthetic data the held-out synthetic identities."""
    out = dict(config.eval.benchmarks.items())
    if config.data.synthetic.identities:
        out["synthetic"] = benchmark(str(synthetic_store(config, workdir, "test")), "synthetic", config.data.names)
    return out


def check(config: Config, workdir: Path) -> dict[str, str]:
    """Open every benchmark, so that what is wrong with one is told before anything is trained. Raises ValueError.

    Returns the hashes of their records and of their pairs, by "data of NAME" and "pairs of NAME".
    """
    chosen = benchmarks(config, workdir)
    if unknown := set(config.eval.during) - set(chosen):
        raise ValueError(f"config.eval.during: no benchmark {sorted(unknown)}; there are {sorted(chosen)}")
    hashes = {}
    for name, where in chosen.items():
        store = Store(where.store, "test")
        read_pairs(where.store, where.pairs)
        hashes[f"data of {name}"] = store.data_hash
        hashes[f"pairs of {name}"] = store.manifest["benchmarks"][where.pairs]["hash"]
    if config.data.val:
        store = Store(config.data.val, "val")
        draw.validation(store.labels, config.data.val_pairs, config.seed)
        hashes["data of config.data.val"] = store.data_hash
    return hashes


def synthetic_store(config: Config, workdir: Path, split: str) -> Path:
    """Where the embedded faces of a split lie; the name holds everything they are drawn with.

    That of the test set begins with the number of training identities: its people are numbered from there on, so that
    nobody is in both.
    """
    c = config.data.synthetic
    sizes = (c.identities, c.images)
    if split == "test":
        sizes = (c.identities, c.test_identities, c.test_images, c.test_pairs)
    drawn = "_".join(str(n) for n in (*sizes, c.difficulty, c.seed))
    return Path(c.dir or workdir) / f"synthetic_{split}_{drawn}"


def baselines(config: Config, *, workdir: Path, seen: set[str]) -> dict[str, dict]:
    """What the benchmarks give away without any learning, by the same pairs and protocol."""
    rows = {"raw pixels, cosine": knows_nothing.pixel, "colour histogram, cosine": knows_nothing.histogram}
    return {
        row: run(config, cosine(config, embed), workdir=workdir, seen=seen, title=row)[0] for row, embed in rows.items()
    }


def finish(config: Config, workdir: Path, results: dict, curves: dict) -> None:
    """Write results.json, roc.png and det.png, and print the table. Process 0 only."""
    if jax.process_index():
        return
    metrics.replace_file(workdir / "results.json", json.dumps(results, indent=1))
    rows = [(f"{config.name} (ids seen)", "validation", results["validation"])] if results["validation"] else []
    for name, entry in results["benchmarks"].items():
        rows += [(row, name, entries[name]) for row, entries in results["baselines"].items()]
        if entry["before_training"]:
            rows.append((f"{config.name}, before training", name, entry["before_training"]))
        note = entry["identities_seen_in_training"]
        rows.append((config.name + (f" ({note} ids seen)" if note else ""), name, entry))
        rows += [(f"{config.name}, {pool}", name, entries[name]) for pool, entries in results["pools"].items()]
        if entry["identity_disjoint"]:
            rows.append((f"{config.name}, unseen ids only", name, entry["identity_disjoint"]))
    if rows:
        metrics.console.print(verification.table(rows))
    if curves:  # none with validation alone
        plots.roc(workdir / "roc.png", curves)
        plots.det(workdir / "det.png", curves)
    metrics.console.print(f"Everything about this run is in {workdir} (results.json, metrics.jsonl, roc.png, det.png)")


def compare(workdirs: list[Path]) -> None:
    """One table of several finished experiments. Process 0 only."""
    if jax.process_index():
        return
    results = {workdir.name: json.loads((workdir / "results.json").read_text()) for workdir in workdirs}
    knowing_nothing = next((r["baselines"] for r in results.values() if r["baselines"]), {})
    rows = []
    for name in next(iter(results.values()))["benchmarks"]:
        rows += [(row, name, entries[name]) for row, entries in knowing_nothing.items()]
        rows += [(row, name, r["benchmarks"][name]) for row, r in results.items()]
    metrics.console.print(verification.table(rows))


def append_curve(workdir: Path, step: int, epoch: float, seconds: float, results: dict) -> None:
    """Add one evaluation to evaluations.jsonl: accuracies by benchmark at a step. `seconds`: of all starts."""
    if jax.process_index():
        return
    keys = ("accuracy@best_threshold", "accuracy@far=1e-3")
    line = {"step": step, "epoch": epoch, "seconds": round(seconds, 1)}
    line |= {name: {key: entry[key]["mean"] for key in keys} for name, entry in results.items()}
    path = workdir / "evaluations.jsonl"
    metrics.keep_before(path, step)
    with errors.naming(path), path.open("a") as file:
        file.write(json.dumps(line) + "\n")
    text = ", ".join(f"{n} {100 * line[n][keys[0]]:.2f}% best threshold" for n in results)
    metrics.console.print(f"evaluation at step {step}: {text}")
