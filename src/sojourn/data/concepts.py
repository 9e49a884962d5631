"""What the emoji are: names, tags, groups and skin tones in two languages, captions, and the rule of what is held out.

Knows nothing about pictures, packages or packed sets.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any, Literal

from sojourn.errors import DataError

HELD_OUT = (
    "HEX = emojibase hexcode of the base concept, upper case. A concept is held out whole if the first 8 hex digits "
    "of sha256(HEX), as a number, are 0 mod 50; a (concept, style) pair if those of sha256(HEX/style) are 0 mod 20. "
    'Skin-tone variants go with their base. Held-out rows are split "test". Of the other pairs, those with '
    'sha256(valid/HEX/style) 0 mod 50 are split "valid", the rest "train"; '
    "pictures that equal a held-out one pixel for pixel under another name are left out."
)
GENERIC = 20
"""A tag that more concepts than this share says too little to stand alone."""
EMPTY = {"you", "here", "the", "not", "yes", "all", "out", "off", "too", "omg", "ttyl", "143", "ily"}
"""Tags that say nothing about a picture."""
TAGS = 5
"""Tags of a concept that become captions, in each language, at most."""


@dataclass(frozen=True)
class Variant:
    hex: str
    en: str
    zh: str


@dataclass
class Concept:
    hex: str
    """emojibase hexcode of the base, upper case, variation selectors kept."""
    en: str
    zh: str
    group: str
    """emojibase group key: `smileys-emotion`, `flags`, …"""
    subgroup: str
    tags_en: list[str] = field(default_factory=list)
    tags_zh: list[str] = field(default_factory=list)
    variants: list[Variant] = field(default_factory=list)


def digits(text: str) -> int:
    """The first 8 hex digits of the text's sha256, as a number."""
    return int(sha256(text.encode()).hexdigest()[:8], 16)


def held_out(hex_code: str, style: str) -> Literal["concept", "pair"] | None:
    """Whether and how a base concept in a style is held out (see HELD_OUT)."""
    if digits(hex_code) % 50 == 0:
        return "concept"
    if digits(f"{hex_code}/{style}") % 20 == 0:
        return "pair"
    return None


def split(hex_code: str, style: str) -> Literal["train", "valid", "test"]:
    """Split of every row of a base concept in a style."""
    if held_out(hex_code, style):
        return "test"
    return "valid" if digits(f"valid/{hex_code}/{style}") % 50 == 0 else "train"


def read_concepts(files: Mapping[str, bytes]) -> list[Concept]:
    """The concepts with a group, in emojibase's order, from its `en/data.json`, `zh/data.json`, `meta/groups.json`."""
    try:
        english, chinese = json.loads(files["en/data.json"]), json.loads(files["zh/data.json"])
        meta = json.loads(files["meta/groups.json"])
        zh = {entry["hexcode"].upper(): entry for entry in chinese}
        return [_concept(entry, zh, meta) for entry in english if "group" in entry]
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise DataError("emojibase-data does not read as expected ({reason})", reason=repr(error)) from error


def _concept(entry: dict[str, Any], chinese: Mapping[str, dict[str, Any]], meta: dict[str, Any]) -> Concept:
    hex_code = entry["hexcode"].upper()
    other = chinese.get(hex_code, {})
    skins = {skin["hexcode"].upper(): skin["label"] for skin in other.get("skins", [])}
    subgroup = meta["subgroups"].get(str(entry.get("subgroup")), "")
    variants = [
        Variant(skin["hexcode"].upper(), skin["label"], skins.get(skin["hexcode"].upper(), ""))
        for skin in entry.get("skins", [])
    ]
    return Concept(
        hex_code, entry["label"], other.get("label", ""), meta["groups"][str(entry["group"])], subgroup,
        list(entry.get("tags", [])), list(other.get("tags", [])), variants,
    )  # fmt: skip


