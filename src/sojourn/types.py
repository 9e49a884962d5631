"""The tensors that pass between the parts, and the protocols of those parts. No files, no strings, no I/O.

Axes: b batch, c channels, h w, s audio samples, f mel bins, n tokens, d features, a label columns.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np

    from sojourn.schema import Prompt

Kind = Literal["vector", "image", "wave", "mel", "text", "latent", "codes"]


@dataclass(frozen=True)
class DataSpec:
    """The shape of one sample, and of what it can be conditioned on."""

    kind: Kind
    shape: tuple[int, ...]
    """Without the batch axis: (c, h, w) for images and latents, (n,) for text and codes."""
    vocab: int = 0
    """Token ids are 0..vocab-1. 0 = neither text nor codes."""
    labels: tuple[tuple[str, int], ...] = ()
    """Label columns, (name, number of classes)."""
    text_len: int = 0
    """Prompt tokens at most. 0 = no text condition."""
    text_dim: int = 0
    """Width of the text features of `Cond.feats`. 0 = none."""
    pooled_dim: int = 0
    """Width of `Cond.pooled`. 0 = none."""
    sources: tuple[str, ...] = ()


@dataclass(frozen=True)
class Cond:
    """What a batch is conditioned on. Any field may be None; a row can be empty in each field (see `null`)."""

    labels: Tensor | None = None  # (b, a) long, -1 = not given
    tokens: Tensor | None = None  # (b, n) long
    token_mask: Tensor | None = None  # (b, n) bool, True = a real token; belongs to tokens and feats
    pooled: Tensor | None = None  # (b, d), zeros = not given
    feats: Tensor | None = None  # (b, n, d), rows with an all-False mask = not given
    images: tuple[Tensor, ...] = ()  # each (b, c, h, w) in model space
    edit_mask: Tensor | None = None  # (b, 1, h, w), 1 = may change

    def drop(self, p: float, field: Literal["all", "labels", "text"] = "all") -> Cond:
        """Empty each row with probability p (torch's global generator, which the loop seeds), for guidance."""
        if p <= 0 or self.rows == 0:
            return self
        keep = torch.rand(self.rows) >= p
        return self.where(keep, field)

    def null(self) -> Cond:
        """The same rows with no labels and no text; source images and masks stay."""
        return self.where(torch.zeros(self.rows, dtype=torch.bool))

    def where(self, keep: Tensor, field: Literal["all", "labels", "text"] = "all") -> Cond:
        """Rows with keep (b,) False lose the condition named by `field`."""
        out: dict[str, Any] = {}
        if field in ("all", "labels") and self.labels is not None:
            out["labels"] = torch.where(keep[:, None].to(self.labels.device), self.labels, -1)
        if field in ("all", "text"):
            if self.token_mask is not None:
                out["token_mask"] = self.token_mask & keep[:, None].to(self.token_mask.device)
            if self.pooled is not None:
                out["pooled"] = self.pooled * keep[:, None].to(self.pooled)
        return replace(self, **out)

    @property
    def rows(self) -> int:
        """Number of rows, 0 when no field is set."""
        for value in self._tensors():
            return value.shape[0]
        return 0

    def __getitem__(self, index: slice | Tensor) -> Cond:
        return self._map(lambda t: t[index])

    def to(self, device: torch.device | str) -> Cond:
        return self._map(lambda t: t.to(device))

    def repeat(self, times: int) -> Cond:
        """All rows `times` over: row r of copy i is at i * b + r."""
        return self._map(lambda t: t.repeat(times, *(1 for _ in t.shape[1:])))

    @staticmethod
    def cat(parts: Sequence[Cond]) -> Cond:
        """Rows of all parts, which must have the same fields set."""
        first = parts[0]
        out: dict[str, Any] = {}
        for f in fields(first):
            values = [getattr(part, f.name) for part in parts]
            if f.name == "images":
                out["images"] = tuple(torch.cat(column) for column in zip(*values, strict=True))
            elif values[0] is not None:
                out[f.name] = torch.cat(values)
        return replace(first, **out)

    def _tensors(self) -> list[Tensor]:
        named = [getattr(self, f.name) for f in fields(self) if f.name != "images"]
        return [value for value in named if value is not None] + list(self.images)

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Cond:
        out: dict[str, Any] = {"images": tuple(fn(t) for t in self.images)}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name != "images" and value is not None:
                out[f.name] = fn(value)
        return replace(self, **out)


@dataclass(frozen=True)
class Batch:
    """One training batch in model space."""

    x: Tensor  # (b, ...) model space; (b, n) long for text
    cond: Cond
    weight: Tensor  # (b,), 1 = plain, 0 = as if absent
    pair: Tensor | None = None  # the second of a pair: DPO loser, domain B, second view
    length: Tensor | None = None  # (b,) long, real tokens per row
    ids: tuple[str, ...] = ()  # row names, for messages

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: slice) -> Batch:
        return Batch(
            x=self.x[rows],
            cond=self.cond[rows],
            weight=self.weight[rows],
            pair=None if self.pair is None else self.pair[rows],
            length=None if self.length is None else self.length[rows],
            ids=self.ids[rows],
        )


@dataclass(frozen=True)
class Loss:
    """One phase's loss, never reduced over samples.

    The loop minimises sum(weight * value * units) / sum(weight * units) over micro-batches and ranks.
    """

    value: Tensor  # (m,)
    logs: Mapping[str, Tensor] = field(default_factory=dict)  # name -> (m,) or scalar, detached
    units: Tensor | float = 1.0  # (m,) or one number: how many things a sample stands for (tokens of a LM)
    stats: Mapping[str, Tensor] = field(default_factory=dict)  # summed over micro-batches, then Family.after


