"""The verb that trains."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

import click

from sojourn.cli.say import follow, say
from sojourn.errors import InvalidInput

if TYPE_CHECKING:
    from sojourn.schema import Event


@click.command()
@click.argument("recipe")
@click.option("-o", "overrides", multiple=True, metavar="KEY=VALUE", help="A setting of the recipe; may be repeated.")
@click.option("--from", "start", type=click.Path(path_type=Path), help="A package whose weights to start from.")
@click.option(
    "--run", "folder", type=click.Path(path_type=Path), help="Folder of the run. Default: by the recipe's name."
)
@click.option("--to", "name", help="Name under which the package is kept. Default: the recipe's.")
@click.option("--replace", is_flag=True, help="Take the place of another package of that name.")
@click.option("--json", "as_json", is_flag=True, help="Print events as JSON lines.")
def train(
    recipe: str,
    overrides: tuple[str, ...],
    start: Path | None,
    folder: Path | None,
    name: str | None,
    replace: bool,
    as_json: bool,
) -> None:
    """Train a recipe (a name from `sojourn recipes`, or a .toml file).

    `sojourn train vae -o data=cats -o seen=100000`. Ctrl-C saves and stops; the same command again goes on.
    """
    from sojourn import config

    resolved = config.load_recipe(recipe, overrides)
    name = name or resolved.name
    place = folder or config.cache() / "runs" / name
    from sojourn.card import check_name, home
    from sojourn.package import keep
    from sojourn.train.build import run_recipe

    check_name(name)
    target = home() / "models" / name
    if not replace:
        _check_free(target, place / resolved.stage[-1].name / "package")
    stopper = Stopper(run_recipe(resolved, place, start))
    last = follow(iter(stopper), as_json)
    if stopper.stopped:
        say("stopped and saved; the same command goes on from here")
        sys.exit(130)
    assert last is not None
    keep(Path(getattr(last, "path", "")), target)
    say('package "{name}" is at {path}', name=name, path=target)


def _check_free(target: Path, made: Path) -> None:
    """Raise InvalidInput where `target` is another package than the one that the run has `made`, if it has."""
    from sojourn.card import read

    if not target.exists() or ((made / "card.json").is_file() and read(made).identity == read(target).identity):
        return
    raise InvalidInput(
        'there is a package "{name}" already; take another name with --to, or its place with --replace',
        name=target.name,
    )


class Stopper:
    """Events until Ctrl-C or SIGTERM; then the training is closed between two updates, which saves it."""

    def __init__(self, events: Iterator[Event]) -> None:
        self.events, self.stopped = events, False

    def __iter__(self) -> Iterator[Event]:
        def stop(number: int, frame: FrameType | None) -> None:
            self.stopped = True

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            for event in self.events:
                yield event
                if self.stopped:
                    self.events.close()  # type: ignore[attr-defined]
                    return
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
