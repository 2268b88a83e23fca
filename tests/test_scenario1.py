"""Test scenario 1 through the command line, on the tiny InternVL2 checkpoint: frozen, then with LoRA."""

import json

import numpy as np
import pytest

from tests.test_main import TINY, call, saved

BASE = "tests/golden/internvl_tiny"
SMALL = [
    *TINY[1:],
    f"--config.init_from={BASE}",
    "--config.data.train=",
    "--config.data.names=synthetic",
    *(f"--config.model.vision_transformer.{k}" for k in ("width=32", "depth=3", "heads=4", "mlp_dim=64")),
    "--config.eval.batch_size=4",
    "--config.data.workers=0",
]
FP32 = ["--config.dtype=float32", "--config.base_dtype=float32"]
LORA = [
    "--config=configs/vit_lora.py",
    *SMALL,
    "--config.lora.count=6",
    "--config.epochs=2",
    "--config.optimizer.warmup_epochs=0",
]


def figures(workdir) -> dict:
    return json.loads((workdir / "results.json").read_text())


@pytest.fixture(scope="module")
def no_benchmarks(tmp_path_factory):
    """Return the two configs without the reference's benchmarks, which need photographs."""
    folder = tmp_path_factory.mktemp("configs")
    for name in ("vit_frozen", "vit_lora"):
        (folder / f"{name}.py").write_text(
            f"import configs.{name} as seed\n\n\ndef get_config():\n    c = seed.get_config()\n"
            "    del c.eval.benchmarks.lfw, c.eval.benchmarks.cfp_ff, c.eval.benchmarks.cfp_fp\n    return c\n"
        )
    return folder


def test_frozen_then_lora(no_benchmarks, tmp_path):
    frozen = [f"--config={no_benchmarks}/vit_frozen.py", *SMALL, "--config.epochs=0", *FP32]
    code, out, err = call(*frozen, f"--workdir={tmp_path}/frozen")
    assert code == 0, err
    code, out, err = call(f"--config={no_benchmarks}/vit_lora.py", *LORA[1:], *FP32, f"--workdir={tmp_path}/lora")
    assert code == 0, err
    assert "4,608 train" in out, "3 layers, 2 adapters each, rank 8 between 32 and 64: 3 * 2 * 8 * (32 + 64)"
    a, b = figures(tmp_path / "frozen"), figures(tmp_path / "lora")
    assert a["base_hash"] == b["base_hash"] != ""
    # B starts at zero, so before training the adapted tower is the frozen one, to the last bit
    before, alone = b["benchmarks"]["synthetic"]["before_training"], a["benchmarks"]["synthetic"]
    apart = ("before_training", "identities_seen_in_training")  # only the second run trains
    assert {k: v for k, v in before.items() if k not in apart} == {k: v for k, v in alone.items() if k not in apart}
    assert b["benchmarks"]["synthetic"]["auc"] != before["auc"]
    _, state = saved(tmp_path / "lora")
    names = [k for k in state if "trainable" in k]
    assert len(names) == 4
    assert all("lora" in k for k in names), "checkpoints hold adapters, never the base"
    assert all(np.abs(state[k]).max() > 0 for k in names), "every B has moved"


def test_half_precision_base(no_benchmarks, tmp_path):
    code, _, err = call(f"--config={no_benchmarks}/vit_lora.py", *LORA[1:], f"--workdir={tmp_path}/half")
    assert code == 0, err
    assert figures(tmp_path / "half")["dtype"] == "bfloat16"
    losses = [json.loads(line)["loss"] for line in (tmp_path / "half" / "metrics.jsonl").read_text().splitlines()]
    assert np.isfinite(losses).all()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--config.model.vision_transformer.depth=4"], f"{BASE} has depth=3, the config's model depth=4"),
        (["--config.lora.count=5"], "give 6 adapters, expected 5"),
        (["--config.lora.targets=('blocks/mlp/fc3',)"], "'blocks/mlp/fc3' matches no module"),
        (["--config.model.kind=iresnet"], "holds a vision_transformer, and 'iresnet' was asked for"),
        (["--config.model.pooling=max"], "vision_transformer has no pooling 'max'; choose from"),
    ],
)
def test_what_does_not_fit_is_an_error(no_benchmarks, tmp_path, args, message):
    code, _, err = call(f"--config={no_benchmarks}/vit_lora.py", *LORA[1:], *args, f"--workdir={tmp_path}/x")
    assert code == 2
    assert message in err, err
    assert err.count("\n") == 1
