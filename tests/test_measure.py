"""Scores against independent implementations, features, and two folders of pictures against each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from measuring import Cheap, measured, scripted, values
from PIL import Image
from scipy import stats
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor, nn

from sojourn.errors import DataError, InvalidInput, NotFound, Unsupported
from sojourn.measure import report, scores
from sojourn.measure.bench import LEAST, SIDE
from sojourn.measure.compare import compare
from sojourn.measure.features import EffLite0, Scripted, load_features, perceptual, probe
from sojourn.measure.readers import psnr

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


def test_kid_of_pairs_leaves_out_the_pairs_themselves() -> None:
    d, n = A.shape[1], 12

    def k(x: np.ndarray, y: np.ndarray) -> float:
        return float((x @ y / d + 1) ** 3)

    x, y = A[:n], 0.7 * A[:n] + 0.5 * B[:n]
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    wanted = np.mean([k(x[i], x[j]) + k(y[i], y[j]) - k(x[i], y[j]) - k(x[j], y[i]) for i, j in pairs])
    assert scores.kid(x, y, paired=True) == pytest.approx(wanted, rel=1e-9)
    assert scores.kid(x, x, paired=True) == pytest.approx(0, abs=1e-9)
    assert np.abs(scores.kid_interval(A, A, paired=True)) == pytest.approx(0, abs=1e-9)


def test_pictures_like_the_real_ones_of_their_prompts_have_a_kid_of_about_zero() -> None:
    """Two draws around one middle for each row: what is drawn for a prompt resembles its real picture."""
    draws = []
    for _ in range(40):
        middle = rng.normal(size=(200, 16))
        draws.append([middle + 0.4 * rng.normal(size=middle.shape) for _ in range(2)])
    found = np.array([scores.kid(x, y, paired=True) for x, y in draws])
    assert abs(found.mean()) < 3 * found.std() / 40**0.5
    biased = np.array([scores.kid(x, y) for x, y in draws])
    assert biased.mean() < -10 * biased.std() / 40**0.5, "as it is where rows are not told to be pairs"
    spans = [scores.kid_interval(x, y, 100, 40, paired=True) for x, y in draws]
    assert 34 <= sum(low <= 0 <= high for low, high in spans) <= 40


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
    bar = scores.copy_bar(rng.normal(size=(200, 16)), A)
    apart, at = scores.nearest(copies, A)
    assert at[:10].tolist() == list(range(10))
    assert apart == pytest.approx(np.linalg.norm(copies - A[at], axis=1), abs=1e-4)
    assert (apart < bar).tolist() == [True] * 10 + [False] * 40
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


@pytest.mark.parametrize(("right", "count"), [(0, 48), (48, 48), (0, 3)])
def test_the_interval_of_none_or_all_is_wilsons(right: int, count: int) -> None:
    wanted = stats.binomtest(right, count).proportion_ci(method="wilson")
    values = np.full(count, right > 0)
    assert scores.interval(values) == pytest.approx((wanted.low, wanted.high), abs=1e-4)
    families = [str(i) for i in range(count) for _ in range(4)]
    assert scores.interval(values.repeat(4), families) == scores.interval(values), "four of one family are one try"
    assert scores.interval(values.astype(float)) == (right > 0, right > 0), "a mean of what is no share"
    assert scores.interval(values.astype(float), proportion=True) == scores.interval(values)


# Features


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


def test_perceptual_distance_against_numpy(features: EffLite0) -> None:
    """Zhang et al. 2018, eq. 1 with equal weights, written again: unit vectors of each place, squared gaps, means."""
    x, y = torch.rand(2, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = np.zeros(2)
    for one, other in zip(features.maps(x), features.maps(y), strict=True):
        a, b = one.double().numpy(), other.double().numpy()
        a, b = (v / np.sqrt((v**2).sum(axis=1, keepdims=True)) for v in (a, b))
        wanted += ((a - b) ** 2).sum(axis=1).mean(axis=(1, 2))
    np.testing.assert_allclose(perceptual(features, x, y), wanted, rtol=1e-3)
    assert perceptual(features, x, x).abs().max() < 1e-6


def test_psnr_against_scikit_image() -> None:
    x, y = torch.rand(2, 3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    wanted = [peak_signal_noise_ratio(a, b, data_range=2.0) for a, b in zip(x.numpy(), y.numpy(), strict=True)]
    np.testing.assert_allclose(psnr(x, y), wanted, rtol=1e-3)


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
    mine = load_features(str(scripted(tmp_path / "mine.pt")))
    assert isinstance(mine, Scripted)
    assert mine.name == "mine"
    assert mine(torch.ones(2, 3, 8, 8)).shape == (2, 192)
    with pytest.raises(NotFound, match="no features at"):
        load_features(str(tmp_path / "none.pt"))
    (tmp_path / "bad.pt").write_bytes(b"not a script")
    with pytest.raises(Unsupported, match="cannot read"):
        load_features(str(tmp_path / "bad.pt"))


class Bare(nn.Module):
    """Vectors of 8 pixels' pictures, in a form that is none of features."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form

    def forward(self, x: Tensor) -> object:
        flat = x.flatten(1)
        return {"pair": (flat, flat), "whole": flat.long(), "map": x, "one": flat.mean(0, keepdim=True)}[self.form]


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize(
    ("form", "words"),
    [("pair", "give tuple"), ("whole", "give int64 (2, 192)"), ("map", "(2, 3, 8, 8)"), ("one", "(1, 192)")],
)
def test_features_that_are_no_vectors_are_refused(form: str, words: str, tmp_path: Path) -> None:
    mine = load_features(str(scripted(tmp_path / "mine.pt", Bare(form))))
    with pytest.raises(DataError, match="wanted are floats") as error:
        probe(mine, 8, 8)
    assert words in str(error.value)


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_features_that_fail_are_one_line(tmp_path: Path) -> None:
    mine = load_features(str(scripted(tmp_path / "mine.pt", nn.Sequential(nn.Flatten(), nn.Linear(192, 4)))))
    probe(mine, 8, 8)
    with pytest.raises(DataError, match=r"fail on pictures \(2, 3, 9, 9\).*cannot be multiplied") as error:
        probe(mine, 9, 9)
    assert "\n" not in str(error.value)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        Image.new("RGB", (9, 9)).save(tmp_path / name / "0.png")
    with pytest.raises(DataError, match="fail on pictures"):
        list(compare([tmp_path / "a", tmp_path / "b"], mine))


