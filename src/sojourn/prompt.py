"""The prompt grammar: words and `--parameters` <-> `Prompt`. Knows nothing of packages, pictures or the terminal.

    prompt    = [part {part}] {parameter}           words first, parameters last
    part      = words ["::" [weight]]               `red heart::2 blue::-0.5`; `::` ends a part
    parameter = "--" name [value]                   `--n 4`, `--no cat, dog`, `--style "flat color"`, `--tile`

Words are kept to the code point, but for the space around a part. A part, a thing in `--no` or a value that stands
wholly in straight quotes is taken out of them, with `\\"` and `\\\\` for a quote and a backslash: so any text can be said.
Quotes within words are text, and what they enclose is not read as grammar: `a sign "--n 4"`.
Full-width forms (`：：` `－－` `４` `，`) and the dashes that phones make of `--` are read as what they stand for.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ValidationError

from sojourn.errors import InvalidInput, PromptError, Unsupported
from sojourn.schema import PARTS_MAX, REFUSED, WORDS_MAX, Prompt, Segment, visible

RAW_MAX = 10_000
"""Characters of a prompt as written: more than the longest valid `Prompt` formats to."""
Kind = Literal["whole", "number", "text", "ratio", "list", "flag"]
_KINDS: Mapping[str, Kind] = {
    "n": "whole", "seed": "whole", "steps": "whole", "guidance": "number", "no": "list", "style": "text", "ar": "ratio",
    "chaos": "number", "stylize": "number", "iw": "number", "sref": "text", "tile": "flag", "model": "text",
}  # fmt: skip
ALIASES = {"aspect": "ar", "c": "chaos", "s": "stylize"}
"""Midjourney's other spellings. `--m` is left out: nobody's habit, and steps, style and seed show what letters cost."""
_KIN = {
    "v": "model", "version": "model", "niji": "model", "m": "model", "cfg": "guidance", "scale": "guidance",
    "negative": "no", "neg": "no", "repeat": "n", "count": "n", "num": "n", "size": "ar", "ratio": "ar",
}  # fmt: skip
"""What other tools call it: only to name the right one in the error."""


@dataclass(frozen=True)
class Parameter:
    """What can be written after the words: for the parser, for help and for forms."""

    name: str
    kind: Kind
    low: int
    high: int
    """Legal range of a number or of each side of a ratio; most characters of a text, most things of a list."""
    about: str


def _declared(name: str) -> Parameter:
    field = Prompt.model_fields[name]
    low, high = (1, 10_000) if name == "ar" else (0, 1)
    for limit in field.metadata:
        low = int(getattr(limit, "ge", low))
        high = int(getattr(limit, "le", getattr(limit, "max_length", high)))
    return Parameter(name, _KINDS[name], low, high, field.description or "")


PARAMETERS: Mapping[str, Parameter] = {name: _declared(name) for name in Prompt.model_fields if name != "segments"}
"""All parameters, in the order in which `format` writes them."""

_COMMAS = ",，、"
_EQUALS = "=＝"
_DASHES = "-－—–―⸺"
_NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | dict.fromkeys(map(ord, "—–―−"), ord("-"))
_RUN = re.compile(f"[{_DASHES}]+")
_STOP = re.compile(f'"|[:：]{{2}}|[{_COMMAS}]|[{_DASHES}]+')
_NAME = re.compile(r"\w+(?:-\w+)*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\]|\\(?!["\\]))*+)"')
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_RATIO = re.compile(r"([0-9]{1,9})[:∶]([0-9]{1,9})")
_SPACE = re.compile(r"\s*")
_TOKEN = re.compile(r"\S*")
_FIGURE = re.compile(r"\s+[+\-－]?[.0-9０-９]")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def parse(text: str, *, allow_empty: bool = False) -> Prompt:
    """The prompt that `text` says; PromptError points at the column. `allow_empty` lets one without words pass."""
    if len(text) > RAW_MAX:
        raise _too_long(len(text))
    if found := REFUSED.search(text):
        column, code = found.start() + 1, f"U+{ord(found[0]):04X}"
        if unicodedata.category(found[0]) == "Cs":
            raise PromptError(
                "column {column}: {code} is half a character (not valid UTF-8?); remove it", column=column, code=code
            )
        raise PromptError("column {column}: {code} is a control character; remove it", column=column, code=code)
    return _Reader(text).prompt(allow_empty)


def format(prompt: Prompt) -> str:
    """The text that `parse` reads as `prompt`, in one canonical form (a prompt without words needs `allow_empty`)."""
    out = []
    for segment in prompt.segments:
        out.append(_written(segment.text) + (f"::{_figure(segment.weight)}" if _weighted(prompt) else ""))
    for name, parameter in PARAMETERS.items():
        value = getattr(prompt, name)
        if value is None or value is False or value == ():
            continue
        if parameter.kind == "flag":
            out.append(f"--{name}")
        elif parameter.kind == "list":
            out.append(f"--{name} " + ", ".join(_written(thing, _COMMAS) for thing in value))
        elif parameter.kind == "ratio":
            out.append(f"--{name} {value[0]}:{value[1]}")
        elif parameter.kind == "text":
            out.append(f"--{name} " + (_quoted(value) if re.search(r"\s", value) else _written(value, _COMMAS)))
        else:
            out.append(f"--{name} {_figure(value)}")
    return " ".join(out)


def merge(prompt: Prompt, **overrides: object) -> Prompt:
    """`prompt` with the given parameters replaced; None leaves one as it is. InvalidInput names what is wrong.

    Values come as in `Prompt` or as text: `n="4"`, `ar="16:9"`, `no="cat, dog"` (a tuple where one holds a comma).
    """
    values: dict[str, Any] = {name: getattr(prompt, name) for name in Prompt.model_fields}
    for name, value in overrides.items():
        if name not in PARAMETERS:
            close = _close(name, 0.0)
            raise InvalidInput("unknown parameter --{name}, did you mean --{close}?", name=_show(name), close=close)
        kind = PARAMETERS[name].kind
        if isinstance(value, str) and kind == "list":
            value = tuple(part.strip() for part in re.split(f"[{_COMMAS}]", value) if part.strip())
        elif isinstance(value, str) and kind in {"whole", "number", "ratio"}:
            value = value.translate(_NARROW).strip()
            value = tuple(re.split("[:∶]", value)) if kind == "ratio" else value
        if value is not None:
            values[name] = value
    try:
        return Prompt(**values)
    except ValidationError as error:
        raise explained(error) from None


def explained(error: ValidationError) -> InvalidInput:
    """The first thing that pydantic found wrong with a `Prompt`, in one line."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InvalidInput):
        return cause
    name, found = str(first["loc"][0]), _show(str(first["input"]))
    if name not in PARAMETERS:
        return InvalidInput("the prompt's {name} is {found}: {problem}", name=name, found=found, problem=first["msg"])
    parameter = PARAMETERS[name]
    low, high = parameter.low, parameter.high
    if parameter.kind == "ratio":
        template = "--{name} is {found}, must be width:height, both {low}..{high}"
        return InvalidInput(template, name=name, found=found, low=low, high=high)
    if parameter.kind in {"whole", "number"}:
        return InvalidInput("--{name} is {found}, must be {low}..{high}", name=name, found=found, low=low, high=high)
    return InvalidInput("--{name} is {found}: {problem}", name=name, found=found, problem=first["msg"])


