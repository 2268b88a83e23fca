"""A plain torch IResNet with insightface's parameter names, for comparison only."""

import torch
from torch import nn


class Block(nn.Module):
    def __init__(self, inp, width, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inp)
        self.conv1 = nn.Conv2d(inp, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.prelu = nn.PReLU(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn3 = nn.BatchNorm2d(width)
        self.downsample = None
        if stride != 1 or inp != width:
            self.downsample = nn.Sequential(nn.Conv2d(inp, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn3(self.conv2(self.prelu(self.bn2(self.conv1(self.bn1(x))))))
        return y + (x if self.downsample is None else self.downsample(x))


class IResNet(nn.Module):
    def __init__(self, layers, widths, num_features):
        super().__init__()
        self.conv1 = nn.Conv2d(3, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.prelu = nn.PReLU(widths[0])
        inp = widths[0]
        for stage, (depth, width) in enumerate(zip(layers, widths), start=1):
            blocks = [Block(inp if i == 0 else width, width, 2 if i == 0 else 1) for i in range(depth)]
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inp = width
        self.stages = len(layers)
        self.bn2 = nn.BatchNorm2d(inp)
        self.fc = nn.Linear(inp * (112 // 2**self.stages) ** 2, num_features)
        self.features = nn.BatchNorm1d(num_features)

    def forward(self, x):
        x = self.prelu(self.bn1(self.conv1(x)))
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
        return self.features(self.fc(torch.flatten(self.bn2(x), 1)))


def pixels(faces):
    """Return the network's input [N,3,112,112] in [-1, 1] for faces uint8 [N,112,112,3]."""
    return (torch.as_tensor(faces).permute(0, 3, 1, 2).to(torch.get_default_dtype()) - 127.5) / 127.5


def nt_xent(z, temperature=0.07):
    """Return the loss of the training results: rows 2i and 2i+1 are a pair, all other rows are negatives."""
    z = nn.functional.normalize(z)
    s = (z @ z.T / temperature).fill_diagonal_(-torch.inf)
    return nn.functional.cross_entropy(s, torch.arange(len(z), device=z.device) ^ 1)
