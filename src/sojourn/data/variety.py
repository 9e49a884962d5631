"""More pictures from the ones there are: moved, recoloured, two on one ground, each with captions that say so.

One picture for a concept and a style is a dictionary; which colour belongs to which thing is learned from these. Knows
nothing about files, packed sets or nets.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from sojourn.data.concepts import COUNTABLE, COUNTABLE_SUBGROUPS, Concept


@dataclass(frozen=True)
class Colour:
    """A basic colour term: its names, and how it looks (sRGB, 0..255)."""

    en: tuple[str, ...]
    zh: tuple[str, ...]
    """The first stands before 的 or a noun; all are said."""
    rgb: tuple[int, int, int]


COLOURS = (
    Colour(("red",), ("红色", "红"), (221, 46, 52)),
    Colour(("orange",), ("橙色", "橙", "橘色"), (246, 139, 30)),
    Colour(("yellow",), ("黄色", "黄"), (253, 208, 60)),
    Colour(("green",), ("绿色", "绿"), (76, 168, 66)),
    Colour(("blue",), ("蓝色", "蓝"), (52, 120, 222)),
    Colour(("purple",), ("紫色", "紫"), (144, 76, 194)),
    Colour(("pink",), ("粉色", "粉红色", "粉红"), (246, 134, 180)),
    Colour(("brown",), ("棕色", "褐色", "棕"), (132, 86, 56)),
    Colour(("black",), ("黑色", "黑"), (44, 44, 50)),
    Colour(("white",), ("白色", "白"), (236, 238, 242)),
    Colour(("grey", "gray"), ("灰色", "灰"), (146, 150, 156)),
)
"""The eleven basic terms. Source: Berlin & Kay 1969; the shades are those of the sets at hand."""
PALE = 0.035
"""OKLab chroma below which a pixel counts as grey."""
SPREAD = np.radians(50)
"""Hues this near to the main one belong to the same thing."""
BODY = 0.4
"""Share of a picture that must take the colour for its name to hold."""
PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "beside": (
        ("{a} and {b}", "{a} and {b}", "{a} next to {b}", "{a} to the left of {b}", "{b} to the right of {a}"),
        ("{A}和{B}", "{A}和{B}", "{A}与{B}", "{A}在{B}左边", "{B}在{A}右边"),
    ),
    "above": (
        ("{a} above {b}", "{a} over {b}", "{b} below {a}", "{b} under {a}"),
        ("{A}在{B}上面", "{A}在{B}上方", "{B}在{A}下面", "{B}在{A}下方"),
    ),
}
"""How two pictures lie, and what is said of it in English and Chinese."""
COLOUR_EN = re.compile(rf"\b(?:light |dark )?(?:{'|'.join(word for c in COLOURS for word in c.en)})\b")
COLOUR_ZH = re.compile("[浅深]?(?:红|橙|橘|黄|绿|蓝|紫|粉红|粉|棕|褐|黑|白|灰)色?的?")


COMMONER = {
    "automobile": ("car", "轿车"), "oncoming automobile": ("car", "汽车"), "sport utility vehicle": ("car", "汽车"),
    "bicycle": ("bike", "单车"), "airplane": ("plane", "客机"), "passenger ship": ("ship", "轮船"),
    "sailboat": ("boat", "小船"), "motorcycle": ("motorbike", "摩托"), "t-shirt": ("shirt", "衬衫"),
    "mobile phone": ("phone", "手机"), "hatching chick": ("chick", "小鸡"), "baby chick": ("chick", "小鸡"),
    "evergreen tree": ("tree", "树"), "deciduous tree": ("tree", "树"), "teacup without handle": ("cup", "杯子"),
}  # fmt: skip
"""Plain labels and what people call the thing more often."""


@dataclass(frozen=True)
class Thing:
    """A picture with what it may be called when its colour is said apart."""

    id: str
    pixels: np.ndarray
    """uint8 (h, w, 4), straight alpha."""
    captions: tuple[str, ...]
    en: tuple[str, ...]
    """Names without a colour; the first is the label's."""
    zh: tuple[str, ...]
    style: str
    weight: float = 1.0


