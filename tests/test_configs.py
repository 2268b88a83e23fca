"""Every config builds, one step of it traces, and it has exactly the parameters it should."""

import functools
import importlib
from pathlib import Path

import jax
import pytest

from fvjax import flops, optim, run_state, train, trees
from fvjax.config import differences, experiments

# name: (parameters, of which train, model GFLOP per step and image or None)
# IResNet-50 43,590,848 and InternViT-300M 304,012,288 + 1,966,080 are the published models' own counts; the small
# networks' are those of the PyTorch twin (tests/reference/iresnet_torch.py).
EXPECTED = {
    "quickstart:resnet": (220_876, 220_748, None),
    "quickstart:vit_frozen": (877_952, 0, None),  # 75,392 + 128 + 8,320 + 4 x 198,528
    "quickstart:vit_lora": (877_952 + 65_536, 65_536, None),
    "small_real": (2_308_352, 2_308_096, None),
    "resnet50_infonce": (43_590_848, 43_590_336, 37.8),
    "vit_frozen": (304_012_288, 0, None),
    "vit_lora": (305_978_368, 1_966_080, 1544),
}


def test_all_configs_are_here():
    files = {p.stem for p in Path("configs").glob("*.py")} - {"__init__", "paper"}
    assert files == {name.split(":")[0] for name in EXPECTED}


def test_rows_are_experiments_of_their_own():
    config = importlib.import_module("configs.quickstart").get_config()
    config.batch_size = 8
    found = experiments(config, Path("runs/q"))
    assert list(found) == [Path("runs/q") / name for name in ("resnet", "vit_frozen", "vit_lora")]
    for where, row in found.items():
        alone = importlib.import_module("configs.quickstart").get_config(where.name)
        assert row.batch_size == 8, "what holds for all rows is taken from the config"
        assert {d.split(":")[0] for d in differences(row.to_dict(), alone.to_dict())} == {"name", "batch_size"}
    config.rows.vit_lora.optimizer.lrr = 1
    with pytest.raises(ValueError, match=r"rows\.vit_lora.*lrr"):
        experiments(config, Path("runs/q"))


@pytest.mark.parametrize("name", EXPECTED)
def test_config(name):
    file, *row = name.split(":")
    config = importlib.import_module(f"configs.{file}").get_config(*row)
    encoder = run_state.build_encoder(config)
    key = jax.random.key(0)
    variables = jax.eval_shape(functools.partial(run_state.init_variables, config, encoder), key)
    stats = {"batch_stats": variables.pop("batch_stats")} if "batch_stats" in variables else {}
    trainable, frozen, groups = optim.split(variables, config.trainable)
    size = {k: sum(x.size for x in trees.flatten(v).values()) for k, v in (("t", trainable), ("f", frozen))}
    counts = (size["t"] + size["f"], size["t"])
    expected = EXPECTED[name]
    assert counts == expected[:2]
    if not config.epochs:
        return
    lr = optim.schedule(config.optimizer, config.epochs, 10)
    tx = optim.make(config.optimizer, groups, lr)
    shape = jax.eval_shape(lambda t: {"trainable": t, "opt": tx.init(t)}, trainable)
    shape |= {"stats": stats, "step": jax.ShapeDtypeStruct((), "int32")}
    step = functools.partial(train.step_fn, config, encoder, tx, lr)
    args = train.abstract_step(config, shape, frozen)
    new, values = jax.eval_shape(step, *args)
    assert set(values) == {"loss", "lr", "grad_norm"}
    assert {k: v.shape for k, v in trees.flatten(new["trainable"]).items()} == {
        k: v.shape for k, v in trees.flatten(trainable).items()
    }
    if expected[2]:
        plain = functools.partial(train.step_fn, config, run_state.build_encoder(config, plain=True), tx, lr)
        per_image = flops.count(plain, *args) / config.batch_size / 1e9
        assert per_image == pytest.approx(expected[2], rel=0.02)
