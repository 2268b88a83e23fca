"""Compare the converted AdaFace with a torch twin of it, fed in the order of colours that it was trained on."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import close
from weights_convert import iresnet_file

torch = pytest.importorskip("torch", reason="needs tests/requirements-torch.txt")


class AdaFaceBlock(torch.nn.Module):
    """BasicBlockIR of AdaFace and CVLFace."""

    def __init__(self, inputs, width, stride):
        super().__init__()
        nn = torch.nn
        self.shortcut_layer: torch.nn.Module = nn.MaxPool2d(1, stride)
        if inputs != width:
            self.shortcut_layer = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))
        self.res_layer = nn.Sequential(
            *(nn.BatchNorm2d(inputs), nn.Conv2d(inputs, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)),
            *(nn.PReLU(width), nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)),
        )

    def forward(self, x):
        return self.res_layer(x) + self.shortcut_layer(x)


class AdaFace(torch.nn.Module):
    """Backbone of AdaFace and CVLFace at a small size: two stages of two blocks and one."""

    def __init__(self):
        super().__init__()
        nn = torch.nn
        self.input_layer = nn.Sequential(nn.Conv2d(3, 4, 3, 1, 1, bias=False), nn.BatchNorm2d(4), nn.PReLU(4))
        self.body = nn.Sequential(AdaFaceBlock(4, 4, 2), AdaFaceBlock(4, 4, 1), AdaFaceBlock(4, 8, 2))
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(8), nn.Dropout(0.4), nn.Flatten(), nn.Linear(8 * 28 * 28, 6), nn.BatchNorm1d(6, affine=False)
        )

    def forward(self, x):
        return self.output_layer(self.body(self.input_layer(x)))


@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_adafaces_network_is_the_same_function_of_rgb_pictures(tmp_path, channels):
    """torch.save's file of AdaFace's network, fed as AdaFace feeds it, gives what the converted one gives for RGB."""
    from tests.reference import iresnet_torch

    torch.manual_seed(0)
    theirs = AdaFace().eval()
    state = {k: v if v.dtype == torch.int64 else torch.rand_like(v) + 0.1 for k, v in theirs.state_dict().items()}
    state = {k: v - 0.6 if k.endswith(("bias", "mean")) or v.ndim > 1 else v for k, v in state.items()}
    theirs.load_state_dict(state)
    torch.save({"state_dict": {f"model.{k}": v for k, v in state.items()}}, tmp_path / "adaface.ckpt")
    iresnet_file.convert_iresnet(tmp_path / "adaface.ckpt", tmp_path / "out", channels)
    ours = iresnet_torch.IResNet((2, 1), (4, 8), 6).eval()
    converted = load_file(tmp_path / "out/model.safetensors")
    ours.load_state_dict({key: torch.as_tensor(value) for key, value in converted.items()}, strict=False)
    rgb = torch.rand(3, 3, 112, 112) * 2 - 1
    with torch.no_grad():
        expected, got = theirs(rgb.flip(1) if channels == "bgr" else rgb), ours(rgb)
        swapped = theirs(rgb if channels == "bgr" else rgb.flip(1))
    close(got.numpy(), expected.numpy(), 1e-5, channels)
    assert np.abs(got.numpy() - swapped.numpy()).max() > 1e-2, "the order of colours matters"
