"""What bends a walk besides words: rules, masks, judges, a discriminator; and the way from one picture to another."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.distributions import Normal

from sojourn import engine, film
from sojourn.again import replay
from sojourn.cli.main import run
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.diffusion import rules
from sojourn.errors import InvalidInput, NotFound, PromptError, Unsupported
from sojourn.families.dcgan import DCGAN
from sojourn.families.stylegan2 import StyleGAN2, directions
from sojourn.nets import style
from sojourn.picture import Picture
from sojourn.registry import preset
from sojourn.schema import Part
from sojourn.train.build import run_recipe
from sojourn.types import Between, Cond, DataSpec, Guide, Noise, Spliced
from sojourn.wishes import colour, editable

RED, BLUE, WHITE = (1.0, -1.0, -1.0), (-1.0, -1.0, 1.0), (1.0, 1.0, 1.0)


def flat(*colours: tuple[float, float, float], side: int = 8) -> Tensor:
    """A picture of each colour."""
    return torch.tensor(colours)[:, :, None, None].expand(-1, -1, side, side).clone()


def trained(data: Path, folder: Path, **stage: object) -> Path:
    """A package of digits, trained until it knows them."""
    rate = 1e-3 if stage["family"] == "dcgan" else 5e-3
    train = TrainConfig(seen=19200, batch_size=64, snapshot=19200, sheet=0, threads=1, hooks=(), lr=rate, ema=500)
    for _ in run_recipe(Recipe(name="digits", stage=[Stage(data=str(data), train=train, **stage)]), folder):
        pass
    return folder / "model" / "package"


@pytest.fixture(scope="module")
def judge(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of digits."""
    still = {"shift": 0.0, "shrink": 0.0, "blur": 0.0}
    folder = tmp_path_factory.mktemp("judge")
    return trained(digits, folder, family="judge", preset="tiny", conditioner=Part(id="labels"), model=still)


@pytest.fixture(scope="module")
def models(packages_folder: Path, digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, engine.Model]:
    vae = trained(digits, tmp_path_factory.mktemp("vae"), family="vae", preset="tiny", model={"z": 8, "beta": 0.3})
    dcgan = trained(digits, tmp_path_factory.mktemp("dcgan"), family="dcgan", preset="tiny")
    return {"vae": engine.load(vae), "dcgan": engine.load(dcgan), "flow": engine.load(packages_folder / "flow")}


def gray(pictures: list[Image.Image]) -> Tensor:
    return torch.stack([torch.tensor(np.asarray(p.convert("L"), np.float32)) for p in pictures])


# Rules


def test_known_pixels_are_a_gaussian_around_the_source():
    x, raw = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    keep = torch.zeros(2, 1, 4, 4)
    keep[:, :, :2] = 1
    said = -Normal(x, 0.3).log_prob(raw)[:, :, :2].flatten(1).sum(1) - 24 * (
        math.log(0.3) + 0.5 * math.log(2 * math.pi)
    )
    torch.testing.assert_close(rules.known(x, keep, 0.3)(raw), rules.SHARE * said)


def test_a_palette_is_a_mixture_of_gaussians_and_leaves_its_own_colours_alone():
    energy = rules.palette([RED, WHITE])
    cost = energy(flat(RED, WHITE, BLUE))
    assert cost[0].abs() < 0.01
    assert cost[1].abs() < 0.01
    assert cost[2] > 1000
    pixel = torch.tensor([0.4, 0.1, -0.2])
    gaps = [float(((pixel - torch.tensor(c)) ** 2).sum()) for c in (RED, WHITE)]
    mixture = -math.log(sum(math.exp(-gap / (2 * rules.TOLERANCE**2)) for gap in gaps))
    got = float(energy(pixel[None, :, None, None].expand(1, 3, 8, 8)))
    assert got == pytest.approx(rules.SHARE * 64 * mixture, rel=1e-4)
    grey = rules.palette([BLUE, WHITE])(torch.full((1, 1, 8, 8), 2 * 0.114 - 1))
    assert grey.abs() < 0.01, "how bright blue is"


