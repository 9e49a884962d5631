"""Text files to documents: encodings told apart, cut into documents, copies and near copies found.

Knows nothing about folders, sets or tokenizers.
"""

from __future__ import annotations

import codecs
import hashlib
import re
import unicodedata
from collections.abc import Iterator
from typing import Literal

import numpy as np

from sojourn.data.clean import Refused

Cut = Literal["auto", "file", "paragraph", "line"]

_BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_PARAGRAPHS = re.compile(r"\n[ \t]*\n\s*")
_WORDLESS = re.compile(r"[\W_]+")
_PIECE = 1 << 20
_TELLING = 20
"""Characters from which on it is no chance that all are of some rows."""


def decode(data: bytes) -> tuple[str, str]:
    """(text with plain newlines, encoding): by its mark, else UTF-8, else GB18030 where that reads as Chinese.

    Raises Refused for bytes that are none of these: a wrong guess would train on rubbish.
    """
    for mark, encoding in _BOMS:
        if data.startswith(mark):
            return _strict(data, encoding), encoding
    try:
        return _strict(data, "utf-8"), "utf-8"
    except Refused:
        text = _strict(data, "gb18030")
    # Western bytes often decode as GB18030 too, but then to rare characters: Chinese is mostly in GB2312. Korean does
    # so to the rows before C9, where three fifths of Chinese are and all of hangul; kana are where Japanese has them.
    foreign = [c for c in text if c > "\x7f"]
    common = [code for c in foreign if (code := c.encode("gb2312", "ignore"))]
    characters = [code for code in common if code[0] >= 0xB0]
    late = sum(code[0] >= 0xC9 for code in characters)
    kana = sum(code[0] in (0xA4, 0xA5) for code in common)
    korean = len(characters) >= _TELLING and late * 50 < len(characters)
    if len(common) * 2 < len(foreign) or korean or kana * 4 > len(foreign):
        raise Refused("encoding not known", "neither UTF-8 nor GB18030; save it as UTF-8")
    return text, "gb18030"


def _strict(data: bytes, encoding: str) -> str:
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError:
        raise Refused("encoding not known", "neither UTF-8 nor GB18030; save it as UTF-8") from None
    if "\0" in text:
        raise Refused("not a text", "it has zero bytes")
    return text.replace("\r\n", "\n").replace("\r", "\n")


def documents(text: str, cut: Cut) -> Iterator[str]:
    """The documents of a text, stripped, none empty. "auto" cuts at blank lines, or at lines where there are none."""
    if cut == "auto":
        cut = "paragraph" if _PARAGRAPHS.search(text.strip()) else "line"
    parts = [text] if cut == "file" else text.split("\n") if cut == "line" else _PARAGRAPHS.split(text)
    for part in parts:
        stripped = part.strip()
        if stripped:
            yield stripped


def fingerprint(text: str) -> str:
    """sha256 (hex) that ignores case, width, spaces and punctuation, unless nothing else is there."""
    plain = unicodedata.normalize("NFKC", text).casefold()
    core = _WORDLESS.sub("", plain) or "".join(plain.split())
    return hashlib.sha256(core.encode("utf-8", "surrogatepass")).hexdigest()


def similarity_hash(text: str) -> int:
    """64 bits of which near copies share nearly all: simhash over runs of four characters.

    Source: Charikar 2002, sec. 3; for near-duplicate pages at distance <= 3, Manku et al. 2007.
    """
    plain = _WORDLESS.sub("", unicodedata.normalize("NFKC", text).casefold()) or text
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    points = np.pad(points, (0, max(0, 4 - len(points))))
    votes = np.zeros(64, np.int64)
    for start in range(0, len(points) - 3, _PIECE):
        piece = points[start : start + _PIECE + 3]
        grams = piece[:-3]
        for shift in (1, 2, 3):
            grams = _mix(grams * np.uint64(0x9E3779B97F4A7C15) + piece[shift : len(piece) - 3 + shift])
        bits = np.unpackbits(grams.view(np.uint8).reshape(-1, 8), axis=1)
        votes += 2 * bits.sum(axis=0, dtype=np.int64) - len(bits)
    return int.from_bytes(np.packbits(votes > 0).tobytes(), "big")


def _mix(values: np.ndarray) -> np.ndarray:
    """A bijection of 64-bit words that spreads every bit (the finaliser of splitmix64)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = values ^ (values >> np.uint64(31))
    return mixed
