"""What the captions of a training said, for telling a prompt of which nothing was learned. Knows no tensors."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import TYPE_CHECKING

from pydantic import Field

from sojourn.codecs.text import normalise_prompt
from sojourn.data.near import near_names
from sojourn.data.variety import COLOURS
from sojourn.errors import PackageError
from sojourn.schema import Strict

if TYPE_CHECKING:
    from sojourn.data.dataset import PackedSet

VOCABULARY = "vocabulary.json"
HAN = re.compile("[\u3400-\u9fff]")
WORD = re.compile("[a-z0-9]+|[\u3400-\u9fff]")
SAYS_NOTHING = {
    "a", "an", "the", "of", "and", "with", "in", "on", "to", "is", "my", "your", "some",
    *"的了一个只和与在是我你有画",
}  # fmt: skip

COLOUR_WORDS = frozenset(word for colour in COLOURS for word in colour.en)
COLOUR_CHARACTERS = frozenset(character for colour in COLOURS for word in colour.zh for character in word) - {"色"}
COUNTS = frozenset("色只条辆座张把棵杯位朵颗匹头")
"""Characters beside a thing's name that say nothing of what it is."""
NAMES_MAX, WORDS_MAX = 20_000, 200_000
"""Of a vocabulary's file, so that a set of a million captions still makes a package."""


class Vocabulary(Strict):
    """What the captions of a training said."""

    names: list[str]
    """The first captions of its pictures, sorted."""
    words: list[str]
    """Every English word and every Chinese character of its captions, sorted."""
    near: dict[str, list[str]] = Field(default_factory=dict)
    """Name -> words for things that stood in no caption and mean nearly the same."""

    @classmethod
    def of(cls, data: PackedSet, texts: PackedSet | None = None) -> Vocabulary:
        """What the captions of `data` say, and what words of `texts` (with a teacher's vectors) mean nearly that."""
        names: set[str] = set()
        captions: set[str] = set()
        for row in (data.rows[i] for i in data.indices("train").tolist()):
            names |= set() if "made" in row else set(row["captions"][:2])
            captions.update(row["captions"])
        words = {word for caption in captions for word in said(caption)}
        found = cls(names=sorted(names)[:NAMES_MAX], words=sorted(words)[:WORDS_MAX])
        if texts is not None:
            runs = {run for text in captions for run in re.findall("[\u3400-\u9fff]{2,}", normalise_prompt(text))}
            sizes = range(2, CHINESE_MAX + 1)
            words |= {run[at : at + size] for run in runs for size in sizes for at in range(len(run) + 1 - size)}
            things = [*found.things(chinese=False), *found.things(chinese=True)]
            found.near = near_names(things, lambda word: _is_strange(word, words), texts)
        return found

    def dump(self) -> bytes:
        return self.model_dump_json().encode()

    @classmethod
    def load(cls, data: bytes) -> Vocabulary:
        try:
            return cls.model_validate_json(data)
        except ValueError:
            raise PackageError("{file} is not a list of names and words", file=VOCABULARY) from None

    def knows(self, text: str) -> bool:
        """Whether a word of the text stood in a caption; also when it has none that says anything."""
        asked = said(text)
        return not asked or not asked.isdisjoint(self._all)

    def strange(self, text: str) -> str:
        """The thing a text asks for when no caption had it: its last English word, where all that is known of the text
        are colours; "" for any other text. Chinese is not cut into words.
        """
        words = [word for word in re.findall("[a-z]{2,}", normalise_prompt(text)) if said(word)]
        strange = [word for word in words if not self.knows(word)]
        return strange[-1] if strange and said(text) <= COLOUR_WORDS.union(*map(said, strange)) else ""

    def nearest(self, text: str) -> str:
        """The text with each word for a thing that stood in no caption as the nearest name; else as it is."""
        plain = normalise_prompt(text)
        out = "".join(self._replaced(plain))
        return text if out == plain else out

    def _replaced(self, text: str) -> Iterator[str]:
        """Piece by piece: English words, the longest Chinese ones from left to right, and what is between.

        Chinese ones alone or with colours: in a sentence they may not be the words that were meant.
        """
        for piece in re.findall("[a-z]+|[\u3400-\u9fff]+|[^a-z\u3400-\u9fff]+", text):
            if not HAN.match(piece):
                yield self._nearest.get(piece) or self._nearest.get(piece.removesuffix("s")) or piece
                continue
            words: list[str] = []
            for at in range(len(piece)):
                if at < sum(map(len, words)):
                    continue
                sizes = range(min(CHINESE_MAX, len(piece) - at), 1, -1)
                words.append(
                    next((piece[at : at + n] for n in sizes if piece[at : at + n] in self._nearest), piece[at])
                )
            rest = {word for word in words if word not in self._nearest} - COLOUR_CHARACTERS - COUNTS - SAYS_NOTHING
            yield piece if rest else "".join(self._nearest.get(word, word) for word in words)

    @cached_property
    def _nearest(self) -> dict[str, str]:
        return {word: name for name, words in self.near.items() for word in words}

    def things(self, chinese: bool) -> list[str]:
        """The names of one language, in at most three words and without an addition after a colon."""
        return [
            name for name in self.names
            if bool(HAN.search(name)) == chinese and len(name.split()) <= 3 and not re.search("[:：]", name)
        ]  # fmt: skip

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.words)


CHINESE_MAX = 5
"""Characters of a Chinese word that is read as another at most."""


def _is_strange(word: str, words: set[str]) -> bool:
    """Whether no caption had the word; one Chinese character, or one with the name of a colour in it, never is."""
    if HAN.search(word):
        return 1 < len(word) <= CHINESE_MAX and word not in words and not set(word) & COLOUR_CHARACTERS
    return not said(word) & words


def said(text: str) -> set[str]:
    """The words of a text that say something: English ones without a plural s, Chinese characters one by one."""
    found = (word for word in WORD.findall(normalise_prompt(text)) if word not in SAYS_NOTHING)
    return {word.removesuffix("s") if len(word) > 3 else word for word in found}
