"""Compare the vision transformer with the reference's results, transformers' InternVL tower and a torch twin."""

import json
import os
import resource
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from fvjax import trees
from fvjax.config import base
from fvjax.losses import contrastive
from fvjax.models import lora, preprocess, presets
from fvjax.models.vision_transformer import VisionTransformer, pool
from fvjax.training import optimizer
from tests.parity import close, gradients_close, in_torch_layout, load, run
from tests.reference.recipe import GOLDEN, write_checkpoint
from weights_convert import internvit, open_checkpoint, read_adapters

TINY = GOLDEN / "internvl_tiny"
TORCH_NEEDED = "needs tests/requirements-torch.txt"


@pytest.fixture(scope="module")
def golden():
    return np.load(TINY / "golden.npz")


def test_preprocessing(golden):
    got = preprocess.for_vit(golden["faces"][:1])[:, ::16, ::16].transpose(0, 3, 1, 2)
    np.testing.assert_allclose(got, golden["pixels_448_first"], atol=2e-6)


@pytest.mark.parametrize("remat", ["none", "dots", "full"])
def test_golden_tokens_and_pooling(golden, remat):
    model, params = load(TINY, remat=remat)
    tokens = run(model, {"params": trees.unflatten(params)}, preprocess.for_vit(golden["faces"]))
    # measured 5e-7; a tanh GELU moves these small weights' tokens by 2e-5 only
    close(tokens[:2], golden["vit_tokens"], 3e-6, "vit_tokens")
    close(pool(tokens, "mean"), golden["vit_mean"], 3e-6, "vit_mean")
    close(pool(tokens, "cls"), golden["vit_cls"], 3e-6, "vit_cls")


def test_golden_tokens_rms_and_qk_norm():
    path = GOLDEN / "internvl_tiny_qknorm"
    golden = np.load(path / "golden.npz")
    model, params = load(path)
    tokens = run(model, {"params": trees.unflatten(params)}, preprocess.for_vit(golden["faces"]))
    close(tokens, golden["vit_tokens"], 3e-6, "vit_tokens")


def test_golden_lora_gradients_and_ten_steps(golden):
    model, params = load(TINY)
    adapters, scale = read_adapters(TINY / "adapters.safetensors", TINY)
    adapters = {name: jnp.asarray(leaf) for name, leaf in adapters.items()}

    def loss_fn(adapters):
        variables = {"params": trees.unflatten(params), "lora": trees.unflatten(lora.scaled(adapters, scale))}
        emb = pool(model.apply(variables, preprocess.for_vit(golden["faces"])), "mean")
        return contrastive.loss(emb, jnp.arange(4), 0.07), emb

    settings = base().optimizer  # the reference's: SGD, momentum 0.9, decay 5e-4, clip 5
    chain = optimizer.make(settings, dict.fromkeys(adapters, "all"), lambda _: 1e-3)

    @jax.jit
    def step(adapters, state):
        (loss, emb), grads = jax.value_and_grad(loss_fn, has_aux=True)(adapters)
        updates, state = chain.update(grads, state, adapters)
        return optax.apply_updates(adapters, updates), state, loss, emb, grads

    def check(flat, which, tolerance):
        for name, stack in flat.items():
            module, half = name.removeprefix("blocks/").rsplit("/", 1)
            for i, leaf in enumerate(np.asarray(stack)):
                path = f"vision_model.encoder.layers.{i}.{module.replace('/', '.')}.lora_{half.upper()}.weight"
                close(leaf.T, golden[f"{which}/{path}"], tolerance, f"{which}/{path}")

    state, losses = chain.init(adapters), []
    for i in range(10):
        adapters, state, loss, emb, grads = step(adapters, state)
        losses.append(float(loss))
        if i == 0:
            close(emb, golden["vit_lora_mean"], 1e-5, "vit_lora_mean")
            check(grads, "s1_grad", 1e-4)
    np.testing.assert_allclose(losses, golden["s1_losses"], rtol=1e-5)
    np.testing.assert_allclose(losses[0], golden["s1_loss0"], rtol=1e-5)
    check(adapters, "s1_final", 1e-5)


def test_merged_adapters_give_the_same_embedding(golden):
    model, params = load(TINY)
    adapters, scale = read_adapters(TINY / "adapters.safetensors", TINY)
    merged = lora.merge(params, adapters, scale)
    tokens = run(model, {"params": trees.unflatten(merged)}, preprocess.for_vit(golden["faces"]))
    close(pool(tokens, "mean"), golden["vit_lora_mean"], 1e-5, "merged")


