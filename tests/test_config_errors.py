"""Mistakes in a config file or a key are one line with the file, the line, the key and what there is instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from fvjax import cli, config_errors
from fvjax.config import base, experiments
from fvjax.config_keys import has, unknown_key

OPTIMIZER = "config.optimizer has b1, b2, clip, eps, "


def config_file(tmp_path, body: str, *, before: str = "") -> Path:
    file = tmp_path / "mine.py"
    file.write_text(
        f"from fvjax.config import base\n{before}\n\ndef get_config():\n    c = base()\n    {body}\n    return c\n"
    )
    return file


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("c.optimizer.learning_rate = 3", ("line 6: config.optimizer.learning_rate: there is no such key", OPTIMIZER)),
        (
            "c.optimizer.lrr = 3",
            ("config.optimizer.lrr: there is no such key; the nearest are optimizer.lr", OPTIMIZER),
        ),
        ("c.max_steps = 3", ("config.max_steps: there is no such key", "steps", "; the config has accumulation, ")),
        ("c.optimizer.update({'lrate': 1})", ("line 6: config.optimizer.lrate: there is no such key", OPTIMIZER)),
        (
            "c.model.decoder.deep = 3",
            ("config.model.decoder.deep: there is no such key; the nearest are model.decoder.dep",),
        ),
        ("1 / 0", ("line 6: ZeroDivisionError: division by zero",)),
        ("import nothere", ("line 6: ModuleNotFoundError: No module named 'nothere'",)),
        ("c.optimizer.lr = 'x'", ("line 6: TypeError: ", "lr")),
        ("raise ValueError('mine.py wants a row')", ("mine.py wants a row",)),
        ("raise ValueError('a row')", ("mine.py, line 6: a row",)),
        ("c = = 1", ("mine.py, line 6: invalid syntax",)),
    ],
)
def test_a_mistake_in_a_file_is_one_line(tmp_path, body, said):
    with pytest.raises(ValueError) as error:
        config_errors.load(config_file(tmp_path, body), "")
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 800
    for part in said:
        assert part in text


def test_a_good_file_is_loaded_with_its_row(tmp_path):
    assert config_errors.load(config_file(tmp_path, "c.optimizer.lr = 3.0"), "").optimizer.lr == 3.0
    row = config_errors.load(Path("configs/quickstart.py"), "resnet")
    assert row.name == "quickstart_resnet"
    with pytest.raises(ValueError, match=r"^configs/quickstart.py has no row 'nope'; there are vit_frozen, "):
        config_errors.load(Path("configs/quickstart.py"), "nope")
    with pytest.raises(ValueError, match=r"a config is a Python file, or the config\.json of a run"):
        config_errors.load(Path("README.md"), "")


@pytest.mark.parametrize(
    ("argument", "problem"),
    [
        ("--config.optimizer.lrr=1", "config.optimizer.lrr: there is no such key; the nearest are optimizer.lr"),
        ("--config.max_steps=1", "config.max_steps: there is no such key"),
        ("--noconfig.data.flipped", "config.data.flipped: there is no such key; the nearest are data.flip"),
        ("--config.optimizer.lr=1", None),
        ("--config.optimizer.lr_scale.head=1", None),  # the experiment names these
        ("--config.eval.benchmarks.lfw.store=x", None),
        ("--config.trainable[0][1]=x", None),  # ml_collections judges what is inside a value
        ("--noconfig.data.flip", None),
        ("--configuration=1", None),
    ],
)
def test_a_key_on_the_command_line_is_checked(argument, problem):
    if problem is None:
        config_errors.check_overrides(["fvjax", argument], base())
        return
    with pytest.raises(ValueError) as error:
        config_errors.check_overrides(["fvjax", argument], base())
    assert str(error.value).startswith(problem)


def test_a_key_of_a_row_is_checked(tmp_path):
    c = base()
    c.rows.update({"small": {"optimizer": {"lr": 0.5}}, "wrong": {"optimizer": {"lrr": 0.5}}})
    with pytest.raises(
        ValueError, match=r"^config.rows.wrong: config.optimizer.lrr: there is no such key; the nearest"
    ):
        experiments(c, tmp_path)


def test_sections_and_values_are_told_apart():
    c = base()
    assert has(c, "optimizer.lr")
    assert has(c, "optimizer")
    assert has(c, "plugin.anything")
    assert not has(c, "optimizer.rate")
    assert unknown_key("model.decoder.width2", c).startswith(
        "config.model.decoder.width2: there is no such key; the nearest are model.decoder.width"
    )


@pytest.mark.parametrize("form", [["--config=FILE"], ["--config", "FILE"]])
def test_the_commands_check_before_ml_collections(tmp_path, form):
    file = str(config_file(tmp_path, "c.max_steps = 3"))
    with pytest.raises(ValueError, match=r"mine.py, line 6: config.max_steps"):
        cli.check_config([each.replace("FILE", file) for each in form])
    cli.check_config(["--config=not/there.py"])  # reported with the names of those that there are
