"""What a prompt says of colours, and how a walk is held to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import sojourn
from sojourn.colours import Coloured, coloured
from sojourn.data.variety import COLOURS, oklab
from sojourn.diffusion import rules
from sojourn.schema import Prompt
from sojourn.types import Guide
from sojourn.wishes import Request, conditions

RED, ORANGE, GREEN, BLUE, PINK, BLACK = (
    next(at for at, colour in enumerate(COLOURS) if name in colour.en)
    for name in ("red", "orange", "green", "blue", "pink", "black")
)
EMOJI = Path(sojourn.__file__).parent / "starter" / "emoji"


@pytest.fixture(scope="module")
def model() -> sojourn.Model:
    return sojourn.load(EMOJI)


@pytest.mark.parametrize(("text", "bare", "colours", "things"), [
    ("a red house", "a house", (RED,), 1),
    ("Red House", "house", (RED,), 1),
    ("an orange cat", "a cat", (ORANGE,), 1),
    ("a green apple", "an apple", (GREEN,), 1),
    ("the blue fire engine", "the fire engine", (BLUE,), 1),
    ("红色的房子", "房子", (RED,), 1),
    ("紅色的房子", "房子", (RED,), 1),
    ("粉红色的猪", "猪", (PINK,), 1),
    ("一辆绿色汽车", "一辆汽车", (GREEN,), 1),
    ("红房子", "房子", (RED,), 1),
    ("a red cat and a blue dog", "a cat and a dog", (RED, BLUE), 2),
    ("a red cat to the left of a red dog", "a cat to the left of a dog", (RED,), 2),
    ("红色的猫在蓝色的狗左边", "猫在狗左边", (RED, BLUE), 2),
    ("红房子和蓝房子。", "房子和房子", (RED, BLUE), 2),
    ("一座红房子和蓝色的瓜", "一座房子和瓜", (RED, BLUE), 2),
    ("a  red\thouse!", "a house", (RED,), 1),
    ("a white cat and a black dog", "a cat and a dog", (BLACK,), 2),
])  # fmt: skip
def test_a_colour_before_a_thing_is_that_of_the_whole_thing(
    text: str, bare: str, colours: tuple[int, ...], things: int
) -> None:
    assert coloured(text, {"房子", "瓜", "黄瓜"}) == Coloured(bare, colours, things)


@pytest.mark.parametrize(("text", "bare"), [
    ("a red cat and a dog", "a cat and a dog"), ("红色的房子和黄瓜", "房子和黄瓜"),
    ("a dog, a red cat", "a dog, a cat"),
])  # fmt: skip
def test_a_thing_without_a_colour_may_be_of_any(text: str, bare: str) -> None:
    assert coloured(text, {"房子", "瓜", "黄瓜"}) == Coloured(bare, (RED,), 2, free=1)


@pytest.mark.parametrize("text", [
    "", "house", "房子", "orange", "an orange", "绿色", "a white cat", "白色的猫", "a red and white cat",
    "a cat with a red hat", "a red house on a hill", "a red panda eating bamboo", "woman: red hair", "red-haired woman",
    "红色头发的女孩", "a house, red", "hollow red circle", "黄瓜", "红绿灯", "a red blue cat",
    "红色和蓝色的球", "红色的房子和黑板",
])  # fmt: skip
def test_a_colour_that_may_be_that_of_a_part_is_left_alone(text: str) -> None:
    assert coloured(text, {"瓜", "黄瓜"}) is None


def test_shares_are_of_what_is_drawn() -> None:
    """A quarter blue and an eighth green on white are two thirds and one third; white alone is nothing."""
    picture = torch.ones(2, 3, 8, 8)
    for rows, colour in ((slice(0, 2), BLUE), (slice(2, 3), GREEN)):
        picture[0, :, rows] = (torch.tensor(COLOURS[colour].rgb) / 127.5 - 1).view(3, 1, 1)
    found = rules.shares(picture)
    assert found.shape == (2, len(COLOURS))
    assert found[0, [BLUE, GREEN]].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert found[0].sum() == pytest.approx(1)
    assert not found[1].any()
    torch.testing.assert_close(rules.shares(torch.cat([picture, torch.ones(2, 1, 8, 8)], dim=1)), found)


def test_colours_are_named_as_the_recoloured_pictures_are() -> None:
    """By the same OKLab as in numpy."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), dtype=np.uint8)
    lab, table = oklab(pixels)[0], oklab(np.array([colour.rgb for colour in COLOURS], np.uint8))
    near = np.square((lab[:, :, None] - table) * [0.5, 1, 1]).sum(3).argmin(2)
    drawn = (lab[..., 0] < 0.93) | (np.hypot(lab[..., 1], lab[..., 2]) > 0.04)
    wanted = np.bincount(near[drawn], minlength=len(COLOURS)) / drawn.sum()
    raw = torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1
    assert rules.shares(raw)[0].tolist() == pytest.approx(wanted.tolist(), abs=1e-2)


