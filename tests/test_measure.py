"""Scores against independent implementations, and what `evaluate` says of packages and folders."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from PIL import Image
from torch import Tensor, nn

from sojourn import package as packages
from sojourn.cli.evaluate import listed
from sojourn.cli.main import run
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import Item, LabelColumn, PackedSet, SetInfo, SetWriter
from sojourn.engine import Model
from sojourn.errors import DataError, InvalidInput, NotFound, Unsupported
from sojourn.measure import report, scores
from sojourn.measure.augmented import classified
from sojourn.measure.bench import LEAST, Bench, Findings
from sojourn.measure.compare import compare
from sojourn.measure.evaluate import evaluate
from sojourn.measure.features import EffLite0, Scripted, load_features, perceptual
from sojourn.measure.judged import Judged
from sojourn.schema import Log, Part
from sojourn.train.build import run_recipe

rng = np.random.default_rng(0)
A = rng.normal(size=(300, 16))
B = rng.normal(size=(260, 16)) * rng.uniform(0.5, 1.5, 16) + 0.3


START = rng.bit_generator.state


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """What a test draws does not depend on which ran before it."""
    rng.bit_generator.state = START


class Passing(nn.Module):
    """Gives what it is given: torchmetrics then scores the vectors themselves."""

    num_features = 16

    def forward(self, x: Tensor) -> Tensor:
        return x


def theirs(name: str, **options: object) -> float:
    from torchmetrics.image import fid, kid

    cls = {"fid": fid.FrechetInceptionDistance, "kid": kid.KernelInceptionDistance}[name]
    metric = cls(feature=Passing(), **options)
    metric.update(torch.from_numpy(A).float(), real=True)
    metric.update(torch.from_numpy(B).float(), real=False)
    found = metric.compute()
    return float(found[0] if isinstance(found, tuple) else found)


def test_frechet_is_that_of_torchmetrics() -> None:
    assert scores.frechet(A, B) == pytest.approx(theirs("fid", normalize=True), rel=1e-3)
    assert scores.frechet(A, A) == pytest.approx(0, abs=1e-9)


def test_kid_is_that_of_torchmetrics_and_of_the_sum_written_out() -> None:
    equal = B[rng.integers(len(B), size=len(A))]  # their estimate takes equal counts
    d = A.shape[1]
    total = 0.0
    n, m = 12, 9
    for i in range(n):
        total += sum((A[i] @ A[j] / d + 1) ** 3 for j in range(n) if j != i) / (n * (n - 1))
    for i in range(m):
        total += sum((B[i] @ B[j] / d + 1) ** 3 for j in range(m) if j != i) / (m * (m - 1))
    total -= 2 * sum((x @ y / d + 1) ** 3 for x in A[:n] for y in B[:m]) / (n * m)
    assert scores.kid(A[:n], B[:m]) == pytest.approx(total, rel=1e-9)
    from torchmetrics.image.kid import poly_mmd

    wanted = float(poly_mmd(torch.from_numpy(A), torch.from_numpy(equal)))
    assert scores.kid(A, equal) == pytest.approx(wanted, rel=1e-3)


def test_kid_of_one_distribution_is_about_zero_and_its_interval_holds_it() -> None:
    draws = [rng.normal(size=(2, 200, 16)) for _ in range(40)]
    values = [scores.kid(x, y) for x, y in draws]
    assert abs(np.mean(values)) < 3 * np.std(values) / 40**0.5
    for size in (100, 190, 500):  # below, near and above the count
        spans = [scores.kid_interval(x, y, size, 40) for x, y in draws]
        assert 34 <= sum(low <= 0 <= high for low, high in spans) <= 40
        width = np.mean([high - low for low, high in spans])
        assert 0.5 < width / (2 * 1.96 * np.std(values)) < 2


def test_precision_and_recall_are_those_of_the_definition() -> None:
    real, fake = A[:60], B[:50]

    def inside(x: np.ndarray, centres: np.ndarray) -> bool:
        for i, centre in enumerate(centres):
            others = sorted(np.linalg.norm(centres[j] - centre) for j in range(len(centres)) if j != i)
            if np.linalg.norm(x - centre) <= others[2]:
                return True
        return False

    precision, recall = scores.precision_recall(real, fake)
    assert precision == pytest.approx(np.mean([inside(x, real) for x in fake]))
    assert recall == pytest.approx(np.mean([inside(x, fake) for x in real]))


def test_diversity_and_copies() -> None:
    group = A[:5]
    wanted = np.mean([np.linalg.norm(group[i] - group[j]) for i in range(5) for j in range(i)])
    assert scores.diversity(np.stack([group, group * 0]))[:] == pytest.approx([wanted, 0])
    copies = np.concatenate([A[:10] + 1e-6, rng.normal(size=(40, 16)) + 2])
    near, bar = scores.near_copies(copies, A, rng.normal(size=(200, 16)))
    assert near[:10].all()
    assert not near[10:].any()
    assert bar > 0.1


def test_an_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    held = 0
    for i in range(60):
        low, high = scores.interval(np.random.default_rng(i).normal(size=80), seed=i)
        held += low <= 0 <= high
    assert 50 <= held <= 60


def test_rows_of_one_group_count_as_one_draw() -> None:
    values = np.repeat(np.random.default_rng(0).normal(size=20), 30)
    groups = [str(i // 30) for i in range(600)]
    (low, high), (near, far) = scores.interval(values), scores.interval(values, groups)
    assert (far - near) > 4 * (high - low)
    same = scores.interval(values[:20], [str(i) for i in range(20)])
    assert same == scores.interval(values[:20], None)


# Features


def scripted(folder: Path) -> Path:
    """A TorchScript file whose features are the pixels."""
    net = torch.jit.trace(nn.Flatten(), torch.zeros(2, 3, 8, 8))  # type: ignore[no-untyped-call]
    net.save(str(folder / "mine.pt"))
    return folder / "mine.pt"


@pytest.fixture(scope="module")
def features() -> EffLite0:
    return EffLite0(side=64)


def pictures(count: int, seed: int = 0) -> Tensor:
    """Discs of two colours on white, (count, 3, 32, 32)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[:32, :32]
    out = np.ones((count, 3, 32, 32), np.float32)
    for i in range(count):
        cx, cy, r = (*generator.integers(10, 22, 2).tolist(), generator.integers(5, 10))
        out[i][:, (x - cx) ** 2 + (y - cy) ** 2 < r * r] = generator.uniform(-1, 1, (3, 1))
    return torch.from_numpy(out)


