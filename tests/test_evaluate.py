"""What `evaluate` says of packages, what it refuses before it draws, and its report."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import SMALL
from measuring import Cheap, measured, scripted, values
from PIL import Image
from torch import Tensor

from sojourn import package as packages
from sojourn.cli.evaluate import listed
from sojourn.cli.main import run
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import Item, LabelColumn, PackedSet, SetInfo, SetWriter
from sojourn.engine import Frame, Model
from sojourn.errors import DataError, InvalidInput, NotFound, Unsupported
from sojourn.measure import copies, readers, report
from sojourn.measure.augmented import classified
from sojourn.measure.bench import LEAST, Bench, Findings
from sojourn.measure.evaluate import evaluate
from sojourn.measure.features import load_features
from sojourn.measure.judged import Judged, appoint
from sojourn.picture import Picture
from sojourn.schema import Part, Prompt
from sojourn.train.build import run_recipe
from sojourn.wishes import Request

STYLES = ["noto", "twemoji", "fluent-flat", "emojione"]


class Shown(Model):
    """Gives the pictures it is told to, whatever is asked: a generator whose scores are known."""

    def sample(
        self,
        prompts: Sequence[Prompt],
        seed: int,
        batch: int = 64,
        start: int = 0,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[Picture]:
        for i, prompt in enumerate(prompts):
            yield Picture(self.picture(i, prompt), seed + i, {})

    def picture(self, i: int, prompt: Prompt) -> Image.Image:
        raise AssertionError("nothing is to be drawn")


@pytest.fixture(scope="module")
def bench(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Bench:
    folder = tmp_path_factory.mktemp("bench")
    train = TrainConfig(**{**SMALL, "seen": 12_000, "lr": 5e-3, "snapshot": 12_000, "ema": 500, "split": "all"})
    stage = Stage(data=str(digits), family="judge", conditioner=Part(id="labels"), train=train)
    for _ in run_recipe(Recipe(name="judge", stage=[stage]), folder / "run"):
        pass
    judge = packages.load(folder / "run" / "model" / "package")
    return Bench(PackedSet(digits), Cheap(), judge, 160, cache=folder / "cache")


@pytest.fixture(scope="module")
def model(packages_folder: Path) -> Model:
    return Model(packages.load(packages_folder / "flow"))


def test_a_package_is_measured_and_measured_again_the_same(model: Model, bench: Bench, tmp_path: Path) -> None:
    found, said = measured(evaluate([model], bench))
    first = values(found)
    assert first["seen/R@1-real"] > 0.9
    low = next(metric.low for metric in found.metrics if metric.name == "seen/R@1")
    assert low is not None
    assert low > 0.1, "the chance of ten"
    assert {"held-out/R@1", "seen/KID-Cheap", "held-out/near-copies-Cheap", "pictures/s"} <= set(first)
    assert not any("FD" in name for name in first), "160 pictures are too few for FD"
    again, _ = measured(evaluate([model], bench))
    assert {**values(again), "pictures/s": 0} == {**first, "pictures/s": 0}
    again.name = "once more"
    path = report.write([found, again], tmp_path, "flow / digits")
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 2 + 2 * 2, "two groups side by side, and what is nearest in each"
    assert "seen: real above, then flow, once more" in page
    assert [len(sheet.lines) for sheet in report.arranged([found, again])[0][1]] == [3, 3]
    assert [heading for heading, _ in report.arranged([found])] == ["flow"], "one package is beside nothing"
    assert "R@1-real" in page
    assert "http" not in page, "the page needs nothing from outside"
    rows = json.loads((tmp_path / "report.json").read_text())
    assert bench.judge is not None
    judge = {"name": bench.judge.card.name, "identity": bench.judge.card.identity}
    features = {"name": "Cheap", "identity": "Cheap"}
    about = {"set": "digits", "n": 160, "seed": 0, "options": None, "judge": judge, "features": features}
    assert {name: rows[0][name] for name in about} == about
    assert "set digits, n 160, seed 0, judge judge" in page
    assert rows[0]["metrics"] == [m.model_dump(mode="json") for m in found.metrics]
    few = [("FD", 2048), ("precision", 1000)]
    assert said == [
        f"{group}/{score}-Cheap is left out: 160 pictures, it needs {least}"
        for group in ("seen", "held-out")
        for score, least in few
    ]


def test_noise_scores_worse_than_the_model_and_other_real_pictures_better(model: Model, bench: Bench) -> None:
    class Noisy(Model):
        def decode(self, x: Tensor) -> list[Image.Image]:
            return super().decode(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))

    data, taken = bench.data, {row for group in bench.groups() for row in group.rows.tolist()}
    others: dict[str, list[int]] = {}
    for row in set(range(len(data))) - taken:
        others.setdefault(str(data.label_name(row, "class")), []).append(row)

    class Real(Shown):
        """Draws real pictures of the class that are not those it is measured against."""

        def picture(self, i: int, prompt: Prompt) -> Image.Image:
            rows = others[prompt.text]
            return Image.fromarray(data.data[rows[i % len(rows)]][..., 0])

    noise, drawn, real = (values(measured(evaluate([m(model.package)], bench))[0]) for m in (Noisy, Model, Real))
    for name, better in (("seen/KID-Cheap", -1), ("seen/R@1", 1), ("held-out/KID-Cheap", -1)):
        assert better * noise[name] < better * drawn[name] < better * real[name], name
    found, _ = measured(evaluate([Real(model.package)], bench))
    span = next((m.low, m.high) for m in found.metrics if m.name == "seen/KID-Cheap")
    assert span[0] is not None
    assert span[1] is not None
    assert span[0] < 0 < span[1], "one distribution"


def test_the_real_pictures_of_the_prompts_have_a_kid_of_zero(model: Model, bench: Bench) -> None:
    rows = iter([row for group in bench.groups() for row in group.rows.tolist()])

    class Copier(Shown):
        def picture(self, i: int, prompt: Prompt) -> Image.Image:
            return Image.fromarray(bench.data.data[next(rows)][..., 0])

    found, _ = measured(evaluate([Copier(model.package)], bench))
    assert values(found)["seen/KID-Cheap"] == pytest.approx(0, abs=1e-6)
    assert values(found)["seen/near-copies-Cheap"] == 1
    assert next(m for m in found.metrics if m.name == "seen/near-copies-Cheap").low == pytest.approx(0.977, abs=1e-3)
    sheet = next(sheet for sheet in found.sheets if sheet.title.startswith("seen: drawn above, the nearest"))
    assert [p.tobytes() for p in sheet.lines[0]] == [p.tobytes() for p in sheet.lines[1]]
    assert all(float(label.split()[-1]) < 1e-4 for label in sheet.labels), "how far the nearest is"


def test_without_a_judge_it_says_so_and_goes_on(model: Model, bench: Bench) -> None:
    found, said = measured(evaluate([model], Bench(bench.data, bench.features, None, 100, cache=bench.cache)))
    assert any("no judge" in text for text in said)
    assert not any("R@1" in metric.name for metric in found.metrics)
    few, said = measured(evaluate([model], Bench(bench.data, bench.features, None, 20, cache=bench.cache)))
    assert any("it needs 100" in text for text in said)
    assert not any("seen/KID" in metric.name for metric in few.metrics)


def test_what_too_few_are_held_out_for_is_left_out_and_said(
    model: Model, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LEAST, "copies", 200)
    found, said = measured(evaluate([model], bench))
    assert "near-copies-Cheap is left out: 180 held-out pictures, it needs 200" in said
    assert not any("near-copies" in name for name in values(found))
    assert sum("the nearest training picture" in sheet.title for sheet in found.sheets) == 2
    judge, group = Judged(bench), bench.groups()[0]
    few = np.arange(len(group.rows)) < 20
    reals = bench.pictures(group.rows)
    told = Findings("")
    lines = list(judge.add(group, reals, reals, few, bench.families(group.rows), told))
    assert [getattr(line, "text", "") for line in lines] == ["seen/R@1-zh is left out: 20 pictures, it needs 50"]
    assert "seen/R@1-en" in values(told)


def soft(x: Tensor) -> Tensor:
    """Pictures as a lossy autoencoder might give them."""
    return 0.6 * x


def test_copies_are_found_through_an_autoencoder_and_the_control_says_so(
    model: Model, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = np.flatnonzero(bench.data.split == 0)

    class Copier(Shown):
        """Every picture is one of the training set's, as its decoder shows it."""

        def picture(self, i: int, prompt: Prompt) -> Image.Image:
            return bench.plain.unpack(soft(bench.pictures(train[7 * i : 7 * i + 1])))[0]

    bench = replace(bench, cache=tmp_path)
    hard, _ = measured(evaluate([Copier(model.package)], bench))
    assert "near-copies-control-Cheap" not in values(hard), "pixels are as sharp as the set"
    monkeypatch.setattr(readers, "rebuilds", lambda model: True)
    monkeypatch.setattr(readers, "rebuilt", lambda model, bench, rows: soft(bench.pictures(rows)))
    found, _ = measured(evaluate([Copier(model.package)], bench))
    control, share = (values(found)[f"{name}-Cheap"] for name in ("near-copies-control", "seen/near-copies"))
    assert control > 0.05
    assert share == pytest.approx(control, abs=0.1)
    assert share > values(hard)["seen/near-copies-Cheap"]


