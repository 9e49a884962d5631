"""Sets that cannot be trained on, or are not what they were: one clear line each."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from sojourn import registry
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import Item, LabelColumn, PackedSet, SetInfo, SetWriter
from sojourn.errors import ConfigError, DataError, SojournError, Unsupported
from sojourn.schema import Done, Part
from sojourn.train.build import run_recipe


def classes(folder: Path, names: list[str], rows: int, side: int = 8) -> Path:
    """A set of noise with these classes."""
    info = SetInfo(name="noise", kind="image", shape=(side, side, 1), labels=[LabelColumn(name="class", values=names)])
    rng = np.random.default_rng(0)
    with SetWriter(folder, info) as writer:
        for i in range(rows):
            pixels = rng.integers(0, 255, (side, side, 1), dtype=np.uint8)
            writer.add(Item(f"r{i}", pixels, [names[i % len(names)]], [i % len(names)]))
    return folder


def noise_recipe(data: Path, family: str = "dcgan", **train: object) -> Recipe:
    settings = {"seen": 64, "batch_size": 16, "snapshot": 32, "sheet": 0, "threads": 1, "hooks": (), **train}
    stage = Stage(data=str(data), family=family, conditioner=Part(id="labels"), train=TrainConfig(**settings))
    return Recipe(name="noise", stage=[stage])


def test_a_handful_of_pictures_is_refused_and_few_are_told(tmp_path: Path) -> None:
    with pytest.raises(DataError, match='the set "noise" has 7 pictures to train on; give 8 at least'):
        list(run_recipe(noise_recipe(classes(tmp_path / "few", ["a", "b"], 7)), tmp_path / "few-run"))
    said = list(run_recipe(noise_recipe(classes(tmp_path / "some", ["a", "b"], 40)), tmp_path / "some-run"))
    assert any("40 pictures are few" in getattr(event, "text", "") for event in said)


@pytest.mark.parametrize("text", ["x\n", "", "3\n" * 40, '{"id": "a"}\n'])
def test_damaged_rows_are_one_line(text: str, tmp_path: Path) -> None:
    data = PackedSet(classes(tmp_path / "set", ["a", "b"], 40))
    (data.folder / "rows.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=r"is damaged \(rows.jsonl"):
        _ = data.rows


@pytest.mark.parametrize(
    ("after", "says"),
    [
        (["a", "b"], 'column "class": without c'),
        (["a", "b", "c", "d"], 'column "class": new d'),
        (["b", "a", "c"], 'column "class": in another order'),
    ],
)
def test_a_run_does_not_go_on_with_other_classes(tmp_path: Path, after: list[str], says: str) -> None:
    data = classes(tmp_path / "set", ["a", "b", "c"], 40)
    begun(noise_recipe(data), tmp_path / "run")
    classes(data, after, 40)
    with pytest.raises(DataError, match=f"is not the one that this run began with .{re.escape(says)}"):
        list(run_recipe(noise_recipe(data), tmp_path / "run"))
    classes(data, ["a", "b", "c"], 44)
    said = list(run_recipe(noise_recipe(data), tmp_path / "run"))
    assert any("had 40 rows when this run began, now 44" in getattr(event, "text", "") for event in said)
    classes(data, ["a", "b", "c"], 44, side=16)
    begun(noise_recipe(classes(tmp_path / "other", ["a", "b"], 40)), tmp_path / "run-2")
    classes(tmp_path / "other", ["a", "b"], 40, side=16)
    with pytest.raises(DataError, match=r"image \(8, 8, 1\) then, image \(16, 16, 1\) now"):
        list(run_recipe(noise_recipe(tmp_path / "other"), tmp_path / "run-2"))


def test_classes_that_a_net_does_not_know_may_come_and_go(tmp_path: Path) -> None:
    recipe = noise_recipe(classes(tmp_path / "set", ["a", "b"], 40))
    recipe.stage[0].conditioner = Part(id="none")
    begun(recipe, tmp_path / "run")
    classes(tmp_path / "set", ["a", "b", "c"], 40)
    assert isinstance(list(run_recipe(recipe, tmp_path / "run"))[-1], Done)


def columns(folder: Path, **values: list[str]) -> Path:
    """A set of noise with these label columns."""
    labels = [LabelColumn(name=name, values=names) for name, names in values.items()]
    info = SetInfo(name="noise", kind="image", shape=(8, 8, 1), labels=labels)
    with SetWriter(folder, info) as writer:
        for i in range(40):
            writer.add(Item(f"r{i}", np.full((8, 8, 1), i, np.uint8), [""], [i % len(v) for v in values.values()]))
    return folder


@pytest.mark.parametrize("after", [{}, {"other": ["p", "q"]}, {"other": ["p", "q"], "class": ["a", "b"]}])
def test_a_column_that_a_net_reads_may_not_go(tmp_path: Path, after: dict[str, list[str]]) -> None:
    recipe = noise_recipe(columns(tmp_path / "set", **{"class": ["a", "b"], "other": ["p", "q"]}))
    begun(recipe, tmp_path / "run")
    columns(tmp_path / "set", **after)
    says = "columns class then, other now" if after and "class" in after else 'column "class": without a, b'
    with pytest.raises(DataError, match=f"is not the one that this run began with .{re.escape(says)}"):
        list(run_recipe(recipe, tmp_path / "run"))


def begun(recipe: Recipe, folder: Path) -> None:
    """Close a run once it has saved something."""
    events = run_recipe(recipe, folder)
    for event in events:
        if "snapshot at" in getattr(event, "text", ""):
            break
    events.close()


def test_a_label_without_a_name_is_refused(tmp_path: Path) -> None:
    data = classes(tmp_path / "set", ["a", "b"], 40)
    labels = np.load(data / "labels.npy")
    labels[3] = 2
    np.save(data / "labels.npy", labels)
    with pytest.raises(DataError, match=r'label 2 of row "3" is outside 0..1 \(column "class"\)'):
        list(run_recipe(noise_recipe(data), tmp_path / "run"))


@pytest.mark.parametrize("family", ["judge", "contrastive"])
def test_one_class_is_nothing_to_tell_apart(tmp_path: Path, family: str) -> None:
    with pytest.raises(ConfigError, match="one class only"):
        list(run_recipe(noise_recipe(classes(tmp_path / "set", ["a"], 40), family), tmp_path / "run"))


@pytest.mark.parametrize("family", [id for id in registry.ids("family") if id not in ("lm", "text-tower")])
def test_pictures_of_seven_by_five_are_taken_or_refused_in_one_line(tmp_path: Path, family: str) -> None:
    info = SetInfo(name="odd", kind="image", shape=(5, 7, 3), labels=[LabelColumn(name="class", values=["a", "b"])])
    with SetWriter(tmp_path / "odd", info) as writer:
        for i in range(40):
            writer.add(Item(f"r{i}", np.full((5, 7, 3), 6 * i, np.uint8), ["a"], [i % 2]))
    told: SojournError | None = None
    try:
        list(run_recipe(noise_recipe(tmp_path / "odd", family), tmp_path / "run"))
    except SojournError as error:
        told = error
    if told is not None:
        assert isinstance(told, ConfigError | Unsupported)
        assert "\n" not in str(told)
        assert "(3, 5, 7)" in str(told)
