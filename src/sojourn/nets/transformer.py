"""The decoder-only transformer: token ids and a condition to logits, with a memory for walking token by token.

Knows nothing about tokenizers, losses or how a token is chosen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sojourn.nets.blocks import CondEmbed, RMSNorm, SwiGLU, rotary, rotate
from sojourn.types import Cond, DataSpec

EPS = 1e-6


@dataclass
class Memory:
    """Keys and values of what was read so far. Rows of different length end at the same column, padded at the left."""

    pad: Tensor  # (b,) long, columns of padding at the left of each row
    keys: Tensor  # (depth, b, heads, capacity, k)
    values: Tensor  # (depth, b, heads, capacity, k)
    used: int = 0  # columns read


class CausalAttention(nn.Module):
    """Causal self-attention, rotary positions, RMS-normed queries and keys (Su et al. 2021; Henry et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.norm_q = RMSNorm(width // heads, eps=EPS)
        self.norm_k = RMSNorm(width // heads, eps=EPS)
        self.out = nn.Linear(width, width, bias=False)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, memory: Memory | None, layer: int
    ) -> Tensor:
        """x (b n d), rope (cos, sin) each (1 or b, 1, n, k / 2), mask (b 1 n columns) True = may see, None = causal."""
        b, n, width = x.shape
        q, k, v = self.qkv(x).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)  # each (b h n k)
        q, k = rotate(self.norm_q(q), *rope), rotate(self.norm_k(k), *rope)
        if memory is not None:
            end = memory.used + n
            memory.keys[layer, :, :, memory.used : end] = k
            memory.values[layer, :, :, memory.used : end] = v
            k, v = memory.keys[layer, :, :, :end], memory.values[layer, :, :, :end]  # (b h end k)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)  # (b h n k)
        return self.out(y.transpose(1, 2).reshape(b, n, width))


class Block(nn.Module):
    """Attention and feed-forward, each normed before and added to the stream."""

    def __init__(self, width: int, heads: int, hidden: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width, eps=EPS)
        self.attention = CausalAttention(width, heads)
        self.norm2 = RMSNorm(width, eps=EPS)
        self.mlp = SwiGLU(width, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], mask: Tensor | None, memory: Memory | None, layer: int
    ) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), rope, mask, memory, layer))
        return x + self.dropout(self.mlp(self.norm2(x)))


class CausalLM(nn.Module):
    """Tokens to logits of the next one; input and output share their embedding. Labels are added to every token."""

    def __init__(self, spec: DataSpec, width: int, depth: int, heads: int, hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Embedding(spec.vocab, width)
        self.cond = CondEmbed(replace(spec, text_dim=0), width) if spec.labels or spec.pooled_dim else None
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, heads, hidden, dropout) for _ in range(depth))
        self.norm = RMSNorm(width, eps=EPS)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # What ends a branch is damped by the number of branches (Radford et al. 2019, sec. 2.3).
                ends = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * depth) ** 0.5 if ends else 0.02)

    def forward(self, tokens: Tensor, cond: Cond, keep: Tensor | None = None, memory: Memory | None = None) -> Tensor:
        """Logits of the token after each position, (b n vocab), or (m, vocab) at the m positions that `keep` marks.

        tokens (b n) long: padded at the right without a memory; with one they follow what it holds, and a first
        reading is padded at the left. keep (b n) bool: training keeps the real positions, sampling the last.
        """
        b, n = tokens.shape
        x = self.embed(tokens)  # (b n d)
        if self.cond is not None:
            x = x + self.cond(cond, b)[0][:, None]
        if memory is None:
            place, mask = torch.arange(n, device=tokens.device)[None], None  # (1 n)
        else:
            place, mask = _columns(memory, n)
        rope = rotary(place[:, None], x.shape[2] // self.heads)
        x = self.dropout(x)
        for layer, block in enumerate(self.blocks):
            x = block(x, rope, mask, memory, layer)
        if memory is not None:
            memory.used += n
        x = self.norm(x if keep is None else x[keep])  # (b n d) or (m d)
        return F.linear(x, self.embed.weight)

    def memory(self, pad: Tensor, capacity: int) -> Memory:
        """An empty memory for rows with pad (b,) columns at their left, for `capacity` columns in all."""
        weight = self.embed.weight
        shape = (len(self.blocks), len(pad), self.heads, capacity, weight.shape[1] // self.heads)
        return Memory(pad.to(weight.device), weight.new_empty(shape), weight.new_empty(shape))


def _columns(memory: Memory, n: int) -> tuple[Tensor, Tensor]:
    """Positions (b n) counted from each row's own start, and who may see whom, (b 1 n columns)."""
    column = torch.arange(memory.used + n, device=memory.pad.device)
    query = column[memory.used :]  # (n,)
    place = (query[None] - memory.pad[:, None]).clamp(min=0)  # (b n)
    real = (column[None] >= memory.pad[:, None])[:, None]  # (b 1 columns)
    causal = column[None] <= query[:, None]  # (n columns)
    # Padding sees itself: a softmax over nothing is NaN, and NaN passes through masks.
    itself = column[None] == query[:, None]
    return place, (causal & (real | itself))[:, None]
