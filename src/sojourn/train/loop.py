"""The one training loop: rounds of phases over any family, with exact resume. It never says which family.

Before each phase torch is seeded from (run seed, rank, seen, phase, repeat, micro-batch), and batch k is a pure
function of (seed, k); so a snapshot needs weights, moments and counters, and no generator's state.
"""

from __future__ import annotations

import copy
import math
import platform
import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sojourn import package as packages
from sojourn import safefile
from sojourn.config import TrainConfig
from sojourn.data.dataset import PackedSet
from sojourn.errors import ConfigError, OutOfRoom, TrainingFailed
from sojourn.families.base import Family, Phase
from sojourn.nets import spectral
from sojourn.package import Package
from sojourn.schema import Artifact, Card, Done, Event, Log, Measured, Metric, Preview, Progress
from sojourn.train import begun, state
from sojourn.train.feed import Feed
from sojourn.train.gradient import Crew, Diverged, Sums, Update, accumulate, compile_blocks
from sojourn.train.metrics import held_out
from sojourn.train.optim import Optimizers, average, schedule
from sojourn.train.record import Record
from sojourn.train.room import check_disk, is_out_of_memory, kept_memory, micro_batch, multiplies_bf16, threads
from sojourn.train.sheet import draw_sheet
from sojourn.types import Batch

TRIES = 3


def train(package: Package, data: PackedSet, config: TrainConfig, folder: Path) -> Generator[Event]:
    """Train `package` on `data`, in `folder`; the same call again goes on where the last one stopped.

    Yields events at least once a second; closing the generator saves a snapshot. The finished package is at
    folder/package. Raises TrainingFailed after three divergences, OutOfRoom when memory or disk do not do.
    """
    if config.precision == "bf16" and not package.family.bf16:
        raise ConfigError("precision bf16 does not hold for {family}; use fp32", family=package.card.family)
    if config.micro_batch and config.micro_batch < config.batch_size and not package.family.splittable:
        raise ConfigError(
            "{family} needs its whole batch at once: leave micro_batch out, or lower batch_size",
            family=package.card.family,
        )
    with kept_memory(), threads(config.threads or 0):
        yield from _train(Run(package, data, config, folder), folder)


def _train(run: Run, folder: Path) -> Iterator[Event]:
    try:
        if (folder / "package" / "card.json").is_file() and (folder / "done").is_file():
            yield from run.feed.check(run.config.split)
            yield Done(path=str(folder / "package"), text="already trained")
            return
        yield from run.start()
        try:
            yield from run.rounds()
        except GeneratorExit:
            run.save()
            raise
        finally:
            if run.crew is not None:
                run.crew.close()
        yield from run.finish()
    finally:
        run.record.close()


