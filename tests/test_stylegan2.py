"""StyleGAN2 and R3GAN: layers and penalties against closed forms and independent references."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sojourn.errors import ConfigError
from sojourn.families.r3gan import R3GAN, Block, R3GANConfig
from sojourn.families.stylegan2 import StyleGAN2, StyleGAN2Config, StyleGAN2Options, path_lengths
from sojourn.nets.style import EqualConv, EqualLinear, Modulated, minibatch_stddev
from sojourn.registry import get, preset
from sojourn.types import Batch, Cond, DataSpec, Noise

SPEC = DataSpec("image", (3, 16, 16), labels=(("kind", 5),))


def style(spec: DataSpec = SPEC, **changes: object) -> StyleGAN2:
    torch.manual_seed(0)
    return StyleGAN2(StyleGAN2Config(**{**preset("stylegan2", "tiny"), **changes}), spec)


def relative(spec: DataSpec = SPEC, **changes: object) -> R3GAN:
    torch.manual_seed(0)
    return R3GAN(R3GANConfig(**{**preset("r3gan", "tiny"), **changes}), spec)


def batch(rows: int = 8) -> Batch:
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(rows, *SPEC.shape, generator=generator) * 2 - 1
    return Batch(x, Cond(labels=torch.arange(rows)[:, None] % 5), torch.ones(rows))


# StyleGAN2's layers


@pytest.mark.parametrize("demodulate", [True, False])
@pytest.mark.parametrize("size", [1, 3])
def test_modulated_convolution_is_one_with_weights_of_each_row(size: int, demodulate: bool):
    torch.manual_seed(0)
    layer = Modulated(5, 7, size, 4, demodulate)
    x, w = torch.randn(3, 5, 6, 6), torch.randn(3, 4)
    out = layer(x, w)
    for row in range(3):
        scale = layer.style(w[row : row + 1])[0]  # (cin,)
        weight = layer.weight / math.sqrt(5 * size * size) * scale[None, :, None, None]
        if demodulate:
            weight = weight / (weight.square().sum((1, 2, 3), keepdim=True) + 1e-8).sqrt()
        torch.testing.assert_close(out[row], F.conv2d(x[row : row + 1], weight, padding=size // 2)[0])


def test_demodulation_keeps_the_variance_of_unit_inputs():
    torch.manual_seed(0)
    layer = Modulated(32, 64, 3, 8)
    out = layer(torch.randn(64, 32, 8, 8), 5 * torch.randn(64, 8))[:, :, 1:-1, 1:-1]
    assert float(out.detach().var()) == pytest.approx(1, abs=0.05)


def test_equal_layers_are_scaled_when_used():
    torch.manual_seed(0)
    linear, conv = EqualLinear(6, 3, bias=1.0, lr=0.01), EqualConv(4, 5, 3)
    x = torch.randn(2, 6)
    torch.testing.assert_close(linear(x), x @ (linear.weight.T * 0.01 / math.sqrt(6)) + 1)
    assert float(linear.weight.detach().std()) > 50
    y = torch.randn(2, 4, 5, 5)
    torch.testing.assert_close(conv(y), F.conv2d(y, conv.weight / 6, conv.bias, padding=1))


def test_minibatch_stddev_against_numpy():
    x = torch.randn(8, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    out = minibatch_stddev(x)
    assert out.shape == (8, 1, 2, 2)
    for row in range(8):
        group = x.double().numpy()[row % 2 :: 2]
        np.testing.assert_allclose(out[row].numpy(), group.std(axis=0).mean(), rtol=1e-5)
    assert minibatch_stddev(x[:6]).shape == (6, 1, 2, 2)
    assert float(minibatch_stddev(x[:1].expand(4, -1, -1, -1)).max()) < 1e-3


def test_path_length_is_the_norm_of_the_jacobian_in_a_direction():
    torch.manual_seed(0)
    matrix = torch.randn(2 * 3 * 4, 5 * 6)  # pictures of 2 x 3 x 4 from 5 layers of 6 styles

    def draw(styles: Tensor) -> Tensor:
        return (styles.flatten(1) @ matrix.T).view(-1, 2, 3, 4)

    styles, eps = torch.randn(3, 5, 6, requires_grad=True), torch.randn(3, 2, 3, 4)
    known = (eps.flatten(1) / math.sqrt(12)) @ matrix  # (b, 5 * 6)
    known = known.view(3, 5, 6).square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(path_lengths(draw(styles), styles, eps), known)
    # Its gradient reaches what draws: twice the matrix, twice the length.
    scale = torch.tensor(2.0, requires_grad=True)
    lengths = path_lengths(scale * draw(styles), styles, eps)
    (slope,) = torch.autograd.grad(lengths.sum(), scale)
    torch.testing.assert_close(slope, known.sum())


def test_the_running_length_is_what_paths_are_held_to():
    family = style(label_drop=0.0).train()
    torch.manual_seed(3)
    first = family.loss("path", batch(), 0)
    family.after("path", first.stats)
    assert float(family.length) == pytest.approx(float(first.logs["path/length"].mean()), rel=1e-5)
    torch.manual_seed(4)
    second = family.loss("path", batch(), 0)
    wanted = family.config.path * (second.logs["path/length"] - family.length).square()
    torch.testing.assert_close(second.value.detach(), wanted)
    before = float(family.length)
    family.after("path", second.stats)
    assert float(family.length) == pytest.approx(
        0.99 * before + 0.01 * float(second.logs["path/length"].mean()), rel=1e-5
    )


def test_r1_is_half_gamma_times_the_squared_gradient():
    family = style(gamma=6.0, label_drop=0.0).train()
    data = batch()
    real = data.x.clone().requires_grad_(True)
    (slope,) = torch.autograd.grad(family.D(real, data.cond).sum(), real)
    torch.testing.assert_close(family.loss("R1", data, 0).value.detach(), 3 * slope.square().sum((1, 2, 3)))
    assert [(p.name, p.every) for p in style(r1_every=5, path=0.0).phases()] == [("D", 1), ("G", 1), ("R1", 5)]


def test_mixed_styles_change_over_once():
    family = style(mixing=1.0).train()
    styles = family._mixed(Cond(), 50)
    count = family.G.synthesis.count
    changes = (styles[:, 1:] - styles[:, :-1]).abs().sum(2) > 0  # (b, layers - 1)
    assert changes.sum(1).tolist() == [1] * 50
    assert set(changes.int().argmax(1).tolist()) == set(range(count - 1))
    assert not (style(mixing=0.0)._mixed(Cond(), 5).diff(dim=1)).any()


def test_truncation_goes_from_the_mean_to_the_sample():
    family = style().eval()
    family.G.mean.normal_()

    def draw(**options: object) -> Tensor:
        return list(family.sample(Cond(), Noise([1, 2]), StyleGAN2Options(**options)))[-1].x0

    assert float((draw(truncation=0.0)[0] - draw(truncation=0.0)[1]).abs().max()) < 1e-5, (
        "one picture but for noise of 0"
    )
    assert float((draw()[0] - draw()[1]).abs().max()) > 1e-2
    torch.testing.assert_close(draw(truncation=0.3, truncated=0), draw())
    part = draw(truncation=0.0, truncated=2)
    assert float((part - draw()).abs().max()) > 1e-3
    assert float((part[0] - part[1]).abs().max()) > 1e-3


def test_the_mean_style_follows_the_drawn_ones():
    family = style().train()
    for _ in range(3):
        loss = family.loss("G", batch(), 0)
        family.after("G", loss.stats)
    mean = family.G.mean.clone()
    assert float(mean.abs().max()) > 0
    loss = family.loss("G", batch(), 0)
    family.after("G", loss.stats)
    torch.testing.assert_close(family.G.mean, 0.998 * mean + 0.002 * loss.stats["w"] / 8)


# R3GAN


def test_r3gan_compares_each_real_picture_with_a_drawn_one():
    family = relative(gamma=4.0, label_drop=0.0).train()
    for p in family.parameters():  # fresh blocks are nothing, D is linear and both its slopes the same
        p.data.add_(0.1 * torch.randn_like(p))
    data = batch()
    torch.manual_seed(5)
    loss_d, loss_g = family.loss("D", data, 0), None
    torch.manual_seed(5)
    z = torch.randn(8, family.config.z_dim)
    torch.manual_seed(5)
    loss_g = family.loss("G", data, 0)
    fake = family.G(z, data.cond).detach().requires_grad_(True)
    real = data.x.clone().requires_grad_(True)
    a, b = family.D(real, data.cond), family.D(fake, data.cond)
    (slope_a,) = torch.autograd.grad(a.sum(), real, retain_graph=True)
    (slope_b,) = torch.autograd.grad(b.sum(), fake, retain_graph=True)
    value = torch.log1p(torch.exp(-(a - b))) + 2 * (slope_a.square().sum((1, 2, 3)) + slope_b.square().sum((1, 2, 3)))
    torch.testing.assert_close(loss_d.value.detach(), value.detach())
    torch.testing.assert_close(loss_g.value.detach(), torch.log1p(torch.exp(-(b - a))).detach())


def test_r3gan_penalises_a_part_of_a_batch_by_so_much_more():
    family = relative(gamma=2.0, penalised=0.4)
    x = torch.randn(5, *SPEC.shape)

    def value(**changes: object) -> torch.Tensor:
        family.config = family.config.model_copy(update=changes)
        torch.manual_seed(3)
        return family.loss("D", Batch(x, Cond(), torch.ones(5)), 0).value.detach()

    plain, whole, part = value(gamma=0.0), value(gamma=2.0, penalised=1.0), value(gamma=2.0, penalised=0.4)
    torch.testing.assert_close(part - plain, (whole - plain) * torch.tensor([2.5, 2.5, 0, 0, 0]))
    assert ((whole - plain) > 0).all()


def test_r3gans_pictures_end_where_pictures_do():
    family = relative()
    with torch.no_grad():
        family.G.out.weight.mul_(100)
        x = family.G(torch.randn(4, family.config.z_dim), Cond(labels=torch.zeros(4, 1, dtype=torch.long)))
    assert 0.99 < float(x.abs().max()) <= 1


def test_r3gans_first_map_is_laid_out_by_the_class():
    """Not only louder or quieter by channel: each place has a say of its own."""
    family = relative()
    maps = []
    hook = family.G.body.register_forward_pre_hook(lambda _, args: maps.append(args[0].detach()))
    z = torch.randn(1, family.config.z_dim)
    for label in (0, 1):
        family.G(z, Cond(labels=torch.tensor([[label]])))
    hook.remove()
    share = maps[0] / maps[1]  # (1, c, 4, 4)
    assert float(share.flatten(2).std(dim=2).min()) > 1e-2


def test_a_fresh_block_passes_its_input_on():
    torch.manual_seed(0)
    block = Block(16, 2, 8, 5)
    x = torch.randn(2, 16, 4, 4)
    assert torch.equal(block(x), x)
    assert block.mix.groups == 4


def test_groups_that_do_not_divide_are_refused():
    with pytest.raises(ConfigError, match="do not divide"):
        relative(groups=24)


@pytest.mark.parametrize("id", ["stylegan2", "r3gan"])
def test_presets_fit_their_pictures_in_any_number_of_channels(id: str):
    entry = get("family", id)
    for size in entry.presets:
        side = 8 if size == "tiny" else int(size)
        for channels in (1, 4):
            spec = DataSpec("image", (channels, side, side), labels=(("kind", 3),))
            torch.manual_seed(0)
            family = entry.cls(entry.cls.Config(**preset(id, size)), spec).eval()
            x = list(family.sample(Cond(labels=torch.tensor([[0], [-1]])), Noise([1, 2]), entry.cls.Options()))[-1].x0
            assert x.shape == (2, *spec.shape)
            assert x.isfinite().all()
            assert family.D(x, Cond()).shape == (2,)


@pytest.mark.parametrize("id", ["stylegan2", "r3gan"])
def test_class_and_pooled_text_change_picture_and_score(id: str):
    entry = get("family", id)
    for spec, cond in (
        (SPEC, Cond(labels=torch.tensor([[1], [3]]))),
        (DataSpec("image", SPEC.shape, pooled_dim=6), Cond(pooled=torch.eye(2, 6))),
    ):
        torch.manual_seed(0)
        family = entry.cls(entry.cls.Config(**preset(id, "tiny")), spec).eval()
        for p in family.parameters():
            p.data.add_(0.05 * torch.randn_like(p))
        x = list(family.sample(cond, Noise([1, 1]), entry.cls.Options()))[-1].x0.detach()
        assert float((x[0] - x[1]).abs().max()) > 1e-4
        score = family.D(x[:1].repeat(2, 1, 1, 1), cond).detach()
        assert abs(float(score[0] - score[1])) > 1e-5
