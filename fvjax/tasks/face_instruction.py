"""Face instruction: a LLaVA answers questions about faces in pictures and clips, steered by their landmarks.

The loss is that of :class:`fvjax.tasks.conversation.Conversation`: the cross-entropy of the answers' tokens, averaged
over all label tokens of a step's batch. Face-LLaVA (arXiv:2504.07198) trains in two stages, which are two configs with
different `trainable`: the landmark modules alone, then everything but the towers.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from fvjax.config import Config, ModelConfig, SyntheticConfig
from fvjax.console import progress, say
from fvjax.data import face_instruct, spliced, tokenizers
from fvjax.data.chat import TEMPLATES, show
from fvjax.data.stores.conversations import ConversationStore
from fvjax.face_regions import POINTS, REGIONS
from fvjax.losses import language
from fvjax.losses.accumulation import Additive, Inputs, Objective, Variables
from fvjax.models.encoder import Encoder
from fvjax.parallel import distributed
from fvjax.tasks import face_instruction_evaluation
from fvjax.tasks.predictor import Predictor
from fvjax.tasks.task import Batch, Evaluator, Examples, Shown, Task

MEDIA = tuple(
    f"{kind}{array}" for kind in ("image", "video") for array in ("s", "_places", "_landmarks", "_has_landmarks")
)
PICTURES_SHOWN = 8  # of an example
# What is asked about embedded faces, and how many pixels a side their pictures have: expressions show in the points.
DRAWN_TASKS, DRAWN_PIXELS = ("expression",), 6


def media_of(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arrays of pictures and clips of a batch, without the kind that no row has."""
    present = [kind for kind in ("image", "video") if arrays[f"{kind}s"].shape[1]]
    return {name: arrays[name] for name in MEDIA if name.startswith(tuple(present))} if present else {}


