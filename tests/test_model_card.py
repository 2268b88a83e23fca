"""The model card of an export: header and text by value, what it refuses, uploads that are shown first."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import numpy as np
import pytest
from huggingface_hub import ModelCard

from fvjax import export as command
from fvjax.evals import folds
from fvjax.evals.finished import FinishedRun
from fvjax.reporting import model_card, upload
from fvjax.reporting.model_card import Export

RNG = np.random.default_rng(0)
SAME = np.arange(2000) % 2 == 0
ENTRY = {
    **folds.verification(RNG.normal(size=2000) + 2 * SAME, SAME, [200] * 10, bootstrap=20),
    "failure_to_acquire": 3,
    "policy": "drop",
    "identities": "named",
    "identity_disjoint": None,
    "data_hash": "0123456789abcdef",
    "identities_seen_in_training": 0,
}
SETTINGS = {
    "name": "x",
    "task": "contrastive",
    "model": {"kind": "vision_transformer", "pooling": "cls"},
    "init_from": "/home/somebody/InternViT",
    "lora": {"rank": 8},
    "epochs": 2,
    "steps": 0,
    "seed": 1,
}
ADAPTERS = Export("48 adapted modules, rank 8", 7, "peft", "vit", "cls", True, "mit", "OpenGVLab/InternViT")


def run_of(**changes) -> FinishedRun:
    results = {"benchmarks": {"lfw": ENTRY}, "step": 7, "flip_sum": True, "base_hash": "b" * 64, "dtype": "float32"}
    return FinishedRun(Path("runs/x"), SETTINGS, {**results, "evaluation": {"date": "2026-11-30"}, **changes})


def read(text: str) -> tuple[dict, str]:
    card = ModelCard(text)
    return card.data.to_dict(), card.text


def test_the_header_has_the_figures_and_their_intervals():
    header, _ = read(model_card.card(run_of(), ADAPTERS, "faces: a | b"))
    assert (header["license"], header["library_name"], header["base_model"]) == ("mit", "peft", "OpenGVLab/InternViT")
    assert {"face-verification", "lora", "jax"} <= set(header["tags"])
    (index,) = header["model-index"]
    assert index["name"] == "faces: a | b"
    (result,) = index["results"]
    assert (result["task"]["type"], result["dataset"]["type"]) == ("face-verification", "lfw")
    found = {metric["name"]: metric for metric in result["metrics"]}
    measured = {"tar@far=1e-1", "tar@far=1e-2", "tar@far=1e-3"}  # 1,000 impostor pairs allow no smaller rate
    expected = {"accuracy@best_threshold", "accuracy@far=1e-3", "auc", "eer"} | measured
    assert found.keys() == {f"{key} (%)" for key in expected}
    for key in expected:
        figure = ENTRY[key]
        assert found[f"{key} (%)"]["value"] == pytest.approx(100 * figure.get("mean", figure.get("value")), abs=0.005)
        interval = [100 * edge for edge in figure["ci95"]]
        assert found[f"{key} (%)"]["args"]["ci95"] == pytest.approx(interval, abs=0.005)


def test_the_text_has_figures_threshold_and_protocol():
    _, text = read(model_card.card(run_of(), ADAPTERS, "x"))
    figure = ENTRY["accuracy@best_threshold"]
    low, high = (f"{100 * edge:.2f}" for edge in figure["ci95"])
    assert f"| {100 * figure['mean']:.2f} ± {100 * figure['std']:.2f} [{low} to {high}] |" in text
    threshold = ENTRY["accuracy@far=1e-3"]["threshold"]
    assert f"fvjax verify uses: {threshold:.4f}, the mean over folds. It lies just above all of some 900" in text
    assert (
        "95% interval of its FAR: 0% to 0.43% (Wilson). Measured on lfw (data 01234567), evaluated 2026-11-30." in text
    )
    assert "2,000 pairs of pictures: 1,000 genuine" in text
    assert "Failure to acquire: 3 pictures (policy “drop”" in text
    assert "Training saw none of the people of this benchmark." in text
    assert 'fvjax.load("BASE", "vit", adapters="DIR/adapter_model.safetensors", pool="cls")' in text
    assert "OpenGVLab/InternViT" in text.split("## Figures")[0]
    assert "add the embeddings of mirrored faces" in text
    assert "hash of the training data: not known" in text
    assert "/home/somebody" not in text


def test_a_benchmark_of_a_later_evaluation_has_its_date():
    later = {**ENTRY, "evaluation": {"date": "2026-12-24"}}
    _, text = read(model_card.card(run_of(benchmarks={"lfw": ENTRY, "cfp": later}), ADAPTERS, "x"))
    assert "Measured on lfw (data 01234567), evaluated 2026-11-30." in text
    assert "Measured on cfp (data 01234567), evaluated 2026-12-24." in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"step": 6}, "The run was evaluated at step 6, and this is step 7: its figures are not known."),
        ({"benchmarks": {}}, "This model was not evaluated, so how often it is right is not known."),
        ({"benchmarks": {"questions": {"generated": {}}}}, "It was not evaluated on pairs of faces"),
    ],
)
def test_figures_of_other_weights_are_not_the_cards(changes, message):
    header, text = read(model_card.card(run_of(**changes), ADAPTERS, "x"))
    assert message in text
    assert "model-index" not in header
    assert "Threshold" not in text


def test_a_licence_that_nobody_named_is_unknown():
    header, text = read(model_card.card(run_of(), Export("a", 7, "fvjax", "resnet", "", False), "x"))
    assert header["license"] == "unknown"
    assert "base_model" not in header
    assert "Not known: nobody named one" in text
    assert 'fvjax.load("DIR", "resnet")\n' in text


def test_names_are_text_in_the_card():
    run = run_of(benchmarks={"<b>|x": ENTRY})
    header, text = read(model_card.card(run, ADAPTERS, "<script>\n---\nlicense: mine"))
    assert header["license"] == "mit"
    assert header["model-index"][0]["results"][0]["dataset"]["name"] == "<b>|x"
    assert "<script>" not in text
    assert "&lt;b&gt;\\|x" in text


@pytest.mark.parametrize(
    ("scenario", "pool", "expected"),
    [
        ("mllm", "visual_mean", '"mllm", pool="visual_mean")'),
        ("mllm", "last_token", '"mllm", pool="last_token", prompt_ids=[5, 6])'),
        ("pair", "", '"pair", prompt_ids=[5, 6], yes_no_ids=[1, 2])\np = model.p_same'),
        ("chat", "", '"chat")\ntext = model.generate('),
    ],
)
def test_the_way_to_load_it_is_that_of_its_kind(scenario, pool, expected):
    settings = {**SETTINGS, "prompt": {"ids": [5, 6], "yes_no_ids": [1, 2], "text": ""}}
    run = FinishedRun(Path("x"), settings, run_of().results)
    assert expected in model_card.card(run, Export("a", 7, "transformers", scenario, pool, False), "x")


# ---- uploading


@pytest.fixture
def exported(tmp_path) -> Path:
    """Return a folder as an export leaves it, and two files that are not an export's."""
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"12345")
    (folder / "adapter_config.json").write_text("{}")
    (folder / "README.md").write_text(model_card.card(run_of(), ADAPTERS, "x"))
    (folder / "notes.py").write_text("secret = 1")
    (folder / "elsewhere.json").symlink_to(tmp_path / "token")
    (tmp_path / "token").write_text("hf_secret")
    return folder


