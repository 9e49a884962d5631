"""Guides on exact denoisers: each against its closed form, and the order they are put together in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from sojourn.diffusion import guidance as g
from sojourn.diffusion.path import flow_sigmas
from sojourn.diffusion.samplers import SAMPLERS
from sojourn.errors import InvalidInput
from sojourn.types import Cond, Denoise, Guide, Noise


class Means:
    """Data N(label, 1), or N(0, 1) where the label is not given; counts its passes and rows."""

    def __init__(self) -> None:
        self.rows: list[int] = []

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        self.rows.append(len(x))
        assert len(x) == len(sigma)
        assert cond.rows in (0, len(x))
        mean = torch.zeros(len(x), 1) if cond.labels is None else cond.labels.clamp(min=0).to(x)
        return mean + (x - mean) / (1 + sigma[:, None] ** 2)


def labels(*values: int) -> Cond:
    return Cond(labels=torch.tensor(values)[:, None])


def ask(denoise: Denoise, cond: Cond, sigma: float = 1.0, rows: int = 0) -> list[float]:
    rows = rows or cond.rows
    return denoise(torch.zeros(rows, 1), torch.full((rows,), sigma), cond).flatten().tolist()


def end(denoise: Denoise, cond: Cond, x: Tensor, sigmas: Tensor, sampler: str = "dpmpp_2m") -> Tensor:
    return list(SAMPLERS[sampler](denoise, x, sigmas, cond, Noise(range(len(x)))))[-1].x


# Prompt guidance. At x = 0 and sigma 1 the denoiser of Means gives label / 2.


def test_cfg_extrapolates_in_one_pass() -> None:
    means = Means()
    assert ask(g.compose(means, (), g.Strength(3.0)), labels(4, -1)) == [6.0, 0.0]
    assert means.rows == [4]
    assert ask(g.cfg(3.0).denoise(Means()), labels(4, -1)) == [6.0, 0.0]


@pytest.mark.parametrize(("strength", "cond"), [(1.0, labels(4, 2)), (3.0, labels(-1, -1)), (3.0, Cond())])
def test_cfg_with_nothing_to_do_is_one_plain_pass(strength: float, cond: Cond) -> None:
    means = Means()
    assert ask(g.compose(means, (), g.Strength(strength)), cond, rows=2) == ask(Means(), cond, rows=2)
    assert means.rows == [2]


def test_guidance_can_differ_by_row() -> None:
    assert ask(g.compose(Means(), (), g.Strength(torch.tensor([1.0, 2.0]))), labels(4, 4)) == [2.0, 4.0]


@pytest.mark.parametrize("make", [
    lambda means: g.compose(means, (), g.Strength(3.0, 0.5, 2.0)),
    lambda means: g.interval(3.0, 0.5, 2.0).denoise(means),
])  # fmt: skip
def test_interval_guides_within_its_bounds_only(make: Callable[[Denoise], Denoise]) -> None:
    means = Means()
    denoise = make(means)
    found = [ask(denoise, labels(4), sigma)[0] * (1 + sigma**2) / sigma**2 for sigma in (0.4, 0.5, 1.0, 2.0, 2.1)]
    assert found == pytest.approx([4.0, 12.0, 12.0, 12.0, 4.0], rel=1e-5)
    assert means.rows == [1, 2, 2, 2, 1]


def test_interval_is_decided_by_row() -> None:
    denoise = g.compose(Means(), (), g.Strength(3.0, 0.5, 2.0))
    out = denoise(torch.zeros(2, 1), torch.tensor([1.0, 3.0]), labels(4, 4)).flatten()
    assert out.tolist() == pytest.approx([6.0, 4 * 0.9], rel=1e-5)


def test_negative_pushes_away_from_its_condition() -> None:
    """Row 0: 3/2 + 2 (4/2 - 3/2); row 1 has no negative; row 2 has nothing but one."""
    means = Means()
    denoise = g.compose(means, [g.negative(labels(3, -1, 3))], g.Strength(2.0))
    assert ask(denoise, labels(4, 4, -1)) == [2.5, 4.0, -1.5]
    assert means.rows == [6]


def test_weights_sum_conditions() -> None:
    """0 + 2 (0.5 * 4/2 - 0.25 * 8/2) and, where the second has weight 0, 0 + 2 * 4/2."""
    means = Means()
    guide = g.weights([(labels(4, 4), torch.tensor([0.5, 1.0])), (labels(8, -1), torch.tensor([-0.25, 0.0]))])
    assert ask(g.compose(means, [guide], g.Strength(2.0)), labels(4, 4)) == [0.0, 4.0]
    assert means.rows == [6]
    # The request's own condition may be empty: the terms stand in for it.
    assert ask(g.compose(Means(), [guide], g.Strength(2.0)), Cond(), rows=2) == [0.0, 4.0]


def test_weights_and_negative_join() -> None:
    guides = [g.negative(labels(2)), g.weights([(labels(4), 0.5), (labels(8), 0.5)])]
    assert ask(g.compose(Means(), guides, g.Strength(2.0)), labels(0)) == [1 + 2 * (0.5 * 1 + 0.5 * 3)]


class Worded(Means):
    """Data N(1000, 1) without text, else N(100 text + 10 text * label, 1); where the label is not given, it is 0."""

    def __call__(self, x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        assert cond.pooled is not None
        label = super().__call__(x, sigma, replace(cond, pooled=None)) - x / (1 + sigma[:, None] ** 2)
        share = sigma[:, None] ** 2 / (1 + sigma[:, None] ** 2)
        return torch.where(cond.pooled > 0, cond.pooled * (100 * share + 10 * label), 1000 * share)


def worded(*pairs: tuple[int, float]) -> Cond:
    return Cond(
        labels=torch.tensor([[label] for label, _ in pairs]), pooled=torch.tensor([[word] for _, word in pairs])
    )


def test_labels_that_weigh_more_than_words_pull_away_from_the_same_words_below_the_edges() -> None:
    """1000 + 3 (100 - 1000) + 3 * 2 * 20 of a label 2, a fifth of it at sigma 1/2. Else as it was."""
    cond, net = worded((2, 1.0), (-1, 1.0)), Worded()
    heavy, even = (g.compose(net, (), g.Strength(3.0, labels=weight)) for weight in (2.0, 1.0))
    assert ask(heavy, cond, 0.5) == pytest.approx([(1000 - 2700 + 120) / 5, (1000 - 2700) / 5])
    assert net.rows == [6]
    assert ask(heavy, cond, 0.7) == ask(even, cond, 0.7)
    assert ask(heavy, worded((-1, 1.0)), 0.5) == ask(even, worded((-1, 1.0)), 0.5)
    assert net.rows == [6, 4, 4, 2, 2]


def test_heavy_labels_leave_words_their_weight_at_any_guidance() -> None:
    """At guidance 1, which is in the weights of strides: 100 + 1 * 3 * 20, in two passes. At 0 nothing pulls."""
    cond, net = worded((2, 1.0)), Worded()
    assert ask(g.compose(net, (), g.Strength(1.0, labels=3.0)), cond, 0.5) == pytest.approx([160 / 5])
    assert net.rows == [2]
    assert ask(g.compose(net, (), g.Strength(0.0, labels=3.0)), cond, 0.5) == pytest.approx([1000 / 5])


def test_heavy_labels_join_weights_and_a_negative() -> None:
    """130 + 2 (0.5 (100 - 130) + 0.5 * 3 * 20 + 0.5 (200 - 130) + 0.5 * 3 * 40)."""
    guides = [
        g.negative(worded((3, 1.0))),
        g.weights([(worded((2, 1.0)), 0.5), (worded((2, 2.0)), torch.tensor([0.5]))]),
    ]
    found = ask(g.compose(Worded(), guides, g.Strength(2.0, labels=3.0)), worded((2, 1.0)), 0.5)
    assert found == pytest.approx([(130 + 2 * (-15 + 30 + 35 + 60)) / 5])


def lacking(*shares: float) -> Callable[[Tensor], Tensor]:
    return lambda x0: torch.tensor(shares)


def test_words_that_a_row_lacks_pull_away_from_the_same_without_them_above_the_edges() -> None:
    """0 + 3 * 4/2, and where half is missing 3 * 2 * 0.5 (4/2 - 2/2) more; one pass more, and none if nothing is."""
    means = Means()
    missed = g.colours(labels(2, 2), lacking(0.5, 0.0))
    assert ask(g.compose(means, [missed], g.Strength(3.0, colours=3.0)), labels(4, 4)) == [9.0, 6.0]
    assert means.rows == [4, 2]
    for strength, guide, sigma in (
        (g.Strength(3.0, colours=3.0), g.colours(labels(2, 2), lacking(0.0, 0.0)), 1.0),
        (g.Strength(3.0), missed, 1.0),
        (g.Strength(3.0, colours=3.0), missed, 0.66),
    ):
        means = Means()
        assert ask(g.compose(means, [guide], strength), labels(4, 4), sigma) == ask(
            g.compose(Means(), (), strength), labels(4, 4), sigma
        )
        assert means.rows == [4]


def test_what_is_missed_is_looked_for_in_the_guided_sample_and_by_row() -> None:
    seen: list[Tensor] = []

    def lack(x0: Tensor) -> Tensor:
        seen.append(x0)
        return torch.ones(2)

    denoise = g.compose(Means(), [g.colours(labels(2, 2), lack)], g.Strength(3.0, colours=2.0))
    out = denoise(torch.zeros(2, 1), torch.tensor([1.0, 0.5]), labels(4, 4)).flatten()
    assert out.tolist() == pytest.approx([6 + 3 * (2 - 1), 3 * 4 / 5])
    assert seen[0].flatten().tolist() == pytest.approx([6, 3 * 4 / 5])


def test_missed_words_at_guidance_1_and_with_a_negative_and_heavy_labels() -> None:
    """4/2 + 1 * 2 * 0.5 (4/2 - 2/2); 3/2 + 3 (4/2 - 3/2) + 3 * 2 * 0.5 (4/2 - 2/2); weighted parts are as they are."""
    missed = g.colours(labels(2), lacking(0.5))
    assert ask(g.compose(Means(), [missed], g.Strength(1.0, colours=3.0)), labels(4)) == [3.0]
    assert ask(g.compose(Means(), [missed, g.negative(labels(3))], g.Strength(3.0, colours=3.0)), labels(4)) == [6.0]
    parts = g.weights([(labels(4), 1.0)])
    assert ask(g.compose(Means(), [missed, parts], g.Strength(3.0, colours=3.0)), labels(4)) == [6.0]
    both = g.Strength(3.0, colours=3.0, labels=2.0)
    cond, bare = worded((2, 1.0)), g.colours(worded((2, 0.5)), lacking(1.0))
    late, early = (ask(g.compose(Worded(), [bare], both), cond, sigma)[0] for sigma in (0.5, 1.0))
    assert late == pytest.approx((1000 - 2700 + 120 / 2) / 5 + 60 / 5)
    assert early == pytest.approx(500 + 3 * (60 - 500) + 3 * 2 * (60 - 30))


def test_prompt_guides_work_alone() -> None:
    assert ask(g.colours(labels(2), lacking(1.0), g.Strength(3.0, colours=2.0)).denoise(Means()), labels(4)) == [9.0]
    assert ask(g.negative(labels(3), 2.0).denoise(Means()), labels(4)) == [2.5]
    assert ask(g.weights([(labels(4), 1.0)], 2.0).denoise(Means()), labels(4)) == [4.0]


def text_cond(rows: int, n: int) -> Cond:
    mask = torch.ones(rows, n, dtype=torch.bool)
    return Cond(labels=torch.ones(rows, 1, dtype=torch.long), feats=torch.ones(rows, n, 12), token_mask=mask)


def test_a_condition_is_made_to_fit_the_batch() -> None:
    """Shorter text is padded under its mask, missing fields are empty, source pictures are the batch's."""
    picture = torch.ones(2, 3, 8, 8)
    to = Cond(**(vars(text_cond(2, 5)) | {"images": (picture,)}))
    fitted = g.matched(text_cond(2, 3), to)
    assert fitted.feats is not None
    assert fitted.token_mask is not None
    assert fitted.feats.shape == (2, 5, 12)
    assert fitted.token_mask.tolist() == [[True] * 3 + [False] * 2] * 2
    assert fitted.images[0] is picture
    empty = g.matched(labels(3, 3), to)
    assert empty.token_mask is not None
    assert not empty.token_mask.any()
    assert Cond.cat([to, fitted, empty]).rows == 6


