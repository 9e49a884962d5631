"""R3GAN: a relativistic loss on pairs of a real and a drawn picture, zero-centred penalties on both, a plain ResNet.

Knows nothing about files or prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import ConfigError
from sojourn.families.base import BaseOptions, Phase
from sojourn.families.gan import GAN, GANConfig, GANOptions
from sojourn.nets import losses
from sojourn.nets.conv import COND_DIM, check_picture, conditional, embedding, stage_widths, with_condition
from sojourn.nets.twice import Conv2d
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step

SLOPE = 0.2
"""Of leaky ReLU below zero."""
SLOPE_OF_LINEAR = 1.0


class R3GANConfig(GANConfig):
    """How an R3GAN is built."""

    z_dim: int = Field(64, ge=1, le=4096)
    """Width of the latent."""
    width: int = Field(48, ge=8, le=2048)
    """Channels of both nets at full resolution; they double with each halving."""
    max_width: int = Field(256, ge=8, le=4096)
    """Most channels a layer has."""
    depth: int = Field(1, ge=1, le=16)
    """Residual blocks at each resolution."""
    groups: int = Field(16, ge=1, le=1024)
    """Channels that a 3x3 convolution mixes at once; must divide all widths."""
    expansion: int = Field(2, ge=1, le=8)
    """Channels within a block, in its own."""
    gamma: float = Field(1.0, ge=0, le=1000)
    """Weight of the penalties R1 and R2, before the half of their definition. 0 = off, and then it diverges."""
    penalised: float = Field(1.0, gt=0, le=1)
    """Share of a batch whose gradients are penalised, by so much more: in the mean the same, in less time. 1 = all."""


class R3GANOptions(GANOptions):
    """How to draw from an R3GAN."""

    truncation: float = Field(1.0, ge=0, le=1)
    """Std of z: less is closer to the typical picture, with less variety. 1 = off."""


class Block(nn.Module):
    """x + 1x1 (wider), grouped 3x3, 1x1 (back): (b, c, h, w) -> the same, without any norm.

    What a norm would do at the start, the weights do: the last begins at zero, the others smaller the more blocks
    there are. Source: Huang et al. 2024, sec. 3.2, fig. 2 (d); Zhang et al. 2019 (fixup), sec. 3.
    """

    def __init__(self, channels: int, expansion: int, groups: int, blocks: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.widen = Conv2d(channels, inner, 1)
        self.mix = Conv2d(inner, inner, 3, padding=1, groups=inner // groups)
        self.back = Conv2d(inner, channels, 1, bias=False)
        for conv in (self.widen, self.mix):
            scaled(conv, blocks**-0.25)
        nn.init.zeros_(self.back.weight)

    def forward(self, x: Tensor) -> Tensor:
        h = F.leaky_relu(self.widen(x), SLOPE)
        out: Tensor = self.back(F.leaky_relu(self.mix(h), SLOPE))
        return x + out


class Resample(nn.Module):
    """To twice or half the side by linear interpolation, with a 1x1 convolution where the channels change."""

    def __init__(self, cin: int, cout: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = Conv2d(cin, cout, 1, bias=False) if cin != cout else nn.Identity()
        if isinstance(self.conv, nn.Conv2d):
            scaled(self.conv, 1.0, SLOPE_OF_LINEAR)

    def forward(self, x: Tensor) -> Tensor:
        if self.up:
            return F.interpolate(self.conv(x), scale_factor=2.0, mode="bilinear", align_corners=False)
        out: Tensor = self.conv(F.interpolate(x, scale_factor=0.5, mode="bilinear", align_corners=False))
        return out


def scaled(layer: nn.Conv2d | nn.Linear, gain: float, slope: float = SLOPE) -> None:
    """He et al. 2015 for leaky ReLU of a slope, times gain; bias zero."""
    fan_in = layer.weight[0].numel()
    nn.init.normal_(layer.weight, 0, gain * math.sqrt(2 / ((1 + slope**2) * fan_in)))
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def widths_of(spec: DataSpec, config: R3GANConfig) -> tuple[int, list[int]]:
    """Side of the coarsest map, and the channels of each resolution, coarsest first, full size last."""
    check_picture(spec)
    coarsest, below = stage_widths(spec.shape[-1], 2 * config.width, config.max_width)
    widths = [*below, min(config.width, config.max_width)]
    if any(width * config.expansion % config.groups for width in widths):
        raise ConfigError(
            "groups of {groups} channels do not divide {widths} times {expansion}; choose a divisor",
            groups=config.groups,
            widths=", ".join(map(str, widths)),
            expansion=config.expansion,
        )
    return coarsest, widths


def trunk(widths: list[int], config: R3GANConfig, up: bool) -> nn.Sequential:
    """Residual blocks at each resolution, of these channels, and what leads from one to the next."""
    layers: list[nn.Module] = []
    count = config.depth * len(widths)
    for i, width in enumerate(widths):
        layers += [Resample(widths[i - 1], width, up)] if i else []
        layers += [Block(width, config.expansion, config.groups, count) for _ in range(config.depth)]
    return nn.Sequential(*layers)


class R3Generator(nn.Module):
    """z (b, z_dim) and a condition to pictures (b c h w) in (-1, 1), by a map of 4x4 that both lay out, and upwards.

    Against Huang et al. 2024, where they scale the channels of one learnt map: that way a small net draws one shape for
    all classes long before it hears of them. Nor do they end pictures at -1 and 1: a white ground turned grey.
    """

    def __init__(self, spec: DataSpec, config: R3GANConfig) -> None:
        super().__init__()
        coarsest, widths = widths_of(spec, config)
        self.embed = embedding(spec, COND_DIM) if conditional(spec) else None
        self.coarsest = coarsest
        features = config.z_dim + (COND_DIM if self.embed is not None else 0)
        self.first = nn.Linear(features, widths[0] * coarsest**2, bias=False)
        scaled(self.first, 1.0, SLOPE_OF_LINEAR)
        self.body = trunk(widths, config, up=True)
        self.out = Conv2d(widths[-1], spec.shape[0], 1, bias=False)
        scaled(self.out, 1.0, SLOPE_OF_LINEAR)

    def forward(self, z: Tensor, cond: Cond) -> Tensor:
        h = self.first(with_condition(self.embed, z, cond)).view(len(z), -1, self.coarsest, self.coarsest)
        out: Tensor = self.out(self.body(h)).tanh()
        return out


class R3Discriminator(nn.Module):
    """Pictures (b c h w) and a condition to one score each, (b,), by an inner product with the embedded condition."""

    def __init__(self, spec: DataSpec, config: R3GANConfig) -> None:
        super().__init__()
        coarsest, widths = widths_of(spec, config)
        widths = widths[::-1]
        self.enter = Conv2d(spec.shape[0], widths[0], 1)
        scaled(self.enter, 1.0, SLOPE_OF_LINEAR)
        self.body = trunk(widths, config, up=False)
        # each channel of the coarsest map to one number
        self.gather = Conv2d(widths[-1], widths[-1], coarsest, groups=widths[-1], bias=False)
        self.embed = embedding(spec, COND_DIM) if conditional(spec) else None
        self.out = nn.Linear(widths[-1], COND_DIM if self.embed is not None else 1, bias=False)
        for layer in (self.gather, self.out):
            scaled(layer, 1.0, SLOPE_OF_LINEAR)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return self.score(self.features(x), cond)

    def features(self, x: Tensor) -> Tensor:
        """Pictures to what is asked of the condition, (b, COND_DIM), or to scores (b, 1)."""
        out: Tensor = self.out(self.gather(self.body(self.enter(x))).flatten(1))
        return out

    def score(self, h: Tensor, cond: Cond) -> Tensor:
        """Features to scores (b,)."""
        if self.embed is None:
            return h[:, 0]
        return (h * self.embed(cond, h.shape[0])[0]).sum(dim=1) / math.sqrt(COND_DIM)


@register(
    "family",
    "r3gan",
    presets={
        "tiny": {"z_dim": 32, "width": 16, "max_width": 32, "groups": 16},
        "32": {"width": 64, "max_width": 192, "depth": 2},
        "64": {"width": 16, "max_width": 192},
        "128": {"width": 16, "max_width": 192},
    },
    about="R3GAN: a relativistic loss that converges, and no tricks",
    source="Huang et al. 2024, The GAN is dead; long live the GAN!",
)
class R3GAN(GAN):
    """The generator G and the discriminator D, trained in turn; row i of a batch is compared with drawn picture i."""

    Config = R3GANConfig
    Options = R3GANOptions

    config: R3GANConfig

    def __init__(self, config: R3GANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.G = R3Generator(spec, config)
        self.D = R3Discriminator(spec, config)

    @property
    def splittable(self) -> bool:  # type: ignore[override]
        """With `matching` a row sees its neighbour's condition."""
        return not self.config.matching

    def phases(self) -> list[Phase]:
        return [Phase("D", ("D",)), Phase("G", ("G",))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        cond = self.dropped(batch)
        z = torch.randn(len(batch), self.config.z_dim).to(batch.x)
        if phase == "G":
            # Source: Huang et al. 2024, eq. 2: the generator's side is the same with the sign turned.
            value = F.softplus(self.D(self.augmented(batch.x), cond) - self.D(self.augmented(self.G(z, cond)), cond))
            return Loss(value, {"loss/G": value.detach()})
        with torch.no_grad():
            real, fake = self.augmented(batch.x).detach(), self.augmented(self.G(z, cond))
        k = math.ceil(self.config.penalised * len(batch)) if self.config.gamma else 0
        near, near_fake = real[:k].requires_grad_(True), fake[:k].requires_grad_(True)
        h, h_fake = (
            torch.cat([self.D.features(part) for part in (first, rest) if len(part)])
            for first, rest in ((near, real[k:]), (near_fake, fake[k:]))
        )
        real_score, fake_score = self.D.score(h, cond), self.D.score(h_fake, cond)
        value = F.softplus(fake_score - real_score)
        value = self.matched(value, cond, lambda other: F.softplus(self.D.score(h, other) - real_score))
        logs = {"score/real": real_score.detach(), "score/fake": fake_score.detach(), "loss/D": value.detach()}
        if k:
            # Source: Huang et al. 2024, eq. 3 (R1 on real pictures, R2 on drawn ones).
            r1 = losses.zero_centred_penalty(real_score[:k], near)
            r2 = losses.zero_centred_penalty(fake_score[:k], near_fake)
            more = self.config.gamma / 2 * len(batch) / k * (r1 + r2)
            value = torch.cat([value[:k] + more, value[k:]])
            logs |= {"penalty/r1": r1.detach().mean(), "penalty/r2": r2.detach().mean()}
        return Loss(value, logs, stats=self.ada_statistics(real_score - fake_score))

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        """One Step from z; with guides, a walk in z whose Steps show every decoded place."""
        assert isinstance(options, R3GANOptions)
        z = noise.draw("z", (self.config.z_dim,)).to(next(self.G.parameters()).device)
        yield from self.walked(lambda z: self.G(options.truncation * z, cond), z, cond, guides, noise, options)
