"""Prompts to tensors: nothing, labels, text through a nested encoder, prefix tokens. Frozen: the nets do the learning.

The encoder is handed in, the tokenizer rebuilt from its files; of which family the encoder is, is not known here.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sojourn.codecs.text import TextCodec, normalise_prompt
from sojourn.config import set_folder, validated
from sojourn.data.dataset import LabelColumn, PackedSet
from sojourn.data.styles import find_style
from sojourn.data.variety import with_article
from sojourn.errors import ConfigError, NotFound
from sojourn.registry import register
from sojourn.schema import Prompt, Source, Strict
from sojourn.types import Cond, DataSpec
from sojourn.vocabulary import HAN, VOCABULARY, Vocabulary

STYLE = "style"
"""The label column that reads a prompt's style; any other reads its words."""


@register("conditioner", "none", about="no condition")
class NoCondition:
    """Draws whatever the model draws."""

    id = "none"
    config: Mapping[str, Any] = {}

    def __init__(self, config: Mapping[str, Any], parts: Mapping[str, Any] | None = None) -> None:
        if config:
            raise ConfigError('conditioner "none" has no settings, found {found}', found=", ".join(config))

    def extend(self, spec: DataSpec) -> DataSpec:
        return spec

    def __call__(self, prompts: Sequence[Prompt]) -> Cond:
        return Cond()


class Columns:
    """Label columns, name -> values, and the lookup of a prompt in them."""

    def __init__(self, columns: Mapping[str, Sequence[str]]) -> None:
        self.values = {name: list(values) for name, values in columns.items()}
        self.index: dict[str, dict[str, int]] = {}
        for name, values in self.values.items():
            exact = {value: at for at, value in enumerate(values)}
            self.index[name] = {value.casefold(): at for value, at in reversed(exact.items())} | exact

    def labels(self, prompts: Sequence[Prompt]) -> Tensor:
        """Label of each prompt in each column (b, a) long, -1 where it says nothing. Raises NotFound."""
        rows = [
            [self._style(p.style) if name == STYLE else self._name(name, p.text) for name in self.values]
            for p in prompts
        ]
        return torch.tensor(rows, dtype=torch.long).view(len(prompts), len(self.values))

    def spec(self) -> tuple[tuple[str, int], ...]:
        return tuple((name, len(values)) for name, values in self.values.items())

    def _style(self, style: str | None) -> int:
        if not style:
            return -1
        plain, index = style.strip(), self.index[STYLE]
        found = index.get(plain, index.get(plain.casefold(), index.get((find_style(style) or "").casefold())))
        if found is None:
            known = ", ".join(self.values[STYLE])
            raise NotFound('no style "{style}" in this package; it has {known}', style=style, known=known)
        return found

    def _name(self, column: str, text: str) -> int:
        """By its very name first: "a" and "A" may be two classes."""
        if not (plain := text.strip()):
            return -1
        wanted, index = plain.casefold(), self.index[column]
        found = index.get(plain, index.get(wanted))
        if found is None:
            known = list(dict.fromkeys(name.casefold() for name in self.values[column]))
            near = difflib.get_close_matches(wanted, known, 5, cutoff=0.3) or known[:5]
            raise NotFound(
                'no {column} "{text}" in this package; nearest of {count}: {near}',
                column=column, text=text, count=len(self.values[column]),
                near=", ".join(self.values[column][index[name]] for name in near),
            )  # fmt: skip
        return found


class LabelsConfig(Strict):
    columns: dict[str, list[str]] = Field(default_factory=dict)
    """Column -> names of its classes. "style" is chosen by --style, the other one by the words. {} = the set's."""