@dataclass(frozen=True)
class Made:
    """One new picture."""

    kind: Literal["moved", "recoloured", "composed"]
    pixels: np.ndarray
    captions: list[str]
    things: tuple[Thing, ...]


def nouns(concept: Concept) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a concept's thing is called without its colour, in English and Chinese; () where it is no single thing.

    The label without a colour word or a trailing "face", and for a few things the commoner word.
    """
    if (concept.group not in COUNTABLE and concept.subgroup not in COUNTABLE_SUBGROUPS) or concept.subgroup == "time":
        return (), ()
    if ":" in concept.en or "button" in concept.en:
        return (), ()
    en = plain(concept.en)
    # 黄瓜 is no melon of a colour: the Chinese name loses a colour only where the English one did.
    zh = COLOUR_ZH.sub("", concept.zh, count=1) if COLOUR_EN.search(concept.en) else concept.zh
    if concept.en.endswith(" face"):
        zh = zh.removesuffix("脸")
    if not en or not zh:
        return (), ()
    also = COMMONER.get(en)
    return ((en, also[0]), (zh, also[1])) if also else ((en,), (zh,))


def plain(label: str) -> str:
    """An English label without its colour words and a trailing "face"."""
    return " ".join(COLOUR_EN.sub("", label).split()).removesuffix(" face")


def coloured_names(concepts: Sequence[Concept]) -> dict[tuple[str, str], list[str]]:
    """(plain label, colour) -> hexcodes, of every concept whose label names a colour: a red heart painted blue is one.

    Shades count as their colour, and "gray" as "grey".
    """
    out: dict[tuple[str, str], list[str]] = {}
    for concept in concepts:
        for word in COLOUR_EN.findall(concept.en):
            colour = next(c for c in COLOURS if word.split()[-1] in c.en)
            out.setdefault((plain(concept.en), colour.en[0]), []).append(concept.hex)
    return out


def make(
    things: Sequence[Thing], counts: tuple[int, int, int], hidden: Callable[[Thing, Colour], bool], seed: int = 0
) -> Iterator[Made]:
    """New pictures by a fixed seed: `counts` moved, recoloured and composed ones, fewer where a draw does not do.

    hidden(thing, colour) says that a thing in a colour would be a held-out picture's subject: it is never painted so.
    """
    rng = np.random.default_rng(seed)
    share = np.cumsum([thing.weight for thing in things])
    named = [thing for thing in things if thing.en and thing.zh]
    by_style: dict[str, list[Thing]] = {}
    for thing in named:
        by_style.setdefault(thing.style, []).append(thing)
    moved_count, recoloured_count, composed_count = counts
    for _ in range(moved_count if len(things) else 0):
        thing = things[min(int(np.searchsorted(share, rng.random() * share[-1])), len(things) - 1)]
        yield Made("moved", moved(thing.pixels, rng), list(thing.captions), (thing,))
    for _ in range(recoloured_count if named else 0):
        thing = named[rng.integers(len(named))]
        colour = COLOURS[rng.integers(len(COLOURS))]
        pixels = None if hidden(thing, colour) else recoloured(thing.pixels, colour, rng)
        if pixels is None:
            continue
        if rng.random() < 0.3:
            pixels = moved(pixels, rng)
        yield Made("recoloured", pixels, coloured_captions(thing, colour, rng), (thing,))
    for _ in range(composed_count if named else 0):
        first = named[rng.integers(len(named))]
        others = by_style[first.style]
        second = others[rng.integers(len(others))]
        made = composed(first, second, hidden, rng)
        if made is not None:
            yield made


def coloured_captions(thing: Thing, colour: Colour, rng: np.random.Generator) -> list[str]:
    """Ways to say a thing of a colour, as many English as Chinese."""
    en, zh = pick(rng, thing.en), pick(rng, thing.zh)
    c, z = pick(rng, colour.en), pick(rng, colour.zh)
    return [f"{c} {en}", with_article(f"{c} {en}"), f"{colour.zh[0]}的{zh}", f"{z}{zh}"]


def composed(
    first: Thing, second: Thing, hidden: Callable[[Thing, Colour], bool], rng: np.random.Generator
) -> Made | None:
    """Two things of one style on one ground, beside or above each other, often in colours of their own."""
    if set(first.en) & set(second.en) or set(first.zh) & set(second.zh):
        return None
    pixels, en, zh = [], [], []
    coloured = rng.random() < 0.65
    colours = rng.choice(len(COLOURS), 2, replace=False)
    for thing, at in zip((first, second), colours, strict=True):
        colour = COLOURS[at]
        painted = recoloured(thing.pixels, colour, rng) if coloured and not hidden(thing, colour) else None
        pixels.append(thing.pixels if painted is None else painted)
        name, said = pick(rng, thing.en), pick(rng, thing.zh)
        en.append(with_article(name if painted is None else f"{pick(rng, colour.en)} {name}"))
        zh.append(said if painted is None else f"{colour.zh[0]}的{said}")
    place: Literal["beside", "above"] = "beside" if rng.random() < 0.7 else "above"
    english, chinese = PLACES[place]
    captions = [
        pick(rng, english).format(a=en[0], b=en[1]), pick(rng, chinese).format(A=zh[0], B=zh[1]),
    ]  # fmt: skip
    return Made("composed", joined(pixels[0], pixels[1], place, rng), captions, (first, second))


def pick(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]


def with_article(noun: str) -> str:
    """The noun after its indefinite article, by its first letter."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


