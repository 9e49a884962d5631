"""Residual nets: the generator and discriminator of SNGAN, for square pictures, and a trunk for classifiers.

Pure modules: they know no losses and draw no noise.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.nets.blocks import ResBlock
from sojourn.nets.conv import (
    COND_DIM,
    Critic,
    Norm,
    check_picture,
    conditional,
    embedding,
    initialise,
    norm_layer,
    stage_widths,
)
from sojourn.types import Cond, DataSpec


class Trunk(nn.Module):
    """Pictures to features, (b, c, h, w) -> (b, widths[-1]); sides are multiples of stem * 2 ** (len(widths) - 1)."""

    def __init__(self, channels: int, widths: Sequence[int], depth: int, stem: int) -> None:
        super().__init__()
        self.stem = stem
        layers: list[nn.Module] = [nn.Conv2d(channels * stem**2, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1))
            layers += [ResBlock(width, width) for _ in range(depth)]
        self.layers = nn.Sequential(*layers, nn.GroupNorm(8, widths[-1]), nn.SiLU())

    def forward(self, x: Tensor) -> Tensor:
        x = F.pixel_unshuffle(x, self.stem) if self.stem > 1 else x
        return self.layers(x.contiguous(memory_format=torch.channels_last)).mean(dim=(2, 3))


class ConditionalNorm(nn.Module):
    """A norm whose scale and shift follow from a vector (b, dim), if there is one.

    Source: de Vries et al. 2017, eq. 3.
    """

    def __init__(self, kind: Norm, channels: int, dim: int) -> None:
        super().__init__()
        self.norm = norm_layer(kind, channels)
        self.modulate = nn.Linear(dim, 2 * channels, bias=False) if dim else None

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        x = self.norm(x)
        if self.modulate is None or vector is None:
            return x
        scale, shift = self.modulate(vector)[:, :, None, None].chunk(2, dim=1)
        return x * (1 + scale) + shift


class Up(nn.Module):
    """A residual block that doubles the side: (b, cin, h, w) -> (b, cout, 2 h, 2 w).

    Source: Miyato et al. 2018, fig. 14.
    """

    def __init__(self, cin: int, cout: int, norm: Norm, dim: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = ConditionalNorm(norm, cin, dim), ConditionalNorm(norm, cout, dim)
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1)

    def forward(self, x: Tensor, vector: Tensor | None) -> Tensor:
        h = F.interpolate(F.relu(self.norm1(x, vector)), scale_factor=2.0)
        h = self.conv2(F.relu(self.norm2(self.conv1(h), vector)))
        # A convolution of one place may come before the doubling: a quarter of its work.
        return h + F.interpolate(self.skip(x), scale_factor=2.0)


class Down(nn.Module):
    """A residual block without norms, that halves the side or keeps it: (b, cin, h, w) -> (b, cout, h / 2, w / 2).

    first: of pictures, where there is nothing to activate yet. Source: Miyato et al. 2018, fig. 14.
    """

    def __init__(self, cin: int, cout: int, halve: bool, first: bool = False) -> None:
        super().__init__()
        self.halve, self.first = halve, first
        self.conv1 = nn.Conv2d(cin, cout, 3, padding=1)
        self.conv2 = nn.Conv2d(cout, cout, 3, padding=1)
        self.skip = nn.Conv2d(cin, cout, 1) if halve or cin != cout else None

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv2(F.relu(self.conv1(x if self.first else F.relu(x))))
        if self.halve:
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        return h + (x if self.skip is None else self.skip(x))


class ResGenerator(nn.Module):
    """z (b, z_dim) and a condition to pictures (b c h w) in (-1, 1); the condition scales and shifts every norm.

    It is in the first map too (Brock et al. 2019, app. B, BigGAN-deep): it lays out, norms only tint.
    Source: Miyato et al. 2018, table 4; Miyato & Koyama 2018, sec. 4 for the classes.
    """

    def __init__(self, spec: DataSpec, z_dim: int, width: int, max_width: int, norm: Norm) -> None:
        super().__init__()
        check_picture(spec)
        channels, side, _ = spec.shape
        self.embed = embedding(spec, COND_DIM) if conditional(spec) else None
        dim = COND_DIM if self.embed is not None else 0
        self.coarsest, widths = stage_widths(side, width, max_width)
        widths = [widths[0], *widths]
        self.project = nn.Linear(z_dim + dim, widths[0] * self.coarsest**2)
        self.blocks = nn.ModuleList(Up(cin, cout, norm, dim) for cin, cout in pairwise(widths))
        self.norm = norm_layer(norm, widths[-1])
        self.out = nn.Conv2d(widths[-1], channels, 3, padding=1)
        initialise(self)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)

    def forward(self, z: Tensor, cond: Cond) -> Tensor:
        vector = None if self.embed is None else self.embed(cond, z.shape[0])[0]
        h = self.project(z if vector is None else torch.cat([z, vector], dim=1)).view(
            z.shape[0], -1, self.coarsest, self.coarsest
        )
        for block in self.blocks:
            h = block(h, vector)
        return torch.tanh(self.out(F.relu(self.norm(h))))


class Pooled(nn.Module):
    """ReLU and the sum over all places: (b, c, h, w) -> (b, c)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x).sum(dim=(2, 3))


class ResDiscriminator(Critic):
    """Residual blocks down to the coarsest map, one more there, and the sum of its places as features.

    Source: Miyato et al. 2018, table 4.
    """

    def __init__(
        self,
        spec: DataSpec,
        width: int,
        max_width: int,
        heads: Sequence[int] = (),
        project: bool = True,
        spectral: bool = True,
    ) -> None:
        check_picture(spec)
        channels, side, _ = spec.shape
        widths = stage_widths(side, width, max_width)[1][::-1]
        layers: list[nn.Module] = [Down(channels, widths[0], halve=True, first=True)]
        layers += [Down(cin, cout, halve=True) for cin, cout in pairwise(widths)]
        layers += [Down(widths[-1], widths[-1], halve=False), Pooled()]
        super().__init__(spec, nn.Sequential(*layers), widths[-1], heads, project, spectral)
