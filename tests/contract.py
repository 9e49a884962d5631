"""What every family must hold, as plain functions: run on all families, and on planted bugs, which must fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from sojourn import registry
from sojourn.families.base import Family, Phase
from sojourn.types import Batch, Cond, DataSpec, Loss, Noise, Step

ROWS = 6


def spec_for(id: str) -> DataSpec:
    """A small specification that the family accepts: text for those that read tokens, else labelled pictures."""
    kinds = registry.get("family", id).cls.kinds
    if "image" in kinds:
        return DataSpec("image", (1, 8, 8), labels=(("class", 5),))
    return DataSpec("text", (12,), vocab=40)


def make(id: str, seed: int = 0) -> Family:
    """Family `id` in preset "tiny", every parameter moved off its start so that zero-initialised layers live."""
    entry = registry.get("family", id)
    torch.manual_seed(seed)
    family: Family = entry.cls(entry.cls.Config(**entry.presets["tiny"]), spec_for(id))
    return stir(family)


def stir(family: Family) -> Family:
    with torch.no_grad():
        for p in family.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return family


def batch_for(spec: DataSpec, rows: int = ROWS, seed: int = 1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    if spec.kind == "text":
        x = torch.randint(3, spec.vocab, (rows, *spec.shape), generator=generator)
        length = torch.randint(4, spec.shape[0] + 1, (rows,), generator=generator)
        x = torch.where(torch.arange(spec.shape[0])[None] < length[:, None], x, 0)
        target = torch.nn.functional.normalize(torch.randn(rows, 512, generator=generator), dim=1)
        return Batch(x, Cond(pooled=target), torch.ones(rows), length=length, ids=tuple(map(str, range(rows))))
    x = torch.rand((rows, *spec.shape), generator=generator) * 2 - 1
    return Batch(x, cond_for(spec, rows), torch.ones(rows), ids=tuple(map(str, range(rows))))


def cond_for(spec: DataSpec, rows: int) -> Cond:
    if not spec.labels:
        return Cond()
    return Cond(labels=torch.stack([torch.arange(rows) % count for _, count in spec.labels], dim=1))


GROWN = 1_000_000
"""Samples after which every term that grows in counts in full."""


def loss_of(family: Family, phase: Phase, batch: Batch, seed: int = 3) -> Loss:
    torch.manual_seed(seed)
    return family.loss(phase.name, batch, phase.start + GROWN)


def check_loss(family: Family) -> None:
    """One finite value per sample, in every phase."""
    batch = batch_for(family.spec)
    for phase in family.phases():
        loss = loss_of(family, phase, batch)
        assert loss.value.shape == (ROWS,), f"{phase.name}: loss has shape {tuple(loss.value.shape)}"
        assert torch.isfinite(loss.value).all(), f"{phase.name}: loss is not finite"


def gradients(family: Family, phase: Phase, batches: list[Batch], seed: int = 3) -> dict[str, Tensor | None]:
    """Gradient of sum(w * value * units) / sum(w * units) of one phase, by parameter name, as the loop forms it."""
    family.zero_grad(set_to_none=True)
    chosen = {id(p) for net in phase.nets for p in family.get_submodule(net).parameters()}
    for p in family.parameters():
        p.requires_grad_(id(p) in chosen)
    total = 0.0
    for batch in batches:
        loss = loss_of(family, phase, batch, seed)
        share = batch.weight * loss.units
        (loss.value * share).sum().backward()
        total += float(share.sum())
    return {name: None if p.grad is None else p.grad / total for name, p in family.named_parameters()}


def check_reach(family: Family) -> None:
    """Each phase reaches parameters of its nets and no other, all of them in one of the phases of the same nets.

    Not in each: a gradient penalty cannot move by the bias of a last layer. Every parameter belongs to some phase.
    """
    batch = batch_for(family.spec)
    missed: dict[tuple[str, ...], set[str]] = {}
    covered: set[str] = set()
    for phase in family.phases():
        grads = gradients(family, phase, [batch])
        wanted = {f"{net}.{name}" for net in phase.nets for name, _ in family.get_submodule(net).named_parameters()}
        reached = {name for name, grad in grads.items() if grad is not None and grad.abs().sum() > 0}
        assert reached, f"{phase.name} reaches nothing"
        assert reached <= wanted, f"{phase.name}: {sorted(reached - wanted)} are not of the nets of the phase"
        missed[phase.nets] = missed.get(phase.nets, wanted) - reached
        covered |= wanted
    for nets, names in missed.items():
        assert not names, f"{', '.join(nets)}: {sorted(names)} differ from the nets of the phase, none reaches them"
    missing = {name for name, _ in family.named_parameters()} - covered
    assert not missing, f"no phase trains {sorted(missing)}"


def check_rows_apart(family: Family) -> None:
    """A sample's loss does not depend on its batch-mates: weights 0 and 1 are the subset, given the same draws.

    The draws come from torch's generator for the whole batch, so the first rows keep theirs when rows at the end
    change; the contract is that a row of weight 0 leaves no trace in the gradient.
    """
    if not family.splittable:
        return
    batch = batch_for(family.spec)
    other = batch_for(family.spec, seed=9)
    mixed = replace(batch, x=torch.cat([batch.x[:3], other.x[3:]]))
    if batch.length is not None and other.length is not None:
        mixed = replace(mixed, length=torch.cat([batch.length[:3], other.length[3:]]))
    weight = torch.tensor([1.0, 1, 1, 0, 0, 0])
    for phase in family.phases():
        a = gradients(family, phase, [replace(batch, weight=weight)])
        b = gradients(family, phase, [replace(mixed, weight=weight)])
        for name, grad in a.items():
            if grad is not None:
                torch.testing.assert_close(
                    grad, b[name], rtol=2e-3, atol=1e-5, msg=f"{phase.name}: {name} sees weight-0 rows"
                )


def check_sample(family: Family, like: Callable[[Step], None] | None = None) -> None:
    """Sample i depends on seed i alone, has the shape of the data, and the walk ends done."""
    if "sample" not in family.can:
        return
    family.eval()
    options = family.Options()
    with torch.no_grad():
        torch.manual_seed(0)
        cond = cond_for(family.spec, 4)
        whole = list(family.sample(cond, Noise([10, 11, 12, 13]), options))[-1]
        torch.manual_seed(1)  # the global generator must not matter
        alone = list(family.sample(cond[2:3], Noise([12]), options))[-1]
        again = list(family.sample(cond, Noise([10, 11, 12, 13]), options))[-1]
        other = list(family.sample(cond, Noise([20, 21, 22, 23]), options))[-1]
    if family.spec.kind == "text":
        n = min(whole.x0.shape[1], alone.x0.shape[1])
        assert torch.equal(whole.x0[2, :n], alone.x0[0, :n]), "sample i depends on its batch"
        assert torch.equal(whole.x0, again.x0), "the same seeds give another sample"
        return
    assert whole.x0.shape == (4, *family.spec.shape), f"sample has shape {tuple(whole.x0.shape)}"
    assert torch.isfinite(whole.x0).all(), "sample is not finite"
    torch.testing.assert_close(whole.x0[2], alone.x0[0], rtol=1e-4, atol=1e-4, msg="sample i depends on its batch")
    assert torch.equal(whole.x0, again.x0), "the same seeds give another sample"
    assert not torch.allclose(whole.x0, other.x0), "another seed gives the same sample"
    assert bool(whole.done.all()), "the walk ends undone"


def check_state(family: Family) -> None:
    """state_dict carries everything: a fresh copy with other weights samples the same after loading it."""
    fresh = copy.deepcopy(family)
    with torch.no_grad():
        for value in [*fresh.parameters(), *fresh.buffers()]:
            if value.is_floating_point():
                value.add_(1)
    for phase in family.phases():  # let running statistics move first
        loss_of(family.train(), phase, batch_for(family.spec))
        family.after(phase.name, {})
    fresh = type(family)(family.config, family.spec)
    fresh.load_state_dict(family.state_dict())
    if "sample" not in family.can:
        return
    with torch.no_grad():
        outs = [list(f.eval().sample(cond_for(f.spec, 2), Noise([1, 2]), f.Options()))[-1].x0 for f in (family, fresh)]
    assert torch.equal(*outs), "save and load change the sample"


CLAUSES = (check_loss, check_reach, check_rows_apart, check_sample, check_state)
