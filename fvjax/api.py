"""A model as a function from faces to embeddings: `fvjax.load` of a checkpoint, `load_workdir` of a run's directory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import weights_convert
from fvjax import lora, run_state, trees
from fvjax.config import Config, base, flatten
from fvjax.models import encoder
from weights_convert.read import load_json

KINDS = {"resnet": "iresnet", "vit": "vision_transformer"}
# Config keys (or the start of some) that decide what a trained model computes.
NEEDED = ("model", "init_from", "base_dtype", "lora", "trainable", "dtype", "eval.flip_sum", "epochs", "seed")
BATCH = {"resnet": 64, "vit": 16}  # images at a time; 16 at 448 pixels take about 1 GB in attention


@dataclass(frozen=True)
class Run:
    """Where the model of a workdir comes from. `base_hash` is "" where there is no base."""

    config: Config
    step: int
    base_hash: str


class Model:
    """What :func:`load` and :func:`load_workdir` return; `run` says which run and step of it, None for a checkpoint."""

    def __init__(self, encoder: encoder.Encoder, variables: dict[str, Any], batch_size: int, precision: str):
        self.run: Run | None = None
        self.encoder, self.variables, self.batch_size, self._precision = encoder, variables, batch_size, precision
        self._embed = jax.jit(lambda variables, faces: encoder(variables, faces)[0])

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Faces uint8 [N,112,112,3], aligned, RGB -> float32 [N,D], not normalised. ValueError: anything else."""
        faces = np.asarray(faces)
        if faces.dtype != np.uint8 or faces.ndim != 4 or faces.shape[1:] != (112, 112, 3):
            raise ValueError(f"faces must be uint8 [N,112,112,3], not {faces.dtype} {list(faces.shape)}")
        out = []
        for start in range(0, max(len(faces), 1), self.batch_size):
            part = faces[start : start + self.batch_size]
            size = 1 << max(len(part) - 1, 0).bit_length()  # powers of two: few shapes, so few compilations
            padded = np.concatenate([part, np.zeros((size - len(part), 112, 112, 3), np.uint8)])
            with jax.default_matmul_precision(self._precision):
                out.append(np.asarray(self._embed(self.variables, padded))[: len(part)])
        return np.concatenate(out)

    def p_same(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Two times uint8 [N,112,112,3] -> float32 [N]: only scenario "pair" has it."""
        raise ValueError('p_same needs a model loaded with scenario="pair"; compare embeddings by cosine instead')


def load(
    path: str | Path,
    scenario: Literal["resnet", "vit", "mllm", "pair"],
    adapters: str | Path | None = None,
    pool: Literal["mean", "cls"] | None = None,
    prompt_ids: Sequence[int] | None = None,
    yes_no_ids: Sequence[int] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Model:
    """Load a model for inference.

    Args:
        path: directory in Hugging Face layout, or one that ``python -m weights_convert`` wrote. For the workdir of a
            training run there is :func:`load_workdir`.
        scenario: "resnet" (IResNet) or "vit" (vision tower of InternVL2, or InternViT alone).
            "mllm" and "pair" need the decoder, which this version does not have.
        adapters: safetensors file in PEFT's layout, for "vit"; see ``weights_convert.read_adapters``.
        pool: for "vit" "mean" over the patch tokens (None means this) or "cls"; must be None for "resnet".
        prompt_ids, yes_no_ids: for "mllm" and "pair" only.
        dtype: what is computed in. In float32 matrix products are float32 too, also on devices with TF32.
    Raises:
        ValueError: an argument that does not go with the scenario, or a directory or file that does not fit.
    """
    if scenario in ("mllm", "pair"):
        raise ValueError(f'scenario="{scenario}" needs the language decoder, which this version does not have yet')
    if scenario not in KINDS:
        raise ValueError(f'scenario={scenario!r} is unknown; there are "resnet" and "vit"')
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f'dtype={dtype!r} is unknown; there are "float32" and "bfloat16"')
    if prompt_ids is not None or yes_no_ids is not None:
        raise ValueError(f'prompt_ids and yes_no_ids do not go with scenario="{scenario}"')
    if scenario == "resnet" and (pool is not None or adapters is not None):
        raise ValueError('scenario="resnet" takes neither pool nor adapters')
    if is_workdir(path):
        raise ValueError(f"{path} is a workdir of python -m fvjax.main; open it with fvjax.api.load_workdir")
    kind, attributes, leaves = weights_convert.read(path)
    if kind != KINDS[scenario]:
        raise ValueError(f'{path} holds a {kind}, but scenario="{scenario}" needs a {KINDS[scenario]}')
    pooling = "" if scenario == "resnet" else pool or "mean"
    model = encoder.build(kind, attributes, pooling, dtype=jnp.dtype(dtype))
    # half-precision weights stay as they are for bfloat16 computation: each use casts them
    keep = np.float32 if dtype == "float32" else None
    variables = trees.unflatten({name: jnp.asarray(np.asarray(leaf, keep)) for name, leaf in leaves.items()})
    if adapters is not None:
        flat, scale = weights_convert.read_adapters(adapters, path)
        variables["lora"] = trees.unflatten({n: jnp.asarray(v) for n, v in lora.scaled(flat, scale).items()})
    return Model(model, variables, BATCH[scenario], "highest" if dtype == "float32" else "default")


def is_workdir(path: str | Path) -> bool:
    """Whether a directory's config.json is that of a training run. ValueError: it is there and no JSON object."""
    file = Path(path) / "config.json"
    return file.is_file() and "trainable" in load_json(file)


def load_workdir(path: str | Path) -> Model:
    """Load the newest checkpoint of a workdir of ``python -m fvjax.main``, on one device.

    Computes what that run's evaluation computes, in the same precision. What the run did not train comes from the
    config's ``init_from``. The workdir is only read.

    Raises:
        ValueError: not a workdir, of another version, no checkpoint yet, or the base is missing or has changed.
    """
    path = Path(path)
    config = _read_config(path)
    if jax.default_backend() == "cpu":
        config.attention = "xla"  # cudnn is for GPUs; the same sums
    built, variables, step, base_hash = run_state.restore(config, path)
    model = Model(built, variables, config.eval.batch_size, "default")
    model.run = Run(config, step, base_hash)
    return model


def _read_config(workdir: Path) -> Config:
    """config.json as a config. ValueError: it has keys unknown to this version, or lacks some of NEEDED."""
    if not is_workdir(workdir):
        raise ValueError(f"{workdir} is not a workdir of python -m fvjax.main: it has no config.json of a run")
    file, config = workdir / "config.json", base()
    given = load_json(file)
    there, here = flatten(given), flatten(config.to_dict())
    odd = [key for key in there if key not in here and not key.startswith(("eval.benchmarks.", "optimizer.lr_scale."))]
    odd += [key for key in here if key not in there and key.startswith(NEEDED)]
    if odd:
        raise ValueError(f"{file} is of another version of fvjax (it differs in {', '.join(odd[:3])}); use that one")
    try:
        config.update(given)  # makes tuples of lists where the default is a tuple
    except (TypeError, KeyError) as error:
        raise ValueError(f"{file}: {error}") from None
    return config
