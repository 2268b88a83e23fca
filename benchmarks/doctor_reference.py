"""Make the figures with which `python -m fvjax.doctor` compares: fvjax/diagnosis/reference.json.

    python -m benchmarks.doctor_reference STORE [STORE …] > fvjax/diagnosis/reference.json

The stores are of sound crops, as `python -m fvjax.data.prepare lfw` and `cfp` make them. What is written is the place,
size and depth of the parts of a face, fitted to the mean face of the stores (each counts alike), and of each store the
figures that the checks look at. No picture is written.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from fvjax.diagnosis import mean_face, pictures
from fvjax.diagnosis.face_sets import open_faces

SAMPLE = 1000  # pictures of each store
# Where the fit starts: x, y, half width, half height (pixels) and depth of eyes, nose, corners of the mouth, cheeks,
# bridge of the nose and forehead.
START = np.array(
    [
        [38, 49, 9, 6, -1.6],
        [74, 49, 9, 6, -1.6],
        [56, 75, 8, 4, -0.8],
        [45, 89, 7, 4, -1.0],
        [67, 89, 7, 4, -1.0],
        [33, 66, 8, 8, 1.0],
        [79, 66, 8, 8, 1.0],
        [56, 62, 5, 10, 1.0],
        [56, 36, 18, 7, 1.0],
    ]
)


def fit(mean: NDArray) -> NDArray:
    """Fit the parts of a face to a mean map of contrast [56, 56]: float [P, 5], see `mean_face.draw`."""
    weights = np.sqrt(mean_face.draw(START, (1.0, 1.0))[1])

    def error(values: NDArray) -> NDArray:
        drawing, _ = mean_face.draw(values[1:].reshape(START.shape), (1.0, 1.0))
        return (weights * (drawing + values[0] - mean)).ravel()

    low, high = START - np.array([8, 8, 5, 3, 1.5]), START + np.array([8, 8, 8, 8, 1.5])
    bounds = np.r_[-1, low.ravel()], np.r_[1, high.ravel()]
    return least_squares(error, np.r_[0, START.ravel()], bounds=bounds).x[1:].reshape(START.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("stores", nargs="+", type=Path)
    samples = {}
    for path in parser.parse_args().stores:
        faces = open_faces(path)
        samples[path.name] = faces.faces(faces.sample(SAMPLE))
    parts = fit(np.mean([mean_face.contrast(faces).mean(0) for faces in samples.values()], 0))
    figures = {name: pictures.figures(faces, parts) for name, faces in samples.items()}
    print(json.dumps({"parts": parts.round(2).tolist(), "measured": figures}, indent=1))


if __name__ == "__main__":
    main()
