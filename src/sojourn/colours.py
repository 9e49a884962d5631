"""What a prompt says of colours: of which one the whole of each thing shall be. Knows no pictures and no models."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass

from sojourn.codecs.text import normalise_prompt
from sojourn.data.variety import COLOURS, with_article
from sojourn.vocabulary import COUNTS


@dataclass(frozen=True)
class Coloured:
    """A prompt for things that are wholly of a colour each."""

    bare: str
    """The same without its words of colour: "a red cat and a dog" -> "a cat and a dog"."""
    colours: tuple[int, ...]
    """Places in `COLOURS`, without white, which nothing tells from the ground."""
    things: int
    """How many things the colours are shared among, those without a colour too."""
    free: int = 0
    """How many of them have no colour: they may be of any."""


_EN = {word: at for at, colour in enumerate(COLOURS) for word in colour.en}
_ZH = {word.removesuffix("色"): at for at, colour in enumerate(COLOURS) for word in colour.zh}
_WHITE = _EN["white"]
_JOIN = re.compile(
    r"(,|，|、|和|与|在|[左右]边|[上下][面方]|\b(?:and|next to|to the (?:left|right) of|above|over|below|under)\b)"
)
_THING_EN = re.compile(
    rf"(?:(?P<article>an?|the|one|my|your) )?(?:(?P<colour>{'|'.join(_EN)}) )?"
    r"(?P<noun>[a-z][a-z'-]*(?: [a-z][a-z'-]*){0,2})"
)
_THING_ZH = re.compile(
    rf"(?P<article>一[个{''.join(sorted(COUNTS))}])?"
    rf"(?:(?P<colour>{'|'.join(sorted(_ZH, key=len, reverse=True))})(?:色的?|的))?"
    "(?P<noun>[\u3400-\u9fff]{1,6})"
)
_PARTIAL = re.compile(
    r"\b(?:with|without|of|in|on|at|by|for|from|has|wearing|holding|eating|riding)\b|[的色带戴穿拿骑有]"
)
"""What says that a colour may be that of a part: a girl with red hair."""


def coloured(text: str, names: Collection[str] = ()) -> Coloured | None:
    """What the text says of colours; None where it names none, or where one may be that of a part or of a place.

    names: of things. A colour of one character before one of them is read too, as long as both are not a name together:
    红房子 is a house, 黄瓜 no melon. Where neither is a name, it may be a colour or not.
    """
    plain = re.sub(r"\s+", " ", normalise_prompt(text)).rstrip(" .!。~")
    pieces = _JOIN.split(plain)  # things and, between them, what joins them
    colours: list[int] = []
    for i in range(0, len(pieces), 2):
        thing = pieces[i].strip()
        if not thing:
            continue
        found = _THING_EN.fullmatch(thing) or _thing_zh(thing, names)
        if found is None or _PARTIAL.search(found["noun"]) or _EN.keys() & set(found["noun"].split()):
            return None
        colours.append((_EN | _ZH)[found["colour"]] if found["colour"] else -1)
        pieces[i] = pieces[i].replace(thing, _without(found))
    told = tuple(dict.fromkeys(colour for colour in colours if colour not in (-1, _WHITE)))
    return Coloured("".join(pieces), told, len(colours), colours.count(-1)) if told else None


def _thing_zh(thing: str, names: Collection[str]) -> re.Match[str] | None:
    """What stands for a thing in Chinese; None where its first character may be a colour or not."""
    found = _THING_ZH.fullmatch(thing)
    if found is None or found["colour"] or found["noun"] in names or found["noun"][0] not in _ZH:
        return found
    first, rest = found["noun"][0], found["noun"][1:]
    return _THING_ZH.fullmatch(f"{found['article'] or ''}{first}色{rest}") if rest in names else None


def _without(found: re.Match[str]) -> str:
    """A thing without its colour, and with the article of what is left."""
    article, noun = found["article"] or "", found["noun"]
    if article in ("a", "an"):
        return with_article(noun)
    return f"{article} {noun}".strip() if noun.isascii() else article + noun
