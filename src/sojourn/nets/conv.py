"""The plain convolutional generator and discriminators of DCGAN, for square pictures of 8, 16, 32, ... pixels.

Pure modules: they know no losses and draw no noise. A condition comes in as a Cond, embedded here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import Unsupported
from sojourn.nets.blocks import CondEmbed
from sojourn.nets.spectral import normalised
from sojourn.types import Cond, DataSpec

Norm = Literal["batch", "layer", "none"]

COND_DIM = 64
"""Width of an embedded condition."""


def check_picture(spec: DataSpec) -> None:
    """Raise Unsupported unless spec is a square picture whose side is a power of two from 8 on."""
    side = spec.shape[-1]
    if spec.kind != "image" or len(spec.shape) != 3 or spec.shape[1] != side or side < 8 or side & (side - 1):
        raise Unsupported(
            "this family makes square pictures of 8, 16, 32, 64, 128, ... pixels, found {kind} of shape {shape}; "
            "prepare the set at such a size",
            kind=spec.kind,
            shape=tuple(spec.shape),
        )


def conditional(spec: DataSpec) -> bool:
    """Whether there is a label or a pooled text vector to be conditioned on."""
    return bool(spec.labels) or spec.pooled_dim > 0


def norm_layer(kind: Norm, channels: int) -> nn.Module:
    """ "batch": over the batch (couples its rows in training); "layer": over each sample; "none": identity."""
    if kind == "batch":
        return nn.BatchNorm2d(channels)
    return nn.GroupNorm(1, channels) if kind == "layer" else nn.Identity()


def stage_widths(side: int, width: int, max_width: int) -> tuple[int, list[int]]:
    """Side of the coarsest map, and channels of each map below full size, coarsest first.

    The coarsest map is 4x4 as in the paper, 2x2 for 8-pixel pictures, so that there are always two stages.
    """
    coarsest = 4 if side >= 16 else 2
    stages = int(math.log2(side // coarsest))
    return coarsest, [min(width * 2**i, max_width) for i in reversed(range(stages))]


class Generator(nn.Module):
    """z (b, z_dim) and a condition to pictures (b c h w) in (-1, 1).

    A class is concatenated to z as a learned vector of unit variance. `count` generators share all but their first
    layer; `which` (b,) says whose picture a row is. Source: Radford et al. 2016, fig. 1; Mirza & Osindero 2014,
    sec. 3.2 for the class; Hoang et al. 2018, sec. 3 for several.
    """

    def __init__(self, spec: DataSpec, z_dim: int, width: int, max_width: int, norm: Norm, count: int = 1) -> None:
        super().__init__()
        check_picture(spec)
        channels, side, _ = spec.shape
        self.count = count
        self.embed = embedding(spec, COND_DIM) if conditional(spec) else None
        self.coarsest, widths = stage_widths(side, width, max_width)
        self.widest = widths[0]
        bias = norm == "none"
        features = z_dim + (COND_DIM if self.embed is not None else 0)
        self.project = nn.Linear(features, count * self.widest * self.coarsest**2, bias=bias)
        self.first = norm_layer(norm, self.widest)
        self.stages = nn.ModuleList(
            nn.Sequential(nn.ConvTranspose2d(cin, cout, 4, 2, 1, bias=bias), norm_layer(norm, cout), nn.ReLU())
            for cin, cout in pairwise(widths)
        )
        self.out = nn.ConvTranspose2d(widths[-1], channels, 4, 2, 1)
        initialise(self)

    def forward(self, z: Tensor, cond: Cond, which: Tensor | None = None) -> Tensor:
        h = self.project(with_condition(self.embed, z, cond))
        if which is not None:
            h = h.view(z.shape[0], self.count, -1)[torch.arange(z.shape[0], device=z.device), which]
        h = F.relu(self.first(h.view(z.shape[0], self.widest, self.coarsest, self.coarsest)))
        for stage in self.stages:
            h = stage(h)  # (b, widths[i], 2h, 2w)
        return self.out(h).tanh()


class Critic(nn.Module):
    """A body from pictures to features (b, d), read as one score each and as logits of several questions.

    With `project` the condition enters the score as an inner product with a projection of the features. heads: answers
    to each question asked beside the score. Source: Miyato & Koyama 2018, eq. 3; Odena et al. 2017 (a head for
    classes).
    """

    def __init__(
        self, spec: DataSpec, body: nn.Module, features: int, heads: Sequence[int], project: bool, spectral: bool
    ) -> None:
        super().__init__()
        self.body = body
        # no biases: they cancel between real and fake in a Wasserstein loss, and would never be trained
        self.out = nn.Linear(features, 1, bias=False)
        told = project and conditional(spec)
        self.embed = embedding(spec, COND_DIM) if told else None
        self.project = nn.Linear(features, COND_DIM, bias=False) if told else None
        # Vectors of unit variance make long products; those of a matrix whose norm is 1 are short already.
        self.scale = 1.0 if spectral else 1 / math.sqrt(COND_DIM)
        self.heads = nn.ModuleList(nn.Linear(features, count) for count in heads)
        initialise(self)
        if spectral:
            normalised(self)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return self.judge(x, cond)[0]

    def judge(self, x: Tensor, cond: Cond) -> tuple[Tensor, list[Tensor]]:
        """(b c h w) to scores (b,), logits or a critic's values, and to the logits of each head, (b, answers)."""
        h = self.features(x)
        return self.score(h, cond), [head(h) for head in self.heads]

    def features(self, x: Tensor) -> Tensor:
        """(b c h w) to (b, d)."""
        out: Tensor = self.body(x).flatten(1)
        return out

    def score(self, h: Tensor, cond: Cond) -> Tensor:
        """Features (b, d) to scores (b,)."""
        score: Tensor = self.out(h)[:, 0]
        if self.embed is None or self.project is None:
            return score
        vector, _, _ = self.embed(cond, h.shape[0])
        return score + self.scale * (self.project(h) * vector).sum(dim=1)


