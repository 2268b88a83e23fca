"""A model as a function from faces to embeddings: `fvjax.load` of a checkpoint, `load_workdir` of a run's directory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

import weights_convert
from fvjax import chat_model, foreign_workdir, saved_config, shipped, trees
from fvjax.chat_model import ChatModel
from fvjax.config import Config, typed
from fvjax.data import tokenizers
from fvjax.evals import verification
from fvjax.foreign import ForeignModel
from fvjax.losses.pair_answer import p_yes
from fvjax.media_model import MediaModel
from fvjax.models import encoder, lora
from fvjax.training.checkpoint import base_hash
from fvjax.training.restore import restore
from weights_convert.read import load_json

KINDS = {"resnet": "iresnet", "vit": "vision_transformer", "mllm": "vlm", "pair": "vlm", "chat": "vlm"}
POOLS = {"resnet": "", "vit": "mean", "mllm": "visual_mean", "pair": "", "chat": ""}  # what pool=None means
# Images, or pairs, at a time; 16 at 448 pixels take about 1 GB in attention.
BATCH = {"resnet": 64, "vit": 16, "mllm": 8, "pair": 4}


@dataclass(frozen=True)
class Run:
    """Where the model of a work directory comes from; `base_hash` is "" for a run without pretrained weights."""

    config: Config
    step: int
    base_hash: str


# Compiled for an encoder and not for a Model, so that the same network with other weights is not compiled again.
@partial(jax.jit, static_argnums=0)
def _embed(encoder: encoder.Encoder, variables: dict[str, Any], faces: jax.Array) -> jax.Array:
    return encoder(variables, faces)[0]


@partial(jax.jit, static_argnums=0)
def _p_same(encoder: encoder.Encoder, variables: dict[str, Any], a: jax.Array, b: jax.Array) -> jax.Array:
    return p_yes(encoder.answer(variables, a, b, encoder.yes_no), (0, 1))


class Model:
    """A model for inference; `run` is the run and step that it comes from, None for a checkpoint directory."""

    def __init__(
        self,
        encoder: encoder.Encoder,
        variables: dict[str, Any],
        batch_size: int,
        precision: str,
    ):
        self.run: Run | None = None
        self.encoder, self.variables, self.batch_size, self._precision = encoder, variables, batch_size, precision
        self._embed, self._p_same = partial(_embed, encoder), partial(_p_same, encoder)

    def __repr__(self) -> str:
        count = sum(math.prod(leaf.shape) for leaf in trees.flatten(self.variables["params"]).values())
        origin = f", step {self.run.step} of {self.run.config.name}" if self.run else ""
        adapters = ", with adapters" if self.variables.get("lora") else ""
        use = "p_same(a, b)" if self.encoder.yes_no else "embed(faces)"
        name = type(self.encoder.net).__name__
        return f"<fvjax model {name}: {count:,} parameters{adapters}{origin}; {use} of uint8 [N,112,112,3]>"

    def embed(self, faces: np.ndarray) -> np.ndarray:
        """Embed aligned RGB faces uint8 [N,112,112,3]: float32 [N,D], not normalised. ValueError: anything else."""
        if self.encoder.yes_no:
            raise ValueError('a model loaded with scenario="pair" has no embeddings; use p_same')
        return self._in_batches(self._embed, faces)

    def p_same(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Compare two arrays of faces uint8 [N,112,112,3], face by face: float32 [N], P(Yes) between Yes and No.

        Only scenario "pair" has it. ValueError: another scenario, other arrays, or a and b of different lengths.
        """
        if not self.encoder.yes_no:
            raise ValueError('p_same needs a model loaded with scenario="pair"; compare embeddings by cosine instead')
        if len(a) != len(b):
            raise ValueError(f"p_same compares face by face, but there are {len(a)} and {len(b)}")
        return self._in_batches(self._p_same, a, b)

    def _in_batches(self, function, *faces: np.ndarray) -> np.ndarray:
        faces = tuple(np.asarray(f) for f in faces)
        for f in faces:
            if f.dtype != np.uint8 or f.ndim != 4 or f.shape[1:] != (112, 112, 3):
                raise ValueError(f"faces must be uint8 [N,112,112,3], not {f.dtype} {list(f.shape)}")
        out = []
        for start in range(0, max(len(faces[0]), 1), self.batch_size):
            parts = [f[start : start + self.batch_size] for f in faces]
            size = 1 << max(len(parts[0]) - 1, 0).bit_length()  # a power of two: few shapes, so few compilations
            padded = [np.concatenate([p, np.zeros((size - len(p), 112, 112, 3), np.uint8)]) for p in parts]
            with jax.default_matmul_precision(self._precision):
                out.append(np.asarray(function(self.variables, *padded))[: len(parts[0])])
        return np.concatenate(out)


