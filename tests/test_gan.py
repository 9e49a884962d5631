"""GAN nets, their losses and the latent walk: against closed forms, numpy and scikit-image."""

from __future__ import annotations

import copy
import math
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import structural_similarity
from torch import Tensor, nn
from torch.nn import functional as F

from sojourn.diffusion.langevin import walk
from sojourn.errors import ConfigError, InvalidInput, Unsupported
from sojourn.families.dcgan import (
    DCGAN,
    DCGANConfig,
    DCGANOptions,
    classification,
    least_squares_d,
    least_squares_g,
)
from sojourn.families.gan import mismatched
from sojourn.nets import losses
from sojourn.nets.conv import Discriminator, Generator
from sojourn.nets.spectral import advance, normalised
from sojourn.nets.twice import Conv2d
from sojourn.registry import get, preset
from sojourn.types import Batch, Cond, DataSpec, Guide, Noise

PLAIN = DataSpec("image", (1, 16, 16))
CLASSES = DataSpec("image", (3, 8, 8), labels=(("digit", 10),))


def gan(spec: DataSpec = CLASSES, family: str = "dcgan", **changes: object) -> DCGAN:
    torch.manual_seed(0)
    return DCGAN(DCGANConfig(**{**preset(family, "tiny"), **changes}), spec)


