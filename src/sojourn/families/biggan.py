"""BigGAN: classes and parts of the latent in every layer, orthogonal weights, truncation.

Knows nothing about files or prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import ConfigError
from sojourn.families.base import BaseOptions, Phase
from sojourn.families.gan import GAN, GANConfig, GANOptions
from sojourn.nets import losses
from sojourn.nets.blocks import Attention
from sojourn.nets.conv import (
    COND_DIM,
    Norm,
    check_picture,
    conditional,
    embedding,
    initialise,
    norm_layer,
    stage_widths,
)
from sojourn.nets.resnet import Down, Pooled, Up
from sojourn.nets.spectral import advance, normalised
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step


class BigGANConfig(GANConfig):
    """How a BigGAN is built."""

    z_dim: int = Field(100, ge=2, le=4096)
    """Width of the latent; it is dealt to the layers in equal parts, what is left over to the first."""
    width: int = Field(48, ge=8, le=1024)
    """Channels of both nets at half the picture's size, a multiple of 8; they double with each halving."""
    max_width: int = Field(384, ge=8, le=4096)
    """Most channels a layer has, a multiple of 8."""
    attend: int = Field(16, ge=0, le=64)
    """Side of the map at which both nets look at all places at once; off where it is not between the coarsest map's and
    the picture's. 0 = off."""
    g_norm: Norm = "batch"
    """Norm of the generator. batch: as in the paper, couples the rows of a training batch; layer: does not."""
    n_critic: int = Field(2, ge=1, le=100)
    """Updates of the discriminator to one of the generator."""
    orthogonal: float = Field(1e-4, ge=0, le=1)
    """Weight of what keeps a layer's filters at right angles, so that truncation works. 0 = off."""


class BigGANOptions(GANOptions):
    """How to draw from a BigGAN."""

    truncation: float | None = Field(None, gt=0, le=10)
    """Largest value in z, whose normal distribution is cut there: about 0.5 for typical pictures, with less variety.
    None = off."""


