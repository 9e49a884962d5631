"""Pictures and words at one place: the loss against its formula, what is learned, and finding by it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch.nn import functional as F

from sojourn import engine
from sojourn import package as packages
from sojourn.cli.main import run
from sojourn.conditioners import Text
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import PackedSet
from sojourn.errors import ConfigError, InvalidInput, Unsupported
from sojourn.families.contrastive import HOTTEST, Contrastive, alike, multi_positive
from sojourn.find import Album
from sojourn.measure.bench import Bench, Findings
from sojourn.measure.readers import read
from sojourn.registry import preset
from sojourn.schema import Part
from sojourn.train.build import run_recipe
from sojourn.types import Batch, Cond, DataSpec

torch.set_num_threads(1)


def family(**config: object) -> Contrastive:
    torch.manual_seed(0)
    spec = DataSpec("image", (1, 8, 8), labels=(("class", 10),))
    return Contrastive(Contrastive.Config(**{**preset("contrastive", "tiny"), "augment": False, **config}), spec)


def test_the_scale_comes_down_from_its_bound() -> None:
    towers = family()
    with torch.no_grad():
        towers.words.scale.fill_(HOTTEST + 1)
    towers.after("contrast", {})
    assert towers.words.scale.exp().item() == pytest.approx(100)
    data = Batch(torch.randn(8, 1, 8, 8), Cond(labels=torch.arange(8)[:, None]), torch.ones(8))
    towers.loss("contrast", data, 0).value.mean().backward()
    assert towers.words.scale.grad, "and a gradient leads from it"


@pytest.fixture(scope="module")
def package(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    train = TrainConfig(seen=19200, batch_size=64, snapshot=19200, sheet=0, threads=1, hooks=(), lr=3e-3, ema=500)
    stage = Stage(
        data=str(digits), family="contrastive", preset="tiny", conditioner=Part(id="labels"), train=train,
        model={"augment": False},
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("contrastive")
    for _ in run_recipe(Recipe(name="contrastive", stage=[stage]), folder):
        pass
    return folder / "model" / "package"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of forty digits, ten of them twos, and a file that is no picture."""
    folder = tmp_path_factory.mktemp("photos")
    data = load_digits()
    twos = [i for i in range(900, 1797) if data.target[i] == 2][:10]
    others = [i for i in range(900, 1797) if data.target[i] != 2][:30]
    for i in (*twos, *others):
        Image.fromarray((data.images[i] * 15.9).astype(np.uint8)).save(folder / f"{data.target[i]}-{i}.png")
    (folder / "broken.png").write_bytes(b"no picture")
    return folder


def test_the_loss_is_the_cross_entropy_of_both_directions():
    towers = family().eval()
    x = torch.randn(6, 1, 8, 8)
    cond = Cond(labels=torch.arange(6)[:, None])
    loss = towers.loss("contrast", Batch(x, cond, torch.ones(6)), 0)
    places, said = towers.embed_pictures(x), towers.embed_words(cond, 6)
    torch.testing.assert_close(places.norm(dim=1), torch.ones(6))
    logits = places @ said.T / 0.07
    own = torch.arange(6)
    wanted = (F.cross_entropy(logits, own, reduction="none") + F.cross_entropy(logits.T, own, reduction="none")) / 2
    torch.testing.assert_close(loss.value, wanted, rtol=1e-4, atol=1e-5)


def test_pictures_of_one_condition_share_the_right_answer():
    cond = Cond(labels=torch.tensor([[1], [2], [1]]))
    assert alike(cond, 3).tolist() == [[True, False, True], [False, True, False], [True, False, True]]
    near = Cond(pooled=torch.tensor([[1.0, 0], [1, 0], [0, 1]]), labels=torch.tensor([[0], [0], [0]]))
    assert alike(near, 3).tolist() == [[True, True, False], [True, True, False], [False, False, True]]
    logits = torch.randn(3, 3)
    log = logits.log_softmax(1)
    value = multi_positive(logits, alike(cond, 3))
    torch.testing.assert_close(value[0], -(log[0, 0] + log[0, 2]) / 2)
    torch.testing.assert_close(value[1], -log[1, 1])


def test_a_row_without_weight_is_nobodys_stranger():
    towers = family().eval()
    x = torch.randn(4, 1, 8, 8)
    cond = Cond(labels=torch.tensor([[0], [1], [2], [0]]))
    weight = torch.tensor([1.0, 1, 1, 0])
    three = towers.loss("contrast", Batch(x[:3], cond[:3], torch.ones(3)), 0).value
    four = towers.loss("contrast", Batch(x, cond, weight), 0).value
    torch.testing.assert_close(four[:3], three)
    assert torch.isfinite(four).all()


def test_towers_need_words_and_pictures_of_their_size():
    with pytest.raises(ConfigError, match="need words or classes"):
        Contrastive(Contrastive.Config(**preset("contrastive", "tiny")), DataSpec("image", (1, 8, 8)))
    spec = DataSpec("image", (1, 7, 5), labels=(("class", 2),))
    with pytest.raises(ConfigError, match="multiples of 2"):
        Contrastive(Contrastive.Config(**preset("contrastive", "tiny")), spec)


