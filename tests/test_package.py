"""Packages: save, load, verify, adapters, parts, zips, and one frozen package per format."""

from __future__ import annotations

import json
import os
import resource
import shutil
import stat
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import toy
from torch import Tensor
from toy import FROZEN, ToyCodec, lora, make, nested, reseal, sample

from sojourn import card, package, safefile, weights
from sojourn.errors import InvalidInput, NotFound, OutOfRoom, PackageError
from sojourn.package import Adapter
from sojourn.schema import Metric, Part, Source


@pytest.fixture(autouse=True)
def toy_family(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path / "home"))
    toy.enter()
    yield
    toy.leave()


# Save and load


@pytest.mark.parametrize("dtype", ["int8", "fp16", "fp32"])
def test_a_package_comes_back_as_it_went(tmp_path: Path, dtype: Any) -> None:
    before = nested()
    saved = package.save(before, tmp_path / "p", dtype=dtype)
    state = torch.get_rng_state()
    after = package.load(tmp_path / "p")
    assert torch.equal(state, torch.get_rng_state())
    assert torch.allclose(sample(before), sample(after), atol={"int8": 5e-2, "fp16": 5e-3, "fp32": 0}[dtype], rtol=0)
    for name, tensor in before.family.state_dict().items():
        exact = dtype == "fp32" or tensor.ndim < 2
        off = (tensor - after.family.state_dict()[name]).abs()
        near = 1e-3 * tensor.abs() + 1e-4
        if dtype == "int8" and not exact:
            near = (tensor.flatten(1).abs().amax(dim=1) / 250).view(-1, *[1] * (tensor.ndim - 1)).expand_as(tensor)
        assert (off <= (0 if exact else near)).all(), name
    assert after.family.norm.running_mean.min() > 0
    assert int(after.family.seen) == 123_456_789
    assert after.family.embed_out.weight is after.family.embed_in.weight
    assert torch.equal(after.family.table, before.family.table)
    assert not after.family.training
    assert all(p.dtype == torch.float32 and p.requires_grad for p in after.family.parameters())
    assert after.card == saved
    assert saved.identity == package.identity(saved)
    assert saved.can == ("encode", "sample")
    assert after.codec.files == {"tokenizer.json": b'{"a": 1}'}
    assert after.codec.parts["inner"] is after.parts["inner"]
    assert after.dtype == dtype
    assert package.verify(tmp_path / "p") == []
    text = (tmp_path / "p" / "README.md").read_text()
    assert "A toy." in text
    assert saved.identity in text


def test_bytes_with_a_scale_are_half_the_size_and_are_checked_like_others(tmp_path: Path) -> None:
    rows = torch.tensor([[0.0, 0.0], [1e-30, -2e-30], [3.0, 1.0], [65504.0, 1e9]])
    kept = weights.stored({"w": rows, "b": torch.ones(2)}, "int8")
    assert {name: tensor.dtype for name, tensor in kept.items()} == {
        "w": torch.int8, "w.scale": torch.float32, "b": torch.float32,
    }  # fmt: skip
    back = dict(weights.whole(kept.items(), {"w", "b"}))["w"]
    assert ((back - rows).abs() <= rows.abs().amax(dim=1, keepdim=True) / 250).all()
    assert torch.equal(weights.stored({"w": back}, "int8")["w"], kept["w"])
    bad = rows.clone()
    bad[0, 0] = torch.nan
    with pytest.raises(PackageError, match="not finite"):
        weights.stored({"w": bad}, "int8")
    package.save(make(), tmp_path / "p", dtype="int8")
    with safefile.TensorFile(tmp_path / "p", "weights.safetensors") as file:
        tensors = dict(file)
    name = next(name for name in tensors if name.endswith(".scale"))
    for change in ({name: torch.full_like(tensors[name], torch.inf)}, {name: tensors[name][:-1]}, {name: None}):
        given = {key: tensor for key, tensor in (tensors | change).items() if tensor is not None}
        safefile.write_tensors(tmp_path / "p" / "weights.safetensors", given)
        with pytest.raises(PackageError, match=r"not finite|do not fit"):
            package.load(tmp_path / "p", verify=False)


