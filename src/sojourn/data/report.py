"""What became of every file, for people and programs: report.json, report.html and a contact sheet.

Names and captions come from strangers: the page shows them as text, and runs nothing.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pydantic import Field

from sojourn.data.clean import to_channels
from sojourn.schema import Source, Strict

_LISTED = 1000
_SAMPLES = 24
SHEET = 100
"""Pictures on a contact sheet at most."""


class Remark(Strict):
    """Files with one fate: the reason, how many, and their names with details."""

    reason: str
    count: int = 0
    files: list[tuple[str, str]] = Field(default_factory=list)
    """(name, detail), the first 1000."""

    def add(self, name: str, detail: str) -> None:
        self.count += 1
        if len(self.files) < _LISTED:
            self.files.append((name, detail))


class Sample(Strict):
    """A row of the set, as an example."""

    id: str
    captions: list[str]
    label: str = ""


class Report(Strict):
    """All that is known about a preparation. The same input gives the same report: it holds no times and dates."""

    name: str
    source: str
    kind: str = ""
    shape: tuple[int, ...] = ()
    found: int = 0
    """Files that looked like pictures or texts."""
    kept: int = 0
    """Rows of the set."""
    other: int = 0
    """Files of other kinds, left alone."""
    dropped: dict[str, Remark] = Field(default_factory=dict)
    """Reason -> files that are not in the set."""
    notes: dict[str, Remark] = Field(default_factory=dict)
    """Note -> files that are in the set, changed or worth a look."""
    sources: list[Source] = Field(default_factory=list)
    classes: dict[str, int] = Field(default_factory=dict)
    styles: dict[str, int] = Field(default_factory=dict)
    captions: dict[str, int] = Field(default_factory=dict)
    """Where captions came from -> rows."""
    splits: dict[str, int] = Field(default_factory=dict)
    groups: int = 0
    """Groups of look-alikes, lone rows counted."""
    largest_group: int = 0
    samples: list[Sample] = Field(default_factory=list)
    settings: dict[str, Any] = Field(default_factory=dict)

    def drop(self, name: str, reason: str, detail: str = "") -> None:
        """Say that a file is left out."""
        self.dropped.setdefault(reason, Remark(reason=reason)).add(name, detail)

    def note(self, name: str, text: str) -> None:
        """Say something about a file that is kept; what follows ": " is its detail."""
        reason, _, detail = text.partition(": ")
        self.notes.setdefault(reason, Remark(reason=reason)).add(name, detail)

    @property
    def lost(self) -> int:
        """Files left out, for whatever reason."""
        return sum(remark.count for remark in self.dropped.values())

    def reasons(self) -> str:
        """The reasons in one line, the most frequent first: `12 corrupt, 3 too small`."""
        ranked = sorted(self.dropped.values(), key=lambda r: (-r.count, r.reason))
        return ", ".join(f"{remark.count} {remark.reason}" for remark in ranked)

    def samples_from(self, rows: Sequence[Sample]) -> None:
        """Keep some rows, spread evenly, as examples."""
        self.samples = [rows[i] for i in spread(len(rows), _SAMPLES)]

    def write(self, folder: Path) -> None:
        """report.json and report.html."""
        (folder / "report.json").write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
        (folder / "report.html").write_text(self._page(folder), encoding="utf-8")

    def _page(self, folder: Path) -> str:
        facts = {
            "source": self.source, "kind": self.kind, "shape": " x ".join(map(str, self.shape)), "found": self.found,
            "kept": self.kept, "dropped": self.lost, "other files": self.other, "groups": self.groups,
            "largest group": self.largest_group, **{f"in {name}": n for name, n in self.splits.items()},
            **{f"caption from {name}": n for name, n in self.captions.items()},
        }  # fmt: skip
        parts = [_table(("", ""), list(facts.items()))]
        if (folder / "sheet.png").is_file():
            parts.append('<p><img src="sheet.png" alt="contact sheet"></p>')
        parts += [
            _section("Licences and sources", ("source", "licence", "rows", "attribution"),
                     [(s.name, s.licence, s.count, s.attribution) for s in self.sources]),
            _section("Classes", ("class", "rows"), list(self.classes.items())),
            _section("Styles", ("style", "rows"), list(self.styles.items())),
            _remarks("Left out", self.dropped),
            _remarks("Kept, with a note", self.notes),
            _section("Examples", ("id", "captions", "class"),
                     [(s.id, " | ".join(s.captions), s.label) for s in self.samples]),
        ]  # fmt: skip
        return _PAGE.format(title=html.escape(self.name), body="\n".join(part for part in parts if part))


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}: report</title>
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; style-src 'unsafe-inline'; img-src 'self' file:">
<style>body{{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#222}}
table{{border-collapse:collapse}}td,th{{padding:.15rem .8rem .15rem 0;text-align:left;vertical-align:top;
overflow-wrap:anywhere}}th{{color:#777;font-weight:500}}img{{max-width:100%}}summary{{cursor:pointer}}</style>
</head><body><h1>{title}</h1>
{body}
</body></html>
"""


def _table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    titles = "".join(f"<th>{html.escape(title)}</th>" for title in head) if any(head) else ""
    lines = ["<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows]
    return f"<table><tr>{titles}</tr>{''.join(lines)}</table>"


def _section(title: str, head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    return f"<h2>{html.escape(title)}</h2>{_table(head, rows)}" if rows else ""


def _remarks(title: str, remarks: dict[str, Remark]) -> str:
    parts = []
    for remark in sorted(remarks.values(), key=lambda r: (-r.count, r.reason)):
        files = _table(("file", "detail"), remark.files)
        more = f"<p>and {remark.count - len(remark.files)} more</p>" if remark.count > len(remark.files) else ""
        parts.append(f"<details><summary>{remark.count} {html.escape(remark.reason)}</summary>{files}{more}</details>")
    return f"<h2>{html.escape(title)}</h2>{''.join(parts)}" if parts else ""


def spread(count: int, most: int) -> list[int]:
    """At most `most` positions of 0..count-1, evenly spread."""
    return sorted({round(i) for i in np.linspace(0, count - 1, min(count, most))}) if count else []


def sheet(pictures: Sequence[np.ndarray]) -> Image.Image:
    """Pictures of one size, uint8 (h, w, c), side by side; see-through parts show a checkerboard."""
    height, width = pictures[0].shape[:2]
    across = math.ceil(math.sqrt(len(pictures)))
    down = math.ceil(len(pictures) / across)
    gap = max(1, width // 32)
    out = Image.new("RGB", (across * (width + gap) + gap, down * (height + gap) + gap), (236, 236, 236))
    y, x = np.mgrid[0:height, 0:width]
    board = np.where((x // 8 + y // 8) % 2, 255, 205)[:, :, None]
    for i, array in enumerate(pictures):
        whole = to_channels(array, 4).astype(np.float32)
        alpha = whole[:, :, 3:] / 255
        flat = Image.fromarray(np.rint(whole[:, :, :3] * alpha + board * (1 - alpha)).astype(np.uint8))
        out.paste(flat, (gap + i % across * (width + gap), gap + i // across * (height + gap)))
    return out
