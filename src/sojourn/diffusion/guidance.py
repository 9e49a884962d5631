"""Guides for walks: each bends a Denoise into another Denoise. Knows nothing about nets, samplers or prompts as text.

`compose` puts them together, innermost first, whatever the order they are given in:

    1. prompt guidance   `cfg` strength, an `interval` of noise levels, what labels weigh, a `negative` and `weights`:
                         one batched pass; `colours` that a row lacks: one more
    2. other guides      in the order given; one that has only an energy bends x0 down its gradient (`descend`)
    3. `mask`            puts the known part of a picture over whatever the others wished
    4. `source`          stands in for all of them above its starting noise level, where `begin` starts the walk

Guides hold tensors with one row per row of x, so requests with different pictures and conditions share a batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from sojourn.diffusion.path import like
from sojourn.errors import InvalidInput
from sojourn.types import Cond, Denoise, Guide

Energy = Callable[[Tensor, Cond], Tensor]
Terms = Sequence[tuple[Cond, Tensor | float]]


@dataclass(frozen=True)
class Missed:
    """Words of the request whose effect can be seen in a picture: of its colour."""

    bare: Cond
    """The request (b rows) without them."""
    lack: Callable[[Tensor], Tensor]
    """x0 (b ...) -> (b,) in 0..1, how much of what they ask for is not there; 0 for a row without such words."""


@dataclass(frozen=True)
class PromptGuide(Guide):
    """A guide that changes what classifier-free guidance pulls to or away from; `compose` merges them."""

    terms: tuple[tuple[Cond, Tensor | float], ...] = ()
    """Conditions with weights (b,), in place of the request's own. () = not changed."""
    away: Cond | None = None
    """The condition guidance pushes away from. None = the empty one."""
    missed: Missed | None = None
    """Words to pull harder for while the picture lacks what they ask for. None = none."""


@dataclass(frozen=True)
class SourceGuide(Guide):
    """A guide that says where the walk starts; see `source` and `begin`."""

    x_source: Tensor = field(default_factory=lambda: torch.empty(0))
    start: float = float("inf")
    """Sigma above which the source stands in for x0."""


EDGES = 2 / 3
"""Sigma (data of unit variance) above which layout and colours are drawn, and below which they stand and edges and
shades, which tell styles apart, are."""


@dataclass(frozen=True)
class Strength:
    """How hard classifier-free guidance pulls, and where in the walk."""

    guidance: Tensor | float = 1.0
    """One number or (b,). 1 = the plain conditional model."""
    low: float = 0.0
    """Sigma below which guidance is 1."""
    high: float | None = None
    """Sigma above which guidance is 1. None = no bound. Source: Kynkäänniemi et al. 2024, eq. 5."""
    colours: float = 1.0
    """Weight of `Missed` words beside the rest where all of what they ask for is missing, for sigma from `EDGES` up:
    the pull away from the same text without them. 1 = as that of the rest."""
    labels: float = 1.0
    """Weight of labels beside text, for sigma below `EDGES`: the pull away from the same text without them, in pulls of
    guidance. 1 = as that of the text. Source: Brooks et al. 2023 (InstructPix2Pix), eq. 3, with the text for a source.
    """

    def at(self, sigma: Tensor) -> Tensor:
        """Guidance of each row, (b,)."""
        inside = sigma >= self.low
        if self.high is not None:
            inside = inside & (sigma <= self.high)
        return torch.where(inside, torch.as_tensor(self.guidance, dtype=sigma.dtype, device=sigma.device), 1.0)

    def beyond(self, sigma: Tensor) -> Tensor:
        """What labels weigh more than text in each row, (b,)."""
        return torch.where(sigma < EDGES, self.labels - 1.0, torch.zeros_like(sigma))


def compose(denoise: Denoise, guides: Sequence[Guide] = (), strength: Strength | None = None) -> Denoise:
    """`denoise` bent by classifier-free guidance and by all guides, in the order of the module's docstring.

    Raises InvalidInput for a second negative, set of weights, or source.
    """
    terms: Terms = ()
    away: Cond | None = None
    missed: Missed | None = None
    once: set[str] = set()
    for guide in guides:
        if isinstance(guide, PromptGuide | SourceGuide):
            if guide.name in once:
                raise InvalidInput('two guides are called "{name}"; join them into one', name=guide.name)
            once.add(guide.name)
        if isinstance(guide, PromptGuide):
            terms = guide.terms or terms
            away = guide.away if guide.away is not None else away
            missed = guide.missed or missed
    out = prompted(denoise, strength or Strength(), terms, away, missed)
    others = [guide for guide in guides if not isinstance(guide, PromptGuide)]
    for guide in sorted(others, key=lambda guide: _RANK.get(guide.name, 0)):
        if guide.denoise is not None:
            out = guide.denoise(out)
        elif guide.energy is not None:
            out = descend(out, guide.energy)
    return out


