"""Diffusion families: rectified flow and EDM, on pictures, latents or vectors.

A family here is a net, a path that says how it is noised and asked, and a walk of one of the samplers. It knows
nothing of codecs: a pixel, a latent and a mel-spectrogram model are one class.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sojourn.diffusion.guidance import Strength, begin, compose
from sojourn.diffusion.path import EDMPath, FlowPath, Path, flow_sigmas
from sojourn.diffusion.samplers import SAMPLERS, Sampler
from sojourn.errors import InvalidInput, Unsupported
from sojourn.families.base import BaseConfig, BaseOptions, Family, Phase
from sojourn.nets.dit import DiT
from sojourn.nets.unet import UNet
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Denoise, Guide, Loss, Noise, Step

BUCKETS = (("low", 0.0, 0.5), ("mid", 0.5, 2.0), ("high", 2.0, float("inf")))
"""Sigma ranges in which the loss is logged apart: detail, shape, layout."""


class DiffusionConfig(BaseConfig):
    """What all diffusion families share."""

    net: Literal["dit", "unet"] = "dit"
    """dit: a transformer on patches. unet: convolutions, for pictures."""
    patch: int = Field(2, ge=1, le=64)
    """dit: side of a patch, or values a token of a vector; must divide the sample's sides."""
    width: int = Field(256, ge=8, le=8192)
    """dit: features of a token. unet: channels at full resolution, a multiple of 8."""
    depth: int = Field(8, ge=1, le=64)
    """dit: blocks. unet: residual blocks at each resolution."""
    heads: int = Field(4, ge=1, le=128)
    """Attention heads; must divide the width."""
    mlp_ratio: float = Field(4.0, gt=0, le=16)
    """dit: size of the feed-forward, in widths of an ungated one."""
    levels: tuple[Annotated[int, Field(ge=1, le=64)], ...] = Field((1, 2, 2), min_length=1, max_length=6)
    """unet: channels at each resolution, in widths; each is half the size of the one before."""
    attend: int = Field(8, ge=0, le=128)
    """unet: attention on maps of so many cells a side or fewer. 0 = at the bottom only."""
    drop: float = Field(0.1, ge=0, lt=1)
    """Share of training rows whose condition is emptied, for guidance. 0 = off."""


class FlowConfig(DiffusionConfig):
    """How a rectified flow is built."""

    prediction: Literal["v", "x"] = "v"
    """What the net gives: v = eps - x0, or x0 itself (better for large patches of pixels)."""
    time: Literal["logit-normal", "uniform"] = "logit-normal"
    """How t is drawn in training."""
    time_mean: float = Field(0.0, ge=-5, le=5)
    """Mean of logit t; positive = more noise."""
    time_std: float = Field(1.0, gt=0, le=5)
    """Standard deviation of logit t."""
    shift: float = Field(1.0, gt=0, le=20)
    """Factor on sigma, in training and in the walk; for larger pictures above 1. 1 = off."""


class EDMConfig(DiffusionConfig):
    """How an EDM model is built."""

    net: Literal["dit", "unet"] = "unet"
    """dit: a transformer on patches. unet: convolutions, for pictures."""
    sigma_data: float = Field(0.5, gt=0, le=10)
    """Standard deviation of the data in model space."""
    sigma_mean: float = Field(-1.2, ge=-10, le=10)
    """Mean of log sigma in training."""
    sigma_std: float = Field(1.2, gt=0, le=10)
    """Standard deviation of log sigma in training."""
    sigma_min: float = Field(0.002, gt=0, le=1)
    """Smallest noise of the walk, before its last step to 0."""
    sigma_max: float = Field(80.0, gt=1, le=1000)
    """Largest noise of the walk."""
    rho: float = Field(7.0, ge=1, le=20)
    """How much the levels crowd towards small noise. 1 = evenly spaced."""


