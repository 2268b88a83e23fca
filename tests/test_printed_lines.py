"""Test the lines that commands print, word for word, from made-up results, and the exit codes on which scripts rely."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import fvjax.results
from fvjax import api, errors, experiment, main, runtime, verify
from fvjax.config import base, typed
from fvjax.data import images, prepare
from fvjax.training import preemption
from tests.reference.recipe import GOLDEN, write_checkpoint
from tests.test_bad_input import Commands
from tests.test_convert import IRESNET, iresnet_shapes
from tests.test_images import smooth_face
from weights_convert import __main__ as weights

TINY = GOLDEN / "internvl_tiny"


# ---- python -m fvjax.data.prepare


def made_up(path: Path, split: str, **more) -> SimpleNamespace:
    """Return a store whose counts are all different."""
    manifest = {
        "counts": {"images": 1204, "identities": 305, "rejected": 6},
        "single_image_identities": 41,
        "rejected": [{"file": "a", "reason": "the first reason"}, {"file": "b", "reason": "another"}],
        "rejected_by_reason": {"of the first kind": 3, "of another": 2},
        "benchmarks": {},
        **more,
    }
    return SimpleNamespace(path=path, split=split, data_hash="0123456789abcdef" * 4, manifest=manifest)


def summary(capsys, monkeypatch, store, command: str = "folder") -> list[str]:
    """Return what the command prints about a store that it has made."""
    monkeypatch.setattr(prepare, command, lambda src, dst, **_: store)
    more = {"lfw": ["--pairs=pairs.txt"]}.get(command, [])
    assert prepare.main([command, "--src=here", "--dst=there", *more]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out.splitlines()


def test_a_prepared_folder_is_summed_up(capsys, monkeypatch, tmp_path):
    store = made_up(tmp_path, "train")
    first = f"{tmp_path}: 1204 images of 305 identities, split 'train'"
    second = "  41 identities have a single image; data 0123456789abcdef"
    assert summary(capsys, monkeypatch, store) == [
        first,
        second,
        "  2 files rejected, listed in manifest.json; first: a: the first reason",
        "    by reason: 3 of the first kind, 2 of another",
    ]
    store.manifest["rejected"] = []
    assert summary(capsys, monkeypatch, store) == [first, second]
    counts = {"images": 1210, "aligned": 1180, "several_faces": 77, "no_face": 24, "no_points": 0, "unreadable": 5}
    more = {"by": "a detector", "policy": "fallback", "rows_without_picture": None}
    store.manifest["alignment"] = {**counts, **more}
    told = "; 24 without a face (policy fallback), 5 unreadable"
    assert summary(capsys, monkeypatch, store)[2:] == [
        f"  1180 of 1210 photographs aligned (a detector), 77 of them with several faces{told}"
    ]
    more = {"several_faces": None, "rows_without_picture": 9, "no_face": 0, "no_points": 24}
    store.manifest["alignment"] |= more  # landmarks describe one face only
    told = ", 9 rows of the list name no picture here; 24 without points (policy fallback), 5 unreadable"
    assert summary(capsys, monkeypatch, store)[2:] == [f"  1180 of 1210 photographs aligned (a detector){told}"]


def test_a_prepared_benchmark_is_summed_up(capsys, monkeypatch, tmp_path):
    def of(pairs: int, genuine: int, folds: int, lost: int, dropped: int, policy: str) -> dict:
        counts = {"pairs": pairs, "genuine": genuine, "impostor": pairs - genuine, "fold_sizes": [1] * folds}
        lost_ = {"failure_to_acquire": lost, "pairs_dropped": dropped, "policy": policy}
        return {**counts, **lost_, "identities": "named"}

    store = made_up(tmp_path, "test", rejected=[])
    store.manifest["benchmarks"] = {"ff": of(7000, 3400, 10, 3, 17, "drop"), "fp": of(60, 20, 5, 0, 0, "fail")}
    assert summary(capsys, monkeypatch, store, "lfw")[2:] == [
        "  benchmark ff: 7000 pairs (3400 genuine, 3600 impostor) in 10 folds; 3 images not acquired, "
        "17 pairs dropped (policy drop)",
        "  benchmark fp: 60 pairs (20 genuine, 40 impostor) in 5 folds; 0 images not acquired, "
        "0 pairs dropped (policy fail)",
    ]


def test_a_prepared_recordio_is_summed_up_with_its_validation(capsys, monkeypatch, tmp_path):
    made = {"read": 1300, "written": 1204, "rejected": 96, "headers": 310, "left_out": 88}
    store = made_up(tmp_path, "train", recordio=made)
    last = "1300 records read = 1204 written + 96 rejected; apart from these 310 headers, 88 left out"
    rejected = [
        "  2 records rejected, listed in manifest.json; first: the first reason",
        "    by reason: 3 of the first kind, 2 of another",
    ]
    assert summary(capsys, monkeypatch, store, "recordio")[2:] == [*rejected, "no image is for validation", last]
    (tmp_path / "val").mkdir()
    val = made_up(tmp_path / "val", "val", rejected=[], recordio=made)
    monkeypatch.setattr(prepare, "Store", lambda path, split: val if (path, split) == (val.path, "val") else None)
    assert summary(capsys, monkeypatch, store, "recordio")[2:] == [
        *rejected,
        f"{tmp_path / 'val'}: 1204 images of 305 identities, split 'val'",
        "  41 identities have a single image; data 0123456789abcdef",
        last,
    ]


# ---- python -m weights_convert


def convert(capsys, monkeypatch, *args) -> list[str]:
    monkeypatch.setattr(sys, "argv", ["weights_convert", *map(str, args)])
    assert weights.main() == 0
    return capsys.readouterr().out.splitlines()


def test_conversion_counts_arrays_parameters_and_what_it_left_out(capsys, monkeypatch, tmp_path):
    tensors = load_file(TINY / "model.safetensors")
    tower = {name for name in tensors if name.startswith("vision_model.")}
    for kind, used, dst in (("vision_transformer", tower, "tower"), ("vlm", set(tensors), "whole")):
        out = convert(capsys, monkeypatch, f"--src={TINY}", f"--dst={tmp_path / dst}", f"--kind={kind}")
        ours = [x for file in (tmp_path / dst).glob("*.safetensors") for x in load_file(file).values()]
        parameters = sum(tensors[name].size for name in used)
        assert parameters == sum(x.size for x in ours)
        assert out[0] == f"{tmp_path / dst}: {kind}, {len(ours)} arrays, {parameters:,} parameters"
        left = len(tensors) - len(used)
        assert out[1:] == (
            [f"left out {left} tensors that this model does not use: language_model, mlp1"] if left else []
        )


def test_running_statistics_are_arrays_and_no_parameters(capsys, monkeypatch, tmp_path):
    src = write_checkpoint(tmp_path / "src", IRESNET, iresnet_shapes())
    out = convert(capsys, monkeypatch, f"--src={src}", f"--dst={tmp_path / 'dst'}")
    tensors = {name: x for name, x in load_file(src / "model.safetensors").items() if "num_batches" not in name}
    parameters = sum(x.size for name, x in tensors.items() if "running" not in name)
    assert out[0] == f"{tmp_path / 'dst'}: iresnet, {len(tensors)} arrays, {parameters:,} parameters"


# ---- python -m fvjax.verify


@pytest.fixture
def verified(tmp_path, monkeypatch, capsys):
    """Return a function (score, entries of results.json, flags) -> (exit code, printed lines). No model is built."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.jpg").write_bytes(images.encode(smooth_face(1)))
    workdir = tmp_path / "run"
    workdir.mkdir()
    (workdir / "config.json").write_text(typed(base()).to_json())
    network = SimpleNamespace(
        run=api.Run(typed(base()), 12, "base"), encoder=SimpleNamespace(yes_no=()), embed=None, p_same=None
    )
    monkeypatch.setattr(api, "load_workdir", lambda path: network)

    def call(score: float, entries: dict, *flags: str, answers: bool = False):
        pair = np.array([[1, 0], [score, (1 - score**2) ** 0.5]], np.float32)
        network.encoder.yes_no = (5, 6) if answers else ()
        network.embed = lambda faces: pair[: len(faces)]
        network.p_same = lambda a, b: np.full(len(a), score, np.float32)
        results = {"step": 12, "base_hash": "base", "flip_sum": False, "benchmarks": entries}
        (workdir / "results.json").write_text(json.dumps(results))
        code = verify.main([*(str(tmp_path / f"{name}.jpg") for name in "ab"), f"--model={workdir}", *flags])
        return code, capsys.readouterr().out.splitlines()

    return call


