"""How a set is prepared: every choice, once, for the command line, the API and the report. Does nothing itself."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sojourn.data import clean, texts
from sojourn.data.archive import Caps
from sojourn.schema import Strict

Side = Annotated[int, Field(ge=8, le=4096)]


class PrepareConfig(Strict):
    """What `prepare` may be told."""

    size: Side | tuple[Side, Side] = 64
    """Pixels of the packed pictures, 8..4096: one number, or (height, width)."""
    channels: Literal[1, 3, 4] | None = None
    """1 grey, 3 colour, 4 colour with alpha. None = what the pictures have: all grey 1, any see-through 4, else 3."""
    fit: clean.Fit = "crop"
    """Pictures of another shape: "crop" cuts out the centre, "pad" adds bars."""
    background: clean.Background = "white"
    """What see-through pictures are laid on when channels is 1 or 3, and the colour of bars."""
    captions: Literal["auto", "sidecar", "table", "folder", "name", "none"] = "auto"
    """Where captions come from. "auto" = the first that a picture has of sidecar, table, class folder, file name."""
    name: str = ""
    """Name of the set. Empty = the folder it is written to."""
    licence: str = "unknown"
    """Licence of the items whose table row names none."""
    source_name: str = ""
    """Where the items come from, in words. Empty = the name of the folder or file."""
    attribution: str = ""
    """Whom to name, for every item whose table row names nobody. Empty = none."""
    url: str = ""
    """Where the items can be had. Empty = not said."""
    about: str = ""
    """A sentence on the set. Empty = none."""
    min_side: int = Field(16, ge=1, le=4096)
    """Pixels of a picture's shorter side at least, 1..4096. 1 = off."""
    near: int = Field(8, ge=0, le=12)
    """Bits of 64 by which the hashes of look-alikes may differ, 0..12: they share a split. 0 = off."""
    drop_twins: bool = True
    """Drop all but the largest of pictures nobody could tell apart. Identical ones are always dropped."""
    valid: float = Field(0.05, ge=0, le=0.5)
    """Share of groups held back for validation, 0..0.5. 0 = none."""
    test: float = Field(0.05, ge=0, le=0.5)
    """Share of groups held back for tests, 0..0.5. 0 = none."""
    documents: texts.Cut = "auto"
    """Texts: a document is a "file", a "paragraph" or a "line". "auto" = a file, or a paragraph of a lone file."""
    min_chars: int = Field(1, ge=1)
    """Texts: characters of a document at least. 1 = off."""
    workers: int | None = Field(None, ge=1, le=64)
    """Processes that decode pictures, 1..64. None = one per core, at most 8."""
    max_pixels: int = Field(64_000_000, ge=1)
    """Width times height of a picture at most; a bigger one is not decoded."""
    max_file_bytes: int = Field(256 << 20, ge=1)
    """Bytes of a file at most."""
    max_file_s: float = Field(2.0, gt=0, le=600)
    """CPU seconds a picture may take to decode; then its process is ended."""
    max_memory_bytes: int = Field(512 << 20, ge=64 << 20)
    """Memory a picture may take to decode."""
    zip_entries: int = Field(100_000, ge=1)
    """Members of a zip at most."""
    zip_bytes: int = Field(20 << 30, ge=1)
    """Unpacked bytes of a zip at most."""
    zip_ratio: int = Field(200, ge=2)
    """Unpacked to packed bytes at most, of a member above 1 MiB and of the whole zip above 100 MiB."""

    @property
    def height_width(self) -> tuple[int, int]:
        """Pixels of the packed pictures."""
        return self.size if isinstance(self.size, tuple) else (self.size, self.size)

    @property
    def limits(self) -> clean.Limits:
        """What one file may ask for."""
        return clean.Limits(self.max_pixels, self.max_file_bytes, self.min_side)

    @property
    def caps(self) -> Caps:
        """What a zip may ask for."""
        return Caps(self.zip_entries, self.zip_bytes, self.zip_ratio)
