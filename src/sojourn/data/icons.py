"""Emoji drawings: which icon of a package draws which code points, and its pixels.

Knows nothing about captions, splits or packed sets.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
from PIL import Image

from sojourn.errors import DataError, Unsupported

TRANSPOSE = {1: Image.Transpose.ROTATE_270, 2: Image.Transpose.ROTATE_180, 3: Image.Transpose.ROTATE_90}
"""Iconify's quarter turns, clockwise."""


def code(points: str) -> str:
    """Code points in upper case without variation selectors, so that any two spellings of an emoji agree."""
    return "-".join(part for part in points.upper().split("-") if part != "FE0F")


def key(name: str) -> str:
    """A name with case, accents and punctuation taken off: `Piñata` and `pinata` agree."""
    plain = unicodedata.normalize("NFKD", name.casefold().replace("&", "and"))
    return "".join(letter for letter in plain if letter.isalnum())


@dataclass
class IconSet:
    """An Iconify package: SVG bodies, aliases with their turns and flips, code points -> names."""

    icons: dict[str, dict[str, Any]]
    aliases: dict[str, dict[str, Any]]
    chars: dict[str, str]
    width: float
    height: float
    keys: dict[str, str] = field(init=False)
    """key(name) -> name, an icon's own name before an alias."""

    def __post_init__(self) -> None:
        self.keys = {}
        for name in [*self.icons, *self.aliases]:
            self.keys.setdefault(key(name), name)

    @classmethod
    def read(cls, files: Mapping[str, bytes], package: str) -> IconSet:
        """From `icons.json` and `chars.json` of a package. Raises DataError when they do not parse."""
        try:
            icons = json.loads(files["icons.json"])
            chars = json.loads(files.get("chars.json", b"{}"))
            size = float(icons.get("width", 16)), float(icons.get("height", 16))
            return cls(icons["icons"], icons.get("aliases", {}), {code(k): v for k, v in chars.items()}, *size)
        except (KeyError, ValueError, AttributeError, TypeError) as error:
            raise DataError(
                'package "{package}" holds no Iconify icons ({reason})', package=package, reason=repr(error)
            ) from error

    def root(self, name: str) -> str | None:
        """The icon a name or alias stands for, None when there is none."""
        for _ in range(8):
            if name in self.icons:
                return name
            if name not in self.aliases:
                return None
            name = self.aliases[name]["parent"]
        return None

    def svg(self, name: str) -> tuple[str, list[dict[str, Any]]]:
        """The SVG of an icon in a square box, and the transforms to apply after drawing, in order."""
        turns: list[dict[str, Any]] = []
        while name not in self.icons:
            turns.insert(0, self.aliases[name])
            name = self.aliases[name]["parent"]
        icon = self.icons[name]
        turns.insert(0, icon)
        width, height = float(icon.get("width", self.width)), float(icon.get("height", self.height))
        left, top = float(icon.get("left", 0)), float(icon.get("top", 0))
        body = icon["body"].replace("currentColor", "#000000")
        side = max(width, height)
        box = f"{left - (side - width) / 2} {top - (side - height) / 2} {side} {side}"
        head = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
        return f'{head} viewBox="{box}" width="{side}" height="{side}">{body}</svg>', turns


def match(
    targets: Iterable[tuple[str, list[list[str]]]], drawn: IconSet, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """code -> icon name, for each (code, tiers of names) that the set draws; an icon draws one code at most.

    Tiers go from surest to vaguest, and a surer name of one emoji wins over a vaguer one of another.
    `extra` names icons outright and wins over all; an empty name leaves that emoji undrawn.
    """
    rows = [(points, tiers) for points, tiers in targets if (extra or {}).get(points) != ""]
    known = {points for points, _ in rows}
    sure = drawn.chars | dict(extra or {})
    found = {points: name for points, name in sure.items() if points in known and drawn.root(name)}
    taken = {_picture(drawn, name) for name in found.values()}
    for tier in range(max((len(tiers) for _, tiers in rows), default=0)):
        for points, tiers in rows:
            if points in found or tier >= len(tiers):
                continue
            for candidate in tiers[tier]:
                name = drawn.keys.get(key(candidate))
                if name is not None and _picture(drawn, name) not in taken:
                    found[points] = name
                    taken.add(_picture(drawn, name))
                    break
    return found


def _picture(drawn: IconSet, name: str) -> tuple[str, bool]:
    """What tells two icons apart: the root and whether an alias turns it."""
    alias = drawn.aliases.get(name, {}) if name not in drawn.icons else {}
    return drawn.root(name) or name, any(k in alias for k in ("hFlip", "vFlip", "rotate"))


def draw_svg(svg: str, turns: list[dict[str, Any]], size: int) -> np.ndarray:
    """Pixels of an SVG, uint8 (size, size, 4), straight alpha, transparent pixels white.

    Raises DataError for an SVG that does not draw, that reaches outside itself or draws nothing.
    """
    try:
        import resvg_py
    except ImportError as error:
        raise Unsupported('drawing emoji needs resvg-py; install it with: pip install "sojourn[data]"') from error
    if re.search(r"""href\s*=\s*["']?\s*(?!["'#\s])""", svg) or "url(http" in svg or "url(file" in svg:
        raise DataError("an SVG refers to something outside itself")
    try:
        png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True, width=2 * size, height=2 * size)
    except (ValueError, RuntimeError) as error:
        raise DataError("an SVG does not draw ({reason})", reason=str(error)[:120]) from error
    image = Image.open(io.BytesIO(bytes(png))).convert("RGBA")
    for turn in turns:
        if turn.get("hFlip"):
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        if turn.get("vFlip"):
            image = image.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
        if turn.get("rotate", 0) % 4:
            image = image.transpose(TRANSPOSE[turn["rotate"] % 4])
    return shrink(image, size)


def draw_bitmap(data: bytes, size: int) -> np.ndarray:
    """Pixels of a PNG or WebP, uint8 (size, size, 4), straight alpha. Raises DataError when it does not decode."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "WEBP")) as image:
            if max(image.size) > 4096:
                raise DataError("a picture has {found} pixels a side, 4096 at most", found=max(image.size))
            return shrink(image.convert("RGBA"), size)
    except (OSError, ValueError) as error:
        raise DataError("a picture does not decode ({reason})", reason=str(error)[:120]) from error


def shrink(image: Image.Image, size: int) -> np.ndarray:
    """An RGBA image centred on a square and resized with premultiplied alpha (which Pillow does itself for RGBA).

    uint8 (size, size, 4); wholly transparent pixels are white, so that dropping alpha shows a white ground.
    """
    side = max(image.size)
    if image.size != (side, side):
        square = Image.new("RGBA", (side, side))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    if side != size:
        exact = side % size == 0
        image = image.resize((size, size), Image.Resampling.BOX if exact else Image.Resampling.LANCZOS)
    pixels = np.array(image, dtype=np.uint8)
    if not pixels[..., 3].any():
        raise DataError("a picture is wholly transparent")
    pixels[pixels[..., 3] == 0] = (255, 255, 255, 0)
    return cast(np.ndarray, pixels)
