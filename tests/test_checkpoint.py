"""Test that a checkpoint is restored into its own run and into no other."""

import errno
import shutil
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from orbax.checkpoint._src.checkpointers import async_checkpointer

from fvjax.config import base
from fvjax.training.checkpoint import Checkpoints, Unreadable, digest


def test_a_checkpoint_of_another_base_data_or_model_is_refused(tmp_path):
    state = {"trainable": {"w": jnp.arange(3.0)}, "step": jnp.asarray(5)}
    meta = {"base_hash": "b", "train_data_hash": "d", "pairs": [0, 4]}
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(5, state, {**meta, "seconds": 1.0})
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    back = checkpoints.restore(5, shapes, meta)
    np.testing.assert_array_equal(back["trainable"]["w"], state["trainable"]["w"])
    assert int(back["step"]) == 5
    for key, value in (("base_hash", "x"), ("train_data_hash", "x"), ("pairs", [1, 4])):
        with pytest.raises(ValueError, match=f"checkpoints/5: {key} is .*, this run has"):
            checkpoints.restore(5, shapes, {**meta, key: value})
    other = {**shapes, "trainable": {"v": shapes["trainable"]["w"]}}
    with pytest.raises(ValueError, match=r"1 missing .v.; 1 unexpected .w"):
        checkpoints.restore(5, other, meta)
    checkpoints.close()


def state(value: float) -> dict:
    return {"trainable": {"w": jnp.full((64, 32), value)}, "opt": {"m": jnp.arange(8) + value}, "step": jnp.asarray(3)}


def abstract(tree: dict) -> dict:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def test_what_is_saved_is_what_was_there_although_the_next_step_takes_its_memory(tmp_path):
    checkpoints, step = Checkpoints(tmp_path, base().checkpoint), jax.jit(lambda x: x + 1, donate_argnums=0)
    now = {"trainable": {str(i): jnp.zeros((512, 512)) for i in range(20)}}
    checkpoints.save(1, now, {})
    for _ in range(5):
        now = {"trainable": {k: step(v) for k, v in now["trainable"].items()}}
    checkpoints.wait()
    back = checkpoints.restore(1, abstract(now), {})
    assert all((v == 0).all() for v in back["trainable"].values())
    checkpoints.close()


def largest(path: Path) -> Path:
    return max((p for p in path.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def truncated(path: Path) -> None:
    file = largest(path / "state")
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flipped(path: Path) -> None:
    file = largest(path / "state")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def without_a_file(path: Path) -> None:
    largest(path / "state").unlink()


def without_meta(path: Path) -> None:
    (path / "meta" / "metadata").write_text("{")


@pytest.mark.parametrize("damage", [truncated, flipped, without_a_file, without_meta])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_taken(tmp_path, damage):
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    for step in (1, 2):
        checkpoints.save(step, state(step), {"base_hash": "b"})
    checkpoints.close()
    damage(tmp_path / "checkpoints" / "2")
    said: list[str] = []
    again = Checkpoints(tmp_path, base().checkpoint)
    found = again.newest(abstract(state(0)), {"base_hash": "b"}, said.append)
    assert found is not None
    assert found[0] == 1
    assert (found[1]["trainable"]["w"] == 1).all()
    assert len(said) == 1
    assert "checkpoints/2 is damaged" in said[0]
    assert "damaged_checkpoints/2" in said[0]
    assert (tmp_path / "damaged_checkpoints" / "2").is_dir()
    again.save(2, state(5), {"base_hash": "b"})  # its step number can be used again
    again.close()
    later = Checkpoints(tmp_path, base().checkpoint)
    found = later.newest(abstract(state(0)), {"base_hash": "b"}, said.append)
    assert found is not None
    assert found[0] == 2
    assert (found[1]["trainable"]["w"] == 5).all()
    later.close()


def test_a_checkpoint_that_reads_well_but_is_not_what_was_saved_is_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(1, state(1), {})
    checkpoints.save(2, state(2), {})
    checkpoints.close()
    shutil.rmtree(tmp_path / "checkpoints" / "2" / "state")
    shutil.copytree(tmp_path / "checkpoints" / "1" / "state", tmp_path / "checkpoints" / "2" / "state")
    again = Checkpoints(tmp_path, base().checkpoint)
    with pytest.raises(Unreadable, match=r"checkpoints/2 is damaged \(\w+ has hash \w{16}, not \w{16}\)"):
        again.restore(2, abstract(state(0)), {})
    again.close()


def test_one_of_an_older_version_is_refused_and_stays(tmp_path):
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(1, state(1), {})
    checkpoints.close()
    (tmp_path / "checkpoints" / "1" / "meta" / "metadata").write_text('{"seconds": 1}')
    again = Checkpoints(tmp_path, base().checkpoint)
    with pytest.raises(ValueError, match=r"checkpoints/1 is of another version of fvjax, without a hash"):
        again.newest(abstract(state(0)), {}, lambda _: None)
    assert (tmp_path / "checkpoints" / "1").exists()
    again.close()


def test_when_all_are_damaged_nothing_starts_anew(tmp_path):
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(1, state(1), {})
    checkpoints.close()
    truncated(tmp_path / "checkpoints" / "1")
    again = Checkpoints(tmp_path, base().checkpoint)
    with pytest.raises(ValueError, match=r"none of 1 checkpoints can be read; choose another --workdir"):
        again.newest(abstract(state(0)), {}, lambda _: None)
    again.close()


def test_a_hash_is_of_bits_names_and_places_not_of_where_they_live():
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:4])
    x = jax.random.normal(jax.random.key(0), (8, 6))
    here = {name: digest({"a": x.astype(name)}) for name in ("float32", "bfloat16", "float16", "int32", "uint8")}
    assert len(set(here.values())) == 5
    for spec in (("data",), (None, None), ()):
        where = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))
        for name, want in here.items():
            assert digest({"a": jax.device_put(x.astype(name), where)}) == want
    changed = [x.at[3, 2].set(jnp.nextafter(x[3, 2], 1.0)), x[::-1], x.T.reshape(8, 6), x.reshape(6, 8)]
    others = [digest({"a": y}) for y in changed] + [digest({"b": x}), digest({"a": x, "b": x})]
    assert len({here["float32"], *others}) == 7


