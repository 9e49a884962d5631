"""The guided walk of a one-step family: Langevin steps in its latent space, bent by energies of the decoded sample.

Knows a decoder and energies as functions; nothing about nets, families or prompts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sojourn.errors import InvalidInput
from sojourn.types import Cond, Noise, Step

Energy = Callable[[Tensor, Cond], Tensor]

ACCEPTANCE = 0.574
"""Share of accepted proposals the step size settles at. Source: Roberts & Rosenthal 1998, theorem 3."""


@dataclass(frozen=True)
class _Place:
    """Where the walk stands, row by row: latent, its decoded sample, potential and the energies' gradient."""

    z: Tensor  # (b, ...)
    x: Tensor  # (b, ...)
    potential: Tensor  # (b,) |z|^2 / 2 + energies
    pull: Tensor  # (b, ...) gradient of the energies with respect to z


def walk(
    decode: Callable[[Tensor], Tensor],
    z: Tensor,
    cond: Cond,
    energies: Sequence[Energy],
    noise: Noise,
    *,
    steps: int,
    step_size: float,
    temperature: float,
) -> Iterator[Step]:
    """Walk z (b, ...) towards exp(-U / temperature), U = |z|^2 / 2 + sum of energies(decode(z), cond); a Step a move.

    A move follows the standard normal prior's Langevin flow exactly over a time, with the energies' gradient held
    fixed (exponential Euler), and is then accepted or refused by Metropolis's rule. The first is `step_size` long, or
    as much shorter as a strong pull demands; each row then adapts its own to a good share of accepted moves, ever
    less. So an energy of any strength neither blows up nor stalls, and the limit is the exact distribution.
    In the first half of the steps each move is followed by a jump to a fresh draw of the prior, which Metropolis's
    rule takes where it is better: a generator's pictures lie in many valleys, and the nearest is seldom the best.
    temperature 1 samples the guided distribution, 0 only ever goes downhill. Rows never see each other; noise is
    drawn by name and step. Each Step has the decoded sample as x0, z as x and the move's noise std as sigma.

    Raises InvalidInput where an energy is not finite at the start, or does not give one value per row.
    Source: Roberts & Tweedie 1996 (MALA); Hochbruck & Ostermann 2010, eq. 1.6; Andrieu & Thoms 2008, alg. 4; Tierney
    1994, sec. 2.3.3 (independence chains) and 2.4 (mixtures and cycles).
    """
    rows = z.shape[0]
    each = (rows, *(1 for _ in z.shape[1:]))
    here = _look(decode, z, cond, energies)
    if not bool(here.potential.isfinite().all()):
        row = int((~here.potential.isfinite()).nonzero()[0])
        raise InvalidInput(
            "the energy of the guides is not finite at the start of row {row}; weaken the guide", row=row
        )
    reach = z[0].numel() ** 0.5  # the prior's typical distance from 0
    pull = here.pull.flatten(1).norm(dim=1)
    log_size = (step_size * (reach / pull).clamp(max=1)).log()  # (b,)
    for i in range(steps):
        keep = torch.exp(-log_size.exp())  # (b,) share of z that one move keeps
        spread = (temperature * (1 - keep.square())).sqrt()  # (b,)
        xi = noise.draw(f"langevin/{i}", z.shape[1:]).to(z)
        mean = _drift(here, keep.view(each))
        there = _look(decode, mean + spread.view(each) * xi, cond, energies)
        chance = _chance(here, there, mean, keep, spread, temperature)
        luck = noise.uniform(f"langevin/{i}/accept", ()).to(z)
        here = _choose(luck < chance, here, there)
        if i < steps / 2:
            here = _jump(decode, here, cond, energies, noise, i, temperature)
        log_size = log_size + (chance - ACCEPTANCE) / (1 + i) ** (1 / 3)
        last = i == steps - 1
        yield Step(
            x0=here.x,
            x=here.z,
            sigma=torch.zeros_like(spread) if last else spread,
            done=torch.full((rows,), last, device=z.device),
        )


