"""Adversarial terms, gradient penalties and reconstruction errors: pure functions, one value per sample.

Nothing is reduced over the batch, nothing draws noise, nothing knows which family calls it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sojourn.errors import InvalidInput


def logistic_d(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's cross-entropy on logits: (b,), (b,) -> (b,). Source: Goodfellow et al. 2014, eq. 1."""
    return F.softplus(-real) + F.softplus(fake)


def logistic_g(fake: Tensor) -> Tensor:
    """Generator's non-saturating loss on logits: (b,) -> (b,). Source: Goodfellow et al. 2014, sec. 3."""
    return F.softplus(-fake)


def hinge_d(real: Tensor, fake: Tensor) -> Tensor:
    """Discriminator's hinge loss: (b,), (b,) -> (b,). Source: Lim & Ye 2017; Miyato et al. 2018, eq. 16."""
    return F.relu(1 - real) + F.relu(1 + fake)


def hinge_g(fake: Tensor) -> Tensor:
    """Generator's side of the hinge loss: (b,) -> (b,). Source: Miyato et al. 2018, eq. 17."""
    return -fake


def wasserstein_d(real: Tensor, fake: Tensor) -> Tensor:
    """Minus the critic's estimate of the distance: (b,), (b,) -> (b,). Source: Arjovsky et al. 2017, eq. 2."""
    return fake - real


def wasserstein_g(fake: Tensor) -> Tensor:
    """Generator's side of the Wasserstein loss: (b,) -> (b,)."""
    return -fake


def zero_centred_penalty(score: Tensor, x: Tensor) -> Tensor:
    """Squared gradient norm of the critic at x: score (b,), x (b, ...) -> (b,). R1 at reals, R2 at fakes.

    x must require a gradient and score must come from it, row by row. Needs fp32: call it outside autocast.
    Source: Mescheder et al. 2018, eq. 9 (without its gamma / 2); Huang et al. 2024, sec. 2.
    """
    return _gradient(score, x).square().sum(dim=1)


def one_centred_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """(gradient norm - 1)^2 of the critic between real and fake: (b, ...), (b, ...), mix (b,) in [0, 1] -> (b,).

    Source: Gulrajani et al. 2017, eq. 3 and algorithm 1 (without its lambda).
    """
    share = mix.view(-1, *(1 for _ in real.shape[1:]))
    x = (share * real.detach() + (1 - share) * fake.detach()).requires_grad_(True)
    squares = _gradient(critic(x), x).square().sum(dim=1)
    # the norm has no gradient at 0, where a fresh critic can be
    return ((squares + 1e-12).sqrt() - 1).square()


def _gradient(score: Tensor, x: Tensor) -> Tensor:
    """Gradient of each row's score to its own row, (b, d), itself differentiable."""
    with torch.enable_grad():
        (grad,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return grad.flatten(1)


def l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference, (b, ...) -> (b,)."""
    return (x - y).abs().flatten(1).mean(dim=1)


def l2(x: Tensor, y: Tensor) -> Tensor:
    """Mean squared difference, (b, ...) -> (b,)."""
    return (x - y).square().flatten(1).mean(dim=1)


def gradient_l1(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of the neighbour differences, down and across: (b c h w) -> (b,).

    Source: Mathieu et al. 2016, eq. 6 with alpha 1, signed differences instead of their sizes.
    """
    d = x - y
    down = (d[..., 1:, :] - d[..., :-1, :]).abs().flatten(1).mean(dim=1)
    across = (d[..., 1:] - d[..., :-1]).abs().flatten(1).mean(dim=1)
    return (down + across) / 2


def ssim(x: Tensor, y: Tensor, *, window: int = 11, spread: float = 1.5, span: float = 2.0) -> Tensor:
    """Structural similarity of pictures, 1 = equal: (b c h w), (b c h w) -> (b,); the loss is 1 - ssim.

    A Gaussian window of std `spread` pixels over the places where it fits whole; span = highest - lowest value.
    Raises InvalidInput for pictures smaller than the window. Source: Wang et al. 2004, eq. 13, K1 0.01, K2 0.03.
    """
    if min(x.shape[-2:]) < window:
        raise InvalidInput(
            "structural similarity needs pictures of at least {window} pixels a side, found {height}x{width}; take a "
            "smaller window",
            window=window,
            height=x.shape[-2],
            width=x.shape[-1],
        )
    place = torch.arange(window, device=x.device, dtype=x.dtype) - (window - 1) / 2
    kernel = torch.exp(-place.square() / (2 * spread * spread))
    kernel = kernel / kernel.sum()
    # centred first: E[x^2] - E[x]^2 loses digits in fp32 where the variance is small beside the mean
    centre = (x.mean(dim=(-2, -1), keepdim=True) + y.mean(dim=(-2, -1), keepdim=True)) / 2
    u, v = x - centre, y - centre
    mu, mv, uu, vv, uv = _blur(torch.stack([u, v, u * u, v * v, u * v]), kernel)
    mean_x, mean_y = mu + centre, mv + centre
    var_x, var_y, cov = uu - mu * mu, vv - mv * mv, uv - mu * mv
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    contrast = (2 * cov + c2) / (var_x + var_y + c2)
    brightness = (2 * mean_x * mean_y + c1) / (mean_x.square() + mean_y.square() + c1)
    return (brightness * contrast).flatten(1).mean(dim=1)


def _blur(x: Tensor, kernel: Tensor) -> Tensor:
    """Weighted window means of x (..., h, w), down then across, without padding."""
    flat = x.reshape(-1, 1, *x.shape[-2:])
    flat = F.conv2d(F.conv2d(flat, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
    return flat.view(*x.shape[:-2], *flat.shape[-2:])
