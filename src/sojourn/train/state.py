"""Snapshots on disk: safetensors and JSON in a folder that is whole or absent. Knows nothing about what they mean."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from sojourn import safefile


def save(folder: Path, name: str, tensors: Mapping[str, Tensor], meta: Mapping[str, Any], keep: int) -> Path:
    """Write snapshot `name` under `folder`, then drop all but it and the `keep` - 1 before it. Names sort by age. A
    later one, that could not be read when the training went on, stays: the disk may have failed for a while only.

    Raises OutOfRoom; the older snapshots are then untouched.
    """
    final = folder / name
    with safefile.new_folder(final) as part:
        digest = safefile.write_tensors(part / "tensors.safetensors", tensors)
        (part / "state.json").write_text(json.dumps({"sha256": digest, **meta}), encoding="utf-8")
    for old in [path for path in snapshots(folder) if path.name <= name][:-keep]:
        shutil.rmtree(old)
    return final


def snapshots(folder: Path) -> list[Path]:
    """Whole snapshots, oldest first."""
    return sorted(path for path in folder.glob("[0-9]*") if (path / "state.json").is_file())


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
