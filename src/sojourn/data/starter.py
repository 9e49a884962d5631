"""The starter sets by name, and the one that needs nothing fetched: scikit-learn's digits.

Knows nothing about nets; every builder takes where to write and options, and yields events.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sojourn.data.dataset import Item, LabelColumn, SetInfo, SetWriter
from sojourn.data.emoji import build_emoji
from sojourn.data.glyphs import build_glyphs
from sojourn.data.poems import build_poems
from sojourn.data.splits import share_split
from sojourn.data.words import build_words
from sojourn.errors import NotFound, Unsupported
from sojourn.schema import Done, Event, Source

DIGITS = (
    ("zero", "零"), ("one", "一"), ("two", "二"), ("three", "三"), ("four", "四"),
    ("five", "五"), ("six", "六"), ("seven", "七"), ("eight", "八"), ("nine", "九"),
)  # fmt: skip


def build_digits(to: Path) -> Iterator[Event]:
    """Build the digit set at `to`: scikit-learn's 1,797 scans, uint8 (8, 8, 1), 0 = paper, label column "class".

    Raises Unsupported without scikit-learn.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Unsupported('the digits need scikit-learn; install it with: pip install "sojourn[data]"') from error
    bunch = load_digits()
    pixels = np.rint(np.asarray(bunch.images) * (255 / 16)).astype(np.uint8)[..., None]  # stored as 0..16
    info = SetInfo(
        name="digits", kind="image", shape=(8, 8, 1),
        labels=[LabelColumn(name="class", values=[str(i) for i in range(10)])],
        sources=[
            Source(
                name="scikit-learn digits (UCI optical recognition of handwritten digits)", licence="CC-BY-4.0",
                attribution="E. Alpaydin, C. Kaynak, UCI Machine Learning Repository", count=len(pixels),
                url="https://archive.ics.uci.edu/dataset/80",
            )
        ],
        about="Handwritten digits, 8x8, light ink on dark.",
        held_out="80/10/10 by the sha256 of digits/row.",
    )  # fmt: skip
    with SetWriter(Path(to), info) as writer:
        for i, (image, label) in enumerate(zip(pixels, bunch.target, strict=True)):
            said = [str(label), *DIGITS[label]]
            name = f"digits/{i}"
            writer.add(Item(id=name, data=image, captions=said, labels=(int(label),), split=share_split(name)))
    yield Done(path=str(to), text=f"{len(pixels)} digits")


STARTERS: dict[str, Callable[..., Iterator[Event]]] = {
    "emoji": build_emoji,
    "glyphs": build_glyphs,
    "digits": build_digits,
    "poems": build_poems,
    "words": build_words,
}
"""Name -> builder(to, **options)."""


def build(name: str, to: Path, **options: object) -> Iterator[Event]:
    """Build the starter set of this name. Raises NotFound with the names there are."""
    if name not in STARTERS:
        raise NotFound('no starter set "{name}"; there are: {names}', name=name, names=", ".join(sorted(STARTERS)))
    return STARTERS[name](to, **options)
