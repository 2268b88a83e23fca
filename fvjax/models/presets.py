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
    decoder = internlm2_1_8b()
    projector = {"width": decoder["width"], "shuffle": 2, "ps_version": "v2"}
    return {"vision": internvit_300m(), "projector": projector, "decoder": decoder, "bos": 1}
