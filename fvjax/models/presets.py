"""Published model sizes by name: attributes of the network classes, as plain dictionaries.

    VisionTransformer(**presets.internvit_300m(), dtype=jnp.bfloat16)
    encoder.build_vlm(presets.internvl2_2b(), remat="dots")

A converted checkpoint has the same attributes in its config.json; presets are for building a network without one.
"""

from __future__ import annotations

from typing import Any


def iresnet50() -> dict[str, Any]:
    """Return the attributes of insightface's IResNet-50 (43.6 million parameters) for ``iresnet.IResNet``."""
    return {"layers": (3, 4, 14, 3), "widths": (64, 128, 256, 512), "num_features": 512}


def internvit_300m() -> dict[str, Any]:
    """Return the attributes of InternViT-300M-448px, the tower of InternVL2-2B, for ``VisionTransformer``."""
    return {"image_size": 448, "patch_size": 14, "width": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096}


def internvit_6b() -> dict[str, Any]:
    """Return the attributes of InternViT-6B-448px-V2_5, the tower of InternVL3-38B, for ``VisionTransformer``.

    Source: OpenGVLab/InternVL (internvl_chat/…/modeling_intern_vit.py) and the published configurations.
    """
    return {
        **{"image_size": 448, "patch_size": 14, "width": 3200, "depth": 45, "heads": 25, "mlp_dim": 12800},
        **{"qkv_bias": False, "norm": "rms", "qk_norm": True},
    }


def internlm2_1_8b() -> dict[str, Any]:
    """Return the attributes of InternLM2-1.8B, the decoder of InternVL2-2B, for ``decoder.Decoder``."""
    return {
        "vocab": 92553,
        "width": 2048,
        "depth": 24,
        "heads": 16,
        "kv_heads": 8,
        "head_dim": 128,
        "mlp_dim": 8192,
        "positions": 32768,
        "rope": "dynamic",
        "rope_theta": 1e6,
        "rope_factor": 2.0,
    }


def internvl2_2b() -> dict[str, Any]:
    """Return the parts of InternVL2-2B (2.2 billion parameters) for ``encoder.build_vlm``."""
    return _internvl(internvit_300m(), internlm2_1_8b(), bos=1)


def _internvl(vision: dict[str, Any], decoder: dict[str, Any], bos: int) -> dict[str, Any]:
    projector = {"width": decoder["width"], "shuffle": 2, "ps_version": "v2"}
    return {"vision": vision, "projector": projector, "decoder": decoder, "bos": bos}


