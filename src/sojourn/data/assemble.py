"""From cleaned rows to a set on disk: classes, sources, groups, splits, report. The same for pictures and texts.

Knows nothing about formats: a row's data comes out of a spool file.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import numpy as np

from sojourn.data import twins
from sojourn.data.dataset import Item, LabelColumn, SetInfo, SetWriter
from sojourn.data.report import Report, Sample
from sojourn.data.scan import Found, captions
from sojourn.data.settings import PrepareConfig
from sojourn.errors import OutOfRoom
from sojourn.schema import Event, Progress, Source

T = TypeVar("T")
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_TICK_S = 0.5


@dataclass
class Row:
    """A cleaned item, its data in the spool."""

    id: str
    found: Found
    sha: str
    hash: int
    """Perceptual or similarity hash, 64 bits."""
    offset: int
    length: int
    captions: list[str] = field(default_factory=list)
    captions_from: str = "none"
    shape: tuple[int, ...] = ()
    size: tuple[int, int] = (0, 0)
    """Pictures: width and height of the original."""
    table: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    @property
    def label(self) -> str | None:
        """The class: the table's, else the folder's."""
        value = _text(self.table, "label", "class")
        return self.found.folder if value is None else value

    @property
    def area(self) -> int:
        """Pixels of the original."""
        return self.size[0] * self.size[1]

    @property
    def name(self) -> str:
        return self.found.entry.name


class Spool:
    """A file without a name, on the set's disk, that holds cleaned data until it is known which of it stays."""

    def __init__(self, to: Path) -> None:
        self._folder = to.parent
        self._end = 0

    def __enter__(self) -> Self:
        self._file = tempfile.TemporaryFile(dir=self._folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._file.close()
        except OSError:
            if kind is None:
                raise

    def add(self, data: bytes) -> int:
        """Append; returns where it starts."""
        at = self._end
        self._file.write(data)
        self._end += len(data)
        return at

    def read(self, row: Row) -> bytes:
        """The data of a row."""
        self._file.seek(row.offset)
        data = self._file.read(row.length)
        self._file.seek(0, 2)
        return data


@contextmanager
def room(path: Path, needed: int) -> Iterator[None]:
    """Turn a full disk inside the block, or one that will be, into OutOfRoom; `needed` bytes, 0 = not known."""
    folder = path.parent
    if shutil.disk_usage(folder).free < needed:
        raise _full(path, needed)
    try:
        yield
    except OSError as error:
        if error.errno in _NO_ROOM:
            raise _full(path, needed) from None
        raise


def _full(path: Path, needed: int) -> OutOfRoom:
    return OutOfRoom(
        'no room to write "{path}": {free} bytes are free there, about {needed} are needed; nothing was changed',
        path=path, free=shutil.disk_usage(path.parent).free, needed=needed,
    )  # fmt: skip


def busy(work: Callable[[], T], text: str) -> Generator[Event, None, T]:
    """Do `work` in a thread, with an event twice a second; returns its value and raises its errors."""
    out: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            out.append(work())
        except BaseException as error:  # raised again in the caller's thread
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while True:
        thread.join(_TICK_S)
        if not thread.is_alive():
            break
        yield Progress(done=0, total=0, unit="files", text=text)
    if failed:
        raise failed[0]
    return out[0]


class Pace:
    """Says when the next progress event is due, and makes it."""

    def __init__(self, total: int, text: str, unit: str = "files") -> None:
        self._total, self._text, self._unit = total, text, unit
        self._start = self._last = time.monotonic()

    def at(self, done: int) -> Iterator[Event]:
        """An event when half a second has passed since the last."""
        now = time.monotonic()
        if now - self._last >= _TICK_S or done == self._total:
            self._last = now
            rate = done / max(now - self._start, 1e-6)
            eta = (self._total - done) / rate if rate else None
            yield Progress(done=done, total=self._total, unit=self._unit, rate=rate, eta_s=eta, text=self._text)


def one_each(rows: list[Row], report: Report) -> list[Row]:
    """Rows with distinct data: of copies the largest original stays, and takes over the captions of the others."""
    best: dict[str, Row] = {}
    for row in sorted(rows, key=lambda row: -row.area):
        first = best.setdefault(row.sha, row)
        if first is not row:
            absorb(first, row, report, "copy of another")
    return [row for row in rows if best[row.sha] is row]


def absorb(first: Row, row: Row, report: Report, reason: str) -> None:
    """Drop `row` in favour of `first`."""
    report.drop(row.name, reason, first.name)
    first.captions += [caption for caption in row.captions if caption not in first.captions]
    if row.label is not None and first.label is not None and row.label != first.label:
        report.note(first.name, f"also found as another class: {row.label}, kept as {first.label}")
    if row.found.split is not None and first.found.split is None:
        first.found.split = row.found.split


def write(
    rows: list[Row],
    groups: twins.Groups,
    data: Callable[[Row], np.ndarray | str],
    to: Path,
    info: SetInfo,
    config: PrepareConfig,
    report: Report,
    extra: Callable[[SetWriter], None],
) -> Iterator[Event]:
    """The set of `rows` at `to`, with its report; `extra` may put more files beside them."""
    _join_named(rows, groups)
    names = _group_names(rows, groups)
    splits, moved = twins.split(names, [row.found.split for row in rows], config.valid, config.test)
    if moved:
        report.note(info.name, f"look-alikes kept in one split: {moved} rows left the split they were given")
    columns, labels = _labels(rows)
    sources, which = _sources(rows, config, report.source)
    info = info.model_copy(update={"labels": columns, "sources": sources})
    for row in rows:
        for note in row.notes:
            report.note(row.name, note)
    report.sources, report.kept = sources, len(rows)
    report.splits = {part: splits.count(part) for part in ("train", "valid", "test")}
    sizes = Counter(names)
    report.groups, report.largest_group = len(sizes), max(sizes.values())
    report.classes = dict(Counter(columns[0].values[i] for i in labels if i >= 0)) if columns else {}
    report.styles = dict(sorted(Counter(s for s in (_text(r.table, "style") for r in rows) if s).items()))
    report.captions = dict(sorted(Counter(row.captions_from for row in rows).items()))
    report.samples_from([Sample(id=row.id, captions=row.captions[:8], label=row.label or "") for row in rows])
    pace = Pace(len(rows), "packing", "rows")
    needed = sum(row.length for row in rows) + 512 * len(rows)
    with room(to, needed), SetWriter(to, info) as writer:
        for i, row in enumerate(rows):
            writer.add(
                Item(
                    id=row.id,
                    data=data(row),
                    captions=row.captions,
                    labels=[labels[i]] if columns else [],
                    style=_text(row.table, "style"),
                    group=names[i],
                    split=splits[i],
                    source=which[i],
                    extra={"size": list(row.size)} if row.shape else {},
                )
            )
            yield from pace.at(i + 1)
        extra(writer)
        report.write(writer.part)


def _join_named(rows: list[Row], groups: twins.Groups) -> None:
    """Rows to which a table gives the same group belong together."""
    first: dict[str, int] = {}
    for i, row in enumerate(rows):
        name = _text(row.table, "group")
        if name is not None:
            groups.join(i, first.setdefault(name, i))


def _group_names(rows: list[Row], groups: twins.Groups) -> list[str]:
    """A name for every row's group that depends on what is in it, not on where it was found."""
    roots = [groups.find(i) for i in range(len(rows))]
    least: dict[int, str] = {}
    for root, row in zip(roots, rows, strict=True):
        least[root] = min(least.get(root, row.sha), row.sha)
    return [least[root][:16] for root in roots]


def _labels(rows: list[Row]) -> tuple[list[LabelColumn], list[int]]:
    """The column "class" with its names in order (numbers as numbers), and each row's number in it, -1 = none."""
    found = {row.label for row in rows} - {None}
    if not found:
        return [], []
    values = sorted((v for v in found if v is not None), key=lambda v: (0, int(v), v) if v.isdecimal() else (1, 0, v))
    number = {value: i for i, value in enumerate(values)}
    return [LabelColumn(name="class", values=values)], [number.get(row.label or "", -1) for row in rows]


def _sources(rows: list[Row], config: PrepareConfig, default: str) -> tuple[list[Source], list[int]]:
    keys = [
        (
            _text(row.table, "source") or default,
            _text(row.table, "licence", "license") or config.licence,
            _text(row.table, "attribution") or config.attribution,
            _text(row.table, "url") or config.url,
        )
        for row in rows
    ]
    counts = Counter(keys)
    order = {key: i for i, key in enumerate(sorted(counts))}
    sources = [Source(name=key[0], licence=key[1], attribution=key[2], url=key[3], count=counts[key]) for key in order]
    return sources, [order[key] for key in keys]


def _text(table: dict[str, Any], *columns: str) -> str | None:
    """The first of the columns that says something, as one line."""
    for column in columns:
        found = captions([table.get(column)])
        if found:
            return found[0]
    return None
