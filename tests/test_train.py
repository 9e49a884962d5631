"""The loop: learns, resumes bit for bit wherever it is killed, survives bad numbers, full disks, small memory."""

from __future__ import annotations

import gc
import hashlib
import json
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL, STAGES, recipe_for
from safetensors.torch import load_file
from torch import nn

from sojourn.codecs.text import TextCodec
from sojourn.config import Recipe, Stage, TrainConfig, load_recipe
from sojourn.data.dataset import Item, PackedSet, SetInfo, SetWriter
from sojourn.errors import ConfigError, DataError, NotFound, OutOfRoom, TrainingFailed
from sojourn.package import Package
from sojourn.schema import Log, Part, Prompt
from sojourn.train import loop, record, room, state
from sojourn.train.build import _start_from, build, run_recipe
from sojourn.train.feed import Feed
from sojourn.train.gradient import Crew, Diverged, Update
from sojourn.train.optim import Muon, orthogonalise, schedule
from sojourn.types import Batch, Cond, Noise


def digest(folder: Path) -> str:
    """sha256 of the finished package's weights."""
    return hashlib.sha256((folder / "model" / "package" / "weights.safetensors").read_bytes()).hexdigest()


def finish(recipe: Recipe, folder: Path) -> str:
    for _ in run_recipe(recipe, folder):
        pass
    return digest(folder)