def test_held_out_pictures_find_their_words_and_words_their_picture(package: Path, digits: Path):
    class Cheap:
        name = identity = "Cheap"

    model = engine.load(package)
    bench = Bench(PackedSet(digits), Cheap(), None, 160)  # type: ignore[arg-type]
    found = Findings("towers")
    for _ in read(model, bench.groups(), bench, found):
        pass
    values = {metric.name: metric.value for metric in found.metrics}
    assert values["held-out/R@1-words-of-picture"] > 0.8, "of 50, none of its own class; chance is 0.02"
    assert values["held-out/R@1-picture-of-words"] > 0.6
    loaded = packages.load(package)
    data = load_digits()
    x = torch.tensor(data.images[::10] / 8 - 1, dtype=torch.float32)[:, None]
    with torch.no_grad():
        said = loaded.family.embed_words(Cond(labels=torch.arange(10)[:, None]), 10)
        named = (loaded.family.embed_pictures(x) @ said.T).argmax(1)
    assert (named == torch.tensor(data.target[::10])).float().mean() > 0.9


def test_finding_by_words_and_by_likeness(package: Path, photos: Path, tmp_path: Path):
    album = Album(packages.load(package), photos, tmp_path)
    said = [event.text for event in album.look() if event.kind == "log"]
    assert len(said) == 1
    assert "broken.png" in said[0]
    names = [Path(one.name).name[0] for one in album.by_words("2", None, 10)]
    assert names.count("2") >= 8
    assert len(album.by_words("2", None, 1000)) == 40, "what is no picture is never found"
    file = next(photos.glob("2-*.png"))
    with Image.open(file) as picture:
        like = album.by_likeness(picture, 10)
    assert Path(like[0].name) == file
    assert like[0].score == pytest.approx(1, abs=1e-4)
    again = Album(packages.load(package), photos, tmp_path)
    assert list(again.look()) == [], "remembered"
    assert np.array_equal(again.places, album.places)
    kept = next((tmp_path / "albums").iterdir())
    for damage in (b"", b"junk", kept.read_bytes()[:-40]):
        kept.write_bytes(damage)
        mended = Album(packages.load(package), photos, tmp_path)
        assert list(mended.look()), "looked at again"
        assert np.array_equal(mended.places, album.places)
    file.touch()
    (photos / "new.png").write_bytes(file.read_bytes())
    changed = Album(packages.load(package), photos, tmp_path)
    assert list(changed.look()), "another folder than before"
    (photos / "new.png").unlink()
    loaded = packages.load(package)
    list(Album(loaded, photos, tmp_path).look())
    assert list(Album(loaded, photos, tmp_path).look()) == []
    loaded.card.identity = "0" * 64
    assert list(Album(loaded, photos, tmp_path).look()), "another package sees them otherwise"


def test_finding_in_a_set_and_by_the_command_line(
    package: Path, photos: Path, digits: Path, packages_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    sheet = tmp_path / "found.png"
    asked = ["find", "7", "--model", str(package), "-n", "6"]
    assert run([*asked, "--in", str(digits), "--out", str(sheet), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["found"]
    labels = load_digits().target
    assert sum(labels[int(row["name"][1:])] == 7 for row in rows) >= 5
    with Image.open(sheet) as picture:
        assert picture.size[0] > picture.size[1] > 8
    assert run([*asked, "--in", str(photos)]) == 0
    assert ".png" in capsys.readouterr().out
    for bad, says in (
        (["find", "--in", str(photos), "--model", str(package)], "say what to find"),
        (["find", "2", "--in", str(tmp_path / "no"), "--model", str(package)], "no data set"),
        (["find", "2", "--in", str(photos), "--model", str(packages_folder / "vae")], "cannot find pictures"),
        (["find", "elf", "--in", str(photos), "--model", str(package)], "elf"),
    ):
        assert run(bad) != 0
        assert says in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(InvalidInput, match="no pictures"):
        Album(packages.load(package), empty)
    with pytest.raises(Unsupported, match="cannot find"):
        Album(packages.load(packages_folder / "lm"), photos)


def test_words_asked_of_towers_show_in_what_a_model_draws(
    package: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory
):
    train = TrainConfig(seen=19200, batch_size=64, snapshot=19200, sheet=0, threads=1, hooks=(), lr=5e-3, ema=500)
    stage = Stage(data=str(digits), family="vae", preset="tiny", model={"z": 8, "beta": 0.3}, train=train)
    folder = tmp_path_factory.mktemp("vae")
    for _ in run_recipe(Recipe(name="vae", stage=[stage]), folder):
        pass
    model = engine.load(folder / "model" / "package")
    towers = packages.load(package).family

    def said(pictures: object) -> float:
        x = torch.stack([torch.tensor(np.asarray(p.pil.convert("L"), np.float32)) for p in pictures])[:, None]  # type: ignore[attr-defined]
        with torch.no_grad():
            words = towers.embed_words(Cond(labels=torch.tensor([[0]] * len(x))), len(x))
            return float((towers.embed_pictures(x / 127.5 - 1) * words).sum(1).mean())

    plain = said(model.imagine("", n=16, seed=0))
    asked = said(model.imagine("0", n=16, seed=0, judge=str(package)))
    assert asked > plain + 0.2


def test_towers_of_pictures_are_no_text_encoder(package: Path):
    with pytest.raises(ConfigError, match="embeds text"):
        Text({"part": "text"}, {"text": packages.load(package)})
