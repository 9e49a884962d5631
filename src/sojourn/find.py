"""Finds pictures by words or by likeness, with a package that embeds both. Remembers what it has looked at."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sojourn import config as configs
from sojourn import safefile
from sojourn.codecs.image import ImageCodec
from sojourn.data.clean import load_picture
from sojourn.data.dataset import PackedSet
from sojourn.errors import InvalidInput, SojournError, Unsupported
from sojourn.package import Package
from sojourn.schema import Event, Log, Progress, Prompt

BATCH = 128
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")


@dataclass(frozen=True)
class Found:
    """One picture and how near it is: the cosine, -1..1."""

    name: str
    score: float
    picture: Image.Image


class Album:
    """Pictures of a set or a folder and their places, as a package sees them."""

    def __init__(self, package: Package, source: Path, cache: Path | None = None) -> None:
        """source: a packed set or a folder of pictures. Raises Unsupported for a package that cannot embed pictures."""
        if package.family.spec.kind != "image" or "embed" not in package.family.can:
            raise Unsupported(
                '"{name}" cannot find pictures; use a contrastive package (sojourn train contrastive)',
                name=package.card.name,
            )
        self.package, self.source = package, source
        self.folder = (cache or configs.cache()) / "albums"
        self.data = PackedSet(source) if (source / "set.json").is_file() else None
        if self.data is None:
            self.files = sorted(p for p in source.rglob("*") if p.suffix.lower() in ENDINGS and p.is_file())
            if not self.files:
                raise InvalidInput('no pictures in "{path}"; give a folder of PNG, JPEG or WebP files', path=source)
        elif self.data.info.kind != "image":
            raise InvalidInput('the set "{name}" is text; give one of pictures', name=self.data.info.name)
        self._refused: list[Log] = []
        self.places = np.zeros((0, 0), np.float32)
        """(n, d) unit vectors; zeros for a file that is no picture."""

    def __len__(self) -> int:
        return len(self.data) if self.data is not None else len(self.files)

    @torch.no_grad()
    def look(self) -> Iterator[Event]:
        """Place every picture, or take the places from the last time."""
        path = self.folder / f"{self._key()}.npy"
        with suppress(OSError, ValueError, EOFError):  # not there, or damaged
            self.places = np.load(path)
            if self.places.shape == (len(self), self.package.family.config.dim):  # type: ignore[attr-defined]
                return
        parts = []
        for first in range(0, len(self), BATCH):
            rows = range(first, min(first + BATCH, len(self)))
            parts.append(self._placed(rows))
            yield from self._refused
            self._refused.clear()
            yield Progress(done=rows[-1] + 1, total=len(self), unit="pictures", text=str(self.source))
        self.places = np.concatenate(parts)
        self.folder.mkdir(parents=True, exist_ok=True)
        with safefile.new_file(path) as file:
            np.save(file, self.places)

    def by_words(self, text: str, style: str | None, most: int) -> list[Found]:
        """The pictures nearest to what is said."""
        cond = self.package.conditioner([Prompt.plain(text, style)])
        with torch.no_grad():
            return self._nearest(self.package.family.embed_words(cond, 1)[0], most)

    def by_likeness(self, picture: Image.Image, most: int) -> list[Found]:
        """The pictures nearest to a picture."""
        with torch.no_grad():
            return self._nearest(self.package.family.embed_pictures(self._encoded([picture]))[0], most)

    def _nearest(self, wanted: Tensor, most: int) -> list[Found]:
        scores = np.where(self.places.any(axis=1), self.places @ wanted.numpy(), -np.inf)
        order = np.argsort(-scores, kind="stable")[: min(most, int(np.isfinite(scores).sum()))]
        return [Found(self._name(row), float(scores[row]), self._picture(row)) for row in order.tolist()]

    def _placed(self, rows: Sequence[int]) -> np.ndarray:
        if self.data is not None:
            x = self.package.codec.encode(self.data.raw(np.array(rows)))
            return self.package.family.embed_pictures(x).numpy()
        pictures, good = [], []
        for row in rows:
            try:
                pictures.append(load_picture(self.files[row]))
                good.append(row - rows[0])
            except SojournError as error:
                self._refused.append(Log.warn("{error}", error=error))
        out = np.zeros((len(rows), self.package.family.config.dim), np.float32)  # type: ignore[attr-defined]
        if pictures:
            out[good] = self.package.family.embed_pictures(self._encoded(pictures)).numpy()
        return out

    def _encoded(self, pictures: Sequence[Image.Image]) -> Tensor:
        codec = self.package.codec
        return codec.encode(torch.from_numpy(np.stack([codec.pack(picture) for picture in pictures])))

    def _name(self, row: int) -> str:
        return str(self.data.rows[row]["id"]) if self.data is not None else str(self.files[row])

    def _picture(self, row: int) -> Image.Image:
        if self.data is None:
            return load_picture(self.files[row])
        height, width, channels = self.data.info.shape
        codec = ImageCodec({"height": height, "width": width, "channels": channels})
        return codec.unpack(codec.encode(self.data.raw(np.array([row]))))[0]

    def _key(self) -> str:
        """Of the package and of every picture's name, size and time."""
        if self.data is not None:
            stamp = (self.source / "data.bin").stat()
            what = f"{self.data.info.model_dump_json()} {stamp.st_size} {stamp.st_mtime_ns}"
        else:
            stamps = ((file, file.stat()) for file in self.files)
            what = "\n".join(f"{file} {stamp.st_size} {stamp.st_mtime_ns}" for file, stamp in stamps)
        return hashlib.sha256(f"{self.package.card.identity}\n{what}".encode()).hexdigest()[:24]