class Hub:
    """Stands in for the Hub's client, and keeps what it was asked."""

    def __init__(self):
        self.asked: list[tuple[str, dict]] = []
        self.problem: Exception | None = None

    def create_repo(self, repository, **arguments):
        self.asked.append((repository, arguments))
        if self.problem:
            raise self.problem

    def upload_folder(self, **arguments):
        self.asked.append(("upload", arguments))
        return SimpleNamespace(commit_url="https://hub/commit/1")


@pytest.fixture
def hub(monkeypatch) -> Hub:
    fake = Hub()
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setenv("HF_TOKEN", "hf_never_printed")
    return fake


def test_without_yes_everything_is_shown_and_nothing_sent(exported, hub, capsys):
    assert command.main([f"--dst={exported}", "--push-to-hub=me/faces"]) == 0
    out = capsys.readouterr().out
    assert hub.asked == []
    lines = [" ".join(line.split()) for line in out.splitlines()]
    sizes = {name: (exported / name).stat().st_size for name in ("README.md", "adapter_config.json")}
    for name, size in {**sizes, "adapter_model.safetensors": 5, "in all": sum(sizes.values()) + 5}.items():
        assert f"{name} {size:,} bytes" in lines
    assert "not uploaded: elsewhere.json, notes.py" in lines
    assert (exported / "README.md").read_text() in out
    assert f"Nothing was uploaded. To upload it: python -m fvjax.export --dst={exported}" in out
    assert "hf_" not in out


