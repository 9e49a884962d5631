"""The tensors of a net and what may be put into them: comparing, copying, halving, adapters. No files, no cards."""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from sojourn.errors import PackageError
from sojourn.safefile import printable

Dtype = Literal["int8", "fp16", "fp32"]
HALVES = ("float16", "bfloat16")
_FLOATS = (*HALVES, "float32")
Found = Mapping[str, tuple[tuple[int, ...], str]]
"""Name -> (shape, dtype) of tensors."""
SCALE = ".scale"
"""Ends the name of what the rows of an int8 tensor are multiplied by."""


@dataclass(frozen=True)
class Adapter:
    """A change to named weights. "delta": NAME -> a full difference; "lora": NAME.A (r, in), NAME.B (out, r)."""

    name: str
    tensors: Mapping[str, Tensor]
    kind: Literal["lora", "delta"] = "lora"
    strength: float = 1.0
    """Factor on the change when it is merged. 0 = off."""


class Mismatch(NamedTuple):
    """One tensor that a net and a set of weights do not share."""

    name: str
    kind: Literal["missing", "unexpected", "shape", "dtype"]
    net: str = ""
    weights: str = ""

    def __str__(self) -> str:
        name = printable(self.name)
        if self.net and self.weights:
            return f"{name}: the net has {self.kind} {self.net}, the weights {self.weights}"
        return f"{name}: only in the {'net' if self.kind == 'missing' else 'weights'} ({self.net or self.weights})"


def stored(tensors: Mapping[str, Tensor], dtype: Dtype) -> dict[str, Tensor]:
    """`tensors` as they are written. Raises PackageError for a value that is not finite, or too large for fp16."""
    out = {}
    for name, tensor in tensors.items():
        if dtype == "int8" and tensor.is_floating_point() and tensor.ndim >= 2 and finite(tensor):
            out[name], out[name + SCALE] = _in_bytes(tensor.detach().to("cpu", torch.float32))
        elif tensor.is_floating_point():
            half = dtype != "fp32" and tensor.ndim >= 2
            out[name] = tensor.detach().to("cpu", torch.float16 if half else torch.float32)
            if not finite(out[name]):
                raise PackageError(
                    'weight "{name}" is not finite{hint}; nothing was saved',
                    name=name, hint=" in fp16, save in fp32" if finite(tensor) else "",
                )  # fmt: skip
        else:
            out[name] = tensor.detach().cpu()
    return out


def _in_bytes(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """int8 of the same shape, and float32 (rows,) that its rows are to be multiplied by.

    A scale has twelve bits: 127 of it is then exact, and what is read is written the same again.
    """
    rows = tensor.flatten(1)
    part, power = torch.frexp(rows.abs().amax(dim=1) / 127)
    scale = torch.ldexp((part * 4096).round() / 4096, power)
    steps = rows / torch.where(scale > 0, scale, 1.0)[:, None]
    return steps.round().clamp(-127, 127).to(torch.int8).view(tensor.shape), scale


def told(found: Found) -> Found:
    """What a file's tensors stand for: int8 and its scale are one tensor of floats."""
    scaled = {
        name
        for name, (shape, dtype) in found.items()
        if dtype == "int8" and len(shape) >= 2 and found.get(name + SCALE) == (shape[:1], "float32")
    }
    scales = {name + SCALE for name in scaled}
    return {
        name: (shape, "float16" if name in scaled else dtype)
        for name, (shape, dtype) in found.items()
        if name not in scales
    }


def form(found: Found) -> Dtype:
    """How the tensors of a file are stored."""
    if len(told(found)) < len(found):
        return "int8"
    return "fp16" if any(dtype in HALVES for _, dtype in found.values()) else "fp32"


def whole(tensors: Iterable[tuple[str, Tensor]], names: Container[str]) -> Iterator[tuple[str, Tensor]]:
    """The tensors that stand in a file, each under one of `names`: int8 ones wait for their scale, which comes next."""
    held: dict[str, Tensor] = {}
    for name, tensor in tensors:
        base = name.removesuffix(SCALE)
        if name not in names and base in held:
            rows = held.pop(base)
            yield base, rows.float() * tensor.float().view(-1, *(1 for _ in rows.shape[1:]))
        elif tensor.dtype == torch.int8:
            held[name] = tensor
        else:
            yield name, tensor
    yield from held.items()


def tensors_of(module: nn.Module) -> dict[str, Tensor]:
    """The tensors of a net's state, each once: of tied weights the first name."""
    out: dict[int, tuple[str, Tensor]] = {}
    for name, tensor in module.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor):
            raise PackageError('state "{name}" of the net is no tensor and cannot be stored', name=name)
        out.setdefault(id(tensor), (name, tensor))
    return dict(out.values())


