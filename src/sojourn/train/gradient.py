"""The gradient of one update, from one process or from several. Knows nothing about optimizers, data or snapshots."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import sysconfig
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sojourn.errors import ConfigError, OutOfRoom
from sojourn.families.base import Family
from sojourn.types import Batch

RANK = 0
SHARED = Path("/dev/shm")


class Diverged(Exception):
    """A loss or gradient that is not finite."""

    def __init__(self, phase: str, ids: tuple[str, ...]) -> None:
        super().__init__(phase, ids)
        self.phase, self.ids = phase, ids


@dataclass(frozen=True)
class Update:
    """What names one update; the draws of its micro-batches follow from it."""

    phase: str
    nets: tuple[str, ...]
    seed: int
    seen: int
    index: int
    """Of the phase."""
    repeat: int
    factor: float
    """On the loss."""
    precision: str


@dataclass
class Sums:
    """What micro-batches add up to, besides the gradient."""

    total: float = 0.0
    """sum(weight * units)"""
    stats: dict[str, Tensor] = field(default_factory=dict)
    logs: list[tuple[dict[str, float], int]] = field(default_factory=list)
    """Means of each micro-batch, and its samples."""

    def add(self, other: Sums) -> None:
        self.total += other.total
        self.logs += other.logs
        for key, value in other.stats.items():
            self.stats[key] = self.stats[key] + value if key in self.stats else value


def accumulate(family: Family, update: Update, chunks: Iterable[tuple[int, Batch]]) -> Sums:
    """Add the gradient of sum(weight * value * units) of numbered micro-batches to the parameters of `update.nets`.

    Raises Diverged before a loss that is not finite reaches them.
    """
    # A dict and not a set: the order of a sum decides its last bits.
    chosen = dict.fromkeys(p for net in update.nets for p in family.get_submodule(net).parameters())
    for p in family.parameters():
        p.requires_grad_(p in chosen)
    sums = Sums()
    for number, chunk in chunks:
        where = (update.seed, RANK, update.seen, update.phase, update.index, update.repeat, number)
        torch.manual_seed(seed_of(*where))
        with torch.autocast("cpu", torch.bfloat16, enabled=update.precision == "bf16"):
            loss = family.loss(update.phase, chunk, update.seen)
        share = chunk.weight * loss.units  # (m,)
        bad = ~torch.isfinite(loss.value) & (chunk.weight > 0)
        if bad.any():
            raise Diverged(update.phase, tuple(chunk.ids[i] for i in bad.nonzero().flatten().tolist()))
        value = (torch.where(share > 0, loss.value, 0.0) * share).sum()
        value.mul(update.factor).backward()  # type: ignore[no-untyped-call]
        logs = {f"loss/{update.phase}": loss.value.detach(), **loss.logs}
        means = {key: _mean(value, share) for key, value in logs.items()}
        sums.add(Sums(float(share.sum()), dict(loss.stats), [(means, len(chunk))]))
    return sums


def seed_of(*parts: object) -> int:
    """A seed of torch's generator, a pure function of its parts."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


def _mean(value: Tensor, share: Tensor) -> float:
    if value.ndim == 0 or value.shape != share.shape:
        return float(value.float().mean())
    return float((value * share).sum() / share.sum().clamp(min=1e-12))


def compile_blocks(family: Family) -> None:
    """Compile, in place, the modules that say `compiles`. Raises ConfigError where there is nothing to do it with."""
    blocks = [module for module in family.modules() if getattr(module, "compiles", False)]
    if not blocks:
        raise ConfigError("{family} has no blocks to compile; use compile=false", family=type(family).__name__)
    headers = Path(sysconfig.get_path("include"), "Python.h")
    if shutil.which(os.environ.get("CXX", "g++")) is None or not headers.is_file():
        raise ConfigError(
            "compile needs g++ and Python's headers (Debian: apt-get install g++ python3-dev); install them, or use "
            "compile=false"
        )
    for block in blocks:
        block.compile(dynamic=True)