def test_a_vae_is_told_what_its_copies_would_look_like(packages_folder: Path, bench: Bench) -> None:
    vae = Model(packages.load(packages_folder / "vae"))
    events = copies.prepare(vae, bench, bench.groups()[0], found := Findings("vae"))
    list(events)
    assert 0 <= values(found)["near-copies-control-Cheap"] <= 1


def test_pictures_of_another_size_are_measured_at_the_sets(
    model: Model, bench: Bench, packages_folder: Path, tmp_path: Path
) -> None:
    class Large(Model):
        def decode(self, x: Tensor) -> list[Image.Image]:
            return [p.resize((24, 24), Image.Resampling.NEAREST) for p in super().decode(x)]

    large, own = (values(measured(evaluate([m(model.package)], bench))[0]) for m in (Large, Model))
    assert large["seen/R@1"] == pytest.approx(own["seen/R@1"], abs=0.1)
    assert large["held-out/KID-Cheap"] == pytest.approx(own["held-out/KID-Cheap"], rel=0.5, abs=0.05)
    info = bench.data.info.model_copy(update={"shape": (16, 16, 1)})
    with SetWriter(tmp_path / "wide", info) as writer:
        for i in range(40):
            pixels = bench.data.data[i].repeat(2, axis=0).repeat(2, axis=1)
            writer.add(Item(f"d{i}", pixels, ["0"], [0], split="valid" if i % 2 else "train"))
    wide = Bench(PackedSet(tmp_path / "wide"), Cheap(), None, 40, cache=tmp_path / "cache")
    found, _ = measured(evaluate([Model(packages.load(packages_folder / "vae"))], wide))
    assert values(found)["autoencoder/PSNR"] > 3


