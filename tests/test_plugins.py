"""Test users' own code, named `module:name` in a config: what is loaded, hashed and called, and the errors."""

import hashlib
import importlib
import json
import sys
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax import config as configs
from fvjax import plugins, tasks
from fvjax.config import Config, base, typed
from fvjax.models.encoder import Encoder
from tests.parts import model_of, task_of

# ---- names


@pytest.mark.parametrize("value", ["a:b", "a.b.c:D", "_a1:_b2", "tests.plugins.head_pose:HeadPose"])
def test_what_names_code(value):
    assert plugins.is_spec(value)


NO_CODE = ["", "contrastive", "a.b", "a:", ":b", "a:b:c", "a:b.c", "1a:b", "a:1b", "a b:c", ".a:b", "a/b:c", "a:b\n"]


@pytest.mark.parametrize("value", [*NO_CODE, "C:\\x", None, 3])
def test_what_names_no_code(value):
    assert not plugins.is_spec(value)


# ---- loading


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Return a function module(name, source) that writes a module where Python finds it."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name, source):
        file = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
        importlib.invalidate_caches()
        return file

    yield write
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


def test_an_object_is_loaded_by_module_and_name(module):
    module("plugged_in", "def double(x):\n    return 2 * x\nlimit = 7\n")
    assert plugins.load("plugged_in:double")(4) == 8
    assert plugins.load("plugged_in:limit") == 7
    assert plugins.load("fvjax.config:Config") is Config


