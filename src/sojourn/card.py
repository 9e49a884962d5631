"""A package as a folder with a card: finding it, reading it, its identity, its words. No tensors and no torch."""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from sojourn import safefile
from sojourn.errors import InvalidInput, NotFound, PackageError
from sojourn.schema import FORMAT, Card

CARD_BYTES = 1 << 20
"""card.json at most."""
DEPTH = 4
"""How deep parts may nest."""
IDENTITY = ("family", "config", "codec", "conditioner", "options", "parts", "files")
"""What a package is; everything else on a card may be changed later."""
FREE = ("README.md", "sheet.png", "sheet.txt", "LICENSE", "NOTICE")
"""Files beside the identity."""
WEIGHTS = "weights.safetensors"

_PIECE = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"
_OWN = re.compile(rf"weights\.safetensors|(codec|conditioner)/{_PIECE}|adapters/{_PIECE}\.(safetensors|json)")
_PART = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,31}")
_NAME = re.compile(r"\w[\w.-]{0,63}")
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
_FOLDERS = ("codec", "conditioner", "adapters")
_MIGRATIONS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {}
"""Format -> what lifts a card from it to the next one."""


def home() -> Path:
    """The folder of sets, runs and packages: $SOJOURN_HOME, else ~/.local/share/sojourn."""
    chosen = os.environ.get("SOJOURN_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".local" / "share" / "sojourn"


def find(name: str | Path, *, paths: bool = True) -> Path:
    """The folder of a package: a path, a name in home()/models or among those that ship with Sojourn, or a part of
    one, "emoji/text".

    paths False takes names alone: for names that come over the network. NotFound tells what there is.
    """
    if paths:
        with suppress(OSError, ValueError, RuntimeError):  # no such user, a NUL, a name too long: no such package
            path = Path(name).expanduser()
            if path.name:
                safefile.settle(path)
            if (path / "card.json").is_file():
                return path
    known = shelved()
    if str(name) in known:
        return known[str(name)]
    whole, _, part = str(name).partition("/")
    if whole in known and _PART.fullmatch(part) and (known[whole] / "parts" / part / "card.json").is_file():
        return known[whole] / "parts" / part
    shown = safefile.printable(str(name))
    if not known:
        raise NotFound('no package "{name}"; there are none yet, train one', name=shown)
    names = ", ".join(sorted(known))
    close = difflib.get_close_matches(str(name)[:64], known, n=1)
    if close:
        raise NotFound(
            'no package "{name}"; did you mean "{close}"? Known: {known}', name=shown, close=close[0], known=names
        )
    raise NotFound('no package "{name}"; known: {known}', name=shown, known=names)


def list_packages() -> list[tuple[str, Path, Card]]:
    """Name, folder and card of every package that `find` knows by name; one whose card is broken is left out."""
    out = []
    for name, path in sorted(shelved().items()):
        try:
            out.append((name, path, read(path, verify=False)))
        except PackageError:
            continue
    return out


def shelved() -> dict[str, Path]:
    """Name -> folder of the packages in home()/models, and of those that ship with Sojourn."""
    found: dict[str, Path] = {}
    for shelf in (Path(__file__).parent / "starter", home() / "models"):
        if shelf.is_dir():
            for path in shelf.iterdir():
                if _NAME.fullmatch(path.name) and (path / "card.json").is_file():
                    found[path.name] = path
    return found


def identity(card: Card | Mapping[str, Any]) -> str:
    """sha256, in hex, over what a package is: family, config, codec, conditioner, options, parts and files."""
    raw = card.model_dump(mode="json") if isinstance(card, Card) else card
    return hashlib.sha256(safefile.canonical({key: raw.get(key) for key in IDENTITY})).hexdigest()


def migrate(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The content of a card.json of any known format, lifted to FORMAT; its identity stays what it was.

    Raises PackageError for a format that is newer than this Sojourn, or none.
    """
    out = dict(raw)
    found = out.get("format")
    if type(found) is not int or found < 1:
        raise PackageError("card.json has no format number; this is not a package of Sojourn")
    if found > FORMAT:
        raise PackageError(
            "made by a newer Sojourn: format {found}, this one reads up to {known}; upgrade", found=found, known=FORMAT
        )
    for version in range(found, FORMAT):
        out = {**_MIGRATIONS[version](out), "format": version + 1}
    return out


def read(folder: Path, *, verify: bool = True) -> Card:
    """The card of a package folder, in today's format; verify: its content gives the identity it states.

    Raises PackageError: no card, over 1 MiB, unsound JSON, unknown keys, unsafe names, another identity.
    """
    raw = safefile.parse_json(safefile.read_inside(folder, "card.json", CARD_BYTES), "card.json")
    lifted = migrate(raw)
    if verify and identity(raw) != raw.get("identity"):
        raise PackageError(
            'the card of "{package}" does not match its identity: it was changed; get the package again',
            package=folder.name,
        )
    try:
        card = Card.model_validate(lifted)
    except ValidationError as error:
        raise PackageError(
            'the card of "{package}" is wrong: {problem}', package=folder.name, problem=explain(error)
        ) from None
    check_names(card)
    return card


def check_name(name: str) -> None:
    """Raise PackageError for what is no name of a package."""
    if not _NAME.fullmatch(name):
        raise PackageError(
            'package name "{name}" is wrong: 1..64 letters, digits, "_", "." or "-"', name=safefile.printable(name)
        )


def check_names(card: Card) -> None:
    """Raise PackageError for a name that could lead out of the folder, or for pickled weights."""
    check_name(card.name)
    for file in card.files:
        if not _OWN.fullmatch(file) or file.lower().endswith(_PICKLES):
            raise PackageError('the card names the file "{file}", which no package has', file=safefile.printable(file))
    for part in card.parts:
        if not _PART.fullmatch(part):
            raise PackageError('the card names the part "{part}", which is not a name', part=safefile.printable(part))
    if WEIGHTS not in card.files or len(card.files) > 256 or len(card.parts) > 16:
        raise PackageError("the card must name {weights}, at most 256 files and at most 16 parts", weights=WEIGHTS)


def accepts(path: str) -> bool:
    """Whether `path` ("parts/a/card.json") is a file that a package may hold."""
    for _ in range(DEPTH):
        head, _, rest = path.partition("/")
        part, _, inner = rest.partition("/")
        if head == "parts" and _PART.fullmatch(part):
            path = inner
    own = _OWN.fullmatch(path) is not None and not path.lower().endswith(_PICKLES)
    return own or path in FREE or path == "card.json"


def explain(error: ValidationError) -> str:
    """The first problem pydantic found, in one printable line."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    where = ".".join(str(key) for key in first["loc"])
    return safefile.printable(f"{where}: {first['msg']}" if where else first["msg"], 200)


def survey(folder: Path, card: Card) -> tuple[list[PackageError], list[PackageError]]:
    """What is wrong with the list of files in one folder (its parts aside): grave problems, and files too many."""
    grave: list[PackageError] = []
    extra: list[PackageError] = []
    found: set[str] = set()
    for place in ("", *_FOLDERS):
        base = folder / place
        if place and (base.is_symlink() or not base.is_dir()):
            continue
        with os.scandir(base) as entries:
            for count, entry in enumerate(entries):
                name = f"{place}/{entry.name}" if place else entry.name
                shown = safefile.printable(name)
                if count > 1000:
                    grave.append(PackageError('folder "{folder}" holds over 1000 files', folder=base))
                    break
                if entry.is_symlink() or not (entry.is_file() or entry.is_dir()):
                    grave.append(PackageError('"{file}" is a link or a device; packages hold plain files', file=shown))
                elif name.lower().endswith(_PICKLES):
                    grave.append(
                        PackageError(
                            '"{file}" may run code when it is read; packages hold safetensors only', file=shown
                        )
                    )
                elif entry.is_file() and (name in card.files or name in FREE or name == "card.json"):
                    found.add(name)
                elif not (not place and entry.is_dir() and name in (*_FOLDERS, "parts")):
                    extra.append(PackageError('"{file}" does not belong to the package; remove it', file=shown))
    inner = folder / "parts"
    if inner.is_dir() and not inner.is_symlink():
        with os.scandir(inner) as entries:
            extra += [
                PackageError(
                    '"{file}" does not belong to the package; remove it', file=f"parts/{safefile.printable(entry.name)}"
                )
                for count, entry in enumerate(entries)
                if entry.name not in card.parts and count < 100
            ]
    missing = sorted(set(card.files) - found)
    grave += [PackageError('file "{file}" is missing in "{folder}"', file=name, folder=folder) for name in missing]
    return grave, extra


def update_card(folder: str | Path, **changes: Any) -> Card:
    """Change fields of a card that are outside the identity (metrics, sources, about …), and the README with it.

    Raises InvalidInput for a field of the identity or a value that does not fit.
    """
    path = find(folder)
    for field in changes:
        if field in (*IDENTITY, "identity", "format", "can") or field not in Card.model_fields:
            raise InvalidInput('"{field}" of a card cannot be changed; save a new package', field=field)
    card = read(path)
    try:
        card = Card.model_validate({**card.model_dump(), **changes})
        check_names(card)
        fresh = texts(card)
    except ValidationError as error:
        raise InvalidInput("the card does not take that: {problem}", problem=explain(error)) from None
    for name, data in fresh.items():
        safefile.write_bytes(path / name, data)
    return card


def texts(card: Card) -> dict[str, bytes]:
    """card.json and the README made from it, by file name. Raises InvalidInput for what could not be read back."""
    try:
        data = card.model_dump_json(indent=2).encode("utf-8")
        safefile.canonical(card.model_dump(mode="json"))
    except ValueError as error:
        raise InvalidInput("the card does not take that: {problem}", problem=str(error)) from None
    if len(data) > CARD_BYTES:
        raise InvalidInput("the card has {size} bytes, at most {limit} are read back", size=len(data), limit=CARD_BYTES)
    return {"card.json": data, "README.md": readme(card).encode("utf-8")}


def readme(card: Card) -> str:
    """The card in words, as Markdown."""
    lines = (
        [f"# {_cell(card.title or card.name)}", "", _cell(card.about), ""]
        if card.about
        else [f"# {_cell(card.title or card.name)}", ""]
    )
    lines += [
        f"A model of the family `{card.family}`, made with Sojourn. It can: {', '.join(card.can) or 'nothing yet'}.",
        "",
        f"- Data form: codec `{card.codec.id}`; condition: `{card.conditioner.id}`",
        f"- Licence: {_cell(card.licence) or 'not stated'}",
        f"- Trained on {card.seen:,} samples in {card.train_s / 3600:.1f} hours"
        + (f" ({_cell(card.machine)})" if card.machine else ""),
    ]
    if card.created:
        lines.append(f"- Created: {_cell(card.created)}")
    if card.parent:
        lines.append(f"- Trained from the package with identity `{_cell(card.parent)}`")
    lines += [f"- Holds the package `{name}` (identity `{part[:16]}`)" for name, part in card.parts.items()]
    lines += [f"- Identity: `{card.identity}`", "", "## Use", "", "```sh", *_use(card), "```", ""]
    if card.sources:
        lines += ["## Data and licences", "", "| source | items | licence | attribution |", "|---|---|---|---|"]
        for source in card.sources:
            name = (
                f"[{_cell(source.name)}](<{_cell(source.url)}>)"
                if source.url.startswith("https://")
                else _cell(source.name)
            )
            lines.append(f"| {name} | {source.count:,} | {_cell(source.licence)} | {_cell(source.attribution)} |")
        lines.append("")
    if card.metrics:
        lines += ["## Measured", "", "| metric | value | interval | after | note |", "|---|---|---|---|---|"]
        for metric in card.metrics:
            span = "" if metric.low is None or metric.high is None else f"{metric.low:.4g} to {metric.high:.4g}"
            after = "finished" if metric.seen is None else f"{metric.seen:,} samples"
            lines.append(f"| {_cell(metric.name)} | {metric.value:.4g} | {span} | {after} | {_cell(metric.note)} |")
        lines.append("")
    if card.failures:
        lines += ["## Known failures", "", *(f"- {_cell(text)}" for text in card.failures), ""]
    return "\n".join(lines)


def _use(card: Card) -> list[str]:
    if "sample" not in card.can:
        return ["sojourn models show " + card.name]
    if card.codec.id == "text":
        return [f'sojourn write {card.name} "PROMPT"']
    return [f'sojourn imagine "PROMPT" --model {card.name}']


def _cell(text: str) -> str:
    """Foreign text for Markdown: one line, no markup that could open a tag or a table column."""
    return " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")
