"""Pictures moved, turned and tinted, differentiably, before a discriminator sees them: few pictures last longer.

Pure functions of pictures and draws; draws come from torch's global generator, row by row. Knows nothing about nets.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

SHIFT, HOLE = 0.125, 0.5
"""Of DiffAugment: largest shift, and side of the hole, in sides of the picture (Zhao et al. 2020, sec. 4)."""


def diffaugment(x: Tensor) -> Tensor:
    """Tint, shift and hole for every picture: (b c h w) in -1..1 -> the same.

    Source: Zhao et al. 2020, Differentiable Augmentation for Data-Efficient GAN Training, sec. 3.3 and app. A.
    """
    b, _, h, w = x.shape
    u = torch.rand(b, 7, device=x.device)
    x = tinted(x, brightness=u[:, 0] - 0.5, contrast=u[:, 1] + 0.5, saturation=2 * u[:, 2])
    down, across = (2 * u[:, 3] - 1) * SHIFT, (2 * u[:, 4] - 1) * SHIFT
    x = shifted(x, (down * h).round().long(), (across * w).round().long())
    return x * ~hole(h, w, u[:, 5], u[:, 6])[:, None]


def ada(x: Tensor, p: Tensor | float, colour: bool = True) -> Tensor:
    """Each of several changes for a share p of the pictures: (b c h w) in -1..1 -> the same.

    Quarter turns, shifts by whole pixels, size, turns, stretch, shifts by parts; with `colour` also brightness,
    contrast, hue and saturation. No mirror, which would teach a set that has none. Source: Karras et al. 2020, Training
    Generative Adversarial Networks with Limited Data, fig. 2 and app. B ("bg" or "bgc"),
    with these differences: no flip, no flip of luma, one turn in place of two about the stretch, contrast about the
    picture's mean, and plain bilinear sampling.
    """
    b = x.shape[0]

    def some(value: Tensor, off: float) -> Tensor:
        return torch.where(torch.rand(b, device=x.device) < p, value, torch.full_like(value, off))

    def normal() -> Tensor:
        return torch.randn(b, device=x.device)

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(b, device=x.device)

    quarter = some(torch.randint(4, (b,), device=x.device).float(), 0.0) * (math.pi / 2)
    side = x.shape[-1]
    step = [some((uniform(-1, 1) * SHIFT * side).round() / side * 2, 0.0) for _ in range(2)]
    size = some(torch.exp2(0.2 * normal()), 1.0)
    turn = some(uniform(-math.pi, math.pi), 0.0)
    stretch = some(torch.exp2(0.2 * normal()), 1.0)
    part = [some(SHIFT * normal() * 2, 0.0) for _ in range(2)]
    x = warped(x, quarter + turn, size * stretch, size / stretch, step[0] + part[0], step[1] + part[1])
    if not colour:
        return x
    brightness, contrast = some(0.2 * normal(), 0.0), some(torch.exp2(0.5 * normal()), 1.0)
    hue, saturation = some(uniform(-math.pi, math.pi), 0.0), some(torch.exp2(normal()), 1.0)
    return tinted(x, brightness, contrast, saturation, hue)


def tinted(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor, hue: Tensor | None = None) -> Tensor:
    """x (b c h w) brighter by `brightness`, stretched about its mean, each (b,); saturation and hue of three channels.

    Saturation is the distance from grey, hue a turn about it in radians. A fourth channel (alpha) and pictures of one
    or two keep what has no meaning for them.
    """
    colours, rest = x[:, :3], x[:, 3:]
    each = (-1, 1, 1, 1)
    if colours.shape[1] == 3:
        grey = colours.mean(dim=1, keepdim=True)
        tint = colours - grey
        if hue is not None:
            # Rodrigues about the grey axis: what is at right angles to it turns, the cross product with it is a roll.
            across = (tint.roll(1, dims=1) - tint.roll(-1, dims=1)) / math.sqrt(3)
            tint = tint * hue.cos().view(each) + across * hue.sin().view(each)
        colours = grey + tint * saturation.view(each)
    mean = colours.mean(dim=(1, 2, 3), keepdim=True)
    colours = (colours - mean) * contrast.view(each) + mean + brightness.view(each)
    return torch.cat([colours, rest], dim=1) if rest.shape[1] else colours


def shifted(x: Tensor, down: Tensor, across: Tensor) -> Tensor:
    """Rows of x (b c h w) moved by whole pixels, (b,) each; what comes in is 0."""
    b, _, h, w = x.shape
    rows = torch.arange(h, device=x.device)[None] - down[:, None]  # (b, h): where each row comes from
    columns = torch.arange(w, device=x.device)[None] - across[:, None]
    inside = ((rows >= 0) & (rows < h))[:, :, None] & ((columns >= 0) & (columns < w))[:, None]
    at = torch.arange(b, device=x.device)[:, None, None]
    moved = x.permute(0, 2, 3, 1)[at, rows.clamp(0, h - 1)[:, :, None], columns.clamp(0, w - 1)[:, None]]
    return (moved * inside[..., None]).permute(0, 3, 1, 2)


def hole(h: int, w: int, down: Tensor, across: Tensor) -> Tensor:
    """Where a square hole lies whose middle is at (down, across), (b,) in 0..1 of the picture: bool (b, h, w)."""
    rows = (torch.arange(h, device=down.device)[None] + 0.5) / h - down[:, None]
    columns = (torch.arange(w, device=down.device)[None] + 0.5) / w - across[:, None]
    return (rows.abs() < HOLE / 2)[:, :, None] & (columns.abs() < HOLE / 2)[:, None]


def warped(x: Tensor, turn: Tensor, wide: Tensor, high: Tensor, right: Tensor, down: Tensor) -> Tensor:
    """x (b c h w) scaled, turned and then shifted, (b,) each, about its middle, mirrored beyond its edges.

    turn in radians, counter-clockwise as seen; wide, high are factors; right and down in half sides.
    """
    cos, sin = turn.cos(), turn.sin()
    # affine_grid asks where each place comes from: the inverse, from right to left.
    across = torch.stack([cos / wide, -sin / wide, (-cos * right + sin * down) / wide], dim=1)
    along = torch.stack([sin / high, cos / high, (-sin * right - cos * down) / high], dim=1)
    with torch.autocast(x.device.type, enabled=False):  # places in bf16 would be off by pixels
        grid = F.affine_grid(torch.stack([across, along], dim=1).float(), list(x.shape), align_corners=False)
        out = F.grid_sample(x.float(), grid, mode="bilinear", padding_mode="reflection", align_corners=False)
    return out.to(x.dtype)
