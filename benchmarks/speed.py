"""Speed as ratios from one run: the loop against a bare loop, the loader's share, a step as a share of the machine's
measured peak, four pictures against one pass of the net, backends against eager, a cold prompt against `import torch`.

Run by `make bench` on a quiet machine; nothing here is asserted in tests. OpenVINO and ONNX Runtime are measured where
they are installed (pip install openvino onnxruntime onnxscript).
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import sojourn
from sojourn import card
from sojourn import package as packages
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import Item, LabelColumn, PackedSet, SetInfo, SetWriter
from sojourn.schema import Part
from sojourn.train.build import build
from sojourn.train.loop import Run
from sojourn.types import Cond

PICTURES, SIDE, BATCH, ROUNDS = 2048, 64, 32, 8
FAMILIES = (
    *((id, "64") for id in ("flow", "edm", "dcgan", "lsgan", "wgan-gp", "sngan", "multi-gan", "biggan", "stylegan2")),
    *((id, "64") for id in ("r3gan", "vae", "beta-vae", "cvae", "denoising-vae", "vq-vae", "vae-gan", "contrastive")),
    ("lm", "small"),
)


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


def random_texts(folder: Path) -> PackedSet:
    """Texts of random letters."""
    rng = np.random.default_rng(0)
    with SetWriter(folder, SetInfo(name="letters", kind="text", shape=())) as writer:
        for i in range(PICTURES):
            writer.add(Item(f"t{i}", "".join(chr(97 + k) for k in rng.integers(0, 26, 200))))
    return PackedSet(folder)


def training(family: str, preset: str, data: PackedSet, folder: Path, peak: float) -> None:
    """Updates of the loop against the same nets, losses and optimizers in a bare loop, in turn; peak in FLOP/s."""
    how: dict[str, Any] = {"conditioner": Part(id="labels")}
    parts = {}
    if family == "contrastive":
        how, parts = (
            {"conditioner": Part(id="text", config={"length": 10})},
            {"text": packages.load(card.find("emoji/text"))},
        )
    if family == "lm":
        how = {"codec": Part(id="text", config={"tokenizer": "chars", "length": 128})}
    train = TrainConfig(batch_size=BATCH, micro_batch=BATCH, hooks=())
    stage = Stage(data=str(data.folder), family=family, preset=preset, train=train, **how)
    package = build(stage, data, parts, Recipe(name="bench", stage=[stage]))
    run = Run(package, data, train, folder)
    for _ in run.start():
        pass
    batch = run.feed.batch(0, BATCH)
    net, phases = run.family, run.phases
    bare_optimizers = {
        phase.nets: torch.optim.AdamW(
            [p for name in phase.nets for p in net.get_submodule(name).parameters()], lr=1e-6, fused=True
        )
        for phase in phases
    }
    cycle = max(phase.every for phase in phases)  # rounds after which every phase was due

    def bare() -> None:
        for i in range(cycle):
            for phase in phases:
                for _ in range(phase.repeat if i % phase.every == 0 else 0):
                    net.requires_grad_(False)
                    for name in phase.nets:
                        net.get_submodule(name).requires_grad_(True)
                    bare_optimizers[phase.nets].zero_grad(set_to_none=True)
                    net.loss(phase.name, batch, 0).value.mean().backward()
                    bare_optimizers[phase.nets].step()

    def loop() -> None:
        for _ in range(cycle):
            run.one_round()

    loop()
    bare()
    flops = counted(bare)
    loops, bares, loads = [], [], []
    for i in range(max(4, ROUNDS // cycle)):
        loops.append(timed(loop))
        bares.append(timed(bare))
        loads.append(timed(lambda i=i: run.feed.batch(i + 1, BATCH)))
    ratio = statistics.median(a / b for a, b in zip(bares, loops, strict=True))
    draws = sum(phase.repeat / phase.every for phase in phases) * cycle
    share = statistics.median(loads) * draws / statistics.median(loops)
    rate = BATCH * phases[0].repeat * cycle / statistics.median(loops)
    used = f"{flops / statistics.median(bares) / peak:4.0%}" if flops else "   ?"
    print(
        f"{family + '/' + preset:18} throughput of a bare loop {ratio:5.2f}   loader {share:6.2%} of a step   "
        f"{used} of the GEMM peak   {rate:7.1f} samples/s",
        flush=True,
    )


def counted(call: Callable[[], None]) -> int:
    """FLOP of a call; 0 where torch cannot count them, which is for a gradient of a gradient in a plain convolution."""
    try:
        with FlopCounterMode(display=False) as counter:
            call()
    except RuntimeError as error:
        if "running autograd.grad" not in str(error):
            raise
        return 0
    return counter.get_total_flops()


def gemm(dtype: torch.dtype) -> float:
    """Measured peak of a 1024^3 product, in FLOP/s."""
    a = torch.randn(1024, 1024, dtype=dtype)
    a @ a
    return 2 * 1024**3 / min(timed(lambda: a @ a) for _ in range(20))


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
    """Four pictures with a loaded model, and one pass of its net by each backend that is here."""

    model = sojourn.load("emoji")
    model.imagine("a red heart", n=4, seed=0, steps=4)
    calls = 0

    def count(*_: object) -> None:
        nonlocal calls
        calls += 1

    handle = model.family.net.register_forward_hook(count)
    seconds = statistics.median(timed(lambda: model.imagine("a red heart", n=4, seed=0, steps=4)) for _ in range(5))
    handle.remove()
    net, args = denoiser(model)
    with torch.no_grad():
        eager = statistics.median(timed(lambda: net(*args)) for _ in range(20))
        print(
            f"four pictures, 4 steps, warm {seconds:.3f} s, {calls // 5} passes of the net; "
            f"{seconds / eager:.1f} times one pass of four rows, {1000 * eager:.1f} ms"
        )
        for name, backend in (("torch.compile", compiled), ("OpenVINO", openvino), ("ONNX Runtime", onnx)):
            try:
                begun = time.perf_counter()
                run = backend(net, args)
                gap = float((torch.as_tensor(run()) - net(*args)).abs().max())
                ready = time.perf_counter() - begun
            except ImportError as error:
                print(f"  {name}: not here ({error.name})")
                continue
            pass_s = statistics.median(timed(run) for _ in range(20))
            print(f"  {name}: {eager / pass_s:.2f} times as fast as eager, ready in {ready:.1f} s, off by {gap:.1e}")


class Denoiser(torch.nn.Module):
    """A package's net as a function of plain tensors."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor, level: Tensor, labels: Tensor, pooled: Tensor, feats: Tensor, mask: Tensor) -> Tensor:
        out: Tensor = self.net(x, level, Cond(labels=labels, pooled=pooled, feats=feats, token_mask=mask))
        return out


