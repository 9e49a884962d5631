"""The synthesis net and the discriminator of StyleGAN2, for square pictures of 8, 16, 32, ... pixels, in plain torch.

Pure modules: they know no losses, and noise is given to them. Where the paper resamples with filters and transposed
convolutions, these double by bilinear interpolation and halve by means.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.nets.conv import COND_DIM, check_picture, conditional, embedding, stage_widths
from sojourn.types import Cond, DataSpec

SLOPE, GAIN = 0.2, math.sqrt(2)
"""Of leaky ReLU, and what keeps its variance."""
QUIET = 0.1
"""Size of the first pictures, against unit variance."""


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, SLOPE) * GAIN


class EqualLinear(nn.Module):
    """A linear layer whose weights are of unit variance and scaled when used, (..., cin) -> (..., cout).

    lr: factor on its learning rate, weight and bias. Source: Karras et al. 2018, sec. 4.1 (equalised learning rate).
    """

    def __init__(self, cin: int, cout: int, bias: float = 0.0, lr: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin) / lr)
        self.bias = nn.Parameter(torch.full((cout,), bias / lr))
        self.scale, self.lr = lr / math.sqrt(cin), lr

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.scale, self.bias * self.lr)


class EqualConv(nn.Module):
    """A convolution of the same kind, (b, cin, h, w) -> (b, cout, h, w)."""

    def __init__(self, cin: int, cout: int, size: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, size, size))
        self.bias = nn.Parameter(torch.zeros(cout)) if bias else None
        self.scale, self.padding = 1 / math.sqrt(cin * size * size), size // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.scale, self.bias, padding=self.padding)


class Modulated(nn.Module):
    """A convolution whose input channels are scaled by a style, with outputs brought back to unit variance.

    x (b, cin, h, w), w (b, dim) -> (b, cout, h, w). Scaling x and then the result gives the same numbers as scaling
    each row's weights, and is one convolution for all rows. Source: Karras et al. 2020, eq. 1 and 3.
    """

    def __init__(self, cin: int, cout: int, size: int, dim: int, demodulate: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(cout, cin, size, size))
        self.style = EqualLinear(dim, cin, bias=1.0)
        self.scale, self.padding, self.demodulate = 1 / math.sqrt(cin * size * size), size // 2, demodulate

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        weight, style = self.weight * self.scale, self.style(w)  # (b, cin)
        x = F.conv2d(x * style[:, :, None, None], weight, padding=self.padding)
        if self.demodulate:
            power = style.square() @ weight.square().sum(dim=(2, 3)).T  # (b, cout)
            x = x * (power + 1e-8).rsqrt()[:, :, None, None]
        return x


class StyleLayer(nn.Module):
    """Modulated convolution, noise of a learned strength, bias, leaky ReLU; `up` doubles the side first."""

    def __init__(self, cin: int, cout: int, dim: int, up: bool) -> None:
        super().__init__()
        self.up = up
        self.conv = Modulated(cin, cout, 3, dim)
        self.strength = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(cout))

    def forward(self, x: Tensor, w: Tensor, eps: Tensor) -> Tensor:
        x = doubled(x) if self.up else x
        x = self.conv(x, w) + self.strength * eps
        return activate(x + self.bias[:, None, None])


def doubled(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)


class Mapping(nn.Module):
    """z (b, z_dim) and a condition to w (b, w_dim). Source: Karras et al. 2019, sec. 2; a hundredth of the rate."""

    def __init__(self, spec: DataSpec, z_dim: int, w_dim: int, depth: int) -> None:
        super().__init__()
        self.embed = embedding(spec, COND_DIM) if conditional(spec) else None
        widths = [z_dim + (COND_DIM if self.embed is not None else 0)] + [w_dim] * depth
        self.layers = nn.ModuleList(EqualLinear(cin, cout, lr=0.01) for cin, cout in pairwise(widths))

    def forward(self, z: Tensor, cond: Cond) -> Tensor:
        h = unit(z)
        if self.embed is not None:
            h = torch.cat([h, unit(self.embed(cond, z.shape[0])[0])], dim=1)
        for layer in self.layers:
            h = activate(layer(h))
        return h


def unit(x: Tensor) -> Tensor:
    """Each row to a mean square of 1."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class Synthesis(nn.Module):
    """Styles (b, layers, w_dim) and noise of each layer to pictures (b c h w), by way of pictures of every size.

    Source: Karras et al. 2020, fig. 7 (b, generator).
    """

    def __init__(self, spec: DataSpec, w_dim: int, width: int, max_width: int) -> None:
        super().__init__()
        check_picture(spec)
        channels, side, _ = spec.shape
        coarsest, below = stage_widths(side, 2 * width, max_width)
        widths = [*below, min(width, max_width)]
        self.start = nn.Parameter(torch.randn(widths[0], coarsest, coarsest))
        pairs = [(widths[0], widths[0], False)]
        for cin, cout in pairwise(widths):
            pairs += [(cin, cout, True), (cout, cout, False)]
        self.layers = nn.ModuleList(StyleLayer(cin, cout, w_dim, up) for cin, cout, up in pairs)
        self.shapes = tuple(
            (1, coarsest * 2 ** ((i + 1) // 2), coarsest * 2 ** ((i + 1) // 2)) for i in range(len(pairs))
        )
        """Shape of each layer's noise."""
        self.to_rgb = nn.ModuleList(Modulated(cout, channels, 1, w_dim, demodulate=False) for cout in widths)
        with torch.no_grad():  # as loud as the layers, the first pictures would be one pattern that must be unlearnt
            for layer in self.to_rgb:
                layer.get_parameter("weight").mul_(QUIET)
        self.bias = nn.Parameter(torch.zeros(channels))

    @property
    def count(self) -> int:
        """Styles it takes."""
        return len(self.layers)

    def forward(self, w: Tensor, eps: Sequence[Tensor]) -> Tensor:
        h = self.start.expand(w.shape[0], -1, -1, -1)
        picture: Tensor | None = None
        for i, layer in enumerate(self.layers):
            h = layer(h, w[:, i], eps[i])
            if i % 2 == 0:  # the last layer of its resolution
                colour = self.to_rgb[i // 2](h, w[:, i])
                picture = colour if picture is None else doubled(picture) + colour
        assert picture is not None
        return picture + self.bias[:, None, None]


class StyleDiscriminator(nn.Module):
    """Pictures (b c h w) and a condition to one score each, (b,), told how much the batch varies.

    Source: Karras et al. 2020, fig. 7 (c, discriminator); the condition as in Karras et al. 2020 (ADA), app. C.
    """

    def __init__(self, spec: DataSpec, width: int, max_width: int) -> None:
        super().__init__()
        check_picture(spec)
        channels, side, _ = spec.shape
        coarsest, below = stage_widths(side, 2 * width, max_width)
        widths = [*below, min(width, max_width)][::-1]
        self.enter = EqualConv(channels, widths[0], 1)
        self.blocks = nn.ModuleList(DownBlock(cin, cout) for cin, cout in pairwise(widths))
        self.conv = EqualConv(widths[-1] + 1, widths[-1], 3)
        self.gather = EqualLinear(widths[-1] * coarsest**2, widths[-1])
        self.embed = embedding(spec, COND_DIM) if conditional(spec) else None
        self.out = EqualLinear(widths[-1], COND_DIM if self.embed is not None else 1)

    def forward(self, x: Tensor, cond: Cond) -> Tensor:
        return self.score(self.features(x), cond)

    def features(self, x: Tensor) -> Tensor:
        """Pictures to what is asked of the condition, (b, COND_DIM), or to scores (b, 1)."""
        h = activate(self.enter(x))
        for block in self.blocks:
            h = block(h)
        h = activate(self.conv(torch.cat([h, minibatch_stddev(h)], dim=1)))
        out: Tensor = self.out(activate(self.gather(h.flatten(1))))
        return out

    def score(self, h: Tensor, cond: Cond) -> Tensor:
        """Features to scores (b,)."""
        if self.embed is None:
            return h[:, 0]
        return (h * self.embed(cond, h.shape[0])[0]).sum(dim=1) / math.sqrt(COND_DIM)


class DownBlock(nn.Module):
    """A residual block that halves the side: (b, cin, h, w) -> (b, cout, h / 2, w / 2)."""

    def __init__(self, cin: int, cout: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = EqualConv(cin, cin, 3), EqualConv(cin, cout, 3)
        self.skip = EqualConv(cin, cout, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = activate(self.conv2(F.avg_pool2d(activate(self.conv1(x)), 2)))
        return (h + self.skip(F.avg_pool2d(x, 2))) / GAIN


GROUP = 4
"""Rows whose spread is measured together."""


def minibatch_stddev(x: Tensor) -> Tensor:
    """Spread of each group of rows, mean over channels and places, as one more channel: (b, c, h, w) -> (b, 1, h, w).

    Row i is in the group of rows i + k * groups. Source: Karras et al. 2018, sec. 3.
    """
    b = x.shape[0]
    size = math.gcd(b, GROUP)
    spread = (x.reshape(size, b // size, -1).var(dim=0, correction=0) + 1e-8).sqrt().mean(dim=1)  # (groups,)
    return spread.repeat(size).view(b, 1, 1, 1).expand(-1, 1, *x.shape[2:])
