"""Verbs that draw: imagine, sample, write, replay."""

from __future__ import annotations

import itertools
import json
import re
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from sojourn import safefile
from sojourn.cli.say import blocks, console, follow, say, say_error, warn
from sojourn.errors import InvalidInput, NotFound, PromptError, SojournError
from sojourn.grammar import PARAMETERS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sojourn.engine import Model
    from sojourn.picture import Pictures
    from sojourn.schema import Event, Prompt
    from sojourn.wishes import Request

DEFAULT = "emoji"
NAMED = 200
"""Different prompts of a `sample` that are looked at for words the package does not know."""
LIVE = 5
"""Intermediate samples shown of a walk, about."""


@click.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": True})
@click.argument("words", nargs=-1, required=True, type=click.UNPROCESSED, metavar="PROMPT")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out"), help="Folder for the files. Default: out.")
@click.option("--source", type=click.Path(path_type=Path), help="A picture to start from.")
@click.option(
    "--strength", type=click.FloatRange(0, 1), help="How far from the source: 0..1, default 0.6. Not with a mask."
)
@click.option("--mask", type=click.Path(path_type=Path), help="A picture, white where the source may change.")
@click.option("-o", "--option", "more", multiple=True, metavar="NAME=VALUE", help="An option of the family.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with files and recipes.")
@click.option("--quiet", is_flag=True, help="Do not show pictures in the terminal.")
def imagine(
    words: tuple[str, ...],
    out: Path,
    source: Path | None,
    strength: float | None,
    mask: Path | None,
    more: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw pictures from a prompt in English or Chinese.

    Words come first, then parameters: `sojourn imagine a red heart --n 4 --seed 7 --style 3d --no face`.
    """
    text = joined(words)
    prompt = parsed(text, allow_empty=True)
    from sojourn.data.clean import load_picture
    from sojourn.engine import load

    model = load(prompt.model or DEFAULT)
    if model.reads_words:
        parsed(text)  # without words there is nothing to draw from
    if strength is not None and (source is None or mask is not None):
        raise InvalidInput("--strength says how far from --source, without a mask; leave it out")
    edit = {"strength": 0.6 if strength is None else strength} if source else {}
    pictures = {"source": source, "mask": mask}
    given = {name: load_picture(path) for name, path in pictures.items() if path is not None}
    request = model.request(prompt, **edit, **given)
    request.options |= given_options(more)
    safefile.writable(out)
    _misread(model, request)
    results = _show(model, request, live=not (as_json or quiet) and sys.stdout.isatty())
    _keep(results, out, prompt.text, as_json)


def _misread(model: Model, request: Request) -> None:
    """Say what of the words the package does not know, or does not read as they stand."""
    text = request.prompts[0].text
    if text and not model.reads_words and request.judge is None:
        warn(
            '"{model}" was trained without words and classes: "{text}" changes nothing',
            model=model.card.name,
            text=text,
        )
    if near := model.unknown(request):
        warn(
            '"{model}" never saw "{text}"; it knows {near}',
            model=model.card.name,
            text=text,
            near=", ".join(near),
        )
    if (read := model.read(request)) != text:
        warn('"{text}" is drawn as "{read}"', text=text, read=read)
    if most := model.cut(request):
        warn('"{model}" reads {count} words at most; the end of the prompt is cut', model=model.card.name, count=most)


def _keep(results: Pictures, out: Path, text: str, as_json: bool) -> None:
    """Write the pictures and their grid, and say where they are."""
    with safefile.writing(out):
        out.mkdir(parents=True, exist_ok=True)
    first = f"{time.strftime('%Y%m%d-%H%M%S')}-{slug(text)}"
    stems = itertools.chain([first], (f"{first}-{again}" for again in itertools.count(2)))
    stem = next(stem for stem in stems if not (out / f"{stem}-1.png").exists())
    files = [item.save(out / f"{stem}-{i + 1}.png") for i, item in enumerate(results)]
    grid = results.save_grid(out / f"{stem}-grid.png")
    if as_json:
        rows = [{"file": str(path), **item.recipe} for path, item in zip(files, results, strict=True)]
        print(json.dumps({"pictures": rows, "grid": str(grid)}, ensure_ascii=False))
        return
    for path, item in zip(files, results, strict=True):
        say("{path}  seed {seed}", path=path, seed=item.seed)
    say("{path}  all of them", path=grid)


def _show(model: Model, request: Any, live: bool) -> Pictures:
    """Walk, showing intermediate samples and the result when `live`."""
    if not live:
        for frame in model.walk(request):  # noqa: B007 - the last is the result
            pass
        return model.results(request, frame)
    from rich.live import Live

    screen = console()
    count = min(4, len(request.seeds))
    side = max(8, min(32, (screen.width - count) // count))
    with Live(console=screen, auto_refresh=False, transient=True) as view:
        for frame in model.walk(request):
            if frame.step % max(1, frame.steps // LIVE) == 0 and frame.step < frame.steps:
                view.update(blocks(frame.pictures[:count], screen.width, side), refresh=True)
    results = model.results(request, frame)
    screen.print(blocks([item.pil for item in results], screen.width, side), end="")
    return results


VARY = {False: 0.45, True: 0.85}
"""How far from the picture a subtle and a strong variation start."""


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--strong", is_flag=True, help="Keep the idea only, in other styles. Default: subtle.")
@click.option("--prompt", "words", help="Other words than the picture's own; needed for one that Sojourn did not draw.")
@click.option("-n", "count", type=click.IntRange(1, 64), help="How many. Default: 4.")
@click.option("--seed", type=click.IntRange(0, 2**53 - 1), help="Seed of the first. Default: drawn at random.")
@click.option("--model", help="Package to draw from. Default: the picture's own.")
@click.option("--out", type=click.Path(path_type=Path), default=Path("out"), help="Folder for the files. Default: out.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with files and recipes.")
@click.option("--quiet", is_flag=True, help="Do not show pictures in the terminal.")
def vary(
    file: Path,
    strong: bool,
    words: str | None,
    count: int | None,
    seed: int | None,
    model: str | None,
    out: Path,
    as_json: bool,
    quiet: bool,
) -> None:
    """Draw variations of a picture: other details at first, with --strong another drawing of the same idea."""
    from sojourn.again import drawn_by
    from sojourn.data.clean import load_picture
    from sojourn.engine import load
    from sojourn.picture import asked

    picture = load_picture(file)
    prompt = parsed(words) if words is not None else asked(file)
    chosen = model or (prompt.model if words is not None else None)
    loaded = load(chosen) if chosen else drawn_by(file, DEFAULT)
    if words is None:  # the picture's own number and seed are not those of its variations
        prompt = prompt.model_copy(update={"n": None, "seed": None})
        if strong:  # where a set has one picture of a thing in a style, another drawing is one in another style
            prompt = prompt.model_copy(update={"style": None})
    given = {"n": count or prompt.n, "seed": prompt.seed if seed is None else seed, "model": None}
    request = loaded.request(prompt.model_copy(update=given), source=picture, strength=VARY[strong])
    safefile.writable(out)
    _misread(loaded, request)
    results = _show(loaded, request, live=not (as_json or quiet) and sys.stdout.isatty())
    _keep(results, out, prompt.text, as_json)


@click.command()
@click.argument("package")
@click.option("-n", "count", type=click.IntRange(1, 10_000_000), default=64, help="How many. Default: 64.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder for the pictures.")
@click.option("--class", "classes", multiple=True, help="A class (or prompt) to draw; may be repeated.")
@click.option("--prompts", type=click.Path(path_type=Path), help="A text file, one prompt a line.")
@click.option("--style", help="A style the package knows.")
@click.option("--seed", type=click.IntRange(0, 2**53 - 1), default=0, help="Seed of the first. Default: 0.")
@click.option("--batch", type=click.IntRange(1, 64), default=32, help="Pictures per walk, 1..64. Default: 32.")
@click.option("-o", "--option", "more", multiple=True, metavar="NAME=VALUE", help="An option of the family.")
def sample(
    package: str,
    count: int,
    out: Path,
    classes: tuple[str, ...],
    prompts: Path | None,
    style: str | None,
    seed: int,
    batch: int,
    more: tuple[str, ...],
) -> None:
    """Draw many pictures into a folder that `sojourn prepare` reads: 000001.png ... and metadata.jsonl.

    The same command again goes on where it stopped.
    """
    from sojourn.engine import load
    from sojourn.prompt import merge, require
    from sojourn.schema import Prompt
    from sojourn.wishes import Request, conditions

    if prompts is not None and not prompts.is_file():
        raise NotFound('there is no file "{path}"', path=prompts)
    lines = [line.strip() for line in _lines(prompts)] if prompts else []
    if prompts is not None and not any(lines):
        raise InvalidInput('"{path}" holds no prompt; write one a line', path=prompts)
    model = load(package)
    asked = [*classes, *filter(None, lines)]
    if asked and not model.reads_words:
        raise InvalidInput('"{model}" was trained without words and classes; ask it for none', model=model.card.name)
    require(merge(Prompt(), style=style), model.can, model.card.name)
    names, options = asked or model.classes or [""], given_options(more)
    for name in dict.fromkeys(asked):
        said(name)
    rows = [Prompt.plain(names[i % len(names)], style) for i in range(count)]
    first = Request(rows[:1], [seed], options)
    model.options(first)
    conditions(model.package, first)
    safefile.writable(out)
    plan = {"package": model.card.identity, "prompts": names, "style": style, "seed": seed, "options": options}
    _claim(out, {**plan, "batch": batch})
    for name in [*dict.fromkeys(filter(None, names))][:NAMED]:
        _misread(model, Request([Prompt.plain(name, style)], [seed]))
    follow(_sampled(model, rows, seed, batch, out, options))
    say("{count} pictures in {path}", count=count, path=out)


PLAN = ".sample.json"
"""What the pictures of a folder were asked for."""


def _claim(folder: Path, plan: dict[str, Any]) -> None:
    """Write down what will be drawn into an empty folder. Raises InvalidInput where other things are in it."""
    with safefile.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    if path.is_file():
        theirs = safefile.parse_json(path.read_bytes(), PLAN)
        if differ := [name for name in plan if theirs.get(name) != plan[name]]:
            raise InvalidInput(
                '"{path}" holds pictures of another sample (other {names}); choose another folder',
                path=folder, names=", ".join(differ),
            )  # fmt: skip
    elif any(folder.iterdir()):
        raise InvalidInput('"{path}" holds other files, which would be mixed up; choose an empty folder', path=folder)
    safefile.write_bytes(path, json.dumps(plan, ensure_ascii=False).encode())


def _lines(path: Path) -> list[str]:
    from sojourn.data.clean import Refused
    from sojourn.data.texts import decode

    try:
        return decode(path.read_bytes())[0].splitlines()
    except Refused as error:
        raise InvalidInput('"{path}" is no text: {why}', path=path, why=error.why) from None


def _sampled(
    model: Model, rows: list[Prompt], seed: int, batch: int, out: Path, options: dict[str, Any]
) -> Iterator[Event]:
    from sojourn.schema import Progress

    digits = max(6, len(str(len(rows))))
    names = [f"{i + 1:0{digits}}.png" for i in range(len(rows))]
    first = next((i for i, name in enumerate(names) if not (out / name).is_file()), len(rows)) // batch * batch
    begun = time.monotonic()
    for i, picture in enumerate(model.sample(rows, seed, batch, first, options), start=first):
        picture.save(out / names[i])
        rate = (i + 1 - first) / (time.monotonic() - begun)
        yield Progress(done=i + 1, total=len(rows), unit="pictures", rate=rate, eta_s=(len(rows) - i - 1) / rate)
    with (out / "metadata.jsonl").open("w", encoding="utf-8") as file:
        for i, (name, row) in enumerate(zip(names, rows, strict=True)):
            line = {
                "file_name": name,
                "text": row.text,
                "label": row.text if row.text in model.classes else None,
                "style": row.style,
                "seed": seed + i,
                "licence": model.card.licence,
            }
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


@click.command()
@click.argument("package")
@click.argument("words", nargs=-1)
@click.option("--seed", type=click.IntRange(0, 2**53 - 1), help="Default: drawn at random.")
@click.option("--tokens", "max_tokens", type=click.IntRange(1, 100_000), help="Tokens at most.")
@click.option("--temperature", type=float, help="0 = always the likeliest.")
@click.option("--top-p", type=float, help="Keep the likeliest tokens up to this share. 1 = all.")
def write(package: str, words: tuple[str, ...], seed: int | None, **options: Any) -> None:
    """Continue a text: `sojourn write poems 春风`."""
    from sojourn.engine import load

    model = load(package)
    for piece in model.write(" ".join(words), seed=seed, **{k: v for k, v in options.items() if v is not None}):
        print(piece, end="", flush=True)
    print()


@click.command()
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--model", help="The package, if it is not found by its identity.")
@click.option("--source", type=click.Path(path_type=Path), help="The picture it was drawn from.")
@click.option("--mask", type=click.Path(path_type=Path), help="The mask it was drawn with.")
def replay(files: tuple[Path, ...], model: str | None, source: Path | None, mask: Path | None) -> None:
    """Draw the picture in each file again from its recipe, and compare pixel by pixel.

    Exit code 1 when any differs or cannot be drawn again; the others are drawn all the same.
    """
    from sojourn import again
    from sojourn.data.clean import load_picture
    from sojourn.engine import load

    loaded = load(model) if model else None
    given = {name: load_picture(path) for name, path in (("source", source), ("mask", mask)) if path is not None}
    differ = 0
    for path in files:
        try:
            _, gap = again.replay(path, model=loaded, inputs=given)
        except SojournError as error:
            differ += 1
            say_error(error)
            continue
        if gap:
            differ += 1
            say("{path}: differs by up to {gap} of 255", path=path, gap=gap)
        else:
            say("{path}: equal", path=path)
    if differ:
        sys.exit(1)


def given_options(pairs: tuple[str, ...]) -> dict[str, Any]:
    """NAME=VALUE pairs as options of a family; values as JSON says them, else as text. Raises InvalidInput."""
    out: dict[str, Any] = {}
    for pair in pairs:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise InvalidInput('"{pair}" is no option; write NAME=VALUE', pair=pair)
        try:
            out[name] = json.loads(value)
        except ValueError:
            out[name] = value
    return out


def joined(words: tuple[str, ...]) -> str:
    """Arguments as one prompt; a parameter's value with spaces in it gets its quotes back.

    Raises InvalidInput for `-n` alone, which other tools read as a parameter: drawn as a word it helps nobody.
    """
    out: list[str] = []
    for word in words:
        if re.fullmatch(r"-[a-z]", word):
            raise InvalidInput('"{word}" is no parameter; write two dashes: -{word}', word=word)
        name, equals, value = word.partition("=")
        if not (equals and name.startswith("--")):
            name, equals, value = out[-1] if out else "", "", word
        parameter = PARAMETERS.get(name[2:]) if name.startswith("--") else None
        if parameter and parameter.kind != "list" and len(words) > 1 and re.search(r"\s", value):
            quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
            word = f"{name}={quoted}" if equals else quoted
        out.append(word)
    return " ".join(out)


def parsed(text: str, allow_empty: bool = False) -> Prompt:
    """The prompt; an error carries the text, so that its place can be shown."""
    from sojourn.prompt import parse

    try:
        return parse(text, allow_empty=allow_empty)
    except PromptError as error:
        error.prompt_text = text  # type: ignore[attr-defined]
        raise


def said(text: str) -> Prompt:
    """A whole text as the words of a prompt, whatever stands in it. Raises PromptError for one that none can have."""
    from sojourn.prompt import format, parse
    from sojourn.schema import Prompt

    return parse(format(Prompt.plain(text)))


def slug(text: str) -> str:
    """A file name's worth of a prompt: letters, digits and characters, 40 at most."""
    return re.sub(r"[^\w]+", "-", text.lower()).strip("-_")[:40] or "picture"
