"""BigGAN: its regulariser and truncation against closed forms and scipy, and where latent and class enter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import truncnorm
from torch import nn

from sojourn.errors import ConfigError
from sojourn.families.biggan import BigGAN, BigGANConfig, BigGANOptions, SelfAttention, off_diagonal, truncated_normal
from sojourn.nets.resnet import ConditionalNorm
from sojourn.registry import get, preset
from sojourn.types import Batch, Cond, DataSpec, Noise

SPEC = DataSpec("image", (3, 16, 16), labels=(("kind", 5),))


def gan(spec: DataSpec = SPEC, **changes: object) -> BigGAN:
    torch.manual_seed(0)
    return BigGAN(BigGANConfig(**{**preset("biggan", "tiny"), **changes}), spec)


def test_truncation_is_the_quantile_function_of_a_truncated_normal():
    z = torch.tensor([-6.0, -2.0, -0.3, 0.0, 0.7, 1.9, 6.0])
    share = torch.special.ndtr(z.double()).numpy()
    for most in (0.04, 0.5, 2.0):
        known = truncnorm.ppf(share, -most, most)
        np.testing.assert_allclose(truncated_normal(z, most), known, atol=1e-5)
    assert float(truncated_normal(torch.tensor([-40.0, 40.0]), 0.5).abs().max()) <= 0.5 + 1e-6
    torch.testing.assert_close(truncated_normal(z, 9.0), z, atol=1e-3, rtol=0)


def test_less_truncation_is_more_variety():
    family = gan(g_norm="batch").eval()  # a norm of each sample would take the length of z away

    def spread(most: float | None) -> float:
        options = BigGANOptions(truncation=most)
        return float(list(family.sample(Cond(), Noise(range(16)), options))[-1].x0.std(dim=0).mean())

    assert spread(None) > 1.2 * spread(0.5) > 1.2 * spread(0.05) > 0


def test_skew_is_the_off_diagonal_of_the_gram_matrix():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Linear(5, 3, bias=False))
    total = 0.0
    for weight in (net[0].weight, net[1].weight):
        w = weight.detach().flatten(1).double().numpy()
        gram = w @ w.T
        total += ((gram * (1 - np.eye(len(gram)))) ** 2).sum()
    assert float(off_diagonal(net).detach()) == pytest.approx(total, rel=1e-5)
    flat = nn.Linear(6, 4)
    nn.init.orthogonal_(flat.weight)
    assert float(off_diagonal(flat).detach()) < 1e-10


def test_each_part_of_z_and_the_class_reach_the_picture():
    family = gan().eval()
    for p in family.G.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    z, cond = torch.randn(1, family.config.z_dim), Cond(labels=torch.tensor([[2]]))
    before = family.G(z, cond)
    at = 0
    for size in family.G.parts:
        changed = z.clone()
        changed[:, at : at + size] += 1
        assert float((family.G(changed, cond) - before).detach().abs().max()) > 1e-4, f"z from {at}"
        at += size
    assert at == family.config.z_dim
    assert float((family.G(z, Cond(labels=torch.tensor([[3]]))) - before).detach().abs().max()) > 1e-4


def test_a_class_lays_the_first_map_out_whatever_norms_do():
    family = gan().eval()
    for module in family.G.modules():
        if isinstance(module, ConditionalNorm):
            module.modulate = None
    asked = Cond(labels=torch.arange(5)[:, None])
    with torch.no_grad():
        spread = family.G(torch.randn(1, family.config.z_dim).expand(5, -1), asked).std(dim=0).mean()
        latents = family.G(torch.randn(5, family.config.z_dim), Cond()).std(dim=0).mean()
    assert 0.2 < float(spread / latents) < 5


def test_attention_stands_where_it_is_asked_for_and_starts_from_nothing():
    family = gan(attend=8)
    assert list(family.G.attention) == ["0"]
    x = torch.randn(2, family.G.attention["0"].attention.out.weight.shape[1], 8, 8)
    assert torch.equal(family.G.attention["0"](x), x)
    assert not gan(attend=0).G.attention


@pytest.mark.parametrize("size", list(get("family", "biggan").presets))
def test_presets_fit_their_pictures(size: str):
    side = 16 if size == "tiny" else int(size)
    spec = DataSpec("image", (4, side, side), labels=(("kind", 3),))
    torch.manual_seed(0)
    family = BigGAN(BigGANConfig(**preset("biggan", size)), spec)
    x = family.G(torch.randn(2, family.config.z_dim), Cond(labels=torch.tensor([[0], [-1]])))
    assert x.shape == (2, *spec.shape)
    assert family.D(x, Cond()).shape == (2,)


def test_the_loss_is_hinge_and_the_generators_angles_count():
    family = gan(label_drop=0.0, orthogonal=0.01).train()
    data = Batch(torch.randn(4, *SPEC.shape), Cond(labels=torch.tensor([[0], [1], [2], [3]])), torch.ones(4))
    values = {}
    for phase in ("D", "G"):
        torch.manual_seed(5)
        values[phase] = family.loss(phase, data, 0).value
    torch.manual_seed(5)
    fake = family.D(family.G(torch.randn(4, family.config.z_dim), data.cond), data.cond)
    real = family.D(data.x, data.cond)
    torch.testing.assert_close(values["D"], (1 - real).clamp(min=0) + (1 + fake).clamp(min=0))
    torch.testing.assert_close(values["G"], -fake + 0.01 * off_diagonal(family.G))


def test_an_update_advances_the_norms_of_the_net_it_moved():
    family = gan()
    for phase, net, other in (("D", family.D, family.G), ("G", family.G, family.D)):
        for module in (net, other):
            for p in module.parameters():
                p.data.add_(0.1 * torch.randn_like(p))
        before = [[value.clone() for value in module.buffers()] for module in (net, other)]
        family.after(phase, {})
        assert any(not torch.equal(a, b) for a, b in zip(before[0], net.buffers(), strict=True))
        assert all(torch.equal(a, b) for a, b in zip(before[1], other.buffers(), strict=True))


def test_pooled_text_is_a_condition_and_none_is_needed():
    for spec, cond in (
        (DataSpec("image", (1, 8, 8)), Cond()),
        (DataSpec("image", (1, 8, 8), pooled_dim=7), Cond(pooled=torch.randn(4, 7))),
    ):
        family = gan(spec)
        data = Batch(torch.randn(4, 1, 8, 8), cond, torch.ones(4))
        for phase in ("D", "G"):
            assert family.loss(phase, data, 0).value.isfinite().all()


def test_a_latent_too_narrow_for_its_layers_is_refused():
    with pytest.raises(ConfigError, match="at least 3"):
        gan(z_dim=2)


@pytest.mark.parametrize("attend", [0, 4, 8, 16])
def test_both_nets_look_or_neither_does(attend: int):
    family = gan(attend=attend)
    both = [sum(isinstance(m, SelfAttention) for m in net.modules()) for net in (family.G, family.D)]
    assert both == ([1, 1] if attend == 8 else [0, 0])


def test_attention_of_any_width_has_heads():
    assert SelfAttention(200)(torch.randn(1, 200, 2, 2)).shape == (1, 200, 2, 2)
