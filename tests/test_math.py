"""Paths, schedules and samplers of diffusion against closed forms: exact denoisers of Gaussians and mixtures."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
from torch import Tensor

from sojourn.diffusion import samplers
from sojourn.diffusion.path import EDMPath, FlowPath, Path, flow_sigmas, karras_sigmas, normal, shifted
from sojourn.types import Cond, Denoise, Noise, Step

PATHS: dict[str, Path] = {
    "v": FlowPath("v"),
    "x": FlowPath("x", shift=2.0),
    "uniform": FlowPath("v", time="uniform"),
    "edm": EDMPath(),
}
NONE = Cond()


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


class Crowd(Noise):
    """Noise for thousands of rows at once, fixed by the name of the draw."""

    def draw(self, name: str, shape: Sequence[int]) -> Tensor:
        return torch.randn(len(self), *shape, generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))


def gaussian(mean: float, std: float) -> Denoise:
    """The exact denoiser of data N(mean, std^2)."""
    return lambda x, sigma, cond: mean + std**2 / (std**2 + sigma[:, None] ** 2) * (x - mean)


MEANS = torch.tensor([-1.0, 1.0, 1.4], dtype=torch.float64)
SHARES = torch.tensor([0.3, 0.5, 0.2], dtype=torch.float64)
SPREAD = 0.3


def mixture(x: Tensor, sigma: Tensor, cond: Cond) -> Tensor:
    """The exact denoiser of three Gaussians: each one's, weighted by its posterior."""
    variance = SPREAD**2 + sigma[:, None] ** 2
    posterior = (SHARES.log() - (x - MEANS) ** 2 / (2 * variance)).softmax(dim=1)
    return (posterior * (MEANS + SPREAD**2 / variance * (x - MEANS))).sum(dim=1, keepdim=True)


def walk(name: str, denoise: Denoise, x: Tensor, sigmas: Tensor, noise: Noise | None = None) -> list[Step]:
    noise = noise or Noise([0] * len(x))
    return list(samplers.SAMPLERS[name](denoise, x, sigmas, NONE, noise))


def geometric(high: float, low: float, steps: int) -> Tensor:
    return torch.linspace(math.log(high), math.log(low), steps + 1).exp()


# Paths


@pytest.mark.parametrize("path", PATHS.values(), ids=PATHS.keys())
def test_a_net_that_hits_its_target_denoises_exactly(path: Path) -> None:
    """Training and walking agree on input, level, sigma and prediction."""
    torch.manual_seed(0)
    x0, eps, u = torch.randn(64, 2, 3, 3), torch.randn(64, 2, 3, 3), torch.rand(64)
    sample = path.training(x0, eps, u)
    asked = []

    def net(x: Tensor, level: Tensor, cond: Cond) -> Tensor:
        asked.append((x, level))
        return sample.target

    x = x0 + sample.sigma[:, None, None, None] * eps
    torch.testing.assert_close(path.denoiser(net)(x, sample.sigma, NONE), x0, rtol=1e-7, atol=1e-7)
    torch.testing.assert_close(asked[0], (sample.input, sample.level), rtol=1e-9, atol=1e-9)


def test_the_loss_of_an_x_prediction_is_that_of_v() -> None:
    torch.manual_seed(0)
    x0, eps, guess = torch.randn(3, 32, 5).unbind(0)
    u = torch.linspace(0.2, 0.99, 32)
    sample = FlowPath("x").training(x0, eps, u)
    assert (sample.level > 0.05).all()
    v = (sample.input - guess) / sample.level[:, None]
    wanted = ((v - (eps - x0)) ** 2).mean(dim=1)
    torch.testing.assert_close(sample.weight * ((guess - sample.target) ** 2).mean(dim=1), wanted)


def test_the_weight_of_an_x_prediction_stays_bounded() -> None:
    sample = FlowPath("x").training(torch.zeros(2, 1), torch.ones(2, 1), torch.tensor([0.0, 1e-9]))
    assert sample.weight.tolist() == pytest.approx([400.0, 400.0])


def test_edm_gives_its_net_unit_variance_at_every_level() -> None:
    """Karras et al. 2022, appendix B.6: the requirements c_in, c_out and the weight were derived from."""
    torch.manual_seed(0)
    path = EDMPath(sigma_data=0.5)
    x0, eps = 0.5 * torch.randn(8, 20_000), torch.randn(8, 20_000)
    sample = path.training(x0, eps, torch.linspace(0.001, 0.999, 8))
    assert sample.sigma.min() < 0.01
    assert sample.sigma.max() > 10
    torch.testing.assert_close(sample.input.std(dim=1), torch.ones(8), rtol=0.02, atol=0)
    torch.testing.assert_close(sample.target.std(dim=1), torch.ones(8), rtol=0.02, atol=0)
    c_out = path.scalings(sample.sigma)[1]
    weight = (sample.sigma**2 + 0.25) / (sample.sigma * 0.5) ** 2  # lambda of table 1
    torch.testing.assert_close(sample.weight, weight * c_out**2)