def test_with_yes_those_files_are_uploaded_to_a_private_repository(exported, hub, capsys):
    assert command.main([f"--dst={exported}", "--push-to-hub=me/faces", "--yes"]) == 0
    (repository, made), (_, sent) = hub.asked
    assert (repository, made["private"], made["exist_ok"]) == ("me/faces", True, True)
    assert sent["allow_patterns"] == ["README.md", "adapter_config.json", "adapter_model.safetensors"]
    assert (sent["repo_id"], sent["folder_path"]) == ("me/faces", str(exported))
    out = capsys.readouterr().out
    assert "Uploaded: https://hub/commit/1" in out
    assert "hf_" not in out


def test_a_hub_that_refuses_is_one_line(exported, hub, capsys):
    hub.problem = OSError("401\nUnauthorized")
    assert command.main([f"--dst={exported}", "--push-to-hub=me/faces", "--yes"]) == 2
    err = capsys.readouterr().err
    assert "me/faces: not uploaded, `hf auth login` gives access (OSError: 401 Unauthorized)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("license: mit", "license: unknown", "lacks license (--license=…)"),
        ("base_model: OpenGVLab/InternViT", "", "lacks base_model"),
        ("library_name: peft", "", "lacks library_name"),
        ("model-index:", "models:", "lacks figures (model-index)"),
        ("license: mit", "license: [", "its header is not YAML"),
    ],
)
@pytest.mark.parametrize("yes", [[], ["--yes"]])
def test_a_card_that_lacks_something_is_not_uploaded(exported, hub, capsys, old, new, message, yes):
    card = (exported / "README.md").read_text()
    assert old in card
    (exported / "README.md").write_text(card.replace(old, new, 1))
    assert command.main([f"--dst={exported}", "--push-to-hub=me/faces", *yes]) == 2
    assert message in capsys.readouterr().err
    assert hub.asked == []


def test_flags_that_do_not_go_together(exported, tmp_path, hub, capsys):
    for arguments, message in (
        ([f"--dst={tmp_path / 'x'}"], "--workdir=RUN is missing"),
        ([f"--dst={exported}", "--yes", f"--workdir={tmp_path}"], "--yes belongs to --push-to-hub"),
        ([f"--dst={exported}", "--push-to-hub=faces"], "give OWNER/NAME"),
        ([f"--dst={tmp_path}", "--push-to-hub=me/faces"], "no exported model with its card"),
    ):
        assert command.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert hub.asked == []


def test_only_what_an_export_writes_is_uploaded(exported):
    assert [file.name for file in upload.uploaded_files(exported)] == [
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert json.loads((exported / "adapter_config.json").read_text()) == {}