@register("conditioner", "labels", about="a class by its name, a style by --style")
class Labels:
    """One class per prompt: its words must be the name of a class, or that in another case; no words = no class."""

    id = "labels"

    def __init__(self, config: Mapping[str, Any], parts: Mapping[str, Any] | None = None) -> None:
        self._config = validated(LabelsConfig, dict(config), 'conditioner "labels"')
        words = [name for name in self._config.columns if name != STYLE]
        if len(words) > 1:
            raise ConfigError(
                'conditioner "labels" can read one column from the words, found {found}; name one in columns',
                found=", ".join(words),
            )
        self.columns = Columns(self._config.columns)
        self.column: str | None = words[0] if words else None
        """The column that the words of a prompt name; training draws its prompts from it."""

    @classmethod
    def fit_to(cls, config: Mapping[str, Any], parts: Mapping[str, Any], data: PackedSet) -> Self:
        """With the set's style column and its first other one, where the config names none."""
        if config.get("columns"):
            return cls(config, parts)
        return cls({**config, "columns": cls.read_of(data.info.labels)}, parts)

    @classmethod
    def read_of(cls, labels: Sequence[LabelColumn]) -> dict[str, list[str]]:
        """The columns of a set that it reads: the style, and the first other one."""
        words = next((column.name for column in labels if column.name != STYLE), None)
        return {column.name: column.values for column in labels if column.name in (words, STYLE)}

    @property
    def config(self) -> dict[str, Any]:
        return self._config.model_dump()

    def extend(self, spec: DataSpec) -> DataSpec:
        return replace(spec, labels=self.columns.spec())

    def __call__(self, prompts: Sequence[Prompt]) -> Cond:
        return Cond(labels=self.columns.labels(prompts)) if self.columns.values else Cond()


class TextCondConfig(Strict):
    part: str = "text"
    """The nested package that embeds text."""
    columns: dict[str, list[str]] = Field(default_factory=dict)
    """{"style": [...]}: styles that --style may name. {} = the set's."""
    near: str = ""
    """A set of words with a teacher's vectors ("words"): those that no caption had are read as the nearest name that
    one had. "" = none."""
    length: int = Field(16, ge=1, le=512)
    """Word features at most, 1..512; the vector of the whole text sees as many words as the part's tokenizer takes."""