def test_times_follow_their_distributions() -> None:
    """Uniform draws go through the exact quantiles, so a sorted grid gives mean and spread of the logarithm."""
    u = (torch.arange(100_000) + 0.5) / 100_000
    x0 = torch.zeros(100_000, 1)
    edm = EDMPath(mean=-1.2, std=1.2).training(x0, x0, u).sigma.log()
    flow = torch.logit(FlowPath(mean=0.5, std=0.8).training(x0, x0, u).level)
    for values, mean, std in ((edm, -1.2, 1.2), (flow, 0.5, 0.8)):
        assert values.mean().item() == pytest.approx(mean, abs=1e-3)
        assert values.std().item() == pytest.approx(std, rel=1e-3)
    uniform = FlowPath(time="uniform").training(x0, x0, u).level
    torch.testing.assert_close(uniform, u, rtol=0, atol=1.1e-3)
    assert torch.isfinite(normal(torch.tensor([0.0, 1 - 1e-7], dtype=torch.float32))).all()


def test_a_shift_multiplies_sigma() -> None:
    t = torch.linspace(0.01, 0.99, 9)
    moved = shifted(t, 3.0)
    torch.testing.assert_close(moved / (1 - moved), 3 * t / (1 - t))


# Schedules


@pytest.mark.parametrize("steps", [1, 2, 20, 1000])
@pytest.mark.parametrize("shift", [0.3, 1.0, 20.0])
def test_flow_levels_fall_from_almost_pure_noise_to_zero(steps: int, shift: float) -> None:
    sigmas = flow_sigmas(steps, shift)
    assert sigmas.shape == (steps + 1,)
    assert sigmas.dtype == torch.float32
    assert sigmas[0].item() == pytest.approx(999, rel=1e-4)
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


def test_flow_levels_are_even_in_t() -> None:
    sigmas = flow_sigmas(10)
    torch.testing.assert_close(sigmas / (1 + sigmas), torch.linspace(0.999, 0, 11, dtype=torch.float32))


