"""The verb that finds pictures."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from sojourn.cli.draw import joined
from sojourn.cli.say import blocks, console, follow, say
from sojourn.errors import InvalidInput, NotFound


@click.command()
@click.argument("words", nargs=-1)
@click.option("--in", "source", required=True, help="A set, by name or folder, or a folder of pictures.")
@click.option("--like", type=click.Path(path_type=Path), help="A picture to find the like of, in place of words.")
@click.option("--style", help="A style the package knows.")
@click.option("--model", default="contrastive", help='A contrastive package. Default: the one named "contrastive".')
@click.option("-n", "count", type=click.IntRange(1, 1000), default=12, help="How many. Default: 12.")
@click.option("--out", type=click.Path(path_type=Path), help="A picture file for what was found, side by side.")
@click.option("--json", "as_json", is_flag=True, help="Print names and scores as JSON.")
def find(
    words: tuple[str, ...],
    source: str,
    like: Path | None,
    style: str | None,
    model: str,
    count: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Find pictures by words: `sojourn find a red heart --in photos`; or by likeness with --like."""
    text = joined(words)
    if bool(text) == (like is not None):
        raise InvalidInput("say what to find: words, or a picture with --like")
    from sojourn import package as packages
    from sojourn import safefile
    from sojourn.data.clean import load_picture
    from sojourn.data.sheet import grid
    from sojourn.find import Album
    from sojourn.picture import png
    from sojourn.train.build import find_set

    picture = load_picture(like) if like is not None else None
    place = Path(source)
    if not place.is_dir():
        place = find_set(source)
    album = Album(packages.load(packages.find(model)), place)
    styles = dict(album.package.conditioner.config.get("columns", {})).get("style", [])
    if style is not None and style not in styles:
        known = ", ".join(styles) or "-"
        raise NotFound('no style "{style}" in this package; it has {known}', style=style, known=known)
    if out is not None and out.suffix.lower() != ".png":
        raise InvalidInput('"{path}" is no .png, which is what is written', path=out)
    follow(album.look())
    if not album.places.any():
        raise InvalidInput('none of the {count} pictures in "{path}" can be read', count=len(album), path=place)
    found = album.by_likeness(picture, count) if picture is not None else album.by_words(text, style, count)
    if out is not None:
        side = album.package.codec.spec.shape[1:]
        small = [one.picture.convert("RGBA").resize((side[1], side[0])) for one in found]
        safefile.write_bytes(out, png(grid(small, min(6, len(small))), None))
    if as_json:
        rows = [{"name": one.name, "score": round(one.score, 4)} for one in found]
        print(json.dumps({"found": rows}, ensure_ascii=False))
        return
    if sys.stdout.isatty():
        console().print(blocks([one.picture for one in found[:4]], console().width), end="")
    for one in found:
        say("{score}  {name}", score=f"{one.score:.3f}", name=one.name)