def batch(spec: DataSpec = CLASSES, rows: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(rows, *spec.shape, generator=generator) * 2 - 1
    labels = torch.randint(0, 10, (rows, 1), generator=generator) if spec.labels else None
    return Batch(x, Cond(labels=labels), torch.ones(rows))


def only(family: DCGAN, name: str) -> None:
    for child in ("G", "D"):
        family.get_submodule(child).requires_grad_(child == name)


# Convolutions that are differentiated twice


@pytest.mark.parametrize(
    "how", [{"padding": 1}, {"stride": 2, "padding": 1}, {"groups": 2, "bias": False}, {"dilation": 2}], ids=str
)
def test_a_convolution_and_its_gradients_of_two_orders(how: dict[str, Any]):
    torch.manual_seed(0)
    plain, ours = (kind(4, 6, 3, **how).double() for kind in (nn.Conv2d, Conv2d))
    ours.load_state_dict(plain.state_dict())
    x = torch.randn(2, 4, 6, 6, dtype=torch.double, requires_grad=True)
    assert torch.allclose(ours(x), plain(x), atol=1e-12)
    weight = ours.weight.detach().clone().requires_grad_()

    def call(x: Tensor, weight: Tensor) -> Tensor:
        return torch.func.functional_call(ours, {"weight": weight}, x)

    assert torch.autograd.gradcheck(call, (x, weight))
    assert torch.autograd.gradgradcheck(call, (x, weight))
    for conv in (plain, ours):  # and the whole way to the weights, as a penalty goes
        losses.zero_centred_penalty(conv(x).square().sum(dim=(1, 2, 3)), x).sum().backward()
    assert torch.allclose(ours.weight.grad, plain.weight.grad, rtol=1e-10)


# Adversarial terms


def test_terms_against_their_definitions():
    real = torch.tensor([-3.0, 0.0, 0.4, 2.0], dtype=torch.float64)
    fake = torch.tensor([1.5, 0.0, -2.0, -0.3], dtype=torch.float64)
    sigmoid = 1 / (1 + np.exp(-real.numpy())), 1 / (1 + np.exp(-fake.numpy()))
    np.testing.assert_allclose(losses.logistic_d(real, fake), -np.log(sigmoid[0]) - np.log(1 - sigmoid[1]), rtol=1e-12)
    np.testing.assert_allclose(losses.logistic_g(fake), -np.log(sigmoid[1]), rtol=1e-12)
    np.testing.assert_allclose(losses.hinge_d(real, fake), [4 + 2.5, 2, 0.6 + 0, 0 + 0.7], rtol=1e-12)
    np.testing.assert_allclose(losses.hinge_g(fake), -fake, rtol=1e-12)
    np.testing.assert_allclose(losses.wasserstein_d(real, fake), [4.5, 0, -2.4, -2.3], rtol=1e-12)
    np.testing.assert_allclose(losses.wasserstein_g(fake), -fake, rtol=1e-12)
    np.testing.assert_allclose(least_squares_d(real, fake), [8 + 1.125, 0.5 + 0, 0.18 + 2, 0.5 + 0.045], rtol=1e-12)
    np.testing.assert_allclose(least_squares_g(fake), [0.125, 0.5, 4.5, 0.845], rtol=1e-12)


def test_logistic_terms_stay_finite_far_out():
    far = torch.tensor([-1e4, 1e4])
    assert losses.logistic_d(far, far).isfinite().all()
    assert losses.logistic_g(far).isfinite().all()


# Penalties


def test_zero_centred_penalty_of_a_quadratic_critic():
    # score = a . x + x' Q x / 2 has gradient a + Q x
    generator = torch.Generator().manual_seed(0)
    a, q = torch.randn(12, generator=generator), torch.randn(12, 12, generator=generator)
    q = q + q.T
    x = torch.randn(5, 3, 2, 2, generator=generator).requires_grad_(True)
    scale = torch.tensor(2.0, requires_grad=True)
    flat = x.flatten(1)
    score = scale * (flat @ a + (flat @ q * flat).sum(1) / 2)
    penalty = losses.zero_centred_penalty(score, x)
    exact = (2 * (a + x.detach().flatten(1) @ q)).square().sum(1)
    torch.testing.assert_close(penalty, exact)
    (slope,) = torch.autograd.grad(penalty.sum(), scale)  # d(scale^2 g^2)/d scale = 2 scale g^2
    torch.testing.assert_close(slope, exact.sum())


def test_one_centred_penalty_of_a_quadratic_critic():
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(2, 4, 1, 3, 3, generator=generator)
    mix = torch.tensor([0.0, 1.0, 0.25, 0.5])

    def critic(x: Tensor) -> Tensor:
        return x.flatten(1).square().sum(1) / 2  # its gradient is x

    between = mix.view(4, 1, 1, 1) * real + (1 - mix.view(4, 1, 1, 1)) * fake
    exact = (between.flatten(1).norm(dim=1) - 1).square()
    torch.testing.assert_close(losses.one_centred_penalty(critic, real, fake, mix), exact)


def test_one_centred_penalty_of_a_flat_critic_has_a_finite_gradient():
    weight = torch.zeros(4, requires_grad=True)
    x = torch.ones(2, 4)
    penalty = losses.one_centred_penalty(lambda v: v @ weight, x, x, torch.zeros(2))
    penalty.sum().backward()
    torch.testing.assert_close(penalty.detach(), torch.ones(2))
    assert weight.grad is not None
    assert weight.grad.isfinite().all()


# Reconstruction


def pictures(rows: int = 3, side: int = 40, channels: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    x = torch.rand(rows, channels, side, side, generator=generator) * 2 - 1
    y = (x + 0.4 * torch.randn(x.shape, generator=generator)).clamp(-1, 1)
    return x, y


def test_distances_against_numpy():
    x, y = pictures()
    a, b = x.double().numpy(), y.double().numpy()
    axes = (1, 2, 3)
    np.testing.assert_allclose(losses.l1(x, y), np.abs(a - b).mean(axes), rtol=1e-5)
    np.testing.assert_allclose(losses.l2(x, y), ((a - b) ** 2).mean(axes), rtol=1e-5)
    down, across = np.diff(a - b, axis=2), np.diff(a - b, axis=3)
    np.testing.assert_allclose(
        losses.gradient_l1(x, y), (np.abs(down).mean(axes) + np.abs(across).mean(axes)) / 2, rtol=1e-5
    )


def test_gradient_l1_ignores_a_shift_in_brightness():
    x, _ = pictures()
    assert float(losses.gradient_l1(x, x + 0.3).max()) < 1e-6


def test_ssim_against_scikit_image():
    x, y = pictures()
    for row in range(len(x)):
        known = structural_similarity(
            x[row].double().numpy(), y[row].double().numpy(), channel_axis=0, data_range=2.0,
            gaussian_weights=True, sigma=1.5, use_sample_covariance=False,
        )  # fmt: skip
        assert float(losses.ssim(x, y)[row]) == pytest.approx(known, abs=1e-5)


def test_similarity_is_one_for_equals_and_has_a_gradient():
    x, y = pictures(side=32)
    torch.testing.assert_close(losses.ssim(x, x), torch.ones(3))
    y.requires_grad_(True)
    opposite = -x.detach()
    (1 - losses.ssim(opposite, y)).sum().backward()
    assert y.grad is not None
    assert y.grad.isfinite().all()


def test_similarity_of_small_pictures_is_refused_with_their_size():
    with pytest.raises(InvalidInput, match="found 8x8"):
        losses.ssim(torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8))


# Nets


@pytest.mark.parametrize(("side", "channels"), [(8, 1), (16, 4), (32, 3), (128, 3)])
def test_nets_fit_every_power_of_two(side: int, channels: int):
    spec = DataSpec("image", (channels, side, side), labels=(("kind", 3),))
    g, d = Generator(spec, 16, 8, 32, "batch"), Discriminator(spec, 8, 32, "layer")
    cond = Cond(labels=torch.tensor([[0], [-1]]))
    x = g(torch.randn(2, 16), cond)
    assert x.shape == (2, channels, side, side)
    assert float(x.detach().abs().max()) <= 1
    assert d(x, cond).shape == (2,)


@pytest.mark.parametrize("shape", [(1, 12, 12), (3, 64, 32), (3, 4, 4), (64,)])
def test_other_shapes_are_refused(shape: tuple[int, ...]):
    with pytest.raises(Unsupported, match="64, 128"):
        Generator(DataSpec("image", shape), 16, 8, 32, "batch")
    with pytest.raises(Unsupported, match="64, 128"):
        Discriminator(DataSpec("image", shape), 8, 32, "none")


def test_class_changes_picture_and_score():
    family = gan().eval().requires_grad_(False)
    z = torch.randn(1, family.config.z_dim).repeat(2, 1)
    cond = Cond(labels=torch.tensor([[1], [2]]))
    x = family.G(z, cond)
    assert float((x[0] - x[1]).abs().max()) > 1e-3
    scores = family.D(x[:1].repeat(2, 1, 1, 1), cond)
    assert abs(float(scores[0] - scores[1])) > 1e-4
    none = family.D(x, Cond()), family.D(x, Cond(labels=torch.tensor([[-1], [-1]])))
    torch.testing.assert_close(*none)


@pytest.mark.parametrize("id", ["dcgan", "sngan", "multi-gan", "biggan", "stylegan2", "r3gan"])
def test_a_class_is_heard_as_clearly_as_the_latent_from_the_start(id: str):
    torch.manual_seed(0)
    cls = get("family", id).cls
    family = cls(cls.Config(**preset(id, "tiny")), DataSpec("image", (1, 16, 16), labels=(("kind", 8),))).eval()

    def spread(labels: list[int], seeds: list[int]) -> float:
        asked = Cond(labels=torch.tensor(labels)[:, None])
        return float(list(family.sample(asked, Noise(seeds), family.Options()))[-1].x.std(dim=0).mean())

    classes, latents = spread([*range(8)], [1] * 8), spread([3] * 8, [*range(8)])
    assert 0.3 < classes / latents < 3
    lengths = torch.cat([m.weight.detach() for m in family.G.modules() if isinstance(m, nn.Embedding)]).square().mean(1)
    assert float(lengths.min()) > 0.5, "an update hardly turns one"


def test_sngans_first_map_is_laid_out_by_the_class():
    """Not only louder or quieter by channel: each place has a say of its own."""
    family = gan(family="sngan")
    maps: list[Tensor] = []
    hook = family.G.blocks[0].register_forward_pre_hook(lambda _, args: maps.append(args[0].detach()))
    z = torch.randn(1, family.config.z_dim)
    for label in (0, 1):
        family.G(z, Cond(labels=torch.tensor([[label]])))
    hook.remove()
    gap = maps[0] - maps[1]  # (1, c, 4, 4)
    assert float(gap.flatten(2).std(dim=2).min()) > 1e-2


@pytest.mark.parametrize("spectral", [False, True])
def test_what_a_class_adds_to_a_score_is_as_large_as_the_score(spectral: bool):
    """Products of 64 numbers of unit variance are to be divided by 8; those of a matrix of norm 1 are not."""
    torch.manual_seed(0)
    spec = DataSpec("image", (1, 16, 16), labels=(("kind", 100),))
    critic = Discriminator(spec, 16, 32, "layer", spectral=spectral).eval()
    labels, x = torch.arange(100)[:, None], torch.randn(100, 1, 16, 16)
    with torch.no_grad():
        plain = critic.out(critic.body(x).flatten(1))
        classes = critic(x[:1].expand(100, -1, -1, -1), Cond(labels=labels))
    assert 0.3 < float(classes.std() / plain.std()) < 3


def test_pooled_text_is_a_condition():
    spec = DataSpec("image", (3, 8, 8), pooled_dim=5, text_dim=7, text_len=3)
    family = gan(spec)
    loss = family.loss("D", Batch(batch().x, Cond(pooled=torch.randn(6, 5)), torch.ones(6)), 0)
    loss.value.sum().backward()
    assert all(p.grad is not None for p in family.D.parameters())


# Spectral normalisation


def test_spectral_norm_is_the_largest_singular_value():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 5))
    plain = [net[0].weight.detach().clone(), net[2].weight.detach().clone()]
    normalised(net)
    for _ in range(200):
        advance(net)
    for layer, weight in zip((net[0], net[2]), plain, strict=True):
        torch.testing.assert_close(layer.weight, weight / torch.linalg.svdvals(weight.flatten(1))[0])
    # A forward pass moves nothing: a batch in parts sees the weights of one in one go.
    before = copy.deepcopy(net.state_dict())
    net.train()(torch.randn(2, 3, 3, 3))
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


