"""A plain torch InternVL2 with InternLM2, by OpenGVLab's parameter names, for comparison only."""

import torch
from torch import nn
from torch.nn import functional as F

from tests.reference.internvit_torch import InternVisionModel, RMSNorm


def rotate(x, theta):
    """x [N,heads,T,dim] at the positions 0 … T-1: dimension i turns with i + dim/2."""
    half = x.shape[-1] // 2
    angles = torch.arange(x.shape[2])[:, None] * theta ** (-torch.arange(half) / half)
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * angles.cos() - b * angles.sin(), b * angles.cos() + a * angles.sin()], -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.groups, self.theta = c["num_key_value_heads"], float(c["rope_theta"])
        self.queries, self.dim = c["num_attention_heads"] // self.groups, c["hidden_size"] // c["num_attention_heads"]
        self.wqkv = nn.Linear(c["hidden_size"], self.groups * (self.queries + 2) * self.dim, bias=c["bias"])
        self.wo = nn.Linear(c["hidden_size"], c["hidden_size"], bias=c["bias"])

    def forward(self, x):
        n, t, w = x.shape
        qkv = self.wqkv(x).reshape(n, t, self.groups, self.queries + 2, self.dim)
        q = qkv[..., : self.queries, :].reshape(n, t, -1, self.dim).transpose(1, 2)
        k, v = (qkv[..., i, :].transpose(1, 2).repeat_interleave(self.queries, 1) for i in (-2, -1))
        q, k = rotate(q, self.theta), rotate(k, self.theta)
        scores = (q @ k.transpose(-1, -2)) * self.dim**-0.5
        scores = scores.masked_fill(torch.ones(t, t, dtype=torch.bool).triu(1), -torch.inf)
        return self.wo((scores.softmax(-1) @ v).transpose(1, 2).reshape(n, t, w))


class FeedForward(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.w1 = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.w3 = nn.Linear(c["hidden_size"], c["intermediate_size"], bias=False)
        self.w2 = nn.Linear(c["intermediate_size"], c["hidden_size"], bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.attention, self.feed_forward = Attention(c), FeedForward(c)
        self.attention_norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.ffn_norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x):
        x = x + self.attention(self.attention_norm(x))
        return x + self.feed_forward(self.ffn_norm(x))


class InternLM2(nn.Module):
    """Shorter sequences than the positions trained on only: its rotary scaling is left out."""

    def __init__(self, c):
        super().__init__()
        self.model = nn.Module()
        self.model.tok_embeddings = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.model.layers = nn.ModuleList([Layer(c) for _ in range(c["num_hidden_layers"])])
        self.model.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.output = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)

    def forward(self, x):
        for layer in self.model.layers:
            x = layer(x)
        return self.model.norm(x)


class InternVL(nn.Module):
    """Takes config.json. Pixels [N,3,S,S] of all images and text ids -> states [N / images, 1+V+T, D]."""

    def __init__(self, config):
        super().__init__()
        self.vision_model = InternVisionModel(config["vision_config"])
        self.language_model = InternLM2(config["llm_config"])
        self.shuffle, self.bos = round(1 / config["downsample_ratio"]), config["llm_config"]["bos_token_id"]
        wide, width = config["vision_config"]["hidden_size"] * self.shuffle**2, config["llm_config"]["hidden_size"]
        self.mlp1 = nn.Sequential(nn.LayerNorm(wide), nn.Linear(wide, width), nn.GELU(), nn.Linear(width, width))

    def visual(self, pixels):
        """With pixel shuffle v2."""
        x = self.vision_model(pixels)[:, 1:]
        n, patches, width = x.shape
        side, s = round(patches**0.5), self.shuffle
        x = x.reshape(n, side // s, s, side // s, s, width).permute(0, 1, 3, 2, 4, 5)
        return self.mlp1(x.reshape(n, patches // s**2, width * s**2))

    def forward(self, pixels, ids, images=1):
        visual = self.visual(pixels)
        visual = torch.cat(visual.chunk(images), 1)
        embed = self.language_model.model.tok_embeddings
        text = embed(torch.as_tensor(ids)).expand(len(visual), -1, -1)
        bos = embed(torch.tensor([self.bos])).expand(len(visual), 1, -1)
        return self.language_model(torch.cat([bos, visual, text], 1))
