"""How starter sets are split: by the hash of a name, so that a row keeps its split whatever is added beside it."""

from __future__ import annotations

from typing import Literal

from sojourn.data.concepts import digits


def share_split(name: str) -> Literal["train", "valid", "test"]:
    """80/10/10 by the first 8 hex digits of sha256(name), mod 10."""
    place = digits(name) % 10
    return "train" if place < 8 else "valid" if place == 8 else "test"
