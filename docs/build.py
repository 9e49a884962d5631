"""Writes the pages that come from the code (docs/cli.md, docs/settings.md); with --check, fails when they are stale."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

HERE = Path(__file__).parent


def commands(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """A command and all below it, with their full names."""
    yield path, command
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            assert below is not None
            yield from commands(below, f"{path} {name}")


def cli_page() -> str:
    """The help of every command."""
    from sojourn.cli.main import cli

    parts = ["# Command line\n\nMade from the commands' own help by `docs/build.py`.\n"]
    for path, command in commands(cli, "sojourn"):
        text = command.get_help(click.Context(command, info_name=path, terminal_width=100, max_content_width=100))
        parts.append(f"## {path}\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def fields(model: Any) -> str:
    """A table of a config's settings."""
    rows = ["| setting | default | meaning |", "|---|---|---|"]
    for name, field in model.model_fields.items():
        default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        about = " ".join((field.description or "").split()).replace("|", "\\|")
        rows.append(f"| `{name}` | {default if len(default) < 60 else ''} | {about} |")
    return "\n".join(rows)


def settings_page() -> str:
    """Settings of recipes, trainings and every family."""
    from sojourn import registry
    from sojourn.config import Recipe, Stage, TrainConfig

    parts = ["# Settings\n\nMade from the configs by `docs/build.py`.\n"]
    parts += [f"## {title}\n\n{fields(model)}\n" for title, model in (("Recipe", Recipe), ("Stage", Stage))]
    parts.append(f"## Training\n\n{fields(TrainConfig)}\n")
    for id in registry.ids("family"):
        entry = registry.get("family", id)
        cls: Any = entry.cls
        presets = ", ".join(f"`{name}`" for name in entry.presets)
        parts.append(f"## {id}\n\n{entry.about}. Source: {entry.source}. Presets: {presets}.\n\n{fields(cls.Config)}\n")
        parts.append(f"To draw:\n\n{fields(cls.Options)}\n" if cls.Options.model_fields else "")
    return "\n".join(parts)


def broken_links() -> list[str]:
    """Links between pages that lead nowhere."""
    out = []
    for page in [*HERE.rglob("*.md"), *HERE.parent.glob("*.md")]:
        targets = re.findall(r"\]\((?!\w+:)([^)#\s]+)", page.read_text(encoding="utf-8"))
        out += [f"{page.name}: {target}" for target in targets if not (page.parent / target).exists()]
    return out


def main() -> None:
    stale = []
    for name, text in (("cli.md", cli_page()), ("settings.md", settings_page())):
        path = HERE / name
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            stale.append(name)
    problems = [f"docs/{name} is stale; run python docs/build.py" for name in stale]
    problems += [f"broken link: {link}" for link in broken_links()]
    print("\n".join(problems) or "docs: up to date")
    sys.exit(1 if problems else 0)


if __name__ == "__main__":
    main()
