"""Variational autoencoders: the KL term, noise before and behind the encoder, and one that a discriminator judges."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Normal, kl_divergence
from torch.nn import functional as F

from sojourn.diffusion.path import T_MAX
from sojourn.errors import ConfigError, InvalidInput
from sojourn.families.base import drawn
from sojourn.families.prior import LatentFlow, lifted, placed
from sojourn.families.vae import VAE, Autoencoder, AutoencoderOptions, gaussian, kl_normal, roughness
from sojourn.families.vaegan import VAEGAN, likeness
from sojourn.registry import get, preset
from sojourn.types import Batch, Cond, DataSpec, Guide, Noise

SPEC = DataSpec("image", (1, 8, 8))
SIZES = {"widths": (16, 32), "z": 4, "latent": "map"}


def vae(**config: object) -> VAE:
    torch.manual_seed(0)
    return VAE(VAE.Config(**{**SIZES, **config}), SPEC)


def digits(rows: int = 32) -> Batch:
    x = torch.tensor(load_digits().images[:rows] / 8 - 1, dtype=torch.float32)[:, None]
    return Batch(x, Cond(), torch.ones(rows))


def learn(family: VAE, steps: int) -> None:
    names = [name for phase in family.phases() for name in phase.nets]
    optimizer = torch.optim.Adam([p for name in names for p in family.get_submodule(name).parameters()], lr=3e-3)
    family.train()
    for step in range(steps):
        optimizer.zero_grad()
        family.loss("elbo", digits(), step).value.mean().backward()
        optimizer.step()
    family.eval()


def test_kl_is_that_of_torchs_distributions():
    mean, logvar = torch.randn(2, 5, 3, 4, 4)
    wanted = kl_divergence(Normal(mean, (0.5 * logvar).exp()), Normal(0.0, 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(kl_normal(mean, logvar), wanted)
    towards, spread = torch.randn(2, 5, 3, 4, 4)
    near, far = (Normal(at, (0.5 * width).exp()) for at, width in ((mean, logvar), (towards, spread)))
    torch.testing.assert_close(kl_normal(mean, logvar, (towards, spread)), kl_divergence(near, far).flatten(1).sum(1))


def test_every_other_latent_gets_noise_in_proportion_to_its_channels_spread():
    mean = torch.randn(400, 3, 4, 4) * torch.tensor([1.0, 2.0, 10.0]).view(3, 1, 1) + 5
    rough = roughness(mean, 0.5)
    assert rough.shape == (400, 3, 1, 1)
    assert (rough[::2] == 0).all()
    share = rough[1::2, :, 0, 0] / torch.tensor([1.0, 2.0, 10.0])
    assert 0.4 < share.max() < 0.55
    assert abs(float(share.mean()) - 0.25) < 0.03
    assert float((share.max(dim=1).values / share.min(dim=1).values).max()) < 1.2, "one share for all channels of a row"


def test_one_flat_latent_alone_has_no_spread_and_gets_no_noise():
    assert roughness(torch.ones(1, 4), 0.5).tolist() == [[0.0, 0.0, 0.0, 0.0]]


def test_a_decoder_that_learns_alone_leaves_the_encoder_and_sees_through_noise():
    family = vae(beta=1e-3)
    learn(family, 80)
    alone = vae(beta=1e-3, learns="decoder", noise=1.0)
    alone.load_state_dict(family.state_dict())
    encoder = {name: p.clone() for name, p in alone.enc.named_parameters()}
    learn(alone, 80)
    assert all(torch.equal(p, encoder[name]) and p.grad is None for name, p in alone.enc.named_parameters())
    x = digits().x
    z = family.encode(x).detach()
    rough = z + 0.5 * z.std(dim=(0, 2, 3), keepdim=True) * torch.randn_like(z)

    @torch.no_grad()
    def gap(model: VAE, latent: Tensor) -> float:
        return float((model.decode(latent) - x).abs().mean())

    assert gap(alone, rough) < 0.9 * gap(family, rough)
    assert gap(alone, z) < 1.3 * gap(family, z)


def test_noise_is_for_training_alone():
    plain, rough = vae().eval(), vae(noise=1.0).eval()
    values = []
    for family in (plain, rough):
        torch.manual_seed(1)
        values.append(family.loss("elbo", digits(), 0).value)
    assert torch.equal(*values)


# The weight of the KL term


@pytest.mark.parametrize(("kind", "phase"), [(VAE, "elbo"), (VAEGAN, "enc")], ids=["vae", "vae-gan"])
def test_the_kl_term_grows_in_and_counts_in_full_where_nothing_is_trained(kind: type[Autoencoder], phase: str):
    torch.manual_seed(0)
    name = "vae" if kind is VAE else "vae-gan"
    changes = {"beta": 0.5, "anneal": 100}
    family = kind(kind.Config(**{**preset(name, "tiny"), **changes}), DataSpec("image", (1, 16, 16)))
    data = Batch(torch.rand(4, 1, 16, 16) * 2 - 1, Cond(), torch.ones(4))

    def at(seen: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(7)
        loss = family.loss(phase, data, seen)
        return loss.value.detach(), loss.logs["loss/kl"]

    family.train()
    start, kl = at(0)
    for seen, share in ((25, 0.25), (100, 1), (500, 1)):
        torch.testing.assert_close(at(seen)[0], start + share * 0.5 * kl)
    family.eval()
    torch.testing.assert_close(at(0)[0], at(500)[0])
    torch.testing.assert_close(at(0)[0], start + 0.5 * kl)


def test_a_latent_map_keeps_the_crisper_likelihood_and_a_flat_one_has_that_which_learns():
    kinds = {name: VAE.Config(**preset("vae", name)) for name in ("64", "128", "f8")}
    assert {name: config.reconstruction for name, config in kinds.items()} == {"64": "l2", "128": "l2", "f8": "l1"}
    spec = DataSpec("image", (1, 16, 16))
    for likelihood, error in (("l1", torch.abs), ("l2", lambda gap: gap.square() / 2)):
        changes = {"beta": 0.0, "reconstruction": likelihood}
        family = VAE(VAE.Config(**{**preset("vae", "tiny"), **changes}), spec).eval()
        x = torch.rand(4, 1, 16, 16) * 2 - 1
        torch.manual_seed(7)
        value = family.loss("elbo", Batch(x, Cond(), torch.ones(4)), 0).value
        torch.manual_seed(7)
        mean, logvar = gaussian(family.enc(x, Cond()))
        out = family.dec(mean + (logvar / 2).exp() * torch.randn_like(mean), Cond())
        torch.testing.assert_close(value, error(out - x).mean((1, 2, 3)))


def test_a_class_lays_out_what_a_flat_decoder_draws():
    torch.manual_seed(0)
    dec = VAE(VAE.Config(**preset("cvae", "tiny")), DataSpec("image", (1, 16, 16), labels=(("kind", 4),))).dec.eval()
    for weight in dec.told.parameters():
        torch.nn.init.normal_(weight)
    entered: list[Tensor] = []
    dec.enter.register_forward_hook(lambda net, args, out: entered.append(out.view(-1, *dec.side)))
    for label in (0, 1):
        dec(torch.zeros(1, 4), Cond(labels=torch.tensor([[label]])))
    gap = (entered[1] - entered[0]).detach()  # (channels, h, w)
    assert float(gap.std(dim=(1, 2)).min()) > 0.01, "it differs from place to place"


def kinds() -> Batch:
    """Zeros and ones of 8 x 8 pixels, told apart by their class."""
    digits = load_digits(n_class=2)
    x = torch.tensor(digits.images / 8 - 1, dtype=torch.float32)[:, None]
    return Batch(x, Cond(labels=torch.tensor(digits.target)[:, None]), torch.ones(len(x)))


def conditional(id: str, **changes: object) -> Autoencoder:
    torch.manual_seed(0)
    cls = get("family", id).cls
    return cls(cls.Config(**{**preset(id, "tiny"), "conditional": True, **changes}), replace(SPEC, labels=(("d", 2),)))


def test_a_prior_learns_where_the_latents_of_a_class_lie():
    family, data = conditional("cvae", anneal=0, beta=0.3, label_drop=0.0).train(), kinds()
    optimizer = torch.optim.Adam(family.parameters(), lr=3e-3)
    for _ in range(100):
        optimizer.zero_grad()
        family.loss("elbo", data, 0).value.mean().backward()
        optimizer.step()
    with torch.no_grad():
        moments = gaussian(family.eval().enc(data.x, data.cond))
        own, other = (
            kl_normal(*moments, family.enc.prior(Cond(labels=labels), len(data)))
            for labels in (data.cond.labels, 1 - data.cond.labels)
        )
    assert float((own < other).float().mean()) > 0.8
    assert float(other.mean() / own.mean()) > 2


@pytest.mark.parametrize("id", ["cvae", "vae-gan"])
def test_a_conditional_vae_draws_from_its_prior(id: str):
    family, cond = (
        conditional(id, **({"flow": 0} if id == "cvae" else {})).eval(),
        Cond(labels=torch.tensor([[1], [1]])),
    )
    torch.nn.init.normal_(family.enc.prior.out.weight)
    noise, z = Noise([3, 4]), Noise([3, 4]).draw("z", (4,))
    with torch.no_grad():
        mean, logvar = family.enc.prior(cond, 2)
        for temperature in (0.0, 0.5):
            drawn = list(family.sample(cond, noise, family.Options(temperature=temperature)))[-1].x
            torch.testing.assert_close(drawn, family.dec(mean + temperature * (logvar / 2).exp() * z, cond))


def test_a_flow_learns_latents_that_no_gaussian_has():
    """Latents of a class lie on two points; draws end there, by the condition, and between them where it is away."""
    torch.manual_seed(0)
    flow = LatentFlow(replace(SPEC, labels=(("d", 2),)), (2,), 32, told=True)
    eps = torch.randn(256, 2)
    torch.testing.assert_close(flow(eps, Cond()), eps * T_MAX, msg="before it has learnt, a draw is itself")
    points = torch.tensor([[[1.0, 1.0], [-1.0, -1.0]], [[1.0, -1.0], [-1.0, 1.0]]])  # class, point, place
    optimizer = torch.optim.Adam(flow.parameters(), lr=3e-3)
    for _ in range(400):
        labels, point = torch.randint(2, (64, 1)), torch.randint(2, (64,))
        cond = Cond(labels=labels).drop(0.2)
        optimizer.zero_grad()
        flow.loss(points[labels[:, 0], point], cond, 8).mean().backward()
        optimizer.step()
    with torch.no_grad():
        for label in (0, 1):
            drawn = flow(eps, Cond(labels=torch.full((256, 1), label)))
            apart = torch.cdist(drawn, points[label])
            assert float((apart.min(dim=1).values < 0.3).float().mean()) > 0.9
            assert 0.3 < float(apart.argmin(dim=1).float().mean()) < 0.7, "both of its points"
        free = flow(eps, Cond(labels=torch.full((256, 1), -1)))
        assert (torch.cdist(free, points.flatten(0, 1)).argmin(dim=1).bincount(minlength=4) > 20).all()
        zeros = Cond(labels=torch.zeros(256, 1, dtype=torch.long))
        hard, plain = flow(eps, zeros, guidance=3.0), flow(eps, zeros)
    assert float((torch.cdist(hard, points[0]).min(dim=1).values < 0.4).float().mean()) > 0.9
    assert float((hard - plain).abs().mean()) > 0.01


def test_guidance_pulls_latents_away_from_what_is_expected_without_a_condition(monkeypatch: pytest.MonkeyPatch):
    """Two classes around -3 and 3, as a prior knows: stronger guidance is farther out and less varied."""
    family = conditional("cvae", flow=64, z=1)

    def expected(cond: Cond, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
        labels = torch.full((rows, 1), -1) if cond.labels is None else cond.labels
        mean = torch.tensor([-3.0, 3.0, 0.0])[labels]
        return mean, torch.where(labels < 0, 2.2, -1.4)

    monkeypatch.setattr(family.enc, "expected", expected)
    optimizer = torch.optim.Adam(family.flow.parameters(), lr=3e-3)
    for _ in range(400):
        true = torch.randint(2, (256, 1))
        z = torch.where(true == 0, -3.0, 3.0) + 0.5 * torch.randn(256, 1)
        value = family.flow.loss(lifted(z, family.ground(256)), Cond(labels=true).drop(0.2)).mean()
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    ones = Cond(labels=torch.ones(512, 1, dtype=torch.long))
    with torch.no_grad():
        plain, hard = (
            family.place(torch.randn(512, 1), ones, family.Options(guidance=guidance)) for guidance in (1.0, 3.0)
        )
    assert 2.5 < float(plain.mean()) < 3.5
    assert 2.8 < float(hard.mean()) < 4.5
    assert float(hard.std()) < 0.8 * float(plain.std())


def test_a_flow_beside_a_vae_without_conditions_teaches_its_encoder_nothing():
    def slope(weight: float) -> torch.Tensor:
        torch.manual_seed(3)
        family = vae(flow=16).train()
        torch.nn.init.normal_(family.flow.out.weight)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sojourn.families.vae.FLOW_WEIGHT", weight)
            torch.manual_seed(5)
            family.loss("elbo", kinds(), 0).value.mean().backward()
        return torch.cat([p.grad.flatten() for p in family.enc.parameters() if p.grad is not None])

    torch.testing.assert_close(slope(0.0), slope(1.0))


def test_draws_of_a_vae_come_through_its_flow_and_its_gradients_stay_its_own():
    family, data = conditional("cvae", flow=16, label_drop=0.0).train(), kinds()
    family.loss("elbo", data, 0).value.mean().backward()
    ours = [p.grad.clone() for net in (family.enc, family.dec) for p in net.parameters() if p.grad is not None]
    assert all(p.grad is not None for p in family.flow.out.parameters())
    plain = conditional("cvae", flow=0, label_drop=0.0).train()
    plain.load_state_dict({k: v for k, v in family.state_dict().items() if not k.startswith("flow.")})
    torch.manual_seed(5)
    first = family.loss("elbo", data, 0).logs
    torch.manual_seed(5)
    assert float(first["loss/recon"].mean()) == float(plain.loss("elbo", data, 0).logs["loss/recon"].mean())
    assert ours
    torch.nn.init.normal_(family.flow.out.bias)
    noise, cond = Noise([3, 4]), Cond(labels=torch.tensor([[1], [0]]))
    with torch.no_grad():
        draw = family.flow(noise.draw("z", (4,)), cond, 2.0)
        wanted = family.eval().dec(placed(draw, family.enc.expected(cond.null(), 2)), cond)
        got = list(family.sample(cond, noise, family.Options(guidance=2.0)))[-1].x
    torch.testing.assert_close(got, wanted)


def test_guidance_is_an_option_only_where_there_is_a_flow():
    with_flow, without = conditional("cvae"), conditional("cvae", flow=0)
    assert "guidance" in with_flow.Options.model_fields
    assert "guidance" not in without.Options.model_fields


def test_a_flow_alone_wants_a_width():
    with pytest.raises(ConfigError, match="wants a flow"):
        vae(learns="flow")


def test_lifted_undoes_placed():
    z, prior = torch.randn(3, 4), (torch.randn(3, 4), torch.randn(3, 4))
    torch.testing.assert_close(lifted(placed(z, prior), prior), z)
    assert lifted(z, None) is z


@pytest.mark.parametrize(("id", "phase"), [("cvae", "elbo"), ("vae-gan", "enc"), ("vae-gan", "D"), ("vq-vae", "elbo")])
def test_a_conditional_vae_is_trained_without_its_condition_too(id: str, phase: str):
    data = kinds()
    values = []
    for drop, cond in ((1.0, data.cond), (0.0, Cond(labels=-torch.ones_like(data.cond.labels))), (0.0, data.cond)):
        family = conditional(id, label_drop=drop, **({} if id == "vq-vae" else {"anneal": 0})).train()
        torch.manual_seed(7)
        if not drop:
            torch.rand(len(data))  # what the drop draws
        values.append(family.loss(phase, replace(data, cond=cond), 0).value.detach().mean())
    torch.testing.assert_close(values[0], values[1])
    assert abs(float(values[2] - values[1])) > 1e-6
    share = (
        (conditional(id, label_drop=0.25).train().dropped(replace(data, cond=data.cond)).labels == -1).float().mean()
    )
    assert 0.15 < float(share) < 0.35


# Denoising


def test_a_denoising_vae_is_asked_for_the_clean_picture():
    torch.manual_seed(0)
    spec = DataSpec("image", (1, 8, 8))
    noisy = VAE(VAE.Config(**{**preset("denoising-vae", "tiny"), "corruption": 0.5}), spec).train()
    plain = VAE(VAE.Config(**{**preset("denoising-vae", "tiny"), "corruption": 0.0}), spec).train()
    plain.load_state_dict(noisy.state_dict())
    x = torch.rand(4, 1, 8, 8) * 2 - 1
    data = Batch(x, Cond(), torch.ones(4))
    torch.manual_seed(7)
    loss = noisy.loss("elbo", data, noisy.config.anneal)
    torch.manual_seed(7)
    mean, logvar = gaussian(noisy.enc(x + 0.5 * torch.randn_like(x), Cond()))
    out = noisy.dec(mean + (logvar / 2).exp() * torch.randn_like(mean), Cond())
    torch.testing.assert_close(loss.value, (out - x).square().mean((1, 2, 3)) / 2 + kl_normal(mean, logvar) / 64)
    noisy.eval(), plain.eval()
    torch.manual_seed(7)
    held_out = noisy.loss("elbo", data, 0).value
    torch.manual_seed(7)
    torch.testing.assert_close(plain.loss("elbo", data, 0).value, held_out)


# VAE/GAN


def vaegan(**changes: object) -> VAEGAN:
    torch.manual_seed(0)
    config = VAEGAN.Config(**{**preset("vae-gan", "tiny"), **changes})
    return VAEGAN(config, DataSpec("image", (3, 16, 16), labels=(("kind", 4),))).train()


def test_likeness_is_measured_in_the_middle_of_the_discriminator():
    family = vaegan()
    x, y = torch.randn(2, 5, 3, 16, 16)
    layers = list(family.D.body)
    a, b = x, y
    for layer in layers[: (len(layers) + 1) // 2]:
        a, b = layer(a), layer(b)
    assert a.shape[-1] > 1, "the features are still a map"
    torch.testing.assert_close(likeness(family.D.body, x, y), (a - b).square().mean((1, 2, 3)) / 2)
    assert float(likeness(family.D.body, x, x).detach().max()) == 0


def test_each_third_of_a_vaegan_has_its_own_loss():
    changes = {"similarity": 3.0, "pixels": 2.0, "beta": 0.5, "penalty": 0.0, "anneal": 0, "label_drop": 0.0}
    family = vaegan(conditional=True, **changes)
    torch.nn.init.normal_(family.enc.prior.out.weight)
    x = torch.rand(4, 3, 16, 16) * 2 - 1
    cond = Cond(labels=torch.tensor([[0], [1], [2], [3]]))
    data = Batch(x, cond, torch.ones(4))
    values = {}
    for phase in ("enc", "dec", "D"):
        torch.manual_seed(7)
        values[phase] = family.loss(phase, data, 0).value.detach()
    torch.manual_seed(7)
    mean, logvar = gaussian(family.enc(x, cond))
    again = family.dec(mean + (logvar / 2).exp() * torch.randn_like(mean), cond)
    prior = family.enc.prior(cond, 4)
    fresh = family.dec(prior[0] + (prior[1] / 2).exp() * torch.randn_like(mean), cond)
    like, pixels = likeness(family.D.body, again, x), (again - x).square().mean((1, 2, 3)) / 2
    kl = kl_normal(mean, logvar, prior) / x[0].numel()
    real, one, two = (family.D(v, cond) for v in (x, again, fresh))
    torch.testing.assert_close(values["enc"], (like + 2 * pixels + 0.5 * kl).detach())
    fooled = (F.softplus(-one) + F.softplus(-two)) / 2
    torch.testing.assert_close(values["dec"], (3 * like + 2 * pixels + fooled).detach())
    judged = F.softplus(-real) + (F.softplus(one) + F.softplus(two)) / 2
    torch.testing.assert_close(values["D"], judged.detach())


def test_a_vaegan_reconstructs_through_its_latent():
    family = vaegan().eval()
    x = torch.rand(2, 3, 16, 16) * 2 - 1
    z = family.encode(x)
    assert z.shape == (2, 4)
    assert family.decode(z).shape == x.shape
    assert vaegan(latent="map").latent_shape == (4, 8, 8), "as a latent codec asks"


def test_one_number_of_the_latent_moves():
    family = vae(latent="flat").eval()
    noise = Noise(range(3))
    size = family.latent_shape[0]

    def drawn_with(**options: object) -> Tensor:
        return list(family.sample(Cond(), noise, AutoencoderOptions(**options)))[-1].x0

    z = noise.draw("z", family.latent_shape)
    z[:, 2] += 1.5
    assert torch.equal(drawn_with(direction=2, move=1.5), family.dec(z, Cond()))
    assert torch.equal(drawn_with(direction=2, move=0.0), drawn_with())
    with pytest.raises(InvalidInput, match=rf"direction {size} is outside 0\.\.{size - 1}"):
        drawn_with(direction=size, move=1.0)


def test_a_guided_walk_keeps_the_spread_that_draws_without_a_guide_have():
    flat = Guide("flat", energy=lambda x, cond: 0 * x.sum(1))
    noise, options = Noise(range(200)), AutoencoderOptions(temperature=0.5, steps=60, step_size=0.2)
    z = 0.5 * noise.draw("z", (8,))
    places = [step.x for step in drawn(lambda z: z, z, Cond(), [flat], noise, options)]
    assert len(places) == 60
    assert abs(float(places[-1].std()) - 0.5) < 0.05


def test_pictures_of_a_vae_gan_end_at_white_and_black() -> None:
    drawn_far = vaegan().dec(50 * torch.randn(4, 4), Cond(labels=torch.zeros(4, 1, dtype=torch.long)))
    assert drawn_far.abs().max() <= 1
    assert drawn_far.std() > 0


def test_noise_of_a_batchs_spread_keeps_it_whole():
    assert not vae(noise=0.3).splittable
    assert vae().splittable


@pytest.mark.parametrize("widths", [(12, 24), (0, 8), (-8, 8)])
def test_widths_that_no_norm_divides_are_refused(widths: tuple[int, ...]):
    with pytest.raises(ValueError, match=r"widths\.0"):
        vae(widths=widths)