def test_symmetry_is_nothing_for_what_mirrors_itself():
    half = torch.rand(2, 3, 8, 4)
    whole = torch.cat([half, half.flip(-1)], dim=-1)
    assert torch.equal(rules.symmetry(whole), torch.zeros(2))
    assert (rules.symmetry(torch.rand(2, 3, 8, 8)) > 1).all()


@pytest.mark.parametrize("where", list(rules.CENTRES))
def test_a_place_is_where_the_ink_is(where: str):
    pictures = {}
    spots = {"left": (6, 2), "right": (6, 10), "top": (2, 6), "bottom": (10, 6), "centre": (6, 6)}
    for name, (row, column) in spots.items():
        pictures[name] = torch.ones(1, 3, 16, 16)
        pictures[name][:, :, row : row + 4, column : column + 4] = -1
    cost = {name: float(rules.place(where)(picture)) for name, picture in pictures.items()}
    assert min(cost, key=cost.__getitem__) == where
    clear = torch.cat([pictures[where], torch.ones(1, 1, 16, 16)], dim=1)
    assert float(rules.place(where)(clear)) == pytest.approx(cost[where], abs=1e-4)


def test_a_judge_is_its_cross_entropy_and_likeness_one_minus_cosine():
    raw = torch.rand(3, 1, 2, 2)
    wanted = torch.tensor([0, 1, 1])
    said = rules.judged(lambda x: x.flatten(1), wanted, 2.0)(raw)
    torch.testing.assert_close(said, -2 * raw.flatten(1).log_softmax(1)[torch.arange(3), wanted])
    alike = rules.alike(lambda x: x.flatten(1), torch.tensor([[1.0, 0, 0, 0]] * 3), 3.0)(raw)
    torch.testing.assert_close(alike, 3 * (1 - raw.flatten(1)[:, 0] / raw.flatten(1).norm(dim=1)))


def test_pictures_are_fitted_to_another_models_size_and_channels():
    rgba = torch.tensor([0.0, -1, -1, 0.0]).view(1, 4, 1, 1).expand(1, 4, 8, 8)  # half clear red, premultiplied
    out = rules.fitted(rgba, (3, 4, 4))
    torch.testing.assert_close(out, torch.tensor([1.0, 0, 0]).view(1, 3, 1, 1).expand(1, 3, 4, 4))
    for channels in (1, 3, 4):
        for wanted in (1, 3, 4):
            assert rules.fitted(torch.rand(2, channels, 8, 8), (wanted, 16, 16)).shape == (2, wanted, 16, 16)
    green = torch.tensor([-1.0, 1, -1]).view(1, 3, 1, 1).expand(1, 3, 2, 2)
    torch.testing.assert_close(rules.fitted(green, (1, 2, 2)), torch.full((1, 1, 2, 2), 2 * 0.587 - 1))
    assert rules.fitted(torch.rand(2, 3, 8, 8), (1, 8, 8)).shape == (2, 1, 8, 8)


def test_colours_have_names_in_both_languages_and_numbers():
    assert colour("red") == colour("红色") == colour(" RED ")
    assert colour("#ff0000") == pytest.approx(RED)
    with pytest.raises(InvalidInput, match='no colour "rde"; write #rrggbb or one of red'):
        colour("rde")


# On packages


@pytest.mark.parametrize("kind", ["vae", "dcgan", "flow"])
def test_symmetry_bends_every_kind_of_walk(models: dict[str, engine.Model], kind: str):
    words = "3" if kind == "flow" else ""
    plain = gray([p.pil for p in models[kind].imagine(words, n=16, seed=0)])
    bent = gray([p.pil for p in models[kind].imagine(words, n=16, seed=0, symmetry=True)])

    def odd(x: Tensor) -> float:
        return float((x - x.flip(-1)).abs().mean())

    assert odd(bent) < 0.7 * odd(plain)
    assert bent.std() > 0.6 * plain.std(), "a blank picture is symmetric too"


