"""Held-out numbers that choose the best snapshot."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from sojourn.config import TrainConfig
from sojourn.families.base import Family
from sojourn.train.feed import Feed
from sojourn.types import Noise

SEED = 20_000


@torch.no_grad()
def held_out(family: Family, feed: Feed, config: TrainConfig, size: int) -> dict[str, float]:
    """Metrics of `family` on the valid split, with fixed draws; {} when there are no valid rows.

    held_out/loss: the first phase's loss. held_out/swd: sliced Wasserstein distance of samples to held-out pictures.
    """
    if config.split == "all":  # what is trained on says nothing
        return {}
    family.eval()
    phase = family.phases()[0].name
    total = units = 0.0
    reals, fakes = [], []
    for k, batch in enumerate(feed.held_out(config.held_out, size)):
        torch.manual_seed(SEED + k)
        if family.score == "held_out/loss":
            loss = family.loss(phase, batch, config.seen)
            share = batch.weight * loss.units
            total += float((loss.value * share).sum())
            units += float(share.sum())
        else:
            noise = Noise(range(k * size, k * size + len(batch)))
            step = list(family.sample(batch.cond, noise, family.Options()))[-1]
            reals.append(batch.x)
            fakes.append(step.x0)
    if reals:
        return {"held_out/swd": sliced_wasserstein(torch.cat(reals), torch.cat(fakes))}
    return {"held_out/loss": total / units} if units else {}


def sliced_wasserstein(a: Tensor, b: Tensor, patch: int = 7, slices: int = 128, levels: int = 3) -> float:
    """Mean sliced Wasserstein-1 distance between patches of two sets of pictures (n, c, h, w), over a pyramid.

    Same n on both sides. Source: Karras et al. 2018 (progressive GAN), sec. 5, with plain average pooling.
    """
    distances = []
    for level in range(levels):
        side = min(patch, a.shape[2], a.shape[3])
        flat_a, flat_b = (F.unfold(x.float(), side, stride=max(1, side // 2)) for x in (a, b))  # (n, d, l)
        points_a, points_b = (x.transpose(1, 2).reshape(-1, x.shape[1]) for x in (flat_a, flat_b))
        generator = torch.Generator().manual_seed(SEED + level)
        axes = F.normalize(torch.randn(points_a.shape[1], slices, generator=generator), dim=0)
        gap = (points_a @ axes).sort(dim=0).values - (points_b @ axes).sort(dim=0).values
        distances.append(float(gap.abs().mean()))
        if min(a.shape[2:]) < 2 * patch:
            break
        a, b = F.avg_pool2d(a, 2), F.avg_pool2d(b, 2)
    return sum(distances) / len(distances)
