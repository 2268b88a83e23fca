"""A plain torch InternViT with OpenGVLab's parameter names, for comparison only."""

import torch
from torch import nn
from torch.nn import functional as F


class RMSNorm(nn.Module):
    def __init__(self, width, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return self.weight * x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)


class Attention(nn.Module):
    fused = False  # by torch's own kernel, for speed

    def __init__(self, c):
        super().__init__()
        self.heads = c["num_attention_heads"]
        self.qkv = nn.Linear(c["hidden_size"], 3 * c["hidden_size"], bias=c["qkv_bias"])
        self.proj = nn.Linear(c["hidden_size"], c["hidden_size"])
        self.q_norm = self.k_norm = None
        if c["qk_normalization"]:
            self.q_norm = RMSNorm(c["hidden_size"], c["layer_norm_eps"])
            self.k_norm = RMSNorm(c["hidden_size"], c["layer_norm_eps"])

    def forward(self, x):
        n, t, w = x.shape
        q, k, v = self.qkv(x).reshape(n, t, 3, w).unbind(2)
        if self.q_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (y.reshape(n, t, self.heads, -1).transpose(1, 2) for y in (q, k, v))
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v)
        else:
            y = (q @ k.transpose(-1, -2) * (w // self.heads) ** -0.5).softmax(-1) @ v
        return self.proj(y.transpose(1, 2).reshape(n, t, w))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.fc1 = nn.Linear(c["hidden_size"], c["intermediate_size"])
        self.fc2 = nn.Linear(c["intermediate_size"], c["hidden_size"])

    def forward(self, x):
        return self.fc2(F.gelu(self.fc1(x)))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        norm = {"layer_norm": nn.LayerNorm, "rms_norm": RMSNorm}[c["norm_type"]]
        self.norm1 = norm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.norm2 = norm(c["hidden_size"], eps=c["layer_norm_eps"])
        self.attn, self.mlp = Attention(c), Mlp(c)
        self.ls1 = nn.Parameter(torch.ones(c["hidden_size"]))
        self.ls2 = nn.Parameter(torch.ones(c["hidden_size"]))

    def forward(self, x):
        x = x + self.attn(self.norm1(x)) * self.ls1
        return x + self.mlp(self.norm2(x)) * self.ls2


class Embeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.grid = c["image_size"] // c["patch_size"]
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, c["hidden_size"]))
        self.patch_embedding = nn.Conv2d(3, c["hidden_size"], c["patch_size"], c["patch_size"])
        self.position_embedding = nn.Parameter(torch.zeros(1, 1 + self.grid**2, c["hidden_size"]))

    def forward(self, x):
        x = self.patch_embedding(x)
        n, w, rows, cols = x.shape
        pos = self.position_embedding[:, 1:].reshape(1, self.grid, self.grid, w).permute(0, 3, 1, 2)
        pos = F.interpolate(pos, size=(rows, cols), mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
        cls = (self.class_embedding + self.position_embedding[:, :1]).expand(n, 1, w)
        return torch.cat([cls, x.flatten(2).transpose(1, 2) + pos], 1)


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layers = nn.ModuleList([Layer(c) for _ in range(c["num_hidden_layers"])])


class InternVisionModel(nn.Module):
    """InternViT, built from the vision part of config.json. Returns tokens [N, 1 + patches, width], CLS first."""

    def __init__(self, config):
        super().__init__()
        self.embeddings, self.encoder = Embeddings(config), Encoder(config)

    def forward(self, x):
        x = self.embeddings(x)
        for layer in self.encoder.layers:
            x = layer(x)
        return x


def pixels(faces, size):
    """Return pixels [N,3,size,size] of faces uint8 [N,112,112,3], by the reference's steps in float32."""
    x = (torch.as_tensor(faces).permute(0, 3, 1, 2).float() - 127.5) / 127.5
    x = F.interpolate((x + 1) / 2, size=(size, size), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(c, device=x.device) for c in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    return (x - mean[:, None, None]) / std[:, None, None]
