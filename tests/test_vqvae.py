"""VQ-VAE: a codebook that follows the latents, gradients that pass it, and a language model that writes its codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits, make_blobs
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from sojourn import engine, package
from sojourn.codecs.text import BOS, EOS, FIRST, PAD
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import PackedSet
from sojourn.errors import ConfigError
from sojourn.families.lm import LM
from sojourn.families.vqvae import VQVAE, Codebook, straight_through
from sojourn.registry import preset
from sojourn.schema import Part
from sojourn.train.build import build, run_recipe
from sojourn.types import Batch, Cond, DataSpec, Noise

SPEC = DataSpec("image", (1, 8, 8))
torch.set_num_threads(1)  # nets this small only wait for each other on more
SMALL = {"batch_size": 32, "sheet": 4, "held_out": 32, "threads": 1, "hooks": (), "lr": 3e-3}


def vqvae(**config: object) -> VQVAE:
    torch.manual_seed(0)
    return VQVAE(VQVAE.Config(**{**preset("vq-vae", "tiny"), **config}), SPEC)


def some(rows: int = 32) -> Batch:
    x = torch.tensor(load_digits().images[:rows] / 8 - 1, dtype=torch.float32)[:, None]
    return Batch(x, Cond(), torch.ones(rows))


def feed(book: Codebook, points: Tensor) -> Tensor:
    """One update of the codebook by points (n, d); the mean squared distance before it."""
    index = book.nearest(points)
    gap = (points - book.look_up(index)).square().sum(1)
    k = len(book.size)
    one = torch.nn.functional.one_hot(index, k).float()  # (n, k)
    book.follow(one.sum(0), one.T @ points, one.T @ gap)
    return gap.mean()


# The codebook


def test_what_is_chosen_passes_forward_and_the_gradient_passes_back_as_it_is():
    z, chosen = torch.randn(2, 3, 4, 4, requires_grad=True), torch.randn(2, 3, 4, 4)
    out = straight_through(z, chosen)
    torch.testing.assert_close(out, chosen)
    weight = torch.randn_like(z)
    (weight * out.square()).sum().backward()
    torch.testing.assert_close(z.grad, 2 * weight * chosen)


def test_the_nearest_is_that_of_all_distances():
    book = Codebook(7, 5, 0.9)
    z = torch.randn(3, 5, 4, 2)
    distance = torch.cdist(z.movedim(1, -1).reshape(-1, 5), book.vectors)
    assert torch.equal(book.nearest(z).flatten(), distance.argmin(1))
    assert torch.equal(book.look_up(book.nearest(z))[1, :, 2, 1], book.vectors[book.nearest(z)[1, 2, 1]])


def test_a_vector_is_the_moving_average_of_equation_6_to_8():
    torch.manual_seed(0)
    book = Codebook(4, 2, 0.8)
    size, total = torch.zeros(4), torch.zeros(4, 2)
    for step in range(6):
        centres = torch.tensor([[0.0, 0], [9, 0], [0, 9], [9, 9]])
        points = centres.repeat(8, 1) + 0.1 * torch.randn(32, 2)
        if step == 0:
            book.vectors.copy_(centres)
        index = torch.cdist(points, book.vectors).argmin(1)
        feed(book, points)
        keep = 0.8 if step else 0.0
        for k in range(4):
            size[k] = keep * size[k] + (1 - keep) * (index == k).sum()
            total[k] = keep * total[k] + (1 - keep) * points[index == k].sum(0)
        torch.testing.assert_close(book.vectors, total / size[:, None])


def test_a_codebook_far_from_the_latents_ends_as_near_as_k_means():
    points, _ = make_blobs(4000, n_features=3, centers=16, cluster_std=0.3, random_state=0)
    points = torch.tensor(points, dtype=torch.float32) + 100
    book = Codebook(16, 3, 0.9)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        gap = feed(book, points[torch.randint(len(points), (512,), generator=generator)])
    best = KMeans(16, n_init=3, random_state=0).fit(points.numpy()).inertia_ / len(points)
    assert float(gap) < 2 * best
    assert float(book.perplexity) > 11


def test_without_revival_most_of_it_would_be_dead():
    points = torch.randn(512, 3) + 100
    book = Codebook(16, 3, 0.9)
    book._revive = lambda variance: None  # type: ignore[method-assign]
    for _ in range(50):
        feed(book, points)
    assert float(book.perplexity) < 3


def test_statistics_of_halves_are_those_of_the_whole_and_weights_count():
    family = vqvae()
    batch = some(8)
    whole = family.loss("elbo", batch, 0).stats
    halves = [family.loss("elbo", batch[part], 0).stats for part in (slice(0, 4), slice(4, 8))]
    for key, value in whole.items():
        torch.testing.assert_close(value, halves[0][key] + halves[1][key])
    assert float(whole["count"].sum()) == 8 * 16
    weight = torch.tensor([1.0] * 4 + [0.0] * 4)
    half = family.loss("elbo", Batch(batch.x, Cond(), weight), 0).stats
    for key, value in half.items():
        torch.testing.assert_close(value, halves[0][key])


def test_what_is_given_back_is_compared_by_squares_unless_lines_are_to_be_crisper():
    """By its size alone it never left the white ground of characters: the median of each place was that ground."""
    batch = some(8)
    for changes, error in (({}, lambda off: off.square() / 2), ({"reconstruction": "l1"}, torch.abs)):
        family = vqvae(**changes).eval()
        out = family.decode(family.encode(batch.x))
        found = family.loss("elbo", batch, 0).logs["loss/recon"]
        torch.testing.assert_close(found, error(out - batch.x).mean((1, 2, 3)))


def test_it_learns_digits_with_most_of_its_codes():
    family = vqvae(commitment=0.25).train()
    optimizer = torch.optim.Adam(family.parameters(), lr=3e-3)
    losses = []
    for step in range(120):
        optimizer.zero_grad()
        loss = family.loss("elbo", some(64), step)
        loss.value.mean().backward()
        optimizer.step()
        family.after("elbo", loss.stats)
        losses.append(float(loss.logs["loss/recon"].mean()))
    assert losses[-1] < 0.4 * losses[0]
    assert float(family.book.perplexity) > 8, "of 16"
    family.eval()
    x = some(8).x
    with torch.no_grad():
        again = family.decode(family.encode(x))
        torch.testing.assert_close(again, family.decode_codes(family.codes(x)))
        assert float((again - x).abs().mean()) < 0.3


def test_alone_it_draws_codes_as_often_as_they_are_used():
    family = vqvae().eval()
    family.book.size.copy_(torch.tensor([3.0, 1] + [0] * 14))
    seen = []
    family.dec.forward = lambda z, cond: seen.append(z) or torch.zeros(len(z), 1, 8, 8)  # type: ignore[assignment]
    list(family.sample(Cond(), Noise(range(200)), family.Options()))
    index = family.book.nearest(seen[0])
    assert set(index.unique().tolist()) == {0, 1}
    assert abs(float((index == 0).float().mean()) - 0.75) < 0.03


# Codes that a language model writes


@pytest.fixture(scope="module")
def written(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of two stages: the autoencoder and its prior, told the class."""
    first = Stage(
        name="autoencoder",
        data=str(digits),
        family="vq-vae",
        train=TrainConfig(**{**SMALL, "seen": 12800, "snapshot": 6400, "ema": 200}),
    )
    second = Stage(
        name="prior",
        data=str(digits),
        family="lm",
        preset="tiny",
        model={"width": 64},
        codec=Part(id="codes"),
        conditioner=Part(id="labels"),
        parts={"autoencoder": "autoencoder"},
        train=TrainConfig(**{**SMALL, "seen": 25600, "snapshot": 12800, "ema": 200, "cache": True}),
    )
    run = tmp_path_factory.mktemp("vq")
    for _ in run_recipe(Recipe(name="vq", stage=[first, second]), run):
        pass
    return run / "prior" / "package"


