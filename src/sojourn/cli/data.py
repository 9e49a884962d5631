"""Verbs that make training sets: prepare, starter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from sojourn.cli.say import follow, say


@click.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.option("--to", "target", required=True, help="Name of the set, or a folder for it.")
@click.option("--size", type=click.IntRange(8, 1024), default=64, help="Side of the pictures in pixels. Default: 64.")
@click.option(
    "--channels", type=click.Choice(["auto", "1", "3", "4"]), default="auto", help="Grey, colour, or with alpha."
)
@click.option("--fit", type=click.Choice(["crop", "pad"]), default="crop", help="How other shapes are fitted.")
@click.option("--min-side", type=click.IntRange(1, 4096), help="Pixels of the shorter side at least. Default: 16.")
@click.option("--licence", default="unknown", help="Licence of items that do not say their own.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def prepare(
    source: Path, target: str, as_json: bool, channels: str, min_side: int | None, size: int, **options: Any
) -> None:
    """Make a set from SOURCE: a folder of pictures or texts, a zip, or a table (metadata.jsonl or .csv)."""
    from sojourn.config import set_folder
    from sojourn.data.prepare import prepare as make

    folder = set_folder(target)
    wanted = None if channels == "auto" else int(channels)
    smallest = min_side or min(16, size)
    settings = {"name": folder.name, "channels": wanted, "size": size, "min_side": smallest, **options}
    follow(make(source, folder, **settings), as_json)
    say("the set is at {path}; its report is {report}", path=folder, report=folder / "report.html")


@click.command()
@click.argument("name", required=False)
@click.option("--to", "target", help="Name of the set, or a folder for it. Default: the starter's name.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def starter(name: str | None, target: str | None, as_json: bool) -> None:
    """Build a starter set; without a name, list them."""
    from sojourn.config import set_folder
    from sojourn.data.starter import STARTERS, build

    if name is None:
        for key in STARTERS:
            print(key)
        return
    folder = set_folder(target or name)
    follow(build(name, folder), as_json)
    say("the set is at {path}", path=folder)
