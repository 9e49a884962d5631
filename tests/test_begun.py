"""What a run began with stays what it goes on with, and what cannot be kept is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from conftest import SMALL, recipe_for
from safetensors.torch import load_file

from sojourn import package as packages
from sojourn.cli.train import Stopper
from sojourn.config import Recipe, Stage, TrainConfig, load_recipe
from sojourn.data.dataset import Item, PackedSet, SetInfo, SetWriter
from sojourn.errors import ConfigError, OutOfRoom, PackageError
from sojourn.schema import Event, Log, Part, Prompt
from sojourn.train import room, state
from sojourn.train.build import build, run_recipe
from sojourn.train.feed import Feed


def written(folder: Path, texts: list[str]) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    with SetWriter(folder, SetInfo(name="texts", kind="text", shape=())) as writer:
        for i, text in enumerate(texts):
            writer.add(Item(f"t{i}", text, split="valid" if i % 8 == 0 else "train"))
    return folder


def run(recipe: Recipe, folder: Path, start: Path | None = None, until: int | None = None) -> list[Event]:
    """The events of a run, stopped once it has seen `until` samples."""
    out, events = [], run_recipe(recipe, folder, start)
    for event in events:
        out.append(event)
        if until is not None and getattr(event, "seen", 0) >= until:
            events.close()
    return out


def package_of(folder: Path) -> packages.Package:
    return packages.load(folder / "model" / "package")


def test_a_language_model_reads_by_the_vocabulary_that_it_writes(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one", ["abcab dab"] * 32), written(tmp_path / "other", ["zyxzy wzy"] * 32)
    run(recipe_for("lm", {"poems": one}), tmp_path / "first")
    run(recipe_for("lm", {"poems": other}), tmp_path / "second", tmp_path / "first" / "model" / "package")
    made = package_of(tmp_path / "second")
    assert made.codec.files == package_of(tmp_path / "first").codec.files == made.conditioner.files
    ids = made.conditioner([Prompt.plain("cab")]).tokens[0]
    assert made.codec.unpack(ids[None]) == ["cab"]


@pytest.mark.parametrize("more", [["dddd dddd dddd"] * 8, ["efgh"] * 8])
def test_a_set_of_texts_may_grow_while_a_run_waits(more: list[str], tmp_path: Path) -> None:
    texts = ["aaab bbc cd", "abcab dab"] * 16
    recipe = recipe_for("lm", {"poems": written(tmp_path / "set", texts)})
    run(recipe, tmp_path / "run", until=128)
    began = build(recipe.stage[0], PackedSet(tmp_path / "set"), {}, recipe).codec.files
    written(tmp_path / "set", [*texts, *more])
    told = [event.text for event in run(recipe, tmp_path / "run") if isinstance(event, Log)]
    assert "the set had 32 rows when this run began, now 40" in told
    made = package_of(tmp_path / "run")
    assert made.codec.files == made.conditioner.files == began


def test_other_packages_are_not_those_that_a_run_is_made_of(sets: dict[str, Path], tmp_path: Path) -> None:
    for name, seed in (("first", 0), ("second", 1)):
        small = recipe_for("vae", sets, seen=64, seed=seed)
        small.stage[0].model["latent"] = "map"
        run(small, tmp_path / name)
    one, two = (tmp_path / name / "model" / "package" for name in ("first", "second"))
    recipe = recipe_for("vae", sets)
    recipe.stage[0].model["latent"] = "map"
    run(recipe, tmp_path / "run", one, until=128)
    for start, found in ((two, r"start was \w{8}, now \w{8}"), (None, r"start was \w{8}, now nothing")):
        with pytest.raises(ConfigError, match=found):
            run(recipe, tmp_path / "run", start)
    run(recipe, tmp_path / "run", one)
    assert package_of(tmp_path / "run").card.parent == packages.load(one).card.identity
    shutil.copytree(one, tmp_path / "part")
    stage = Stage(
        data=str(sets["digits"]), family="flow", train=TrainConfig(**SMALL), parts={"vae": str(tmp_path / "part")},
        codec=Part(id="latent", config={"part": "vae"}),
    )  # fmt: skip
    flow = Recipe(name="flow", stage=[stage])
    run(flow, tmp_path / "flow", until=128)
    shutil.rmtree(tmp_path / "part")
    shutil.copytree(two, tmp_path / "part")
    with pytest.raises(ConfigError, match=r"parts\.vae was"):
        run(flow, tmp_path / "flow")


def test_what_was_encoded_once_is_of_these_pictures(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "set")
    recipe = recipe_for("flow", {"digits": tmp_path / "set"})

    def feed() -> Feed:
        data = PackedSet(tmp_path / "set")
        return Feed(build(recipe.stage[0], data, {}, recipe), data, 0, tmp_path, cache=True)

    first = feed()
    for _ in first.prepare():
        pass
    assert not torch.equal(first.batch(0, 8).x, torch.ones(8, 1, 8, 8))
    path = tmp_path / "set" / "data.bin"
    path.write_bytes(b"\xff" * path.stat().st_size)
    white = feed()
    events = white.prepare()
    next(events)
    events.close()  # type: ignore[attr-defined]
    assert not (tmp_path / "encoded.json").exists(), "half a file is no file"
    for _ in white.prepare():
        pass
    assert torch.equal(white.batch(0, 8).x, torch.ones_like(white.batch(0, 8).x))


def test_a_snapshot_that_cannot_be_written_at_the_stop_is_told(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopper = Stopper(run_recipe(recipe_for("vae", sets), tmp_path))

    def full(*args: object) -> None:
        raise OutOfRoom("no room")

    events = iter(stopper)
    while getattr(next(events), "seen", 0) < 64:
        pass
    monkeypatch.setattr(state, "save", full)
    stopper.stopped = True
    with pytest.raises(OutOfRoom, match="no room"):
        next(events)


def test_two_stages_of_one_name_are_refused(tmp_path: Path) -> None:
    stage = '[[stage]]\ndata = "digits"\nfamily = "vae"\n'
    (tmp_path / "two.toml").write_text(stage + stage)
    with pytest.raises(ConfigError, match=r'two stages of recipe ".*two\.toml" are called "model"'):
        load_recipe(str(tmp_path / "two.toml"))


@pytest.mark.parametrize("name", ["flow", "vae"])
def test_a_number_that_is_not_finite_stays_off_the_card(
    name: str, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sojourn.train.loop.held_out", lambda *args: {"held_out/loss": float("nan"), "held_out/x": 1.0})
    run(recipe_for(name, sets), tmp_path)
    assert [metric.name for metric in package_of(tmp_path).card.metrics] == ["held_out/x"]


def test_a_run_that_never_came_to_train_may_take_another_set(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(digits, tmp_path / "set")
    recipe = recipe_for("vae", {"digits": tmp_path / "set"})
    with monkeypatch.context() as patch:
        patch.setattr(room, "free_memory", lambda: 1)
        with pytest.raises(OutOfRoom):
            run(recipe, tmp_path / "run")
    info = json.loads((tmp_path / "set" / "set.json").read_text())
    info["labels"][0]["values"] = [*"abcdefghij"]
    (tmp_path / "set" / "set.json").write_text(json.dumps(info))
    run(recipe, tmp_path / "run")


def test_a_run_may_go_on_with_the_disk_that_it_began_with(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    recipe = recipe_for("flow", sets, keep=2)
    run(recipe, tmp_path, until=192)
    held = sum(path.stat().st_size for path in (tmp_path / "model" / "state").rglob("*") if path.is_file())
    # two of three snapshots are there: room for a third, and for what packages take
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=held // 2 + held // 3))
    recipe.stage[0].train.keep = 1
    run(recipe, tmp_path, until=256)
    monkeypatch.setattr(room.shutil, "disk_usage", lambda path: usage._replace(free=0))
    with pytest.raises(OutOfRoom, match="keep=1"):
        run(recipe_for("flow", sets, keep=2), tmp_path / "other")


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_a_damaged_snapshot_does_not_push_out_good_ones(keep: int, tmp_path: Path) -> None:
    for number in (1, 2, 9):
        state.save(tmp_path, f"{number}-0", {"a": torch.ones(3)}, {"seen": number}, 5)
    (tmp_path / "9-0" / "tensors.safetensors").write_bytes(b"x")
    state.save(tmp_path, "3-0", {"a": torch.ones(3)}, {"seen": 3}, keep)
    found = state.latest(tmp_path)
    assert found is not None
    assert found[1]["seen"] == 3
    assert [path.name for path in state.snapshots(tmp_path)] == [*["1-0", "2-0", "3-0"][-keep:], "9-0"]


def test_a_run_none_of_whose_snapshots_can_be_read_says_so(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("vae", sets)
    run(recipe, tmp_path, until=128)
    for path in (tmp_path / "model" / "state").glob("*/tensors.safetensors"):
        path.write_bytes(b"x")
    told = [event.text for event in run(recipe, tmp_path) if isinstance(event, Log)]
    assert any("can be read; it begins anew" in text for text in told)


def test_a_full_disk_at_a_line_of_the_record_is_told(sets: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "stats.jsonl").symlink_to("/dev/full")
    with pytest.raises(OutOfRoom, match=r"stats\.jsonl"):
        run(recipe_for("vae", sets), tmp_path)


def test_what_must_not_be_split_is_not_split(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("vae", sets, micro_batch=8)
    recipe.stage[0].model["noise"] = 0.5
    with pytest.raises(ConfigError, match="vae needs its whole batch at once"):
        run(recipe, tmp_path)


@pytest.mark.parametrize("levels", [(1, -1), (0, 1)])
def test_a_unet_without_channels_is_refused(levels: tuple[int, int], sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("flow", sets)
    recipe.stage[0].model.update(net="unet", levels=levels)
    with pytest.raises(ConfigError, match=r"levels\.\d is -?\d: must be 1 or more"):
        run(recipe, tmp_path)


def test_options_that_a_model_does_not_have_are_refused_before_it_trains(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("vae", sets)
    recipe.stage[0].options["guidance"] = 2.0
    with pytest.raises(ConfigError, match=r"options of stage model.*guidance"):
        run(recipe, tmp_path)
    del recipe.stage[0].options["guidance"]
    run(recipe, tmp_path)
    made = package_of(tmp_path)
    made.card.options["guidance"] = 2.0
    packages.save(made, tmp_path / "wrong")
    with pytest.raises(PackageError, match="guidance"):
        packages.load(tmp_path / "wrong")


def test_a_condition_that_is_not_heard_is_told(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("vae", sets)
    recipe.stage[0].conditioner.id = "labels"
    for heard in (False, True):
        recipe.stage[0].model["conditional"] = heard
        events = list(run_recipe(recipe, tmp_path / str(heard)))
        warned = [event.text for event in events if isinstance(event, Log) and event.level == "warning"]
        expected = 'vae learns nothing from its conditioner "labels" without model.conditional=true'
        assert (expected in warned) is not heard


@pytest.mark.parametrize("name", ["vae", "dcgan"])
def test_a_blend_is_the_mean_of_what_was_trained_and_what_it_began_with(
    name: str, sets: dict[str, Path], tmp_path: Path
) -> None:
    recipe = recipe_for(name, sets)
    run(recipe, tmp_path / "first")
    start = tmp_path / "first" / "model" / "package"
    recipe.stage[0].train.seed = 1
    run(recipe, tmp_path / "trained", start)
    recipe.stage[0].train.blend = 0.25
    run(recipe, tmp_path / "blended", start, until=64)
    run(recipe, tmp_path / "blended", start)
    folders = [start, tmp_path / "trained" / "model" / "package", tmp_path / "blended" / "model" / "package"]
    began, trained, blended = (load_file(folder / "weights.safetensors") for folder in folders)
    assert all(not torch.equal(trained[key], began[key]) for key in began if key.endswith("weight"))
    for key, value in (item for item in blended.items() if item[1].is_floating_point()):
        torch.testing.assert_close(value, 0.75 * trained[key] + 0.25 * began[key], rtol=1e-5, atol=1e-6)
    told, before = (json.loads((folder / "card.json").read_text())["metrics"] for folder in (folders[2], folders[1]))
    assert told != before, "the numbers of its card are its own"
    pictures = [(folder / "sheet.png").read_bytes() for folder in folders[1:]]
    assert pictures[0] != pictures[1], "and so is its sheet"


def test_a_blend_with_nothing_is_refused_before_any_stage_trains(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("vae", sets)
    recipe.stage.append(recipe.stage[0].model_copy(deep=True, update={"name": "second"}))
    recipe.stage[1].train.blend = 0.5
    with pytest.raises(ConfigError, match="blend of stage second"):
        run(recipe, tmp_path)
    assert not list(tmp_path.iterdir())
    recipe.stage[1].start = "model"
    run(recipe, tmp_path)


def test_a_blend_of_spectral_norms_keeps_their_directions_at_unit_length(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("dcgan", sets)
    recipe.stage[0].model["spectral"] = True
    run(recipe, tmp_path / "first")
    recipe.stage[0].train.seed, recipe.stage[0].train.blend = 1, 0.5
    run(recipe, tmp_path / "blended", tmp_path / "first" / "model" / "package")
    tensors = load_file(tmp_path / "blended" / "model" / "package" / "weights.safetensors")
    lengths = torch.stack([value.norm() for key, value in tensors.items() if key.endswith((".u", ".v"))])
    torch.testing.assert_close(lengths, torch.ones(len(lengths)), rtol=0, atol=1e-4)
