"""TextTower: a small transformer that maps tokens to a sentence vector and token features, distilled from a teacher.

The teacher is a column of vectors in the training set (`Cond.pooled`); this file knows nothing about who made them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import InvalidInput
from sojourn.families.base import BaseConfig, Family, Phase
from sojourn.nets.blocks import Attention, SwiGLU
from sojourn.registry import register
from sojourn.types import Batch, DataSpec, Loss


class TowerConfig(BaseConfig):
    embed: int = 192
    """Width of the token table; smaller than width = factorised (Lan et al. 2020, sec. 3.1)."""
    width: int = 256
    """Width of the transformer and of the token features."""
    depth: int = 3
    """Transformer blocks, 1..12."""
    heads: int = 4
    """Attention heads; divides width."""
    hidden: int = 512
    """Gated width of the feed-forward part."""
    target: int = 512
    """Width of the sentence vector: that of the teacher's."""
    identity: float = 0.1
    """Weight of the loss that keeps each feature telling which token it stands for. 0 = off."""


class Block(nn.Module):
    """Pre-norm self-attention and gated feed-forward, (b, n, d) -> (b, n, d)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = nn.RMSNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Tokens (b, n) and mask (b, n) to features (b, n, width) of unit mean square per token."""

    def __init__(self, config: TowerConfig, vocab: int, length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, config.embed)
        self.place = nn.Parameter(torch.empty(length, config.width))
        self.widen = nn.Linear(config.embed, config.width, bias=False)
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.hidden) for _ in range(config.depth))
        self.norm = nn.RMSNorm(config.width, elementwise_affine=False)
        nn.init.normal_(self.table.weight, std=1.0)
        nn.init.normal_(self.place, std=0.1)
        nn.init.normal_(self.widen.weight, std=config.embed**-0.5)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = self.widen(self.table(tokens)) + self.place[: tokens.shape[1]]  # (b, n, d)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


@register(
    "family",
    "text-tower",
    presets={
        "tiny": {"embed": 16, "width": 32, "depth": 1, "heads": 2, "hidden": 32},
        "small": {},
    },
    about="text to a sentence vector and token features, distilled from a teacher's vectors",
    source="Hinton et al. 2015 (distillation); Lin et al. 2017, sec. 2 (attentive pooling)",
)
class TextTower(Family):
    Config = TowerConfig
    kinds: ClassVar[frozenset[str]] = frozenset({"text"})
    can: ClassVar[frozenset[str]] = frozenset({"embed"})

    def __init__(self, config: TowerConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if config.width % config.heads:
            raise InvalidInput(
                "text-tower: width {width} is not a multiple of heads {heads}", width=config.width, heads=config.heads
            )
        self.encoder = Encoder(config, spec.vocab, spec.shape[0])
        self.weigh = nn.Linear(config.width, 1)
        self.head = nn.Linear(config.width, config.target)
        self.recall = nn.Linear(config.width, config.embed, bias=False)

    def phases(self) -> list[Phase]:
        return [Phase("distil", ("encoder", "weigh", "head", "recall"))]

    def embed(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b, n), real lengths (b,) to (unit vectors (b, target), features (b, n, width), zero past length)."""
        tokens, mask = self._trim(x, length)
        pooled, feats = self._forward(tokens, mask)
        return pooled, F.pad(feats * mask[:, :, None], (0, 0, 0, x.shape[1] - tokens.shape[1]))

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        """1 - cosine to the teacher's vector in cond.pooled, plus a share for features that forget their token."""
        target = batch.cond.pooled
        if target is None or target.shape[1] != self.head.out_features:
            raise InvalidInput(
                "text-tower needs a target vector of width {width} per row, found {found}; use a set with targets",
                width=self.head.out_features, found="none" if target is None else target.shape[1],
            )  # fmt: skip
        length = batch.length if batch.length is not None else torch.full((len(batch),), batch.x.shape[1])
        tokens, mask = self._trim(batch.x, length)
        pooled, feats = self._forward(tokens, mask)
        distance = 1 - (pooled * F.normalize(target, dim=1)).sum(1)  # (b,)
        logs = {"loss/distance": distance.detach()}
        if not self.config.identity:
            return Loss(distance, logs)
        # The table is a constant here: it must not shrink to make itself easy to recall.
        forgot = 1 - F.cosine_similarity(self.recall(feats), self.encoder.table(tokens).detach(), dim=2)  # (b, n)
        forgot = (forgot * mask).sum(1) / mask.sum(1)
        logs["loss/identity"] = forgot.detach()
        return Loss(distance + self.config.identity * forgot, logs)

    def _trim(self, tokens: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Columns up to the longest row, and the mask; a row of no tokens keeps its first, so that it has a mean."""
        length = length.clamp(1, tokens.shape[1])
        longest = int(length.max())
        return tokens[:, :longest], torch.arange(longest, device=tokens.device) < length[:, None]

    def _forward(self, tokens: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        feats = self.encoder(tokens, mask)  # (b, n, d)
        share = self.weigh(feats)[:, :, 0].masked_fill(~mask, -torch.inf).softmax(1)  # (b, n)
        return F.normalize(self.head((share[:, :, None] * feats).sum(1)), dim=1), feats