class Discriminator(Critic):
    """DCGAN's: strided convolutions, all places of the last map as features. Source: Radford et al. 2016, sec. 3."""

    def __init__(
        self,
        spec: DataSpec,
        width: int,
        max_width: int,
        norm: Norm,
        heads: Sequence[int] = (),
        project: bool = True,
        spectral: bool = False,
    ) -> None:
        check_picture(spec)
        channels, side, _ = spec.shape
        coarsest, widths = stage_widths(side, width, max_width)
        widths = widths[::-1]
        layers: list[nn.Module] = [nn.Conv2d(channels, widths[0], 4, 2, 1), nn.LeakyReLU(0.2)]
        for cin, cout in pairwise(widths):
            conv = nn.Conv2d(cin, cout, 4, 2, 1, bias=norm == "none")
            layers += [conv, norm_layer(norm, cout), nn.LeakyReLU(0.2)]
        super().__init__(spec, nn.Sequential(*layers), widths[-1] * coarsest**2, heads, project, spectral)


def embedding(spec: DataSpec, dim: int) -> CondEmbed:
    """Embedding of labels and the pooled text; token features have no place in a one-step net.

    Labels are of unit variance, as a latent is: what is beside it in a fiftieth of its size is not listened to, and a
    row that is brought to unit length turns with every update of a small one.
    """
    return CondEmbed(replace(spec, text_dim=0, text_len=0), dim, spread=1.0)


def with_condition(embed: CondEmbed | None, z: Tensor, cond: Cond) -> Tensor:
    """z with the embedded condition behind it, (b, z_dim + COND_DIM), or z alone."""
    if embed is None:
        return z
    vector, _, _ = embed(cond, z.shape[0])
    return torch.cat([z, vector], dim=1)


def initialise(net: nn.Module) -> None:
    """Normal(0, 0.02) weights and zero biases, norms about 1 (Radford et al. 2016, sec. 4); labels of unit variance."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(module.weight, 0, 0.02)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.BatchNorm2d | nn.GroupNorm):
            nn.init.normal_(module.weight, 1, 0.02)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight)
