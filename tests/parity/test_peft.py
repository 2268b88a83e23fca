"""Compare adapters with those of peft, on a torch InternVL2 with the original's module names."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from fvjax import trees
from fvjax.models import lora, preprocess
from tests.parity import close, load, run
from tests.reference.recipe import GOLDEN
from weights_convert import open_checkpoint, read_adapters, write_adapters
from weights_convert.adapter_config import read_adapter_config

torch = pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")
peft = pytest.importorskip("peft", reason="needs tests/requirements-torch.txt")
TINY = GOLDEN / "internvl_tiny"


@pytest.fixture(scope="module", autouse=True)
def full_precision():
    with jax.default_matmul_precision("highest"), torch.no_grad():
        yield


@pytest.fixture(scope="module")
def golden():
    return dict(np.load(TINY / "golden.npz"))


@pytest.fixture
def twin():
    from tests.reference.internvl_torch import InternVL2

    model = InternVL2(json.loads((TINY / "config.json").read_text()))
    model.load_state_dict({k: torch.as_tensor(v) for k, v in load_file(TINY / "model.safetensors").items()})
    return model.eval()


def theirs(model, golden):
    """Return (visual_mean of the first two faces, logits of the first pair) of the torch model."""
    pixels = torch.as_tensor(np.array(preprocess.for_vit(golden["faces"]))).permute(0, 3, 1, 2)
    logits = model.pair(pixels[:1], pixels[4:5], golden["pair_prompt_ids"])
    return model.visual_mean(pixels[:2]).numpy(), logits.numpy()


def ours(adapters, scale, golden):
    model, params = load(TINY, "vlm")
    flat = {name: jnp.asarray(leaf) for name, leaf in adapters.items()}
    variables = {"params": trees.unflatten(params), "lora": trees.unflatten(lora.scaled(flat, scale))}
    pixels, text = preprocess.for_vit(golden["faces"]), tuple(golden["pair_prompt_ids"].tolist())
    embeddings = run(model, variables, pixels[:2], text=(), pool="visual_mean", method="embed")
    return embeddings, run(model, variables, pixels[:1], pixels[4:5], text=text, method="pair")


def test_the_whole_model_in_peft(twin, golden, tmp_path):
    """Adapters on fc1, fc2, w1, w2 and w3 of every layer agree with peft and with the reference's own figures."""
    plain = theirs(twin, golden)
    close(plain[0], golden["mllm_visual_mean"][:2], 1e-5, "the twin, embeddings")
    close(plain[1], golden["pair_logits"][:1], 1e-5, "the twin, logits")
    adapters, scale = read_adapters(TINY / "adapters.safetensors", TINY, "vlm")
    write_adapters(tmp_path / "out", adapters, 8 * scale, TINY, "vlm")
    wrapped = peft.PeftModel.from_pretrained(twin, tmp_path / "out")
    assert len([n for n, _ in wrapped.named_modules() if n.endswith("lora_A.default")]) == 15
    got = theirs(wrapped.base_model.model, golden)
    close(got[0], golden["mllm_lora_visual_mean"][:2], 1e-5, "peft, embeddings")
    close(got[1], golden["pair_lora_logits"][:1], 1e-5, "peft, logits")
    for mine, other, what in zip(ours(adapters, scale, golden), got, ("embeddings", "logits")):
        close(mine, other, 1e-5, what)


