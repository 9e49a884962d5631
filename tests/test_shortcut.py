"""Walks in few strides: what the net is told, what it is taught, and that it then draws in one step."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor

from sojourn.diffusion import guidance
from sojourn.diffusion.path import T_MAX
from sojourn.families import shortcut
from sojourn.families.diffusion import Flow
from sojourn.families.shortcut import Shortcut
from sojourn.types import Batch, Cond, DataSpec, Noise, Step

SPEC = DataSpec("image", (1, 8, 8), labels=(("digit", 10),))
SIZES = {"patch": 2, "width": 48, "depth": 2, "heads": 2}


def last(steps: object) -> Step:
    return list(steps)[-1]  # type: ignore[call-overload]


def pair(**config: object) -> tuple[Flow, Shortcut]:
    """A flow, and a shortcut model that starts from its weights."""
    torch.manual_seed(0)
    flow = Flow(Flow.Config(**SIZES), SPEC).eval()
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(0.05 * torch.randn_like(p))
    short = Shortcut(Shortcut.Config(**SIZES, **config), SPEC).eval()
    missing, unexpected = short.load_state_dict(flow.state_dict(), strict=False)
    assert missing == ["net.cond.labels.1.weight"]
    assert not unexpected
    return flow, short


def test_with_other_numbers_of_steps_it_is_the_flow_it_came_from() -> None:
    flow, short = pair(strides=3)
    cond = Cond(labels=torch.arange(4)[:, None])
    for steps in (3, 16, 20):
        mine = last(short.sample(cond, Noise([1, 2, 3, 4]), Shortcut.Options(steps=steps, guidance=2.0)))
        theirs = last(flow.sample(cond, Noise([1, 2, 3, 4]), Flow.Options(steps=steps, guidance=2.0)))
        torch.testing.assert_close(mine.x, theirs.x)


@pytest.mark.parametrize("steps", [1, 2, 8])
def test_a_walk_of_strides_asks_once_a_step_and_says_the_stride(steps: int) -> None:
    _, short = pair(strides=3)
    asked: list[Tensor] = []
    short.net.register_forward_pre_hook(lambda net, args: asked.append(args[2].labels))
    cond = Cond(labels=torch.tensor([[3], [7]]))
    out = list(short.sample(cond, Noise([1, 2]), Shortcut.Options(steps=steps, guidance=3.0)))
    assert len(out) == steps
    assert len(asked) == steps
    wanted = torch.tensor([[3, steps.bit_length() - 1], [7, steps.bit_length() - 1]])
    assert all(torch.equal(labels, wanted) for labels in asked)
    asked.clear()
    list(short.sample(cond, Noise([1, 2]), Shortcut.Options(steps=steps, guidance=4.5)))
    assert {len(labels) for labels in asked} == {4}, "other guidance than was learnt needs the empty condition too"


def test_heavy_labels_ask_strides_too_once_edges_are_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strides of 1/4 begin at t = 1, 3/4, 1/2 and 1/4: only the last one is below t = 2/5, and is asked twice."""
    _, short = pair(strides=2)
    asked: list[int] = []
    inner = short.velocity
    monkeypatch.setattr(short, "velocity", lambda x, t, c, stride: asked.append(len(x)) or inner(x, t, c, stride))
    cond = Cond(labels=torch.tensor([[3], [7]]))
    even = list(short.sample(cond, Noise([1, 2]), Shortcut.Options(steps=4)))
    heavy = list(short.sample(cond, Noise([1, 2]), Shortcut.Options(steps=4, label_weight=3.0)))
    assert asked == [2, 2, 2, 2, 2, 2, 2, 4]
    walk = short.walk(Shortcut.Options(steps=4))
    with torch.no_grad():
        told, bare = (walk.denoise(even[-2].x, walk.levels[-2].expand(2), c) for c in (cond, cond.null()))
    torch.testing.assert_close(even[-1].x, told)
    torch.testing.assert_close(heavy[-1].x, told + 2 * (told - bare))


