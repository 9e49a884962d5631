"""TextTower: a small transformer that maps tokens to a sentence vector and token features, distilled from a teacher.

The teacher is a column of vectors in the training set (`Cond.pooled`); this file knows nothing about who made them.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import ConfigError, DataError
from sojourn.families.base import BaseConfig, Family, Phase
from sojourn.nets.blocks import Attention, RMSNorm, SwiGLU
from sojourn.registry import register
from sojourn.types import Batch, DataSpec, Loss

GAIN = 16.0
"""Factor on the token table: Adam moves a row by about its rate at each visit, and rare words are visited seldom."""
GROUPS = 6
"""Groups of rows by length that go through the net together."""


class TowerConfig(BaseConfig):
    width: int = Field(192, ge=8, le=4096)
    """Width of the token table, the transformer and the word features."""
    depth: int = Field(2, ge=1, le=48)
    """Transformer blocks."""
    heads: int = Field(4, ge=1, le=64)
    """Attention heads; divides width."""
    hidden: int = Field(256, ge=8, le=16384)
    """Gated width of the feed-forward part."""
    target: int = Field(512, ge=1, le=16384)
    """Width of the sentence vector: that of the teacher's."""
    identity: float = Field(0.1, ge=0, le=100)
    """Weight of the loss that keeps each feature telling which token it stands for. 0 = off."""


class Block(nn.Module):
    """Pre-norm self-attention and gated feed-forward, (b, n, d) -> (b, n, d)."""

    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.norm1 = RMSNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = RMSNorm(width)
        self.mlp = SwiGLU(width, hidden)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x), mask)
        return x + self.mlp(self.norm2(x))


class Encoder(nn.Module):
    """Tokens (b, n) and mask (b, n) to features (b, n, width) of unit mean square per token."""

    def __init__(self, config: TowerConfig, vocab: int, length: int) -> None:
        super().__init__()
        self.table = nn.Embedding(vocab, config.width)
        self.place = nn.Parameter(torch.empty(length, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads, config.hidden) for _ in range(config.depth))
        self.norm = RMSNorm(config.width, elementwise_affine=False)
        # What a rare token learns in its few updates has to outweigh where it started.
        nn.init.normal_(self.table.weight, std=0.1 / GAIN)
        nn.init.normal_(self.place, std=0.02)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        x = GAIN * self.table(tokens) + self.place[: tokens.shape[1]]  # (b, n, d)
        for block in self.blocks:
            x = block(x, mask)
        return self.norm(x)


@register(
    "family",
    "text-tower",
    presets={
        "tiny": {"width": 32, "depth": 1, "heads": 2, "hidden": 32},
        "small": {},
    },
    about="text to a sentence vector and token features, distilled from a teacher's vectors",
    source="Hinton et al. 2015 (distillation); Lin et al. 2017, sec. 2 (attentive pooling)",
)
class TextTower(Family):
    config: TowerConfig
    Config = TowerConfig
    kinds: ClassVar[frozenset[str]] = frozenset({"text"})
    can: ClassVar[frozenset[str]] = frozenset({"embed"})
    bf16: ClassVar[bool] = True

    def __init__(self, config: TowerConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if spec.kind != "text" or spec.shape[0] < 3:
            raise ConfigError(
                "text-tower reads rows of at least 3 tokens, found {kind} {shape}", kind=spec.kind, shape=spec.shape
            )
        if config.width % config.heads:
            raise ConfigError(
                "text-tower: width {width} is not a multiple of heads {heads}", width=config.width, heads=config.heads
            )
        self.encoder = Encoder(config, spec.vocab, spec.shape[0] - 2)
        self.weigh = nn.Linear(config.width, 1, bias=False)
        # Two layers: a linear map of `width` numbers could not fill a wider space.
        self.head = nn.Sequential(
            nn.Linear(config.width, config.target), nn.SiLU(), nn.Linear(config.target, config.target)
        )
        self.recall = nn.Linear(config.width, config.width, bias=False)

    def phases(self) -> list[Phase]:
        return [Phase("distil", ("encoder", "weigh", "head", "recall"))]

    def embed(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (b, n) as a text codec frames them, real tokens per row (b,), to unit vectors and word features.

        Returns (pooled (b, target), feats (b, n - 2, width)): begin and end have no feature, so row i has
        length[i] - 2 of them (the rest is zero), each of unit mean square.
        """
        tokens = x[:, 1:-1]
        # A text without words keeps its end token, so that attention has something to look at.
        words = (length - 2).clamp(1, tokens.shape[1])
        order = words.argsort(stable=True)
        pooled, feats = [], []
        # Rows of like length go together, since most are far shorter than the longest.
        for rows in order.tensor_split(GROUPS):
            if len(rows) == 0:
                continue
            longest = int(words[rows].max())
            mask = torch.arange(longest, device=x.device) < words[rows, None]
            part = self.encoder(tokens[rows, :longest], mask) * mask[:, :, None]  # (r, longest, d)
            share = self.weigh(part)[:, :, 0].masked_fill(~mask, -torch.inf).softmax(1)
            pooled.append(self.head((share[:, :, None] * part).sum(1)))
            feats.append(F.pad(part, (0, 0, 0, tokens.shape[1] - longest)))
        back = order.argsort()
        return F.normalize(torch.cat(pooled)[back], dim=1), torch.cat(feats)[back]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        """1 - cosine to the teacher's vector in cond.pooled, plus a share for features that forget their token."""
        target = batch.cond.pooled
        if target is None or target.shape[1] != self.config.target:
            raise DataError(
                "text-tower needs a target vector of width {width} per row, found {found}; use a set with targets",
                width=self.config.target, found="none" if target is None else target.shape[1],
            )  # fmt: skip
        length = batch.length if batch.length is not None else torch.full((len(batch),), batch.x.shape[1])
        pooled, feats = self.embed(batch.x, length)
        distance = 1 - (pooled * F.normalize(target, dim=1)).sum(1)  # (b,)
        logs = {"loss/distance": distance.detach()}
        if not self.config.identity:
            return Loss(distance, logs)
        words = (length - 2).clamp(min=1)  # (b,)
        mask = torch.arange(feats.shape[1], device=feats.device) < words[:, None]  # (b, n - 2)
        row, place = mask.nonzero(as_tuple=True)
        # The table is a constant here: it must not shrink to make itself easy to recall.
        token = self.encoder.table(batch.x[row, place + 1]).detach()
        forgot = 1 - F.cosine_similarity(self.recall(feats[row, place]), token, dim=1)
        forgot = feats.new_zeros(len(batch)).index_add(0, row, forgot) / words  # (b,)
        logs["loss/identity"] = forgot.detach()
        return Loss(distance + self.config.identity * forgot, logs)
