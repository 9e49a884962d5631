"""What a request asks of a walk, as its condition and guides: words, pictures, rules, a judge. Draws nothing itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

import numpy as np
import torch
from PIL import Image, ImageColor
from torch import Tensor

from sojourn import prompt as grammar
from sojourn.colours import coloured
from sojourn.data.styles import MONO_STYLES, find_style
from sojourn.data.variety import COLOURS
from sojourn.diffusion import guidance, rules
from sojourn.errors import InvalidInput, Unsupported
from sojourn.package import Package
from sojourn.schema import Prompt
from sojourn.types import Cond, Guide, Noise

RULES = frozenset({"palette", "symmetry", "place", "judge"})
"""Parameters of a prompt that are energies of the result."""
STRICTNESS = {"class": 4.0, "words": 60.0}
"""Weight of what a judge says: of its cross-entropy of a class, of its 1 - cosine to words."""
WHITE = (1.0, 1.0, 1.0)
ENOUGH = 0.25
"""Share of what is drawn that the colour of a thing has at least when nothing is missing."""
AHEAD = 1.5
"""How many times the largest share of a colour that nobody asked for, where all things have a colour."""
OPEN = 0.1
"""A place of a mask may change from this share of white on."""


@dataclass
class Request:
    """Prompts with a seed each, one row a picture, and what bends their walk."""

    prompts: list[Prompt]
    seeds: list[int]
    options: dict[str, Any] = field(default_factory=dict)
    source: Image.Image | None = None
    """A picture to start from (img2img) or to keep outside the mask."""
    strength: float = 0.6
    """How far from the source, 0 = the source itself, 1 = only the prompt."""
    mask: Image.Image | None = None
    """White where the source may change."""
    judge: Package | None = None
    """What --judge names."""
    noise: Noise | None = None
    """Draws of another kind than those of the seeds alone: on the way between two, or of two."""


def conditions(package: Package, request: Request) -> tuple[Cond, list[Guide]]:
    """The rows' conditions and the guides that their prompts, source and mask ask for."""
    call = package.conditioner
    prompts = request.prompts
    first = prompts[0]
    guides: list[Guide] = []
    if grammar.used(first)[:1] == ["weights"]:
        # Weights that all but cancel would blow the pull up: they count as if a tenth of their size was left.
        weights = [segment.weight for segment in first.segments]
        total = max(sum(weights), 0.1 * sum(map(abs, weights)))
        terms = [
            (
                _stirred(call([Prompt.plain(segment.text, prompt.style) for prompt in prompts]), request),
                segment.weight / total,
            )
            for segment in first.segments
        ]
        guides.append(guidance.weights(terms))
        cond = terms[0][0]  # the guide's terms take its place in the walk
    else:
        cond = _stirred(call([Prompt.plain(prompt.text, prompt.style) for prompt in prompts]), request)
        guides += _colours(package, request)
    if len(first.no) > 1 and package.card.conditioner.id == "labels":
        raise InvalidInput(
            '"{name}" knows classes, and can leave out one of them; found {found}',
            name=package.card.name, found=", ".join(first.no),
        )  # fmt: skip
    if first.no:
        guides.append(guidance.negative(call([Prompt.plain(", ".join(p.no), p.style) for p in prompts])))
    guides += [guidance.energy(_seen(package, fn), name=name) for name, fn in _rules(request)]
    if request.source is not None:
        if not 0 <= request.strength <= 1:
            raise InvalidInput("strength {found} is outside 0..1", found=request.strength)
        guides += _edits(package, request)
    elif request.mask is not None:
        raise InvalidInput("a mask needs a source picture; give both")
    if request.source is not None and request.mask is not None:
        _check_shapes(request.source, request.mask)
    return cond, guides


