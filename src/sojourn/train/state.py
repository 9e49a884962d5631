"""Snapshots on disk: safetensors and JSON in a folder that is whole or absent. Knows nothing about what they mean."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from sojourn.errors import OutOfRoom

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def guarded(path: Path, clean: Callable[[], object]) -> Iterator[None]:
    """Run `clean` when the block fails; a full disk becomes OutOfRoom with the path and the free bytes."""
    try:
        yield
    except BaseException as error:
        clean()
        # safetensors reports a full disk as its own error with the system's words in it
        if (isinstance(error, OSError) and error.errno in _NO_ROOM) or _says_full(error):
            free = shutil.disk_usage(path.parent).free
            raise OutOfRoom(
                "no room to write {path} ({free} bytes free); free some space and run the same command again",
                path=path, free=free,
            ) from error  # fmt: skip
        raise


def _says_full(error: BaseException) -> bool:
    return type(error).__name__ == "SafetensorError" and any(
        words in str(error) for words in ("No space left", "File too large", "Disk quota")
    )


def sync(path: Path) -> None:
    """Force a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a small file so that it is old or new after a crash, never half."""
    part = path.with_name(path.name + ".part")
    with guarded(path, lambda: part.unlink(missing_ok=True)):
        with part.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
        sync(path.parent)


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], keep: int) -> Path:
    """Write snapshot `name` under `folder`, then drop all but the newest `keep`. Names sort by age.

    Raises OutOfRoom; the older snapshots are then untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob("*.part"):
        shutil.rmtree(left)
    part, final = folder / f"{name}.part", folder / name
    with guarded(final, lambda: shutil.rmtree(part, ignore_errors=True)):
        part.mkdir()
        save_file({key: value.contiguous() for key, value in tensors.items()}, part / "tensors.safetensors")
        with (part / "tensors.safetensors").open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        with (part / "state.json").open("w", encoding="utf-8") as file:
            json.dump({"sha256": digest, **meta}, file)
            file.flush()
            os.fsync(file.fileno())
        sync(part)
        if final.exists():
            shutil.rmtree(final)
        os.replace(part, final)
        sync(folder)
    for old in snapshots(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def snapshots(folder: Path) -> list[Path]:
    """Whole snapshots, oldest first."""
    return sorted(path for path in folder.glob("*") if path.suffix != ".part" and (path / "state.json").is_file())


def latest(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Tensors and meta of the newest snapshot whose hash fits, None if there is none."""
    for path in reversed(snapshots(folder)):
        try:
            meta = json.loads((path / "state.json").read_text(encoding="utf-8"))
            with (path / "tensors.safetensors").open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
        except (OSError, ValueError):
            continue
        if digest == meta.pop("sha256", None):
            return load_file(path / "tensors.safetensors"), meta
    return None