def measured(threshold: float, n_impostor: int, n_folds: int = 10, seen: int | None = 0) -> dict:
    entry = {"n_impostor": n_impostor, "n_folds": n_folds, "identities_seen_in_training": seen}
    others = {"accuracy@best_threshold": {"threshold": 0.111}, "tar@far=1e-3": {"value": 0.222}}
    return {**entry, **others, "accuracy@far=1e-3": {"threshold": threshold}, "data_hash": "fedcba9876543210"}


def test_a_score_at_the_threshold_is_the_same_person(verified):
    scores = np.float32(0.5), np.nextafter(np.float32(0.5), np.float32(1))
    for threshold, same in ((float(scores[0]), True), (float(scores[1]), False)):
        code, (told,) = verified(0.5, {"lfw": measured(threshold, 3000)}, "--json")
        result = json.loads(told)
        assert (code, result["score"], result["threshold"], result["same"]) == (0, 0.5, threshold, same)
        _, lines = verified(0.5, {"lfw": measured(threshold, 3000)})
        assert lines[0].startswith("same person: score 0.5000 (cosine) >= " if same else "different persons: score 0.5")
        assert ("<" in lines[0]) == (not same)
    assert [verified(0.5, {}, f"--threshold={t}", "--json")[0] for t in (-1, 1)] == [0, 0], "both can be a cosine"


