"""Draws from packages: prompts to rows, rows to walks, walks to media with a recipe each.

Every result carries what it takes to draw it again (`again.replay`).
"""

from __future__ import annotations

import hashlib
import platform
import secrets
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sojourn import package as packages
from sojourn import prompt as grammar
from sojourn.codecs.text import EOS, PAD, TextCodec
from sojourn.config import explain
from sojourn.data.styles import COLOUR_STYLES
from sojourn.errors import InvalidInput, Reason, Unsupported
from sojourn.grammar import PARAMETERS
from sojourn.package import Package
from sojourn.picture import Picture, Pictures, png
from sojourn.schema import Prompt
from sojourn.types import Noise, Step
from sojourn.wishes import RULES, Request, conditions, kept

ROWS_MAX = 64
"""Rows of one walk at most; longer requests are several walks."""
SEEDS = 2**32
SEED_MAX = 2**53 - 1
"""What a recipe can hold."""


@dataclass
class Frame:
    """One moment of a walk, decoded only when looked at."""

    step: int
    steps: int
    state: Step
    model: Model

    @cached_property
    def pictures(self) -> list[Image.Image]:
        return self.model.decode(self.state.x0)


@dataclass(frozen=True)
class Written:
    """What a walk of a language model has come to."""

    text: str
    """Whole characters, those of the prompt first."""
    opening: int
    """Characters of the prompt, as the model reads it."""
    read: int
    """Tokens of the prompt."""
    drawn: int
    """Tokens that were drawn, the end among them."""
    ended: bool
    """Whether the model found an end."""
    row: Tensor
    """All tokens (length,), padded at the right."""


@dataclass(frozen=True)
class Likelihood:
    """A token in a text: what it stands for, how likely it was there, and what else was."""

    token: bytes
    """UTF-8, possibly a part of a character; none for the end."""
    logprob: float
    """In nats."""
    others: list[tuple[bytes, float]]
    """The likeliest tokens there, and how likely."""


