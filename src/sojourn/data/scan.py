"""What is there to prepare: the pictures or texts of a folder, a zip or a table, with what their surroundings say.

Opens no picture. Knows nothing about sets.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sojourn.data import texts
from sojourn.data.archive import Archive, Caps
from sojourn.data.clean import Refused
from sojourn.errors import DataError, NotFound

# fmt: off
PICTURES = frozenset((
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".gif", ".webp", ".bmp", ".dib", ".tif", ".tiff",
    ".avif", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".ico", ".tga", ".qoi",
))
_UNREADABLE = frozenset((
    ".svg", ".svgz", ".heic", ".heif", ".psd", ".ai", ".eps", ".pdf", ".raw", ".cr2", ".cr3", ".nef", ".arw", ".dng",
    ".jxl", ".exr",
))
_ARCHIVES = frozenset((".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".zst"))
_CAMERA = frozenset((
    "img", "dsc", "dscn", "dscf", "pxl", "mvimg", "image", "photo", "picture", "screenshot", "frame", "scan",
))
# fmt: on
_TABLES = ("metadata.jsonl", "metadata.csv")
_WRITINGS = (".txt", ".jsonl", ".csv")
_OUTNUMBERED = 3
"""Texts a picture beyond which a folder is one of texts."""
_MAGIC = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a", b"RIFF", b"II*\x00", b"MM\x00*")
_SPLIT_FOLDERS: dict[str, Literal["train", "valid", "test"]] = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("valid", "validation", "val", "dev"), "valid"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_TABLE_BYTES = 1 << 30
_SIDECAR_BYTES = 64 << 10
_UNNAMED_BYTES = 16 << 20  # a file without a suffix in a zip, looked into whole
_CAPTION = 1000  # characters


@dataclass(frozen=True)
class Entry:
    """A file in a folder or zip."""

    name: str
    """Relative, with slashes; safe to write down."""
    size: int
    path: str = ""
    """Where it is on disk. Empty = inside a zip."""
    load: Callable[[int], bytes] | None = None
    """Its bytes, at most so many. None = open `path`."""

    def read(self, most: int) -> bytes:
        """Raises Refused."""
        if self.load is not None:
            return self.load(most)
        if self.size > most:
            raise Refused("file too big", f"{self.size} bytes, at most {most}")
        try:
            with open(self.path, "rb") as file:
                return file.read(most)
        except OSError as error:
            raise Refused("cannot be read", error.strerror or "") from None


@dataclass
class Found:
    """A picture or text file and what is known of it before it is opened."""

    entry: Entry
    row: dict[str, Any] = field(default_factory=dict)
    """The table's columns, texts gathered under "text" as a list."""
    sidecar: list[str] = field(default_factory=list)
    folder: str | None = None
    """Name of the class folder. None = not in one."""
    split: Literal["train", "valid", "test"] | None = None


@dataclass
class Scan:
    """Everything found, in the order of names."""

    kind: Literal["image", "text"]
    items: list[Found]
    dropped: list[tuple[str, str, str]] = field(default_factory=list)
    """(name, reason, detail)."""
    notes: list[tuple[str, str]] = field(default_factory=list)
    """(name, note)."""
    other: int = 0
    """Files that are neither, left alone."""


def scan(source: Path, skip: Sequence[Path] = (), caps: Caps | None = None) -> tuple[Scan, Archive | None]:
    """What `source` holds; of a zip also the open archive, which the caller closes. `skip`: folders not to look into.

    Raises NotFound and DataError.
    """
    if not source.exists():
        raise NotFound('nothing to prepare at "{path}"; give a folder, a zip or a table', path=source)
    out = Scan("image", [])
    if source.is_dir():
        return _sort(_folder(source, skip, out), out), None
    suffix = source.suffix.lower()
    if suffix == ".zip":
        archive = Archive(source, caps or Caps())
        out.dropped += archive.refused
        out.notes += archive.notes
        entries = [Entry(m.name, m.size, load=lambda most, m=m: archive.read(m, most)) for m in archive.members]  # type: ignore[misc]
        try:
            return _sort(entries, out), archive
        except BaseException:
            archive.close()
            raise
    if suffix in (".jsonl", ".csv"):
        table = Scan("image", [])
        rows = _table(Entry(source.name, source.stat().st_size, str(source)), table)
        if any("file_name" in row for row in rows):
            out.dropped += table.dropped
            elsewhere = Scan("image", [])
            return _pictures(
                list(_folder(source.parent, skip, elsewhere)), [(source.name, rows)], set(), out, True
            ), None
    if suffix in _WRITINGS:
        return _sort([Entry(source.name, source.stat().st_size, str(source))], out), None
    raise DataError('"{path}" is no folder, zip or table; give the folder that holds your files', path=source)