def test_spectral_norm_follows_its_weight_and_has_the_gradient_of_the_paper():
    torch.manual_seed(0)
    layer = nn.Linear(6, 4, bias=False)
    normalised(layer)
    for _ in range(50):
        advance(layer)
    norm = layer.parametrizations.weight[0]
    original = layer.parametrizations.weight.original
    with torch.no_grad():
        original.mul_(3)
    assert float(torch.linalg.svdvals(layer.weight.detach())[0]) == pytest.approx(1, abs=1e-3)
    advance(layer)
    x, y = torch.randn(5, 6), torch.randn(5, 4)
    (layer(x) * y).sum().backward()
    # Miyato et al. 2018, eq. 12: (E - lambda u v') / sigma, E the gradient of a plain weight, lambda = <E, W / sigma>.
    sigma = norm.u @ original.detach() @ norm.v
    plain = y.T @ x
    share = (plain * original.detach() / sigma).sum()
    torch.testing.assert_close(original.grad, (plain - share * torch.outer(norm.u, norm.v)) / sigma)


def test_only_updates_of_the_discriminator_advance_its_norms():
    family = gan(family="sngan").train()
    before = {name: value.clone() for name, value in family.named_buffers()}
    family.loss("D", batch(), 0)
    family.after("G", {})
    assert all(torch.equal(value, before[name]) for name, value in family.named_buffers())
    with torch.no_grad():
        for parameter in family.D.parameters():
            parameter.add_(torch.randn_like(parameter))
    family.after("D", {})
    moved = {name for name, value in family.named_buffers() if not torch.equal(value, before[name])}
    assert moved == {name for name, value in before.items() if value.numel() > 1}


