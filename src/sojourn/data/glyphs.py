"""The starter set of glyphs: Chinese and Latin characters in the fonts of this machine, black on white.

Knows nothing about nets or prompts.
"""

from __future__ import annotations

import string
import time
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from sojourn.data.concepts import digits
from sojourn.data.dataset import Item, LabelColumn, SetInfo, SetWriter
from sojourn.data.splits import share_split
from sojourn.errors import DataError, InvalidInput, NotFound
from sojourn.schema import Done, Event, Progress, Source

COMMON = (
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可里后小么心多天而能"
    "好都然没日于起还发成事只作当想看文无开手十用主行方又如前所本见经头面公同三已老从动两长知民样现分将外但身些与高意进"
)
"""The commonest characters of modern Chinese."""
CHARACTERS = COMMON + string.ascii_uppercase + string.ascii_lowercase + string.digits


@dataclass(frozen=True)
class Face:
    """One face of a font file; `index` counts within a collection."""

    name: str
    path: Path
    licence: str
    index: int = 0


_SHARE = Path("/usr/share/fonts")
_DEJAVU = "Bitstream Vera and public domain"
FACES = (
    Face("wqy-microhei", _SHARE / "truetype/wqy/wqy-microhei.ttc", "Apache-2.0 or GPL-3.0 with font exception"),
    Face("wqy-zenhei", _SHARE / "truetype/wqy/wqy-zenhei.ttc", "GPL-2.0 with font exception"),
    Face("ar-pl-ukai", _SHARE / "truetype/arphic/ukai.ttc", "Arphic Public License"),
    Face("ar-pl-uming", _SHARE / "truetype/arphic/uming.ttc", "Arphic Public License"),
    Face("noto-sans-sc", _SHARE / "opentype/noto/NotoSansCJK-Regular.ttc", "OFL-1.1", 2),
    Face("noto-serif-sc", _SHARE / "opentype/noto/NotoSerifCJK-Regular.ttc", "OFL-1.1", 2),
    Face("lxgw-wenkai", _SHARE / "truetype/lxgw-wenkai/LXGWWenKai-Regular.ttf", "OFL-1.1"),
    Face("dejavu-sans", _SHARE / "truetype/dejavu/DejaVuSans.ttf", _DEJAVU),
    Face("dejavu-serif", _SHARE / "truetype/dejavu/DejaVuSerif.ttf", _DEJAVU),
    Face("dejavu-mono", _SHARE / "truetype/dejavu/DejaVuSansMono.ttf", _DEJAVU),
)
"""Where Debian puts the fonts that are known to draw well."""


