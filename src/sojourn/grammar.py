"""How prompts are read, one character after the other. Knows nothing of how they are written, checked or shown.

    prompt    = [part {part}] {parameter}           words first, parameters last
    part      = words ["::" [weight]]               `red heart::2 blue::-0.5`; `::` ends a part
    parameter = "--" name [value]                   `--n 4`, `--no cat, dog`, `--style "flat color"`, `--tile`

Words are kept to the code point, but for the space around a part. A part, a thing in `--no` or a value that stands
wholly in straight quotes is taken out of them, with `\\"` and `\\\\` for quote and backslash: so any text can be said.
Quotes within words are text, and what they enclose is not read as grammar: `a sign "--n 4"`.
Full-width forms (`：：` `－－` `４` `，`) and the dashes that phones make of `--` are read as what they stand for.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

from sojourn.errors import PromptError
from sojourn.schema import PARTS_MAX, REFUSED, WORDS_MAX, Prompt, Segment, visible

RAW_MAX = 10_000
"""Characters of a prompt as written: more than the longest valid `Prompt` formats to."""
Kind = Literal["whole", "number", "text", "ratio", "list", "flag"]
_KINDS: Mapping[str, Kind] = {
    "n": "whole", "seed": "whole", "steps": "whole", "guidance": "number", "no": "list", "style": "text", "ar": "ratio",
    "palette": "list", "symmetry": "flag", "place": "text", "judge": "text",
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

_NAMES = sorted([*PARAMETERS, *ALIASES], key=len, reverse=True)
COMMAS = ",，、"
_EQUALS = "=＝"
_HYPHENS = "-－"
DASHES = _HYPHENS + "—–―⸺"
NARROW = {code: code - 0xFEE0 for code in range(0xFF01, 0xFF5F)} | dict.fromkeys(map(ord, "—–―−"), ord("-"))
_RUN = re.compile(f"[{DASHES}]+")
_STOP = re.compile(f'(?<!\\\\)"|[:：]{{2}}|[{COMMAS}]|[{DASHES}]+')
_NAME = re.compile(r"\w+(?:-\w+)*")
_QUOTED = re.compile(r'"((?:[^"\\]|\\["\\]|\\(?!["\\]))*+)"')
_NUMBER = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_RATIO = re.compile(r"([0-9]{1,9})[:∶]([0-9]{1,9})")
_TOKEN = re.compile(r"\S*")
_VALUES = {"flag": re.compile(""), "text": re.compile(r"\s+\S"), "list": re.compile(r"\s+\S")}
_FIGURE = re.compile(r"\s+[+\-－]?[.0-9０-９]")
_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


class Reader:
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
            raise too_long(count)
        return Prompt(segments=segments, **values)

    def _segments(self) -> tuple[Segment, ...]:
        found: list[Segment] = []
        pushed = 0  # column of the first weight that is not positive
        more = True
        while more:
            self._skip()
            start = self.at
            words = self._stretch(":")
            stop = self.at
            more = self._next(":：")
            if more and not words:
                raise PromptError("column {column}: no words before ::", column=start + 1)
            if words:
                self._check(words, start, len(found))
                found.append(Segment(text=words, weight=self._weight() if more else 1))
                pushed = pushed or (stop + 1 if found[-1].weight <= 0 else 0)
        total = math.fsum(segment.weight for segment in found)
        if found and total <= 0:
            at = {"column": pushed, "found": figure(total)}
            raise PromptError("column {column}: the weights add up to {found}, must be more than 0", **at)
        return tuple(found)

    def _weight(self) -> float:
        """The number directly after `::`, 1 where there is none."""
        self.at += 2
        token = re.split("[，、]", self._token())[0].rstrip(",")
        plain = token.translate(NARROW)
        if not plain.startswith(tuple("+-.:0123456789")) and plain.casefold() not in {"nan", "inf", "infinity"}:
            return 1.0
        at = {"column": self.at + 1, "found": show(token), "low": -10, "high": 10}
        if not _NUMBER.fullmatch(plain):
            raise PromptError("column {column}: the weight is {found}, must be {low}..{high} and then a space", **at)
        if not -10 <= float(plain) <= 10:
            raise PromptError("column {column}: the weight is {found}, must be {low}..{high}", **at)
        self.at += len(token)
        self._skip_comma()
        return float(plain) + 0.0

    def _parameters(self, after_words: bool) -> dict[str, Any]:
        values: dict[str, Any] = {}
        begin = self.at
        while self.at < len(self.text):
            start = self.at
            at = {"column": start + 1, "name": next(reversed(values), "")}
            if not (marker := self._marker(start)):
                if not after_words:
                    at = {"column": begin + 1, "name": next(iter(values))}
                    raise PromptError("column {column}: --{name} is before the words; put the words first", **at)
                at["found"] = show(self.text[start:].split()[0])
                raise PromptError("column {column}: {found} after --{name}; put words first, or quote the value", **at)
            name, self.at = marker
            at["name"] = name
            if name in values:
                raise PromptError("column {column}: --{name} is given twice", **at)
            values[name] = self._argument(PARAMETERS[name], start)
            self._skip_comma()
            self._skip()
        return values

    def _argument(self, parameter: Parameter, start: int) -> Any:
        """The value of the parameter whose dashes are at `start` and whose name has been read."""
        at = {"name": parameter.name, "column": self.at + 1, "low": parameter.low, "high": parameter.high}
        if parameter.kind == "flag":
            if self._next(_EQUALS):
                raise PromptError("column {column}: --{name} takes no value", **at)
            return True
        if self._next(_EQUALS):
            self.at += 1
        elif self.at < len(self.text) and not self.text[self.at].isspace():
            raise PromptError("column {column}: put a space after --{name}", **at)
        self._skip()
        begin = self.at
        quoted = _QUOTED.match(self.text, begin)
        if parameter.kind == "list":
            value: Any = self._things()
        elif quoted:
            self.at, value = quoted.end(), _unquoted(quoted[1])
        elif self._next('"'):
            raise PromptError('column {column}: this " is not closed', column=begin + 1)
        else:
            value = self._token().rstrip(COMMAS)
            self.at += len(value)
        at["column"] = begin + 1 if value or quoted else start + 1
        if not value and parameter.kind in {"whole", "number"}:
            raise PromptError("column {column}: --{name} needs a value, {low}..{high}", **at)
        if not value:
            raise PromptError("column {column}: --{name} needs a value", **at)
        if parameter.kind == "list":
            if len(value) > parameter.high:
                raise PromptError("column {column}: --{name} has more than {high} things", **at)
            return value
        at["found"] = show(value)
        if parameter.kind != "text":
            return _number(parameter.kind, value.translate(NARROW), at)
        self._check(value, begin, 0)
        if len(value) > parameter.high:
            raise PromptError("column {column}: --{name} has more than {high} characters", **at)
        return value

    def _things(self) -> tuple[str, ...]:
        """The list after `--no`, up to the next parameter."""
        found: list[str] = []
        while True:
            self._skip()
            start = self.at
            if thing := self._stretch(","):
                self._check(thing, start, len(found))
                found.append(thing)
            if not self._next(COMMAS):
                return tuple(found)
            self.at += 1

    def _stretch(self, separator: Literal[":", ","]) -> str:
        """Words up to the separator (`::`, a comma), a parameter or the end; out of their quotes if all are in them."""
        text, start = self.text, self.at
        if whole := _QUOTED.match(text, start):
            self.at = whole.end()
            self._skip()
            if whole[1] and (self.at == len(text) or self._ends(separator)):
                return _unquoted(whole[1])
        at = start
        while stop := _STOP.search(text, at):
            self.at, at = stop.span()
            if stop[0] == '"':
                inner = _QUOTED.match(text, self.at)
                at = inner.end() if inner and self._encloses(inner) else at
            elif self._ends(separator):
                return text[start : self.at].rstrip()
        self.at = len(text)
        return text[start:].rstrip()

    def _ends(self, separator: Literal[":", ","]) -> bool:
        """Whether the words end at `at`, which is before the end."""
        if self._next(COMMAS):
            return separator == ","
        if re.match("[:：]{2}", self.text[self.at : self.at + 2]):
            if separator == ",":
                raise PromptError("column {column}: a weight (::) belongs to the words, not here", column=self.at + 1)
            return True
        return self._marker(self.at) is not None

    def _encloses(self, quoted: re.Match[str]) -> bool:
        """Whether these are quotes around words, and not an inch mark and whatever comes next."""
        inner = quoted[1]
        before, after = self.text[: quoted.start()][-1:], self.text[quoted.end() :][:1]
        return bool(inner) and inner == inner.strip() and not (_spelled(before) or _spelled(after))

    def _token(self) -> str:
        """What runs from `at` to a space, a parameter or the end."""
        match = _TOKEN.match(self.text, self.at)
        end = match.end() if match else self.at
        for run in _RUN.finditer(self.text, self.at, end):
            if self._marker(run.start()):
                end = run.start()
                break
        return self.text[self.at : end]

    def _marker(self, at: int) -> tuple[str, int] | None:
        """(name, end of the name) of the parameter that begins at `at`, None where the dashes there are text.

        Two hyphens and a letter after a space are a parameter, or an error. Other dashes, and what is joined to the
        word before, may be prose: they count when a known name follows, after Chinese also a fitting value.
        """
        run = _RUN.match(self.text, at)
        match = _NAME.match(self.text, run.end()) if run and self.text[run.end() : run.end() + 1].isalpha() else None
        if not run or not match or run[0] in tuple(_HYPHENS):
            return None
        hyphens = run[0].strip(_HYPHENS) == ""
        before = self.text[at - 1 : at].strip() if at else ""
        word = match[0].translate(NARROW).casefold()
        name = ALIASES.get(word, word)
        if _spelled(before):
            if hyphens and name in PARAMETERS:
                raise PromptError("column {column}: put a space before --{name}", column=at + 1, name=word)
            return None
        if name in PARAMETERS:
            fits = _VALUES.get(PARAMETERS[name].kind, _FIGURE).match(self.text, match.end())
            prose = before and not hyphens and not (fits and wide(before))
            return None if prose else (name, match.end())
        if before and not hyphens:
            return None
        known = next((k for k in _NAMES if word.startswith(k) and not re.match("[a-z_-]", word[len(k) :])), "")
        if known and (hyphens or word[len(known)].isdigit()):
            column = match.start() + len(known) + 1
            raise PromptError("column {column}: put a space after --{name}", column=column, name=known)
        close = _KIN.get(word, "") if hyphens else ""
        close = close or closest(word, 0.6 if hyphens and not before else 0.75)
        fields = {"column": at + 1, "name": show(word), "close": close, "known": ", ".join(PARAMETERS)}
        if close:
            raise PromptError("column {column}: unknown parameter --{name}, did you mean --{close}?", **fields)
        if hyphens and not before:
            raise PromptError("column {column}: unknown parameter --{name}; known: {known}", **fields)
        return None

    def _check(self, words: str, start: int, others: int) -> None:
        if others == PARTS_MAX:
            raise PromptError("column {column}: more than {limit} parts", column=start + 1, limit=PARTS_MAX)
        if not visible(words):
            raise PromptError("column {column}: no visible character here; write a word", column=start + 1)

    def _next(self, characters: str) -> bool:
        return self.at < len(self.text) and self.text[self.at] in characters

    def _skip(self) -> None:
        while self.at < len(self.text) and self.text[self.at].isspace():
            self.at += 1

    def _skip_comma(self) -> None:
        self.at += self._next(COMMAS)


def _number(kind: Kind, plain: str, at: dict[str, Any]) -> Any:
    """`plain` as a number or a ratio; `at` holds the range, and the fields of an error."""
    low, high = at["low"], at["high"]
    if kind == "ratio":
        sides = _RATIO.fullmatch(plain)
        if not sides or not all(low <= int(side) <= high for side in sides.groups()):
            raise PromptError("column {column}: --{name} is {found}, must be width:height, both 1..{high}", **at)
        return int(sides[1]), int(sides[2])
    number = float(plain) if _NUMBER.fullmatch(plain) else math.nan
    if kind == "number":
        if math.isnan(number):
            raise PromptError("column {column}: --{name} is {found}, must be a number {low}..{high}", **at)
    elif math.isnan(number) or (low <= number <= high and not number.is_integer()):
        raise PromptError("column {column}: --{name} is {found}, must be a whole number {low}..{high}", **at)
    if not low <= number <= high:
        raise PromptError("column {column}: --{name} is {found}, must be {low}..{high}", **at)
    return int(number) if kind == "whole" else number + 0.0


def too_long(count: int) -> PromptError:
    at = {"column": WORDS_MAX + 1, "found": count, "limit": WORDS_MAX}
    return PromptError("column {column}: the prompt has {found} characters, at most {limit} are allowed", **at)


def _unquoted(inner: str) -> str:
    return re.sub(r'\\(["\\])', r"\1", inner)


def figure(value: float) -> str:
    """The shortest text of a number: 7, not 7.0."""
    return str(int(value)) if float(value).is_integer() else repr(value)


@lru_cache(maxsize=256)
def closest(word: str, cutoff: float) -> str:
    """The known parameter most like `word`, or "". A high cutoff, for what may be prose, wants the same initial."""
    from difflib import get_close_matches

    names = [name for name in PARAMETERS if cutoff < 0.7 or name[0] == word[0]]
    return next(iter(get_close_matches(word[:24], names, 1, cutoff)), "")


def _spelled(c: str) -> bool:
    """Whether `c` belongs to a word of a script that puts spaces between words."""
    return c.isalnum() and not wide(c)


def wide(c: str) -> bool:
    return unicodedata.east_asian_width(c) in "WF"


def glyph(c: str) -> str:
    """`c` as a terminal may show it."""
    if REFUSED.match(c):
        return chr(0x2400 + ord(c)) if c < " " else "\ufffd"
    return "" if c in _BIDI else " " if c.isspace() and not wide(c) else c


def show(found: str) -> str:
    """A piece of a prompt for a message: short, on one line."""
    text = "".join(map(glyph, found[:33]))
    return text if len(found) <= 32 else text[:32] + "…"
