"""The starter set of poems: three hundred Tang poems and Song verse, a small real corpus of Chinese text.

Knows nothing about nets or tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from sojourn.data.dataset import Item, SetInfo, SetWriter
from sojourn.data.npm import NpmPackage, fetch, members
from sojourn.data.splits import share_split
from sojourn.errors import DataError, InvalidInput, NotFound, Unsupported
from sojourn.schema import Done, Event, Log, Progress, Source

FORTUNES = Path("/usr/share/games/fortunes")
PACKAGE = NpmPackage("chinese-poetry", "2.0.1", "25b549e46919c3a0569db6b68ddc96956b04a484ea4518ad2bbd4f137e307e86")
MEMBERS = ("dist/quantangshi/唐诗三百首.json", "dist/songci/宋词三百首.json")
HELD_OUT = (
    "80/10/10 by the sha256 of the title (without a part's number), so that the parts of a cycle stay together; "
    "a poem whose words stand in two places is kept once."
)
ANSI = re.compile(r"\x1b\[[0-9;]*m")
PART = re.compile(r"(・?\s*其[一二三四五六七八九十]+|[一二三四五六七八九十]+首)$")


@dataclass(frozen=True)
class Poem:
    title: str
    author: str
    lines: tuple[str, ...]


def build_poems(
    to: Path, source: Literal["auto", "fortunes", "npm"] = "auto", fortunes: Path = FORTUNES, cache: Path | None = None
) -> Iterator[Event]:
    """Build the poem set at `to`: a document is title, author and verses, each on a line; captions title and author.

    From Debian's fortunes-zh where it is installed ("auto", "fortunes"), else from npm's chinese-poetry (85 MB,
    fetched once into `cache`), turned to simplified characters.
    Raises NotFound when the named source is absent, DataError when it cannot be read.
    """
    if source not in ("auto", "fortunes", "npm"):
        raise InvalidInput('poems come from "auto", "fortunes" or "npm", not "{source}"', source=source)
    files = [file for name in ("tang300", "song100") if (file := Path(fortunes) / name).is_file()]
    if source == "fortunes" and not files:
        raise NotFound('no "tang300" or "song100" in {folder}; apt-get install fortunes-zh', folder=fortunes)
    if files and source != "npm":
        origin = Source(
            name="fortunes-zh (tang300, song100)", licence="poems in the public domain; collection GPL-3.0+",
            attribution="Collected by Yu Guanghui", url="https://salsa.debian.org/chinese-team/fortunes-zh",
        )  # fmt: skip
        poems = [poem for file in files for poem in read_fortunes(file.read_text(encoding="utf-8"))]
    else:
        origin = Source(
            name=f"chinese-poetry {PACKAGE.version}", licence="MIT", attribution="JG and Kenny Wong", url=PACKAGE.url
        )
        poems = yield from _from_npm(cache)
    once = list({"".join(poem.lines): poem for poem in poems}.values())
    if not once:
        raise DataError('no poems were found in "{name}"', name=origin.name)
    origin.count = len(once)
    info = SetInfo(
        name="poems", kind="text", shape=(), sources=[origin], held_out=HELD_OUT,
        about="Poems of Tang and Song in simplified characters: title, author, verses.",
    )  # fmt: skip
    with SetWriter(Path(to), info) as writer:
        for i, poem in enumerate(once):
            group = PART.sub("", poem.title) or poem.title
            text = "\n".join([poem.title, poem.author, *poem.lines]) + "\n"
            writer.add(
                Item(
                    id=f"{i:04d}", data=text, captions=[poem.title, poem.author], group=group, split=share_split(group),
                    extra={"author": poem.author},
                )
            )  # fmt: skip
    if len(once) < len(poems):
        yield Log.say("{count} poems stood there twice and were kept once", count=len(poems) - len(once))
    yield Progress(done=len(once), total=len(once), unit="poems", eta_s=0)
    yield Done(path=str(to), text=f"{len(once)} poems")


def read_fortunes(text: str) -> list[Poem]:
    """The poems of a fortune file: entries between lines of `%`, a title, an author, verses."""
    poems = []
    for entry in re.split(r"^%\s*$", ANSI.sub("", text), flags=re.MULTILINE):
        lines = [line.strip("　 \t\r") for line in entry.splitlines()]
        lines = [line for line in lines if line]
        author = next((i for i, line in enumerate(lines[:3]) if line.startswith("作者")), None)
        if not author or len(lines) <= author + 1:
            continue
        title = re.sub(r"^题目[:：]\s*", "", lines[0])
        title = re.sub(r"^《(.*)》", r"\1", title)
        name = re.sub(r"[（(〔].*", "", re.sub(r"^作者[:：]\s*", "", lines[author])).strip()
        poems.append(Poem(title.strip(), name, tuple(lines[author + 1 :])))
    return poems


def read_json(data: bytes) -> list[Poem]:
    """The poems of a chinese-poetry file, in simplified characters. Raises DataError when it does not parse."""
    try:
        entries: list[dict[str, Any]] = json.loads(data)
        return [
            Poem(
                simplified(entry.get("title") or entry["rhythmic"]),
                simplified(entry["author"]),
                tuple(simplified(line) for line in entry["paragraphs"] if line.strip()),
            )
            for entry in entries
        ]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError("chinese-poetry does not read as expected ({reason})", reason=repr(error)) from error


def simplified(text: str) -> str:
    """Traditional characters turned to simplified ones."""
    return str(_converter().convert(text))


@cache
def _converter() -> Any:
    try:
        import opencc
    except ImportError as error:
        raise Unsupported(
            "turning characters to simplified ones needs opencc; install it: pip install opencc"
        ) from error
    return opencc.OpenCC("t2s")


def _from_npm(cache: Path | None) -> Generator[Event, None, list[Poem]]:
    path = yield from fetch(PACKAGE, cache)
    yield Progress(done=1, total=2, unit="steps", text="reading chinese-poetry")
    found = {name: read_json(data) for name, data in members(path, lambda name: name in MEMBERS)}
    return [poem for name in MEMBERS for poem in found.get(name, [])]
