"""Draws the pictures of the README with the bundled model, seeds 0 to 3, nothing chosen by hand: docs/images/*.png."""

from __future__ import annotations

from pathlib import Path

import sojourn
from sojourn.data.sheet import grid

PROMPTS = {
    "heart": "a red heart", "cat": "cat", "dog": "小狗", "car": "a green car", "flower": "蓝色的花", "pizza": "pizza",
    "sun": "太阳", "rocket": "rocket", "house": "红色的房子", "face": "angry face", "apple": "苹果",
    "pair": "a red cat and a blue dog",
}  # fmt: skip
IMAGES = Path(__file__).parent / "images"


def main() -> None:
    IMAGES.mkdir(exist_ok=True)
    model = sojourn.load("emoji")
    for name, prompt in PROMPTS.items():
        drawn = [picture.pil for picture in model.imagine(prompt, n=4, seed=0)]
        grid(drawn, columns=4).save(IMAGES / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
