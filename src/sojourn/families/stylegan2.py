"""StyleGAN2: a mapped latent that scales every convolution, with lazy penalties, style mixing and truncation in w.

Knows nothing about files or prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from sojourn.errors import InvalidInput
from sojourn.families.base import BaseOptions, Phase
from sojourn.families.gan import GAN, GANConfig, GANOptions
from sojourn.nets import losses
from sojourn.nets import style as nets
from sojourn.registry import register
from sojourn.types import LATE, Batch, Cond, DataSpec, Guide, Loss, Noise, Step

MEAN_KEEP = 0.998
"""Share that the running mean of w keeps at an update."""
LENGTH_KEEP = 0.99
"""The same of the running mean of path lengths (Karras et al. 2020, app. B)."""


class StyleGAN2Config(GANConfig):
    """How a StyleGAN2 is built."""

    z_dim: int = Field(128, ge=2, le=4096)
    """Width of the latent z."""
    w_dim: int = Field(128, ge=2, le=4096)
    """Width of the style w."""
    mapping: int = Field(4, ge=1, le=16)
    """Layers from z to w."""
    width: int = Field(32, ge=4, le=1024)
    """Channels of both nets at full resolution; they double with each halving."""
    max_width: int = Field(192, ge=4, le=4096)
    """Most channels a layer has."""
    gamma: float = Field(1.0, ge=0, le=1000)
    """Weight of R1, before the half of its definition. 0 = off."""
    r1_every: int = Field(16, ge=1, le=1000)
    """Rounds between two updates of R1."""
    path: float = Field(2.0, ge=0, le=100)
    """Weight of the path length penalty. 0 = off."""
    path_every: int = Field(8, ge=1, le=1000)
    """Rounds between two updates of it."""
    mixing: float = Field(0.9, ge=0, le=1)
    """Share of drawn pictures in training whose later layers follow a second latent. 0 = off."""


class StyleGAN2Options(GANOptions):
    """How to draw from a StyleGAN2."""

    truncation: float = Field(1.0, ge=-2, le=2)
    """Distance of w from its mean: less is closer to the typical picture, with less variety. 1 = off, 0 = the mean."""
    truncated: int = Field(64, ge=0, le=64)
    """Layers that truncation is for, coarsest first; the others keep their details. 64 = all."""
    mix: int | None = Field(None, ge=0, le=64)
    """Layer from which on another picture's styles are followed: 0 = all of them, coarse ones first. None = off."""
    direction: int = Field(0, ge=0, le=4095)
    """Which direction of w `move` is along: 0 = that which changes most."""
    move: float = Field(0.0, ge=-100, le=100)
    """How far w moves along it, in typical distances from its mean. 0 = off."""


class StyleGenerator(nn.Module):
    """z (b, z_dim), a condition and noise of each layer to pictures (b c h w)."""

    mean: Tensor

    def __init__(self, spec: DataSpec, config: StyleGAN2Config) -> None:
        super().__init__()
        self.mapping = nets.Mapping(spec, config.z_dim, config.w_dim, config.mapping)
        self.synthesis = nets.Synthesis(spec, config.w_dim, config.width, config.max_width)
        self.register_buffer("mean", torch.zeros(config.w_dim))

    def styles(self, z: Tensor, cond: Cond) -> Tensor:
        """One w for each layer: (b, layers, w_dim)."""
        w: Tensor = self.mapping(z, cond)
        return w[:, None].repeat(1, self.synthesis.count, 1)


