"""Contrastive: a picture tower and a word tower that put a picture and what is said of it at the same place.

For finding pictures by words or by likeness, and for asking of a walk that its picture says what the prompt says.

Source: Radford et al. 2021, Learning Transferable Visual Models from Natural Language Supervision (CLIP), fig. 3.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.data.augment import diffaugment
from sojourn.errors import ConfigError
from sojourn.families.base import BaseConfig, Family, Phase, Width
from sojourn.nets.blocks import CondEmbed
from sojourn.nets.conv import conditional
from sojourn.nets.resnet import Trunk
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Loss

HOTTEST = math.log(100)
"""Largest log scale of the cosines. Source: Radford et al. 2021, sec. 2.5."""
SAME = 1e-4
"""Squared distance below which two conditions are one: pictures of one caption are no strangers to each other."""


class ContrastiveConfig(BaseConfig):
    """How both towers are built."""

    dim: int = Field(256, ge=2, le=8192)
    """Numbers of a place."""
    widths: tuple[Width, ...] = Field((48, 96, 192, 256), min_length=1, max_length=8)
    """Channels per resolution of the picture tower, finest first, each a multiple of 8."""
    depth: int = Field(1, ge=1, le=16)
    """Residual blocks per resolution."""
    stem: int = Field(2, ge=1, le=8)
    """Pixels folded into channels before the first layer. 1 = none."""
    hidden: int = Field(512, ge=8, le=8192)
    """Width of the word tower."""
    augment: bool = True
    """Whether pictures change colour, move and lose a part in training, so that small sets are not learnt by heart."""


class Words(nn.Module):
    """A condition to a place, (b, dim), by its vector and the mean of its features; and the scale of the cosines."""

    def __init__(self, spec: DataSpec, hidden: int, dim: int) -> None:
        super().__init__()
        self.embed = CondEmbed(spec, hidden)
        # only where there are features: weights that nothing reaches are dead
        self.features = (
            nn.Sequential(nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU()) if spec.text_dim else None
        )
        self.out = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, dim, bias=False)
        )
        self.scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def forward(self, cond: Cond, rows: int) -> Tensor:
        vector, feats, mask = self.embed(cond, rows)
        if self.features is not None and feats is not None and mask is not None:
            share = mask.float() / mask.sum(1, keepdim=True).clamp(min=1)  # (b, n)
            vector = vector + torch.einsum("bn,bnd->bd", share.to(feats), self.features(feats))
        return self.out(vector)


@register(
    "family",
    "contrastive",
    presets={
        "tiny": {"dim": 16, "widths": (8, 16), "stem": 1, "hidden": 32},
        "64": {},
    },
    about="pictures and words at one place: finds pictures, and judges walks by words",
    source="Radford et al. 2021, Learning Transferable Visual Models from Natural Language Supervision",
)
class Contrastive(Family):
    """InfoNCE on the cosines of a batch, in both directions."""

    Config = ContrastiveConfig
    can: ClassVar[frozenset[str]] = frozenset({"embed"})
    splittable: ClassVar[bool] = False
    bf16: ClassVar[bool] = True

    config: ContrastiveConfig

    def __init__(self, config: ContrastiveConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        factor = config.stem * 2 ** (len(config.widths) - 1)
        if spec.kind != "image" or any(side % factor for side in spec.shape[1:]):
            raise ConfigError(
                "contrastive towers of this size take pictures whose sides are multiples of {factor}, found {kind} "
                "{shape}",
                factor=factor, kind=spec.kind, shape=spec.shape,
            )  # fmt: skip
        if not conditional(spec):
            raise ConfigError('contrastive towers need words or classes; use conditioner "text" or "labels"')
        if not spec.pooled_dim and max(count for _, count in spec.labels) < 2:
            raise ConfigError('one class only, "{name}": there is nothing to tell apart', name=spec.labels[0][0])
        self.pictures = nn.Sequential(
            Trunk(spec.shape[0], config.widths, config.depth, config.stem),
            nn.Linear(config.widths[-1], config.dim, bias=False),
        )
        self.words = Words(spec, config.hidden, config.dim)

    def phases(self) -> list[Phase]:
        return [Phase("contrast", ("pictures", "words"))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        x = diffaugment(batch.x) if self.config.augment and self.training else batch.x
        places, said = self.embed_pictures(x), self.embed_words(batch.cond, len(batch))
        scale = self.words.scale.clamp(max=HOTTEST).exp()
        with torch.autocast(places.device.type, enabled=False):
            cosines = places @ said.T  # (pictures, words)
        # A row without weight is nobody's neighbour, but its own.
        absent = (batch.weight == 0)[None] & ~torch.eye(len(batch), dtype=torch.bool)
        same = alike(batch.cond, len(batch)) & ~absent
        value = sum(
            (multi_positive(scale * table.masked_fill(absent, -torch.inf), same) for table in (cosines, cosines.T)),
            torch.zeros(len(batch)),
        )
        right = same.gather(1, cosines.masked_fill(absent, -torch.inf).argmax(1, keepdim=True))[:, 0]
        logs = {"scale": scale.detach(), "accuracy": right.float().mean()}
        return Loss(value / 2, logs)

    @torch.no_grad()
    def after(self, phase: str, stats: Mapping[str, Tensor]) -> None:
        """Keep the scale at its bound: from beyond it no gradient would lead back."""
        self.words.scale.clamp_(max=HOTTEST)

    def embed_pictures(self, x: Tensor) -> Tensor:
        """Pictures (b, c, h, w) in model space to unit vectors (b, dim)."""
        return F.normalize(self.pictures(x).float(), dim=1)

    def embed_words(self, cond: Cond, rows: int) -> Tensor:
        """Conditions to unit vectors (b, dim)."""
        return F.normalize(self.words(cond, rows).float(), dim=1)


def alike(cond: Cond, rows: int) -> Tensor:
    """Which rows of a batch have the same condition, (b, b) bool."""
    same = torch.ones(rows, rows, dtype=torch.bool)
    if cond.labels is not None:
        same &= (cond.labels[:, None] == cond.labels[None]).all(dim=2)
    if cond.pooled is not None:
        square = torch.cdist(cond.pooled, cond.pooled, compute_mode="donot_use_mm_for_euclid_dist").square()
        same &= square < SAME
    return same | torch.eye(rows, dtype=torch.bool)


def multi_positive(logits: Tensor, same: Tensor) -> Tensor:
    """Cross-entropy (b,) of logits (b, b) against an even choice among the rows that are the same.

    Source: van den Oord et al. 2018 (InfoNCE), eq. 4; several right answers: Khosla et al. 2020, eq. 2.
    """
    log = logits.log_softmax(dim=1).masked_fill(~same, 0.0)
    return -log.sum(dim=1) / same.sum(dim=1)