@pytest.mark.parametrize("parts", ["qkv", "qv"])
def test_heads_of_their_own_in_one_matrix(twin, golden, tmp_path, recwarn, parts):
    """Adapters with an A matrix each for q, k and v, beside ones of the usual rank, work in peft and are read back."""
    _, params = load(TINY, "vlm")
    targets = (f"decoder/blocks/attn/[{parts}o]", "decoder/blocks/mlp/up")
    adapters = lora.init(params, targets, 2, 3 * (len(parts) + 2), jax.random.key(0))
    adapters = {n: np.asarray(x + 0.2 * jax.random.normal(jax.random.key(1), x.shape)) for n, x in adapters.items()}
    plain = theirs(twin, golden)
    write_adapters(tmp_path / "out", adapters, 3, TINY, "vlm")
    written = load_file(tmp_path / "out/adapter_model.safetensors")
    fused = "base_model.model.language_model.model.layers.1.attention.wqkv.lora_"
    assert written[f"{fused}A.weight"].shape == (2 * len(parts), 64)
    assert (written[f"{fused}B.weight"] != 0).sum(1).max() == 2, "a row is of one part"
    wrapped = peft.PeftModel.from_pretrained(twin, tmp_path / "out")
    got = theirs(wrapped.base_model.model, golden)
    wrapped.save_pretrained(tmp_path / "again")
    assert np.abs(got[1] - plain[1]).max() > 0.1
    for folder in ("out", "again"):
        back, scale = read_adapters(tmp_path / folder / "adapter_model.safetensors", TINY, "vlm")
        assert scale == 1.5
        assert back["decoder/blocks/attn/q/a"].shape[-1] == 2 * len(parts)
        for part in "qkv":
            one = f"decoder/blocks/attn/{part}"
            expected = adapters[f"{one}/a"] @ adapters[f"{one}/b"] if part in parts else 0
            np.testing.assert_allclose(back[f"{one}/a"] @ back[f"{one}/b"] - expected, 0, atol=1e-6)
        np.testing.assert_array_equal(back["decoder/blocks/mlp/up/a"], adapters["decoder/blocks/mlp/up/a"])
        for mine, other, what in zip(ours(back, scale, golden), got, ("embeddings", "logits")):
            close(mine, other, 1e-5, what)
    for mine, other, what in zip(ours(adapters, 1.5, golden), got, ("embeddings", "logits")):
        close(mine, other, 1e-5, what)
    write_adapters(tmp_path / "twice", back, 3, TINY, "vlm")
    twice = load_file(tmp_path / "twice/adapter_model.safetensors")
    assert {k: v.tobytes() for k, v in twice.items()} == {k: v.tobytes() for k, v in written.items()}
    assert not [w for w in recwarn if "adapter" in str(w.message).lower()], "peft complains of our files"


