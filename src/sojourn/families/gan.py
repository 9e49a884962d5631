"""What all GANs share: their packaged generator, conditions that are dropped, and what a discriminator gets to see."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from sojourn.data.augment import ada, diffaugment
from sojourn.families.base import BaseConfig, Family, LatentOptions, drawn
from sojourn.nets.conv import conditional
from sojourn.types import Batch, Cond, DataSpec, Guide, Noise, Step

TARGET = 0.6
"""Mean sign of the discriminator on real pictures that ADA holds. Source: Karras et al. 2020 (ADA), sec. 3.1, r_t."""


class GANConfig(BaseConfig):
    """What every GAN's config has."""

    label_drop: float = Field(0.1, ge=0, le=1)
    """Share of training rows that lose their condition, so that drawing without one is learned. 0 = off."""
    matching: bool = False
    """Whether real pictures shown with another row's class or text count as drawn ones, so that the discriminator looks
    at what was asked for (Reed et al. 2016)."""
    augment: Literal["none", "diff", "ada"] = "none"
    """How pictures are changed before the discriminator sees them, for sets of a few thousand or fewer. diff: always
    (DiffAugment). ada: as often as overfitting asks for."""
    ada_samples: int = Field(100_000, ge=1)
    """ada: samples in which its probability may go from 0 to 1."""
    ada_colour: bool = False
    """ada: whether brightness, contrast, hue and saturation change too: for photos, not for drawings, whose ground is
    of one colour that the discriminator must learn."""


class GANOptions(LatentOptions):
    """How to draw from a GAN."""

    critic: float = Field(0.0, ge=0, le=10)
    """How much the discriminator has a say in a walk: its logit counts as an energy. 1 = pictures are drawn as often as
    it takes them for real, 0 = off. Source: Che et al. 2020, eq. 3."""


class GAN(Family):
    """A generator G and a discriminator D, trained in turn in phases of these names."""

    averaged: ClassVar[tuple[str, ...]] = ("G",)
    score: ClassVar[str] = "held_out/swd"
    keeps: ClassVar[Literal["best", "last"]] = "last"
    guides: ClassVar[frozenset[str]] = frozenset({"energy"})

    config: GANConfig
    p: Tensor

    def __init__(self, config: GANConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if config.augment == "ada":
            self.register_buffer("p", torch.zeros(()))

    def dropped(self, batch: Batch) -> Cond:
        """The batch's condition, emptied in some rows."""
        return batch.cond.drop(self.config.label_drop) if conditional(self.spec) else batch.cond

    def matched(self, value: Tensor, cond: Cond, against: Callable[[Cond], Tensor]) -> Tensor:
        """D's loss (b,), in equal parts of drawn pictures and of real ones that were asked for in other words.

        against: D's loss when its pictures of another condition are taken for drawn ones. Source: Reed et al. 2016,
        algorithm 1, line 8.
        """
        wrong = mismatched(cond) if self.config.matching else None
        if wrong is None:
            return value
        other, differs = wrong
        return torch.where(differs, 0.5 * (value + against(other)), value)

    def augmented(self, x: Tensor) -> Tensor:
        """Pictures (b c h w) as the discriminator sees them."""
        if self.config.augment == "none" or not self.training:
            return x
        return diffaugment(x) if self.config.augment == "diff" else ada(x, self.p, self.config.ada_colour)

    def ada_statistics(self, score: Tensor) -> dict[str, Tensor]:
        """Statistics of the discriminator's scores of real pictures (b,), positive = taken for real; for `after`."""
        if self.config.augment != "ada":
            return {}
        return {"sign": score.detach().sign().sum(), "rows": torch.tensor(float(len(score)))}

    def after(self, phase: str, stats: Mapping[str, Tensor]) -> None:
        """Change pictures more often where the discriminator knows the real ones by heart, less often where not."""
        if phase == "D" and "sign" in stats:
            rows = float(stats["rows"])
            step = rows / self.config.ada_samples * (1 if float(stats["sign"]) / rows > TARGET else -1)
            self.p.copy_((self.p + step).clamp(0, 1))

    def verdict(self, x: Tensor, cond: Cond) -> Tensor:
        """How real the discriminator finds pictures x (b c h w), as a logit (b,)."""
        out: Tensor = self.get_submodule("D")(x, cond)
        return out

    def walked(
        self,
        decode: Callable[[Tensor], Tensor],
        z: Tensor,
        cond: Cond,
        guides: Sequence[Guide],
        noise: Noise,
        options: GANOptions,
    ) -> Iterator[Step]:
        """One Step from z (b, z_dim); with guides or a critic, a walk in z whose Steps show every decoded place."""
        self.check_guides(guides)
        if options.critic:
            guides = [*guides, Guide("critic", energy=lambda x, cond: -options.critic * self.verdict(x, cond))]
        yield from drawn(decode, z, cond, guides, noise, options)


def mismatched(cond: Cond) -> tuple[Cond, Tensor] | None:
    """The condition of each row's neighbour, and the rows (b,) where it asks for something else; None without any.

    What is not told on either side differs from nothing.
    """
    other = cond[torch.arange(cond.rows).roll(1)]
    differs = []
    if cond.labels is not None and other.labels is not None:
        told = (cond.labels >= 0) & (other.labels >= 0)
        differs.append((told & torch.ne(cond.labels, other.labels)).any(dim=1))
    if cond.pooled is not None and other.pooled is not None:
        told = cond.pooled.any(dim=1) & other.pooled.any(dim=1)
        differs.append(told & torch.ne(cond.pooled, other.pooled).any(dim=1))
    return (other, torch.stack(differs).any(dim=0)) if differs else None
