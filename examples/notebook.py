"""Draw with a package, look at the walk, change a picture, and replay it: what a notebook would hold, cell by cell."""

from __future__ import annotations

import sys
from pathlib import Path

import sojourn


def main(name: str = "emoji", prompt: str = "a red heart", out: Path = Path("out")) -> None:
    out.mkdir(exist_ok=True)
    model = sojourn.load(name)

    # Four pictures; in a notebook the last line of a cell shows them.
    pictures = model.imagine(prompt, n=4, seed=0)
    pictures.save_grid(out / "four.png")

    # The walk itself: every frame is an intermediate sample.
    frames = list(model.walk(model.request(prompt, n=1, seed=0)))
    frames[len(frames) // 2].pictures[0].save(out / "half-way.png")

    # Start from a picture instead of from noise.
    model.imagine(prompt, n=1, seed=1, source=pictures[0].pil, strength=0.5)[0].save(out / "changed.png")

    # The same pixels again, from the recipe in the file.
    path = pictures[2].save(out / "third.png")
    _, gap = sojourn.replay(path, model=model)
    print("equal" if gap == 0 else f"differs by {gap}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