def test_a_training_closes_its_logs_however_it_ends(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker does many: each log that stays open is a thread and two files."""
    opened: list[str] = []
    closed: list[str] = []

    class Log:
        def __init__(self, name: str) -> None:
            self.name = name
            opened.append(name)

        def scalars(self, seen: int, row: object) -> None: ...

        def picture(self, seen: int, path: Path) -> None: ...

        def close(self) -> None:
            closed.append(self.name)

    inner = record.Record.__init__

    def init(self: record.Record, folder: Path, config: TrainConfig) -> None:
        inner(self, folder, config)
        self.sinks = [Log(folder.name)]

    monkeypatch.setattr(record.Record, "__init__", init)
    recipe = recipe_for(next(iter(STAGES)), sets)
    events = run_recipe(recipe, tmp_path / "run")
    for _ in range(4):
        next(events)
    events.close()
    assert closed == opened != []
    finish(recipe, tmp_path / "run")
    assert closed == opened
    before = len(opened)
    monkeypatch.setattr(loop.Run, "rounds", lambda self: iter([][0]))
    with pytest.raises(IndexError):
        finish(recipe, tmp_path / "other")
    assert len(opened) > before
    assert closed == opened


@pytest.mark.parametrize("name", ["vae", "flow", "lm", "dcgan"])
def test_a_finished_training_leaves_no_net_behind(name: str, sets: dict[str, Path], tmp_path: Path) -> None:
    """A worker does many: what autograd keeps in Python must not keep itself, for no collector would see it."""

    def nets() -> int:
        gc.collect()
        return sum(type(found) is nn.Parameter for found in gc.get_objects())

    before = nets()
    finish(recipe_for(name, sets), tmp_path)
    assert nets() == before


@pytest.mark.parametrize("name", STAGES)
def test_closed_and_resumed_is_uninterrupted(name: str, sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for(name, sets)
    whole = finish(recipe, tmp_path / "whole")
    for stop_at in (1, 3, 6):
        events = run_recipe(recipe, tmp_path / "parts")
        for i, _ in enumerate(events):
            if i == stop_at:
                break
        events.close()
    assert finish(recipe, tmp_path / "parts") == whole


@pytest.mark.parametrize("name", ["flow", "lm"])
def test_processes_share_an_update_and_change_no_byte(name: str, sets: dict[str, Path], tmp_path: Path) -> None:
    half = recipe_for(name, sets).stage[0].train.batch_size // 2
    alone = finish(recipe_for(name, sets, micro_batch=half, threads=1), tmp_path / "alone")
    shared = recipe_for(name, sets, micro_batch=half, threads=1, processes=2)
    events = run_recipe(shared, tmp_path / "shared")
    for i, _ in enumerate(events):
        if i == 4:
            break
    events.close()
    assert not torch.multiprocessing.active_children()
    assert finish(shared, tmp_path / "shared") == alone


@pytest.mark.filterwarnings("ignore")  # of torch about its own compiler
def test_compiled_blocks_learn_the_same_in_one_process_and_in_two(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    half = recipe_for("flow", sets).stage[0].train.batch_size // 2
    same: dict[str, Any] = {"micro_batch": half, "threads": 1, "precision": "bf16"}
    plain = recipe_for("flow", sets, **same)
    finish(plain, tmp_path / "plain")
    alone = finish(recipe_for("flow", sets, **same, compile=True), tmp_path / "alone")
    assert finish(recipe_for("flow", sets, **same, compile=True, processes=2), tmp_path / "shared") == alone
    losses = [
        json.loads((tmp_path / folder / "model" / "stats.jsonl").read_text().splitlines()[-1])["held_out/loss"]
        for folder in ("plain", "alone")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.01)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"needs g\+\+"):
        finish(recipe_for("flow", sets, **same, compile=True), tmp_path / "none")
    monkeypatch.undo()
    with pytest.raises(ConfigError, match="no blocks to compile"):
        finish(recipe_for("vae", sets, compile=True), tmp_path / "vae")


def test_what_goes_wrong_in_another_process_is_told(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe, data = recipe_for("flow", sets), PackedSet(sets["digits"])
    package = build(recipe.stage[0], data, {}, recipe)
    crew = Crew(package.family, 2)
    feed = Feed(package, data, 0, tmp_path, False).batch(0, 8)
    update = Update("denoise", ("net",), 0, 0, 0, 0, 1.0, "fp32")
    bad = Feed(package, data, 0, tmp_path, False).batch(1, 8)
    bad.x[3] = torch.nan
    try:
        with pytest.raises(Diverged) as caught:
            crew.accumulate(update, [(0, feed), (1, bad)])
        assert caught.value.ids == (bad.ids[3],)
        assert crew.accumulate(update, [(0, feed), (1, feed)]).total == 16
        crew.helpers[0][0].kill()
        crew.helpers[0][0].join()
        with pytest.raises(OutOfRoom, match="was killed"):
            crew.accumulate(update, [(0, feed), (1, feed)])
    finally:
        crew.close()


def test_processes_are_refused_where_a_family_needs_its_whole_batch(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("dcgan", sets, processes=2)
    recipe.stage[0].model["g_norm"] = "batch"
    with pytest.raises(ConfigError, match="processes=1"):
        finish(recipe, tmp_path)


@pytest.mark.parametrize("name", ["flow", "vae", "lm"])
def test_products_in_bf16_learn_the_same_and_resume_exactly(name: str, sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for(name, sets, precision="bf16", optimizer="muon", seen=1024)
    whole = finish(recipe, tmp_path / "whole")
    events = run_recipe(recipe, tmp_path / "parts")
    for i, _ in enumerate(events):
        if i == 4:
            break
    events.close()
    assert finish(recipe, tmp_path / "parts") == whole
    plain = recipe_for(name, sets, optimizer="muon", seen=1024)
    assert finish(plain, tmp_path / "plain") != whole
    losses = [
        json.loads((tmp_path / folder / "model" / "stats.jsonl").read_text().splitlines()[-1])["held_out/loss"]
        for folder in ("whole", "plain")
    ]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


def test_a_flow_that_learns_alone_leaves_the_vae_and_may_have_its_latents_made_ahead(
    digits: Path, tmp_path: Path
) -> None:
    def recipe(**train: object) -> Recipe:
        labels = Part(id="labels")
        shared: dict[str, Any] = {"data": str(digits), "family": "cvae", "preset": "tiny", "conditioner": labels}
        vae = Stage(name="vae", **shared, model={"flow": 0}, train=TrainConfig(**{**SMALL, "seen": 128}))
        config = TrainConfig(**{**SMALL, "seen": 256, **train})
        flow = Stage(name="flow", **shared, start="vae", model={"learns": "flow"}, train=config)
        return Recipe(name="laid", stage=[vae, flow])

    said = {getattr(event, "text", "") for event in run_recipe(recipe(cache=True), tmp_path / "ahead")}
    assert '"laid" has no flow: begun anew' in said
    assert not any("not taken" in text for text in said)
    for _ in run_recipe(recipe(), tmp_path / "again"):
        pass
    before = load_file(tmp_path / "ahead" / "vae" / "package" / "weights.safetensors")
    ahead, again = (
        load_file(tmp_path / run / "flow" / "package" / "weights.safetensors") for run in ("ahead", "again")
    )
    assert all(torch.equal(ahead[name], tensor) for name, tensor in before.items())
    assert any(name.startswith("flow.") for name in ahead)
    for name, tensor in ahead.items():
        torch.testing.assert_close(tensor, again[name], rtol=1e-3, atol=1e-4)


def test_latents_and_captions_made_ahead_resume_exactly(digits: Path, tmp_path: Path) -> None:
    """The bundled model's way: a tower and an autoencoder as parts, everything encoded once, killed between."""
    rng = np.random.default_rng(0)
    with SetWriter(tmp_path / "words", SetInfo(name="words", kind="text", shape=())) as writer:
        for i in range(64):
            text = f"{i % 10} number {i}"
            writer.add(Item(f"w{i}", text, [text], target=rng.normal(size=16)))
    codec = Part(id="text", config={"tokenizer": "bytes", "length": 12, "normalise": "words"})
    train = TrainConfig(**{**SMALL, "seen": 256})
    tower = Stage(name="tower", data=str(tmp_path / "words"), family="text-tower", codec=codec, train=train,
                  model={"target": 16})  # fmt: skip
    vae = Stage(name="vae", data=str(digits), family="vae", train=train, model={"latent": "map"})
    flow = Stage(
        name="flow", data=str(digits), family="flow", codec=Part(id="latent", config={"part": "vae"}),
        conditioner=Part(id="text", config={"length": 4}), parts={"vae": "vae", "text": "tower"},
        train=TrainConfig(**{**SMALL, "cache": True}),
    )  # fmt: skip
    few = flow.model_copy(update={"name": "few", "family": "shortcut", "start": "flow"})
    recipe = Recipe(name="small", stage=[tower, vae, flow, few])

    def weights(folder: Path) -> str:
        return hashlib.sha256((folder / "few" / "package" / "weights.safetensors").read_bytes()).hexdigest()

    said = {getattr(event, "text", "") for event in run_recipe(recipe, tmp_path / "whole")}
    assert {"encoding the set once", "embedding the captions once"} <= said
    assert any("not taken from" in text and "cond.labels" in text for text in said), "it starts from the flow"
    for most in (80, 40, 30):
        events = run_recipe(recipe, tmp_path / "parts")
        for i, _ in enumerate(events):
            if i == most:
                break
        events.close()
    for _ in run_recipe(recipe, tmp_path / "parts"):
        pass
    assert weights(tmp_path / "parts") == weights(tmp_path / "whole")
    vocabulary = json.loads((tmp_path / "whole" / "flow" / "package" / "conditioner" / "vocabulary.json").read_text())
    assert vocabulary["names"] == [str(i) for i in range(10)]


def test_a_recipe_hands_its_start_to_who_builds_the_stage(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_for("flow", sets)
    finish(recipe, tmp_path / "first")
    starts = []
    monkeypatch.setattr("sojourn.train.build.build", lambda *args: starts.append(args[4]) or build(*args))
    events = run_recipe(recipe, tmp_path / "second", tmp_path / "first" / "model" / "package")
    next(event for event in events if event.kind == "progress")
    events.close()
    assert starts[0].card.family == "flow"


def test_who_starts_from_a_package_keeps_its_codec_unless_it_says_otherwise(sets: dict[str, Path]) -> None:
    recipe, data = recipe_for("lm", sets), PackedSet(sets["poems"])
    first = build(recipe.stage[0], data, {}, recipe)
    other = TextCodec.fitted(["abc"], **first.codec.config)
    start = replace(first, codec=other)
    assert first.codec.files != other.files
    assert build(recipe.stage[0], data, {}, recipe, start).codec.files == other.files
    stage = recipe.stage[0].model_copy(update={"codec": Part(id="text", config={"tokenizer": "chars", "length": 20})})
    assert build(stage, data, {}, recipe, start).codec.files == first.codec.files


def test_a_deeper_net_begins_as_the_one_that_it_starts_from(sets: dict[str, Path]) -> None:
    recipe, data = recipe_for("flow", sets), PackedSet(sets["digits"])
    first = build(recipe.stage[0], data, {}, recipe)
    with torch.no_grad():  # as after a training: all of it says something
        for p in first.family.parameters():
            p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(1)) * 0.2)
    deeper = recipe.stage[0].model_copy(update={"model": {"depth": first.family.config.depth + 2}})
    grown = build(deeper, data, {}, recipe)
    list(_start_from(grown, first))
    assert len(grown.family.net.blocks) == len(first.family.net.blocks) + 2

    def drawn(package: Package) -> torch.Tensor:
        cond = package.conditioner([Prompt.plain("3"), Prompt.plain("7")])
        return list(package.family.sample(cond, Noise([1, 2]), package.family.Options(steps=3)))[-1].x0

    assert torch.equal(drawn(grown), drawn(first))
    x = grown.codec.encode(data.raw(np.arange(8)))
    cond = grown.conditioner([Prompt.plain(str(i)) for i in range(8)])
    loss = grown.family.loss(grown.family.phases()[0].name, Batch(x, cond, torch.ones(8)), 0)
    loss.value.mean().backward()
    assert grown.family.net.blocks[-1].modulate.bias.grad.abs().max() > 0, "and it can learn"


