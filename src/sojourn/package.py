"""A model as a folder: save, load, verify, share. Resolves what a card refers to and hands it in; never unpickles.

Families, codecs and conditioners do not know each other: this is where they meet. docs/package-format.md has the form.
"""

from __future__ import annotations

import hashlib
import math
import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import psutil
import torch
from pydantic import Field, ValidationError

from sojourn import archive, blank, registry, safefile, weights
from sojourn.card import (
    DEPTH,
    WEIGHTS,
    accepts,
    check_names,
    explain,
    find,
    home,
    identity,
    list_packages,
    migrate,
    read,
    survey,
    texts,
    update_card,
)  # fmt: skip
from sojourn.errors import InvalidInput, NotFound, OutOfRoom, PackageError, SojournError
from sojourn.families.base import Family
from sojourn.safefile import TensorFile
from sojourn.schema import Card, Part, Strict
from sojourn.types import Codec, Conditioner, DataSpec
from sojourn.weights import Adapter, Dtype, Mismatch, load_weights

__all__ = [
    "Adapter", "Mismatch", "Package", "export", "find", "home", "identity", "import_", "list_packages", "load",
    "load_weights", "merge", "migrate", "save", "update_card", "verify",
]  # fmt: skip

FILE_BYTES = 64 << 20
"""A file of a codec or conditioner at most."""
PACKAGE_BYTES = 16 << 30
"""A package taken from a zip at most."""
SAMPLE = 1 << 26
"""Numbers in one sample at most: a picture of 4096 x 4096 x 4."""


class AdapterCard(Strict):
    """What adapters/NAME.json holds."""

    kind: Literal["lora", "delta"]
    strength: float = Field(1.0, ge=-100, le=100, allow_inf_nan=False)


@dataclass(frozen=True)
class Package:
    """A model with all it needs. `adapters` are those not merged into the family's weights yet."""

    card: Card
    family: Family
    codec: Codec
    conditioner: Conditioner
    parts: Mapping[str, Package] = field(default_factory=dict)
    adapters: tuple[Adapter, ...] = ()
    dtype: Dtype = "fp16"
    """How its matrices are stored."""


def save(package: Package, folder: str | Path, *, dtype: Dtype | None = None, sheet: Path | None = None) -> Card:
    """Write a package to `folder`, replacing the package there in one step; returns the card with its identity.

    dtype: how tensors of two or more axes are stored (vectors stay fp32: norms, running statistics). None = as the
    package was. sheet: a .png or .txt of samples. Parts keep the form they have. Raises PackageError for weights
    that are not finite or a net that codec and conditioner would not give, InvalidInput for a folder with other files.
    """
    target = Path(os.path.realpath(folder))
    if sheet is not None and not accepts(f"sheet{sheet.suffix}"):
        raise InvalidInput('"{sheet}" is no sheet; give a .png or a .txt', sheet=sheet)
    if target.exists():
        if not target.is_dir():
            raise InvalidInput('"{folder}" is a file; choose another place for the package', folder=target)
        strange = next((name for name in _files(target) if not accepts(name)), None)
        if strange is not None:
            raise InvalidInput(
                '"{folder}" holds "{file}", which saving a package would delete; choose another folder',
                folder=target, file=strange,
            )  # fmt: skip
    with safefile.new_folder(target) as part:
        card = _write(package, part, dtype or package.dtype)
        if sheet is not None:
            (part / f"sheet{sheet.suffix}").write_bytes(sheet.read_bytes())
    return card


def keep(made: Path, target: Path) -> Card:
    """The package that a training left in `made`, at `target` and of its name, with its sheet."""
    package = load(made, verify=False)
    named = replace(package, card=package.card.model_copy(update={"name": target.name}))
    return save(named, target, sheet=next(made.glob("sheet.*"), None))


def load(
    name: str | Path,
    *,
    device: str | torch.device = "cpu",
    verify: bool = True,
    strengths: Mapping[str, float] | None = None,
    merged: bool = True,
) -> Package:
    """The package at a path or of a name, in fp32 and eval mode, its parts loaded and its adapters merged.

    verify False leaves out hashes and identity, not the checks of shapes and finite weights. strengths: adapter name
    -> factor in place of its own. merged False leaves the adapters apart. Raises NotFound, PackageError, OutOfRoom.
    """
    package = _load(find(name), torch.device(device), verify, 0)
    unknown = set(strengths or {}) - {adapter.name for adapter in package.adapters}
    if unknown:
        raise NotFound('package "{package}" has no adapter "{name}"', package=package.card.name, name=min(unknown))
    return merge(package, strengths) if merged else package