@pytest.mark.parametrize(("cond", "to", "says"), [
    (labels(1, 2, 3), labels(1, 2), "3 rows"),
    (text_cond(2, 6), text_cond(2, 5), "6 tokens"),
    (text_cond(2, 5), labels(1, 2), "has feats"),
])  # fmt: skip
def test_a_condition_that_cannot_fit_is_refused(cond: Cond, to: Cond, says: str) -> None:
    with pytest.raises(InvalidInput, match=says):
        g.matched(cond, to)


# Mask and source


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_mask_keeps_the_known_and_frees_the_rest(sampler: str) -> None:
    source = torch.linspace(-1, 1, 2 * 16).view(2, 1, 4, 4)
    edit = torch.zeros(2, 1, 4, 4)
    edit[0, :, :, 2:] = 1
    edit[1] = 1

    def unit(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
        return x / (1 + sigma[:, None, None, None] ** 2)

    sigmas = flow_sigmas(10)
    x = sigmas[0] * Noise([1, 2]).draw("x", (1, 4, 4))
    free = end(unit, Cond(), x, sigmas, sampler)
    held = end(g.compose(unit, [g.mask(source, edit)]), Cond(), x, sigmas, sampler)
    torch.testing.assert_close(held[edit == 0], source[edit == 0], rtol=0, atol=1e-6)
    torch.testing.assert_close(held[edit == 1], free[edit == 1], rtol=0, atol=1e-5)


def test_mask_shows_the_net_a_noised_source() -> None:
    """Between, the known part of x is source + sigma * eps, with the walk's own eps."""
    sigmas = flow_sigmas(10)
    eps = Noise([1]).draw("x", (1, 2, 2))
    masked = g.mask(torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 2, 2)).denoise
    assert masked is not None
    steps = list(SAMPLERS["euler"](masked(lambda x, sigma, cond: 0 * x), sigmas[0] * eps, sigmas, Cond(), Noise([1])))
    torch.testing.assert_close(steps[4].x, 1 + sigmas[5] * eps, rtol=0, atol=5e-3)


