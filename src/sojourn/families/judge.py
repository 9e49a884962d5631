"""Judge: a picture classifier with a head for each label column, for measuring generators and for nothing else.

Never a loss of a generator: what a model was trained to please cannot judge it. Knows nothing about names of classes.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import ConfigError
from sojourn.families.base import BaseConfig, Family, Phase, Width
from sojourn.nets.resnet import Trunk
from sojourn.registry import register
from sojourn.types import Batch, DataSpec, Loss


class JudgeConfig(BaseConfig):
    widths: tuple[Width, ...] = Field((48, 96, 192, 256), min_length=1, max_length=8)
    """Channels per resolution, finest first, each a multiple of 8; each further one halves the side."""
    depth: int = Field(1, ge=1, le=16)
    """Residual blocks per resolution."""
    stem: int = Field(2, ge=1, le=8)
    """Pixels folded into channels before the first layer. 1 = none."""
    shift: float = Field(0.12, ge=0, le=0.5)
    """Largest shift of a training picture, in sides. 0 = off."""
    shrink: float = Field(0.25, ge=0, lt=1)
    """Largest reduction of a training picture. 0 = off."""
    noise: float = Field(0.15, ge=0, le=1)
    """Largest standard deviation of noise added to a training picture. 0 = off."""
    blur: float = Field(1.5, ge=0, le=8)
    """Largest standard deviation, in pixels, of the blur of a training picture. 0 = off."""
    smoothing: float = Field(0.1, ge=0, lt=1)
    """Label smoothing. 0 = off."""


@register(
    "family",
    "judge",
    presets={"tiny": {"widths": (8, 16), "stem": 1}, "64": {}},
    about="a classifier that judges what others draw: names, styles, classes",
    source="He et al. 2016; label smoothing: Szegedy et al. 2016, sec. 7",
)
class Judge(Family):
    Config = JudgeConfig
    can: ClassVar[frozenset[str]] = frozenset({"classify"})
    bf16: ClassVar[bool] = True

    config: JudgeConfig

    def __init__(self, config: JudgeConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if spec.kind != "image" or not spec.labels:
            raise ConfigError(
                "a judge classifies pictures by their labels, found {kind} with {count} label columns; "
                'use a set of classes and conditioner "labels"',
                kind=spec.kind, count=len(spec.labels),
            )  # fmt: skip
        if max(count for _, count in spec.labels) < 2:
            raise ConfigError('one class only, "{name}": there is nothing to tell apart', name=spec.labels[0][0])
        factor = config.stem * 2 ** (len(config.widths) - 1)
        if any(side % factor for side in spec.shape[1:]):
            raise ConfigError(
                "a judge of this size takes pictures whose sides are multiples of {factor}, found {shape}",
                factor=factor, shape=spec.shape,
            )  # fmt: skip
        self.net = Trunk(spec.shape[0], config.widths, config.depth, config.stem)
        self.heads = nn.ModuleList(nn.Linear(config.widths[-1], count) for _, count in spec.labels)

    def phases(self) -> list[Phase]:
        return [Phase("classify", ("net", "heads"))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        """Cross-entropy summed over the columns; a label of -1 counts nothing."""
        x = self.disturbed(batch.x) if self.training else batch.x
        assert batch.cond.labels is not None
        value, logs = torch.zeros(len(batch), device=x.device), {}
        for (name, _), logits, label in zip(self.spec.labels, self.classify(x), batch.cond.labels.T, strict=True):
            known = label >= 0
            smoothing = self.config.smoothing if self.training else 0.0
            loss = F.cross_entropy(logits, label.clamp(min=0), reduction="none", label_smoothing=smoothing)
            value = value + torch.where(known, loss, 0.0)
            right = (logits.argmax(dim=1) == label).float()
            logs[f"accuracy/{name}"] = (right * known).sum() / known.sum().clamp(min=1)
        return Loss(value, logs)

    def classify(self, x: Tensor) -> list[Tensor]:
        """Pictures (b, c, h, w) in model space to logits, (b, classes) for each label column."""
        features = self.features(x)
        return [head(features).float() for head in self.heads]

    def features(self, x: Tensor) -> Tensor:
        """(b, c, h, w) -> (b, widths[-1]), what the heads look at."""
        return self.net(x)

    def disturbed(self, x: Tensor) -> Tensor:
        """Each picture shrunk, shifted, blurred and noised by amounts of its own; what comes in at the edge repeats."""
        c, b = self.config, len(x)
        grow = 1 / (1 - c.shrink * torch.rand(b, device=x.device))
        move = 2 * c.shift * (2 * torch.rand(b, 2, device=x.device) - 1)
        matrix = torch.zeros(b, 2, 3, device=x.device)
        matrix[:, 0, 0] = matrix[:, 1, 1] = grow
        matrix[:, :, 2] = move
        with torch.autocast(x.device.type, enabled=False):  # places in bf16 would be off by pixels
            grid = F.affine_grid(matrix, list(x.shape), align_corners=False)
            x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
        if c.blur:
            x = blurred(x, c.blur * torch.rand(b, device=x.device) * (torch.rand(b, device=x.device) < 0.5))
        level = c.noise * torch.rand(b, 1, 1, 1, device=x.device) * (torch.rand(b, 1, 1, 1, device=x.device) < 0.5)
        return x + level * torch.randn_like(x)


def blurred(x: Tensor, spread: Tensor) -> Tensor:
    """Each picture of x (b c h w) blurred by a Gaussian of std spread (b,) in pixels; 0 = as it is."""
    reach = max(1, math.ceil(2 * float(spread.max())))
    place = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    kernel = torch.exp(-0.5 * (place / spread.clamp(min=1e-3)[:, None]) ** 2)
    kernel = kernel / kernel.sum(dim=1, keepdim=True)  # (b, k)
    b, ch, h, w = x.shape
    flat = x.transpose(0, 1).reshape(1, ch * b, h, w)
    weight = kernel.repeat(ch, 1)
    flat = F.conv2d(F.pad(flat, (0, 0, reach, reach), mode="replicate"), weight[:, None, :, None], groups=ch * b)
    flat = F.conv2d(F.pad(flat, (reach, reach, 0, 0), mode="replicate"), weight[:, None, None, :], groups=ch * b)
    return flat.view(ch, b, h, w).transpose(0, 1)
