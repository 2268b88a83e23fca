"""The text features of attributes: their prompts through the text tower of a CLIP checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from fvjax import trees
from fvjax.data import attribute_prompts
from fvjax.data.tokenizers import clip as clip_tokenizer
from fvjax.models import clip
from weights_convert.read import open_checkpoint

TEXT = "params/text/"  # of the tower's parameters


def features(directory: str | Path, names: Sequence[str], prompts_file: str = "") -> np.ndarray:
    """Compute the features of attributes' prompts, float32 [K, d], not normalised.

    Only the weights of the text tower are read, and computed in float32.

    Args:
        directory: of a CLIP checkpoint with its tokenizer, in transformers' layout or converted as kind "clip".
        prompts_file: wordings of one's own, see :func:`fvjax.data.attribute_prompts.prompts`.
    Raises:
        ValueError: an attribute without a prompt, or a checkpoint or tokenizer that is not CLIP's.
    """
    texts = attribute_prompts.prompts(names, prompts_file)
    checkpoint = open_checkpoint(directory, "clip")
    tower = clip.build(checkpoint.model_config).text
    tokenizer = clip_tokenizer.Tokenizer(directory)
    if tokenizer.size > tower.vocab or tower.end not in (None, tokenizer.eos_id):
        vocabularies = f"{tokenizer.size} tokens with end {tokenizer.eos_id}, the tower {tower.vocab} and {tower.end}"
        raise ValueError(f"{directory}: the tokenizer has {vocabularies}; copy all files from one checkpoint")
    ids = tokenizer.rows(texts, tower.positions)
    leaves = {name.removeprefix(TEXT): leaf for name, leaf in checkpoint.params.items() if name.startswith(TEXT)}
    params = trees.unflatten({name: np.asarray(leaf, np.float32) for name, leaf in leaves.items()})
    return np.asarray(jax.jit(tower.apply)({"params": params}, ids))
