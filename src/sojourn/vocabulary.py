"""What the captions of a training said, for telling a prompt of which nothing was learned. Knows no tensors."""

from __future__ import annotations

import re
from functools import cached_property
from typing import TYPE_CHECKING

from sojourn.codecs.text import normalise_prompt
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


COLOUR_WORDS = frozenset(
    ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "black", "white", "grey", "gray")
)
NAMES_MAX, WORDS_MAX = 20_000, 200_000
"""Of a vocabulary's file, so that a set of a million captions still makes a package."""


class Vocabulary(Strict):
    """What the captions of a training said."""

    names: list[str]
    """The first captions of its pictures, sorted."""
    words: list[str]
    """Every English word and every Chinese character of its captions, sorted."""

    @classmethod
    def of(cls, data: PackedSet) -> Vocabulary:
        names: set[str] = set()
        words: set[str] = set()
        for row in (data.rows[i] for i in data.indices("train").tolist()):
            names |= set() if "made" in row else set(row["captions"][:2])
            words |= {word for caption in row["captions"] for word in said(caption)}
        return cls(names=sorted(names)[:NAMES_MAX], words=sorted(words)[:WORDS_MAX])

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

    def things(self, chinese: bool) -> list[str]:
        """The names of one language, in at most three words and without an addition after a colon."""
        return [
            name for name in self.names
            if bool(HAN.search(name)) == chinese and len(name.split()) <= 3 and not re.search("[:：]", name)
        ]  # fmt: skip

    @cached_property
    def _all(self) -> frozenset[str]:
        return frozenset(self.words)


def said(text: str) -> set[str]:
    """The words of a text that say something: English ones without a plural s, Chinese characters one by one."""
    found = (word for word in WORD.findall(normalise_prompt(text)) if word not in SAYS_NOTHING)
    return {word.removesuffix("s") if len(word) > 3 else word for word in found}
