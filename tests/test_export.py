"""Test the export of trained models for other programs: adapters, merged weights, models trained in full."""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from huggingface_hub import metadata_load
from safetensors.numpy import load_file, save_file

import fvjax
from fvjax import api, export, pretrain, trees
from fvjax.config import Config
from fvjax.data import images, stores
from fvjax.models import encoder
from tests.reference.recipe import GOLDEN
from tests.test_bad_input import Commands, small
from tests.test_convert import shard, spoil
from tests.test_images import smooth_face
from weights_convert import internvit, open_checkpoint, read_adapters
from weights_convert.write import convert, write_original

TINY = GOLDEN / "internvl_tiny"
WQKV = "language_model.model.layers.0.attention.wqkv.weight"
SIZES = {"image_size": 28, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TOWER = {**pretrain.CONFIG, **SIZES}
LORA = {"rank": 2, "alpha": 3.0, "targets": ("blocks/mlp/fc[12]",), "count": 4}


@pytest.fixture(scope="module")
def faces() -> np.ndarray:
    return np.stack([smooth_face(i) for i in range(16)])


@pytest.fixture(scope="module")
def run(tmp_path_factory, faces):
    """Return a function (name, changes) -> workdir that trains a few steps, and the tower of the runs with a base."""
    folder = tmp_path_factory.mktemp("runs")
    records = [(images.encode(face), f"{i // 4}", f"{i}.jpg") for i, face in enumerate(faces)]
    stores.write(folder / "train", records, split="train", sources=["here"])
    tower = encoder.build("vision_transformer", internvit.model_config(TOWER, "TOWER"), "mean")
    params = {f"params/{n}": np.asarray(x) for n, x in trees.flatten(tower.init(jax.random.key(0))["params"]).items()}
    write_original(folder / "tower", params, TOWER)
    shard(folder / "tower")

    def train(name: str, **changes) -> Path:
        config = small(folder / "train", batch_size=8, epochs=2, seed=1, **changes)
        config.optimizer.lr = 0.5
        if "init_from" not in changes and config.model.kind != "iresnet":
            config.init_from = str(folder / "tower")
            config.model.vision_transformer.depth = 2
        with pytest.MonkeyPatch.context() as monkeypatch:
            assert Commands(monkeypatch, None).main(config, folder / name) == 0
        return folder / name

    train.tower = folder / "tower"
    return train


@pytest.fixture(scope="module")
def adapted(run) -> Path:
    """Add adapters to a frozen base."""
    return run("adapted", lora=LORA, trainable=(("lora/.*", "adapter"), (".*", "frozen")))


@pytest.fixture(scope="module")
def both(run) -> Path:
    """Add adapters, and train the patch embedding in full, as a projector would be."""
    rules = (("lora/.*", "adapter"), ("params/patch/.*", "projector"), (".*", "frozen"))
    return run("both", lora=LORA, trainable=rules)


def cli(capsys, *arguments) -> tuple[int, str, str]:
    capsys.readouterr()
    code = export.main([str(a) for a in arguments])
    return code, *capsys.readouterr()


def test_adapters_of_a_run(adapted, run, faces, tmp_path, capsys):
    code, out, err = cli(capsys, f"--workdir={adapted}", f"--dst={tmp_path / 'out'}")
    assert (code, err) == (0, "")
    assert f"2 adapted modules, rank 2, step 4 of {adapted}" in out
    written = {"adapter_model.safetensors", "adapter_config.json", "README.md"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == written
    card = (tmp_path / "out/README.md").read_text()
    assert "license: unknown\n" in card
    assert "2 adapted modules, rank 2. Trained and exported with fvjax." in card
    assert 'fvjax.load("BASE", "vit", adapters="DIR/adapter_model.safetensors", pool="mean")' in card
    assert str(tmp_path) not in card
    expected = api.load_workdir(adapted).embed(faces)
    file = tmp_path / "out/adapter_model.safetensors"
    np.testing.assert_allclose(fvjax.load(run.tower, "vit", adapters=file).embed(faces), expected, atol=1e-5)
    assert np.abs(fvjax.load(run.tower, "vit").embed(faces) - expected).max() > 1e-2, "nothing was trained"


@pytest.mark.parametrize("which", ["adapted", "both"])
def test_merged_weights_of_a_run(request, run, which, faces, tmp_path, capsys):
    workdir = request.getfixturevalue(which)
    card = ("--license=mit", "--base-model=me/tower")
    code, _, err = cli(capsys, f"--workdir={workdir}", f"--dst={tmp_path / 'out'}", "--merged", *card)
    assert (code, err) == (0, "")
    header = metadata_load(tmp_path / "out/README.md")
    assert (header["license"], header["base_model"], header["library_name"]) == ("mit", "me/tower", "transformers")
    np.testing.assert_allclose(
        fvjax.load(tmp_path / "out", "vit").embed(faces), api.load_workdir(workdir).embed(faces), atol=1e-5
    )
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"README.md", *(p.name for p in run.tower.iterdir())}
    changed = {k for f in run.tower.glob("*.safetensors") for k, v in load_file(f).items()
               if load_file(tmp_path / "out" / f.name)[k].tobytes() != v.tobytes()}  # fmt: skip
    layers = {f"encoder.layers.{i}.mlp.fc{j}.weight" for i in (0, 1) for j in (1, 2)}
    patch = {f"embeddings.patch_embedding.{leaf}" for leaf in ("weight", "bias")}
    assert changed == layers | (patch if which == "both" else set())


def test_a_model_trained_in_full(run, faces, tmp_path, capsys):
    """The file has insightface's keys, including the running statistics and the first value of frozen variables."""
    changes = {
        "model.kind": "iresnet",
        "model.pooling": "",
        "trainable": (("params/features/scale", "frozen"), (".*", "backbone")),
    }
    sizes = {"layers": (1, 1), "widths": (4, 8), "num_features": 6}
    workdir = run("resnet", **changes, **{f"model.iresnet.{k}": v for k, v in sizes.items()})
    code, out, err = cli(capsys, f"--workdir={workdir}", f"--dst={tmp_path / 'out'}")
    assert (code, err) == (0, "")
    assert "insightface's keys" in out
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert tensors["layer1.0.bn1.num_batches_tracked"].shape == ()
    assert (tensors["features.weight"] == 1).all()
    expected = api.load_workdir(workdir).embed(faces)
    np.testing.assert_allclose(fvjax.load(tmp_path / "out", "resnet").embed(faces), expected, atol=1e-4)


def half(directory: Path) -> Path:
    """Return a whole InternVL2 in float16 and two shards, with a negative zero in its weights, a tokenizer and code."""
    shutil.copytree(TINY, directory, ignore=shutil.ignore_patterns("golden.npz", "adapters.safetensors"))
    spoil(directory, lambda t: t.update({k: v.astype(np.float16) for k, v in t.items()}))
    spoil(directory, lambda t: t[WQKV].__setitem__((slice(None), 0), -0.0))
    shard(directory)
    (directory / "tokenizer.model").write_bytes(b"pieces")
    (directory / "modeling_internvl_chat.py").write_text("raise SystemExit")
    return directory


@pytest.mark.parametrize("kind", ["vlm", "vision_transformer"])
@pytest.mark.parametrize("layout", ["original", "converted"])
def test_zero_adapters_change_no_bit(tmp_path, kind, layout):
    """This holds for the files of an original, and for the tensors of a converted directory, which has other shards."""
    src = half(tmp_path / "src")
    if layout == "converted":
        convert(src, tmp_path / "ours", kind)
    ckpt = open_checkpoint(src if layout == "original" else tmp_path / "ours", kind)
    kernels = [n for n in ckpt.params if n.endswith("/kernel") and "blocks/" in n]
    adapters = {}
    for name in kernels:
        *stack, inputs, outputs = ckpt.params[name].shape
        module = name.removeprefix("params/").removesuffix("/kernel")
        adapters[f"{module}/a"] = np.full((*stack, inputs, 2), -1, np.float32)
        adapters[f"{module}/b"] = np.zeros((*stack, 2, outputs), np.float32)
    export.merge(ckpt, tmp_path / "out", adapters, 4.0, {})
    out = {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    if layout == "original":
        before = {p.name: p.read_bytes() for p in src.iterdir() if p.suffix != ".py"}
        index = "model.safetensors.index.json"
        assert json.loads(out.pop(index))["weight_map"] == json.loads(before.pop(index))["weight_map"]
        assert out.keys() == before.keys()
        for name, data in before.items():
            if name.endswith(".safetensors"):
                old, new = load_file(src / name), load_file(tmp_path / "out" / name)
                assert {k: (v.dtype, v.tobytes()) for k, v in new.items()} == {
                    k: (v.dtype, v.tobytes()) for k, v in old.items()
                }
            else:
                assert out[name] == data, name
    else:
        old = {k: v for f in src.glob("*.safetensors") for k, v in load_file(f).items()}
        new = load_file(tmp_path / "out/model.safetensors")
        assert set(new) == {k for k in old if kind == "vlm" or k.startswith("vision_model.")}
        assert all(new[key].tobytes() == old[key].tobytes() for key in new)
        assert json.loads(out["config.json"]) == json.loads((src / "config.json").read_text())


def test_merged_adapters_are_the_references_figures(tmp_path):
    """Compare with the reference's embeddings with its adapters, in float32."""
    adapters, scale = read_adapters(TINY / "adapters.safetensors", TINY, "vlm")
    export.merge(open_checkpoint(TINY, "vlm"), tmp_path / "out", adapters, scale, {})
    golden = np.load(TINY / "golden.npz")
    got = fvjax.load(tmp_path / "out", "mllm").embed(golden["faces"][:2])
    np.testing.assert_allclose(got, golden["mllm_lora_visual_mean"][:2], rtol=0, atol=5e-5)
    base, gate = open_checkpoint(TINY, "vlm"), "params/decoder/blocks/mlp/gate/kernel"
    with pytest.raises(ValueError, match="has no params/decoder/blocks/mlp/gates/kernel"):
        export.merge(base, tmp_path / "not", {n.replace("gate", "gates"): x for n, x in adapters.items()}, scale, {})
    with pytest.raises(ValueError, match=f"{gate} was trained in full and has an adapter"):
        export.merge(base, tmp_path / "not", adapters, scale, {gate: np.zeros(base.params[gate].shape)})


def test_what_cannot_be_exported(run, adapted, both, tmp_path, capsys):
    other, changed, frozen = tmp_path / "other", tmp_path / "changed", tmp_path / "frozen"
    other.mkdir()
    shutil.copytree(adapted, changed)
    config = json.loads((changed / "config.json").read_text())
    shutil.copytree(run.tower, tmp_path / "tower")
    one = next((tmp_path / "tower").glob("*1-of*"))
    save_file({k: v + 1 for k, v in load_file(one).items()}, one)
    (changed / "config.json").write_text(json.dumps(config | {"init_from": str(tmp_path / "tower")}))
    frozen.mkdir()
    (frozen / "config.json").write_text(Config().to_json())
    for arguments, message in [
        ((f"--workdir={other}",), f"{other} is not a workdir of python -m fvjax.main"),
        ((f"--workdir={frozen}",), f"{frozen} trained nothing (config.epochs=0), so there is nothing to export"),
        ((f"--workdir={both}",), f"{both} also trained 2 arrays in full, the first params/patch/bias; adapters do not"),
        ((f"--workdir={changed}", "--merged"), f"{changed} was trained on another base than {tmp_path / 'tower'} is"),
    ]:
        code, _, err = cli(capsys, *arguments, f"--dst={tmp_path / 'out'}")
        assert (code, err.count("\n"), err[:13]) == (2, 1, "fvjax: error:"), err
        assert message in err
        assert not (tmp_path / "out").exists()
    code, _, err = cli(capsys, f"--workdir={adapted}", f"--dst={other}")
    assert (code, err) == (2, f"fvjax: error: {other} exists; choose a new directory\n")
