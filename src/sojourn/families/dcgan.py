"""DCGAN, LSGAN, WGAN-GP, SNGAN and several of each at once: one step from noise to a picture; guided, a latent walk.

Knows nothing about files or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import ConfigError
from sojourn.families.base import BaseOptions, Phase
from sojourn.families.gan import GAN, GANConfig, GANOptions
from sojourn.nets import losses
from sojourn.nets.conv import Critic, Discriminator, Generator, Norm
from sojourn.nets.resnet import ResDiscriminator, ResGenerator
from sojourn.nets.spectral import advance
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step


def least_squares_d(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's distance from 1 and 0: (b,), (b,) -> (b,). Source: Mao et al. 2017, eq. 9."""
    return 0.5 * ((real - 1).square() + fake.square())


def least_squares_g(fake: Tensor) -> Tensor:
    """Generator's side of it: (b,) -> (b,). Source: Mao et al. 2017, eq. 9."""
    return 0.5 * (fake - 1).square()


TERMS: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "ns": (losses.logistic_d, losses.logistic_g),
    "ls": (least_squares_d, least_squares_g),
    "hinge": (losses.hinge_d, losses.hinge_g),
    "wgan": (losses.wasserstein_d, losses.wasserstein_g),
}
"""The discriminator's and the generator's side of each loss."""


class DCGANConfig(GANConfig):
    """How a DCGAN is built."""

    loss: Literal["ns", "ls", "hinge", "wgan"] = "ns"
    """ns: non-saturating logistic loss. ls: least squares. hinge. wgan: Wasserstein loss, with WGAN-GP's penalty."""
    net: Literal["dcgan", "resnet"] = "dcgan"
    """dcgan: strided convolutions. resnet: SNGAN's residual blocks; better, and slower."""
    z_dim: int = Field(128, ge=1, le=4096)
    """Width of the latent, 1..4096."""
    width: int = Field(64, ge=1, le=1024)
    """Channels of both nets at half the picture's size; they double with each halving."""
    max_width: int = Field(512, ge=1, le=4096)
    """Most channels a layer has."""
    g_norm: Norm = "batch"
    """Norm of the generator. batch: as in the paper, couples the rows of a training batch; layer: does not."""
    d_norm: Norm = "layer"
    """dcgan: norm of the discriminator. batch excludes a penalty, which is a matter of single samples."""
    spectral: bool = False
    """Whether the discriminator's weights are divided by their spectral norms."""
    penalty: float = Field(1.0, ge=0, le=1000)
    """Weight of the gradient penalty: gamma / 2 of R1, or lambda of WGAN-GP with loss wgan. 0 = off. R1 wants about
    0.0001 x pixels / batch (Karras et al. 2020 (ADA), app. C): 0.02 for 64 x 64, not 1."""
    n_critic: int = Field(1, ge=1, le=100)
    """Updates of the discriminator to one of the generator."""
    conditioning: Literal["projection", "auxiliary"] = "projection"
    """How the discriminator uses classes. projection: it asks whether picture and class (or text) belong together.
    auxiliary: it names the class of pictures, real and drawn."""
    discriminators: int = Field(1, ge=1, le=16)
    """Discriminators that all judge each picture; the generator listens most to the harshest."""
    generators: int = Field(1, ge=1, le=64)
    """dcgan: generators that share all but their first layer; a seed decides whose picture a sample is."""
    diversity: float = Field(0.1, ge=0, le=100)
    """With several generators: weight of being told apart by whose picture it is."""


class DCGANOptions(GANOptions):
    """How to draw from a DCGAN."""

    truncation: float = Field(1.0, ge=0, le=1)
    """Std of z: less is closer to the typical picture, with less variety. 1 = off."""


TINY: dict[str, Any] = {"z_dim": 32, "width": 32, "max_width": 128, "g_norm": "layer"}
SNGAN: dict[str, Any] = {"net": "resnet", "loss": "hinge", "spectral": True, "penalty": 0.0, "n_critic": 2}
SURE = 0.1
"""Share of real pictures below which, and above 1 minus which, the logit of a least-squares discriminator goes straight
on."""
HARSH = 1.0
"""How much more the generator listens to the harsher of its discriminators. 0 = to all alike."""