class Model:
    """A loaded package, ready to draw."""

    def __init__(self, package: Package) -> None:
        self.package = package
        self.family = package.family
        self.card = package.card
        self.styles: list[str] = dict(package.conditioner.config.get("columns", {})).get("style", [])

    @property
    def classes(self) -> list[str]:
        """Names of the classes that a label-conditioned package knows."""
        column = getattr(self.package.conditioner, "column", None)
        return list(self.package.conditioner.config["columns"][column]) if column else []

    @property
    def reads_words(self) -> bool:
        """Whether a prompt must say something: not where a package was trained without words and classes."""
        id = self.card.conditioner.id
        return bool(self.classes) if id == "labels" else id != "none"

    @property
    def can(self) -> set[str]:
        """Parameters of a prompt that this model can follow."""
        out = {"n", "seed", "model"}
        if self.styles:
            out.add("style")
        fields = self.family.Options.model_fields
        out |= {name for name in ("steps", "guidance") if name in fields}
        if "denoise" in self.family.guides and self.card.conditioner.id != "none":
            out |= {"no", "weights"}
        if self.family.spec.pooled_dim:
            out.add("chaos")
        if "energy" in self.family.guides and self.family.spec.kind != "text":
            out |= RULES
        return out

    def imagine(self, prompt: str | Prompt, *, n: int | None = None, seed: int | None = None, **more: Any) -> Pictures:
        """Draw `n` (default 4) pictures; picture i has seed + i.

        more: a prompt's parameters, source, strength, mask, and options of the family: label_weight=3.
        Raises PromptError, InvalidInput or Unsupported with what was wrong.
        """
        request = self.request(prompt, n=n, seed=seed, **more)
        for last in self.walk(request):  # noqa: B007 - the last frame is the result
            pass
        return self.results(request, last)

    def request(self, prompt: str | Prompt, **more: Any) -> Request:
        """A prompt (text or parsed) and overrides to rows: seeds drawn, styles chosen, what cannot be done refused."""
        extra = {key: more.pop(key) for key in ("source", "strength", "mask") if more.get(key) is not None}
        own = {key: more.pop(key) for key in [*more] if key in self.family.Options.model_fields.keys() - PARAMETERS}
        asked = grammar.parse(prompt, allow_empty=True) if isinstance(prompt, str) else prompt
        asked = grammar.merge(asked, **more)
        grammar.require(asked, self.can, self.card.name)
        self._check_draws()
        seed = secrets.randbelow(SEEDS) if asked.seed is None else asked.seed
        count = asked.n or 4
        _check_seeds(seed, count)
        rows = []
        for i, style in zip(range(count), self._styles(asked.style, seed, count), strict=True):
            rows.append(asked.model_copy(update={"n": 1, "seed": seed + i, "style": style, "model": None}))
        options = own | {name: value for name in ("steps", "guidance") if (value := getattr(asked, name)) is not None}
        judge = packages.load(packages.find(asked.judge)) if asked.judge else None
        return Request(rows, [seed + i for i in range(count)], options, judge=judge, **extra)

    def _check_draws(self) -> None:
        if "sample" not in self.family.can or self.family.spec.kind == "text":
            raise Unsupported('"{name}" does not draw pictures; it can {can}', name=self.card.name, can=self._abilities)

    @property
    def _abilities(self) -> str:
        return ", ".join(self.card.can)

    def _styles(self, style: str | None, seed: int, count: int) -> list[str | None]:
        """A style per row: the one asked for, else different colour styles in an order fixed by the seed."""
        if style is not None or not self.styles:
            return [style] * count
        pool = [name for name in self.styles if name in COLOUR_STYLES] or list(self.styles)
        order = np.random.default_rng([seed, 5]).permutation(len(pool))
        return [pool[order[i % len(pool)]] for i in range(count)]

    def unknown(self, request: Request) -> list[str]:
        """Names of what this model knows nearest to a prompt of which it learned nothing; [] for any other prompt."""
        ask = getattr(self.package.conditioner, "unknown", None)
        return ask(request.prompts[0].text) if ask and request.prompts[0].text else []

    def read(self, request: Request) -> str:
        """The words of a request as they are drawn, with what training never saw as the nearest thing that it did."""
        ask = getattr(self.package.conditioner, "read", None)
        text = request.prompts[0].text
        return ask(text) if ask else text

    def cut(self, request: Request) -> int:
        """How many words (tokens) of a prompt are read, where it has more; 0 where all are."""
        ask = getattr(self.package.conditioner, "cut", None)
        return ask(request.prompts[0].text) if ask else 0

    @torch.no_grad()
    def walk(self, request: Request) -> Iterator[Frame]:
        """The frames of a request's walk; the last is the result. At most ROWS_MAX rows."""
        rows = len(request.prompts)
        if not 1 <= rows <= ROWS_MAX:
            raise InvalidInput("a walk has 1..{most} rows, found {found}; ask in parts", most=ROWS_MAX, found=rows)
        options = self.options(request)
        cond, guides = conditions(self.package, request)
        steps = int(getattr(options, "steps", 1))
        for i, state in enumerate(self.family.sample(cond, request.noise or Noise(request.seeds), options, guides)):
            yield Frame(i + 1, max(steps, i + 1), state, self)

    def options(self, request: Request) -> Any:
        """The family's options: its own, then the package's, then the request's."""
        kind = self.family.Options
        try:
            return kind(**{**self.card.options, **request.options})
        except ValueError as error:
            raise explain(error, kind, Reason('options of "{name}"', name=self.card.name)) from None  # type: ignore[arg-type]

    def decode(self, x: Tensor) -> list[Image.Image]:
        """Model space to pictures."""
        with torch.no_grad():
            return list(self.package.codec.unpack(self.package.codec.decode(x)))

    def results(self, request: Request, frame: Frame) -> Pictures:
        """The pictures of a finished walk, each with its recipe."""
        rows = len(request.seeds)
        inputs = {
            name: hashlib.sha256(png(picture, None)).hexdigest()
            for name, picture in (("source", request.source), ("mask", request.mask))
            if picture is not None
        }
        options = self.options(request).model_dump(mode="json")
        out = []
        pictures = kept(self.package, request, frame.pictures)
        for row, (picture, prompt) in enumerate(zip(pictures, request.prompts, strict=True)):
            recipe = {
                "package": self.card.identity, "name": self.card.name, "prompt": grammar.format(prompt),
                "options": options, "strength": request.strength if "source" in inputs else None, "inputs": inputs,
                "judge": request.judge.card.identity if request.judge else None,
                "seed": request.seeds[row], "backend": "eager", "build": build(), "threads": torch.get_num_threads(),
                "rows": rows, "row": row,
            }  # fmt: skip
            out.append(Picture(picture, request.seeds[row], recipe))
        return Pictures(tuple(out))

    def sample(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        batch: int = ROWS_MAX,
        start: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[Picture]:
        """One picture per prompt from number `start`, in walks of `batch` rows; picture i has seed + i.

        Parameters of the prompts are not read. The last walk is filled up with its own first row, so that every
        picture is drawn in the same geometry. `start` is a multiple of `batch`.
        """
        self._check_draws()
        _check_seeds(seed, len(prompts))
        for first in range(start, len(prompts), batch):
            chunk = list(prompts[first : first + batch])
            seeds = [seed + first + i for i in range(len(chunk))]
            real = len(chunk)
            if first:
                chunk += chunk[:1] * (batch - real)
                seeds += seeds[:1] * (batch - real)
            rows = [p.model_copy(update={"n": 1, "seed": s}) for p, s in zip(chunk, seeds, strict=True)]
            request = Request(rows, seeds, dict(options or {}))
            for last in self.walk(request):  # noqa: B007
                pass
            yield from self.results(request, last).items[:real]

    def write(self, prompt: str, *, seed: int | None = None, **options: Any) -> Iterator[str]:
        """Continue `prompt` as text, piece by piece, whole characters only; the prompt comes first."""
        told = 0
        for written in self.writes(prompt, seed=seed, **options):
            if len(written.text) > told:
                yield written.text[told:]
                told = len(written.text)

    @torch.no_grad()
    def writes(self, prompt: str, *, seed: int | None = None, **options: Any) -> Iterator[Written]:
        """Continue `prompt` as text: what there is after each token, the last time with how it ended."""
        if self.family.spec.kind != "text" or "sample" not in self.family.can:
            raise Unsupported('"{name}" does not write text; it can {can}', name=self.card.name, can=self._abilities)
        request = Request([Prompt.plain(prompt)], [secrets.randbelow(SEEDS) if seed is None else seed], options)
        settings = self.options(request)
        text = ""
        cond = self.package.conditioner(request.prompts)
        given = torch.tensor([], dtype=torch.long)
        if cond.tokens is not None and cond.token_mask is not None:
            given = cond.tokens[0][cond.token_mask[0]]
        opening = len(str(self.package.codec.unpack(given[None])[0]))
        states = self.family.sample(cond, Noise(request.seeds), settings)
        if (settings.best_of or 1) > 1:  # which one it will be is known at the end
            states = iter(deque(states, maxlen=1))
        for state in states:
            row = state.x0[0]
            now = str(self.package.codec.unpack(state.x0)[0]).rstrip("\ufffd")
            text = now if now.startswith(text) else text
            drawn = int((row != PAD).sum()) - 1 - len(given)  # without the beginning
            yield Written(text, opening, len(given), drawn, bool((row == EOS).any()), row)

    def likelihoods(self, prompt: str, written: Written, top: int = 0) -> list[Likelihood]:
        """How likely each token of a text was after those before it, those of the prompt first; `top` likeliest beside.

        By the model's own distribution, at temperature 1: how tokens were chosen from it does not matter.
        """
        codec = self.package.codec
        assert isinstance(codec, TextCodec)
        row = written.row[: 1 + written.read + written.drawn]  # (n,), the beginning among them
        out = []
        with torch.no_grad():
            told = self.family.logprobs(row[None, :-1], self.package.conditioner([Prompt.plain(prompt)]))[0]
        for token, logs in zip(row[1:].tolist(), told, strict=True):
            best = logs.topk(min(top, len(logs)))
            others = [(codec.bytes_of(i), v) for i, v in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
            out.append(Likelihood(codec.bytes_of(token), float(logs[token]), others))
        return out


def load(name: str | Path) -> Model:
    """The package `name` (a folder, or a name among yours and the shipped ones), ready to draw."""
    return Model(packages.load(packages.find(name)))


def build() -> str:
    """What the bits of a result depend on besides the package: torch's build and the processor's abilities."""
    return f"torch {torch.__version__} {torch.backends.cpu.get_cpu_capability()} {platform.machine()}"


def _check_seeds(first: int, count: int) -> None:
    """Raise InvalidInput where the last of `count` seeds is above what a recipe can hold."""
    if first + count - 1 > SEED_MAX:
        raise InvalidInput(
            "seed {seed} and {count} pictures end above {most}; choose a smaller seed",
            seed=first, count=count, most=SEED_MAX,
        )  # fmt: skip
