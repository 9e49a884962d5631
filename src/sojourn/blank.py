"""A net built without filling it, and within the means of the weights it will get. Knows nothing of files.

A constructor runs with settings that a stranger wrote. It may ask for a net of any size; what it asks for is counted
before it is allocated, and random starts, which the weights would overwrite, are left out. (The meta device would
count too, but half of torch's functions load its compiler there: two seconds that a first picture does not have.)
"""

from __future__ import annotations

import math
import time
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sojourn.errors import PackageError, SojournError
from sojourn.safefile import printable

M = TypeVar("M", bound=nn.Module)

SLACK = 1 << 25
"""Numbers a net may hold beside its weights (tables, masks): 128 MB in fp32."""
SECONDS = 3.0
"""CPU time a constructor may take."""
_FILLS = {
    "uniform_", "normal_", "constant_", "kaiming_uniform_", "zero_", "fill_", "copy_", "erfinv_",
    "mul_", "div_", "add_", "sub_", "clamp_",
}  # fmt: skip
_FACTORIES = {
    "empty", "zeros", "ones", "full", "rand", "randn", "randint", "randperm", "arange", "range", "linspace",
    "logspace", "eye", "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full",
}  # fmt: skip


def build(
    make: Callable[[], M], tensors: Callable[[nn.Module], Mapping[str, Tensor]], held: int, count: int
) -> tuple[M, Mapping[str, Tensor]]:
    """(net, its tensors by name) from `make`, its parameters not filled; torch's global generator is left as it was.

    held, count: numbers and tensors that the weights file has. Raises PackageError when the constructor asks for
    far more, takes too long or fails.
    """
    for skip in (True, False):
        mode = _Frugal(held, count, skip)
        try:
            with torch.random.fork_rng(devices=[]), mode:
                net = make()
        except SojournError:
            raise
        except Exception as error:  # sizes out of any range end in errors of any kind
            raise PackageError(
                "the net on the card cannot be built: {reason}", reason=printable(str(error)) or type(error).__name__
            ) from error
        state = tensors(net)
        # what was left unfilled and lives must all be filled from the weights: else it is built again, filled
        filled = {id(tensor) for tensor in state.values()}
        if not mode.copied and all(id(tensor) in filled for ref in mode.skipped if (tensor := ref()) is not None):
            break
    return net, state


class _Frugal(TorchFunctionMode):
    """Counts what torch is asked for, before it is made, and leaves parameters unfilled."""

    def __init__(self, held: int, count: int, skip: bool) -> None:
        super().__init__()
        self.room = 3 * held + SLACK
        self.calls = 10_000 + 100 * count
        self.until = time.thread_time() + SECONDS
        self.skip = skip
        self.skipped: list[weakref.ref[Tensor]] = []
        self.copied = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.__name__
        first = args[0] if args else kwargs.get("tensor")
        self.calls -= 1
        if self.calls < 0 or time.thread_time() > self.until:
            self._refuse()
        if name in _FILLS and self.skip and isinstance(first, nn.Parameter):
            self.skipped.append(weakref.ref(first))
            return first
        if name in ("clone", "__deepcopy__") and any(ref() is first for ref in self.skipped):
            self.copied = True
        expected = _asked(name, args, kwargs)
        if expected > self.room:
            self._refuse()
        out = func(*args, **kwargs)
        if isinstance(out, Tensor) and not _shares(out, args):
            self.room -= out.numel()
            if self.room < 0:
                self._refuse()
        return out

    def _refuse(self) -> NoReturn:
        raise PackageError("the card asks for a net far larger than its weights; nothing was built")


def _asked(name: str, args: Any, kwargs: Mapping[str, Any]) -> int:
    """How many numbers a call would make, as far as its arguments tell; 0 = they do not."""
    tensors = [arg for arg in args if isinstance(arg, Tensor)]
    numbers = [arg for arg in args if isinstance(arg, (int, float)) and not isinstance(arg, bool)]
    if name in ("arange", "range"):
        given = [*numbers, *(kwargs[key] for key in ("start", "end") if key in kwargs)]
        start, end, step = (0, *given, 1)[:3] if len(given) == 1 else (*given, 1)[:3]
        return int(abs(end - start) / abs(kwargs.get("step", step) or 1))
    if name in ("linspace", "logspace"):
        return int(kwargs.get("steps", numbers[2] if len(numbers) > 2 else 0))
    if name == "eye":
        return int(numbers[0] * numbers[-1]) if numbers else 0
    if name in _FACTORIES or name in ("repeat", "tile", "expand"):
        sizes = [arg for arg in (*args, kwargs.get("size")) if isinstance(arg, (tuple, list))]
        times = tensors[0].numel() if name in ("repeat", "tile") and tensors else 1
        return times * math.prod(int(size) for size in (sizes[0] if sizes else numbers))
    if name in ("outer", "ger", "kron"):
        return math.prod(tensor.numel() for tensor in tensors)
    if len(tensors) > 1:  # broadcasting makes at most the larger of each axis
        rank = max(tensor.ndim for tensor in tensors)
        shapes = [(1,) * (rank - tensor.ndim) + tuple(tensor.shape) for tensor in tensors]
        return math.prod(map(max, zip(*shapes, strict=True)))
    return 0


def _shares(out: Tensor, args: Any) -> bool:
    own = out.untyped_storage().data_ptr()
    return any(isinstance(arg, Tensor) and arg.untyped_storage().data_ptr() == own for arg in args)