def test_what_is_saved_again_unchanged_keeps_its_identity_parts_and_all(tmp_path: Path) -> None:
    for dtype in ("int8", "fp16", "fp32"):
        first = package.save(replace(nested(), dtype="fp32"), tmp_path / dtype, dtype=dtype)
        second = package.save(package.load(tmp_path / dtype), tmp_path / f"{dtype}-2")
        assert second.identity == first.identity
        assert second.parts == first.parts
        assert (tmp_path / dtype / "card.json").read_bytes() == (tmp_path / f"{dtype}-2" / "card.json").read_bytes()


def test_the_file_is_plain_safetensors_and_theirs_is_read(tmp_path: Path) -> None:
    package.save(make(), tmp_path / "p", dtype="fp32")
    path = tmp_path / "p" / "weights.safetensors"
    theirs = safetensors.torch.load_file(path)
    state = make().family.state_dict()
    assert theirs.keys() == state.keys() - {"embed_out.weight"}
    assert all(torch.equal(theirs[name], state[name]) for name in theirs)
    safetensors.torch.save_file(theirs, path, metadata={"format": "pt"})
    reseal(tmp_path / "p")
    assert torch.equal(sample(package.load(tmp_path / "p")), sample(make()))


def test_a_net_outside_the_state_keeps_its_random_start(tmp_path: Path) -> None:
    before = make(frozen=True)
    package.save(before, tmp_path / "p")
    after = package.load(tmp_path / "p")
    assert torch.equal(before.family.reference.weight, after.family.reference.weight)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_cannot_be_kept_are_not_saved(tmp_path: Path, value: float) -> None:
    package.save(make(), tmp_path / "p")
    bad = make(3)
    with torch.no_grad():
        bad.family.enter.weight[0, 0] = value
    with pytest.raises(PackageError, match=r"enter\.weight.*not finite" + (" in fp16" if value == 1e6 else ";")):
        package.save(bad, tmp_path / "p", dtype="fp16")
    assert os.listdir(tmp_path) == ["p"]
    assert torch.allclose(sample(package.load(tmp_path / "p")), sample(make()), atol=5e-3)


def test_a_net_that_codec_and_conditioner_would_not_give_is_not_saved(tmp_path: Path) -> None:
    odd = replace(make(), codec=ToyCodec({"size": 9}))
    with pytest.raises(PackageError, match="was built for"):
        package.save(odd, tmp_path / "p")


def test_saving_deletes_nobodys_files(tmp_path: Path) -> None:
    package.save(make(), tmp_path / "p")
    (tmp_path / "p" / "thesis.tex").write_text("mine")
    with pytest.raises(InvalidInput, match=r"thesis\.tex"):
        package.save(make(), tmp_path / "p")
    with pytest.raises(InvalidInput, match="is a file"):
        package.save(make(), tmp_path / "p" / "thesis.tex")
    assert (tmp_path / "p" / "thesis.tex").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "real")
    package.save(make(), tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert package.verify(tmp_path / "real") == []


def test_a_sheet_lies_beside_the_identity(tmp_path: Path) -> None:
    plain = package.save(make(), tmp_path / "p")
    (tmp_path / "some.png").write_bytes(b"png")
    assert package.save(make(), tmp_path / "p", sheet=tmp_path / "some.png").identity == plain.identity
    assert (tmp_path / "p" / "sheet.png").read_bytes() == b"png"
    with pytest.raises(InvalidInput, match="no sheet"):
        package.save(make(), tmp_path / "p", sheet=tmp_path / "some.gif")
    assert package.verify(tmp_path / "p") == []


def arm(monkeypatch: pytest.MonkeyPatch, kill_at: int, moment: str) -> None:
    """Let the process die before or after its kill_at-th call that touches the disk's order of things."""
    calls = 0

    def deadly(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal calls
            calls += 1
            mine = calls == kill_at
            if mine and moment == "before":
                os._exit(9)
            out = real(*args, **kwargs)
            if mine:
                os._exit(9)
            return out

        return call

    for holder, name in ((os, "fsync"), (os, "rename"), (os, "replace"), (safefile, "_swap"), (shutil, "rmtree")):
        monkeypatch.setattr(holder, name, deadly(getattr(holder, name)))


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("moment", ["before", "after"])
def test_killed_at_any_point_of_a_save_the_old_or_the_new_package_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swap: bool, moment: str
) -> None:
    old, new = nested(), make(9, {"part": "inner"}, {"inner": make(8)})
    target = tmp_path / "p"
    fresh, stale = package.save(new, target).identity, package.save(old, target).identity
    for kill_at in range(1, 100):
        pid = os.fork()
        if pid == 0:
            try:
                if not swap:
                    monkeypatch.setattr(safefile, "_swap", lambda a, b: False)
                arm(monkeypatch, kill_at, moment)
                package.save(new, target)
            finally:
                os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        loaded = package.load(target)
        assert loaded.card.identity in (fresh, stale)
        if code == 0:
            break
        if loaded.card.identity == fresh or len(os.listdir(tmp_path)) > 1:
            assert package.save(old, target).identity == stale
    assert kill_at > 12
    assert loaded.card.identity == fresh
    assert os.listdir(tmp_path) == ["p"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_what_killed_processes_left_is_swept_and_what_live_ones_write_is_not(tmp_path: Path) -> None:
    dead = os.fork()
    if dead == 0:
        os._exit(0)
    os.waitpid(dead, 0)
    (tmp_path / f".p.{dead}-00aa11.part" / "inside").mkdir(parents=True)
    (tmp_path / f".other.json.{dead}-00aa11.part").touch()
    kept = {f".p.{os.getpid()}-00aa11.part", f".p.{dead}.part", "x.part"}
    for name in kept:
        (tmp_path / name).mkdir()
    package.save(make(), tmp_path / "p")
    assert set(os.listdir(tmp_path)) == kept | {"p"}


def test_a_full_disk_leaves_the_old_package_and_nothing_else(tmp_path: Path) -> None:
    package.save(make(), tmp_path / "p")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, hard))
    try:
        with pytest.raises(OutOfRoom, match=r"no room to write .*weights\.safetensors.* MB are free"):
            package.save(make(width=128), tmp_path / "p")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["p"]
    assert package.verify(tmp_path / "p") == []


