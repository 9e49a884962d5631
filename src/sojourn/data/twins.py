"""Which rows are copies or look-alikes of each other, and which split a group of them goes to.

Works on hashes and small pictures. Knows nothing about files or formats.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Literal

import numpy as np
from PIL import Image

from sojourn.data.clean import to_channels

Split = Literal["train", "valid", "test"]

_MOST_PAIRS = 2_000_000
_MOST_COMPARED = 256
_ALIKE = 40.0
"""Mean difference of 16x16 thumbnails, of 255, up to which equal-looking hashes make two rows one group."""
_SAME = 2.0
"""Mean difference of the pictures, of 255, up to which one of them is dropped …"""
_SAME_SPOT = 8.0
"""… if no 8x8 spot differs by more than this: a clock's other hand is another picture."""


class Groups:
    """Disjoint groups of rows that grow together (union-find); the smallest row names a group."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def find(self, row: int) -> int:
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, one: int, other: int) -> None:
        first, second = sorted((self.find(one), self.find(other)))
        self._parent[second] = first


def neighbours(hashes: np.ndarray, distance: int) -> tuple[list[list[int]], bool]:
    """For each of the distinct uint64 `hashes` the others within `distance` bits, nearest first; and whether all are.

    Two words that differ in at most d bits agree in one of d + 1 bands, so only rows of equal bands are compared.
    """
    found, count = [np.zeros((0, 2), np.int64)], 0
    for pairs in _close_pairs(hashes, distance):
        found.append(pairs)
        count += len(pairs)
        if count > _MOST_PAIRS:
            break
    pairs = np.unique(np.concatenate(found), axis=0)
    gaps = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    table: list[list[int]] = [[] for _ in hashes]
    for one, other in pairs[np.argsort(gaps, kind="stable")].tolist():
        table[one].append(other)
        table[other].append(one)
    return table, count <= _MOST_PAIRS


def _close_pairs(hashes: np.ndarray, distance: int) -> Iterator[np.ndarray]:
    """(n, 2) row numbers, smaller first; a pair may come several times."""
    edges = np.linspace(0, 64, distance + 2).astype(int).tolist()
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << (high - low)) - 1)
        order = np.argsort(band, kind="stable")
        ends = [*(np.flatnonzero(np.diff(band[order])) + 1).tolist(), len(order)]
        for start, stop in pairwise([0, *ends]):
            rows = order[start:stop]
            step = max(1, (1 << 20) // len(rows)) if len(rows) > 1 else stop
            for at in range(0, len(rows) if len(rows) > 1 else 0, step):
                left, right = np.nonzero(
                    np.bitwise_count(hashes[rows[at : at + step], None] ^ hashes[rows]) <= distance
                )
                pairs = np.stack([rows[at + left], rows[right]], axis=1)
                yield pairs[pairs[:, 0] < pairs[:, 1]]


def look_alikes(
    hashes: Sequence[int], order: Sequence[int], picture: Callable[[int], np.ndarray], distance: int, drop: bool
) -> tuple[Groups, dict[int, int], bool]:
    """Groups of pictures that look alike, {dropped row: the row it repeats}, and whether all pairs were seen.

    `order` is the rows from the most to the least wanted: of two near-identical ones the first stays.
    `picture(row)` is uint8 (h, w, c).
    """
    groups = Groups(len(hashes))
    repeats: dict[int, int] = {}
    if distance == 0:
        return groups, repeats, True
    unique, where = np.unique(np.array(hashes, np.uint64), return_inverse=True)
    near, whole = neighbours(unique, distance)
    crowd = np.bincount(where, minlength=len(unique))
    kept: dict[int, list[int]] = {}
    thumbs: dict[int, np.ndarray] = {}
    for row in order:
        key = int(where[row])
        if crowd[key] == 1 and not near[key]:
            continue
        thumbs[row] = _premultiplied(picture(row), 16)
        others = [k for h in (key, *near[key]) for k in kept.get(h, ())]
        whole = whole and len(others) <= _MOST_COMPARED
        others = others[:_MOST_COMPARED]
        if others:
            gaps = _gaps(np.stack([thumbs[k] for k in others]), thumbs[row]).mean(axis=(2, 3)).max(axis=0)
            for i in np.argsort(gaps, kind="stable"):
                if gaps[i] > _ALIKE:
                    break
                groups.join(row, others[i])
                if drop and gaps[i] <= _SAME * 2 and row not in repeats and _same(picture(row), picture(others[i])):
                    repeats[row] = others[i]
        if row not in repeats:
            kept.setdefault(key, []).append(row)
    return groups, repeats, whole


def _premultiplied(array: np.ndarray, size: int | None = None) -> np.ndarray:
    """int16 (h, w, 4), reduced to size x size if given."""
    image = Image.fromarray(to_channels(array, 4)).convert("RGBa")
    if size is not None:
        image = image.resize((size, size), Image.Resampling.BOX)
    return np.asarray(image).astype(np.int16)


def _gaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Differences (2, ..., h, w) of premultiplied pictures, on black and on white, so that no drawing vanishes."""
    gap = one - other
    colour, alpha = gap[..., :3], gap[..., 3:]
    return np.stack([np.abs(colour).mean(axis=-1), np.abs(colour - alpha).mean(axis=-1)])


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether nobody would tell the two apart, on whatever background."""
    gap = _gaps(_premultiplied(one), _premultiplied(other))
    height, width = (size - size % 8 for size in gap.shape[1:])
    spots = gap[:, :height, :width].reshape(2, height // 8, 8, width // 8, 8).mean(axis=(2, 4))
    return bool(gap.mean(axis=(1, 2)).max() <= _SAME and spots.max() <= _SAME_SPOT)


def split(group: Sequence[str], given: Sequence[Split | None], valid: float, test: float) -> tuple[list[Split], int]:
    """The split of every row, the same for a whole group; and how many rows' given split gave way to that.

    A group goes where the hash of its name falls, so that a set that grows keeps its splits. A given split wins over
    the hash; where a group was given several, test wins over valid over train. Where none was given "valid", it is
    taken by the hash from what was given "train". With three groups or more no wanted split stays empty where none was
    given, and train never does.
    """
    rank: dict[Split, int] = {"train": 0, "valid": 1, "test": 2}
    wanted: dict[str, Split] = {}
    for name, fixed in zip(group, given, strict=True):
        if fixed is not None and rank[fixed] >= rank[wanted.get(name, "train")]:
            wanted[name] = fixed
    place: dict[str, float] = {
        name: int(hashlib.sha256(name.encode()).hexdigest()[:13], 16) / 16**13 for name in dict.fromkeys(group)
    }
    parts: dict[str, Split] = {}
    for name, at in place.items():
        parts[name] = wanted.get(name) or ("valid" if at < valid else "test" if at < valid + test else "train")
    lent = set()
    if "valid" not in wanted.values():
        lent = {name for name, fixed in wanted.items() if fixed == "train" and place[name] < valid}
        parts |= dict.fromkeys(lent, "valid")
    free = sorted((name for name in place if name not in wanted), key=lambda name: place[name])
    if len(free) >= 3 and not wanted:
        for part, share in (("valid", valid), ("test", test)):
            if share > 0 and part not in parts.values():
                parts[next(name for name in free if parts[name] == "train")] = part  # type: ignore[assignment]
    if "train" not in parts.values() and not wanted and free:
        parts[free[-1]] = "train"
    out = [parts[name] for name in group]
    moved = [
        fixed not in (None, part) and name not in lent for name, fixed, part in zip(group, given, out, strict=True)
    ]
    return out, sum(moved)
