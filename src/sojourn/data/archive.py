"""A zip read in place: nothing is unpacked to disk, and what looks like a trap is refused before it is opened.

Knows nothing about pictures.
"""

from __future__ import annotations

import lzma
import mmap
import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sojourn.data.clean import Refused
from sojourn.errors import DataError

_METHODS = {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
_SMALL = 1 << 20  # a member below this is no bomb, however well it packs
_LOCAL, _CENTRAL, _END = b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06"


@dataclass(frozen=True)
class Caps:
    """What a whole archive may ask for."""

    entries: int = 100_000
    """Members at most."""
    total_bytes: int = 20 << 30
    """Unpacked bytes at most, all members together."""
    ratio: int = 200
    """Unpacked to packed size at most, of a member and of the whole."""


@dataclass(frozen=True)
class Member:
    """A file inside, with a name that is safe to show and to compare."""

    name: str
    size: int
    info: zipfile.ZipInfo


class Archive:
    """An open zip. `members` are the files that may be read, `refused` the (name, reason, detail) of the others."""

    def __init__(self, path: Path, caps: Caps = Caps()) -> None:
        self.path = path
        self.caps = caps
        self.refused: list[tuple[str, str, str]] = []
        self.notes: list[tuple[str, str]] = []
        self._count(path)
        try:
            self._zip = zipfile.ZipFile(path)
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
            raise _broken(path, str(error)) from None
        try:
            self.members = list(self._check())
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._zip.close()

    def read(self, member: Member, most: int) -> bytes:
        """The bytes of a member, at most `most`. Raises Refused. May be called from several threads."""
        if member.size > most:
            raise Refused("file too big", f"{member.size} bytes, at most {most}")
        try:
            with self._zip.open(member.info) as file:
                data = file.read(most + 1)
        except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, RuntimeError, ValueError) as error:
            raise Refused("corrupt", f"in the zip: {error}") from None
        if len(data) > most:
            raise Refused("file too big", f"more than {most} bytes")
        return data

    def _count(self, path: Path) -> None:
        """Refuse too many entries by walking the directory at the end, before `zipfile` builds an object for each."""
        try:
            with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                at, count = _directory(data), 0
                while data[at : at + 4] == _CENTRAL:
                    count += 1
                    if count > self.caps.entries:
                        raise DataError(
                            'zip "{path}" has more than {most} entries; split it or raise the limit',
                            path=path, most=self.caps.entries,
                        )  # fmt: skip
                    at += 46 + sum(struct.unpack_from("<HHH", data, at + 28))
        except (OSError, ValueError, struct.error) as error:
            raise _broken(path, str(error)) from None

    def _check(self) -> Iterator[Member]:
        infos = self._zip.infolist()
        total = sum(info.file_size for info in infos)
        packed = max(1, os.path.getsize(self.path))
        if total > self.caps.total_bytes:
            raise DataError(
                'zip "{path}" would unpack to {total} bytes, at most {most} are read; split it or raise the limit',
                path=self.path, total=total, most=self.caps.total_bytes,
            )  # fmt: skip
        if total > self.caps.ratio * packed and total > 100 * _SMALL:
            raise DataError(
                'zip "{path}" is refused: it would unpack to {times} times its size, more than {most}',
                path=self.path, times=total // packed, most=self.caps.ratio,
            )  # fmt: skip
        names: set[str] = set()
        folded: dict[str, str] = {}
        for info in infos:
            name = _shown(info)
            if info.is_dir():
                continue
            refusal = self._refusal(info, name)
            if refusal is None and name in names:
                refusal = ("same name twice", "the first one counts")
            if refusal is not None:
                self.refused.append((name, *refusal))
                continue
            names.add(name)
            other = folded.setdefault(name.casefold(), name)
            if other != name:
                self.notes.append((name, f"differs from {other} in case only"))
            yield Member(name, info.file_size, info)

    def _refusal(self, info: zipfile.ZipInfo, name: str) -> tuple[str, str] | None:
        raw = info.orig_filename.replace("\\", "/")
        if raw.startswith("/") or ".." in raw.split("/") or raw[1:2] == ":" or "\0" in raw:
            return "unsafe path", "it leads outside the archive"
        kind = stat.S_IFMT(info.external_attr >> 16)
        if kind not in (0, stat.S_IFREG):
            return ("symbolic link", "in a zip") if kind == stat.S_IFLNK else ("not a regular file", "in a zip")
        if info.flag_bits & 1:
            return "encrypted", "unpack it with its password first"
        if info.compress_type not in _METHODS:
            return "format not supported", f"zip compression {info.compress_type}"
        if info.file_size > _SMALL and info.file_size > self.caps.ratio * max(1, info.compress_size):
            return "zip bomb", f"{info.file_size // max(1, info.compress_size)} times its packed size"
        return None


def _directory(data: mmap.mmap) -> int:
    """Where the central directory starts, found as `zipfile` finds it (bytes before the zip shift everything)."""
    end = data.rfind(_END, max(0, len(data) - 65557))
    if end < 0:
        raise ValueError("it has no end record")
    size = struct.unpack_from("<I", data, end + 12)[0]
    stop = end
    if end >= 20 and data[end - 20 : end - 16] == b"PK\x06\x07":
        stop = data.rfind(b"PK\x06\x06", 0, end - 20)
        if stop < 0:
            raise ValueError("its zip64 record is missing")
        size = struct.unpack_from("<Q", data, stop + 40)[0]
    if size > stop:
        raise ValueError("its directory is damaged")
    return stop - int(size)


def _shown(info: zipfile.ZipInfo) -> str:
    """The member's name; bytes without the UTF-8 flag are tried as UTF-8, then as GB18030 (zips made in China)."""
    name = info.filename
    if not info.flag_bits & 0x800:
        for encoding in ("utf-8", "gb18030"):
            with suppress(UnicodeError):  # from Python 3.12 on a Unicode path field is read already: no cp437 then
                return _tidy(name.encode("cp437").decode(encoding))
    return _tidy(name)


def _tidy(name: str) -> str:
    parts = name.replace("\\", "/").split("/")
    return "/".join(part for part in parts if part not in ("", "."))


def _broken(path: Path, reason: str) -> DataError:
    return DataError('zip "{path}" cannot be read: {reason}', path=path, reason=reason)