@pytest.mark.parametrize(("kind", "fewest", "share"), [("vae", 18, 0.7), ("dcgan", 8, 0.9)])
def test_a_mask_holds_the_known_part_of_a_picture(
    models: dict[str, engine.Model], kind: str, fewest: int, share: float
):
    """The GAN, a minute old, draws too few different pictures to come as near as the VAE."""
    model = models[kind]
    truth = [Image.fromarray((load_digits().images[i] * 15.9).astype(np.uint8)) for i in range(20)]
    mask = Image.new("L", (8, 8))
    mask.paste(255, (0, 4, 8, 8))
    held = others = 0
    for i, picture in enumerate(truth):
        request = model.request("", n=1, seed=i, source=picture, mask=mask)
        request.options["steps"] = 100
        known = torch.tensor(np.asarray(picture, np.float32))[:4] / 127.5 - 1
        first, other = (list(model.walk(model.request("", n=1, seed=seed)))[-1] for seed in (i, i + 1000))
        last = list(model.walk(request))[-1]
        cost, bent, plain = (float(((f.state.x0[0, 0, :4] - known) ** 2).sum()) for f in (first, last, other))
        held += bent <= share * cost
        others += plain <= share * cost
    assert held >= fewest > 1.5 * others, f"of 20: {held}, without a mask {others}"


def test_a_mask_is_open_where_it_is_white_in_part():
    mask = Image.new("L", (8, 8))
    mask.putpixel((0, 0), 255)
    edit = editable(mask, torch.zeros(2, 3, 4, 4))
    assert edit.shape == (2, 1, 4, 4)
    assert edit.sum() == 2


def test_a_mask_is_cut_out_as_its_source_is(models: dict[str, engine.Model]):
    source = Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 16), np.uint8))
    mask = Image.new("L", (16, 8))
    mask.paste(255, (8, 0, 16, 8))  # of the middle that is drawn, the right half
    for name in ("flow", "vae"):
        drawn = models[name].imagine("" if name == "vae" else "3", n=1, seed=0, source=source, mask=mask)
        gap = np.abs(np.asarray(drawn[0].pil.convert("L"), int) - np.asarray(source, int)[:, 4:12])
        assert gap[:, :4].max() == 0
        assert gap[:, 4:].max() > 0
    with pytest.raises(InvalidInput, match="the mask is 8x8, the source 16x8"):
        models["flow"].imagine("3", n=1, source=source, mask=Image.new("L", (8, 8), 255))


@pytest.mark.parametrize("name", ["vae", "flow"])
@pytest.mark.parametrize("strength", [-0.05, 2.0])
def test_a_strength_out_of_range_is_refused(name: str, strength: float, models: dict[str, engine.Model]):
    source = Image.new("L", (8, 8))
    with pytest.raises(InvalidInput, match=rf"strength {strength} is outside 0\.\.1"):
        models[name].imagine("", n=1, seed=0, source=source, strength=strength)


def test_a_source_pulls_more_the_weaker_its_strength(models: dict[str, engine.Model]):
    picture = Image.fromarray((load_digits().images[3] * 15.9).astype(np.uint8))
    known = torch.tensor(np.asarray(picture, np.float32))
    gaps = []
    for strength in (0.0, 1.0):
        drawn = gray([p.pil for p in models["vae"].imagine("", n=8, seed=0, source=picture, strength=strength)])
        gaps.append(float((drawn - known).abs().mean()))
    plain = float((gray([p.pil for p in models["vae"].imagine("", n=8, seed=0)]) - known).abs().mean())
    assert gaps[0] < gaps[1] < plain


def test_a_class_asked_of_a_judge_shows_in_what_an_unconditional_model_draws(
    models: dict[str, engine.Model], judge: Path, tmp_path: Path
):
    data = load_digits()
    other = LogisticRegression(max_iter=2000).fit(data.data * 15.9, data.target)
    model = models["vae"]
    right = []
    for name in "0123456789":
        pictures = model.imagine(f"{name} --judge {judge}", n=8, seed=0)
        right += list(other.predict(gray([p.pil for p in pictures]).flatten(1).numpy()) == int(name))
    assert np.mean(right) > 0.3, "chance is 0.1"
    path = pictures[2].save(tmp_path / "nine.png")
    assert pictures[2].recipe["judge"]
    assert replay(path, model=model)[1] == 0
    recipe = {**pictures[2].recipe, "judge": "0" * 64}
    other = Picture(pictures[2].pil, pictures[2].seed, recipe).save(tmp_path / "other.png")
    with pytest.raises(NotFound, match="is another package than the one"):
        replay(other, model=model)


