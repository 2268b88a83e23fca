"""Test validation during training: its pairs, the choice of the best checkpoint, and that this one is evaluated."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.config import base, typed
from fvjax.data import pairs, synthetic
from fvjax.data.stores import Store
from fvjax.training import checkpoint
from tests.test_main import call


@pytest.mark.parametrize("count", [40, 2000])
def test_validation_pairs(count):
    labels = np.repeat(np.arange(50), 8)
    found = pairs.validation(labels, count, seed=5)
    assert found.fold_sizes == [count // 10] * 10
    assert (np.diff(found.fold) >= 0).all()
    assert np.bincount(found.fold[found.same]).tolist() == [count // 20] * 10, "every fold has half of each kind"
    assert np.array_equal(found.same, labels[found.a] == labels[found.b])
    assert np.array_equal(found.identity_a, labels[found.a])
    assert np.array_equal(found.identity_b, labels[found.b])
    assert len({frozenset(pair) for pair in zip(found.a.tolist(), found.b.tolist())}) == count, "no pair twice"
    again, other = pairs.validation(labels, count, seed=5), pairs.validation(labels, count, seed=6)
    assert all(np.array_equal(x, y) for x, y in zip(vars(found).values(), vars(again).values()))
    assert not np.array_equal(found.a, other.a)


def keep(tmp_path, accuracies, keep=2):
    config = base().checkpoint
    config.keep = keep
    checkpoints = checkpoint.Checkpoints(tmp_path, config)
    for step, accuracy in accuracies.items():
        checkpoints.save(step, {"trainable": {"w": jnp.full(3, step)}}, {})
        if accuracy is not None:
            checkpoints.validated(step, accuracy)
    return checkpoints


def there(tmp_path):
    return sorted(int(p.name) for p in (tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("accuracies", "best", "kept"),
    [
        ({1: 0.5, 2: 0.9, 3: 0.6, 4: 0.7, 5: 0.8}, 2, [2, 4, 5]),
        ({1: 0.5, 2: 0.9, 3: None, 4: 0.9, 5: None, 6: None}, 4, [4, 5, 6]),  # of equal ones, the newest
        ({1: None, 2: None, 3: None}, 3, [2, 3]),  # nothing is validated
    ],
)
def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, accuracies, best, kept):
    checkpoints = keep(tmp_path, accuracies)
    assert checkpoints.best() == best
    assert checkpoints.latest() == max(accuracies), "training goes on from the newest"
    checkpoints.close()
    assert there(tmp_path) == kept
    again = checkpoint.Checkpoints(tmp_path, base().checkpoint, read_only=True)
    assert again.best() == best, "as another process sees it"


SMALL = {
    "data.synthetic.test_identities": 20,
    "data.synthetic.test_images": 3,
    "data.synthetic.test_pairs": 40,
    "data.synthetic.images": 4,
    "data.synthetic.identities": 12,
    "data.val_pairs": 100,
    "batch_size": 8,
    "epochs": 5,
    "eval.bootstrap": 0,
    "eval.every_epochs": 1,
    "eval.before_training": False,
    "eval.baselines": False,
    "checkpoint.keep": 1,
}


@pytest.mark.slow  # over a minute
def test_the_best_step_is_what_is_evaluated(tmp_path):
    synthetic.write(tmp_path / "val", range(12), 5, seed=9, split="val")  # other shots of the training people
    flags = [f"--config.{key}={value}" for key, value in (SMALL | {"data.val": tmp_path / "val"}).items()]
    workdir = tmp_path / "run"
    code, out, err = call("--config=configs/quickstart.py:resnet", *flags, f"--workdir={workdir}")
    assert code == 0, err
    curve = [json.loads(line) for line in (workdir / "evaluations.jsonl").read_text().splitlines()]
    assert [line["step"] for line in curve] == [6, 12, 18, 24, 30]
    accuracies = {line["step"]: line["validation"]["accuracy@best_threshold"] for line in curve}
    best = max(accuracies, key=lambda step: (accuracies[step], step))
    results = json.loads((workdir / "results.json").read_text())
    assert results["step"] == best
    assert results["validation"]["accuracy@best_threshold"]["mean"] == accuracies[best]
    assert results["validation"]["n_pairs"] == 100
    assert there(workdir) == sorted({best, 30})
    assert "validation" in out
    known = json.loads((workdir / "validation.json").read_text())
    assert {int(step): accuracy for step, accuracy in known.items()} == accuracies
    (workdir / "validation.json").write_text(json.dumps({k: v for k, v in known.items() if k != "30"}))
    code, _, err = call("--config=configs/quickstart.py:resnet", *flags, f"--workdir={workdir}")
    assert code == 0, err
    assert json.loads((workdir / "validation.json").read_text()) == known, "a kill may come between save and look"


def test_settings_that_validate_nothing_are_refused(tmp_path):
    config = base()
    config.data.val = "somewhere"
    with pytest.raises(ValueError, match=r"config.data.val picks the best .* set config.eval.every_epochs"):
        typed(config).check()
    config.eval.every_epochs, config.data.val_pairs = 1, 30
    with pytest.raises(ValueError, match=r"config.data.val_pairs=30: ten folds, so a multiple of 20"):
        typed(config).check()
    with pytest.raises(ValueError, match="split is 'test', but 'val' was requested"):
        Store(synthetic.write(tmp_path / "faces", range(40), 2, 0, split="test", pairs=20).path, "val")
