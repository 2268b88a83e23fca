"""Verification by embeddings: two faces show one person if the cosine of their embeddings is high.

Training contrasts the two images of an identity pair with all other images of the batch (InfoNCE). A loss of your own,
`config.loss.function="module:name"`, is called as `name(embeddings [2P, D], labels int [P]) -> scalar`: rows 2i and
2i+1 are the images of pair i, `labels` their identities. Source: LLM-FaceVerification, scenarios 1 and 2, the ResNet.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import jax
import numpy as np

from fvjax import plugins
from fvjax.config import Config
from fvjax.data.pairs import PairPlan
from fvjax.data.tokenizers import Tokenizer
from fvjax.losses import contrastive
from fvjax.losses.accumulation import Inputs, Objective, Variables, WholeBatch
from fvjax.models.encoder import Encoder
from fvjax.tasks import face_verification as shared
from fvjax.tasks.benchmarks import Benchmarks, CosineScore, Entries, Scored
from fvjax.tasks.predictor import Predictor, Trained
from fvjax.tasks.task import Batch, Evaluator, Text

POOLS = {"visual_mean", "all_mean", "last_token"}  # of a VLM's embeddings


class Verification(shared.FaceVerification):
    single_images = "never drawn"

    @classmethod
    def check(cls, config: Config) -> None:
        shared.check_pairs(config.batch_size, config.accumulation, config.compat, config.model.kind)
        vlm, pools = config.model.kind == "vlm", set(config.eval.pools)
        if pools and not vlm:
            raise ValueError("config.eval.pools: only a VLM's embeddings have several")
        if pools and not {config.model.pooling} <= pools <= POOLS:
            choices = "visual_mean, all_mean, last_token are the choices, model.pooling must be one of them"
            raise ValueError(f"config.eval.pools: {choices}")
        shared.check_prompt(config.prompt, config.model.kind, config.has_tokenizer, answers=False)

    def plan(self, labels: np.ndarray) -> PairPlan:
        return PairPlan(labels, self.pairs_per_step, self.seed)

    def text(self, tokenizer: Callable[[], Tokenizer]) -> Text:
        prompt = tokenizer().encode(self.prompt.text) if self.prompt.text else self.prompt.ids
        if not prompt and set(self.benchmarks.eval.pools) - {"visual_mean"}:
            raise ValueError(f"config.eval.pools={self.benchmarks.eval.pools} depend on the text: set config.prompt")
        return Text(tuple(prompt))

    def objective(self, encoder: Encoder) -> Objective:
        loss = partial(contrastive.loss, temperature=self.loss.temperature, group=self.negatives_group)
        if self.loss.function:
            loss = plugins.load(self.loss.function)

        def embed(variables: Variables, inputs: Inputs) -> tuple[jax.Array, Mapping]:
            images, keys = inputs["images"], inputs["keys"]
            x, stats = encoder(variables, images.reshape(-1, *images.shape[2:]), train=True, keys=keys.reshape(-1))
            return x.reshape(*keys.shape, x.shape[-1]), stats

        def compare(embeddings: jax.Array, inputs: Inputs) -> jax.Array:
            return loss(embeddings.reshape(-1, embeddings.shape[-1]), inputs["labels"])

        return WholeBatch(embed, compare)

    def predict(self, encoder: Encoder, variables: Variables, batch: Batch) -> jax.Array:
        """Return embeddings [2P, D]."""
        images = batch["images"]
        return encoder(variables, images.reshape(-1, *images.shape[2:]))[0]

    def evaluator(self, encoder: Encoder, predictor: Predictor, seen: set[str]) -> Evaluator:
        return EmbeddingEvaluator(self.name, self.benchmarks, seen, encoder, predictor, self.pooling)


class EmbeddingEvaluator(shared.VerificationEvaluator):
    """Scores pairs by the cosine of their embeddings; a VLM's by several poolings in one pass."""

    def __init__(
        self,
        name: str,
        benchmarks: Benchmarks,
        seen: set[str],
        encoder: Encoder,
        predictor: Predictor,
        pooling: str,
    ):
        super().__init__(name, benchmarks, seen)
        self.pools, self.pooling = tuple(benchmarks.eval.pools), pooling
        embed = predictor.compile(lambda variables, faces: encoder(variables, faces)[0])
        pooled = predictor.compile(lambda variables, faces: encoder.pools(variables, faces, self.pools))
        self.embed = lambda state, faces: np.asarray(embed(state, predictor.put(faces)))
        self.embed_pools = lambda state, faces: np.asarray(pooled(state, predictor.put(faces)))

    def score(self, state: Trained) -> CosineScore:
        return CosineScore(self.benchmarks.eval, partial(self.embed, state))

    def run(self, state: Trained, title: str) -> tuple[Entries, Scored, dict[str, Entries]]:
        if not self.pools:
            return super().run(state, title)
        score = CosineScore(self.benchmarks.eval, partial(self.embed_pools, state))
        by_pool = {
            pool: self.benchmarks.run(partial(score, pool=number), seen=self.seen, title=f"{title}, {pool}")
            for number, pool in enumerate(self.pools)
        }
        entries, scored = by_pool.pop(self.pooling)
        return entries, scored, {pool: entries for pool, (entries, _) in by_pool.items()}
