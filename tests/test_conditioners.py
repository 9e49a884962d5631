"""Prompts to tensors."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sojourn import registry
from sojourn.codecs.text import TextCodec
from sojourn.conditioners import Labels, Memory, NoCondition, Text, Tokens
from sojourn.data.dataset import Item, PackedSet, SetInfo, SetWriter
from sojourn.errors import ConfigError, InvalidInput, NotFound, PackageError
from sojourn.families.tower import TextTower, TowerConfig
from sojourn.schema import Prompt, Segment
from sojourn.types import DataSpec

IMAGE = DataSpec("image", (3, 8, 8))
STYLES = {"style": ["noto", "fluent-3d"]}


def prompts(*texts: str, style: str | None = None) -> list[Prompt]:
    return [Prompt.plain(text, style) for text in texts]


@pytest.fixture
def part():
    """A text encoder with fresh weights, as a nested package holds it."""
    codec = TextCodec({"tokenizer": "bytes", "length": 24, "normalise": "words"})
    torch.manual_seed(0)
    family = TextTower(TowerConfig(width=32, depth=1, heads=2, hidden=32, target=48), codec.spec).eval()
    return SimpleNamespace(family=family, codec=codec)


@pytest.fixture
def text(part):
    return Text({"length": 6, "columns": STYLES}, {"text": part})


@pytest.fixture
def labelled(tmp_path):
    columns = [{"name": "style", "values": STYLES["style"]}, {"name": "concept", "values": ["cat", "dog"]}]
    columns.append({"name": "group", "values": ["animals"]})
    info = SetInfo(name="pets", kind="text", shape=(), labels=columns)
    with SetWriter(tmp_path / "pets", info) as writer:
        writer.add(Item(id="a", data="a cat", captions=["a cat"], labels=(0, 0, 0)))
        writer.add(Item(id="b", data="a dog", captions=["a dog"], labels=(1, 1, 0)))
    return PackedSet(tmp_path / "pets")


def test_all_four_are_registered():
    assert {"none", "labels", "text", "tokens"} <= set(registry.ids("conditioner"))


@pytest.fixture
def captioned(tmp_path):
    info = SetInfo(name="pets", kind="image", shape=(8, 8, 3))
    with SetWriter(tmp_path / "pets", info) as writer:
        for i, captions in enumerate((["red heart", "红心", "love"], ["dogs", "狗"], ["a secret owl", "猫头鹰"])):
            blank = np.zeros((8, 8, 3), np.uint8)
            writer.add(Item(f"r{i}", blank, captions, split="test" if i == 2 else "train"))
        writer.add(Item("m", blank, ["a blue heart"], extra={"made": "recoloured"}))
    return PackedSet(tmp_path / "pets")


def test_a_prompt_of_which_no_caption_had_a_word_gets_the_nearest_names(part, captioned):
    text = Text.fit_to({"length": 6}, {"text": part}, captioned)
    assert text.vocabulary.names == ["dogs", "red heart", "狗", "红心"]
    for known in ("a heart", "LOVE", "dog", "the blue thing", "小狗", "紅", "a the", "1 dog and xyzzy"):
        assert text.unknown(known) == [], known
    assert set(text.unknown("xyzzy")) == {"dogs", "red heart"}
    assert text.unknown("haert")[0] in ("red heart", "dogs")
    assert text.unknown("hearrt red"[:6]) != []
    assert set(text.unknown("飞船")) == {"狗", "红心"}
    assert text.unknown("owl") != [], "what is held out is not known"


def test_a_thing_that_no_caption_had_is_drawn_as_the_nearest_name(part, captioned, monkeypatch):
    text = Text.fit_to({"length": 6}, {"text": part}, captioned)
    for known in ("a heart", "dogs", "", "小猫", "xyzzy heart", "a red dog", "a blue", "1 dog and xyzzy"):
        assert text.read(known) == known, "what is known stays as it is written"
    table = {"hound": [1.0, 0.0], "dogs": [0.9, 0.1], "red heart": [0.0, 1.0], "love letter": [0.2, 0.9]}
    monkeypatch.setattr(text.memory, "vectors", lambda texts: torch.tensor([table[name] for name in texts]))
    vars(text).pop("_things", None)
    assert text.read("hound") == "dogs"
    assert text.read("A Blue HOUND, please hound") == "a blue dogs, please dogs"
    monkeypatch.undo()
    vars(text).pop("_things")
    assert torch.equal(text([Prompt.plain("hound")]).pooled, text([Prompt.plain(text.read("hound"))]).pooled)


@pytest.fixture
def taught(tmp_path, monkeypatch):
    """A set "words" with vectors, as the starter of that name builds it."""
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path / "home"))
    dog, insect = ["dog", "animal", "thing"], ["moth", "insect", "animal", "thing"]
    rows = [
        ("dogs", (1, 0, 0, 0), {"kinds": [dog]}),
        ("red heart", (0, 1, 0, 0), {"kinds": [["heart", "thing"]]}),
        ("狗", (0, 0, 1, 0), {"noun": True}),
        ("红心", (0, 0, 0, 1), {"noun": True}),
        ("hound", (0.8, 0.6, 0, 0), {"kinds": [["hound", *dog]]}),
        ("moth", (0.69, 0.7, 0, 0), {"kinds": [insect]}),
        ("freedom", (0.9, 0.1, 0, 0), {}),
        ("far", (0.1, 0.1, 1, 0), {"kinds": [dog]}),
        ("heart", (0, 1, 0, 0), {"kinds": [["heart", "thing"]]}),
        ("哈巴狗", (0, 0, 0.9, 0.3), {"noun": True}),
        ("黑狗", (0, 0, 0.9, 0.3), {"noun": True}),
        ("跑开", (0, 0, 0.9, 0.3), {}),
        ("狗粮", (0, 0, 0.5, 0.5), {"noun": True}),
    ]
    sources = [{"name": "WordNet", "licence": "WordNet-3.0", "attribution": "Princeton University"}]
    info = SetInfo(name="words", kind="text", shape=(), target="a teacher", sources=sources)
    with SetWriter(tmp_path / "home" / "sets" / "words", info) as writer:
        for word, vector, extra in rows:
            target = np.asarray(vector, np.float32)
            writer.add(Item(id=word, data=word, captions=[word], target=target, extra=extra))


def test_words_that_no_caption_had_are_read_as_the_name_that_means_most_nearly_the_same(part, captioned, taught):
    text = Text.fit_to({"length": 6, "near": "words"}, {"text": part}, captioned)
    # A moth is an animal, whatever its vector says; freedom is no thing, far lies too far, a heart stood in a caption.
    assert text.vocabulary.near == {"dogs": ["hound", "moth"], "狗": ["哈巴狗", "狗粮"]}
    assert text.read("Two Hounds on a moth, with a heart") == "two dogs on a dogs, with a heart"
    text.vocabulary.near["owl"] = ["bird"]
    vars(text.vocabulary).pop("_nearest")
    assert text.read("A bird near an hound by a orca") == "an owl near a dogs by a orca"
    assert text.read("红色的哈巴狗和狗粮") == "红色的狗和狗"
    assert text.read("一只黑色的哈巴狗") == "一只黑色的狗"
    assert text.read("追哈巴狗") == "追哈巴狗", "a sentence may mean other words"
    assert text.read("A Heart and 小猫") == "A Heart and 小猫", "what is known stays as it is written"
    assert text.unknown("moth") == []
    assert [source.name for source in text.sources] == ["WordNet"]
    again = Text(text.config, {"text": part}, text.files)
    assert again.read("hound") == "dogs"
    asked, known = again([Prompt.plain("哈巴狗")]), again([Prompt.plain("狗")])
    assert torch.equal(asked.pooled, known.pooled)


def test_near_words_need_a_set_with_vectors(part, captioned, tmp_path, monkeypatch):
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path / "home"))
    with pytest.raises(NotFound, match="words"):
        Text.fit_to({"near": "words"}, {"text": part}, captioned)
    with pytest.raises(InvalidInput, match='"pets" has no vectors of a teacher'):
        Text.fit_to({"near": str(captioned.folder)}, {"text": part}, captioned)


def test_the_vocabulary_is_a_file_of_the_package_and_may_be_absent_or_damaged(part, captioned):
    text = Text.fit_to({"length": 6}, {"text": part}, captioned)
    again = Text(text.config, {"text": part}, text.files)
    assert again.unknown("xyzzy") == text.unknown("xyzzy")
    assert Text(text.config, {"text": part}).unknown("xyzzy") == []
    broken = Text(text.config, {"text": part}, {"vocabulary.json": b'{"names": 3}'})
    with pytest.raises(PackageError, match="not a list of names"):
        broken.unknown("xyzzy")


def test_none_says_nothing():
    none = NoCondition({})
    assert none.extend(IMAGE) == IMAGE
    assert none(prompts("a", "b")).rows == 0
    with pytest.raises(ConfigError, match="no settings, found part"):
        NoCondition({"part": "text"})


def test_labels_read_words_and_style_in_any_case():
    labels = Labels({"columns": {"class": ["cat", "Dog"], **STYLES}})
    assert labels.column == "class"
    assert labels.extend(IMAGE).labels == (("class", 2), ("style", 2))
    cond = labels([*prompts("DOG ", style="Noto"), *prompts("cat"), *prompts("", style="fluent-3d")])
    assert cond.labels.tolist() == [[1, 0], [0, -1], [-1, 1]]
    assert labels([]).labels.shape == (0, 2)


def test_classes_that_only_case_tells_apart_are_apart():
    """Of letters, "a" and "A" are two; what is written in neither way is the one in small letters, or the first."""
    labels = Labels({"columns": {"class": ["A", "a", "Ab", "aB"], "style": ["Bold", "bold"]}})
    cond = labels([*prompts("A"), *prompts(" a"), *prompts("aB", style="bold"), *prompts("AB", style="BOLD")])
    assert cond.labels.tolist() == [[0, -1], [1, -1], [3, 1], [2, 1]]


def test_labels_name_the_nearest_when_unknown():
    labels = Labels({"columns": {"class": ["tabby cat", "dog", "zebra"]}})
    with pytest.raises(NotFound, match=r'no class "taby cat" in this package; nearest of 3: tabby cat'):
        labels(prompts("taby cat"))
    with pytest.raises(NotFound, match="nearest of 3: tabby cat, dog, zebra"):
        labels(prompts("12345"))


def test_an_unknown_style_names_the_known_ones(text):
    for conditioner in (text, Labels({"columns": STYLES})):
        with pytest.raises(NotFound, match='no style "cubist" in this package; it has noto, fluent-3d'):
            conditioner(prompts("a", style="cubist"))


def test_styles_go_by_their_aliases_too(monkeypatch):
    monkeypatch.setattr("sojourn.conditioners.find_style", {"三维": "fluent-3d", "flat": "twemoji"}.get)
    labels = Labels({"columns": STYLES})
    assert labels(prompts("", style="三维")).labels.tolist() == [[1]]
    with pytest.raises(NotFound, match='no style "flat" in this package'):  # known elsewhere, not here
        labels(prompts("", style="flat"))


def test_labels_fit_to_a_set(labelled):
    fitted = Labels.fit_to({}, {}, labelled)
    assert fitted.config == {"columns": {"style": STYLES["style"], "concept": ["cat", "dog"]}}
    assert fitted.column == "concept"
    drawn = labelled.prompts([0, 1], (0, 0), fitted.column)
    assert fitted(drawn).labels.tolist() == [[-1, 0], [-1, 1]]
    assert Labels.fit_to({"columns": {"group": ["animals"]}}, {}, labelled).column == "group"
    with pytest.raises(ConfigError, match="one column from the words, found a, b"):
        Labels({"columns": {"a": ["x"], "b": ["y"]}})


def test_text_extends_the_spec_by_what_it_gives(text):
    spec = text.extend(IMAGE)
    assert (spec.labels, spec.text_len, spec.text_dim, spec.pooled_dim) == ((("style", 2),), 6, 32, 48)
    cond = text(prompts("red", "a very long prompt", ""))
    assert cond.pooled.shape == (3, 48)
    assert cond.feats.shape == (3, 6, 32)
    assert cond.token_mask.sum(1).tolist() == [4, 6, 0]  # a word begins with its space
    assert cond.labels.tolist() == [[-1]] * 3
    assert text([]).pooled.shape == (0, 48)


def test_text_is_of_unit_scale_and_nothing_where_nothing_was_said(text):
    cond = text(prompts("red", "a very long prompt", "", "  "))
    torch.testing.assert_close(cond.pooled.square().mean(1), torch.tensor([1.0, 1, 0, 0]), rtol=2e-3, atol=0)
    power = cond.feats.square().mean(2)
    torch.testing.assert_close(power, cond.token_mask.float(), rtol=5e-3, atol=0)
    assert not cond.token_mask[2:].any()


def test_text_gives_what_the_encoder_says(text, part):
    cond = text(prompts("red", "Red", "blue"))
    ids, length = part.codec.pack_rows(["red"])
    with torch.no_grad():
        pooled, feats = part.family.embed(torch.from_numpy(ids).long(), torch.from_numpy(length))
    torch.testing.assert_close(cond.pooled[0], pooled[0] * 48**0.5, rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(cond.feats[0, :3], feats[0, :3], rtol=2e-3, atol=2e-3)
    assert torch.equal(cond.pooled[0], cond.pooled[1])
    assert not torch.allclose(cond.pooled[0], cond.pooled[2])


def test_text_joins_the_segments_of_a_prompt(text):
    joined = Prompt(segments=(Segment(text="red", weight=2.0), Segment(text="heart")))
    assert torch.equal(text([joined]).pooled, text(prompts("red heart")).pooled)


def test_the_same_text_is_the_same_bytes_in_any_company(part):
    """A training that was killed fills its memory in another order and must go on with the same numbers."""
    alone = Text({}, {"text": part})(prompts("a red heart"))
    crowd = Text({}, {"text": part})(prompts(*(f"word {i}" for i in range(40)), "a red heart"))
    assert torch.equal(alone.pooled[0], crowd.pooled[-1])
    assert torch.equal(alone.feats[0], crowd.feats[-1])
    assert torch.equal(alone.token_mask[0], crowd.token_mask[-1])


def test_memory_asks_the_encoder_once_and_forgets_when_full(part):
    asked = []
    embed = part.family.embed
    part.family.embed = lambda x, length: asked.append(1) or embed(x, length)
    memory = Memory(part.family, part.codec, length=6, most=4)
    asked.clear()
    first = memory(["a", "b", "a"])
    assert len(asked) == 2
    assert all(map(torch.equal, first, memory(["a", "b", "a"])))
    assert len(asked) == 2
    memory(["c", "d"])  # with the empty one, five: the old go
    assert len(asked) == 4
    assert len(memory.slots) == len(memory.places) == 3
    assert all(map(torch.equal, first, memory(["a", "b", "a"])))
    assert len(asked) == 6


def test_a_batch_of_remembered_prompts_is_quick(part):
    text = Text({"length": 16}, {"text": part})
    batch = prompts(*(f"prompt {i}" for i in range(256)))
    text(batch)
    best = min(_timed(text, batch) for _ in range(5))
    assert best < 0.1  # about 0.002 on a free core; 256 encodings cost over 0.2


def _timed(call, batch) -> float:
    start = time.process_time()
    call(batch)
    return time.process_time() - start


def test_text_needs_a_part_that_embeds(part):
    with pytest.raises(ConfigError, match='needs a part "text" that embeds text'):
        Text({}, {})
    part.family = SimpleNamespace(can=frozenset({"sample"}))
    with pytest.raises(ConfigError, match='needs a part "tower" that embeds text'):
        Text({"part": "tower"}, {"tower": part})


def test_text_takes_styles_alone_and_from_the_set(part, labelled):
    with pytest.raises(ConfigError, match='no use for column "class"'):
        Text({"columns": {"class": ["a"]}}, {"text": part})
    assert Text.fit_to({}, {"text": part}, labelled).config["columns"] == STYLES
    chosen = Text.fit_to({"columns": {"style": ["noto"]}}, {"text": part}, labelled)
    assert chosen.config == {"part": "text", "columns": {"style": ["noto"]}, "near": "", "length": 16}
    with pytest.raises(ConfigError, match='conditioner "text": there is no setting lenght; did you mean length'):
        Text({"lenght": 3}, {"text": part})


def test_text_without_styles_gives_no_labels(part):
    text = Text({}, {"text": part})
    assert text(prompts("a")).labels is None
    assert text.extend(IMAGE).labels == ()


def test_half_a_character_is_refused(text):
    with pytest.raises(InvalidInput, match="half a surrogate pair"):
        text(prompts("a\ud83d"))


def test_tokens_are_the_words_without_frame():
    tokens = Tokens({"tokenizer": {"tokenizer": "bytes", "length": 8}})
    cond = tokens(prompts("ab", "", "long enough text"))
    assert cond.token_mask.sum(1).tolist() == [2, 0, 16]
    assert cond.tokens[0, :2].tolist() == [ord("a") + 3, ord("b") + 3]
    assert tokens(prompts("", "")).tokens.shape == (2, 1)
    assert tokens.extend(DataSpec("text", (8,), vocab=259)) == DataSpec("text", (8,), vocab=259)


def test_tokens_take_the_vocabulary_of_a_codec_and_are_rebuilt_from_files(labelled):
    config = {"tokenizer": "chars", "length": 16}
    fitted = Tokens({"tokenizer": config}).like(TextCodec.fit_to(config, {}, labelled))
    again = Tokens(fitted.config, {}, fitted.files)
    assert torch.equal(fitted(prompts("cat")).tokens, again(prompts("cat")).tokens)
    codec = TextCodec(fitted.config["tokenizer"], files=fitted.files)
    assert codec.unpack(again(prompts("cat dog")).tokens) == ["cat dog"]


@pytest.mark.parametrize("length", [6, 500])  # shorter and longer than what the tower reads
def test_texts_learned_together_say_what_they_say_alone_in_any_order(part, length):
    texts = ["cat", "a red cat", "红色的猫", "", "dog " * 30, "cat", "x"]
    alone, first, second = (Memory(part.family, part.codec, length=length, most=4) for _ in range(3))
    assert list(first.learn(texts, chunk=2))[-1] == 5
    assert list(second.learn(reversed(texts), chunk=2))[-1] == 5
    for text in texts:
        one, two, three = (memory([text]) for memory in (alone, first, second))
        assert all(map(torch.equal, two, three)), text
        for a, b in zip(one, two, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
    assert first.most >= 6, "what was learned is kept"