CONFIG = {
    "architectures": ["InternVisionModel"],
    "hidden_size": 24,
    "image_size": 56,
    "patch_size": 14,
    "intermediate_size": 40,
    "num_attention_heads": 3,
    "num_hidden_layers": 2,
    "layer_norm_eps": 1e-2,  # large enough that a wrong value is visible
    "norm_type": "layer_norm",
    "qk_normalization": False,
    "qkv_bias": True,
    "hidden_act": "gelu",
    "drop_path_rate": 0.0,
}
VARIANTS = {"layer": {}, "rms": {"norm_type": "rms_norm", "qk_normalization": True, "qkv_bias": False}}


def twin_and_checkpoint(directory, config):
    """Make a torch twin with the recipe's weights, and a directory with the same weights."""
    torch = pytest.importorskip("torch", reason=TORCH_NEEDED)
    from safetensors.torch import load_file

    from tests.reference.internvit_torch import InternVisionModel

    twin = InternVisionModel(config)
    write_checkpoint(directory, config, {key: tuple(value.shape) for key, value in twin.state_dict().items()})
    twin.load_state_dict(load_file(directory / "model.safetensors"))
    return torch, twin


@pytest.mark.parametrize("size", [56, 84, 42], ids=["own grid", "larger grid", "smaller grid"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_twin_every_gradient(tmp_path, variant, size):
    """On another grid, position embeddings are interpolated, and gradients flow through the interpolation."""
    torch, twin = twin_and_checkpoint(tmp_path / "twin", CONFIG | VARIANTS[variant])
    x = np.random.default_rng(0).standard_normal((3, size, size + 14, 3)).astype(np.float32)
    weights = np.random.default_rng(1).standard_normal(24).astype(np.float32)
    expected = twin(torch.as_tensor(x).permute(0, 3, 1, 2))
    (expected.tanh() @ torch.as_tensor(weights)).sum().backward()
    model, params = load(tmp_path / "twin")

    def loss_fn(params):
        tokens = model.apply({"params": trees.unflatten(params)}, x)
        return (jnp.tanh(tokens) @ weights).sum(), tokens

    grads, tokens = jax.jit(jax.grad(loss_fn, has_aux=True))(params)
    close(tokens, expected.detach(), 1e-5, "tokens")
    got = in_torch_layout(open_checkpoint(tmp_path / "twin"), grads)
    gradients_close(got, {key: value.grad.numpy() for key, value in twin.named_parameters()}, 1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_transformers_own_internvl_tower(tmp_path, variant):
    torch = pytest.importorskip("torch", reason=TORCH_NEEDED)
    from transformers.models.internvl import InternVLVisionConfig
    from transformers.models.internvl.modeling_internvl import InternVLVisionModel

    config = CONFIG | VARIANTS[variant] | {"layer_norm_eps": 1e-6}  # the eps of its q and k norms is fixed
    torch.manual_seed(0)
    theirs = InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=config["hidden_size"],
            image_size=[config["image_size"]] * 2,
            patch_size=[config["patch_size"]] * 2,
            intermediate_size=config["intermediate_size"],
            num_attention_heads=config["num_attention_heads"],
            num_hidden_layers=config["num_hidden_layers"],
            layer_norm_eps=config["layer_norm_eps"],
            norm_type=config["norm_type"],
            use_qk_norm=config["qk_normalization"],
            attention_bias=config["qkv_bias"],
            use_mean_pooling=True,  # as in InternVL: no norm after the last layer
        )
    ).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():  # its initial biases and norms are 0 and 1, which would hide mistakes
            parameter.add_(0.05 * torch.randn_like(parameter))
    _, twin = twin_and_checkpoint(tmp_path / "twin", config)
    state, renamed = theirs.state_dict(), {}
    for key in twin.state_dict():
        new = key.replace("class_embedding", "cls_token").replace("position_embedding", "position_embeddings")
        new = new.replace("patch_embedding.", "patch_embeddings.projection.").replace("encoder.layers", "encoder.layer")
        new = new.replace("norm1", "layernorm_before").replace("norm2", "layernorm_after")
        new = new.replace("ls1", "lambda_1").replace("ls2", "lambda_2").replace("attn.proj", "attn.projection_layer")
        new = new.replace("attn", "attention")
        parts = [new] if "qkv" not in new else [new.replace("qkv", f"{x}_proj") for x in "qkv"]
        renamed[key] = torch.cat([state.pop(part) for part in parts]).numpy()
    assert not state
    from safetensors.numpy import save_file

    save_file(renamed, tmp_path / "twin/model.safetensors")
    x = np.random.default_rng(0).standard_normal((2, 56, 56, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.as_tensor(x).permute(0, 3, 1, 2)).last_hidden_state
    model, params = load(tmp_path / "twin")
    close(run(model, {"params": trees.unflatten(params)}, x), expected, 1e-5, "tokens")


def test_peft_reads_our_adapters(tmp_path):
    """peft opens the file of write_adapters and computes the same outputs as fvjax."""
    pytest.importorskip("torch", reason=TORCH_NEEDED)
    peft = pytest.importorskip("peft", reason=TORCH_NEEDED)
    from weights_convert import write_adapters

    torch, twin = twin_and_checkpoint(tmp_path / "twin", CONFIG)
    model, params = load(tmp_path / "twin")
    adapters = lora.init(params, ("blocks/mlp/fc[12]", "blocks/attn/qkv"), 4, 6, jax.random.key(0))
    adapters = {n: leaf + 0.1 * jax.random.normal(jax.random.key(1), leaf.shape) for n, leaf in adapters.items()}
    write_adapters(tmp_path / "adapters", adapters, 6, tmp_path / "twin")
    x = np.random.default_rng(0).standard_normal((2, 56, 56, 3)).astype(np.float32)
    with torch.no_grad():
        plain = twin(torch.as_tensor(x).permute(0, 3, 1, 2))
        expected = peft.PeftModel.from_pretrained(twin, tmp_path / "adapters")(torch.as_tensor(x).permute(0, 3, 1, 2))
    assert (expected - plain).abs().max() > 0.1
    variables = {"params": trees.unflatten(params), "lora": trees.unflatten(lora.scaled(adapters, 6 / 4))}
    close(run(model, variables, x), expected, 1e-5, "tokens with adapters")


@pytest.mark.slow
def test_golden_internvl2_2b_full_size(tmp_path):
    """Run 304M parameters by the recipe, rounded to float16, in float32."""
    golden = np.load(GOLDEN / "internvl2_2b/golden.npz")
    shapes = json.loads((GOLDEN / "internvl2_2b/state_dict_shapes.json").read_text())
    shapes = {key: shape for key, shape in shapes.items() if key.startswith("vision_model.")}
    config = json.loads((GOLDEN / "internvl2_2b/config.json").read_text())
    write_checkpoint(tmp_path / "vit", config, shapes, dtype=np.float16)
    start = time.time()
    model, params = load(tmp_path / "vit")
    assert params["blocks/mlp/fc1/kernel"].dtype == jnp.float16
    tokens = jax.jit(lambda p, faces: model.apply({"params": trees.unflatten(p)}, preprocess.for_vit(faces)))
    got = pool(tokens(params, golden["faces"]), "mean")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"max error {np.abs(got - golden['vit_mean']).max():.1e} of {np.abs(golden['vit_mean']).max():.2f}")
    print(f"{time.time() - start:.0f} s on {os.cpu_count()} cores, peak {peak:.1f} GiB")
    close(got, golden["vit_mean"], 1e-4, "vit_mean")


def test_parameter_counts():
    shapes = jax.eval_shape(
        lambda: VisionTransformer(**presets.internvit_300m()).init(jax.random.key(0), jnp.zeros((1, 448, 448, 3)))
    )
    params = trees.flatten(shapes["params"])
    assert sum(leaf.size for leaf in params.values()) == 304_012_288
    adapters = jax.eval_shape(lambda key: lora.init(params, ("blocks/mlp/fc[12]",), 8, 48, key), jax.random.key(0))
    assert sum(leaf.size for leaf in adapters.values()) == 1_966_080


def test_the_preset_is_internvl2_2bs_tower():
    """The golden set has the vision part of the published config.json."""
    file = GOLDEN / "internvl2_2b/config.json"
    attributes = internvit.model_config(json.loads(file.read_text()), str(file))
    tower = VisionTransformer(**presets.internvit_300m())
    assert {key: getattr(tower, key) for key in attributes} == attributes
