"""Test scenario 1 with the command of a run, on the tiny InternVL2 checkpoint: frozen, then with LoRA."""

import json

import numpy as np
import pytest

from configs import vit_frozen, vit_lora
from tests import test_main
from tests.test_bad_input import Commands
from tests.test_main import saved

BASE = "tests/golden/internvl_tiny"
SMALL = test_main.SETTINGS | {
    "data.synthetic.identities": 8,
    "data.synthetic.images": 2,
    "data.synthetic.test_identities": 20,
    "data.synthetic.test_images": 2,
    "data.synthetic.test_pairs": 20,
    "init_from": BASE,
    "data.train": "",
    "data.names": "synthetic",
    **{f"model.vision_transformer.{k}": v for k, v in {"width": 32, "depth": 3, "heads": 4, "mlp_dim": 64}.items()},
    "eval.batch_size": 4,
    "data.workers": 0,
}
FP32 = {"dtype": "float32", "base_dtype": "float32"}
LORA = SMALL | {"lora.count": 6, "epochs": 2, "optimizer.warmup_epochs": 0}


@pytest.fixture
def commands(monkeypatch, capsys) -> Commands:
    return Commands(monkeypatch, capsys, devices=2)


def config(seed, changes: dict):
    """Return a config of the paper without the reference's benchmarks, which need photographs."""
    c = seed.get_config()
    del c.eval.benchmarks.lfw, c.eval.benchmarks.cfp_ff, c.eval.benchmarks.cfp_fp
    c.update_from_flattened_dict(changes)
    return c


def figures(workdir) -> dict:
    return json.loads((workdir / "results.json").read_text())


def test_frozen_then_lora(commands, capsys, tmp_path):
    assert commands.main(config(vit_frozen, SMALL | FP32 | {"epochs": 0}), tmp_path / "frozen") == 0
    capsys.readouterr()
    assert commands.main(config(vit_lora, LORA | FP32), tmp_path / "lora") == 0
    out = capsys.readouterr().out
    assert "4,608 train" in out, "3 layers, 2 adapters each, rank 8 between 32 and 64: 3 * 2 * 8 * (32 + 64)"
    a, b = figures(tmp_path / "frozen"), figures(tmp_path / "lora")
    assert a["base_hash"] == b["base_hash"] != ""
    # B starts at zero, so before training the adapted tower is the frozen one, to the last bit
    before, alone = b["benchmarks"]["synthetic"]["before_training"], a["benchmarks"]["synthetic"]
    apart = ("before_training", "identities_seen_in_training")  # only the second run trains
    assert {k: v for k, v in before.items() if k not in apart} == {k: v for k, v in alone.items() if k not in apart}
    trained = b["benchmarks"]["synthetic"]
    assert trained["accuracy@far=1e-3"]["threshold"] != before["accuracy@far=1e-3"]["threshold"]
    _, state = saved(tmp_path / "lora")
    names = [k for k in state if "trainable" in k]
    assert len(names) == 4
    assert all("lora" in k for k in names), "checkpoints hold adapters, never the base"
    assert all(np.abs(state[k]).max() > 0 for k in names), "every B has moved"


def test_half_precision_base(commands, tmp_path):
    assert commands.main(config(vit_lora, LORA), tmp_path / "half") == 0
    assert figures(tmp_path / "half")["dtype"] == "bfloat16"
    losses = [json.loads(line)["loss"] for line in (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.vision_transformer.depth": 4}, f"{BASE} has depth=3, the config's model depth=4"),
        ({"lora.count": 5}, "give 6 adapters, expected 5"),
        ({"lora.targets": ("blocks/mlp/fc3",)}, "'blocks/mlp/fc3' matches no module"),
        ({"model.kind": "iresnet"}, "holds a vision_transformer, and 'iresnet' was asked for"),
        ({"model.pooling": "max"}, "vision_transformer has no pooling 'max'; choose from"),
    ],
)
def test_what_does_not_fit_is_an_error(commands, tmp_path, changes, message):
    assert message in commands.refuses("main", config(vit_lora, LORA | changes), tmp_path / "x")
