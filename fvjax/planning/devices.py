"""Accelerators: what they can do at most, by their makers' datasheets."""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    flops: float  # per second, bfloat16 on tensor cores, dense
    bandwidth: float  # bytes per second
    gib: float  # of memory
    nvlink: float  # bytes per second, one direction


class Machine(NamedTuple):
    device: Device
    per_node: int  # devices
    network: float  # bytes per second that a node can send
    decoding: float  # JPEGs per second and worker process


DEVICES = {
    "h200": Device(989e12, 4.8e12, 139, 450e9),  # NVIDIA H200 Tensor Core GPU datasheet, SXM
    "h100": Device(989e12, 3.35e12, 79, 450e9),  # NVIDIA H100 Tensor Core GPU datasheet, SXM
    "a100-80gb": Device(312e12, 2.039e12, 79, 300e9),  # NVIDIA A100 Tensor Core GPU datasheet, 80GB SXM
    "a100-40gb": Device(312e12, 1.555e12, 39, 300e9),  # the same, 40GB SXM
}
GIB = 2**30


def peak(device: Device, dtype: str) -> float:
    """Return FLOP/s at most: float32 products run as TF32, at half the rate of bfloat16."""
    return device.flops / (2 if dtype == "float32" else 1)


def peak_flops(kind: str, dtype: str) -> float:
    """Return FLOP/s at most of a device of this process, by jax's name for its kind; 0 if it is not known."""
    names = {"h200": "h200", "h100": "h100", "a100": "a100-80gb"}
    device = next((DEVICES[name] for part, name in names.items() if part in kind.lower()), None)
    return peak(device, dtype) if device else 0.0
