"""Models that are not fvjax's, functions and ONNX files, are evaluated like runs; whatever they do wrong is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from fvjax import compare, evaluate, foreign
from fvjax.data import synthetic
from fvjax.evals import baselines, folds, pair_scores
from tests.tiny_onnx import UINT8, mean_colour

NCHW = ["N", 3, 112, 112]
SOURCE = """
import numpy as np


def embed(faces):
    return faces[:, ::8, ::8].reshape(len(faces), -1).astype(np.float32)


def other(faces):
    return faces[:, ::16, ::16].reshape(len(faces), -1).astype(np.float32)


def flat(faces):
    return faces.mean()


def broken(faces):
    return np.full((len(faces), 4), np.nan)


number = 3
"""


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    return Path(synthetic.write(tmp_path_factory.mktemp("s") / "s", range(40), 3, 0, split="test", pairs=200).path)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """Return a working folder with a module of embedders of one's own."""
    (tmp_path / "mine_to_judge.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def call(*arguments: object) -> int:
    return evaluate.main([str(each) for each in arguments])


def results(workdir: Path) -> dict:
    return json.loads((workdir / "results.json").read_text())


# ---- networks


@pytest.mark.parametrize("shape", [NCHW, [1, 3, 112, 112], [4, 3, 112, 112], ["N", 3, "H", "W"]])
@pytest.mark.parametrize(("channels", "pixels"), [("rgb", "-1..1"), ("bgr", "imagenet"), ("rgb", "0..255")])
def test_an_onnx_network_reads_what_it_is_said_to_read(tmp_path, shape, channels, pixels):
    pytest.importorskip("onnxruntime")
    faces = np.random.default_rng(0).integers(0, 256, (6, 112, 112, 3), np.uint8)
    embed, digest = foreign.of_onnx(mean_colour(tmp_path / "net.onnx", shape), channels, pixels)
    x = faces.astype(np.float64)
    if pixels == "-1..1":
        x = x / 127.5 - 1
    if pixels == "imagenet":
        x = (x / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    expected = (x[..., ::-1] if channels == "bgr" else x).mean((1, 2))
    np.testing.assert_allclose(embed(faces), expected, rtol=1e-4, atol=1e-4)
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("shape", "kind", "message"),
    [
        ([1, 3, 224, 224], 1, r"expected one input, float \[N, 3, 112, 112\]"),
        ([1, 1, 112, 112], 1, "expected one input"),
        ([1, 3, 112, 112], UINT8, "not an ONNX network"),  # onnxruntime has no pooling of bytes
    ],
)
def test_a_network_for_other_pictures_is_refused(tmp_path, shape, kind, message):
    pytest.importorskip("onnxruntime")
    with pytest.raises(ValueError, match=message) as error:
        foreign.of_onnx(mean_colour(tmp_path / "net.onnx", shape, kind))
    assert str(tmp_path / "net.onnx") in str(error.value)


def test_what_is_no_network_is_one_line(tmp_path):
    pytest.importorskip("onnxruntime")
    (tmp_path / "text.onnx").write_text("not a network")
    with pytest.raises(ValueError, match=r"text\.onnx: not an ONNX network") as error:
        foreign.of_onnx(tmp_path / "text.onnx")
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no such file"):
        foreign.of_onnx(tmp_path / "none.onnx")
    for more in ({"channels": "gbr"}, {"pixels": "0..2"}):
        with pytest.raises(ValueError, match=r"--channels is one of rgb, bgr, --pixels one of -1..1"):
            foreign.of_onnx(tmp_path / "text.onnx", **more)


def test_without_onnxruntime_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    (tmp_path / "net.onnx").write_bytes(b"")
    with pytest.raises(ValueError, match="uv sync --extra onnx"):
        foreign.of_onnx(tmp_path / "net.onnx")


# ---- the command


def test_a_function_is_judged_by_the_same_protocol(here, store):
    assert call("--embedder=mine_to_judge:embed", f"--benchmark={store}", "--workdir=out", "--bootstrap=20") == 0
    found = results(here / "out")
    scores = pair_scores.read(here / "out/scores/synthetic.npz")
    again = folds.verification(
        scores.scores,
        scores.same,
        np.bincount(scores.fold).tolist(),
        identities_a=scores.identity_a,
        identities_b=scores.identity_b,
        bootstrap=20,
    )
    entry = found["benchmarks"]["synthetic"]
    assert {key: entry[key] for key in again} == json.loads(json.dumps(again))
    assert entry["identities_seen_in_training"] is None
    assert (found["base_hash"], found["step"]) == (foreign.of_function("mine_to_judge:embed")[1], 0)
    assert {"roc.png", "det.png", "results.json", "config.json", "scores"} == {p.name for p in (here / "out").iterdir()}


def test_flags_reach_the_evaluation(here, store, monkeypatch):
    sizes = []
    plain = foreign.of_function("mine_to_judge:embed")[0]
    monkeypatch.setattr(
        foreign, "of_function", lambda spec: (lambda faces: sizes.append(len(faces)) or plain(faces), "hash")
    )
    flags = ["--embedder=mine_to_judge:embed", f"--benchmark={store}:synthetic", "--bootstrap=0"]
    assert call(*flags, "--workdir=a", "--batch-size=16", "--name=first") == 0
    assert set(sizes) == {16}
    assert results(here / "a")["evaluation"]["name"] == "first"
    assert results(here / "a")["benchmarks"]["synthetic"]["auc"]["ci95"] is None
    assert call(*flags, "--workdir=b", "--flip-sum") == 0
    one, other = (pair_scores.read(here / name / "scores/synthetic.npz").scores for name in "ab")
    assert results(here / "b")["flip_sum"] is True
    assert not np.array_equal(one, other)


def test_an_onnx_file_is_evaluated_and_compared_with_a_function(here, store, capsys):
    pytest.importorskip("onnxruntime")
    mean_colour(here / "net.onnx", NCHW)
    more = [f"--benchmark={store}", "--bootstrap=0"]
    assert call("--model=net.onnx", *more, "--workdir=net", "--channels=bgr", "--pixels=0..1") == 0
    assert call("--embedder=mine_to_judge:embed", *more, "--workdir=function") == 0
    saved = json.loads((here / "net/config.json").read_text())
    assert (saved["embedder"], saved["channels"], saved["pixels"]) == ("net.onnx", "bgr", "0..1")
    capsys.readouterr()
    assert compare.main(["net", "function", "--bootstrap=100", "--format=json"]) == 0
    figures = json.loads(capsys.readouterr().out)["benchmarks"]["synthetic"]["figures"]["auc"]
    for name in ("net", "function"):
        assert figures[name]["mean"] == results(here / name)["benchmarks"]["synthetic"]["auc"]["value"]


def test_a_checkpoint_without_a_run_is_evaluated(here, store, monkeypatch):
    from fvjax import api

    monkeypatch.setattr(api, "Embedder", lambda path: baselines.histogram)
    folder = Path(__file__).resolve().parent.parent / "fvjax/pretrained/tiny_internvit"
    assert call(f"--model={folder}", f"--benchmark={store}", "--workdir=out", "--bootstrap=0") == 0
    assert len(results(here / "out")["base_hash"]) == 64


def test_mistakes_are_one_line(here, store, tmp_path, capsys):
    function, there = "--embedder=mine_to_judge:embed", f"--benchmark={store}"
    assert call(function, there, "--workdir=taken", "--bootstrap=0") == 0
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text('{"trainable": []}')
    capsys.readouterr()
    for arguments, message in (
        (["--embedder=mine_to_judge", there, "--workdir=x"], "name a function as module:name"),
        (["--embedder=mine_to_judge:nothing", there, "--workdir=x"], "has no 'nothing'"),
        (["--embedder=nowhere_to_find:f", there, "--workdir=x"], "there is no module 'nowhere_to_find'"),
        (["--embedder=mine_to_judge:number", there, "--workdir=x"], "that is no function"),
        (["--embedder=mine_to_judge:flat", there, "--workdir=x"], "not float [N, D]"),
        (["--embedder=mine_to_judge:broken", there, "--workdir=y"], "a value that is not finite, first for face 0"),
        (["--embedder=mine_to_judge:other", there, "--workdir=taken"], "taken is of another model"),
        ([function, "--benchmark=nowhere", "--workdir=x"], "nowhere is not there"),
        ([function, f"{there}:lfw", "--workdir=x"], "has the pairs synthetic"),
        ([function, there, there, "--workdir=x"], "synthetic is given twice"),
        ([function, there, "--workdir=x", "--batch-size=0"], "at least 1"),
        ([f"--model={run}", there, "--workdir=x"], "is a run, which keeps its own results: python -m fvjax.main"),
    ):
        assert call(*arguments) == 2, arguments
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
