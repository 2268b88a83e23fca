"""Test the two forms of a config, the ConfigDict of a config file and the typed one, against each other."""

import dataclasses
import typing
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from fvjax import config as configs
from fvjax.config import CHOICES, BenchmarkConfig, Config, OptimizerConfig, base, benchmark, experiments, typed


def sections(section: typing.Any, name: str = "") -> dict[str, typing.Any]:
    """Return all dataclasses of a config by dotted key, the config itself under ""."""
    out = {name: section}
    for one in dataclasses.fields(section):
        if dataclasses.is_dataclass(value := getattr(section, one.name)):
            out |= sections(value, f"{name}.{one.name}".lstrip("."))
    return out


# ---- the same keys and values


def test_a_config_file_starts_from_the_typed_defaults():
    assert base().to_dict() == Config().to_dict()
    assert typed(base()) == Config()
    assert list(base().to_dict()) == sorted(f.name for f in dataclasses.fields(Config))


def test_values_have_the_same_types_in_both_forms():
    def types(values):
        return {key: type(value) for key, value in configs.flatten(values).items()}

    assert types(typed(base()).to_dict()) == types(Config().to_dict())
    assert isinstance(typed(base()).trainable, tuple)
    assert isinstance(typed(base()).model.vision_transformer, configs.VisionTransformerConfig)
    assert typed(base()).model.vision_transformer.drop_path is None


def test_a_value_that_a_config_file_sets_is_the_typed_ones():
    c = base()
    c.optimizer.lr, c.model.vision_transformer.drop_path, c.data.synthetic.images = 0.5, 0.25, 7
    c.optimizer.lr_scale.head = 3.0
    found = typed(c)
    assert (found.optimizer.lr, found.model.vision_transformer.drop_path, found.data.synthetic.images) == (0.5, 0.25, 7)
    assert found.optimizer.lr_scale == {"head": 3.0}


def test_sections_are_classes_with_the_keys_of_the_config_file():
    for name, section in sections(Config()).items():
        node = base().to_dict()
        for part in filter(None, name.split(".")):
            node = node[part]
        assert set(node) == {f.name for f in dataclasses.fields(section)}, name
    assert len(sections(Config())) == 22


def test_a_config_file_refuses_keys_that_do_not_exist():
    """The error suggests the nearest key. Sections whose keys are chosen by the experiment accept any key."""
    c = base()
    with pytest.raises(AttributeError, match=r"optimizer"):
        c.optimiser = 1
    with pytest.raises(AttributeError, match=r"momentum"):
        c.optimizer.momentun = 1
    for key in configs.NAMED_BY_THE_EXPERIMENT:
        node = c
        for part in key.split("."):
            node = node[part]
        node.anything = 1


# ---- conversion between the two forms


