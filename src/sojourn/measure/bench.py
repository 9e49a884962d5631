"""What packages are measured with: a set, features, prompts by group; and where findings are kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sojourn import config as configs
from sojourn.codecs.image import ImageCodec
from sojourn.conditioners import STYLE
from sojourn.data.dataset import PackedSet
from sojourn.diffusion import rules
from sojourn.errors import InvalidInput
from sojourn.measure.features import Features, probe, remembered
from sojourn.package import Package
from sojourn.schema import Log, Metric, Prompt
from sojourn.vocabulary import HAN

RIVALS = 49
"""Others among which what was asked must be found."""
LEAST = {"kid": 100, "fd": 2048, "precision": 1000, "r1": 50, "copies": 100, "variety": 8}
"""Pictures (held out, for copies; concepts, for variety) below which a number means nothing and is left out."""
SHOWN, SIDE = 16, 128
"""Pictures of a line of a sheet, and pixels of a side, at most."""


@dataclass(frozen=True)
class Group:
    """Rows whose prompts are measured together: those that training saw, and those it did not."""

    name: str
    rows: np.ndarray


@dataclass
class Sheet:
    """Pictures for the report, in lines of one length."""

    title: str
    lines: list[list[Image.Image]]
    labels: list[str]
    group: str = ""
    """Sheets of several packages with one name here show the same prompts: real pictures first, then drawn ones."""


@dataclass
class Findings:
    """All that was measured of one package or folder."""

    name: str
    identity: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    """What it was measured on and with, by name."""
    metrics: list[Metric] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)

    def add(self, name: str, value: float, span: tuple[float, float] | None = None, note: str = "") -> None:
        low, high = span or (None, None)
        self.metrics.append(Metric(name=name, value=value, low=low, high=high, note=note))


@dataclass
class Bench:
    """What packages are measured with."""

    data: PackedSet
    features: Features
    judge: Package | None = None
    count: int = 512
    """Pictures of a group at most."""
    seed: int = 0
    cache: Path = field(default_factory=lambda: configs.cache() / "features")
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Prompts of one's own, each with the label that the judge must find in what is drawn."""
    options: dict[str, Any] = field(default_factory=dict)
    """Options of the family that everything is drawn with, in place of each package's own."""

    def __post_init__(self) -> None:
        if self.data.info.kind != "image":
            raise InvalidInput('only pictures can be measured, the set "{name}" is text', name=self.data.info.name)
        height, width, _ = self.data.info.shape
        probe(self.features, height, width)
        self.plain = ImageCodec({"height": height, "width": width, "channels": 3, "background": "white"})
        self.real = np.array([i for i, row in enumerate(self.data.rows) if "made" not in row])
        """Rows that are no pictures made from others."""
        stamp = (self.data.folder / "data.bin").stat()
        self.key = [self.data.info.model_dump_json(), str(stamp.st_size), str(stamp.st_mtime_ns)]
        self.column = next((c.name for c in self.data.info.labels if c.name != STYLE), None)
        """What the judge must find in a picture."""

    def pictures(self, rows: np.ndarray) -> Tensor:
        """Pictures of the set as everything is measured: (b, 3, h, w) in [-1, 1] on white."""
        return self.plain.encode(self.data.raw(rows))

    def embedded(self, rows: np.ndarray) -> np.ndarray:
        """Features of pictures of the set, kept between calls."""
        return remembered(self.features, self.key, self.cache, self.pictures, rows)

    def groups(self) -> list[Group]:
        """Up to `count` rows each, drawn by the seed: seen in training; held out, by kind where the set tells kinds.

        Of a family of rows (skin tones of one emoji) only the first counts, so that none weighs more than the others.
        """
        split, rows = self.data.split, self.data.rows
        told = any(row.get("held_out") for row in rows)
        kinds: dict[str, list[int]] = {"seen": []}
        for i in self.real.tolist():
            if rows[i].get("hex", rows[i]["group"]) != rows[i]["group"]:
                continue
            kind = rows[i].get("held_out")
            if split[i] == 0:
                kinds["seen"].append(i)
            elif kind or not told:
                kinds.setdefault(f"held-out-{kind}" if kind else "held-out", []).append(i)
        rng = np.random.default_rng([self.seed, 1])
        out = []
        for name, found in kinds.items():
            if found:
                out.append(Group(name, np.sort(rng.permutation(found)[: self.count])))
        return out

    def prompts(self, rows: np.ndarray, column: str | None) -> tuple[list[Prompt], np.ndarray]:
        """A prompt for each row, and whether it is Chinese (b,).

        The name of the row's label in `column`, as in training; without a column its first and second caption in turn.
        """
        out, chinese = [], []
        for turn, row in enumerate(rows.tolist()):
            meta = self.data.rows[row]
            captions = meta["captions"] or [""]
            text = captions[turn % 2 if len(captions) > 1 else 0]
            if column is not None:
                text = self.data.label_name(row, column) or ""
            out.append(Prompt.plain(text, meta.get("style")))
            chinese.append(HAN.search(text) is not None)
        return out, np.array(chinese)

    def about(self) -> dict[str, Any]:
        """What a reader needs to tell whether two measurements may be compared."""
        judge = self.judge and {"name": self.judge.card.name, "identity": self.judge.card.identity}
        features = {"name": self.features.name, "identity": self.features.identity}
        name = self.data.info.name
        told = {"set": name, "n": self.count, "seed": self.seed, "options": self.options or None}
        return {**told, "judge": judge, "features": features}

    def families(self, rows: np.ndarray) -> list[str]:
        """The group of each row: rows of one are not independent."""
        return [str(self.data.rows[row]["group"]) for row in rows.tolist()]


def tensor(picture: Image.Image) -> Tensor:
    """A picture as (3, h, w) in [-1, 1], on white."""
    return scaled(pixels(picture))


def scaled(pictures: Tensor) -> Tensor:
    """uint8 to [-1, 1]."""
    return pictures.float().div_(127.5).sub_(1)


def pixels(picture: Image.Image) -> Tensor:
    """A picture as uint8 (3, h, w), on white."""
    if picture.mode not in ("RGB", "L"):
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        picture = ground
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1)


def shown(pictures: Tensor) -> list[Image.Image]:
    """The first of pictures (b, 3, h, w) in [-1, 1] as a line of a sheet, large ones made smaller."""
    height, width = pictures.shape[2:]
    scale = min(1.0, SIDE / max(height, width))
    height, width = max(1, round(height * scale)), max(1, round(width * scale))
    line = rules.fitted(pictures[:SHOWN], (3, height, width))
    return ImageCodec({"height": height, "width": width, "channels": 3}).unpack(line)


def too_few(name: str, count: int, kind: str, unit: str = "pictures") -> Log:
    return Log.warn(
        "{name} is left out: {count} {unit}, it needs {least}", name=name, count=count, unit=unit, least=LEAST[kind]
    )
