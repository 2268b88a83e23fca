"""A tiny random InternVL3 with a tokenizer: 56-pixel tiles of four visual tokens, one layer each, vocabulary 512."""

import json
import shutil
from pathlib import Path
from typing import Any

from safetensors import safe_open

from fvjax.shipped import weights
from tests.reference.recipe import GOLDEN, write_checkpoint

REMOTE = GOLDEN / "internvl3_tiny/remote"
TOKENIZER = Path(weights("fvjax/pretrained/tiny_chat"))
CONTEXT = 511  # <IMG_CONTEXT>
END = 508  # <|im_end|>


def write(folder: Path, *, tokenizer: bool = True, positions: int = 0, **changes: Any) -> Path:
    """Write a checkpoint in the remote-code layout, with InternVL3's key names and the recipe's weights.

    positions: if not 0, the longest sequence, without scaling beyond it. changes: of config.json; None: absent.
    """
    config = json.loads((REMOTE / "config.json").read_text()) | {"force_image_size": 56, "max_dynamic_patch": 2}
    config["vision_config"] |= {"image_size": 56, "num_hidden_layers": 1}
    config["llm_config"] |= {"num_hidden_layers": 1, "vocab_size": 512, "bos_token_id": 506, "eos_token_id": END}
    if positions:
        config["llm_config"] |= {"max_position_embeddings": positions, "rope_scaling": None}
    config = {key: value for key, value in (config | changes).items() if value is not None}
    other = {"position_embedding": (1, 17, 64), "embed_tokens.weight": (512, 64), "lm_head.weight": (512, 64)}
    with safe_open(REMOTE / "model.safetensors", framework="np") as file:
        shapes = {
            key: next((shape for name, shape in other.items() if key.endswith(name)), file.get_slice(key).get_shape())
            for key in file.keys()  # noqa: SIM118
            if ".layers.0." in key or ".layers." not in key
        }
    write_checkpoint(folder, config, shapes)
    if tokenizer:
        for file in TOKENIZER.glob("*.json"):
            shutil.copy(file, folder)
    return folder