class SelfAttention(nn.Module):
    """Attention among all places of a map, around a skip that opens from zero: (b, c, h, w) -> the same.

    Source: Zhang et al. 2019 (SAGAN), sec. 3.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        heads = max(1, channels // 64)
        self.attention = Attention(channels, next(count for count in range(heads, 0, -1) if channels % count == 0))
        self.gate = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.attention(x.flatten(2).transpose(1, 2))  # (b, h w, c)
        return x + self.gate * tokens.transpose(1, 2).reshape(x.shape)


class BigGenerator(nn.Module):
    """z (b, z_dim) and a condition to pictures (b c h w) in (-1, 1).

    Every block gets its own part of z beside the embedded condition, which all blocks share. Source: Brock et al. 2019,
    app. B, fig. 15.
    """

    def __init__(self, spec: DataSpec, config: BigGANConfig) -> None:
        super().__init__()
        check_picture(spec)
        channels, side, _ = spec.shape
        self.embed = embedding(spec, COND_DIM) if conditional(spec) else None
        self.coarsest, widths = stage_widths(side, config.width, config.max_width)
        widths = [widths[0], *widths]
        part = config.z_dim // len(widths)
        if part == 0:
            raise ConfigError(
                "z_dim {z_dim} is too small for {count} layers; take at least {count}",
                z_dim=config.z_dim,
                count=len(widths),
            )
        self.parts = [config.z_dim - part * (len(widths) - 1)] + [part] * (len(widths) - 1)
        dim = part + (COND_DIM if self.embed is not None else 0)
        # The class is in the first map too, as in BigGAN-deep (app. B): it lays out, norms only tint.
        self.project = nn.Linear(self.parts[0] + dim - part, widths[0] * self.coarsest**2)
        self.blocks = nn.ModuleList(Up(cin, cout, config.g_norm, dim) for cin, cout in pairwise(widths))
        sides = [self.coarsest * 2 ** (i + 1) for i in range(len(self.blocks))]
        self.attention = nn.ModuleDict(
            {str(i): SelfAttention(widths[i + 1]) for i, s in enumerate(sides[:-1]) if s == config.attend}
        )
        self.norm = norm_layer(config.g_norm, widths[-1])
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)
        initialise(self)
        normalised(self, but=(nn.Embedding,))

    def forward(self, z: Tensor, cond: Cond) -> Tensor:
        first, *parts = z.split(self.parts, dim=1)
        vector = None if self.embed is None else self.embed(cond, z.shape[0])[0]
        first = first if vector is None else torch.cat([first, vector], dim=1)
        h = self.project(first).view(z.shape[0], -1, self.coarsest, self.coarsest)
        for i, (block, part) in enumerate(zip(self.blocks, parts, strict=True)):
            h = block(h, part if vector is None else torch.cat([part, vector], dim=1))
            if str(i) in self.attention:
                h = self.attention[str(i)](h)
        return torch.tanh(self.out(F.relu(self.norm(h))))


class BigDiscriminator(nn.Module):
    """Pictures (b c h w) and a condition to one score each, (b,).

    Source: Brock et al. 2019, app. B; Miyato & Koyama 2018, eq. 3.
    """

    def __init__(self, spec: DataSpec, config: BigGANConfig) -> None:
        super().__init__()
        check_picture(spec)
        channels, side, _ = spec.shape
        coarsest, widths = stage_widths(side, config.width, config.max_width)
        widths = widths[::-1]
        layers: list[nn.Module] = []
        for i, (cin, cout) in enumerate(pairwise([channels, *widths])):
            layers.append(Down(cin, cout, halve=True, first=i == 0))
            side //= 2
            if coarsest < side == config.attend:
                layers.append(SelfAttention(cout))
        self.body = nn.Sequential(*layers, Down(widths[-1], widths[-1], halve=False), Pooled())
        self.out = nn.Linear(widths[-1], 1, bias=False)
        self.embed = embedding(spec, widths[-1]) if conditional(spec) else None
        initialise(self)
        # Classes as loud as they wish: divided by the norm of all, with so few pictures of each they were not heard.
        normalised(self, but=(nn.Embedding,))

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return self.score(self.body(x), cond)

    def score(self, h: Tensor, cond: Cond) -> Tensor:
        """Features (b, d) to scores (b,)."""
        score: Tensor = self.out(h)[:, 0]
        if self.embed is None:
            return score
        return score + (self.embed(cond, h.shape[0])[0] * h).sum(dim=1)


@register(
    "family",
    "biggan",
    presets={
        "tiny": {"z_dim": 32, "width": 16, "max_width": 32, "attend": 4, "g_norm": "layer", "n_critic": 1},
        "32": {"width": 64, "max_width": 192},
        "64": {"width": 32, "max_width": 256},
        "128": {"width": 32, "max_width": 384, "attend": 32},
    },
    about="BigGAN: classes and latent in every layer, variety for fidelity by truncation",
    source="Brock et al. 2019, Large Scale GAN Training for High Fidelity Natural Image Synthesis",
)
class BigGAN(GAN):
    """The generator G and the discriminator D, trained in turn with the hinge loss.

    The packaged G is a moving average, as in the paper (sec. 3); its batch norm's running statistics stand for the
    paper's standing ones.
    """

    Config = BigGANConfig
    Options = BigGANOptions

    config: BigGANConfig

    def __init__(self, config: BigGANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.G = BigGenerator(spec, config)
        self.D = BigDiscriminator(spec, config)

    @property
    def splittable(self) -> bool:  # type: ignore[override]
        """Batch norm sees its whole batch, and with `matching` a row its neighbour's condition."""
        return self.config.g_norm != "batch" and not self.config.matching

    def phases(self) -> list[Phase]:
        return [Phase("D", ("D",), repeat=self.config.n_critic), Phase("G", ("G",))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        cond = self.dropped(batch)
        z = torch.randn(len(batch), self.config.z_dim).to(batch.x)
        if phase == "D":
            with torch.no_grad():
                fake = self.G(z, cond)
            h, fake_score = self.D.body(self.augmented(batch.x)), self.D(self.augmented(fake), cond)
            real_score = self.D.score(h, cond)
            value = self.matched(
                losses.hinge_d(real_score, fake_score),
                cond,
                lambda other: losses.hinge_d(real_score, self.D.score(h, other)),
            )
            logs = {"score/real": real_score.detach(), "score/fake": fake_score.detach(), "loss/D": value.detach()}
            return Loss(value, logs, stats=self.ada_statistics(real_score))
        value = losses.hinge_g(self.D(self.augmented(self.G(z, cond)), cond))
        logs = {"loss/G": value.detach()}
        if self.config.orthogonal:
            angles = off_diagonal(self.G)
            value = value + self.config.orthogonal * angles
            logs["loss/orthogonal"] = angles.detach()
        return Loss(value, logs)

    def after(self, phase: str, stats: Mapping[str, Tensor]) -> None:
        super().after(phase, stats)
        advance(self.D if phase == "D" else self.G)

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        """One Step from z; with guides, a walk in z whose Steps show every decoded place."""
        assert isinstance(options, BigGANOptions)
        z = noise.draw("z", (self.config.z_dim,)).to(next(self.G.parameters()).device)

        def decode(z: Tensor) -> Tensor:
            out: Tensor = self.G(z if options.truncation is None else truncated_normal(z, options.truncation), cond)
            return out

        yield from self.walked(decode, z, cond, guides, noise, options)


def off_diagonal(net: nn.Module) -> Tensor:
    """Sum over weights of the squared inner products of different filters. Source: Brock et al. 2019, eq. 3."""
    terms = []
    for name, weight in net.named_parameters():
        if weight.ndim > 1 and "embed" not in name:
            filters = weight.flatten(1)  # (out, in)
            gram = filters @ filters.T
            terms.append((gram - gram.diagonal().diag()).square().sum())
    return torch.stack(terms).sum()


def truncated_normal(z: Tensor, most: float) -> Tensor:
    """Normal z to a normal distribution cut at +-most, value by value, keeping their order.

    What resampling gives, as a function: a seed keeps its picture and the latent walk its gradient. Source: Brock et
    al. 2019, sec. 3.1.
    """
    low = 0.5 * math.erfc(most / math.sqrt(2))
    share = low + (1 - 2 * low) * torch.special.ndtr(z.double())
    return torch.special.ndtri(share.clamp(1e-12, 1 - 1e-12)).to(z)
