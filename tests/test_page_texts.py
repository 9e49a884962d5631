"""What the page is made of: every text in both languages, no code in its frames, no address of others."""

from __future__ import annotations

import json
import re
from pathlib import Path

from fontTools.ttLib import TTFont

import sojourn
from sojourn.errors import catalogue
from sojourn.http import pages

TEMPLATES = Path(pages.__file__).parent / "templates"


def said() -> set[str]:
    """Every text of the page that is to be translated."""
    found: set[str] = set()
    for path in [*TEMPLATES.glob("*.html"), *pages.STATIC.glob("*.js")]:
        source = path.read_text(encoding="utf-8")
        found |= set(re.findall(r"""\bt\("([^"]+)""", source)) | set(re.findall(r"""\bt\('([^']+)'""", source))
    return found


def test_every_text_of_the_page_is_in_both_languages() -> None:
    zh = pages.texts("zh")
    assert len(said()) > 60
    assert said() - zh.keys() == set()
    assert all(re.search("[\u4e00-\u9fff]", text) for text in zh.values())
    assert all(set(re.findall(r"\{\w+\}", a)) == set(re.findall(r"\{\w+\}", b)) for a, b in zh.items())
    assert pages.texts("en")["Imagine"] == "Imagine"


def test_the_page_holds_no_code_and_no_address_of_others() -> None:
    for path in [*TEMPLATES.glob("*.html"), *(path for path in pages.STATIC.iterdir() if path.suffix != ".woff2")]:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"(src|href|action)=\"(https?:)?//", source), path.name
        assert "innerHTML" not in source, path.name
        assert "eval(" not in source, path.name
        if path.suffix == ".html":
            assert not re.search(r"\son\w+=|<style|style=", source), path.name
            assert not re.findall(r"<script(?![^>]*(src=|application/json))", source), path.name


def test_the_chinese_font_has_what_the_page_says() -> None:
    with TTFont(pages.STATIC / "han.woff2") as font:
        held, letters = font.getBestCmap(), font["glyf"]
    words = Path(sojourn.__file__).parent / "starter/emoji/conditioner/vocabulary.json"
    said = "".join(
        [
            *pages.texts("zh").values(),
            *catalogue("names.zh").values(),
            *json.loads(words.read_text(encoding="utf-8"))["names"],
        ]
    )
    wanted = set(re.findall("[\u4e00-\u9fff，。：；、（）]", said))
    assert len(wanted) > 500
    assert not [char for char in wanted if ord(char) not in held]
    drawn = {letters[held[ord(char)]].numberOfContours for char in "一红色的心"}
    assert 0 not in drawn
    assert len(drawn) > 1, "not the same box for all"
