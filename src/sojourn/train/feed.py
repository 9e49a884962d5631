"""Batches for the loop: packed rows through the codec and the conditioner. Batch k is a function of (seed, k) alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Set
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sojourn import safefile
from sojourn.data.dataset import PackedSet, SetInfo
from sojourn.errors import DataError
from sojourn.package import Package
from sojourn.schema import Event, Log, Progress
from sojourn.train import begun
from sojourn.types import Batch, Cond

LEAST, FEW = 8, 200
"""Pictures below which there is nothing to learn from, and below which they are learnt by heart."""


class Feed:
    """Reads one set for one package; `prepare` does what is done once (tokens, cached latents)."""

    def __init__(self, package: Package, data: PackedSet, seed: int, folder: Path, cache: bool) -> None:
        self.codec: Any = package.codec
        self.conditioner, self.spec = package.conditioner, package.family.spec
        self.data, self.seed, self.folder, self.cache = data, seed, folder, cache
        self.once = package.family.once
        self.column: str | None = getattr(package.conditioner, "column", None)
        part = package.card.parts.get(str(package.codec.config.get("part")))
        self.key = {"codec": package.codec.id, "config": package.codec.config, "part": part}
        self.key |= {"start": package.card.parent} if package.card.parent else {}
        self._encoded: np.ndarray | None = None
        self._tokens: list[np.ndarray] = []

    def check(self, split: str) -> Iterator[Event]:
        """Compare the set with what this run began with, and its size with what can be learned from.

        Raises DataError for other classes or another shape than then, and for a handful of pictures. (A text set may be
        one long document.)
        """
        info, first = self.data.info, begun.read(self.folder)
        count = len(self.data.indices(split)) if info.kind == "image" else FEW
        if count < LEAST:
            raise DataError(
                'the set "{name}" has {count} pictures to train on; give {least} at least, better some hundreds',
                name=info.name, count=count, least=LEAST,
            )  # fmt: skip
        if first is not None:
            before = first.set
            if change := self._change(before):
                raise DataError(
                    'the set "{name}" is not the one that this run began with ({change}); bring that back, or choose '
                    "another folder with --run",
                    name=info.name, change=change,
                )  # fmt: skip
            if before.count != info.count:
                yield Log.warn(
                    "the set had {was:,} rows when this run began, now {now:,}", was=before.count, now=len(self.data)
                )
            return
        if count < FEW:
            yield Log.warn("{count} pictures are few: they will be learnt by heart", count=count)
        for column in info.labels:
            if column.name in {name for name, _ in self.spec.labels} and len(column.values) == 1:
                yield Log.warn(
                    'all have {column} "{value}": to ask for it will change nothing',
                    column=column.name, value=column.values[0],
                )  # fmt: skip

    def _change(self, before: SetInfo) -> str:
        """What the net would miss, or take for something else, in the set as it is now; "" = nothing."""
        names, now = [name for name, _ in self.spec.labels], self.data.info
        read_of = getattr(self.conditioner, "read_of", lambda labels: names)
        was, has = list(read_of(before.labels)), list(read_of(now.labels))
        if change := _difference(before, now, {*names, *was, *has}):
            return change
        # The conditioner was fitted anew: to other columns, where the set has them in another order.
        return f"columns {', '.join(was)} then, {', '.join(has)} now" if names == has != was else ""

    def prepare(self) -> Iterator[Event]:
        """Tokenise texts; with `cache`, encode every row once into a file of the run, and embed its captions."""
        if self.data.info.kind == "text":
            self._tokens = self.codec.pack_many([self.data.text(row) for row in range(len(self.data))])
        elif self.cache:
            yield from self._encode_all()
            yield from self._learn_captions()

    def _learn_captions(self) -> Iterator[Event]:
        """Have a conditioner that can embed every caption now: one by one they would cost a twentieth of a step."""
        learn = getattr(self.conditioner, "learn", None)
        if learn is None or self.column is not None:
            return
        captions = {caption for row in self.data.rows for caption in row["captions"]}
        for done in learn(captions):
            yield Progress(done=done, total=len(captions), unit="captions", text="embedding the captions once")

    def _encode_all(self) -> Iterator[Event]:
        shape = (len(self.data), *self._sample(np.arange(1)).shape[1:])
        kind = np.int64 if self.codec.spec.vocab else np.float32
        stored = (self.data.folder / "data.bin").stat()
        key: dict[str, Any] = {**self.key, "set": self.data.info.model_dump(mode="json")}
        key |= {"stored": [stored.st_size, stored.st_mtime_ns]}
        digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
        path, mark = self.folder / "encoded.bin", self.folder / "encoded.json"
        if not (mark.is_file() and json.loads(mark.read_text()) == digest):
            mark.unlink(missing_ok=True)  # what it speaks of is about to go
            with safefile.writing(path), path.open("wb") as file:
                for first in range(0, shape[0], 64):
                    rows = np.arange(first, min(first + 64, shape[0]))
                    file.write(self._sample(rows).numpy().astype(kind).tobytes())
                    yield Progress(done=int(rows[-1]) + 1, total=shape[0], unit="rows", text="encoding the set once")
            safefile.write_bytes(mark, json.dumps(digest).encode())
        self._encoded = np.memmap(path, kind, "r", shape=shape)

    @torch.no_grad()
    def _sample(self, rows: np.ndarray) -> Tensor:
        out: Tensor = self.once(self.codec.encode(self.data.raw(rows)))
        return out

    def batch(self, k: int, size: int, split: str = "train") -> Batch:
        """Batch k of `size` rows."""
        rows = self.data.draw(self.seed, k, size, split)
        length: Tensor | None = None
        if self.data.info.kind == "text":
            x, length = self._windows(rows, k)
        elif self._encoded is not None:
            x = torch.from_numpy(np.ascontiguousarray(self._encoded[rows]))
        else:
            x = self.codec.encode(self.data.raw(rows))
        meta = self.data.rows
        return Batch(
            x=x,
            cond=self._cond(rows, k),
            weight=torch.ones(len(rows)),
            length=length,
            ids=tuple(str(meta[row]["id"]) for row in rows),
        )

    def _cond(self, rows: np.ndarray, k: int) -> Cond:
        if self.data.target is not None:
            return Cond(pooled=torch.from_numpy(self.data.target[rows].astype(np.float32)))
        return self.conditioner(self.data.prompts(rows, (self.seed, k), self.column))

    def _windows(self, rows: np.ndarray, k: int) -> tuple[Tensor, Tensor]:
        """Token rows of the codec's length; longer documents give a random window."""
        span = self.codec.spec.shape[0]
        out = torch.zeros(len(rows), span, dtype=torch.long)  # pad id is 0
        length = torch.zeros(len(rows), dtype=torch.long)
        picks = np.random.default_rng([self.seed, k, 7]).random(len(rows))
        for i, (row, pick) in enumerate(zip(rows, picks, strict=True)):
            tokens = self._tokens[row]
            start = int(pick * (len(tokens) - span + 1)) if len(tokens) > span else 0
            window = tokens[start : start + span]
            out[i, : len(window)] = torch.from_numpy(np.asarray(window, dtype=np.int64))
            length[i] = len(window)
        return out, length

    def held_out(self, most: int, size: int) -> Iterator[Batch]:
        """Batches of the first rows (at most `most`) of the valid split; none when it is empty."""
        count = min(most, len(self.data.indices("valid")))
        for k in range(count // size if count >= size else (1 if count else 0)):
            yield self.batch(k, min(size, count), "valid")

    def prompts(self, count: int) -> tuple[np.ndarray, list[Any]]:
        """Rows and prompts for a sheet, the same at every snapshot: from the valid split if there is one."""
        split = "valid" if len(self.data.indices("valid")) else "train"
        rows = self.data.draw(0, 0, count, split)
        return rows, self.data.prompts(rows, (0, 0), self.column)


def _difference(before: SetInfo, now: SetInfo, known: Set[str]) -> str:
    """What a net that was built for one set, and knows these columns, would miss in the other; "" = nothing."""
    if (before.kind, before.shape) != (now.kind, now.shape):
        return f"{before.kind} {before.shape} then, {now.kind} {now.shape} now"
    old, new = ({column.name: column.values for column in info.labels} for info in (before, now))
    for name in (name for name in old | new if name in known):
        was, has = old.get(name, []), new.get(name, [])
        if was != has:
            gone, come = [v for v in was if v not in has], [v for v in has if v not in was]
            told = [f"{word} {', '.join(values[:5])}" for word, values in (("without", gone), ("new", come)) if values]
            return f'column "{name}": {"; ".join(told) or "in another order"}'
    return ""