@register("conditioner", "text", about="words through a nested text encoder, a style by --style")
class Text:
    """Words to a vector of unit variance and features per token; no words = nothing given."""

    id = "text"

    def __init__(
        self,
        config: Mapping[str, Any],
        parts: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self._config = validated(TextCondConfig, dict(config), 'conditioner "text"')
        if extra := [name for name in self._config.columns if name != STYLE]:
            raise ConfigError(
                'conditioner "text" has no use for column "{found}"; it takes "style" alone', found=extra[0]
            )
        part = (parts or {}).get(name := self._config.part)
        if part is None or "embed" not in part.family.can or part.family.spec.kind != "text":
            raise ConfigError(
                'conditioner "text" needs a part "{part}" that embeds text; name one under parts', part=name
            )
        self.columns = Columns(self._config.columns)
        self.memory = Memory(part.family, part.codec, self._config.length)
        self.files = {name: data for name, data in (files or {}).items() if name == VOCABULARY}
        """What the captions of training said, for telling a prompt of which nothing was learned."""
        self.sources: list[Source] = []
        """Whose work is in those files beside the set's, where they are made anew."""

    @classmethod
    def fit_to(cls, config: Mapping[str, Any], parts: Mapping[str, Any], data: PackedSet) -> Self:
        """With the set's styles, where the config names none, and with the words of its captions."""
        near = validated(TextCondConfig, dict(config), 'conditioner "text"').near
        texts = PackedSet(set_folder(near)) if near else None
        files = {VOCABULARY: Vocabulary.of(data, texts).dump()}
        out = cls({**config, "columns": config.get("columns") or cls.read_of(data.info.labels)}, parts, files)
        out.sources = texts.info.sources if texts is not None else []
        return out

    @classmethod
    def read_of(cls, labels: Sequence[LabelColumn]) -> dict[str, list[str]]:
        """The column of a set that it reads: the style."""
        return {column.name: column.values for column in labels if column.name == STYLE}

    def learn(self, texts: Iterable[str]) -> Iterator[int]:
        """Embed texts ahead of time, many at once; yields how many are done."""
        return self.memory.learn(texts)

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """None where the package does not say what it learned from. Raises PackageError for a damaged file."""
        return Vocabulary.load(self.files[VOCABULARY]) if VOCABULARY in self.files else None

    def read(self, text: str) -> str:
        """The text as it is drawn: a thing that no caption had gives way to the nearest name that one had. "a red pup"
        -> "a red dog".

        By what the package was told (`near`); and by its own encoder where a strange English word stands alone or with
        a colour. The features of a word that training never saw lead nowhere, even where the encoder knows its meaning.
        """
        if self.vocabulary is None:
            return text
        read = self.vocabulary.nearest(text)
        strange = self.vocabulary.strange(read)
        if strange and self._things[0]:
            names, vectors = self._things
            near = names[int((vectors @ self.memory.vectors([strange])[0]).argmax())]
            read = re.sub(rf"\b{strange}\b", near, normalise_prompt(read))
        # A word that stands for another takes its own article; what was written stays.
        known = text.lower()
        return re.sub(r"\ban? ([a-z]+)", lambda at: at[0] if at[0] in known else with_article(at[1]), read)

    @cached_property
    def _things(self) -> tuple[list[str], Tensor]:
        """English names and their vectors (n, d)."""
        names = self.vocabulary.things(chinese=False) if self.vocabulary is not None else []
        parts = [self.memory.vectors(names[first : first + 512]) for first in range(0, len(names), 512)]
        return names, torch.cat(parts) if parts else torch.zeros(0, self.memory.pooled.shape[1])

    def cut(self, text: str) -> int:
        """How many words of the text are read, where it has more than the encoder takes; else 0."""
        codec = self.memory.codec
        most: int = codec.spec.shape[0] - 2  # begin and end take a place each
        return most if len(codec.pack_many([text])[0]) - 2 > most else 0

    def unknown(self, text: str, most: int = 5) -> list[str]:
        """The names nearest to a text of which no caption had a word; [] when one had, or when nothing can be told."""
        if self.vocabulary is None or self.vocabulary.knows(self.vocabulary.nearest(text)):
            return []
        chinese = any(HAN.match(letter) for letter in text)
        names = [name for name in self.vocabulary.names if bool(HAN.search(name)) == chinese] or self.vocabulary.names
        typed = difflib.get_close_matches(text.casefold(), names, most, cutoff=0.75)
        wanted = self.memory.vectors([text])[0]
        close = [self.memory.vectors(names[first : first + 512]) @ wanted for first in range(0, len(names), 512)]
        order = torch.cat(close).argsort(descending=True).tolist()
        return list(dict.fromkeys([*typed, *(names[i] for i in order[:most])]))[:most]

    @property
    def config(self) -> dict[str, Any]:
        return self._config.model_dump()

    def extend(self, spec: DataSpec) -> DataSpec:
        return replace(
            spec, labels=self.columns.spec(), text_len=self._config.length,
            text_dim=self.memory.feats.shape[1], pooled_dim=self.memory.pooled.shape[1],
        )  # fmt: skip

    def __call__(self, prompts: Sequence[Prompt]) -> Cond:
        pooled, feats, mask = self.memory([self.read(prompt.text) for prompt in prompts])
        labels = self.columns.labels(prompts) if self.columns.values else None
        return Cond(labels=labels, pooled=pooled, feats=feats, token_mask=mask)


class Memory:
    """Embeds texts and remembers them in half precision, since training asks the same ones over and over.

    A text's numbers never depend on which texts happened to come before or with it, so that a training that was killed
    goes on with the same bytes: it goes through the encoder alone, or with all texts of a set in an order of their own.
    """

    def __init__(self, family: Any, codec: Any, length: int, most: int = 400_000) -> None:
        self.family, self.codec, self.length, self.most = family, codec, length, most
        with torch.no_grad():
            pooled, feats = family.embed(codec.encode(torch.tensor([codec.pack("").tolist()])), torch.tensor([2]))
        self.pooled = torch.zeros(1, pooled.shape[1], dtype=torch.float16)  # (texts, d)
        self.feats = torch.zeros(1, feats.shape[2], dtype=torch.float16)  # (words of all texts, d)
        self.clear()

    def clear(self) -> None:
        """Forget all texts; slot 0 is the empty one."""
        self.slots = {"": 0}
        self.places = [(0, 0)]  # first feature, number of features
        self.used = 0

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Vectors (b, d) of unit variance, features (b, length, d) and mask (b, length) of the texts."""
        fresh = [text for text in dict.fromkeys(texts) if text not in self.slots]
        if len(self.slots) + len(fresh) > self.most:
            self.clear()
            fresh = list(dict.fromkeys(texts))
        for text in fresh:
            self._learn(text)
        slots = [self.slots[text] for text in texts]
        place = torch.tensor([self.places[slot] for slot in slots], dtype=torch.long).view(-1, 2)
        steps = torch.arange(self.length)
        mask = steps < place[:, 1:]  # (b, length)
        rows = torch.where(mask, place[:, :1] + steps, 0)
        feats = torch.zeros(*rows.shape, self.feats.shape[1])
        feats[mask] = self.feats[rows[mask]].float()
        return self.pooled[torch.tensor(slots, dtype=torch.long)].float(), feats, mask

    @torch.no_grad()
    def vectors(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors (b, d) of many texts in one pass: quick, and not to the last bits what `__call__` gives."""
        return self._embedded([self.codec.pack(text) for text in texts])[0]

    @torch.no_grad()
    def learn(self, texts: Iterable[str], chunk: int = 256) -> Iterator[int]:
        """Embed all of these many at a time, and forget whatever was known; yields how many are done."""
        self.clear()
        wanted = sorted(set(texts) - {""})
        rows = self.codec.pack_many(wanted)
        order = sorted(range(len(wanted)), key=lambda i: (len(rows[i]), i))
        self.most = max(self.most, len(wanted) + 1)
        for first in range(0, len(order), chunk):
            part = order[first : first + chunk]
            pooled, feats = self._embedded([rows[i] for i in part])
            for at, i in enumerate(part):
                if len(rows[i]) > 2:
                    self._keep(wanted[i], len(rows[i]) - 2, pooled[at], feats[at])
                else:
                    self.slots[wanted[i]] = 0
            yield first + len(part)

    def _embedded(self, rows: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Vectors (b, d) and features (b, n, d) of rows of token ids; of longer ones the beginning is read."""
        room = self.codec.spec.shape[0]
        rows = [np.append(ids[: room - 1], ids[-1]) if len(ids) > room else ids for ids in rows]
        padded = torch.nn.utils.rnn.pad_sequence([torch.from_numpy(ids) for ids in rows], batch_first=True)
        found: tuple[Tensor, Tensor] = self.family.embed(
            self.codec.encode(padded), torch.tensor([len(ids) for ids in rows])
        )
        return found

    @torch.no_grad()
    def _learn(self, text: str) -> None:
        ids = self.codec.pack(text)
        if len(ids) > 2:
            pooled, feats = self._embedded([ids])
            self._keep(text, len(ids) - 2, pooled[0], feats[0])
        else:
            self.slots[text] = 0

    def _keep(self, text: str, words: int, pooled: Tensor, feats: Tensor) -> None:
        """Remember a text of so many words."""
        words = min(words, self.length, len(feats))
        slot = len(self.places)
        self.pooled = _grown(self.pooled, slot + 1)
        self.feats = _grown(self.feats, self.used + words)
        self.pooled[slot] = pooled * pooled.shape[0] ** 0.5
        self.feats[self.used : self.used + words] = feats[:words]
        self.places.append((self.used, words))
        self.slots[text] = slot
        self.used += words


class TokensConfig(Strict):
    tokenizer: dict[str, Any] = Field(default_factory=dict)
    """Settings of the text codec that reads the prompt. A training takes the model's own."""


@register("conditioner", "tokens", about="the words as tokens that a language model goes on from")
class Tokens:
    """Words as the ordinary tokens of a text codec, without begin and end."""

    id = "tokens"

    def __init__(
        self,
        config: Mapping[str, Any],
        parts: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        self._config = validated(TokensConfig, dict(config), 'conditioner "tokens"')
        self.codec = TextCodec(self._config.tokenizer, files=files)

    def like(self, codec: Any) -> Self:
        """The same for a model that writes by `codec`: it reads by the vocabulary that it writes."""
        return type(self)({"tokenizer": codec.config}, None, codec.files) if isinstance(codec, TextCodec) else self

    @property
    def config(self) -> dict[str, Any]:
        return {"tokenizer": self.codec.config}

    @property
    def files(self) -> dict[str, bytes]:
        return self.codec.files

    def extend(self, spec: DataSpec) -> DataSpec:
        """Raises ConfigError for a model that writes something else than text: its tokens mean other things."""
        if spec.kind != "text":
            raise ConfigError('conditioner "tokens" is for models of text, found {kind}; use "text"', kind=spec.kind)
        return spec

    def __call__(self, prompts: Sequence[Prompt]) -> Cond:
        rows = [torch.from_numpy(ids[1:]) for ids in self.codec.pack_many([p.text for p in prompts], end=False)]
        length = torch.tensor([len(row) for row in rows], dtype=torch.long)
        tokens = torch.zeros(len(rows), max([1, *map(len, rows)]), dtype=torch.long)
        for at, row in enumerate(rows):
            tokens[at, : len(row)] = row
        return Cond(tokens=tokens, token_mask=torch.arange(tokens.shape[1]) < length[:, None])


def _grown(store: Tensor, rows: int) -> Tensor:
    """`store` with room for `rows`, at least doubled when it grows."""
    if rows <= len(store):
        return store
    more = max(rows, 2 * len(store)) - len(store)
    return torch.cat([store, store.new_zeros(more, *store.shape[1:])])
