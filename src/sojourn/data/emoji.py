"""The starter set of emoji: eight permissive styles from npm, named in English and Chinese, drawn and packed.

Knows nothing about nets or prompts.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from sojourn.data.concepts import HELD_OUT, Captions, Concept, held_out, read_concepts, split
from sojourn.data.dataset import Item, LabelColumn, SetInfo, SetWriter
from sojourn.data.fxemoji import DRAWS
from sojourn.data.icons import IconSet, code, draw_bitmap, draw_svg, match
from sojourn.data.npm import NpmPackage, fetch, members
from sojourn.data.styles import COLOUR_STYLES
from sojourn.data.variety import COLOUR_EN, COLOUR_ZH, Colour, Thing, belies, coloured_names, make, nouns
from sojourn.errors import DataError
from sojourn.schema import Done, Event, Log, Progress, Source

MADE = (10_000, 26_000, 24_000)
"""Pictures made from the training ones: moved, recoloured, composed; some draws do not do and are left out."""
MADE_SHARES = {"moved": 0.05, "recoloured": 0.2, "composed": 0.13}
"""Share of training draws that each kind takes; the drawn pictures keep the rest."""
BASE_SHARE = 0.5
"""Part of a family's weight that its untoned picture keeps; the variants share the rest."""


@dataclass(frozen=True)
class Drawn:
    """A style and the package that draws it."""

    package: NpmPackage
    licence: str
    attribution: str
    bitmap: bool = False
    """Pictures are WebP files named by code points, not SVG bodies."""
    shortcodes: bool = True
    """Names may be looked up by chat shortcodes; not where short names mean other faces."""
    draws: Mapping[str, str] = field(default_factory=dict)
    """English label -> icon, where names are not enough."""


