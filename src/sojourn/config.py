"""What to train, as data: recipes of stages, their settings, and `key=value` overrides. Knows no nets and no torch.

A recipe is a TOML file; every setting is declared once, here or in a family's Config, and shown from there in the
help, the card and the docs.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BeforeValidator, Field, ValidationError

from sojourn import registry, safefile
from sojourn.card import home
from sojourn.errors import ConfigError, NotFound, Reason
from sojourn.schema import Part, Strict, reason

T = TypeVar("T", bound=Strict)
SHOWN = 200
"""Characters of a wrong value that a message shows."""
Word = Annotated[str, BeforeValidator(str)]
"""Text that may look like a number on the command line: `-o preset=128`."""


class TrainConfig(Strict):
    """How a stage is trained. The only clock is `seen`: training samples so far."""

    seen: int = Field(100_000, ge=1)
    """Training samples in all."""
    batch_size: int = Field(64, ge=1, le=65536)
    """Samples per update."""
    micro_batch: int | None = Field(None, ge=1)
    """Samples per forward pass. None = as many as memory holds, at most batch_size."""
    seed: int = Field(0, ge=0, le=2**31)
    """Seed of weights, batches and noise."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """muon: matrices by Muon (Jordan 2024), the rest by AdamW."""
    lr: float = Field(1e-3, gt=0, le=10)
    """Learning rate of AdamW."""
    muon_lr: float = Field(0.02, gt=0, le=10)
    """Learning rate of Muon, on an orthogonalised update."""
    betas: tuple[float, float] = (0.9, 0.99)
    """Decay of AdamW's two moments, each in [0, 1)."""
    weight_decay: float = Field(0.0, ge=0, le=10)
    """Decoupled weight decay of matrices. 0 = off."""
    clip: float = Field(1.0, ge=0)
    """Largest gradient norm of an update. 0 = off."""
    warmup: int = Field(1000, ge=0)
    """Samples over which the rate rises linearly. 0 = off."""
    decay: float = Field(0.3, ge=0, le=1)
    """Share of the run, at its end, over which the rate falls linearly to zero. 0 = constant."""
    ema: int = Field(10_000, ge=0)
    """Half-life of the moving average of the weights, in samples. 0 = off."""
    blend: float = Field(0.0, ge=0, lt=1)
    """Share of the weights it started from in those that it gives, so that less is forgotten of what they could.
    0 = off; for a stage that starts from a package. Source: Wortsman et al. 2022 (robust fine-tuning)."""
    snapshot: int = Field(20_000, ge=1)
    """Samples between snapshots (state, held-out metric, sheet)."""
    keep: int = Field(2, ge=1, le=1000)
    """Snapshots kept on disk."""
    sheet: int = Field(32, ge=0, le=256)
    """Samples on the sheet of a snapshot. 0 = none."""
    held_out: int = Field(512, ge=0, le=100_000)
    """Rows of the valid split that the held-out metric uses at most. 0 = no metric."""
    split: Literal["train", "all"] = "train"
    """Rows to train on. all: the held-out ones too, for a judge, which must know what a generator may not."""
    cache: bool = False
    """Encode the whole set once and keep it on disk. For codecs that cost more than reading."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Of the products in forward and backward passes. bf16: weights, moments and sums stay fp32; where the
    processor has it (avx512_bf16, amx_bf16) a transformer trains up to 2.5 times as fast, elsewhere slower."""
    threads: int | None = Field(None, ge=1, le=1024)
    """CPU threads. None = torch's choice. The bytes of a result depend on it."""
    processes: int = Field(1, ge=1, le=64)
    """Processes that share the samples of an update, each with `threads` threads; at most one per micro-batch works.
    For nets so small that two processes of one thread are faster than one of two."""
    compile: bool = False
    """Repeated blocks of the net by torch.compile: a DiT trains 1.4 times as fast after a minute's start. Needs g++
    and Python's headers."""
    hooks: tuple[str, ...] = ("tensorboard",)
    """Where numbers go besides stats.jsonl, where installed: "tensorboard", "wandb"."""


