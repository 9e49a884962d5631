"""What can be asked of the studio, as data: the request of each kind of job, checked before it is kept. No torch."""

from __future__ import annotations

import hashlib
import secrets
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, field_validator, model_validator

from sojourn import card, config, safefile
from sojourn import prompt as grammar
from sojourn.config import validated
from sojourn.errors import InvalidInput, Unsupported
from sojourn.schema import Card, Prompt, Strict

DEFAULT = "emoji"
"""The package that draws where nobody says which."""
SEEDS = 2**32
PICTURES = 4
"""Pictures of a prompt that does not say how many."""
TEXT_MAX = 20_000
"""Characters of a prompt with its parameters."""
STEPS_MAX = 1000
"""Steps of a walk at most."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
Option = str | int | float | bool | None


class Ask(Strict):
    """A request. None has a switch, so true and false are no numbers in it."""

    @model_validator(mode="before")
    @classmethod
    def _no_switches(cls, asked: Any) -> Any:
        for name, value in asked.items() if isinstance(asked, dict) else ():
            if isinstance(value, bool):
                raise ValueError(f"{name} cannot be true or false")
        return asked


class GenerateAsk(Ask):
    """Pictures from words."""

    prompt: str = Field(max_length=TEXT_MAX)
    """Words and --parameters, as on the command line."""
    options: dict[Annotated[str, StringConstraints(max_length=64)], Option] = Field(default_factory=dict, max_length=32)
    """Options of the family, over the package's."""
    previews: int = Field(0, ge=0, le=32, strict=True)
    """Intermediate samples to show of the walk. 0 = none."""

    @field_validator("options")
    @classmethod
    def _bounded(cls, options: dict[str, Option]) -> dict[str, Option]:
        steps = options.get("steps", 1)
        if type(steps) is not int or not 1 <= steps <= STEPS_MAX:
            raise ValueError(f"steps is a whole number, 1..{STEPS_MAX}")
        return options


class EditAsk(GenerateAsk):
    """Pictures from a picture: img2img, or inpainting where there is a mask."""

    source: Sha256
    """The picture to start from."""
    mask: Sha256 | None = None
    """A picture of the same size, white where the source may change."""
    strength: float = Field(0.6, ge=0, le=1)
    """How far from the source: 0 = the source itself, 1 = only the prompt."""


class WriteAsk(Ask):
    """Text that goes on from a prompt."""

    prompt: str = Field("", max_length=TEXT_MAX)
    """What it goes on from, as it stands: there are no parameters in it."""
    model: str = Field(max_length=100)
    """A package that writes text."""
    seed: int | None = Field(None, ge=0, le=2**53 - 1)
    """None = one is drawn."""
    max_tokens: int | None = Field(None, ge=1, le=100_000)
    """New tokens at most. None = as many as the model holds."""
    temperature: float | None = Field(None, ge=0, le=10)
    """0 = always the likeliest token. None = the package's own, as below."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Choose among the likeliest tokens that hold this share."""
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    """Choose among so many likeliest tokens."""
    repetition: float | None = Field(None, ge=1, le=10)
    """How much less likely a token becomes once it occurred."""
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    """Taken off the logit of a token once it was drawn."""
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    """Taken off the logit of a token for each time it was drawn."""
    best_of: int | None = Field(None, ge=1, le=20)
    """Texts that are drawn; the likeliest per token is told."""
    logprobs: int | None = Field(None, ge=0, le=20)
    """Tell how likely each token was, and so many of the likeliest beside it. None = do not tell."""
    telling: Literal["drawn", "all"] = "drawn"
    """Of which tokens: of those that were drawn, or of the prompt's too."""
    stop: list[Annotated[str, StringConstraints(min_length=1, max_length=200)]] = Field(
        default_factory=list, max_length=4
    )
    """Texts before which it ends."""


class PrepareAsk(Ask):
    """A training set from an uploaded file or a folder of the machine."""

    to: Name
    """Name of the set."""
    upload: Sha256 | None = None
    """A zip or a table that was uploaded."""
    path: str | None = Field(None, max_length=4096)
    """A folder, zip or table on the machine."""
    size: int = Field(64, ge=8, le=1024)
    """Side of the pictures in pixels."""
    channels: Literal[1, 3, 4] | None = None
    """Grey, colour, or with alpha. None = by the pictures."""
    fit: Literal["crop", "pad"] = "crop"
    """How other shapes are fitted."""
    licence: str = Field("unknown", max_length=200)
    """Licence of items that do not say their own."""


