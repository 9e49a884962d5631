"""Names to classes: families, codecs, conditioners. Knows nothing of what they do.

A module registers at import; built-in modules are found by listing the folders, plug-ins by the entry point
group `sojourn.families`. Nothing is imported before the first `get` or `ids`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal, TypeVar

from sojourn.errors import ConfigError, NotFound

Table = Literal["family", "codec", "conditioner"]
T = TypeVar("T", bound=type)


@dataclass(frozen=True)
class Entry:
    """One registered name."""

    id: str
    cls: type
    presets: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """Size -> config values; every family has "tiny"."""
    about: str = ""
    source: str = ""
    """Paper and sections."""


_TABLES: dict[Table, dict[str, Entry]] = {"family": {}, "codec": {}, "conditioner": {}}


def register(
    table: Table,
    id: str,
    *,
    presets: Mapping[str, Mapping[str, Any]] | None = None,
    about: str = "",
    source: str = "",
) -> Callable[[T], T]:
    """Class decorator that enters a class under `id`; a class may be entered under several."""

    def enter(cls: T) -> T:
        if id in _TABLES[table]:
            raise ConfigError('{table} "{id}" is registered twice; rename one', table=table, id=id)
        if table == "family" and "tiny" not in (presets or {}):
            raise ConfigError('family "{id}" has no preset "tiny"; add one', id=id)
        _TABLES[table][id] = Entry(id, cls, dict(presets or {}), about, source)
        return cls

    return enter


def get(table: Table, id: str) -> Entry:
    """The entry of `id`; NotFound names the known ones."""
    _discover()
    try:
        return _TABLES[table][id]
    except KeyError:
        known = ", ".join(sorted(_TABLES[table]))
        raise NotFound('no {table} "{id}"; known: {known}', table=table, id=id, known=known) from None


def ids(table: Table) -> list[str]:
    """All registered ids, sorted."""
    _discover()
    return sorted(_TABLES[table])


def preset(id: str, size: str) -> dict[str, Any]:
    """Config values of the preset `size` of family `id`."""
    presets = get("family", id).presets
    if size not in presets:
        known = ", ".join(presets)
        raise NotFound('family "{id}" has no preset "{size}"; known: {known}', id=id, size=size, known=known)
    return dict(presets[size])


@cache
def _discover() -> None:
    for package in ("sojourn.codecs", "sojourn.families"):
        for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
            importlib.import_module(f"{package}.{module.name}")
    importlib.import_module("sojourn.conditioners")
    for point in entry_points(group="sojourn.families"):
        point.load()
