"""What a snapshot looks like: a sheet of samples with fixed seeds, below the pictures that were asked for (and rebuilt)
where there are such, or a page of text."""

from __future__ import annotations

from pathlib import Path

import torch

from sojourn import safefile
from sojourn.config import TrainConfig
from sojourn.data.sheet import grid
from sojourn.families.base import Family
from sojourn.nets.conv import conditional
from sojourn.package import Package
from sojourn.train.feed import Feed
from sojourn.types import Noise


@torch.no_grad()
def draw_sheet(package: Package, family: Family, feed: Feed, config: TrainConfig, stem: Path) -> Path | None:
    """Draw `config.sheet` samples to stem.png or stem.txt; None when there is nothing to show."""
    if not config.sheet or "sample" not in family.can:
        return None
    stem.parent.mkdir(parents=True, exist_ok=True)
    family.eval()
    rows, prompts = feed.prompts(config.sheet)
    options = family.Options(**package.card.options)
    cond = package.conditioner(prompts)
    step = None
    for step in family.sample(cond, Noise(range(config.sheet)), options):  # noqa: B007 - the last one is the result
        pass
    assert step is not None
    media = package.codec.unpack(package.codec.decode(step.x0))
    if family.spec.kind == "text":
        path = stem.with_suffix(".txt")
        safefile.write_bytes(path, ("\n\n----\n\n".join(str(text) for text in media) + "\n").encode())
        return path
    rebuilds = {"encode", "decode"} <= family.can
    if rebuilds or conditional(family.spec):
        x = package.codec.encode(feed.data.raw(rows))
        again = package.codec.unpack(package.codec.decode(family.decode(family.encode(x)))) if rebuilds else []
        media = [*package.codec.unpack(package.codec.decode(x)), *again, *media]
    path = stem.with_suffix(".png")
    part = stem.with_suffix(".part")
    with safefile.writing(path):
        grid(media, columns=min(16, config.sheet)).save(part, format="PNG")
        part.replace(path)
    return path