def test_wishes_that_cannot_be_met_are_told_in_one_line(
    models: dict[str, engine.Model], packages_folder: Path, judge: Path
):
    vae = models["vae"]
    with pytest.raises(InvalidInput, match="--place is up; it can be bottom, centre, left, right, top"):
        vae.imagine("", place="up")
    with pytest.raises(InvalidInput, match='no colour "reed"'):
        vae.imagine("", palette="reed")
    with pytest.raises(PromptError, match="--palette has more than 8 things"):
        vae.imagine("a --palette " + ", ".join("abcdefghi"))
    with pytest.raises(Unsupported, match="cannot judge pictures"):
        vae.imagine("3", judge=str(packages_folder / "vae"))
    with pytest.raises(InvalidInput, match="--judge wants a class"):
        vae.imagine("", judge=str(judge))
    lm = engine.load(packages_folder / "lm")
    with pytest.raises(Unsupported, match="--symmetry"):
        lm.imagine("春", symmetry=True)


def test_a_discriminator_has_a_say_in_a_walk():
    torch.manual_seed(0)
    family = DCGAN(DCGAN.Config(**preset("dcgan", "tiny")), DataSpec("image", (1, 8, 8))).eval()
    with torch.no_grad():
        for p in family.G.parameters():
            p.add_(0.2 * torch.randn_like(p))
    family.D.forward = lambda x, cond: 3 * x.flatten(1).sum(1)  # type: ignore[method-assign]
    drawn = [
        list(family.sample(Cond(), Noise(range(16)), DCGAN.Options(critic=critic)))[-1].x0.mean()
        for critic in (0.0, 1.0)
    ]
    assert drawn[1] > drawn[0] + 0.1


def test_a_walk_by_the_discriminator_ends_where_prior_times_odds_says():
    """z of one number, G the identity, D a logit linear in it: the prior moved by the slope (Che 2020, eq. 3)."""
    family = DCGAN(DCGAN.Config(**preset("dcgan", "tiny")), DataSpec("image", (1, 8, 8)))
    family.verdict = lambda x, cond: 1.5 * x[:, 0]  # type: ignore[method-assign]
    options = DCGAN.Options(critic=1.0, steps=150)
    noise = Noise(range(400))
    z = noise.draw("z", (1,))
    last = list(family.walked(lambda z: z, z, Cond(), (), noise, options))[-1].x0
    assert float(last.mean()) == pytest.approx(1.5, abs=0.2)
    assert float(last.std()) == pytest.approx(1.0, abs=0.15)


# From one picture to another


def test_between_two_draws_all_places_are_as_likely():
    many = list(range(2000))
    for share in (0.0, 0.3, 0.5, 1.0):
        noise = Between(many, [s + 5000 for s in many], [share] * 2000)
        z = noise.draw("z", (3,))
        assert float(z.std()) == pytest.approx(1, abs=0.03)
        u = noise.uniform("u", (3,))
        assert float(u.mean()) == pytest.approx(0.5, abs=0.02)
        assert float(u.std()) == pytest.approx(12**-0.5, abs=0.01)
        assert float(u.min()) >= 0
        assert float(u.max()) < 1
    ends = Between([1, 1], [2, 2], [0.0, 1.0])
    torch.testing.assert_close(
        ends.draw("z", (4,)), torch.cat([Noise([1]).draw("z", (4,)), Noise([2]).draw("z", (4,))])
    )
    u = torch.cat([Noise([1]).uniform("u", (4,)), Noise([2]).uniform("u", (4,))])
    torch.testing.assert_close(ends.uniform("u", (4,)), u, atol=1e-5, rtol=1e-5)
    assert torch.equal(ends[1:].draw("z", (4,)), ends.draw("z", (4,))[1:])
    still = Between([1], [1], [0.5]).draw("z", (4,))
    torch.testing.assert_close(still, Noise([1]).draw("z", (4,))), "from a row to itself"


