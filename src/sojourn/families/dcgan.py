"""DCGAN and WGAN-GP, plain and by class: one step from noise to a picture; guided, a walk in the latent space.

Knows nothing about files or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sojourn.diffusion import langevin
from sojourn.errors import ConfigError
from sojourn.families.base import BaseConfig, BaseOptions, Family, Phase, finished
from sojourn.nets import losses
from sojourn.nets.conv import Discriminator, Generator, Norm, conditional
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step


class DCGANConfig(BaseConfig):
    """How a DCGAN is built."""

    loss: Literal["ns", "wgan"] = "ns"
    """ns: non-saturating logistic loss, penalty R1. wgan: Wasserstein loss, penalty of WGAN-GP."""
    z_dim: int = Field(128, ge=1, le=4096)
    """Width of the latent, 1..4096."""
    width: int = Field(64, ge=1, le=1024)
    """Channels of both nets at half the picture's size; they double with each halving."""
    max_width: int = Field(512, ge=1, le=4096)
    """Most channels a layer has."""
    g_norm: Norm = "batch"
    """Norm of the generator. batch: as in the paper, couples the rows of a training batch; layer: does not."""
    d_norm: Norm = "layer"
    """Norm of the discriminator. batch excludes a penalty, which is a matter of single samples."""
    penalty: float = Field(1.0, ge=0, le=1000)
    """Weight of the gradient penalty: gamma / 2 of R1, lambda of WGAN-GP. 0 = off."""
    n_critic: int = Field(1, ge=1, le=100)
    """Updates of the discriminator to one of the generator."""
    label_drop: float = Field(0.1, ge=0, le=1)
    """Share of training rows that lose their condition, so that drawing without one is learned. 0 = off."""


class DCGANOptions(BaseOptions):
    """How to draw from a DCGAN."""

    truncation: float = Field(1.0, ge=0, le=1)
    """Std of z: less is closer to the typical picture, with less variety. 1 = off."""
    steps: int = Field(60, ge=1, le=1000)
    """Moves of the walk when a guide bends it; without one there is a single step."""
    step_size: float = Field(0.05, gt=0, le=10)
    """Length of the first moves, in the time of the prior's flow; each row then finds its own."""
    temperature: float = Field(1.0, ge=0, le=10)
    """Randomness of the guided walk: 1 samples, 0 goes to the nearest best place."""


TINY = {"z_dim": 32, "width": 32, "max_width": 128, "g_norm": "layer"}


@register(
    "family",
    "dcgan",
    presets={
        "tiny": TINY,
        "64": {"width": 48, "max_width": 384},
        "128": {"width": 32, "max_width": 512},
    },
    about="Deep convolutional GAN with an R1 penalty; fast to draw from, plain or by class",
    source="Radford et al. 2016; Mescheder et al. 2018 (R1); Miyato & Koyama 2018 (classes)",
)
@register(
    "family",
    "wgan-gp",
    presets={
        "tiny": {**TINY, "loss": "wgan", "penalty": 10.0, "n_critic": 2},
        "64": {"width": 48, "max_width": 384, "loss": "wgan", "penalty": 10.0, "n_critic": 5},
        "128": {"width": 32, "max_width": 512, "loss": "wgan", "penalty": 10.0, "n_critic": 5},
    },
    about="Wasserstein GAN with gradient penalty; steadier and slower than dcgan",
    source="Gulrajani et al. 2017",
)
class DCGAN(Family):
    """The generator G and the discriminator D, trained in turn.

    Against Radford et al. 2016, D has no batch norm: a sample's loss and penalty must not depend on its batch-mates.
    """

    Config = DCGANConfig
    Options = DCGANOptions
    can: ClassVar[frozenset[str]] = frozenset({"sample"})
    averaged: ClassVar[tuple[str, ...]] = ("G",)
    score: ClassVar[str] = "held_out/swd"
    guides: ClassVar[frozenset[str]] = frozenset({"energy"})

    config: DCGANConfig

    def __init__(self, config: DCGANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if config.d_norm == "batch" and config.penalty > 0:
            raise ConfigError(
                "d_norm batch and penalty {penalty} exclude each other (a penalty is of single samples); "
                'set d_norm to "layer" or "none", or penalty to 0',
                penalty=config.penalty,
            )
        self.G = Generator(spec, config.z_dim, config.width, config.max_width, config.g_norm)
        self.D = Discriminator(spec, config.width, config.max_width, config.d_norm)

    @property
    def splittable(self) -> bool:  # type: ignore[override]
        """Batch norm sees its whole batch."""
        return "batch" not in (self.config.g_norm, self.config.d_norm)

    def phases(self) -> list[Phase]:
        return [Phase("D", ("D",), repeat=self.config.n_critic), Phase("G", ("G",))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        cond = batch.cond.drop(self.config.label_drop) if conditional(self.spec) else batch.cond
        z = torch.randn(len(batch), self.config.z_dim).to(batch.x)
        return self._loss_d(batch.x, z, cond) if phase == "D" else self._loss_g(z, cond)

    def _loss_d(self, real: Tensor, z: Tensor, cond: Cond) -> Loss:
        wgan = self.config.loss == "wgan"
        with torch.no_grad():
            fake = self.G(z, cond)
        if self.config.penalty > 0 and not wgan:
            real = real.detach().requires_grad_(True)
        real_score, fake_score = self.D(real, cond), self.D(fake, cond)
        value = (losses.wasserstein_d if wgan else losses.logistic_d)(real_score, fake_score)
        logs = {"score/real": real_score.detach(), "score/fake": fake_score.detach(), "loss/D": value.detach()}
        if self.config.penalty > 0:
            if wgan:
                mix = torch.rand(len(real)).to(real)
                penalty = losses.one_centred_penalty(lambda x: self.D(x, cond), real, fake, mix)
            else:
                penalty = losses.zero_centred_penalty(real_score, real)
            value = value + self.config.penalty * penalty
            logs["penalty/D"] = penalty.detach()
        return Loss(value, logs)

    def _loss_g(self, z: Tensor, cond: Cond) -> Loss:
        score = self.D(self.G(z, cond), cond)
        value = losses.wasserstein_g(score) if self.config.loss == "wgan" else losses.logistic_g(score)
        return Loss(value, {"loss/G": value.detach()})

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        """One Step from z; with guides, a walk in z whose Steps show every decoded place."""
        assert isinstance(options, DCGANOptions)
        self.check_guides(guides)
        z = noise.draw("z", (self.config.z_dim,)).to(self.device)
        decode = self._decoder(cond, options.truncation)
        energies = [guide.energy for guide in guides if guide.energy is not None]
        if not energies:
            with torch.no_grad():
                x = decode(z)
            yield finished(x)
            return
        yield from langevin.walk(
            decode,
            z,
            cond,
            energies,
            noise,
            steps=options.steps,
            step_size=options.step_size,
            temperature=options.temperature,
        )

    def _decoder(self, cond: Cond, truncation: float) -> Callable[[Tensor], Tensor]:
        return lambda z: self.G(truncation * z, cond)

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device
