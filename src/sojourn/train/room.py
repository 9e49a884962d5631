"""Is there room? Disk for snapshots, memory for a batch; measured before a training starts."""

from __future__ import annotations

import ctypes
import gc
import resource
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor

from sojourn.config import TrainConfig
from sojourn.errors import OutOfRoom
from sojourn.families.base import Family, Phase
from sojourn.train.feed import Feed
from sojourn.types import Batch

HEADROOM = 0.8
"""Share of the free memory that activations may take."""


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Of mallopt (glibc, malloc.h)."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Within, what a step frees is kept for the next one.

    glibc gives tensors of 32 MB and more back to the kernel at once and waits for zeroed pages at the next, which can
    be a third of a step. Other libraries of C are left as they are.
    """
    mallopt = _libc("mallopt")
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        if mallopt is not None:  # to where glibc's own adjusting ends, which is off now
            mallopt(M_MMAP_MAX, 65536)
            mallopt(M_MMAP_THRESHOLD, 32 << 20)
            mallopt(M_TRIM_THRESHOLD, 64 << 20)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Within, torch computes in so many threads. 0 = as it does."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def give_back() -> None:
    """Give the kernel all memory that this process has freed: glibc keeps what lies below something in use."""
    gc.collect()
    trim = _libc("malloc_trim")
    if trim is not None:
        trim(0)


def _libc(name: str) -> Any:
    """A function of glibc; None elsewhere."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None


def check_disk(folder: Path, tensors: Mapping[str, Tensor], config: TrainConfig) -> None:
    """Raise OutOfRoom unless `keep` + 1 snapshots (with AdamW's two moments) and two packages fit."""
    weights = sum(t.numel() * t.element_size() for key, t in tensors.items() if key.startswith("net/"))
    needed = (config.keep + 1) * 4 * weights + 2 * weights
    # What an earlier part of this run holds gives way to what comes.
    held = (path for name in ("state", "best", "package") for path in (folder / name).rglob("*") if path.is_file())
    needed = max(0, needed - sum(path.stat().st_size for path in held))
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OutOfRoom(
            "this training needs about {needed} MB of disk at {path}, {free} MB are free; free some or set keep=1",
            needed=needed >> 20, path=folder, free=free >> 20,
        )  # fmt: skip


def free_memory() -> int:
    """Bytes that this process may still take: the machine's, its cgroup's or its own limit, whichever is least."""
    limits = [psutil.virtual_memory().available]
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        try:
            most = Path("/sys/fs/cgroup", limit).read_text().strip()
            used = int(Path("/sys/fs/cgroup", usage).read_text())
        except (OSError, ValueError):
            continue
        if most.isdigit():
            limits.append(int(most) - used)
    soft = resource.getrlimit(resource.RLIMIT_AS)[0]
    if soft != resource.RLIM_INFINITY:
        limits.append(soft - psutil.Process().memory_info().vms)
    return int(max(0, min(limits)))


def micro_batch(family: Family, phases: Sequence[Phase], feed: Feed, config: TrainConfig) -> int:
    """Samples per forward pass: the whole batch if memory holds it, else an even split of it.

    Measured on two samples by the bytes that autograd keeps. Raises OutOfRoom when not even one fits, or when the
    family cannot split its batch.
    """
    sample = feed.batch(0, min(2, config.batch_size))
    each = 0
    for phase in phases:
        torch.manual_seed(config.seed)
        each = max(each, _kept(family, phase, sample) // len(sample))
    weights = sum(p.numel() * p.element_size() for p in family.parameters())
    room = HEADROOM * free_memory() - 3 * weights  # gradients and two moments come on top
    fits = int(room / max(each, 1))
    if fits >= config.batch_size:
        return config.batch_size
    if fits < 1 or not family.splittable:
        raise OutOfRoom(
            "a batch of {batch} needs about {needed} MB of memory, {free} MB are free; try batch_size <= {fits} "
            "or a smaller preset",
            batch=config.batch_size, needed=(each * config.batch_size + 3 * weights) >> 20,
            free=free_memory() >> 20, fits=max(fits, 0),
        )  # fmt: skip
    parts = -(-config.batch_size // fits)
    return -(-config.batch_size // parts)


def _kept(family: Family, phase: Phase, sample: Batch) -> int:
    """Bytes that autograd keeps of a loss for its gradient."""
    boxes: list[list[Tensor]] = []

    def box(t: Tensor) -> list[Tensor]:
        boxes.append([t])
        return boxes[-1]

    try:
        with torch.autograd.graph.saved_tensors_hooks(box, lambda box: box[0]):
            family.loss(phase.name, sample, phase.start)
        return sum(t.numel() * t.element_size() for (t,) in boxes)
    finally:
        for one in boxes:  # a node that keeps what it gave, by way of Python, keeps itself, and with it the whole net
            one.clear()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed."""
    words = str(error)
    return isinstance(error, MemoryError) or "allocate memory" in words or "out of memory" in words


def multiplies_bf16() -> bool:
    """Whether the processor has products of bf16, with sums in fp32."""
    found = torch.cpu.get_capabilities()
    return bool(found.get("avx512_bf16") or found.get("amx_bf16"))
