"""Differentiable augmentation against torch's own moves, colorsys and closed forms; ADA's control of itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sojourn.data.augment import ada, diffaugment, hole, shifted, tinted, warped
from sojourn.families.dcgan import certainty
from sojourn.registry import get, preset
from sojourn.types import Batch, Cond, DataSpec

GANS = ["dcgan", "lsgan", "wgan-gp", "sngan", "multi-gan", "biggan", "stylegan2", "r3gan"]
SPEC = DataSpec("image", (3, 16, 16))


def pictures(rows: int = 3, channels: int = 3, side: int = 8) -> Tensor:
    return torch.rand(rows, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def still(rows: int = 3, **changes: float) -> dict[str, Tensor]:
    values = {"turn": 0.0, "wide": 1.0, "high": 1.0, "right": 0.0, "down": 0.0} | changes
    return {name: torch.full((rows,), value) for name, value in values.items()}


def test_warps_are_torchs_own_moves():
    x = pictures()
    torch.testing.assert_close(warped(x, **still()), x)
    torch.testing.assert_close(warped(x, **still(turn=math.pi / 2)), torch.rot90(x, 1, (2, 3)), atol=1e-5, rtol=0)
    torch.testing.assert_close(warped(x, **still(turn=math.pi)), x.flip(2, 3), atol=1e-5, rtol=0)
    right = warped(x, **still(right=2 / 8 * 2))
    torch.testing.assert_close(right[..., 2:], x[..., :-2], atol=1e-5, rtol=0)
    down = warped(x, **still(down=3 / 8 * 2))
    torch.testing.assert_close(down[..., 3:, :], x[..., :-3, :], atol=1e-5, rtol=0)
    smooth = torch.linspace(-1, 1, 8)[None, None, None].expand(1, 1, 8, 8)
    wide = warped(smooth, **still(1, wide=2.0))
    torch.testing.assert_close(wide[0, 0, 0], torch.linspace(-1, 1, 8) / 2, atol=1e-5, rtol=0)
    # Shift comes last: turned by a quarter and then two to the right.
    both = warped(x, **still(turn=math.pi / 2, right=2 / 8 * 2))
    torch.testing.assert_close(both[..., 2:], torch.rot90(x, 1, (2, 3))[..., :-2], atol=1e-5, rtol=0)


def test_pictures_are_moved_alike_under_autocast():
    """Places in bf16 would be off by pixels."""
    x = torch.rand(4, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    moves = [torch.linspace(low, high, 4) for low, high in ((-1, 1), (0.8, 1.2), (0.9, 1.1), (-0.3, 0.3), (0.2, -0.2))]
    with torch.autocast("cpu", torch.bfloat16):
        moved = warped(x, *moves)
    assert torch.equal(moved, warped(x, *moves))


def test_shifts_bring_in_nothing():
    x = pictures(2)
    out = shifted(x, torch.tensor([2, 0]), torch.tensor([-1, 3]))
    assert torch.equal(out[0, :, 2:, :-1], x[0, :, :-2, 1:])
    assert float(out[0, :, :2].abs().max()) == float(out[0, :, :, -1].abs().max()) == 0
    assert torch.equal(out[1, :, :, 3:], x[1, :, :, :-3])


def test_a_hole_is_half_the_side_and_may_stand_over_the_edge():
    where = hole(8, 8, torch.tensor([0.5, 0.0]), torch.tensor([0.5, 1.0]))
    assert where[0].sum() == 16
    assert bool(where[0, 2:6, 2:6].all())
    assert where[1].sum() == 4
    assert bool(where[1, :2, 6:].all())


def tint(x: Tensor, **changes: float) -> Tensor:
    values = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0} | changes
    return tinted(x, **{name: torch.full((len(x),), value) for name, value in values.items()})


def test_tints_change_one_thing_each():
    x = pictures()
    torch.testing.assert_close(tint(x), x)
    torch.testing.assert_close(tint(x, brightness=0.3), x + 0.3)
    mean = x.mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(tint(x, contrast=2.0), 2 * x - mean)
    grey = x.mean(1, keepdim=True)
    torch.testing.assert_close(tint(x, saturation=0.0), grey.expand_as(x))
    third = tint(x, hue=2 * math.pi / 3)
    torch.testing.assert_close(third, x.roll(1, dims=1), atol=1e-5, rtol=0)  # red to green to blue
    torch.testing.assert_close(tint(tint(x, hue=1.0), hue=-1.0), x, atol=1e-5, rtol=0)
    turned = tint(x, hue=0.7)
    torch.testing.assert_close(turned.mean(1), x.mean(1), atol=1e-5, rtol=0)
    torch.testing.assert_close((turned - grey).norm(dim=1), (x - grey).norm(dim=1), atol=1e-5, rtol=0)


def test_alpha_and_grey_pictures_keep_what_has_no_meaning_for_them():
    x = pictures(channels=4)
    assert torch.equal(tint(x, brightness=0.5, saturation=0.0, hue=1.0)[:, 3:], x[:, 3:])
    grey = pictures(channels=1)
    torch.testing.assert_close(tint(grey, saturation=0.0, hue=1.0), grey)
    for change in (diffaugment, lambda v: ada(v, 1.0)):
        assert change(grey).shape == grey.shape
        assert change(x).shape == x.shape


def test_a_gradient_goes_through_every_change():
    for change in (diffaugment, lambda v: ada(v, 1.0)):
        torch.manual_seed(0)
        x = pictures(6).requires_grad_(True)
        change(x).square().sum().backward()
        assert x.grad is not None
        assert x.grad.isfinite().all()
        assert bool((x.grad.flatten(1).abs().sum(1) > 0).all())


def test_ada_changes_the_share_of_pictures_it_is_told():
    torch.manual_seed(0)
    x = pictures(1).repeat(400, 1, 1, 1)
    torch.testing.assert_close(ada(x, 0.0), x, atol=1e-5, rtol=0)
    share = float(((ada(x, 0.1) - x).abs().flatten(1).amax(1) > 1e-3).float().mean())
    # Eleven draws, a quarter turn of none in four: 1 - 0.9^10 * (1 - 0.1 * 0.75)
    assert share == pytest.approx(1 - 0.9**10 * 0.925, abs=0.08)


def test_ada_turns_stretches_shifts_and_tints():
    torch.manual_seed(0)
    y, x = torch.meshgrid(torch.linspace(-1, 1, 32), torch.linspace(-1, 1, 32), indexing="ij")
    dot = 2 * torch.exp(-((x - 0.4) ** 2 + y**2) / 0.02) - 1  # to the right of the middle
    spots = ada((dot.expand(300, 3, -1, -1)).contiguous(), 1.0)
    at = spots.sum(1).flatten(1).argmax(1)
    quadrant = (x.flatten()[at] > 0).int() * 2 + (y.flatten()[at] > 0).int()
    assert min(quadrant.bincount(minlength=4).tolist()) > 40, "turned all ways"
    distance = (x.flatten()[at] ** 2 + y.flatten()[at] ** 2).sqrt()
    assert float(distance.std()) > 0.1, "nearer and farther"
    red = torch.tensor([0.5, -0.5, -0.5])[None, :, None, None].expand(300, -1, 8, 8).contiguous()
    tints = ada(red, 1.0).mean((2, 3))
    assert len(set(tints.argmax(1).tolist())) == 3, "every hue comes up"
    assert float(tints.mean(1).std()) > 0.1, "brighter and darker"


@pytest.mark.parametrize("augment", ["diff", "ada"])
@pytest.mark.parametrize("id", GANS)
def test_every_gan_shows_its_discriminator_changed_pictures(id: str, augment: str):
    entry = get("family", id)
    torch.manual_seed(0)
    family = entry.cls(entry.cls.Config(**{**preset(id, "tiny"), "augment": augment}), SPEC).train()
    if augment == "ada":
        family.p.fill_(1.0)
    data = Batch(pictures(8, side=16), Cond(), torch.ones(8))
    seen: list[Tensor] = []
    entrance = {"multi-gan": lambda: family.D[0], "r3gan": lambda: family.D.enter}.get(id, lambda: family.D)()
    entrance.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    if hasattr(family, "critics"):
        for critic in family.critics:
            judge = critic.judge
            critic.judge = lambda x, cond, judge=judge: (seen.append(x), judge(x, cond))[1]
    drawn: list[torch.Tensor] = []
    getattr(family.G, "synthesis", family.G).register_forward_hook(lambda net, given, out: drawn.append(out))
    for phase in family.phases():
        seen.clear()
        drawn.clear()
        loss = family.loss(phase.name, data, 0)
        assert loss.value.isfinite().all()
        assert phase.name == "path" or seen
        assert phase.name in ("path", "R1") or drawn
        for plain in (data.x, *drawn):  # a fake that is not augmented makes the generator draw what augmenting does
            assert not any(torch.equal(x, plain) for x in seen), "a picture reached the discriminator as it is"
    family.eval()
    assert torch.equal(family.augmented(data.x), data.x)


def test_ada_asks_each_loss_in_its_own_terms():
    real, fake = torch.tensor([0.7, 0.2, 3.0]), torch.tensor([0.1, 0.4, 5.0])
    assert certainty("ns", real, fake).sign().tolist() == [1, 1, 1]
    assert certainty("ls", real, fake).sign().tolist() == [1, -1, 1]
    assert certainty("wgan", real, fake).sign().tolist() == [1, -1, -1]


def test_ada_turns_up_where_real_pictures_are_known_by_heart():
    family = get("family", "dcgan").cls
    torch.manual_seed(0)
    gan = family(family.Config(**{**preset("dcgan", "tiny"), "augment": "ada", "ada_samples": 100}), SPEC)
    for sign, wanted in ((8.0, 0.08), (6.0, 0.16), (2.0, 0.08), (-8.0, 0.0), (-8.0, 0.0)):
        gan.after("D", {"sign": torch.tensor(sign), "rows": torch.tensor(8.0)})
        assert float(gan.p) == pytest.approx(wanted), sign
    gan.p.fill_(0.99)
    gan.after("D", {"sign": torch.tensor(8.0), "rows": torch.tensor(8.0)})
    gan.after("G", {"sign": torch.tensor(-8.0), "rows": torch.tensor(8.0)})
    assert float(gan.p) == 1
    assert "p" in gan.state_dict()
    assert gan.ada_statistics(torch.tensor([2.0, -0.1, 3.0]))["sign"] == 1


def test_ada_without_colour_leaves_the_ground_as_it_is():
    plain = torch.full((64, 3, 16, 16), 0.7)
    torch.testing.assert_close(ada(plain, 1.0, colour=False), plain)
    assert float((ada(plain, 1.0) - plain).abs().mean()) > 0.05
