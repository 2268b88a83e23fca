"""Test the learning rate by step against a loop and against transformers' formulas, and the rules for its settings."""

import dataclasses
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from fvjax.config import Config, OptimizerConfig
from fvjax.training import optimizer

LR = 0.3
BY_STEPS = ("cosine", "linear", "constant")


def rates(total: int, *, epochs: int = 0, steps_per_epoch: int = 1, **changes) -> list[float]:
    """Return the learning rate of each of `total` steps; the length is set in steps or, with `epochs`, in epochs."""
    steps = 0 if epochs else total
    settings = OptimizerConfig(**{"lr": LR, "schedule": "cosine", **changes})
    rate = optimizer.schedule(settings, epochs=epochs, steps_per_epoch=steps_per_epoch, steps=steps)
    return [float(rate(step)) for step in range(total)]


def by_hand(schedule: str, total: int, warm: int) -> list[float]:
    """Return the rates as the docstring of `optimizer.schedule` describes them."""
    out = []
    for s in range(total):
        if s < warm:
            out.append(LR * s / warm)
        elif schedule == "constant":
            out.append(LR)
        elif schedule == "linear":
            out.append(LR * (total - s) / (total - warm))
        else:
            out.append(LR * 0.5 * (1 + math.cos(math.pi * (s - warm) / (total - warm))))
    return out


def transformers_factor(schedule: str, step: int, total: int, warm: int) -> float:
    """Write out the lambdas of transformers/optimization.py (get_{cosine,linear,constant}_schedule_with_warmup)."""
    if step < warm:
        return float(step) / float(max(1, warm))
    if schedule == "constant":
        return 1.0
    if schedule == "linear":
        return max(0.0, float(total - step) / float(max(1, total - warm)))
    progress = float(step - warm) / float(max(1, total - warm))
    return max(0.0, 0.5 * (1.0 + math.cos(math.pi * 0.5 * 2.0 * progress)))


@pytest.mark.parametrize("schedule", BY_STEPS)
@pytest.mark.parametrize(
    ("total", "warm"), [(10, 0), (10, 1), (10, 4), (10, 9), (10, 10), (1, 0), (1, 1), (2, 1), (97, 13)]
)
def test_the_rate_of_each_step(schedule, total, warm):
    found = rates(total, schedule=schedule, warmup_steps=warm)
    np.testing.assert_allclose(found, by_hand(schedule, total, warm), rtol=1e-5, atol=1e-7)
    theirs = [LR * transformers_factor(schedule, step, total, warm) for step in range(total)]
    np.testing.assert_allclose(found, theirs, rtol=1e-5, atol=1e-7)


def test_four_steps_by_hand():
    root = math.sqrt(0.5)
    assert rates(4, schedule="linear") == pytest.approx([0.3, 0.225, 0.15, 0.075])
    assert rates(4, schedule="cosine") == pytest.approx([0.3, 0.15 * (1 + root), 0.15, 0.15 * (1 - root)])
    assert rates(4, schedule="constant", warmup_steps=3) == pytest.approx([0, 0.1, 0.2, 0.3])
    assert rates(6, schedule="linear", warmup_steps=2) == pytest.approx([0, 0.15, 0.3, 0.225, 0.15, 0.075])


@pytest.mark.parametrize("schedule", BY_STEPS)
def test_the_first_step_of_a_warm_up_has_rate_0_and_the_first_after_it_the_whole_rate(schedule):
    found = rates(8, schedule=schedule, warmup_steps=5)
    assert found[0] == 0
    assert found[5] == pytest.approx(LR)
    assert max(found) == pytest.approx(LR)
    assert rates(8, schedule=schedule)[0] == pytest.approx(LR), "without a warm-up it starts at the top"


@pytest.mark.parametrize(("schedule", "end"), [("cosine", 0), ("linear", 0), ("constant", LR)])
@pytest.mark.parametrize("warm", [0, 3])
def test_the_rate_after_the_last_step_is_0(schedule, end, warm):
    settings = OptimizerConfig(lr=LR, schedule=schedule, warmup_steps=warm)
    rate = optimizer.schedule(settings, epochs=0, steps_per_epoch=1, steps=8)
    for step in (8, 9, 100):
        assert float(rate(step)) == pytest.approx(end, abs=1e-7), step


@pytest.mark.parametrize(
    ("ratio", "total", "warm"),
    [(0.05, 60, 3), (0.05, 61, 4), (0.5, 7, 4), (1e-9, 7, 1), (1.0, 5, 5), (0.0, 5, 0), (0.07, 100, 8)],
)
def test_a_ratio_is_rounded_up_to_whole_steps(ratio, total, warm):
    """0.07 * 100 is 7.000000000000001, so 8; transformers computes the same product and ceil."""
    assert rates(total, warmup_ratio=ratio) == rates(total, warmup_steps=warm)
    assert np.argmax(rates(total, warmup_ratio=ratio, schedule="linear")) == min(warm, total - 1)


@pytest.mark.parametrize("schedule", BY_STEPS)
def test_epochs_are_so_many_steps(schedule):
    changes = {"schedule": schedule, "warmup_ratio": 0.2}
    assert rates(15, epochs=3, steps_per_epoch=5, **changes) == rates(15, **changes)


@pytest.mark.parametrize("schedule", BY_STEPS)
def test_an_evaluation_without_training_has_a_schedule_too(schedule):
    rate = optimizer.schedule(OptimizerConfig(schedule=schedule), epochs=0, steps_per_epoch=1)
    assert math.isfinite(float(rate(0)))


