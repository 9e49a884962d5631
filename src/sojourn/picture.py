"""What drawing gives: pictures that carry the recipe that draws them again. Knows nothing of models."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from sojourn import prompt as grammar
from sojourn import safefile
from sojourn.data.sheet import grid
from sojourn.errors import InvalidInput, NotFound
from sojourn.schema import Prompt

KEY = "sojourn"
"""Name of the PNG text field that holds the recipe."""
GRID_KEY = KEY + "-grid"
"""Of the one that holds the recipes of several pictures."""


@dataclass(frozen=True)
class Picture:
    """One result: the picture, its seed, and the recipe that draws it again."""

    pil: Image.Image
    seed: int
    recipe: Mapping[str, Any]

    def save(self, path: Path | str) -> Path:
        """Write a PNG with the recipe in it; the file appears whole or not at all."""
        target = Path(path)
        safefile.write_bytes(target, self.png())
        return target

    def png(self) -> bytes:
        """The bytes of that file."""
        info = PngInfo()
        info.add_itxt(KEY, json.dumps(self.recipe, ensure_ascii=False, sort_keys=True))
        info.add_itxt("parameters", str(self.recipe["prompt"]))
        return png(self.pil, info)

    def _repr_png_(self) -> bytes:
        return png(self.pil, None)


@dataclass(frozen=True)
class Pictures(Sequence[Picture]):
    """Results of one prompt; shows itself as a grid in a notebook."""

    items: tuple[Picture, ...]

    def __getitem__(self, index: Any) -> Any:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def save_grid(self, path: Path | str) -> Path:
        """Write the grid as a PNG with all recipes in it."""
        info = PngInfo()
        info.add_itxt(GRID_KEY, json.dumps([item.recipe for item in self.items], ensure_ascii=False))
        safefile.write_bytes(Path(path), png(self.grid, info))
        return Path(path)

    @property
    def grid(self) -> Image.Image:
        """All pictures side by side: 2 x 2 for four."""
        columns = max(1, round(len(self.items) ** 0.5))
        return grid([item.pil for item in self.items], columns + (columns * columns < len(self.items)))

    def _repr_png_(self) -> bytes:
        return png(self.grid, None)


def asked(path: Path) -> Prompt:
    """The prompt that drew the picture in a file. Raises InvalidInput where it has no recipe."""
    return grammar.parse(str(read_recipe(path).get("prompt", "")), allow_empty=True)


def read_recipe(path: Path) -> dict[str, Any]:
    """The recipe in a picture file. Raises NotFound, and InvalidInput for a file that has none of one picture."""
    try:
        with Image.open(path) as picture:
            text, several = picture.info.get(KEY), GRID_KEY in picture.info
    except FileNotFoundError:
        raise NotFound('there is no file "{path}"', path=path) from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        raise InvalidInput('"{path}" is not a picture', path=path) from None
    try:
        found = json.loads(text) if text else None
    except ValueError:
        found = None
    if several:
        raise InvalidInput('"{path}" holds several pictures; name their own files', path=path)
    if not isinstance(found, dict):
        raise InvalidInput('"{path}" holds no recipe of Sojourn; only files it wrote do', path=path)
    return found


def png(picture: Image.Image, info: PngInfo | None) -> bytes:
    """A picture as the bytes of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()