def used(prompt: Prompt) -> list[str]:
    """What `prompt` asks for beyond plain words: "weights", then the parameters set, but not those set to "off"."""
    off = {"tile": False, "no": (), "chaos": 0, "stylize": 0}
    names = [name for name in PARAMETERS if getattr(prompt, name) not in (None, off.get(name))]
    return ["weights", *names] if _weighted(prompt) else names


def unsupported(prompt: Prompt, can: Collection[str]) -> list[str]:
    """Names that `used` gives and `can` lacks."""
    return [name for name in used(prompt) if name not in can]


def require(prompt: Prompt, can: Collection[str], model: str) -> None:
    """Raises Unsupported with the names of all that `prompt` asks for and `model` cannot do."""
    if lacking := unsupported(prompt, can):
        names = ", ".join("::" if name == "weights" else f"--{name}" for name in lacking)
        raise Unsupported('"{model}" cannot do {names} yet; leave it out', model=model, names=names)


def caret(text: str, error: PromptError, width: int = 76) -> str:
    """Two lines for a terminal: the part of `text` around the error, at most `width` cells, and ^ under its column.

    East-Asian wide characters take two cells, joiners none. Control characters show as pictures and direction marks
    not at all, so that a prompt cannot act on the terminal.
    """
    index = max(0, min(error.column - 1, len(text)))
    start = max(text.rfind("\n", 0, index) + 1, index - 200)
    stop = text.find("\n", index, index + 200)
    before = [_glyph(c) for c in text[start:index]]
    after = [_glyph(c) for c in text[index : stop if stop >= 0 else index + 200]]
    while _cells(before) > width * 2 // 3:
        before.pop(0)
    while _cells(before) + _cells(after) > width:
        after.pop()
    return "".join(before + after) + "\n" + " " * _cells(before) + "^"