def finite(tensor: Tensor) -> bool:
    """Whether all values are finite; a NaN goes through aminmax. Costs a tenth of isfinite().all()."""
    if not tensor.numel() or not tensor.is_floating_point():
        return True
    low, high = tensor.detach().aminmax()
    return bool(low.isfinite() & high.isfinite())


def compare(targets: Mapping[str, Tensor], found: Found) -> list[Mismatch]:
    """How a net's tensors differ from weights; the floats count as one dtype."""
    out = [Mismatch(name, "missing", str(tuple(t.shape))) for name, t in targets.items() if name not in found]
    for name, (shape, dtype) in found.items():
        if name not in targets:
            out.append(Mismatch(name, "unexpected", "", str(shape)))
            continue
        own = str(targets[name].dtype)[6:]
        if tuple(targets[name].shape) != shape:
            out.append(Mismatch(name, "shape", str(tuple(targets[name].shape)), str(shape)))
        elif own != dtype and not (own in _FLOATS and dtype in _FLOATS):
            out.append(Mismatch(name, "dtype", own, dtype))
    return out


def unfit(package: str, problems: Sequence[Mismatch]) -> PackageError:
    """The error that says so."""
    return PackageError(
        'the weights do not fit the net of "{package}" in {count} tensors; the first: {first}',
        package=package, count=len(problems), first=problems[0],
    )  # fmt: skip


def load_weights(net: nn.Module, tensors: Mapping[str, Tensor], strict: bool = False) -> list[Mismatch]:
    """Copy the tensors that fit into `net`; returns those that did not. strict: raise PackageError instead."""
    full = net.state_dict(keep_vars=True)
    given = {id(full[name]): name for name in tensors if name in full}
    targets = {given.get(id(tensor), name): tensor for name, tensor in tensors_of(net).items()}
    found = {
        name: (tuple(tensor.shape), str(tensor.dtype)[6:])
        for name, tensor in tensors.items()
        if name in targets or name not in full
    }
    problems = compare(targets, found)
    if strict and problems:
        raise unfit(type(net).__name__, problems)
    bad = {problem.name for problem in problems}
    with torch.no_grad():
        for name, target in targets.items():
            if name not in bad:
                target.copy_(tensors[name])
    return problems


def add(net: nn.Module, adapter: Adapter, strength: float) -> None:
    """Add an adapter to the weights of `net`, in place: W += strength * B @ A, or strength * delta."""
    targets = tensors_of(net)
    check_adapter(adapter.name, adapter.kind, {key: tensor.shape for key, tensor in adapter.tensors.items()}, targets)
    low_rank = adapter.kind == "lora"
    with torch.no_grad():
        for name in sorted({name[:-2] if low_rank else name for name in adapter.tensors}):
            if low_rank:
                up, down = adapter.tensors[f"{name}.B"].float(), adapter.tensors[f"{name}.A"].float()
                change = up.flatten(1) @ down.flatten(1)
            else:
                change = adapter.tensors[name].float()
            target = targets[name]
            target.add_(change.reshape(target.shape).to(target), alpha=strength)
            if not finite(target):
                raise PackageError('adapter "{name}" makes "{weight}" infinite', name=adapter.name, weight=name)


def check_adapter(name: str, kind: str, shapes: Mapping[str, Sequence[int]], targets: Mapping[str, Tensor]) -> None:
    """Raise PackageError when an adapter with tensors of these shapes does not fit the weights it is meant for."""
    for key, shape in shapes.items():
        base = key if kind == "delta" else key[:-2]
        target = targets.get(base)
        fits = target is not None and target.is_floating_point()
        if target is not None and kind == "delta":
            fits = fits and tuple(shape) == tuple(target.shape)
        elif target is not None:
            fits = fits and key[-2:] in (".A", ".B") and _low_rank(shapes, base, target.shape)
        if not fits:
            raise PackageError(
                'adapter "{name}" does not fit the weights: "{key}" of shape {shape}',
                name=name, key=printable(key), shape=tuple(shape),
            )  # fmt: skip


def _low_rank(shapes: Mapping[str, Sequence[int]], base: str, size: Sequence[int]) -> bool:
    down, up = shapes.get(f"{base}.A", ()), shapes.get(f"{base}.B", ())
    if min(len(down), len(up), len(size)) < 2:
        return False
    columns = math.prod(size[1:])
    same = (up[0], math.prod(down[1:])) == (size[0], columns)
    return same and 0 < down[0] == math.prod(up[1:]) <= max(size[0], columns)
