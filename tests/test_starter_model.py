"""The bundled model: whole, small enough, with its data named, and its hearts are red in both languages."""

from __future__ import annotations

import colorsys
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sojourn
from sojourn import package
from sojourn.cli.main import run
from sojourn.data.styles import COLOUR_STYLES

FOLDER = Path(sojourn.__file__).parent / "starter" / "emoji"


@pytest.fixture(scope="module")
def model() -> sojourn.Model:
    return sojourn.load(FOLDER)


def ink(picture: Image.Image) -> tuple[float, float, float]:
    """Hue, saturation and value of the mean colour of what is not paper."""
    pixels = np.asarray(picture.convert("RGB"), float)
    marks = pixels[pixels.min(axis=2) < 225]
    assert len(marks) > 60, "the picture is all but empty"
    red, green, blue = (float(value) / 255 for value in marks.mean(axis=0))
    return colorsys.rgb_to_hsv(red, green, blue)


def is_red(picture: Image.Image) -> bool:
    hue, saturation, _ = ink(picture)
    return (hue < 0.045 or hue > 0.9) and saturation > 0.35


def test_it_is_whole_and_small_enough() -> None:
    assert package.verify(FOLDER) == []
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 40 * 2**20


def test_its_card_names_data_licences_time_and_failures(model: sojourn.Model) -> None:
    card = model.card
    assert card.licence == "CC-BY-4.0"
    assert {source.licence for source in card.sources} >= {"Apache-2.0", "MIT", "CC-BY-4.0"}
    assert all(source.name and source.licence for source in card.sources)
    assert card.train_s > 0
    assert card.metrics
    assert len(card.failures) >= 3


@pytest.mark.parametrize("prompt", ["a red heart", "红色的心"])
def test_red_hearts_are_red(model: sojourn.Model, prompt: str) -> None:
    pictures = [item for seed in (0, 4) for item in model.imagine(prompt, n=4, seed=seed)]
    assert all(is_red(item.pil) for item in pictures)


def test_the_words_decide_the_colour(model: sojourn.Model) -> None:
    for prompt, low, high in (("a blue heart", 0.55, 0.7), ("绿色的心", 0.25, 0.45), ("a yellow heart", 0.1, 0.19)):
        for item in model.imagine(prompt, n=4, seed=0):
            hue, saturation, _ = ink(item.pil)
            assert low < hue < high, (prompt, hue)
            assert saturation > 0.35
            assert not is_red(item.pil)


def test_both_languages_mean_the_same(model: sojourn.Model) -> None:
    """Nearly the same condition, the same seeds: nearly the same pictures."""
    here, there, other = (
        [np.asarray(item.pil, float) for item in model.imagine(prompt, n=4, seed=0)]
        for prompt in ("a red heart", "红色的心", "a green car")
    )
    same, apart = (np.mean([np.abs(a - b).mean() for a, b in zip(here, x, strict=True)]) for x in (there, other))
    assert same < 0.5 * apart


def test_a_strong_variation_is_in_other_styles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In its own style the model knows one picture of a thing."""
    monkeypatch.chdir(tmp_path)
    assert run(["imagine", "cat --style twemoji --n 1 --seed 3 --steps 4", "--quiet", "--json"]) == 0
    file = json.loads(capsys.readouterr().out)["pictures"][0]["file"]
    for more, most in ([], 1), (["--strong"], 4), (["--strong", "--prompt", "cat --style 3d"], 1):
        assert run(["vary", file, "-n", "4", "--seed", "1", "--quiet", "--json", *more]) == 0
        rows = json.loads(capsys.readouterr().out)["pictures"]
        assert len({re.search(r"--style (\S+)", row["prompt"])[1] for row in rows}) == most, rows  # type: ignore[index]


def test_a_prompt_of_which_nothing_was_learned_gets_the_nearest_names(model: sojourn.Model) -> None:
    for known in ("a red heart", "红色的心", "puppy", "轿车"):
        assert model.unknown(model.request(known)) == [], known
    near = model.unknown(model.request("xyzzy"))
    assert len(near) == 5
    assert all(model.unknown(model.request(name)) == [] for name in near)


def test_a_prompt_longer_than_the_text_side_reads_says_so(model: sojourn.Model) -> None:
    assert model.cut(model.request("a red cat and a blue dog")) == 0
    assert model.cut(model.request(" ".join(["red", "heart"] * 11))) == 0
    assert model.cut(model.request(" ".join(["red", "heart"] * 12))) == 22


def test_four_pictures_come_in_four_colour_styles_fixed_by_the_seed(model: sojourn.Model) -> None:
    rows = model.request("red heart", n=4, seed=7).prompts
    styles = [row.style for row in rows]
    assert len(set(styles)) == 4
    assert set(styles) <= set(COLOUR_STYLES)
    assert [row.style for row in model.request("red heart", n=4, seed=7).prompts] == styles
    assert [row.style for row in model.request("red heart", n=4, seed=8).prompts] != styles


@pytest.mark.parametrize("name", ["mono", "黑白", "fluent-mono"])
def test_monochrome_comes_when_named(model: sojourn.Model, name: str) -> None:
    for item in model.imagine("red heart", n=2, seed=3, style=name):
        assert ink(item.pil)[1] < 0.25


@pytest.mark.parametrize("words", ["a red heart", "a red heart::2 a car::-0.5"])
def test_chaos_moves_the_pictures_and_its_seed_fixes_how(model: sojourn.Model, words: str) -> None:
    calm, wild, again = (
        np.asarray(model.imagine(f"{words} --n 1 --seed 3 --steps 4{more}")[0].pil, int)
        for more in ("", " --chaos 80", " --chaos 80")
    )
    assert np.abs(calm - wild).max() > 0
    assert np.array_equal(wild, again)


def test_rules_bend_what_it_draws_and_leave_a_cat(model: sojourn.Model) -> None:
    def drawn(**rules: object) -> np.ndarray:
        pictures = model.imagine("a cat", n=4, seed=1, style="noto", **rules)
        return np.stack([np.asarray(p.pil.convert("RGB"), float) for p in pictures])

    def odd(x: np.ndarray) -> float:
        return float(np.abs(x - x[:, :, ::-1]).mean())

    def inked(x: np.ndarray) -> float:
        return float((x.min(axis=3) < 200).mean())

    plain, mirrored, red = drawn(), drawn(symmetry=True), drawn(palette=("red",))
    assert odd(mirrored) < 0.6 * odd(plain)
    assert inked(mirrored) > 0.5 * inked(plain), "a blank picture mirrors itself too"
    colour = red[red.min(axis=3) < 200].mean(axis=0)
    assert colour[0] > 180 > 130 > max(colour[1], colour[2])
    assert inked(red) > 0.4 * inked(plain)
