"""A convolution whose gradient can itself be differentiated at the price of convolutions.

For penalties on a gradient. Torch differentiates the gradient of a convolution by one with whole maps as weights, group
by group, which is slow on a CPU where there are groups. Here every order of derivative is one of three maps, linear
in each of its arguments, with the library's own kernel: the convolution, its transpose, and the gradient of its weight.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Shape(NamedTuple):
    """How a convolution goes over its map."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int


class Conv2d(nn.Conv2d):
    """nn.Conv2d, its weights and names the same; padding by zeros, in pixels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        assert self.padding_mode == "zeros"
        assert not isinstance(self.padding, str)
        out: Tensor = _Conv.apply(input, weight, Shape(self.stride, self.padding, self.dilation, self.groups))
        return out if bias is None else out + bias[:, None, None]


class _Conv(torch.autograd.Function):
    """x, weight to the map."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, shape: Shape) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.shape = shape
        return F.conv2d(x, weight, None, *shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        to_x, to_weight, _ = ctx.needs_input_grad
        return (
            _Transpose.apply(grad, weight, x.shape, ctx.shape) if to_x else None,
            _Weight.apply(grad, x, weight.shape, ctx.shape) if to_weight else None,
            None,
        )


class _Transpose(torch.autograd.Function):
    """The gradient at the map, weight, to the gradient at x."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, size: torch.Size, shape: Shape) -> Tensor:
        ctx.save_for_backward(grad, weight)
        ctx.shape = shape
        return _backward(grad, grad.new_empty(1).expand(size), weight, shape, 0)

    @staticmethod
    def backward(ctx: Any, again: Tensor) -> tuple[Tensor | None, ...]:
        grad, weight = ctx.saved_tensors
        to_grad, to_weight, *_ = ctx.needs_input_grad
        return (
            _Conv.apply(again, weight, ctx.shape) if to_grad else None,
            _Weight.apply(grad, again, weight.shape, ctx.shape) if to_weight else None,
            None,
            None,
        )


class _Weight(torch.autograd.Function):
    """The gradient at the map, x, to the gradient at the weight."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, x: Tensor, size: torch.Size, shape: Shape) -> Tensor:
        ctx.save_for_backward(grad, x)
        ctx.shape = shape
        return _backward(grad, x, grad.new_empty(1).expand(size), shape, 1)

    @staticmethod
    def backward(ctx: Any, again: Tensor) -> tuple[Tensor | None, ...]:
        grad, x = ctx.saved_tensors
        to_grad, to_x, *_ = ctx.needs_input_grad
        return (
            _Conv.apply(x, again, ctx.shape) if to_grad else None,
            _Transpose.apply(grad, again, x.shape, ctx.shape) if to_x else None,
            None,
            None,
        )


def _backward(grad: Tensor, x: Tensor, weight: Tensor, shape: Shape, which: int) -> Tensor:
    """One of torch's gradients of a convolution: 0 = at x, 1 = at the weight; of the other only the shape counts."""
    stride, padding, dilation, groups = (list(part) if isinstance(part, tuple) else part for part in shape)
    mask = [i == which for i in range(3)]
    out: Tensor = torch.ops.aten.convolution_backward(
        grad, x, weight, None, stride, padding, dilation, False, [0, 0], groups, mask
    )[which]
    return out
