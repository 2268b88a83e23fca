"""Train a tiny InternViT on synthetic faces, for anything but verification: a base for adapters that needs no download.

    python -m fvjax.pretrain --dst=data/tiny_internvit

From a posed, hard-lit, occluded face the tower learns (1) face parsing: every patch token gives its patch painted in
one colour per part (skin, hair, lips, …), unlit and without the occluder; (2) attributes of the shot, from the
mean-pooled patch tokens: pose, light, expression, occluders, colours. Neither says who it is. None of the people is in
any set that a config draws (their numbers start at a million), and no pair of images is ever compared. The heads are
thrown away; the tower is written in Hugging Face layout, in half precision.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track

from fvjax import trees
from fvjax.data import cartoon, synthetic
from fvjax.models import encoder
from fvjax.models.vision_transformer import pool
from weights_convert import internvit
from weights_convert.write import write_original

FIRST = 1_000_000  # number of the first person; quickstart and its test set count from 0
CONFIG = {  # of a bare InternViT, with the names of OpenGVLab's configuration
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
SIDE = 56  # of the parsed picture
PARTS: dict[str, Any] = {  # what a shot's attributes become in it
    **{name: 0.0 for name in ("light", "blur", "noise")},
    **{name: False for name in ("glasses", "scarf", "bar")},
    "skin": np.array([0.9, 0.1, 0.5]),
    "hair": np.array([0.1, 0.9, 0.1]),
    "lips": np.array([0.1, 0.1, 0.9]),
    "iris_colour": np.zeros(3),
    "clothes": np.array([0.0, 0.3, 0.3]),
    "backdrop": np.zeros((2, 3)),
}


def draw(person: int, shots: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of one person: faces uint8 [shots,112,112,3], parsed uint8 [shots,56,56,3], attributes float32 [shots,K]."""
    shape = synthetic.identity_shape(person, 0)
    attributes = [synthetic.shot_attributes(person, k, 0, DIFFICULTY) for k in range(shots)]
    faces = np.stack([cartoon.render(shape, shot) for shot in attributes])
    parsed = np.stack([cartoon.render(shape, {**shot, **PARTS}) for shot in attributes])
    parsed = parsed.reshape(shots, SIDE, 2, SIDE, 2, 3).mean((2, 4)).astype(np.uint8)
    columns = [np.concatenate([np.ravel(shot[name]) for name in ATTRIBUTES]) for shot in attributes]
    return faces, parsed, np.stack(columns).astype(np.float32)


def draw_all(people: int, shots: int) -> list[np.ndarray]:
    with multiprocessing.get_context("fork").Pool() as workers:
        jobs = track([(FIRST + i, shots) for i in range(people)], "drawing")
        return [np.concatenate(part) for part in zip(*workers.starmap(draw, jobs, chunksize=8))]


def write(tower: dict[str, Any], dst: Path) -> None:
    """In half precision."""
    write_original(dst, {f"params/{n}": np.asarray(v, np.float16) for n, v in trees.flatten(tower).items()}, CONFIG)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dst", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--people", type=int, default=5000)
    parser.add_argument("--shots", type=int, default=2, help="of each person")
    parser.add_argument("--epochs", type=int, default=16)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=64)
    options = parser.parse_args()
    if options.dst.exists():
        parser.error(f"{options.dst} exists; choose a new directory")

    faces, parsed, attributes = draw_all(options.people, options.shots)
    attributes = (attributes - attributes.mean(0)) / (attributes.std(0) + 1e-6)
    held = np.arange(len(faces)) >= int(options.people * 0.95) * options.shots  # people it is measured on
    middle = jnp.asarray(parsed.mean(0) / 255)
    variance = float(parsed.astype(np.float32).var(0).mean()) / 255**2

    vit = encoder.build("vision_transformer", internvit.model_config(CONFIG, "CONFIG"), "mean")
    keys, grid = jax.random.split(jax.random.key(0), 3), CONFIG["image_size"] // CONFIG["patch_size"]
    width, patch = CONFIG["hidden_size"], SIDE // grid

    def head(key, size):
        return {"kernel": jax.random.normal(key, (width, size)) * width**-0.5, "bias": jnp.zeros(size)}

    params: dict[str, Any] = {
        "tower": vit.init(keys[0])["params"],
        "parsed": head(keys[1], patch * patch * 3),
        "attributes": head(keys[2], attributes.shape[1]),
    }
    # LayerScale starts at 0.1 for the sake of deep towers; four layers learn several times faster from 1
    params["tower"]["blocks"] |= {name: jnp.ones_like(params["tower"]["blocks"][name]) for name in ("ls1", "ls2")}

    def predict(params, faces):
        """[N,56,56,3] and [N,K]"""
        tokens: Any = vit.net.apply({"params": params["tower"]}, vit.pixels(faces))
        parts = tokens[:, 1:] @ params["parsed"]["kernel"] + params["parsed"]["bias"]
        parts = parts.reshape(-1, grid, grid, patch, patch, 3).swapaxes(2, 3).reshape(-1, SIDE, SIDE, 3)
        found = pool(tokens, "mean") @ params["attributes"]["kernel"] + params["attributes"]["bias"]
        return middle + parts * variance**0.5, found

    def loss_fn(params, faces, parsed, attributes):
        parts, found = predict(params, faces)
        errors = jnp.square(parts - parsed / 255).mean() / variance, jnp.square(found - attributes).mean()
        return sum(errors), errors

    train = np.flatnonzero(~held)
    steps = len(train) // options.batch
    rate = optax.warmup_cosine_decay_schedule(0.0, options.lr, options.epochs * steps // 20, options.epochs * steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))
    state = tx.init(params)

    @jax.jit
    def step(params, state, *data):
        (_, errors), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, *data)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, errors

    rng = np.random.default_rng(0)
    for epoch in range(options.epochs):
        total, order = np.zeros(2), rng.permutation(train)[: steps * options.batch].reshape(steps, -1)
        for rows in track(order, f"epoch {epoch + 1}/{options.epochs}"):
            params, state, errors = step(params, state, faces[rows], parsed[rows], attributes[rows])
            total += np.array(errors)
        parts, others = total / steps
        print(f"epoch {epoch + 1}: error of parts {parts:.3f}, of attributes {others:.3f} (1 is the mean's)")

    found = [jax.jit(predict)(params, part) for part in np.array_split(faces[held], 4)]
    parts, found = (np.concatenate(x) for x in zip(*found))
    left = np.square(parts - parsed[held] / 255).mean() / np.square(parsed[held] / 255 - middle).mean()
    explained = 1 - np.square(found - attributes[held]).mean(0) / attributes[held].var(0)
    names = [n for n in ATTRIBUTES for _ in range(3 if n in ("skin", "hair", "iris_colour") else 1)]
    measured = {n: round(float(np.mean(explained[[m == n for m in names]])), 2) for n in ATTRIBUTES}
    measured = {"parts": round(float(1 - left), 2), **measured}
    print("variance explained on people not trained on:", json.dumps(measured))
    write(params["tower"], options.dst)


if __name__ == "__main__":
    main()
