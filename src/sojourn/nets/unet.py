"""A convolutional U-Net that denoises pictures: b c h w in, b c h w out, told a noise level and a condition.

Pure module: it knows nothing about paths, losses or walks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import ConfigError
from sojourn.nets.blocks import Attention, CondEmbed, ResBlock, TimeEmbed
from sojourn.nets.dit import shortened
from sojourn.types import Cond, DataSpec


class PixelAttention(nn.Module):
    """Attention among the cells of a feature map and the text's tokens, around a skip: (b, c, h, w) -> the same."""

    def __init__(self, channels: int, heads: int, context: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(8, channels)
        self.context = nn.Linear(context, channels) if context else None
        self.attention = Attention(channels, heads)
        nn.init.zeros_(self.attention.out.weight)

    def forward(self, x: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        b, c, height, width = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (b, h w, c)
        n = tokens.shape[1]
        if text is not None and self.context is not None:
            tokens = torch.cat([tokens, self.context(text)], dim=1)
            if mask is not None:
                mask = torch.cat([mask.new_ones(b, n), mask], dim=1)
        h = self.attention(tokens, mask)[:, :n]
        return x + h.transpose(1, 2).reshape(b, c, height, width)


class Stage(nn.Module):
    """A residual block that takes the condition as scale and shift, then attention where it is affordable."""

    def __init__(self, cin: int, cout: int, signal: int, heads: int, context: int, attend: bool) -> None:
        super().__init__()
        self.block = ResBlock(cin, cout, cond=signal)
        self.attention = PixelAttention(cout, heads, context) if attend else None

    def forward(self, x: Tensor, signal: Tensor, text: Tensor | None, mask: Tensor | None) -> Tensor:
        x = self.block(x, signal)
        return x if self.attention is None else self.attention(x, text, mask)


class UNet(nn.Module):
    """(x (b, c, h, w), level (b,), cond) -> (b, c, h, w).

    Level i of `levels` has width * levels[i] channels and half the resolution of the one before, `depth` stages on the
    way down and depth + 1 on the way up; attention on maps of `attend` cells a side or fewer, and at the bottom.
    Source: Dhariwal & Nichol 2021, sec. 3 (ADM), made small.
    """

    def __init__(
        self, spec: DataSpec, width: int, levels: Sequence[int], depth: int, heads: int, attend: int = 8
    ) -> None:
        super().__init__()
        check_sizes(spec, width, levels, heads)
        channels, side = spec.shape[0], max(spec.shape[1:])
        signal = 4 * width
        self.time = TimeEmbed(signal)
        self.cond = CondEmbed(spec, signal, spread=1.0)  # as loud as the level beside it, or it is not heard
        context = signal if spec.text_dim else 0
        widths = [width * factor for factor in levels]
        self.enter = nn.Conv2d(channels, width, 3, padding=1)
        self.down, self.shrink = nn.ModuleList(), nn.ModuleList()
        skips, cin = [width], width
        for i, cout in enumerate(widths):
            for _ in range(depth):
                self.down.append(Stage(cin, cout, signal, heads, context, side >> i <= attend))
                skips.append(cout)
                cin = cout
            if i < len(widths) - 1:
                self.shrink.append(nn.Conv2d(cin, cin, 3, stride=2, padding=1))
                skips.append(cin)
        self.middle = nn.ModuleList(Stage(cin, cin, signal, heads, context, attend=last == 0) for last in range(2))
        self.up, self.grow = nn.ModuleList(), nn.ModuleList()
        for i, cout in reversed(list(enumerate(widths))):
            for _ in range(depth + 1):
                self.up.append(Stage(cin + skips.pop(), cout, signal, heads, context, side >> i <= attend))
                cin = cout
            if i > 0:
                self.grow.append(nn.Conv2d(cin, cin, 3, padding=1))
        self.depth = depth
        self.norm = nn.GroupNorm(8, cin)
        self.leave = nn.Conv2d(cin, channels, 3, padding=1)
        nn.init.zeros_(self.leave.weight)
        nn.init.zeros_(self.leave.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, level: Tensor, cond: Cond) -> Tensor:
        vector, text, mask = self.cond(cond, x.shape[0])
        if self.training and text is not None and mask is not None:
            text, mask = shortened(text, mask)
        signal = F.silu(self.time(level) + vector)
        h = self.enter(x.contiguous(memory_format=torch.channels_last))
        skips = [h]
        for i, stage in enumerate(self.down):
            h = stage(h, signal, text, mask)
            skips.append(h)
            if (i + 1) % self.depth == 0 and i + 1 < len(self.down):
                h = self.shrink[i // self.depth](h)
                skips.append(h)
        for stage in self.middle:
            h = stage(h, signal, text, mask)
        for i, stage in enumerate(self.up):
            h = stage(torch.cat([h, skips.pop()], dim=1), signal, text, mask)
            if (i + 1) % (self.depth + 1) == 0 and skips:
                h = self.grow[i // (self.depth + 1)](F.interpolate(h, scale_factor=2.0))
        return self.leave(F.silu(self.norm(h)))


def check_sizes(spec: DataSpec, width: int, levels: Sequence[int], heads: int) -> None:
    """Raise ConfigError unless the sample is a picture that halves often enough and the widths divide."""
    if len(spec.shape) != 3:
        raise ConfigError(
            'net "unet" needs pictures, found {kind} {shape}; use "dit"', kind=spec.kind, shape=spec.shape
        )
    factor = 2 ** (len(levels) - 1)
    if any(side % factor for side in spec.shape[1:]):
        raise ConfigError(
            "{count} levels need sides that are multiples of {factor}, found {shape}; use fewer levels",
            count=len(levels),
            factor=factor,
            shape=spec.shape,
        )
    if width % 8 or any(width * level % heads for level in levels):
        raise ConfigError(
            "width {width} must be a multiple of 8, and of heads {heads} at every level", width=width, heads=heads
        )
