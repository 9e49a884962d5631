"""Pieces that more than one net is made of: attention, feed-forward, embeddings of time and condition.

Pure modules: they know nothing about losses, walks or prompts.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.types import Cond, DataSpec


def fourier(t: Tensor, dim: int, max_period: float = 1e4) -> Tensor:
    """Sinusoidal features of t (b,) -> (b, dim), cosines first. Source: Vaswani et al. 2017, sec. 3.5."""
    half = dim // 2
    freqs = torch.exp(-math.log(max_period) * torch.arange(half, device=t.device, dtype=t.dtype) / half)
    angles = t[:, None] * freqs[None]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class TimeEmbed(nn.Module):
    """A number per row to a vector: (b,) -> (b, dim). Feed values of order 1 (log sigma / 4, or t)."""

    def __init__(self, dim: int, features: int = 128) -> None:
        super().__init__()
        self.features = features
        self.mlp = nn.Sequential(nn.Linear(features, dim), nn.SiLU(), nn.Linear(dim, dim))

    def forward(self, t: Tensor) -> Tensor:
        return self.mlp(fourier(t * 1000, self.features))


class CondEmbed(nn.Module):
    """A Cond to (vector (b, dim), tokens (b, n, dim) or None, mask (b, n) or None), as `spec` says what there is.

    A label of -1, a zero pooled vector and an all-False mask mean "not given".
    """

    def __init__(self, spec: DataSpec, dim: int, spread: float = 0.02) -> None:
        """spread: standard deviation of the labels' vectors at first."""
        super().__init__()
        self.dim = dim
        # index 0 stands for "not given"
        self.labels = nn.ModuleList(nn.Embedding(count + 1, dim) for _, count in spec.labels)
        for table in self.labels:
            nn.init.normal_(table.get_parameter("weight"), std=spread)
        self.pooled = nn.Linear(spec.pooled_dim, dim) if spec.pooled_dim else None
        self.feats = nn.Linear(spec.text_dim, dim) if spec.text_dim else None

    def forward(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor | None, Tensor | None]:
        vector = torch.zeros(rows, self.dim, device=self.device)  # (b, d)
        for column, table in enumerate(self.labels):
            index = torch.zeros(rows, dtype=torch.long) if cond.labels is None else cond.labels[:, column] + 1
            vector = vector + table(index)
        if self.pooled is not None:
            pooled = cond.pooled if cond.pooled is not None else vector.new_zeros(rows, self.pooled.in_features)
            vector = vector + self.pooled(pooled)
        if self.feats is None or cond.feats is None:
            return vector, None, None
        return vector, self.feats(cond.feats), cond.token_mask

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


class RMSNorm(nn.RMSNorm):
    """torch's, with its weight in the type of what comes in: mixed types miss the fused kernel."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight if self.weight is None else self.weight.to(x.dtype)
        return F.rms_norm(x, self.normalized_shape, weight, self.eps)


SHORT = 128
"""Tokens up to which attention in bf16 is plain products: on a CPU torch's fused kernel takes five times as long."""


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """Scaled dot-product attention (b, h, n, k) by plain products. mask (b, 1, 1, n), True = may be looked at."""
    scores = (q * q.shape[-1] ** -0.5) @ k.mT
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    return scores.softmax(dim=-1).to(v.dtype) @ v


class Attention(nn.Module):
    """Multi-head self-attention with RMS-normed queries and keys (Dehghani et al. 2023, sec. 2).

    mask: (b, n) True = a token others may look at. rope: (cos, sin), each (n, head dim / 2) or (b, 1, n, head dim / 2).
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.out = nn.Linear(dim, dim, bias=False)
        self.norm_q = RMSNorm(dim // heads)
        self.norm_k = RMSNorm(dim // heads)

    def forward(
        self,
        x: Tensor,
        mask: Tensor | None = None,
        rope: tuple[Tensor, Tensor] | None = None,
        causal: bool = False,
    ) -> Tensor:
        b, n, d = x.shape
        qkv = self.qkv(x).view(b, n, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)  # (3, b, h, n, k)
        q, k, v = self.norm_q(qkv[0]), self.norm_k(qkv[1]), qkv[2]
        if rope is not None:
            q, k = rotate(q, *rope), rotate(k, *rope)
        bias = None if mask is None else mask[:, None, None, :]  # (b, 1, 1, n)
        if q.dtype == torch.bfloat16 and n <= SHORT and not causal:
            x = attend(q, k, v, bias)
        else:
            x = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, is_causal=causal)
        return self.out(x.transpose(1, 2).reshape(b, n, d))


def rotary(positions: Tensor, dim: int, base: float = 1e4) -> tuple[Tensor, Tensor]:
    """Rotation angles of positions (..., n) as (cos, sin), each (..., n, dim / 2). Source: Su et al. 2021, eq. 15."""
    freqs = base ** (-torch.arange(0, dim, 2, device=positions.device, dtype=torch.float32) / dim)
    angles = positions[..., None].float() * freqs
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate pairs (first half, second half) of the last axis of x (b, h, n, k)."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)


class SwiGLU(nn.Module):
    """Gated feed-forward, (..., dim) -> (..., dim). Source: Shazeer 2020, eq. 6. `hidden` is the gated width."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class ResBlock(nn.Module):
    """Two 3x3 convolutions around a skip, (b, cin, h, w) -> (b, cout, h, w), with an optional scale and shift.

    Source: He et al. 2016 (pre-activation); scale-shift by a condition as in Dhariwal & Nichol 2021, sec. 3.
    """

    def __init__(self, cin: int, cout: int, cond: int = 0, groups: int = 8) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(math.gcd(groups, cin), cin)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.norm2 = nn.GroupNorm(math.gcd(groups, cout), cout)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()
        self.modulate = nn.Linear(cond, 2 * cout) if cond else None
        nn.init.zeros_(self.conv2.weight)
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, vector: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.norm2(h)
        if self.modulate is not None and vector is not None:
            scale, shift = self.modulate(vector)[:, :, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv2(F.silu(h))


class VectorBlock(nn.Module):
    """Two layers around a skip, (b, width) -> (b, width), scaled and shifted by a vector (b, width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)
        self.up = nn.Linear(width, 2 * width)
        self.down = nn.Linear(2 * width, width)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, x: Tensor, vector: Tensor) -> Tensor:
        scale, shift = self.modulate(F.silu(vector)).chunk(2, dim=1)
        return x + self.down(F.silu(self.up(self.norm(x) * (1 + scale) + shift)))
