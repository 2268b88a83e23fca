"""A .rec to a training store and a validation store, restartable after a kill."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress

from fvjax import errors
from fvjax.data.readers.recordio.companions import read
from fvjax.data.readers.recordio.records import Images, Rejected
from fvjax.data.readers.recordio.shard_jobs import Job, run_jobs
from fvjax.data.stores import Store, manifest, shards
from fvjax.data.stores.writer import check_does_not_exist, publish, write_metadata


def select(labels: np.ndarray, top: int | None, val: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose which images to keep, under which identity, and which of them to use for validation.

    Of an identity with n images, floor(val * n) are for validation. Which ones, depends on seed, label and image alone.

    Args:
        labels: int [N].
        top: keep so many identities with the most images, of equals those with lower labels. None keeps all.
        val: 0 <= val < 1.
        seed: >= 0.
    Returns:
        the chosen labels, ascending; int64 [N], the index into them, or -1; bool [N], True for validation.
    """
    names, index_of_image, counts = np.unique(labels, return_inverse=True, return_counts=True)
    chosen = np.sort(np.lexsort((names, -counts))[:top])
    new_index = np.full(len(names), -1)
    new_index[chosen] = np.arange(len(chosen))
    # Raw bits and a stable sort, because numpy guarantees that these never change.
    bits = np.random.PCG64(np.random.SeedSequence([seed])).random_raw(len(labels))
    order = np.lexsort((bits, index_of_image))
    rank = np.empty(len(labels), np.int64)
    rank[order] = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    return names[chosen], new_index[index_of_image], rank < np.floor(counts * val + 1e-9)[index_of_image]


def convert(
    src: Path, dst: Path, *, top: int | None, val: float, seed: int, workers: int, resize: bool, bar: Progress
) -> Store:
    """Convert a .rec, or the folder with train.rec, to the training store ``dst`` and the validation store ``dst``/val.

    The validation store (split "val") has the same identities under the same numbers; without images for validation
    there is none. An identity's name is its label in the .rec, a record's source is FILE.rec#NUMBER, counted from 0.
    Records that are damaged or no face are left out and listed; an image of another size than 112x112 is an error
    unless ``resize``.

    Args:
        top, val, seed: see :func:`select`.
        workers: processes.
        bar: shows the progress.
    Returns:
        the training store. In its manifest, and in that of DST/val, "recordio" counts the records of both together:
        read = written + rejected, and apart from these headers, and images left_out because of ``top``.
    Raises:
        ValueError: an invalid option, a file that disagrees with another, nothing usable, or ``dst`` exists.
        OSError: the disk is full or cannot be written to.
    """
    rec = src / "train.rec" if src.is_dir() else src
    if not rec.is_file():
        raise ValueError(f"{rec}: no such file; --src is a .rec or the folder with train.rec")
    if not rec.name.isprintable():
        raise ValueError(f"{rec.name!r}: a .rec's name goes into the store and must be plain text; rename it")
    if not 0 <= val < 1 or seed < 0 or workers < 1 or (top is not None and top < 1):
        raise ValueError(
            f"--top={top} --val={val} --seed={seed} --workers={workers}: expected 0 <= val < 1, others >= 1"
        )
    check_does_not_exist(dst)
    work = dst.with_name(f".{dst.name}.partial")
    with errors.naming(dst), _lock_work_directory(work, dst):
        task = bar.add_task(f"reading {rec.name}", total=rec.stat().st_size)
        faces, headers, rejected = read(rec, resize, lambda n: bar.advance(task, n))
        names, label, is_val = select(faces.label, top, val, seed)
        if top is not None and top > len(names):
            raise ValueError(f"--top={top}: {rec} has {len(names)} identities")
        options = {"top": top, "val": val, "seed": seed, "resize": resize}
        _check_plan(work, rec, faces, options)
        jobs = _plan_jobs(dst, work, rec, faces, label, is_val, resize)
        task = bar.add_task("faces", total=int((label >= 0).sum()))
        counts = {"headers": len(headers), "left_out": int((label < 0).sum()), **options}
        try:
            for n in run_jobs([job for part in jobs.values() for job in part], workers):
                bar.advance(task, n)
            _finish(work, rec, jobs, names, rejected, counts)
        except ValueError:
            shutil.rmtree(work / "done")  # running again would fail in the same way
            raise
        publish(work / "store", dst)
        shutil.rmtree(work)
    return Store(dst)