class TrainAsk(Ask):
    """A training."""

    recipe: str = Field(max_length=4096)
    """Name of a recipe."""
    overrides: list[Annotated[str, StringConstraints(max_length=1000)]] = Field(default_factory=list, max_length=100)
    """Settings as `key=value`."""
    to: Name
    """Name of the package it makes."""
    start: Name | None = None
    """A package whose weights it starts from. None = from nothing."""
    goes_on: int | None = Field(None, ge=1, strict=True)
    """A stopped training whose run goes on. None = a new one."""


class EvaluateAsk(Ask):
    """Packages measured against a set."""

    packages: list[Name] = Field(min_length=1, max_length=16)
    data: Name
    """The set."""
    judge: Name | None = None
    """A judge's package. None = the one named judge, where there is one."""
    count: int = Field(512, ge=16, le=50_000)
    """Pictures a group."""
    steps: int | None = Field(None, ge=1, le=1000)
    """Steps of a walk. None = the package's."""


ASKS: dict[str, type[Ask]] = {
    "generate": GenerateAsk, "edit": EditAsk, "write": WriteAsk, "prepare": PrepareAsk, "train": TrainAsk,
    "evaluate": EvaluateAsk,
}  # fmt: skip


def settled(kind: str, asked: Any) -> tuple[dict[str, Any], str, int]:
    """A request fit to be kept: checked, its seed drawn; its batch key; the rows of a walk it takes.

    What is wrong with it without looking at weights raises InvalidInput, NotFound or Unsupported here.
    """
    ask = validated(ASKS[kind], asked, f"request to {kind}")
    batch, rows = "", 1
    if isinstance(ask, GenerateAsk):
        prompt = _drawable(ask)
        rows = prompt.n or PICTURES
        ask.prompt = grammar.format(prompt)
        if kind == "generate":
            batch = _batch(prompt, ask)
    elif isinstance(ask, WriteAsk):
        found = card.read(card.find(ask.model, paths=False), verify=False)
        if not writes(found):
            raise Unsupported('"{name}" does not write text; it can {can}', name=ask.model, can=", ".join(found.can))
        ask.seed = secrets.randbelow(SEEDS) if ask.seed is None else ask.seed
    elif isinstance(ask, TrainAsk):
        config.load_recipe(ask.recipe, ask.overrides)
    elif isinstance(ask, PrepareAsk) and (ask.upload is None) == (ask.path is None):
        raise InvalidInput("give an upload or a path to prepare, one of the two")
    return ask.model_dump(mode="json"), batch, rows


def writes(found: Card) -> bool:
    """Whether a package writes text."""
    return "sample" in found.can and found.codec.id == "text"


def _drawable(ask: GenerateAsk) -> Prompt:
    """The prompt with everything said that a second try must not draw anew."""
    prompt = grammar.parse(ask.prompt, allow_empty=True)
    name = prompt.model or DEFAULT
    found = card.read(card.find(name, paths=False), verify=False)
    if "sample" not in found.can or found.codec.id == "text":
        raise Unsupported('"{name}" does not draw pictures; it can {can}', name=name, can=", ".join(found.can))
    if not prompt.segments and not isinstance(ask, EditAsk) and found.conditioner.id not in ("none", "labels"):
        grammar.parse(ask.prompt)  # says where a word is missing
    if prompt.judge is not None:
        card.find(prompt.judge, paths=False)
    seed = secrets.randbelow(SEEDS) if prompt.seed is None else prompt.seed
    return prompt.model_copy(update={"model": name, "seed": seed, "n": prompt.n or PICTURES})


def _batch(prompt: Prompt, ask: GenerateAsk) -> str:
    """Requests with this key differ in words, styles and seeds alone, and can share a walk. Empty = alone."""
    if set(grammar.used(prompt)) - {"n", "seed", "style", "model", "steps", "guidance", "chaos"}:
        return ""
    said = [prompt.model, prompt.steps, prompt.guidance, prompt.chaos, bool(prompt.segments), ask.options]
    return hashlib.sha256(safefile.canonical(said)).hexdigest()
