"""Measure the JPEGs per second that one core reads, decodes and batches, and those that libjpeg-turbo alone decodes.

    python benchmarks/decode.py [--store=DIR]

--store: a store with the split "test". Without one, synthetic faces are used. Their JPEGs are two to three times as
large as those of photographs.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import simplejpeg

from fvjax.data import pipeline, synthetic
from fvjax.data.stores import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", help="a face store with the split test")
    directory = parser.parse_args().store
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory() as folder:
        if directory:
            store = Store(directory, "test")
        else:
            store = synthetic.write(Path(folder) / "faces", range(128), 8, 0, split="test")
        order = np.random.default_rng(0).integers(0, len(store), 8192)
        jpegs = [store.jpeg(i) for i in order]
        buffer = np.empty((112, 112, 3), np.uint8)
        rates, alone = [], []
        for _ in range(5):
            start = time.perf_counter()
            count = sum(real for _, real in pipeline.eval_batches(store, order, 128, threads=1))
            rates.append(count / (time.perf_counter() - start))
            start = time.perf_counter()
            for jpeg in jpegs:
                simplejpeg.decode_jpeg(jpeg, colorspace="RGB", buffer=buffer)
            alone.append(len(jpegs) / (time.perf_counter() - start))
    for what, each in (("read, decode and batch", rates), ("libjpeg-turbo alone", alone)):
        print(f"{what}, one core: {statistics.median(each):,.0f} JPEG/s ({min(each):,.0f} to {max(each):,.0f})")
    print(f"{np.mean([len(jpeg) for jpeg in jpegs]):,.0f} bytes a JPEG")


if __name__ == "__main__":
    main()