@dataclass(frozen=True)
class Step:
    """One step of a walk."""

    x0: Tensor  # (b, ...) the preview: what the result would be if the walk ended here; tokens (b, n) for text
    x: Tensor  # (b, ...) where the walk stands; with sigma it can be rewound to
    sigma: Tensor  # (b,) noise std left, 0 at the end
    done: Tensor  # (b,) bool


class Noise:
    """Random draws that are a pure function of (seed, name): no state, no order, one seed per row."""

    def __init__(self, seeds: Sequence[int]) -> None:
        self.seeds = tuple(int(seed) for seed in seeds)

    def __len__(self) -> int:
        return len(self.seeds)

    def draw(self, name: str, shape: Sequence[int]) -> Tensor:
        """Unit normal noise (b, *shape); row i depends on seeds[i] and name alone."""
        return torch.stack([torch.randn(tuple(shape), generator=_generator(s, name)) for s in self.seeds])

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        """Uniform noise in [0, 1), (b, *shape)."""
        return torch.stack([torch.rand(tuple(shape), generator=_generator(s, name)) for s in self.seeds])

    def __getitem__(self, rows: slice) -> Noise:
        return Noise(self.seeds[rows])


class Between(Noise):
    """Draws on the way from those of one row to those of another: unit normal (or uniform) all along.

    share (0 = first, 1 = second) is an angle: a straight line would lose length halfway, and look washed out.
    """

    def __init__(self, first: Sequence[int], second: Sequence[int], share: Sequence[float]) -> None:
        super().__init__(first)
        self.second = Noise(second)
        # From a row to itself there is no way: the sum of two equal draws would be too long.
        ways = zip(self.seeds, self.second.seeds, share, strict=True)
        self.angle = torch.tensor([0.0 if a == b else float(s) * math.pi / 2 for a, b, s in ways])

    def draw(self, name: str, shape: Sequence[int]) -> Tensor:
        angle = self.angle.view(-1, *(1 for _ in shape))
        return angle.cos() * super().draw(name, shape) + angle.sin() * self.second.draw(name, shape)

    def uniform(self, name: str, shape: Sequence[int]) -> Tensor:
        angle = self.angle.view(-1, *(1 for _ in shape)).double()
        a, b = (2 * noise.double() - 1 for noise in (super().uniform(name, shape), self.second.uniform(name, shape)))
        edge = 1 - 1e-12
        mixed = angle.cos() * a.clamp(-edge, edge).erfinv() + angle.sin() * b.clamp(-edge, edge).erfinv()
        return mixed.erf().add(1).div(2).float().clamp(max=1 - 2**-24)

    def __getitem__(self, rows: slice) -> Between:
        share = (self.angle[rows] / (math.pi / 2)).tolist()
        return Between(self.seeds[rows], self.second.seeds[rows], share)


class Spliced(Noise):
    """Draws of one row, but for the names that start with "late", which are those of another row without it.

    A family that asks for a late draw beside a plain one (style mixing) so takes it from another picture.
    """

    def __init__(self, first: Sequence[int], late: Sequence[int]) -> None:
        super().__init__(first)
        self.late = Noise(late)

    def draw(self, name: str, shape: Sequence[int]) -> Tensor:
        if name.startswith(LATE):
            return self.late.draw(name.removeprefix(LATE), shape)
        return super().draw(name, shape)

    def __getitem__(self, rows: slice) -> Spliced:
        return Spliced(self.seeds[rows], self.late.seeds[rows])


LATE = "late "
"""Prefix of the name of a draw that may be another picture's."""


def _generator(seed: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


Denoise = Callable[[Tensor, Tensor, Cond], Tensor]
"""(x (b ...), sigma (b,), cond) -> x0 (b ...), in coordinates x = x0 + sigma * eps."""


@dataclass(frozen=True)
class Guide:
    """Something that bends a walk; a family uses the form it can."""

    name: str
    denoise: Callable[[Denoise], Denoise] | None = None
    energy: Callable[[Tensor, Cond], Tensor] | None = None
    """(x0 in model space (b ...), cond) -> (b,), lower is better, differentiable in x0."""
    logits: Callable[[Tensor, Tensor, Cond], Tensor] | None = None
    """(logits (b, vocab), tokens so far (b, n), cond) -> logits."""


@runtime_checkable
class Codec(Protocol):
    """Media to tensors and back. `id` and `config` rebuild it; `files` holds what config cannot (a tokenizer)."""

    id: str
    spec: DataSpec

    @property
    def config(self) -> dict[str, Any]: ...
    def pack(self, media: Any) -> np.ndarray:
        """One item to its stored form, offline."""
        ...

    def encode(self, raw: Tensor) -> Tensor:
        """Stored form (b ...) to model space (b, *spec.shape), in the loop, on the device."""
        ...

    def decode(self, x: Tensor) -> Tensor:
        """Model space to raw tensors (images: (b c h w) in [-1, 1]); differentiable, deterministic."""
        ...

    def unpack(self, raw: Tensor) -> list[Any]:
        """Raw tensors to media: PIL pictures, str."""
        ...


@runtime_checkable
class Conditioner(Protocol):
    """Prompts to tensors, frozen: what is learned about a condition lives in the nets."""

    id: str

    @property
    def config(self) -> dict[str, Any]: ...
    def extend(self, spec: DataSpec) -> DataSpec:
        """`spec` with what this conditioner adds (labels, text_len, text_dim, pooled_dim)."""
        ...

    def __call__(self, prompts: Sequence[Prompt]) -> Cond: ...