# The family


@pytest.mark.parametrize("id", ["dcgan", "lsgan", "wgan-gp", "sngan", "multi-gan"])
@pytest.mark.parametrize("spec", [PLAIN, CLASSES], ids=["plain", "classes"])
def test_a_phase_reaches_exactly_its_nets(id: str, spec: DataSpec):
    family = gan(spec, id).train()
    for phase in family.phases():
        only(family, phase.name)
        family.zero_grad()
        loss = family.loss(phase.name, batch(spec), 0)
        assert loss.value.shape == (6,)
        assert loss.value.isfinite().all()
        assert not any(value.requires_grad for value in loss.logs.values())
        loss.value.sum().backward()
        for name, parameter in family.named_parameters():
            reached = parameter.grad is not None and bool(parameter.grad.abs().sum() > 0)
            assert reached == name.startswith(phase.name), name


def test_the_discriminators_phase_never_reaches_back_into_g():
    for id in ("dcgan", "wgan-gp"):
        family = gan(family=id).train()
        family.loss("D", batch(), 0).value.sum().backward()
        assert all(parameter.grad is None for parameter in family.G.parameters())


@pytest.mark.parametrize("name", ["D", "G"])
@pytest.mark.parametrize("id", ["dcgan", "lsgan", "sngan"])
def test_gradients_in_bf16_point_where_those_in_fp32_do(id: str, name: str):
    """The penalty on D with them, loud enough to count."""
    family = gan(family=id, penalty=0.0 if id == "sngan" else 10.0, label_drop=0.0).train()
    assert family.bf16
    only(family, name)
    sides = []
    for bf16 in (False, True):
        family.zero_grad()
        torch.manual_seed(3)
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            value = family.loss(name, batch(rows=32), 0).value.mean()
        value.backward()
        net = family.get_submodule(name)
        sides.append(torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None]))
    assert not torch.equal(*sides)
    assert F.cosine_similarity(*sides, dim=0) > 0.99
    assert float(sides[1].norm()) == pytest.approx(float(sides[0].norm()), rel=0.05)


def test_presets_say_what_they_are():
    wanted = {"dcgan": "ns", "multi-gan": "ns", "lsgan": "ls", "wgan-gp": "wgan", "sngan": "hinge"}
    for id, name in wanted.items():
        for size in get("family", id).presets:
            config = DCGANConfig(**preset(id, size))
            assert config.loss == name
            assert config.spectral == (id == "sngan")
            assert (config.generators > 1 and config.discriminators > 1) == (id == "multi-gan")
    assert [(p.name, p.repeat) for p in gan(family="wgan-gp", n_critic=5).phases()] == [("D", 5), ("G", 1)]


def test_d_loss_is_the_sum_of_its_terms():
    family = gan(penalty=3.0, label_drop=0.0).train()
    only(family, "D")
    data = batch()
    torch.manual_seed(5)
    loss = family.loss("D", data, 0)
    torch.manual_seed(5)
    z = torch.randn(6, family.config.z_dim)
    real = data.x.clone().requires_grad_(True)
    score = family.D(real, data.cond)
    fake = family.D(family.G(z, data.cond), data.cond)
    (slope,) = torch.autograd.grad(score.sum(), real)
    value = torch.log1p(torch.exp(-score)) + torch.log1p(torch.exp(fake)) + 3 * slope.square().sum((1, 2, 3))
    torch.testing.assert_close(loss.value.detach(), value.detach())