def guides(model: sojourn.Model, *texts: str, style: str | None = None) -> list[Guide]:
    rows = [Prompt.plain(text, style) for text in texts]
    return conditions(model.package, Request(rows, list(range(len(rows)))))[1]


def test_only_prompts_with_a_colour_bring_a_guide(model: sojourn.Model) -> None:
    assert [guide.name for guide in guides(model, "a red house")] == ["colours"]
    assert not guides(model, "a house")
    assert not guides(model, "a red house", style="fluent-mono")
    weighted = model.request("a red house::2 a tree::1", n=1, seed=0)
    assert [guide.name for guide in conditions(model.package, weighted)[1]] == ["weights"]


def test_a_row_lacks_what_its_own_colours_lack(model: sojourn.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is to be half as much again as the largest that is not asked for: red is, green is a twelfth of that."""
    (guide,) = guides(model, "a red cat and a blue dog", "a red cat", "a cat", "a blue cat", "a green cat")
    picture = torch.ones(5, 3, 8, 8)
    picture[:, :, :, :4] = (torch.tensor(COLOURS[RED].rgb) / 127.5 - 1).view(3, 1, 1)
    picture[:, :, :1, 4:] = (torch.tensor(COLOURS[GREEN].rgb) / 127.5 - 1).view(3, 1, 1)
    monkeypatch.setattr(model.package.codec, "decode", lambda x: picture)
    assert guide.missed.lack(torch.zeros(5, 4, 8, 8)).tolist() == pytest.approx([1, 0, 0, 1, 11 / 12], abs=1e-6)
    (guide,) = guides(model, "a green cat and a banana")
    monkeypatch.setattr(model.package.codec, "decode", lambda x: picture[:1])
    assert guide.missed.lack(torch.zeros(1, 4, 8, 8)).tolist() == pytest.approx([1 - (4 / 36) / 0.125], abs=1e-6)
    few = torch.ones(1, 3, 8, 8)
    few[:, :, 0, 0] = 0.0
    few[:, :, 0, 1:5] = (torch.tensor(COLOURS[RED].rgb) / 127.5 - 1).view(3, 1)
    few[:, :, 1:3] = (torch.tensor(COLOURS[BLUE].rgb) / 127.5 - 1).view(3, 1, 1)
    monkeypatch.setattr(model.package.codec, "decode", lambda x: few)
    (guide,) = guides(model, "a red cat and a blue dog and a cow and a pig")
    assert guide.missed.lack(torch.zeros(1, 4, 8, 8)).tolist() == [0], "4 of 21 pixels are more than a sixteenth"


def red(pictures: sojourn.Pictures) -> list[float]:
    raw = torch.stack([torch.from_numpy(np.asarray(item.pil.convert("RGB"), np.float32)) for item in pictures])
    return rules.shares(raw.permute(0, 3, 1, 2) / 127.5 - 1)[:, RED].tolist()


def test_a_house_with_too_little_red_gets_more_and_no_other_picture_changes(model: sojourn.Model) -> None:
    """Seeds 0 to 7: as the words alone draw them, and as the bundled model does."""

    def draw(text: str, weight: float) -> list[float]:
        request = model.request(text, n=8, seed=0)
        request.options["colour_weight"] = weight
        for last in model.walk(request):  # noqa: B007
            pass
        seen.append(last.pictures)
        return red(model.results(request, last))

    seen: list[list[object]] = []
    plain, held = np.array(draw("a red house", 1.0)), np.array(draw("a red house", 2.5))
    assert (held > plain - 0.02).all()
    assert (held > plain + 0.2).any()
    assert held[plain > 0.4] == pytest.approx(plain[plain > 0.4], abs=0.02)
    assert draw("a house", 1.0) == draw("a house", 2.5)
    assert all(np.array_equal(a, b) for a, b in zip(*seen[2:], strict=True))
