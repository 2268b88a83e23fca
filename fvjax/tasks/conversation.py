"""Conversation: a VLM answers questions about pictures, and learns to say the answers of a data set.

The loss is the cross-entropy of the answers' tokens, averaged over all label tokens of a step's batch. Source: FaceLLM
(arXiv:2507.10300); the conventions of templates and labels are LLaMA-Factory's and internvl_chat's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Group
from rich.text import Text

from fvjax import shipped
from fvjax.config import Config
from fvjax.console import progress, say
from fvjax.data import face_questions, tokenizers
from fvjax.data.chat import TEMPLATES, show
from fvjax.data.conversation_plan import ConversationPlan
from fvjax.data.conversations import Format, Reader, Size, measure
from fvjax.data.stores.conversations import ConversationStore
from fvjax.losses import language
from fvjax.losses.accumulation import Additive, Inputs, Objective, Variables
from fvjax.models.encoder import Encoder
from fvjax.parallel import distributed
from fvjax.tasks import conversation_evaluation
from fvjax.tasks.predictor import Predictor
from fvjax.tasks.task import Batch, Evaluator, Examples, Shown, Task

TILES_SHOWN = 4  # of an example


class Conversation(Task):
    """Learn answers in conversations about pictures."""

    unit = "conversations"
    comparison = staticmethod(conversation_evaluation.comparison)

    @classmethod
    def check(cls, config: Config) -> None:
        chat = config.chat
        if config.model.kind != "vlm" or config.model.pooling:
            raise ValueError("config.task=conversation: needs config.model.kind=vlm and no pooling")
        if config.data.flip:
            raise ValueError("config.data.flip: words about left and right are wrong in a mirrored picture; use False")
        if config.data.cache != "none":
            raise ValueError(f"config.data.cache={config.data.cache!r}: is for faces of one size; use none")
        if config.prompt.text or config.prompt.ids:
            raise ValueError("config.prompt: a conversation brings its own text")
        if config.loss.function or config.compat != type(config.compat)():
            raise ValueError("config.loss.function and config.compat: have no effect on conversations")
        if config.eval.pools or config.eval.flip_sum or config.eval.baselines:
            raise ValueError("config.eval.pools, flip_sum and baselines: are of face verification")
        if not (chat.tokenizer or config.has_tokenizer):
            raise ValueError("config.chat.tokenizer: without init_from there is no tokenizer; name its directory")
        for key, name in (("template", chat.template), ("eval_template", chat.eval_template or chat.template)):
            if name not in TEMPLATES:
                raise ValueError(f"config.chat.{key}={name!r}: choose {' or '.join(TEMPLATES)}")
        lengths = (0, *chat.buckets, chat.length)
        if any(a >= b for a, b in pairwise(lengths)):
            raise ValueError(f"config.chat.buckets={chat.buckets}: ascending lengths below chat.length={chat.length}")
        if config.batch_size % config.accumulation:
            raise ValueError(
                f"config.batch_size={config.batch_size} does not divide into config.accumulation="
                f"{config.accumulation} parts"
            )

    def __init__(self, config: Config, workdir: Path):
        self.name, self.seed, self.workdir = config.name, config.seed, workdir
        self.data, self.eval, self.chat = config.data, config.eval, config.chat
        self.batch_size = config.batch_size
        self.tokenizer_path = config.chat.tokenizer or config.init_from or config.init_parts.get("decoder", "")
        vision = config.model.vision_transformer
        self.image_size = vision.image_size, vision.image_size
        self.tile_tokens = (vision.image_size // vision.patch_size // config.model.projector.shuffle) ** 2
        self.vocabulary = config.model.decoder.vocab

    # ---- formats

    @cached_property
    def format(self) -> Format:
        """How training examples become tokens."""
        c = self.chat
        tokenizer = tokenizers.load(shipped.weights(self.tokenizer_path))
        # InternVL3's -hf tokenizers have a token, <video>, that the decoder does not know; no text has it.
        size = tokenizer.size - (tokenizer.added.get("<video>") == tokenizer.size - 1)
        if size > self.vocabulary:
            raise ValueError(
                f"{tokenizer.path}: its ids go up to {size - 1}, the decoder's vocabulary has "
                f"{self.vocabulary}; use the tokenizer of the checkpoint"
            )
        return Format(
            tokenizer,
            c.template,
            c.system or None,
            c.labels,
            c.max_tiles,
            c.tile_rule,
            self.image_size[0],
            self.tile_tokens,
            c.hide_pictures,
        )

    @cached_property
    def eval_format(self) -> Format:
        """How prompts of an evaluation become tokens."""
        template, tiles = self.chat.eval_template or self.chat.template, self.chat.eval_max_tiles or self.chat.max_tiles
        return replace(self.format, template=template, max_tiles=tiles)

    # ---- examples

    def open_store(self) -> ConversationStore | None:
        if self.data.synthetic.identities:
            self._draw()
            return ConversationStore(self._drawn("train"), "train")
        return ConversationStore(self.data.train, self.data.split) if self.data.train else None

    def _drawn(self, split: str) -> Path:
        """Return where the conversations about embedded faces lie; the name holds all that they are drawn with."""
        c = self.data.synthetic
        sizes = (c.identities, c.images) if split == "train" else (c.identities, c.test_identities, c.test_images)
        drawn_with = "_".join(str(n) for n in (*sizes, c.difficulty, c.seed))
        return Path(c.dir or self.workdir) / f"questions_{split}_{drawn_with}"

    def _draw(self) -> None:
        """Write the conversations about embedded faces that do not exist yet; all processes must call it."""
        c = self.data.synthetic
        test = range(c.identities, c.identities + c.test_identities)
        for split, people, images in (("train", range(c.identities), c.images), ("test", test, c.test_images)):
            path = self._drawn(split)
            if jax.process_index() == 0 and not path.exists():
                say(f"Drawing {len(people) * images:,} synthetic faces with questions ({split})")
                face_questions.write(
                    path, people, images, c.seed, split=split, difficulty=c.difficulty, single=split == "test"
                )
        distributed.exchange("drawn")

    def examples(self, store: Any) -> Examples:
        sizes = self.sizes(store, self.format, "measuring conversations")
        too_long = np.flatnonzero([size.tokens > self.chat.length for size in sizes])
        if len(too_long) and self.chat.too_long == "error":
            worst = max(too_long, key=lambda i: sizes[i].tokens)
            raise ValueError(
                f"{store.path}: {len(too_long)} of {len(store)} conversations are longer than config.chat.length="
                f"{self.chat.length}; the longest is record {worst} ({store.conversation(int(worst)).source}) with "
                f"{sizes[worst].tokens} tokens, {sizes[worst].tiles * self.tile_tokens} of them visual. Raise "
                "chat.length, lower chat.max_tiles, or leave them out with chat.too_long=drop"
            )
        plan = ConversationPlan(
            np.array([size.tokens for size in sizes]),
            np.array([size.tiles for size in sizes]),
            self.batch_size,
            self.seed,
            buckets=(*self.chat.buckets, self.chat.length),
            by_length=self.chat.by_length,
            packed=self.chat.packed,
            leave_out=too_long,
        )
        left = set(range(len(sizes))) - set(too_long.tolist())
        learned = sum(sizes[i].learned for i in left)
        left_out = f", {len(too_long)} longer than {self.chat.length} tokens left out" if len(too_long) else ""
        description = (
            f"{len(store) - len(too_long):,} conversations{left_out}, {plan.rows:,} rows, {learned:,} tokens with "
            f"loss; {plan.examples_per_step} rows a step, {plan.steps_per_epoch} steps an epoch, "
            f"{plan.padding():.0%} padding in the first"
        )
        return Examples(store, plan, description, read=Reader(store, self.format))

    def show(self, store: ConversationStore, count: int) -> Group:
        """Return conversations with their loss positions marked."""
        numbers = range(min(count, len(store)))
        texts = []
        for i in numbers:
            record = store.conversation(i)
            rendered = self.format.render(record.messages, self.format.tile_counts(store.picture_sizes[i]))
            learned = sum(rendered.label_mask)
            title = f"record {i} ({record.source}): {len(rendered.ids)} tokens, {learned} with loss, in ⟦⟧"
            texts += [Text(title)]
            texts += [show(rendered, self.format.tokenizer)]
        return Group(*texts)

    def pictures(self, batch: Mapping[str, np.ndarray], count: int) -> list[Shown]:
        shown: list[Shown] = []
        columns = (batch[name] for name in ("tokens", "segments", "tiles", "places"))
        for tokens, segments, tiles, places in zip(*columns):
            present = places.reshape(len(tiles), -1)[:, 0] < len(tokens)
            text = (segments == 0) & ~np.isin(np.arange(len(tokens)), places)
            left = count - sum(len(each.pictures) for each in shown)
            if chosen := list(tiles[present][: min(left, TILES_SHOWN)]):
                shown.append(Shown(chosen, self._question(tokens[text].tolist())))
        return shown

    def _question(self, ids: Sequence[int]) -> str:
        """Return a conversation's text from the beginning of the first question, in one line, without pictures."""
        template = TEMPLATES[self.chat.template]
        text = self.format.tokenizer.decode(ids).replace(template.image[0] + template.image[2], "")
        return " ".join((text.partition(template.user.begin)[2] or text).split())

    def sizes(self, store: ConversationStore, format: Format, title: str) -> list[Size]:
        """Return the size of every conversation of a store, without decoding pictures."""
        numbers = progress(range(len(store)), title, len(store), unit="conversations")
        return [measure(format, store.conversation(i), store.picture_sizes[i]) for i in numbers]

    def batch_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the largest batch: rows of chat.length tokens with one picture each."""
        most = self.chat.max_tiles + (self.chat.max_tiles > 1)
        tiles, length = 1 << (most - 1).bit_length(), self.chat.length
        shapes = {
            "tokens": ((count, length), jnp.int32),
            "targets": ((count, length), jnp.int32),
            "segments": ((count, length), jnp.int32),
            "tiles": ((count, tiles, *self.image_size, 3), jnp.uint8),
            "places": ((count, tiles * self.tile_tokens), jnp.int32),
            "index": ((count,), jnp.int32),
        }
        return {name: jax.ShapeDtypeStruct(*one) for name, one in shapes.items()}

    def facts(self) -> dict[str, Any]:
        return {"tokenizer": tokenizers.fingerprint(self.format.tokenizer.path)}

    def data_hashes(self) -> dict[str, str]:
        return conversation_evaluation.check(self.benchmarks, self.eval.during)

    def validation_hash(self) -> str:
        return ConversationStore(self.data.val, "val").data_hash if self.data.val else ""

    @property
    def benchmarks(self) -> dict[str, Path]:
        """Stores of questions by name: those of the config, and about embedded faces those of the test people."""
        chosen = {name: Path(benchmark.store) for name, benchmark in self.eval.benchmarks.items()}
        return chosen | ({"questions": self._drawn("test")} if self.data.synthetic.identities else {})

    # ---- loss

    def prepare(self, batch: Batch) -> Inputs:
        return {name: batch[name] for name in ("tokens", "targets", "segments", "tiles", "places")}

    def counts(self, batch: Batch) -> dict[str, jax.Array]:
        return {"tokens": jnp.float32(batch["tokens"].size), "label_tokens": (batch["targets"] >= 0).sum()}

    def sum_of_losses(self, encoder: Encoder, variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """Return the sum of the losses of a batch's label tokens, and their number."""
        segments = inputs["segments"] if self.chat.packed else None
        states = encoder.read_conversation(variables, inputs["tokens"], inputs["tiles"], inputs["places"], segments)
        return language.next_token_loss(partial(encoder.logits, variables), states, inputs["targets"])

    def objective(self, encoder: Encoder) -> Objective:
        def loss(variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array, Mapping]:
            return *self.sum_of_losses(encoder, variables, inputs), {}

        return Additive(loss)

    # ---- prediction and evaluation

    def predict(self, encoder: Encoder, variables: Variables, batch: Batch) -> jax.Array:
        """Return the logits of the token after each row, float32 [N, vocab]."""
        states = encoder.read_conversation(variables, batch["tokens"], batch["tiles"], batch["places"])
        return encoder.logits(variables, states[:, -1])

    def evaluator(self, encoder: Encoder, predictor: Predictor, seen: set[str]) -> Evaluator:
        return conversation_evaluation.ConversationEvaluator(self, encoder, predictor)
