"""VQ-VAE: an autoencoder whose latent is a small picture of codes, out of a codebook that follows what they stand for.

Source: van den Oord et al. 2017, Neural Discrete Representation Learning; the codebook by moving averages, app. A.1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.families.base import BaseOptions, Phase, finished
from sojourn.families.vae import Autoencoder, AutoencoderConfig
from sojourn.nets.losses import gradient_l1
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step

DEAD = 0.03
"""A code used less than this share of the mean is moved to where more are needed."""


class Codebook(nn.Module):
    """k vectors (k, d) as moving averages of the latents that are nearest to each. No parameters: buffers alone."""

    vectors: Tensor
    size: Tensor
    total: Tensor
    updates: Tensor

    def __init__(self, codes: int, dim: int, decay: float) -> None:
        super().__init__()
        self.decay = decay
        self.register_buffer("vectors", torch.randn(codes, dim))
        self.register_buffer("size", torch.ones(codes))  # latents per update, as a moving average
        self.register_buffer("total", self.vectors.clone())  # their sum
        self.register_buffer("updates", torch.zeros((), dtype=torch.long))

    def nearest(self, z: Tensor) -> Tensor:
        """Index of the nearest vector to each place of z (b, d, ...), (b, ...) long."""
        flat = z.detach().movedim(1, -1).float()  # (b ... d)
        with torch.autocast(z.device.type, enabled=False):  # codes lie closer together than bf16 can tell
            distance = self.vectors.square().sum(1) - 2 * flat @ self.vectors.T  # (b ... k), less what all share
        return distance.argmin(-1)

    def look_up(self, index: Tensor) -> Tensor:
        """Vectors (b, d, ...) of indices (b, ...)."""
        return F.embedding(index, self.vectors).movedim(-1, 1)

    @torch.no_grad()
    def follow(self, count: Tensor, total: Tensor, spread: Tensor) -> None:
        """Move towards the latents of one update: how many chose each vector (k,), their sum (k, d), and the sum of
        their squared distances (k,). The first update counts whole. Then dead vectors are moved."""
        keep = self.decay if self.updates else 0.0
        self.size.lerp_(count, 1 - keep)
        self.total.lerp_(total, 1 - keep)
        used = self.size > 0
        self.vectors[used] = self.total[used] / self.size[used, None]
        self._revive(spread.sum() / count.sum().clamp(min=1) / self.vectors.shape[1])
        self.updates += 1

    def _revive(self, variance: Tensor) -> None:
        """Split the most used vectors in two, one for each that is dead; variance: of latents around their vector.

        Source: Linde, Buzo & Gray 1980, splitting.
        """
        dead = (self.size < DEAD * self.size.mean()).nonzero().flatten()
        if not len(dead):
            return
        most = self.size.argsort(descending=True)[: min(len(dead), len(self.size) // 2)]
        dead = dead[: len(most)]
        draws = torch.Generator().manual_seed(int(self.updates))
        step = variance.sqrt() * torch.randn(len(dead), self.vectors.shape[1], generator=draws)
        for place, sign in ((dead, 1), (most, -1)):
            self.vectors[place] = self.vectors[most] + sign * step
        self.size[most] /= 2
        self.size[dead] = self.size[most]
        self.total[dead], self.total[most] = (self.vectors[place] * self.size[place, None] for place in (dead, most))

    @property
    def perplexity(self) -> Tensor:
        """How many vectors are in use: e to the entropy of their shares, 1..k."""
        share = self.size / self.size.sum().clamp(min=1e-12)
        return torch.special.entr(share).sum().exp()


@register(
    "family",
    "vq-vae",
    presets={
        "tiny": {"widths": (8, 16), "z": 4, "depth": (1, 1), "codes": 16},
        "64": {"stem": 2, "widths": (64, 128, 128), "z": 32, "depth": (1, 2), "codes": 512, "edges": 1.0},
        "128": {"stem": 4, "widths": (64, 128, 128), "z": 32, "depth": (1, 2), "codes": 512, "edges": 1.0},
    },
    about="VQ-VAE: pictures as a few codes each, for a language model that writes pictures",
    source="van den Oord et al. 2017, Neural Discrete Representation Learning",
)
class VQVAE(Autoencoder):
    """Encoder, codebook, decoder. Alone it draws each code by how common it is; a prior (`lm` on `codes`) draws
    pictures."""

    class Config(AutoencoderConfig):
        latent: Literal["map"] = "map"
        """A small picture of codes."""
        z: int = Field(32, ge=1, le=4096)
        """Numbers per code."""
        codes: int = Field(512, ge=2, le=65536)
        """Vectors in the codebook."""
        commitment: float = Field(0.25, ge=0, le=100)
        """How hard the encoder is held to the codebook (beta in eq. 3)."""
        decay: float = Field(0.99, ge=0, lt=1)
        """Share of the codebook that stays in an update. 0 = it is what the last batch says."""
        reconstruction: Literal["l1", "l2"] = "l2"
        """l2: as in the paper. l1: crisper; a trap where most of every picture is one ground: their median is that
        ground, and nothing is learnt beyond it."""
        edges: float = Field(0.0, ge=0)
        """Weight of the L1 difference of neighbouring pixels, for sharper lines. 0 = off."""

    Options = BaseOptions
    guides: ClassVar[frozenset[str]] = frozenset()
    bf16: ClassVar[bool] = True
    averaged: ClassVar[tuple[str, ...]] = ("enc", "dec")
    moments: ClassVar[int] = 1

    config: Config

    def __init__(self, config: Config, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.book = Codebook(config.codes, config.z, config.decay)

    def phases(self) -> list[Phase]:
        return [Phase("elbo", ("enc", "dec"))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        cond = self.dropped(batch)
        z = self.enc(batch.x, cond)  # (b z h w)
        index = self.book.nearest(z)  # (b h w)
        chosen = self.book.look_up(index)
        out = self.dec(straight_through(z, chosen), cond)
        off = out - batch.x
        recon = (off.abs() if self.config.reconstruction == "l1" else 0.5 * off.square()).flatten(1).mean(1)  # (b,)
        gap = (z - chosen).square()
        commitment = gap.flatten(1).mean(1)
        value = recon + self.config.commitment * commitment
        logs = {
            "loss/recon": recon.detach(),
            "loss/commitment": commitment.detach(),
            "codes/used": self.book.perplexity,
        }
        if self.config.edges:
            lines = gradient_l1(out, batch.x)
            value = value + self.config.edges * lines
            logs["loss/edges"] = lines.detach()
        return Loss(value, logs, stats=self._statistics(z, index, gap, batch.weight))

    @torch.no_grad()
    def _statistics(self, z: Tensor, index: Tensor, gap: Tensor, weight: Tensor) -> dict[str, Tensor]:
        """What the codebook learns from: how many places chose each code, the sum of their latents, their spread."""
        flat = index.flatten()
        share = weight[:, None, None].expand(index.shape).flatten()
        latents = z.movedim(1, -1).flatten(0, 2)  # (b h w, z)
        latents = torch.where(share[:, None] > 0, latents, 0.0)
        count = torch.zeros(self.config.codes).index_add_(0, flat, share)
        total = torch.zeros_like(self.book.total).index_add_(0, flat, latents * share[:, None])
        spread = torch.zeros(self.config.codes).index_add_(0, flat, gap.sum(1).flatten() * share)
        return {"count": count, "total": total, "spread": spread}

    def after(self, phase: str, stats: Mapping[str, Tensor]) -> None:
        if stats:
            self.book.follow(**stats)

    def encode(self, x: Tensor) -> Tensor:
        """The latent before it is replaced by its codes: a walk in it moves smoothly."""
        return self.enc(x, Cond())

    def decode(self, z: Tensor) -> Tensor:
        return self.dec(straight_through(z, self.book.look_up(self.book.nearest(z))), Cond())

    def codes(self, x: Tensor) -> Tensor:
        """Pictures (b, c, h, w) to indices into the codebook, (b, h / f, w / f) long."""
        return self.book.nearest(self.encode(x))

    def decode_codes(self, index: Tensor) -> Tensor:
        """Indices (b, h / f, w / f) to pictures; a negative one, not known yet, is the mean of what all stand for."""
        share = self.book.size / self.book.size.sum()
        z = torch.where(
            (index < 0)[:, None],
            (share @ self.book.vectors)[None, :, None, None],
            self.book.look_up(index.clamp(min=0)),
        )
        return self.dec(z, Cond())

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        self.check_guides(guides)
        share = self.book.size / self.book.size.sum()
        edges = share.double().cumsum(0)
        u = noise.uniform("codes", self.latent_shape[1:]).double()
        index = torch.searchsorted(edges, u * edges[-1], right=True).clamp(max=len(edges) - 1)
        with torch.no_grad():
            x = self.dec(self.book.look_up(index), cond)
        yield finished(x)


def straight_through(z: Tensor, chosen: Tensor) -> Tensor:
    """`chosen`, with the gradient handed to z as it is. Source: van den Oord et al. 2017, sec. 3.2."""
    return z + (chosen - z).detach()