_RANK = {"mask": 1, "source": 2}


def prompted(
    denoise: Denoise, strength: Strength, terms: Terms = (), away: Cond | None = None, missed: Missed | None = None
) -> Denoise:
    """away + guidance * sum of weight_i * (term_i - away), all in one forward pass of the rows that need it.

    Source: Ho & Salimans 2022, eq. 6; Liu et al. 2022 (composable diffusion), eq. 11. Without terms, negative or any
    row with a condition, and where guidance is 1, this is one plain pass. Labels that weigh more than text add
    guidance * weight_i * (labels - 1) * (term_i - term_i without labels). Words that are missed, in a request without
    terms, add guidance * (colours - 1) * lack * (cond - cond without them), in a second pass where lack is not 0.
    """

    def regained(x: Tensor, sigma: Tensor, cond: Cond, out: Tensor, own: Tensor) -> Tensor:
        early = sigma >= EDGES
        if missed is None or strength.colours == 1 or terms or not bool(early.any()):
            return out
        lack = torch.where(early, missed.lack(out).to(sigma), torch.zeros_like(sigma))  # (b,)
        if not bool(lack.any()):
            return out
        pull = strength.at(sigma) * (strength.colours - 1) * lack
        return out + like(pull, x) * (own - denoise(x, sigma, matched(missed.bare, cond)))

    def guided(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        guidance, beyond = strength.at(sigma), strength.beyond(sigma)
        stressed = bool(beyond.any()) and any(labelled(part) for part in (cond, *(term for term, _ in terms)))
        plain = not terms and (bool((guidance == 1).all()) or (away is None and not given(cond)))
        if plain and not stressed:
            own = denoise(x, sigma, cond)
            return regained(x, sigma, cond, own, own)
        cond = cond if cond.rows else (away or terms[0][0]).null()
        base = cond if plain else cond.null() if away is None else matched(away, cond)
        parts = [(matched(part, cond), torch.as_tensor(weight).to(x)) for part, weight in terms or [(cond, 1.0)]]
        if stressed:
            none = torch.zeros(cond.rows, dtype=torch.bool)
            bare = [(part.where(none, "labels"), -beyond * weight) for part, weight in parts]
            parts = [] if plain else [(part, (1 + beyond) * weight) for part, weight in parts]
            parts += bare
        k = len(parts) + 1
        conds = Cond.cat([base, *(part for part, _ in parts)])
        first, *rest = denoise(x.repeat(k, *(1 for _ in x.shape[1:])), sigma.repeat(k), conds).chunk(k)
        out: Tensor = first
        for row, (_, weight) in zip(rest, parts, strict=True):
            out = out + like(guidance * weight, x) * (row - first)  # the pull, (b,)
        return regained(x, sigma, cond, out, first if plain else rest[0])

    return guided


def cfg(guidance: Tensor | float) -> Guide:
    """Classifier-free guidance, for a walk that has none of its own; guidance is one number or (b,)."""
    return Guide("cfg", denoise=lambda denoise: prompted(denoise, Strength(guidance)))


def interval(guidance: Tensor | float, low: float, high: float) -> Guide:
    """Classifier-free guidance for sigma in [low, high] only, the plain conditional model elsewhere."""
    return Guide("interval", denoise=lambda denoise: prompted(denoise, Strength(guidance, low, high)))


def negative(cond: Cond, guidance: Tensor | float = 1.0) -> Guide:
    """Guidance pushes away from cond (b rows; an empty row = no negative) and not from the empty condition.

    guidance is used only outside `compose`, which has its own.
    """
    return PromptGuide("negative", denoise=lambda denoise: prompted(denoise, Strength(guidance), (), cond), away=cond)


def weights(terms: Terms, guidance: Tensor | float = 1.0) -> Guide:
    """Several conditions at once, each (b rows) with a weight, one number or (b,): `a::2 b::-0.5`.

    Weights that sum to 1 keep the strength of guidance; a row with fewer terms has weight 0 for the others.
    guidance is used only outside `compose`, which has its own.
    """
    kept = tuple(terms)
    if not kept:
        raise InvalidInput("a weighted prompt has no terms; give at least one")
    return PromptGuide("weights", denoise=lambda denoise: prompted(denoise, Strength(guidance), kept), terms=kept)


def colours(bare: Cond, lack: Callable[[Tensor], Tensor], strength: Strength | None = None) -> Guide:
    """Words of colour pull harder while the picture lacks their colour; see `Missed` and `Strength.colours`.

    strength is used only outside `compose`, which has its own.
    """
    missed = Missed(bare, lack)
    return PromptGuide(
        "colours", denoise=lambda denoise: prompted(denoise, strength or Strength(), missed=missed), missed=missed
    )


def mask(x_source: Tensor, edit_mask: Tensor) -> Guide:
    """Only where edit_mask is 1 may the result differ from x_source; where it is 0 the two are equal.

    x_source (b ...) in model space; edit_mask (b, 1, h, w) on its grid, in [0, 1]; a row of ones changes nothing.
    The known part replaces the x0 prediction, so that x carries it with the walk's own noise at every level.
    """
    if edit_mask.shape[0] != x_source.shape[0] or edit_mask.shape[2:] != x_source.shape[2:]:
        raise InvalidInput(
            "edit mask of shape {mask} does not fit the picture of shape {x}; resize it to the model's grid",
            mask=tuple(edit_mask.shape),
            x=tuple(x_source.shape),
        )

    def bend(denoise: Denoise) -> Denoise:
        def masked(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            known = fitted(x_source, x, "mask")
            return torch.lerp(known, denoise(x, sigma, cond), edit_mask.to(x))

        return masked

    return Guide("mask", denoise=bend)


def source(x_source: Tensor, strength: float) -> Guide:
    """Start from x_source (b ...) with noise, and not from noise alone: img2img.

    strength: 0 = the source as it is, 1 = noise alone; between, the walk starts at t = strength, sigma = t / (1 - t),
    rounded down to one of its levels. Source: Meng et al. 2022 (SDEdit), alg. 1. As a Denoise it is the source itself
    above that level, which carries x to source + sigma * eps; `begin` goes there at once, which a second-order sampler
    needs, for it would take the change of x0 at the start for a slope.
    """
    if not 0 <= strength <= 1:
        raise InvalidInput("strength {found} is outside 0..1", found=strength)
    # Levels are fp32: one that means the start itself must count as reached.
    start = float("inf") if strength == 1 else strength / (1 - strength) * (1 + 1e-5)

    def bend(denoise: Denoise) -> Denoise:
        def started(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
            waiting = sigma > start  # (b,)
            known = fitted(x_source, x, "source")
            if bool(waiting.all()):
                return known
            x0 = denoise(x, sigma, cond)
            return torch.where(like(waiting, x), known, x0) if bool(waiting.any()) else x0

        return started

    return SourceGuide("source", denoise=bend, x_source=x_source, start=start)


def begin(eps: Tensor, sigmas: Tensor, guides: Sequence[Guide] = ()) -> tuple[Tensor, Tensor]:
    """Where a walk starts, x (b ...), and the noise levels left to it: from noise, or from a `source`."""
    for guide in guides:
        if isinstance(guide, SourceGuide):
            above = int((sigmas > guide.start).sum())
            if above:
                left = sigmas[min(above, len(sigmas) - 2) :]
                if 0 < guide.start < left[0]:  # so few levels that none is below: one step from where it begins
                    left = left.new_tensor([guide.start, 0.0])
                return fitted(guide.x_source, eps, guide.name) + left[0] * eps, left
    return sigmas[0] * eps, sigmas


CHAOS = 1.0
"""Length of the step that the text vector takes at chaos 100, in its own lengths."""


def stirred(cond: Cond, eps: Tensor, chaos: float) -> Cond:
    """cond with each row's text vector off by chaos / 100 of its length in the direction of eps (b, d): 0 = as it is.

    Rows without a text stay so; word features stay as they are, so that the thing asked for does too.
    """
    if cond.pooled is None or chaos == 0:
        return cond
    length = cond.pooled.norm(dim=1, keepdim=True)
    return replace(cond, pooled=cond.pooled + chaos / 100 * CHAOS * length * F.normalize(eps.to(cond.pooled), dim=1))


def energy(fn: Energy, weight: float = 1.0, name: str = "energy") -> Guide:
    """weight * fn(x0, cond) as something to make small; fn gives (b,) and is differentiable in x0."""
    return Guide(name, energy=lambda x0, cond: weight * fn(x0, cond))


def descend(denoise: Denoise, fn: Energy) -> Denoise:
    """x0 - t * gradient of fn at x0, not through the net, with t where fn(x0) + |move|^2 / (2 w) is lowest on the way.

    w = sigma^2 / (1 + sigma^2) is the variance of x0 given x for data of unit variance. t is w for a linear fn and
    w / (1 + k w) for one of curvature k, so that no energy is too steep; k is felt for along the gradient, not farther
    than fn or a nat would last. So a walk of Gaussian data ends about where p(x0) * exp(-fn(x0)) is.
    Source: Song et al. 2023 (PiGDM), eq. 7 and 8, with the net's Jacobian left out; the step is a proximal one.
    """

    def bent(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        x0 = denoise(x, sigma, cond).detach()
        with torch.enable_grad():
            leaf = x0.requires_grad_()
            value = fn(leaf, cond)  # (b,)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        x0, value = x0.detach(), value.detach()
        variance = sigma**2 / (1 + sigma**2)
        slope = gradient.square().flatten(1).sum(1).clamp(min=1e-20)  # (b,) what a step of 1 loses on a straight line
        probe = torch.minimum(variance, (value.abs() + 1) / slope)
        with torch.no_grad():
            gap = fn(x0 - like(probe, x) * gradient, cond) - value + probe * slope
        curvature = 2 * gap.clamp(min=0) / (probe.square() * slope).clamp(min=1e-20)
        return x0 - like(variance / (1 + variance * curvature), x) * gradient

    return bent


def labelled(cond: Cond) -> bool:
    """Whether any row has a label."""
    return cond.labels is not None and bool((cond.labels >= 0).any())


def given(cond: Cond) -> bool:
    """Whether any row has a label or a text."""
    return (
        labelled(cond)
        or (cond.pooled is not None and bool(cond.pooled.any()))
        or (cond.token_mask is not None and bool(cond.token_mask.any()))
    )


def matched(cond: Cond, to: Cond) -> Cond:
    """cond with the fields, text length, source pictures and edit mask of `to`, so that the two can be one batch.

    Raises InvalidInput for another number of rows, and for a field that `to` does not have.
    """
    for name in ("labels", "pooled", "feats"):
        if getattr(cond, name) is not None and getattr(to, name) is None:
            raise InvalidInput(
                "a guide's condition has {field} and the batch has none; make both with the package's conditioner",
                field=name,
            )
    if cond.rows != to.rows:
        raise InvalidInput(
            "a guide's condition has {found} rows and the batch {rows}; give one per row", found=cond.rows, rows=to.rows
        )
    blank = to.null()

    def text(mine: Tensor | None, its: Tensor | None) -> Tensor | None:
        if mine is None or its is None:
            return its
        room = its.shape[1] - mine.shape[1]
        if room < 0:
            raise InvalidInput(
                "a guide's text has {found} tokens and the batch {n}; pad both alike",
                found=mine.shape[1],
                n=its.shape[1],
            )
        return F.pad(mine, (0, 0) * (mine.ndim - 2) + (0, room))

    return replace(
        blank,
        labels=blank.labels if cond.labels is None else cond.labels,
        pooled=blank.pooled if cond.pooled is None else cond.pooled,
        tokens=text(cond.tokens, blank.tokens),
        feats=text(cond.feats, blank.feats),
        token_mask=text(cond.token_mask, blank.token_mask),
    )


def fitted(x_source: Tensor, x: Tensor, guide: str) -> Tensor:
    """x_source as x's type and device; InvalidInput if it is of another shape."""
    if x_source.shape != x.shape:
        raise InvalidInput(
            'the picture of guide "{guide}" has shape {found}, the walk {wanted}; give one per row in model space',
            guide=guide,
            found=tuple(x_source.shape),
            wanted=tuple(x.shape),
        )
    return x_source.to(x)