class FaceInstruction(Task):
    """Learn answers to questions about faces in pictures and clips."""

    unit = "conversations"
    comparison = staticmethod(face_instruction_evaluation.comparison)

    @classmethod
    def check(cls, config: Config) -> None:
        chat, model = config.chat, config.model
        if model.kind != "llava" or model.pooling:
            raise ValueError("config.task=face_instruction: needs config.model.kind=llava and no pooling")
        if config.data.flip:
            raise ValueError("config.data.flip: landmarks and words about left and right do not follow; use False")
        if config.data.cache != "none":
            raise ValueError(f"config.data.cache={config.data.cache!r}: is for faces of one size; use none")
        drawn, usual = config.data.synthetic, SyntheticConfig()
        if (drawn.difficulty, drawn.test_pairs) != (usual.difficulty, usual.test_pairs):
            raise ValueError("config.data.synthetic.difficulty and test_pairs: have no effect on face_instruction")
        if config.prompt.text or config.prompt.ids:
            raise ValueError("config.prompt: a conversation brings its own text")
        for key, name in (("template", chat.template), ("eval_template", chat.eval_template or chat.template)):
            if name not in TEMPLATES or not TEMPLATES[name].placeholders:
                known = [each for each, template in TEMPLATES.items() if template.placeholders]
                raise ValueError(f"config.chat.{key}={name!r}: choose {' or '.join(known)}")
        lengths = (0, *chat.buckets, chat.length)
        if any(a >= b for a, b in pairwise(lengths)):
            raise ValueError(f"config.chat.buckets={chat.buckets}: ascending lengths below chat.length={chat.length}")
        if not (chat.tokenizer or config.has_tokenizer):
            raise ValueError("config.chat.tokenizer: without init_from there is no tokenizer; name its directory")
        _check_landmarks(config)
        _check_batch(config)

    def __init__(self, config: Config, workdir: Path):
        self.name, self.seed, self.workdir = config.name, config.seed, workdir
        self.data, self.eval, self.chat, self.model = config.data, config.eval, config.chat, config.model
        self.batch_size, self.token_mean_rows = config.batch_size, config.compat.token_mean_rows
        self.tokenizer_path = config.chat.tokenizer or config.init_from or config.init_parts.get("decoder", "")
        size = config.model.vision_transformer.image_size
        self.image_size = size, size

    # ---- formats

    @cached_property
    def format(self) -> spliced.Format:
        """How training examples become tokens and arrays."""
        return self._format(self.chat.template)

    @cached_property
    def eval_format(self) -> spliced.Format:
        """How prompts of an evaluation become tokens and arrays."""
        return self._format(self.chat.eval_template or self.chat.template)

    def _format(self, template: str) -> spliced.Format:
        tokenizer = tokenizers.load(shipped.weights(self.tokenizer_path))
        if tokenizer.size > (vocabulary := self.model.decoder.vocab):
            raise ValueError(
                f"{tokenizer.path}: its ids go up to {tokenizer.size - 1}, the decoder's vocabulary has {vocabulary}; "
                "use the tokenizer of the checkpoint"
            )
        image_tokens, frame_tokens = visual_tokens(self.model)
        return spliced.Format(
            tokenizer,
            template,
            image_tokens=image_tokens,
            frame_tokens=frame_tokens,
            frames=self.model.frames or 1,
            size=self.image_size[0],
            square=self.chat.square,
            antialias=self.chat.antialias,
            landmarks=self.chat.landmarks if self.model.landmarks.use else "none",
        )

    # ---- examples

    def open_store(self) -> ConversationStore | None:
        if self.data.synthetic.identities:
            self._draw()
            return ConversationStore(self._drawn("train"), "train")
        return ConversationStore(self.data.train, self.data.split) if self.data.train else None

    def _drawn(self, split: str) -> Path:
        """Return where the questions about embedded faces lie; the name holds all that they are drawn with."""
        c = self.data.synthetic
        sizes = (c.identities, c.images) if split == "train" else (c.identities, c.test_identities, c.test_images)
        drawn_with = "_".join(str(n) for n in (*sizes, DRAWN_PIXELS, c.seed))
        return Path(c.dir or self.workdir) / f"faces_{split}_{drawn_with}"

    def _draw(self) -> None:
        """Write the questions about embedded faces that do not exist yet; all processes must call it."""
        c = self.data.synthetic
        test = range(c.identities, c.identities + c.test_identities)
        for split, people, images in (("train", range(c.identities), c.images), ("test", test, c.test_images)):
            path = self._drawn(split)
            if jax.process_index() == 0 and not path.exists():
                say(f"Drawing {len(people) * images:,} synthetic faces of {DRAWN_PIXELS} pixels a side ({split})")
                amounts = {"images_per_identity": images, "clips_per_identity": 0, "low_resolution": DRAWN_PIXELS}
                face_instruct.write(path, people, seed=c.seed, split=split, tasks=DRAWN_TASKS, **amounts)
        distributed.exchange("drawn")

    def examples(self, store: Any) -> Examples:
        sizes = self.sizes(store, self.format, "measuring conversations")
        if not self.model.frames and (clips := sum(size.videos > 0 for size in sizes)):
            raise ValueError(
                f"{store.path}: {clips} records have clips, and the model has no video tower (model.frames)"
            )
        tokens = np.array([size.tokens for size in sizes])
        too_long = np.flatnonzero(tokens > self.chat.length)
        if len(too_long) and self.chat.too_long == "error":
            worst = int(too_long[tokens[too_long].argmax()])
            raise ValueError(
                f"{store.path}: {len(too_long)} of {len(store)} conversations are longer than config.chat.length="
                f"{self.chat.length}; the longest is record {worst} ({store.conversation(worst).source}) with "
                f"{tokens[worst]} tokens. Raise chat.length, or leave them out with chat.too_long=drop"
            )
        plan = spliced.Plan(
            tokens,
            np.array([size.images for size in sizes]),
            np.array([size.videos for size in sizes]),
            self.batch_size,
            self.seed,
            buckets=(*self.chat.buckets, self.chat.length),
            by_length=self.chat.by_length,
            packed=self.chat.packed,
            leave_out=too_long,
        )
        kept = np.setdiff1d(np.arange(len(sizes)), too_long)
        learned = sum(sizes[i].learned for i in kept)
        left_out = f", {len(too_long)} longer than {self.chat.length} tokens left out" if len(too_long) else ""
        description = (
            f"{len(kept):,} conversations{left_out}, {plan.rows:,} rows, {learned:,} tokens with loss; "
            f"{plan.examples_per_step} rows a step, {plan.steps_per_epoch} steps an epoch, {plan.padding():.0%} "
            f"padding in the first; {self.format.image_tokens} tokens a picture, {self.format.frame_tokens} a frame"
        )
        return Examples(store, plan, description, read=spliced.Reader(store, self.format))

    def sizes(self, store: ConversationStore, format: spliced.Format, title: str) -> list[spliced.Size]:
        """Return the size of every conversation of a store, without decoding pictures."""
        numbers = progress(range(len(store)), title, len(store), unit="conversations")
        return [spliced.measure(format, store.conversation(i)) for i in numbers]

    def show(self, store: ConversationStore, count: int) -> Group:
        """Return conversations with their loss positions marked."""
        texts = []
        for i in range(min(count, len(store))):
            record = store.conversation(i)
            rendered = self.format.render(record.messages)
            learned = sum(rendered.label_mask)
            texts += [Text(f"record {i} ({record.source}): {len(rendered.ids)} tokens, {learned} with loss, in ⟦⟧")]
            texts += [show(rendered, self.format.tokenizer)]
        return Group(*texts)

    def pictures(self, batch: Mapping[str, np.ndarray], count: int) -> list[Shown]:
        shown: list[Shown] = []
        for row, tokens in enumerate(batch["tokens"]):
            length = len(tokens)
            images, clips = batch["images"][row], batch["videos"][row]
            chosen: list[np.ndarray] = []
            for pictures, places in ((images, batch["image_places"][row]), (clips, batch["video_places"][row])):
                present = places.reshape(len(pictures), -1)[:, 0] < length if len(pictures) else []
                chosen += [one for each in pictures[present] for one in each.reshape(-1, *each.shape[-3:])]
            left = count - sum(len(each.pictures) for each in shown)
            if chosen := chosen[: min(left, PICTURES_SHOWN)]:
                visual = np.concatenate([batch["image_places"][row], batch["video_places"][row]])
                text = (batch["segments"][row] == 0) & ~np.isin(np.arange(length), visual)
                caption = " ".join(self.format.tokenizer.decode(tokens[text].tolist()).split())
                shown.append(Shown(chosen, caption))
        return shown

    def batch_shapes(self, count: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of the largest batch: rows of chat.length tokens with one picture and one clip each."""
        length, frames = self.chat.length, self.model.frames
        image_tokens, frame_tokens = visual_tokens(self.model)
        text = dict.fromkeys(("tokens", "targets", "segments"), ((count, length), jnp.int32))
        shapes = {**text, "index": ((count,), jnp.int32)}
        for kind, lead, tokens in (
            ("image", (1,), image_tokens),
            ("video", (int(frames > 0), frames or 1), frames * frame_tokens),
        ):
            shapes |= {
                f"{kind}s": ((count, *lead, *self.image_size, 3), jnp.uint8),
                f"{kind}_places": ((count, lead[0] * tokens), jnp.int32),
                f"{kind}_landmarks": ((count, *lead, POINTS, 2), jnp.float32),
                f"{kind}_has_landmarks": ((count, lead[0]), jnp.bool_),
            }
        return {name: jax.ShapeDtypeStruct(*one) for name, one in shapes.items()}

    def facts(self) -> dict[str, Any]:
        return {"tokenizer": tokenizers.fingerprint(self.format.tokenizer.path)}

    def data_hashes(self) -> dict[str, str]:
        return face_instruction_evaluation.check(self.benchmarks, self.eval.during)

    def validation_hash(self) -> str:
        return ConversationStore(self.data.val, "val").data_hash if self.data.val else ""

    @property
    def benchmarks(self) -> dict[str, Path]:
        """Stores of questions by name: those of the config, and about embedded faces those of the test people."""
        chosen = {name: Path(benchmark.store) for name, benchmark in self.eval.benchmarks.items()}
        return chosen | ({"faces": self._drawn("test")} if self.data.synthetic.identities else {})

    # ---- loss

    def prepare(self, batch: Batch) -> Inputs:
        return {name: batch[name] for name in ("tokens", "targets", "segments", *MEDIA)}

    def counts(self, batch: Batch) -> dict[str, jax.Array]:
        return {"tokens": jnp.float32(batch["tokens"].size), "label_tokens": (batch["targets"] >= 0).sum()}

    def sum_of_losses(self, encoder: Encoder, variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """Return the sum of the losses of a batch's label tokens, and their number."""
        states = self._states(encoder, variables, inputs)
        return language.next_token_loss(partial(encoder.logits, variables), states, inputs["targets"])

    def sum_of_means(self, encoder: Encoder, variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array]:
        """Return the sum of the mean losses of groups of rows, and the number of groups.

        The reference averages the label tokens of each GPU's rows, and then the GPUs, so that a token counts more
        beside few others. A group without label tokens counts 0.
        """
        states = self._states(encoder, variables, inputs)
        groups = jax.tree.map(lambda x: x.reshape(-1, self.token_mean_rows, *x.shape[1:]), (states, inputs["targets"]))

        def mean(group: tuple[jax.Array, jax.Array]) -> jax.Array:
            total, count = language.next_token_loss(partial(encoder.logits, variables), *group)
            return total / jnp.maximum(count, 1)

        means = jax.lax.map(mean, groups)
        return means.sum(), jnp.float32(len(means))

    def _states(self, encoder: Encoder, variables: Variables, inputs: Inputs) -> jax.Array:
        """Return the decoder's states of a batch, [N,T,D]."""
        segments = inputs["segments"] if self.chat.packed else None
        return encoder.read_conversation(variables, inputs["tokens"], media_of(inputs), None, segments)

    def objective(self, encoder: Encoder) -> Objective:
        compute = self.sum_of_means if self.token_mean_rows else self.sum_of_losses

        def loss(variables: Variables, inputs: Inputs) -> tuple[jax.Array, jax.Array, Mapping]:
            return *compute(encoder, variables, inputs), {}

        return Additive(loss)

    # ---- prediction and evaluation

    def predict(self, encoder: Encoder, variables: Variables, batch: Batch) -> jax.Array:
        """Return the logits of the token after each row, float32 [N, vocab]."""
        states = encoder.read_conversation(variables, batch["tokens"], media_of(batch), None)
        return encoder.logits(variables, states[:, -1])

    def evaluator(self, encoder: Encoder, predictor: Predictor, seen: set[str]) -> Evaluator:
        return face_instruction_evaluation.FaceInstructionEvaluator(self, encoder, predictor)


def _check_landmarks(config: Config) -> None:
    """Raise ValueError for an attention that needs the nine regions and does not have them."""
    c = config.model.landmarks
    whole = c.kind == "regions" and c.parts != "global"
    if c.use == "attention" and c.variant != "simple" and not whole:
        needs = "measures distances to the nine regions; needs kind=regions, and parts=both or local"
        raise ValueError(f"config.model.landmarks.variant={c.variant}: {needs}")


def _check_batch(config: Config) -> None:
    """Raise ValueError for a batch that does not divide, and for settings without effect."""
    if config.batch_size % config.accumulation:
        parts = f"config.accumulation={config.accumulation} parts"
        raise ValueError(f"config.batch_size={config.batch_size} does not divide into {parts}")
    rows = config.compat.token_mean_rows
    if rows and (config.batch_size // config.accumulation) % rows:
        raise ValueError(f"config.compat.token_mean_rows={rows} does not divide a part of the batch")
    if config.loss.function or config.compat != type(config.compat)(token_mean_rows=rows):
        raise ValueError("config.loss.function and config.compat but token_mean_rows: have no effect on conversations")
    if config.eval.pools or config.eval.flip_sum or config.eval.baselines:
        raise ValueError("config.eval.pools, flip_sum and baselines: are of face verification")


def visual_tokens(model: ModelConfig) -> tuple[int, int]:
    """Return the numbers of tokens of a picture and of a frame of a clip, whose class token is kept."""
    patches = (model.vision_transformer.image_size // model.vision_transformer.patch_size) ** 2
    c = model.landmarks
    landmarks = len(REGIONS) if c.kind == "regions" and c.parts != "global" else 1
    appended = landmarks if c.use == "append" else 0
    return patches + appended, patches + 1 + appended
