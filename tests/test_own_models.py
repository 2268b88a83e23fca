"""Test `fvjax verify` with models that are not fvjax's, at other error rates, with a range in which it cannot tell."""

from __future__ import annotations

import dataclasses
import hashlib
import importlib
import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError

from fvjax import api, default_model, doctor, evaluate, foreign, search, verify
from fvjax.data import images, synthetic
from fvjax.data.stores import Store, read_pairs
from fvjax.evals import folds, intervals, operating_points, pair_scores, pair_text
from fvjax.evals.pair_scores import PairScores
from tests.test_foreign import NCHW, SOURCE
from tests.tiny_onnx import mean_colour


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Store:
    return synthetic.write(tmp_path_factory.mktemp("s") / "s", range(40), 3, 0, split="test", pairs=240)


@pytest.fixture(scope="module")
def crops(store, tmp_path_factory) -> list[Path]:
    """Return the pictures of the store as files, by record number."""
    folder = tmp_path_factory.mktemp("crops")
    files = [folder / f"{i}.jpg" for i in range(len(store))]
    for number, file in enumerate(files):
        file.write_bytes(store.jpeg(number))
    return files


def forget(monkeypatch) -> None:
    """Let the module of embedders be found and imported anew, as in a new process."""
    monkeypatch.delitem(sys.modules, "mine_to_verify", raising=False)
    importlib.invalidate_caches()


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Return a working folder with a module of embedders of one's own."""
    (tmp_path / "mine_to_verify.py").write_text(SOURCE)
    forget(monkeypatch)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture
def evaluated(here, store) -> Path:
    """Return the work directory of an evaluated function."""
    flags = "--embedder=mine_to_verify:embed", f"--benchmark={store.path}", "--workdir=out", "--bootstrap=0"
    assert evaluate.main(list(flags)) == 0
    return here / "out"


def say(capsys, *arguments: object) -> tuple[int, str, str]:
    capsys.readouterr()
    code = verify.main([str(each) for each in arguments])
    return code, *capsys.readouterr()


def told(capsys, *arguments: object) -> dict[str, Any]:
    code, out, err = say(capsys, *arguments, "--json")
    assert (code, err) == (0, "")
    return json.loads(out)