@pytest.mark.parametrize("id", ["dcgan", "lsgan", "sngan"])
def test_real_pictures_of_something_else_count_as_drawn_ones(id: str):
    """Reed et al. 2016, algorithm 1: log s_r + (log (1 - s_w) + log (1 - s_f)) / 2, in each loss's own terms."""
    family = gan(family=id, matching=True, penalty=0.0, label_drop=0.0).train()
    assert not family.splittable
    data = batch()
    labels = torch.tensor([[1], [2], [2], [5], [-1], [7]])
    data = Batch(data.x, Cond(labels=labels), data.weight)
    torch.manual_seed(5)
    value = family.loss("D", data, 0).value
    torch.manual_seed(5)
    with torch.no_grad():
        fake = family.D(family.G(torch.randn(6, family.config.z_dim), data.cond), data.cond)
        right = family.D(data.x, data.cond)
        wrong = family.D(data.x, Cond(labels=labels[[5, 0, 1, 2, 3, 4]]))
    real, drawn = {
        "dcgan": (lambda s: F.softplus(-s), F.softplus),
        "lsgan": (lambda s: (s - 1) ** 2 / 2, lambda s: s**2 / 2),
        "sngan": (lambda s: (1 - s).clamp(min=0), lambda s: (1 + s).clamp(min=0)),
    }[id]
    expected = real(right) + (drawn(fake) + drawn(wrong)) / 2
    alone = real(right) + drawn(fake)
    for row in (2, 4, 5):  # its neighbour asks for the same; it asks for nothing itself; its neighbour does
        expected[row] = alone[row]
    torch.testing.assert_close(value.detach(), expected)


@pytest.mark.parametrize("id", ["biggan", "stylegan2", "r3gan"])
def test_other_gans_count_them_as_drawn_ones_too(id: str):
    kinds = get("family", id).cls
    families = []
    for matching in (False, True):
        torch.manual_seed(0)
        settings = {**preset(id, "tiny"), "label_drop": 0.0, "matching": matching}
        families.append(
            kinds(kinds.Config(**({**settings, "gamma": 0.0} if id == "r3gan" else settings)), CLASSES).eval()
        )
    asks = families[1]
    assert not asks.splittable
    labels = torch.tensor([[1], [2], [2], [5], [-1], [7], [0], [3]])
    data = Batch(torch.randn(8, 3, 8, 8), Cond(labels=labels), torch.ones(8))
    values = []
    for family in families:
        torch.manual_seed(5)
        values.append(family.loss("D", data, 0).value.detach())
    with torch.no_grad():
        right, wrong = asks.D(data.x, data.cond), asks.D(data.x, Cond(labels=labels.roll(1, 0)))
    against = {
        "biggan": (1 - right).clamp(min=0) + (1 + wrong).clamp(min=0),
        "stylegan2": F.softplus(-right) + F.softplus(wrong),
        "r3gan": F.softplus(wrong - right),
    }[id]
    expected = (values[0] + against) / 2
    for row in (2, 4, 5):  # its neighbour asks for the same; it asks for nothing itself; its neighbour does
        expected[row] = values[0][row]
    torch.testing.assert_close(values[1], expected)


def test_a_neighbour_that_asks_for_something_else():
    assert mismatched(Cond()) is None
    text = torch.tensor([[0.0, 1.0], [0.0, 1.0], [0.0, 0.0], [2.0, 1.0]])
    other, differs = mismatched(Cond(pooled=text))
    torch.testing.assert_close(other.pooled, text[[3, 0, 1, 2]])
    assert differs.tolist() == [True, False, False, False]
    _, differs = mismatched(Cond(labels=torch.tensor([[0, 1], [0, 2], [0, 2], [-1, -1]])))
    assert differs.tolist() == [False, True, False, False]


def test_what_is_not_told_differs_from_nothing():
    """A picture of (3, style 1) is rightly called (3, any), and one whose class was dropped may be its neighbour's."""
    labels = torch.tensor([[3, 1], [3, -1], [4, -1], [-1, -1]])
    _, differs = mismatched(Cond(labels=labels))
    assert differs.tolist() == [False, False, True, False]


def test_settings_that_do_not_go_together_are_refused():
    with pytest.raises(ConfigError, match="no bound with loss wgan"):
        gan(family="wgan-gp", matching=True)
    both = DataSpec("image", (3, 8, 8), labels=(("style", 3),), pooled_dim=4)
    with pytest.raises(ConfigError, match="classes and no words"):
        gan(both, conditioning="auxiliary")
    assert gan(DataSpec("image", (3, 16, 16)), net="resnet", d_norm="batch", penalty=1.0, width=8).D is not None


@pytest.mark.parametrize("id", ["lsgan", "sngan"])
def test_both_sides_of_each_loss(id: str):
    family = gan(family=id, penalty=0.0, label_drop=0.0).train()
    data = batch()
    values = {}
    for phase in ("D", "G"):
        torch.manual_seed(5)
        values[phase] = family.loss(phase, data, 0).value
    torch.manual_seed(5)
    fake = family.D(family.G(torch.randn(6, family.config.z_dim), data.cond), data.cond)
    real = family.D(data.x, data.cond)
    if id == "lsgan":
        d, g = ((real - 1) ** 2 + fake**2) / 2, (fake - 1) ** 2 / 2
    else:
        d, g = (1 - real).clamp(min=0) + (1 + fake).clamp(min=0), -fake
    torch.testing.assert_close(values["D"], d)
    torch.testing.assert_close(values["G"], g)


