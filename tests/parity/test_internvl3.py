"""Compare InternVL3 in both layouts with the PyTorch reference, and open with transformers and peft what is written."""

import json

import jax
import numpy as np
import pytest

from fvjax import trees
from tests.parity import close, load, run
from tests.reference.recipe import GOLDEN
from weights_convert import open_checkpoint, read_adapters, write_adapters
from weights_convert.read import hashes
from weights_convert.write import invert

TINY = GOLDEN / "internvl3_tiny"


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(TINY / "golden.npz"))


@pytest.mark.parametrize("layout", ["remote", "hf"])
def test_visual_tokens(golden, layout):
    model, params = load(TINY / layout, "vlm")
    variables = {"params": trees.unflatten(params)}
    assert model.image_tokens == 16
    with jax.default_matmul_precision("highest"):
        pixels = model.preprocess(golden["tiles"])
        tokens = run(model.vision, {"params": variables["params"]["vision"]}, pixels[:1])
        close(tokens, golden["vit_tokens_first"], 1e-5, "vit_tokens_first")
        close(run(model, variables, pixels, method="visual"), golden["visual_embeds"], 1e-5, "visual_embeds")


# what is written, opened with transformers and peft


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")
    module = pytest.importorskip("transformers", reason="needs tests/requirements-torch.txt")
    module.utils.logging.disable_progress_bar()
    return module


def opened(transformers, directory):
    """Open a directory as its class says; every key must be used and none may be missing."""
    model, report = transformers.AutoModelForImageTextToText.from_pretrained(directory, output_loading_info=True)
    assert type(model).__name__ == "InternVLForConditionalGeneration"
    assert not any(report.values()), report
    return model.eval()


def logits(model, golden) -> np.ndarray:
    """Return the logits of the three rows with tiles, whose ids stand one after the other in a padded batch."""
    import torch

    tiles = torch.as_tensor(golden["tiles"]).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    ids, mask = (torch.as_tensor(golden[f"batch_{name}"]).long() for name in ("ids", "mask"))
    with torch.no_grad():
        return model(input_ids=ids, attention_mask=mask, pixel_values=(tiles - mean) / std).logits.numpy()


def agree(got, golden, name: str) -> None:
    """Compare logits of all tokens but padding; the golden ones come from float32 sums in another order."""
    real = golden["batch_mask"].astype(bool)
    np.testing.assert_allclose(got[real], golden[name][real], rtol=1e-5, atol=5e-5)


def test_transformers_opens_an_original_in_the_hf_layout(transformers, golden, tmp_path):
    invert(TINY / "remote", tmp_path / "hf", layout="hf")
    model = opened(transformers, tmp_path / "hf")
    agree(logits(model, golden), golden, "batch_logits")
    assert model.generation_config.eos_token_id == 371
    # what transformers saves is read again, with its own spelling of config.json
    model.save_pretrained(tmp_path / "saved")
    saved, ours = (open_checkpoint(path, "vlm") for path in (tmp_path / "saved", TINY / "remote"))
    assert saved.model_config == ours.model_config
    assert hashes(saved) == hashes(ours)


@pytest.mark.parametrize("base", ["remote", "hf"])
def test_peft_opens_adapters_for_the_hf_layout(transformers, golden, tmp_path, recwarn, base):
    peft = pytest.importorskip("peft", reason="needs tests/requirements-torch.txt")
    adapters, scale = read_adapters(TINY / "adapters_remote/adapter_model.safetensors", TINY / base, "vlm")
    write_adapters(tmp_path / "adapters", adapters, 16 * scale, TINY / base, "vlm", "hf")
    model = peft.PeftModel.from_pretrained(opened(transformers, TINY / "hf"), tmp_path / "adapters")
    assert type(model).__name__ == "PeftModel", "it sees, so it is no task of peft's"
    assert len([n for n, _ in model.named_modules() if n.endswith("lora_A.default")]) == 21
    agree(logits(model, golden), golden, "batch_logits_lora")
    assert not [w for w in recwarn if "adapter" in str(w.message).lower()], "peft complains of our files"
    # and what peft saves is read again
    model.save_pretrained(tmp_path / "again")
    back, _ = read_adapters(tmp_path / "again/adapter_model.safetensors", TINY / base, "vlm")
    assert {n: x.tobytes() for n, x in back.items()} == {n: x.tobytes() for n, x in adapters.items()}