@pytest.fixture(scope="module")
def styled(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each digit in four styles, that is brightnesses, as many times as makes a set, and a package for it."""
    folder, data = tmp_path_factory.mktemp("styled"), PackedSet(digits)
    columns = [LabelColumn(name="class", values=list("0123456789")), LabelColumn(name="style", values=STYLES)]
    with SetWriter(folder / "set", SetInfo(name="styled", kind="image", shape=(8, 8, 1), labels=columns)) as writer:
        for label in range(10):
            row = int(np.flatnonzero(data.labels[:, 0] == label)[0])
            for at, style in enumerate(STYLES):
                pixels = (data.raw(np.array([row]))[0].numpy() * (1 - 0.2 * at)).astype(np.uint8)
                labels, name = [label, at], str(label)
                writer.add(Item(f"{name}/{style}", pixels, ["a digit"], labels, style=style, group=name))
    for family in ("flow", "judge"):
        stage = Stage(
            data=str(folder / "set"),
            family=family,
            conditioner=Part(id="labels"),
            train=TrainConfig(**{**SMALL, "split": "all"}),
            options={"steps": 4} if family == "flow" else {},
        )
        for _ in run_recipe(Recipe(name=family, stage=[stage]), folder / "runs" / family):
            pass
        (folder / "runs" / family / "model" / "package").rename(folder / family)
    return folder


def test_variety_without_a_style_is_of_styles_and_with_one_of_seeds(
    styled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Painted(Shown):
        """Its pictures are the style's, whatever the seed."""

        def picture(self, i: int, prompt: Prompt) -> Image.Image:
            return Image.new("L", (8, 8), 60 * STYLES.index(str(prompt.style)))

    package = packages.load(styled / "flow")
    bench = Bench(PackedSet(styled / "set"), Cheap(), None, 16, cache=tmp_path)
    found, _ = measured(evaluate([Painted(package)], bench))
    assert values(found)["variety-Cheap"] > 1
    assert values(found)["variety-one-style-Cheap"] == 0
    note = next(m.note for m in found.metrics if m.name == "variety-one-style-Cheap")
    assert note == "8 seeds, noto"
    found, _ = measured(evaluate([Model(package)], bench))
    assert values(found)["variety-one-style-Cheap"] > 0
    monkeypatch.setitem(LEAST, "variety", 11)
    found, said = measured(evaluate([Painted(package)], bench))
    assert "variety-Cheap is left out: 10 concepts in four styles, it needs 11" in said
    assert not any("variety" in name for name in values(found))


def test_everything_is_drawn_with_the_options_that_are_given(model: Model, bench: Bench) -> None:
    few = replace(bench, judge=None, count=20, options={"steps": 1})
    asked: list[dict[str, object]] = []

    class Told(Model):
        def walk(self, request: Request) -> Iterator[Frame]:
            asked.append(dict(request.options))
            return super().walk(request)

    found, _ = measured(evaluate([Told(model.package)], few))
    assert asked
    assert all(options == {"steps": 1} for options in asked)
    assert found.about["options"] == {"steps": 1}
    page = report.write([found], bench.cache / "told", "told").read_text(encoding="utf-8")
    assert "options steps=1" in page


def test_a_judge_tells_what_it_and_the_set_both_know(
    model: Model, bench: Bench, styled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A judge of classes and styles, a set of classes alone, in which not every row has one; a set of neither."""
    info = bench.data.info
    named = info.model_copy(update={"labels": [LabelColumn(name="thing", values=["a", "b"])]})
    for name, kind in (("half", info), ("none", named)):
        with SetWriter(tmp_path / name, kind) as writer:
            for i in range(40):
                label = int(bench.data.labels[i, 0]) if i % 2 else -1
                writer.add(Item(f"d{i}", bench.data.data[i], [], [label if name == "half" else -1]))
    both = packages.load(styled / "judge")
    half = Bench(PackedSet(tmp_path / "half"), Cheap(), both, 40, cache=tmp_path / "cache")
    found, _ = measured(evaluate([model], half))
    assert not any("style" in name for name in values(found))
    assert bench.judge is not None
    half.judge = bench.judge
    found, _ = measured(evaluate([model], half))
    rows = np.arange(1, 40, 2)
    said = Judged(bench).opinions(bench.pictures(rows))["class"].argmax(1).numpy()
    right = (said == bench.data.labels[rows, 0]).mean()
    assert values(found)["seen/R@1-real"] == pytest.approx(right), "of those that have a class"
    places, labels = Judged(half).labelled(np.arange(4), "class")
    assert places.tolist() == [1, 3]
    assert labels.tolist() == bench.data.labels[[1, 3], 0].tolist()
    read, _ = measured(evaluate([Model(both)], half))
    assert "seen/accuracy-class" in values(read)
    none = Bench(PackedSet(tmp_path / "none"), Cheap(), both, 40)
    with pytest.raises(DataError, match="knows no label column"):
        Judged(none)
    monkeypatch.setattr("sojourn.card.find", lambda name, paths: styled / "judge")
    assert isinstance(appoint(none, None), DataError)
    assert none.judge is None
    with pytest.raises(DataError, match="knows no label column"):
        appoint(none, "judge")


def test_what_cannot_be_measured_is_refused_before_anything_is_drawn(
    model: Model, bench: Bench, packages_folder: Path, styled: Path
) -> None:
    never, vae, lm = (Shown(packages.load(packages_folder / name)) for name in ("flow", "vae", "lm"))
    with pytest.raises(InvalidInput, match='does not know the label "heart"'):
        list(evaluate([never], replace(bench, asked=[("3", "3"), ("3", "heart")])))
    with pytest.raises(NotFound, match='no class "three"'):
        list(evaluate([never], replace(bench, asked=[("three", "3")])))
    with pytest.raises(InvalidInput, match="draws no classes"):
        list(evaluate([never, vae], bench, classifier=64))
    with pytest.raises(InvalidInput, match="stepz"):
        list(evaluate([never], replace(bench, options={"stepz": 3})))
    with pytest.raises(Unsupported, match="does not draw pictures"):
        list(evaluate([never, lm], bench))
    other = Bench(PackedSet(styled / "set"), Cheap(), None, 16)
    other.data.info.labels[0].values[3] = "drei"
    with pytest.raises(NotFound, match='no class "drei"'):
        list(evaluate([never], other))


def test_a_report_that_cannot_be_written_is_refused_before_anything_is_drawn(
    packages_folder: Path,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never(*args: object) -> None:
        raise AssertionError("nothing is to be drawn")

    monkeypatch.setattr("sojourn.measure.evaluate.evaluate", never)
    monkeypatch.setattr("sojourn.measure.compare.compare", never)
    monkeypatch.setattr("sojourn.measure.features.load_features", lambda name: Cheap())
    (tmp_path / "file").touch()
    for side in ("a", "b"):
        (tmp_path / side).mkdir()
    calls = [[str(packages_folder / "flow"), "--data", str(digits)], [str(tmp_path / "a"), str(tmp_path / "b")]]
    for call in calls:
        assert run(["evaluate", *call, "--out", str(tmp_path / "file")]) == 2
        assert "cannot write to" in capsys.readouterr().err
    monkeypatch.setattr(os, "access", lambda path, mode: not (mode & os.W_OK and Path(path) == tmp_path / "a"))
    for call in calls:
        assert run(["evaluate", *call, "--out", str(tmp_path / "a")]) == 2
        assert "Permission denied" in capsys.readouterr().err


def test_an_evaluation_that_is_refused_leaves_no_folder(
    packages_folder: Path, digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sojourn.measure.features.load_features", lambda name: Cheap())
    call = ["evaluate", str(packages_folder / "flow"), "--data", str(digits), "-o", "stepz=3"]
    assert run([*call, "--out", str(tmp_path / "new")]) == 2
    assert not (tmp_path / "new").exists()
    (tmp_path / "old").mkdir()
    assert run([*call, "--out", str(tmp_path / "old")]) == 2
    assert (tmp_path / "old").exists()


def test_a_class_is_asked_by_its_name_whatever_its_captions_are(model: Model, bench: Bench) -> None:
    rows = bench.groups()[0].rows[:6]
    for row in rows.tolist():
        bench.data.rows[row]["captions"] = ["a digit", "数字"]
    prompts, chinese = bench.prompts(rows, "class")
    assert [p.text for p in prompts] == [bench.data.label_name(row, "class") for row in rows.tolist()]
    assert not chinese.any()
    prompts, chinese = bench.prompts(rows, None)
    assert [p.text for p in prompts] == ["a digit", "数字"] * 3
    assert chinese.tolist() == [False, True] * 3


def test_a_judge_gives_features(model: Model, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert bench.judge is not None
    monkeypatch.setenv("SOJOURN_HOME", str(tmp_path))
    packages.save(bench.judge, tmp_path / "models" / "judge")
    seen = load_features("judge:judge")
    x = bench.pictures(np.arange(40))
    assert seen(x).shape == (40, bench.judge.family.config.widths[-1])
    assert not torch.equal(seen(x[:1]), seen(x[1:2]))
    found, _ = measured(evaluate([model], replace(bench, features=seen, judge=None)))
    assert "seen/KID-judge-judge" in values(found)
    packages.save(model.package, tmp_path / "models" / "flow")
    with pytest.raises(Unsupported, match='"flow" is no judge'):
        load_features("judge:flow")


def test_a_judge_of_other_pictures_is_refused_before_anything_is_drawn(bench: Bench, tmp_path: Path) -> None:
    for names, side, words in ((["0", "?"], 8, 'does not know "?"'), (["0", "1"], 16, "looks at pictures")):
        info = SetInfo(
            name="other", kind="image", shape=(side, side, 1), labels=[LabelColumn(name="class", values=names)]
        )
        with SetWriter(tmp_path / f"other{side}", info) as writer:
            writer.add(Item("a", np.zeros((side, side, 1), np.uint8), ["0"], [0]))
        with pytest.raises(DataError, match=re.escape(words)):
            Judged(Bench(PackedSet(tmp_path / f"other{side}"), Cheap(), bench.judge))


def test_what_is_no_judge_is_refused(model: Model, bench: Bench) -> None:
    with pytest.raises(InvalidInput, match="is no judge"):
        list(evaluate([model], Bench(bench.data, bench.features, model.package, 20)))


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_the_command_prints_a_table_and_writes_the_report(
    packages_folder: Path,
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SOJOURN_CACHE", str(tmp_path / "cache"))
    args = ["evaluate", str(packages_folder / "flow"), "--data", str(digits), "-n", "16", "--out", str(tmp_path / "r")]
    args += ["--features", str(scripted(tmp_path / "mine.pt"))]
    assert run(args) == 0
    out = capsys.readouterr()
    assert "pictures/s" in out.out
    assert (tmp_path / "r" / "report.html").is_file()
    assert run(["evaluate", str(packages_folder / "flow")]) == 2
    assert "name the set" in capsys.readouterr().err
    (tmp_path / "p.tsv").write_text("3\t3\n", encoding="utf-8")
    asked = ["evaluate", str(packages_folder / "flow"), "--data", str(digits), "--prompts", str(tmp_path / "p.tsv")]
    assert run([*asked, "--out", str(tmp_path / "no")]) == 2
    assert "--prompts is for a judge to look at" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_prompts_of_ones_own_are_judged_by_the_label_each_names(model: Model, bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "mine.tsv"
    file.write_text("3\t3\n\n 7 \t 7\n0\t0\n1\t1\n", encoding="utf-8")
    asked = listed(file)
    assert asked == [("3", "3"), ("7", "7"), ("0", "0"), ("1", "1")]
    found, said = measured(evaluate([model], replace(bench, count=20, asked=asked)))
    assert values(found)["prompts/R@1"] > 0.2, "twice the chance of ten"
    assert any(line.startswith("right of 4: 3 ") for line in said)
    turned = [(text, str(9 - int(label))) for text, label in asked]
    wrong, _ = measured(evaluate([model], replace(bench, count=20, asked=turned)))
    assert values(wrong)["prompts/R@1"] < values(found)["prompts/R@1"]
    file.write_text("\n \n", encoding="utf-8")
    with pytest.raises(InvalidInput, match="holds no prompt"):
        listed(file)
    file.write_text(f"3\t3\n{'3' * 3000}\t3\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match=r"line 2: .*3000 characters"):
        listed(file)
    file.write_text("3 3\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match='line 1: "3 3" is no prompt'):
        listed(file)
    file.write_text("红心\theart\n", encoding="utf-8-sig")
    assert listed(file) == [("红心", "heart")], "without the mark at its beginning"
    file.write_text("a\tb\n红心\theart\n", encoding="gb18030")
    with pytest.raises(InvalidInput, match=r'mine.tsv" is not UTF-8 \(byte 4\)'):
        listed(file)


def test_what_a_package_reads_is_measured_too(bench: Bench, packages_folder: Path) -> None:
    assert bench.judge is not None
    found, _ = measured(evaluate([Model(bench.judge)], bench))
    assert values(found)["held-out/accuracy-class"] > 0.9, "the judge itself"
    assert not any("R@1" in name or "KID" in name for name in values(found)), "it draws nothing"
    found, _ = measured(evaluate([Model(packages.load(packages_folder / "vae"))], bench))
    assert 3 < values(found)["autoencoder/PSNR"] < 30


def test_drawn_pictures_as_good_as_real_ones_help_a_classifier_that_has_few(
    model: Model, digits: Path, packages_folder: Path, tmp_path: Path
) -> None:
    """Ten real digits, and a model that draws others: twenty teach more than ten."""
    whole = PackedSet(digits)
    train, held = whole.indices("train")[:10], whole.indices("valid")
    with SetWriter(tmp_path / "few", whole.info) as writer:
        for rows, split in ((train, "train"), (held, "valid")):
            for i in rows.tolist():
                label = int(whole.labels[i, 0])
                writer.add(Item(f"d{i}", whole.data[i], [str(label)], [label], split=split))

    class Real(Shown):
        def picture(self, i: int, prompt: Prompt) -> Image.Image:
            rows = np.flatnonzero((whole.split == 0) & (whole.labels[:, 0] == int(prompt.text)))
            return Image.fromarray(whole.data[rows[10 + i]][..., 0])

    bench = Bench(PackedSet(tmp_path / "few"), Cheap(), None, 64, cache=tmp_path / "cache")
    found = Findings("few")
    for _ in classified(Real(model.package), bench, 1920, found):
        pass
    told = values(found)
    assert set(told) == {"classifier/real", "classifier/real and drawn", "classifier/drawn", "classifier/gain"}
    assert 0.3 < told["classifier/real"] < told["classifier/real and drawn"]
    assert told["classifier/drawn"] > 0.3
    gain = next(metric.low for metric in found.metrics if metric.name == "classifier/gain")
    assert gain is not None
    assert gain > 0
    vae = Model(packages.load(packages_folder / "vae"))
    with pytest.raises(InvalidInput, match="draws no classes"):
        list(classified(vae, bench, 64, Findings("vae")))