# Names, cards, metrics


def test_names_are_found_and_strangers_get_help(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(card, "__file__", str(tmp_path / "src" / "card.py"))
    with pytest.raises(NotFound, match="there are none yet"):
        package.find("glyphs")
    models = package.home() / "models"
    assert models == tmp_path / "home" / "models"
    package.save(make(), models / "glyphs")
    package.save(make(1), tmp_path / "src" / "starter" / "emoji")
    package.save(make(2), tmp_path / "src" / "starter" / "glyphs")
    (models / "junk").mkdir()
    (models / "junk" / "card.json").write_text("{")
    assert package.find("glyphs") == models / "glyphs"
    assert package.find(str(models / "glyphs")) == models / "glyphs"
    assert package.load("emoji").card.name == "toy"
    assert [(name, path.name) for name, path, _ in package.list_packages()] == [
        ("emoji", "emoji"),
        ("glyphs", "glyphs"),
    ]
    with pytest.raises(NotFound, match=r'no package "emojj"; did you mean "emoji"\? Known: emoji, glyphs, junk'):
        package.find("emojj")
    with pytest.raises(NotFound, match="known: emoji, glyphs, junk"):
        package.find("x" * 100_000)
    for odd in (str(models / "glyphs"), "../models/glyphs", "glyphs/", "~nobody/x", "a\0b", "\x1b[31m", ""):
        with pytest.raises(NotFound) as caught:
            package.find(odd, paths=False)
        assert "\x1b" not in str(caught.value)
    for odd in ("~nobody/x", "a\0b", ""):
        with pytest.raises(NotFound):
            package.find(odd)


def test_metrics_come_later_and_the_identity_stays(tmp_path: Path) -> None:
    before = package.save(make(), tmp_path / "p")
    source = Source(name="a|b <script>", licence="MIT", count=5, url="https://example.org")
    after = package.update_card(
        tmp_path / "p", metrics=[Metric(name="kid", value=0.125, seen=1000)], sources=[source], failures=["no hands"]
    )
    assert after.identity == before.identity
    assert package.load(tmp_path / "p").card.metrics[0].value == 0.125
    assert package.verify(tmp_path / "p") == []
    text = (tmp_path / "p" / "README.md").read_text()
    assert "| kid | 0.125 |" in text
    assert "a\\|b &lt;script>" in text
    assert "- no hands" in text
    for field in ("family", "config", "identity", "files", "format", "nonsense"):
        with pytest.raises(InvalidInput, match="cannot be changed"):
            package.update_card(tmp_path / "p", **{field: "x"})
    for wrong in ({"seen": "many"}, {"metrics": [Metric(name="kid", value=float("nan"))]}, {"about": "x" * (2 << 20)}):
        with pytest.raises(InvalidInput, match="card"):
            package.update_card(tmp_path / "p", **wrong)
    with pytest.raises(PackageError, match="package name"):
        package.update_card(tmp_path / "p", name="../x")
    assert package.verify(tmp_path / "p") == []


def test_the_identity_covers_what_it_should(tmp_path: Path) -> None:
    first = package.save(make(), tmp_path / "p")
    for change in (
        {"family": "other"}, {"config": {"width": 9}}, {"codec": Part(id="other")}, {"conditioner": Part(id="other")},
        {"options": {"steps": 4}}, {"parts": {"inner": "0"}}, {"files": {"weights.safetensors": "0"}},
    ):  # fmt: skip
        assert package.identity(first.model_copy(update=change)) != first.identity
    for change in ({"about": "x"}, {"name": "y"}, {"seen": 5}, {"metrics": [Metric(name="kid", value=1)]}):
        assert package.identity(first.model_copy(update=change)) == first.identity


def test_formats_are_lifted_step_by_step_and_newer_ones_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PackageError, match=r"^made by a newer Sojourn: format 2, this one reads up to 1; upgrade$"):
        package.migrate({"format": 2})
    for wrong in ({}, {"format": 0}, {"format": "1"}, {"format": True}, {"format": 1.0}):
        with pytest.raises(PackageError, match="no format number"):
            package.migrate(wrong)
    assert package.migrate({"format": 1, "name": "a"}) == {"format": 1, "name": "a"}
    monkeypatch.setattr(card, "FORMAT", 3)
    monkeypatch.setitem(card._MIGRATIONS, 1, lambda raw: {**raw, "title": raw["name"]})
    monkeypatch.setitem(card._MIGRATIONS, 2, lambda raw: {**raw, "name": raw["name"] + "!"})
    assert package.migrate({"format": 1, "name": "a"}) == {"format": 3, "name": "a!", "title": "a"}
    assert package.migrate({"format": 2, "name": "a"}) == {"format": 3, "name": "a!"}


