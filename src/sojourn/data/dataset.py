"""The packed set: one folder, memory-mapped, from which batch k is a pure function of (seed, k).

    set.json      SetInfo: kind, shape, label names, sources, held-out rule, counts
    data.bin      images: uint8 (n, h, w, c); text: utf-8 bytes, one document after another
    offsets.npy   text only: int64 (n + 1), where each document starts
    labels.npy    int32 (n, a), -1 = none
    split.npy     uint8 (n,), 0 train 1 valid 2 test
    weight.npy    float32 (n,), how often a row is drawn, relative to the others
    target.npy    optional float16 (n, d): a vector per row (a teacher's embedding)
    rows.jsonl    one JSON object a row: id, captions, style, group, source

Knows nothing about nets, conditioners or where the files came from.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sojourn import safefile
from sojourn.errors import DataError, NotFound
from sojourn.schema import Prompt, Source, Strict

SPLITS = ("train", "valid", "test")


class LabelColumn(Strict):
    name: str
    values: list[str]


class SetInfo(Strict):
    """What set.json holds."""

    format: int = 1
    name: str
    kind: Literal["image", "text"]
    shape: tuple[int, ...]
    """Images: (h, w, c) of the stored uint8 pictures. Text: ()."""
    count: int = 0
    labels: list[LabelColumn] = Field(default_factory=list)
    sources: list[Source] = Field(default_factory=list)
    about: str = ""
    held_out: str = ""
    """The rule by which rows are in no split but test, in words."""
    target: str = ""
    """Whose vectors target.npy holds. Empty = there are none."""
    target_dim: int = 0


@dataclass
class Item:
    """One row on its way into a set."""

    id: str
    data: np.ndarray | str
    """uint8 (h, w, c) of the set's shape, or text."""
    captions: list[str] = field(default_factory=list)
    """The first is the name; training draws one at random."""
    labels: Sequence[int] = ()
    style: str | None = None
    group: str = ""
    """Rows of one group never straddle splits."""
    split: Literal["train", "valid", "test"] = "train"
    weight: float = 1.0
    source: int = 0
    """Index into SetInfo.sources."""
    target: np.ndarray | None = None
    extra: dict[str, Any] = field(default_factory=dict)


