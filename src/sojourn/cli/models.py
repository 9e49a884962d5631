"""Verbs that look: models, families, recipes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sojourn.cli.say import Commands, console, error_line, say
from sojourn.errors import named

if TYPE_CHECKING:
    from rich.table import Table


def _table(*heads: str) -> Table:
    from rich.table import Column, Table

    # Chinese has no spaces to wrap at: it is folded, where rich would cut it.
    return Table(*(Column(named(head), overflow="fold") for head in heads), box=None)


@click.group(cls=Commands)
def models() -> None:
    """List, show, verify, export and import packages."""


@models.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a package.")
def list_models(as_json: bool) -> None:
    """Packages in your home folder, and those that ship with Sojourn."""
    from sojourn.card import list_packages

    found = list_packages()
    if as_json:
        for name, path, card in found:
            print(json.dumps({**card.model_dump(mode="json"), "name": name, "path": str(path)}, ensure_ascii=False))
        return
    if not found:
        say("no packages yet; train one with `sojourn train digits`")
        return
    table = _table("name", "family", "what", "seen", "licence")
    for name, _, card in found:
        table.add_row(name, card.family, named(card.title), f"{card.seen:,}", card.licence)
    console().print(table)


@models.command()
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print the card as JSON.")
def show(name: str, as_json: bool) -> None:
    """A package's card."""
    from sojourn import card

    folder = card.find(name)
    found = card.read(folder)
    if as_json:
        print(found.model_dump_json(indent=1))
        return
    from rich.markdown import Markdown

    screen, text = console(), card.readme(found)
    if screen.is_terminal:
        screen.print(Markdown(text))
    else:
        print(text)
    print(folder)


@models.command()
@click.argument("names", nargs=-1)
def verify(names: tuple[str, ...]) -> None:
    """Check hashes, shapes and values; all packages when none is named."""
    from sojourn.package import list_packages
    from sojourn.package import verify as check

    bad = 0
    for name in names or tuple(name for name, _, _ in list_packages()):
        problems = check(name)
        for problem in problems:
            error_line(f"{name}: {problem.localised()}")
        bad += bool(problems)
        if not problems:
            say("{name}: whole", name=name)
    if bad:
        sys.exit(1)


@models.command()
@click.argument("name")
@click.argument("target", type=click.Path(path_type=Path))
def export(name: str, target: Path) -> None:
    """Write a package to one zip file."""
    from sojourn.package import export as write

    say("wrote {path}", path=write(name, target))


@models.command("import")
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--name", help="Name to keep it under. Default: its own.")
@click.option("--replace", is_flag=True, help="Replace a package of that name.")
def import_package(source: Path, name: str | None, replace: bool) -> None:
    """Take a package from a zip file, after checking it."""
    from sojourn.package import import_

    say("the package is at {path}", path=import_(source, name=name, replace=replace))


@click.command()
@click.argument("id", required=False)
def families(id: str | None) -> None:
    """The kinds of model; with an ID, its presets and settings."""
    from sojourn import registry

    if id is None:
        table = _table("family", "what", "presets")
        for key in registry.ids("family"):
            entry = registry.get("family", key)
            table.add_row(key, named(entry.about), ", ".join(entry.presets))
        console().print(table)
        return
    entry = registry.get("family", id)
    print(f"{id}: {named(entry.about)}\n{entry.source}\n")
    for title, model in (("model", entry.cls.Config), ("options", entry.cls.Options)):  # type: ignore[attr-defined]
        table = _table(title, "default", "meaning")
        for name, field in model.model_fields.items():
            table.add_row(name, "" if field.is_required() else str(field.default), field.description or "")
        console().print(table)


@click.command()
@click.argument("name", required=False)
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting; may be repeated.")
def recipes(name: str | None, overrides: tuple[str, ...]) -> None:
    """The trainings that ship with Sojourn; with a NAME, all its resolved settings as JSON."""
    from sojourn.config import load_recipe
    from sojourn.config import recipes as shipped

    if name is not None:
        print(json.dumps(load_recipe(name, overrides).dump(), indent=1, ensure_ascii=False))
        return
    table = _table("recipe", "what", "stages")
    for key in shipped():
        recipe = load_recipe(key)
        table.add_row(key, named(recipe.title), ", ".join(f"{stage.family}/{stage.preset}" for stage in recipe.stage))
    console().print(table)