def test_a_migrated_package_is_still_the_same_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = package.save(make(), tmp_path / "p")
    monkeypatch.setattr(card, "FORMAT", 2)
    monkeypatch.setitem(card._MIGRATIONS, 1, lambda raw: {**raw, "config": {**raw["config"], "grid": 3}})
    after = package.load(tmp_path / "p")
    assert after.family.grid.shape == (3, 3)
    assert after.card.identity == before.identity


def test_the_frozen_package_of_format_1_still_gives_its_sample() -> None:
    frozen = json.loads((FROZEN.parent / "package-v1.json").read_text())
    loaded = package.load(FROZEN)
    assert loaded.card.identity == frozen["identity"]
    assert package.verify(FROZEN) == []
    assert torch.allclose(sample(loaded), torch.tensor(frozen["sample"]), atol=1e-5)
    assert torch.allclose(sample(loaded.parts["inner"]), torch.tensor(frozen["inner"]), atol=1e-5)


def test_weights_that_do_not_fit_are_listed() -> None:
    source, target = make().family, make(5).family
    assert package.load_weights(target, source.state_dict()) == []
    assert all(
        torch.equal(a, b) for a, b in zip(source.state_dict().values(), target.state_dict().values(), strict=True)
    )
    tensors = {name: tensor for name, tensor in source.state_dict().items() if name != "start"}
    tensors |= {"conv.weight": torch.zeros(1), "other": torch.zeros(2, 3), "seen": torch.zeros(())}
    del tensors["embed_in.weight"]  # its tied twin is there
    target = make(5).family
    kept = target.conv.weight.clone()
    found = package.load_weights(target, tensors)
    assert sorted(str(problem) for problem in found) == [
        "conv.weight: the net has shape (4, 1, 3, 3), the weights (1,)",
        "other: only in the weights ((2, 3))",
        "seen: the net has dtype int64, the weights float32",
        "start: only in the net ((8,))",
    ]
    assert torch.equal(target.enter.weight, source.enter.weight)
    assert torch.equal(target.embed_in.weight, source.embed_in.weight)
    assert torch.equal(target.conv.weight, kept)
    with pytest.raises(PackageError, match="in 4 tensors"):
        package.load_weights(target, tensors, strict=True)


# Adapters


