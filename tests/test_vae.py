"""Variational autoencoders: the KL term, and a decoder that learns alone to see through noise."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from sojourn.families.vae import VAE, kl_normal, roughness
from sojourn.types import Batch, Cond, DataSpec

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