def test_a_prior_writes_pictures_of_the_class_that_is_asked_for(written: Path):
    model = engine.load(written)
    pictures = [
        torch.tensor(np.asarray(picture.pil.convert("L"), np.float32)).flatten()
        for name in "0123456789"
        for picture in model.imagine(name, n=8, seed=1)
    ]
    data = load_digits()
    judge = LogisticRegression(max_iter=2000).fit(data.data * 15.9, data.target)
    right = judge.predict(torch.stack(pictures).numpy()) == torch.arange(10).repeat_interleave(8).numpy()
    assert right.mean() > 0.5, "chance is 0.1"


def test_tokens_and_pictures_are_one_another(written: Path):
    loaded = package.load(written)
    family, codec = loaded.parts["autoencoder"].family, loaded.codec
    assert codec.spec == DataSpec("codes", (17,), vocab=FIRST + 16)
    raw = torch.randint(0, 255, (3, 8, 8, 1), dtype=torch.uint8)
    tokens = codec.encode(raw)
    assert tokens.shape == (3, 17)
    assert tokens.dtype == torch.long
    assert (tokens[:, 0] == BOS).all()
    x = loaded.parts["autoencoder"].codec.encode(raw)
    with torch.no_grad():
        torch.testing.assert_close(codec.decode(tokens), family.decode(family.encode(x)))
        tokens[:, 9:] = PAD
        half = codec.decode(tokens)
    assert torch.isfinite(half).all()
    assert len(codec.unpack(half)) == 3


