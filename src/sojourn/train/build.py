"""A stage of a recipe to a package with fresh weights, and the run of a whole recipe."""

from __future__ import annotations

import json
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from sojourn import config as configs
from sojourn import package as packages
from sojourn import registry, safefile
from sojourn.card import home
from sojourn.conditioners import Tokens
from sojourn.config import Recipe, Stage, validated
from sojourn.data.dataset import PackedSet
from sojourn.data.starter import STARTERS
from sojourn.data.starter import build as build_starter
from sojourn.errors import ConfigError, DataError, NotFound
from sojourn.package import Package
from sojourn.schema import Card, Done, Event, Log, Part
from sojourn.train import begun
from sojourn.train.begun import Begun
from sojourn.train.loop import train


def find_set(name: str) -> Path:
    """Folder of a set: a path, or a name in the home or cache folder."""
    for path in (Path(name), home() / "sets" / name, configs.cache() / "data" / name):
        if (path / "set.json").is_file():
            return path
    if name in STARTERS:
        raise NotFound('no data set "{name}"; make it with "sojourn starter {name}"', name=name)
    raise NotFound('no data set "{name}"; make it with "sojourn prepare FOLDER --to {name}"', name=name)


def _have_set(name: str) -> Iterator[Event]:
    """Build the set `name` if it is a starter that is not there yet; NotFound if it is nothing."""
    try:
        find_set(name)
    except NotFound:
        if name not in STARTERS:
            raise
        yield Log.say("building the starter set {name}", name=name)
        for event in build_starter(name, configs.set_folder(name)):
            if not isinstance(event, Done):
                yield event