def _jump(
    decode: Callable[[Tensor], Tensor],
    here: _Place,
    cond: Cond,
    energies: Sequence[Energy],
    noise: Noise,
    i: int,
    temperature: float,
) -> _Place:
    """A fresh draw of the prior in the rows that take it; at temperature 0, where it lies lower."""
    far = noise.draw(f"langevin/{i}/jump", here.z.shape[1:]).to(here.z) * (temperature or 1) ** 0.5
    with torch.no_grad():
        fall = here.potential - _potential(far, _total(decode(far), cond, energies))
    if temperature:  # the draws have the prior's own share of the rule in them: the energies alone are left
        fall = fall + (far.square() - here.z.square()).flatten(1).sum(dim=1) / 2
        luck = noise.uniform(f"langevin/{i}/jump/accept", ()).to(far)
        taken = luck < torch.nan_to_num(fall / temperature, nan=-torch.inf).clamp(max=0).exp()
    else:
        taken = fall > 0
    return _choose(taken, here, _look(decode, far, cond, energies)) if bool(taken.any()) else here


def _drift(place: _Place, keep: Tensor) -> Tensor:
    """Mean of the next proposal: the prior pulls z to 0, the energies push it along -pull."""
    return keep * place.z - (1 - keep) * place.pull


def _chance(here: _Place, there: _Place, mean: Tensor, keep: Tensor, spread: Tensor, temperature: float) -> Tensor:
    """Probability (b,) of accepting the move; at temperature 0, whether it went downhill."""
    fall = here.potential - there.potential
    if temperature == 0:
        return (fall >= 0).to(fall)
    back = _drift(there, keep.view(-1, *(1 for _ in mean.shape[1:])))
    forth_size = (there.z - mean).square().flatten(1).sum(dim=1)
    back_size = (here.z - back).square().flatten(1).sum(dim=1)
    log_ratio = fall / temperature + (forth_size - back_size) / (2 * spread.square())
    # a proposal that landed where an energy is not finite is refused
    return torch.nan_to_num(log_ratio, nan=-torch.inf).clamp(max=0).exp()


def _choose(taken: Tensor, here: _Place, there: _Place) -> _Place:
    """Row by row `there` where taken (b,), else `here`."""

    def pick(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(taken.view(-1, *(1 for _ in new.shape[1:])), new, old)

    return _Place(
        z=pick(there.z, here.z),
        x=pick(there.x, here.x),
        potential=pick(there.potential, here.potential),
        pull=pick(there.pull, here.pull),
    )


def _look(decode: Callable[[Tensor], Tensor], z: Tensor, cond: Cond, energies: Sequence[Energy]) -> _Place:
    """Decode z and measure it. Gradients are on in here only, whatever the caller's mode."""
    with torch.enable_grad():
        z = z.detach().requires_grad_(True)
        x = decode(z)
        total = _total(x, cond, energies)
        pull = torch.zeros_like(z)
        if total.requires_grad:
            (pull,) = torch.autograd.grad(total.sum(), z, materialize_grads=True)
    z, total = z.detach(), total.detach()
    return _Place(z, x.detach(), _potential(z, total), pull.detach())


def _total(x: Tensor, cond: Cond, energies: Sequence[Energy]) -> Tensor:
    """Sum (b,) of the energies of decoded samples x (b, ...)."""
    total = torch.zeros(len(x), device=x.device)
    for energy in energies:
        value = energy(x, cond)
        if value.shape != total.shape:
            raise InvalidInput(
                "an energy gave values of shape {found}, it must give one per row, ({rows},)",
                found=tuple(value.shape), rows=len(x),
            )  # fmt: skip
        total = total + value
    return total


def _potential(z: Tensor, total: Tensor) -> Tensor:
    return z.square().flatten(1).sum(dim=1) / 2 + total