# Folders


def test_two_folders_are_compared(features: EffLite0, tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 1), ("c", 2)):
        (tmp_path / name).mkdir()
        for i, x in enumerate(pictures(120, seed)):
            array = ((x.permute(1, 2, 0).numpy() + 1) * 127.5).astype(np.uint8)
            if name == "c":
                array = array // 4
            Image.fromarray(array).save(tmp_path / name / f"{i}.png")
    (tmp_path / "a" / "._0.png").write_bytes(b"what a Mac leaves beside a file")
    alike, said = measured(compare([tmp_path / "a", tmp_path / "b"], features))
    apart, _ = measured(compare([tmp_path / "a", tmp_path / "c"], features))
    assert [metric.name for metric in alike.metrics] == ["KID-EffLite0"]
    assert apart.metrics[0].low is not None
    assert apart.metrics[0].low > alike.metrics[0].value
    assert sum("is left out: 120 pictures" in text for text in said) == 2
    first, nearest = apart.sheets
    assert first.title == "a above, c below"
    assert [len(line) for line in first.lines] == [16, 16]
    assert nearest.title.startswith("a above, the nearest of c below")
    report.write([alike], tmp_path / "report", "a / b")
    kept = json.loads((tmp_path / "report" / "report.json").read_text())[0]
    assert kept["n"] == [120, 120]
    assert kept["folders"] == [str(tmp_path / "a"), str(tmp_path / "b")]
    assert kept["features"]["name"] == "EffLite0"


def test_a_sheet_shows_the_nearest_picture_of_the_other_folder_and_large_ones_smaller(tmp_path: Path) -> None:
    for name, levels in (("drawn", [200, 10, 90]), ("real", [12, 88, 190, 255])):
        (tmp_path / name).mkdir()
        for i, level in enumerate(levels):
            Image.new("RGB", (2 * SIDE, SIDE), (level, level, level)).save(tmp_path / name / f"{i}.png")
    found, _ = measured(compare([tmp_path / "drawn", tmp_path / "real"], Cheap()))
    drawn, near = found.sheets[1].lines
    assert [picture.getpixel((0, 0))[0] for picture in drawn] == [200, 10, 90]
    assert [picture.getpixel((0, 0))[0] for picture in near] == [190, 12, 88]
    assert drawn[0].size == (SIDE, SIDE // 2)


def test_precision_is_of_the_first_folder_within_the_second(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is a part of what the second shows: all of it could be of the second, not the other way round."""
    monkeypatch.setitem(LEAST, "precision", 100)
    for name, count in (("drawn", 100), ("real", 200)):
        (tmp_path / name).mkdir()
        for i in range(count):
            level = (i % 100) if name == "drawn" else i
            Image.new("RGB", (8, 8), (level, level, level)).save(tmp_path / name / f"{i}.png")
    found, _ = measured(compare([tmp_path / "drawn", tmp_path / "real"], Cheap()))
    assert values(found)["precision-Cheap"] == 1
    assert values(found)["recall-Cheap"] < 0.6


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
