"""Pretrain a tiny InternViT on synthetic faces, without verification: a base for adapters that needs no download.

    python -m fvjax.pretrain --dst=data/tiny_internvit

From a posed, hard-lit and occluded face the tower learns two tasks, neither of which tells who the person is:

1. Face parsing: every patch token predicts its patch painted in one colour per part (skin, hair, lips, …), without
   light and occluders.
2. Attributes of the shot, from the mean of the patch tokens: pose, light, expression, occluders, colours.

None of the people is in a set that a config generates (their numbers start at a million), and images are never
compared in pairs. The heads are discarded; the tower is written in Hugging Face layout, in half precision.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from fvjax import startup, trees
from fvjax.data import cartoon, synthetic
from fvjax.models import encoder
from fvjax.models.vision_transformer import pool
from weights_convert import internvit
from weights_convert.write import write_original

FIRST_PERSON = 1_000_000  # quickstart and its test set count from 0
CONFIG = {  # config.json of a bare InternViT, with the keys of OpenGVLab's
    "architectures": ["InternVisionModel"],
    "model_type": "intern_vit_6b",
    "image_size": 112,
    "patch_size": 14,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "qkv_bias": True,
    "qk_normalization": False,
    "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6,
    "hidden_act": "gelu",
    "drop_path_rate": 0.0,
    "num_channels": 3,
    "torch_dtype": "float16",
}
ATTRIBUTES = (
    "yaw", "pitch", "roll", "light_x", "light_y", "light", "smile", "mouth_open", "eye_open", "brow_raise", "glasses",
    "scarf", "bar", "skin", "hair", "iris_colour", "blur",
)  # fmt: skip
DIFFICULTY = 2.0  # as in configs/quickstart.py
GRID = CONFIG["image_size"] // CONFIG["patch_size"]  # patches along each side
SIDE = 56  # of a parsed image, in pixels
PARTS: dict[str, Any] = {  # attributes that replace a shot's own in its parsed image
    **{name: 0.0 for name in ("light", "blur", "noise")},
    **{name: False for name in ("glasses", "scarf", "bar")},
    "skin": np.array([0.9, 0.1, 0.5]),
    "hair": np.array([0.1, 0.9, 0.1]),
    "lips": np.array([0.1, 0.1, 0.9]),
    "iris_colour": np.zeros(3),
    "clothes": np.array([0.0, 0.3, 0.3]),
    "backdrop": np.zeros((2, 3)),
}


def generate_person(person: int, shots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Generate one person's faces uint8 [shots,112,112,3], parsed images uint8 [shots,56,56,3] and attributes.

    The attributes are float32 [shots,K], with three columns for a colour.
    """
    shape = synthetic.identity_shape(person, 0)
    attributes = [synthetic.shot_attributes(person, k, 0, DIFFICULTY) for k in range(shots)]
    faces = np.stack([cartoon.render(shape, shot) for shot in attributes])
    parsed = np.stack([cartoon.render(shape, {**shot, **PARTS}) for shot in attributes])
    parsed = parsed.reshape(shots, SIDE, 2, SIDE, 2, 3).mean((2, 4)).astype(np.uint8)
    columns = [np.concatenate([np.ravel(shot[name]) for name in ATTRIBUTES]) for shot in attributes]
    return faces, parsed, np.stack(columns).astype(np.float32)


def generate(people: int, shots: int) -> list[np.ndarray]:
    """Generate the faces, parsed images and attributes of all people, in several processes."""
    with multiprocessing.get_context("fork").Pool() as workers:
        jobs = track([(FIRST_PERSON + i, shots) for i in range(people)], "drawing")
        return [np.concatenate(part) for part in zip(*workers.starmap(generate_person, jobs, chunksize=8))]