def test_tiny_is_free_of_its_batch_and_batch_norm_is_not():
    data = batch()
    for id in ("dcgan", "wgan-gp"):
        family = gan(family=id).train()
        assert family.splittable
        z = torch.randn(6, family.config.z_dim)
        whole = family.G(z, data.cond)
        torch.testing.assert_close(family.G(z[:2], data.cond[:2]), whole[:2])
        torch.testing.assert_close(family.D(whole[:2], data.cond[:2]), family.D(whole, data.cond)[:2])
    family = gan(g_norm="batch").train()
    assert not family.splittable
    assert float((family.G(z[:2], data.cond[:2]) - family.G(z, data.cond)[:2]).detach().abs().max()) > 1e-3


def test_batch_norm_and_penalty_exclude_each_other():
    with pytest.raises(ConfigError, match="exclude each other"):
        gan(d_norm="batch")
    family = gan(d_norm="batch", penalty=0.0)
    assert not family.splittable


@pytest.mark.parametrize("g_norm", ["layer", "batch"])
def test_a_sample_depends_on_its_seed_alone(g_norm: str):
    family = gan(g_norm=g_norm).train()
    for _ in range(3):  # running statistics that are not the initial ones
        family.G(torch.randn(8, family.config.z_dim), Cond())
    family.eval()
    cond = Cond(labels=torch.tensor([[3], [4], [5]]))
    guide = Guide("bright", energy=lambda x, _: -20 * x.mean((1, 2, 3)))
    for guides in ((), (guide,)):
        options = DCGANOptions(steps=5)
        rows = list(family.sample(cond, Noise([7, 8, 9]), options, guides))[-1]
        one = list(family.sample(cond[1:2], Noise([8]), options, guides))[-1]
        torch.testing.assert_close(rows.x0[1:2], one.x0, atol=1e-4, rtol=1e-4)
        assert bool(rows.done.all())
        assert float(rows.sigma.max()) == 0


def test_truncation_narrows_and_zero_gives_one_picture():
    family = gan().eval()

    def spread(truncation: float) -> float:
        options = DCGANOptions(truncation=truncation)
        return float(list(family.sample(Cond(), Noise(range(16)), options))[-1].x0.std(dim=0).mean())

    assert spread(1.0) > 1.5 * spread(0.5) > 0
    assert spread(0.0) < 1e-6


def test_an_energy_bends_the_sample_and_leaves_the_weights_alone():
    family = gan().eval()
    before = copy.deepcopy(family.state_dict())
    target = family.G(torch.randn(1, family.config.z_dim), Cond()).detach()
    guide = Guide("like", energy=lambda x, _: 1e4 * (x - target).square().mean((1, 2, 3)))
    options = DCGANOptions(temperature=0.0, steps=60)
    plain = list(family.sample(Cond(), Noise(range(4)), options))
    bent = list(family.sample(Cond(), Noise(range(4)), options, [guide]))
    assert len(plain) == 1
    assert len(bent) == 60
    far, near = (float(losses.l2(steps[-1].x0, target.expand(4, -1, -1, -1)).mean()) for steps in (plain, bent))
    assert near < far / 10
    assert not any(step.x0.requires_grad for step in bent)
    assert all(torch.equal(value, before[key]) for key, value in family.state_dict().items())
    assert all(parameter.grad is None for parameter in family.parameters())


def test_a_guide_of_another_form_is_refused():
    with pytest.raises(Unsupported, match="mask"):
        list(gan().sample(Cond(), Noise([0]), DCGANOptions(), [Guide("mask", denoise=lambda d: d)]))


# The walk in closed form: decode(z) = W z, energy = k/2 |x - y|^2, so U is quadratic with precision I + k W'W


WEIGHTS = torch.tensor([[1.0, 0.5, 0.0], [0.0, -0.5, 1.0]])
TARGET = torch.tensor([1.0, -2.0])
STRENGTH = 3.0


def linear(z: Tensor) -> Tensor:
    return z @ WEIGHTS.T


def quadratic(x: Tensor, cond: Cond) -> Tensor:
    return STRENGTH / 2 * (x - TARGET).square().sum(1)


def posterior() -> tuple[Tensor, Tensor]:
    cov = torch.linalg.inv(torch.eye(3) + STRENGTH * WEIGHTS.T @ WEIGHTS)
    return cov @ (STRENGTH * WEIGHTS.T @ TARGET), cov


@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_walk_settles_on_the_posterior(temperature: float):
    rows = 1200
    noise = Noise(range(rows))
    steps = walk(
        linear, noise.draw("z", (3,)), Cond(), [quadratic], noise, steps=40, step_size=0.2, temperature=temperature
    )
    z = list(steps)[-1].x
    mean, cov = posterior()
    cov = temperature * cov
    bar = 4.5 * (cov.diagonal() / rows).sqrt()
    assert bool(((z.mean(0) - mean).abs() < bar).all()), (z.mean(0), mean)
    gap = (torch.cov(z.T) - cov).abs()
    outer = cov.diagonal()[:, None] * cov.diagonal()[None]
    assert bool((gap < 4.5 * ((outer + cov.square()) / rows).sqrt()).all()), (torch.cov(z.T), cov)


