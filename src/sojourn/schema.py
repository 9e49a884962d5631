"""What is written down and sent: cards, prompts, events. JSON in and out; no torch, no files."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PrivateAttr, model_validator

from sojourn.errors import InvalidInput, Reason, SojournError, translate

FORMAT = 1
"""Version of the package folder; `package.migrate` lifts older ones."""


class Strict(BaseModel):
    """Unknown keys are errors; docstrings under fields are their descriptions."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=False)


def reason(found: Mapping[str, Any]) -> Reason | str:
    """Why a value is wrong, from one of pydantic's findings, in words that there are in each language."""
    given = found.get("ctx", {})
    about = {name: int(v) if isinstance(v, float) and v.is_integer() else v for name, v in given.items()}
    match found["type"]:
        case "int_parsing" | "int_type" | "int_from_float":
            return Reason("must be a whole number")
        case "float_parsing" | "float_type" | "finite_number":
            return Reason("must be a number")
        case "bool_parsing" | "bool_type":
            return Reason("must be true or false")
        case "string_type":
            return Reason("must be text")
        case "tuple_type" | "list_type":
            return Reason("must be a list, as [1, 2]")
        case "greater_than":
            return Reason("must be more than {gt}", gt=about["gt"])
        case "greater_than_equal":
            return Reason("must be {ge} or more", ge=about["ge"])
        case "less_than":
            return Reason("must be less than {lt}", lt=about["lt"])
        case "less_than_equal":
            return Reason("must be {le} or less", le=about["le"])
        case "multiple_of":
            return Reason("must be a multiple of {multiple_of}", multiple_of=about["multiple_of"])
        case "literal_error":
            return Reason("must be {expected}", expected=str(about["expected"]).replace(" or ", ", "))
    return str(found["msg"])


WORDS_MAX = 2000
"""Characters (code points) of all words of a prompt, those of `no` included."""
PARTS_MAX = 32
"""Segments of a prompt, and things in `no`: each may cost a run of the net."""
REFUSED = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ud800-\udfff]")
"""Control characters but tab and line ends, and lone surrogates. Joiners and direction marks are text."""


def visible(text: str) -> bool:
    """True when `text` shows something: not only spaces, joiners, direction marks, combining marks."""
    return any(unicodedata.category(c) not in {"Cc", "Cf", "Mn", "Me", "Zs", "Zl", "Zp"} for c in text)


def _words(text: str) -> str:
    if found := REFUSED.search(text):
        raise InvalidInput(
            "text holds U+{code}, which is no character of a text; remove it", code=f"{ord(found[0]):04X}"
        )
    if not visible(text):
        raise InvalidInput("text shows nothing; write a word")
    return text


Words = Annotated[str, AfterValidator(_words)]


class Segment(Strict):
    """A part of a prompt with its weight: `red heart::2`."""

    text: Words
    weight: float = Field(1.0, ge=-10, le=10, allow_inf_nan=False)
    """Share in the guidance, -10..10; negative pushes away. 1 = plain."""


class Prompt(Strict):
    """What was asked for, as data. `prompt.parse` and `prompt.format` turn it from and to text."""

    segments: tuple[Segment, ...] = Field((), max_length=PARTS_MAX)
    """The words; the sum of their weights is positive. Empty = unconditional."""
    n: int | None = Field(None, ge=1, le=64)
    """Pictures per prompt, 1..64. None = the caller's default."""
    seed: int | None = Field(None, ge=0, le=2**53 - 1)
    """Seed of the first picture; picture i uses seed + i. None = drawn at random."""
    steps: int | None = Field(None, ge=1, le=1000)
    """Steps of the walk, 1..1000. None = the package's default."""
    guidance: float | None = Field(None, ge=0, le=100)
    """How hard the prompt pulls, 0..100. 1 = the plain conditional model; None = the package's default."""
    no: tuple[Words, ...] = Field((), max_length=PARTS_MAX)
    """What to keep out."""
    style: Words | None = Field(None, max_length=100)
    """Name of a style the package knows. None = the package chooses by seed."""
    ar: tuple[Annotated[int, Field(ge=1, le=10_000)], Annotated[int, Field(ge=1, le=10_000)]] | None = None
    """Aspect ratio, width:height, both 1..10000. None = the package's own."""
    chaos: float | None = Field(None, ge=0, le=100)
    """How much the pictures of one prompt differ, 0..100. 0 = off."""
    stylize: float | None = Field(None, ge=0, le=1000)
    """How strongly the package's taste is applied, 0..1000. 0 = off."""
    iw: float | None = Field(None, ge=0, le=3)
    """Weight of a picture in the prompt, 0..3."""
    sref: Words | None = Field(None, max_length=1000)
    """A picture whose style to follow: a path or an id."""
    palette: tuple[Words, ...] = Field((), max_length=8)
    """Colours to draw in, by name or as #rrggbb, 1..8; white is always one. Empty = any."""
    symmetry: bool = False
    """Make the left half mirror the right one."""
    place: Words | None = Field(None, max_length=20)
    """Where what is drawn should lie: left, right, top, bottom or centre."""
    judge: Words | None = Field(None, max_length=1000)
    """A package that classifies pictures or compares them with words, to hold the result against the prompt."""
    tile: bool = False
    """Make a picture that repeats without seams."""
    model: Words | None = Field(None, max_length=100)
    """Package to draw from. None = the default."""

    @model_validator(mode="after")
    def _whole(self) -> Prompt:
        if self.segments and math.fsum(segment.weight for segment in self.segments) <= 0:
            raise InvalidInput("the weights add up to 0 or less; their sum must be positive")
        count = sum(len(segment.text) for segment in self.segments) + sum(map(len, self.no))
        if count > WORDS_MAX:
            raise InvalidInput("the prompt has {found} characters, at most {limit}", found=count, limit=WORDS_MAX)
        return self

    @property
    def text(self) -> str:
        """The words alone, without weights and parameters."""
        return " ".join(segment.text for segment in self.segments)

    @classmethod
    def plain(cls, text: str, style: str | None = None) -> Prompt:
        """A prompt of one segment, for training rows and labels (no validation: it is built per row)."""
        segments = (Segment.model_construct(text=text, weight=1.0),) if text else ()
        return cls.model_construct(segments=segments, style=style)