def test_too_little_memory_is_no_damage(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(1, state(1), {})
    checkpoints.wait()

    def full(*_, **__):
        raise RuntimeError("RESOURCE_EXHAUSTED: out of memory")

    monkeypatch.setattr(checkpoints.manager, "restore", full)
    with pytest.raises(RuntimeError, match="out of memory"):
        checkpoints.newest(abstract(state(0)), {}, lambda _: None)
    assert (tmp_path / "checkpoints" / "1").exists()
    checkpoints.close()


@pytest.mark.parametrize("arrays", ["fail", "are saved"])
def test_a_save_that_failed_in_one_part_is_over_in_all_when_that_is_told(tmp_path, monkeypatch, arrays):
    """Orbax raises the error of its metadata thread while another thread still writes arrays."""
    checkpoints = Checkpoints(tmp_path, base().checkpoint)
    checkpoints.save(2, state(2.0), {})
    checkpoints.wait()
    real = async_checkpointer._on_commit_callback

    def late(*args):
        time.sleep(1)
        if arrays == "fail":
            raise OSError(errno.ENOSPC, "No space left on device")
        real(*args)

    def full():
        if threading.current_thread().name == "save_finalize":
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(async_checkpointer, "_on_commit_callback", late)
    monkeypatch.setattr(checkpoints.manager._non_blocking_metadata_store, "wait_until_finished", full)
    checkpoints.save(4, state(4.0), {})
    with pytest.raises(OSError) as told:
        checkpoints.wait()
    found = sorted(p.name for p in (tmp_path / "checkpoints").iterdir())
    time.sleep(1.5)
    assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == found
    assert found == (["2"] if arrays == "fail" else ["2", "4"])
    assert f"the last complete one is {found[-1]} (" in str(told.value)
    assert ("step 4 was not saved" in str(told.value)) == (arrays == "fail")


def test_the_best_checkpoint_outlives_newer_ones_that_are_worse(tmp_path):
    """This also holds for the checkpoints that `validated` itself deletes, which Orbax's own policy does not see."""
    config = base().checkpoint
    config.keep = 1
    checkpoints = Checkpoints(tmp_path, config)
    for step, accuracy in ((1, 0.7), (2, 0.9), (3, 0.5), (4, 0.6)):
        checkpoints.save(step, state(step), {})
        checkpoints.validated(step, accuracy)
    checkpoints.close()
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir() if p.name.isdigit()} == {2, 4}