def test_karras_levels_match_the_paper() -> None:
    sigmas = karras_sigmas(18, 0.002, 80.0, 7.0)
    wanted = [(80 ** (1 / 7) + i / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7 for i in range(18)] + [0.0]
    torch.testing.assert_close(sigmas, torch.tensor(wanted, dtype=torch.float32))
    assert karras_sigmas(1, 0.002, 80.0).tolist() == [80.0, 0.0]


# Samplers


def order(name: str, denoise: Denoise, truth: Callable[[Tensor], Tensor]) -> float:
    """Slope of log error against log step count, between sigma 8 and 0.1."""
    x = 8 * torch.linspace(-1.5, 1.5, 41)[:, None]
    wanted, errors = truth(x), []
    for steps in (80, 160, 320):
        end = walk(name, denoise, x, geometric(8, 0.1, steps))[-1].x
        errors.append((end - wanted).abs().mean().log2().item())
    return (errors[0] - errors[2]) / 2


@pytest.mark.parametrize(("name", "wanted"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_on_a_gaussian(name: str, wanted: int) -> None:
    """The probability flow of N(m, s^2) keeps (x - m) / sqrt(s^2 + sigma^2)."""
    ratio = math.sqrt((0.7**2 + 0.1**2) / (0.7**2 + 8**2))
    found = order(name, gaussian(0.5, 0.7), lambda x: 0.5 + ratio * (x - 0.5))
    assert found == pytest.approx(wanted, abs=0.15)


@pytest.mark.parametrize(("name", "wanted"), [("euler", 1), ("heun", 2), ("dpmpp_2m", 2)])
def test_order_on_a_mixture(name: str, wanted: int) -> None:
    found = order(name, mixture, lambda x: walk("heun", mixture, x, geometric(8, 0.1, 1500))[-1].x)
    assert found == pytest.approx(wanted, abs=0.25)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
@pytest.mark.parametrize("sigmas", [flow_sigmas(20), karras_sigmas(20, 0.002, 80.0)], ids=["flow", "karras"])
def test_twenty_steps_reach_the_data(name: str, sigmas: Tensor) -> None:
    sigmas = sigmas.double()
    eps = normal((torch.arange(2000) + 0.5)[:, None] / 2000)
    end = walk(name, gaussian(0.5, 0.7), sigmas[0] * eps, sigmas)[-1]
    tolerance = {"euler": 0.15, "heun": 0.02, "dpmpp_2m": 0.06}[name]
    assert end.x.mean().item() == pytest.approx(0.5, abs=0.02)
    assert end.x.std().item() == pytest.approx(0.7, rel=tolerance)


def test_heun_beats_euler_at_few_steps_of_a_flow() -> None:
    """The first step of a flow spans sigma 999 to 9: averaging slopes in sigma loses here, in t it wins."""
    sigmas = flow_sigmas(10).double()
    x = sigmas[0] * normal((torch.arange(500) + 0.5)[:, None] / 500)
    truth = walk("heun", mixture, x, torch.cat([geometric(999, 1e-4, 2000), torch.zeros(1)]))[-1].x
    error = {name: (walk(name, mixture, x, sigmas)[-1].x - truth).abs().mean() for name in ("euler", "heun")}
    assert error["heun"] < 0.5 * error["euler"]


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_steps_tell_where_the_walk_is(name: str) -> None:
    sigmas = torch.tensor([4.0, 2.0, 1.0, 0.0])
    steps = walk(name, gaussian(0.0, 1.0), 4 * torch.randn(3, 1), sigmas)
    each = 2 if name == "langevin" else 1
    assert len(steps) == 3 * each
    assert [s.sigma.tolist() for s in steps[each - 1 :: each]] == [[2.0] * 3, [1.0] * 3, [0.0] * 3]
    assert [bool(s.done.all()) for s in steps] == [False] * (3 * each - 1) + [True]
    assert torch.equal(steps[-1].x0, steps[-1].x)
    assert not torch.equal(steps[0].x0, steps[0].x)


@pytest.mark.parametrize("name", ["euler", "heun", "dpmpp_2m"])
def test_a_step_can_be_rewound_to(name: str) -> None:
    """From a level on, the walk is fixed by (x, sigma), but for what a multistep sampler remembers."""
    sigmas = flow_sigmas(12).double()
    x = sigmas[0] * torch.linspace(-2, 2, 9)[:, None]
    steps = walk(name, mixture, x, sigmas)
    again = walk(name, mixture, steps[5].x, sigmas[6:])[-1].x
    torch.testing.assert_close(again, steps[-1].x, rtol=0, atol=0.1 if name == "dpmpp_2m" else 1e-12)


def test_langevin_reaches_a_gaussian() -> None:
    n = 4000
    noise, sigmas = Crowd(range(n)), karras_sigmas(120, 0.002, 20.0).double()
    end = walk("langevin", gaussian(0.5, 0.7), sigmas[0] * noise.draw("x", (1,)), sigmas, noise)[-1].x
    assert end.mean().item() == pytest.approx(0.5, abs=0.05)
    assert end.std().item() == pytest.approx(0.7, rel=0.05)


def test_langevin_reaches_a_mixture() -> None:
    n = 4000
    noise, sigmas = Crowd(range(n)), karras_sigmas(120, 0.002, 20.0).double()
    end = walk("langevin", mixture, sigmas[0] * noise.draw("x", (1,)), sigmas, noise)[-1].x
    assert (end < 0).double().mean().item() == pytest.approx(0.3, abs=0.03)
    left, right = end[end < 0], end[end > 0]
    assert left.mean().item() == pytest.approx(-1, abs=0.03)
    assert left.std().item() == pytest.approx(SPREAD, rel=0.1)
    assert right.mean().item() == pytest.approx(5 / 7 + 1.4 * 2 / 7, abs=0.04)


def test_langevin_forgets_where_it_began() -> None:
    """From one and the same x the random walk reaches all of the data; the probability flow would reach one point."""
    noise, sigmas = Crowd(range(4000)), karras_sigmas(120, 0.002, 20.0).double()
    steps = samplers.langevin(gaussian(0.5, 0.7), torch.full((4000, 1), 9.0), sigmas, NONE, noise, inner=1)
    assert list(steps)[-1].x.std().item() == pytest.approx(0.7, rel=0.07)


def test_langevin_holds_a_level() -> None:
    """Random steps at one level settle in N(m, V), V = s^2 + sigma^2, inflated by 1 / (1 - CHURN sigma^2 / 2 V).

    That is the closed form of the bias that a step of finite size has for a Gaussian.
    """
    n, sigma = 20_000, 1.0
    noise = Crowd(range(n))
    x = noise.draw("x", (1,)) / 9  # too narrow a start
    steps = samplers.langevin(gaussian(0.5, 0.7), x, torch.tensor([sigma, 0.5]), NONE, noise, inner=60)
    held = list(steps)[58].x
    variance = 0.7**2 + sigma**2
    wanted = variance / (1 - samplers.CHURN * sigma**2 / (2 * variance))
    assert held.mean().item() == pytest.approx(0.5, abs=0.03)
    assert held.var().item() == pytest.approx(wanted, rel=0.03)


@pytest.mark.parametrize("name", samplers.SAMPLERS)
def test_a_row_walks_alone(name: str) -> None:
    sigmas = flow_sigmas(8).double()
    noise = Noise([3, 4, 5])
    x = sigmas[0] * noise.draw("x", (1,))
    together = walk(name, mixture, x, sigmas, noise)[-1].x
    alone = walk(name, mixture, x[1:2], sigmas, noise[1:2])[-1].x
    torch.testing.assert_close(together[1:2], alone, rtol=1e-12, atol=1e-12)
    if name == "langevin":
        other = walk(name, mixture, x, sigmas, Noise([3, 9, 5]))[-1].x
        assert torch.equal(other[0], together[0])
        assert not torch.equal(other[1], together[1])