COUNTABLE = {"animals-nature", "food-drink", "travel-places", "objects"}
COUNTABLE_SUBGROUPS = {"heart", "geometric", "award-medal", "sport", "musical-instrument"}
COLOURED = re.compile("(粉红|浅蓝|红|橙|黄|绿|蓝|紫|棕|黑|灰|白)色?的?(心|圆|方块)")
TONED = re.compile("(较浅|中等-浅|中等|中等-深|较深)肤色")
SHAPES = {"心": ("心", "爱心"), "圆": ("圆", "圆形"), "方块": ("方块", "正方形")}


def forms_en(label: str, group: str = "", subgroup: str = "") -> list[str]:
    """Other ways to say an English emojibase label."""
    head, colon, tail = label.partition(": ")
    if colon and head == "flag":
        return [f"flag of {tail}", f"{tail} flag"]
    if colon and head == "keycap":
        return [f"keycap {tail}", f"{tail} key"]
    if colon and tail.endswith(("hair", "beard")) and "skin" not in tail:
        return [f"{head} with {tail}"]
    if colon and tail.endswith("skin tone") and "," not in tail:
        return [f"{head} with {tail.removesuffix(' tone')}"]
    if colon:
        return []
    forms = [f"{label} emoji"]
    countable = group in COUNTABLE or subgroup in COUNTABLE_SUBGROUPS
    if countable and subgroup != "time" and label[:1].isalpha() and (label.endswith("ss") or not label.endswith("s")):
        forms.append(f"{'an' if label[0].lower() in 'aeiou' else 'a'} {label}")
    return forms


def forms_zh(label: str, subgroup: str = "") -> list[str]:
    """Other ways to say a Chinese emojibase label."""
    head, colon, tail = label.partition(": ")
    if colon and head == "旗":
        return [f"{tail}国旗" if subgroup == "country-flag" else f"{tail}旗", f"{tail}的旗帜"]
    if colon and head == "按键":
        return [f"按键{tail}"]
    if colon:
        return [f"{tail}的{head}"] if TONED.fullmatch(tail) else []
    coloured = COLOURED.fullmatch(label)
    if coloured:
        colour, shape = coloured.groups()
        return [f"{colour}色的{noun}" for noun in SHAPES[shape]]
    return [f"{label}图标"]


class Captions:
    """Captions of concepts; half of a row's captions are its plain names, English and Chinese in equal parts."""

    def __init__(self, concepts: list[Concept]) -> None:
        self.shared = Counter(tag for concept in concepts for tag in {*concept.tags_en, *concept.tags_zh})

    def base(self, concept: Concept) -> list[str]:
        """Captions of the untoned picture; the first is the English label, the second the Chinese one."""
        names = [name for name in (concept.en, concept.zh) if name]
        rest = forms_en(concept.en, concept.group, concept.subgroup)
        rest += self._tags(concept.en, concept.tags_en)
        if concept.zh:
            rest += forms_zh(concept.zh, concept.subgroup)
            rest += self._tags(concept.zh, [tag for tag in concept.tags_zh if not tag.isascii()])
        rest = [caption for caption in dict.fromkeys(rest) if caption not in names]
        return names * max(1, math.ceil(len(rest) / len(names))) + rest

    def variant(self, concept: Concept, variant: Variant) -> list[str]:
        """Captions of a skin-tone variant: its own labels first, its base's labels as one in five."""
        names = [name for name in (variant.en, variant.zh) if name]
        rest = forms_en(variant.en) + (forms_zh(variant.zh) if variant.zh else [])
        rest += [name for name in (concept.en, concept.zh) if name]
        return names * 3 + [caption for caption in dict.fromkeys(rest) if caption not in names]

    def _tags(self, name: str, tags: list[str]) -> list[str]:
        """The tags worth a caption: words that a few concepts share first, then those of this one alone."""
        useful = [tag for tag in tags if tag.casefold() not in name.casefold() and not tag.isdigit()]
        useful = [tag for tag in useful if (len(tag) > 2 or not tag.isascii()) and tag not in EMPTY]
        ordered = sorted(useful, key=lambda tag: (self.shared[tag] > GENERIC, self.shared[tag] == 1))
        return [
            tag if self.shared[tag] <= GENERIC else f"{name}, {tag}" if tag.isascii() else f"{name}，{tag}"
            for tag in ordered[:TAGS]
        ]