def test_walk_without_energies_keeps_the_prior_and_never_stands_still():
    noise = Noise(range(1200))
    start = noise.draw("z", (3,))
    steps = list(walk(linear, start, Cond(), [], noise, steps=5, step_size=0.5, temperature=1.0))
    z = steps[-1].x
    assert float(z.mean(0).abs().max()) < 4.5 / math.sqrt(1200)
    assert float((torch.cov(z.T) - torch.eye(3)).abs().max()) < 4.5 * math.sqrt(2 / 1200)
    # a move along the prior's flow is exact, so none is refused
    for before, after in pairwise([start, *(step.x for step in steps)]):
        assert bool((before != after).all())


def test_walk_at_temperature_zero_reaches_the_minimiser():
    noise = Noise([0, 1, 2])
    steps = list(
        walk(linear, noise.draw("z", (3,)), Cond(), [quadratic], noise, steps=80, step_size=0.1, temperature=0)
    )
    torch.testing.assert_close(steps[-1].x, posterior()[0].expand(3, 3), atol=1e-3, rtol=0)
    potential = torch.stack([step.x.square().sum(1) / 2 + quadratic(step.x0, Cond()) for step in steps])
    assert float((potential[1:] - potential[:-1]).max()) <= 1e-5
    torch.testing.assert_close(steps[-1].x0, linear(steps[-1].x))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_walk_finds_valleys_that_no_move_reaches_and_keeps_their_shares(temperature: float):
    def valleys(x: Tensor, cond: Cond) -> Tensor:  # two narrow ones, the right one a nat deeper and farther out
        depths = torch.stack([-50 * (x[:, 0] + 0.2).square() + 20, -50 * (x[:, 0] - 1.0).square() + 21])
        return -depths.amax(0)

    rows = 2000
    noise = Noise(range(rows))
    steps = list(
        walk(lambda z: z, torch.full((rows, 1), -0.2), Cond(), [valleys], noise, steps=250, step_size=0.01,
             temperature=temperature)
    )  # fmt: skip
    deeper = 1 - (1.0**2 - 0.2**2) / 2 * 100 / 101  # the prior counts too; both are equally narrow
    share = 1 / (1 + math.exp(-deeper / temperature))
    for step in (steps[123], steps[-1]):  # in its first half and in its second, where it jumps no more
        assert abs(float((step.x > 0.4).float().mean()) - share) < 4.5 * math.sqrt(share * (1 - share) / rows)
    *_, last = walk(lambda z: z, torch.full((50, 1), -0.2), Cond(), [valleys], Noise(range(50)), steps=250,
                    step_size=0.01, temperature=0)  # fmt: skip
    assert float((last.x > 0.4).float().mean()) > 0.9


def test_walk_lengthens_steps_that_are_far_too_short():
    noise = Noise([0, 1, 2])
    start = noise.draw("z", (3,))
    steps = list(walk(linear, start, Cond(), [quadratic], noise, steps=80, step_size=1e-4, temperature=0))
    torch.testing.assert_close(steps[-1].x, posterior()[0].expand(3, 3), atol=1e-2, rtol=0)


def test_walk_survives_an_energy_far_too_strong_for_its_step():
    noise = Noise(range(8))

    def strong(x: Tensor, cond: Cond) -> Tensor:
        return 1e6 * (x - TARGET).square().sum(1)

    for temperature in (0.0, 1.0):
        start = noise.draw("z", (3,))
        steps = list(walk(linear, start, Cond(), [strong], noise, steps=80, step_size=0.5, temperature=temperature))
        assert steps[-1].x.isfinite().all()
        begin, end = strong(linear(start), Cond()), strong(steps[-1].x0, Cond())
        assert bool((end < 1e-2 * begin).all())


def test_walk_refuses_places_where_an_energy_is_not_finite():
    def walled(x: Tensor, cond: Cond) -> Tensor:
        return torch.where(x[:, 0] > 0, -x[:, 0].log(), torch.nan)

    noise = Noise(range(50))
    start = noise.draw("z", (3,))
    start[:, :2] = start[:, :2].abs()
    for step in walk(linear, start, Cond(), [walled], noise, steps=20, step_size=0.5, temperature=1.0):
        assert bool((step.x0[:, 0] > 0).all())
    with pytest.raises(InvalidInput, match="not finite at the start of row 1"):
        list(walk(linear, torch.tensor([[1.0, 1, 0], [-1, -1, 0]]), Cond(), [walled], Noise([0, 1]),
                  steps=2, step_size=0.1, temperature=1.0))  # fmt: skip


def test_walk_wants_one_value_per_row():
    with pytest.raises(InvalidInput, match="one per row"):
        list(walk(linear, torch.zeros(2, 3), Cond(), [lambda x, cond: x], Noise([0, 1]),
                  steps=1, step_size=0.1, temperature=1.0))  # fmt: skip