def load(
    path: str | Path,
    scenario: Literal["resnet", "vit", "mllm", "pair", "chat"],
    adapters: str | Path | None = None,
    pool: Literal["mean", "cls", "visual_mean", "all_mean", "last_token"] | None = None,
    prompt_ids: Sequence[int] | None = None,
    yes_no_ids: Sequence[int] | None = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
) -> Any:
    """Load a model for inference: a :class:`Model`, for "chat" a :class:`fvjax.chat_model.ChatModel`.

    Args:
        path: directory in Hugging Face layout, or one that ``python -m weights_convert`` wrote. For the workdir of a
            training run there is :func:`load_workdir`.
        scenario: "resnet" (IResNet), "vit" (vision tower of InternVL2, or InternViT alone), "mllm" (embeddings of a
            whole InternVL2), "pair" (its answer, Yes or No, whether two faces are the same person's) or "chat"
            (conversations. InternVL 2.5 or 3, in either layout; also the workdir of a run that trained some, see
            :func:`load_chat_workdir`. LLaVA-1.5, Video-LLaVA or Face-LLaVA: a :class:`fvjax.media_model.MediaModel`).
        adapters: safetensors file in PEFT's layout, or the directory that has it as adapter_model.safetensors; not for
            "resnet" or a workdir. See ``weights_convert.read_adapters``.
        pool: for "vit" "mean" over the patch tokens (None means this) or "cls"; for "mllm" "visual_mean" (None means
            this), "all_mean" or "last_token"; must be None for "resnet" and "pair".
        prompt_ids: token ids of the text after the image(s), without BOS: for "pair", and for the pools of "mllm"
            other than "visual_mean", which does not depend on them.
        yes_no_ids: for "pair", the ids of the answers (Yes, No).
        dtype: of the computation. In float32, matrix products are float32 too, also on devices with TF32.
    Raises:
        ValueError: an argument that does not go with the scenario, or a directory or file that does not fit.
    """
    if scenario not in KINDS:
        raise ValueError(f"scenario={scenario!r} is unknown; there are {sorted(KINDS)}")
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f'dtype={dtype!r} is unknown; there are "float32" and "bfloat16"')
    if scenario in ("resnet", "vit") and (prompt_ids is not None or yes_no_ids is not None):
        raise ValueError(f'prompt_ids and yes_no_ids do not go with scenario="{scenario}"')
    if scenario == "chat" and (pool is not None or prompt_ids is not None or yes_no_ids is not None):
        raise ValueError('scenario="chat" takes neither pool nor prompt_ids nor yes_no_ids')
    if scenario == "resnet" and (pool is not None or adapters is not None):
        raise ValueError('scenario="resnet" takes neither pool nor adapters')
    if scenario == "pair":
        if pool is not None:
            raise ValueError('scenario="pair" takes no pool')
        if prompt_ids is None or yes_no_ids is None or len(set(yes_no_ids)) != 2:
            raise ValueError('scenario="pair" needs prompt_ids, and yes_no_ids: two different token ids (Yes, No)')
    if scenario == "mllm":
        if yes_no_ids is not None:
            raise ValueError('yes_no_ids do not go with scenario="mllm"')
        if pool in ("all_mean", "last_token") and prompt_ids is None:
            raise ValueError(f"pool={pool!r} depends on the text after the image: give its token ids as prompt_ids")
    if is_workdir(path) and scenario == "chat":
        if adapters is not None:
            raise ValueError(f"{path} is a workdir, which has its own adapters; load the run's base with {adapters}")
        return load_chat_workdir(path)
    if is_workdir(path):
        raise ValueError(f"{path} is a workdir of python -m fvjax.main; open it with fvjax.api.load_workdir")
    if scenario == "chat" and weights_convert.open_checkpoint(path).kind == "llava":
        return _load_media(path, adapters, dtype)
    kind, attributes, leaves = weights_convert.read(path, None if scenario == "resnet" else KINDS[scenario])
    if kind != KINDS[scenario]:
        raise ValueError(f'{path} holds a {kind}, but scenario="{scenario}" needs a {KINDS[scenario]}')
    prompt, yes_no = (() if ids is None else tuple(int(i) for i in ids) for ids in (prompt_ids, yes_no_ids))
    model = encoder.build(kind, attributes, pool or POOLS[scenario], prompt, yes_no, dtype=jnp.dtype(dtype))
    variables = _variables(leaves, path, kind, adapters, dtype)
    precision = "highest" if dtype == "float32" else "default"
    if scenario == "chat":
        config = load_json(Path(path) / "config.json")
        settings = chat_model.chat_of(path)
        context_id = config.get("image_token_id", config.get("img_context_token_id"))
        return ChatModel(model, variables, _tokenizer(path), settings, precision, context_id)
    return Model(model, variables, BATCH[scenario], precision)