def test_every_sample_has_all_codes_and_shows_them_as_they_come(written: Path):
    model = engine.load(written)
    frames = list(model.walk(model.request("3", n=4, seed=0)))
    assert len(frames) == 16
    for frame in (frames[0], frames[-1]):
        assert len(frame.pictures) == 4
    tokens = frames[-1].state.x0
    assert (tokens[:, 0] == BOS).all()
    assert (tokens[:, 1:] >= FIRST).all()


def test_no_code_of_a_picture_is_the_end_of_a_text():
    """However likely a fresh net finds it."""
    lm = LM(LM.Config(**preset("lm", "tiny")), DataSpec("codes", (17,), vocab=FIRST + 16)).eval()
    plain = lm.net.forward

    def ending(*args: object, **options: object) -> Tensor:
        logits = plain(*args, **options)
        logits[:, EOS] = 50.0
        return logits

    lm.net.forward = ending  # type: ignore[method-assign]
    tokens = list(lm.sample(Cond(), Noise([1, 2]), LM.Options()))[-1].x0
    assert (tokens[:, 1:] >= FIRST).all()


def test_guides_choose_among_what_it_writes(written: Path):
    model = engine.load(written)
    plain = model.imagine("3", n=3, seed=0)
    bent = model.imagine("3", n=3, seed=0, symmetry=True)

    def odd(pictures: engine.Pictures) -> float:
        x = np.stack([np.asarray(p.pil.convert("L"), np.float32) for p in pictures])
        return float(np.abs(x - x[..., ::-1]).mean())

    assert odd(bent) < odd(plain)
    source, mask = plain[0].pil, Image.new("L", (8, 8), 255)
    near = model.imagine("3", n=3, seed=5, source=source)
    far = model.imagine("3", n=3, seed=5)
    gaps = [
        np.mean([np.abs(np.asarray(p.pil, float) - np.asarray(source, float)).mean() for p in q]) for q in (near, far)
    ]
    assert gaps[0] < gaps[1]
    assert len(model.imagine("3", n=2, seed=5, source=source, mask=mask)) == 2


def test_a_part_without_codes_is_refused(digits: Path, packages_folder: Path):
    from sojourn.codecs.codes import CodesCodec

    with pytest.raises(ConfigError, match="a vq-vae package"):
        CodesCodec({}, {"autoencoder": package.load(packages_folder / "vae")})
    with pytest.raises(ConfigError, match="a vq-vae package"):
        CodesCodec({}, {})


def test_words_as_tokens_of_text_are_refused_for_a_model_of_codes(written: Path, tmp_path: Path):
    recipe = Recipe.model_validate_json((written.parent.parent / "recipe.json").read_text())
    prior = recipe.stage[1].model_copy(
        update={"conditioner": Part(id="tokens", config={"tokenizer": {"tokenizer": "chars", "length": 16}})}
    )
    parts = {"autoencoder": package.load(written.parent.parent / "autoencoder" / "package")}
    with pytest.raises(ConfigError, match='conditioner "tokens" is for models of text, found codes; use "text"'):
        build(prior, PackedSet(Path(prior.data)), parts, recipe)