@contextlib.contextmanager
def _lock_work_directory(work: Path, dst: Path) -> Iterator[None]:
    """Lock the working directory against a second conversion. After an error it stays if a shard is finished."""
    (work / "done").mkdir(parents=True, exist_ok=True)
    with open(work / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(
                f"{work}: another process is at work there; wait for it, or choose another --dst"
            ) from None
        try:
            yield
        except Exception as error:
            if not any((work / "done").glob("*.json")):
                shutil.rmtree(work, ignore_errors=True)
            elif isinstance(error, OSError):
                advice = f"finished shards stay in {work}, the same command goes on from there"
                raise OSError(f"{dst}: {advice}: {error.strerror or error}") from error
            raise


def _check_plan(work: Path, rec: Path, faces: Images, options: dict[str, Any]) -> None:
    """Note source and options of the conversion in the working directory.

    Raises:
        ValueError: finished shards there come from another source, other options or another version.
    """
    stat, digest = rec.stat(), hashlib.sha256()
    for column in faces:
        digest.update(column.data)
    sizes = {"format": manifest.FORMAT, "shard_records": shards.SHARD_RECORDS, "bytes": stat.st_size}
    plan = json.dumps({**options, **sizes, "name": rec.name, "mtime": stat.st_mtime_ns, "found": digest.hexdigest()})
    if not (file := work / "plan.json").is_file():
        file.with_suffix(".tmp").write_text(plan)
        file.with_suffix(".tmp").replace(file)
    elif file.read_text() != plan:
        raise ValueError(f"{work}: left by a conversion of another source, other options or another version; remove it")


def _plan_jobs(
    dst: Path, work: Path, rec: Path, faces: Images, label: np.ndarray, is_val: np.ndarray, resize: bool
) -> dict[str, list[Job]]:
    """Divide the images into shards. Returns the jobs that write them by split."""
    for old in (work / "done").glob("*.tmp"):
        old.unlink()
    (work / "store" / "val").mkdir(parents=True, exist_ok=True)
    jobs = {}
    for split, folder, wanted in (("val", work / "store" / "val", is_val), ("train", work / "store", ~is_val)):
        chosen = np.flatnonzero(wanted & (label >= 0))
        pieces = [chosen[i : i + shards.SHARD_RECORDS] for i in range(0, len(chosen), shards.SHARD_RECORDS)]
        jobs[split] = [
            Job(
                dst,
                rec,
                faces.number[piece],
                faces.offset[piece],
                faces.size[piece],
                faces.label[piece],
                label[piece],
                folder / name,
                work / "done" / f"{split}-{i:05d}.json",
                resize,
            )
            for i, (piece, name) in enumerate(zip(pieces, shards.shard_names(split, len(pieces))))
        ]
    return jobs


def _finish(
    work: Path,
    rec: Path,
    jobs: dict[str, list[Job]],
    names: np.ndarray,
    rejected: list[Rejected],
    counts: dict[str, Any],
) -> None:
    """Make stores of the finished shards, and check that every record is accounted for."""
    scanned = len(rejected)
    summaries = {split: [json.loads(job.done.read_text()) for job in part] for split, part in jobs.items()}
    written = {split: sum(s["records"] for s in part) for split, part in summaries.items()}
    bad = {
        split: [job.rejected(i, why) for job, s in zip(part, summaries[split]) for i, why in s["rejected"]]
        for split, part in jobs.items()
    }
    rejected = rejected + bad["train"] + ([] if written["val"] else bad.pop("val"))
    bad["train"] = sorted(rejected, key=lambda r: (r.offset, r.file))
    counts["read"] = scanned + sum(len(job.numbers) for part in jobs.values() for job in part)
    counts |= {"written": sum(written.values()), "rejected": sum(map(len, bad.values()))}
    assert counts["written"] + counts["rejected"] == counts["read"], counts
    if not written["train"]:
        raise ValueError(f"{rec}: not one usable image; the first rejected: {bad['train'][0].reason}")
    for split, part in jobs.items():
        folder = work / "store" / ("val" if split == "val" else "")
        if not written[split]:
            shutil.rmtree(folder)
            continue
        info = {"sources": [str(rec)], "recordio": counts}
        _describe(folder, split, part, summaries[split], names, bad[split], info)


def _describe(
    folder: Path,
    split: str,
    jobs: list[Job],
    summaries: list[dict[str, Any]],
    names: np.ndarray,
    rejected: list[Rejected],
    info: dict[str, Any],
) -> None:
    """Complete a directory of finished shards to a store."""
    digest, labels, sources = hashlib.sha256(), [], bytearray()
    for job, summary in zip(jobs, summaries):
        digest.update(job.done.with_suffix(".digests").read_bytes())
        bad = np.array([i for i, _ in summary["rejected"]], int)
        good = np.delete(np.arange(len(job.numbers)), bad)
        labels.append(job.labels[good])
        sources += "".join(f"{job.source(number)}\n" for number in job.numbers[good].tolist()).encode()
    write_metadata(
        folder,
        split,
        shards=[(summary["records"], summary["bytes"]) for summary in summaries],
        labels=np.concatenate(labels),
        sources=sources,
        identities=[str(name) for name in names],
        data_hash=digest.hexdigest(),
        rejected_by_reason=dict(Counter(r.kind for r in rejected).most_common()),
        rejected=[{k: v for k, v in r._asdict().items() if k != "end"} for r in rejected],
        info=info,
    )