def test_peft_opens_adapters_of_the_hf_tower(transformers, golden, tmp_path):
    """Adapters of our qkv, as three of q, k and v, change transformers' visual tokens as they change ours."""
    peft = pytest.importorskip("peft", reason="needs tests/requirements-torch.txt")
    import torch

    from fvjax.models import lora

    rng = np.random.default_rng(0)
    shapes = {"a": (2, 64, 4), "b": (2, 4, 192)}
    adapters = {f"vision/blocks/attn/qkv/{h}": rng.normal(0, 0.1, s).astype(np.float32) for h, s in shapes.items()}
    write_adapters(tmp_path / "adapters", adapters, 4, TINY / "remote", "vlm", "hf")
    net = opened(transformers, TINY / "hf")
    model, params = load(TINY / "remote", "vlm")
    variables = {"params": trees.unflatten(params), "lora": trees.unflatten(lora.scaled(adapters, 1.0))}
    with jax.default_matmul_precision("highest"):
        pixels = model.preprocess(golden["tiles"][:1])
        ours = run(model, variables, pixels, method="visual")
    wrapped = peft.PeftModel.from_pretrained(net, tmp_path / "adapters")
    given = torch.as_tensor(np.array(pixels)).permute(0, 3, 1, 2)
    with torch.no_grad():
        theirs = wrapped.base_model.model.model.get_image_features(given).pooler_output.numpy()
    close(ours, theirs, 1e-5, "visual tokens with adapters")
    assert np.abs(theirs - golden["visual_embeds"][:1]).max() > 1e-2


@pytest.mark.parametrize("tied", [False, True])
def test_random_models_have_transformers_logits(transformers, tmp_path, tied):
    """A model as transformers makes it: several tiles, text alone, padding, grouped heads, the head tied or not."""
    import torch

    import fvjax

    torch.manual_seed(3)
    source = json.loads((TINY / "hf/config.json").read_text())
    source["text_config"] |= {"num_hidden_layers": 2, "tie_word_embeddings": tied, "rope_scaling": None}
    source["tie_word_embeddings"] = tied
    config = transformers.AutoConfig.for_model(**{k: v for k, v in source.items() if k != "architectures"})
    net = transformers.AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, weight in net.named_parameters():  # initial norms and biases of 1 and 0 would hide mistakes
            weight.copy_(torch.randn_like(weight) * (0.2 if weight.ndim > 1 else 0.1) + ("norm" in name))
    net.save_pretrained(tmp_path / "net")
    rng = np.random.default_rng(0)
    tiles = rng.integers(0, 256, (3, 112, 112, 3), dtype=np.uint8)
    pictures = [2, 1, 0]  # tiles of each row
    ids = [[5, 6, *[393] * 16 * n, *rng.integers(0, 369, 4 + 7 * n).tolist()] for n in pictures]
    media = [[{"tiles": tiles[:2]}], [{"tiles": tiles[2:]}], []]
    length = max(map(len, ids))
    padded = torch.tensor([row + [369] * (length - len(row)) for row in ids])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in ids])
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = (torch.as_tensor(tiles).permute(0, 3, 1, 2).float() / 255 - mean) / std
    with torch.no_grad():
        theirs = net(input_ids=padded, attention_mask=mask, pixel_values=pixels).logits.numpy()
    with jax.default_matmul_precision("highest"):
        ours = fvjax.load(tmp_path / "net", scenario="chat").forward(ids, media)
    for row, (got, expected) in enumerate(zip(ours, theirs)):
        close(got, expected[: len(got)], 1e-5, f"row {row}")
