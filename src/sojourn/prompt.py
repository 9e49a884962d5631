"""Prompts as text and as data: parse, format, merge, and what a prompt asks for. The grammar itself is in `grammar`.

Knows nothing of packages, pictures or the terminal's colours.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from itertools import accumulate
from typing import Any

from pydantic import ValidationError

from sojourn.errors import InvalidInput, PromptError, Unsupported
from sojourn.grammar import (
    ALIASES,
    COMMAS,
    DASHES,
    NARROW,
    PARAMETERS,
    RAW_MAX,
    Parameter,
    Reader,
    closest,
    figure,
    glyph,
    show,
    too_long,
    wide,
)
from sojourn.schema import REFUSED, Prompt, reason

__all__ = [
    "ALIASES",
    "PARAMETERS",
    "RAW_MAX",
    "Parameter",
    "caret",
    "explained",
    "format",
    "merge",
    "parse",
    "require",
    "unsupported",
    "used",
]


def parse(text: str, *, allow_empty: bool = False) -> Prompt:
    """The prompt that `text` says; PromptError points at the column. `allow_empty` lets one without words pass."""
    if len(text) > RAW_MAX:
        raise too_long(len(text))
    if found := REFUSED.search(text):
        at = {"column": found.start() + 1, "code": f"U+{ord(found[0]):04X}"}
        if unicodedata.category(found[0]) == "Cs":
            raise PromptError("column {column}: {code} is half a character (not valid UTF-8?); remove it", **at)
        raise PromptError("column {column}: {code} is a control character; remove it", **at)
    return Reader(text).prompt(allow_empty)


def format(prompt: Prompt) -> str:
    """The text that `parse` reads as `prompt`, in one canonical form (a prompt without words needs `allow_empty`)."""
    weighted = _weighted(prompt)
    out = [_written(part.text) + (f"::{figure(part.weight)}" if weighted else "") for part in prompt.segments]
    for name, parameter in PARAMETERS.items():
        value = getattr(prompt, name)
        if value is None or value is False or value == ():
            continue
        if parameter.kind == "flag":
            out.append(f"--{name}")
        elif parameter.kind == "list":
            out.append(f"--{name} " + ", ".join(_written(thing, COMMAS) for thing in value))
        elif parameter.kind == "ratio":
            out.append(f"--{name} {value[0]}:{value[1]}")
        elif parameter.kind == "text":
            out.append(f"--{name} " + (_quoted(value) if re.search(r"\s", value) else _written(value, COMMAS)))
        else:
            out.append(f"--{name} {figure(value)}")
    return " ".join(out)


def merge(prompt: Prompt, **overrides: object) -> Prompt:
    """`prompt` with the given parameters replaced; None leaves one as it is. InvalidInput names what is wrong.

    Values come as in `Prompt` or as text: `n="4"`, `ar="16:9"`, `no="cat, dog"` (a tuple where one holds a comma).
    """
    values: dict[str, Any] = {name: getattr(prompt, name) for name in Prompt.model_fields}
    for name, value in overrides.items():
        if name not in PARAMETERS:
            close = closest(name, 0.0)
            raise InvalidInput("unknown parameter --{name}, did you mean --{close}?", name=show(name), close=close)
        kind = PARAMETERS[name].kind
        if isinstance(value, str) and kind == "list":
            value = tuple(part.strip() for part in re.split(f"[{COMMAS}]", value) if part.strip())
        elif isinstance(value, str) and kind in {"whole", "number", "ratio"}:
            value = value.translate(NARROW).strip()
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
    name, found = str(first["loc"][0]), first["input"]
    at = {"name": name, "found": show(":".join(map(str, found)) if isinstance(found, tuple) else str(found))}
    if name not in PARAMETERS:
        return InvalidInput("{name} of the prompt is {found}: {problem}", problem=reason(first), **at)
    parameter = PARAMETERS[name]
    if parameter.kind == "ratio":
        return InvalidInput("--{name} is {found}, must be width:height, both 1..{high}", high=parameter.high, **at)
    if parameter.kind in {"whole", "number"}:
        return InvalidInput("--{name} is {found}, must be {low}..{high}", low=parameter.low, high=parameter.high, **at)
    return InvalidInput("--{name} is {found}: {problem}", problem=reason(first), **at)


def used(prompt: Prompt) -> list[str]:
    """What `prompt` asks for beyond plain words: "weights", then the parameters set, but not those set to "off"."""
    off = {"tile": False, "symmetry": False, "no": (), "palette": (), "chaos": 0, "stylize": 0}
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
    before = _fitting(text[start:index][::-1], width * 2 // 3)[::-1]
    cells = sum(map(_cells, before))
    after = _fitting(text[index : stop if stop >= 0 else index + 200], width - cells)
    return f"{before}{after}\n{' ' * cells}^"


def _weighted(prompt: Prompt) -> bool:
    return len(prompt.segments) > 1 or any(segment.weight != 1 for segment in prompt.segments)


def _written(text: str, reserved: str = "") -> str:
    """`text`, in quotes where it could be read as anything but itself."""
    risky = text != text.strip() or text[0] in ":：" or text[-1] in ":：" or any(c in text for c in '"' + reserved)
    risky = risky or re.search(f"[:：]{{2}}|(?:[-－]{{2}}|[—–―⸺][{DASHES}]*)[^\\W\\d_]", text) is not None
    return _quoted(text) if risky else text


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def _cells(glyph: str) -> int:
    return 0 if not glyph or unicodedata.category(glyph) in {"Mn", "Me", "Cf"} else 1 + wide(glyph)


def _fitting(text: str, width: int) -> str:
    """The first glyphs of `text` that fit into `width` cells."""
    glyphs = [glyph(c) for c in text]
    return "".join(g for g, used in zip(glyphs, accumulate(map(_cells, glyphs)), strict=True) if used <= width)