# Pixels


def moved(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The picture a little smaller and elsewhere, whole."""
    side = pixels.shape[0]
    size = int(side * rng.uniform(0.7, 1.0))
    return laid([(pixels, size, (rng.random(), rng.random()))], side)


def joined(a: np.ndarray, b: np.ndarray, place: Literal["beside", "above"], rng: np.random.Generator) -> np.ndarray:
    """Both trimmed and made to fit a half each: a to the left of b, or a above b, with a little play."""
    side = a.shape[0]
    out = []
    for pixels, half in ((a, 0.0), (b, 1.0)):
        size = int(side * rng.uniform(0.42, 0.5))
        across, along = half + rng.uniform(0, 0.06) * (1 - 2 * half), rng.uniform(0.3, 0.7)
        out.append((trimmed(pixels), size, (along, across) if place == "above" else (across, along)))
    return laid(out, side)


def laid(parts: Sequence[tuple[np.ndarray, int, tuple[float, float]]], side: int) -> np.ndarray:
    """Pictures on a clear ground: (pixels, longer side in pixels, place (x, y) in 0..1 of the room that is left)."""
    ground = Image.new("RGBA", (side, side))
    for pixels, size, (x, y) in parts:
        image = Image.fromarray(pixels)
        scale = size / max(image.size)
        width, height = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize((width, height), Image.Resampling.LANCZOS)
        ground.alpha_composite(image, (round((side - width) * x), round((side - height) * y)))
    out = np.array(ground, dtype=np.uint8)
    out[out[..., 3] == 0] = (255, 255, 255, 0)
    return out


def trimmed(pixels: np.ndarray) -> np.ndarray:
    """Without the clear margin."""
    rows, cols = (np.flatnonzero((pixels[..., 3] > 8).any(axis=axis)) for axis in (1, 0))
    return pixels[rows[0] : rows[-1] + 1, cols[0] : cols[-1] + 1] if len(rows) else pixels


def recoloured(pixels: np.ndarray, colour: Colour, rng: np.random.Generator) -> np.ndarray | None:
    """The picture with its body in another colour; None when it has no body of one colour, or too small a one.

    The body is what shares the main hue, or else the grey part; eyes, outlines and ornaments keep their colours.
    """
    alpha = pixels[..., 3] / 255.0
    total = alpha.sum()
    lab = oklab(pixels[..., :3])  # (h, w, 3)
    light, a, b = lab[..., 0], lab[..., 1], lab[..., 2]
    chroma, hue = np.hypot(a, b), np.arctan2(b, a)
    main = main_hue(hue, alpha * chroma * (chroma > PALE))
    near = np.abs(np.angle(np.exp(1j * (hue - main))))
    body = np.clip((SPREAD - near) / 0.2, 0, 1) * np.clip((chroma - PALE) / 0.01, 0, 1)  # (h, w) in 0..1
    if (body * alpha).sum() < BODY * total:
        grey = np.clip((PALE + 0.01 - chroma) / 0.01, 0, 1) * np.clip((light - 0.3) / 0.15, 0, 1)
        if (grey * alpha).sum() < BODY * total:
            return None
        body = grey
    mass = (body * alpha).sum()
    middle, depth = (body * alpha * light).sum() / mass, (body * alpha * chroma).sum() / mass
    target = oklab(np.array(colour.rgb, np.uint8)[None, None])[0, 0] * [1, *(2 * [rng.uniform(0.9, 1.1)])]
    target[0] += rng.uniform(-0.03, 0.03)
    # Light and shade stay, less of it where the target leaves little room above or below.
    room = min(1.0, (1.02 - target[0]) / 0.25, target[0] / 0.45)
    fresh = np.empty_like(lab)
    fresh[..., 0] = np.clip(target[0] + (light - middle) * room, 0.02, 0.99)
    strength = np.clip(chroma / depth, 0.5, 1.25) if depth > PALE else np.ones_like(chroma)
    fresh[..., 1:] = target[1:] * strength[..., None]
    out = pixels.copy()
    out[..., :3] = srgb(lab + (fresh - lab) * body[..., None])
    out[pixels[..., 3] == 0] = (255, 255, 255, 0)
    return out


def main_hue(hue: np.ndarray, weight: np.ndarray) -> float:
    """The hue in radians around which the most weight lies."""
    bins = np.linspace(-np.pi, np.pi, 36, endpoint=False)
    counts = np.bincount(((hue + np.pi) / (2 * np.pi) * 36).astype(int).ravel() % 36, weight.ravel(), 36)
    smooth = sum(np.roll(counts, shift) for shift in range(-3, 4))
    return float(bins[int(np.argmax(smooth))] + np.pi / 36)


def belies(pixels: np.ndarray, word: str) -> bool:
    """Whether the picture is plainly of another hue than the colour of this English name; black to white: never."""
    colour = next(c for c in COLOURS if word in c.en)
    wanted = oklab(np.array(colour.rgb, np.uint8)[None])[0]
    if np.hypot(*wanted[1:]) < PALE:
        return False
    lab = oklab(pixels[pixels[..., 3] > 127][:, :3])
    chroma, hue = np.hypot(lab[:, 1], lab[:, 2]), np.arctan2(lab[:, 2], lab[:, 1])
    gap = np.abs(np.angle(np.exp(1j * (hue - np.arctan2(wanted[2], wanted[1])))))
    return bool((chroma > PALE).mean() > 0.3 and (gap[chroma > PALE] < SPREAD).mean() < 0.1)


TO_LMS = np.array([[0.4122214708, 0.5363325363, 0.0514459929], [0.2119034982, 0.6806995451, 0.1073969566],
                   [0.0883024619, 0.2817188376, 0.6299787005]])  # fmt: skip
TO_LAB = np.array([[0.2104542553, 0.7936177850, -0.0040720468], [1.9779984951, -2.4285922050, 0.4505937099],
                   [0.0259040371, 0.7827717662, -0.8086757660]])  # fmt: skip


def oklab(rgb: np.ndarray) -> np.ndarray:
    """sRGB uint8 (..., 3) to OKLab (lightness 0..1, a, b). Source: Ottosson 2020, A perceptual color space."""
    x = rgb / 255.0
    linear = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    out: np.ndarray = np.cbrt(linear @ TO_LMS.T) @ TO_LAB.T
    return out


def srgb(lab: np.ndarray) -> np.ndarray:
    """OKLab (..., 3) to sRGB uint8, clipped to what sRGB holds."""
    linear = np.clip((lab @ np.linalg.inv(TO_LAB).T) ** 3 @ np.linalg.inv(TO_LMS).T, 0, 1)
    x = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    out: np.ndarray = np.rint(x * 255).astype(np.uint8)
    return out
