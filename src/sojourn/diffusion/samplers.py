"""Walks from noise to data: each sampler takes x = sigmas[0] * eps down the noise levels, one Step at a time.

They know only a Denoise; every random draw comes from Noise by the name "step/i", so a row depends on its seed alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import pairwise

import torch
from torch import Tensor

from sojourn.types import Cond, Denoise, Noise, Step

Sampler = Callable[[Denoise, Tensor, Tensor, Cond, Noise], Iterator[Step]]
"""(denoise, x (b ...), sigmas (k + 1,) falling, cond, noise) -> a Step for each level reached; sigmas[k] may be 0."""

CHURN = 0.25
"""Share of the way to x0 that a Langevin step at one level goes: larger mixes faster and distorts more."""


def euler(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond, noise: Noise) -> Iterator[Step]:
    """First order, one evaluation a step; the same walk as DDIM, and as Euler in the t of a flow.

    Source: Karras et al. 2022, alg. 1 without its second evaluation; Song et al. 2021 (DDIM), eq. 12.
    """
    for high, low in levels(sigmas):
        x0 = denoise(x, filled(x, high), cond)
        x = x0 + (low / high) * (x - x0)
        yield step(x0, x, low)


def heun(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond, noise: Noise) -> Iterator[Step]:
    """Second order, two evaluations a step, one where the walk ends at sigma 0.

    Source: Karras et al. 2022, alg. 1; the slope is averaged in t = sigma / (1 + sigma) and x_t = x / (1 + sigma),
    where it is eps - x0 and of order 1 at both ends: in sigma itself the first long step of a flow goes wrong.
    """
    for high, low in levels(sigmas):
        x0 = denoise(x, filled(x, high), cond)
        if low == 0:
            x = x0
        else:
            t, t_low = high / (1 + high), low / (1 + low)
            x_t = x * (1 - t)
            v = (x_t - x0) / t
            x_low = x_t + (t_low - t) * v
            x0_low = denoise(x_low * (1 + low), filled(x, low), cond)
            v_low = (x_low - x0_low) / t_low
            x = (x_t + (t_low - t) * (v + v_low) / 2) * (1 + low)
            x0 = x0_low
        yield step(x0, x, low)


def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond, noise: Noise) -> Iterator[Step]:
    """Second order with one evaluation a step: x0 is extrapolated from the step before, in log sigma.

    Source: Lu et al. 2022 (DPM-Solver++), alg. 2, with alpha = 1. The first step, and one to sigma 0, are first order.
    """
    before: Tensor | None = None
    h_before = 0.0
    for high, low in levels(sigmas):
        x0 = denoise(x, filled(x, high), cond)
        ahead = x0
        if low > 0:
            h = math.log(high / low)
            if before is not None:
                ahead = x0 + (x0 - before) * (h / (2 * h_before))
            before, h_before = x0, h
        x = ahead + (low / high) * (x - ahead)
        yield step(x0, x, low)


def langevin(denoise: Denoise, x: Tensor, sigmas: Tensor, cond: Cond, noise: Noise, inner: int = 2) -> Iterator[Step]:
    """Annealed Langevin dynamics, the literal random walk: `inner` random steps at each level, one evaluation each.

    A step at one level goes CHURN of the way to x0, along the score (x0 - x) / sigma^2, and adds noise of variance
    2 CHURN sigma^2 (Song & Ermon 2019, alg. 1). The last step of a level adds just so much that the noise of the next
    level remains (Jolicoeur-Martineau et al. 2021, alg. 2), so that few levels do too: it is DDPM's posterior.
    """
    for i, (high, low) in enumerate(levels(sigmas)):
        for j in range(inner):
            x0 = denoise(x, filled(x, high), cond)
            last = j == inner - 1
            if last:
                kept = (low / high) ** 2
                fresh = math.sqrt(low**2 - (kept * high) ** 2)
            else:
                kept, fresh = 1 - CHURN, high * math.sqrt(2 * CHURN)
            x = x0 + kept * (x - x0)
            if fresh > 0:
                x = x + fresh * noise.draw(f"step/{i * inner + j}", x.shape[1:]).to(x)
            yield step(x0, x, low if last else high)


SAMPLERS: dict[str, Sampler] = {"euler": euler, "heun": heun, "dpmpp_2m": dpmpp_2m, "langevin": langevin}


def levels(sigmas: Tensor) -> Iterator[tuple[float, float]]:
    """Neighbouring noise levels (high, low) as numbers."""
    return pairwise(sigmas.tolist())


def filled(x: Tensor, sigma: float) -> Tensor:
    """One sigma for every row of x: (b,)."""
    return x.new_full((x.shape[0],), sigma)


def step(x0: Tensor, x: Tensor, sigma: float) -> Step:
    """The Step at x; at sigma 0 the walk is done and x is its own preview."""
    done = sigma == 0
    rows = x.shape[0]
    return Step(
        x0=x if done else x0,
        x=x,
        sigma=x.new_full((rows,), sigma),
        done=torch.full((rows,), done, device=x.device),
    )