def test_a_module_in_the_folder_that_a_command_is_started_in_is_found(tmp_path, monkeypatch):
    """Python puts the folder of a console script on the path, not the current folder."""
    (tmp_path / "beside_the_command.py").write_text("x = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [folder for folder in sys.path if folder])
    importlib.invalidate_caches()
    assert plugins.source_hash("beside_the_command:x")
    assert plugins.load("beside_the_command:x") == 3
    assert sys.path.count(str(tmp_path)) == 1
    del sys.modules["beside_the_command"]


ERRORS = {
    "no module": ("nowhere:f", "nowhere:f: there is no module 'nowhere' here or in this environment"),
    "no module in a package": ("fvjax.nowhere:f", "fvjax.nowhere:f: there is no module 'fvjax.nowhere' here or"),
    "no package": ("nowhere.at.all:f", "nowhere.at.all:f: there is no module 'nowhere' here or"),
    "no name": ("fvjax.config:f", "fvjax.config:f: the module fvjax.config has no 'f'"),
    "what it imports is missing": ("needs_more:f", "needs_more:f: there is no module 'not_installed' here or"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_what_is_missing_is_named(module, case):
    module("needs_more", "import not_installed\n")
    spec, message = ERRORS[case]
    with pytest.raises(ValueError) as error:
        plugins.load(spec)
    assert str(error.value).startswith(message)


def test_a_mistake_in_the_module_itself_is_shown_as_it_is(module):
    """Such an error must not be reported as a missing name; its traceback shows its place."""
    module("mistaken", "import math\nmath.no_such_function(1)\ndef f(): pass\n")
    with pytest.raises(AttributeError, match="no_such_function"):
        plugins.load("mistaken:f")


# ---- hashes


def test_the_hash_is_of_the_source_file_and_imports_nothing(module):
    source = "raise SystemExit('imported')\n"
    file = module("never_imported", source)
    expected = hashlib.sha256(source.encode()).hexdigest()[:16]
    assert plugins.source_hash("never_imported:f") == plugins.source_hash("never_imported:other") == expected
    file.write_text(source + "#")
    assert plugins.source_hash("never_imported:f") != expected


def test_the_hash_of_a_module_in_a_package(module):
    module("package.__init__", "")
    file = module("package.inner", "x = 1\n")
    assert plugins.source_hash("package.inner:x") == hashlib.sha256(file.read_bytes()).hexdigest()[:16]
    empty = hashlib.sha256(b"").hexdigest()[:16]
    assert plugins.source_hash("package:x") == empty, "a package's own file"


@pytest.mark.parametrize("spec", ["nowhere:f", "fvjax.nowhere:f", "nowhere.at.all:f", "sys:path", "fvjax.config.x:f"])
def test_a_module_without_a_source_file_has_no_hash(spec):
    name = spec.partition(":")[0]
    with pytest.raises(ValueError, match=f"^{spec}: there is no module {name!r} with a source file here or in this"):
        plugins.source_hash(spec)


def test_a_folder_is_no_source_file(module):
    module("folder.inner", "x = 1\n")
    with pytest.raises(ValueError, match="there is no module 'folder' with a source file"):
        plugins.source_hash("folder:x")


def test_a_configs_hash_changes_with_the_source_of_its_task_loss_and_backbone(module):
    file = module("own", "x = 1\n")
    keys = {"task": "own:A", "loss.function": "own:b", "model.kind": "own:c"}
    every = {key: Config().replace({key: spec}) for key, spec in keys.items()}
    every["all"] = Config().replace(keys)
    hashes = {key: config.hash() for key, config in every.items()}
    assert len(set(hashes.values())) == 4
    digest = hashlib.sha256(b"x = 1\n").hexdigest()[:16]
    assert every["loss.function"].plugin_sources() == {"loss.function": digest}
    assert every["all"].plugin_sources() == dict.fromkeys(keys, digest)
    file.write_text("x = 2\n")
    assert all(config.hash() != hashes[key] for key, config in every.items())
    file.write_text("x = 1\n")
    assert {key: config.hash() for key, config in every.items()} == hashes


def test_a_config_without_code_of_the_users_own_hashes_its_values_alone(monkeypatch):
    monkeypatch.setattr(plugins, "source_hash", lambda spec: pytest.fail(f"{spec} is hashed"))
    config = Config(seed=3).replace({"log.trackers": ("nowhere:Tracker",), "eval.batch_size": 4})
    assert config.plugin_sources() == {}
    decides = {key: value for key, value in config.flat().items() if not configs._may_change(key)}
    assert config.hash() == hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
    assert config.hash() == Config(seed=3).hash(), "where metrics go does not change what is computed"


def test_settings_of_the_users_own_are_part_of_the_hash():
    assert Config(plugin={"width": 3}).hash() != Config(plugin={"width": 4}).hash()


@pytest.mark.parametrize("key", ["task", "model.kind", "loss.function"])
def test_which_keys_take_code(key):
    Config().replace({key: "anywhere:f"}).check()
    with pytest.raises(ValueError, match=rf"^config\.{key}='anywhere\.f': choose .*module:name of your own$"):
        Config().replace({key: "anywhere.f"}).check()
    with pytest.raises(ValueError, match=r"^config\.dtype='anywhere:f': choose float32 or bfloat16$"):
        Config(dtype="anywhere:f").check()  # type: ignore[arg-type]


# ---- a loss and a backbone (tests/test_config_keys.py tests that a training step uses them)


def pull_together(embeddings, labels):
    """Compute a loss from embeddings [2P, D] and identities [P], and record the arguments."""
    CALLS.append((embeddings, labels))
    return jnp.square(embeddings[::2] - embeddings[1::2]).sum() + labels.sum()


def cost_of_answers(logits, labels, columns):
    """Compute a loss per pair from logits [P, V], labels [P] and the columns of (Yes, No), and record the arguments."""
    CALLS.append((logits, labels, columns))
    return logits[:, columns[0]] * labels


CALLS: list[tuple] = []


def test_a_loss_over_embeddings_gets_rows_of_pairs_and_identities():
    c = base()
    c.loss.function = f"{__name__}:pull_together"
    objective = task_of(c).objective(None)  # type: ignore[arg-type]
    embeddings, labels = jnp.arange(12.0).reshape(3, 2, 2) ** 2, jnp.array([4, 0, 2])
    CALLS.clear()
    value = objective.compare(embeddings, {"labels": labels})  # type: ignore[misc]
    ((rows, identities),) = CALLS
    assert np.array_equal(rows, embeddings.reshape(6, 2)), "rows 2i and 2i + 1 are the images of pair i"
    assert np.array_equal(identities, labels)
    # pairs (0, 1) (4, 9); (16, 25) (36, 49); (64, 81) (100, 121): differences 4 8, 20 24, 36 40
    assert float(value) == 16 + 64 + 400 + 576 + 1296 + 1600 + 6


def test_a_loss_of_answers_gets_all_logits_and_the_columns_of_yes_and_no():
    c = base()
    c.task, c.model.kind = "pair_answer", "vlm"
    c.prompt.update({"ids": (2, 3), "yes_no_ids": (5, 1)})
    c.loss.function, c.loss.pair_loss = f"{__name__}:cost_of_answers", "yes_no"
    logits, asked = jnp.arange(21.0).reshape(3, 7), []

    def answer(variables, a, b, rows, **_):
        asked.append(rows)
        return logits

    encoder = SimpleNamespace(yes_no=(5, 1), answer=answer)
    objective = task_of(c).objective(encoder)  # type: ignore[arg-type]
    inputs = {"images": np.zeros((3, 2, 1, 1, 3)), "keys": None, "labels": jnp.array([1, 0, 1])}
    CALLS.clear()
    total, weight, stats = objective.loss({}, inputs)  # type: ignore[misc]
    ((got, labels, columns),) = CALLS
    assert np.array_equal(got, logits)
    assert asked == [None], "pair_loss is of the task's own loss"
    assert (labels.tolist(), columns) == ([1, 0, 1], (5, 1))
    assert (float(total), float(weight), stats) == (5.0 + 19.0, 3.0, {})


class Pixel(nn.Module):
    """A network that multiplies one value of the first pixel by a weight per feature."""

    features: int
    dtype: object

    def preprocess(self, images):
        return images[:, 0, 0, :1].astype(self.dtype)

    def embed(self, x, text, pooling, **_):
        return self(x)

    @nn.compact
    def __call__(self, x, **_):
        return x * self.param("w", nn.initializers.ones, (self.features,))


def pixel(settings, dtype):
    return Encoder(Pixel(settings["features"], dtype), "")


def test_a_backbone_is_built_from_its_settings_and_the_configs_dtype():
    c = base()
    c.model.kind, c.dtype, c.compat.batch_norm_group = f"{__name__}:pixel", "bfloat16", 6
    c.plugin.features = 5
    model = model_of(c)
    assert isinstance(model.encoder.net, Pixel)
    assert (model.encoder.net.features, model.encoder.net.dtype) == (5, jnp.bfloat16)
    assert model.encoder.norm_group == 6, "as of the networks that come with fvjax"
    assert model.groups == {"params/w": "backbone"}
    initial = model.initial(jax.random.key(0))["trainable"]
    assert initial["params"]["w"].tolist() == [1.0] * 5
    images = np.full((2, 112, 112, 3), 3, np.uint8)
    embeddings, _ = model.encoder(model.variables(initial, {}, {}), images)
    assert embeddings.tolist() == [[3.0] * 5] * 2


@pytest.mark.parametrize("spec", ["nowhere:f", f"{__name__}:no_such_backbone"])
def test_a_backbone_that_is_not_there_is_named(spec):
    c = base()
    c.model.kind = spec
    with pytest.raises(ValueError, match=f"^{spec}: "):
        model_of(c)


def test_a_task_is_a_subclass_of_task():
    assert tasks.get("tests.plugins.head_pose:HeadPose").__name__ == "HeadPose"
    for spec in (f"{__name__}:pixel", f"{__name__}:Pixel", "nothing"):
        with pytest.raises(
            ValueError,
            match=rf"^config\.task='{spec}': not a task; choose contrastive, margin, pair_answer, conversation, ",
        ):
            tasks.get(spec)


def test_settings_of_the_users_own_reach_the_typed_config():
    c = base()
    c.plugin.update({"features": 5, "more": {"rate": 0.5}})
    assert typed(c).plugin == {"features": 5, "more": {"rate": 0.5}}
