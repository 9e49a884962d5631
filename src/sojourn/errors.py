"""What can go wrong, and how it is said: one line with what, found what, do what. Knows nothing above it.

    SojournError
    ├── InvalidInput            a value from outside is wrong (CLI exit 2, HTTP 400)
    │   ├── PromptError         … in a prompt; carries the column
    │   ├── ConfigError         … in a recipe, a preset or an override
    │   └── DataError           … in a data set or a file to prepare
    ├── NotFound                no such package, recipe, family, file
    ├── PackageError            a package is broken, tampered with or from a newer version
    ├── Unsupported             this family or package cannot do what was asked
    ├── TrainingFailed          a training stopped for good (diverged, no room)
    ├── StoreError              the studio's database is damaged, newer or away
    └── OutOfRoom               disk or memory is not enough

A message is an English template plus fields, so that the same error can be shown in another language:
`InvalidInput("label {label} is outside 0..{high}", label=12, high=9)`.
"""

from __future__ import annotations

import json
import os
from functools import cache
from importlib import resources


class SojournError(Exception):
    """Base of every error Sojourn raises on purpose; `template` and `fields` make the message."""

    def __init__(self, template: str, /, **fields: object) -> None:
        self.template = template
        self.fields = fields
        super().__init__(template.format(**fields) if fields else template)

    def localised(self, language: str | None = None) -> str:
        """The message in `language` ("en" or "zh"; None = the user's), English where no translation exists."""
        template = translate(self.template, language)
        said = {k: v.localised(language) if isinstance(v, SojournError) else v for k, v in self.fields.items()}
        return template.format(**said) if said else template

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.template, self.fields)


def _rebuild(cls: type[SojournError], template: str, fields: dict[str, object]) -> SojournError:
    return cls(template, **fields)


class InvalidInput(SojournError, ValueError):
    """A value from outside is wrong."""


class PromptError(InvalidInput):
    """A prompt does not parse; `column` counts characters from 1."""

    @property
    def column(self) -> int:
        return int(str(self.fields.get("column", 1)))


class ConfigError(InvalidInput):
    """A recipe, preset or override is wrong."""


class DataError(InvalidInput):
    """A data set, or a file to make one from, is wrong."""


class NotFound(SojournError, LookupError):
    """Something asked for by name does not exist."""


class PackageError(SojournError):
    """A package is broken, tampered with, or from a newer version."""


class Unsupported(SojournError):
    """A family or package cannot do what was asked."""


class TrainingFailed(SojournError):
    """A training stopped for good."""


class StoreError(SojournError):
    """The studio's database cannot be used."""


class Forbidden(SojournError):
    """A server does not let us in, or not do this."""


class OutOfRoom(SojournError):
    """Disk or memory is not enough."""


class Reason(SojournError):
    """Why a value is wrong: never raised, a field of an error that says whose value it is."""


def language() -> str:
    """The user's language, "zh" or "en": SOJOURN_LANG first, then the locale variables."""
    for name in ("SOJOURN_LANG", "LC_ALL", "LC_MESSAGES", "LANG"):
        value = os.environ.get(name, "")
        if value:
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


def translate(template: str, lang: str | None = None) -> str:
    """`template` in `lang` (None = the user's), itself where there is no translation."""
    if (lang or language()) != "zh":
        return template
    return catalogue("zh").get(template, template)


def named(text: str, lang: str | None = None) -> str:
    """A title, or what is said of a family, a recipe or a parameter of ours, in `lang` (None = the user's); any other
    text as it is."""
    return catalogue("names.zh").get(" ".join(text.split()), text) if (lang or language()) == "zh" else text


def known(template: str) -> bool:
    """Whether it is a message of ours."""
    return template in catalogue("zh")


@cache
def catalogue(name: str) -> dict[str, str]:
    """A table English -> Chinese: "zh" (messages), "page.zh", "help.zh", "names.zh"."""
    text = resources.files("sojourn").joinpath(f"locale/{name}.json").read_text(encoding="utf-8")
    return dict(json.loads(text))