class DiffusionOptions(BaseOptions):
    """How a walk is drawn."""

    steps: int = Field(20, ge=1, le=1000)
    """Noise levels of the walk; time grows with it."""
    guidance: float = Field(3.0, ge=0, le=100)
    """How hard the condition pulls. 1 = the plain conditional model, at half the cost."""
    guidance_low: float = Field(0.0, ge=0)
    """Noise (sigma) below which guidance is off. 0 = never."""
    guidance_high: float | None = Field(None, gt=0)
    """Noise (sigma) above which guidance is off. None = never."""
    colour_weight: float = Field(1.0, ge=1, le=10)
    """How hard the colour of a thing (a red house) pulls while the picture has too little of it, where layout is drawn
    (sigma above 2/3), at half as much time again there. For things on white. 1 = as the other words."""
    label_weight: float = Field(1.0, ge=0, le=10)
    """How hard labels (a style) pull against the words, where edges are drawn (sigma below 2/3), at half as much time
    again there. 1 = as the words, more = a clearer style."""
    sampler: Literal["euler", "heun", "dpmpp_2m", "langevin"] = "dpmpp_2m"
    """heun and langevin evaluate the net twice a step."""


class FlowOptions(DiffusionOptions):
    """How a walk of a flow is drawn."""

    shift: float | None = Field(None, gt=0, le=20)
    """Above 1: more of the steps at high noise. None = as in training."""


@dataclass(frozen=True)
class Walk:
    """A walk before its condition and guides are known."""

    denoise: Denoise
    strength: Strength
    levels: Tensor  # (steps + 1,)
    sampler: Sampler


