"""Zip files of packages, written plainly and read with suspicion."""

from __future__ import annotations

import io
import os
import stat
import zipfile
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from sojourn.errors import NotFound, PackageError
from sojourn.safefile import printable, writing

DIRECTORY_BYTES = 1 << 20
"""A zip's list of entries at most."""
FILES = 1000
"""Files in a zip at most."""


def pack(target: Path, folder: Path, names: Iterable[str]) -> None:
    """Write the files `names` of `folder` to a zip, uncompressed and undated: the same files, the same bytes."""
    part = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with writing(target):
            with zipfile.ZipFile(part, "w", zipfile.ZIP_STORED) as archive:
                for name in sorted(names):
                    entry = zipfile.ZipInfo(name)
                    entry.external_attr = (stat.S_IFREG | 0o644) << 16
                    entry.file_size = (folder / name).stat().st_size
                    with (folder / name).open("rb") as source, archive.open(entry, "w") as sink:
                        while block := source.read(1 << 20):
                            sink.write(block)
            os.replace(part, target)
    finally:
        part.unlink(missing_ok=True)


def unpack(source: Path, folder: Path, accept: Callable[[str], bool], limit: int) -> None:
    """Unpack a zip into `folder`: only names that `accept` takes, at most `limit` bytes and FILES files.

    One folder around everything, card.json in it, is taken off. Raises PackageError, NotFound, OutOfRoom.
    """
    try:
        with _Limited(source) as file, zipfile.ZipFile(file) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            names = [entry.filename for entry in entries]
            head = names[0].split("/")[0] + "/" if names else ""
            around = f"{head}card.json" in names and head.strip("./") and all(name.startswith(head) for name in names)
            strip = len(head) if around else 0
            total = 0
            for entry in entries:
                name = entry.filename[strip:]
                mode = entry.external_attr >> 16
                kind = stat.S_IFMT(mode) if entry.create_system == 3 else 0
                if not accept(name) or kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
                    raise PackageError(
                        '"{zip}" holds "{file}", which no package has; nothing was imported',
                        zip=source.name, file=printable(entry.filename),
                    )  # fmt: skip
                total += entry.file_size
            # weights hardly shrink: what unpacks to a hundred times its size is a bomb
            if total > min(limit, 100 * source.stat().st_size + (16 << 20)) or len(entries) > FILES:
                raise PackageError('"{zip}" unpacks to {size} bytes; nothing was imported', zip=source.name, size=total)
            if len({name.casefold() for name in names}) < len(names):
                raise PackageError('"{zip}" holds a name twice; nothing was imported', zip=source.name)
            for entry in entries:
                _extract(archive, entry, folder / entry.filename[strip:])
    except FileNotFoundError:
        raise NotFound('no file "{zip}"', zip=source) from None
    except (zipfile.BadZipFile, NotImplementedError, EOFError, UnicodeError, ValueError, zlib.error) as error:
        raise PackageError(
            '"{zip}" is not a sound zip: {reason}', zip=source.name, reason=printable(str(error))
        ) from None


def _extract(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path), archive.open(entry) as source, path.open("xb") as target:
        left = entry.file_size
        while block := source.read(min(1 << 20, left + 1)):
            left -= len(block)
            if left < 0:
                raise zipfile.BadZipFile(f"{entry.filename} is longer than it claims")
            target.write(block)


class _Limited(io.FileIO):
    """A file that refuses to be read in large pieces: `zipfile` reads its directory in one, before any count."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is not None and size > DIRECTORY_BYTES:
            raise zipfile.BadZipFile(f"its list of files has {size} bytes")
        return super().read(DIRECTORY_BYTES if size is None or size < 0 else size) or b""
