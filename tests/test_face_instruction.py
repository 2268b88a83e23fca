"""Test the task of Face-LLaVA: two stages of a tiny model on procedural faces, and what it refuses."""

import functools
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from configs.facellava import STAGE_1, STAGE_2
from fvjax import api, experiment
from fvjax.config import base, benchmark, typed
from fvjax.data import face_instruct
from fvjax.data.stores.conversations import ConversationStore, Writer
from fvjax.evals import face_tasks
from fvjax.tasks import face_instruction_evaluation
from fvjax.tasks.face_instruction import FaceInstruction
from fvjax.training import model as models
from tests.parts import task_of
from tests.reference import facellava
from tests.test_conversation_store import chat, picture

TOKENIZER = Path("fvjax/pretrained/tiny_chat")


def config(**changes):
    """Return the config of a model of two 28-pixel towers and a decoder of one layer each, all of width 16."""
    c = base()
    c.name, c.task = "faces", "face_instruction"
    c.model.kind, c.model.frames = "llava", 8
    c.model.vision_transformer.update(
        {"image_size": 28, "patch_size": 14, "width": 16, "depth": 2, "heads": 2, "mlp_dim": 16}
    )
    c.model.decoder.update(
        {"vocab": 512, "width": 16, "depth": 1, "heads": 4, "kv_heads": 4, "head_dim": 4, "mlp_dim": 16}
    )
    c.model.landmarks.update({"use": "attention", "heads": 2})
    c.chat.update({"tokenizer": str(TOKENIZER), "template": "vicuna_tiny", "length": 384, "answers": 0})
    c.chat.max_new_tokens = 4
    c.data.flip, c.batch_size, c.eval.batch_size = False, 8, 8
    c.optimizer.update({"name": "adamw", "lr": 1e-2, "schedule": "constant", "weight_decay": 0.0, "clip": 1.0})
    c.steps = 2
    c.log.update({"tensorboard": False, "pictures": 0})
    for key, value in changes.items():
        *parents, last = key.split("__")
        functools.reduce(lambda at, name: at[name], parents, c)[last] = value
    return c


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a folder with a store of pictures and clips, as "train" and, with other people, as "test"."""
    folder = tmp_path_factory.mktemp("faces")
    amounts = {"images_per_identity": 1, "clips_per_identity": 1, "seed": 0, "tasks": ("expression",)}
    face_instruct.write(folder / "train", range(4), **amounts)
    face_instruct.write(folder / "test", range(4, 6), split="test", **amounts)
    return folder


@pytest.fixture(scope="module")
def stages(store, tmp_path_factory):
    """Train stage 1 on random weights that a checkpoint holds, then stage 2 from its work directory."""
    folder = tmp_path_factory.mktemp("stages")
    start = facellava.write("facellava_tiny/paper", folder, vocab=512)
    shape = {"image_size": 56, "width": 64, "depth": 3, "heads": 4, "mlp_dim": 128}
    decoder = {"width": 64, "depth": 3, "head_dim": 16, "mlp_dim": 160}

    def stage(name, rules, init_from, steps):
        c = config(data__train=str(store / "train"), trainable=rules, init_from=str(init_from), steps=steps)
        c.model.vision_transformer.update(shape)
        c.model.decoder.update(decoder)
        c.model.landmarks.heads = 8
        if name == "stage2":
            c.eval.benchmarks.people = benchmark(str(store / "test"), "")
            c.eval.before_training = False
        return experiment.run(typed(c), folder / name, train=True)

    stage("stage1", STAGE_1, start, 2)
    return start, folder, stage("stage2", STAGE_2, folder / "stage1", 1)


def leaves(path) -> dict[str, np.ndarray]:
    """Return the parameters that a run would begin with, by name."""
    opened = models.open_pretrained(str(path), {}, "llava")
    assert opened is not None
    return {name: np.asarray(leaf) for name, leaf in opened.params.items()}


@pytest.mark.slow
def test_each_stage_changes_its_own_leaves_only(stages):
    start, folder, _ = stages
    before, between, after = (leaves(path) for path in (start, folder / "stage1", folder / "stage2"))
    assert set(before) == set(between) == set(after)

    def changed(old, new) -> set[str]:
        return {
            name.split("/")[1] for name in old if old[name].tobytes() != new[name].astype(old[name].dtype).tobytes()
        }

    assert changed(before, between) == {"landmarks", "attention"}
    assert changed(between, after) == {"landmarks", "attention", "projector", "decoder"}


@pytest.mark.slow
def test_answers_are_kept_and_counted(stages, store):
    _, folder, results = stages
    entry = results["benchmarks"]["people"]
    assert entry["tasks"]["expression"]["n"] == entry["n"] == 4
    (file,) = (folder / "stage2/answers").iterdir()
    rows = face_tasks.read_answers(file)
    test = ConversationStore(store / "test", "test")
    assert [row.id for row in rows] == [test.conversation(i).source for i in range(4)]
    assert face_instruction_evaluation.figures(rows) == entry["tasks"]


def test_figures_and_table_of_answers_by_task():
    rows = [
        face_tasks.Answer("a", "expression", "happy", "The person looks happy."),
        face_tasks.Answer("b", "expression", "sad", "The person looks happy."),
        face_tasks.Answer("c", "deepfake", "fake", "This video is fake."),
        face_tasks.Answer("d", "age", 30, "About 40 years old."),
    ]
    by_task = face_instruction_evaluation.figures(rows)
    assert by_task["expression"]["war"]["value"] == 0.5
    assert by_task["deepfake"]["accuracy"]["value"] == 1
    assert by_task["age"]["mae_unparsed_as_median"]["value"] == 10
    results = {"row": {"benchmarks": {"test": {"tasks": by_task, "before_training": None}}}}
    table = face_instruction_evaluation.comparison(results)
    assert table.row_count == 4, "two of the expression, one of each other task"
    assert list(table.columns[5].cells) == ["war", "uar", "accuracy", "mae_unparsed_as_median"]


def test_a_record_without_a_label_is_refused_before_training(tmp_path):
    with Writer(tmp_path / "store", split="test", sources=["here"]) as writer:
        writer.add(chat("<image>\nHow?", "Happy."), [picture(0)], "a", task="expression")
    with pytest.raises(ValueError, match=r"record 0 \(a\): meta needs a task of expression, .* and a label"):
        face_instruction_evaluation.check({"x": tmp_path / "store"}, ())
    with pytest.raises(ValueError, match=r"no benchmark \['y'\]"):
        face_instruction_evaluation.check({}, ("y",))


@pytest.mark.slow
def test_a_run_is_loaded_for_questions(stages):
    model = api.load(stages[1] / "stage2", "chat")
    assert model.reads_landmarks
    picture = np.full((112, 112, 3), 128, np.uint8)
    asked = [{"role": "user", "content": "<image>\nHow does the person feel?"}]
    answer = model.generate(asked, [picture], 4, landmarks=[np.full((68, 2), 0.5, np.float32)])
    assert isinstance(answer, str)


def test_a_batch_has_pictures_and_clips_with_landmarks(store):
    task = task_of(config(data__train=str(store / "train")))
    assert isinstance(task, FaceInstruction)
    examples = task.examples(task.open_store())
    assert "4 tokens a picture, 5 a frame" in examples.description
    assert examples.read is not None
    batch = examples.read(examples.plan.examples(np.arange(8)))
    assert batch["images"].shape == (8, 1, 28, 28, 3)
    assert batch["videos"].shape == (8, 1, 8, 28, 28, 3)
    assert batch["image_has_landmarks"].sum() == batch["video_has_landmarks"].sum() == 4
    shapes = task.batch_shapes(8)
    assert {n: (x.shape[2:], x.dtype) for n, x in shapes.items() if n != "index"} == {
        n: (x.shape[2:], x.dtype) for n, x in batch.items()
    }


def test_appended_tokens_lengthen_a_picture(store):
    task = task_of(config(data__train=str(store / "train"), model__landmarks__use="append"))
    assert isinstance(task, FaceInstruction)
    assert (task.format.image_tokens, task.format.frame_tokens) == (4 + 9, 5 + 9)


def test_the_mean_of_groups_is_the_references(store):
    """One row with few tokens counts as much as one with many, as on GPUs with one row each."""
    task = task_of(config(compat__token_mean_rows=1, batch_size=4, data__train=str(store / "train")))
    assert isinstance(task, FaceInstruction)
    rng = np.random.default_rng(0)
    table = rng.normal(size=(8, 5)).astype(np.float32)
    states = rng.integers(8, size=(4, 6))
    targets = np.where(rng.random((4, 6)) < [[0.2], [0.9], [0.5], [0.6]], rng.integers(5, size=(4, 6)), -1)

    class Lookup:
        def read_conversation(self, variables, tokens, media, places, segments):
            return jax.nn.one_hot(tokens, 8)

        def logits(self, variables, states):
            return states @ table

    nothing = {f"{kind}s": np.zeros((4, 0)) for kind in ("image", "video")}
    inputs = {"tokens": states, "targets": targets, "segments": states}
    total, groups = task.sum_of_means(Lookup(), {}, {**inputs, **nothing})  # type: ignore[arg-type]
    losses = -np.take_along_axis(np.asarray(jax.nn.log_softmax(table[states])), np.maximum(targets, 0)[..., None], -1)
    each = [row[one >= 0].mean() for row, one in zip(losses[..., 0], targets)]
    np.testing.assert_allclose(total / groups, np.mean(each), rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__kind": "vlm"}, "needs config.model.kind=llava"),
        ({"chat__template": "internvl2_5"}, "config.chat.template='internvl2_5': choose vicuna_v1"),
        ({"data__flip": True}, "landmarks and words about left and right"),
        ({"model__landmarks__parts": "global"}, "variant=paper: measures distances to the nine regions"),
        ({"compat__token_mean_rows": 3}, "does not divide a part of the batch"),
        ({"compat__negatives_group": 2}, "have no effect on conversations"),
        ({"data__synthetic__difficulty": 2.0}, "difficulty and test_pairs: have no effect"),
    ],
)
def test_settings_that_do_not_go_together(changes, message):
    with pytest.raises(ValueError, match=message):
        FaceInstruction.check(typed(config(**changes)))


def test_embedded_faces_hide_their_expressions_from_the_picture_alone(tmp_path):
    c = config(model__frames=0)
    c.data.synthetic.update({"identities": 2, "images": 1, "test_identities": 1, "test_images": 2, "seed": 3})
    task = FaceInstruction(typed(c), tmp_path)
    train = task.open_store()
    assert train is not None
    test = ConversationStore(task.benchmarks["faces"], "test")
    assert (len(train), len(test), train.frames) == (2, 2, 0)
    people = [{store.conversation(i).meta["identity"] for i in range(2)} for store in (train, test)]
    assert people == [{0, 1}, {2}], "nobody is in both"
    assert {store.conversation(i).meta["task"] for store in (train, test) for i in range(2)} == {"expression"}
    assert train.conversation(0).landmarks[0] is not None
    (picture,) = train.images(0)
    small = picture.resize((6, 6)).resize(picture.size, resample=Image.Resampling.BICUBIC)
    assert np.abs(np.asarray(picture, float) - np.asarray(small, float)).mean() < 8, "6 pixels a side tell it all"
    assert train.data_hash == ConversationStore(task._drawn("train"), "train").data_hash
    before = sorted(tmp_path.iterdir())
    task.open_store()
    assert sorted(tmp_path.iterdir()) == before, "what was drawn is used again"


def test_clips_need_a_video_tower(store):
    task = task_of(config(data__train=str(store / "train"), model__frames=0))
    with pytest.raises(ValueError, match=r"4 records have clips, and the model has no video tower"):
        task.examples(task.open_store())


def test_weights_that_the_config_does_not_use(tmp_path):
    start = facellava.write("facellava_tiny/paper", tmp_path, vocab=512)
    opened = models.open_pretrained(str(start), {}, "llava")
    assert opened is not None
    c = config()
    c.model.vision_transformer.update({"image_size": 56, "width": 64, "depth": 3, "heads": 4, "mlp_dim": 128})
    c.model.decoder.update({"width": 64, "depth": 3, "head_dim": 16, "mlp_dim": 160})
    with pytest.raises(ValueError, match="has heads=8, the config's model heads=2"):
        models.llava_parts(typed(c).model, opened.attributes, str(start))
    c.model.landmarks.update({"use": "", "heads": 8})
    with pytest.raises(ValueError, match=r"has the part 'landmarks', which the config does not use"):
        models.llava_parts(typed(c).model, opened.attributes, str(start))
