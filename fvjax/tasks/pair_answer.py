"""Verification by answers: a VLM sees two faces and a question, and says Yes or No; a pair's score is P(Yes).

A loss of your own, `config.loss.function="module:name"`, is called as `name(logits [P, vocab], labels int [P],
(yes, no)) -> float32 [P]`: one loss for each pair. Source: LLM-FaceVerification, scenario 3.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fvjax import plugins
from fvjax.config import Config
from fvjax.console import progress
from fvjax.data import pipeline, prompts
from fvjax.data.pairs import GenuineImpostorPlan
from fvjax.data.stores import Pairs, Store
from fvjax.data.tokenizers import Tokenizer
from fvjax.evals import verification as protocol
from fvjax.losses import pair_answer
from fvjax.losses.accumulation import Additive, Inputs, Objective, Variables
from fvjax.models.cache import Cache
from fvjax.models.encoder import Encoder
from fvjax.parallel import sharding
from fvjax.tasks import face_verification as shared
from fvjax.tasks.benchmarks import Benchmarks, Score
from fvjax.tasks.predictor import Predictor, Trained
from fvjax.tasks.task import Batch, Evaluator, Text


class PairAnswer(shared.FaceVerification):
    images_per_prediction = 2
    single_images = "in impostor pairs only"

    @classmethod
    def check(cls, config: Config) -> None:
        if config.model.kind != "vlm":
            raise ValueError("config.task=pair_answer: only a model of kind vlm answers")
        if config.model.pooling:
            raise ValueError("config.model.pooling: pair_answer has none, it reads the answer")
        if config.eval.pools:
            raise ValueError("config.eval.pools: only a VLM's embeddings have several")
        if config.eval.flip_sum:
            raise ValueError("config.eval.flip_sum: an answer about two faces has no mirrored sum")
        if config.compat.negatives_group:
            raise ValueError("config.compat.negatives_group: pair_answer has no negatives")
        shared.check_prompt(config.prompt, config.model.kind, config.has_tokenizer, answers=True)
        shared.check_pairs(config.batch_size, config.accumulation, config.compat, config.model.kind)

    def plan(self, labels: np.ndarray) -> GenuineImpostorPlan:
        return GenuineImpostorPlan(labels, self.pairs_per_step, self.data.pairs_per_epoch, self.seed)

    def steps_per_epoch(self, examples_per_step: int) -> int:
        return self.data.pairs_per_epoch // examples_per_step

    def caption(self, label: int) -> str:
        return "one person" if label else "two people"

    def text(self, tokenizer: Callable[[], Tokenizer]) -> Text:
        prompt = tokenizer().encode(self.prompt.text) if self.prompt.text else self.prompt.ids
        return Text(tuple(prompt), tuple(self.prompt.yes_no_ids or prompts.yes_no_ids(tokenizer())))

    def objective(self, encoder: Encoder) -> Objective:
        losses = partial(pair_answer.losses, over=self.loss.pair_loss)
        rows, columns = None, encoder.yes_no
        if self.loss.function:
            losses = plugins.load(self.loss.function)
        elif self.loss.pair_loss == "yes_no":  # the other logits are not needed
            rows, columns = encoder.yes_no, (0, 1)

        def loss(variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array, Mapping]:
            images, keys = inputs["images"], inputs["keys"]
            logits = encoder.answer(variables, images[:, 0], images[:, 1], rows, train=True, keys=keys)
            each = losses(logits, inputs["labels"], columns)
            return each.sum(), jnp.float32(len(each)), {}

        return Additive(loss)

    def predict(self, encoder: Encoder, variables: Variables, batch: Batch) -> jax.Array:
        """Return the logits of Yes and No, [P, 2]."""
        images = batch["images"]
        return encoder.answer(variables, images[:, 0], images[:, 1], encoder.yes_no)

    def evaluator(self, encoder: Encoder, predictor: Predictor, seen: set[str]) -> Evaluator:
        return AnswerEvaluator(self.name, self.benchmarks, seen, encoder, predictor, self.workdir, self.dtype)


class AnswerEvaluator(shared.VerificationEvaluator):
    """Scores pairs by P(Yes); visual tokens of a store lie in a temporary file in the work directory."""

    def __init__(
        self,
        name: str,
        benchmarks: Benchmarks,
        seen: set[str],
        encoder: Encoder,
        predictor: Predictor,
        workdir: Path,
        dtype: str,
    ):
        super().__init__(name, benchmarks, seen)
        self.encoder, self.predictor, self.workdir, self.dtype = encoder, predictor, workdir, jnp.dtype(dtype)
        self.visual, self.after = predictor.compile(encoder.visual), predictor.compile(self._p_yes)
        self.prefix = predictor.compile(encoder.prefix, gather=False)

    def score(self, state: Trained) -> Score:
        return partial(self.answers, state)

    def answers(self, state: Trained, store: Store, pairs: Pairs, title: str) -> np.ndarray:
        """Return P(Yes) of every pair, float32 [M].

        The tower sees each image once, the decoder the first image of a run of pairs once.
        """
        size, put, rows = self.benchmarks.eval.batch_size, self.predictor.put, sharding.rows(self.predictor.mesh)
        with tempfile.TemporaryFile(dir=self.workdir) as file:  # for LFW at full size 8 GB, more than memory may hold
            visual = self._visual_tokens(state, store, np.union1d(pairs.a, pairs.b), title, file)
            return protocol.answers(
                lambda firsts: self.prefix(state, put(firsts)),
                lambda prefix, firsts, seconds: self.after(state, prefix, firsts, put(seconds)),
                visual,
                pairs,
                batch_size=size,
                multiple=-(-size // 8 // rows) * rows,
                track=lambda loop: progress(loop, f"{title}, pairs", len(loop), count=len(pairs.a), unit="pairs"),
            )

    def _visual_tokens(self, state: Trained, store: Store, used: np.ndarray, title: str, file: Any) -> np.ndarray:
        """Compute the visual tokens [N, V, D] of the records `used`, in an array that lies in `file`."""
        net: Any = self.encoder.net
        size = self.benchmarks.eval.batch_size
        visual = np.memmap(file, self.dtype, "w+", shape=(len(store), net.image_tokens, net.decoder.width))
        batches = pipeline.eval_batches(store, used, size)
        bar = progress(batches, f"{title}, images", -(-len(used) // size), count=len(used), unit="images")
        done = 0
        for images, count in bar:
            visual[used[done : done + count]] = self.visual(state, self.predictor.put(images))[:count]
            done += count
        return visual

    def _p_yes(self, variables: Variables, prefix: Cache, firsts: jax.Array, seconds: jax.Array) -> jax.Array:
        """Return P(Yes) of pairs, the caches of whose first images are the rows `firsts` of `prefix`."""
        own = prefix._replace(k=prefix.k[:, firsts], v=prefix.v[:, firsts])
        return pair_answer.p_yes(self.encoder.answer_after(variables, own, seconds, self.encoder.yes_no), (0, 1))