def build_glyphs(
    to: Path,
    size: int = 64,
    fonts: Sequence[Path] | None = None,
    characters: str = CHARACTERS,
    copies: int = 6,
    seed: int = 0,
) -> Iterator[Event]:
    """Build the glyph set at `to`: uint8 (size, size, 1), labels "character" and "font", the character as caption.

    The first copy of a glyph is upright and centred; the others are shifted, scaled and turned a little, each by
    a draw from `seed` and its own name alone. Characters that a font lacks are skipped in that font.
    Raises NotFound when no font draws Chinese, DataError when a font file does not open.
    """
    if not (8 <= size <= 512 and 1 <= copies <= 1000):
        raise InvalidInput(
            "glyphs need a size of 8..512 and 1..1000 copies, not size {size} and {copies} copies",
            size=size, copies=copies,
        )  # fmt: skip
    wanted = list(dict.fromkeys(characters))
    if fonts is None:
        faces = [face for face in FACES if face.path.is_file()]
    else:
        stems = [Path(path).stem for path in fonts]
        faces = [
            Face(stem if stems.count(stem) == 1 else f"{stem}-{i}", Path(path), "unknown")
            for i, (stem, path) in enumerate(zip(stems, fonts, strict=True))
        ]
    opened = {face.name: (face, _open(face, size)) for face in faces}
    pairs = [(char, name) for name, (_, font) in opened.items() for char in wanted if has_glyph(font, char)]
    chinese = {char for char in wanted if "CJK" in unicodedata.name(char, "")}
    if not pairs or (chinese and chinese.isdisjoint(char for char, _ in pairs)):
        raise NotFound(
            "no font with Chinese characters was found ({count} fonts looked at); install some: "
            "apt-get install fonts-wqy-microhei fonts-arphic-ukai",
            count=len(faces),
        )
    drawn = [char for char in wanted if any(char == pair[0] for pair in pairs)]
    info = SetInfo(
        name="glyphs", kind="image", shape=(size, size, 1),
        sources=[Source(name=f"font {face.name}", licence=face.licence) for face, _ in opened.values()],
        labels=[LabelColumn(name="character", values=drawn), LabelColumn(name="font", values=list(opened))],
        about="Chinese and Latin characters in several fonts, black on white, shifted, scaled and turned a little.",
        held_out="A character in a font goes whole into one split: 80/10/10 by the sha256 of character/font.",
    )  # fmt: skip
    order = {char: i for i, char in enumerate(drawn)}
    shown = time.monotonic()
    with SetWriter(Path(to), info) as writer:
        for done, (char, name) in enumerate(pairs):
            source = list(opened).index(name)
            for copy in range(copies):
                row = f"{ord(char):04X}/{name}/{copy}"
                rng = np.random.default_rng([seed, digits(row)]) if copy else None
                writer.add(
                    Item(
                        id=row, data=draw_glyph(opened[name][1], char, size, rng), captions=[char],
                        labels=(order[char], source), group=f"{char}/{name}", split=share_split(f"{char}/{name}"),
                        source=source,
                    )
                )  # fmt: skip
                writer.info.sources[source].count += 1
            if time.monotonic() - shown > 0.5:
                shown = time.monotonic()
                yield Progress(done=done, total=len(pairs), unit="glyphs", text=name)
    yield Done(path=str(to), text=f"{len(pairs) * copies} pictures of {len(drawn)} characters in {len(opened)} fonts")


def has_glyph(font: ImageFont.FreeTypeFont, char: str) -> bool:
    """Whether the font draws this character and not its box for missing ones."""
    mask = font.getmask(char)
    missing = font.getmask("\U0010ffff")
    return mask.getbbox() is not None and (mask.size, bytes(mask)) != (missing.size, bytes(missing))


def draw_glyph(font: ImageFont.FreeTypeFont, char: str, size: int, rng: np.random.Generator | None) -> np.ndarray:
    """One glyph, uint8 (size, size, 1), 0 = ink. Upright and centred without `rng`, else moved a little by it."""
    side = 2 * size
    image = Image.new("L", (side, side), 255)
    left, top, right, bottom = font.getbbox(char)
    x, y = (side - left - right) / 2, (side - top - bottom) / 2
    ImageDraw.Draw(image).text((x, y), char, font=font, fill=0)
    if rng is not None:
        zoom, angle = 1 / rng.uniform(0.8, 1.12), np.deg2rad(rng.uniform(-8, 8))
        shift = rng.uniform(-0.07, 0.07, 2) * side
        cos, sin = zoom * np.cos(angle), zoom * np.sin(angle)
        cx, cy = side / 2 + shift[0], side / 2 + shift[1]
        back = (cos, sin, side / 2 - cos * cx - sin * cy, -sin, cos, side / 2 + sin * cx - cos * cy)
        image = image.transform(image.size, Image.Transform.AFFINE, back, Image.Resampling.BICUBIC, fillcolor=255)
    small = image.resize((size, size), Image.Resampling.BOX)
    return np.array(small, dtype=np.uint8)[..., None]


def _open(face: Face, size: int) -> ImageFont.FreeTypeFont:
    try:
        return ImageFont.truetype(str(face.path), round(1.5 * size), index=face.index)
    except OSError as error:
        raise DataError('"{path}" is not a font that opens ({reason})', path=face.path, reason=error) from error