def test_perceptual_distance_grows_with_damage(features: EffLite0) -> None:
    x = pictures(8)
    noisy = [x + level * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)) for level in (0, 0.05, 0.3)]
    same, little, much = (perceptual(features, x, y).mean().item() for y in noisy)
    assert same == 0
    assert 0 < little < much


def test_features_know_a_grey_picture_and_one_of_another_size(features: EffLite0) -> None:
    x = pictures(2)
    assert features(x).shape == (2, 1280)
    assert features(x[:, :1]).shape == (2, 1280)
    assert torch.isfinite(features(torch.nn.functional.interpolate(x, scale_factor=5))).all()


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_features_of_a_file(tmp_path: Path) -> None:
    mine = load_features(str(scripted(tmp_path)))
    assert isinstance(mine, Scripted)
    assert mine.name == "mine"
    assert mine(torch.ones(2, 3, 8, 8)).shape == (2, 192)
    with pytest.raises(NotFound, match="no features at"):
        load_features(str(tmp_path / "none.pt"))
    (tmp_path / "bad.pt").write_bytes(b"not a script")
    with pytest.raises(Unsupported, match="cannot read"):
        load_features(str(tmp_path / "bad.pt"))


# Evaluate


class Cheap:
    """Pixels as features: what is tested is not how good they are."""

    name = identity = "Cheap"

    def __call__(self, pictures: Tensor) -> Tensor:
        return pictures[:, 0].flatten(1)


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


def measured(events: object) -> tuple[Findings, list[str]]:
    found, said = None, []
    for event in events:  # type: ignore[attr-defined]
        if isinstance(event, Findings):
            found = event
        elif isinstance(event, Log):
            said.append(event.text)
    assert found is not None
    return found, said