class Stage(Strict):
    """One training of one family on one set."""

    name: str = Field("model", pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")
    data: Word = ""
    """A set: a folder, or the name of one in the home folder or among the starters."""
    family: str
    preset: Word = "tiny"
    """Size from the family's presets."""
    model: dict[str, Any] = Field(default_factory=dict)
    """Settings of the family, over the preset."""
    codec: Part = Part(id="image")
    conditioner: Part = Part(id="none")
    options: dict[str, Any] = Field(default_factory=dict)
    """Default sampling options of the package."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Nested packages: name -> an earlier stage of this recipe, or a package."""
    start: Word = ""
    """Where its weights start from: an earlier stage of this recipe, or a package. Empty = from nothing."""
    dtype: Literal["int8", "fp16", "fp32"] = "fp32"
    """Precision of the package's weights on disk. int8: a byte and, for each row, a scale."""
    train: TrainConfig = Field(default_factory=TrainConfig)


class Recipe(Strict):
    """What `sojourn train NAME` runs: stages in order; the last one's package is the result."""

    name: str = ""
    title: str = ""
    about: str = ""
    """What it makes, from what, in how much time."""
    licence: str = "unknown"
    """Licence of the resulting package."""
    failures: list[str] = Field(default_factory=list)
    """Known failures, for the card."""
    stage: list[Stage] = Field(min_length=1)

    def dump(self) -> dict[str, Any]:
        """The resolved recipe as JSON data."""
        return self.model_dump(mode="json")


def cache() -> Path:
    """Where downloads and runs live: $SOJOURN_CACHE, or ~/.cache/sojourn."""
    return Path(os.environ.get("SOJOURN_CACHE") or Path.home() / ".cache" / "sojourn")


def set_folder(name: str) -> Path:
    """Where a set of this name goes: a path as it is, a bare name into the home folder."""
    return Path(name) if "/" in name or "\\" in name else home() / "sets" / name


def recipes() -> dict[str, Path]:
    """Shipped recipes, name -> file, sorted."""
    folder = Path(str(resources.files("sojourn").joinpath("recipes")))
    return {path.stem: path for path in sorted(folder.glob("*.toml"))}


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe `name` (shipped, or a .toml file) with overrides applied.

    Raises NotFound for an unknown name, ConfigError for a wrong value; both say what would be right.
    """
    shipped = recipes()
    path = Path(name) if name.endswith(".toml") else shipped.get(name)
    if path is None or not path.is_file():
        known = ", ".join(shipped)
        raise NotFound('no recipe "{name}"; known: {known} (or the path of a .toml file)', name=name, known=known)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError('recipe "{path}" is not TOML: {why}', path=path, why=error) from None
    data.setdefault("name", path.stem)
    # The family first: it says which settings there are.
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].strip().split(".")[-1] != "family"):
        _apply(data, override)
    recipe = validated(Recipe, data, f'recipe "{name}"')
    names = [stage.name for stage in recipe.stage]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ConfigError('two stages of recipe "{path}" are called "{name}"; give each its own', path=path, name=twice)
    return recipe


def _apply(data: dict[str, Any], override: str) -> None:
    """Set one `[stage.]key[.key]=value` in the raw recipe."""
    key, equals, value = override.partition("=")
    path = key.strip().split(".")
    if not equals or not all(path):
        raise ConfigError('override "{text}" is not of the form key=value', text=override)
    stages = data.get("stage", [])
    names = [stage.get("name", "model") for stage in stages]
    targets: Sequence[dict[str, Any]]
    settings = {*Stage.model_fields, *TrainConfig.model_fields}
    # A stage without a name is called "model", which is a setting too: `model.width` is one of that.
    setting = path[0] in Stage.model_fields and len(path) > 1 and path[1] not in settings
    if path[0] in names and not setting:
        targets = [stages[names.index(path[0])]]
        path = path[1:]
    elif len(stages) == 1 or path == ["data"]:
        targets = stages
    else:
        raise ConfigError(
            'override "{text}" does not say for which stage; begin it with one of {names}, as in {example}',
            text=override, names=", ".join(names), example=f"{names[-1]}.{key.strip()}={value}",
        )  # fmt: skip
    if path and path[0] in TrainConfig.model_fields and path[0] not in Stage.model_fields:
        path = ["train", *path]
    elif len(path) == 1 and path[0] not in settings:
        known = {name for stage in targets for name in _model_fields(stage)}
        if path[0] not in known:
            raise _no_setting(f'-o "{override}"', path[0], path[0], settings | known)
        path = ["model", *path]
    if not path:
        raise ConfigError('override "{text}" names a stage but no setting', text=override)
    parsed = _value(value.strip())
    for target in targets:
        for part in path[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError('override "{text}": "{part}" has no settings below it', text=override, part=part)
        target[path[-1]] = parsed


def _model_fields(stage: dict[str, Any]) -> Iterable[str]:
    """Names of what can be set of a raw stage's model."""
    if "family" not in stage:
        return []
    config: Any = registry.get("family", str(stage["family"])).cls.Config  # type: ignore[attr-defined]
    return list(config.model_fields)


def _value(text: str) -> Any:
    """A TOML value, or the text itself."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def validated(model: type[T], data: Any, what: str) -> T:
    """`data` as `model`; the first problem becomes one line with place, value and what is allowed."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise explain(error, model, what) from None


def explain(error: ValidationError, model: type[Any], what: str | Reason) -> ConfigError:
    """The first problem of a pydantic error as a one-line ConfigError."""
    first = error.errors()[0]
    place = safefile.printable(".".join(str(part) for part in first["loc"]), SHOWN)
    if first["type"] == "extra_forbidden":
        return _no_setting(what, place, str(first["loc"][-1])[:SHOWN], _fields(model, first["loc"][:-1]))
    return ConfigError(
        "{what}: {place} is {found!r}: {why}",
        what=what,
        place=place,
        found=_short(first.get("input")),
        why=reason(first),
    )


def _short(value: Any) -> Any:
    """The value itself, or the beginning of one too long to be shown."""
    text = value if isinstance(value, str) else repr(value)
    return value if len(text) <= SHOWN else text[:SHOWN] + "…"


def _no_setting(what: str | Reason, place: str, name: str, known: Iterable[str]) -> ConfigError:
    """There is no setting `name` at `place`; the nearest of those known is told."""
    near = difflib.get_close_matches(name, list(known), 1)
    if not near:
        return ConfigError("{what}: there is no setting {place}", what=what, place=place)
    return ConfigError(
        "{what}: there is no setting {place}; did you mean {near}?", what=what, place=place, near=near[0]
    )


def _fields(model: type[Any], loc: Sequence[str | int]) -> list[str]:
    for part in loc:
        if isinstance(part, int):
            continue
        field = getattr(model, "model_fields", {}).get(part)
        inner = getattr(field, "annotation", None)
        args = getattr(inner, "__args__", ())
        model = args[0] if args else inner  # type: ignore[assignment]
    return list(getattr(model, "model_fields", {}))