UNKNOWN: dict[str, tuple[dict, str]] = {
    "at the top": ({"sead": 1}, "config: sead: unknown or missing; there are name, seed, epochs, steps, "),
    "in a section": ({"optimizer": {"rate": 1}}, "config.optimizer: rate: unknown or missing; there are name, lr, "),
    "in a section's section": (
        {"data": {"synthetic": {"faces": 1}}},
        "config.data.synthetic: faces: unknown or missing; there are identities, images, ",
    ),
    "several": ({"b": 1, "a": 1}, "config: a, b: unknown or missing; there are "),
    "a benchmark's": (
        {"eval": {"benchmarks": {"lfw": {"store": "s", "pairs": "p", "split": "x"}}}},
        "config.eval.benchmarks.lfw: split: unknown or missing; there are store, pairs, names",
    ),
    "a benchmark without pairs": (
        {"eval": {"benchmarks": {"lfw": {"store": "s"}}}},
        "config.eval.benchmarks.lfw: pairs: unknown or missing; there are store, pairs, names",
    ),
    "a benchmark with another key in its place": (
        {"eval": {"benchmarks": {"lfw": {"store": "s", "pair": "p"}}}},
        "config.eval.benchmarks.lfw: pair, pairs: unknown or missing; there are store, pairs, names",
    ),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_unknown_and_missing_keys_are_named_with_the_ones_there_are(case):
    changes, message = UNKNOWN[case]
    values: typing.Any = ConfigDict(base().to_dict())  # not locked, like a config that does not start from base()
    values.update(ConfigDict(changes))
    with pytest.raises(ValueError) as error:
        typed(values)
    assert str(error.value).startswith(message)


def test_a_key_that_is_left_out_has_its_default():
    values: typing.Any = ConfigDict({"seed": 4, "optimizer": {"lr": 0.5}})
    assert typed(values) == Config(seed=4, optimizer=OptimizerConfig(lr=0.5))


def test_benchmarks_are_typed_and_only_names_may_be_left_out():
    c = base()
    c.eval.benchmarks.lfw = benchmark("stores/lfw", "all", names="lfw")
    c.eval.benchmarks.cfp = ConfigDict({"store": "stores/cfp", "pairs": "fp"})
    found = typed(c).eval.benchmarks
    assert found == {
        "lfw": BenchmarkConfig("stores/lfw", "all", "lfw"),
        "cfp": BenchmarkConfig("stores/cfp", "fp", ""),
    }
    assert all(isinstance(each, BenchmarkConfig) for each in found.values())
    assert typed(c).required_paths["eval.benchmarks.cfp"] == "stores/cfp"
    assert typed(c).to_dict()["eval"]["benchmarks"]["cfp"] == {"store": "stores/cfp", "pairs": "fp", "names": ""}


# ---- a typed config


def test_a_typed_config_cannot_be_changed():
    config = Config().replace({"eval.benchmarks": {"lfw": BenchmarkConfig("s", "p")}})
    for section in (*sections(config).values(), config.eval.benchmarks["lfw"]):
        name = dataclasses.fields(section)[0].name
        with pytest.raises(dataclasses.FrozenInstanceError, match=name):
            setattr(section, name, None)
        with pytest.raises(AttributeError):
            section.anything = 1


def test_replace_returns_a_copy_with_other_values_by_dotted_key():
    config = Config()
    other = config.replace({"seed": 3, "optimizer.lr": 0.5, "data.synthetic.images": 7})
    assert (other.seed, other.optimizer.lr, other.data.synthetic.images) == (3, 0.5, 7)
    assert config == Config(), "the config itself is left alone"
    back = other.replace({"seed": 0, "optimizer.lr": 0.1, "data.synthetic.images": 12})
    assert back == config, "nothing else was changed"
    assert config.replace({}) == config


def test_replace_reaches_what_an_experiment_names():
    config = Config().replace({"eval.benchmarks.lfw": BenchmarkConfig("s", "p"), "optimizer.lr_scale": {"a": 1.0}})
    other = config.replace({"eval.benchmarks.lfw.store": "t", "optimizer.lr_scale.b": 2.0})
    assert other.eval.benchmarks == {"lfw": BenchmarkConfig("t", "p")}
    assert other.optimizer.lr_scale == {"a": 1.0, "b": 2.0}
    assert config.eval.benchmarks == {"lfw": BenchmarkConfig("s", "p")}
    assert config.optimizer.lr_scale == {"a": 1.0}


@pytest.mark.parametrize(
    ("key", "message"),
    [
        ("sead", "Config has no key 'sead'"),
        ("optimizer.rate", "OptimizerConfig has no key 'rate'"),
        ("data.synthetic.faces", "SyntheticConfig has no key 'faces'"),
        ("optimiser.lr", "Config has no key 'optimiser'"),
        ("eval.benchmarks.lfw.store", "lfw"),
        ("eval.benchmarks.cfp.stores", "BenchmarkConfig has no key 'stores'"),
        ("seed.x", "int has no key 'x'"),
    ],
)
def test_replace_refuses_a_key_that_does_not_exist(key, message):
    config = Config().replace({"eval.benchmarks.cfp": BenchmarkConfig("s", "p")})
    with pytest.raises(KeyError, match=message):
        config.replace({key: 1})


# ---- choices


def test_choices_are_those_of_the_types():
    schedules = ("epoch_cosine", "epoch_milestones", "cosine", "linear", "constant")
    assert CHOICES["optimizer.schedule"] == schedules
    assert CHOICES["data.cache"] == ("none", "host", "device")
    assert CHOICES["model.iresnet.conv_init"] == ("normal", "kaiming")
    literals = set()
    for name, section in sections(Config()).items():
        for key, kind in typing.get_type_hints(type(section)).items():
            if typing.get_origin(kind) is typing.Literal:
                literals.add(f"{name}.{key}".lstrip("."))
                assert CHOICES[f"{name}.{key}".lstrip(".")] == typing.get_args(kind)
    assert set(CHOICES) == literals | set(configs.PLUGGABLE)
    assert len(literals) == 26


def test_every_default_is_a_choice():
    flat = Config().flat()
    for key, choices in CHOICES.items():
        assert flat[key] in choices, key


def test_choices_of_a_new_key_need_no_second_list():
    @dataclasses.dataclass(frozen=True)
    class Inner:
        kind: typing.Literal["a", "b"] = "a"
        width: int = 3

    @dataclasses.dataclass(frozen=True)
    class Outer:
        inner: Inner = dataclasses.field(default_factory=Inner)
        mode: typing.Literal["x"] = "x"

    # `typing.get_type_hints` looks names up in the module, so these are given as types.
    Outer.__annotations__.update({"inner": Inner, "mode": typing.Literal["x"]})
    assert configs._choices(Outer, "top.") == {"top.inner.kind": ("a", "b"), "top.mode": ("x",)}


# ---- rows: several experiments in one config


def test_a_config_without_rows_is_one_experiment_in_its_own_folder():
    c = base()
    c.name, c.data.synthetic.dir = "alone", "faces"
    assert experiments(c, Path("runs/x")) == {Path("runs/x"): typed(c)}


def test_a_row_is_the_config_with_its_differences_its_name_and_shared_faces():
    c = base()
    c.name, c.seed, c.optimizer.lr = "table", 5, 0.5
    c.eval.benchmarks.lfw = benchmark("stores/lfw", "all")
    c.rows = {
        "second": {"optimizer": {"lr": 0.25, "lr_scale": {"head": 2.0}}, "model": {"iresnet": {"layers": (1, 1)}}},
        "first": {"name": "ignored", "eval": {"benchmarks": {"cfp": {"store": "stores/cfp", "pairs": "fp"}}}},
        "as it is": {},
    }
    found = experiments(c, Path("runs"))
    assert list(found) == [Path("runs/as it is"), Path("runs/first"), Path("runs/second")]
    c.rows = ConfigDict()
    same = typed(c).replace({"data.synthetic.dir": "runs"})
    assert found[Path("runs/as it is")] == same.replace({"name": "as it is"})
    cfp = BenchmarkConfig("stores/cfp", "fp")
    assert found[Path("runs/first")] == same.replace({"name": "first", "eval.benchmarks.cfp": cfp})
    changes = {"optimizer.lr": 0.25, "optimizer.lr_scale": {"head": 2.0}, "model.iresnet.layers": (1, 1)}
    assert found[Path("runs/second")] == same.replace({"name": "second", **changes})
    assert typed(c).eval.benchmarks == {"lfw": BenchmarkConfig("stores/lfw", "all")}, "rows do not change each other"


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": {"rate": 1.0}},
        {"optimizer": {"lr": "fast"}},
        {"data": {"synthetic": {"faces": 1}}},
        {"x": {"y": 1}},
    ],
)
def test_a_row_with_a_wrong_key_or_type_is_named(changes):
    c = base()
    c.rows = {"fine": {"seed": 1}, "wrong": changes}
    with pytest.raises(ValueError, match=r"^config\.rows\.wrong: \S.*$") as error:
        experiments(c, Path("runs"))
    assert "\n" not in str(error.value)


def test_a_rows_benchmark_without_pairs_is_refused():
    c = base()
    c.rows = {"row": {"eval": {"benchmarks": {"lfw": {"store": "s"}}}}}
    with pytest.raises(ValueError, match=r"^config\.eval\.benchmarks\.lfw: pairs: unknown or missing"):
        experiments(c, Path("runs"))
