"""Test the table of where a step's time goes, from a trace."""

import gzip
import json

import jax
import pytest
from rich.console import Console

from fvjax import experiment
from fvjax.config import typed
from fvjax.training import profiling
from tests.test_train import tiny_vit

TEXT = """
  %dot.1 = f32[4,4]{1,0} dot(%a, %b), metadata={op_name="jit(step)/jvp(Net)/while/body/closed_call/mlp/dot_general"}
  ROOT %while.2 = (s32[], f32[4]{0}) while(%t), condition=%c, body=%d, metadata={op_name="jit(step)/jvp(Net)/while"}
  %fusion.3 = f32[4]{0} fusion(%x), kind=kLoop, metadata={op_name="jit(step)/add"}
"""
NAMES = {
    "jit(step)/jvp(Net)/while/body/closed_call/blocks/mlp/fc1/dot_general": ("blocks/mlp/fc1", "forward"),
    "jit(step)/transpose(jvp(Net))/while/body/checkpoint/blocks/attn/mul": ("blocks/attn", "backward"),
    "jit(s)/transpose(jvp(Net))/while/body/checkpoint/rematted_computation/blocks/n/sub": ("blocks/n", "recomputed"),
    "jit(step)/sqrt": ("outside of modules", ""),
    "": ("outside of modules", ""),
}


@pytest.mark.parametrize("name", NAMES)
def test_modules_and_passes_by_name(name):
    assert profiling.group(name) == NAMES[name]


def shown(table) -> str:
    console = Console(width=200)
    with console.capture() as out:
        console.print(table)
    return out.get()


def test_shares_and_idle_time_by_hand():
    op = profiling.Op
    ms = 1e6
    ops = [
        op("dot.1", 0, 6 * ms),
        op("while.2", 0, 20 * ms),
        op("fusion.3", 5 * ms, 7 * ms),
        op("dot.1", 19 * ms, 20 * ms),
    ]
    ops += [op("of another program", 7 * ms, 19 * ms)]
    assert profiling.busy(ops[:1] + ops[2:4]) == 8 * ms
    text = shown(profiling.table(ops, TEXT, 2, "here"))
    assert "2 steps in here: 10.0 ms a step, no operation of the step on the first device for 60.0% of it" in text
    rows = [line.split() for line in text.splitlines()[2:]]
    assert rows == [
        ["mlp", "forward", "1", "3.50", "77.8%"],
        ["outside", "of", "modules", "0", "1.00", "22.2%"],
    ]
    assert "here: 2 steps, but no operation of theirs is known" in shown(profiling.table(ops[-1:], TEXT, 2, "here"))


def config():
    c = tiny_vit()
    c.data.synthetic.update({"identities": 24, "images": 4, "test_identities": 20, "test_images": 3, "test_pairs": 40})
    c.batch_size, c.epochs, c.eval.batch_size, c.eval.bootstrap = 16, 1, 16, 0  # 6 steps
    c.eval.before_training, c.log.tensorboard = False, False
    return c


def test_a_run_is_traced_and_told_of(tmp_path, capsys):
    experiment.run(typed(config()), tmp_path / "run", train=True, profile=2)
    out = capsys.readouterr().out
    assert f"2 steps in {tmp_path}/run/profile:" in out.replace("\n", "")
    assert "blocks/mlp/fc1" in out
    (file,) = (tmp_path / "run/profile").rglob("perfetto_trace.json.gz")
    assert json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    lines = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert len(lines) == 6


def test_a_trace_that_was_cut_short_is_ended(tmp_path, monkeypatch):
    def fails(*_):
        raise RuntimeError("lost in the middle")

    monkeypatch.setattr(profiling.Trace, "after", fails)
    monkeypatch.setattr(profiling, "SKIP", 0)
    with pytest.raises(RuntimeError, match="lost in the middle"):
        experiment.run(typed(config()), tmp_path / "run", train=True, profile=2)
    with pytest.raises(RuntimeError, match="No profile started"):
        jax.profiler.stop_trace()


def test_more_steps_than_there_are_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="--profile=5: needs 2 steps before, and only 6 are to be trained"):
        experiment.run(typed(config()), tmp_path / "run", train=True, profile=5)
