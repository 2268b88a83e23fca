"""Measure `prepare recordio` on a million synthetic records: records per second and core, and the memory over time.

    python benchmarks/recordio.py [--records=1000000] [--workers=1] [--dir=FOLDER]

The program writes a .rec from 400 synthetic faces (4:2:0, about 3 KB, like MS1M's). Each face occurs many times, always
with new labels and 68 images per identity. The files are in a temporary folder (5 GB with the store; --dir=/dev/shm
avoids the disk). The command itself converts the .rec. The resident memory of the command and its workers is sampled
every 50 ms and summed. The time is that of the whole command, including start and imports; it is also printed without
them, and as processor time.
"""

import argparse
import os
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import simplejpeg

from fvjax.data import stores, synthetic
from fvjax.data.readers.recordio.records import HEAD, IRHEADER, MAGIC
from fvjax.data.stores import shards

PER_IDENTITY = 68  # MS1M: 5.8 million images of 85 thousand identities


def write(rec: Path, records: int) -> float:
    """Write a .rec of `records` records and return the mean number of bytes of an image."""
    rng = np.random.default_rng(0)
    faces = []
    for i in range(400):
        face = np.ascontiguousarray(synthetic.face(i % 100, i // 100, 0))
        quality = int(rng.integers(70, 88))
        faces.append(simplejpeg.encode_jpeg(face, quality=quality, colorspace="RGB", colorsubsampling="420"))
    bodies = [(face + bytes(-(len(face) + IRHEADER.size) % 4), len(face) + IRHEADER.size) for face in faces]
    with open(rec, "wb", buffering=1 << 24) as file:
        for i, face in enumerate(rng.integers(0, len(faces), records).tolist()):
            body, length = bodies[face]
            file.write(HEAD.pack(MAGIC, length) + struct.pack("<IfQQ", 0, i // PER_IDENTITY, i + 1, 0) + body)
    return float(np.mean([len(face) for face in faces]))


def resident(pid: int) -> int:
    """Return the resident bytes of a process and its children."""
    total = 0
    try:
        total += int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            total += resident(int(child))
    except (FileNotFoundError, ProcessLookupError):
        pass  # the process has just ended
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--dir", type=Path, help="a folder with enough space (default: the system's temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        rec, dst = Path(folder) / "train.rec", Path(folder) / "store"
        size = write(rec, options.records)
        command = [sys.executable, "-m", "fvjax.data.prepare", "recordio"]
        command += [f"--src={rec}", f"--dst={dst}", f"--workers={options.workers}"]
        done, shard_count = Path(folder) / ".store.partial/done", -(-options.records // shards.SHARD_RECORDS)
        start, begun, peak, at = time.perf_counter(), 0.0, 0, {}
        process = subprocess.Popen(command, cwd=Path(__file__).parent.parent)
        while process.poll() is None:
            begun = begun or (time.perf_counter() - start if done.exists() else 0.0)
            peak = max(peak, resident(process.pid))
            finished = len(list(done.glob("*.json"))) / shard_count if done.exists() else 1.0 if begun else 0.0
            at |= {part: peak for part in (0.25, 0.5, 1.0) if finished >= part and part not in at}
            time.sleep(0.05)
        seconds = time.perf_counter() - start
        at[1.0] = peak
        assert process.returncode == 0
        assert len(stores.Store(dst)) + len(stores.Store(dst / "val", "val")) == options.records
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    for what, time_ in (("whole command", seconds), ("without start and import", seconds - begun)):
        rate = options.records / time_
        print(f"{what}: {time_:.1f} s, {rate:,.0f} records/s, {rate / options.workers:,.0f} per worker and second")
    busy = usage.ru_utime + usage.ru_stime
    print(f"processor time: {busy:.1f} s, {options.records / busy:,.0f} records per processor second")
    print(f"{options.records:,} records, {size:,.0f} bytes per image, {options.workers} workers; peak memory up to")
    print(", ".join(f"{part:.0%}: {at[part] / 2**20:,.0f} MiB" for part in sorted(at)))


if __name__ == "__main__":
    main()
