"""Run the same training steps in PyTorch, in two versions. The networks are in tests/reference.

    seed   as LLM-FaceVerification's code runs: eager mode, gradient checkpointing in every layer, attention as matrix
           products, adapters on `x.float()`, the head's logits at every position, base in float16 under bfloat16
           autocast
    best   with the usual optimisations of PyTorch: scaled_dot_product_attention, channels_last, torch.compile (of each
           layer, which share their code; of an IResNet as a whole), no checkpointing, no unused logits, base in
           bfloat16 under autocast

With precision float32 (on a CPU) both have everything in float32, without autocast. ResNet's parameters are always
float32.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import cases
from tests.reference import internvit_torch, internvl_torch, iresnet_torch


class SeedAdapted(internvl_torch.Adapted):
    """An adapted layer that computes its adapter in float32, as in the reference's code."""

    def forward(self, x):
        return self.inner(x) + (x.float() @ self.a.T) @ self.b.T


def network(case: str) -> torch.nn.Module:
    """Return the network of a case, without the checkpoint's weights."""
    if case in cases.IRESNET:
        return iresnet_torch.IResNet(*cases.IRESNET[case])
    config = cases.config_json(case)
    return internvit_torch.InternVisionModel(config) if case == "internvit" else internvl_torch.InternVL2(config)


def layers(net: torch.nn.Module) -> list[Any]:
    """Return the transformer layers of a network."""
    return [m for m in net.modules() if isinstance(m, internvit_torch.Layer | internvl_torch.Layer)]


def loss_of(case: str, net: Any, batch: torch.Tensor, labels: torch.Tensor, seed: bool) -> torch.Tensor:
    """Return the loss of a batch of images.

    Args:
        labels: the token ids of the right answers, for pair_….
        seed: compute the logits of all positions.
    """
    if case in cases.IRESNET:
        return iresnet_torch.nt_xent(net(iresnet_torch.pixels(batch)).float())
    x = internvit_torch.pixels(batch, 448)
    if case == "internvit":
        return iresnet_torch.nt_xent(net(x)[:, 1:].mean(1).float())
    text = cases.QUESTION if case.startswith("pair") else ()
    visual = net.visual(x)
    if text:
        visual = torch.cat([visual[::2], visual[1::2]], 1)
    states = net.states(visual, text)
    logits = net.language_model.output(states if seed else states[:, -1:]).float() if text or seed else None
    if logits is not None and text:
        return cross_entropy(logits[:, -1], labels)
    return iresnet_torch.nt_xent(states[:, 1:].mean(1).float())


def made(
    case: str, batch: int, weights: Path | None, what: str, device: str, half: bool
) -> tuple[list[torch.nn.Parameter], Callable[[], torch.Tensor]]:
    """Return the trained parameters and a function that computes the loss.

    Args:
        weights: the checkpoint's folder. None puts the network on the meta device, where it can be counted.
    """
    torch.set_float32_matmul_precision("high" if half else "highest")
    seed, resnet = what == "seed", case in cases.IRESNET
    internvit_torch.Attention.fused = not seed
    with torch.device("meta" if weights is None else "cpu"):
        net: Any = network(case)
        if weights is not None:
            net.load_state_dict(load_file(weights / "model.safetensors"))
        net = net.to(device)
        if half and not resnet:
            net = net.to(torch.float16 if seed else torch.bfloat16)
        if resnet:
            net.features.weight.requires_grad_(False)
            if not seed:
                net = net.to(memory_format=torch.channels_last)
        else:
            kind = SeedAdapted if seed else internvl_torch.Adapted
            internvl_torch.adapt(net, r".*\.mlp\.fc[12]|.*\.feed_forward\.w[123]", kind=kind)
    net.to(device)
    compiled = not seed and weights is not None
    for layer in layers(net):
        if seed:
            layer.forward = lambda *given, run=layer.forward: checkpoint(run, *given, use_reentrant=False)
        elif compiled:
            layer.compile()
    if resnet and compiled:
        net.compile()
    images = torch.as_tensor(cases.faces(batch)).to(device)
    right = torch.tensor(cases.YES_NO)[1 - cases.answers(batch)].to(device)

    def loss() -> torch.Tensor:
        with torch.autocast("cpu" if device == "meta" else device, torch.bfloat16, enabled=half):
            return loss_of(case, net, images, right, seed)

    return [p for p in net.parameters() if p.requires_grad], loss


def steps(trained: list[torch.nn.Parameter], loss: Callable[[], torch.Tensor]) -> Iterator[dict[str, float]]:
    """Run training steps and yield the loss and gradient norm of each."""
    optimizer = torch.optim.SGD(trained, cases.RATE, cases.MOMENTUM, weight_decay=cases.DECAY)
    while True:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, cases.CLIP)
        optimizer.step()
        yield {"loss": value.item(), "grad_norm": norm.item()}


def count(case: str, batch: int, what: str) -> int:
    """Return the FLOPs of a step (matrix products and convolutions), counted on shapes alone."""
    with FlopCounterMode(display=False) as counter:
        made(case, batch, None, what, "meta", half=False)[1]().backward()
    return counter.get_total_flops()


def write_weights(case: str, path: Path) -> None:
    """Write the reference recipe's weights with the twin's names, for fvjax and the twins."""
    from tests.reference import recipe

    with torch.device("meta"):
        shapes = {key: tuple(value.shape) for key, value in network(case).state_dict().items()}
    recipe.write_checkpoint(path, cases.config_json(case), shapes)