def test_a_film_goes_through_the_pictures_of_its_seeds_in_small_steps(models: dict[str, engine.Model]):
    model = models["vae"]
    frames = gray(list(film.between(model, "", [3, 4, 5], 8)))
    assert len(frames) == 17
    stops = gray([model.imagine("", n=1, seed=seed)[0].pil for seed in (3, 4, 5)])
    assert float((frames[[0, 8, 16]] - stops).abs().max()) <= 1
    steps = (frames[1:] - frames[:-1]).abs().mean((1, 2))
    assert float(steps.max()) < 0.6 * float((stops[1:] - stops[:-1]).abs().mean((1, 2)).min())
    looped = gray(list(film.between(model, "", [3, 4], 4, loop=True)))
    assert len(looped) == 8
    for seeds in ([3], [3, 3]):
        with pytest.raises(InvalidInput, match="two seeds"):
            list(film.between(model, "", seeds, 4, loop=True))


def test_a_film_is_one_request_in_one_style(models: dict[str, engine.Model], monkeypatch: pytest.MonkeyPatch):
    """However many parts it is drawn in."""
    model, asked = models["vae"], []
    plain = model.request
    monkeypatch.setattr(model, "request", lambda *a, **k: asked.append(k) or plain(*a, **k))
    monkeypatch.setattr(film, "ROWS", 2)
    assert len(list(film.between(model, "", [3, 4, 5], 3, symmetry=True))) == 7
    assert asked == [{"n": 1, "seed": 3, "symmetry": True}]
    asked.clear()
    assert len(list(film.along(model, "", 3, "steps", 10.0, 12.5, 3, symmetry=True))) == 3, "whole numbers are rounded"
    assert len(asked) == 1


