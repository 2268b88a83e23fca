"""Measure `fvjax.verify` on photographs: accuracy against that of ready crops, and seconds per pair.

    python benchmarks/photographs.py --model=RUN --photographs=DIR --crops=DIR --pairs=pairs.txt

Every pair of the list whose two files are in both folders is compared twice: from the photographs, in each of which the
face nearest the centre is found and aligned, and from the aligned 112x112 crops. Both accuracies are at the threshold
that is best on these pairs, and at the threshold that verify uses. A photograph in which no face is found counts as an
error at every threshold. The time of a pair includes reading, finding and aligning the faces of both files and
embedding them, but not opening the model.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
from numpy.typing import NDArray

from fvjax import verify
from fvjax.data.readers.benchmark_lists import NamedPair, read_lfw


def scores_of(verifier: verify.Verifier, folder: Path, pairs: Sequence[NamedPair]) -> tuple[NDArray, list[float]]:
    """Return the score of each pair, NaN without a face in one of its files, and the seconds that each took."""
    scores, seconds = [], []
    for pair in pairs:
        start = time.perf_counter()
        try:
            scores.append(verifier.compare(folder / pair.a, folder / pair.b)["score"])
        except ValueError as error:
            print(error)
            scores.append(np.nan)
        seconds.append(time.perf_counter() - start)
    return np.array(scores), seconds


def accuracy(scores: NDArray, same: NDArray, threshold: float | None = None) -> float:
    """Return the accuracy at a threshold, None for the best one. NaN is wrong."""
    thresholds = [*scores[np.isfinite(scores)], np.inf] if threshold is None else [threshold]
    return max(float((np.isfinite(scores) & ((scores >= t) == same)).mean()) for t in thresholds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--model", "--photographs", "--crops", "--pairs"):
        parser.add_argument(name, type=Path, required=True)
    options = parser.parse_args()
    folders = options.photographs, options.crops
    listed = read_lfw(options.pairs)
    pairs = [p for p in listed if all((folder / file).is_file() for folder in folders for file in (p.a, p.b))]
    same = np.array([pair.identity_a == pair.identity_b for pair in pairs])
    print(f"{len(pairs)} of {len(listed)} pairs have their files in both folders, {same.sum()} of one person")
    verifier = verify.Verifier(options.model)
    for what, folder in zip(("photographs", "crops"), folders):
        scores, seconds = scores_of(verifier, folder, pairs)
        line = f"{what}: {100 * accuracy(scores, same):.2f}% at the best threshold"
        if verifier.threshold is not None:
            line += f", {100 * accuracy(scores, same, verifier.threshold):.2f}% at {verifier.threshold:.4f}"
        # The first pair compiles the model.
        print(f"{line}; {np.isnan(scores).sum()} without a face; {np.median(seconds[1:]):.3f} s a pair (median)")


if __name__ == "__main__":
    main()
