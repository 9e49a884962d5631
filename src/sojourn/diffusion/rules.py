"""Energies of pictures: what a rule, a mask, a classifier asks of a result, as something to make small.

Each is a function of raw pictures (b, c, h, w) in [-1, 1] that gives one value a row (b,), in nats: a walk ends in
p(x) * exp(-energy). Knows no family, codec or prompt; `guidance.energy` makes a guide of one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from sojourn.data.variety import COLOURS, TO_LAB, TO_LMS

Energy = Callable[[Tensor], Tensor]
Place = Literal["left", "right", "top", "bottom", "centre"]

CENTRES: dict[Place, tuple[float, float]] = {
    "left": (-0.45, 0.0), "right": (0.45, 0.0), "top": (0.0, -0.45), "bottom": (0.0, 0.45), "centre": (0.0, 0.0),
}  # fmt: skip
"""Where the middle of what is drawn should lie: across and down, -1..1."""
TOLERANCE = 0.15
"""Difference of a pixel, on the scale of -1..1, that costs half a nat: the std of a Gaussian around what is asked."""
LUMA = (0.299, 0.587, 0.114)
"""How bright colours are. Source: ITU-R BT.601."""
SHARE = 0.1
"""Of a picture's numbers that count as independent. Neighbouring pixels say the same thing: all of them together would
drown every other wish."""

GROUND, PALE = 0.93, 0.04
"""Lightness of OKLab from which, and chroma up to which, a pixel is of the white ground."""
SHADE = 0.5
"""What a difference of lightness counts beside one of hue, when a colour is named."""


def known(x: Tensor, keep: Tensor, tolerance: float = TOLERANCE) -> Energy:
    """Pictures x (b, c, h, w) are known where keep (b, 1, h, w) is 1: a Gaussian around them."""

    def energy(raw: Tensor) -> Tensor:
        return _gaussian((raw - x.to(raw)) * keep.to(raw), tolerance)

    return energy


def palette(colours: Sequence[tuple[float, float, float]]) -> Energy:
    """Every pixel has one of the colours, each (r, g, b) in -1..1; a grey picture is held to how bright they are."""
    given = torch.tensor(colours)  # (k, 3)

    def energy(raw: Tensor) -> Tensor:
        wanted = given.to(raw)
        rgb = opaque(raw)
        if rgb.shape[1] == 1:
            wanted = (wanted @ wanted.new_tensor(LUMA))[:, None]
        gap = rgb[:, None] - wanted[None, :, :, None, None]  # (b k c h w)
        # A soft choice of the nearest: its gradient does not jump where two are equally near.
        near = gap.square().sum(2).div(-2 * TOLERANCE**2).logsumexp(1)  # (b h w)
        return -SHARE * near.flatten(1).sum(1)

    return energy


def symmetry(raw: Tensor) -> Tensor:
    """The left half mirrors the right one."""
    return _gaussian(raw - raw.flip(-1), TOLERANCE) / 2


def place(where: Place) -> Energy:
    """The middle of what is drawn lies there; what is drawn is what is not as bright as white, or is not clear."""
    centre = CENTRES[where]

    def energy(raw: Tensor) -> Tensor:
        ink = (1 - opaque(raw).mean(1)).clamp(min=0) / 2  # (b h w)
        h, w = ink.shape[1:]
        down = torch.linspace(-1, 1, h).to(ink)[:, None]
        across = torch.linspace(-1, 1, w).to(ink)[None]
        total = ink.sum((1, 2)) + 1e-3
        x, y = (ink * across).sum((1, 2)) / total, (ink * down).sum((1, 2)) / total
        return ((x - centre[0]).square() + (y - centre[1]).square()) / (2 * 0.05**2)

    return energy


def judged(classify: Callable[[Tensor], Tensor], wanted: Tensor, weight: float = 1.0) -> Energy:
    """A classifier, from pictures to logits (b, classes), names the class wanted (b,) long: its cross-entropy.

    Source: Dhariwal & Nichol 2021, sec. 4.1 (classifier guidance); Nguyen et al. 2017 (in a generator's latent).
    """

    def energy(raw: Tensor) -> Tensor:
        return weight * F.cross_entropy(classify(raw), wanted.to(raw.device), reduction="none")

    return energy


def alike(embed: Callable[[Tensor], Tensor], wanted: Tensor, weight: float) -> Energy:
    """An encoder, from pictures to vectors (b, d), says what the vectors wanted (b, d) say: 1 - cosine.

    Source: Crowson et al. 2022 (VQGAN-CLIP), sec. 2.
    """

    def energy(raw: Tensor) -> Tensor:
        return weight * (1 - F.cosine_similarity(embed(raw), wanted.to(raw), dim=1))

    return energy


def shares(raw: Tensor) -> Tensor:
    """Share of each of `COLOURS` in what is drawn of pictures (b, 3 or 4, h, w): (b, colours), 0 where nothing is.

    Each pixel that is not of the white ground has the colour that is nearest in OKLab. Source: Ottosson 2020.
    """
    table = _oklab(torch.tensor([colour.rgb for colour in COLOURS]).to(raw) / 127.5 - 1)  # (k, 3)
    lab = _oklab(opaque(raw).flatten(2).transpose(1, 2))  # (b, n, 3)
    drawn = (lab[..., 0] < GROUND) | (lab[..., 1:].norm(dim=2) > PALE)
    gap = (lab[:, :, None] - table) * table.new_tensor((SHADE, 1.0, 1.0))
    near = F.one_hot(gap.square().sum(3).argmin(2), len(table)) * drawn[:, :, None]  # (b n k)
    out: Tensor = near.sum(1) / drawn.sum(1, keepdim=True).clamp(min=1)
    return out


def _oklab(rgb: Tensor) -> Tensor:
    """sRGB (..., 3) in [-1, 1] to OKLab."""
    x = (rgb.clamp(-1, 1) + 1) / 2
    linear = torch.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    lms = linear @ torch.from_numpy(TO_LMS.T).to(x)
    lab: Tensor = lms.clamp(min=0).pow(1 / 3) @ torch.from_numpy(TO_LAB.T).to(x)
    return lab


def opaque(raw: Tensor) -> Tensor:
    """Pictures without alpha: premultiplied RGBA (b, 4, h, w) is laid on white."""
    if raw.shape[1] != 4:
        return raw
    return raw[:, :3] + 1 - raw[:, 3:]


def fitted(raw: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Pictures as another model wants them: (b, c, h, w) of shape (c, h, w), resized, grey or coloured."""
    x = opaque(raw)
    if x.shape[1] == 1 and shape[0] > 1:
        x = x.expand(-1, 3, -1, -1)
    elif x.shape[1] == 3 and shape[0] == 1:
        x = (x * x.new_tensor(LUMA)[:, None, None]).sum(1, keepdim=True)
    if shape[0] == 4:
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    if tuple(x.shape[2:]) != tuple(shape[1:]):
        x = F.interpolate(x, tuple(shape[1:]), mode="bilinear", antialias=True, align_corners=False)
    return x


def _gaussian(gap: Tensor, spread: float) -> Tensor:
    """Energy (b,) of differences (b, c, h, w) under a Gaussian of that spread."""
    return SHARE * gap.square().flatten(1).sum(1) / (2 * spread**2)