def test_mask_and_source_name_what_does_not_fit() -> None:
    with pytest.raises(InvalidInput, match="edit mask of shape"):
        g.mask(torch.zeros(1, 3, 8, 8), torch.ones(1, 1, 16, 16))
    with pytest.raises(InvalidInput, match='guide "source" has shape'):
        g.begin(torch.zeros(2, 3), flow_sigmas(4), [g.source(torch.zeros(1, 3), 0.5)])
    with pytest.raises(InvalidInput, match=r"strength 1\.5"):
        g.source(torch.zeros(1, 1), 1.5)


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("strength", [0.0, 0.3, 0.6, 1.0])
def test_source_starts_the_walk_between(sampler: str, strength: float) -> None:
    """For data N(0, 1) the walk from x at sigma ends at x / sqrt(1 + sigma^2), in closed form."""
    sigmas = flow_sigmas(50)
    eps = Noise(range(64)).draw("x", (1,))
    picture = torch.linspace(-2, 2, 64)[:, None]
    guides = [g.source(picture, strength)]
    x, left = g.begin(eps, sigmas, guides)
    found = end(g.compose(Means(), guides), Cond(), x, left, sampler)
    if strength == 1:
        assert torch.equal(x, sigmas[0] * eps)
        return
    t = sigmas[sigmas <= strength / (1 - strength) + 1e-4][0]
    wanted = (picture + t * eps) / (1 + t**2).sqrt()
    torch.testing.assert_close(found, wanted, rtol=0, atol=0.06 if sampler == "euler" else 0.01)


