"""Words that no caption had, by the name that means most nearly the same: from a set of words with a teacher's vectors.

It is asked when a package is built. Knows nothing about nets and prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from sojourn.data.dataset import PackedSet
from sojourn.data.wordnet import Kinds
from sojourn.errors import InvalidInput

KINSHIP = 1.0
"""What being the same kind of thing counts against the teacher's cosine, which is 0.6 to 0.9 for words of one meaning
and puts "moth" nearer to "worm" than to "butterfly"."""
LEAST = {True: 0.45, False: 0.65}
"""Cosine below which nothing is near, of English words, which WordNet says to be things, and of Chinese ones."""


def near_names(names: Sequence[str], strange: Callable[[str], bool], words: PackedSet) -> dict[str, list[str]]:
    """Name -> the single words for things in `words` that are `strange` and nearest to it, names and words sorted.

    English words with English names, Chinese ones with Chinese; a name counts when `words` has it too. Raises
    InvalidInput for a set without vectors.
    """
    if words.target is None:
        raise InvalidInput('the set "{name}" has no vectors of a teacher; use "words"', name=words.info.name)
    rows = {row["captions"][0]: i for i, row in enumerate(words.rows)}
    found: dict[str, list[str]] = {}
    for english in (True, False):
        known = [name for name in names if name.isascii() == english and name.lower() in rows]
        asked = [
            word for word, i in rows.items()
            if word.isascii() == english and words.rows[i].get("kinds" if english else "noun") and strange(word)
        ]  # fmt: skip
        if not known or not asked:
            continue
        cosines = _unit(words, [rows[word] for word in asked]) @ _unit(words, [rows[name.lower()] for name in known]).T
        kin = Kinship([_kinds(name.lower(), words, rows) for name in known])
        for word, cosine in zip(asked, cosines, strict=True):
            near = np.where(cosine < LEAST[english], -np.inf, cosine)
            if (near > -np.inf).any():
                best = int((near + KINSHIP * kin.to(words.rows[rows[word]].get("kinds", ()))).argmax())
                found.setdefault(known[best], []).append(word)
    return {name: sorted(found[name]) for name in sorted(found)}


class Kinship:
    """How near other nouns are to some of which the kinds are known: 1 / (1 + steps by way of a kind of both)."""

    def __init__(self, nouns: Sequence[Kinds]) -> None:
        self.count = len(nouns)
        self.steps: dict[str, np.ndarray] = {}
        for at, kinds in enumerate(nouns):
            for chain in kinds:
                for up, kind in enumerate(chain):
                    steps = self.steps.setdefault(kind, np.full(self.count, np.inf))
                    steps[at] = min(steps[at], up)

    def to(self, kinds: Kinds) -> np.ndarray:
        """(n,) in 0..1; 0 where nothing is shared."""
        least = np.full(self.count, np.inf)
        for chain in kinds:
            for up, kind in enumerate(chain):
                if kind in self.steps:
                    least = np.minimum(least, up + self.steps[kind])
        return np.asarray(1 / (1 + least))


def _kinds(name: str, words: PackedSet, rows: dict[str, int]) -> Kinds:
    """Of a name, or else of its last word."""
    for part in (name, name.split()[-1]):
        if part in rows and (kinds := words.rows[rows[part]].get("kinds")):
            return list(kinds)
    return ()


def _unit(words: PackedSet, rows: Sequence[int]) -> np.ndarray:
    assert words.target is not None
    vectors = np.asarray(words.target[list(rows)], np.float32)
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True).clip(1e-9))
