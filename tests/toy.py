"""A family, codec and conditioner that use every corner of the package format, and how the frozen package was made."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from torch import Tensor, nn

from sojourn import package, registry
from sojourn.families.base import BaseConfig, BaseOptions, Family
from sojourn.package import Adapter, Package
from sojourn.schema import Card, Part
from sojourn.types import Cond, DataSpec

FROZEN = Path(__file__).parent / "fixtures" / "package-v1"


class ToyConfig(BaseConfig):
    width: int = 8
    depth: int = 2
    table: int = 4
    grid: int = 2
    frozen: bool = False
    broken: int = 0


class ToyOptions(BaseOptions):
    steps: int = Field(3, ge=1, le=10)


class Toy(Family):
    """Tied weights, running statistics, a counter, a table outside the state, a reference net outside it."""

    Config = ToyConfig
    Options = ToyOptions
    can = frozenset({"sample", "encode"})

    def __init__(self, config: ToyConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        w = config.width
        self.enter = nn.Linear(spec.shape[0] + spec.pooled_dim, w)
        self.layers = nn.ModuleList(nn.Linear(w, w) for _ in range(config.depth))
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm1d(w)
        self.embed_in = nn.Embedding(5, w)
        self.embed_out = nn.Linear(w, 5, bias=False)
        self.embed_out.weight = self.embed_in.weight
        self.start = nn.Parameter(torch.randn(w))
        self.register_buffer("table", torch.arange(config.table) / 10, persistent=False)
        self.grid = torch.outer(torch.ones(config.grid), torch.ones(config.grid))
        self.register_buffer("seen", torch.tensor(0))
        if config.frozen:
            torch.manual_seed(7)
            object.__setattr__(self, "reference", nn.Linear(w, w))
        if config.broken:
            raise ZeroDivisionError("of the toy")

    def run(self, x: Tensor) -> Tensor:
        x = self.enter(x)
        for layer in self.layers:
            x = torch.tanh(layer(x)) + self.start + self.table.sum()
        x = self.norm(x) + self.conv(x[:, None, :3, None].expand(-1, 1, 3, 3)).mean((1, 2, 3))[:, None]
        return self.embed_out(x)


class ToyCodec:
    id = "toy"

    def __init__(
        self, config: Mapping[str, Any], parts: Mapping[str, Any] = {}, files: Mapping[str, bytes] = {}
    ) -> None:
        self.config = dict(config)
        self.parts = parts
        self.files = dict(files)
        self.spec = DataSpec("vector", (int(config.get("size", 3)),))
        if self.config.get("part"):
            parts[self.config["part"]]


class ToyConditioner:
    id = "toy"

    def __init__(
        self, config: Mapping[str, Any], parts: Mapping[str, Any] = {}, files: Mapping[str, bytes] = {}
    ) -> None:
        self.config = dict(config)
        self.files = dict(files)

    def extend(self, spec: DataSpec) -> DataSpec:
        return replace(spec, pooled_dim=int(self.config.get("dim", 2)))

    def __call__(self, prompts: Sequence[Any]) -> Cond:
        return Cond(pooled=torch.zeros(len(prompts), self.config.get("dim", 2)))


def enter() -> None:
    registry.ids("family")
    registry.register("family", "toy", presets={"tiny": {}})(Toy)
    registry.register("codec", "toy")(ToyCodec)
    registry.register("conditioner", "toy")(ToyConditioner)


def leave() -> None:
    for table in ("family", "codec", "conditioner"):
        del registry._TABLES[table]["toy"]


def make(
    seed: int = 0, codec: dict[str, Any] | None = None, parts: Mapping[str, Package] | None = None, **config: Any
) -> Package:
    torch.manual_seed(seed)
    encoder = ToyCodec(codec or {}, parts or {}, {"tokenizer.json": b'{"a": 1}'})
    conditioner = ToyConditioner({"dim": 2})
    family = Toy(ToyConfig(**config), conditioner.extend(encoder.spec))
    with torch.no_grad():
        family.norm.running_mean.uniform_(1e-9, 2e-9)
        family.seen.fill_(123_456_789)
    blank = Card(name="toy", family="toy", config={}, codec=Part(id="toy"), conditioner=Part(id="toy"))
    return Package(blank.model_copy(update={"about": "A toy."}), family.eval(), encoder, conditioner, parts or {})


def nested(**config: Any) -> Package:
    return make(1, {"part": "inner", "size": 3}, {"inner": make(2)}, **config)


def sample(p: Package) -> Tensor:
    with torch.no_grad():
        return p.family.run(torch.linspace(-1, 1, 10).view(2, 5))


def lora(strength: float = 0.5) -> Adapter:
    torch.manual_seed(4)
    tensors = {
        "layers.0.weight.A": torch.randn(2, 8), "layers.0.weight.B": torch.randn(8, 2),
        "conv.weight.A": torch.randn(2, 1, 3, 3), "conv.weight.B": torch.randn(4, 2, 1, 1),
    }  # fmt: skip
    return Adapter("warm", tensors, "lora", strength)


def freeze(folder: Path) -> None:
    """Write the frozen package of today's format to `folder`, its samples beside it: once per format version."""
    frozen = replace(nested(), adapters=(lora(),))
    frozen.card.created = "2026-01-01T00:00:00+00:00"
    frozen.parts["inner"].card.created = frozen.card.created
    saved = package.save(frozen, folder)
    loaded = package.load(folder)
    stored = {
        "identity": saved.identity,
        "sample": sample(loaded).tolist(),
        "inner": sample(loaded.parts["inner"]).tolist(),
    }
    folder.with_name(folder.name + ".json").write_text(json.dumps(stored) + "\n")


def reseal(folder: Path) -> None:
    """Set the hashes and the identity on a card to what the folder holds, as the author of a hostile one would."""
    raw = json.loads((folder / "card.json").read_text())
    raw["files"] = {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() if (folder / name).is_file() else value
        for name, value in raw["files"].items()
    }
    raw["identity"] = package.identity(raw)
    (folder / "card.json").write_text(json.dumps(raw))