def test_adapters_are_kept_apart_and_merged_at_load(tmp_path: Path) -> None:
    base = make()
    delta = Adapter("cold", {"enter.bias": torch.ones(8)}, "delta", 2.0)
    package.save(replace(base, adapters=(lora(), delta)), tmp_path / "p", dtype="fp32")
    apart = package.load(tmp_path / "p", merged=False)
    assert torch.equal(sample(apart), sample(base))
    assert [(a.name, a.kind, a.strength) for a in apart.adapters] == [("cold", "delta", 2.0), ("warm", "lora", 0.5)]
    merged = package.load(tmp_path / "p")
    assert merged.adapters == ()
    a, b = lora().tensors["layers.0.weight.A"], lora().tensors["layers.0.weight.B"]
    assert torch.allclose(merged.family.layers[0].weight, base.family.layers[0].weight + 0.5 * b @ a)
    conv = torch.einsum("or,rikl->oikl", lora().tensors["conv.weight.B"][:, :, 0, 0], lora().tensors["conv.weight.A"])
    assert torch.allclose(merged.family.conv.weight, base.family.conv.weight + 0.5 * conv, atol=1e-6)
    assert torch.equal(merged.family.enter.bias, base.family.enter.bias + 2)
    off = package.load(tmp_path / "p", strengths={"warm": 0, "cold": 0})
    assert torch.equal(sample(off), sample(base))
    with pytest.raises(NotFound, match='no adapter "hot"'):
        package.load(tmp_path / "p", strengths={"hot": 1})
    assert package.verify(tmp_path / "p") == []
    again = package.save(merged, tmp_path / "q")
    assert not any(name.startswith("adapters/") for name in again.files)
    assert torch.allclose(sample(package.load(tmp_path / "q")), sample(merged), atol=1e-4)


@pytest.mark.parametrize(
    "tensors",
    [
        {"layers.0.weight.A": torch.ones(2, 8)},
        {"layers.0.weight.A": torch.ones(2, 8), "layers.0.weight.B": torch.ones(8, 3)},
        {"layers.0.weight.A": torch.ones(2, 9), "layers.0.weight.B": torch.ones(8, 2)},
        {"nowhere.A": torch.ones(2, 8), "nowhere.B": torch.ones(8, 2)},
        {"layers.0.bias.A": torch.ones(1, 1), "layers.0.bias.B": torch.ones(8, 1)},
        {"seen.A": torch.ones(1, 1), "seen.B": torch.ones(1, 1)},
        {"layers.0.weight.A": torch.ones(999, 8), "layers.0.weight.B": torch.ones(8, 999)},
        {"layers.0.weight": torch.ones(8, 8)},
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, tensors: dict[str, Tensor]) -> None:
    odd = Adapter("odd", tensors)
    with pytest.raises(PackageError, match='adapter "odd" does not fit'):
        package.save(replace(make(), adapters=(odd,)), tmp_path / "p")
    package.save(replace(make(), adapters=(replace(lora(), name="odd"),)), tmp_path / "p")
    safefile.write_tensors(tmp_path / "p" / "adapters" / "odd.safetensors", tensors)
    reseal(tmp_path / "p")
    with pytest.raises(PackageError, match='adapter "odd" does not fit'):
        package.load(tmp_path / "p")


# Zips


def test_a_package_travels_as_a_zip(tmp_path: Path) -> None:
    before = package.save(replace(nested(), adapters=(lora(),)), tmp_path / "p")
    package.export(tmp_path / "p", tmp_path / "a.zip")
    package.export(tmp_path / "p", tmp_path / "b.zip")
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    where = package.import_(tmp_path / "a.zip")
    assert where == package.home() / "models" / "toy"
    assert package.load("toy").card == before
    with pytest.raises(InvalidInput, match='a package "toy" already'):
        package.import_(tmp_path / "a.zip")
    assert package.import_(tmp_path / "a.zip", replace=True) == where
    assert package.import_(tmp_path / "a.zip", name="other").name == "other"
    shutil.make_archive(str(tmp_path / "folder"), "zip", tmp_path, "p")
    assert package.verify(package.import_(tmp_path / "folder.zip", name="third")) == []
    assert sorted(os.listdir(where.parent)) == ["other", "third", "toy"]
    (tmp_path / "p" / "weights.safetensors").write_bytes(b"x")
    with pytest.raises(PackageError):
        package.export(tmp_path / "p", tmp_path / "c.zip")
    assert not (tmp_path / "c.zip").exists()


def entry(name: str, mode: int = stat.S_IFREG | 0o644) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = mode << 16
    info.compress_type = zipfile.ZIP_DEFLATED
    return info


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("files", "message"),
    [
        ([(entry("../evil.txt"), b"x")], "no package has"),
        ([(entry("../card.json"), b"x"), (entry("../README.md"), b"x")], "no package has"),
        ([(entry("/card.json"), b"x")], "no package has"),
        ([(entry("p/../../card.json"), b"x")], "no package has"),
        ([(entry("codec\\..\\..\\x"), b"x")], "no package has"),
        ([(entry("card.json", stat.S_IFLNK | 0o777), b"/etc/passwd")], "no package has"),
        ([(entry("weights.pt"), b"x")], "no package has"),
        ([(entry("codec/x.pkl"), b"x")], "no package has"),
        ([(entry("parts/a/parts/b/parts/c/parts/d/parts/e/card.json"), b"{}")], "no package has"),
        ([(entry("card.json"), b"{}"), (entry("card.json"), b"{}")], "twice"),
        ([(entry("codec/a"), b"{}"), (entry("codec/A"), b"{}"), (entry("card.json"), b"{}")], "twice"),
        ([(entry("weights.safetensors"), bytes(64 << 20)), (entry("card.json"), b"{}")], "unpacks to"),
        ([(entry(f"codec/{i}"), b"") for i in range(1001)], "unpacks to"),
        ([(entry(f"codec/{i:060}"), b"") for i in range(12_000)], "list of files"),
        ([(entry("card.json"), b"{}")], "no format number"),
        ([], "card.json"),
    ],
)  # fmt: skip
def test_hostile_zips_leave_nothing(tmp_path: Path, files: list[tuple[zipfile.ZipInfo, bytes]], message: str) -> None:
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as out:
        for info, data in files:
            out.writestr(info, data)
    start = time.monotonic()
    with pytest.raises(PackageError, match=message):
        package.import_(tmp_path / "evil.zip")
    assert time.monotonic() - start < 5
    assert sorted(os.listdir(tmp_path)) == ["evil.zip", "home"]
    assert os.listdir(package.home() / "models") == []


