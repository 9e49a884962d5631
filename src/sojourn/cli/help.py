"""How `--help` is written: in the user's language, in lines measured in cells, since a Chinese character takes two."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

import click

from sojourn.errors import catalogue, language

UNIT = re.compile(r"\s+|[“（]*(?:[^\s⺀-\uffff]+|[⺀-\uffff])[、。，：；？！）”]*")
"""What a line is not broken within: a word, or a Chinese character, with the marks that belong to it."""


class Formatter(click.HelpFormatter):
    """click's, told in the user's language."""

    def write_usage(self, prog: str, args: str = "", prefix: str | None = None) -> None:
        super().write_usage(prog, args, prefix or told("Usage:") + " ")

    def write_heading(self, heading: str) -> None:
        super().write_heading(told(heading))

    def write_text(self, text: str) -> None:
        super().write_text(self._fitted(told(text), self.width - self.current_indent))

    def write_dl(self, rows: Iterable[tuple[str, str]], col_max: int = 30, col_spacing: int = 2) -> None:
        rows = list(rows)
        first = min(max((len(name) for name, _ in rows), default=0), col_max) + col_spacing
        width = self.width - first - self.current_indent
        super().write_dl([(name, self._fitted(told(text), width)) for name, text in rows], col_max, col_spacing)

    def _fitted(self, text: str, width: int) -> str:
        """The text broken into lines where click would not do it well; "\\b" makes it leave them as they are."""
        if language() == "en":
            return text
        return "\n\n".join("\b\n" + "\n".join(lines(part, width)) for part in text.split("\n\n"))


class Context(click.Context):
    formatter_class = Formatter


def told(text: str) -> str:
    """A text of the help in the user's language; a range or the like that click puts behind it stays."""
    if language() == "en":
        return text
    base, gap, extra = text.partition("  [")
    chinese = catalogue("help.zh")  # the English with single spaces, the Chinese in its paragraphs
    return chinese.get(" ".join(base.split()), base) + gap + extra.replace("required", chinese["required"])


def lines(text: str, width: int) -> list[str]:
    """The text in lines of at most `width` cells, but for single words that are longer."""
    out = [""]
    for unit in UNIT.findall(text):
        if cells(out[-1] + unit.rstrip()) > width and out[-1]:
            out[-1] = out[-1].rstrip()
            out.append(unit.lstrip())
        else:
            out[-1] += unit
    return out


def cells(text: str) -> int:
    """How wide a terminal shows it."""
    return sum(2 if unicodedata.east_asian_width(c) in "WF" or c in "“”" else 1 for c in text)
