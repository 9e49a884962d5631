"""VAE/GAN: a VAE whose reconstruction is measured by a discriminator's features, which is trained beside it.

Source: Larsen et al. 2016, Autoencoding beyond Pixels using a Learned Similarity Metric.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sojourn.families.base import Phase
from sojourn.families.prior import placed
from sojourn.families.vae import Autoencoder, Decoder, GaussianConfig, gaussian, kl_normal
from sojourn.nets import losses
from sojourn.nets.conv import Discriminator
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Loss


class Squashed(Decoder):
    """A decoder whose pictures end at -1 and 1: a ground that should be white drifts to grey without an end."""

    def forward(self, z: Tensor, cond: Cond) -> Tensor:
        return super().forward(z, cond).tanh()


@register(
    "family",
    "vae-gan",
    presets={
        "tiny": {"widths": (8, 16), "z": 4, "d_width": 8, "d_max_width": 32},
        "64": {"stem": 2, "widths": (48, 96, 128, 128), "z": 64, "d_width": 32, "d_max_width": 192, "penalty": 0.02},
        "128": {"stem": 4, "widths": (48, 96, 128, 128), "z": 96, "d_width": 24, "d_max_width": 192, "penalty": 0.1},
    },
    about="VAE/GAN: a VAE's latent space with a GAN's sharpness",
    source="Larsen et al. 2016, Autoencoding beyond Pixels using a Learned Similarity Metric",
)
class VAEGAN(Autoencoder):
    """Encoder, decoder and discriminator, each with its own loss (algorithm 1 of the paper)."""

    class Config(GaussianConfig):
        d_width: int = Field(32, ge=1, le=1024)
        """Channels of the discriminator at half the picture's size; they double with each halving."""
        d_max_width: int = Field(256, ge=1, le=4096)
        """Most channels it has."""
        similarity: float = Field(1.0, ge=0, le=1000)
        """Weight of likeness in the discriminator's features against being taken for real, in the decoder's loss."""
        pixels: float = Field(1.0, ge=0, le=1000)
        """Weight of half the mean square difference of pixels beside it. 0 = off, as in the paper."""
        penalty: float = Field(1.0, ge=0, le=1000)
        """Weight of R1 on the discriminator, gamma / 2. 0 = off."""

    averaged: ClassVar[tuple[str, ...]] = ("enc", "dec")
    score: ClassVar[str] = "held_out/swd"
    keeps: ClassVar[Literal["best", "last"]] = "last"

    config: Config

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.dec = Squashed(spec, config)
        self.D = Discriminator(spec, config.d_width, config.d_max_width, "layer", project=config.conditional)

    def phases(self) -> list[Phase]:
        return [Phase("enc", ("enc",)), Phase("dec", ("dec",)), Phase("D", ("D",))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        x, cond, config = batch.x, self.dropped(batch), self.config
        with torch.set_grad_enabled(torch.is_grad_enabled() and phase == "enc"):
            mean, logvar = gaussian(self.enc(x, cond))
            prior = self.enc.expected(cond, len(batch))
            z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        with torch.set_grad_enabled(torch.is_grad_enabled() and phase != "D"):
            again, fresh = self.dec(z, cond), self.dec(placed(torch.randn_like(mean), prior), cond)
        if phase == "D":
            return self._loss_d(x, again, fresh, cond)
        like = likeness(self.D.body, again, x)
        pixels = losses.l2(again, x) / 2
        logs = {"loss/like": like.detach(), "loss/pixels": pixels.detach()}
        if phase == "enc":
            kl = kl_normal(mean, logvar, prior) / x[0].numel()
            beta = config.annealed(seen if self.training else None)
            return Loss(like + config.pixels * pixels + beta * kl, logs | {"loss/kl": kl.detach()})
        fooled = (losses.logistic_g(self.D(again, cond)) + losses.logistic_g(self.D(fresh, cond))) / 2
        value = config.similarity * like + config.pixels * pixels + fooled
        return Loss(value, logs | {"loss/G": fooled.detach()})

    def _loss_d(self, real: Tensor, again: Tensor, fresh: Tensor, cond: Cond) -> Loss:
        real = real.detach().requires_grad_(True)
        score, others = self.D(real, cond), (self.D(again, cond), self.D(fresh, cond))
        value = sum((losses.logistic_d(score, other) for other in others), torch.zeros_like(score)) / 2
        logs = {"score/real": score.detach(), "score/fake": others[1].detach(), "loss/D": value.detach()}
        if self.config.penalty:
            penalty = losses.zero_centred_penalty(score, real)
            value = value + self.config.penalty * penalty
            logs["penalty/D"] = penalty.detach()
        return Loss(value, logs)


def likeness(body: nn.Sequential | nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference in the middle of a discriminator's body, halved: (b ...), (b ...) -> (b,).

    Source: Larsen et al. 2016, eq. 7 (a Gaussian of unit variance), per feature.
    """
    assert isinstance(body, nn.Sequential)
    for layer in list(body)[: (len(body) + 1) // 2]:
        x, y = layer(x), layer(y)
    return losses.l2(x, y) / 2
