"""Variational autoencoders: VAE, beta-VAE and class-conditional VAE; also the autoencoder under a latent codec.

Source: Kingma & Welling 2013; Higgins et al. 2017 (beta); Sohn et al. 2015 (conditional).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import ConfigError, InvalidInput
from sojourn.families.base import BaseConfig, BaseOptions, Family, LatentOptions, Phase, Width, drawn
from sojourn.families.prior import DRAWS, LatentFlow, Prior, Told, lifted, placed
from sojourn.nets.blocks import ResBlock
from sojourn.nets.conv import embedding
from sojourn.nets.losses import gradient_l1
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step

FLOW_WEIGHT = 0.1
"""Of the flow's loss beside the ELBO: they share no weights, and the gradient's length is clipped for all of them."""


class AutoencoderConfig(BaseConfig):
    """How the two halves of an autoencoder are built."""

    widths: tuple[Width, ...] = Field((32, 64), min_length=1, max_length=8)
    """Channels per resolution, finest first; each further one halves the side."""
    depth: tuple[Annotated[int, Field(ge=0, le=32)], Annotated[int, Field(ge=0, le=32)]] = (1, 1)
    """Residual blocks per resolution in the encoder and the decoder."""
    stem: int = Field(1, ge=1, le=8)
    """Pixels folded into channels before the first layer (space to depth). 1 = none."""
    z: int = Field(16, ge=1, le=4096)
    """Latent numbers (flat) or channels (map)."""
    latent: Literal["flat", "map"] = "flat"
    """flat: one vector. map: a small picture, for latent walks."""
    conditional: bool = False
    """Whether labels and words enter both halves, and what is expected of latents."""
    label_drop: float = Field(0.1, ge=0, le=1)
    """conditional: share of training rows that lose their condition, for drawing and encoding without one. 0 = off."""


class GaussianConfig(AutoencoderConfig):
    """How an autoencoder is built whose latents are Gaussian."""

    beta: float = Field(1.0, ge=0)
    """Weight of the KL term. 0 = a plain autoencoder with noise."""
    anneal: int = Field(10_000, ge=0)
    """Samples of training over which beta grows from 0: else latents may fall silent before the decoder has learnt to
    read them. 0 = at once. Source: Bowman et al. 2016, sec. 3.1."""

    def annealed(self, seen: int | None) -> float:
        """Weight of the KL term after `seen` samples of training, or at its end."""
        return self.beta * (1.0 if seen is None or seen >= self.anneal else seen / self.anneal)


class Encoder(nn.Module):
    """(b, c, h, w) -> (b, moments * z, h / f, w / f), or (b, moments * z) for a flat latent."""

    def __init__(self, spec: DataSpec, config: AutoencoderConfig, moments: int) -> None:
        super().__init__()
        channels, stem, out = spec.shape[0], config.stem, moments * config.z
        self.stem = stem
        widths = config.widths
        layers: list[nn.Module] = [nn.Conv2d(channels * stem**2, widths[0], 3, padding=1)]
        for i, width in enumerate(widths):
            if i > 0:
                layers.append(nn.Conv2d(widths[i - 1], width, 3, stride=2, padding=1))
            layers += [ResBlock(width, width) for _ in range(config.depth[0])]
        side = side_of(spec, config)
        layers += [nn.GroupNorm(8, widths[-1]), nn.SiLU()]
        if config.latent == "flat":
            layers += [nn.Flatten(), nn.Linear(widths[-1] * side[0] * side[1], out)]
        else:
            layers.append(nn.Conv2d(widths[-1], out, 3, padding=1))
        self.layers = nn.ModuleList(layers)
        # The class enters beside the picture, as one number per channel of the first layer.
        self.cond = embedding(spec, widths[0]) if conditional(spec, config) else None
        self.prior = Prior(spec, latent_shape(spec, config)) if self.cond is not None and moments == 2 else None

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        x = F.pixel_unshuffle(x, self.stem) if self.stem > 1 else x
        x = self.layers[0](x)
        if self.cond is not None:
            x = x + self.cond(cond, x.shape[0])[0][:, :, None, None]
        for layer in self.layers[1:]:
            x = layer(x)
        return x.float()

    def expected(self, cond: Cond, rows: int) -> tuple[Tensor, Tensor] | None:
        """Mean and log variance of the latent before the picture is seen, (rows, ...) each; None = standard normal."""
        return None if self.prior is None else self.prior(cond, rows)


class Decoder(nn.Module):
    """Latent to (b, c, h, w)."""

    def __init__(self, spec: DataSpec, config: AutoencoderConfig) -> None:
        super().__init__()
        channels, stem = spec.shape[0], config.stem
        self.stem = stem
        widths = config.widths
        self.side = side_of(spec, config)
        self.flat = config.latent == "flat"
        self.told = Told(spec, widths[-1]) if conditional(spec, config) else None
        told = widths[-1] if self.told is not None else 0
        self.enter: nn.Module
        if self.flat:
            # The condition has a say about each place, as the latent has: a class or words lay a picture out.
            self.enter = nn.Linear(config.z + told, widths[-1] * self.side[0] * self.side[1])
        else:
            self.enter = nn.Conv2d(config.z, widths[-1], 3, padding=1)
        layers: list[nn.Module] = []
        for i in reversed(range(len(widths))):
            layers += [ResBlock(widths[i], widths[i], told) for _ in range(config.depth[1])]
            if i > 0:
                layers.append(nn.Conv2d(widths[i], widths[i - 1] * 4, 3, padding=1))
                layers.append(nn.PixelShuffle(2))
        layers += [nn.GroupNorm(8, widths[0]), nn.SiLU(), nn.Conv2d(widths[0], channels * stem**2, 3, padding=1)]
        self.layers = nn.ModuleList(layers)

    def forward(self, z: Tensor, cond: Cond) -> Tensor:
        vector = None if self.told is None else self.told(cond, z.shape[0])  # (b, width)
        if self.flat:
            x = self.enter(z if vector is None else torch.cat([z, vector], dim=1)).view(z.shape[0], -1, *self.side)
        else:
            x = self.enter(z)
        for layer in self.layers:
            x = layer(x, vector) if isinstance(layer, ResBlock) else layer(x)
        return F.pixel_shuffle(x, self.stem) if self.stem > 1 else x


def side_of(spec: DataSpec, config: AutoencoderConfig) -> tuple[int, int]:
    """Height and width of the smallest feature map."""
    factor = config.stem * 2 ** (len(config.widths) - 1)
    return spec.shape[1] // factor, spec.shape[2] // factor


def latent_shape(spec: DataSpec, config: AutoencoderConfig) -> tuple[int, ...]:
    return (config.z,) if config.latent == "flat" else (config.z, *side_of(spec, config))


def conditional(spec: DataSpec, config: AutoencoderConfig) -> bool:
    return config.conditional and bool(spec.labels or spec.pooled_dim)


class AutoencoderOptions(LatentOptions):
    """How to draw from an autoencoder's prior."""

    temperature: float = Field(1.0, ge=0, le=4)
    """Standard deviation of the latent draw. 0 = the mean picture."""
    direction: int = Field(0, ge=0, le=1_000_000)
    """Which number of the latent `move` is of."""
    move: float = Field(0.0, ge=-100, le=100)
    """How far that number moves, in standard deviations of the prior: a film along it shows what it means. 0 = off."""