def _folder(root: Path, skip: Sequence[Path], out: Scan) -> Iterator[Entry]:
    """Regular files under root; links only where they lead to a file inside."""
    inside = root.resolve()
    left = [(root, "")]
    closed = {path.resolve() for path in skip}
    while left:
        folder, prefix = left.pop()
        try:
            with os.scandir(folder) as listing:
                files = sorted(listing, key=lambda e: e.name)
        except OSError as error:
            out.dropped.append((prefix or ".", "cannot be read", error.strerror or ""))
            continue
        if prefix and {"set.json", "data.bin"} <= {e.name for e in files}:
            out.notes.append((prefix, "a prepared set, not looked into"))
            continue
        for file in files:
            name = f"{prefix}/{shown(file.name)}" if prefix else shown(file.name)
            if file.name.startswith(".") or file.name == "__MACOSX":
                out.other += 1
                continue
            try:
                link, status = file.is_symlink(), file.stat()
            except OSError as error:
                out.dropped.append(
                    (name, "broken link" if file.is_symlink() else "cannot be read", error.strerror or "")
                )
                continue
            if stat.S_ISDIR(status.st_mode):
                if link:
                    out.dropped.append((name, "link to a folder", "only links to files inside are followed"))
                elif Path(file.path).resolve() not in closed:
                    left.append((Path(file.path), name))
                    if _suffix(name) in PICTURES:
                        out.dropped.append((name, "not a regular file", "a folder with a picture's name"))
            elif link and not Path(file.path).resolve().is_relative_to(inside):
                out.dropped.append((name, "link that leads outside", "only links to files inside are followed"))
            elif not stat.S_ISREG(status.st_mode):
                out.dropped.append((name, "not a regular file", "a pipe, socket or device"))
            else:
                yield Entry(name, status.st_size, file.path)


def _sort(found: Iterator[Entry] | list[Entry], out: Scan) -> Scan:
    """Pictures with their tables, or texts: what there is more of, where texts are no captions of pictures."""
    entries = [e for e in found if not _hidden(e.name)]
    pictures = {e.name for e in entries if _looks_like_picture(e)}
    tables = [e for e in entries if e.name.rsplit("/", 1)[-1].lower() in _TABLES]
    names = {e.name for e in entries}
    writings = {e.name for e in entries if _suffix(e.name) in _WRITINGS and not _captions_of(e.name, names)}
    if pictures and len(writings - {t.name for t in tables}) <= _OUTNUMBERED * len(pictures):
        return _pictures(entries, [(t.name, _table(t, out)) for t in tables], pictures, out)
    out.kind = "text"
    for entry in sorted(entries, key=lambda e: e.name):
        if _suffix(entry.name) in _WRITINGS:
            out.items.append(Found(entry))
        elif entry.name in pictures:
            out.dropped.append((entry.name, "a picture among texts", "keep them in folders of their own"))
        else:
            _leave(entry, out)
    _splits(out.items)
    return out


def _captions_of(name: str, names: set[str]) -> bool:
    """Whether a text file stands beside a picture of its name."""
    return _suffix(name) == ".txt" and any(f"{name[:-4]}{end}" in names for end in PICTURES)


def _pictures(
    entries: list[Entry],
    tables: list[tuple[str, list[dict[str, Any]]]],
    pictures: set[str],
    out: Scan,
    listed: bool = False,
) -> Scan:
    """Items for the files named in `pictures` and in the tables; `listed`: the rest is nobody's business."""
    rows: dict[str, dict[str, Any]] = {}
    names = {entry.name for entry in entries}
    for table, content in tables:
        _place(table, content, names, rows, out)
    sidecars = {e.name[:-4]: e for e in entries if _suffix(e.name) == ".txt"}
    for entry in sorted(entries, key=lambda e: e.name):
        if not (entry.name in rows or entry.name in pictures):
            if not listed and not _captions_of(entry.name, names):
                _leave(entry, out)
                if _suffix(entry.name) == ".txt":
                    out.notes.append((entry.name, "a text beside pictures, of no picture's name: left alone"))
            continue
        item = Found(entry, rows.get(entry.name, {}))
        sidecar = sidecars.get(entry.name.rsplit(".", 1)[0])
        if sidecar is not None:
            try:
                item.sidecar = captions(texts.decode(sidecar.read(_SIDECAR_BYTES))[0].split("\n"))
            except Refused as refused:
                out.notes.append((sidecar.name, f"caption left out: {refused}"))
        out.items.append(item)
    _classes(out.items)
    return out


def _leave(entry: Entry, out: Scan) -> None:
    suffix = _suffix(entry.name)
    if suffix in _UNREADABLE:
        out.dropped.append((entry.name, "format not supported", f"{suffix}; save it as PNG or JPEG first"))
    elif suffix in _ARCHIVES:
        out.dropped.append((entry.name, "archive inside", "unpack it first"))
    else:
        out.other += 1


def _looks_like_picture(entry: Entry) -> bool:
    suffix = _suffix(entry.name)
    if suffix:
        return suffix in PICTURES
    try:
        if entry.load is not None:
            return entry.load(_UNNAMED_BYTES).startswith(_MAGIC)
        with open(entry.path, "rb") as file:
            return file.read(16).startswith(_MAGIC)
    except (Refused, OSError):
        return False


