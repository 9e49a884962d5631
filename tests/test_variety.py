"""Pictures made from others: moved, recoloured, composed, and what is said of them."""

from __future__ import annotations

import numpy as np
import pytest

from sojourn.data import variety
from sojourn.data.concepts import Concept
from sojourn.data.variety import COLOURS, Colour, Thing

RED = (221, 46, 52)


def disc(rgb: tuple[int, int, int] = RED, side: int = 64, radius: int = 20, eye: bool = True) -> np.ndarray:
    """A disc on a clear ground, with a black eye."""
    y, x = np.mgrid[:side, :side] - side / 2 + 0.5
    out = np.full((side, side, 4), (255, 255, 255, 0), np.uint8)
    out[x**2 + y**2 < radius**2] = (*rgb, 255)
    if eye:
        out[x**2 + y**2 < 16] = (20, 20, 20, 255)
    return out


def never(thing: Thing, colour: Colour) -> bool:
    return False


def thing(name: str, zh: str, style: str = "noto", rgb: tuple[int, int, int] = RED) -> Thing:
    return Thing(f"{name}/{style}", disc(rgb), (name, zh), (name,), (zh,), style)


def test_oklab_is_that_of_its_author_and_comes_back() -> None:
    # Ottosson 2020, table of pairs, by way of linear sRGB of white and red
    white, red = variety.oklab(np.array([[255, 255, 255], [255, 0, 0]], np.uint8))
    np.testing.assert_allclose(white, (1, 0, 0), atol=1e-4)
    np.testing.assert_allclose(red, (0.62796, 0.22486, 0.12585), atol=1e-4)
    rgb = np.random.default_rng(0).integers(0, 256, (500, 3), np.uint8)
    assert np.abs(variety.srgb(variety.oklab(rgb)).astype(int) - rgb).max() <= 1


@pytest.mark.parametrize("colour", COLOURS, ids=lambda c: c.en[0])
@pytest.mark.parametrize("start", [RED, (52, 120, 222), (240, 240, 242)], ids=["red", "blue", "white"])
def test_the_body_takes_the_colour_and_the_rest_stays(start: tuple[int, int, int], colour: Colour) -> None:
    before = disc(start)
    after = variety.recoloured(before, colour, np.random.default_rng(0))
    assert after is not None
    assert (after[..., 3] == before[..., 3]).all()
    body = after[(after[..., 3] > 0) & (before[..., :3] != (20, 20, 20)).all(axis=2)][:, :3]
    table = variety.oklab(np.array([c.rgb for c in COLOURS], np.uint8)[None])[0]
    gap = np.linalg.norm(variety.oklab(body[None])[0][:, None] - table[None], axis=2)
    assert COLOURS[np.bincount(gap.argmin(axis=1)).argmax()] == colour
    assert not variety.belies(after, colour.en[0])
    assert (after[32, 32] == before[32, 32]).all(), "the eye stays"


def test_a_picture_without_a_body_of_one_colour_is_not_recoloured() -> None:
    stripes = disc(eye=False)
    rows = np.arange(64) // 4 % 3
    for at, rgb in enumerate(((221, 46, 52), (76, 168, 66), (52, 120, 222))):
        stripes[rows == at, :, :3] = rgb
    assert variety.recoloured(stripes, COLOURS[2], np.random.default_rng(0)) is None


def test_two_things_lie_where_the_words_say() -> None:
    rng = np.random.default_rng(1)
    left, right = disc((221, 46, 52)), disc((52, 120, 222))
    beside = variety.joined(left, right, "beside", rng)
    above = variety.joined(left, right, "above", rng)

    def middle(pixels: np.ndarray, channel: int) -> np.ndarray:
        mass = (pixels[..., 3] > 128) & (pixels[..., channel] > 150)
        return np.argwhere(mass).mean(axis=0)

    assert middle(beside, 0)[1] + 20 < middle(beside, 2)[1]
    assert middle(above, 0)[0] + 20 < middle(above, 2)[0]