NAMES = NpmPackage("emojibase-data", "17.0.0", "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a")
NAMES_SOURCE = Source(
    name="emojibase-data 17.0.0", licence="MIT", url=NAMES.url,
    attribution="Names, tags and groups: Emojibase by Miles Johnson, https://github.com/milesj/emojibase",
)  # fmt: skip
# fmt: off
STYLES: dict[str, Drawn] = {
    "noto": Drawn(
        NpmPackage("@iconify-json/noto", "1.2.9",
                   "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad"),
        "Apache-2.0", "Noto Emoji by Google Inc, https://github.com/googlefonts/noto-emoji"),
    "noto-v1": Drawn(
        NpmPackage("@iconify-json/noto-v1", "1.2.5",
                   "2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37"),
        "Apache-2.0", "Noto Emoji (v1) by Google Inc, https://github.com/googlefonts/noto-emoji"),
    "twemoji": Drawn(
        NpmPackage("@iconify-json/twemoji", "1.2.5",
                   "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7"),
        "CC-BY-4.0", "Twitter Emoji by Twitter, https://github.com/jdecked/twemoji, CC BY 4.0, redrawn small"),
    "fluent-flat": Drawn(
        NpmPackage("@iconify-json/fluent-emoji-flat", "1.2.6",
                   "7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175"),
        "MIT", "Fluent Emoji Flat by Microsoft Corporation, https://github.com/microsoft/fluentui-emoji"),
    "fluent-mono": Drawn(
        NpmPackage("@iconify-json/fluent-emoji-high-contrast", "1.2.6",
                   "0b92d48c90d2200bd499e3cdd09a127ca6a8c8ddefd34c35eb5a1e4994012ae0"),
        "MIT", "Fluent Emoji High Contrast by Microsoft Corporation, https://github.com/microsoft/fluentui-emoji"),
    "fluent-3d": Drawn(
        NpmPackage("@lobehub/fluent-emoji-3d", "1.1.0",
                   "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58"),
        "MIT", "Fluent Emoji 3D by Microsoft, packaged by LobeHub, https://github.com/lobehub/fluent-emoji",
        bitmap=True),
    "emojione": Drawn(
        NpmPackage("@iconify-json/emojione", "1.2.3",
                   "26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e"),
        "CC-BY-4.0", "Emoji One 2.3 by Emoji One, https://github.com/EmojiTwo/emojitwo, CC BY 4.0, redrawn small"),
    "fxemoji": Drawn(
        NpmPackage("@iconify-json/fxemoji", "1.2.2",
                   "f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef"),
        "Apache-2.0", "Firefox OS Emoji by Mozilla, https://github.com/mozilla/fxemoji", shortcodes=False, draws=DRAWS),
}
# fmt: on
NAMING = ("noto", "fluent-flat", "twemoji")
"""Styles whose packages say which code points each name stands for, from surest to vaguest."""
WORDS = {
    "en/data.json", "zh/data.json", "meta/groups.json", "meta/unicode-names.json", "en/shortcodes/emojibase.json",
    "en/shortcodes/cldr.json",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """One picture to be drawn: a base or a variant of a concept in a style."""

    points: str
    """code() of the emoji, the key of the style's drawings."""
    hex: str
    style: str
    concept: int
    captions: list[str]
    weight: float


def build_emoji(
    to: Path, size: int = 64, cache: Path | None = None, made: tuple[int, int, int] = MADE
) -> Iterator[Event]:
    """Build the emoji set at `to`: uint8 (size, size, 4) pictures, straight alpha, labels "style" and "concept".

    Held-out pictures come first, so that a twin of one under another name can be left out of training.
    A concept's family (base and skin tones) weighs 1 within a style. `made` counts the moved, recoloured and composed
    pictures that are drawn from those in training. Tarballs are kept in `cache`.
    Raises NotFound without npm, DataError when a package cannot be fetched or read.
    """
    words = yield from _read(NAMES, cache, lambda name: name in WORDS)
    concepts = read_concepts(words)
    sets: dict[str, IconSet] = {}
    bitmaps: dict[str, dict[str, bytes]] = {}
    for style, drawn in STYLES.items():
        if drawn.bitmap:
            found = yield from _read(drawn.package, cache, lambda name: name.endswith((".webp", ".png")))
            bitmaps[style] = {code(Path(name).stem): data for name, data in found.items()}
        else:
            found = yield from _read(drawn.package, cache, lambda name: name in ("icons.json", "chars.json"))
            sets[style] = IconSet.read(found, drawn.package.name)
    targets = _targets(concepts, words, [sets[style] for style in NAMING if style in sets])
    icons: dict[str, dict[str, str]] = {}
    for style, drawings in sets.items():
        drawn = STYLES[style]
        tiers = [(points, names if drawn.shortcodes else names[:-1]) for points, names in targets]
        by_eye = {code(c.hex): drawn.draws[c.en] for c in concepts if c.en in drawn.draws}
        icons[style] = match(tiers, drawings, by_eye)

    def draw(picture: Picture) -> np.ndarray:
        if picture.style in bitmaps:
            return draw_bitmap(bitmaps[picture.style][picture.points], size)
        return draw_svg(*sets[picture.style].svg(icons[picture.style][picture.points]), size)

    pictures = _pictures(concepts, {style: set(icons.get(style, bitmaps.get(style, {}))) for style in STYLES})
    yield from _pack(Path(to), size, concepts, pictures, draw, made)


def _read(
    package: NpmPackage, cache: Path | None, wanted: Callable[[str], bool]
) -> Generator[Event, None, dict[str, bytes]]:
    path = yield from fetch(package, cache)
    yield Progress(done=1, total=1, unit="packages", text=f"{package.name}@{package.version}")
    return dict(members(path, wanted))


def _targets(
    concepts: list[Concept], words: Mapping[str, bytes], naming: list[IconSet]
) -> list[tuple[str, list[list[str]]]]:
    """(code, tiers of names) of every concept and variant: package names, labels, Unicode names, shortcodes."""
    unicode_names = {code(points): name for points, name in _table(words, "meta/unicode-names.json").items()}
    short: dict[str, list[str]] = {}
    for file in ("en/shortcodes/emojibase.json", "en/shortcodes/cldr.json"):
        for points, names in _table(words, file).items():
            short.setdefault(code(points), []).extend([names] if isinstance(names, str) else names)
    aliases: list[dict[str, list[str]]] = []
    for icons in naming:
        table: dict[str, list[str]] = {}
        for alias, entry in icons.aliases.items():
            if set(entry) == {"parent"}:
                table.setdefault(entry["parent"], []).append(alias)
        aliases.append(table)
    out = []
    for concept in concepts:
        for points, label in [(concept.hex, concept.en), *((v.hex, v.en) for v in concept.variants)]:
            at = code(points)
            named = [icons.chars[at] for icons in naming if at in icons.chars]
            other = [
                name
                for icons, table in zip(naming, aliases, strict=True)
                for name in table.get(icons.chars.get(at, ""), [])
            ]
            out.append((at, [named, _spellings(label), other, [unicode_names.get(at, "")], short.get(at, [])]))
    return out


def _spellings(label: str) -> list[str]:
    """A label, and a flag's as older sets name it."""
    head, _, country = label.partition(": ")
    return [label, f"flag for {country}", f"flag for flag {country}"] if head == "flag" else [label]


def _table(words: Mapping[str, bytes], name: str) -> dict[str, Any]:
    try:
        return dict(json.loads(words.get(name, b"{}")))
    except ValueError as error:
        raise DataError('"{name}" in emojibase-data is not JSON ({reason})', name=name, reason=error) from error


def _pictures(concepts: list[Concept], drawn: Mapping[str, set[str]]) -> list[Picture]:
    """Every picture there is, style by style, with its captions and its weight within its family."""
    captions = Captions(concepts)
    out = []
    for style, codes in drawn.items():
        for index, concept in enumerate(concepts):
            variants = [variant for variant in concept.variants if code(variant.hex) in codes]
            base = code(concept.hex) in codes
            share = BASE_SHARE if base and variants else float(base)
            if base:
                out.append(Picture(code(concept.hex), concept.hex, style, index, captions.base(concept), share))
            for variant in variants:
                said = captions.variant(concept, variant)
                weight = (1 - share) / len(variants)
                out.append(Picture(code(variant.hex), variant.hex, style, index, said, weight))
    return out


def _pack(
    to: Path,
    size: int,
    concepts: list[Concept],
    pictures: list[Picture],
    draw: Callable[[Picture], np.ndarray],
    made: tuple[int, int, int],
) -> Iterator[Event]:
    styles = list(STYLES)
    sources = [
        Source(
            name=f"{style} ({drawn.package.name} {drawn.package.version})", licence=drawn.licence,
            attribution=drawn.attribution, url=drawn.package.url,
        )
        for style, drawn in STYLES.items()
    ]  # fmt: skip
    info = SetInfo(
        name="emoji", kind="image", shape=(size, size, 4), sources=[*sources, NAMES_SOURCE], held_out=HELD_OUT,
        labels=[
            LabelColumn(name="style", values=styles),
            LabelColumn(name="concept", values=[concept.hex for concept in concepts]),
        ],
        about="Emoji in eight styles, named in English and Chinese; skin-tone variants share one concept's weight.",
    )  # fmt: skip
    pictures = sorted(pictures, key=lambda p: held_out(concepts[p.concept].hex, p.style) is None)
    hidden: set[bytes] = set()
    began = shown = time.monotonic()
    dropped = twins = 0
    things: list[Thing] = []
    with SetWriter(to, info) as writer:
        for done, picture in enumerate(pictures):
            concept, index = concepts[picture.concept], styles.index(picture.style)
            now = time.monotonic()
            if now - shown > 0.5:
                shown, rate = now, done / (now - began)
                eta = (len(pictures) - done) / rate if rate else None
                yield Progress(
                    done=done, total=len(pictures), unit="pictures", rate=rate, eta_s=eta, text=picture.style
                )
            try:
                pixels = draw(picture)
            except DataError as error:
                dropped += 1
                yield Log.warn("{name} left out: {error}", name=f"{picture.hex}/{picture.style}", error=error)
                continue
            held = held_out(concept.hex, picture.style)
            look = sha256(pixels.tobytes()).digest()
            if held:
                hidden.add(look)
            elif look in hidden:
                twins += 1
                continue
            name, said = f"{picture.hex}/{picture.style}", true_captions(concept, picture, pixels)
            if split(concept.hex, picture.style) == "train":
                base = picture.hex == concept.hex and picture.style in COLOUR_STYLES
                en, zh = nouns(concept) if base else ((), ())
                things.append(Thing(name, pixels, tuple(said), en, zh, picture.style, picture.weight))
            writer.add(
                Item(
                    id=name, data=pixels, captions=said,
                    labels=(index, picture.concept), style=picture.style, group=concept.hex,
                    split=split(concept.hex, picture.style), weight=picture.weight, source=index,
                    extra={"hex": picture.hex, "group_name": concept.group, "held_out": held},
                )
            )  # fmt: skip
            writer.info.sources[index].count += 1
        writer.info.sources[-1].count = len(concepts)
        yield from _add_made(writer, concepts, things, made)
    count = len(pictures) - dropped - twins
    if twins:
        yield Log.say(
            "{count} pictures left out: pixel for pixel the same as a held-out one of another name", count=twins
        )
    yield Progress(done=len(pictures), total=len(pictures), unit="pictures", eta_s=0)
    yield Done(path=str(to), text=f"{count} pictures of {len(concepts)} concepts in {len(styles)} styles")


def true_captions(concept: Concept, picture: Picture, pixels: np.ndarray) -> list[str]:
    """The captions, without those that name a colour which this style's drawing does not have (a pink "red heart")."""
    named = COLOUR_EN.match(concept.en)
    if named is None or picture.style not in COLOUR_STYLES or concept.group == "flags":
        return picture.captions
    if not belies(pixels, named[0].split()[-1]):
        return picture.captions
    return [c for c in picture.captions if not COLOUR_EN.search(c) and not COLOUR_ZH.search(c)] or picture.captions


def _add_made(
    writer: SetWriter, concepts: list[Concept], things: list[Thing], counts: tuple[int, int, int]
) -> Iterator[Event]:
    """Append the pictures made from those in training, weighted so that each kind takes its share of the draws."""
    named = coloured_names(concepts)

    def is_hidden(thing: Thing, colour: Colour) -> bool:
        return any(held_out(points, thing.style) for points in named.get((thing.en[0], colour.en[0]), ()))

    found = list(make(things, counts, is_hidden))
    total = sum(thing.weight for thing in things)
    plain = 1 - sum(MADE_SHARES[kind] for kind in {m.kind for m in found})
    number = Counter(m.kind for m in found)
    shown = time.monotonic()
    for done, item in enumerate(found):
        if time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            yield Progress(done=done, total=len(found), unit="pictures", text="made from others")
        style = list(STYLES).index(item.things[0].style)
        weight = total / plain * MADE_SHARES[item.kind] / number[item.kind]
        writer.add(
            Item(
                id=f"{item.kind}-{done}", data=item.pixels, captions=item.captions, labels=(style, -1),
                style=item.things[0].style, source=style, weight=weight,
                extra={"made": item.kind, "of": [thing.id for thing in item.things], "held_out": None},
            )
        )  # fmt: skip
    if found:
        yield Log.say(
            "made from others: {counts}", counts=", ".join(f"{kind} {count}" for kind, count in sorted(number.items()))
        )