def test_source_spares_the_net_above_its_level() -> None:
    """As a plain Denoise it needs no begin: the same end, to first order, and no evaluation on the way down."""
    sigmas = flow_sigmas(20)
    eps = Noise(range(8)).draw("x", (1,))
    guide = g.source(torch.ones(8, 1), 0.5)
    means, bare = Means(), Means()
    x, left = g.begin(eps, sigmas, [guide])
    a = end(g.compose(means, [guide]), Cond(), x, left, "euler")
    b = end(g.compose(bare, [guide]), Cond(), sigmas[0] * eps, sigmas, "euler")
    torch.testing.assert_close(a, b, rtol=0, atol=5e-3)
    assert len(means.rows) == len(bare.rows) == 10


# Energy


def test_a_linear_energy_shifts_a_gaussian_exactly() -> None:
    """N(2, 1) times exp(0.5 x) is N(2.5, 1): every point of the walk's end moves by 0.5."""
    sigmas = flow_sigmas(200)
    eps = Noise(range(16)).draw("x", (1,))
    cond = labels(*[2] * 16)
    plain = end(Means(), cond, sigmas[0] * eps, sigmas)
    bent = end(g.compose(Means(), [g.energy(lambda x0, cond: -x0.sum(dim=1), 0.5)]), cond, sigmas[0] * eps, sigmas)
    torch.testing.assert_close(bent - plain, torch.full((16, 1), 0.5), rtol=0, atol=0.01)


def test_a_quadratic_energy_draws_towards_its_bottom() -> None:
    """N(0, 1) times exp(-(x - 3)^2 / 20) has mean 3 / 11; a weak pull, for w(sigma) is right to first order."""
    sigmas = flow_sigmas(100)
    eps = Noise(range(400)).draw("x", (1,))
    guide = g.energy(lambda x0, cond: ((x0 - 3) ** 2).sum(dim=1) / 20)
    shift = end(g.compose(Means(), [guide]), Cond(), sigmas[0] * eps, sigmas).mean() - eps.mean()
    assert shift.item() == pytest.approx(3 / 11, abs=0.03)


