"""A GAN on 500 pictures: its discriminator's pictures as they are, changed always, or as often as overfitting asks.

    python docs/experiments/augment.py --runs ~/runs --judge judge-glyphs

500 training pictures of `glyphs`, drawn by seed 0 and without their classes, are made a set (457 of them for training);
`dcgan` sees as many samples of it with each `augment`. KID is against the whole set's training pictures.
"""

from __future__ import annotations

import argparse
import json
import subprocess
from pathlib import Path

import numpy as np

from sojourn.codecs.image import ImageCodec
from sojourn.data.dataset import PackedSet
from sojourn.train.build import find_set

COUNT, NAME = 500, "glyphs-500"


def sojourn(*arguments: str) -> str:
    """Run a command; its output."""
    return subprocess.run(["sojourn", *arguments], stdout=subprocess.PIPE, text=True, check=True).stdout


def small_set(folder: Path) -> None:
    """Write COUNT training pictures of `glyphs` into a folder and prepare it as a set of grey pictures."""
    data = PackedSet(find_set("glyphs"))
    side, channels = data.info.shape[0], data.info.shape[2]
    codec = ImageCodec({"height": side, "width": side, "channels": channels})
    folder.mkdir(parents=True, exist_ok=True)
    rows = np.random.default_rng(0).permutation(np.nonzero(data.split == 0)[0])[:COUNT]
    for row, picture in zip(rows.tolist(), codec.unpack(codec.encode(data.raw(rows))), strict=True):
        picture.save(folder / f"{row:05d}.png")
    sojourn("prepare", str(folder), "--to", NAME, "--channels", "1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True)
    parser.add_argument("--judge", default="judge-glyphs")
    parser.add_argument("--family", default="dcgan")
    parser.add_argument("--augment", nargs="+", default=["none", "diff", "ada"])
    parser.add_argument("-n", type=int, default=1000)
    given = parser.parse_args()
    small_set(given.runs / NAME)
    names = [f"{given.family}-500-{augment}" for augment in given.augment]
    for name, augment in zip(names, given.augment, strict=True):
        asked = ["-o", f"data={NAME}", "-o", f"augment={augment}"]
        sojourn("train", given.family, *asked, "--run", str(given.runs / name), "--to", name)
    report = given.runs / "augment-report"
    asked = ["--data", "glyphs", "--judge", given.judge, "-n", str(given.n), "--out", str(report), "--json"]
    text = sojourn("evaluate", *names, *asked)
    for name, row in zip(names, json.loads(text.strip().splitlines()[-1]), strict=True):
        for metric in row["metrics"]:
            span = f" ({metric['low']:.3f} to {metric['high']:.3f})" if metric.get("low") is not None else ""
            print(f"{name}: {metric['name']} {metric['value']:.3f}{span}", flush=True)


if __name__ == "__main__":
    main()