def test_captions_name_both_things_and_their_colours_in_their_order() -> None:
    rng = np.random.default_rng(3)
    cat, dog = thing("cat", "猫"), thing("dog", "狗")
    found = [made for made in (variety.composed(cat, dog, never, rng) for _ in range(60)) if made is not None]
    assert {len(made.captions) for made in found} == {2}
    for made in found:
        english, chinese = made.captions
        assert "cat" in english
        assert "dog" in english
        assert "猫" in chinese
        assert "狗" in chinese
        for colour in COLOURS:
            assert any(word in english.split() for word in colour.en) == (colour.zh[0] in chinese), made.captions
    assert variety.composed(cat, cat, never, rng) is None


def test_nothing_is_painted_so_that_it_is_held_out() -> None:
    things = [thing("cat", "猫"), thing("dog", "狗")]
    made = list(variety.make(things, (5, 200, 200), lambda t, c: (t.en[0], c.en[0]) == ("cat", "blue")))
    said = [caption for item in made for caption in item.captions]
    assert not [caption for caption in said if "blue cat" in caption or "蓝色的猫" in caption or "蓝猫" in caption]
    assert [caption for caption in said if "blue dog" in caption]
    assert [caption for caption in said if "red cat" in caption]
    assert len({item.kind for item in made}) == 3


def test_a_coloured_name_is_found_under_its_thing_and_colour() -> None:
    labels = ("pink heart", "grey heart", "light blue heart", "large blue diamond", "black cat", "cat")
    named = variety.coloured_names([Concept(str(i), label, "", "", "") for i, label in enumerate(labels)])
    assert named == {
        ("heart", "pink"): ["0"], ("heart", "grey"): ["1"], ("heart", "blue"): ["2"], ("large diamond", "blue"): ["3"],
        ("cat", "black"): ["4"],
    }  # fmt: skip


def test_making_is_a_function_of_the_seed() -> None:
    things = [thing("cat", "猫"), thing("dog", "狗", rgb=(140, 76, 190))]
    runs = [list(variety.make(things, (10, 10, 10), never, seed)) for seed in (0, 0, 1)]
    same = [(a.pixels == b.pixels).all() and a.captions == b.captions for a, b in zip(runs[0], runs[1], strict=True)]
    assert all(same)
    assert any((a.pixels != b.pixels).any() for a, b in zip(runs[0], runs[2], strict=False))


@pytest.mark.parametrize(
    ("label", "zh", "group", "subgroup", "en"),
    [
        ("red heart", "红心", "smileys-emotion", "heart", "heart"),
        ("cat face", "猫脸", "animals-nature", "animal-mammal", "cat"),
        ("green apple", "青苹果", "food-drink", "food-fruit", "apple"),
        ("cucumber", "黄瓜", "food-drink", "food-vegetable", "cucumber"),
        ("grinning face", "嘿嘿", "smileys-emotion", "face-smiling", None),
        ("flag: Chad", "旗: 乍得", "flags", "country-flag", None),
    ],
)
def test_a_thing_is_named_without_its_colour(label: str, zh: str, group: str, subgroup: str, en: str | None) -> None:
    english, chinese = variety.nouns(Concept("1F600", label, zh, group, subgroup, ["weather"], ["黄"]))
    assert (english[0] if english else None) == en
    assert bool(chinese) == bool(english)
    assert chinese in ((), ("心",), ("猫",), ("青苹果",), ("黄瓜",))


@pytest.mark.parametrize(
    ("rgb", "word", "lies"),
    [((215, 60, 60), "red", False), ((60, 110, 220), "red", True), ((128, 170, 240), "blue", False),
     ((90, 60, 140), "black", False), ((200, 200, 205), "white", False), ((60, 160, 70), "purple", True)],
)  # fmt: skip
def test_a_name_belies_its_picture_only_where_the_hue_is_plainly_another(rgb, word: str, lies: bool) -> None:
    assert variety.belies(disc(rgb), word) == lies
