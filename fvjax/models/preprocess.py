"""Turn uint8 images into network input, on the device."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from fvjax.models.layers import FLIP, fold_in
from fvjax.typing import Images, Keys, Pixels

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# mean and standard deviation of the pixels, by who published them
STATISTICS = {
    "imagenet": (IMAGENET_MEAN, IMAGENET_STD),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}


def flip(images: Images, keys: Keys) -> Images:
    """Mirror each image [N,H,W,3] left-right with probability 1/2, decided by its own key ([N] typed PRNG keys)."""
    mirrored = jax.vmap(jax.random.bernoulli)(fold_in(keys, FLIP))
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def for_resnet(images: Images) -> Pixels:
    """Scale uint8 [N,H,W,3] to float32 in [-1, 1]."""
    return (images.astype(jnp.float32) - 127.5) / 127.5


def for_vit(
    images: Images,
    size: int = 448,
    mean: tuple[float, ...] = IMAGENET_MEAN,
    std: tuple[float, ...] = IMAGENET_STD,
) -> Pixels:
    """Resize uint8 [N,H,W,3] to float32 [N,size,size,3], bilinearly and without antialiasing, and normalise.

    As in the reference, whose loader scales to [-1, 1] and whose model scales that to [0, 1], resizes
    (align_corners=False) and normalises.
    """
    x = (for_resnet(images) + 1) / 2
    x = jax.image.resize(x, (x.shape[0], size, size, 3), "bilinear", antialias=False)
    return (x - jnp.array(mean)) / jnp.array(std)
