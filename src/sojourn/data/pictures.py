"""Found pictures to a set: cleaned in the pool, copies and look-alikes told apart, captioned, packed.

Knows nothing about where the files were found.
"""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import numpy as np

from sojourn.data import report as reports
from sojourn.data import twins
from sojourn.data.assemble import Pace, Row, Spool, absorb, busy, one_each, room, write
from sojourn.data.clean import Limits, to_channels
from sojourn.data.dataset import SetInfo, SetWriter
from sojourn.data.pool import Job, Pool, Result, Work
from sojourn.data.report import Report
from sojourn.data.scan import Found, Scan, caption_of_name, captions
from sojourn.data.settings import PrepareConfig
from sojourn.errors import DataError
from sojourn.schema import Event, Log

_MANY_CAPTIONS = 32


def build(scan: Scan, to: Path, config: PrepareConfig, report: Report) -> Iterator[Event]:
    """The set of the scanned pictures at `to`. Raises DataError when none is left, OutOfRoom."""
    height, width = config.height_width
    least = height * width * len(scan.items)
    with room(to, least), Spool(to) as spool:
        rows = yield from _clean(scan.items, spool, config, report)
        if not rows:
            raise DataError(
                'none of the {count} pictures of "{path}" can be used: {reasons}',
                count=report.found, path=report.source, reasons=report.reasons(),
            )  # fmt: skip
        rows = one_each(rows, report)
        rows, groups = yield from _without_twins(rows, spool, config, report)
        for row in rows:
            del row.captions[_MANY_CAPTIONS:]
        channels = config.channels or _channels(rows)
        shape = (height, width, channels)
        info = SetInfo(name=report.name, kind="image", shape=shape, about=config.about)
        report.shape = shape

        def data(row: Row) -> np.ndarray:
            return to_channels(_pixels(spool, row), channels, config.background)

        def show(writer: SetWriter) -> None:
            shown = [data(rows[i]) for i in reports.spread(len(rows), reports.SHEET)]
            reports.sheet(shown).save(writer.part / "sheet.png")

        yield from write(rows, groups, data, to, info, config, report, show)


def _clean(
    items: list[Found], spool: Spool, config: PrepareConfig, report: Report
) -> Generator[Event, None, list[Row]]:
    """Pass one: every file through the pool into the spool. Returns the rows in the order of names."""
    height, width = config.height_width
    work = Work(width, height, config.fit, config.background, config.limits, config.max_file_s, config.max_memory_bytes)
    rows: dict[int, Row] = {}
    refused: dict[int, Result] = {}
    pace = Pace(len(items), "reading")
    workers = config.workers or min(8, os.cpu_count() or 1, 1 + len(items) // 16)
    with Pool(work, workers) as pool:
        for answer in pool.run(_job(item, config.limits) for item in items):
            if answer is not None:
                index, result = answer
                if result.pixels is None:
                    refused[index] = result
                else:
                    rows[index] = _row(items[index], result, spool, config)
            yield from pace.at(len(rows) + len(refused))
    for index, result in sorted(refused.items()):
        report.drop(items[index].entry.name, result.reason, result.detail)
    return [rows[index] for index in sorted(rows)]


def _job(item: Found, limits: Limits) -> Job:
    entry = item.entry
    if entry.load is None:
        return Job(entry.path)
    return Job(load=lambda: entry.read(limits.file_bytes))


def _row(item: Found, result: Result, spool: Spool, config: PrepareConfig) -> Row:
    assert result.pixels is not None
    data = result.pixels.tobytes()
    texts, origin = _captions(item, config)
    return Row(
        id=item.entry.name, found=item, sha=result.sha, hash=result.phash, offset=spool.add(data), length=len(data),
        captions=texts, captions_from=origin, shape=result.pixels.shape, size=result.size, table=item.row,
        notes=result.notes,
    )  # fmt: skip


def _captions(item: Found, config: PrepareConfig) -> tuple[list[str], str]:
    """The captions, and which place they come from."""
    name = item.entry.name.rsplit("/", 1)[-1].rsplit(".", 1)[0]
    folder = item.folder
    places = {
        "sidecar": item.sidecar,
        "table": item.row.get("text", []),
        "folder": captions([caption_of_name(folder) or folder]) if folder else [],
        "name": captions([caption_of_name(name)]),
    }
    for place, found in places.items():
        if found and config.captions in ("auto", place):
            return list(found), place
    return [], "none"


def _without_twins(
    rows: list[Row], spool: Spool, config: PrepareConfig, report: Report
) -> Generator[Event, None, tuple[list[Row], twins.Groups]]:
    """Rows without near-identical ones, and the groups of those that look alike."""
    order = sorted(range(len(rows)), key=lambda i: -rows[i].area)

    def work() -> tuple[twins.Groups, dict[int, int], bool]:
        hashes = [row.hash for row in rows]
        return twins.look_alikes(hashes, order, lambda i: _pixels(spool, rows[i]), config.near, config.drop_twins)

    groups, repeats, whole = yield from busy(work, "comparing")
    if not whole:
        yield Log.warn("too many pictures look alike: not all pairs were compared")
    for i, first in sorted(repeats.items()):
        absorb(rows[first], rows[i], report, "nearly the same as another")
    left = [i for i in range(len(rows)) if i not in repeats]
    again = twins.Groups(len(left))
    first_of: dict[int, int] = {}
    for place, i in enumerate(left):
        again.join(place, first_of.setdefault(groups.find(i), place))
    return [rows[i] for i in left], again


def _pixels(spool: Spool, row: Row) -> np.ndarray:
    return np.frombuffer(spool.read(row), np.uint8).reshape(row.shape)


def _channels(rows: list[Row]) -> int:
    """The fewest channels that hold every row."""
    return max(row.shape[2] for row in rows)