@pytest.mark.parametrize("schedule", BY_STEPS)
def test_a_warm_up_longer_than_training_is_refused(schedule):
    with pytest.raises(ValueError, match=r"^config\.optimizer\.warmup_steps=7: training has 6 steps$"):
        rates(6, schedule=schedule, warmup_steps=7)
    with pytest.raises(ValueError, match="training has 6 steps"):
        rates(6, epochs=2, steps_per_epoch=3, schedule=schedule, warmup_steps=7)
    assert len(rates(6, schedule=schedule, warmup_steps=6)) == 6


@pytest.mark.parametrize("schedule", [*BY_STEPS, "epoch_cosine"])
def test_a_step_may_be_an_array_within_a_compiled_function(schedule):
    settings = OptimizerConfig(lr=LR, schedule=schedule)
    rate = optimizer.schedule(settings, epochs=6, steps_per_epoch=2)
    compiled = jax.jit(rate)(jnp.int32(4))
    assert compiled.dtype == jnp.float32
    assert compiled.shape == ()
    assert float(compiled) == pytest.approx(float(rate(4)), rel=1e-6)


def test_epoch_cosine_is_constant_within_an_epoch_and_starts_above_0():
    """Rates of LLM-FaceVerification: a warm-up of W epochs ends at the whole rate, which the next epoch has too."""
    found = rates(10, epochs=5, steps_per_epoch=2, schedule="epoch_cosine", warmup_epochs=2)
    root = math.cos(math.pi / 3)
    each = [0.15, 0.3, 0.3, 0.15 * (1 + root), 0.15 * (1 - root)]
    assert found == pytest.approx([rate for rate in each for _ in range(2)], rel=1e-6)


def test_milestones_take_a_tenth_of_the_rate_each():
    """As torch's MultiStepLR: the epoch with the number of a milestone is the first with the smaller rate."""
    found = rates(6, epochs=6, schedule="epoch_milestones", milestones=(2, 4), warmup_epochs=1)
    assert found == pytest.approx([0.3, 0.3, 0.03, 0.03, 0.003, 0.003], rel=1e-6)


# ---- which settings go together


def settings(steps=0, epochs=0, **changes) -> Config:
    return dataclasses.replace(Config(steps=steps, epochs=epochs), optimizer=OptimizerConfig(**changes))


WITH_EPOCHS = "config.optimizer.schedule=epoch_cosine counts epochs: config.steps, warmup_steps and warmup_ratio go"
REFUSED = {
    "steps and epochs": (
        settings(steps=5, epochs=2, schedule="cosine"),
        "config.steps=5 and config.epochs=2: give one of them",
    ),
    "steps of epochs": (settings(steps=5), WITH_EPOCHS),
    "a warm-up of epochs in steps": (settings(epochs=2, warmup_steps=5), WITH_EPOCHS),
    "a warm-up of epochs as a ratio": (settings(epochs=2, warmup_ratio=0.1), WITH_EPOCHS),
    "a warm-up of steps in epochs": (
        settings(steps=5, schedule="cosine", warmup_epochs=1),
        "config.optimizer.warmup_epochs: cosine takes warmup_steps or warmup_ratio",
    ),
    "a constant rate's warm-up in epochs": (
        settings(epochs=5, schedule="constant", warmup_epochs=1),
        "config.optimizer.warmup_epochs: constant takes warmup_steps or warmup_ratio",
    ),
    "two warm-ups": (
        settings(steps=5, schedule="linear", warmup_steps=1, warmup_ratio=0.1),
        "config.optimizer: give warmup_steps or warmup_ratio, not both",
    ),
    "more than all": (
        settings(steps=5, schedule="linear", warmup_ratio=1.5),
        "config.optimizer: warmup_ratio=1.5 must be from 0 to 1, warmup_steps=0 not negative",
    ),
    "less than nothing": (
        settings(steps=5, schedule="linear", warmup_ratio=-0.1),
        "config.optimizer: warmup_ratio=-0.1 must be from 0 to 1",
    ),
    "steps less than nothing": (
        settings(steps=5, schedule="linear", warmup_steps=-1),
        "config.optimizer: warmup_ratio=0.0 must be from 0 to 1, warmup_steps=-1 not negative",
    ),
    "milestones of another schedule": (
        settings(epochs=3, milestones=(1,)),
        "config.optimizer.milestones=(1,): go with schedule=epoch_milestones, in rising order",
    ),
    "no milestones": (
        settings(epochs=3, schedule="epoch_milestones"),
        "config.optimizer.milestones=(): go with schedule=epoch_milestones, in rising order",
    ),
    "falling milestones": (
        settings(epochs=3, schedule="epoch_milestones", milestones=(2, 1)),
        "config.optimizer.milestones=(2, 1): go with schedule=epoch_milestones, in rising order",
    ),
    "no such schedule": (
        settings(steps=5, schedule="step"),
        "config.optimizer.schedule='step': choose epoch_cosine or epoch_milestones or cosine or linear or constant",
    ),
}
ALLOWED = {
    "nothing is trained": settings(),
    "nothing is trained, by steps": settings(schedule="linear"),
    "epochs": settings(epochs=3, warmup_epochs=2),
    "milestones": settings(epochs=3, schedule="epoch_milestones", milestones=(1, 2), warmup_epochs=1),
    "epochs by steps": settings(epochs=3, schedule="cosine", warmup_ratio=0.1),
    "steps": settings(steps=3, schedule="constant"),
    "steps with a warm-up": settings(steps=3, schedule="linear", warmup_steps=1),
    "nothing but warm-up": settings(steps=3, schedule="linear", warmup_ratio=1.0),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_contradict_each_other_are_refused(case):
    config, message = REFUSED[case]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        config.check()


@pytest.mark.parametrize("case", ALLOWED)
def test_settings_that_go_together(case):
    ALLOWED[case].check()
    assert ALLOWED[case].trains == (not case.startswith("nothing is trained"))