def test_strides_are_held_to_what_a_picture_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three strides of four begin above t = 2/5: one more pass each while something is missing."""
    _, short = pair(strides=2)
    asked: list[int] = []
    inner = short.velocity
    monkeypatch.setattr(short, "velocity", lambda x, t, c, stride: asked.append(len(x)) or inner(x, t, c, stride))
    cond, bare = (Cond(labels=torch.tensor(rows)) for rows in ([[3], [7]], [[5], [5]]))
    missed = guidance.colours(bare, lambda x0: torch.tensor([1.0, 0.0]))
    plain, held = (
        list(short.sample(cond, Noise([1, 2]), Shortcut.Options(steps=4, colour_weight=weight), [missed]))[-1].x
        for weight in (1.0, 3.0)
    )
    assert asked == [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 2]
    assert not torch.allclose(held[0], plain[0], atol=1e-3)
    torch.testing.assert_close(held[1], plain[1])


def test_a_negative_prompt_takes_the_flows_walk_and_a_picture_the_shortest_strides() -> None:
    flow, short = pair(strides=3)
    cond, other = Cond(labels=torch.tensor([[3], [7]])), Cond(labels=torch.tensor([[5], [5]]))
    options = Shortcut.Options(steps=4, guidance=2.0)
    mine = list(short.sample(cond, Noise([1, 2]), options, [guidance.negative(other)]))
    theirs = list(flow.sample(cond, Noise([1, 2]), Flow.Options(guidance=2.0), [guidance.negative(other)]))
    assert len(mine) == 20
    torch.testing.assert_close(mine[-1].x, theirs[-1].x)
    for bounds in ({"guidance_low": 0.5}, {"guidance_high": 2.0}):
        mine = list(short.sample(cond, Noise([1, 2]), Shortcut.Options(steps=4, guidance=3.0, **bounds)))
        theirs = list(flow.sample(cond, Noise([1, 2]), Flow.Options(guidance=3.0, **bounds)))
        torch.testing.assert_close(mine[-1].x, theirs[-1].x)
    source = torch.randn(2, 1, 8, 8)
    levels = short.walk(options, [guidance.source(source, 0.5)]).levels
    assert len(levels) == 9
    assert len(list(short.sample(cond, Noise([1, 2]), options, [guidance.source(source, 0.5)]))) == 4


def test_the_flow_refines_what_strides_have_sketched(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four strides, then noise of its own down to t = 0.4, and the flow from there with all of its guidance."""
    _, short = pair(strides=3)
    asked: list[tuple[int, int, float]] = []
    inner = short.velocity

    def velocity(x: Tensor, t: Tensor, c: Cond, stride: Tensor) -> Tensor:
        asked.append((int(stride[0]), len(x), round(float(t[0]), 4)))
        return inner(x, t, c, stride)

    monkeypatch.setattr(short, "velocity", velocity)
    cond, noise = Cond(labels=torch.tensor([[3], [7]])), Noise([1, 2])
    out = list(short.sample(cond, noise, Shortcut.Options(steps=12, guidance=3.0, refine=0.4)))
    assert len(out) == 12
    assert [stride for stride, _, _ in asked] == [2] * 4 + [-1] * 8
    assert [rows for _, rows, _ in asked] == [2] * 4 + [4] * 8, "the flow's guidance needs the empty condition too"
    assert [t for _, _, t in asked[4:]] == pytest.approx([0.4 - 0.05 * i for i in range(8)])
    asked.clear()
    sketch = last(short.sample(cond, noise, Shortcut.Options(steps=4, guidance=3.0)))
    torch.testing.assert_close(out[3].x0, sketch.x0)
    begin = sketch.x0 + 2 / 3 * noise.draw("refine", SPEC.shape)
    first = short.predict(begin * 0.6, torch.full((2,), 0.4), cond)
    empty = short.predict(begin * 0.6, torch.full((2,), 0.4), cond.null())
    torch.testing.assert_close(out[4].x0, begin * 0.6 - 0.4 * (empty + 3 * (first - empty)))
    alone = last(short.sample(cond[:1], Noise([1]), Shortcut.Options(steps=12, guidance=3.0, refine=0.4)))
    torch.testing.assert_close(out[-1].x[:1], alone.x)