class Crew:
    """More processes that compute gradients on the same weights, which lie in shared memory.

    On small nets two processes of one thread each are faster than one of two threads. With one micro-batch for each,
    the bytes are those of one process that does them in turn.
    """

    def __init__(self, family: Family, processes: int, compiled: bool = False) -> None:
        """Start processes - 1 helpers. Raises ConfigError for a family that they cannot share, OutOfRoom."""
        if not family.splittable or any(True for _ in family.buffers()):
            raise ConfigError(
                "{family} needs its whole batch in one process; use processes=1", family=type(family).__name__
            )
        needed = processes * sum(p.numel() * p.element_size() for p in family.parameters())
        free = shutil.disk_usage(SHARED).free if SHARED.is_dir() else needed
        if free < needed:
            raise OutOfRoom(
                "{count} processes need {needed} MB of shared memory, {path} has {free} MB; enlarge it, or use "
                "processes=1",
                count=processes, needed=(needed >> 20) + 1, path=SHARED, free=free >> 20,
            )  # fmt: skip
        context = torch.multiprocessing.get_context("spawn")
        self.family = family.share_memory()
        self.helpers: list[tuple[Any, Connection, dict[str, Tensor]]] = []
        for _ in range(processes - 1):
            ours, theirs = context.Pipe()
            grads = {name: torch.zeros_like(p, requires_grad=False) for name, p in family.named_parameters()}
            for grad in grads.values():
                grad.share_memory_()  # type: ignore[no-untyped-call]
            args = (family, theirs, grads, torch.get_num_threads(), compiled)
            helper = context.Process(target=_help, args=args, daemon=True)
            helper.start()
            theirs.close()
            self.helpers.append((helper, ours, grads))

    def accumulate(self, update: Update, chunks: list[tuple[int, Batch]]) -> Sums:
        """As `accumulate`, the micro-batches dealt to all processes. Raises what it raises, in any of them."""
        dealt = len(self.helpers) + 1
        for at, (_, pipe, _) in enumerate(self.helpers, 1):
            with suppress(OSError):  # one that is gone is found out below
                pipe.send((update, chunks[at::dealt]))
        problem: BaseException | None = None
        sums = Sums()
        try:
            sums = accumulate(self.family, update, chunks[::dealt])
        except (RuntimeError, MemoryError, Diverged) as error:
            problem = error
        named = dict(self.family.named_parameters())
        for _, pipe, grads in self.helpers:
            try:
                answer, touched = pipe.recv()
            except (EOFError, OSError):
                raise OutOfRoom(
                    "a process of this training was killed, most often for want of memory; use processes=1"
                ) from None
            if isinstance(answer, BaseException):
                problem = problem or answer
                continue
            sums.add(answer)
            for name in touched:
                p = named[name]
                p.grad = grads[name].clone() if p.grad is None else p.grad.add_(grads[name])
        if problem is not None:
            raise problem
        return sums

    def close(self) -> None:
        """End the helpers."""
        for helper, pipe, _ in self.helpers:
            with suppress(OSError):
                pipe.send(None)
            pipe.close()
            helper.join(5)
            helper.kill()


def _help(family: Family, pipe: Connection, grads: dict[str, Tensor], threads: int, compiled: bool) -> None:
    """A helper's life: take an update and micro-batches, leave the gradient in `grads`, answer with its sums."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the first process's to answer
    torch.set_num_threads(threads)
    family.train()
    if compiled:
        compile_blocks(family)
    while True:
        try:
            job = pipe.recv()
        except EOFError:
            return
        if job is None:
            return
        for p in family.parameters():
            p.grad = None
        try:
            answer: Sums | BaseException = accumulate(family, *job)
        except (RuntimeError, MemoryError, Diverged) as error:
            answer = error
        touched = []
        for name, p in family.named_parameters():
            if p.grad is not None:
                grads[name].copy_(p.grad)
                touched.append(name)
        pipe.send((answer, touched))