def wrapped(twin, seed=0, **options):
    """Wrap the torch model in PEFT with adapters of random numbers."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(twin, peft.LoraConfig(**options))
    for name, value in model.named_parameters():
        if ".lora_" in name:
            value.copy_(0.1 * torch.randn_like(value))
    return model


FC = r".*vision_model\.encoder\.layers\.\d+\.mlp\.fc[12]"
KINDS = {
    "rsLoRA": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": FC},
    "rank and alpha patterns": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["fc1", "fc2"],
        "rank_pattern": {"fc2": 2, r"^vision_model.encoder.layers.1.mlp.fc1": 6},
        "alpha_pattern": {r".*layers\.2\..*": 3},
    },
    "rsLoRA with patterns": {
        **{"r": 4, "lora_alpha": 8, "use_rslora": True, "target_modules": ["fc1", "wo"]},
        **{"rank_pattern": {"fc1": 9}, "alpha_pattern": {"wo": 5}},
    },
    "some layers": {"r": 3, "lora_alpha": 5, "target_modules": ["fc1", "w3"], "layers_to_transform": [0, 2]},
    "some layers by pattern": {
        **{"r": 3, "target_modules": ["fc1"], "layers_to_transform": [1], "layers_pattern": ["encoder.layers"]},
    },
    "excluded": {"r": 3, "target_modules": ["fc1", "fc2", "w1"], "exclude_modules": r".*layers\.1\.mlp\.fc2"},
    "gaussian": {"r": 2, "target_modules": ["w2"], "init_lora_weights": "gaussian", "lora_dropout": 0.1},
    "orthogonal": {"r": 2, "target_modules": ["w2"], "init_lora_weights": "orthogonal"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_lora_that_peft_writes_is_the_same_change_of_weights(twin, tmp_path, kind):
    """The weights that PEFT adds to each module, zero where it has no adapter, are what we read."""
    model = wrapped(twin, **KINDS[kind])
    model.save_pretrained(tmp_path / "out")
    adapters, scale = read_adapters(tmp_path / "out", TINY, "vlm")
    theirs = {
        name: module.get_delta_weight("default").numpy()
        for name, module in model.base_model.model.named_modules()
        if hasattr(module, "get_delta_weight")
    }
    found = 0
    for name, source in open_checkpoint(TINY, "vlm").sources.items():
        if (module := name.removeprefix("params/").removesuffix("/kernel")) + "/a" not in adapters:
            continue
        added = scale * adapters[f"{module}/a"] @ adapters[f"{module}/b"]
        for key, layer in zip(source.keys, added if source.stacked else [added]):
            delta = theirs.get(key.removesuffix(".weight"))
            expected = np.zeros_like(layer) if delta is None else delta.T
            np.testing.assert_allclose(layer, expected, rtol=1e-5, atol=1e-7, err_msg=key)
            found += delta is not None
    assert found == len(theirs) > 0


VARIANTS = {
    "use_dora": {"use_dora": True},
    "init_lora_weights": {"init_lora_weights": "pissa"},
    "init_lora_weights='olora'": {"init_lora_weights": "olora"},
    "init_lora_weights='pissa_niter_2'": {"init_lora_weights": "pissa_niter_2"},
    "lora_bias": {"lora_bias": True},
    "bias": {"bias": "lora_only"},
    "layer_replication": {"layer_replication": [(0, 2), (1, 3)]},
    "alora_invocation_tokens": {"alora_invocation_tokens": [3, 4]},
}


@pytest.mark.parametrize("key", VARIANTS)
def test_variants_that_peft_writes_are_refused_by_name(twin, tmp_path, key):
    config = peft.LoraConfig(r=2, target_modules=FC, **VARIANTS[key])
    if key in ("layer_replication", "alora_invocation_tokens"):  # this model has not what those need
        wrapped(twin, r=2, target_modules=FC).save_pretrained(tmp_path / "out")
        config.save_pretrained(tmp_path / "out")
    else:
        peft.get_peft_model(twin, config).save_pretrained(tmp_path / "out")
    with pytest.raises(ValueError, match=r"adapter_(config\.json|model\.safetensors)") as error:
        read_adapters(tmp_path / "out", TINY, "vlm")
    assert key.split("=")[0] in str(error.value)


@pytest.mark.parametrize("other", ["LoHaConfig", "LoKrConfig", "VeraConfig", "IA3Config"])
def test_other_peft_types_are_refused_by_name(tmp_path, other):
    config = getattr(peft, other)(target_modules=FC)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"adapter_config\.json"):
        read_adapter_config(tmp_path / "adapter_config.json")


def test_exported_adapters_open_in_autopeftmodel(tmp_path):
    """The class comes from adapter_config.json: an -hf InternVL by AutoPeftModel, a decoder by its task type."""
    hf = GOLDEN / "internvl3_tiny/hf"
    adapters, scale = read_adapters(GOLDEN / "internvl3_tiny/adapters_hf", hf, "vlm")
    write_adapters(tmp_path / "vlm", adapters, 16 * scale, hf, "vlm")
    model = peft.AutoPeftModel.from_pretrained(tmp_path / "vlm")
    assert type(model.base_model.model).__name__ == "InternVLForConditionalGeneration"
    name = "model.language_model.layers.2.mlp.up_proj"
    got = model.base_model.model.get_submodule(name).get_delta_weight("default").numpy()
    module = "decoder/blocks/mlp/up"
    np.testing.assert_allclose(
        got.T, scale * adapters[f"{module}/a"][2] @ adapters[f"{module}/b"][2], rtol=1e-5, atol=1e-7
    )

    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    base = transformers.LlamaForCausalLM(transformers.LlamaConfig(vocab_size=32, **sizes))
    base.save_pretrained(tmp_path / "llama")
    rng = np.random.default_rng(0)
    shapes = {"a": (2, 16, 3), "b": (2, 3, 24)}
    adapters = {f"blocks/mlp/up/{half}": rng.standard_normal(shape, np.float32) for half, shape in shapes.items()}
    write_adapters(tmp_path / "decoder", adapters, 6, tmp_path / "llama", "decoder")
    model = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "decoder")
    got = model.base_model.model.model.layers[1].mlp.up_proj.get_delta_weight("default").numpy()
    np.testing.assert_allclose(got.T, 2 * adapters["blocks/mlp/up/a"][1] @ adapters["blocks/mlp/up/b"][1], rtol=1e-5)
