"""Sojourn: a self-hosted generative studio.

import sojourn
pictures = sojourn.load("emoji").imagine("a red heart", n=4, seed=0)
pictures[0].save("heart.png")
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sojourn.again import replay
    from sojourn.config import Recipe, load_recipe
    from sojourn.data.dataset import PackedSet
    from sojourn.data.prepare import prepare
    from sojourn.engine import Model, load
    from sojourn.errors import SojournError
    from sojourn.package import Package, save, verify
    from sojourn.picture import Picture, Pictures
    from sojourn.prompt import format, parse
    from sojourn.registry import register
    from sojourn.schema import Prompt
    from sojourn.train.build import run_recipe

_HOME = {
    "Model": "engine", "Package": "package", "PackedSet": "data.dataset", "Picture": "picture", "Pictures": "picture",
    "Prompt": "schema", "Recipe": "config", "SojournError": "errors", "format": "prompt", "load": "engine",
    "load_recipe": "config", "parse": "prompt", "prepare": "data.prepare", "register": "registry", "replay": "again",
    "run_recipe": "train.build", "save": "package", "verify": "package",
}  # fmt: skip

__all__ = [
    "Model", "Package", "PackedSet", "Picture", "Pictures", "Prompt", "Recipe", "SojournError", "format", "load",
    "load_recipe", "parse", "prepare", "register", "replay", "run_recipe", "save", "verify",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """Names are imported when first used: torch is not loaded before it is needed."""
    if name not in _HOME:
        raise AttributeError(f"module 'sojourn' has no attribute {name!r}")
    return getattr(import_module(f"sojourn.{_HOME[name]}"), name)