class _Reader:
    """One pass over a prompt: `at` is the next character to read."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.at = 0

    def prompt(self, allow_empty: bool) -> Prompt:
        segments = self._segments()
        values = self._parameters(bool(segments))
        if not segments and not allow_empty:
            raise PromptError("column {column}: the prompt is empty; write what you want to see", column=1)
        count = sum(len(segment.text) for segment in segments) + sum(map(len, values.get("no", ())))
        if count > WORDS_MAX:
            raise _too_long(count)
        return Prompt(segments=segments, **values)

    def _segments(self) -> tuple[Segment, ...]:
        found: list[Segment] = []
        pushed = 0  # column of the first weight that is not positive
        more = True
        while more:
            self._skip()
            start = self.at
            words = self._stretch(":")
            more = self._next(":：")
            if words:
                self._check(words, start, len(found))
            elif more:
                raise PromptError("column {column}: no words before ::", column=start + 1)
            if words:
                stop = self.at
                found.append(Segment(text=words, weight=self._weight() if more else 1))
                pushed = pushed or (stop + 1 if found[-1].weight <= 0 else 0)
        if found and math.fsum(segment.weight for segment in found) <= 0:
            raise PromptError("column {column}: the sum of the weights must be positive", column=pushed)
        return tuple(found)

    def _weight(self) -> float:
        """The number directly after `::`, 1 where there is none."""
        self.at += 2
        start = self.at
        token = re.split("[，、]", self._token())[0].rstrip(",")
        plain = token.translate(_NARROW)
        self.at = start
        if not plain.startswith(tuple("+-.:0123456789")) and plain.casefold() not in {"nan", "inf", "infinity"}:
            return 1.0
        fields: dict[str, Any] = {"found": _show(token), "low": -10, "high": 10}
        if not _NUMBER.fullmatch(plain):
            template = "column {column}: the weight is {found}, must be a number {low}..{high}, then a space"
            raise PromptError(template, column=start + 1, **fields)
        if not -10 <= float(plain) <= 10:
            raise PromptError(
                "column {column}: the weight is {found}, must be {low}..{high}", column=start + 1, **fields
            )
        self.at += len(token)
        self._skip_comma()
        return float(plain) + 0.0

    def _parameters(self, after_words: bool) -> dict[str, Any]:
        values: dict[str, Any] = {}
        first = (self.at, "")
        while self.at < len(self.text):
            start = self.at
            name, self.at = self._marker(start) or self._stray(after_words, first, name)
            first = first if values else (start, name)
            if name in values:
                raise PromptError("column {column}: --{name} is given twice", column=start + 1, name=name)
            values[name] = self._argument(name, start)
            self._skip_comma()
            self._skip()
        return values