def merge(package: Package, strengths: Mapping[str, float] | None = None) -> Package:
    """Add the package's adapters to its weights, in place, each by its strength or the one in `strengths`."""
    for adapter in package.adapters:
        weights.add(package.family, adapter, (strengths or {}).get(adapter.name, adapter.strength))
    return replace(package, adapters=())


def verify(name: str | Path) -> list[SojournError]:
    """All that is wrong with a package, one line each; [] = it is whole, unchanged and loads."""
    folder = find(name)
    found, extra = _problems(folder, 0)
    if not found:
        try:
            load(folder)
        except SojournError as error:
            found.append(error)
    return list({str(problem): problem for problem in (*found, *extra)}.values())


def export(name: str | Path, target: str | Path) -> Path:
    """Write a package to a zip that `import_` takes. Raises the first problem of a broken package."""
    folder, path = find(name), Path(target)
    for problem in verify(folder):
        raise problem
    archive.pack(path, folder, _files(folder))
    return path


def import_(source: str | Path, *, name: str | None = None, replace: bool = False) -> Path:
    """Unpack a package from a zip into home()/models, under `name` or its own; returns its folder.

    Nothing is left behind when it is broken. Raises PackageError, NotFound, InvalidInput for a name that is taken.
    """
    models = home() / "models"
    with safefile.writing(models):
        models.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".import-", dir=models) as place:
        fresh = Path(place)
        archive.unpack(Path(source), fresh, accepts, PACKAGE_BYTES)
        card = read(fresh)
        check_names(card.model_copy(update={"name": name or card.name}))
        for problem in verify(fresh):
            raise problem
        target = models / (name or card.name)
        if target.exists() and not replace:
            raise InvalidInput(
                'there is a package "{name}" already; choose another name, or replace it', name=target.name
            )
        with safefile.new_folder(target) as part:
            for child in fresh.iterdir():
                os.rename(child, part / child.name)
    return target


# Writing


def _write(package: Package, folder: Path, dtype: Dtype, depth: int = 0) -> Card:
    family, parts = package.family, dict(package.parts)
    if depth > DEPTH:
        raise PackageError("parts are nested more than {limit} deep", limit=DEPTH)
    spec = package.conditioner.extend(package.codec.spec)
    if family.spec != spec:
        raise PackageError(
            'the net of "{package}" was built for {built}, its codec and conditioner give {given}',
            package=package.card.name, built=family.spec, given=spec,
        )  # fmt: skip
    blobs: dict[str, bytes] = {}
    for place, thing in (("codec", package.codec), ("conditioner", package.conditioner)):
        blobs |= {f"{place}/{name}": bytes(data) for name, data in getattr(thing, "files", {}).items()}
    tensors = {WEIGHTS: weights.tensors_of(family)}
    for adapter in package.adapters:
        shapes = {key: tensor.shape for key, tensor in adapter.tensors.items()}
        weights.check_adapter(adapter.name, adapter.kind, shapes, tensors[WEIGHTS])
        tensors[f"adapters/{adapter.name}.safetensors"] = dict(adapter.tensors)
        about = AdapterCard(kind=adapter.kind, strength=adapter.strength)
        blobs[f"adapters/{adapter.name}.json"] = safefile.canonical(about.model_dump(mode="json"))
    card = package.card.model_copy(
        update={
            "config": family.config.model_dump(mode="json"),
            "codec": Part(id=package.codec.id, config=package.codec.config),
            "conditioner": Part(id=package.conditioner.id, config=package.conditioner.config),
            "can": tuple(sorted(family.can)),
            "files": dict.fromkeys((*tensors, *blobs), ""),
            "parts": dict.fromkeys(parts, ""),
            "created": package.card.created or datetime.now(UTC).isoformat(timespec="seconds"),
        }
    )
    check_names(card)
    for name in card.files:
        (folder / name).parent.mkdir(exist_ok=True)
    forms: dict[str, Dtype] = {**dict.fromkeys(tensors, "fp16" if dtype == "int8" else dtype), WEIGHTS: dtype}
    hashes = {
        name: safefile.write_tensors(folder / name, weights.stored(tensors[name], form)) for name, form in forms.items()
    }
    for name, data in blobs.items():
        if len(data) > FILE_BYTES:
            raise PackageError(
                'file "{file}" has {size} bytes, at most {limit} are read', file=name, size=len(data), limit=FILE_BYTES
            )
        (folder / name).write_bytes(data)
        hashes[name] = hashlib.sha256(data).hexdigest()
    inner = {}
    for name, part in parts.items():
        (folder / "parts" / name).mkdir(parents=True)
        inner[name] = _write(part, folder / "parts" / name, part.dtype, depth + 1).identity
    card = Card.model_validate(card.model_copy(update={"files": hashes, "parts": inner}).model_dump(mode="json"))
    card.identity = identity(card)
    _settings(card)
    for name, data in texts(card).items():
        (folder / name).write_bytes(data)
    return card