def test_a_package_is_measured_and_measured_again_the_same(model: Model, bench: Bench, tmp_path: Path) -> None:
    found, said = measured(evaluate([model], bench))
    values = {metric.name: metric.value for metric in found.metrics}
    assert values["seen/R@1-real"] > 0.9
    assert values["seen/R@1"] > 0.2, "twice the chance of ten"
    assert {"held-out/R@1", "seen/KID-Cheap", "held-out/near-copies-Cheap", "pictures/s"} <= set(values)
    assert not any("FD" in name for name in values), "160 pictures are too few for FD"
    again, _ = measured(evaluate([model], bench))
    same = {metric.name: metric.value for metric in again.metrics}
    assert {k: v for k, v in same.items() if k != "pictures/s"} == {
        k: v for k, v in values.items() if k != "pictures/s"
    }
    path = report.write([found, again], tmp_path, "flow / digits")
    page = path.read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "R@1-real" in page
    assert "http" not in page, "the page needs nothing from outside"
    rows = json.loads((tmp_path / "report.json").read_text())
    assert rows[0]["metrics"] == [m.model_dump(mode="json") for m in found.metrics]
    few = [("FD", 2048), ("precision", 1000)]
    assert said == [
        f"{group}/{score}-Cheap is left out: 160 pictures, it needs {least}"
        for group in ("seen", "held-out")
        for score, least in few
    ]


def test_noise_scores_worse_than_the_model_and_the_real_pictures_best(model: Model, bench: Bench) -> None:
    class Noisy(Model):
        def decode(self, x: Tensor) -> list[Image.Image]:
            return super().decode(torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))

    good, _ = measured(evaluate([model], bench))
    bad, _ = measured(evaluate([Noisy(model.package)], bench))
    for name, better in (("seen/KID-Cheap", -1), ("seen/R@1", 1)):
        one, two = (next(m.value for m in f.metrics if m.name == name) for f in (good, bad))
        assert better * (one - two) > 0, name


def test_without_a_judge_it_says_so_and_goes_on(model: Model, bench: Bench) -> None:
    found, said = measured(evaluate([model], Bench(bench.data, bench.features, None, 100, cache=bench.cache)))
    assert any("no judge" in text for text in said)
    assert not any("R@1" in metric.name for metric in found.metrics)
    few, said = measured(evaluate([model], Bench(bench.data, bench.features, None, 20, cache=bench.cache)))
    assert any("it needs 100" in text for text in said)
    assert not any("seen/KID" in metric.name for metric in few.metrics)


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