def test_guides_hold_in_the_sketch_and_in_what_refines_it() -> None:
    """A mask: black places are the source's from the first to the last, white ones are drawn."""
    _, short = pair(strides=3)
    known = torch.linspace(-1, 1, 64).view(1, 1, 8, 8)
    edit = torch.zeros(1, 1, 8, 8)
    edit[..., :4] = 1
    cond, options = Cond(labels=torch.tensor([[3]])), Shortcut.Options(steps=12, refine=0.4)
    out = list(short.sample(cond, Noise([1]), options, (guidance.mask(known, edit),)))
    assert len(out) == 12
    assert all(torch.equal(step.x0[..., 4:], known[..., 4:]) for step in out)
    assert (out[-1].x0 - known)[..., :4].abs().min() > 0


@pytest.mark.parametrize("steps", [1, 4, 8])
def test_walks_of_strides_are_not_refined(steps: int) -> None:
    _, short = pair(strides=3)
    cond = Cond(labels=torch.tensor([[3]]))
    mine, plain = (
        last(short.sample(cond, Noise([1]), Shortcut.Options(steps=steps, refine=refine))) for refine in (0.4, 0.0)
    )
    torch.testing.assert_close(mine.x, plain.x)


def test_what_strides_cannot_begin_is_the_flows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A negative prompt, guidance in a part of the walk, a picture to start from: twenty steps at least."""
    _, short = pair(strides=3)
    strides: list[int] = []
    inner = short.velocity
    monkeypatch.setattr(
        short, "velocity", lambda x, t, c, stride: strides.append(int(stride[0])) or inner(x, t, c, stride)
    )
    cond = Cond(labels=torch.tensor([[3]]))
    away = guidance.negative(Cond(labels=torch.tensor([[5]])))
    start = guidance.source(torch.zeros(1, 1, 8, 8), 0.5)
    for guides, more, count in (((away,), {}, 20), ((), {"guidance_low": 0.5}, 20), ((start,), {}, 10)):
        strides.clear()
        out = list(short.sample(cond, Noise([1]), Shortcut.Options(steps=12, refine=0.4, **more), guides))
        assert set(strides) == {-1}
        assert len(out) == count


def test_strides_have_their_share_of_small_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    _, short = pair(strides=2, share=0.25)
    counts: list[int] = []
    inner = short.strides
    monkeypatch.setattr(short, "strides", lambda x0, eps, cond: counts.append(len(x0)) or inner(x0, eps, cond))
    cond = Cond(labels=torch.ones(2, 1, dtype=torch.long))
    for _ in range(200):
        loss = short.loss("denoise", Batch(torch.zeros(2, 1, 8, 8), cond, torch.ones(2)), 0)
        assert torch.isfinite(loss.value).all()
        assert all(torch.isfinite(value).all() for value in loss.logs.values())
    assert set(counts) == {0, 1}
    assert 0.35 < sum(counts) / 200 < 0.65


def told(v: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[[Tensor, Tensor, Cond], Tensor]:
    """A net in the shape of `Shortcut.net` from v(x, t, labels)."""
    return lambda x, t, cond: v(x, t, cond.labels)


def test_what_a_stride_is_taught_is_the_mean_of_its_halves(monkeypatch: pytest.MonkeyPatch) -> None:
    """A net whose v tells which stride, which digit and which t it was asked about."""
    _, short = pair(strides=2, guided=3.0)
    monkeypatch.setattr(shortcut, "LIMIT", torch.inf)

    def v(x: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        return (100 * labels[:, 1] + 10 * labels[:, 0] + t)[:, None, None, None].expand_as(x).clone()

    monkeypatch.setattr(Shortcut, "net", staticmethod(told(v)), raising=False)
    object.__getattribute__(short, "_modules").pop("net")
    rows = 64
    x0, eps = torch.randn(2, rows, 1, 8, 8)
    begin, t, stride, target = short.strides(x0, eps, Cond(labels=torch.full((rows, 1), 5)))
    assert set(stride.tolist()) == {0, 1, 2}
    length = 2.0**-stride
    at = t[:, None, None, None]
    torch.testing.assert_close(begin, (1 - at) * x0 + at * eps)
    whole = t / (T_MAX * length)
    torch.testing.assert_close(whole, whole.round())
    middle = t - T_MAX * length / 4  # mean of where the halves begin
    # The halves of the shortest are the guided flow: empty + 3 (conditional - empty), stride -1, digit -1 or 5.
    guided = -100 - 10 + 3 * 60
    wanted = torch.where(stride < 2, 100 * (stride + 1) + 50, guided) + middle
    torch.testing.assert_close(target[:, 0, 0, 0], wanted)


def test_what_a_net_tells_itself_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    _, short = pair(strides=2)
    monkeypatch.setattr(short, "velocity", lambda x, t, cond, stride: 100 * torch.ones_like(x))
    target = short.strides(*torch.randn(2, 4, 1, 8, 8), Cond(labels=torch.ones(4, 1, dtype=torch.long)))[3]
    assert torch.equal(target, torch.full_like(target, shortcut.LIMIT))


@pytest.mark.parametrize("count", [1, 3, 8, 21])
def test_states_of_a_walk_are_those_of_the_drawn_one_and_lead_to_the_sample(count: int) -> None:
    flow, short = pair(guided=2.0, walked=0.5)
    walks = -(-count // shortcut.STATES)
    labels = torch.arange(count)[:, None] % 10
    noise = Noise(range(count))
    eps = noise.draw("x", SPEC.shape)
    steps = list(flow.sample(Cond(labels=labels), noise, Flow.Options(steps=shortcut.FLOW_STEPS, guidance=2.0)))
    # One walk ends near its sample, the others far from theirs.
    x0 = steps[-1].x + 10
    x0[0] = steps[-1].x[0] + 0.5
    x, t, v, weight, cond = short.walked(x0, eps, Cond(labels=labels))
    assert cond.labels is not None
    row = torch.arange(count) % walks
    assert torch.equal(cond.labels, labels[row])
    at = t[:, None, None, None]
    torch.testing.assert_close(x - at * v, x0[row], atol=1e-3, rtol=1e-3)
    drawn = torch.stack([step.x for step in steps[:-1]])  # (19, count, ...)
    sigmas = torch.tensor([float(step.sigma[0]) for step in steps[:-1]])
    level = (sigmas[:, None] - t / (1 - t)).abs().argmin(dim=0)
    torch.testing.assert_close(x / (1 - at), drawn[level, row], atol=1e-3, rtol=1e-3)
    assert len(set(zip(level.tolist(), row.tolist(), strict=True))) == count, "no state twice"
    torch.testing.assert_close(weight, (row == 0) * t**2 / (t**2 + shortcut.SOFT))


def test_walks_have_their_share_of_training_alone_and_are_told_the_condition(monkeypatch: pytest.MonkeyPatch) -> None:
    _, short = pair(strides=2, share=0.25, walked=0.25, drop=0.9)
    asked: list[Cond] = []
    inner = short.walked
    monkeypatch.setattr(short, "walked", lambda x0, eps, cond: asked.append(cond) or inner(x0, eps, cond))
    cond = Cond(labels=torch.ones(8, 1, dtype=torch.long))
    batch = Batch(torch.zeros(8, 1, 8, 8), cond, torch.ones(8))
    short.loss("denoise", batch, 0)
    assert not asked
    short.train()
    for _ in range(20):
        loss = short.loss("denoise", batch, 0)
        assert len(loss.value) == 8
        assert torch.isfinite(loss.value).all()
    assert all(c.labels is not None and bool((c.labels == 1).all()) for c in asked)
    assert {c.rows for c in asked} <= {2, 3}
    for _ in range(50):  # of a micro-batch of one, one thing is learnt at a time
        assert len(short.loss("denoise", Batch(torch.zeros(1, 1, 8, 8), cond[:1], torch.ones(1)), 0).value) == 1


def test_walks_that_end_elsewhere_count_nothing_in_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    _, short = pair(strides=2, share=0.25, walked=0.5)
    monkeypatch.setattr(shortcut, "FAR", 0.0)
    cond = Cond(labels=torch.ones(16, 1, dtype=torch.long))
    loss = short.train().loss("denoise", Batch(torch.zeros(16, 1, 8, 8), cond, torch.ones(16)), 0)
    assert 8 <= int((loss.value == 0).sum()) <= 9
    assert float(loss.logs["loss/walked"]) == 0
    assert all(value > 0 for name, value in loss.logs.items() if name != "loss/walked")


def test_what_walks_get_wrong_is_learnt_from_them() -> None:
    """Ten samples known by heart, and a net that walks past them: taught by its walks it comes nearer than taught by
    noised samples alone, from the same weights in the same number of steps.
    """
    torch.manual_seed(0)
    goal = torch.tensor(load_digits().data[:10] / 8 - 1, dtype=torch.float32).view(10, 1, 8, 8)
    cond = Cond(labels=torch.arange(10)[:, None])

    def trained(model: Shortcut, steps: int, rate: float) -> Shortcut:
        optimizer = torch.optim.Adam(model.parameters(), rate)
        fall = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
        model.train()
        for _ in range(steps):
            rows = torch.randint(10, (64,))
            loss = model.loss("denoise", Batch(goal[rows], cond[rows], torch.ones(64)), 0).value.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            fall.step()
        return model.eval()

    def off(model: Shortcut) -> float:
        walk = model.sample(
            cond[torch.arange(10).repeat(8)], Noise(range(80)), Shortcut.Options(steps=20, guidance=3.0)
        )
        return float((last(walk).x - goal.repeat(8, 1, 1, 1)).square().mean())

    known = trained(Shortcut(Shortcut.Config(**SIZES), SPEC), 300, 2e-3)
    found = {}
    for walked in (0.0, 0.3):
        torch.manual_seed(1)
        model = Shortcut(Shortcut.Config(**SIZES, walked=walked), SPEC)
        model.load_state_dict(known.state_dict())
        found[walked] = off(trained(model, 150, 1e-3))
    assert found[0.3] < 0.85 * found[0.0]


def test_one_step_is_better_than_the_flows_and_as_good_as_its_many() -> None:
    data = load_digits()
    x = torch.tensor(data.data / 8 - 1, dtype=torch.float32).view(-1, 1, 8, 8)
    y = torch.tensor(data.target)[:, None]

    def fit(family: Flow, updates: int, lr: float) -> None:
        torch.manual_seed(1)
        optimizer = torch.optim.AdamW(family.train().parameters(), lr=lr, betas=(0.9, 0.99))
        for i in range(updates):
            for group in optimizer.param_groups:
                group["lr"] = lr * min(1, i / 20) * (1 - i / updates)
            rows = torch.randint(len(x), (64,))
            loss = family.loss("denoise", Batch(x[rows], Cond(labels=y[rows]), torch.ones(64)), 0)
            loss.value.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        family.eval()

    def distance(family: Flow, steps: int) -> float:
        """Sliced Wasserstein distance to the pictures of the digits that were asked for."""
        drawn = last(
            family.sample(Cond(labels=y[:200]), Noise(range(200)), family.Options(steps=steps, guidance=1.5))
        ).x
        lines = torch.nn.functional.normalize(torch.randn(64, 128, generator=torch.Generator().manual_seed(0)), dim=0)
        a, b = ((z.flatten(1) @ lines).sort(dim=0).values for z in (drawn, x[:200]))
        return float((a - b).abs().mean())

    flow, short = pair(strides=3, guided=1.5)
    fit(flow, 300, 3e-3)
    short.load_state_dict(flow.state_dict(), strict=False)
    fit(short, 300, 2e-3)
    assert distance(short, 1) < 0.7 * distance(flow, 1)
    assert distance(short, 4) < 1.3 * distance(flow, 16)
