"""What an evaluation asks of a model: a score for each pair of a protocol, each image seen once.

Of several processes each decodes all images and has all scores; its devices see their share of the images.
"""

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fvjax import evaluate
from fvjax.config import Config
from fvjax.data import pipeline
from fvjax.data.stores import Pairs, Store
from fvjax.evals import verification
from fvjax.losses import pair_answer
from fvjax.models import encoder as encoders
from fvjax.models.decoder import Cache
from fvjax.parallel import sharding
from fvjax.training import train_state


class Predictor:
    """A run's model as functions of faces. What is compiled once serves every state of the run."""

    def __init__(self, config: Config, encoder: encoders.Encoder, mesh, frozen: dict, workdir: Path):
        self.config, self.encoder, self.mesh, self.frozen, self.workdir = config, encoder, mesh, frozen, workdir
        self.pools = tuple(config.eval.pools)
        everywhere = sharding.replicated(mesh)  # what is read on the host: every process has all of it
        self._embed = self._jit(lambda variables, faces: encoder(variables, faces)[0], everywhere)
        self._pools = self._jit(lambda variables, faces: encoder.pools(variables, faces, self.pools), everywhere)
        self._visual, self._after = self._jit(encoder.visual, everywhere), self._jit(self._p_yes, everywhere)
        self._prefix = self._jit(encoder.prefix)

    def score(self, state: dict, *, pools: bool = False) -> Callable[..., np.ndarray]:
        """How the evaluation scores pairs: by cosine, or by P(Yes) for the task pair_answer.

        With `pools` the score takes the number of one of config.eval.pools: score(…, pool=0).
        """
        if self.config.task == "pair_answer":
            return lambda store, pairs, title: self._answers(state, store, pairs, title)
        if pools:
            return evaluate.cosine(self.config, lambda faces: np.asarray(self._pools(state, self._placed(faces))))
        return evaluate.cosine(self.config, lambda faces: self.embed(state, faces))

    def embed(self, state: dict, faces: np.ndarray) -> np.ndarray:
        """uint8 [b,112,112,3] -> float32 [b,D] on the host."""
        return np.asarray(self._embed(state, self._placed(faces)))

    def _answers(self, state: dict, store: Store, pairs: Pairs, title: str) -> np.ndarray:
        """P(Yes) of every pair: the tower sees each image once, the decoder a run of pairs' first image once."""
        used, size = np.union1d(pairs.a, pairs.b), self.config.eval.batch_size
        with tempfile.TemporaryFile(dir=self.workdir) as file:  # for LFW at full size 8 GB, more than memory may hold
            net: Any = self.encoder.net
            shape, done = (len(store), net.image_tokens, net.decoder.width), 0
            visual = np.memmap(file, jnp.dtype(self.config.dtype), "w+", shape=shape)
            batches = pipeline.eval_batches(store, used, size)
            for faces, count in evaluate.progress(batches, f"{title}, images", -(-len(used) // size)):
                visual[used[done : done + count]] = self._visual(state, self._placed(faces))[:count]
                done += count
            rows = self.mesh.shape["data"] * self.mesh.shape["fsdp"]
            return verification.answers(
                lambda firsts: self._prefix(state, self._placed(firsts)),
                lambda kept, whose, seconds: self._after(state, kept, whose, self._placed(seconds)),
                visual,
                pairs,
                batch_size=size,
                multiple=-(-size // 8 // rows) * rows,
                track=lambda loop: evaluate.progress(loop, f"{title}, pairs", len(loop)),
            )

    def _p_yes(self, variables: dict, kept: Cache, whose: jax.Array, seconds: jax.Array) -> jax.Array:
        mine = kept._replace(k=kept.k[:, whose], v=kept.v[:, whose])
        return pair_answer.p_yes(self.encoder.answer_after(variables, mine, seconds, self.encoder.yes_no), (0, 1))

    def _jit(self, fn: Callable, where=None) -> Callable:
        def call(trainable, stats, frozen, *args):
            return fn(train_state.variables_of(self.config, trainable, frozen, stats), *args)

        compiled = jax.jit(call, out_shardings=where)
        return lambda state, *args: compiled(state["trainable"], state["stats"], self.frozen, *args)

    def _placed(self, x: np.ndarray) -> jax.Array:
        return sharding.whole(np.asarray(x), self.mesh)