def _colours(package: Package, request: Request) -> list[Guide]:
    """What holds a walk to the colours that its prompts name, where any does."""
    call = package.conditioner
    if call.id != "text" or "denoise" not in package.family.guides:
        return []
    vocabulary = getattr(call, "vocabulary", None)
    names = vocabulary.names if vocabulary else ()
    found = [
        None if find_style(prompt.style or "") in MONO_STYLES else coloured(prompt.text, names)
        for prompt in request.prompts
    ]
    if not any(found):
        return []
    wanted = torch.zeros(len(found), len(COLOURS))
    ahead = torch.zeros(len(found), 1)
    for row, told in enumerate(found):
        if told:
            wanted[row, list(told.colours)] = ENOUGH / told.things
            ahead[row] = 0 if told.free else AHEAD

    def lack(x: Tensor) -> Tensor:
        """What the colour that is farthest behind lacks, (b,) in 0..1."""
        raw = package.codec.decode(x)
        if raw.ndim != 4 or raw.shape[1] < 3:
            return torch.zeros(len(x))
        shares, least = rules.shares(raw), wanted.to(raw)  # (b, colours)
        other = shares.where(least == 0, 0).amax(1, keepdim=True)
        need = torch.maximum(least, ahead.to(raw) * other)
        return ((1 - shares / need.clamp(min=1e-6)).clamp(min=0) * (least > 0)).amax(1)

    bare = [told.bare if told else prompt.text for told, prompt in zip(found, request.prompts, strict=True)]
    plain = [Prompt.plain(text, prompt.style) for text, prompt in zip(bare, request.prompts, strict=True)]
    return [guidance.colours(_stirred(call(plain), request), lack)]


def _check_shapes(source: Image.Image, mask: Image.Image) -> None:
    """Raise InvalidInput for a mask of another shape than its source; the size may be another."""
    if abs(source.width * mask.height - source.height * mask.width) > max(source.width, mask.width) + max(
        source.height, mask.height
    ):
        raise InvalidInput("the mask is {mask}, the source {source}; give both in one shape",
                           mask=f"{mask.width}x{mask.height}", source=f"{source.width}x{source.height}")  # fmt: skip


def _stirred(cond: Cond, request: Request) -> Cond:
    """The condition moved by --chaos, each row in a direction that its seed fixes."""
    chaos = request.prompts[0].chaos
    if not chaos or cond.pooled is None:
        return cond
    return guidance.stirred(cond, (request.noise or Noise(request.seeds)).draw("chaos", cond.pooled.shape[1:]), chaos)


# Energies of the picture


def _seen(package: Package, fn: rules.Energy) -> guidance.Energy:
    """An energy of raw pictures as one of what the family makes."""

    def energy(x: Tensor, cond: Cond) -> Tensor:
        return fn(package.codec.decode(x))

    return energy


def _rules(request: Request) -> list[tuple[str, rules.Energy]]:
    first = request.prompts[0]
    out: list[tuple[str, rules.Energy]] = []
    if first.palette:
        out.append(("palette", rules.palette([WHITE, *map(colour, first.palette)])))
    if first.symmetry:
        out.append(("symmetry", rules.symmetry))
    if first.place:
        known = get_args(rules.Place)
        if first.place not in known:
            raise InvalidInput(
                "--place is {found}; it can be {known}", found=first.place, known=", ".join(sorted(known))
            )
        out.append(("place", rules.place(first.place)))  # type: ignore[arg-type]
    if request.judge is not None:
        out.append(("judge", _judged(request.judge, request.prompts)))
    return out


def colour(text: str) -> tuple[float, float, float]:
    """A colour by name, in English or Chinese, or as #rrggbb: (r, g, b) in -1..1. Raises InvalidInput."""
    name = text.strip().casefold()
    found = next((c.rgb for c in COLOURS if name in (*c.en, *c.zh)), None)
    if found is None:
        try:
            found = ImageColor.getrgb(name)[:3]
        except ValueError:
            known = ", ".join(c.en[0] for c in COLOURS)
            raise InvalidInput(
                'no colour "{found}"; write #rrggbb or one of {known}', found=text, known=known
            ) from None
    red, green, blue = (value / 127.5 - 1 for value in found)
    return red, green, blue