class Diffusion(Family):
    """What flows and EDM share: the net, the loss, the walk."""

    Config: ClassVar[type[BaseConfig]] = DiffusionConfig
    Options: ClassVar[type[BaseOptions]] = DiffusionOptions
    can: ClassVar[frozenset[str]] = frozenset({"sample"})
    keeps: ClassVar[Literal["best", "last"]] = "last"
    kinds: ClassVar[frozenset[str]] = frozenset({"image", "latent", "mel", "vector"})
    guides: ClassVar[frozenset[str]] = frozenset({"denoise", "energy"})
    bf16: ClassVar[bool] = True

    config: DiffusionConfig
    path: Path

    def __init__(self, config: DiffusionConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if spec.kind not in self.kinds or len(spec.shape) != (1 if spec.kind == "vector" else 3):
            raise Unsupported(
                "a diffusion model makes pictures, latents or vectors, found {kind} of shape {shape}",
                kind=spec.kind,
                shape=spec.shape,
            )
        c = config
        self.net: DiT | UNet
        if c.net == "dit":
            self.net = DiT(spec, c.patch, c.width, c.depth, c.heads, c.mlp_ratio)
        else:
            self.net = UNet(spec, c.width, c.levels, c.depth, c.heads, c.attend)

    def grow(self, source: Family) -> None:
        """More blocks than the source has begin shut."""
        mine, theirs = getattr(self, "net", None), getattr(source, "net", None)
        if isinstance(mine, DiT) and isinstance(theirs, DiT):
            mine.shut(len(theirs.blocks))

    def phases(self) -> list[Phase]:
        return [Phase("denoise", ("net",))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        x0 = batch.x
        u = torch.rand(len(batch), device=x0.device)
        sample = self.path.training(x0, torch.randn_like(x0), u)
        cond = batch.cond.drop(self.config.drop) if self.training else batch.cond
        out = self.net(sample.input, sample.level, cond)
        error = (out - sample.target).square().flatten(1).mean(dim=1)  # (m,)
        return Loss(value=sample.weight * error, logs=bucketed(error.detach(), sample.sigma, batch.weight))

    def predict(self, x: Tensor, level: Tensor, cond: Cond) -> Tensor:
        """What the net says at x (b, ...) and a noise level (b,)."""
        out: Tensor = self.net(x, level, cond)
        return out

    def walk(self, options: DiffusionOptions, guides: Sequence[Guide] = ()) -> Walk:
        """What a walk of these options under these guides is made of."""
        o = options
        strength = Strength(o.guidance, o.guidance_low, o.guidance_high, o.colour_weight, o.label_weight)
        return Walk(self.path.denoiser(self.predict), strength, self.path.sigmas(o.steps), SAMPLERS[o.sampler])

    @torch.no_grad()
    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        assert isinstance(options, DiffusionOptions)
        self.check_guides(guides)
        if cond.rows not in (0, len(noise)):
            raise InvalidInput(
                "the condition has {found} rows for {wanted} seeds; give one per seed",
                found=cond.rows,
                wanted=len(noise),
            )
        device = next(self.net.parameters()).device
        walk = self.walk(options, guides)
        denoise = compose(walk.denoise, guides, walk.strength)
        eps = noise.draw("x", self.spec.shape).to(device)
        x, sigmas = begin(eps, walk.levels, guides)
        yield from walk.sampler(denoise, x, sigmas, cond.to(device), noise)


def bucketed(error: Tensor, sigma: Tensor, weight: Tensor) -> dict[str, Tensor]:
    """Weighted mean of error (m,) within each range of sigma that has rows of weight: "loss/sigma-low", ..."""
    logs: dict[str, Tensor] = {}
    for name, low, high in BUCKETS:
        share = weight * ((sigma >= low) & (sigma < high))
        if bool(share.any()):
            logs[f"loss/sigma-{name}"] = (error * share).sum() / share.sum()
    return logs


FLOW: dict[str, dict[str, Any]] = {
    "tiny": {"patch": 2, "width": 64, "depth": 2, "heads": 2},
    "digits": {"patch": 2, "width": 128, "depth": 4, "heads": 4},
    "32": {"patch": 4, "width": 256, "depth": 8, "heads": 4, "prediction": "x"},
    "64": {"patch": 8, "width": 384, "depth": 8, "heads": 6, "prediction": "x"},
    "latent-s": {"patch": 2, "width": 320, "depth": 6, "heads": 5},
    "latent-m": {"patch": 2, "width": 384, "depth": 10, "heads": 6},
}

EDM_SIZES: dict[str, dict[str, Any]] = {
    "tiny": {"width": 16, "levels": (1, 2), "depth": 1, "heads": 2, "attend": 4},
    "digits": {"width": 32, "levels": (1, 2), "depth": 1, "heads": 2},
    "32": {"width": 48, "levels": (1, 2, 3), "depth": 1, "heads": 4},
    "64": {"width": 16, "levels": (1, 2, 4, 8), "depth": 1, "heads": 4},
    # Of latents of unit variance, twice the std that the defaults are for: so is the typical noise.
    "latent": {"width": 64, "levels": (1, 2, 2), "depth": 1, "heads": 4, "sigma_data": 1.0, "sigma_mean": -0.5},
}


@register(
    "family",
    "flow",
    presets=FLOW,
    about="rectified flow with a transformer: pictures, latents or vectors, by label or text",
    source="Liu et al. 2023; Lipman et al. 2023; Esser et al. 2024; Peebles & Xie 2023",
)
class Flow(Diffusion):
    """A straight path from data to noise."""

    Config = FlowConfig
    Options = FlowOptions

    config: FlowConfig

    def __init__(self, config: FlowConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c = config
        self.path = FlowPath(c.prediction, c.time, c.time_mean, c.time_std, c.shift)

    def walk(self, options: DiffusionOptions, guides: Sequence[Guide] = ()) -> Walk:
        walk = super().walk(options, guides)
        shift = options.shift if isinstance(options, FlowOptions) else None
        return walk if shift is None else replace(walk, levels=flow_sigmas(options.steps, shift))


@register(
    "family",
    "edm",
    presets=EDM_SIZES,
    about="EDM diffusion with a convolutional U-Net: small pictures, by label or text",
    source="Karras et al. 2022; Dhariwal & Nichol 2021",
)
class EDM(Diffusion):
    """Diffusion with EDM's preconditioning and schedule."""

    Config = EDMConfig
    Options = DiffusionOptions

    config: EDMConfig

    def __init__(self, config: EDMConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        c = config
        self.path = EDMPath(c.sigma_data, c.sigma_mean, c.sigma_std, c.sigma_min, c.sigma_max, c.rho)