def _qwen2_5(width: int, depth: int, heads: int, kv_heads: int, mlp_dim: int) -> dict[str, Any]:
    """Return the attributes that the Qwen2.5 decoders of InternVL3 share, with one size's own.

    InternVL3 cuts Qwen's vocabulary to the rows in use and adds nine tokens. The dynamic scaling of its positions sets
    in above 32,768 tokens only.
    """
    return {
        **{"vocab": 151674, "width": width, "depth": depth, "mlp_dim": mlp_dim},
        **{"heads": heads, "kv_heads": kv_heads, "head_dim": width // heads},
        **{"qkv_bias": True, "out_bias": False, "mlp_bias": False, "tied": False, "norm_eps": 1e-6},
        **{"positions": 32768, "rope": "dynamic", "rope_theta": 1e6, "rope_factor": 2.0},
    }


def qwen2_5_0_5b() -> dict[str, Any]:
    """Return the attributes of Qwen2.5-0.5B as in InternVL3-1B, for ``decoder.Decoder``."""
    return _qwen2_5(width=896, depth=24, heads=14, kv_heads=2, mlp_dim=4864)


def qwen2_5_1_5b() -> dict[str, Any]:
    """Return the attributes of Qwen2.5-1.5B as in InternVL3-2B, for ``decoder.Decoder``."""
    return _qwen2_5(width=1536, depth=28, heads=12, kv_heads=2, mlp_dim=8960)


def qwen2_5_7b() -> dict[str, Any]:
    """Return the attributes of Qwen2.5-7B as in InternVL3-8B, for ``decoder.Decoder``."""
    return _qwen2_5(width=3584, depth=28, heads=28, kv_heads=4, mlp_dim=18944)


def qwen2_5_14b() -> dict[str, Any]:
    """Return the attributes of Qwen2.5-14B as in InternVL3-14B, for ``decoder.Decoder``."""
    return _qwen2_5(width=5120, depth=48, heads=40, kv_heads=8, mlp_dim=13824)


def qwen2_5_32b() -> dict[str, Any]:
    """Return the attributes of Qwen2.5-32B as in InternVL3-38B, for ``decoder.Decoder``."""
    return _qwen2_5(width=5120, depth=64, heads=40, kv_heads=8, mlp_dim=27648)


def internvl3_1b() -> dict[str, Any]:
    """Return the parts of InternVL3-1B (0.94 billion parameters), the base of FaceLLM-1B, for ``encoder.build_vlm``."""
    return _internvl(internvit_300m(), qwen2_5_0_5b(), bos=151643)


def internvl3_2b() -> dict[str, Any]:
    """Return the parts of InternVL3-2B (2.1 billion parameters) for ``encoder.build_vlm``."""
    return _internvl(internvit_300m(), qwen2_5_1_5b(), bos=151643)


def internvl3_8b() -> dict[str, Any]:
    """Return the parts of InternVL3-8B (7.9 billion parameters), the base of FaceLLM-8B, for ``encoder.build_vlm``."""
    return _internvl(internvit_300m(), qwen2_5_7b(), bos=151643)


def internvl3_14b() -> dict[str, Any]:
    """Return the parts of InternVL3-14B (15.1 billion parameters) for ``encoder.build_vlm``."""
    return _internvl(internvit_300m(), qwen2_5_14b(), bos=151643)


def internvl3_38b() -> dict[str, Any]:
    """Return the parts of InternVL3-38B (38 billion parameters), the base of FaceLLM-38B, for ``encoder.build_vlm``."""
    return _internvl(internvit_6b(), qwen2_5_32b(), bos=151643)


def clip_style() -> dict[str, Any]:
    """Return what the towers of a LLaVA have in common whatever their size, for ``VisionTransformer``.

    They are CLIP's with LanguageBind's exact GELU, up to the last layer but one.
    """
    return {
        **{"layer_scale": False, "pre_norm": True, "patch_bias": False, "norm_eps": 1e-5, "act": "gelu"},
        **{"pixels": "clip", "select_layer": -2},
    }


def languagebind(frames: int = 0) -> dict[str, Any]:
    """Return the attributes of LanguageBind's image tower (ViT-L/14), with ``frames`` of its video tower."""
    sizes = {"image_size": 224, "patch_size": 14, "width": 1024, "depth": 24, "heads": 16, "mlp_dim": 4096}
    return {**sizes, **clip_style(), "frames": frames}


def llama_style() -> dict[str, Any]:
    """Return what LLaMA decoders of LLaVA have in common whatever their size, for ``decoder.Decoder``."""
    return {"rope": "plain", "rope_theta": 1e4, "positions": 4096, "norm_eps": 1e-5}


def vicuna_7b() -> dict[str, Any]:
    """Return the attributes of Vicuna-7B v1.5, the decoder of Video-LLaVA and Face-LLaVA, for ``decoder.Decoder``."""
    return {
        **{"vocab": 32000, "width": 4096, "depth": 32, "heads": 32, "kv_heads": 32, "head_dim": 128},
        **{"mlp_dim": 11008, **llama_style()},
    }


def facellava_7b(variant: str = "paper") -> dict[str, Any]:
    """Return the parts of Face-LLaVA for ``encoder.build_llava``; see ``landmarks.RegionAttention`` for ``variant``."""
    decoder = vicuna_7b()
    return {
        **{"vision": languagebind(), "video": languagebind(frames=8), "decoder": decoder, "bos": 1},
        "projector": {"width": decoder["width"], "shuffle": 1, "norm": False},
        **{"landmarks": {"width": decoder["width"]}, "attention": {"variant": variant}},
    }