def _judged(judge: Package, prompts: Sequence[Prompt]) -> rules.Energy:
    """What a package that can classify or embed pictures says of them, held against the words of the prompts."""
    family = judge.family
    shape = judge.codec.spec.shape
    if judge.codec.id != "image" or not {"classify", "embed"} & family.can:
        raise Unsupported(
            '"{name}" cannot judge pictures; use a package that can classify or embed them', name=judge.card.name
        )
    wished = [" ".join(part.text for part in prompt.segments if part.weight > 0) for prompt in prompts]
    asked = judge.conditioner([Prompt.plain(text, p.style) for text, p in zip(wished, prompts, strict=True)])
    if "embed" in family.can:
        wanted = family.embed_words(asked, len(prompts))
        return rules.alike(lambda raw: family.embed_pictures(rules.fitted(raw, shape)), wanted, STRICTNESS["words"])
    labels = asked.labels
    if labels is None or bool((labels < 0).all()):
        raise InvalidInput('--judge wants a class of "{name}" as the prompt; write one', name=judge.card.name)
    columns = [i for i in range(labels.shape[1]) if bool((labels[:, i] >= 0).all())]

    def each(column: int) -> rules.Energy:
        classify: Callable[[Tensor], Tensor] = lambda raw: family.classify(rules.fitted(raw, shape))[column]  # noqa: E731
        return rules.judged(classify, labels[:, column], STRICTNESS["class"])

    parts = [each(column) for column in columns]
    return lambda raw: torch.stack([part(raw) for part in parts]).sum(dim=0)


# Pictures given


def _edits(package: Package, request: Request) -> list[Guide]:
    assert request.source is not None
    raw = torch.from_numpy(package.codec.pack(request.source))[None]
    if "denoise" not in package.family.guides:
        return [_likeness(package, request, raw)]
    x = package.codec.encode(raw)
    x = x.expand(len(request.seeds), *x.shape[1:])
    if request.mask is None:
        return [guidance.source(x, request.strength)]
    return [guidance.mask(x, editable(_cut(package, request.mask), x))]


def _cut(package: Package, mask: Image.Image) -> Image.Image:
    """A mask of any shape on the pixels that are drawn: cut out, or framed, as the source is."""
    return Image.fromarray(package.codec.pack(mask.convert("L"))[..., 0])


def editable(mask: Image.Image, x: Tensor) -> Tensor:
    """Where a mask lets x (b, c, h, w) change, (b, 1, h, w): 1 wherever it is white in part."""
    height, width = x.shape[2:]
    small = mask.convert("L").resize((width, height), Image.Resampling.BOX)
    edit = torch.from_numpy(np.asarray(small, np.float32) / 255 > OPEN).float()
    return edit[None, None].expand(x.shape[0], 1, height, width)


def kept(package: Package, request: Request, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """The pictures with the source itself wherever the mask is black: a codec gives back no pixel as it was."""
    if request.source is None or request.mask is None:
        return list(pictures)
    packed = package.codec.pack(request.source)
    source = Image.fromarray(packed[..., 0] if packed.shape[2] == 1 else packed)
    mask = _cut(package, request.mask).point(lambda v: 255 * (v > OPEN * 255))
    return [Image.composite(picture.convert(source.mode), source, mask) for picture in pictures]


def _likeness(package: Package, request: Request, raw: Tensor) -> Guide:
    """For a family that maps a latent to a picture: what is known of the result is near the source."""
    if "energy" not in package.family.guides or package.family.spec.kind == "text":
        raise Unsupported('"{name}" cannot start from a picture; use another package', name=package.card.name)
    x = package.codec.decode(package.codec.encode(raw))
    x = x.expand(len(request.seeds), *x.shape[1:])
    if request.mask is not None:
        return guidance.energy(
            _seen(package, rules.known(x, 1 - editable(_cut(package, request.mask), x))), name="mask"
        )
    tolerance = rules.TOLERANCE * (0.1 + 3 * request.strength)
    return guidance.energy(_seen(package, rules.known(x, torch.ones_like(x[:, :1]), tolerance)), name="source")
