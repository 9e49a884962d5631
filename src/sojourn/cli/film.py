"""Verbs between pictures: walk (a film), mix (styles of two)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from sojourn import safefile
from sojourn.cli.draw import given_options, joined, parsed
from sojourn.cli.say import follow, say
from sojourn.errors import InvalidInput
from sojourn.grammar import RAW_MAX

if TYPE_CHECKING:
    from PIL import Image

    from sojourn.engine import Model
    from sojourn.schema import Event, Prompt


@click.command()
@click.argument("package")
@click.argument("words", nargs=-1)
@click.option("--seeds", default="0,1,2,3", help="Pictures to go to, by seed. Default: 0,1,2,3.")
@click.option("--frames", type=click.IntRange(2, 1000), default=24, help="Pictures from one to the next. Default: 24.")
@click.option("--loop", is_flag=True, help="End where it began.")
@click.option("--along", "option", metavar="OPTION=LOW..HIGH", help="Stay at the first seed and move this option.")
@click.option("--fps", type=click.FloatRange(1, 60), default=12.0, help="Pictures per second. Default: 12.")
@click.option("--scale", type=click.IntRange(1, 16), default=4, help="Size of a pixel. Default: 4.")
@click.option("-o", "--option", "more", multiple=True, metavar="NAME=VALUE", help="An option of the family.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("walk.webp"), help="A .webp, .gif or .mp4.")
def walk(
    package: str,
    words: tuple[str, ...],
    seeds: str,
    frames: int,
    loop: bool,
    option: str | None,
    fps: float,
    scale: int,
    more: tuple[str, ...],
    out: Path,
) -> None:
    """A film of the way from one picture to the next: `sojourn walk emoji a cat --seeds 1,2,3 --loop`."""
    from sojourn import film
    from sojourn.engine import load
    from sojourn.schema import Progress

    stops, options = listed(seeds), given_options(more)
    if not math.isfinite(fps):
        raise InvalidInput("--fps is {found}; write a number from 1 to 60", found=fps)
    film.check(out)
    model = load(package)
    prompt = told(model, words)
    if option is None:
        total = frames * (len(stops) - 1 + loop) + (not loop)
        pictures = film.between(model, prompt, stops, frames, loop, options=options)
    else:
        name, low, high = ranged(option)
        total, pictures = frames, film.along(model, prompt, stops[0], name, low, high, frames, options=options)

    frames_of: list[Image.Image] = []

    def gathered() -> Iterator[Event]:
        for picture in pictures:
            frames_of.append(picture)
            yield Progress(done=len(frames_of), total=total, unit="pictures")

    follow(gathered())
    film.write(frames_of, out, fps, scale)
    say("{count} pictures in {path}", count=len(frames_of), path=out)


def told(model: Model, words: tuple[str, ...]) -> Prompt:
    """The prompt of a verb that names its package and its seeds elsewhere. Raises InvalidInput, PromptError."""
    prompt = parsed(joined(words), allow_empty=not model.reads_words)
    for name, value in (("n", prompt.n), ("seed", prompt.seed), ("model", prompt.model)):
        if value is not None:
            raise InvalidInput("--{name} changes nothing here: `sojourn {verb} --help` has what does; leave it out",
                               name=name, verb=click.get_current_context().info_name)  # fmt: skip
    return prompt


def listed(text: str) -> list[int]:
    """Seeds in a list with commas. Raises InvalidInput."""
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = []
    if not found or not all(0 <= seed < 2**53 for seed in found):
        raise InvalidInput('"{text}" is no list of seeds; write 1,2,3', text=text[:RAW_MAX])
    return found


def ranged(text: str) -> tuple[str, float, float]:
    """An option and its range, NAME=LOW..HIGH. Raises InvalidInput."""
    name, _, span = text.partition("=")
    low, _, high = span.partition("..")
    try:
        found = float(low), float(high)
        if not all(map(math.isfinite, found)):
            raise ValueError
    except ValueError:
        raise InvalidInput('"{text}" is no option with its range; write move=-3..3', text=text[:RAW_MAX]) from None
    return name, *found


@click.command()
@click.argument("package")
@click.argument("words", nargs=-1)
@click.option("--rows", default="0,1,2", help="Seeds of the coarse styles. Default: 0,1,2.")
@click.option("--columns", default="3,4,5,6", help="Seeds of the fine styles. Default: 3,4,5,6.")
@click.option("--layer", type=click.IntRange(0, 64), default=4, help="Where the fine ones begin. Default: 4.")
@click.option("-o", "--option", "more", multiple=True, metavar="NAME=VALUE", help="An option of the family.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("mix.png"), help="The picture.")
def mix(
    package: str, words: tuple[str, ...], rows: str, columns: str, layer: int, more: tuple[str, ...], out: Path
) -> None:
    """A table of pictures with the coarse styles of one and the fine ones of another (stylegan2)."""
    from sojourn import film
    from sojourn.engine import load
    from sojourn.picture import png

    first, second, options = listed(rows), listed(columns), given_options(more)
    model = load(package)
    prompt = told(model, words)
    if out.suffix.lower() != ".png":
        raise InvalidInput('"{path}" is no .png, which is what is written', path=out)
    safefile.writable(out.parent)
    table: Image.Image = film.mixed(model, prompt, first, second, layer, options=options)
    with safefile.writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    safefile.write_bytes(out, png(table, None))
    say("{count} pictures in {path}", count=len(first) * len(second), path=out)
