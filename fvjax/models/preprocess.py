"""Turn uint8 images into network input, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fvjax.models.layers import FLIP, fold_in
from fvjax.typing import Images, Keys, Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def flip(images: Images, keys: Keys) -> Images:
    """Mirror each image [N,H,W,3] left-right with probability 1/2, decided by its own key ([N] typed PRNG keys)."""
    mirrored = jax.vmap(jax.random.bernoulli)(fold_in(keys, FLIP))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def for_resnet(images: Images) -> Pixels:
    """Scale uint8 [N,H,W,3] to float32 in [-1, 1]."""
    return (images.astype(jnp.float32) - 127.5) / 127.5


def for_vit(images: Images, size: int = 448) -> Pixels:
    """Resize uint8 [N,H,W,3] to float32 [N,size,size,3], bilinearly and without antialiasing, and normalise.

    Mean and standard deviation are ImageNet's. As in the reference, whose loader scales to [-1, 1] and whose model
    scales that to [0, 1], resizes (align_corners=False) and normalises.
    """
    x = (for_resnet(images) + 1) / 2
    x = jax.image.resize(x, (x.shape[0], size, size, 3), "bilinear", antialias=False)
    return (x - jnp.array(IMAGENET_MEAN)) / jnp.array(IMAGENET_STD)
