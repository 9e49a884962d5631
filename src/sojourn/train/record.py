"""Numbers of a training: stats.jsonl, and the logs of TensorBoard and W&B where those are installed."""

from __future__ import annotations

import importlib.util
import json
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sojourn import safefile
from sojourn.config import TrainConfig

LINES_PER_SNAPSHOT = 20


class Record:
    """Averages what it is given until a line is due, by `seen`."""

    def __init__(self, folder: Path, config: TrainConfig) -> None:
        self.folder, self.path = folder, folder / "stats.jsonl"
        self.sums: dict[str, float] = defaultdict(float)
        self.weights: dict[str, float] = defaultdict(float)
        self.last: dict[str, float] = {}
        self.written = 0
        self.sinks: list[Any] = [sink for name in config.hooks if (sink := _sink(name, folder)) is not None]

    def add(self, values: Mapping[str, float], weight: float) -> None:
        """Take in values that stand for `weight` samples."""
        for key, value in values.items():
            self.sums[key] += value * weight
            self.weights[key] += weight
            self.last[key] = value

    def due(self, seen: int, config: TrainConfig) -> dict[str, float] | None:
        """The averages, written as a line, when a line is due; else None."""
        every = max(config.batch_size, config.snapshot // LINES_PER_SNAPSHOT)
        return self.flush(seen, config) if seen // every > self.written // every else None

    def flush(self, seen: int, config: TrainConfig) -> dict[str, float]:
        """Write a line now and start the averages afresh."""
        row = {key: self.sums[key] / self.weights[key] for key in sorted(self.sums)}
        self.sums.clear()
        self.weights.clear()
        self.written = seen
        with safefile.writing(self.path), self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"seen": seen, **{key: float(f"{value:.6g}") for key, value in row.items()}}) + "\n")
        for sink in self.sinks:
            sink.scalars(seen, row)
        return row

    def picture(self, seen: int, path: Path) -> None:
        """Send a sheet to the hooks."""
        if path.suffix == ".png":
            for sink in self.sinks:
                sink.picture(seen, path)

    def close(self) -> None:
        """Let go of the hooks, which have files and threads."""
        for sink in self.sinks:
            sink.close()
        self.sinks.clear()

    def rewind(self, seen: int) -> None:
        """Drop lines past `seen`: the training goes on from there."""
        self.written = seen
        if self.path.is_file():
            lines = self.path.read_text(encoding="utf-8").splitlines()
            kept = [line for line in lines if _seen(line) <= seen]
            if len(kept) != len(lines):
                safefile.write_bytes(self.path, "".join(line + "\n" for line in kept).encode())

    def text(self) -> str:
        """The newest losses in a few characters."""
        losses = [(k, v) for k, v in self.last.items() if k.startswith("loss/")]
        return "  ".join(f"{key.removeprefix('loss/')} {value:.4g}" for key, value in losses[:3])


def _seen(line: str) -> float:
    """`seen` of a line; a torn last line counts as past everything."""
    try:
        return float(json.loads(line)["seen"])
    except (ValueError, KeyError):
        return float("inf")


def _sink(name: str, folder: Path) -> Any | None:
    if name == "tensorboard":
        return _TensorBoard(folder) if importlib.util.find_spec("tensorboardX") else None
    if name == "wandb":
        return _WandB(folder) if importlib.util.find_spec("wandb") else None
    return None


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        from tensorboardX import SummaryWriter

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def scalars(self, seen: int, row: Mapping[str, float]) -> None:
        for key, value in row.items():
            self.writer.add_scalar(key, value, seen)
        self.writer.flush()

    def picture(self, seen: int, path: Path) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as sheet:
            self.writer.add_image("sheet", np.asarray(sheet.convert("RGB")), seen, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class _WandB:
    def __init__(self, folder: Path) -> None:
        import wandb

        os.environ.setdefault("WANDB_MODE", "offline")  # nothing leaves the machine unless the user says so
        self.run = wandb.init(project="sojourn", dir=str(folder), id=folder.parent.name, resume="allow")

    def scalars(self, seen: int, row: Mapping[str, float]) -> None:
        self.run.log({"seen": seen, **row})

    def picture(self, seen: int, path: Path) -> None:
        import wandb

        self.run.log({"seen": seen, "sheet": wandb.Image(str(path))})

    def close(self) -> None:
        self.run.finish()
