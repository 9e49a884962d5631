"""Whether drawn pictures are copies: how near they lie to training pictures, and whether that measure finds copies."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from functools import partial

import numpy as np
from torch import Tensor

from sojourn.engine import Model
from sojourn.measure import readers, scores
from sojourn.measure.bench import LEAST, SHOWN, Bench, Findings, Group, Sheet, shown, too_few
from sojourn.measure.features import remembered
from sojourn.schema import Event, Progress

HELD = 2048
"""Held-out pictures that go through a package's autoencoder, at most."""


@dataclass
class Copies:
    """What drawn pictures of one package are held against."""

    rows: np.ndarray
    """Training pictures of the set."""
    train: np.ndarray
    """Their features (n, d)."""
    bar: float | None
    """A picture that lies nearer to a training picture is a near copy. None = too few are held out to tell."""
    note: str


def prepare(model: Model, bench: Bench, seen: Group | None, found: Findings) -> Generator[Event, None, Copies | None]:
    """The bar for copies, and near-copies-control where the package has an autoencoder.

    What was decoded is softer than the set, and so lies farther from it: the bar is then taken of held-out pictures
    that went through the same autoencoder, and the control is the share that it flags of the training pictures of
    `seen`, each of which is a copy. None for a set without training pictures.
    """
    train = bench.real[bench.data.split[bench.real] == 0]
    held = bench.real[bench.data.split[bench.real] != 0]
    name = f"near-copies-{bench.features.name}"
    if not len(train):
        yield too_few(name, len(held), "copies", "held-out pictures and none in training")
        return None
    yield Progress(done=0, total=1, unit="groups", text="looking at the training pictures")
    near = bench.embedded(train)
    if len(held) < LEAST["copies"]:
        yield too_few(name, len(held), "copies", "held-out pictures")
        return Copies(train, near, None, "")
    if not readers.rebuilds(model):
        bar = scores.copy_bar(bench.embedded(held), near)
        return Copies(train, near, bar, f"nearer than {bar:.3g}")
    yield Progress(done=0, total=1, unit="groups", text=f"{found.name}, pictures through the autoencoder")
    held = np.sort(np.random.default_rng([bench.seed, 6]).permutation(held)[:HELD])
    bar = scores.copy_bar(_rebuilt(model, bench, held), near)
    if seen is not None:
        flagged = scores.nearest(_rebuilt(model, bench, seen.rows), near)[0] < bar
        span = scores.interval(flagged, bench.families(seen.rows))
        note = f"of {len(flagged)} training pictures through the autoencoder"
        found.add(f"near-copies-control-{bench.features.name}", float(flagged.mean()), span, note)
    return Copies(train, near, bar, f"nearer than {bar:.3g}, held-out pictures through the autoencoder")


def _rebuilt(model: Model, bench: Bench, rows: np.ndarray) -> np.ndarray:
    """Features of pictures that went through the autoencoder, kept between calls."""
    key = [*bench.key, "rebuilt", model.card.identity]
    return remembered(bench.features, key, bench.cache, partial(readers.rebuilt, model, bench), rows)


def measure(copies: Copies, group: Group, fakes: Tensor, features: np.ndarray, bench: Bench, found: Findings) -> None:
    """Share of near copies among drawn pictures (b, 3, h, w) with features (b, d), and a sheet of what is nearest."""
    apart, at = scores.nearest(features, copies.train)
    if copies.bar is not None:
        near = apart < copies.bar
        span = scores.interval(near, bench.families(group.rows))
        found.add(f"{group.name}/near-copies-{bench.features.name}", float(near.mean()), span, copies.note)
    rows = copies.rows[at[:SHOWN]]
    labels = []
    for row, distance in zip(rows.tolist(), apart, strict=False):
        meta = bench.data.rows[row]
        labels.append(f"{(meta['captions'] or [meta['id']])[0]} {distance:.3g}")
    title = f"{group.name}: drawn above, the nearest training picture below, and how far it is"
    found.sheets.append(Sheet(title, [shown(fakes), shown(bench.pictures(rows))], labels))
