"""Two folders of pictures against each other."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sojourn.errors import InvalidInput
from sojourn.measure import scores
from sojourn.measure.bench import LEAST, SHOWN, Findings, Sheet, pixels, scaled, shown, too_few
from sojourn.measure.features import Features, embed, probe
from sojourn.schema import Event, Progress


def compare(folders: Sequence[Path], features: Features) -> Iterator[Event | Findings]:
    """Scores between two folders of pictures of one size, and sheets of both.

    Raises InvalidInput for folders that cannot be compared, DataError for features that make no vectors of them.
    """
    sides = [(yield from _folder(folders[0])), (yield from _folder(folders[1]))]
    if sides[0].shape[1:] != sides[1].shape[1:]:
        raise InvalidInput(
            "the pictures differ in size, {one} and {two}; make them alike first",
            one=tuple(sides[0].shape[2:]), two=tuple(sides[1].shape[2:]),
        )  # fmt: skip
    probe(features, *sides[0].shape[2:])
    vectors = []
    for path, pictures in zip(folders, sides, strict=True):
        yield Progress(done=0, total=len(pictures), unit="pictures", text=str(path))
        vectors.append(embed(features, partial(_rows, pictures), np.arange(len(pictures))))
    a, b = vectors
    kind = {"name": features.name, "identity": features.identity}
    about = {"folders": [str(folder) for folder in folders], "n": [len(a), len(b)], "features": kind}
    found = Findings(f"{folders[0]} against {folders[1]}", about=about)
    least = min(len(a), len(b))
    if least >= LEAST["kid"]:
        found.add(
            f"KID-{features.name}", scores.kid(a, b), scores.kid_interval(a, b), f"{len(a)} and {len(b)} pictures"
        )
    else:
        yield too_few(f"KID-{features.name}", least, "kid")
    if least >= LEAST["fd"]:
        found.add(f"FD-{features.name}", scores.frechet(a, b), note=f"{len(a)} and {len(b)} pictures")
    else:
        yield too_few(f"FD-{features.name}", least, "fd")
    if least >= LEAST["precision"]:
        precision, recall = scores.precision_recall(real=b, fake=a)
        found.add(f"precision-{features.name}", precision, note=f"share of {folders[0].name} within {folders[1].name}")
        found.add(f"recall-{features.name}", recall, note=f"share of {folders[1].name} within {folders[0].name}")
    else:
        yield too_few(f"precision-{features.name}", least, "precision")
    first, second = (folder.name for folder in folders)
    found.sheets.append(
        Sheet(
            f"{first} above, {second} below",
            [shown(_rows(side, np.arange(min(SHOWN, len(side))))) for side in sides],
            [],
        )
    )
    apart, at = scores.nearest(a[:SHOWN], b)
    labels = [f"{distance:.3g}" for distance in apart]
    title = f"{first} above, the nearest of {second} below, and how far it is"
    found.sheets.append(
        Sheet(title, [shown(_rows(sides[0], np.arange(len(apart)))), shown(_rows(sides[1], at))], labels)
    )
    yield found


def _rows(pictures: Tensor, rows: np.ndarray) -> Tensor:
    return scaled(pictures[torch.from_numpy(rows)])


def _folder(path: Path) -> Generator[Event, None, Tensor]:
    """Its pictures, uint8 (n, 3, h, w)."""
    from sojourn.data.clean import load_picture

    kinds = (".png", ".jpg", ".jpeg", ".webp")
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in kinds and not p.name.startswith("."))
    if not files:
        raise InvalidInput('no pictures in "{path}"; give a folder of PNG, JPEG or WebP files', path=path)
    out = torch.empty(0, dtype=torch.uint8)
    for i, file in enumerate(files):
        picture = pixels(load_picture(file))
        if i == 0:
            out = torch.empty(len(files), *picture.shape, dtype=torch.uint8)
        if picture.shape != out.shape[1:]:
            raise InvalidInput('"{path}" is of another size than the others; make them alike first', path=file)
        out[i] = picture
        if i % 64 == 0:
            yield Progress(done=i, total=len(files), unit="pictures", text=str(path))
    return out