def _table(table: Entry, out: Scan) -> list[dict[str, Any]]:
    """The rows of a table that can be read; the others are in the report."""
    try:
        text = texts.decode(table.read(_TABLE_BYTES))[0]
    except Refused as refused:
        out.dropped.append((table.name, refused.reason, refused.detail))
        return []
    return list(rows_of(table.name, text, lambda *drop: out.dropped.append(drop)))


def rows_of(name: str, text: str, drop: Callable[[str, str, str], None]) -> Iterator[dict[str, Any]]:
    """Rows of a .jsonl or .csv; `drop` takes (name, reason, detail) of those that cannot be read."""
    if name.lower().endswith(".csv"):
        csv.field_size_limit(_TABLE_BYTES)
        reader = csv.DictReader(io.StringIO(text))
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                drop(f"{name}:{reader.line_num}", "table row not readable", str(error))
                continue
            yield {key: value for key, value in row.items() if key and value}
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            drop(f"{name}:{number}", "table row not readable", str(error)[:100])
            continue
        if isinstance(row, dict):
            yield row
        else:
            drop(f"{name}:{number}", "table row not readable", "not an object")


def _place(
    table: str, content: list[dict[str, Any]], names: set[str], rows: dict[str, dict[str, Any]], out: Scan
) -> None:
    """Put the rows of a table under the files they name, relative to the table's folder."""
    base = table.rsplit("/", 1)[0] + "/" if "/" in table else ""
    for number, row in enumerate(content, 1):
        wanted = row.get("file_name")
        if not isinstance(wanted, str) or not wanted:
            out.dropped.append((f"{table}:{number}", "table row without file_name", ""))
            continue
        parts = [part for part in wanted.replace("\\", "/").split("/") if part != "."]
        if wanted.startswith("/") or ".." in parts or wanted[1:2] == ":":
            out.dropped.append((shown(wanted), "unsafe path", f"{table} names a file outside its folder"))
            continue
        name = shown(base + "/".join(parts))
        if name not in names:
            out.dropped.append((name, "missing file", f"{table} names it"))
            continue
        text = row.get("text")
        given = captions(text if isinstance(text, list) else [text])
        merged = rows.setdefault(name, {**row, "text": []})
        merged["text"] += [caption for caption in given if caption not in merged["text"]]


def _classes(items: list[Found]) -> None:
    """Set split and class folder of every item from its path."""
    parts = _splits(items)
    if len({p[-2] for p in parts if len(p) > 1}) > 1:
        for item, p in zip(items, parts, strict=True):
            item.folder = p[-2] if len(p) > 1 else None


def _splits(items: list[Found]) -> list[list[str]]:
    """Set the split of every item that lies in a folder of one; returns what is left of their paths."""
    parts = [item.entry.name.split("/") for item in items]
    while parts and all(len(p) > 1 and p[0] == parts[0][0] for p in parts):
        parts = [p[1:] for p in parts]
    tops = {p[0].lower() for p in parts if len(p) > 1}
    if len(tops) > 1 and tops <= set(_SPLIT_FOLDERS):
        for i, p in enumerate(parts):
            if len(p) > 1:
                items[i].split, parts[i] = _SPLIT_FOLDERS[p[0].lower()], p[1:]
    return parts


def captions(values: Sequence[Any]) -> list[str]:
    """The texts among `values`, in one line each, without repeats and control characters, at most 1000 characters."""
    out: list[str] = []
    for value in values:
        if isinstance(value, str | int | float):
            line = " ".join(shown(str(value)).split())[:_CAPTION].rstrip()
            if line and line not in out:
                out.append(line)
    return out


def caption_of_name(name: str) -> str:
    """What a file or folder name says: "red_heart-02.png" is "red heart"; "" for counters, dates and hashes."""
    words = re.sub(r"[\s_\-+.,()\[\]]+", " ", name).split()
    kept = [w for w in words if not re.fullmatch(r"\d+(x\d+)?(px)?|(?=\w*\d)[0-9a-fA-F]{8,}", w)]
    if re.search(r"\d", name) and all(re.sub(r"\d+$", "", w.lower()) in _CAMERA for w in kept):
        return ""
    text = " ".join(word for i, word in enumerate(kept) if kept[i - 1 : i] != [word])
    return text if any(c.isalpha() for c in text) else ""


def shown(name: str) -> str:
    """`name` fit for a report: no lone surrogates, no control characters."""
    if not name.isascii():  # half a pair, as of an emoji that was cut in two, stands for no byte
        name = re.sub("[\ud800-\udc7f\udd00-\udfff]", "\ufffd", name)
    clean = name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    return "".join(" " if unicodedata.category(c) == "Cc" else c for c in clean) if not clean.isprintable() else clean


def _hidden(name: str) -> bool:
    return any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))


def _suffix(name: str) -> str:
    last = name.rsplit("/", 1)[-1]
    dot = last.rfind(".")
    return last[dot:].lower() if dot > 0 else ""
