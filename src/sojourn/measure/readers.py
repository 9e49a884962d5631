"""How well a package reads pictures: what it loses of them, names their classes, finds their words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sojourn.diffusion import rules
from sojourn.engine import Model
from sojourn.measure import scores
from sojourn.measure.bench import LEAST, RIVALS, Bench, Findings, Group, too_few
from sojourn.measure.features import EffLite0, perceptual
from sojourn.nets.losses import ssim
from sojourn.schema import Event, Progress

WINDOW = 11
"""Pixels a side below which structural similarity is not defined."""


def read(model: Model, groups: Sequence[Group], bench: Bench, found: Findings) -> Iterator[Event]:
    """What of this the package can do."""
    family = model.family
    if rebuilds(model):
        yield from _autoencoder(model, groups, bench, found)
    if "classify" in family.can:
        for group in groups:
            yield from _names(model, group, bench, found)
    if "embed" in family.can and family.spec.kind == "image":
        for group in groups:
            yield from _words(model, group, bench, found)


@torch.no_grad()
def _names(model: Model, group: Group, bench: Bench, found: Findings) -> Iterator[Event]:
    """Share of a group's pictures whose class a classifier names, in each column that it knows."""
    columns = dict(model.package.conditioner.config.get("columns", {}))
    logits: list[list[Tensor]] = []
    for part in np.array_split(group.rows, max(1, len(group.rows) // 128)):
        yield Progress(done=128 * len(logits), total=len(group.rows), unit="pictures", text=f"{found.name}, classes")
        logits.append(model.family.classify(_encoded(model, bench, part)))
    told_of = {column.name for column in bench.data.info.labels}
    for column, name in enumerate(columns):
        if name not in told_of:
            continue
        labels = [bench.data.label_name(row, name) for row in group.rows.tolist()]
        known = {value: i for i, value in enumerate(columns[name])}
        told = np.array([known.get(str(label), -1) for label in labels])
        said = torch.cat([part[column] for part in logits]).argmax(1).numpy()
        right = (said == told)[told >= 0]
        if len(right):
            families = [f for f, label in zip(bench.families(group.rows), told, strict=True) if label >= 0]
            span = scores.interval(right, families)
            found.add(f"{group.name}/accuracy-{name}", float(right.mean()), span, f"of {len(columns[name])}")


@torch.no_grad()
def _words(model: Model, group: Group, bench: Bench, found: Findings) -> Iterator[Event]:
    """R@1 of 50: a picture's own words among those of others, and the words' own picture among others."""
    if len(group.rows) < LEAST["r1"]:
        yield too_few(f"{group.name}/R@1", len(group.rows), "r1")
        return
    prompts, chinese = bench.prompts(group.rows, getattr(model.package.conditioner, "column", None))
    families = bench.families(group.rows)
    places, said = [], []
    for part in np.array_split(np.arange(len(prompts)), max(1, len(prompts) // 128)):
        yield Progress(done=int(part[0]), total=len(prompts), unit="pictures", text=f"{found.name}, words")
        places.append(model.family.embed_pictures(_encoded(model, bench, group.rows[part])))
        said.append(model.family.embed_words(model.package.conditioner([prompts[i] for i in part]), len(part)))
    cosines = (torch.cat(places) @ torch.cat(said).T).numpy()
    for name, table in (("words-of-picture", cosines), ("picture-of-words", cosines.T)):
        right, rivals = _among(table, [families, [f"{p.text}/{p.style}" for p in prompts]], bench.seed)
        if rivals == 0:
            yield too_few(f"{group.name}/R@1-{name}", 1, "r1", "texts")
            continue
        found.add(f"{group.name}/R@1-{name}", float(right.mean()), scores.interval(right, families), f"of {rivals + 1}")
        if chinese.any() and not chinese.all():
            for language, rows in (("en", ~chinese), ("zh", chinese)):
                if rows.sum() < LEAST["r1"]:
                    yield too_few(f"{group.name}/R@1-{name}-{language}", int(rows.sum()), "r1")
                    continue
                span = scores.interval(right[rows], [families[i] for i in np.flatnonzero(rows)])
                found.add(f"{group.name}/R@1-{name}-{language}", float(right[rows].mean()), span)


def _among(table: np.ndarray, kin: Sequence[Sequence[str]], seed: int) -> tuple[np.ndarray, int]:
    """Whether each row's own column beats RIVALS others, drawn by the seed, that differ in each of `kin`: (b,) bool.

    And how many others there were for each at least.
    """
    rng = np.random.default_rng([seed, 4])
    names = np.array(kin)  # (kin, b)
    right, least = [], RIVALS
    for row in range(len(table)):
        order = rng.permutation(len(table))
        rivals = order[(names[:, order] != names[:, [row]]).all(axis=0)][:RIVALS]
        right.append(bool(len(rivals) == 0 or table[row, row] > table[row, rivals].max()))
        least = min(least, len(rivals))
    return np.array(right), least


def rebuilds(model: Model) -> bool:
    """Whether pictures can go through an autoencoder of the package's."""
    return model.card.codec.id in ("latent", "codes") or {"encode", "decode"} <= model.family.can


@torch.no_grad()
def rebuilt(model: Model, bench: Bench, rows: np.ndarray) -> Tensor:
    """Pictures of the set, encoded and decoded: (b, 3, h, w) in [-1, 1]."""
    codec, family = model.package.codec, model.family
    z = _encoded(model, bench, rows)
    if {"encode", "decode"} <= family.can:
        z = family.decode(family.encode(z))
    return rules.fitted(codec.decode(z).clamp(-1, 1), bench.plain.spec.shape)


def _encoded(model: Model, bench: Bench, rows: np.ndarray) -> Tensor:
    """Pictures of the set as the package's nets take them, packed anew for one of another size."""
    codec, raw = model.package.codec, bench.data.raw(rows)
    stored = getattr(codec, "inner", codec).spec.shape[1:]
    if tuple(raw.shape[1:3]) != tuple(stored):
        pictures = bench.plain.unpack(bench.pictures(rows))
        raw = torch.from_numpy(np.stack([codec.pack(picture) for picture in pictures]))
    return codec.encode(raw)


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of pictures in [-1, 1], in dB: (b, ...) -> (b,); equal ones have 100."""
    return -10 * ((x - y) / 2).square().flatten(1).mean(1).clamp(min=1e-10).log10()


@torch.no_grad()
def _autoencoder(model: Model, groups: Sequence[Group], bench: Bench, found: Findings) -> Iterator[Event]:
    """What is lost between a held-out picture and its latent's decoding."""
    held = [group.rows for group in groups if group.name != "seen"]
    every = np.concatenate(held or [groups[0].rows])
    rows = np.sort(np.random.default_rng(bench.seed).permutation(every)[: bench.count])
    note = "held-out pictures" if held else "pictures seen in training"
    ratios, similar, apart = [], [], []
    for at, part in enumerate(np.array_split(rows, max(1, len(rows) // 32))):
        yield Progress(done=at * 32, total=len(rows), unit="pictures", text=f"{found.name}, autoencoder")
        x, y = bench.pictures(part), rebuilt(model, bench, part)
        ratios.append(psnr(x, y))
        if min(x.shape[2:]) >= WINDOW:
            similar.append(ssim(x, y))
        if isinstance(bench.features, EffLite0):
            apart.append(perceptual(bench.features, x, y))
    for name, parts in (("PSNR", ratios), ("SSIM", similar), ("perceptual-EffLite0", apart)):
        if parts:
            values = torch.cat(parts).double().numpy()
            found.add(f"autoencoder/{name}", float(values.mean()), scores.interval(values, bench.families(rows)), note)
