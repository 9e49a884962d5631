"""Findings as a table for the terminal, as JSON, and as one HTML page with its pictures inside."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sojourn import safefile
from sojourn.data.sheet import grid
from sojourn.measure.bench import Findings, Sheet
from sojourn.schema import Metric

STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#1c1c1e;
background:#fff}table{border-collapse:collapse}td,th{padding:.25rem .8rem;border-bottom:1px solid #d8d8dc;
text-align:right;vertical-align:top}td:first-child,th:first-child{text-align:left}small{color:#5c5c62}
img{image-rendering:auto;max-width:100%}li{display:inline-block;margin-right:1rem;color:#5c5c62}
@media(prefers-color-scheme:dark){body{background:#161618;color:#ececf0}td,th{border-color:#3a3a3e}
small,li{color:#a8a8b0}}"""


def table(found: Sequence[Findings]) -> list[tuple[str, ...]]:
    """Rows of text: a heading, then one row a score with a column for each package."""
    names = list(dict.fromkeys(metric.name for item in found for metric in item.metrics))
    rows = [("score", *(item.name for item in found))]
    for name in names:
        mine = [next((m for m in item.metrics if m.name == name), None) for item in found]
        rows.append((name, *("" if m is None else shown(m) for m in mine)))
    return rows


def shown(metric: Metric) -> str:
    """A value with its interval, to the digits that mean something."""
    text = f"{metric.value:.4g}"
    if metric.low is not None and metric.high is not None:
        text += f" ({metric.low:.3g} to {metric.high:.3g})"
    return text


def as_json(found: Sequence[Findings]) -> list[dict[str, Any]]:
    return [
        {
            "name": item.name,
            "identity": item.identity,
            **item.about,
            "metrics": [m.model_dump(mode="json") for m in item.metrics],
        }
        for item in found
    ]


def write(found: Sequence[Findings], folder: Path, title: str) -> Path:
    """Write report.html and report.json into the folder; the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    text = json.dumps(as_json(found), indent=1, ensure_ascii=False)
    safefile.write_bytes(folder / "report.json", text.encode())
    safefile.write_bytes(folder / "report.html", page(found, title).encode())
    return folder / "report.html"


def page(found: Sequence[Findings], title: str) -> str:
    """One page that needs nothing else: table, notes, sheets of the packages side by side."""
    head, *rows = table(found)
    lines = ["<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>"]
    notes = {m.name: m.note for item in found for m in item.metrics if m.note}
    for name, *cells in rows:
        note = f"<br><small>{html.escape(notes[name])}</small>" if name in notes else ""
        values = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        lines.append(f"<tr><td>{html.escape(name)}{note}</td>{values}</tr>")
    sheets = "".join(
        f"<h2>{html.escape(heading)}</h2>" + "".join(picture(sheet) for sheet in under)
        for heading, under in arranged(found)
    )
    told = found[0].about.items() if found else ()
    about = ", ".join(f"{name} {_said(value)}" for name, value in told if value is not None)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>'
        f"<style>{STYLE}</style><h1>{html.escape(title)}</h1><p>{html.escape(about)}</p>"
        f"<table>{''.join(lines)}</table>{sheets}</html>"
    )


def arranged(found: Sequence[Findings]) -> list[tuple[str, list[Sheet]]]:
    """Sheets under headings: what several packages drew for the same prompts side by side, then those of each alone."""
    groups = dict.fromkeys(sheet.group for item in found for sheet in item.sheets if sheet.group)
    joint = []
    for group in groups if len(found) > 1 else ():
        mine = [(item.name, sheet) for item in found for sheet in item.sheets if sheet.group == group]
        first = mine[0][1]
        lines = [first.lines[0], *(line for _, sheet in mine for line in sheet.lines[1:])]
        count = min(map(len, lines))
        title = f"{group}: real above, then {', '.join(name for name, _ in mine)}"
        joint.append(Sheet(title, [line[:count] for line in lines], first.labels[:count], group))
    alone = [(item.name, [s for s in item.sheets if not (joint and s.group)]) for item in found]
    return [("side by side", joint)] * bool(joint) + [(name, sheets) for name, sheets in alone if sheets]


def _said(value: Any) -> str:
    """A field of `Findings.about` in a line of text."""
    if isinstance(value, dict) and "identity" in value:
        return f"{value['name']} {value['identity'][:8]}"
    if isinstance(value, dict):
        return " ".join(f"{name}={given}" for name, given in value.items())
    if isinstance(value, list):
        return " and ".join(map(str, value))
    return str(value)


def picture(sheet: Sheet) -> str:
    """A sheet as an image inside the page, with what each column shows."""
    image = grid([picture for line in sheet.lines for picture in line], len(sheet.lines[0]))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    labels = "".join(f"<li>{html.escape(label)}</li>" for label in sheet.labels)
    title = html.escape(sheet.title)
    return f'<h3>{title}</h3><img alt="{title}" src="data:image/png;base64,{data}">{labels and f"<ol>{labels}</ol>"}'