@register(
    "family",
    "stylegan2",
    presets={
        "tiny": {"z_dim": 32, "w_dim": 32, "mapping": 2, "width": 8, "max_width": 32, "r1_every": 2, "path_every": 2},
        "32": {"width": 48, "max_width": 192, "gamma": 0.02},
        "64": {"width": 24, "max_width": 192, "gamma": 0.05},
        "128": {"width": 16, "max_width": 256, "gamma": 0.2},
    },
    about="StyleGAN2: smooth latents, coarse and fine styles apart; best on sets of one kind of thing",
    source="Karras et al. 2020, Analyzing and Improving the Image Quality of StyleGAN",
)
class StyleGAN2(GAN):
    """The generator G and the discriminator D, trained in turn, each with a penalty now and then."""

    Config = StyleGAN2Config
    Options = StyleGAN2Options
    splittable: ClassVar[bool] = False

    config: StyleGAN2Config
    length: Tensor

    def __init__(self, config: StyleGAN2Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.G = StyleGenerator(spec, config)
        self.D = nets.StyleDiscriminator(spec, config.width, config.max_width)
        self.register_buffer("length", torch.zeros(()))

    def phases(self) -> list[Phase]:
        c = self.config
        phases = [Phase("D", ("D",)), Phase("G", ("G",))]
        phases += [Phase("R1", ("D",), every=c.r1_every)] if c.gamma else []
        return phases + ([Phase("path", ("G",), every=c.path_every)] if c.path else [])

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        cond = self.dropped(batch)
        if phase == "R1":
            real = self.augmented(batch.x).detach().requires_grad_(True)
            penalty = losses.zero_centred_penalty(self.D(real, cond), real)
            return Loss(self.config.gamma / 2 * penalty, {"penalty/R1": penalty.detach()})
        if phase == "path":
            return self._path(cond, len(batch))
        if phase == "D":
            with torch.no_grad():
                fake = self.G.synthesis(self._mixed(cond, len(batch)), self._eps(len(batch)))
            h, fake_score = self.D.features(self.augmented(batch.x)), self.D(self.augmented(fake), cond)
            real_score = self.D.score(h, cond)
            value = self.matched(
                losses.logistic_d(real_score, fake_score),
                cond,
                lambda other: losses.logistic_d(real_score, self.D.score(h, other)),
            )
            logs = {"score/real": real_score.detach(), "score/fake": fake_score.detach(), "loss/D": value.detach()}
            return Loss(value, logs, stats=self.ada_statistics(real_score))
        styles = self._mixed(cond, len(batch))
        fake = self.augmented(self.G.synthesis(styles, self._eps(len(batch))))
        value = losses.logistic_g(self.D(fake, cond))
        stats = {"w": styles[:, 0].detach().sum(dim=0), "rows": torch.tensor(float(len(batch)))}
        return Loss(value, {"loss/G": value.detach()}, stats=stats)

    def _path(self, cond: Cond, rows: int) -> Loss:
        styles = self.G.styles(self._z(rows), cond)
        x = self.G.synthesis(styles, self._eps(rows))
        lengths = path_lengths(x, styles, torch.randn_like(x))
        # The mean moves with each update: at the first, which has none, it is that of its own rows.
        mean = torch.where(self.length > 0, self.length, lengths.detach().mean())
        penalty = (lengths - mean).square()
        stats = {"length": lengths.detach().sum(), "rows": torch.tensor(float(rows))}
        logs = {"penalty/path": penalty.detach(), "path/length": lengths.detach()}
        return Loss(self.config.path * penalty, logs, stats=stats)

    def _z(self, rows: int) -> Tensor:
        return torch.randn(rows, self.config.z_dim).to(self.length)

    def _eps(self, rows: int) -> list[Tensor]:
        return [torch.randn(rows, *shape).to(self.length) for shape in self.G.synthesis.shapes]

    def _mixed(self, cond: Cond, rows: int) -> Tensor:
        """Styles of random latents, some with those of a second from a random layer on.

        Source: Karras et al. 2019, sec. 3.1.
        """
        first, count = self.G.styles(self._z(rows), cond), self.G.synthesis.count
        if not self.config.mixing or count < 2:
            return first
        second = self.G.styles(self._z(rows), cond)
        cross = torch.randint(1, count, (rows,))
        cross = torch.where(torch.rand(rows) < self.config.mixing, cross, count).to(first.device)
        later = torch.arange(count, device=first.device)[None] >= cross[:, None]  # (b, layers)
        return torch.where(later[:, :, None], second, first)

    def after(self, phase: str, stats: Mapping[str, Tensor]) -> None:
        super().after(phase, stats)
        if phase == "G" and "w" in stats:
            self.G.mean.lerp_(stats["w"].to(self.G.mean) / stats["rows"], 1 - MEAN_KEEP)
        if phase == "path" and "length" in stats:
            mean = (stats["length"] / stats["rows"]).to(self.length)
            self.length.copy_(torch.where(self.length > 0, self.length.lerp(mean, 1 - LENGTH_KEEP), mean))

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        """One Step from z; with guides, a walk in z whose Steps show every decoded place."""
        assert isinstance(options, StyleGAN2Options)
        if options.mix is not None and options.mix >= self.G.synthesis.count:
            raise InvalidInput("layer {found} is outside 0..{most}", found=options.mix, most=self.G.synthesis.count - 1)
        z = noise.draw("z", (self.config.z_dim,)).to(self.length)
        shapes = self.G.synthesis.shapes
        eps = [noise.draw(f"noise/{i}", shape).to(self.length) for i, shape in enumerate(shapes)]
        late = noise.draw(f"{LATE}z", (self.config.z_dim,)).to(self.length) if options.mix is not None else None
        step = self._step(options)

        def decode(z: Tensor) -> Tensor:
            styles = self.G.styles(z, cond)
            if late is not None:
                styles = torch.cat([styles[:, : options.mix], self.G.styles(late, cond)[:, options.mix :]], dim=1)
            short = torch.lerp(self.G.mean.expand_as(styles), styles, options.truncation)
            n = options.truncated
            out: Tensor = self.G.synthesis(torch.cat([short[:, :n], styles[:, n:]], dim=1) + step, eps)
            return out

        yield from self.walked(decode, z, cond, guides, noise, options)

    def verdict(self, x: Tensor, cond: Cond) -> Tensor:
        """Each picture among three that are always the same: the discriminator compares those of a group."""
        rows = len(x)
        noise = Noise([seed for seed in range(nets.GROUP - 1) for _ in range(rows)])
        asked = cond.repeat(nets.GROUP) if cond.rows else cond
        with torch.no_grad():
            styles = self.G.styles(noise.draw("z", (self.config.z_dim,)).to(x), asked[rows:] if cond.rows else cond)
            shapes = self.G.synthesis.shapes
            eps = [noise.draw(f"noise/{i}", shape).to(x) for i, shape in enumerate(shapes)]
            company = self.G.synthesis(styles, eps)
        # row i of a group is at i + k * rows, as `minibatch_stddev` takes them
        return super().verdict(torch.cat([x, company]), asked)[:rows]

    def _step(self, options: StyleGAN2Options) -> Tensor | float:
        """What `direction` and `move` add to every w, (w_dim,)."""
        if not options.move:
            return 0.0
        if options.direction >= self.config.w_dim:
            raise InvalidInput(
                "direction {found} is outside 0..{most}", found=options.direction, most=self.config.w_dim - 1
            )
        # The mapping's last layer is fed numbers of unit variance: a w lies about as far from the mean as its noise.
        reach = self.G.styles(Noise(range(64)).draw("reach", (self.config.z_dim,)).to(self.length), Cond())[:, 0]
        length = (reach - reach.mean(dim=0)).square().sum(dim=1).mean().sqrt()
        return options.move * length * directions(self.G.synthesis)[options.direction]


def directions(synthesis: nets.Synthesis) -> Tensor:
    """Directions of w (w_dim, w_dim), by rows, that change what the layers are told most, first, to least.

    The largest number of each is positive. Source: Shen & Zhou 2021 (SeFa), eq. 5: eigenvectors of A'A.
    """
    layers = [m.style for m in synthesis.modules() if isinstance(m, nets.Modulated)]
    told = torch.cat([layer.weight * layer.scale for layer in layers])  # (all channels, w_dim)
    vectors: Tensor = torch.linalg.eigh((told.T @ told).double()).eigenvectors.flip(1).T.to(told)
    largest = vectors.gather(1, vectors.abs().argmax(dim=1, keepdim=True))
    return vectors * largest.sign()


def path_lengths(x: Tensor, styles: Tensor, eps: Tensor) -> Tensor:
    """How far pictures x (b c h w) move with their styles (b, layers, d), in the random direction eps: (b,).

    The norm of J' y with y = eps / sqrt(pixels), its square a mean over layers. Source: Karras et al. 2020, eq. 4.
    """
    pixels = x.shape[2] * x.shape[3]
    with torch.enable_grad():
        (grad,) = torch.autograd.grad((x * eps).sum() / math.sqrt(pixels), styles, create_graph=True)
    return (grad.square().sum(dim=2).mean(dim=1) + 1e-12).sqrt()
