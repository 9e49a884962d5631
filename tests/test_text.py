"""Tokenizers: exact round trips, whole characters while streaming, determinism, refusal of foreign files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sojourn.codecs.text import BOS, EOS, FILE, FIRST, PAD, TextCodec, normalise_prompt
from sojourn.data.dataset import Item, PackedSet, SetInfo, SetWriter
from sojourn.errors import ConfigError, DataError, InvalidInput, PackageError

CORPUS = [
    "床前明月光，疑是地上霜。",
    "举头望明月，低头思故乡。",
    "a red heart, a blue car",
    "the blue heart 蓝色的心",
] * 3
KINDS = ("bytes", "chars", "bpe")


def made(kind: str, length: int = 4096, **config: object) -> TextCodec:
    return TextCodec.fitted(CORPUS, tokenizer=kind, length=length, **config)


EXACT = {kind: made(kind) for kind in ("bytes", "bpe")}


def back(codec: TextCodec, text: str) -> str:
    return codec.unpack(codec.encode(torch.from_numpy(codec.pack(text))[None]))[0]


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=200))
def test_round_trip_is_exact(kind: str, text: str) -> None:
    assert back(EXACT[kind], text) == text


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "<pad><s></s>[UNK]<|endoftext|>",
        "\x00\r\n\t  ",
        "👩‍👩‍👧‍👦🇨🇳",
        "é é",
        " \u200f\u202e ",
        "\ufeffx",
        "\ufffd",
        "Ġ▁",
    ],
)
def test_round_trip_of_awkward_text(kind: str, text: str) -> None:
    assert back(EXACT[kind], text) == text


@pytest.mark.parametrize("kind", KINDS)
def test_text_is_framed_and_empty_text_is_begin_and_end(kind: str) -> None:
    codec = made(kind)
    tokens = codec.pack("明月")
    assert (tokens[0], tokens[-1], tokens.dtype) == (BOS, EOS, np.int32)
    assert (tokens[1:-1] >= FIRST).all()
    assert codec.pack("").tolist() == [BOS, EOS]
    assert codec.pack("", end=False).tolist() == [BOS]
    assert back(codec, "") == ""


@pytest.mark.parametrize("kind", KINDS)
def test_many_equal_one_by_one(kind: str) -> None:
    codec = made(kind, length=12)
    texts = ["明月", "", CORPUS[0], "a red heart, a blue car" * 3]
    whole = codec.pack_many(texts)
    tokens, lengths = codec.pack_rows(texts)
    assert tokens.shape == (4, 12)
    for text, one, row, length in zip(texts, whole, tokens, lengths, strict=True):
        cut = codec.pack(text)
        assert one[:12].tolist() == cut.tolist() == row[:length].tolist()
        assert (row[length:] == PAD).all()
        assert one[-1] == EOS
    assert len(whole[3]) > 12  # who trains takes windows of it
    assert tokens[3, -1] != EOS  # it does not end there


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=40), kind=st.sampled_from(["bytes", "bpe"]), length=st.integers(2, 60))
def test_streaming_gives_what_unpack_gives_in_whole_characters(text: str, kind: str, length: int) -> None:
    codec = EXACT[kind]
    row = torch.full((60,), PAD)
    tokens = torch.from_numpy(codec.pack(text)).long()[:length]
    stream, pieces = codec.stream(), []
    for n in range(1, min(len(tokens), 60) + 1):
        row[:n] = tokens[:n]
        pieces.append(stream.feed(row))
    assert "".join(pieces) == codec.unpack(row[None])[0]
    assert text.startswith("".join(pieces))  # never a piece of a character, never a replacement for one
    assert stream.feed(row) == ""


def test_streaming_stops_at_the_end_token() -> None:
    codec = EXACT["bytes"]
    tokens = [BOS, *codec.pack("ab")[1:-1].tolist(), EOS, *codec.pack("tail")[1:].tolist()]
    assert codec.unpack(torch.tensor([tokens])) == ["ab"]


def test_bytes_that_are_no_utf8_show_as_replacements() -> None:
    tokens = torch.tensor([[BOS, FIRST + 0xFF, FIRST + ord("a"), EOS]])
    assert EXACT["bytes"].unpack(tokens) == ["\ufffda"]


def test_chars_know_their_corpus_and_mark_what_they_do_not_know() -> None:
    codec = made("chars")
    assert all(back(codec, text) == text for text in CORPUS)
    assert back(codec, "明X月😀") == "明\ufffd月\ufffd"
    assert codec.pack("X")[1] == FIRST
    assert codec.spec.vocab == FIRST + 1 + len(set("".join(CORPUS)))


def test_chars_keep_the_most_frequent_when_the_vocabulary_is_small() -> None:
    codec = TextCodec.fitted(["dddd ccc bb a"], tokenizer="chars", vocab=FIRST + 1 + 3)
    assert codec.spec.vocab == FIRST + 1 + 3
    assert back(codec, "abcd ") == "\ufffd\ufffdcd "


def test_bpe_vocabulary_is_what_the_corpus_allows() -> None:
    big, small = made("bpe", vocab=8192), made("bpe", vocab=FIRST + 256 + 10)
    assert FIRST + 256 + 10 == small.spec.vocab < big.spec.vocab < 8192
    assert int(big.pack_rows(CORPUS)[0].max()) < big.spec.vocab
    assert len(big.pack(CORPUS[0])) < len(small.pack(CORPUS[0])) < len(EXACT["bytes"].pack(CORPUS[0]))


def test_bpe_never_joins_chinese_characters() -> None:
    codec = TextCodec.fitted(["红色的心"] * 50 + ["red hearts"] * 50, tokenizer="bpe")
    assert len(codec.pack("红色的心")) == 4 + 2
    assert len(codec.pack("red hearts")) == 2 + 2


@pytest.mark.parametrize("kind", KINDS)
def test_config_and_files_rebuild_it(kind: str) -> None:
    codec = made(kind)
    again = TextCodec(json.loads(json.dumps(codec.config)), {}, codec.files)
    assert again.spec == codec.spec
    assert again.files == codec.files
    text = "明月 a red 心 😀"
    assert again.pack(text).tolist() == codec.pack(text).tolist()
    assert back(again, text) == back(codec, text)


def test_fitting_gives_the_same_bytes_in_another_process() -> None:
    script = (
        "import sys; from test_text import made, FILE; "
        "sys.stdout.buffer.write(made('bpe').files[FILE] + made('chars').files[FILE])"
    )
    found = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent, env={"PYTHONHASHSEED": "77", "RAYON_NUM_THREADS": "3"},
        capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert found == made("bpe").files[FILE] + made("chars").files[FILE]


def broken(kind: str, change: str) -> bytes:
    data = json.loads(made(kind).files[FILE])
    if change == "junk":
        return b"\xff\x00{"
    if change == "list":
        return b"[1, 2]"
    if change == "foreign":
        data["pre_tokenizer"] = {
            "type": "Split",
            "pattern": {"Regex": "(a+)+$"},
            "behavior": "Removed",
            "invert": False,
        }
    elif change == "added":
        data["added_tokens"] = [
            {"id": 5, "content": "x", "single_word": False, "lstrip": False, "rstrip": False}
            | {"normalized": False, "special": True}
        ]
    elif change == "gap":
        data["model"]["vocab"]["a"] = 999_999_999
    elif change == "byte":
        data["model"]["vocab"]["好"] = data["model"]["vocab"].pop("a")
    elif change == "merge":
        data["model"]["merges"][0] = ["a", "not there"]
    elif change == "doubled":
        data["chars"][1] = data["chars"][0]
    elif change == "long":
        data["chars"][0] = "ab"
    elif change == "empty":
        data["chars"] = []
    return json.dumps(data).encode()


@pytest.mark.parametrize(
    ("kind", "change"),
    [("bpe", c) for c in ("junk", "list", "foreign", "added", "gap", "byte", "merge")]
    + [("chars", c) for c in ("junk", "list", "doubled", "long", "empty")],
)
def test_a_tokenizer_file_that_is_not_ours_is_refused(kind: str, change: str) -> None:
    with pytest.raises(PackageError, match=f"tokenizer.json is not a {kind} tokenizer"):
        TextCodec(made(kind).config, {}, {FILE: broken(kind, change)})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"tokenizer": "words"}, "tokenizer"),
        ({"length": 1}, "length"),
        ({"size": 3}, "size"),
        ({"tokenizer": "bpe", "vocab": 258}, "it needs 259 at least"),
    ],
)
def test_wrong_settings_are_named(config: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TextCodec(config)


def test_without_a_vocabulary_it_says_so() -> None:
    blank = TextCodec({"tokenizer": "bpe"})
    assert not blank.ready
    with pytest.raises(ConfigError, match="fit it"):
        blank.pack("x")
    for kind in ("bpe", "chars"):
        with pytest.raises(DataError, match="no text"):
            TextCodec.fitted(["", ""], tokenizer=kind)


def test_half_a_surrogate_pair_is_refused_with_its_place() -> None:
    with pytest.raises(InvalidInput, match=r"character 3 .*U\+D800"):
        EXACT["bpe"].pack("ab\ud800")


def test_rows_and_tokens_out_of_range_are_refused() -> None:
    codec = made("bytes", length=8)
    assert codec.encode(torch.tensor([[BOS, EOS]])).tolist() == [[BOS, EOS] + [PAD] * 6]
    with pytest.raises(InvalidInput, match="9 tokens; this codec holds 8"):
        codec.encode(torch.full((1, 9), FIRST))
    with pytest.raises(InvalidInput, match=r"token 259 is outside 0\.\.258"):
        codec.unpack(torch.tensor([[BOS, 259]]))


def test_prompt_normalisation() -> None:
    assert normalise_prompt("  ＲＥＤ　紅色的愛心 ﬁn ") == "red 红色的爱心 fin"
    codec = made("bpe", normalise="words")
    assert codec.pack("蓝色的心 HEART").tolist() == codec.pack(" 藍色的心 heart").tolist()


def test_a_word_is_one_token_wherever_it_stands(tmp_path: Path) -> None:
    with SetWriter(tmp_path / "words", SetInfo(name="words", kind="text", shape=())) as writer:
        for at, (text, count) in enumerate(
            (("bunny", 9), ("a", 9), ("红色", 9), ("兔子", 9), ("的", 9), ("红色的心", 0))
        ):
            writer.add(Item(str(at), text, extra={"count": count}))
    settings = {"tokenizer": "bpe", "vocab": 600, "normalise": "words"}
    codec = TextCodec.fit_to(settings, {}, PackedSet(tmp_path / "words"))

    def words(text: str) -> list[str]:
        return [codec.unpack(torch.tensor([[token]]))[0] for token in codec.pack(text)[1:-1]]

    assert words("A bunny") == [" a", " bunny"]
    assert words("bunny") == [" bunny"]
    assert words("(bunny") == ["(", " bunny"]
    assert words("红色bunny") == ["红色", " bunny"]
    assert words("红色的 兔子") == words("红色的兔子") == ["红色", "的", "兔子"]
    # Counted as nothing, it is no token of its own, and its other character is spelled in bytes.
    assert words("红色的心")[:2] == ["红色", "的"]
    assert len(words("红色的心")) == 5
    again = TextCodec(codec.config, files=codec.files)
    assert again.pack("a bunny 兔子").tolist() == codec.pack("a bunny 兔子").tolist()


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
def test_words_are_spaced_once(text: str) -> None:
    codec = TextCodec({"tokenizer": "bytes", "normalise": "words"})
    once = codec.clean(text)
    assert codec.clean(once) == once
    assert codec.clean(f" {text} ") == once


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30))
def test_prompt_normalisation_is_lower_case_and_trimmed(text: str) -> None:
    once = normalise_prompt(text)
    assert once == once.strip()
    assert normalise_prompt(text.upper().lower()) == normalise_prompt(text.upper())


def test_fitting_reads_the_train_split_alone(tmp_path: Path) -> None:
    with SetWriter(tmp_path / "poems", SetInfo(name="poems", kind="text", shape=())) as writer:
        writer.add(Item("1", "明月"))
        writer.add(Item("2", "地霜", split="test"))
    codec = TextCodec.fit_to({"tokenizer": "chars"}, {}, PackedSet(tmp_path / "poems"))
    assert back(codec, "明月地霜") == "明月\ufffd\ufffd"


def test_fitting_on_pictures_reads_their_captions(tmp_path: Path) -> None:
    with SetWriter(tmp_path / "icons", SetInfo(name="icons", kind="image", shape=(1, 1, 3))) as writer:
        writer.add(Item("1", np.zeros((1, 1, 3), np.uint8), captions=["心", "heart"]))
        writer.add(Item("2", np.zeros((1, 1, 3), np.uint8), captions=["车"], split="valid"))
    codec = TextCodec.fit_to({"tokenizer": "chars"}, {}, PackedSet(tmp_path / "icons"))
    assert back(codec, "心heart车") == "心heart\ufffd"