def _load_media(path: str | Path, adapters: str | Path | None, dtype: str) -> MediaModel:
    """Load a model of the LLaVA kind."""
    ckpt = weights_convert.open_checkpoint(path)
    model = encoder.build("llava", ckpt.model_config, "", dtype=jnp.dtype(dtype))
    variables = _variables(ckpt.params, path, "llava", adapters, dtype)
    precision = "highest" if dtype == "float32" else "default"
    return MediaModel(model, variables, _tokenizer(path), precision, ckpt.notes)


def _variables(leaves: Any, path: str | Path, kind: str, adapters: str | Path | None, dtype: str) -> dict[str, Any]:
    """Read the weights of a checkpoint, and adapters for them."""
    # For bfloat16 computation half-precision weights stay as they are: each use casts them.
    keep = np.float32 if dtype == "float32" else None
    variables = trees.unflatten({name: jnp.asarray(np.asarray(leaf, keep)) for name, leaf in leaves.items()})
    if adapters is not None:
        flat, scale = weights_convert.read_adapters(adapters, path, kind)
        variables["lora"] = trees.unflatten({n: jnp.asarray(v) for n, v in lora.scaled(flat, scale).items()})
    return variables


def _tokenizer(path: str | Path) -> tokenizers.Tokenizer | None:
    """Open the tokenizer of a checkpoint, None if it has none."""
    return tokenizers.load(path) if any((Path(path) / name).is_file() for name in tokenizers.FILES[:4]) else None


def _load_media_workdir(path: Path, config: Config, tokenizer: str) -> MediaModel:
    """Load the best or newest checkpoint of a run that trains a LLaVA."""
    if jax.default_backend() == "cpu":
        config = config.replace({"attention": "auto"})
    restored = restore(config, path)
    opened, template = tokenizers.load(shipped.weights(tokenizer)), config.chat.eval_template or config.chat.template
    return MediaModel(restored.model.encoder, restored.variables(), opened, "default", template=template)


def load_chat_workdir(path: str | Path) -> ChatModel | MediaModel:
    """Load the best or newest checkpoint of a run that trains conversations, as its evaluation speaks to it.

    It computes in the run's dtype. Raises ValueError as :func:`load_workdir`, and if the run trains something else.
    """
    path = Path(path)
    config = read_config(path)
    c = config.chat
    tokenizer = c.tokenizer or config.init_from or config.init_parts.get("decoder", "")
    if config.model.kind == "llava" and tokenizer:
        return _load_media_workdir(path, config, tokenizer)
    if config.model.kind != "vlm" or config.model.pooling or not tokenizer:
        raise ValueError(f"{path}: its model does not hold conversations (config.task={config.task})")
    if jax.default_backend() == "cpu":
        config = config.replace({"attention": "auto"})
    restored = restore(config, path)
    template, tiles = c.eval_template or c.template, c.eval_max_tiles or c.max_tiles
    settings = chat_model.Chat(template, c.system or None, tiles, c.tile_rule, c.hide_pictures)
    opened = tokenizers.load(shipped.weights(tokenizer))
    return ChatModel(restored.model.encoder, restored.variables(), opened, settings, "default")


def is_workdir(path: str | Path) -> bool:
    """Whether a directory's config.json is that of a training run. ValueError: it exists and is no JSON object."""
    file = Path(path) / "config.json"
    return file.is_file() and "trainable" in load_json(file)