@pytest.mark.parametrize(
    ("impostors", "folds", "others", "above"),
    [(1110, 10, 999, 0), (1111, 10, 1000, 1), (5000, 5, 4000, 4), (11_111, 10, 10_000, 10), (11_110, 10, 9999, 9)],
)
def test_what_a_threshold_rests_on_is_counted(verified, impostors, folds, others, above):
    """As in the protocol, the threshold rests on k = floor(n / 1000) of the n impostor scores of the other folds."""
    entries = {"lfw": measured(0.75, impostors, folds)}
    _, lines = verified(0.9, entries)
    assert lines[:2] == [
        "same person: score 0.9000 (cosine) >= threshold 0.7500, for FAR 0.001",
        f"measured on lfw: {impostors:,} impostor pairs, data fedcba98, model at step 12",
    ]
    told = f"the threshold rests on the {above} highest of some {others:,} impostor scores"
    if not above:
        told = f"too few for FAR 0.001: the threshold lies just above all of some {others:,} impostor scores"
    assert lines[2] == told + (": few, so take the FAR as a rough one" if 0 < above < 10 else "")
    assert lines[3].endswith(f" (Wilson's, of {above} in {others:,})")
    assert len(lines) == 4
    result = json.loads(verified(0.9, entries, "--json")[1][0])
    assert (result["far"], result["measure"]) == (1e-3, "cosine")
    assert result["measured_on"] == {
        "benchmark": "lfw",
        "n_impostor": impostors,
        "n_impostor_per_fold": others,
        "impostors_above_per_fold": above,
        "identities_seen_in_training": 0,
        "data_hash": "fedcba9876543210",
        "flip_sum": False,
        "step": 12,
        "evaluated": None,
    }


def test_the_threshold_is_that_of_the_first_benchmark_whose_people_were_not_trained_on(verified):
    entries = {"a": measured(0.1, 1000, seen=3), "b": measured(0.2, 1000), "c": measured(0.3, 1000)}
    assert json.loads(verified(0.9, entries, "--json")[1][0])["measured_on"]["benchmark"] == "b"
    chosen = json.loads(verified(0.9, entries, "--json", "--benchmark=c")[1][0])
    assert (chosen["threshold"], chosen["measured_on"]["benchmark"]) == (0.3, "c")
    assert verified(0.9, entries, "--benchmark=a")[1][-1] == (
        "training saw 3 of its identities: expect more false accepts among strangers"
    )


