"""Latent walks of GANs and VAEs, measured: a mask that keeps half of a picture, a class that a judge asks for.

    python docs/experiments/walks.py dcgan vae --data glyphs --judge judge-glyphs --other judge-other

mask: of 20 held-out pictures whose left half is kept, how many have a frame in 100 steps whose distance there (mean
square) is at most 0.7 of an unguided drawing's. class: of 200 pictures, eight of a class, how many does another judge
than the guiding one name so, with the walk and without.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import sojourn
from sojourn import card
from sojourn import package as packages
from sojourn.codecs.image import ImageCodec
from sojourn.data.dataset import PackedSet
from sojourn.diffusion.rules import fitted
from sojourn.engine import Model
from sojourn.train.build import find_set

PICTURES, STEPS, ASKED, ROWS = 20, 100, 200, 8


def masked(model: Model, data: PackedSet) -> np.ndarray:
    """Best distance from what is kept over the first, (PICTURES,)."""
    side, channels = data.info.shape[0], data.info.shape[2]
    codec = ImageCodec({"height": side, "width": side, "channels": channels})
    rows = np.random.default_rng(0).permutation(np.nonzero(data.split)[0])[:PICTURES]
    mask = Image.new("L", (side, side), 0)
    mask.paste(255, (side // 2, 0, side, side))
    out = []
    for seed, row in enumerate(rows.tolist()):
        source = codec.unpack(codec.encode(data.raw(np.array([row]))))[0]
        name = (data.rows[row]["captions"] or [""])[0]
        asked = name if model.classes or model.reads_words else ""
        request = model.request(asked, n=1, seed=seed, steps=STEPS, source=source, mask=mask)
        known = _grey(source)[:, : side // 2]
        gaps = [
            float((_grey(frame.pictures[0])[:, : side // 2] - known).square().mean()) for frame in model.walk(request)
        ]
        plain = model.imagine(asked, n=1, seed=seed)[0].pil
        out.append(min(gaps) / float((_grey(plain)[:, : side // 2] - known).square().mean()))
    return np.array(out)


def named(model: Model, data: PackedSet, judge: str, other: str) -> tuple[float, float]:
    """Share of pictures that the other judge calls what was asked, without and with the walk."""
    package = packages.load(card.find(other))
    column = data.info.labels[0].name
    names = list(package.conditioner.config["columns"][column])
    asked = np.random.default_rng(1).permutation(len(names))[: ASKED // ROWS]
    right = {False: 0, True: 0}
    for i, label in enumerate(asked.tolist()):
        for walked in right:
            text, more = (f"{names[label]} --judge {judge}", {"steps": STEPS}) if walked else ("", {})
            pictures = model.imagine(text, n=ROWS, seed=ROWS * i, **more)
            x = torch.stack([_grey(picture.pil)[None] for picture in pictures])
            with torch.no_grad():
                said = package.family.classify(fitted(x, package.codec.spec.shape))[0].argmax(dim=1)
            right[walked] += int((said == label).sum())
    count = ROWS * len(asked)
    return right[False] / count, right[True] / count


def _grey(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(picture.convert("L"), np.float32) / 127.5 - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("packages", nargs="+")
    parser.add_argument("--data", default="glyphs")
    parser.add_argument("--judge")
    parser.add_argument("--other", help="a judge that was trained apart from the guiding one")
    given = parser.parse_args()
    data = PackedSet(find_set(given.data))
    for name in given.packages:
        model = sojourn.load(name)
        gaps = masked(model, data)
        print(
            f"{name}: mask {(gaps <= 0.7).sum()} of {len(gaps)} at 0.7 or less, median {np.median(gaps):.2f}",
            flush=True,
        )
        if given.judge and given.other:
            without, walked = named(model, data, given.judge, given.other)
            print(f"{name}: class {without:.1%} without, {walked:.1%} with the walk", flush=True)


if __name__ == "__main__":
    main()
