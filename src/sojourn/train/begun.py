"""What a run began with, beside its snapshots: its set, its codec, the packages that it is made of.

A set may grow while a run waits; what was fitted to it then (a vocabulary, the scale of latents) is what the weights
mean, and stays.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field

from sojourn import package as packages
from sojourn import safefile
from sojourn.data.dataset import SetInfo
from sojourn.package import Package
from sojourn.schema import Part, Strict

FILE = "begun.json"


class Begun(Strict):
    """What is written at the first snapshot of a run."""

    set: SetInfo
    codec: Part
    files: dict[str, str] = Field(default_factory=dict)
    """The codec's files, in base64."""
    start: str = ""
    """Identity of the package whose weights it began with. Empty = none."""
    parts: dict[str, str] = Field(default_factory=dict)
    """Identities of its nested packages."""

    def codec_again(self, parts: Mapping[str, Package]) -> Any:
        """The codec as it was fitted then."""
        files = {name: base64.b64decode(data) for name, data in self.files.items()}
        return packages.make("codec", self.codec, parts, files)

    def change(self, source: Package | None, parts: Mapping[str, Package]) -> str:
        """The first package that is another one now, in words; "" = none."""
        now = {"start": source.card.identity if source is not None else ""}
        now |= {f"parts.{name}": part.card.identity for name, part in parts.items()}
        was = {"start": self.start, **{f"parts.{name}": identity for name, identity in self.parts.items()}}
        for name in sorted(was.keys() | now.keys()):
            then, here = was.get(name, ""), now.get(name, "")
            if then != here:
                return f"{name} was {then[:8] or 'nothing'}, now {here[:8] or 'nothing'}"
        return ""


def write(folder: Path, package: Package, info: SetInfo) -> None:
    """Keep what the run in `folder` begins with. Raises OutOfRoom."""
    files = {name: base64.b64encode(data).decode() for name, data in getattr(package.codec, "files", {}).items()}
    begun = Begun(
        set=info, codec=Part(id=package.codec.id, config=package.codec.config), files=files,
        start=package.card.parent, parts=package.card.parts,
    )  # fmt: skip
    safefile.write_bytes(folder / FILE, begun.model_dump_json().encode())


def read(folder: Path) -> Begun | None:
    """What the run in `folder` began with; None for one that has not saved anything."""
    path = folder / FILE
    saved = (folder / "done").is_file() or next((folder / "state").glob("[0-9]*"), None) is not None
    return Begun.model_validate_json(path.read_text(encoding="utf-8")) if saved and path.is_file() else None