def test_the_evaluation_that_a_threshold_is_from_is_named(verified):
    later = {"date": "2026-11-30T10-00-00Z", "name": "on cfp", "folder": "evaluations/x"}
    _, lines = verified(0.9, {"cfp": {**measured(0.2, 1000), "evaluation": later}})
    assert lines[1].endswith("model at step 12, evaluated 2026-11-30T10-00-00Z on cfp")


def test_a_model_that_answers_has_a_probability(verified):
    _, lines = verified(0.25, {"lfw": measured(0.5, 3000)}, answers=True)
    assert lines[0] == "different persons: score 0.2500 (P(Yes)) < threshold 0.5000, for FAR 0.001"
    _, lines = verified(0.25, {})
    assert lines[0] == "score 0.2500 (cosine)"
    assert lines[1].startswith("no threshold is known for ")


# ---- exit codes


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (None, 0, ""),
        (ValueError("a bad\nkey"), 2, "fvjax: error: a bad\nfvjax: error: key\n"),
        (FloatingPointError("not finite"), 2, "fvjax: error: not finite\n"),
        (OSError(28, "No space left on device", "/a/file"), 2, "fvjax: error: /a/file: No space left on device; free "),
        (
            errors.WorkerLost("a worker"),
            69,
            "fvjax: error: a worker; the same command goes on from the last checkpoint",
        ),
        (
            preemption.Preempted("stopped by SIGTERM"),
            75,
            "fvjax: stopped by SIGTERM; all is saved, and the same command",
        ),
    ],
)
def test_how_a_run_ended_is_its_exit_code(error, code, told, monkeypatch, capsys, tmp_path):
    waited = []

    def run(config, workdir, *, request, **_):
        request.before_leaving = lambda: waited.append("for what is being saved")
        if error:
            raise error
        return {}

    monkeypatch.setattr(experiment, "run", run)
    commands = Commands(monkeypatch, capsys)
    assert commands.main(base(), tmp_path / "run") == code
    out, err = capsys.readouterr()
    assert (out, err[: len(told)]) == ("", told)
    assert waited == (["for what is being saved"] if code == 75 else [])


def test_a_bug_is_no_exit_code_but_a_traceback(monkeypatch, capsys, tmp_path):
    def run(*_, **__):
        raise RuntimeError("a bug")

    monkeypatch.setattr(experiment, "run", run)
    with pytest.raises(RuntimeError, match="a bug"):
        Commands(monkeypatch, capsys).main(base(), tmp_path / "run")


def test_the_rows_of_a_config_are_run_and_then_compared_in_order(monkeypatch, capsys, tmp_path):
    config, done = base(), []
    config.rows.update({"b": {"epochs": 0}, "a": {"seed": 7}})
    monkeypatch.setattr(experiment, "run", lambda one, path, **_: done.append((one.name, one.seed, path)) or {})
    monkeypatch.setattr(fvjax.results, "compare", lambda rows: done.append(list(rows)))
    assert Commands(monkeypatch, capsys).main(config, tmp_path) == 0
    assert done == [("a", 7, tmp_path / "a"), ("b", 0, tmp_path / "b"), [tmp_path / "a", tmp_path / "b"]]


def test_devices_are_as_many_as_share_the_batches_on_these_cores(monkeypatch):
    monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda _: range(6), raising=False)
    config = base()
    for batch, evaluated, parts, processes, expected in (
        (24, 12, 1, 1, 6),
        (24, 12, 3, 1, 4),
        (24, 12, 1, 2, 6),
        (24, 12, 1, 4, 3),
        (20, 10, 1, 1, 5),
        (24, 7, 1, 1, 1),
        (6, 6, 1, 1, 3),  # pairs are not split over devices, and there are three pairs
    ):
        config.batch_size, config.eval.batch_size, config.accumulation = batch, evaluated, parts
        assert runtime.cpu_devices(main.batches([typed(config)]), processes) == expected
    assert jax.process_count() == 1
