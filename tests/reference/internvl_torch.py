"""A plain torch InternVL2 with OpenGVLab's parameter names, for comparison only.

Its decoder is InternLM2. It has the shortcuts that need only one line in torch: no text and no head if only the visual
states are needed, and logits of the last position only.
"""

import re

import torch
from torch import nn
from torch.nn import functional as F

from tests.reference.internvit_torch import InternVisionModel, RMSNorm


def rotate(x, cos, sin):
    """Rotate x [N,heads,T,dim]: dimension i is rotated with i + dim/2."""
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.kv_heads, self.dim = c["num_key_value_heads"], c["hidden_size"] // c["num_attention_heads"]
        self.groups = c["num_attention_heads"] // self.kv_heads
        self.wqkv = nn.Linear(c["hidden_size"], self.kv_heads * (self.groups + 2) * self.dim, bias=False)
        self.wo = nn.Linear(c["hidden_size"], c["hidden_size"], bias=False)

    def forward(self, x, cos, sin):
        n, t, _ = x.shape
        qkv = self.wqkv(x).reshape(n, t, self.kv_heads, self.groups + 2, self.dim)
        q, k, v = qkv.split([self.groups, 1, 1], 3)
        q, k, v = (y.reshape(n, t, -1, self.dim).transpose(1, 2) for y in (q, k, v))
        y = F.scaled_dot_product_attention(
            rotate(q, cos, sin), rotate(k, cos, sin), v, is_causal=True, enable_gqa=self.groups > 1
        )
        return self.wo(y.transpose(1, 2).reshape(n, t, -1))


class Mlp(nn.Module):
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
        self.attention, self.feed_forward = Attention(c), Mlp(c)
        self.attention_norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.ffn_norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])

    def forward(self, x, cos, sin):
        x = x + self.attention(self.attention_norm(x), cos, sin)
        return x + self.feed_forward(self.ffn_norm(x))


class InternLM2Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.tok_embeddings = nn.Embedding(c["vocab_size"], c["hidden_size"])
        self.layers = nn.ModuleList([Layer(c) for _ in range(c["num_hidden_layers"])])
        self.norm = RMSNorm(c["hidden_size"], c["rms_norm_eps"])
        self.dim, self.theta = c["hidden_size"] // c["num_attention_heads"], c["rope_theta"]

    def forward(self, x):
        """Return the states after the final norm for embeddings [N,T,D].

        Positions are not scaled, as all sequences are shorter than 32,768 tokens.
        """
        frequencies = self.theta ** -(torch.arange(0, self.dim, 2, dtype=torch.float32, device=x.device) / self.dim)
        angles = torch.arange(x.shape[1], dtype=torch.float32, device=x.device)[:, None] * frequencies
        cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x)


class InternLM2ForCausalLM(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.model = InternLM2Model(c)
        self.output = nn.Linear(c["hidden_size"], c["vocab_size"], bias=False)


class InternVL2(nn.Module):
    """InternVL2, built from config.json. Pixel shuffle is v2, with two by two patches per token."""

    def __init__(self, config):
        super().__init__()
        vision, llm = config["vision_config"], config["llm_config"]
        self.bos = llm["bos_token_id"]
        self.vision_model, self.language_model = InternVisionModel(vision), InternLM2ForCausalLM(llm)
        self.mlp1 = nn.Sequential(
            nn.LayerNorm(4 * vision["hidden_size"], eps=1e-5),
            nn.Linear(4 * vision["hidden_size"], llm["hidden_size"]),
            nn.GELU(),
            nn.Linear(llm["hidden_size"], llm["hidden_size"]),
        )

    def visual(self, pixels):
        """Return visual tokens [N,V,D] of pixels [N,3,H,W]."""
        x = self.vision_model(pixels)[:, 1:]
        n, patches, width = x.shape
        half = int(patches**0.5) // 2
        x = x.reshape(n, half, 2, half, 2, width).transpose(2, 3)
        return self.mlp1(x.reshape(n, half * half, 4 * width))

    def states(self, visual, text):
        """Return the decoder's states [N,1+V+T,D] for [BOS] + visual tokens [N,V,D] + text ids."""
        embed = self.language_model.model.tok_embeddings
        bos, text = (
            embed(torch.tensor(ids, dtype=torch.long, device=visual.device)).expand(len(visual), -1, -1)
            for ids in ([self.bos], text)
        )
        return self.language_model.model(torch.cat([bos, visual, text], 1))

    def visual_mean(self, pixels):
        """Return embeddings [N,D]."""
        return self.states(self.visual(pixels), ())[:, 1:].mean(1)

    def pair(self, a, b, text):
        """Return the logits [N, vocab] of the answer's first token."""
        visual = torch.cat(self.visual(torch.cat([a, b])).chunk(2), 1)
        return self.language_model.output(self.states(visual, text)[:, -1])


class Adapted(nn.Module):
    """A Linear layer with a low-rank adapter, as in peft; b is initialised to zero."""

    def __init__(self, inner, rank):
        super().__init__()
        self.inner = inner
        self.a = nn.Parameter(torch.empty(rank, inner.in_features))
        nn.init.kaiming_uniform_(self.a)
        self.b = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x):
        return self.inner(x) + (x @ self.a.T) @ self.b.T


def adapt(net, targets, rank=8, kind=Adapted):
    """Freeze a network and add adapters to the modules whose full name matches the regex ``targets``."""
    net.requires_grad_(False)
    for name in [name for name, _ in net.named_modules() if re.fullmatch(targets, name)]:
        parent, _, leaf = name.rpartition(".")
        owner = net.get_submodule(parent)
        setattr(owner, leaf, kind(getattr(owner, leaf), rank))
