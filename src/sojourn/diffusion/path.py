"""Noise paths: how a sample is noised in training, what a net sees and predicts, and which noise levels a walk visits.

All in one coordinate system, x = x0 + sigma * eps. Knows nothing about which net it wraps or what guides a walk.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sojourn.types import Cond, Denoise

Net = Callable[[Tensor, Tensor, Cond], Tensor]
"""(input (b ...), noise level (b,) of order 1, cond) -> raw prediction (b ...)."""

T_MAX = 0.999
"""Largest t of a flow: sigma = t / (1 - t) stays finite (999)."""
T_MIN = 1e-4
T_FLOOR = 0.05
"""Smallest t that the v-loss of an x-prediction divides by. Source: Li & He 2025, sec. 4."""
SIGMA_FLOOR = 1e-6


@dataclass(frozen=True)
class Sample:
    """One noised training batch: the loss of row i is weight[i] * mean((net(input, level, cond) - target)[i] ** 2)."""

    input: Tensor  # (b, ...)
    level: Tensor  # (b,), what the net is told about the noise
    sigma: Tensor  # (b,)
    target: Tensor  # (b, ...)
    weight: Tensor  # (b,)


class Path(Protocol):
    """What a diffusion family needs of a path."""

    def training(self, x0: Tensor, eps: Tensor, u: Tensor) -> Sample:
        """Noise x0 (b ...) by eps (b ...) at the levels that the uniform draws u (b,) in [0, 1) stand for."""
        ...

    def denoiser(self, net: Net) -> Denoise:
        """The net as (x, sigma, cond) -> x0."""
        ...

    def sigmas(self, steps: int) -> Tensor:
        """Noise levels of a walk, (steps + 1,), falling, the last 0."""
        ...


@dataclass(frozen=True)
class FlowPath:
    """Rectified flow: x_t = (1 - t) x0 + t eps, so sigma = t / (1 - t) and x_t = x / (1 + sigma).

    Source: Liu et al. 2023, eq. 1; Lipman et al. 2023. prediction "v": the net gives eps - x0. "x": it gives x0, and
    the loss is still that of v, (x0 - net)^2 / t^2 (Li & He 2025, table 1).
    """

    prediction: Literal["v", "x"] = "v"
    time: Literal["logit-normal", "uniform"] = "logit-normal"
    mean: float = 0.0
    std: float = 1.0
    shift: float = 1.0

    def training(self, x0: Tensor, eps: Tensor, u: Tensor) -> Sample:
        t = u if self.time == "uniform" else torch.sigmoid(self.mean + self.std * normal(u))
        t = shifted(t, self.shift).clamp(T_MIN, T_MAX)
        at = like(t, x0)
        x_t = (1 - at) * x0 + at * eps
        if self.prediction == "v":
            return Sample(x_t, t, t / (1 - t), eps - x0, torch.ones_like(t))
        return Sample(x_t, t, t / (1 - t), x0, t.clamp(min=T_FLOOR) ** -2)

    def denoiser(self, net: Net) -> Denoise:
        def denoise(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            t = sigma / (1 + sigma)
            x_t = x / like(1 + sigma, x)
            out = net(x_t, t, cond)
            return x_t - like(t, x) * out if self.prediction == "v" else out

        return denoise

    def sigmas(self, steps: int) -> Tensor:
        return flow_sigmas(steps, self.shift)


@dataclass(frozen=True)
class EDMPath:
    """The preconditioning, noise distribution and schedule of EDM. Source: Karras et al. 2022, table 1."""

    sigma_data: float = 0.5
    mean: float = -1.2
    std: float = 1.2
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def scalings(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """c_skip, c_out, c_in, c_noise, each (b,)."""
        total = sigma**2 + self.sigma_data**2
        c_skip = self.sigma_data**2 / total
        c_out = sigma * self.sigma_data / total.sqrt()
        return c_skip, c_out, total.rsqrt(), sigma.clamp(min=SIGMA_FLOOR).log() / 4

    def training(self, x0: Tensor, eps: Tensor, u: Tensor) -> Sample:
        sigma = (self.mean + self.std * normal(u)).exp()
        c_skip, c_out, c_in, c_noise = self.scalings(sigma)
        x = x0 + like(sigma, x0) * eps
        target = (x0 - like(c_skip, x0) * x) / like(c_out, x0)
        # lambda(sigma) * c_out^2 = 1 (eq. 8): measured on what the net itself gives, every level weighs the same.
        return Sample(like(c_in, x0) * x, c_noise, sigma, target, torch.ones_like(sigma))

    def denoiser(self, net: Net) -> Denoise:
        def denoise(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            c_skip, c_out, c_in, c_noise = self.scalings(sigma)
            out = net(like(c_in, x) * x, c_noise, cond)
            return like(c_skip, x) * x + like(c_out, x) * out

        return denoise

    def sigmas(self, steps: int) -> Tensor:
        return karras_sigmas(steps, self.sigma_min, self.sigma_max, self.rho)


def karras_sigmas(steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0) -> Tensor:
    """Levels evenly spaced in sigma^(1 / rho), then 0: (steps + 1,). Source: Karras et al. 2022, eq. 5."""
    ramp = torch.linspace(0, 1, steps, dtype=torch.float64)
    high, low = sigma_max ** (1 / rho), sigma_min ** (1 / rho)
    return torch.cat([(high + ramp * (low - high)) ** rho, ramp.new_zeros(1)]).float()


def flow_sigmas(steps: int, shift: float = 1.0, top: float = T_MAX) -> Tensor:
    """Levels evenly spaced in t before a shift, from top to 0: (steps + 1,)."""
    t = top * shifted(torch.linspace(1, 0, steps + 1, dtype=torch.float64), shift)
    return (t / (1 - t)).float()


def shifted(t: Tensor, shift: float) -> Tensor:
    """t moved towards noise by shift > 1, which multiplies sigma. Source: Esser et al. 2024, eq. 23."""
    return shift * t / (1 + (shift - 1) * t)


def normal(u: Tensor) -> Tensor:
    """Standard normal quantiles of u in [0, 1), finite at the ends."""
    edge = torch.finfo(u.dtype).eps
    return math.sqrt(2) * torch.erfinv((2 * u - 1).clamp(-1 + edge, 1 - edge))


def like(value: Tensor, x: Tensor) -> Tensor:
    """value (b,) with trailing axes, to multiply x (b ...)."""
    return value.view(-1, *(1 for _ in x.shape[1:]))