def denoiser(model: sojourn.Model) -> tuple[Denoiser, tuple[Tensor, ...]]:
    """The net of a package of words, and four rows for it."""
    spec, rows = model.family.spec, 4
    columns = len(model.family.net.cond.labels)
    mask = (torch.arange(spec.text_len) < 3).repeat(rows, 1)
    feats, pooled = torch.randn(rows, spec.text_len, spec.text_dim), torch.randn(rows, spec.pooled_dim)
    labels = torch.zeros(rows, columns, dtype=torch.long)
    return Denoiser(model.family.net).eval(), (
        torch.randn(rows, *spec.shape),
        torch.rand(rows),
        labels,
        pooled,
        feats,
        mask,
    )


def compiled(net: Denoiser, args: tuple[Tensor, ...]) -> Callable[[], Tensor]:
    run = torch.compile(net)
    return lambda: run(*args)


def openvino(net: Denoiser, args: tuple[Tensor, ...]) -> Callable[[], np.ndarray]:
    import openvino as ov

    # fp32, as eager: by itself it takes bf16 where the processor has it.
    settings = {"INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32"}
    request = ov.compile_model(ov.convert_model(net, example_input=args), "CPU", settings).create_infer_request()
    feed = [arg.numpy() for arg in args]
    return lambda: request.infer(feed)[0]


def onnx(net: Denoiser, args: tuple[Tensor, ...]) -> Callable[[], np.ndarray]:
    import onnxruntime
    import onnxscript  # noqa: F401 - what torch exports with

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "net.onnx")
        torch.onnx.export(net, args, path, dynamo=True, external_data=False, verbose=False)
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    feed = {entry.name: arg.numpy() for entry, arg in zip(session.get_inputs(), args, strict=True)}
    return lambda: session.run(None, feed)[0]


def main() -> None:
    peak = gemm(torch.float32)
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, GEMM {peak / 1e9:.0f} GFLOP/s in fp32, "
        f"{gemm(torch.bfloat16) / 1e9:.0f} in bf16"
    )
    with tempfile.TemporaryDirectory() as folder:
        data = random_set(Path(folder) / "noise")
        texts = random_texts(Path(folder) / "texts")
        for family, preset in FAMILIES:
            training(family, preset, texts if family == "lm" else data, Path(folder) / f"{family}-{preset}", peak)
    warm()
    cold()


if __name__ == "__main__":
    main()