class Run:
    """State of one training: everything a snapshot holds, and the steps that change it."""

    def __init__(self, package: Package, data: PackedSet, config: TrainConfig, folder: Path) -> None:
        self.package, self.config, self.folder = package, config, folder
        self.family: Family = package.family.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.ema: Family = copy.deepcopy(self.family).eval().requires_grad_(False)
        self.origin = copy.deepcopy(self.ema) if config.blend else None
        self.phases = self.family.phases()
        self.feed = Feed(package, data, config.seed, folder, config.cache)
        lazy: dict[tuple[str, ...], int] = {}
        for phase in self.phases:
            lazy[phase.nets] = max(lazy.get(phase.nets, 1), phase.every)
        self.optimizers = {
            nets: Optimizers([self.family.get_submodule(net) for net in nets], config, every)
            for nets, every in lazy.items()
        }
        self.averaged = self.family.averaged or self.phases[0].nets
        self.seen = self.round = self.k = 0
        self.rate, self.tries = 1.0, 0  # factor on the learning rate, divergences so far
        self.micro = config.micro_batch or 0  # 0 = not measured yet
        self.best: float | None = None
        self.metrics: dict[str, float] = {}
        self.train_s = 0.0
        self.crew: Crew | None = None
        self.clock = time.monotonic()
        self.record = Record(folder, config)

    # Start, snapshots, end

    def start(self) -> Iterator[Event]:
        """Prepare the data, resume from the newest snapshot, check memory and disk."""
        self.folder.mkdir(parents=True, exist_ok=True)
        yield from self.feed.check(self.config.split)
        yield from self.feed.prepare()
        found = state.latest(self.folder / "state")
        if found is not None:
            self.restore(*found)
            yield Log.say("resumed at {seen:,} samples", seen=self.seen)
        elif state.snapshots(self.folder / "state"):
            yield Log.warn("no snapshot in {path} can be read; it begins anew", path=self.folder / "state")
        elif self.config.precision == "fp32" and self.family.bf16 and multiplies_bf16():
            yield Log.say("this processor multiplies bf16: with precision=bf16 it may train twice as fast")
        check_disk(self.folder, self.tensors(), self.config)
        if not self.micro:
            self.micro = micro_batch(self.family, self.phases, self.feed, self.config)
            if self.micro < self.config.batch_size:
                yield Log.say("memory holds {count} samples at once: each update is split", count=self.micro)
            self.micro = max(1, min(self.micro, self.config.batch_size) // self.config.processes)
        if self.config.processes > 1:
            self.crew = Crew(self.family, self.config.processes, self.config.compile)
        if self.config.compile:
            compile_blocks(self.family)
        self.clock = time.monotonic()
        if found is None:
            begun.write(self.folder, self.package, self.feed.data.info)
            self.save()  # where a divergence before the first snapshot goes back to

    def tensors(self) -> dict[str, Tensor]:
        """Everything that a snapshot holds as tensors."""
        out = {f"net/{key}": value for key, value in self.family.state_dict().items()}
        out |= {f"ema/{key}": value for key, value in self.ema.state_dict().items()}
        for nets, optimizers in self.optimizers.items():
            out |= {f"opt/{'+'.join(nets)}/{key}": value for key, value in optimizers.state().items()}
        return out

    def save(self) -> None:
        """Write a snapshot."""
        self.train_s += time.monotonic() - self.clock
        self.clock = time.monotonic()
        meta = {
            name: getattr(self, name)
            for name in ("seen", "round", "k", "rate", "tries", "micro", "best", "metrics", "train_s")
        }
        name = f"{self.seen:012d}-{self.tries}"
        state.save(self.folder / "state", name, self.tensors(), meta, self.config.keep)

    def restore(self, tensors: Mapping[str, Tensor], meta: Mapping[str, Any]) -> None:
        """Take back what `save` wrote."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {key[len(prefix) :]: value for key, value in tensors.items() if key.startswith(prefix)}

        self.family.load_state_dict(part("net/"))
        self.ema.load_state_dict(part("ema/"))
        for nets, optimizers in self.optimizers.items():
            optimizers.load(part(f"opt/{'+'.join(nets)}/"))
        for name, value in meta.items():
            setattr(self, name, value)
        self.record.rewind(self.seen)

    def finish(self) -> Iterator[Event]:
        """Write the finished package: the best by the held-out number where the family keeps that, else the last."""
        self.save()
        target = self.folder / "package"
        source = self.folder / "best"
        if self.best is not None and source.is_dir():
            best = packages.load(source, verify=False)
            self.write_package(target, best.family, best.card, source / "sheet.png")
        else:
            self.write_package(target, self.given())
        safefile.write_bytes(self.folder / "done", f"{self.seen}\n".encode())
        yield Artifact(name="package", path=str(target))
        yield Done(path=str(target), text=f"{self.seen:,} samples in {self.train_s:.0f} s")

    def write_package(
        self, folder: Path, family: Family, then: Card | None = None, sheet: Path | None = None
    ) -> None:  # fmt: skip
        """Save `family` as a package, its card filled in: as of now, or of when it was written before."""
        finite = {key: value for key, value in self.metrics.items() if math.isfinite(value)}
        metrics = [Metric(name=key, value=value, seen=self.seen) for key, value in finite.items()]
        if sheet is None:
            sheet = max((self.folder / "sheets").glob("*.png"), default=None)
        card = self.package.card.model_copy(
            update={
                "seen": self.seen if then is None else then.seen,
                "train_s": round(self.package.card.train_s + self.train_s, 1),
                "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
                "metrics": metrics if then is None else then.metrics,
            }
        )
        finished = Package(card, family, self.package.codec, self.package.conditioner, self.package.parts)
        dtype = card.recipe.get("dtype", "fp32")
        packages.save(finished, folder, dtype=dtype, sheet=sheet if sheet is not None and sheet.is_file() else None)

    # Rounds

    def rounds(self) -> Iterator[Event]:
        """Run until `seen` is reached, with a snapshot at every multiple of config.snapshot."""
        spoken = 0.0
        first, begun = self.seen, time.monotonic()
        while self.seen < self.config.seen:
            try:
                before = self.seen
                self.one_round()
            except Diverged as error:
                yield self.roll_back(error)
                first, begun = self.seen, time.monotonic()
                continue
            # A snapshot that is due is written before anything is yielded: a caller may close at any yield.
            events: list[Event] = []
            done = self.seen >= self.config.seen
            if done or self.seen // self.config.snapshot > before // self.config.snapshot:
                events = list(self.snapshot())
            elif row := self.record.due(self.seen, self.config):
                events = [Measured(seen=self.seen, values=row)]
            now = time.monotonic()
            if now - spoken > 0.5:
                spoken = now
                rate = (self.seen - first) / (now - begun)
                eta_s = (self.config.seen - self.seen) / rate if rate else None
                yield Progress(done=self.seen, total=self.config.seen, rate=rate, eta_s=eta_s, text=self.record.text())
            yield from events

    def one_round(self) -> None:
        """Every phase that is due, each repeat on a fresh batch; then the moving average and the clock."""
        self.family.train()
        counted = 0
        for index, phase in enumerate(self.phases):
            due = self.round % phase.every == 0 and phase.start <= self.seen
            if not due or (phase.stop is not None and self.seen >= phase.stop):
                continue
            for repeat in range(phase.repeat):
                batch = self.feed.batch(self.k, self.config.batch_size, self.config.split)
                self.k += 1
                self.update(phase, index, repeat, batch)
                if index == 0:
                    counted += len(batch)
        self.seen += counted or self.config.batch_size
        self.round += 1
        for net in self.averaged:
            average(
                self.ema.get_submodule(net), self.family.get_submodule(net),
                self.seen, counted or self.config.batch_size, self.config.ema,
            )  # fmt: skip

    def update(self, phase: Phase, index: int, repeat: int, batch: Batch) -> None:
        """One optimizer step of one phase; raises Diverged before anything is changed by bad numbers."""
        chosen = dict.fromkeys(p for net in phase.nets for p in self.family.get_submodule(net).parameters())
        optimizers = self.optimizers[phase.nets]
        while True:
            optimizers.zero_grad()
            try:
                sums = self.gradients(phase, index, repeat, batch)
                break
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error) or self.micro <= 1 or not self.family.splittable:
                    if is_out_of_memory(error):
                        raise OutOfRoom(
                            "out of memory at {found} samples at once; try batch_size <= {wanted} or a smaller preset",
                            found=self.micro, wanted=max(1, self.micro // 2),
                        ) from error  # fmt: skip
                    raise
                self.micro = (self.micro + 1) // 2
        if sums.total == 0:
            return
        grads = [p.grad for p in chosen if p.grad is not None]
        torch._foreach_div_(grads, sums.total)
        norm = torch.nn.utils.get_total_norm(grads)
        if not torch.isfinite(norm):
            raise Diverged(phase.name, batch.ids)
        if self.config.clip:
            torch.nn.utils.clip_grads_with_norm_(chosen, self.config.clip, norm)
        self.record.add({f"grad/{phase.name}": float(norm)}, len(batch))
        optimizers.step(schedule(self.seen, self.config) * phase.lr * self.rate)
        self.family.after(phase.name, sums.stats)

    def gradients(self, phase: Phase, index: int, repeat: int, batch: Batch) -> Sums:
        """Accumulate the gradient of sum(weight * value * units) over micro-batches."""
        config = self.config
        update = Update(phase.name, phase.nets, config.seed, self.seen, index, repeat, phase.every, config.precision)
        chunks = [(i, batch[at : at + self.micro]) for i, at in enumerate(range(0, len(batch), self.micro))]
        sums = accumulate(self.family, update, chunks) if self.crew is None else self.crew.accumulate(update, chunks)
        for logs, count in sums.logs:
            self.record.add(logs, count)
        return sums

    def roll_back(self, error: Diverged) -> Event:
        """Go back to the last snapshot (or the start) at half the rate; TrainingFailed after three times."""
        step, tries, rate = self.seen, self.tries + 1, self.rate / 2
        rows = ", ".join(error.ids[:8])
        if tries > TRIES:
            raise TrainingFailed(
                "training diverged {tries} times, last at sample {step} in phase {phase} (rows {rows}); "
                "lower the learning rate or look at those rows",
                tries=tries, step=step, phase=error.phase, rows=rows,
            )  # fmt: skip
        found = state.latest(self.folder / "state")
        if found is None:
            raise TrainingFailed(
                "the first snapshot is gone from {path}; start again in a new folder", path=self.folder / "state"
            )
        self.restore(*found)
        self.tries, self.rate = tries, rate
        self.save()
        return Log.warn(
            "not finite at sample {step} in phase {phase} (rows {rows}): back to {seen}, rate x {rate:g}, try {tries} "
            "of {most}",
            step=step, phase=error.phase, rows=rows, seen=self.seen, rate=self.rate, tries=tries, most=TRIES,
        )  # fmt: skip

    @torch.no_grad()
    def follow(self) -> None:
        """Copy what is not averaged (other nets, the family's own buffers) into the averaged family."""
        target = self.ema.state_dict()
        for key, value in self.family.state_dict().items():
            if key.partition(".")[0] not in self.averaged:
                target[key].copy_(value)

    @torch.no_grad()
    def given(self) -> Family:
        """The averaged family as it is measured and kept: with config.blend, its mean with what it started from."""
        if self.origin is None:
            return self.ema
        family, origin = copy.deepcopy(self.ema), self.origin.state_dict()
        for key, value in family.state_dict().items():
            if value.is_floating_point():  # running statistics and codebooks belong to the weights
                value.lerp_(origin[key], self.config.blend)
        spectral.advance(family)  # the mean of two directions has not their length
        return family

    def snapshot(self) -> Iterator[Event]:
        """Held-out metric, sheet, best package, state; in this order, so that a kill repeats what was not saved."""
        self.follow()
        family = self.given()
        values = held_out(family, self.feed, self.config, self.micro)
        self.metrics = values
        self.record.add(values, 1)
        if row := self.record.flush(self.seen, self.config):
            yield Measured(seen=self.seen, values=row)
        sheet = draw_sheet(self.package, family, self.feed, self.config, self.folder / "sheets" / f"{self.seen:012d}")
        if sheet is not None:
            self.record.picture(self.seen, sheet)
            yield Preview(seen=self.seen, path=str(sheet))
        score = values.get(self.family.score)
        chosen = score if self.family.keeps == "best" else None
        if chosen is not None and math.isfinite(chosen) and (self.best is None or chosen < self.best):
            self.best = chosen
            self.write_package(self.folder / "best", family)
        self.save()
        yield Log.say(
            "snapshot at {seen:,} samples{score}",
            seen=self.seen, score=f", {self.family.score} {score:.4g}" if score else "",
        )  # fmt: skip
