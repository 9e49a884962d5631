"""Draws a picture again from the recipe in its file, and compares the pixels. Anyone may have written the recipe."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sojourn import package as packages
from sojourn import prompt as grammar
from sojourn.data.clean import load_picture, white_where_clear
from sojourn.engine import ROWS_MAX, Model, load
from sojourn.errors import InvalidInput, NotFound
from sojourn.package import Package
from sojourn.picture import Picture, png, read_recipe
from sojourn.wishes import Request

THREADS_MAX = 256
"""A recipe that names more was not written by a machine that draws."""


def replay(
    path: Path, *, model: Model | None = None, inputs: Mapping[str, Image.Image] | None = None
) -> tuple[Picture, int]:
    """Draw the picture in a file again from its recipe: the new one, and the largest pixel difference (0 = equal).

    inputs: "source" and "mask", for those that were drawn from one; others are not looked at. Raises InvalidInput when
    the file has no recipe or cannot be drawn again from it, NotFound when its package is not here.
    """
    recipe = read_recipe(path)
    old = np.asarray(load_picture(path).convert("RGBA"), np.int16)
    if model is None:
        model = Model(packages.load(_by_identity(str(recipe.get("package")), str(recipe.get("name")))))
    try:
        row, rows = int(recipe["row"]), int(recipe["rows"])
        threads = int(recipe.get("threads", torch.get_num_threads()))
        if not (0 <= row < rows <= ROWS_MAX and 1 <= threads <= THREADS_MAX):
            raise ValueError(f"row {row} of {rows}, {threads} threads")
        request = _request(recipe, rows)
    except InvalidInput:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInput('the recipe in "{path}" is damaged ({why})', path=path, why=error) from None
    if recipe.get("judge"):
        request.judge = _judge(str(recipe["judge"]), str(request.prompts[0].judge))
    for name, digest in dict(recipe.get("inputs") or {}).items():
        given = next((same for same in _alike(name, inputs) if _digest(same) == digest), None)
        if given is None:
            raise InvalidInput('"{path}" was drawn from a picture; give the same one as --{name}', path=path, name=name)
        setattr(request, name, given)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for last in model.walk(request):  # noqa: B007 - the last frame is the result
            pass
        again = model.results(request, last)[row]
    finally:
        torch.set_num_threads(before)
    new = np.asarray(again.pil.convert("RGBA"), np.int16)
    if old.shape != new.shape:
        raise InvalidInput('"{path}" is not the size that its recipe draws; it was changed since', path=path)
    return again, int(np.abs(old - new).max())


def _request(recipe: Mapping[str, Any], rows: int) -> Request:
    """What a recipe asks for, every row as the one of the picture. Raises KeyError, TypeError or ValueError."""
    prompt = grammar.parse(str(recipe["prompt"]), allow_empty=True)
    request = Request([prompt] * rows, [int(recipe["seed"])] * rows, dict(recipe["options"]))
    if recipe.get("strength") is not None:
        request.strength = float(recipe["strength"])
    if wrong := set(recipe.get("inputs") or {}) - {"source", "mask"}:
        raise ValueError(f"inputs {sorted(wrong)}")
    return request


def _alike(name: str, inputs: Mapping[str, Image.Image] | None) -> list[Image.Image]:
    """A picture as it may have been when it was drawn from: an upload keeps no alpha that hides nothing, and a mask
    whose transparent places may change is kept as one whose white places may."""
    given = (inputs or {}).get(name)
    if given is None:
        return []
    if "A" not in given.getbands():
        return [given]
    return [given, given.convert("RGB"), *([white_where_clear(given)] if name == "mask" else [])]


def _digest(picture: Image.Image) -> str:
    return hashlib.sha256(png(picture, None)).hexdigest()


def drawn_by(path: Path, otherwise: str) -> Model:
    """The package that drew the picture in a file, or `otherwise` where the file does not say."""
    try:
        recipe = read_recipe(path)
    except InvalidInput:
        return load(otherwise)
    return Model(packages.load(_by_identity(str(recipe.get("package")), str(recipe.get("name")))))


def _judge(identity: str, name: str) -> Package:
    """The package that a recipe's --judge named, if it is still the same."""
    found = packages.load(packages.find(name))
    if found.card.identity != identity:
        raise NotFound('the judge "{name}" is another package than the one ({identity}) that this was drawn by',
                       name=name, identity=identity[:12])  # fmt: skip
    return found


def _by_identity(identity: str, name: str) -> Path:
    for _, path, card in packages.list_packages():
        if card.identity == identity:
            return path
    raise NotFound(
        'the package "{name}" ({identity}) that drew this is not here; give its folder with --model',
        name=name, identity=identity[:12],
    )  # fmt: skip
