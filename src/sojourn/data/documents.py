"""Found text files to a set: decoded, cut into documents, copies dropped, near copies kept in one split, packed.

Knows nothing about where the files were found.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sojourn.data import texts, twins
from sojourn.data.assemble import Pace, Row, Spool, busy, one_each, room, write
from sojourn.data.clean import Refused
from sojourn.data.dataset import SetInfo, SetWriter
from sojourn.data.report import Report
from sojourn.data.scan import Found, Scan, caption_of_name, captions, rows_of
from sojourn.data.settings import PrepareConfig
from sojourn.errors import DataError
from sojourn.schema import Event, Log

_NEAR = 6  # bits of 64; Manku et al. 2007 take 3 for long pages, short texts scatter more


def build(scan: Scan, to: Path, config: PrepareConfig, report: Report) -> Iterator[Event]:
    """The set of the scanned texts at `to`. Raises DataError when none is left, OutOfRoom."""
    with room(to, sum(item.entry.size for item in scan.items)), Spool(to) as spool:
        rows = yield from _clean(scan.items, spool, config, report)
        if not rows:
            raise DataError(
                'none of the {count} text files of "{path}" can be used: {reasons}',
                count=report.found, path=report.source, reasons=report.reasons() or "they are empty",
            )  # fmt: skip
        rows = one_each(rows, report)
        groups = twins.Groups(len(rows))
        if config.near:
            whole = yield from busy(lambda: _group(rows, groups, min(config.near, _NEAR)), "comparing")
            if not whole:
                yield Log.warn("too many texts look alike: not all pairs were compared")
        info = SetInfo(name=report.name, kind="text", shape=(), about=config.about)

        def data(row: Row) -> str:
            return spool.read(row).decode("utf-8")

        def show(writer: SetWriter) -> None:
            picked = [rows[i] for i in np.linspace(0, len(rows) - 1, min(len(rows), 20)).astype(int)]
            parts = [f"[{row.id}]\n{data(row)[:500]}\n" for row in picked]
            (writer.part / "sheet.txt").write_text("\n".join(parts), encoding="utf-8")

        yield from write(rows, groups, data, to, info, config, report, show)


def _clean(
    items: list[Found], spool: Spool, config: PrepareConfig, report: Report
) -> Generator[Event, None, list[Row]]:
    cut = "file" if config.documents == "auto" and len(items) > 1 else config.documents
    rows: list[Row] = []
    pace = Pace(len(items), "reading")
    for number, item in enumerate(items, 1):
        name = item.entry.name
        try:
            text, encoding = texts.decode(item.entry.read(config.max_file_bytes))
        except Refused as refused:
            report.drop(name, refused.reason, refused.detail)
            continue
        if encoding != "utf-8":
            report.note(name, f"encoding: {encoding}")
        found = 0
        for place, (document, table) in enumerate(_parts(name, text, cut, report), 1):
            yield from pace.at(number)
            found += 1
            if len(document) < config.min_chars:
                report.drop(f"{name}:{place}", "too short", f"{len(document)} characters")
                continue
            data = document.encode("utf-8")
            given = captions([table.get("caption"), table.get("title")])
            if cut == "file" and not given and config.captions in ("auto", "name"):
                given = captions([caption_of_name(name.rsplit("/", 1)[-1].rsplit(".", 1)[0])])
            rows.append(
                Row(
                    id=name if cut == "file" and not table else f"{name}:{place}",
                    found=item, sha=texts.fingerprint(document), hash=texts.similarity_hash(document),
                    offset=spool.add(data), length=len(data), table=table,
                    captions=given if config.captions != "none" else [],
                    captions_from=("table" if table else "name") if given and config.captions != "none" else "none",
                )
            )  # fmt: skip
        if not found:
            report.drop(name, "empty file")
        yield from pace.at(number)
    return rows


def _parts(name: str, text: str, cut: texts.Cut, report: Report) -> Iterator[tuple[str, dict[str, Any]]]:
    """(document, table row) of a file."""
    if name.lower().endswith(".txt"):
        for document in texts.documents(text, cut):
            yield document, {}
        return
    for number, row in enumerate(rows_of(name, text, report.drop), 1):
        value = row.get("text")
        if not isinstance(value, str) or not value.strip():
            report.drop(f"{name}:{number}", "table row without text")
            continue
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            report.drop(f"{name}:{number}", "not a text", "half a surrogate pair")
            continue
        yield value.strip(), row


def _group(rows: list[Row], groups: twins.Groups, distance: int) -> bool:
    """Join near copies; whether all pairs were seen."""
    hashes, where = np.unique(np.array([row.hash for row in rows], np.uint64), return_inverse=True)
    near, whole = twins.neighbours(hashes, distance)
    first: dict[int, int] = {}
    for i, key in enumerate(where.tolist()):
        groups.join(i, first.setdefault(key, i))
    for key, others in enumerate(near):
        for other in others:
            groups.join(first[key], first[other])
    return whole