def refused(capsys, message: str, *arguments: object) -> None:
    code, out, err = say(capsys, *arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


# ---- work directories of fvjax evaluate


def test_scores_and_threshold_are_the_evaluations(evaluated, store, crops):
    pairs, scores = read_pairs(store.path, "synthetic"), pair_scores.read(evaluated / "scores/synthetic.npz")
    entry = json.loads((evaluated / "results.json").read_text())["benchmarks"]["synthetic"]
    verifier = verify.Verifier(evaluated)
    for number in (0, 1, 150):
        one = verifier.compare(crops[pairs.a[number]], crops[pairs.b[number]])
        assert one["score"] == pytest.approx(scores.scores[number], abs=1e-6)
        assert one["threshold"] == entry["accuracy@far=1e-3"]["threshold"]
        assert one["same"] == (one["score"] >= one["threshold"])
        assert one["verdict"] == ("same person" if one["same"] else "different persons")
        assert (one["far"], one["measured_on"]["data_hash"], one["lower"]) == (1e-3, store.data_hash, None)
    assert verifier.measure == "cosine"


def test_an_onnx_file_is_opened_as_it_was_evaluated(here, store, crops, capsys):
    pytest.importorskip("onnxruntime")
    mean_colour(here / "net.onnx", NCHW)
    flags = "--model=net.onnx", f"--benchmark={store.path}", "--bootstrap=0", "--channels=bgr", "--pixels=0..1"
    assert evaluate.main([*flags, "--workdir=plain"]) == 0
    assert evaluate.main([*flags, "--workdir=mirrored", "--flip-sum"]) == 0
    faces = np.stack([images.decode(crops[i].read_bytes(), "") for i in (0, 5)])
    a, b = (faces / 255).mean((1, 2))[:, ::-1]
    one = told(capsys, crops[0], crops[5], "--model=plain")
    assert one["score"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
    assert (one["measured_on"]["flip_sum"], one["measured_on"]["benchmark"]) == (False, "synthetic")
    assert told(capsys, crops[0], crops[5], "--model=mirrored")["measured_on"]["flip_sum"] is True
    assert verify.Verifier("mirrored").flip_sum is True
    # The file moves: an evaluation from the new place says so, and the work directory is the same one.
    (here / "net.onnx").rename(here / "moved.onnx")
    refused(capsys, f"{here / 'net.onnx'}: no such file", crops[0], crops[5], "--model=plain")
    (here / "net.onnx").write_bytes((here / "moved.onnx").read_bytes() + b"\0\0")
    message = f"{here / 'net.onnx'} is not what was evaluated in plain: its hash is"
    refused(capsys, message, crops[0], crops[5], "--model=plain")


def test_a_model_that_moved_may_be_evaluated_into_its_work_directory(here, store, crops, capsys):
    pytest.importorskip("onnxruntime")
    (here / "old").mkdir()
    mean_colour(here / "old/net.onnx", NCHW)
    flags = f"--benchmark={store.path}", "--bootstrap=0", "--workdir=out"
    assert evaluate.main(["--model=old/net.onnx", *flags]) == 0
    (here / "old/net.onnx").rename(here / "net.onnx")
    assert evaluate.main(["--model=net.onnx", *flags]) == 0
    assert verify.compare(crops[0], crops[0], "out")["same"] is True
    assert evaluate.main(["--model=net.onnx", *flags, "--channels=bgr"]) == 2
    assert "out is of another model" in capsys.readouterr().err


def test_a_function_that_changed_or_went_is_refused_before_it_runs(evaluated, here, crops, capsys, monkeypatch):
    source = here / "mine_to_verify.py"
    source.write_text(SOURCE + "\nraise SystemExit('ran')\n")
    forget(monkeypatch)
    message = f"(it was evaluated in the folder {here})"
    refused(capsys, message, crops[0], crops[1], f"--model={evaluated}")
    refused(capsys, "mine_to_verify:embed is not what was", crops[0], crops[1], f"--model={evaluated}")
    source.unlink()
    importlib.invalidate_caches()
    refused(capsys, message, crops[0], crops[1], f"--model={evaluated}")


def test_a_checkpoint_that_was_evaluated(here, store, crops, monkeypatch):
    weights = Path(__file__).resolve().parent.parent / "fvjax/pretrained/tiny_internvit"
    network = SimpleNamespace(
        embed=foreign.of_function("mine_to_verify:embed")[0],
        encoder=SimpleNamespace(yes_no=()),
        run=None,
        batch_size=64,
    )
    monkeypatch.setattr(api, "load", lambda path, scenario: network)
    flags = f"--model={weights}", f"--benchmark={store.path}", "--workdir=out", "--bootstrap=0"
    assert evaluate.main(list(flags)) == 0
    one = verify.compare(crops[0], crops[0], "out")
    assert (one["same"], one["measured_on"]["benchmark"]) == (True, "synthetic")
    assert verify.Verifier("out").drawings, "the weights that fvjax ships know drawings only"
    config = json.loads(Path("out/config.json").read_text())
    Path("out/config.json").write_text(json.dumps({**config, "hash": "0" * 64}))
    with pytest.raises(ValueError, match="tiny_internvit is not what was evaluated in out"):
        verify.Verifier("out")


def test_work_directories_of_earlier_versions_are_named(evaluated, crops, capsys):
    config = json.loads((evaluated / "config.json").read_text())
    for left_out in ("kind", "folder"):
        text = json.dumps({key: value for key, value in config.items() if key != left_out})
        (evaluated / "config.json").write_text(text)
        message = "config.json does not say where its model is, so another version of fvjax wrote it; evaluate the"
        refused(capsys, message, crops[0], crops[1], f"--model={evaluated}")


def test_other_commands_and_evaluations(evaluated, here, store, crops, capsys):
    found = search.search(crops[0], crops[0].parent, evaluated, top=1)
    assert len(found["results"]) == len(crops)
    with pytest.raises(ValueError, match="evaluate an ONNX file first"):
        search.search(crops[0], crops[1], here / "net.onnx")
    with pytest.raises(ValueError, match="holds an evaluation and no model"):
        doctor.diagnose(str(store.path), model=str(evaluated))
    flags = f"--model={evaluated}", f"--benchmark={store.path}", "--workdir=again", "--bootstrap=0"
    assert evaluate.main(list(flags)) == 2
    assert "holds an evaluation; give the model itself" in capsys.readouterr().err


# ---- ONNX files, and the model of those who have none


def test_an_onnx_file_has_a_score_and_no_threshold(here, crops, capsys):
    pytest.importorskip("onnxruntime")
    mean_colour(here / "net.onnx", NCHW)
    faces = np.stack([images.decode(crops[i].read_bytes(), "") for i in (0, 5)]).astype(np.float64)
    expected = {}
    for flags, x in (
        ((), faces / 127.5 - 1),
        (("--pixels=0..255",), faces),
        (("--channels=bgr", "--pixels=imagenet"), (faces / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]),
    ):
        a, b = x.mean((1, 2))
        expected[flags] = a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        one = told(capsys, crops[0], crops[5], "--model=net.onnx", *flags)
        assert one["score"] == pytest.approx(expected[flags], abs=1e-5)
        assert [one[key] for key in ("threshold", "same", "verdict", "far", "measured_on")] == [None] * 5
    assert len(set(expected.values())) == 3
    assert "fvjax evaluate makes one of an ONNX file" in say(capsys, crops[0], crops[5], "--model=net.onnx")[1]
    assert told(capsys, crops[0], crops[0], "--model=net.onnx", "--threshold=0.5")["same"] is True
    for flag in ("--far=0.01", "--unsure=0.1", "--benchmark=lfw"):
        refused(capsys, f"{flag}: net.onnx has no results.json", crops[0], crops[5], "--model=net.onnx", flag)


def test_channels_reach_an_onnx_file(monkeypatch, crops):
    asked = []

    def open_file(file, channels, pixels):
        asked.append((file, channels, pixels))
        return (lambda faces: faces.reshape(len(faces), -1).astype(np.float32)), "digest"

    monkeypatch.setattr(foreign, "of_onnx", open_file)
    verify.compare(crops[0], crops[1], "x.ONNX", channels="bgr", pixels="0..1")
    verify.compare(crops[0], crops[1], "x.onnx")
    assert asked == [(Path("x.ONNX"), "bgr", "0..1"), (Path("x.onnx"), "rgb", "-1..1")]


def test_flags_of_an_onnx_file_are_of_nothing_else(evaluated, crops, capsys):
    for flag in ("--channels=rgb", "--pixels=-1..1"):
        refused(capsys, "say what an ONNX file reads", crops[0], crops[1], f"--model={evaluated}", flag)
        refused(capsys, "say what an ONNX file reads", crops[0], crops[1], flag)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """Have the Hub serve a tiny network in place of SFace; return its file, and what was asked for."""
    pytest.importorskip("onnxruntime")
    file = mean_colour(tmp_path / "sface.onnx", [1, 3, 112, 112])
    asked: list[dict[str, Any]] = []

    def download(repository: str, name: str, **options: Any) -> str:
        asked.append({"repository": repository, "name": name, **options})
        is_cached = any(not each.get("local_files_only") for each in asked[:-1])
        if options.get("local_files_only") and not is_cached:
            raise LocalEntryNotFoundError("not in the cache")
        return str(file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(default_model, "SHA256", hashlib.sha256(file.read_bytes()).hexdigest())
    return SimpleNamespace(file=file, asked=asked)


def test_without_a_model_sface_is_downloaded_once(hub, crops, capsys):
    code, out, err = say(capsys, crops[0], crops[0])
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == "same person: score 1.0000 (cosine) >= threshold 0.3630"
    assert lines[1] == "FAR of this threshold: not known"
    assert (
        "threshold 0.363 is OpenCV's, which states it with an accuracy of 99.60% on LFW and without a FAR" in lines[-1]
    )
    assert err.count("\n") == 1
    assert "downloading OpenCV's SFace (opencv/face_recognition_sface, 39 MB, Apache-2.0) to " in err
    revision = "3d7082438a6e4551e840c9b2bb60b71e8da4b524"
    assert {each["revision"] for each in hub.asked} == {revision}
    assert {each["name"] for each in hub.asked} == {"face_recognition_sface_2021dec.onnx"}
    one = told(capsys, crops[0], crops[5])  # nothing is said the second time
    faces = np.stack([images.decode(crops[i].read_bytes(), "") for i in (0, 5)]).astype(np.float64)
    a, b = faces.mean((1, 2))
    assert one["score"] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-6), "RGB, 0 to 255"
    assert (one["model"], one["far"], one["measured_on"]) == ("OpenCV's SFace", None, None)
    assert told(capsys, crops[0], crops[5], "--threshold=0.99")["threshold"] == 0.99
    refused(capsys, "--far=0.01: OpenCV's SFace has no results.json", crops[0], crops[5], "--far=0.01")


def test_another_file_in_its_place_is_refused(hub, crops, capsys, monkeypatch):
    monkeypatch.setattr(default_model, "SHA256", "0" * 64)
    assert say(capsys, crops[0], crops[0])[0] == 2
    refused(capsys, f"{hub.file}: its SHA-256 is ", crops[0], crops[0])
    refused(capsys, "remove it and try again, or give a model: --model=RUN", crops[0], crops[0])


def test_without_network_the_remedy_is_named(crops, capsys, monkeypatch):
    pytest.importorskip("onnxruntime")

    def fail(*_: Any, **options: Any) -> str:
        raise LocalEntryNotFoundError("no\nnetwork") if options.get("local_files_only") else ConnectionError("no\nnet")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", fail)
    code, out, err = say(capsys, crops[0], crops[0])
    said, error = err.splitlines()
    assert (code, out) == (2, "")
    assert said.startswith("fvjax: no --model: downloading")
    assert error == (
        "fvjax: error: OpenCV's SFace cannot be downloaded from opencv/face_recognition_sface; give a model: "
        "--model=RUN, or --model=FILE.onnx (ConnectionError: no net)"
    )


def test_nothing_is_downloaded_without_what_runs_it(crops, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setattr(default_model, "fetch", lambda: pytest.fail("downloaded"))
    refused(capsys, "uv sync --extra onnx", crops[0], crops[0])


# ---- operating points


def scored(number: int = 2000, n_folds: int = 5, seed: int = 0) -> PairScores:
    rng = np.random.default_rng(seed)
    same = np.tile([True, False], number // 2)
    scores = (rng.normal(0.2, 0.15, number) + 0.35 * same).astype(np.float32)
    fold = np.repeat(np.arange(n_folds), number // n_folds)
    ends = np.arange(number)
    return PairScores(scores, same, fold, ends, ends, ends, ends, "data", "pairs")


@pytest.mark.parametrize("n_folds", [1, 5])
def test_thresholds_for_rates_by_the_rule_of_the_protocol(n_folds):
    pairs = scored(n_folds=n_folds, number=20000)
    figures = folds.verification(pairs.scores, pairs.same, np.bincount(pairs.fold).tolist(), bootstrap=0)
    assert operating_points.at_far(pairs, 1e-3).value == figures["accuracy@far=1e-3"]["threshold"]
    for rate in (0.01, 0.1):
        far, fnmr = operating_points.at_far(pairs, rate), operating_points.at_fnmr(pairs, rate)
        highest, lowest = [], []
        for number in range(n_folds):
            others = pairs.fold != number if n_folds > 1 else np.full(len(pairs.same), True)
            impostors, genuine = pairs.scores[others & ~pairs.same], pairs.scores[others & pairs.same]
            highest.append(sorted(impostors, reverse=True)[math.floor(len(impostors) * rate) - 1])
            lowest.append(sorted(genuine)[math.floor(len(genuine) * rate)])
        assert far.value == pytest.approx(np.mean(highest), abs=1e-7)
        assert fnmr.value == pytest.approx(np.mean(lowest), abs=1e-7)
        n = 10000 if n_folds == 1 else 8000
        assert (far.errors, far.scores) == (fnmr.errors, fnmr.scores) == (round(n * rate), n)


def test_rates_that_too_few_scores_have():
    pairs = scored()  # 800 of each kind outside every fold
    assert operating_points.at_far(pairs, 1 / 800).errors == 1
    with pytest.raises(ValueError, match=r"FAR 0.001 needs 1,000 impostor scores, and there are 800; choose a rate"):
        operating_points.at_far(pairs, 0.001)
    with pytest.raises(ValueError, match=r"FNMR 0.0001 needs 10,000 genuine scores, .* a rate of 0.0013 or more"):
        operating_points.at_fnmr(pairs, 0.0001)


def test_another_far_has_the_threshold_of_the_scores(evaluated, crops, capsys):
    scores = pair_scores.read(evaluated / "scores/synthetic.npz")
    one = told(capsys, crops[0], crops[1], f"--model={evaluated}", "--far=0.1")
    expected = operating_points.at_far(scores, 0.1)
    assert (one["threshold"], one["far"]) == (expected.value, 0.1)
    measured_on = one["measured_on"]
    assert (measured_on["n_impostor_per_fold"], measured_on["impostors_above_per_fold"]) == (108, 10)
    assert one["far_ci95"] == intervals.wilson(10, 108)
    text = say(capsys, crops[0], crops[1], f"--model={evaluated}", "--far=0.1")[1]
    assert f"threshold {expected.value:.4f}, for FAR 0.1\n" in text
    assert "the threshold rests on the 10 highest of some 108 impostor scores" in text
    message = (
        "--far=0.001: benchmark synthetic: FAR 0.001 needs 1,000 impostor scores, and there are 108; choose a rate"
    )
    refused(capsys, message, crops[0], crops[1], f"--model={evaluated}", "--far=0.001")


def test_between_two_thresholds_it_cannot_tell(evaluated, crops, capsys, tmp_path):
    scores = pair_scores.read(evaluated / "scores/synthetic.npz")
    flags = f"--model={evaluated}", "--far=0.01", "--unsure=0.05"
    lower, upper = operating_points.at_fnmr(scores, 0.05).value, operating_points.at_far(scores, 0.01).value
    assert lower < upper
    verdicts = {}
    for number in np.argsort(scores.scores):
        score = float(scores.scores[number])
        kind = "same person" if score >= upper else "cannot tell" if score >= lower else "different persons"
        verdicts.setdefault(kind, number)
    assert len(verdicts) == 3
    for kind, number in verdicts.items():
        pair = crops[scores.a[number]], crops[scores.b[number]]
        one = told(capsys, *pair, *flags)
        assert one["verdict"] == kind
        assert one["same"] is {"same person": True, "different persons": False, "cannot tell": None}[kind]
        assert one["lower"] == {
            "fnmr": 0.05,
            "threshold": lower,
            "n_genuine_per_fold": 108,
            "genuine_below_per_fold": 5,
            "fnmr_ci95": intervals.wilson(5, 108),
            "has_range": True,
        }
    pair = [crops[ends[verdicts["cannot tell"]]] for ends in (scores.a, scores.b)]
    lines = say(capsys, *pair, *flags, f"--save={tmp_path / 'x.png'}")[1].splitlines()
    assert lines[0].startswith("cannot tell: score ")
    assert lines[0].endswith(f" (cosine) lies between {lower:.4f} (FNMR 0.05) and {upper:.4f} (FAR 0.01)")
    assert (
        f"cannot tell from {lower:.4f} for FNMR 0.05 up to {upper:.4f} for FAR 0.01; 5 of some 108 genuine" in lines[4]
    )
    assert pair_text.caption(verify.compare(*pair, evaluated, far=0.01, unsure=0.05))[0] == lines[0]
    refused(capsys, "--unsure=0.001: benchmark synthetic: FNMR", *pair, f"--model={evaluated}", "--unsure=0.001")


def test_thresholds_that_cross_leave_no_range(evaluated, crops, capsys):
    flags = f"--model={evaluated}", "--far=0.5", "--unsure=0.5"
    one = told(capsys, crops[0], crops[1], *flags)
    assert one["lower"]["has_range"] is False
    assert one["same"] == (one["score"] >= one["threshold"])
    text = say(capsys, crops[0], crops[1], *flags)[1]
    rate, upper = f"{one['lower']['threshold']:.4f} for FNMR 0.5", f"{one['threshold']:.4f} for FAR 0.5"
    assert f"no scores are in doubt: the threshold {rate} is not below that of {upper}; 54 of some 108" in text


def test_scores_that_are_missing_or_of_other_data(evaluated, crops, capsys):
    file = evaluated / "scores/synthetic.npz"
    scores = pair_scores.read(file)
    dataclasses.replace(scores, data_hash="other").write(file)
    arguments = crops[0], crops[1], f"--model={evaluated}", "--far=0.1"
    refused(capsys, f"{file} is of other data than {evaluated / 'results.json'}; evaluate again", *arguments)
    file.unlink()
    refused(capsys, f"{file} is missing (an older fvjax did not write it)", *arguments)
    assert say(capsys, *arguments[:-1])[0] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--far=0"], "--far=0: choose a rate above 0 and below 1"),
        (["--far=nan"], "--far=nan: choose a rate"),
        (["--unsure=1"], "--unsure=1: choose a rate above 0 and below 1"),
        (["--far=0.1", "--threshold=0.2"], "--threshold and --far: give one"),
        (["--unsure=0.1", "--threshold=0.2"], "--threshold and --unsure: give one"),
    ],
)
def test_rates_that_are_none(flags, message, crops, capsys):
    refused(capsys, message, crops[0], crops[1], "--model=nowhere", *flags)