def build(
    stage: Stage,
    data: PackedSet,
    parts: Mapping[str, Package],
    recipe: Recipe,
    start: Package | None = None,
    before: Begun | None = None,
) -> Package:
    """A package with fresh weights, its codec and conditioner fitted to `data`.

    The codec of `start`, or the one that a run had `before`, is kept, since weights mean something only with the
    vocabulary or scale they were trained on.
    """
    entry = registry.get("family", stage.family)
    _check_kind(stage, data)
    kept = _kept(stage.codec, parts, start) if before is None else before.codec_again(parts)
    codec = kept or _fit("codec", stage.codec, parts, data)
    conditioner = _fit("conditioner", stage.conditioner, parts, data)
    if isinstance(conditioner, Tokens):
        conditioner = conditioner.like(codec)
    values = {**registry.preset(stage.family, stage.preset), **stage.model}
    settings: Any = validated(entry.cls.Config, values, f"stage {stage.name}")  # type: ignore[attr-defined]
    torch.manual_seed(stage.train.seed)
    family = entry.cls(settings, conditioner.extend(codec.spec))
    validated(family.Options, stage.options, f"options of stage {stage.name}")
    card = Card(
        name=recipe.name, family=stage.family, config=settings.model_dump(mode="json"),
        codec=Part(id=codec.id, config=codec.config),
        conditioner=Part(id=conditioner.id, config=conditioner.config),
        options=stage.options, can=tuple(sorted(family.can)),
        parts={name: part.card.identity for name, part in parts.items()},
        title=recipe.title, about=recipe.about, licence=recipe.licence,
        sources=[*data.info.sources, *getattr(conditioner, "sources", ())],
        recipe=stage.model_dump(mode="json"), failures=recipe.failures,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip
    return Package(card, family, codec, conditioner, dict(parts))


def _check_kind(stage: Stage, data: PackedSet) -> None:
    """Raise DataError for texts where a stage learns from pictures, or pictures where it learns from texts."""
    wanted = "text" if hasattr(registry.get("codec", stage.codec.id).cls, "pack_many") else "image"
    if data.info.kind != wanted:
        raise DataError(
            'the set "{name}" is of kind {found}, but {family} learns from kind {wanted}; give another set',
            name=data.info.name, found=data.info.kind, family=stage.family, wanted=wanted,
        )  # fmt: skip


def _kept(part: Part, parts: Mapping[str, Package], start: Package | None) -> Any:
    """The codec of `start` for a stage that asks for one of its kind; None where the stage says something else."""
    if start is None or start.card.codec.id != part.id:
        return None
    config = start.codec.config
    if any(config.get(name) != value for name, value in part.config.items()):
        return None
    return packages.make("codec", Part(id=part.id, config=config), parts, getattr(start.codec, "files", {}))


def _fit(table: registry.Table, part: Part, parts: Mapping[str, Package], data: PackedSet) -> Any:
    """The codec or conditioner of `part`; one that can be fitted takes from `data` what its settings leave open."""
    cls: Any = registry.get(table, part.id).cls
    if hasattr(cls, "fit_to"):
        return cls.fit_to(part.config, parts, data)
    return cls(part.config, parts)


def run_recipe(recipe: Recipe, folder: Path, start: Path | None = None) -> Generator[Event]:
    """Train every stage of `recipe` under `folder`, resuming what is there; the last package is the result.

    start: a package whose weights the last stage begins with, whatever the recipe says.
    Raises ConfigError when `folder` holds a run with other settings.
    """
    for stage in recipe.stage:
        if stage.train.blend and not stage.start and not (start and stage is recipe.stage[-1]):
            raise ConfigError(
                "blend of stage {name} needs weights to start from: start in the recipe, or --from", name=stage.name
            )
    for name in dict.fromkeys(stage.data for stage in recipe.stage):
        yield from _have_set(name)
    _claim(recipe, folder)
    done: dict[str, Path] = {}
    for stage in recipe.stage:
        path = folder / stage.name
        if not (path / "done").is_file():
            yield Log.say(
                "stage {name}: {family}/{preset} on {data}",
                name=stage.name, family=stage.family, preset=stage.preset, data=stage.data,
            )  # fmt: skip
        elif stage is recipe.stage[-1]:
            yield Log.say("{path} is trained already; train anew in another folder (--run)", path=folder)
        data = PackedSet(find_set(stage.data))
        parts = {name: packages.load(done.get(ref) or packages.find(ref)) for name, ref in stage.parts.items()}
        given = start if stage is recipe.stage[-1] else None
        origin = given or (done.get(stage.start) or Path(stage.start) if stage.start else None)
        source = packages.load(packages.find(str(origin))) if origin else None
        before = begun.read(path)
        if before is not None and (difference := before.change(source, parts)):
            raise ConfigError(
                "{path} holds a run with other settings ({difference}); choose another folder with --run",
                path=folder, difference=difference,
            )  # fmt: skip
        package = build(stage, data, parts, recipe, source, before)
        if not package.family.told and (package.family.spec.labels or package.family.spec.pooled_dim):
            yield Log.warn(
                '{family} learns nothing from its conditioner "{id}" without model.conditional=true',
                family=stage.family, id=package.conditioner.id,
            )  # fmt: skip
        if source is not None:
            yield from _start_from(package, source)
        # Closed here and not by chance, so that who stops it hears of a snapshot that could not be written.
        with closing(train(package, data, stage.train, path)) as events:
            for event in events:
                if not isinstance(event, Done):
                    yield event
        done[stage.name] = path / "package"
    yield Done(path=str(done[recipe.stage[-1].name]))


def _start_from(package: Package, source: Package) -> Iterator[Event]:
    package.card.parent = source.card.identity
    problems = packages.load_weights(package.family, source.family.state_dict(), strict=False)
    package.family.grow(source.family)
    theirs = {name.partition(".")[0] for name in source.family.state_dict()}
    new = {problem.name.partition(".")[0] for problem in problems if problem.kind == "missing"} - theirs
    if new:
        yield Log.say('"{name}" has no {nets}: begun anew', name=source.card.name, nets=", ".join(sorted(new)))
    for problem in (problem for problem in problems if problem.name.partition(".")[0] not in new):
        yield Log.warn('not taken from "{name}": {problem}', name=source.card.name, problem=problem)


def _claim(recipe: Recipe, folder: Path) -> None:
    """Write recipe.json, or check that the one there says the same; a run that never came to train claims nothing."""
    path = folder / "recipe.json"
    mine = recipe.dump()
    saved = any(next(folder.glob(pattern), None) for pattern in ("*/state/*", "*/done"))
    if saved and path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        difference = _difference(theirs, mine)
        if difference:
            raise ConfigError(
                "{path} holds a run with other settings ({difference}); choose another folder with --run",
                path=folder, difference=difference,
            )  # fmt: skip
        return
    folder.mkdir(parents=True, exist_ok=True)
    safefile.write_bytes(path, json.dumps(mine, indent=1, ensure_ascii=False).encode())


def _difference(theirs: Any, mine: Any, place: str = "") -> str:
    """The first place where two resolved recipes differ, in words; texts about the recipe and the number of snapshots
    that are kept do not count."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in sorted(theirs.keys() | mine.keys()):
            if key == "keep" or (not place and key in {"title", "about", "licence", "failures"}):
                continue
            found = _difference(theirs.get(key), mine.get(key), f"{place}.{key}".strip("."))
            if found:
                return found
        return ""
    if isinstance(theirs, list) and isinstance(mine, list) and len(theirs) == len(mine):
        return next(
            (d for i, (a, b) in enumerate(zip(theirs, mine, strict=True)) if (d := _difference(a, b, f"{place}.{i}"))),
            "",
        )
    return "" if theirs == mine else f"{place} was {theirs!r}, now {mine!r}"
