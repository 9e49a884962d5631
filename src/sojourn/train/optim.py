"""Optimizers, the learning-rate schedule and the moving average. Knows nothing about phases, data or files."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sojourn.config import TrainConfig

# Quintic iteration that maps singular values into about [0.7, 1.2]; Jordan 2024, "Muon", sec. "coefficients".
_QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of a stack g (k, rows, cols), by Newton-Schulz in g's own precision.

    bf16 is precise enough, but many times slower than fp32 on CPUs without it. Source: Jordan 2024; Bernstein 2024.
    """
    a, b, c = _QUINTIC
    flip = g.shape[1] > g.shape[2]
    x = g.mT if flip else g
    x = x / (x.flatten(1).norm(dim=1)[:, None, None] + 1e-7)
    for _ in range(steps):
        square = x @ x.mT
        x = torch.baddbmm(a * x, torch.baddbmm(b * square, square, square, alpha=c), x)
    return x.mT if flip else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised per matrix; convolutions are flattened to (out, in * h * w). Source: Jordan 2024."""

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.0,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        """dtype: of the products; moments and weights keep their own."""
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            # Matrices of one shape go through one stacked product: fewer, larger GEMMs.
            shapes: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if "momentum" not in state:
                    state["momentum"] = torch.zeros_like(p)
                buffer = state["momentum"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]).flatten(1)
                shapes[(update.shape[0], update.shape[1])].append((p, update))
            for (rows, cols), pairs in shapes.items():
                stack = orthogonalise(torch.stack([update for _, update in pairs]).to(self.dtype))
                scale = group["lr"] * math.sqrt(max(1.0, rows / cols))
                for (p, _), update in zip(pairs, stack, strict=True):
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    p.add_(update.view_as(p).to(p.dtype), alpha=-scale)


class Optimizers:
    """The optimizers of one set of nets: Muon for matrices if asked for, AdamW for all else."""

    def __init__(self, modules: Iterable[nn.Module], config: TrainConfig, lazy: int = 1) -> None:
        self.names: dict[Tensor, str] = {}
        matrices, others, plain = [], [], []
        tables = (m for module in modules for m in module.modules() if isinstance(m, nn.Embedding))
        embeddings = {p for table in tables for p in table.parameters()}  # a normalised one's weight is no parameter
        for index, module in enumerate(modules):
            for name, p in module.named_parameters():
                if p in self.names:
                    continue
                self.names[p] = f"{index}.{name}"
                if config.optimizer == "muon" and p.ndim >= 2 and p not in embeddings and min(p.flatten(1).shape) > 1:
                    matrices.append(p)
                elif p.ndim >= 2 and p not in embeddings:
                    others.append(p)
                else:
                    plain.append(p)
        # A lazy phase on the same nets: rate and moments as if every update had it (Karras 2020, app. B).
        ratio = lazy / (lazy + 1) if lazy > 1 else 1.0
        betas = (config.betas[0] ** ratio, config.betas[1] ** ratio)
        self.base: list[float] = []
        self.optimizers: list[torch.optim.Optimizer] = []
        groups = [{"params": others, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        groups = [group for group in groups if group["params"]]
        if groups:
            self.optimizers.append(torch.optim.AdamW(groups, lr=config.lr * ratio, betas=betas, eps=1e-8, fused=True))
            self.base.append(config.lr * ratio)
        if matrices:
            dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
            self.optimizers.append(Muon(matrices, config.muon_lr, weight_decay=config.weight_decay, dtype=dtype))
            self.base.append(config.muon_lr)

    def step(self, factor: float) -> None:
        """One update with every learning rate times `factor`."""
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = base * factor
            optimizer.step()

    def zero_grad(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def state(self) -> dict[str, Tensor]:
        """All state as named tensors, for a snapshot."""
        out = {}
        for optimizer in self.optimizers:
            for p, values in optimizer.state.items():
                for key, value in values.items():
                    out[f"{self.names[p]}/{key}"] = value
        return out

    def load(self, tensors: dict[str, Tensor]) -> None:
        """Take back what `state` gave."""
        by_name = {name: p for p, name in self.names.items()}
        for optimizer in self.optimizers:
            optimizer.state.clear()
        owner = {p: o for o in self.optimizers for group in o.param_groups for p in group["params"]}
        for key, value in tensors.items():
            name, _, field = key.rpartition("/")
            p = by_name[name]
            state: dict[str, Any] = owner[p].state[p]
            # in the parameter's own memory format, which the fused update relies on
            state[field] = torch.empty_like(p).copy_(value) if value.shape == p.shape else value.clone()


def schedule(seen: int, config: TrainConfig) -> float:
    """Factor on the learning rate at `seen`: linear warm-up, constant, linear decay to zero."""
    rise = min(1.0, (seen + config.batch_size) / config.warmup) if config.warmup else 1.0
    tail = config.decay * config.seen
    fall = min(1.0, max(0.0, (config.seen - seen) / tail)) if tail else 1.0
    return rise * fall


@torch.no_grad()
def average(ema: nn.Module, net: nn.Module, seen: int, batch_size: int, halflife: int) -> None:
    """Move `ema` towards `net` by one update; buffers are copied.

    The half-life is at most 5 % of `seen`, so that the start is forgotten. Source: Karras et al. 2022, app. F.2.
    """
    halflife = min(halflife, max(seen // 20, 1))
    keep = 0.5 ** (batch_size / halflife) if halflife else 0.0
    torch._foreach_lerp_(list(ema.parameters()), list(net.parameters()), 1 - keep)
    for target, source in zip(ema.buffers(), net.buffers(), strict=True):
        target.copy_(source)