class SetWriter:
    """Writes a set beside its place and moves it there when it is whole: `with SetWriter(...) as w: w.add(item)`."""

    def __init__(self, folder: Path, info: SetInfo) -> None:
        self.folder = Path(folder)
        self.info = info.model_copy(deep=True)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.part = stack.enter_context(safefile.new_folder(self.folder))
            self._data = stack.enter_context((self.part / "data.bin").open("wb"))
            self._rows = stack.enter_context((self.part / "rows.jsonl").open("w", encoding="utf-8"))
            self._open = stack.pop_all()
        self._labels: list[list[int]] = []
        self._splits: list[int] = []
        self._weights: list[float] = []
        self._targets: list[np.ndarray] = []
        self._offsets = [0]
        return self

    def add(self, item: Item) -> None:
        """Append one row. Raises DataError when its shape or labels do not fit the set."""
        if self.info.kind == "image":
            data = np.ascontiguousarray(item.data, dtype=np.uint8)
            if data.shape != tuple(self.info.shape):
                raise DataError(
                    'row "{id}" has shape {found}, the set holds {shape}',
                    id=item.id, found=data.shape, shape=tuple(self.info.shape),
                )  # fmt: skip
            self._data.write(data.tobytes())
        else:
            encoded = str(item.data).encode("utf-8")
            self._data.write(encoded)
            self._offsets.append(self._offsets[-1] + len(encoded))
        labels = list(item.labels) or [-1] * len(self.info.labels)
        for column, value in zip(self.info.labels, labels, strict=True):
            if not -1 <= value < len(column.values):
                raise DataError(
                    'label {value} of row "{id}" is outside 0..{high} (column "{column}")',
                    value=value, id=item.id, high=len(column.values) - 1, column=column.name,
                )  # fmt: skip
        self._labels.append(labels)
        self._splits.append(SPLITS.index(item.split))
        self._weights.append(item.weight)
        if item.target is not None:
            self._targets.append(np.asarray(item.target, dtype=np.float16))
        row = {"id": item.id, "captions": item.captions, "style": item.style, "group": item.group or item.id}
        self._rows.write(json.dumps({**row, "source": item.source, **item.extra}, ensure_ascii=False) + "\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._open:
            if error is not None:
                raise error
            self._data.close()
            self._rows.close()
            self._finish()

    def _finish(self) -> None:
        """Write what belongs beside the rows."""
        count = len(self._splits)
        np.save(self.part / "labels.npy", np.array(self._labels, np.int32).reshape(count, len(self.info.labels)))
        np.save(self.part / "split.npy", np.array(self._splits, np.uint8))
        np.save(self.part / "weight.npy", np.array(self._weights, np.float32))
        if self.info.kind == "text":
            np.save(self.part / "offsets.npy", np.array(self._offsets, np.int64))
        if self._targets:
            np.save(self.part / "target.npy", np.stack(self._targets))
            self.info.target_dim = int(self._targets[0].shape[0])
        self.info.count = count
        (self.part / "set.json").write_text(self.info.model_dump_json(indent=1), encoding="utf-8")


class PackedSet:
    """A set on disk, opened for reading."""

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not (self.folder / "set.json").is_file():
            raise NotFound(
                'no data set at "{path}" (set.json is missing); make one with "sojourn prepare" or "sojourn starter"',
                path=self.folder,
            )
        try:
            self._load()
        except (ValueError, EOFError, OSError) as error:
            raise DataError(
                'data set "{path}" is damaged ({why}); build it again',
                path=self.folder, why=str(error).partition("\n")[0],
            ) from None  # fmt: skip
        self._orders: dict[tuple[int, int, str], np.ndarray] = {}

    def _load(self) -> None:
        self.info = SetInfo.model_validate_json((self.folder / "set.json").read_text(encoding="utf-8"))
        path = self.folder / "data.bin"
        size = path.stat().st_size
        self.data: np.ndarray
        if self.info.kind == "image":
            shape = (self.info.count, *self.info.shape)
            if size != int(np.prod(shape)):
                raise DataError(
                    'data set "{path}" is cut short: data.bin has {found} bytes, {wanted} expected; build it again',
                    path=self.folder, found=size, wanted=int(np.prod(shape)),
                )  # fmt: skip
            self.data = np.memmap(path, np.uint8, "r", shape=shape)
        else:
            self.data = np.memmap(path, np.uint8, "r", shape=(size,)) if size else np.zeros(0, np.uint8)
            self.offsets = np.load(self.folder / "offsets.npy")
            if len(self.offsets) != self.info.count + 1 or self.offsets[-1] != size:
                raise DataError(
                    'data set "{path}" is cut short: data.bin has {found} bytes, {wanted} expected; build it again',
                    path=self.folder, found=size, wanted=int(self.offsets[-1]) if len(self.offsets) else 0,
                )  # fmt: skip
        self.labels = np.load(self.folder / "labels.npy")
        self.split = np.load(self.folder / "split.npy")
        self.weight = np.load(self.folder / "weight.npy")
        self._check_labels()
        target = self.folder / "target.npy"
        self.target = np.load(target, mmap_mode="r") if target.is_file() else None

    def _check_labels(self) -> None:
        """Raise DataError for a label that no column has a name for."""
        columns = self.info.labels
        if self.labels.shape != (self.info.count, len(columns)):
            raise DataError(
                'data set "{path}" has labels of shape {found}, {wanted} expected; build it again',
                path=self.folder, found=self.labels.shape, wanted=(self.info.count, len(columns)),
            )  # fmt: skip
        for i, column in enumerate(columns):
            wrong = np.flatnonzero((self.labels[:, i] < -1) | (self.labels[:, i] >= len(column.values)))
            if len(wrong):
                raise DataError(
                    'label {value} of row "{id}" is outside 0..{high} (column "{column}")',
                    value=int(self.labels[wrong[0], i]), id=int(wrong[0]), high=len(column.values) - 1,
                    column=column.name,
                )  # fmt: skip

    def __len__(self) -> int:
        return self.info.count

    @cached_property
    def rows(self) -> list[dict[str, Any]]:
        """rows.jsonl, parsed. Raises DataError."""
        damaged = partial(DataError, 'data set "{path}" is damaged ({why}); build it again', path=self.folder)
        try:
            with (self.folder / "rows.jsonl").open(encoding="utf-8") as file:
                found = [json.loads(line) for line in file]
        except (OSError, ValueError) as error:
            raise damaged(why=f"rows.jsonl: {error}") from None
        if len(found) < len(self) or not all(isinstance(row, dict) for row in found):
            raise damaged(why=f"rows.jsonl: {len(found)} / {len(self)}")
        return found

    @lru_cache(maxsize=8)  # noqa: B019 - a set lives as long as its process
    def indices(self, split: str = "train") -> np.ndarray:
        """Row numbers of a split, or of "all", in order."""
        if split == "all":
            return np.arange(len(self))
        return np.flatnonzero(self.split == SPLITS.index(split))

    def order(self, seed: int, epoch: int, split: str = "train") -> np.ndarray:
        """Row numbers of one epoch, shuffled; a row of weight w comes about w / mean(w) times (systematic draw)."""
        key = (seed, epoch, split)
        if key not in self._orders:
            rows = self.indices(split)
            if len(rows) == 0:
                raise DataError('data set "{name}" has no rows in split "{split}"', name=self.info.name, split=split)
            rng = np.random.default_rng([seed, epoch, (*SPLITS, "all").index(split)])
            share = self.weight[rows].astype(np.float64)
            ticks = (np.arange(len(rows)) + rng.random()) / len(rows)
            edges = np.cumsum(share / share.sum())
            edges[-1] = 1.0
            self._orders = {k: v for k, v in self._orders.items() if k[1] >= epoch - 1}
            self._orders[key] = rng.permutation(rows[np.searchsorted(edges, ticks, side="right")])
        return self._orders[key]

    def draw(self, seed: int, k: int, size: int, split: str = "train") -> np.ndarray:
        """Row numbers of batch k: a pure function of (seed, k, size) that walks through epoch after epoch."""
        count = len(self.indices(split))
        first = k * size
        epochs = range(first // max(count, 1), (first + size - 1) // max(count, 1) + 1) if count else range(1)
        joined = np.concatenate([self.order(seed, epoch, split) for epoch in epochs])
        start = first - epochs.start * count
        return joined[start : start + size]

    def raw(self, rows: np.ndarray) -> Tensor:
        """Stored pictures of these rows, uint8 (b, h, w, c)."""
        return torch.from_numpy(np.ascontiguousarray(self.data[rows]))

    def text(self, row: int) -> str:
        """The document of a row."""
        return bytes(self.data[self.offsets[row] : self.offsets[row + 1]]).decode("utf-8")

    def prompts(self, rows: np.ndarray, seed: Sequence[int], column: str | None = None) -> list[Prompt]:
        """A prompt per row: one of its captions, drawn by `seed`, or the name of its label in `column`."""
        rng = np.random.default_rng(list(seed))
        picks = rng.random(len(rows))
        out = []
        for row, pick in zip(rows, picks, strict=True):
            meta = self.rows[row]
            captions = meta["captions"]
            text = captions[int(pick * len(captions))] if captions else ""
            if column is not None:
                text = self.label_name(int(row), column) or ""
            out.append(Prompt.plain(text, meta.get("style")))
        return out

    def label_name(self, row: int, column: str) -> str | None:
        """Name of a row's label in `column`, None when it has none."""
        for i, label in enumerate(self.info.labels):
            if label.name == column:
                value = int(self.labels[row, i])
                return label.values[value] if value >= 0 else None
        raise DataError('data set "{name}" has no label column "{column}"', name=self.info.name, column=column)