def test_a_steep_energy_does_not_overshoot() -> None:
    """N(0, 1) times exp(-4.4 (x - 1)^2 / 2) is N(4.4 / 5.4, 1 / 5.4)."""
    sigmas = flow_sigmas(100)
    eps = Noise(range(400)).draw("x", (1,))
    guide = g.energy(lambda x0, cond: 2.2 * ((x0 - 1) ** 2).sum(dim=1))
    found = end(g.compose(Means(), [guide]), Cond(), sigmas[0] * eps, sigmas)
    assert found.mean().item() == pytest.approx(4.4 / 5.4, abs=0.05)
    assert found.std().item() == pytest.approx(5.4**-0.5, abs=0.05)


@pytest.mark.parametrize("grad", [True, False])
def test_an_energy_sees_x0_and_the_condition_and_spares_the_net(grad: bool) -> None:
    net = torch.nn.Linear(1, 1)
    seen = []

    def fn(x0: Tensor, cond: Cond) -> Tensor:
        seen.append(cond.labels)
        return x0.sum(dim=1)

    cond = labels(7, 8)
    with torch.set_grad_enabled(grad):
        out = g.compose(lambda x, sigma, c: net(x), [Guide("rule", energy=fn)])(torch.ones(2, 1), torch.ones(2), cond)
        plain = net(torch.ones(2, 1))
    torch.testing.assert_close(out, plain - 0.5)
    assert [labels is cond.labels for labels in seen] == [True, True], "at both ends of the step"
    assert not out.requires_grad
    assert net.weight.grad is None


# Order


def test_mask_covers_energy_and_source_covers_all() -> None:
    """Whatever the order given, the known part stays known, and above its level the source is all there is."""
    picture, edit = torch.full((1, 1, 1, 2), 9.0), torch.tensor([0.0, 1.0]).view(1, 1, 1, 2)
    guides = [
        g.source(torch.full((1, 1, 1, 2), 5.0), 0.8),
        g.mask(picture, edit),
        g.energy(lambda x0, cond: x0.flatten(1).sum(dim=1)),
        Guide("style", denoise=lambda denoise: lambda x, sigma, cond: denoise(x, sigma, cond) + 1),
    ]
    for chosen in (guides, guides[::-1]):
        denoise = g.compose(lambda x, sigma, cond: 0 * x, chosen)
        low = denoise(torch.zeros(1, 1, 1, 2), torch.ones(1), Cond()).flatten().tolist()
        high = denoise(torch.zeros(1, 1, 1, 2), torch.full((1,), 5.0), Cond()).flatten().tolist()
        assert low == [9.0, 0.5]
        assert high == [5.0, 5.0]


def test_others_keep_the_order_they_are_given_in() -> None:
    double = Guide("double", denoise=lambda denoise: lambda x, sigma, cond: 2 * denoise(x, sigma, cond))
    plus = Guide("plus", denoise=lambda denoise: lambda x, sigma, cond: denoise(x, sigma, cond) + 1)
    assert ask(g.compose(Means(), [double, plus]), labels(4)) == [5.0]
    assert ask(g.compose(Means(), [plus, double]), labels(4)) == [6.0]


@pytest.mark.parametrize("make", [
    lambda: g.negative(labels(1)), lambda: g.weights([(labels(1), 1.0)]), lambda: g.source(torch.zeros(1, 1), 0.5),
])  # fmt: skip
def test_a_guide_that_can_be_there_once_is_refused_twice(make: Callable[[], Guide]) -> None:
    with pytest.raises(InvalidInput, match="two guides"):
        g.compose(Means(), [make(), make()])


def test_chaos_moves_the_text_vector_by_its_share_and_no_empty_row() -> None:
    pooled = torch.randn(3, 16)
    pooled[2] = 0
    cond = Cond(pooled=pooled, feats=torch.randn(3, 2, 8), token_mask=torch.ones(3, 2, dtype=torch.bool))
    eps = torch.randn(3, 16)
    for chaos in (10.0, 100.0):
        moved = g.stirred(cond, eps, chaos)
        assert moved.pooled is not None
        step = (moved.pooled - pooled).norm(dim=1)
        torch.testing.assert_close(step, chaos / 100 * g.CHAOS * pooled.norm(dim=1))
        assert moved.feats is cond.feats
    assert g.stirred(cond, eps, 0) is cond