def open_directory(path: Path) -> tuple[Model | ForeignModel, dict[str, Any]]:
    """Open the face model of a work directory or checkpoint; return it with its results.json, or {} without one.

    A work directory is that of a run, or of `python -m fvjax.evaluate`, whose model may not be fvjax's.

    Raises ValueError for a directory of several runs, of neither kind, or of a model that sees no faces, and for a
    model that is not there any more or has changed since it was evaluated.
    """
    file = path / "results.json"
    if is_workdir(path):
        return load_workdir(path), load_json(file) if file.exists() else {}
    if foreign_workdir.is_evaluated(path):
        return _open_evaluated(path), load_json(file) if file.exists() else {}
    if path.suffix.lower() == ".onnx":
        raise ValueError(f"{path}: evaluate an ONNX file first (python -m fvjax.evaluate), and give the work directory")
    if not (path / "config.json").is_file():
        if rows := sorted(file.parent.name for file in path.glob("*/config.json")):
            raise ValueError(f"{path} holds several runs; give one of them: {', '.join(str(path / r) for r in rows)}")
        raise ValueError(f"{path} is neither a workdir of python -m fvjax.main nor a checkpoint: it has no config.json")
    kind = weights_convert.open_checkpoint(path).kind
    scenario: Any = next((name for name, its in KINDS.items() if its == kind), None)
    if scenario is None:
        raise ValueError(f"{path} holds a {kind}, which sees no faces")
    return load(path, scenario), {}


def _open_evaluated(workdir: Path) -> Model | ForeignModel:
    """Open the model that was evaluated in a work directory of `python -m fvjax.evaluate`."""
    identity = foreign_workdir.identity_of(workdir)
    if identity["kind"] != "checkpoint":
        return foreign_workdir.reopen(workdir, identity)
    checkpoint = Path(identity["path"])
    if not checkpoint.is_dir():
        raise ValueError(f"{checkpoint}: no such checkpoint; it was evaluated in {workdir}")
    foreign_workdir.check_unchanged(workdir, identity, base_hash(checkpoint))
    return open_directory(checkpoint)[0]


class Embedder:
    """Embeds faces as the evaluation of a model's run does: mirrored pictures are added if they are there.

    Args:
        path: see :func:`open_directory`.
        opened: what that function returned, for a model that is open already.
    Raises:
        ValueError: as :func:`open_directory`, or a model that answers Yes or No about pairs.
    """

    def __init__(self, path: Path, opened: tuple[Model | ForeignModel, dict[str, Any]] | None = None):
        self.model, results = opened or open_directory(path)
        if self.model.encoder.yes_no:
            raise ValueError(f"{path} answers Yes or No about pairs of faces, but a search needs a model that embeds")
        self.flip_sum, self.batch_size = flips(self.model, results), self.model.batch_size

    def __call__(self, faces: np.ndarray) -> np.ndarray:
        """Return float32 [N, D], not normalised, of faces uint8 [N, 112, 112, 3]."""
        return verification.embed(self.model.embed, [(faces, len(faces))], flip_sum=self.flip_sum)


def flips(model: Model | ForeignModel, results: dict[str, Any]) -> bool:
    """Whether an embedding is the sum of a picture's and of its mirror image's, as in the model's last evaluation."""
    own = model.run.config.eval.flip_sum if model.run else False
    return bool(results.get("flip_sum", own))  # --mode=eval may have asked for another one than the run's own


def load_workdir(path: str | Path) -> Model:
    """Load the best or newest checkpoint of a work directory of ``python -m fvjax.main``, on one device.

    The model computes what that run's evaluation computes, in the same precision. What the run did not train comes from
    the config's ``init_from``. The work directory is only read.

    Raises:
        ValueError: not a workdir, of another version, no checkpoint yet, or the base is missing or has changed.
    """
    path = Path(path)
    config = read_config(path)
    if jax.default_backend() == "cpu":
        config = config.replace({"attention": "auto"})  # cudnn is for GPUs; the same sums
    restored = restore(config, path)
    model = Model(restored.model.encoder, restored.variables(), config.eval.batch_size, "default")
    model.run = Run(config, restored.step, restored.base_hash)
    return model


def read_config(workdir: Path) -> Config:
    """Read config.json of a run. Raises ValueError as :func:`fvjax.saved_config.read` does."""
    if not is_workdir(workdir):
        raise ValueError(f"{workdir} is not a workdir of python -m fvjax.main: it has no config.json of a run")
    return typed(saved_config.read(workdir / "config.json"))
