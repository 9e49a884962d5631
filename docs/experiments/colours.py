"""Does the asked colour dominate? Ten prompts in each language, eight seeds each, drawn without a style.

    python docs/experiments/colours.py [PACKAGE] [--steps N] [--sheet FILE.png]

Each pixel that is not of the white ground goes to the nearest basic colour in OKLab. One colour asked: it must be the
commonest. Two asked: they must be the two commonest, each with a fifth of the coloured pixels at least; `bound` says in
how many of these each lies more on its own side, for captions put the first of two things at the left or the top.
"""

from __future__ import annotations

import argparse

import numpy as np
from PIL import Image

import sojourn
from sojourn.data.variety import COLOURS, oklab
from sojourn.measure.bench import tensor

SEEDS = 8
PROMPTS = (
    ("a blue heart", "蓝色的心", ("blue",)),
    ("a green car", "绿色的汽车", ("green",)),
    ("a red cat and a blue dog", "红色的猫和蓝色的狗", ("red", "blue")),
    ("a purple star", "紫色的星星", ("purple",)),
    ("a yellow flower", "黄色的花", ("yellow",)),
    ("a pink pig", "粉色的猪", ("pink",)),
    ("a green apple", "绿色的苹果", ("green",)),
    ("a blue fish", "蓝色的鱼", ("blue",)),
    ("a red house", "红色的房子", ("red",)),
    ("a yellow car and a green tree", "黄色的汽车和绿色的树", ("yellow", "green")),
)


def shares(picture: Image.Image) -> dict[str, float]:
    """Share of each basic colour among the pixels that are not ground."""
    pixels = ((tensor(picture).permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)
    lab = oklab(pixels)  # (h, w, 3)
    thing = lab[(lab[..., 0] < 0.93) | (np.hypot(lab[..., 1], lab[..., 2]) > 0.04)]
    table = oklab(np.array([colour.rgb for colour in COLOURS], np.uint8)[None])[0]  # (11, 3)
    weight = np.array([0.5, 1.0, 1.0])  # shade says less than hue
    nearest = np.square((thing[:, None] - table) * weight).sum(axis=2).argmin(axis=1)
    counts = np.bincount(nearest, minlength=len(COLOURS)) / max(1, len(thing))
    return {colour.en[0]: float(share) for colour, share in zip(COLOURS, counts, strict=True)}


def holds(found: dict[str, float], asked: tuple[str, ...]) -> bool:
    """Whether the asked colours are the commonest."""
    chosen = sorted(found, key=lambda name: -found[name])[: len(asked)]
    return set(chosen) == set(asked) and min(found[name] for name in asked) >= (0.2 if len(asked) > 1 else 0)


def bound(picture: Image.Image, asked: tuple[str, ...]) -> bool:
    """Whether the first colour is more at the left and the second more at the right."""
    middle = picture.width // 2
    left = shares(picture.crop((0, 0, middle, picture.height)))
    right = shares(picture.crop((middle, 0, picture.width, picture.height)))
    first, second = asked
    return left[first] > right[first] and right[second] > left[second]


def main() -> None:
    asked = argparse.ArgumentParser()
    asked.add_argument("package", nargs="?", default="emoji")
    asked.add_argument("--steps", type=int)
    asked.add_argument("--sheet", help="a picture of all that was drawn")
    args = asked.parse_args()
    model = sojourn.load(args.package)
    lines = []
    for english, chinese, colours in PROMPTS:
        for text in (english, chinese):
            drawn = [item.pil for item in model.imagine(text, n=SEEDS, seed=0, steps=args.steps)]
            right = [picture for picture in drawn if holds(shares(picture), colours)]
            lines.append(drawn)
            sides = f", bound in {sum(bound(picture, colours) for picture in right)}" if len(colours) > 1 else ""
            print(f"{len(right)} of {SEEDS}  {text}{sides}")
    if args.sheet:
        side = drawn[0].width
        sheet = Image.new("RGB", (side * SEEDS * 2, side * len(PROMPTS)), "white")
        for at, drawn in enumerate(lines):
            for i, picture in enumerate(drawn):
                sheet.paste(picture.convert("RGB"), ((at % 2 * SEEDS + i) * side, at // 2 * side))
        sheet.save(args.sheet)


if __name__ == "__main__":
    main()
