"""What is expected of a VAE's latents before a picture is seen: a Gaussian by condition, a flow by condition.

Knows nothing about pictures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sojourn.diffusion.guidance import Strength, prompted
from sojourn.diffusion.path import FlowPath
from sojourn.diffusion.samplers import heun
from sojourn.nets.blocks import TimeEmbed, VectorBlock
from sojourn.nets.conv import embedding
from sojourn.types import Cond, DataSpec, Noise

DRAWS = 8
"""Noise levels at which each latent is looked at in a step that encoder and decoder learn in too."""
STEPS = 12
"""Steps of Heun's method from noise to a latent."""


class Told(nn.Module):
    """A condition to what the decoder is told of it, (b, dim): things of like names may look quite different."""

    def __init__(self, spec: DataSpec, dim: int) -> None:
        super().__init__()
        self.embed = embedding(spec, dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.SiLU(), nn.Linear(4 * dim, dim))

    def forward(self, cond: Cond, rows: int) -> Tensor:
        vector = self.embed(cond, rows)[0]
        out: Tensor = vector + self.mlp(vector)
        return out


class Prior(nn.Module):
    """What a condition says of latents before the picture is seen: mean and log variance, (b, *shape) each.

    Source: Sohn et al. 2015, sec. 4.1 (the prior network).
    """

    def __init__(self, spec: DataSpec, shape: Sequence[int], hidden: int = 256) -> None:
        super().__init__()
        self.shape = tuple(shape)
        self.told = Told(spec, hidden)
        self.out = nn.Linear(hidden, 2 * math.prod(self.shape))
        nn.init.normal_(self.out.weight, 0, 1e-3)
        nn.init.zeros_(self.out.bias)

    def forward(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor]:
        mean, logvar = self.out(self.told(cond, rows)).float().view(rows, 2, *self.shape).unbind(dim=1)
        return mean, logvar.clamp(-20, 10)


class LatentFlow(nn.Module):
    """Noise to latents as an encoder gives them, both (b, *shape) and about standard normal, as a rectified flow.

    What an encoder gives for all pictures of a condition is no Gaussian, and draws of one decode to what no picture
    is like. Source: Dai & Wipf 2019, sec. 4 (a second model of the latents); Vahdat et al. 2021 (a walk as a prior).
    """

    def __init__(self, spec: DataSpec, shape: Sequence[int], width: int, told: bool, depth: int = 3) -> None:
        super().__init__()
        size = math.prod(shape)
        self.path = FlowPath()
        self.told = Told(spec, width) if told else None
        self.time = TimeEmbed(width)
        self.enter = nn.Linear(size, width)
        self.blocks = nn.ModuleList(VectorBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, size)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def velocity(self, x: Tensor, level: Tensor, cond: Cond) -> Tensor:
        """Where x (b, *shape) moves at noise levels (b,), what is told of each row of `cond` counting for b / rows."""
        vector = self.time(level)
        if self.told is not None:
            rows = cond.rows or len(x)
            vector = vector + self.told(cond, rows).repeat(len(x) // rows, 1)
        h = self.enter(x.flatten(1))
        for block in self.blocks:
            h = block(h, vector)
        out: Tensor = self.out(self.norm(h)).float().view_as(x)
        return out

    def loss(self, z: Tensor, cond: Cond, draws: int = 1) -> Tensor:
        """Mean square error of the velocity towards latents z (b, *shape) at so many noise levels of each: (b,)."""
        rows = z.repeat(draws, *(1 for _ in z.shape[1:]))
        sample = self.path.training(rows, torch.randn_like(rows), torch.rand(len(rows), device=rows.device))
        gap = self.velocity(sample.input, sample.level, cond) - sample.target
        return gap.square().flatten(1).mean(dim=1).view(draws, len(z)).mean(dim=0)

    def forward(self, eps: Tensor, cond: Cond, guidance: float = 1.0) -> Tensor:
        """The latents that draws eps (b, *shape) of a standard normal lead to."""
        denoise = prompted(self.path.denoiser(self.velocity), Strength(guidance))
        sigmas = self.path.sigmas(STEPS).to(eps)
        x = sigmas[0] * eps
        for step in heun(denoise, x, sigmas, cond, Noise(range(len(eps)))):
            x = step.x
        return x


def placed(draw: Tensor, prior: tuple[Tensor, Tensor] | None) -> Tensor:
    """A standard normal draw (b, z, ...) as one of a prior's mean and log variance."""
    return draw if prior is None else prior[0] + (0.5 * prior[1]).exp() * draw


def lifted(z: Tensor, prior: tuple[Tensor, Tensor] | None) -> Tensor:
    """The standard normal draw that `placed` makes z (b, z, ...) of."""
    return z if prior is None else (z - prior[0]) * (-0.5 * prior[1]).exp()
