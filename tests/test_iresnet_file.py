"""Test files with an IResNet's weights: backbone.pth without the unpickler, AdaFace's names and colours, its config."""

import io
import json
import pickle
import struct
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.test_convert import IRESNET, iresnet_shapes
from weights_convert import iresnet_file, torch_file
from weights_convert.iresnet_file import convert_iresnet, source_file
from weights_convert.read import open_checkpoint

OPTIONS = {"float32": "FloatStorage", "int64": "LongStorage", "float16": "HalfStorage"}


def weights(shapes=None) -> dict[str, np.ndarray]:
    """Return random weights with insightface's keys and the sizes of IRESNET."""
    rng = np.random.default_rng(0)
    shapes = iresnet_shapes() if shapes is None else shapes
    return {
        key: np.array(7) if key.endswith("num_batches_tracked") else rng.standard_normal(shape).astype(np.float32)
        for key, shape in shapes.items()
    }


# ---- files of torch.save, written here byte by byte


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def numbers(values) -> bytes:
    return b"(" + b"".join(map(number, values)) + b"t"


EMPTY = b"ccollections\nOrderedDict\n)R"


def tensor_record(name: str, array: np.ndarray, **changes) -> bytes:
    """Return the pickle's instructions for one tensor; ``changes`` replace a part of them."""
    strides = [s // array.itemsize for s in array.strides]
    parts = {
        "function": b"ctorch._utils\n_rebuild_tensor_v2\n",
        "kind": text("storage"),
        "class": b"ctorch\n" + OPTIONS[array.dtype.name].encode() + b"\n",
        "size": number(array.size),
        "offset": number(0),
        "shape": numbers(array.shape),
        "strides": numbers(strides),
        "hooks": EMPTY,
    } | changes
    storage = b"(" + parts["kind"] + parts["class"] + text(name) + text("cpu") + parts["size"] + b"tQ"
    arguments = parts["offset"] + parts["shape"] + parts["strides"] + b"\x89" + parts["hooks"]
    return parts["function"] + b"(" + storage + arguments + b"tR"


def write_torch(path, arrays, wrap=lambda items: EMPTY + b"(" + items + b"u", changes=None, members=None):
    """Write what torch.save writes for a state dict; ``changes`` are for the first tensor's record."""
    items = b""
    for i, (key, array) in enumerate(arrays.items()):
        items += text(key) + tensor_record(str(i), array, **((changes or {}) if i == 0 else {}))
    files = {"archive/data.pkl": b"\x80\x02" + wrap(items) + b".", "archive/byteorder": b"little"}
    files |= {f"archive/data/{i}": array.tobytes() for i, array in enumerate(arrays.values())}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in (files | (members or {})).items():
            if data is not None:
                archive.writestr(name, data)
    return path


def test_a_state_dict_is_read_without_the_unpickler(tmp_path):
    arrays = weights()
    read = torch_file.open_torch(write_torch(tmp_path / "backbone.pth", arrays))
    assert {key: tensor[...].tobytes() for key, tensor in read.items()} == {k: x.tobytes() for k, x in arrays.items()}
    assert {key: (t.shape, t.dtype) for key, t in read.items()} == {k: (x.shape, x.dtype) for k, x in arrays.items()}
    assert torch_file.is_torch_file(tmp_path / "backbone.pth")
    turned = {"w": np.arange(24, dtype=np.float32).reshape(2, 3, 4)}
    strides = {"shape": numbers((4, 2, 3)), "strides": numbers((1, 12, 4))}
    tensor = torch_file.open_torch(write_torch(tmp_path / "t.pt", turned, changes=strides))["w"]
    np.testing.assert_array_equal(tensor[...], turned["w"].transpose(2, 0, 1))
    np.testing.assert_array_equal(tensor[1:], turned["w"].transpose(2, 0, 1)[1:])


@pytest.mark.parametrize("key", ["state_dict_backbone", "state_dict", "model"])
def test_the_weights_of_a_training_programs_checkpoint(tmp_path, key):
    """arcface_torch keeps the network under state_dict_backbone, beside the step and other things."""

    def wrap(items):
        state = EMPTY + b"(" + items + b"u}(" + text("_metadata") + EMPTY + b"ub"
        other = (
            text("epoch") + number(3) + text("rates") + b"](G" + struct.pack(">d", 0.1) + b"Ne" + text("on") + b"\x88"
        )
        return b"}(" + other + text(key) + state + b"u"

    arrays = weights()
    assert set(torch_file.open_torch(write_torch(tmp_path / "x.pt", arrays, wrap))) == set(arrays)


def test_torchs_own_files(tmp_path):
    torch = pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")
    rng = torch.Generator().manual_seed(0)
    values = {
        name: (10 * torch.randn(3, 4, 5, generator=rng)).to(dtype)
        for name, dtype in {
            **{"a": torch.float32, "b": torch.float16, "c": torch.bfloat16, "d": torch.float64, "e": torch.int64},
            **{"f": torch.int32, "g": torch.int16, "h": torch.int8, "i": torch.uint8, "j": torch.bool},
        }.items()
    }
    values |= {"slice": values["a"][1], "scalar": torch.tensor(5), "last": values["a"].permute(1, 2, 0).contiguous()}
    values |= {"parameter": torch.nn.Parameter(values["a"] + 1), "channels": values["a"].permute(2, 0, 1)}
    torch.save(torch.nn.BatchNorm2d(3).state_dict(), tmp_path / "bn.pth")
    assert sorted(torch_file.open_torch(tmp_path / "bn.pth"))[0] == "bias"
    for name, value in values.items():  # one by one, because some share their storage
        torch.save({name: value}, tmp_path / f"{name}.pt")
        got = torch_file.open_torch(tmp_path / f"{name}.pt")[name]
        expected = value.detach().view(torch.int16).numpy() if name == "c" else value.detach().numpy()
        np.testing.assert_array_equal(got[...].view(np.int16) if name == "c" else got[...], expected, err_msg=name)
        assert got.dtype.itemsize == value.element_size()
    torch.save(values, tmp_path / "shared.pt")
    with pytest.raises(ValueError, match="its tensors share their numbers"):
        torch_file.open_torch(tmp_path / "shared.pt")
    torch.save({"w": values["a"]}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert not torch_file.is_torch_file(tmp_path / "old.pt")


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


REFUSED = {  # changes of a file -> what the error names
    "call": (
        {"wrap": lambda _: b"cos\nsystem\n(" + text("true") + b"tR"},
        r"'os\.system' is refused, as a pickle coul",
    ),
    "builtins": ({"wrap": lambda _: b"cbuiltins\neval\n(" + text("1") + b"tR"}, r"'builtins\.eval' is refused"),
    "class": ({"wrap": lambda _: b"cpytorch_lightning\nTrainer\n)R"}, r"'pytorch_lightning\.Trainer' is refused"),
    "stack global": ({"wrap": lambda _: text("posix") + text("system") + b"\x93"}, r"'posix\.system' is refused"),
    "instance": ({"wrap": lambda _: b"(i__main__\nX\n"}, r"the instruction INST .* is refused"),
    "new object": ({"wrap": lambda _: b"ccollections\nOrderedDict\n)\x81"}, "the instruction NEWOBJ is refused"),
    "extension": ({"wrap": lambda _: b"\x82\x01"}, "the instruction EXT1"),
    "arguments of a dict": ({"wrap": lambda _: b"ccollections\nOrderedDict\n(]tR"}, "arguments of dict that no plain"),
    "call of a number": ({"wrap": lambda _: number(3) + b")R"}, "a call of something that is no name"),
    "state of a tensor": ({"wrap": lambda items: b"}(" + items + b"}bu"}, "setting the state of something"),
    "a key twice": ({"wrap": lambda items: b"}(" + items + items + b"u"}, "a key comes twice"),
    "a list": ({"wrap": lambda _: b"](" + number(1) + b"e"}, "it holds a list, not a dictionary of tensors"),
    "numbers": ({"wrap": lambda _: b"}" + text("a") + number(1) + b"s"}, "'a' is a int, not a tensor"),
    "left over": ({"wrap": lambda items: b"}(" + items + b"u" + number(1) + number(2)}, "and more is left"),
    "missing value": ({"wrap": lambda _: b"R"}, "a value is missing"),
    "cut": ({"wrap": lambda _: b"X\xff\xff\xff\x7fab"}, "expected 2147483647 bytes"),
    "kind of storage": ({"changes": {"kind": text("module")}}, "a reference to something that is no storage"),
    "no storage": ({"changes": {"class": text("FloatStorage")}}, "a reference to something that is no storage"),
    "larger storage": ({"changes": {"size": number(1 << 30)}}, "has not the 1073741824 numbers that are promised"),
    "negative": ({"changes": {"size": number(-1)}}, "a reference to something that is no storage"),
    "offset": ({"changes": {"offset": number(1)}}, r"a tensor of shape \[2, 3\] at 1 in a storage of 6 numbers"),
    "larger shape": ({"changes": {"shape": numbers((2, 30))}}, r"a tensor of shape \[2, 30\] at 0 in a storage"),
    "negative shape": ({"changes": {"shape": numbers((-2, -3))}}, "shape and strides are no numbers"),
    "expanded": ({"changes": {"strides": numbers((0, 1))}}, r"strides \[0, 1\], which is not dense"),
    "other function": (
        {"changes": {"function": b"ctorch._utils\n_rebuild_sparse_tensor\n"}},
        "_rebuild_sparse_tensor' is refused",
    ),
    "missing member": ({"members": {"archive/data/0": None}}, "'archive/data/0' is missing"),
    "short member": ({"members": {"archive/data/0": b"123"}}, "has not the 6 numbers that are promised"),
    "big-endian": ({"members": {"archive/byteorder": b"big"}}, "stored big-endian"),
    "two archives": ({"members": {"other/data.pkl": b""}}, "an archive with 2 members FOLDER/data.pkl, not one"),
    "none": ({"members": {"archive/data.pkl": None}}, "an archive with 0 members"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_anything_else_in_a_torch_file_is_refused_by_name(tmp_path, case):
    options, message = REFUSED[case]
    arrays = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}
    write_torch(tmp_path / "x.pth", arrays, **options)
    with pytest.raises(ValueError, match=message) as error:
        torch_file.open_torch(tmp_path / "x.pth")
    assert str(error.value).startswith(f"{tmp_path / 'x.pth'}: ")
    assert "load(FILE, weights_only=True)" in str(error.value), "the other way is said"


def test_archives_that_are_not_torchs(tmp_path):
    file = tmp_path / "x.pth"
    arrays = {"w": np.zeros((100, 100), np.float32)}
    write_torch(file, arrays)
    with zipfile.ZipFile(tmp_path / "y.pth", "w", zipfile.ZIP_DEFLATED) as packed, zipfile.ZipFile(file) as plain:
        for name in plain.namelist():
            packed.writestr(name, plain.read(name))
    with pytest.raises(ValueError, match="is compressed, encrypted or larger than the file"):
        torch_file.open_torch(tmp_path / "y.pth")
    data = bytearray(file.read_bytes())
    data[data.index(bytes(100)) + 50] = 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="archive/data/0 is damaged"):
        _ = torch_file.open_torch(file)["w"][...]
    for size in (0, 3, 100, len(data) // 2, len(data) - 1):
        file.write_bytes(bytes(data[:size]))
        with pytest.raises(ValueError, match=r"x\.pth: "):
            torch_file.open_torch(file)


def test_the_canary_sings_where_python_unpickles(tmp_path):
    """The trap works: Python's unpickler runs it, and the reader here refuses it by name."""
    trap = pickle.dumps(Trap(), 2)
    with pytest.raises(pytest.fail.Exception):
        pickle.load(io.BytesIO(trap))  # noqa: S301
    write_torch(tmp_path / "x.pth", {}, members={"archive/data.pkl": trap})
    with pytest.raises(ValueError, match=r"'_pytest\.outcomes.*' is refused"):
        torch_file.open_torch(tmp_path / "x.pth")


# ---- IResNets


@pytest.mark.parametrize("prefix", ["", "module.", "net.", "backbone.", "module.model.net."])
@pytest.mark.parametrize("kind", ["pth", "safetensors"])
def test_insightfaces_weights_get_their_config(tmp_path, prefix, kind):
    arrays = weights()
    named = {prefix + key: value for key, value in arrays.items()}
    file = tmp_path / f"backbone.{kind}"
    _ = save_file(named, file) if kind == "safetensors" else write_torch(file, named)
    convert_iresnet(file, tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()) == IRESNET
    written = load_file(tmp_path / "out/model.safetensors")
    assert {k: v.tobytes() for k, v in written.items()} == {k: v.tobytes() for k, v in arrays.items()}
    if not prefix:
        convert_iresnet(file, tmp_path / "bgr", "bgr")
        turned = load_file(tmp_path / "bgr/model.safetensors")
        np.testing.assert_array_equal(turned["conv1.weight"], arrays["conv1.weight"][:, ::-1])
        assert all(turned[key].tobytes() == arrays[key].tobytes() for key in arrays if key != "conv1.weight")


def adaface(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the same network with AdaFace's names, without what it has as constants."""
    outside = {ours: theirs for theirs, ours in iresnet_file.OUTSIDE_BLOCKS.items()}
    out = {}
    for key, value in arrays.items():
        module, leaf = key.rsplit(".", 1)
        if module.startswith("layer"):
            stage, _, part = module.split(".", 2)
            if (stage, part.split(".")[0]) == ("layer1", "downsample"):
                continue
            part = part.replace("downsample", "shortcut_layer")
            part = f"res_layer.{iresnet_file.BLOCK.index(part)}" if part in iresnet_file.BLOCK else part
            module = f"body.{int(stage[-1]) - 1}.{part}"
        else:
            module = outside[module]
        if (module, leaf) not in (("output_layer.4", "weight"), ("output_layer.4", "bias")):
            out[f"{module}.{leaf}"] = value
    return out


@pytest.mark.parametrize("prefix", ["model.", "net.", "model.net.", ""])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_adafaces_names_are_an_iresnet(tmp_path, prefix, channels):
    """Each array is under insightface's name; the constants are there; BGR is reversed in the first convolution."""
    arrays = weights()
    named = {prefix + key: value for key, value in adaface(arrays).items()}
    if prefix == "model.":
        named["head.kernel"] = np.ones((6, 9), np.float32)  # AdaFace's class centres
    ckpt = convert_iresnet(write_torch(tmp_path / "adaface.ckpt", named), tmp_path / "out", channels)
    assert json.loads((tmp_path / "out/config.json").read_text()) == IRESNET
    assert ("head.kernel" in ckpt.ignored) == (prefix == "model.")
    written = load_file(tmp_path / "out/model.safetensors")
    constants = {key for key in arrays if "layer1.0.downsample" in key or key in ("features.weight", "features.bias")}
    for key in set(arrays) - constants - {"conv1.weight"}:
        np.testing.assert_array_equal(written[key], arrays[key], err_msg=key)
    first = arrays["conv1.weight"]
    np.testing.assert_array_equal(written["conv1.weight"], first if channels == "rgb" else first[:, ::-1])
    np.testing.assert_array_equal(written["layer1.0.downsample.0.weight"][..., 0, 0], np.eye(4))
    bn = {leaf: written[f"layer1.0.downsample.1.{leaf}"] for leaf in ("weight", "bias", "running_mean", "running_var")}
    x = np.random.default_rng(1).standard_normal((9, 4)).astype(np.float32)
    same = (x - bn["running_mean"]) / np.sqrt(bn["running_var"] + np.float32(1e-5)) * bn["weight"] + bn["bias"]
    np.testing.assert_allclose(same, x, rtol=3e-7)
    assert (written["features.weight"] == 1).all()
    assert (written["features.bias"] == 0).all()


OTHERS = {
    "no channels": (lambda t: t, "which do not say the order of colours; add --channels=bgr for AdaFace's own"),
    "squeeze": (lambda t: t | {"body.0.res_layer.se_block.fc1.weight": np.ones(3)}, "squeeze and excitation, or bott"),
    "bottleneck": (lambda t: t | {"body.0.res_layer.7.weight": np.ones(3)}, "squeeze and excitation, or bottlenecks"),
    "face.evoLVe": (
        lambda t: {k: v for k, v in t.items() if ".res_layer.5." not in k},
        r"body\.0 is not batch norm, .* \(face\.evoLVe's have one batch norm less\)",
    ),
    "extra": (lambda t: t | {"output_layer.9.weight": np.ones(3)}, r"output_layer\.9\.weight is no part of AdaFace's"),
    "missing": (
        lambda t: {k: v for k, v in t.items() if k != "body.1.res_layer.0.bias"},
        r"1 missing \(layer2\.0\.bn1",
    ),
    "vit": (lambda t: {"patch_embed.proj.weight": np.ones(3)}, "such as 'patch_embed.proj.weight', are neither insigh"),
    "nothing": (lambda t: {"conv1.weight": np.ones((4, 3, 3, 3))}, "such as 'conv1.weight', are neither"),
}


@pytest.mark.parametrize("case", OTHERS)
def test_other_networks_are_refused_by_name(tmp_path, case):
    change, message = OTHERS[case]
    file = tmp_path / "model.safetensors"
    save_file({key: np.asarray(x, np.float32) for key, x in change(adaface(weights())).items()}, file)
    with pytest.raises(ValueError, match=message) as error:
        convert_iresnet(file, tmp_path / "out", None if case == "no channels" else "rgb")
    assert str(error.value).startswith(f"{file}: ")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.safetensors"]


def test_a_wrong_or_missing_tensor_of_insightfaces_is_named(tmp_path):
    arrays = weights()
    del arrays["layer2.0.bn3.bias"]
    file = write_torch(tmp_path / "backbone.pth", arrays)
    with pytest.raises(ValueError, match=r"backbone\.pth: .*1 missing \(layer2\.0\.bn3\.bias\)"):
        convert_iresnet(file, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["backbone.pth"]


def test_which_sources_are_one_file_of_weights(tmp_path):
    file = write_torch(tmp_path / "backbone.pth", weights())
    assert source_file(str(file)) == source_file(str(tmp_path)) == file
    (tmp_path / "other.bin").write_bytes(pickle.dumps({}))
    assert source_file(str(tmp_path / "other.bin")) is None, "a bare pickle is refused elsewhere"
    assert source_file(str(tmp_path)) == file
    (tmp_path / "other").mkdir()
    save_file({"x": np.ones(1)}, tmp_path / "other/model.safetensors")
    assert source_file(str(tmp_path / "other")) is None, "another model, whose config.json is missing"
    save_file({"x": np.ones(1)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"no config\.json and several files of weights; give one, such as .*backbone"):
        source_file(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    assert source_file(str(tmp_path)) is None, "a checkpoint directory"
    assert source_file("owner/name") is None


def test_the_command_converts_a_folder_that_errors_point_to(tmp_path):
    (tmp_path / "src").mkdir()
    file = write_torch(tmp_path / "src/backbone.pth", {"module." + k: v for k, v in adaface(weights()).items()})
    with pytest.raises(ValueError, match=r"config\.json is missing; .*weights_convert --src=.*src --dst=DIR writes it"):
        open_checkpoint(tmp_path / "src")
    with pytest.raises(ValueError, match=r"for an IResNet, python -m weights_convert --src=.*backbone\.pth --dst=DIR"):
        open_checkpoint(file)
    command = [sys.executable, "-m", "weights_convert", f"--src={tmp_path / 'src'}", f"--dst={tmp_path / 'out'}"]
    done = subprocess.run([*command, "--channels=bgr"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "out: iresnet, " in done.stdout
    assert open_checkpoint(tmp_path / "out").model_config["num_features"] == 6