@register(
    "family",
    "dcgan",
    presets={
        "tiny": TINY,
        "32": {"width": 64, "max_width": 256, "penalty": 0.005},
        "64": {"width": 32, "max_width": 256, "penalty": 0.02},
        "128": {"width": 32, "max_width": 512, "penalty": 0.1},
    },
    about="Deep convolutional GAN with an R1 penalty; fast to draw from, plain or by class",
    source="Radford et al. 2016; Mescheder et al. 2018 (R1); Miyato & Koyama 2018 (classes)",
)
@register(
    "family",
    "lsgan",
    presets={
        "tiny": {**TINY, "loss": "ls"},
        "32": {"width": 64, "max_width": 256, "loss": "ls", "penalty": 0.005},
        "64": {"width": 32, "max_width": 256, "loss": "ls", "penalty": 0.02},
        "128": {"width": 32, "max_width": 512, "loss": "ls", "penalty": 0.1},
    },
    about="GAN with a least-squares loss: gradients also from fakes that are already taken for real",
    source="Mao et al. 2017",
)
@register(
    "family",
    "wgan-gp",
    presets={
        "tiny": {**TINY, "loss": "wgan", "penalty": 10.0, "n_critic": 2},
        "32": {"width": 64, "max_width": 256, "loss": "wgan", "penalty": 10.0, "n_critic": 5},
        "64": {"width": 32, "max_width": 256, "loss": "wgan", "penalty": 10.0, "n_critic": 5},
        "128": {"width": 32, "max_width": 512, "loss": "wgan", "penalty": 10.0, "n_critic": 5},
    },
    about="Wasserstein GAN with gradient penalty; steadier and slower than dcgan",
    source="Gulrajani et al. 2017",
)
@register(
    "family",
    "sngan",
    presets={
        "tiny": {**TINY, **SNGAN, "width": 16, "max_width": 32, "n_critic": 1},
        "32": {**SNGAN, "width": 64, "max_width": 128},
        "64": {**SNGAN, "width": 32, "max_width": 256},
    },
    about="Residual GAN with spectral normalisation and hinge loss, by class with a projection",
    source="Miyato et al. 2018; Miyato & Koyama 2018 (classes)",
)
@register(
    "family",
    "multi-gan",
    presets={
        "tiny": {**TINY, "discriminators": 2, "generators": 3},
        "32": {"width": 64, "max_width": 256, "penalty": 0.005, "discriminators": 2, "generators": 4},
        "64": {"width": 32, "max_width": 256, "penalty": 0.02, "discriminators": 2, "generators": 4},
        "128": {"width": 32, "max_width": 384, "penalty": 0.1, "discriminators": 2, "generators": 4},
    },
    about="Several discriminators and several generators: less of a set's variety is lost",
    source="Durugkar et al. 2017 (discriminators); Hoang et al. 2018 (generators)",
)
class DCGAN(GAN):
    """The generator G and the discriminator D, trained in turn.

    Against Radford et al. 2016, D has no batch norm: a sample's loss and penalty must not depend on its batch-mates.
    """

    Config = DCGANConfig
    Options = DCGANOptions

    config: DCGANConfig

    def __init__(self, config: DCGANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if config.d_norm == "batch" and config.penalty > 0 and config.net == "dcgan":
            raise ConfigError(
                "d_norm batch and penalty {penalty} exclude each other (a penalty is of single samples); "
                'set d_norm to "layer" or "none", or penalty to 0',
                penalty=config.penalty,
            )
        if config.net == "resnet" and config.generators > 1:
            raise ConfigError("{count} generators want net dcgan; set net, or generators to 1", count=config.generators)
        if config.conditioning == "auxiliary" and (spec.pooled_dim or not spec.labels):
            raise ConfigError('conditioning "auxiliary" needs classes and no words; use projection')
        if config.conditioning == "auxiliary" and max(count for _, count in spec.labels) < 2:
            raise ConfigError(
                'conditioning "auxiliary" needs two classes at least, and the set has one; use projection'
            )
        c = config
        if c.matching and c.conditioning == "auxiliary":
            raise ConfigError("matching asks whether picture and class belong together, which auxiliary leaves out; "
                              "use projection")  # fmt: skip
        if c.matching and c.loss == "wgan":
            raise ConfigError("matching has no bound with loss wgan: scores of wrong pairs fall for ever; leave it out")
        self.G: Generator | ResGenerator
        if c.net == "resnet":
            self.G = ResGenerator(spec, c.z_dim, c.width, c.max_width, c.g_norm)
        else:
            self.G = Generator(spec, c.z_dim, c.width, c.max_width, c.g_norm, c.generators)
        critics = [self._critic() for _ in range(c.discriminators)]
        self.D: Critic | nn.ModuleList = critics[0] if len(critics) == 1 else nn.ModuleList(critics)

    def _critic(self) -> Critic:
        c, spec = self.config, self.spec
        heads = [count for _, count in spec.labels] if c.conditioning == "auxiliary" else []
        heads += [c.generators] if c.generators > 1 else []
        project = c.conditioning == "projection"
        if c.net == "resnet":
            return ResDiscriminator(spec, c.width, c.max_width, heads, project, c.spectral)
        return Discriminator(spec, c.width, c.max_width, c.d_norm, heads, project, c.spectral)

    @property
    def critics(self) -> list[Critic]:
        return [self.D] if isinstance(self.D, Critic) else [d for d in self.D if isinstance(d, Critic)]

    @property
    def splittable(self) -> bool:  # type: ignore[override]
        """Batch norm sees its whole batch, and with `matching` a row its neighbour's condition."""
        return "batch" not in (self.config.g_norm, self.config.d_norm) and not self.config.matching

    @property
    def bf16(self) -> bool:  # type: ignore[override]
        """R1 holds in it; the penalty of WGAN-GP, which pulls a norm to 1, was not tried."""
        return self.config.loss != "wgan"

    def phases(self) -> list[Phase]:
        return [Phase("D", ("D",), repeat=self.config.n_critic), Phase("G", ("G",))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        cond = self.dropped(batch)
        z = torch.randn(len(batch), self.config.z_dim).to(batch.x)
        which = torch.randint(self.config.generators, (len(batch),), device=z.device) if self.several else None
        return self._loss_d(batch.x, z, cond, which) if phase == "D" else self._loss_g(z, cond, which)

    def _loss_d(self, real: Tensor, z: Tensor, cond: Cond, which: Tensor | None) -> Loss:
        config = self.config
        with torch.no_grad():
            fake = self.augmented(self._draw(z, cond, which))
        real = self.augmented(real)
        if config.penalty > 0 and config.loss != "wgan":
            real = real.detach().requires_grad_(True)
        values, logs = [], []
        for critic in self.critics:
            (fake_score, fake_said), h = critic.judge(fake, cond), critic.features(real)
            real_score, real_said = critic.score(h, cond), [head(h) for head in critic.heads]
            value = TERMS[config.loss][0](real_score, fake_score)
            value = self.matched(value, cond, partial(self._against, critic, h, real_score))
            log = {"score/real": real_score.detach(), "score/fake": fake_score.detach(), "loss/D": value.detach()}
            if config.penalty > 0:
                penalty = self._penalty(critic, real, real_score, fake, cond)
                value = value + config.penalty * penalty
                log["penalty/D"] = penalty.detach()
            if config.conditioning == "auxiliary":
                named = classification(real_said, cond) + classification(fake_said, cond)
                value = value + named
                log["loss/classes"] = named.detach()
            if which is not None:
                whose = F.cross_entropy(fake_said[-1], which, reduction="none")
                value = value + whose
                log["loss/whose"] = whose.detach()
            values.append(value)
            logs.append(log)
        means = {name: torch.stack([log[name] for log in logs]).mean(dim=0) for name in logs[0]}
        sure = certainty(config.loss, means["score/real"], means["score/fake"])
        return Loss(torch.stack(values).mean(dim=0), means, stats=self.ada_statistics(sure))

    def _penalty(self, critic: Critic, real: Tensor, real_score: Tensor, fake: Tensor, cond: Cond) -> Tensor:
        if self.config.loss != "wgan":
            return losses.zero_centred_penalty(real_score, real)
        mix = torch.rand(len(real)).to(real)
        return losses.one_centred_penalty(lambda x: critic(x, cond), real, fake, mix)

    def _loss_g(self, z: Tensor, cond: Cond, which: Tensor | None) -> Loss:
        fake = self.augmented(self._draw(z, cond, which))
        judged = [critic.judge(fake, cond) for critic in self.critics]
        terms = torch.stack([TERMS[self.config.loss][1](score) for score, _ in judged])  # (discriminators, b)
        # The harshest counts most, by a softmax of what each says. Source: Durugkar et al. 2017, sec. 3.2.
        value = ((HARSH * terms.detach()).softmax(dim=0) * terms).sum(dim=0)
        logs = {"loss/G": value.detach()}
        if self.config.conditioning == "auxiliary":
            named = torch.stack([classification(said, cond) for _, said in judged]).mean(dim=0)
            value = value + named
            logs["loss/G-classes"] = named.detach()
        if which is not None:
            # Source: Hoang et al. 2018, eq. 3.
            apart = torch.stack([F.cross_entropy(said[-1], which, reduction="none") for _, said in judged]).mean(dim=0)
            value = value + self.config.diversity * apart
            logs["loss/G-whose"] = apart.detach()
        return Loss(value, logs)

    @property
    def several(self) -> bool:
        return self.config.generators > 1

    def _against(self, critic: Critic, h: Tensor, real_score: Tensor, other: Cond) -> Tensor:
        """D's loss (b,) when pictures of features h (b, d) are taken for drawn ones under another condition."""
        return TERMS[self.config.loss][0](real_score, critic.score(h, other))

    def _draw(self, z: Tensor, cond: Cond, which: Tensor | None) -> Tensor:
        out: Tensor = self.G(z, cond) if which is None else self.G(z, cond, which)
        return out

    def verdict(self, x: Tensor, cond: Cond) -> Tensor:
        score = torch.stack([critic(x, cond) for critic in self.critics]).mean(dim=0)
        if self.config.loss != "ls":
            return score
        # The best least-squares discriminator says the share of real pictures, and not its logit (Mao 2017, eq. 5).
        # Where it says more or less than a share can be, the logit goes straight on: flat, it would lead nowhere.
        share = score.clamp(SURE, 1 - SURE)
        return torch.logit(share) + (score - share) / (SURE * (1 - SURE))

    def after(self, phase: str, stats: Mapping[str, Tensor]) -> None:
        super().after(phase, stats)
        if phase == "D" and self.config.spectral:
            advance(self.D)

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        """One Step from z; with guides, a walk in z whose Steps show every decoded place."""
        assert isinstance(options, DCGANOptions)
        z = noise.draw("z", (self.config.z_dim,)).to(self.device)
        which = None
        if self.several:  # of the seed alone: between two seeds there is no generator
            which = Noise(noise.seeds).draw("generator", (self.config.generators,)).argmax(dim=1).to(z.device)
        decode = self._decoder(cond, options.truncation, which)
        yield from self.walked(decode, z, cond, guides, noise, options)

    def _decoder(self, cond: Cond, truncation: float, which: Tensor | None) -> Callable[[Tensor], Tensor]:
        return lambda z: self._draw(truncation * z, cond, which)

    @property
    def device(self) -> torch.device:
        return next(self.G.parameters()).device


def certainty(loss: str, real: Tensor, fake: Tensor) -> Tensor:
    """How sure a discriminator is of real pictures, (b,), positive = taken for real. A critic has no zero."""
    return {"ls": real - 0.5, "wgan": real - fake}.get(loss, real)


def classification(said: Sequence[Tensor], cond: Cond) -> Tensor:
    """Cross-entropy of a critic's answers, (b, classes) for each label column, (b,); 0 where no class was asked.

    Source: Odena et al. 2017, eq. 3.
    """
    assert cond.labels is not None
    columns = cond.labels.unbind(dim=1)
    terms = [
        F.cross_entropy(logits, column.clamp(min=0), reduction="none") * (column >= 0)
        for logits, column in zip(said, columns, strict=False)
    ]
    return torch.stack(terms).sum(dim=0)