class Autoencoder(Family):
    """An encoder and a decoder, and what can be done with them however they were trained."""

    Config: ClassVar[type[BaseConfig]] = AutoencoderConfig
    Options: ClassVar[type[BaseOptions]] = AutoencoderOptions
    can: ClassVar[frozenset[str]] = frozenset({"sample", "encode", "decode"})
    guides: ClassVar[frozenset[str]] = frozenset({"energy"})
    moments: ClassVar[int] = 2
    """Numbers that the encoder says of each number of the latent: mean and log variance, or itself."""

    config: AutoencoderConfig

    def __init__(self, config: AutoencoderConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        factor = config.stem * 2 ** (len(config.widths) - 1)
        if spec.kind != "image" or spec.shape[1] % factor or spec.shape[2] % factor:
            raise ConfigError(
                "a VAE of this size takes pictures whose sides are multiples of {factor}, found {kind} {shape}",
                factor=factor, kind=spec.kind, shape=spec.shape,
            )  # fmt: skip
        self.enc = Encoder(spec, config, self.moments)
        self.dec = Decoder(spec, config)

    @property
    def told(self) -> bool:  # type: ignore[override]
        """Only with `conditional`."""
        return self.config.conditional

    @property
    def latent_shape(self) -> tuple[int, ...]:
        """Shape of one latent: (z,) or (z, h, w)."""
        return latent_shape(self.spec, self.config)

    def encode(self, x: Tensor) -> Tensor:
        return gaussian(self.enc(x, Cond()))[0]

    def decode(self, z: Tensor) -> Tensor:
        return self.dec(z, Cond())

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        assert isinstance(options, LatentOptions)
        self.check_guides(guides)
        z = options.temperature * noise.draw("z", self.latent_shape)
        if isinstance(options, AutoencoderOptions) and options.move:
            if options.direction >= (size := math.prod(self.latent_shape)):
                raise InvalidInput("direction {found} is outside 0..{most}", found=options.direction, most=size - 1)
            z.view(len(z), -1)[:, options.direction] += options.move
        yield from drawn(lambda draw: self.dec(self.place(draw, cond, options), cond), z, cond, guides, noise, options)

    def place(self, draw: Tensor, cond: Cond, options: LatentOptions) -> Tensor:
        """The latent (b, ...) that a draw of the same shape from a standard normal stands for."""
        return placed(draw, self.enc.expected(cond, len(draw)))

    def dropped(self, batch: Batch) -> Cond:
        """The batch's condition, emptied in some rows."""
        drops = self.training and conditional(self.spec, self.config)
        return batch.cond.drop(self.config.label_drop) if drops else batch.cond


@register(
    "family",
    "vae",
    presets={
        "tiny": {"widths": (8, 16), "z": 4, "depth": (1, 1)},
        "s": {"widths": (32, 64), "z": 16, "depth": (1, 1)},
        "64": {"stem": 2, "widths": (48, 96, 128, 128), "z": 64, "depth": (1, 1)},
        "128": {"stem": 4, "widths": (48, 96, 128, 128), "z": 96, "depth": (1, 1)},
        "f8": {
            "stem": 4,
            "widths": (96, 192),
            "z": 8,
            "depth": (1, 2),
            "latent": "map",
            "beta": 1e-3,
            "edges": 1.0,
            "reconstruction": "l1",
        },
    },
    about="VAE: a smooth latent space; blurry samples, stable training",
    source="Kingma & Welling 2013, Auto-Encoding Variational Bayes",
)  # fmt: skip
@register(
    "family",
    "beta-vae",
    presets={
        "tiny": {"widths": (8, 16), "z": 4, "depth": (1, 1), "beta": 4.0},
        "64": {"stem": 2, "widths": (48, 96, 128, 128), "z": 32, "depth": (1, 1), "beta": 4.0},
    },
    about="beta-VAE: a heavier KL term for factors that come apart",
    source="Higgins et al. 2017, beta-VAE",
)
@register(
    "family",
    "cvae",
    presets={
        "tiny": {"widths": (8, 16), "z": 4, "depth": (1, 1), "conditional": True, "flow": 32},
        "s": {"widths": (32, 64), "z": 16, "depth": (1, 1), "conditional": True, "flow": 256},
        "64": {"stem": 2, "widths": (48, 96, 128, 128), "z": 64, "depth": (1, 1), "conditional": True, "flow": 512},
    },
    about="CVAE: a VAE that is told the class or the words",
    source="Sohn et al. 2015, Learning Structured Output Representation",
)
@register(
    "family",
    "denoising-vae",
    presets={
        "tiny": {"widths": (8, 16), "z": 4, "depth": (1, 1), "corruption": 0.2},
        "64": {"stem": 2, "widths": (48, 96, 128, 128), "z": 64, "depth": (1, 1), "corruption": 0.2},
    },
    about="denoising VAE: codes that noise on the picture does not move",
    source="Im et al. 2017, Denoising Criterion for Variational Auto-Encoding Framework",
)
class VAE(Autoencoder):
    """Encoder and decoder trained on reconstruction + beta * KL; samples are decoded prior draws."""

    class Config(GaussianConfig):
        edges: float = Field(0.0, ge=0)
        """Weight of the L1 difference of neighbouring pixels, for sharper lines. 0 = off."""
        reconstruction: Literal["l1", "l2"] = "l2"
        """l2: Gaussian likelihood of unit variance. l1: Laplace; crisper for a latent map, a trap for a flat one where
        most of every picture is one ground: their median is that ground, and nothing is learnt beyond it."""
        corruption: float = Field(0.0, ge=0, le=2)
        """Std of the noise on a picture before it is encoded, in its own range of -1..1; what is asked for is the clean
        one. 0 = off."""
        learns: Literal["both", "decoder", "flow"] = "both"
        """decoder: the encoder stays as it is, and with it all latents. flow: both stay, and the flow learns where
        latents lie, which takes more looks at each than pictures do (`cache`). For a package to start from."""
        noise: float = Field(0.0, ge=0, le=2)
        """Noise that every other latent gets beside its own before it is decoded: a share of each channel's spread,
        drawn from 0 to this. A decoder that knows it smooths over what a walk leaves unfinished. Source: Zheng et al.
        2025 (representation autoencoders), noise-augmented decoding."""
        flow: int = Field(0, ge=0, le=4096)
        """Width of a small net that learns as a flow where latents lie, by the condition: what is drawn comes through
        it. 0 = none: it comes from a Gaussian."""

    class Options(AutoencoderOptions):
        guidance: float = Field(1.0, ge=0, le=30)
        """flow: how hard the condition pulls. 1 = as it is, more = clearer and less varied."""

    bf16: ClassVar[bool] = True

    config: Config

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if config.learns == "flow" and not config.flow:
            raise ConfigError('learns = "flow" wants a flow; give its width (flow=512)')
        told = conditional(spec, config)
        self.flow = LatentFlow(spec, self.latent_shape, config.flow, told) if config.flow else None
        if self.flow is None:
            self.Options = AutoencoderOptions  # type: ignore[misc, assignment]  # there is nothing that guidance could bend

    @property
    def splittable(self) -> bool:  # type: ignore[override]
        """With `noise` a latent sees the spread of its batch."""
        return not self.config.noise

    @property
    def keeps(self) -> Literal["best", "last"]:  # type: ignore[override]
        """What the flow learns is not in the ELBO, by which snapshots are chosen."""
        return "last" if self.config.learns == "flow" else "best"

    def phases(self) -> list[Phase]:
        if self.config.learns == "flow":
            return [Phase("flow", ("flow",))]
        if self.config.learns == "decoder":
            return [Phase("elbo", ("dec",))]
        return [Phase("elbo", ("enc", "dec", "flow") if self.flow is not None else ("enc", "dec"))]

    def place(self, draw: Tensor, cond: Cond, options: LatentOptions) -> Tensor:
        if self.flow is None:
            return super().place(draw, cond, options)
        draw = self.flow(draw, cond, options.guidance if isinstance(options, VAE.Options) else 1.0)
        return placed(draw, self.ground(len(draw)))

    def ground(self, rows: int) -> tuple[Tensor, Tensor] | None:
        """What is expected of latents without a condition, where the flow begins for all conditions alike: guidance is
        a difference of two velocities, which must be of one space."""
        return self.enc.expected(Cond(), rows)

    def once(self, x: Tensor) -> Tensor:
        """While the flow alone learns, what the encoder says of pictures without their conditions, (b, 2 z, ...).

        One caption of many is asked at a time; an encoder with `label_drop` says much the same without any.
        """
        return self.enc(x, Cond()) if self.config.learns == "flow" and x.shape[1:] == self.spec.shape else x

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        cond = self.dropped(batch)
        if self.flow is not None and phase == "flow":
            with torch.no_grad():
                mean, logvar = gaussian(self.once(batch.x))
                draw = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
                draw = lifted(draw, self.ground(len(batch)))
            value = self.flow.loss(draw, cond)
            return Loss(value, {"loss/flow": value.detach()})
        with torch.set_grad_enabled(torch.is_grad_enabled() and self.config.learns == "both"):
            x = batch.x
            if self.config.corruption and self.training:
                x = x + self.config.corruption * torch.randn_like(x)
            mean, logvar = gaussian(self.enc(x, cond))
            prior = self.enc.expected(cond, len(batch))
            kl = kl_normal(mean, logvar, prior)  # (b,)
        draw = z = mean + (0.5 * logvar).exp() * torch.randn_like(mean)
        if self.config.noise and self.training:
            z = z + roughness(mean, self.config.noise) * torch.randn_like(mean)
        out = self.dec(z, cond)
        gap = out - batch.x
        error = gap.abs() if self.config.reconstruction == "l1" else 0.5 * gap.square()
        # Sums over a sample as in the ELBO, then per pixel, so that one rate serves every size.
        size = batch.x[0].numel()
        recon = error.flatten(1).mean(1)  # (b,)
        kl = kl / size
        value = recon + self.config.annealed(seen if self.training else None) * kl
        logs = {"loss/recon": recon.detach(), "loss/kl": kl.detach()}
        if self.flow is not None and self.training and self.config.learns == "both":
            with torch.no_grad():
                draw = lifted(draw.detach(), self.ground(len(batch)))
            flow = self.flow.loss(draw, cond, DRAWS)
            value = value + FLOW_WEIGHT * flow
            logs["loss/flow"] = flow.detach()
        if self.config.edges:
            lines = gradient_l1(out, batch.x)
            value = value + self.config.edges * lines
            logs["loss/edges"] = lines.detach()
        return Loss(value, logs)


def gaussian(moments: Tensor) -> tuple[Tensor, Tensor]:
    """What an encoder says (b, 2 z, ...) as mean and log variance, each (b, z, ...)."""
    mean, logvar = moments.chunk(2, dim=1)
    return mean, logvar.clamp(-20, 10)


def roughness(mean: Tensor, most: float) -> Tensor:
    """Standard deviations of noise for latents (b, z, ...): 0 for every other row, else up to `most` spreads of the
    channel over the batch."""
    spread = mean.detach().transpose(0, 1).flatten(1).std(dim=1, correction=0)  # (z,)
    share = most * torch.rand(len(mean), device=mean.device)
    share[::2] = 0
    return torch.einsum("b,z->bz", share, spread).view(*mean.shape[:2], *(1 for _ in mean.shape[2:]))


def kl_normal(mean: Tensor, logvar: Tensor, prior: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """KL(N(mean, exp(logvar)) || prior), a mean and a log variance too, summed over all axes but the first, (b,).

    None = N(0, 1). Source: Kingma 2013, app. B.
    """
    if prior is not None:
        mean, logvar = (mean - prior[0]) * (-0.5 * prior[1]).exp(), logvar - prior[1]
    return 0.5 * (mean.square() + logvar.exp() - 1 - logvar).flatten(1).sum(1)
