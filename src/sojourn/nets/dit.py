"""A transformer that denoises patches: pictures, latents or plain vectors to a prediction of the same shape.

Pure module: it is told a noise level and a condition, and knows nothing about paths, losses or walks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.errors import ConfigError
from sojourn.nets.blocks import Attention, CondEmbed, SwiGLU, TimeEmbed, fourier
from sojourn.types import Cond, DataSpec

GROUPS, GROUP_LEAST = 4, 64
"""Training batches go through the net in so many groups at most, of so many rows at least."""


class DiTBlock(nn.Module):
    """Attention and feed-forward, each shifted, scaled and gated by a signal (b, dim): (b, n, dim) -> (b, n, dim).

    Source: Peebles & Xie 2023, fig. 3 (adaLN), with QK-norm and SwiGLU.
    """

    compiles = True

    def __init__(self, dim: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.attention = Attention(dim, heads)
        self.mlp = SwiGLU(dim, hidden)
        self.modulate = nn.Linear(dim, 6 * dim)
        nn.init.zeros_(self.modulate.weight)
        nn.init.normal_(self.modulate.bias, std=dim**-0.5)

    def forward(self, x: Tensor, signal: Tensor, mask: Tensor | None) -> Tensor:
        # LayerNorm without parameters, as in the paper: on a CPU its one kernel is 3.5 times as fast as RMSNorm's six.
        moves = self.modulate(signal).to(x.dtype)[:, None].chunk(6, dim=-1)
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = moves  # each (b, 1, d)
        h = torch.addcmul(shift, F.layer_norm(x, x.shape[-1:]), 1 + scale)
        x = torch.addcmul(x, gate, self.attention(h, mask))
        h = torch.addcmul(shift_mlp, F.layer_norm(x, x.shape[-1:]), 1 + scale_mlp)
        return torch.addcmul(x, gate_mlp, self.mlp(h))


class DiT(nn.Module):
    """(x (b, *spec.shape), level (b,), cond) -> (b, *spec.shape); text tokens join the sequence of patches.

    spec.shape is (c, h, w) or (d,); `patch` is the side of a square, or the number of values. Each block has its own
    modulation: it costs next to no time, being once a sample and not once a token, and holds what words look like.
    """

    def __init__(self, spec: DataSpec, patch: int, width: int, depth: int, heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        check_sizes(spec, patch, width, heads)
        self.patch = patch
        self.grid = tuple(side // patch for side in spec.shape[-2:])  # (h, w), or (n,) of a vector
        values = math.prod(spec.shape) // math.prod(self.grid)
        self.embed = nn.Linear(values, width)
        # Tables are embeddings, so that optimizers which treat matrices specially leave them alone.
        self.position = nn.Embedding.from_pretrained(grid_features(self.grid, width), freeze=False)
        self.time = TimeEmbed(width)
        self.cond = CondEmbed(spec, width)
        self.text_position = nn.Embedding(spec.text_len, width) if spec.text_dim else None
        # Gated by 2/3, as many values as an MLP of mlp_ratio (Shazeer 2020, sec. 2), in whole vectors of a CPU.
        hidden = max(16, round(width * mlp_ratio * 2 / 3 / 16) * 16)
        self.blocks = nn.ModuleList(DiTBlock(width, heads, hidden) for _ in range(depth))
        self.modulate_out = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, values)
        for layer in (self.modulate_out, self.out):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        if self.text_position is not None:
            nn.init.normal_(self.text_position.weight, std=0.02)

    def forward(self, x: Tensor, level: Tensor, cond: Cond) -> Tensor:
        groups = min(GROUPS, x.shape[0] // GROUP_LEAST)
        if not self.training or cond.token_mask is None or groups < 2:
            return self.run(x, level, cond)
        # Most texts are far shorter than the longest: rows of like length go together and are cut to their own.
        order = cond.token_mask.sum(dim=1).argsort(stable=True)
        parts = [self.run(x[rows], level[rows], cond[rows]) for rows in order.tensor_split(groups)]
        return torch.cat(parts)[order.argsort()]

    @torch.no_grad()
    def shut(self, first: int) -> None:
        """Close the gates of the blocks from this one on: they pass on what they are given, and learn from there."""
        for block in list(self.blocks)[first:]:
            assert isinstance(block, DiTBlock)
            block.modulate.bias.view(6, -1)[[2, 5]] = 0.0
            block.modulate.weight.view(6, -1)[[2, 5]] = 0.0

    def run(self, x: Tensor, level: Tensor, cond: Cond) -> Tensor:
        """All rows at once."""
        b = x.shape[0]
        vector, text, mask = self.cond(cond, b)
        if self.training and text is not None and mask is not None:
            text, mask = shortened(text, mask)
        h = self.embed(self.patches(x)) + self.position.weight  # (b, n, d)
        n = h.shape[1]
        if text is not None and self.text_position is not None:
            h = torch.cat([h, text + self.text_position.weight[: text.shape[1]]], dim=1)  # (b, n + m, d)
            if mask is not None:
                mask = torch.cat([mask.new_ones(b, n), mask], dim=1)
        # Without the norm the sum drifts to where SiLU is flat, and three quarters of the signal fall silent.
        signal = self.time(level) + vector  # (b, d)
        signal = F.silu(F.layer_norm(signal, signal.shape[-1:]))
        for block in self.blocks:
            h = block(h, signal, mask)
        shift, scale = self.modulate_out(signal)[:, None].chunk(2, dim=-1)
        h = h[:, :n]
        h = self.out(torch.addcmul(shift, F.layer_norm(h, h.shape[-1:]), 1 + scale))
        return self.assemble(h, x.shape)

    def patches(self, x: Tensor) -> Tensor:
        """(b, *shape) -> (b, n, values of a patch)."""
        if x.ndim == 2:
            return x.view(x.shape[0], *self.grid, self.patch)
        b, c = x.shape[:2]
        (gh, gw), p = self.grid, self.patch
        return x.reshape(b, c, gh, p, gw, p).permute(0, 2, 4, 1, 3, 5).reshape(b, gh * gw, c * p * p)

    def assemble(self, h: Tensor, shape: torch.Size) -> Tensor:
        """(b, n, values of a patch) -> (b, *shape), the inverse of `patches`."""
        if len(shape) == 2:
            return h.reshape(shape)
        b, c = shape[:2]
        (gh, gw), p = self.grid, self.patch
        return h.view(b, gh, gw, c, p, p).permute(0, 3, 1, 4, 2, 5).reshape(shape)


def shortened(text: Tensor, mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """text (b, n, d) and mask (b, n) up to the last real token of any row; no mask where it would hide nothing.

    The same result for less work, to the last bits: for training only, since a walk must not depend on its batch.
    """
    n = max(1, int((mask.any(dim=0) * torch.arange(1, mask.shape[1] + 1, device=mask.device)).max()))
    mask = mask[:, :n]
    return text[:, :n], None if bool(mask.all()) else mask


def grid_features(grid: tuple[int, ...], dim: int) -> Tensor:
    """Sinusoids of each cell's place, half of the features for the row and half for the column: (n, dim)."""
    axes = torch.meshgrid(*(torch.arange(side, dtype=torch.float32) for side in grid), indexing="ij")
    share = dim // len(grid)
    features = torch.cat([fourier(axis.flatten(), share) for axis in axes], dim=1)
    return F.pad(features, (0, dim - features.shape[1]))


def check_sizes(spec: DataSpec, patch: int, width: int, heads: int) -> None:
    """Raise ConfigError unless patches tile the sample and heads divide the width."""
    sides = spec.shape[-2:]
    if any(side % patch for side in sides):
        raise ConfigError(
            "patch {patch} does not tile a sample of shape {shape}; choose a divisor of {sides}",
            patch=patch,
            shape=tuple(spec.shape),
            sides=" and ".join(str(side) for side in sorted(set(sides))),
        )
    if width % heads:
        raise ConfigError("width {width} is not a multiple of heads {heads}; change one", width=width, heads=heads)