def test_bf16_is_refused_where_a_loss_does_not_hold(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("dcgan", sets, precision="bf16")
    recipe.stage[0].model["loss"] = "wgan"
    with pytest.raises(ConfigError, match="bf16 does not hold for dcgan"):
        finish(recipe, tmp_path)


def test_a_run_that_never_began_claims_nothing(sets: dict[str, Path], tmp_path: Path) -> None:
    recipe = recipe_for("vae", sets, seen=128)
    recipe.stage[0].preset = "huge"
    with pytest.raises(NotFound, match="huge"):
        finish(recipe, tmp_path)
    recipe.stage[0].preset = "tiny"
    finish(recipe, tmp_path)
    recipe.stage[0].train.seed = 1
    with pytest.raises(ConfigError, match="holds a run with other settings"):
        finish(recipe, tmp_path)


def test_a_set_of_the_other_kind_is_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    swapped = {"digits": sets["poems"], "poems": sets["digits"]}
    for name, found in (("vae", "text"), ("lm", "image")):
        with pytest.raises(DataError, match=f"is of kind {found}"):
            finish(recipe_for(name, swapped), tmp_path / name)


def test_a_finished_run_notices_another_set(sets: dict[str, Path], tmp_path: Path) -> None:
    data = tmp_path / "digits"
    shutil.copytree(sets["digits"], data)
    recipe = recipe_for("dcgan", {**sets, "digits": data}, seen=128)
    finish(recipe, tmp_path / "run")
    told = [event.text for event in run_recipe(recipe, tmp_path / "run") if isinstance(event, Log)]
    assert any("trained already" in text for text in told)
    info = json.loads((data / "set.json").read_text())
    info["labels"][0]["values"] = [*"abcdefghij"]
    (data / "set.json").write_text(json.dumps(info))
    with pytest.raises(DataError, match="not the one that this run began with"):
        finish(recipe, tmp_path / "run")


def test_a_judge_may_train_on_what_is_held_out(digits: Path, tmp_path: Path) -> None:
    data = PackedSet(digits)
    drawn = {int(row) for k in range(60) for row in data.draw(0, k, 60, "all")}
    assert drawn == set(range(len(data)))
    assert not set(data.indices("valid").tolist()) & {int(row) for k in range(60) for row in data.draw(0, k, 60)}
    valid = {data.rows[row]["id"] for row in data.indices("valid").tolist()}
    for split, wanted in (("train", False), ("all", True)):
        config = TrainConfig(**{**SMALL, "split": split, "seen": 2048})
        stage = Stage(data=str(digits), family="judge", conditioner=Part(id="labels"), train=config)
        run = loop.Run(build(stage, data, {}, Recipe(stage=[stage])), data, config, tmp_path / split)
        list(run.start())
        seen: set[str] = set()
        feed, batch = run.feed, run.feed.batch
        feed.batch = lambda *a, ask=batch, into=seen: _noted(ask(*a), into)  # type: ignore[method-assign]
        for _ in range(60):
            run.one_round()
        assert bool(seen & valid) == wanted


def _noted(batch: Batch, into: set[str]) -> Batch:
    into.update(batch.ids)
    return batch


@pytest.mark.parametrize("name", STAGES)
def test_killed_and_resumed_is_uninterrupted(name: str, sets: dict[str, Path], tmp_path: Path) -> None:
    """kill -9 at random times; the last run goes to the end. `SOJOURN_KILLS` sets how many (20 in the long form)."""
    recipe = recipe_for(name, sets, seen=1024)
    path = tmp_path / "recipe.json"
    path.write_text(recipe.model_dump_json())
    code = (
        "import sys, pathlib\n"
        "from sojourn.config import Recipe\nfrom sojourn.train.build import run_recipe\n"
        "recipe = Recipe.model_validate_json(pathlib.Path(sys.argv[1]).read_text())\n"
        "print('ready', flush=True)\n"
        "for _ in run_recipe(recipe, pathlib.Path(sys.argv[2])): pass\n"
    )
    command = [sys.executable, "-c", code, str(path)]

    def start(folder: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([*command, str(tmp_path / folder)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        with process.stdout as told:
            told.readline()
        return process

    begun = time.monotonic()
    assert start("whole").wait() == 0
    span = time.monotonic() - begun
    rng = random.Random(5)
    for _ in range(int(os.environ.get("SOJOURN_KILLS", "2"))):
        process = start("killed")
        time.sleep(rng.uniform(0.2, 0.9) * span)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start("killed").wait() == 0
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_a_snapshot_is_old_or_new_whenever_it_is_killed(tmp_path: Path) -> None:
    """os._exit before and after every call of a save that changes the disk: the newest whole snapshot loads."""
    code = """
import json, os, pathlib, shutil, sys, torch
from sojourn import safefile
from sojourn.train import state

root = pathlib.Path(sys.argv[1])
count = 0

def patched(fn, point):
    def call(*args, **kwargs):
        global count
        count += 1
        if count == point:
            os._exit(9)
        out = fn(*args, **kwargs)
        count += 1
        if count == point:
            os._exit(9)
        return out
    return call

for point in range(1, 60):
    folder = root / str(point)
    state.save(folder, "000000000001-0", {"a": torch.ones(1000)}, {"seen": 1}, 2)
    child = os.fork()
    if child == 0:
        for module, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (os, "mkdir"), (os, "open"),
                             (safefile, "_swap"), (shutil, "rmtree"), (json, "dumps")):
            setattr(module, name, patched(getattr(module, name), point))
        state.save(folder, "000000000002-0", {"a": 2 * torch.ones(1000)}, {"seen": 2}, 1)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    found = state.latest(folder)
    assert found is not None, point
    tensors, meta = found
    assert float(tensors["a"][0]) == meta["seen"], point
    print(meta["seen"])
    if os.waitstatus_to_exitcode(status) == 0:
        break
"""
    result = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True)
    ends = result.stdout.split()
    assert len(ends) > 12
    assert set(ends) == {"1", "2"}
    assert ends[-1] == "2"


def test_a_damaged_snapshot_is_passed_over(tmp_path: Path) -> None:
    state.save(tmp_path, "1-0", {"a": torch.ones(3)}, {"seen": 1}, 5)
    state.save(tmp_path, "2-0", {"a": torch.ones(3)}, {"seen": 2}, 5)
    with (tmp_path / "2-0" / "tensors.safetensors").open("r+b") as file:
        file.seek(-2, 2)
        file.write(b"x")
    found = state.latest(tmp_path)
    assert found is not None
    assert found[1]["seen"] == 1


def test_a_full_disk_leaves_the_old_snapshot(sets: dict[str, Path], tmp_path: Path) -> None:
    """RLIMIT_FSIZE below a snapshot's size: one line, no temporary file, and the run goes on when there is room."""
    import resource

    recipe = recipe_for("flow", sets)
    events = run_recipe(recipe, tmp_path / "run")
    for event in events:
        if event.kind == "log" and "snapshot at 256" in getattr(event, "text", ""):
            break
    before = state.latest(tmp_path / "run" / "model" / "state")
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(OutOfRoom, match="no room to write"):
            for _ in events:
                pass
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    after = state.latest(tmp_path / "run" / "model" / "state")
    assert before is not None
    assert after is not None
    assert after[1]["seen"] == before[1]["seen"]
    left = [path for path in (tmp_path / "run").rglob("*") if path.name.endswith(".part")]
    assert left == []
    assert finish(recipe, tmp_path / "run") == finish(recipe, tmp_path / "other")


def poison(monkeypatch: pytest.MonkeyPatch, at: int, times: int) -> None:
    """Make the loss of one row NaN in the update that begins at `at`, the first `times` times."""
    from sojourn.families.diffusion import Diffusion

    plain, left = Diffusion.loss, [times]

    def loss(self, phase, batch, seen):  # type: ignore[no-untyped-def]
        out = plain(self, phase, batch, seen)
        if seen == at and self.training and left[0]:
            left[0] -= 1
            value = out.value.clone()
            value[3] = float("nan")
            return type(out)(value, out.logs, out.units, out.stats)
        return out

    monkeypatch.setattr(Diffusion, "loss", loss)


def test_a_nan_rolls_back_and_halves_the_rate(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at=288, times=1)
    logs = [e.text for e in run_recipe(recipe_for("flow", sets), tmp_path) if e.kind == "log"]  # type: ignore[attr-defined]
    (warning,) = [text for text in logs if "not finite" in text]
    assert "sample 288" in warning
    assert "back to 256, rate x 0.5, try 1 of 3" in warning
    rows = warning.split("rows ")[1].split(")")[0]
    assert rows.startswith("d")
    found = state.latest(tmp_path / "model" / "state")
    assert found is not None
    tensors, meta = found
    assert meta["rate"] == 0.5
    assert all(bool(torch.isfinite(t).all()) for t in tensors.values() if t.is_floating_point())


def test_a_loss_that_stays_nan_stops_with_step_and_rows(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, at=288, times=99)
    with pytest.raises(TrainingFailed, match=r"diverged 4 times, last at sample 288 .*rows d\d+"):
        for _ in run_recipe(recipe_for("flow", sets), tmp_path):
            pass


def test_running_out_of_memory_halves_the_micro_batch(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sojourn.families.vae import VAE

    plain = VAE.loss

    def loss(self, phase, batch, seen):  # type: ignore[no-untyped-def]
        if self.training and len(batch) > 8:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes")
        return plain(self, phase, batch, seen)

    monkeypatch.setattr(VAE, "loss", loss)
    finish(recipe_for("vae", sets), tmp_path)
    found = state.latest(tmp_path / "model" / "state")
    assert found is not None
    assert found[1]["micro"] == 8


GLIBC = pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a matter of glibc")


def grown(*lines: str) -> int:
    """MiB by which a new process grows with these lines."""
    head = "import psutil, torch; from sojourn.train.room import give_back, kept_memory"
    tail = "print(psutil.Process().memory_info().rss >> 20)"
    first, last = (
        int(subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True).stdout)
        for text in ("\n".join([head, tail]), "\n".join([head, *lines, tail]))
    )
    return last - first


STEP = ("x = torch.ones(2**26)", "del x")
"""256 MB, and no more."""


@GLIBC
def test_memory_that_a_step_frees_is_kept_for_the_next() -> None:
    assert grown(*STEP) < 100
    begun = ("within = kept_memory()", "within.__enter__()", *STEP)
    assert grown(*begun) > 200
    assert grown(*begun, "within.__exit__(None, None, None)", "give_back()") < 100, "until the training is over"
    assert grown(*begun, "within.__exit__(None, None, None)", "give_back()", *STEP) < 100, "and so it stays"


@GLIBC
def test_memory_below_something_in_use_is_given_back() -> None:
    many = ("many = [torch.ones(2**12) for _ in range(2**14)]", "last = many.pop()", "del many")
    assert grown(*many) > 200
    assert grown(*many, "give_back()") < 100


def test_a_training_keeps_its_memory(sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    within: list[bool] = []

    @contextmanager
    def kept() -> Iterator[None]:
        within.append(True)
        yield
        within.append(False)

    monkeypatch.setattr(loop, "kept_memory", kept)
    before = torch.get_num_threads()
    recipe = recipe_for("vae", sets, seen=64)
    recipe.stage[0].train.threads = before + 1
    finish(recipe, tmp_path)
    assert within == [True, False]
    assert torch.get_num_threads() == before, "what comes after is not of its threads"


def test_a_batch_that_never_fits_is_refused_before_training(
    sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sojourn.train.room.free_memory", lambda: 1000)
    with pytest.raises(OutOfRoom, match="try batch_size <= "):
        finish(recipe_for("vae", sets), tmp_path)


def test_two_micro_batches_give_the_gradient_of_one(sets: dict[str, Path], tmp_path: Path) -> None:
    """With the noise taken out of the loss, the split must not show."""
    recipe = recipe_for("lm", sets)
    stage = recipe.stage[0]
    data = PackedSet(stage.data)
    grads = []
    for micro in (32, 8):
        package = build(stage, data, {}, recipe)
        run = loop.Run(package, data, stage.train.model_copy(update={"micro_batch": micro}), tmp_path)
        list(run.feed.prepare())
        run.family.eval()
        batch = run.feed.batch(0, 32)
        phase = run.phases[0]
        total = run.gradients(phase, 0, 0, batch).total
        grads.append([p.grad / total for p in run.family.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_another_setting_in_the_same_folder_is_refused(sets: dict[str, Path], tmp_path: Path) -> None:
    finish(recipe_for("flow", sets), tmp_path)
    with pytest.raises(ConfigError, match=r"train\.lr was 0\.001, now 0\.002"):
        finish(recipe_for("flow", sets, lr=0.002), tmp_path)


@pytest.mark.parametrize("name", ["flow", "vae"])
def test_a_flow_keeps_its_last_snapshot_and_a_vae_its_best(
    name: str, sets: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A flow's held-out loss rises long before its samples are at their best."""
    scores = iter(range(100))
    monkeypatch.setattr("sojourn.train.loop.held_out", lambda *args: {"held_out/loss": float(next(scores))})
    finish(recipe_for(name, sets), tmp_path)
    stage = tmp_path / "model"
    first = (stage / "best" / "weights.safetensors").is_file()
    assert first == (name == "vae")
    card = json.loads((stage / "package" / "card.json").read_text())
    then = 128 if name == "vae" else 512
    assert card["seen"] == then, "the card is of the weights"
    assert [metric["value"] for metric in card["metrics"]] == [0.0 if name == "vae" else 3.0]
    sheet = (stage / "package" / "sheet.png").read_bytes()
    assert sheet == (stage / "sheets" / f"{then:012d}.png").read_bytes()
    weights = load_file(stage / "package" / "weights.safetensors")
    ema, *_ = sorted((stage / "state").iterdir(), reverse=True)
    state = {k: v for path in ema.glob("*.safetensors") for k, v in load_file(path).items() if k.startswith("ema/")}
    same = all(torch.equal(value, state[f"ema/{key}"].to(value.dtype)) for key, value in weights.items())
    assert same == (name == "flow")


def test_it_learns_the_digits(sets: dict[str, Path], tmp_path: Path) -> None:
    """Held-out loss falls by a fifth against the first snapshot, which is past the first thousand already."""
    finish(recipe_for("vae", sets, seen=8192, snapshot=1024, lr=3e-3, sheet=0), tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "model" / "stats.jsonl").read_text().splitlines()]
    held = [line["held_out/loss"] for line in lines if "held_out/loss" in line]
    assert held[-1] < 0.8 * held[0]


def test_shipped_recipes_load_and_overrides_reach_them() -> None:
    assert load_recipe("vae", ["preset=128"]).stage[0].preset == "128"
    recipe = load_recipe("digits", ["seen=1000", "train.lr=0.5", "preset=tiny"])
    assert recipe.stage[0].train.seen == 1000
    assert recipe.stage[0].train.lr == 0.5
    # "model" is what a stage without a name is called, and a setting of it.
    assert load_recipe("dcgan", ["model.augment=ada"]).stage[0].model == {"augment": "ada"}
    assert load_recipe("dcgan", ["model.model.augment=ada", "model.seen=5"]).stage[0].train.seen == 5
    # What only the family has is one of its model.
    assert load_recipe("dcgan", ["augment=ada", "width=16"]).stage[0].model == {"augment": "ada", "width": 16}
    assert load_recipe("vq-vae", ["prior.width=64"]).stage[1].model == {"width": 64}
    assert load_recipe("dcgan", ["widths=[8, 16]", "family=vae"]).stage[0].model == {"widths": [8, 16]}
    with pytest.raises(ConfigError, match=r"there is no setting witdh; did you mean width") as wrong:
        load_recipe("dcgan", ["witdh=16"])
    assert wrong.value.localised("zh") == '-o "witdh=16"：没有设置 witdh；是不是 width？'
    with pytest.raises(ConfigError, match=r"there is no setting stage\.0\.train\.sen; did you mean seen"):
        load_recipe("digits", ["train.sen=1000"])
    with pytest.raises(ConfigError, match="begin it with one of tower, autoencoder, decoder, flow"):
        load_recipe("emoji", ["lr=1"])
    with pytest.raises(ConfigError, match="must be 10 or less"):
        load_recipe("digits", ["lr=1e9"])


def test_schedule_rises_holds_and_falls() -> None:
    config = TrainConfig(seen=1000, batch_size=10, warmup=100, decay=0.5)
    assert schedule(0, config) == pytest.approx(0.1)
    assert schedule(100, config) == schedule(500, config) == 1
    assert schedule(750, config) == pytest.approx(0.5)
    assert schedule(1000, config) == 0


def test_muon_orthogonalises() -> None:
    torch.manual_seed(0)
    for shape in ((2, 16, 40), (2, 40, 16)):
        g = torch.randn(shape)
        values = torch.linalg.svdvals(orthogonalise(g))
        assert float(values.min()) > 0.6
        assert float(values.max()) < 1.3
        u, _, vh = torch.linalg.svd(g, full_matrices=False)
        cosine = torch.nn.functional.cosine_similarity((u @ vh).flatten(1), orthogonalise(g).flatten(1))
        assert float(cosine.min()) > 0.95


def test_muon_descends_a_matrix_problem() -> None:
    torch.manual_seed(0)
    target = torch.randn(12, 20)
    w = torch.zeros(12, 20, requires_grad=True)
    optimizer = Muon([w], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (w - target).square().sum().backward()
        optimizer.step()
    assert float((w.detach() - target).square().mean()) < 0.05


@pytest.mark.parametrize("name", ["vae", "dcgan"])
def test_what_a_step_keeps_grows_with_its_batch(name: str, sets: dict[str, Path], tmp_path: Path) -> None:
    stage = recipe_for(name, sets).stage[0]
    data = PackedSet(sets["digits"] if "digits" in sets else next(iter(sets.values())))
    family = build(stage, data, {}, recipe_for(name, sets)).family.train()
    x = torch.zeros(8, *family.spec.shape)
    cond = Cond(labels=torch.zeros(8, len(family.spec.labels), dtype=torch.long))
    phase = family.phases()[-1]
    few, many = (room._kept(family, phase, Batch(x[:n], cond[:n], torch.ones(n))) for n in (2, 8))
    weights = sum(p.numel() * p.element_size() for p in family.parameters())
    assert few > x[:2].numel() * 4, "more than the pictures alone"
    assert 6 * x[:1].numel() * 4 < many - few <= 4 * few + weights