def test_broken_zips_are_refused_in_a_line(tmp_path: Path) -> None:
    package.save(make(), tmp_path / "p")
    whole = package.export(tmp_path / "p", tmp_path / "a.zip").read_bytes()
    middle = bytearray(whole)
    middle[len(whole) // 3] ^= 255
    lying = bytearray(whole)  # an entry that claims to be shorter than it is
    at = lying.index(b"PK\x01\x02") + 24
    lying[at : at + 4] = (5).to_bytes(4, "little")
    for data in (b"", b"PK", whole[: len(whole) // 2], bytes(middle), bytes(lying), os.urandom(999)):
        (tmp_path / "b.zip").write_bytes(data)
        with pytest.raises(PackageError):
            package.import_(tmp_path / "b.zip")
    with pytest.raises(NotFound):
        package.import_(tmp_path / "none.zip")
    assert os.listdir(package.home() / "models") == []


def test_odd_tensors_come_back(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 4).half(), "brain": torch.randn(3).bfloat16(), "long": torch.arange(5),
        "scalar": torch.tensor(2.5), "none": torch.zeros(0, 4), "flag": torch.tensor([True, False]),
        "名": torch.tensor([1], dtype=torch.uint8), "strided": torch.randn(4, 6).t(),
        "last": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
    }  # fmt: skip
    digest = safefile.write_tensors(tmp_path / "t.safetensors", tensors)
    with safefile.TensorFile(tmp_path, "t.safetensors") as file:
        mine = dict(file)
        assert file.sha256 == digest == safefile.sha256_inside(tmp_path, "t.safetensors")
    theirs = safetensors.torch.load_file(tmp_path / "t.safetensors")
    for name, value in tensors.items():
        assert torch.equal(mine[name], value)
        assert torch.equal(theirs[name], value)
        assert mine[name].dtype == value.dtype


def test_a_part_of_a_package_has_a_name_too() -> None:
    whole = package.find("emoji")
    assert package.find("emoji/text") == whole / "parts" / "text"
    for wrong in ("emoji/none", "emoji/../emoji", "emoji/", "none/text", "emoji/text/text"):
        with pytest.raises(NotFound):
            package.find(wrong)
