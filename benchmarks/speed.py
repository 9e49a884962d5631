"""Speed as ratios from one run: the loop against a bare loop, the loader's share, a cold prompt against `import torch`.

Run by `make bench` on a quiet machine; nothing here is asserted in tests.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import Item, LabelColumn, PackedSet, SetInfo, SetWriter
from sojourn.schema import Part
from sojourn.train.build import build
from sojourn.train.loop import Run

PICTURES, SIDE, BATCH, ROUNDS = 2048, 64, 32, 8


def timed(fn: Callable[[], object]) -> float:
    begun = time.perf_counter()
    fn()
    return time.perf_counter() - begun


def random_set(folder: Path) -> PackedSet:
    """Pictures of noise with ten labels: the speed does not depend on what they show."""
    rng = np.random.default_rng(0)
    names = [str(i) for i in range(10)]
    info = SetInfo(name="noise", kind="image", shape=(SIDE, SIDE, 3), labels=[LabelColumn(name="class", values=names)])
    with SetWriter(folder, info) as writer:
        for i in range(PICTURES):
            pixels = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
            writer.add(Item(f"n{i}", pixels, captions=[names[i % 10]], labels=[i % 10]))
    return PackedSet(folder)


def training(family: str, preset: str, data: PackedSet, folder: Path) -> None:
    """One update of the loop against the same net, loss and optimizer in a bare loop, in turn."""
    train = TrainConfig(batch_size=BATCH, micro_batch=BATCH, hooks=())
    stage = Stage(data=str(data.folder), family=family, preset=preset, conditioner=Part(id="labels"), train=train)
    package = build(stage, data, {}, Recipe(name="bench", stage=[stage]))
    run = Run(package, data, train, folder)
    for _ in run.start():
        pass
    batch = run.feed.batch(0, BATCH)
    net = run.family
    phase = run.phases[0]
    bare_optimizer = torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True)

    def bare() -> None:
        for p in net.parameters():
            p.requires_grad_(True)
        for phase in run.phases:
            for _ in range(phase.repeat):
                bare_optimizer.zero_grad(set_to_none=True)
                net.loss(phase.name, batch, 0).value.mean().backward()
                bare_optimizer.step()

    run.one_round()
    bare()
    loops, bares, loads = [], [], []
    for i in range(ROUNDS):
        loops.append(timed(run.one_round))
        bares.append(timed(bare))
        loads.append(timed(lambda i=i: run.feed.batch(i + 1, BATCH)))
    ratio = statistics.median(a / b for a, b in zip(loops, bares, strict=True))
    draws = sum(phase.repeat for phase in run.phases)
    share = statistics.median(loads) * draws / statistics.median(loops)
    rate = BATCH * run.phases[0].repeat / statistics.median(loops)
    print(
        f"{family}/{preset:10} loop / bare loop {ratio:5.2f}   loader {share:6.2%} of a step   {rate:7.1f} pictures/s"
    )
    del phase


def gemm() -> float:
    """Measured peak of a 1024^3 fp32 product, in GFLOP/s."""
    a = torch.randn(1024, 1024)
    a @ a
    return 2 * 1024**3 / min(timed(lambda: a @ a) for _ in range(10)) / 1e9


def cold() -> None:
    """A prompt from the shell against importing torch, in turn."""
    with tempfile.TemporaryDirectory() as out:
        draw = [sys.executable, "-m", "sojourn", "imagine", "a red heart", "--seed", "0", "--out", out]
        load = [sys.executable, "-c", "import torch"]
        gaps = []
        for i in range(6):
            a = timed(lambda: subprocess.run(draw, check=True, capture_output=True))
            b = timed(lambda: subprocess.run(load, check=True))
            if i:
                gaps.append((a, b))
    a, b = (statistics.median(column) for column in zip(*gaps, strict=True))
    print(f"cold imagine {a:.2f} s, import torch {b:.2f} s: {a - b:.2f} s more")


def warm() -> None:
    """Four pictures with a loaded model against the bare forward passes of its net."""
    import sojourn

    model = sojourn.load("emoji")
    model.imagine("a red heart", n=4, seed=0)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.family.net.register_forward_hook(count)
    seconds = statistics.median(timed(lambda: model.imagine("a red heart", n=4, seed=0)) for _ in range(5))
    handle.remove()
    print(f"four pictures warm {seconds:.2f} s, {calls // 5} passes of the net")


def main() -> None:
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, GEMM {gemm():.0f} GFLOP/s")
    with tempfile.TemporaryDirectory() as folder:
        data = random_set(Path(folder) / "noise")
        for family, preset in (("flow", "64"), ("edm", "64"), ("dcgan", "64"), ("vae", "64")):
            training(family, preset, data, Path(folder) / f"{family}-{preset}")
    warm()
    cold()


if __name__ == "__main__":
    main()
