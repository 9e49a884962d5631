"""Spectral normalisation: every weight divided by its largest singular value.

Against torch's own, the power iteration is not a side effect of the forward pass: a batch in parts and a batch in one
go must see the same weights. The loop's `Family.after` advances it, once an update.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

START = 2
"""Iterations before the first use; each update adds one. More would take longer than a package may take to be built."""


class SpectralNorm(nn.Module):
    """weight -> weight / sigma, with sigma = u' W v for fixed unit vectors u and v.

    Source: Miyato et al. 2018, eq. 8.
    """

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        rows, columns = weight.flatten(1).shape
        self.register_buffer("u", F.normalize(torch.randn(rows), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(columns), dim=0))
        for _ in range(START):
            self.advance(weight)

    def forward(self, weight: Tensor) -> Tensor:
        sigma = self.u @ weight.flatten(1) @ self.v
        return weight / sigma

    @torch.no_grad()
    def advance(self, weight: Tensor) -> None:
        """One step of the power iteration. Source: Miyato et al. 2018, algorithm 1."""
        matrix = weight.flatten(1)
        self.v.copy_(F.normalize(self.u @ matrix, dim=0))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))


def normalised(net: nn.Module, but: tuple[type[nn.Module], ...] = ()) -> None:
    """Divide the weights of all convolutions, linear layers and embeddings of `net` by their spectral norms.

    but: kinds of layers that stay as they are.
    """
    for module in list(net.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear | nn.Embedding) and not isinstance(module, but):
            norm = SpectralNorm(module.weight.detach())
            parametrize.register_parametrization(module, "weight", norm)


def advance(net: nn.Module) -> None:
    """One step of every power iteration in `net`."""
    for module in net.modules():
        if isinstance(module, parametrize.ParametrizationList):
            for norm in module:
                if isinstance(norm, SpectralNorm):
                    norm.advance(module.original)