def _files(folder: Path) -> list[str]:
    return sorted(
        Path(base, name).relative_to(folder).as_posix() for base, _, names in os.walk(folder) for name in names
    )


# Reading


def _load(folder: Path, device: torch.device, verify: bool, depth: int) -> Package:
    if depth > DEPTH:
        raise PackageError("parts are nested more than {limit} deep", limit=DEPTH)
    card = read(folder, verify=verify)
    for problem in survey(folder, card)[0]:
        raise problem
    parts = {}
    for name, expected in card.parts.items():
        part = _load(_part_folder(folder, name), device, verify, depth + 1)
        if verify and part.card.identity != expected:
            raise PackageError('part "{part}" of "{package}" is another package', part=name, package=folder.name)
        parts[name] = merge(part)
    codec: Codec = make("codec", card.codec, parts, _blobs(folder, card, "codec", verify))
    conditioner: Conditioner = make("conditioner", card.conditioner, parts, _blobs(folder, card, "conditioner", verify))
    spec = conditioner.extend(codec.spec)
    cls, config = _settings(card)
    with TensorFile(folder, WEIGHTS) as file:
        found = {name: (entry.shape, entry.torch_name) for name, entry in file.entries.items()}
        family = _fill(cls, config, spec, file, weights.told(found), folder)
        if verify and file.sha256 != card.files[WEIGHTS]:
            raise _changed(WEIGHTS, folder)
    _settings(card, family.Options)  # a net without a part of its kind has fewer
    adapters = tuple(_adapters(folder, card, family, verify))
    family.eval().to(device)
    return Package(card, family, codec, conditioner, parts, adapters, weights.form(found))


def _settings(card: Card, options: type[Any] | None = None) -> tuple[type[Family], Any]:
    """The family's class and its config; checks the options too, by its class or by `options`."""
    cls: Any = registry.get("family", card.family).cls
    try:
        (options or cls.Options)(**card.options)
        return cls, cls.Config(**card.config)
    except ValidationError as error:
        raise PackageError(
            'the card of "{package}" is wrong: {problem}', package=card.name, problem=explain(error)
        ) from None


def make(table: Literal["codec", "conditioner"], part: Part, parts: Mapping[str, Any], files: Any) -> Any:
    """The codec or conditioner of a card, with its files (name -> bytes). Raises SojournError."""
    cls = registry.get(table, part.id).cls
    try:
        return cls(part.config, parts, files=files) if files else cls(part.config, parts)
    except SojournError:
        raise
    except Exception as error:  # a constructor fed with foreign settings may raise anything
        raise PackageError(
            '{table} "{id}" cannot be built from its card: {reason}',
            table=table, id=part.id, reason=safefile.printable(str(error)) or type(error).__name__,
        ) from error  # fmt: skip


