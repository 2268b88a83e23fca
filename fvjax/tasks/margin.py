"""Verification by embeddings that are trained to tell the identities of the training store apart.

A class head holds a centre for each identity. Training makes the cosine of an image with its own centre large, by a
softmax with a margin (ArcFace, CosFace, SphereFace, AdaFace, MagFace: `config.margin`, `config.head`). A step is made
of single images; every image comes once in an epoch. Models, predictions and evaluation are those of task contrastive,
and nothing but training needs the head. A loss of your own, `config.loss.function="module:name"`, is called as
`name(cosines [N, C], labels int [N], columns int [C]) -> scalar`: column c is of class `columns[c]`; columns whose
number is not below `config.head.classes` are padding.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from fvjax import plugins
from fvjax.config import Config, MarginConfig
from fvjax.data.plans import ClassPlan
from fvjax.data.stores import Store
from fvjax.losses import class_head, margin
from fvjax.losses.accumulation import Headed, Inputs, Objective, Variables
from fvjax.losses.class_head import ClassHead
from fvjax.models.encoder import Encoder
from fvjax.parallel import sharding
from fvjax.tasks import faces
from fvjax.tasks.face_verification import check_prompt
from fvjax.tasks.task import Examples
from fvjax.tasks.verification import Verification

SAMPLING = 0x5A3  # of the keys that sample classes, so that they are not those of images
NAME = "head/centres"


class Margin(Verification):
    images_per_example = 1
    head_sharding = ((NAME, class_head.BY_ROWS),)
    head_predicts = False

    def __init__(self, config: Config, workdir: Path):
        super().__init__(config, workdir)
        self.margin, self.sizes, self.trains = config.margin, config.head, config.trains
        self.images_per_step = config.batch_size

    @classmethod
    def check(cls, config: Config) -> None:
        check_margin(config.margin)
        check_settings(config)
        check_prompt(config.prompt, config.model.kind, config.has_tokenizer, answers=False)

    # ---- examples

    def examples(self, store: Store) -> Examples:
        faces.check_size(store, self.image_size)
        found, wanted = len(store.identities), self.classes
        if found != wanted:
            raise ValueError(f"config.head.classes={wanted}, but {store.path} has {found} identities; use 0 or {found}")
        self.head(1).check_sample(self.images_per_step)
        plan = ClassPlan(store.labels, self.images_per_step, self.seed)
        steps = f"{plan.examples_per_step} images a step, {plan.steps_per_epoch} steps an epoch"
        description = f"{len(store):,} images, {found:,} identities, a class each; {steps}"
        return Examples(store, plan, description, identities=store.identities)

    def batch_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        return faces.face_shapes(count, self.image_size)

    def facts(self) -> dict[str, Any]:
        """Return which identities the rows of the head are of, so that a run does not resume on other ones."""
        if not self.trains:
            return {}
        store = self.open_store()
        names = "\n".join(store.identities).encode() if store else b""
        return {"classes": self.classes, "identities_hash": hashlib.sha256(names).hexdigest()[:16]}

    # ---- the head

    @cached_property
    def classes(self) -> int:
        """Return how many identities there are. Raises ValueError: neither the config nor a store says so."""
        if self.sizes.classes:
            return self.sizes.classes
        if self.data.synthetic.identities:
            return self.data.synthetic.identities
        if not self.trains:
            return 1
        if not Path(self.data.train).is_dir():
            problem = f"the identities of config.data.train={self.data.train!r} cannot be counted"
            raise ValueError(f"{problem}, it is not there; set config.head.classes")
        return len(Store(self.data.train, self.data.split).identities)

    def head(self, width: int) -> ClassHead:
        """Return the sizes of the head for embeddings of this width."""
        c = self.sizes
        return ClassHead(self.classes, width, c.subcentres, c.sample_rate, c.groups)

    def init_head(self, key: jax.Array, encoder: Encoder) -> dict[str, Any]:
        def embed(key):
            images = jnp.zeros((2, *self.image_size, 3), jnp.uint8)
            return encoder(encoder.init(key, self.image_size), images)[0]

        return {"centres": self.head(jax.eval_shape(embed, key).shape[-1]).init(key)}

    def init_head_stats(self) -> dict[str, Any]:
        return margin.initial_norm_statistics()._asdict() if self.margin.kind == "adaface" else {}

    # ---- loss

    def objective(self, encoder: Encoder) -> Objective:
        def embed(variables: Variables, inputs: Inputs) -> tuple[jax.Array, Mapping]:
            images, keys = inputs["images"], inputs["keys"]
            return encoder(variables, images[:, 0], train=True, keys=keys[:, 0])

        return Headed(embed, self.compare)

    def compare(self, variables: Variables, embeddings: jax.Array, inputs: Inputs) -> tuple[jax.Array, Mapping]:
        """Return the mean loss of a batch's embeddings [N, D], and AdaFace's new statistics."""
        everywhere = PartitionSpec()  # every device compares the whole batch with its own classes
        embeddings, labels = (sharding.constrain(x, everywhere) for x in (embeddings, inputs["labels"]))
        centres, columns = self.head(embeddings.shape[-1]).select(
            variables["head"]["centres"], labels, self.sampling_key(inputs["index"])
        )
        cosines = margin.cosines(embeddings, centres)
        cosines = sharding.constrain(cosines, PartitionSpec(None, *class_head.BY_ROWS))
        if self.loss.function:
            return plugins.load(self.loss.function)(cosines, labels, columns), {}
        return self.margin_loss(cosines, margin.norms(embeddings), labels, columns, variables.get("head_stats", {}))

    def margin_loss(
        self, cosines: jax.Array, norms: jax.Array, labels: jax.Array, columns: jax.Array, stats: Mapping
    ) -> tuple[jax.Array, Mapping]:
        """Return the mean loss and the new statistics of a batch, by the kind of margin."""
        c, new, extra = self.margin, {}, 0.0
        function: margin.Margin = partial(margin.combined, m1=c.m1, m2=c.m2, m3=c.m3)
        if c.kind == "adaface":
            statistics = margin.update_norm_statistics(margin.NormStatistics(**stats), norms, c.t_alpha)
            function = partial(margin.adaface, norms=norms, statistics=statistics, m=c.m, h=c.h)
            cosines = jnp.clip(cosines, margin.ADAFACE_EPS - 1.0, 1.0 - margin.ADAFACE_EPS)
            new = {"head_stats": statistics._asdict()}
        elif c.kind == "magface":
            function = partial(margin.magface, norms=norms)
            extra = c.norm_weight * margin.magface_regulariser(norms)
        each = margin.cross_entropy(
            cosines,
            labels,
            columns,
            self.classes,
            function,
            c.scale,
            smoothing=c.smoothing,
            filter_above=c.filter_above,
        )
        return jnp.mean(each) + extra, new

    def sampling_key(self, index: jax.Array) -> jax.Array:
        """Return the key of a step, of whose examples `index` holds the global numbers: a function of (seed, step)."""
        key = jax.random.fold_in(jax.random.key(self.seed), SAMPLING)
        return jax.random.fold_in(key, jnp.min(index) // self.images_per_step)


# ---- settings --------------------------------------------------------------------------------------------------------


def check_margin(c: MarginConfig) -> None:
    """Raise ValueError for a margin that is none."""
    for name, low, high in (("m2", 0.0, 3.1), ("smoothing", 0.0, 0.999), ("filter_above", 0.0, 1.0)):
        if not low <= getattr(c, name) <= high:
            raise ValueError(f"config.margin.{name}={getattr(c, name)}: must be from {low:g} to {high:g}")
    if c.m1 < 1.0 or c.m3 < 0.0 or c.scale <= 0.0:
        raise ValueError(f"config.margin: m1={c.m1} is at least 1, m3={c.m3} not negative, scale={c.scale} above 0")
    if not 0.0 < c.t_alpha <= 1.0:
        raise ValueError(f"config.margin.t_alpha={c.t_alpha}: must be above 0 and at most 1")


def check_settings(config: Config) -> None:
    """Raise ValueError for settings that do not go with a class head."""
    if not 0.0 < config.head.sample_rate <= 1.0:
        raise ValueError(f"config.head.sample_rate={config.head.sample_rate}: must be above 0 and at most 1")
    if config.head.classes < 0:
        raise ValueError(f"config.head.classes={config.head.classes}: must not be negative")
    if config.eval.pools:
        raise ValueError("config.eval.pools: task margin evaluates the pooling that it trains")
    if config.batch_size % config.accumulation:
        raise ValueError(f"config.batch_size={config.batch_size} does not divide into {config.accumulation} parts")
    group = config.compat.batch_norm_group
    if config.compat.negatives_group:
        raise ValueError("config.compat.negatives_group: task margin's negatives are classes, not images")
    if group and (config.model.kind != "iresnet" or config.batch_size % group):
        raise ValueError(f"config.compat.batch_norm_group={group}: of an iresnet; must divide config.batch_size")
    group = next((group for pattern, group in config.trainable if re.fullmatch(pattern, NAME)), "frozen")
    if group == "frozen":
        raise ValueError(f"config.trainable leaves {NAME} frozen; put ('head/.*', 'head') first")
    if config.head.sample_rate < 1.0 and group not in config.optimizer.idle_rows:
        problem = f"config.head.sample_rate={config.head.sample_rate} leaves classes out, which must not move meanwhile"
        raise ValueError(f"{problem}; add {group!r} to config.optimizer.idle_rows")
