"""Test which settings are refused, each at the edge of what is allowed, and which may change when a run resumes."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from fvjax import config as configs
from fvjax import tasks

GROUPED = {"batch_size": 48, "accumulation": 2}
VLM = {"model.kind": "vlm", "model.pooling": "visual_mean"}
PAIRS = {"task": "pair_answer", "model.kind": "vlm", "init_from": "DIR"}
LORA = {"lora.rank": 4, "lora.alpha": 8.0, "lora.targets": ("fc",)}

FINE = {
    "no pictures and lines": {"log.pictures": 0, "log.line_minutes": 0.0},
    "as it is": {},
    "a single pair": {"batch_size": 2},
    "parts of a single pair": {"batch_size": 8, "accumulation": 4},
    "all of lora": LORA,
    "a synthetic set": {"data.synthetic.identities": 3},
    "the fewest pairs to validate on": {"data.val_pairs": 20},
    "more of them": {"data.val_pairs": 60},
    "validation": {"data.val": "DIR", "eval.every_epochs": 1},
    "a cache without workers": {"data.cache": "host", "data.workers": 0},
    "workers without a cache": {"data.workers": 3},
    "answers": PAIRS | {"prompt.text": "same?"},
    "answers by ids": PAIRS | {"init_from": "", "prompt.ids": (1, 2), "prompt.yes_no_ids": (3, 4)},
    "several pools": VLM | {"init_from": "DIR", "eval.pools": ("visual_mean", "all_mean", "last_token")},
    "one pool": VLM | {"eval.pools": ("visual_mean",)},
    "a tokenizer of the decoder": VLM | {"init_parts": {"decoder": "DIR"}, "prompt.text": "who?"},
    "parts": VLM | {"init_parts": {"vision": "DIR"}},
    "the last part": GROUPED | {"compat.last_micro_batch": True},
    "negatives of a part": GROUPED | {"compat.last_micro_batch": True, "compat.negatives_group": 12},
    "negatives of the whole": GROUPED | {"compat.negatives_group": 16},
    "as many as there are": {"batch_size": 48, "compat.negatives_group": 48, "compat.batch_norm_group": 48},
    "groups of one pair": {"compat.batch_norm_group": 2},
    "a mirrored sum of embeddings": VLM | {"eval.flip_sum": True},
}

WRONG = {
    "task": ({"task": "classify"}, "config.task='classify': choose contrastive or margin or pair_answer"),
    "batch_size": ({"batch_size": 0}, "config.batch_size=0 must be at least 1"),
    "odd": ({"batch_size": 3}, "config.batch_size=3 must be even: it is made of pairs"),
    "rank alone": ({"lora.rank": 4}, "config.lora: rank, alpha and targets go together; all or none"),
    "without rank": (LORA | {"lora.rank": 0}, "config.lora: rank, alpha and targets go together"),
    "without alpha": (LORA | {"lora.alpha": 0.0}, "config.lora: rank, alpha and targets go together"),
    "without targets": (LORA | {"lora.targets": ()}, "config.lora: rank, alpha and targets go together"),
    "alpha alone": ({"lora.alpha": 1.0}, "config.lora: rank, alpha and targets go together"),
    "targets alone": ({"lora.targets": ("fc",)}, "config.lora: rank, alpha and targets go together"),
    "two sources": (
        {"data.train": "DIR", "data.synthetic.identities": 1},
        "config.data: give train or synthetic.identities, not both",
    ),
    "cache and workers": ({"data.cache": "host", "data.workers": 1}, "config.data.cache='host' leaves data.workers no"),
    "pictures": ({"log.pictures": -1}, "config.log: pictures and line_minutes must not be negative"),
    "minutes": ({"log.line_minutes": -0.5}, "config.log: pictures and line_minutes must not be negative"),
    "validation, never": (
        {"data.val": "DIR"},
        "config.data.val picks the best of several evaluations; set config.eval",
    ),
    "no fold": ({"data.val_pairs": 0}, "config.data.val_pairs=0: ten folds, so a multiple of 20"),
    "half a fold": ({"data.val_pairs": 10}, "config.data.val_pairs=10: ten folds"),
    "folds of three": ({"data.val_pairs": 30}, "config.data.val_pairs=30: ten folds"),
    "a negative one": ({"data.val_pairs": -20}, "config.data.val_pairs=-20: ten folds"),
    "who answers": ({"task": "pair_answer"}, "config.task=pair_answer: only a model of kind vlm answers"),
    "answers have no pooling": (PAIRS | {"model.pooling": "all_mean"}, "config.model.pooling: pair_answer has none"),
    "pools of a tower": ({"eval.pools": ("visual_mean",)}, "config.eval.pools: only a VLM's embeddings have several"),
    "pools of answers": (PAIRS | {"eval.pools": ("all_mean",)}, "config.eval.pools: only a VLM's embeddings"),
    "a pool that is none": (VLM | {"eval.pools": ("visual_mean", "cls")}, "config.eval.pools: visual_mean, all_mean,"),
    "other pools": (VLM | {"eval.pools": ("all_mean",)}, "config.eval.pools: visual_mean, all_mean, last_token are"),
    "answers mirrored": (PAIRS | {"eval.flip_sum": True}, "config.eval.flip_sum: an answer about two faces has no"),
    "text and ids": (
        PAIRS | {"prompt.text": "x", "prompt.ids": (1,)},
        "config.prompt: give text or ids, and both only to a model of kind vlm",
    ),
    "text to a tower": ({"prompt.text": "x", "init_from": "DIR"}, "config.prompt: give text or ids, and both only"),
    "ids to a tower": ({"prompt.ids": (1,)}, "config.prompt: give text or ids, and both only"),
    "text without a tokenizer": (VLM | {"prompt.text": "x"}, "config.prompt: without init_from there is no tokenizer"),
    "the tower has none": (
        VLM | {"prompt.text": "x", "init_parts": {"vision": "DIR"}},
        "config.prompt: without init_from there is no tokenizer",
    ),
    "answers without ids": (
        PAIRS | {"init_from": "", "prompt.ids": (1,)},
        "config.prompt: without init_from there is no tokenizer; give ids, and for pair_answer yes_no_ids",
    ),
    "parts and a whole": (
        VLM | {"init_from": "DIR", "init_parts": {"vision": "DIR"}},
        "config.init_parts: are of a model of kind vlm or llava without init_from",
    ),
    "parts of a tower": (
        {"init_parts": {"vision": "DIR"}},
        "config.init_parts: are of a model of kind vlm or llava without",
    ),
    "the last of one": ({"compat.last_micro_batch": True}, "config.compat.last_micro_batch: there is one part; set"),
    "answers have no negatives": (PAIRS | {"compat.negatives_group": 2}, "config.compat.negatives_group: pair_answer"),
    "who has statistics": (
        VLM | {"compat.batch_norm_group": 2},
        "config.compat.batch_norm_group: only an iresnet has batch statistics",
    ),
    "parts that do not divide": (
        {"batch_size": 12, "accumulation": 4},
        "config.batch_size=12: its 6 pairs do not divide into config.accumulation=4 parts",
    ),
    "more parts than pairs": ({"batch_size": 4, "accumulation": 3}, "config.batch_size=4: its 2 pairs do not divide"),
    "half a pair": ({"batch_size": 48, "compat.negatives_group": 3}, "config.compat.negatives_group=3: must be even"),
    "five into 48": (
        {"batch_size": 48, "compat.batch_norm_group": 10},
        "config.compat.batch_norm_group=10: must be even and divide the 48 images of a step",
    ),
    "more than a part": (
        GROUPED | {"compat.last_micro_batch": True, "compat.negatives_group": 16},
        "config.compat.negatives_group=16: must be even and divide the 24 images of a step",
    ),
}


def config_with(changes):
    config = configs.base()
    config.update_from_flattened_dict({k: v for k, v in changes.items() if k != "init_parts"})
    config.init_parts.update(changes.get("init_parts", {}))
    return config


def check(changes):
    config = configs.typed(config_with(changes))
    config.check()
    tasks.get(config.task).check(config)


@pytest.mark.parametrize("case", FINE)
def test_what_a_run_can_use(case):
    check(FINE[case])


@pytest.mark.parametrize("case", WRONG)
def test_what_no_run_can_use_is_refused_in_words(case):
    changes, message = WRONG[case]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        check(changes)


def test_rows_are_checked_named_and_share_the_faces():
    config = config_with({})
    assert configs.experiments(config, Path("runs")) == {Path("runs"): configs.typed(config)}
    config.rows = {"b": {"seed": 3}, "a": {"optimizer": {"lr": 0.5}}}
    found = configs.experiments(config, Path("runs"))
    assert list(found) == [Path("runs/a"), Path("runs/b")]
    assert [(c.name, c.seed, c.optimizer.lr, c.data.synthetic.dir) for c in found.values()] == [
        ("a", 0, 0.5, "runs"),
        ("b", 3, 0.1, "runs"),
    ]
    assert all(not c.rows for c in found.values())
    with pytest.raises(dataclasses.FrozenInstanceError):
        found[Path("runs/a")].seed = 1  # type: ignore[misc]
    assert config.data.synthetic.dir == "", "the config itself is left alone"
    for changes in ({"sead": 1}, {"seed": "one"}):
        config.rows = {"c": changes}
        with pytest.raises(ValueError, match=r"^config\.rows\.c: "):
            configs.experiments(config, Path("runs"))


def test_differences_name_the_key_and_both_values():
    new, old = configs.base().to_dict(), configs.base().to_dict()
    assert configs.differences(new, old) == []
    new["seed"], old["optimizer"]["lr"], old["gone"], new["added"] = 1, 0.5, 7, [1]
    assert configs.differences(new, old) == [
        "added: None there, [1] now",
        "gone: 7 there, None now",
        "optimizer.lr: 0.5 there, 0.1 now",
        "seed: 0 there, 1 now",
    ]
    lists = json.loads(json.dumps(old))
    assert configs.differences(old, lists) == [], "tuples are lists once they have been written"


def test_what_may_change_is_a_key_or_all_below_it_not_a_longer_name():
    for key in ("remat", "mesh.data", "eval.benchmarks.lfw.store", "data.train", "data.val", "data.synthetic.dir"):
        assert configs._may_change(key), key
    for key in ("data.val_pairs", "data.synthetic.seed", "data.names", "data", "name", "prepared", "meshes.data"):
        assert not configs._may_change(key), key
    assert configs.flatten({"a": {"b": {"c": 1}, "d": {}}, "e": 2}, "x.") == {"x.a.b.c": 1, "x.e": 2}


def test_the_hash_is_of_what_is_computed_wherever_it_runs():
    def hashed(**changes):
        return configs.typed(config_with({k.replace("__", "."): v for k, v in changes.items()})).hash()

    assert re.fullmatch("[0-9a-f]{16}", hashed())
    assert hashed() == hashed(data__workers=2, remat="full", mesh__fsdp=2, heartbeat_seconds=9.0)
    assert len({hashed(), hashed(seed=1), hashed(data__val_pairs=20), hashed(name="x"), hashed(epochs=1)}) == 5