def _fill(
    cls: type[Family], config: Any, spec: DataSpec, file: TensorFile, found: weights.Found, folder: Path
) -> Family:
    """The net, built only as far as the weights file's header allows, then filled from it."""
    if math.prod(spec.shape) > SAMPLE or min(spec.shape, default=1) < 1:
        raise PackageError(
            'one sample of "{package}" would have the shape {shape}', package=folder.name, shape=spec.shape
        )
    held = sum(entry.numel for entry in file.entries.values())
    need = 4 * held + max((entry.size_bytes for entry in file.entries.values()), default=0)
    if need > 256 << 20 and need > (free := psutil.virtual_memory().available):
        raise OutOfRoom('package "{package}" needs {need_mb} MB of memory, {free_mb} MB are free',
            package=folder.name, need_mb=need >> 20, free_mb=free >> 20)  # fmt: skip
    family, targets = blank.build(lambda: cls(config, spec), weights.tensors_of, held, len(file.entries))
    if problems := weights.compare(targets, found):
        raise weights.unfit(folder.name, problems)
    with torch.no_grad():
        for name, tensor in weights.whole(file, targets):
            if not weights.finite(tensor):
                raise _infinite(name, folder)
            targets[name].copy_(tensor)
    return family


def _adapters(folder: Path, card: Card, family: Family, verify: bool) -> Iterator[Adapter]:
    targets = weights.tensors_of(family)
    for path in sorted(card.files):
        if not path.startswith("adapters/") or not path.endswith(".safetensors"):
            continue
        name = path.removeprefix("adapters/").removesuffix(".safetensors")
        note = f"adapters/{name}.json"
        if note not in card.files:
            raise PackageError('file "{file}" is missing in "{folder}"', file=note, folder=folder)
        data = _blob(folder, card, note, verify)
        try:
            about = AdapterCard.model_validate(safefile.parse_json(data, note))
        except ValidationError as error:
            raise PackageError('adapter "{name}" is wrong: {problem}', name=name, problem=explain(error)) from None
        with TensorFile(folder, path) as file:
            weights.check_adapter(name, about.kind, {key: entry.shape for key, entry in file.entries.items()}, targets)
            tensors = dict(file)
            for key, tensor in tensors.items():
                if not weights.finite(tensor):
                    raise _infinite(key, folder)
            if verify and file.sha256 != card.files[path]:
                raise _changed(path, folder)
        yield Adapter(name, tensors, about.kind, about.strength)


def _blobs(folder: Path, card: Card, place: str, verify: bool) -> dict[str, bytes]:
    names = [name for name in card.files if name.startswith(f"{place}/")]
    return {name.removeprefix(f"{place}/"): _blob(folder, card, name, verify) for name in names}


def _blob(folder: Path, card: Card, name: str, verify: bool) -> bytes:
    data = safefile.read_inside(folder, name, FILE_BYTES)
    if verify and hashlib.sha256(data).hexdigest() != card.files[name]:
        raise _changed(name, folder)
    return data


def _part_folder(folder: Path, name: str) -> Path:
    path = folder / "parts" / name
    if (folder / "parts").is_symlink() or path.is_symlink():
        raise PackageError('"{file}" is a link or a device; packages hold plain files', file=f"parts/{name}")
    return path


# Problems


def _problems(folder: Path, depth: int) -> tuple[list[SojournError], list[SojournError]]:
    """What can be seen of a folder and its parts without building nets: problems, and files too many."""
    try:
        card = read(folder, verify=False)
    except SojournError as error:
        return [error], []
    grave, extra = survey(folder, card)
    found: list[SojournError] = [*grave]
    surplus: list[SojournError] = [*extra]
    try:
        read(folder)
    except PackageError as error:
        found.append(error)
    for file, expected in card.files.items():
        try:
            if safefile.sha256_inside(folder, file) != expected:
                found.append(_changed(file, folder))
        except PackageError as error:
            found.append(error)
    for name in card.parts if depth < DEPTH else ():
        try:
            inner, more = _problems(_part_folder(folder, name), depth + 1)
        except PackageError as error:
            inner, more = [error], []
        found += inner
        surplus += more
    return found, surplus


def _changed(file: str, folder: Path) -> PackageError:
    return PackageError(
        'file "{file}" of "{package}" does not match its sha256 on the card; get the package again',
        file=file, package=folder.name,
    )  # fmt: skip


def _infinite(name: str, folder: Path) -> PackageError:
    return PackageError(
        'weight "{name}" of "{package}" is not finite', name=safefile.printable(name), package=folder.name
    )
