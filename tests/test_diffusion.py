"""The diffusion families themselves: every net and path trains, samples and takes every guide."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from sojourn import registry
from sojourn.diffusion import guidance as g
from sojourn.errors import ConfigError, InvalidInput, Unsupported
from sojourn.families.diffusion import Diffusion
from sojourn.nets.blocks import attend
from sojourn.nets.dit import DiT, shortened
from sojourn.nets.unet import UNet
from sojourn.types import Batch, Cond, DataSpec, Guide, Noise

LABELLED = DataSpec("image", (1, 8, 8), labels=(("digit", 10),))
TEXT = DataSpec("image", (3, 8, 8), labels=(("style", 4),), text_len=5, text_dim=12, pooled_dim=12)


def labels(*values: int) -> Cond:
    return Cond(labels=torch.tensor(values)[:, None])


def family(id: str, spec: DataSpec = LABELLED, **config: object) -> Diffusion:
    entry = registry.get("family", id)
    torch.manual_seed(0)
    made = entry.cls(entry.cls.Config(**(dict(entry.presets["tiny"]) | config)), spec)
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return made.eval()


def cond_for(spec: DataSpec, rows: int) -> Cond:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(rows, *shape, generator=generator)

    n = spec.text_len
    return Cond(
        labels=torch.arange(rows)[:, None] % spec.labels[0][1] if spec.labels else None,
        feats=draw(n, spec.text_dim) if spec.text_dim else None,
        token_mask=torch.arange(n)[None] < (torch.arange(rows)[:, None] % n + 1) if n else None,
        pooled=draw(spec.pooled_dim) if spec.pooled_dim else None,
    )


VECTOR = DataSpec("vector", (6,), labels=(("side", 2),))
LATENT = DataSpec("latent", (4, 4, 8), pooled_dim=12)
BARE = DataSpec("image", (3, 8, 8))
FORMS = [
    ("flow", LABELLED, {}),
    ("flow", TEXT, {"prediction": "x", "patch": 4}),
    ("flow", VECTOR, {"patch": 3}),
    ("flow", LATENT, {}),
    ("flow", BARE, {"net": "unet", "width": 16, "levels": (1, 2), "depth": 1}),
    ("edm", LABELLED, {}),
    ("edm", TEXT, {}),
    ("edm", BARE, {"net": "dit", "width": 32, "depth": 2}),
]
NAMES = [f"{id}-{spec.kind}-{config.get('net', '')}{'-text' if spec.text_len else ''}" for id, spec, config in FORMS]


@pytest.mark.parametrize(("id", "spec", "config"), FORMS, ids=NAMES)
def test_every_form_trains_all_its_parameters_and_samples(id: str, spec: DataSpec, config: dict[str, object]) -> None:
    model = family(id, spec, **config).train()
    batch = Batch(torch.randn(6, *spec.shape).clamp(-1, 1), cond_for(spec, 6), torch.ones(6))
    loss = model.loss("denoise", batch, 0)
    assert loss.value.shape == (6,)
    assert torch.isfinite(loss.value).all()
    loss.value.sum().backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not dead
    for name, p in model.named_parameters():
        if p.ndim == 4:  # every channel that comes in is used: a skip that is lost leaves no other trace
            assert p.grad.abs().sum(dim=(0, 2, 3)).all(), name
    model.eval()
    options = model.Options(steps=3)
    seeds = Noise([1, 2, 3])
    whole = list(model.sample(cond_for(spec, 3), seeds, options))
    assert len(whole) == 3
    assert whole[-1].x0.shape == (3, *spec.shape)
    assert not whole[-1].x0.requires_grad
    alone = list(model.sample(cond_for(spec, 3)[1:2], Noise([2]), options))
    torch.testing.assert_close(whole[-1].x0[1:2], alone[-1].x0, rtol=1e-4, atol=1e-4)


def test_a_condition_matters_and_guidance_makes_it_matter_more() -> None:
    for id in ("flow", "edm"):
        model = family(id, TEXT)
        outs = {}
        for strength in (0.0, 1.0, 4.0):
            options = model.Options(steps=4, guidance=strength)
            outs[strength] = list(model.sample(cond_for(TEXT, 2), Noise([1, 2]), options))[-1].x0
        free = list(model.sample(Cond(), Noise([1, 2]), model.Options(steps=4)))[-1].x0
        torch.testing.assert_close(outs[0.0], free, rtol=1e-4, atol=1e-4)
        assert (outs[1.0] - free).norm() > 1e-3
        assert (outs[4.0] - free).norm() > 1.5 * (outs[1.0] - free).norm()


def test_gradients_are_not_kept_between_steps() -> None:
    """The walk is a generator: it must neither build a graph nor leave its caller without gradients."""
    model = family("flow")
    walk = model.sample(labels(1), Noise([1]), model.Options(steps=2))
    assert not next(walk).x.requires_grad
    assert torch.is_grad_enabled()
    walk.close()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("net", ["dit", "unet"])
def test_padding_is_never_looked_at(net: str, training: bool) -> None:
    torch.manual_seed(0)
    made = DiT(TEXT, 2, 32, 2, 2) if net == "dit" else UNet(TEXT, 16, (1, 2), 1, 2, attend=8)
    made.train(training)
    for p in made.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x, level, cond = torch.randn(3, 3, 8, 8), torch.rand(3), cond_for(TEXT, 3)
    assert cond.feats is not None
    assert cond.token_mask is not None
    noised = cond.feats + 9 * ~cond.token_mask[:, :, None]
    changed = cond.feats + 9 * cond.token_mask[:, :, None]
    out = made(x, level, cond)
    torch.testing.assert_close(made(x, level, Cond(**(vars(cond) | {"feats": noised}))), out, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(made(x, level, Cond(**(vars(cond) | {"feats": changed}))), out, atol=1e-3)
    # A row without any text is as if there were no text at all.
    empty, bare = made(x, level, cond.where(torch.zeros(3, dtype=torch.bool), "text")), made(x, level, labels(0, 1, 2))
    torch.testing.assert_close(empty, bare, rtol=1e-4, atol=1e-4)
    full = torch.ones_like(cond.token_mask)
    mixed = torch.cat([full[:2], cond.token_mask[:1]])  # one padded row: the masked path for all
    a, b = (made(x, level, Cond(**(vars(cond) | {"token_mask": m})))[:2] for m in (full, mixed))
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 8, 12), (6,)])
def test_patches_come_back_where_they_were(shape: tuple[int, ...]) -> None:
    net = DiT(DataSpec("latent" if len(shape) == 3 else "vector", shape), 2, 16, 1, 1)
    x = torch.randn(2, *shape)
    assert torch.equal(net.assemble(net.patches(x), x.shape), x)
    if len(shape) == 3:
        assert torch.equal(net.patches(x)[:, 7], x[:, :, 2:4, 2:4].reshape(2, -1))  # row 1, column 1 of 4 x 6


def test_the_walk_with_every_guide() -> None:
    for id in ("flow", "edm"):
        model = family(id)
        picture, edit = torch.linspace(-1, 1, 2 * 64).view(2, 1, 8, 8), torch.zeros(2, 1, 8, 8)
        edit[..., 4:] = 1
        guides = [
            g.mask(picture, edit),
            g.source(picture, 0.9),
            g.negative(labels(3, -1)),
            g.energy(lambda x0, cond: (x0**2).flatten(1).sum(dim=1), 0.1),
        ]
        steps = list(model.sample(labels(1, 2), Noise([1, 2]), model.Options(steps=6), guides))
        assert len(steps) < 6
        torch.testing.assert_close(steps[-1].x[..., :4], picture[..., :4], rtol=0, atol=1e-5)
        plain = list(model.sample(labels(1, 2), Noise([1, 2]), model.Options(steps=6), guides[:2]))[-1].x
        assert not torch.allclose(plain[..., 4:], steps[-1].x[..., 4:], atol=1e-3)


def test_options_reach_the_walk() -> None:
    model = family("flow")

    def draw(**options: object) -> Tensor:
        return list(model.sample(labels(1), Noise([1]), model.Options(**({"steps": 4} | options))))[-1].x

    base = draw()
    for change in (
        {"steps": 5}, {"guidance": 5.0}, {"guidance_low": 0.9}, {"guidance_high": 0.9}, {"shift": 3.0},
        {"label_weight": 2.0},
        {"sampler": "euler"}, {"sampler": "heun"}, {"sampler": "langevin"},
    ):  # fmt: skip
        assert not torch.equal(draw(**change), base), change


def test_what_cannot_be_is_refused() -> None:
    model = family("flow")
    with pytest.raises(Unsupported, match='guide "rhyme"'):
        next(model.sample(Cond(), Noise([1]), model.Options(), [Guide("rhyme", logits=lambda a, b, c: a)]))
    with pytest.raises(InvalidInput, match="3 rows for 2 seeds"):
        next(model.sample(labels(1, 2, 3), Noise([1, 2]), model.Options()))
    with pytest.raises(Unsupported, match="found text"):
        family("flow", DataSpec("text", (12,), vocab=9))
    with pytest.raises(ConfigError, match="patch 3 does not tile"):
        family("flow", LABELLED, patch=3)
    with pytest.raises(ConfigError, match="heads 3"):
        family("flow", LABELLED, heads=3)
    with pytest.raises(ConfigError, match="multiples of 16"):
        family("edm", LABELLED, levels=(1, 1, 1, 1, 1))
    with pytest.raises(ConfigError, match='use "dit"'):
        family("edm", VECTOR)


def test_the_loss_is_told_apart_by_noise() -> None:
    """Buckets are means over the rows of weight in them, and leave out what is empty."""
    model = family("flow", drop=0.0)
    torch.manual_seed(0)
    weight = (torch.rand(256) > 0.5).float()
    batch = Batch(torch.zeros(256, 1, 8, 8), Cond(), weight)
    torch.manual_seed(1)
    loss = model.loss("denoise", batch, 0)
    assert set(loss.logs) == {"loss/sigma-low", "loss/sigma-mid", "loss/sigma-high"}
    torch.manual_seed(1)
    t = torch.sigmoid(math.sqrt(2) * torch.erfinv(2 * torch.rand(256) - 1))
    rows = (t / (1 - t) < 0.5) & (weight > 0)
    torch.testing.assert_close(loss.logs["loss/sigma-low"], loss.value.detach()[rows].mean())
    none = model.loss("denoise", Batch(batch.x, Cond(), torch.zeros(256)), 0)
    assert not none.logs


@pytest.mark.parametrize(("id", "net"), [("flow", {}), ("flow", {"prediction": "x"}), ("edm", {"net": "dit"})])
def test_training_learns_two_clusters(id: str, net: dict[str, object]) -> None:
    """Vectors near +-0.7 by label: after a few hundred updates samples fall near the cluster they were asked for."""
    spec = DataSpec("vector", (4,), labels=(("side", 2),))
    model = family(id, spec, **({"patch": 2, "width": 32, "depth": 2, "heads": 2} | net))
    centre = torch.tensor([0.7, -0.7, 0.7, 0.7])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    model.train()
    for i in range(250):
        torch.manual_seed(i)
        side = torch.randint(0, 2, (64,))
        x = (1 - 2 * side)[:, None] * centre + 0.1 * torch.randn(64, 4)
        loss = model.loss("denoise", Batch(x, Cond(labels=side[:, None]), torch.ones(64)), 0)
        optimizer.zero_grad()
        loss.value.mean().backward()
        optimizer.step()
    model.eval()
    out = list(model.sample(labels(*[0] * 16, *[1] * 16), Noise(range(32)), model.Options(guidance=1.0)))[-1].x
    wanted = torch.cat([centre.expand(16, 4), -centre.expand(16, 4)])
    assert (out - wanted).abs().mean() < 0.2
    assert out[:16].std(dim=0).mean() < 0.35


def test_training_cuts_text_to_what_is_there() -> None:
    text = torch.arange(2 * 4).view(2, 4, 1).float()
    holes = torch.tensor([[True, False, True, False], [False] * 4])
    cut, mask = shortened(text, holes)
    assert torch.equal(cut, text[:, :3])
    assert mask is not None
    assert torch.equal(mask, holes[:, :3])
    assert shortened(text, torch.tensor([[True, True, False, False]] * 2))[1] is None
    assert shortened(text, torch.zeros(2, 4, dtype=torch.bool))[0].shape == (2, 1, 1)


def test_training_in_groups_of_like_length_changes_no_number_and_no_gradient() -> None:
    torch.manual_seed(0)
    net = DiT(TEXT, 2, 32, 2, 2)
    for p in net.parameters():
        p.data.add_(0.1 * torch.randn_like(p))
    x, level, cond = torch.randn(150, 3, 8, 8), torch.rand(150), cond_for(TEXT, 150)
    assert cond.token_mask is not None
    length = torch.randint(0, cond.token_mask.shape[1] + 1, (150,))
    cond = Cond(**(vars(cond) | {"token_mask": torch.arange(cond.token_mask.shape[1]) < length[:, None]}))
    outs, grads = [], []
    for training in (True, False):
        net.train(training).zero_grad()
        out = net(x, level, cond)
        out.square().mean().backward()
        outs.append(out.detach())
        grads.append([p.grad.clone() for p in net.parameters() if p.grad is not None])
    torch.testing.assert_close(outs[0], outs[1], rtol=1e-4, atol=1e-4)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
def test_plain_attention_is_torchs(masked: bool) -> None:
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])[:, None, None] if masked else None
    wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(attend(q, k, v, mask), wanted)
    half = attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), wanted, atol=0.05, rtol=0.05)


def test_the_signal_of_a_dit_cannot_drift_to_where_silu_is_flat() -> None:
    torch.manual_seed(0)
    net = DiT(DataSpec("image", (1, 8, 8), labels=(("digit", 10),)), 2, 32, 2, 2).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.1 * torch.randn_like(p))
    x, level, cond = torch.randn(3, 1, 8, 8), torch.rand(3), Cond(labels=torch.tensor([[0], [4], [9]]))
    before = net(x, level, cond)
    with torch.no_grad():
        net.time.mlp[2].bias.sub_(20)
    torch.testing.assert_close(net(x, level, cond), before, atol=1e-4, rtol=1e-4)


def test_a_unet_hears_its_labels_from_the_start() -> None:
    net = UNet(replace(TEXT, labels=(("class", 50),), text_dim=0, text_len=0, pooled_dim=0), 16, (1, 2), 1, 2)
    with torch.no_grad():
        level = net.time(torch.linspace(0, 1, 50)).std(dim=0).mean()
        label, _, _ = net.cond(Cond(labels=torch.arange(50)[:, None]), 50)
    assert float(label.std(dim=0).mean() / level) > 0.5, (
        "what differs between classes beside what differs between levels"
    )