class Part(Strict):
    """A reference to something a package is built of: an id from the registry and its settings."""

    id: str
    config: dict[str, Any] = Field(default_factory=dict)


class Metric(Strict):
    """One measured number, with what it was measured on."""

    name: str
    value: float
    seen: int | None = None
    """Training samples when it was measured. None = on the finished package."""
    low: float | None = None
    high: float | None = None
    note: str = ""


class Source(Strict):
    """Where data came from, and under what terms."""

    name: str
    licence: str
    count: int = 0
    attribution: str = ""
    url: str = ""


class Card(Strict):
    """Everything about a package that is not a tensor. Identity covers family, codec, conditioner, files, parts."""

    format: int = FORMAT
    name: str
    family: str
    config: dict[str, Any]
    """The family's resolved config."""
    codec: Part
    conditioner: Part
    options: dict[str, Any] = Field(default_factory=dict)
    """Default sampling options, over the family's own."""
    can: tuple[str, ...] = ()
    parts: dict[str, str] = Field(default_factory=dict)
    """Nested packages: name -> their identity."""
    files: dict[str, str] = Field(default_factory=dict)
    """File name -> sha256, for every file that is part of the identity."""
    identity: str = ""
    """sha256 over family, config, codec, conditioner, options, parts and files."""
    title: str = ""
    about: str = ""
    licence: str = ""
    sources: list[Source] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    """The resolved stage it was trained with."""
    seen: int = 0
    train_s: float = 0
    """Seconds of training, all attempts together."""
    machine: str = ""
    metrics: list[Metric] = Field(default_factory=list)
    failures: list[str] = Field(default_factory=list)
    """Known failures, in words."""
    parent: str = ""
    """Identity of the package it was trained from."""
    created: str = ""


# Events: what `train`, `prepare` and `run` yield.


class Event(Strict):
    kind: Literal["progress", "metric", "preview", "artifact", "log", "done"]


class Progress(Event):
    kind: Literal["progress"] = "progress"
    done: int
    total: int
    unit: str = "samples"
    rate: float = 0
    """Units a second."""
    eta_s: float | None = None
    text: str = ""


class Measured(Event):
    kind: Literal["metric"] = "metric"
    seen: int
    values: dict[str, float]


class Preview(Event):
    kind: Literal["preview"] = "preview"
    seen: int
    path: str
    """A picture (or text file) of samples, on disk."""


class Artifact(Event):
    kind: Literal["artifact"] = "artifact"
    name: str
    path: str


class Log(Event):
    kind: Literal["log"] = "log"
    level: Literal["info", "warning"] = "info"
    text: str
    _said: tuple[str, dict[str, Any]] | None = PrivateAttr(None)

    @classmethod
    def say(cls, template: str, /, **fields: object) -> Log:
        """A line whose template has a translation. An error among the fields is said in its words."""
        return cls._line("info", template, fields)

    @classmethod
    def warn(cls, template: str, /, **fields: object) -> Log:
        """A warning, else as `say`."""
        return cls._line("warning", template, fields)

    @classmethod
    def _line(cls, level: Literal["info", "warning"], template: str, fields: dict[str, Any]) -> Log:
        line = cls(level=level, text=template.format(**fields))
        line._said = (template, fields)
        return line

    def localised(self, lang: str | None = None) -> str:
        """The line in `lang` (None = the user's), as it is where it came from another process."""
        if self._said is None:
            return self.text
        template, fields = self._said
        words = {k: v.localised(lang) if isinstance(v, SojournError) else v for k, v in fields.items()}
        return translate(template, lang).format(**words)


class Done(Event):
    kind: Literal["done"] = "done"
    path: str = ""
    text: str = ""