@pytest.mark.parametrize("ending", [".webp", ".gif"])
def test_a_film_is_a_file_that_plays(models: dict[str, engine.Model], tmp_path: Path, ending: str):
    path = tmp_path / f"film{ending}"
    film.write(film.between(models["vae"], "", [3, 4], 6), path, 10, 4)
    with Image.open(path) as played:
        assert played.n_frames == 7
        assert played.size == (32, 32)
        played.seek(1)
        played.load()
        assert played.info["duration"] == 100
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_a_film_without_ffmpeg_or_of_another_kind_is_refused(
    models: dict[str, engine.Model], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(Unsupported, match="ffmpeg"):
        film.write([], tmp_path / "a.mp4", 10)
    with pytest.raises(InvalidInput, match="is no film"):
        film.write([], tmp_path / "a.png", 10)


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs ffmpeg")
def test_an_mp4_is_written_by_ffmpeg(tmp_path: Path):
    path = tmp_path / "a.mp4"
    film.write([Image.new("L", (9, 7), shade) for shade in (0, 90, 180)], path, 10)
    assert path.read_bytes()[4:8] == b"ftyp"


def stylegan() -> StyleGAN2:
    torch.manual_seed(0)
    family = StyleGAN2(StyleGAN2.Config(**preset("stylegan2", "tiny")), DataSpec("image", (3, 16, 16))).eval()
    with torch.no_grad():
        for p in family.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return family


def styled(family: StyleGAN2, noise: Noise, guides: tuple[Guide, ...] = (), **options: object) -> Tensor:
    with torch.no_grad():
        return list(family.sample(Cond(), noise, StyleGAN2.Options(**options), guides))[-1].x0


def test_styles_mix_from_a_layer_on():
    family = stylegan()
    own, both = styled(family, Noise([1])), Spliced([1], [2])
    count = family.G.synthesis.count
    assert not torch.allclose(styled(family, both, mix=1), own)
    assert not torch.equal(styled(family, both, mix=count - 1), own)
    with pytest.raises(InvalidInput, match=rf"layer {count} is outside 0\.\.{count - 1}"):
        styled(family, both, mix=count)
    # From layer 0 on all styles are the other's; the noise of the layers stays one's own.
    with torch.no_grad():
        styles = family.G.styles(Noise([2]).draw("z", (family.config.z_dim,)), Cond())
        eps = [Noise([1]).draw(f"noise/{i}", shape) for i, shape in enumerate(family.G.synthesis.shapes)]
        torch.testing.assert_close(styled(family, both, mix=0), family.G.synthesis(styles, eps))


def test_a_table_of_mixes_has_the_coarse_styles_of_its_rows(monkeypatch: pytest.MonkeyPatch):
    asked = []

    def drawn(model: object, one: object, noise: Noise, options: dict[str, int]) -> list[Image.Image]:
        late = noise.late.seeds if isinstance(noise, Spliced) else None
        asked.append((noise.seeds, late, options.get("mix")))
        return [Image.new("RGB", (4, 4))]

    class Mixing:
        family = stylegan()

        def request(self, prompt: str, **more: object) -> None:
            return None

    monkeypatch.setattr(film, "_drawn", drawn)
    film.mixed(Mixing(), "", [1, 2], [7], 3)  # type: ignore[arg-type]
    assert asked == [((7,), None, None), ((1,), None, None), ((1,), (7,), 3), ((2,), None, None), ((2,), (7,), 3)]


def test_directions_are_the_singular_vectors_of_what_layers_are_told():
    family = stylegan()
    layers = [module.style for module in family.G.synthesis.modules() if hasattr(module, "demodulate")]
    told = torch.cat([layer.weight * layer.scale for layer in layers]).detach().numpy()
    wanted = np.linalg.svd(told)[2]
    got = directions(family.G.synthesis).detach().numpy()
    assert np.abs((got * wanted).sum(1)).min() == pytest.approx(1, abs=1e-3)
    assert (got.max(1) >= -got.min(1)).all()


def test_rows_of_a_walk_by_stylegan2s_discriminator_do_not_see_each_other():
    family = stylegan()
    four = styled(family, Noise([0, 1, 2, 3]), critic=1.0, steps=5)
    alone = styled(family, Noise([2]), critic=1.0, steps=5)
    torch.testing.assert_close(four[2:3], alone, rtol=1e-3, atol=1e-3)


def test_a_picture_is_judged_in_company_and_not_as_a_collapse(monkeypatch: pytest.MonkeyPatch):
    family, spreads = stylegan(), []
    plain = style.minibatch_stddev
    monkeypatch.setattr(style, "minibatch_stddev", lambda x: (spreads.append(plain(x)), plain(x))[1])
    family.verdict(styled(family, Noise([5, 6])), Cond())
    assert min(float(spread.detach()[:2].min()) for spread in spreads) > 1e-3, "alone a row has no spread"


def test_a_least_squares_discriminator_leads_where_it_is_sure():
    torch.manual_seed(0)
    family = DCGAN(DCGAN.Config(**preset("lsgan", "tiny")), DataSpec("image", (1, 8, 8)))
    x = torch.zeros(5, 1, 8, 8, requires_grad=True)
    shares = torch.tensor([-0.5, 0.0, 0.5, 1.0, 1.5])
    family.D.forward = lambda x, cond: shares + x.mean((1, 2, 3))  # type: ignore[method-assign]
    said = family.verdict(x, Cond())
    (slope,) = torch.autograd.grad(said.sum(), x)
    assert (slope.flatten(1).sum(1) > 1).all()
    assert said.diff().min() > 0
    assert float(said.detach()[2]) == pytest.approx(0, abs=1e-5)


def test_a_film_of_several_generators_stays_with_one():
    torch.manual_seed(0)
    family = DCGAN(DCGAN.Config(**preset("multi-gan", "tiny")), DataSpec("image", (1, 8, 8))).eval()
    firsts = [int(Noise([s]).draw("generator", (family.config.generators,)).argmax()) for s in range(20)]
    other = next(s for s in range(20) if firsts[s] != firsts[0])
    asked: list[int] = []
    draw = family._draw
    family._draw = lambda z, cond, which: (asked.extend(which.tolist()), draw(z, cond, which))[1]  # type: ignore[method-assign]
    for share in (0.0, 0.5, 1.0):
        list(family.sample(Cond(), Between([0], [other], [share]), family.Options()))
    assert set(asked) == {firsts[0]}


def test_a_move_along_the_first_direction_changes_more_than_along_the_last():
    family = stylegan()
    plain = styled(family, Noise(range(8)))
    assert torch.equal(styled(family, Noise(range(8)), direction=3, move=0.0), plain)
    first = (styled(family, Noise(range(8)), direction=0, move=2.0) - plain).abs().mean()
    last = (styled(family, Noise(range(8)), direction=31, move=2.0) - plain).abs().mean()
    assert first > 1.5 * last
    with pytest.raises(InvalidInput, match=r"direction 32 is outside 0\.\.31"):
        styled(family, Noise([0]), direction=32, move=1.0)


# By the command line


def test_walk_and_options_by_the_command_line(
    packages_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    vae, out = str(packages_folder / "vae"), tmp_path / "w.webp"
    assert run(["walk", vae, "--seeds", "1,2", "--frames", "3", "--out", str(out)]) == 0
    assert "4 pictures in" in capsys.readouterr().out
    with Image.open(out) as played:
        assert played.n_frames == 4
    along = ["walk", vae, "--seeds", "1", "--along", "temperature=0..2", "--frames", "3", "--out", str(out)]
    assert run(along) == 0
    for bad, says in (
        (["walk", vae, "--seeds", "x"], "no list of seeds"),
        (["walk", vae, "--along", "move"], "no option with its range"),
        (["walk", vae, "--out", "a.txt"], "is no film"),
        (["walk", vae, "-o", "temperature"], "is no option"),
        (["imagine", "3", "--model", vae, "-o", "temperatur=1"], "temperatur"),
        (["mix", vae, "--out", str(tmp_path / "m.png")], "no styles to mix"),
    ):
        assert run(bad) != 0
        assert says in capsys.readouterr().err


def test_a_model_that_reads_no_words_draws_without_them(
    packages_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    out = ["--out", str(tmp_path), "--quiet", "--n", "1", "--seed", "3"]
    assert run(["imagine", "--model", str(packages_folder / "vae"), *out]) == 0
    assert run(["imagine", "", "--model", str(packages_folder / "vae"), *out]) == 0
    assert len(list(tmp_path.glob("*-1.png"))) == 2
    capsys.readouterr()
    assert run(["imagine", "", "--seed", "3"]) == 2
    assert "the prompt is empty" in capsys.readouterr().err


def test_a_judge_is_asked_for_what_is_wished_and_not_for_what_is_pushed_away(
    models: dict[str, engine.Model], judge: Path
) -> None:
    plain = models["flow"].imagine(f"3 --judge {judge}", n=1, seed=0)
    pushed = models["flow"].imagine(f"3::1 7::-0.5 --judge {judge}", n=1, seed=0)
    assert plain[0].recipe["judge"] == pushed[0].recipe["judge"]


@pytest.mark.parametrize("steps", [1, 2])
def test_a_source_is_changed_in_few_steps_too(steps: int, models: dict[str, engine.Model]) -> None:
    source = Image.fromarray((load_digits().images[3] * 15.9).astype(np.uint8))
    known = np.asarray(source, np.int16)

    def moved(strength: float, words: str) -> np.ndarray:
        asked = f"{words} --steps {steps}"
        return np.asarray(models["flow"].imagine(asked, n=1, seed=0, source=source, strength=strength)[0].pil, np.int16)

    assert np.abs(moved(0.0, "7") - known).max() <= 1
    assert np.abs(moved(0.45, "7") - known).max() > 8
    assert np.abs(moved(0.45, "7") - moved(0.45, "0")).max() > 2
