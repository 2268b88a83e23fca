"""Train a tiny InternViT on synthetic faces, for anything but verification: a base for adapters that needs no download.

    python -m fvjax.pretrain --dst=data/tiny_internvit

The tower learns, from its mean-pooled patch tokens, (1) what a shot adds to a face: pose, light, expression, occluders,
colours, by regression, on posed and occluded faces; (2) to classify a closed set of frontal, evenly lit, unoccluded
identities. None of the people is in any set that a config draws (their numbers start at a million), and no pair of
images is ever compared. The heads are thrown away; the tower is written in Hugging Face layout, in half precision.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import tempfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.progress import track
from safetensors.numpy import save_file

from fvjax import trees
from fvjax.data import synthetic
from fvjax.models import preprocess
from fvjax.models.vision_transformer import VisionTransformer, pool
from weights_convert.__main__ import invert

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


def draw(person: int, shots: int, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    """Faces uint8 [shots,112,112,3] of one person and their attributes float32 [shots, K]."""
    faces, _, attributes = synthetic.faces([person], shots, 0, difficulty)
    columns = [np.asarray(attributes[name], np.float32).reshape(shots, -1) for name in ATTRIBUTES]
    return faces, np.concatenate(columns, axis=1)


def draw_all(people: int, shots: int, difficulty: float) -> tuple[np.ndarray, np.ndarray]:
    jobs = [(FIRST + i, shots, difficulty) for i in range(people)]
    with multiprocessing.get_context("fork").Pool() as pool_of_processes:
        drawn = pool_of_processes.starmap(draw, track(jobs, f"drawing, difficulty {difficulty}"), chunksize=8)
    return np.concatenate([f for f, _ in drawn]), np.concatenate([a for _, a in drawn])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dst", type=Path, required=True, help="directory to write; must not exist")
    parser.add_argument("--people", type=int, default=500)
    parser.add_argument("--shots", type=int, default=6, help="of each person, frontal and again posed")
    parser.add_argument("--epochs", type=int, default=24)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--identity_weight", type=float, default=0.3)
    options = parser.parse_args()
    if options.dst.exists():
        parser.error(f"{options.dst} exists; choose a new directory")

    posed, attributes = draw_all(options.people, options.shots, 2.0)
    frontal, _ = draw_all(options.people, options.shots, 0.0)
    identities = np.repeat(np.arange(options.people, dtype=np.int32), options.shots)
    attributes = (attributes - attributes.mean(0)) / (attributes.std(0) + 1e-6)
    held = identities >= int(options.people * 0.95)  # people the attributes are measured on

    vision = CONFIG
    net = VisionTransformer(
        image_size=vision["image_size"],
        patch_size=vision["patch_size"],
        width=vision["hidden_size"],
        depth=vision["num_hidden_layers"],
        heads=vision["num_attention_heads"],
        mlp_dim=vision["intermediate_size"],
    )
    key = jax.random.key(0)
    outputs = attributes.shape[1] + options.people
    tower: dict[str, Any] = dict(net.init(key, jnp.zeros((1, 112, 112, 3)))["params"])
    # LayerScale starts at 0.1 for the sake of deep towers; four layers learn several times faster from 1
    tower["blocks"] |= {name: jnp.ones_like(tower["blocks"][name]) for name in ("ls1", "ls2")}
    params = {
        "tower": tower,
        "head": {"kernel": jax.random.normal(key, (128, outputs)) * 128**-0.5, "bias": jnp.zeros(outputs)},
    }

    def predict(params, faces):
        tokens: Any = net.apply({"params": params["tower"]}, preprocess.for_vit(faces, 112))
        x = pool(tokens, "mean")
        x = x @ params["head"]["kernel"] + params["head"]["bias"]
        return x[:, : attributes.shape[1]], x[:, attributes.shape[1] :]

    def loss_fn(params, posed, attributes, frontal, identities):
        found, _ = predict(params, posed)
        _, logits = predict(params, frontal)
        closed_set = optax.softmax_cross_entropy_with_integer_labels(logits, identities).mean()
        error = jnp.square(found - attributes).mean()
        return error + options.identity_weight * closed_set, (error, closed_set)

    train = np.flatnonzero(~held)
    batch = 48
    steps = options.epochs * (len(train) // batch)
    rate = optax.warmup_cosine_decay_schedule(0.0, options.lr, steps // 20, steps)
    tx = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=0.05))
    state = tx.init(params)

    @jax.jit
    def step(params, state, *data):
        (_, values), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, *data)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state, values

    rng = np.random.default_rng(0)
    values = (jnp.zeros(()), jnp.zeros(()))
    for epoch in range(options.epochs):
        a, b = rng.permutation(train), rng.permutation(train)
        for i in track(range(len(train) // batch), f"epoch {epoch + 1}/{options.epochs}"):
            p, f = a[i * batch : (i + 1) * batch], b[i * batch : (i + 1) * batch]
            params, state, values = step(params, state, posed[p], attributes[p], frontal[f], identities[f])
        print(
            f"epoch {epoch + 1}: attributes {float(values[0]):.3f} (1 is the mean), identities {float(values[1]):.3f}"
        )

    found = np.concatenate([jax.jit(predict)(params, part)[0] for part in np.array_split(posed[held], 4)])
    explained = 1 - np.square(found - attributes[held]).mean(0) / attributes[held].var(0)
    names = [n for n in ATTRIBUTES for _ in range(3 if n in ("skin", "hair", "iris_colour") else 1)]
    measured = {n: round(float(np.mean(explained[[m == n for m in names]])), 2) for n in ATTRIBUTES}
    print("variance explained on people not trained on:", json.dumps(measured))

    # written by the converter's own inverse, so that the file has the original's keys and layouts
    flat = {f"params/{name}": np.asarray(v, np.float16) for name, v in trees.flatten(params["tower"]).items()}
    with tempfile.TemporaryDirectory() as converted:
        config = {**CONFIG, "fvjax": {"format": 1, "prefix": ""}}
        (Path(converted) / "config.json").write_text(json.dumps(config))
        save_file({n: np.ascontiguousarray(v) for n, v in flat.items()}, Path(converted) / "model.safetensors")
        invert(converted, options.dst)


if __name__ == "__main__":
    main()