def test_walk_leaves_the_callers_gradient_mode_alone():
    noise = Noise([0])
    with torch.no_grad():
        for step in walk(linear, torch.zeros(1, 3), Cond(), [quadratic], noise, steps=2, step_size=0.1, temperature=1):
            assert not torch.is_grad_enabled()
            assert not step.x.requires_grad
    for _ in walk(linear, torch.zeros(1, 3), Cond(), [quadratic], noise, steps=2, step_size=0.1, temperature=1.0):
        assert torch.is_grad_enabled()


# Classes that are named, several of each


def test_an_auxiliary_classifier_names_the_class_of_real_and_drawn():
    family = gan(conditioning="auxiliary", penalty=0.0, label_drop=0.0).train()
    data = batch()
    torch.manual_seed(5)
    loss = family.loss("D", data, 0)
    torch.manual_seed(5)
    fake = family.G(torch.randn(6, family.config.z_dim), data.cond)
    h, k = (family.D.body(x).flatten(1) for x in (data.x, fake))
    asked = data.cond.labels[:, 0]
    value = F.softplus(-family.D.out(h)[:, 0]) + F.softplus(family.D.out(k)[:, 0])
    value = value - sum(family.D.heads[0](v).log_softmax(1)[range(6), asked] for v in (h, k))
    torch.testing.assert_close(loss.value, value)
    assert not hasattr(family.D, "embed") or family.D.embed is None, "the score itself is told nothing"


def test_a_class_that_nobody_asked_for_is_not_named():
    said = [torch.randn(3, 10)]
    value = classification(said, Cond(labels=torch.tensor([[2], [-1], [9]])))
    assert float(value[1]) == 0
    torch.testing.assert_close(value[2], -said[0][2].log_softmax(0)[9])


def test_what_several_and_named_cannot_be_is_refused():
    with pytest.raises(ConfigError, match="needs classes"):
        gan(PLAIN, conditioning="auxiliary")
    with pytest.raises(ConfigError, match="want net dcgan"):
        gan(family="sngan", generators=2)
    with pytest.raises(ConfigError, match="use projection"):
        gan(conditioning="auxiliary", matching=True)


def test_a_seed_decides_which_of_several_generators_draws():
    family = gan(family="multi-gan").eval()
    seeds = range(60)
    which = Noise(seeds).draw("generator", (3,)).argmax(dim=1)
    assert set(which.tolist()) == {0, 1, 2}
    x = list(family.sample(Cond(), Noise(seeds), DCGANOptions()))[-1].x0
    z = Noise(seeds).draw("z", (family.config.z_dim,))
    torch.testing.assert_close(x, family.G(z, Cond(), which))
    assert (
        float((family.G(z[:1], Cond(), which[:1]) - family.G(z[:1], Cond(), (which[:1] + 1) % 3)).detach().abs().max())
        > 0.01
    )
    guide = Guide("bright", energy=lambda v, _: -20 * v.mean((1, 2, 3)))
    walked = [step.x for step in family.sample(Cond(), Noise([3]), DCGANOptions(steps=2), [guide])][-1]
    torch.testing.assert_close(
        list(family.sample(Cond(), Noise([3]), DCGANOptions(steps=2), [guide]))[-1].x0,
        family.G(walked, Cond(), which[3:4]),
    )


def test_the_harshest_of_several_discriminators_counts_most():
    family = gan(family="multi-gan", generators=1, diversity=0.0, discriminators=2, label_drop=0.0).train()
    data = batch()
    torch.manual_seed(5)
    loss = family.loss("G", data, 0)
    torch.manual_seed(5)
    fake = family.G(torch.randn(6, family.config.z_dim), data.cond)
    terms = torch.stack([F.softplus(-critic(fake, data.cond)) for critic in family.critics])
    share = terms.exp() / terms.exp().sum(0)
    torch.testing.assert_close(loss.value, (share * terms).sum(0))
    assert bool((loss.value >= terms.mean(0) - 1e-6).all())


def test_each_of_several_generators_is_asked_to_be_known_for_its_own():
    family = gan(family="multi-gan", label_drop=0.0, diversity=2.0, discriminators=1).train()
    plain = gan(family="multi-gan", label_drop=0.0, diversity=0.0, discriminators=1).train()
    plain.load_state_dict(family.state_dict())
    data = batch()
    values = []
    for model in (family, plain):
        torch.manual_seed(5)
        values.append(model.loss("G", data, 0).value)
    torch.manual_seed(5)
    z, which = torch.randn(6, family.config.z_dim), torch.randint(3, (6,))
    said = family.D.judge(family.G(z, data.cond, which), data.cond)[1][-1]
    torch.testing.assert_close(values[0] - values[1], -2 * said.log_softmax(1)[range(6), which])


def test_the_discriminator_learns_whose_picture_it_is():
    family = gan(family="multi-gan", label_drop=0.0).train()
    optimizer = torch.optim.Adam(family.D.parameters(), 1e-3)
    only(family, "D")
    for _ in range(60):
        loss = family.loss("D", batch(), 0)
        optimizer.zero_grad()
        loss.value.mean().backward()
        optimizer.step()
    assert float(loss.logs["loss/whose"].mean()) < 0.3 * math.log(3)
