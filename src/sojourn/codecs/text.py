"""Text to token ids and back: bytes, characters, or byte-level BPE. Knows nothing about nets or where text came from.

Every tokenizer numbers alike: 0 pad, 1 begin, 2 end, ordinary tokens from 3 on. No text can spell a special token.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, ValidationError
from torch import Tensor

from sojourn.errors import ConfigError, DataError, InvalidInput, PackageError
from sojourn.registry import register
from sojourn.schema import Strict, reason
from sojourn.types import DataSpec

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from sojourn.data.dataset import PackedSet

PAD, BOS, EOS = 0, 1, 2
FIRST = 3
"""Id of the first ordinary token."""
FILE = "tokenizer.json"
CHUNK = 4096
"""Texts tokenised at once, which bounds memory."""
UNKNOWN = "\ufffd"
HAN = r"\u3400-\u9fff"
BEFORE_HAN = re.compile(rf"\s+(?=[{HAN}])")
BEFORE_WORD = re.compile(rf"(?<![^\W_{HAN}]|['’\s])(?=[^\W_{HAN}])")
"""Where a word of another script than Chinese starts without a space before it."""


class TextConfig(Strict):
    """How text becomes tokens."""

    tokenizer: Literal["bytes", "chars", "bpe"] = "bytes"
    """bytes needs no fitting and knows every text; chars and bpe are fitted on the corpus."""
    length: int = Field(256, ge=2, le=65536)
    """Tokens per sample at most, begin and end included, 2..65536. Longer text is cut."""
    vocab: int = Field(0, ge=0, le=262144)
    """Size of the vocabulary at most, special tokens included (bpe: from 259). 0 = 4096 for bpe, all for chars."""
    normalise: Literal["none", "words"] = "none"
    """words = NFKC, lower case, simplified characters, and a word is the same token wherever it stands: for prompts and
    sets of words, to embed and not to write. none = text stays as it is."""


@register("codec", "text")
class TextCodec:
    """Text as rows of token ids; `fit` and `fitted` learn the vocabulary of chars and bpe."""

    id = "text"

    def __init__(
        self,
        config: Mapping[str, Any] | None = None,
        parts: Mapping[str, Any] | None = None,
        files: Mapping[str, bytes] | None = None,
    ) -> None:
        """Rebuild from config and, for a fitted one, its `files`. Raises ConfigError, PackageError."""
        try:
            self._config = TextConfig.model_validate(dict(config or {}))
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(key) for key in first["loc"])
            raise ConfigError("text codec setting {field}: {problem}", field=where, problem=reason(first)) from None
        if self._config.tokenizer == "bpe" and 0 < self._config.vocab < FIRST + 256:
            raise ConfigError(
                "vocab of a bpe tokenizer is {found}; it needs {least} at least (every byte, and the special tokens)",
                found=self._config.vocab, least=FIRST + 256,
            )  # fmt: skip
        self._files = {name: data for name, data in (files or {}).items() if name == FILE}
        self._bpe: Tokenizer | None = None
        self._points = np.zeros(0, np.uint32)  # chars: code points in rising order
        self._point_ids = np.zeros(0, np.int32)  # chars: the id of each
        self._table: list[bytes] = []  # id -> the utf-8 bytes it stands for
        if self._config.tokenizer == "bytes":
            self._table = [b""] * FIRST + [bytes([value]) for value in range(256)]
        elif FILE in self._files:
            try:
                self._open(json.loads(self._files[FILE].decode("utf-8")))
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                raise PackageError(
                    "{file} is not a {tokenizer} tokenizer of this project ({problem})",
                    file=FILE, tokenizer=self._config.tokenizer, problem=str(error) or type(error).__name__,
                ) from None  # fmt: skip
        self.spec = DataSpec("text", (self._config.length,), vocab=len(self._table))

    @property
    def config(self) -> dict[str, Any]:
        """The settings that, with `files`, rebuild this codec."""
        return self._config.model_dump()

    @property
    def files(self) -> dict[str, bytes]:
        """What config cannot hold: the fitted vocabulary, by file name. Empty for bytes."""
        return dict(self._files)

    @property
    def ready(self) -> bool:
        """False while chars or bpe are not fitted yet."""
        return bool(self._table)

    @classmethod
    def fit_to(cls, config: Mapping[str, Any], parts: Mapping[str, Any], data: PackedSet) -> Self:
        """A codec whose vocabulary is learnt from the train split: its documents, or the captions of its pictures.

        A row with a "count" stands for so many of the same.
        """
        rows = data.indices("train")
        if data.info.kind == "text":
            counts = ((int(row), data.rows[row].get("count", 1)) for row in rows)
            return cls.fitted((text for row, n in counts if n for text in [data.text(row)] * n), **config)
        return cls.fitted((caption for row in rows for caption in data.rows[row]["captions"]), **config)

    @classmethod
    def fitted(cls, texts: Iterable[str], **config: Any) -> Self:
        """A codec whose vocabulary is learnt from texts; the same texts give the same bytes. Bytes learn nothing.

        The vocabulary is smaller than asked for where the corpus does not hold enough. Raises DataError without text.
        """
        blank = cls(config)
        if blank.ready:
            return blank
        cleaned = (blank.clean(text) for text in texts)
        content = blank._fit_chars(cleaned) if blank._config.tokenizer == "chars" else blank._fit_bpe(cleaned)
        return cls(config, files={FILE: content.encode("utf-8")})

    def clean(self, text: str) -> str:
        """Text as the tokenizer sees it. Raises InvalidInput for half a surrogate pair, which no encoding can hold."""
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InvalidInput(
                "character {at} of the text is half a surrogate pair (U+{code}); remove it",
                at=error.start + 1, code=f"{ord(text[error.start]):04X}",
            ) from None  # fmt: skip
        if self._config.normalise == "none":
            return text
        return BEFORE_WORD.sub(" ", BEFORE_HAN.sub("", normalise_prompt(text)))

    def pack(self, media: str, end: bool = True) -> np.ndarray:
        """Token ids (n,) int32 with begin and end, n <= length. end=False leaves it open, as a prompt to go on from.

        Text that is too long loses its tail and then has no end token: it does not end there.
        """
        return self.pack_many([media], end)[0][: self._config.length]

    def pack_many(self, texts: Iterable[str], end: bool = True) -> list[np.ndarray]:
        """Token ids (n,) int32 of each text with begin and end, whole: who trains takes windows of `length`."""
        return [self._frame(ids, end) for ids in self._ids(texts)]

    def pack_rows(self, texts: Sequence[str], end: bool = True) -> tuple[np.ndarray, np.ndarray]:
        """Token ids (b, length) int32, cut or padded at the right, and the number of real ones per row (b,) int64."""
        tokens = np.full((len(texts), self._config.length), PAD, np.int32)
        lengths = np.zeros(len(texts), np.int64)
        for row, ids in enumerate(self.pack_many(texts, end)):
            lengths[row] = min(len(ids), self._config.length)
            tokens[row, : lengths[row]] = ids[: lengths[row]]
        return tokens, lengths

    def encode(self, raw: Tensor) -> Tensor:
        """Token ids (b, n) to (b, length) long, padded at the right. Raises InvalidInput for rows that are too long."""
        short = self._config.length - raw.shape[1]
        if short < 0:
            raise InvalidInput(
                "a row has {found} tokens; this codec holds {length}", found=raw.shape[1], length=self._config.length
            )
        return torch.nn.functional.pad(raw.long(), (0, short), value=PAD)

    def decode(self, x: Tensor) -> Tensor:
        """Token ids as they are."""
        return x

    def unpack(self, raw: Tensor) -> list[str]:
        """Text of each row of ids (b, n) up to its end token; half a character at the tail is left out."""
        return [self.stream().feed(row) for row in raw]

    def stream(self) -> Stream:
        """A reader for one row that grows."""
        return Stream(self)

    def bytes_of(self, token: int) -> bytes:
        """The utf-8 bytes a token stands for, possibly part of a character; none for special tokens."""
        if not 0 <= token < len(self._table):
            raise InvalidInput("token {token} is outside 0..{high}", token=token, high=len(self._table) - 1)
        return self._table[token]

    def _frame(self, ids: np.ndarray, end: bool) -> np.ndarray:
        parts = [np.array([BOS], np.int32), ids, np.array([EOS] if end else [], np.int32)]
        return np.concatenate(parts)

    def _ids(self, texts: Iterable[str]) -> Iterator[np.ndarray]:
        """Ordinary token ids of each text, int32."""
        if not self.ready:
            raise ConfigError(
                "the {tokenizer} tokenizer has no vocabulary yet; fit it", tokenizer=self._config.tokenizer
            )
        cleaned = (self.clean(text) for text in texts)
        if self._bpe is not None:
            while chunk := list(islice(cleaned, CHUNK)):
                for encoding in self._bpe.encode_batch_fast(chunk, add_special_tokens=False):
                    yield np.array(encoding.ids, np.int32) + FIRST
        elif self._config.tokenizer == "chars":
            for text in cleaned:
                points = np.frombuffer(text.encode("utf-32-le"), np.uint32)
                place = np.searchsorted(self._points, points).clip(max=len(self._points) - 1)
                yield np.where(self._points[place] == points, self._point_ids[place], FIRST).astype(np.int32)
        else:
            for text in cleaned:
                yield np.frombuffer(text.encode("utf-8"), np.uint8).astype(np.int32) + FIRST

    def _fit_chars(self, texts: Iterable[str]) -> str:
        counts: Counter[str] = Counter()
        for text in texts:
            counts.update(text)
        if not counts:
            raise DataError("there is no text to fit the chars tokenizer on")
        ranked = sorted(counts, key=lambda char: (-counts[char], char))
        room = self._config.vocab - FIRST - 1
        return json.dumps({"chars": ranked[:room] if self._config.vocab else ranked}, ensure_ascii=False)

    def _fit_bpe(self, texts: Iterable[str]) -> str:
        from tokenizers.models import BPE
        from tokenizers.pre_tokenizers import ByteLevel
        from tokenizers.trainers import BpeTrainer

        tokenizer = self._byte_level(BPE())
        trainer = BpeTrainer(
            vocab_size=(self._config.vocab or 4096) - FIRST,
            min_frequency=2,
            initial_alphabet=sorted(ByteLevel.alphabet()),
            show_progress=False,
        )
        seen = 0

        def counted() -> Iterator[str]:
            nonlocal seen
            for text in texts:
                seen += len(text)
                yield text

        tokenizer.train_from_iterator(counted(), trainer)
        if not seen:
            raise DataError("there is no text to fit the bpe tokenizer on")
        return str(tokenizer.to_str())

    def _byte_level(self, model: Any) -> Tokenizer:
        from tokenizers import Regex, Tokenizer, decoders, pre_tokenizers

        tokenizer = Tokenizer(model)
        # Chinese has no spaces: without the split a phrase seen twice is one token, and its characters are not learnt.
        # In a set of words what is seen often is a word.
        han = r"\p{Han}+" if self._config.normalise == "words" else r"\p{Han}"
        alone = pre_tokenizers.Split(Regex(han), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([alone, pre_tokenizers.ByteLevel(add_prefix_space=False)])
        tokenizer.decoder = decoders.ByteLevel()
        return tokenizer

    def _open(self, data: Any) -> None:
        """Take a fitted vocabulary; raises ValueError and its like when it is not one."""
        if self._config.tokenizer == "chars":
            chars = data["chars"]
            points = np.array([ord(char) for char in chars], np.uint32)
            order = np.argsort(points)
            self._points, self._point_ids = points[order], (order + FIRST + 1).astype(np.int32)
            if len(points) == 0 or len(np.unique(points)) != len(points):
                raise ValueError("characters are missing or doubled")
            self._table = [b""] * FIRST + [char.encode("utf-8") for char in [UNKNOWN, *chars]]
            return
        from tokenizers import Tokenizer
        from tokenizers.models import BPE

        model = data["model"]
        frame = json.loads(self._byte_level(BPE()).to_str())
        # Only vocabulary and merges may differ: a tokenizer file can otherwise carry its own regular expressions.
        if {**data, "model": {**model, "vocab": {}, "merges": []}} != frame:
            raise ValueError("it has settings that are not ours")
        byte_of = _byte_alphabet()
        ranked = sorted(model["vocab"].items(), key=lambda item: item[1])
        if [number for _, number in ranked] != list(range(len(ranked))):
            raise ValueError("ids have gaps")
        if not byte_of.keys() <= model["vocab"].keys():
            raise ValueError("bytes are missing")
        self._table = [b""] * FIRST + [bytes(byte_of[char] for char in token) for token, _ in ranked]
        for pair in model["merges"]:
            if not (len(pair) == 2 and {*pair, "".join(pair)} <= model["vocab"].keys()):
                raise ValueError("a merge names an unknown token")
        self._bpe = Tokenizer.from_str(json.dumps(data))


class Stream:
    """Text of one row as it grows, in whole characters: all pieces together are what `unpack` gives."""

    def __init__(self, codec: TextCodec) -> None:
        self._codec = codec
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._read = 0
        self._ended = False

    def feed(self, row: Tensor | Sequence[int]) -> str:
        """What the row so far (n,) adds to what was fed before; padding at its right is not there yet."""
        tokens = row.tolist() if isinstance(row, Tensor) else list(row)
        while tokens and tokens[-1] == PAD:
            tokens.pop()
        fresh = b""
        for token in tokens[self._read :]:
            self._ended = self._ended or token == EOS
            if not self._ended:
                fresh += self._codec.bytes_of(token)
        self._read = max(self._read, len(tokens))
        return self._decoder.decode(fresh)


def normalise_prompt(text: str) -> str:
    """Prompt text in one form: NFKC, lower case, traditional characters as simplified ones, trimmed."""
    text = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).lower())
    return str(_simplify().convert(text)).strip()


@cache
def _simplify() -> Any:
    from opencc import OpenCC

    return OpenCC("t2s")


@cache
def _byte_alphabet() -> dict[str, int]:
    """Printable character -> byte, the mapping that byte-level BPE writes its tokens in (Radford et al. 2019)."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [value for value in range(256) if value not in plain]
    return {chr(value): value for value in plain} | {chr(256 + i): value for i, value in enumerate(rest)}
