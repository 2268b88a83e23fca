"""Writing the shards of a conversion in several processes, each shard restartable."""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fvjax.data import images
from fvjax.data.readers.recordio.records import Rejected, location, parse, read_bytes
from fvjax.data.stores.shards import ShardWriter


class Job(NamedTuple):
    """A shard to write, from n records of a .rec."""

    dst: Path  # the store, which errors name
    rec: Path
    numbers: np.ndarray  # int64 [n]
    offsets: np.ndarray  # int64 [n]
    sizes: np.ndarray  # int32 [n]
    names: np.ndarray  # int32 [n], the labels in the .rec
    labels: np.ndarray  # int64 [n], the labels in the store
    file: Path
    done: Path  # JSON about the finished shard; beside it .digests with 32 bytes a record
    resize: bool

    def source(self, number: int) -> str:
        """Return what the store notes as the source of a record."""
        return f"{self.rec.name}#{number}"

    def rejected(self, i: int, reason: str) -> Rejected:
        start = int(self.offsets[i])
        return Rejected(str(self.rec), int(self.numbers[i]), start, start + int(self.sizes[i]), reason)


def write_shard(job: Job) -> int:
    """Write one shard unless it is finished already, and return the number of records it was made from.

    If the process stops at any moment, no file is left that looks finished.
    """
    if job.done.is_file() and json.loads(job.done.read_text())["sha256"] == _sha256(job.file):
        return len(job.numbers)
    tmp = job.done.with_name(f"{job.done.stem}.{os.getpid()}.tmp")
    shard = ShardWriter(tmp, job.dst)
    try:
        digests, rejected = _convert_records(job, shard)
        shard.close()
    except BaseException:
        shard.abandon()
        tmp.unlink(missing_ok=True)
        raise
    summary = {"records": shard.records, "bytes": shard.bytes, "rejected": rejected, "sha256": _sha256(tmp)}
    tmp.replace(job.file)
    job.done.with_suffix(".digests").write_bytes(digests)
    tmp.write_text(json.dumps(summary))
    tmp.replace(job.done)
    return len(job.numbers)


def _convert_records(job: Job, shard: ShardWriter) -> tuple[bytearray, list[tuple[int, str]]]:
    """Append the job's records to ``shard``. Return their digests, and (index, reason) of each rejected record."""
    digests, rejected = bytearray(), []
    columns = job.numbers, job.offsets, job.sizes, job.names, job.labels
    with open(job.rec, "rb") as file:
        for i, (number, offset, size, name, label) in enumerate(zip(*(column.tolist() for column in columns))):
            record = location(job.rec, number, offset)
            try:
                *_, image, _ = parse(read_bytes(file, offset, size))
            except ValueError as error:
                raise ValueError(f"{job.rec}: changed while it was read: {record}: {error}") from error
            try:
                jpeg = images.to_jpeg(image, record, job.resize)
                images.check(jpeg, record)
            except images.WrongSize as error:  # all images are likely to have that size
                raise ValueError(f"{job.rec}: {error}") from error
            except ValueError as error:
                rejected.append((i, str(error)))
                continue
            digests += shard.add(jpeg, label, str(name), job.source(number))
    return digests, rejected


def run_jobs(jobs: list[Job], workers: int) -> Iterator[int]:
    """Write shards in so many processes, and yield the number of records of each finished one."""
    workers = min(workers, len(jobs))
    if workers == 1:
        yield from map(write_shard, jobs)
        return
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker)
    try:
        for future in as_completed([pool.submit(write_shard, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise OSError("a worker was killed, perhaps for lack of memory; try fewer --workers") from error
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Set up a worker: it ignores interrupts, which its parent handles, and exits when its parent has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    images.silence_pillow()
    parent = multiprocessing.parent_process()
    assert parent is not None

    def exit_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=exit_with_parent, daemon=True).start()


def _sha256(file: Path) -> str:
    if not file.is_file():
        return ""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
