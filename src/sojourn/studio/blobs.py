"""Bytes by their sha256: pictures, uploads, previews. Written whole or not at all, never changed. Knows no rows."""

from __future__ import annotations

import hashlib
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from sojourn import safefile
from sojourn.errors import NotFound

_NAME = re.compile(r"[0-9a-f]{64}")


class Blobs:
    """Files in folders named by the first two digits of their hash."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, data: bytes) -> str:
        """Keep bytes; their sha256. What is there already is not written again. Raises OutOfRoom."""
        name = hashlib.sha256(data).hexdigest()
        path = self._path(name)
        if path.is_file():
            os.utime(path)  # young again: whoever sweeps leaves it to the row that is about to name it
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            safefile.write_bytes(path, data)
        return name

    def keep(self, name: str, source: BinaryIO) -> None:
        """The same for a file whose sha256 is known. Raises OutOfRoom."""
        path = self.path(name)
        if path.is_file():
            os.utime(path)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            safefile.write_stream(path, source)

    def get(self, name: str) -> bytes:
        """The bytes of this sha256. Raises NotFound, also for what is no sha256."""
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            raise NotFound('there are no bytes "{name}"', name=name[:64]) from None

    def path(self, name: str) -> Path:
        """Where they lie, whether or not they are there. Raises NotFound for what is no sha256."""
        if not _NAME.fullmatch(name):
            raise NotFound('there are no bytes "{name}"', name=safefile.printable(name, 64))
        return self._path(name)

    def has(self, name: str) -> bool:
        return _NAME.fullmatch(name) is not None and self._path(name).is_file()

    def names(self, older_s: float = 0.0) -> Iterator[str]:
        """All there are that were put last so many seconds ago or longer."""
        limit = time.time() - older_s
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            for path in folder.iterdir():
                if _NAME.fullmatch(path.name) and path.stat().st_mtime <= limit:
                    yield path.name

    def drop(self, name: str, older_s: float = 0.0) -> bool:
        """Delete them, if they were not put again since so many seconds ago; whether they were."""
        path = self.path(name)
        try:
            if path.stat().st_mtime > time.time() - older_s:
                return False
        except FileNotFoundError:
            return False
        path.unlink(missing_ok=True)
        return True

    def _path(self, name: str) -> Path:
        return self.folder / name[:2] / name