def test_two_folders_are_compared(features: EffLite0, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        for i, x in enumerate(pictures(120, seed)):
            array = ((x.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
            if name == "c":
                array = array // 4
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    alike, said = measured(compare([tmp_path / "a", tmp_path / "b"], features))
    apart, _ = measured(compare([tmp_path / "a", tmp_path / "c"], features))
    assert [metric.name for metric in alike.metrics] == ["KID-EffLite0"]
    assert apart.metrics[0].low is not None
    assert apart.metrics[0].low > alike.metrics[0].value
    assert sum("is left out: 120 pictures" in text for text in said) == 2


def test_precision_is_of_the_first_folder_within_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is a part of what the second shows: all of it could be of the second, not the other way round."""
    monkeypatch.setitem(LEAST, "precision", 100)
    for name, count in (("drawn", 100), ("real", 200)):
        (tmp_path / name).mkdir()
        for i in range(count):
            level = (i % 100) if name == "drawn" else i
            Image.new("RGB", (8, 8), (level, level, level)).save(tmp_path / name / f"{i}.png")
    found, _ = measured(compare([tmp_path / "drawn", tmp_path / "real"], Cheap()))
    values = {metric.name: metric.value for metric in found.metrics}
    assert values["precision-Cheap"] == 1
    assert values["recall-Cheap"] < 0.6


def test_folders_that_cannot_be_compared_are_refused(features: EffLite0, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    (tmp_path / "none").mkdir()
    with pytest.raises(InvalidInput, match="no pictures in"):
        list(compare([tmp_path / "a", tmp_path / "none"], features))
    Image.new("RGB", (9, 9)).save(tmp_path / "b" / "odd.png")
    with pytest.raises(InvalidInput, match="of another size"):
        list(compare([tmp_path / "a", tmp_path / "b"], features))


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
    args += ["--features", str(scripted(tmp_path))]
    assert run(args) == 0
    out = capsys.readouterr()
    assert "pictures/s" in out.out
    assert (tmp_path / "r" / "report.html").is_file()
    assert run(["evaluate", str(packages_folder / "flow")]) == 2
    assert "name the set" in capsys.readouterr().err


def test_prompts_of_ones_own_are_judged_by_the_label_each_names(model: Model, bench: Bench, tmp_path: Path) -> None:
    file = tmp_path / "mine.tsv"
    file.write_text("3\t3\n\n 7 \t 7\n0\t0\n1\t1\n", encoding="utf-8")
    asked = listed(file)
    assert asked == [("3", "3"), ("7", "7"), ("0", "0"), ("1", "1")]
    found, said = measured(evaluate([model], replace(bench, count=20, asked=asked)))
    scores = {metric.name: metric.value for metric in found.metrics}
    assert scores["prompts/R@1"] > 0.2, "twice the chance of ten"
    assert any(line.startswith("right of 4: 3 ") for line in said)
    turned = [(text, str(9 - int(label))) for text, label in asked]
    wrong, _ = measured(evaluate([model], replace(bench, count=20, asked=turned)))
    assert {m.name: m.value for m in wrong.metrics}["prompts/R@1"] < scores["prompts/R@1"]
    with pytest.raises(InvalidInput, match='"heart" of a prompt'):
        list(evaluate([model], replace(bench, count=20, asked=[("3", "heart")])))
    file.write_text("3 3\n", encoding="utf-8")
    with pytest.raises(InvalidInput, match='line 1: "3 3" is no prompt'):
        listed(file)


def test_what_a_package_reads_is_measured_too(bench: Bench, packages_folder: Path) -> None:
    assert bench.judge is not None
    found, _ = measured(evaluate([Model(bench.judge)], bench))
    values = {metric.name: metric.value for metric in found.metrics}
    assert values["held-out/accuracy-class"] > 0.9, "the judge itself"
    assert not any("R@1" in name or "KID" in name for name in values), "it draws nothing"
    found, _ = measured(evaluate([Model(packages.load(packages_folder / "vae"))], bench))
    values = {metric.name: metric.value for metric in found.metrics}
    assert 3 < values["autoencoder/PSNR"] < 30


def test_drawn_pictures_help_a_classifier_that_has_few_real_ones(
    model: Model, digits: Path, packages_folder: Path, tmp_path: Path
) -> None:
    """Twenty real digits, and a model that was trained on all: what it draws is worth more than they are."""
    whole = PackedSet(digits)
    train, held = whole.indices("train")[:20], whole.indices("valid")
    with SetWriter(tmp_path / "few", whole.info) as writer:
        for rows, split in ((train, "train"), (held, "valid")):
            for i in rows.tolist():
                label = int(whole.labels[i, 0])
                writer.add(Item(f"d{i}", whole.raw(np.array([i]))[0].numpy(), [str(label)], [label], split=split))
    bench = Bench(PackedSet(tmp_path / "few"), Cheap(), None, 64, cache=tmp_path / "cache")
    found = Findings("few")
    for _ in classified(model, bench, 1920, found):
        pass
    values = {metric.name: metric for metric in found.metrics}
    assert set(values) == {"classifier/real", "classifier/real and drawn", "classifier/drawn", "classifier/gain"}
    real, both = values["classifier/real"].value, values["classifier/real and drawn"].value
    assert values["classifier/gain"].value == pytest.approx(both - real)
    assert real > 0.3
    vae = Model(packages.load(packages_folder / "vae"))
    with pytest.raises(InvalidInput, match="draws no classes"):
        list(classified(vae, bench, 64, Findings("vae")))
