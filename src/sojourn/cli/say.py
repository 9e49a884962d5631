"""How the command line speaks: lines in the user's language, progress, pictures as half blocks."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import click

from sojourn.cli.help import Context
from sojourn.errors import InvalidInput, PromptError, SojournError, translate

if TYPE_CHECKING:
    from PIL import Image
    from rich.console import Console
    from rich.progress import Progress
    from rich.text import Text

    from sojourn.schema import Event

HALF = "\u2580"
"""Upper half block: its foreground is the upper pixel, its background the lower one."""


class Commands(click.Group):
    """A group of commands whose help, and word of one that there is not, are in the user's language."""

    context_class = Context

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, command.help or "") for name, command in sorted(self.commands.items())])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, known = args[0], self.list_commands(ctx)
        if name in known or name.startswith("-"):
            found, command, rest = super().resolve_command(ctx, args)
            if command is not None:
                command.context_class = Context
            return found, command, rest
        near = difflib.get_close_matches(name, known, 1)
        if near:
            raise InvalidInput('there is no command "{name}"; did you mean {near}?', name=name, near=near[0])
        raise InvalidInput('there is no command "{name}"; {path} --help lists them', name=name, path=ctx.command_path)


def say(template: str, /, **fields: object) -> None:
    """Print one line in the user's language."""
    print(translate(template).format(**fields))


def error_line(text: str) -> None:
    """Print one line to stderr, no control characters in it."""
    clean = "".join(c if c.isprintable() else " " for c in text)
    print(f"sojourn: {clean}", file=sys.stderr)


def warn(template: str, /, **fields: object) -> None:
    """Print one line to stderr in the user's language; the work goes on."""
    error_line(translate(template).format(**fields))


def say_error(error: SojournError, prompt: str | None = None) -> None:
    """The error in one line; for a prompt, the place as well."""
    error_line(error.localised())
    text = getattr(error, "prompt_text", prompt)
    if isinstance(error, PromptError) and text and sys.stderr.isatty():
        from sojourn.prompt import caret

        print(caret(text, error), file=sys.stderr)


def console() -> Console:
    """A rich console on stdout."""
    from rich.console import Console

    return Console(highlight=False)


def blocks(pictures: Sequence[Image.Image], width: int, side: int = 32) -> Text:
    """Pictures next to each other as half blocks, as many across as `width` cells hold."""
    from PIL import Image
    from rich.color import Color
    from rich.style import Style
    from rich.text import Text

    across = max(1, min(len(pictures), (width + 1) // (side + 1)))
    out = Text()
    for first in range(0, len(pictures), across):
        row = []
        for picture in pictures[first : first + across]:
            height = max(2, round(side * picture.height / picture.width) // 2 * 2)
            flat = Image.new("RGB", picture.size, "white")
            flat.paste(picture.convert("RGBA"), mask=picture.convert("RGBA").getchannel("A"))
            row.append(flat.resize((side, height), Image.Resampling.BOX).load())
        for y in range(0, height, 2):
            for pixels in row:
                assert pixels is not None
                for x in range(side):
                    top, low = pixels[x, y], pixels[x, y + 1]
                    upper, lower = (Color.from_rgb(*pixel) for pixel in (top, low))  # type: ignore[misc]
                    out.append(HALF, Style(color=upper, bgcolor=lower))
                out.append(" ")
            out.append("\n")
    return out


@contextmanager
def progress() -> Iterator[Progress]:
    """A progress bar with samples per second and time left, on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn

    columns = [
        TextColumn("{task.description}"), BarColumn(bar_width=24),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        TextColumn("{task.fields[speed]}"), TextColumn("{task.fields[note]}"),
    ]  # fmt: skip
    with Progress(*columns, console=Console(stderr=True, highlight=False), transient=True) as bar:
        yield bar


def follow(events: Iterator[Event], as_json: bool = False) -> Event | None:
    """Show events as they come, as a bar and lines or as JSON lines; returns the last."""
    last: Event | None = None
    if as_json:
        for last in events:
            print(last.model_dump_json(), flush=True)
        return last
    with progress() as bar:
        task: Any = None
        for last in events:
            if last.kind == "progress":
                if task is None:
                    task = bar.add_task("", total=1, speed="", note="")
                item: Any = last
                eta = f" · {_clock(item.eta_s)}" if item.eta_s is not None else ""
                bar.update(
                    task, total=item.total, completed=item.done, note=translate(item.text),
                    speed=f"{item.rate:,.0f} {translate(item.unit)}/s{eta}" if item.rate else "",
                )  # fmt: skip
            elif last.kind == "log":
                line: Any = last
                bar.console.print(line.localised(), markup=False, soft_wrap=True)
            elif last.kind == "preview":
                bar.console.print(f"  {getattr(last, 'path', '')}", markup=False, soft_wrap=True)
    return last


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
