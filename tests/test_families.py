"""Every kind of model by the same commands: trains, stops and goes on bit for bit, is saved, loaded and measured."""

from __future__ import annotations

import hashlib
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from sojourn import blank, engine, registry, weights
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import Item, LabelColumn, PackedSet, SetInfo, SetWriter
from sojourn.data.sheet import grid
from sojourn.families.base import Family
from sojourn.measure.bench import Bench
from sojourn.measure.evaluate import evaluate
from sojourn.schema import Part
from sojourn.train.build import run_recipe
from sojourn.types import DataSpec

PICTURES = [id for id in registry.ids("family") if "image" in registry.get("family", id).cls.kinds]  # type: ignore[attr-defined]
SMALL = {"seen": 96, "batch_size": 16, "snapshot": 32, "sheet": 2, "held_out": 16, "threads": 1, "hooks": ()}


class Pixels:
    """Pixels as features."""

    name = identity = "pixels"

    def __call__(self, pictures: torch.Tensor) -> torch.Tensor:
        return pictures[:, 0].flatten(1)


@pytest.fixture(scope="module")
def tinted(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Digits in grey, in colour and with alpha."""
    data, out = load_digits(), {}
    for channels in (1, 3, 4):
        folder = tmp_path_factory.mktemp("tinted") / str(channels)
        labels = [LabelColumn(name="class", values=list("0123456789"))]
        with SetWriter(folder, SetInfo(name="digits", kind="image", shape=(8, 8, channels), labels=labels)) as writer:
            for i in range(200):
                ink = (data.images[i] * 15.9).astype(np.uint8)[:, :, None]
                pixels = np.repeat(ink, channels, axis=2)
                if channels == 4:
                    pixels[..., :3] = (200, 30, 90)
                split = "valid" if i % 5 == 0 else "train"
                writer.add(Item(f"d{i}", pixels, [str(data.target[i])], [int(data.target[i])], split=split))
        out[channels] = folder
    return out


def recipe(id: str, data: Path) -> Recipe:
    train = TrainConfig(**SMALL)
    return Recipe(
        name=id, stage=[Stage(data=str(data), family=id, preset="tiny", conditioner=Part(id="labels"), train=train)]
    )


def stopped(asked: Recipe, folder: Path, seen: int) -> None:
    """Run until so many samples are seen, then close."""
    events = run_recipe(asked, folder)
    for event in events:
        if event.kind == "progress" and event.unit == "samples" and event.done >= seen:
            break
    events.close()


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "package" / "weights.safetensors").read_bytes()).hexdigest()


SIZED = [(id, name) for id in PICTURES for name in registry.get("family", id).presets if name.isdigit()]


@pytest.mark.parametrize(("id", "name"), SIZED)
def test_a_package_of_every_size_is_built_within_the_means_of_its_weights(id: str, name: str) -> None:
    """As when it is loaded: with what is asked for counted, and the time."""
    entry = registry.get("family", id)
    spec = DataSpec("image", (3, int(name), int(name)), labels=(("class", 175),), pooled_dim=256)
    family: Family = entry.cls(entry.cls.Config(**entry.presets[name]), spec)  # type: ignore[attr-defined]
    tensors = weights.tensors_of(family)
    held = sum(tensor.numel() for tensor in tensors.values())
    begun = time.thread_time()
    blank.build(lambda: entry.cls(family.config, spec), weights.tensors_of, held, len(tensors))  # type: ignore[arg-type]
    assert time.thread_time() - begun < 0.75 * blank.SECONDS


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("id", PICTURES)
def test_trains_resumes_loads_draws_and_is_measured(
    id: str, channels: int, tinted: dict[int, Path], tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    asked = recipe(id, tinted[channels])
    list(run_recipe(asked, tmp_path / "whole"))
    for seen in (16, 48):
        stopped(asked, tmp_path / "parts", seen)
    list(run_recipe(asked, tmp_path / "parts"))
    assert digest(tmp_path / "parts") == digest(tmp_path / "whole")
    model = engine.load(tmp_path / "whole" / "model" / "package")
    bench = Bench(PackedSet(tinted[channels]), Pixels(), None, 32, cache=tmp_path / "cache")
    found = [event for event in evaluate([model], bench) if event.__class__.__name__ == "Findings"]
    if "sample" in model.family.can:
        pictures = model.imagine("3", n=2, seed=0)
        assert pictures[0].pil.mode == {1: "L", 4: "RGBA"}[channels]
        again = engine.load(tmp_path / "parts" / "model" / "package").imagine("3", n=2, seed=0)
        assert pictures[1].pil.tobytes() == again[1].pil.tobytes()
        assert "pictures/s" in {metric.name for metric in found[0].metrics}
    else:
        assert found[0].metrics or id == "contrastive", "what it reads is measured"


def test_a_sheet_shows_what_was_asked_for_above_what_was_drawn(tinted: dict[int, Path], tmp_path: Path) -> None:
    """By class; without one nothing was asked for, and a GAN has nothing to show above."""
    by_class, plain = recipe("dcgan", tinted[1]), recipe("dcgan", tinted[1])
    plain.stage[0] = plain.stage[0].model_copy(update={"conditioner": Part(id="none")})
    for name, asked in (("by-class", by_class), ("plain", plain)):
        list(run_recipe(asked, tmp_path / name))
    data = PackedSet(tinted[1])
    real = grid(
        [Image.fromarray(data.raw(np.array([row]))[0, :, :, 0].numpy()) for row in data.draw(0, 0, 2, "valid")], 2
    )
    with Image.open(tmp_path / "by-class" / "model" / "sheets" / "000000000096.png") as sheet:
        assert sheet.height == 2 * real.height - 2
        assert sheet.crop((0, 0, *real.size)).tobytes() == real.tobytes()
        drawn = sheet.crop((0, real.height - 2, sheet.width, sheet.height)).tobytes()
    with Image.open(tmp_path / "plain" / "model" / "sheets" / "000000000096.png") as sheet:
        assert sheet.size == real.size
        assert real.tobytes() not in (drawn, sheet.tobytes())
