"""Attributes: a VLM says Yes or No about every attribute of a face, knowing how attributes go together.

The reading of FaceInsight (arXiv 2504.15624) is that of docs/faceinsight.md: `fvjax/models/attribute_slots.py` is the
model. A step's loss is the mean over pictures of the binary cross-entropy, summed over the labelled attributes, plus
the probability that rules are broken. The text features of the attributes and the graph over them are constants that a
run's checkpoints hold; the graph is built from the training labels alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fvjax import attribute_rules, files, runtime
from fvjax.attribute_rules import RuleTable
from fvjax.config import AttributesConfig, Config
from fvjax.console import say
from fvjax.data import attribute_faces, attributes, maps, prompts, rules
from fvjax.data.plans import ShufflePlan
from fvjax.data.stores import Store
from fvjax.data.tokenizers import Tokenizer
from fvjax.losses import attributes as attribute_loss
from fvjax.losses import logic
from fvjax.losses.accumulation import Additive, Inputs, Objective, Variables
from fvjax.models import attribute_slots, graph, preprocess
from fvjax.models.encoder import Encoder
from fvjax.models.layers import FLIP, fold_in
from fvjax.parallel import distributed
from fvjax.tasks import attribute_evaluation, attribute_prompts, faces
from fvjax.tasks.predictor import Predictor
from fvjax.tasks.task import Batch, Evaluator, Examples, Task, Text

COLUMNS = "attributes.json"  # in the work directory: the attributes that a run is about


class FaceAttributes(Task):
    """Learn which attributes a face has."""

    comparison = staticmethod(attribute_evaluation.comparison)

    @classmethod
    def check(cls, config: Config) -> None:
        c = config.attributes
        if config.model.kind != "vlm" or config.model.pooling:
            raise ValueError("config.task=attributes: needs config.model.kind=vlm and no pooling")
        if config.compat != type(config.compat)() or config.loss.function:
            raise ValueError("config.loss.function and config.compat: have no effect on attributes")
        if config.eval.pools or config.eval.flip_sum or config.eval.baselines:
            raise ValueError("config.eval.pools, flip_sum and baselines: are of face verification")
        if config.batch_size % config.accumulation:
            raise ValueError(f"config.batch_size={config.batch_size} does not divide into {config.accumulation} parts")
        if not config.prompt.yes_no_ids and not config.has_tokenizer:
            raise ValueError("config.prompt.yes_no_ids: without init_from there is no tokenizer; give the ids")
        if c.shuffle_maps and not c.maps:
            raise ValueError("config.attributes.shuffle_maps: there are no maps; set maps=True")
        if c.prompts and not c.text:
            raise ValueError("config.attributes.prompts: nothing reads them; config.attributes.text names a CLIP model")
        if bool(c.rules) != bool(c.rule_sets):
            raise ValueError("config.attributes: rules and rule_sets go together")
        if c.logic != "none" and not c.rules:
            raise ValueError(f"config.attributes.logic={c.logic}: name rules and rule_sets")
        for name in ("tau", "omega", "labelled"):
            if not 0.0 <= getattr(c, name) <= 1.0:
                raise ValueError(f"config.attributes.{name}={getattr(c, name)}: must be from 0 to 1")

    def __init__(self, config: Config, workdir: Path):
        self.name, self.seed, self.workdir = config.name, config.seed, workdir
        self.data, self.eval, self.prompt = config.data, config.eval, config.prompt
        self.settings: AttributesConfig = config.attributes
        self.batch_size, self.trains = config.batch_size, config.trains
        self.image_size = faces.image_size(config.data, dict(config.eval.benchmarks))

    # ---- examples

    def open_store(self) -> Store | None:
        if self.data.synthetic.identities:
            self._draw()
            return Store(self._drawn("train"), "train")
        return Store(self.data.train, self.data.split) if self.data.train else None

    def _drawn(self, split: str) -> Path:
        """Return where the embedded faces lie; the name holds all that they are drawn with."""
        c = self.data.synthetic
        sizes = (c.identities, c.images) if split == "train" else (c.identities, c.test_identities, c.test_images)
        labelled = (self.settings.labelled,) if split == "train" else ()
        drawn_with = "_".join(str(n) for n in (*sizes, c.difficulty, c.seed, *labelled))
        return Path(c.dir or self.workdir) / f"attributes_{split}_{drawn_with}"

    def _draw(self) -> None:
        """Draw the embedded faces that do not exist yet; all processes must call it, process 0 draws."""
        c = self.data.synthetic
        test = range(c.identities, c.identities + c.test_identities)
        for split, people, images, labelled in (
            ("train", range(c.identities), c.images, self.settings.labelled),
            ("test", test, c.test_images, 1.0),
        ):
            path, count = self._drawn(split), len(people) * images
            if jax.process_index() == 0 and not path.exists():
                say(f"Drawing {count:,} synthetic faces with attributes ({split})")
                workers = min(runtime.cores(), 8) if count >= faces.MANY else 1
                how: dict[str, Any] = {"difficulty": c.difficulty, "labelled": labelled, "workers": workers}
                attribute_faces.write(path, people, images, c.seed, split=split, **how)
        distributed.exchange("drawn")

    @property
    def features(self) -> tuple[str, ...]:
        """Return the columns of a store that the model reads or learns."""
        return (attributes.FEATURE, maps.FEATURE) if self.settings.maps else (attributes.FEATURE,)

    def examples(self, store: Store) -> Examples:
        faces.check_size(store, self.image_size)
        if self.settings.maps:
            maps.of(store)
        labels = attributes.labels(store)
        if not (labels != attributes.UNLABELLED).any():
            raise ValueError(f"{store.path}: not one label is known, so there is nothing to learn")
        plan = ShufflePlan(len(store), self.batch_size, self.seed)
        known = (labels != attributes.UNLABELLED).mean()
        description = (
            f"{len(store):,} pictures, {len(self.columns.names)} attributes, {known:.1%} of the labels known; "
            f"{plan.steps_per_epoch} steps an epoch"
        )
        names = store.identities if self.columns.has_identities else ()
        return Examples(store, plan, description, features=self.features, identities=names)

    def batch_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = faces.face_shapes(count, self.image_size)
        del shapes["labels"]
        shapes["attributes"] = jax.ShapeDtypeStruct((count, 1, len(self.columns.names)), jnp.int8)
        if self.settings.maps:
            shapes["map"] = jax.ShapeDtypeStruct((count, 1, *self.image_size), jnp.uint8)
        return shapes

    def data_hashes(self) -> dict[str, str]:
        return {f"data of {name}": self.open_benchmark(name).data_hash for name in self.benchmarks}

    @property
    def benchmarks(self) -> dict[str, Path]:
        """Return the stores that are evaluated, by name."""
        chosen = {name: Path(each.store) for name, each in self.eval.benchmarks.items()}
        return chosen | ({"faces": self._drawn("test")} if self.data.synthetic.identities else {})

    def open_benchmark(self, name: str) -> Store:
        """Open a store to evaluate. Raises ValueError: it is not there, or has other attributes, sizes or no maps."""
        store = Store(self.benchmarks[name], "test")
        faces.check_size(store, self.image_size)
        if (its := attributes.of(store).names) != self.columns.names:
            other = next((a for a in (*its, *self.columns.names) if (a in its) != (a in self.columns.names)), "order")
            raise ValueError(f"{store.path}: its attributes are not those trained on; the first difference is {other}")
        if self.settings.maps:
            maps.of(store)
        return store

    # ---- the attributes, and what is known about them

    def _described(self, store: Store) -> dict[str, Any]:
        swap = store.manifest.get("attribute_swap", [])
        classes = maps.of(store).to_json() if self.settings.maps else {}
        return {**attributes.of(store).to_json(), "attribute_swap": swap, "maps": classes}

    @cached_property
    def _columns(self) -> dict[str, Any]:
        """Return what the training store, or an earlier start of the run, says about the attributes."""
        if (self.workdir / COLUMNS).is_file():
            return json.loads((self.workdir / COLUMNS).read_text())
        if self.data.synthetic.identities:  # known without drawing them
            classes = maps.Maps().to_json() if self.settings.maps else {}
            swap = {"attribute_swap": attribute_faces.SWAP, "maps": classes}
            return {**attribute_faces.ATTRIBUTES.to_json(), **swap}
        if (store := self.open_store()) is not None:
            return self._described(store)
        for benchmark in self.eval.benchmarks.values():
            return self._described(Store(benchmark.store, "test"))
        raise ValueError("config.task=attributes: give data.train, data.synthetic or a benchmark to know attributes of")

    @cached_property
    def columns(self) -> attributes.Attributes:
        """The attributes that the model is about."""
        c = self._columns
        groups = {group: tuple(classes) for group, classes in c["groups"].items()}
        return attributes.Attributes(tuple(c["names"]), groups, c["dataset"], c["identities"])

    @cached_property
    def mirrored(self) -> np.ndarray:
        """The column from which each attribute's label comes in a mirror."""
        return maps.mirrored(self.columns.names, self._columns["attribute_swap"])

    @cached_property
    def mirrored_classes(self) -> np.ndarray:
        """The class that each class of a map becomes in a mirror, uint8."""
        c = self._columns["maps"]
        return maps.Maps(tuple(c["classes"]), tuple((a, b) for a, b in c["swap"])).mirrored

    @cached_property
    def rules(self) -> RuleTable | None:
        """The rules of the config, checked against the attributes."""
        if not self.settings.rules:
            return None
        chosen = rules.load(self.settings.rules, self.settings.rule_sets)
        return attribute_rules.compile_rules(chosen, self.columns.names)

    def facts(self) -> dict[str, Any]:
        return {"attributes": list(self.columns.names)}

    def init_head(self, key: jax.Array, encoder: Encoder) -> dict[str, Any]:
        return attribute_slots.init(self.slots(encoder), encoder.net, key, self.text_features.shape[1])

    def init_head_stats(self) -> dict[str, Any]:
        """Return the constants: "features" [K, d] and "adjacency" [K, K]; a run without data finds them in its file."""
        return {"features": jnp.asarray(self.text_features), "adjacency": jnp.asarray(self.adjacency)}

    @cached_property
    def text_features(self) -> np.ndarray:
        """The text features of the attributes' prompts, float32 [K, d]."""
        if self.settings.text:
            return attribute_prompts.features(self.settings.text, self.columns.names, self.settings.prompts)
        rng = np.random.default_rng([self.seed, 0x7E87])
        return rng.standard_normal((len(self.columns.names), self.settings.text_width)).astype(np.float32)

    @cached_property
    def adjacency(self) -> np.ndarray:
        """The graph over the attributes, float32 [K, K], of the training labels.

        It is the identity where there are no training labels: without training data, and in a plan, which has no work
        directory to draw faces in and needs the sizes alone.
        """
        c, size = self.settings, len(self.columns.names)
        if self.data.synthetic.identities:
            there = self.workdir != Path()
        else:
            there = bool(self.data.train) and Path(self.data.train).is_dir()
        if c.graph == "none" or not there:
            return np.eye(size, dtype=np.float32)
        store = self.open_store()
        assert store is not None  # there is one
        labels = attributes.labels(store)
        found = graph.adjacency(c.graph, labels, tau=c.tau, omega=c.omega, labelled=labels != 0, seed=self.seed)
        return found["C_hat"].astype(np.float32)

    def slots(self, encoder: Encoder) -> attribute_slots.AttributeSlots:
        """Return the module of the slots for a VLM."""
        hidden = 0 if self.settings.graph == "none" else self.settings.hidden
        return attribute_slots.of(encoder.net, self.settings.maps, hidden)

    # ---- loss

    def text(self, tokenizer: Callable[[], Tokenizer]) -> Text:
        prompt = tokenizer().encode(self.prompt.text) if self.prompt.text else self.prompt.ids
        return Text(tuple(prompt), tuple(self.prompt.yes_no_ids or prompts.yes_no_ids(tokenizer())))

    def prepare(self, batch: Batch) -> Inputs:
        """Return images, labels and maps; with `config.data.flip` mirrored, and then right and left are exchanged."""
        images, labels = batch["images"][:, 0], batch["attributes"][:, 0]
        out = {"images": images, "labels": labels}
        if self.settings.maps:
            out["maps"] = batch["map"][:, 0]
            if self.settings.shuffle_maps:
                out["maps"] = jnp.roll(out["maps"], 1, axis=0)
        if self.data.flip:
            keys = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(self.seed), batch["index"])
            out |= self._mirror(out, keys)
        return out

    def _mirror(self, inputs: Mapping[str, jax.Array], keys: jax.Array) -> dict[str, jax.Array]:
        """Mirror each example with probability 1/2, decided by its own key."""
        chosen = jax.vmap(jax.random.bernoulli)(fold_in(keys, FLIP))
        labels = jnp.where(chosen[:, None], inputs["labels"][:, self.mirrored], inputs["labels"])
        out = {"images": preprocess.flip(inputs["images"], keys), "labels": labels}
        if "maps" in inputs:
            other = jnp.asarray(self.mirrored_classes)[inputs["maps"][:, :, ::-1]]
            out["maps"] = jnp.where(chosen[:, None, None], other, inputs["maps"])
        return out

    def logits(self, encoder: Encoder, variables: Variables, images: jax.Array, maps: jax.Array | None) -> jax.Array:
        """Return the logits of all attributes, float32 [N, K]."""
        slots = self.slots(encoder)
        return attribute_slots.logits(encoder.net, slots, variables, images, maps, encoder.prompt, encoder.yes_no)

    def losses(self, logits: jax.Array, labels: jax.Array) -> jax.Array:
        """Return each picture's loss, float32 [N]: cross-entropy over the labelled attributes, and broken rules."""
        softmax = self.settings.group_loss == "softmax"
        groups = tuple(self.columns.group_columns.values()) if softmax else ()
        each = attribute_loss.per_image(logits, labels, groups)
        if self.settings.logic != "none" and self.rules is not None:
            each = each + logic.per_image(jax.nn.sigmoid(logits), self.rules, self.settings.logic)
        return each

    def objective(self, encoder: Encoder) -> Objective:
        def loss(variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array, Mapping]:
            logits = self.logits(encoder, variables, inputs["images"], inputs.get("maps"))
            each = self.losses(logits, inputs["labels"])
            return each.sum(), jnp.float32(len(each)), {"head_stats": variables["head_stats"]}

        return Additive(loss)

    # ---- prediction and evaluation

    def predict(self, encoder: Encoder, variables: Variables, batch: Batch) -> jax.Array:
        """Return the attributes' probabilities, float32 [N, K]."""
        classes = batch["map"][:, 0] if self.settings.maps else None
        return jax.nn.sigmoid(self.logits(encoder, variables, batch["images"][:, 0], classes))

    def evaluator(self, encoder: Encoder, predictor: Predictor, seen: set[str]) -> Evaluator:
        del seen
        if jax.process_index() == 0 and self.trains:  # what was trained can then be used without the data
            files.replace_file(self.workdir / COLUMNS, json.dumps(self._columns, indent=1))
        return attribute_evaluation.AttributeEvaluator(self, encoder, predictor)