@dataclass(frozen=True, eq=False)
class Model:
    """The tower with a parsing head on its patch tokens and an attribute head on their mean."""

    vit: encoder.Encoder
    mean: jax.Array  # of the parsed images, [56,56,3] from 0 to 1
    variance: float  # of the parsed images, over all pixels

    def init(self, attributes: int) -> dict[str, Any]:
        """Initialise the tower and the heads; ``attributes`` is the number of attribute columns."""
        keys = jax.random.split(jax.random.key(0), 3)
        width, patch = CONFIG["hidden_size"], SIDE // GRID

        def head(key, size):
            return {"kernel": jax.random.normal(key, (width, size)) * width**-0.5, "bias": jnp.zeros(size)}

        params: dict[str, Any] = {
            "tower": self.vit.init(keys[0])["params"],
            "parsed": head(keys[1], patch * patch * 3),
            "attributes": head(keys[2], attributes),
        }
        # LayerScale starts at 0.1 for the sake of deep towers; four layers learn several times faster from 1.
        params["tower"]["blocks"] |= {name: jnp.ones_like(params["tower"]["blocks"][name]) for name in ("ls1", "ls2")}
        return params

    def predict(self, params, faces) -> tuple[jax.Array, jax.Array]:
        """Predict parsed images [N,56,56,3], from 0 to 1, and standardised attributes [N,K]."""
        patch = SIDE // GRID
        tokens: Any = self.vit.net.apply({"params": params["tower"]}, self.vit.pixels(faces))
        parsed = tokens[:, 1:] @ params["parsed"]["kernel"] + params["parsed"]["bias"]
        parsed = parsed.reshape(-1, GRID, GRID, patch, patch, 3).swapaxes(2, 3).reshape(-1, SIDE, SIDE, 3)
        attributes = pool(tokens, "mean") @ params["attributes"]["kernel"] + params["attributes"]["bias"]
        return self.mean + parsed * self.variance**0.5, attributes

    def loss(self, params, faces, parsed, attributes):
        """Return the sum of both relative squared errors, and the two of them."""
        predicted, predicted_attributes = self.predict(params, faces)
        errors = (
            jnp.square(predicted - parsed / 255).mean() / self.variance,
            jnp.square(predicted_attributes - attributes).mean(),
        )
        return sum(errors), errors


def train(model: Model, params: dict[str, Any], data: list[np.ndarray], rows: np.ndarray, options) -> dict[str, Any]:
    """Train the tower and its heads on these rows of the data."""
    steps = len(rows) // options.batch
    rate = optax.warmup_cosine_decay_schedule(0.0, options.lr, options.epochs * steps // 20, options.epochs * steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))
    state = tx.init(params)

    @jax.jit
    def step(params, state, *batch):
        (_, errors), grads = jax.value_and_grad(model.loss, has_aux=True)(params, *batch)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, errors

    rng = np.random.default_rng(0)
    for epoch in range(options.epochs):
        total = np.zeros(2)
        batches = rng.permutation(rows)[: steps * options.batch].reshape(steps, -1)
        for batch in track(batches, f"epoch {epoch + 1}/{options.epochs}"):
            params, state, errors = step(params, state, *(part[batch] for part in data))
            total += np.array(errors)
        of_parts, of_attributes = total / steps
        print(
            f"epoch {epoch + 1}: error of parts {of_parts:.3f}, of attributes {of_attributes:.3f} "
            "(1 is the error of predicting the mean)"
        )
    return params


def explained_variance(model: Model, params: dict[str, Any], data: list[np.ndarray]) -> dict[str, float]:
    """Measure the share of variance that the heads explain: of the parsed images and of each attribute."""
    faces, parsed, attributes = data
    predictions = [jax.jit(model.predict)(params, part) for part in np.array_split(faces, 4)]
    predicted, predicted_attributes = (np.concatenate(x) for x in zip(*predictions))
    error = np.square(predicted - parsed / 255).mean() / np.square(parsed / 255 - model.mean).mean()
    explained = 1 - np.square(predicted_attributes - attributes).mean(0) / attributes.var(0)
    columns = [n for n in ATTRIBUTES for _ in range(3 if n in ("skin", "hair", "iris_colour") else 1)]
    by_name = {n: round(float(np.mean(explained[[m == n for m in columns]])), 2) for n in ATTRIBUTES}
    return {"parts": round(float(1 - error), 2), **by_name}


def write(tower: dict[str, Any], dst: Path) -> None:
    """Write the tower in Hugging Face layout, in half precision."""
    write_original(dst, {f"params/{n}": np.asarray(v, np.float16) for n, v in trees.flatten(tower).items()}, CONFIG)


def main() -> None:
    parser = startup.Parser(
        prog="python -m fvjax.pretrain", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--dst", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--people", type=int, default=5000)
    parser.add_argument("--shots", type=int, default=2, help="images of each person")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    if options.dst.exists():
        parser.error(f"{options.dst} exists; choose a new directory")

    faces, parsed, attributes = generate(options.people, options.shots)
    attributes = (attributes - attributes.mean(0)) / (attributes.std(0) + 1e-6)
    is_test = np.arange(len(faces)) >= int(options.people * 0.95) * options.shots

    vit = encoder.build("vision_transformer", internvit.model_config(CONFIG, "CONFIG"), "mean")
    mean = jnp.asarray(parsed.mean(0) / 255)
    model = Model(vit, mean, float(parsed.astype(np.float32).var(0).mean()) / 255**2)
    data = [faces, parsed, attributes]
    params = train(model, model.init(attributes.shape[1]), data, np.flatnonzero(~is_test), options)
    explained = explained_variance(model, params, [part[is_test] for part in data])
    print("variance explained on people not trained on:", json.dumps(explained))
    write(params["tower"], options.dst)


if __name__ == "__main__":
    startup.run(main)
