"""Every registered family x "tiny" holds every clause; and each kind of planted bug is caught by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import contract
import pytest
import torch
from torch import Tensor, nn

from sojourn import registry
from sojourn.families.base import BaseConfig, BaseOptions, Family, Phase, finished
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step


@pytest.mark.parametrize("clause", contract.CLAUSES, ids=lambda clause: clause.__name__)
@pytest.mark.parametrize("id", registry.ids("family"))
def test_family_holds(id: str, clause) -> None:
    clause(contract.make(id))


class Toy(Family):
    """A linear decoder trained on matching its input; the smallest family that holds every clause."""

    Config, Options = BaseConfig, BaseOptions

    def __init__(self, config: BaseConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        size = 1
        for side in spec.shape:
            size *= side
        self.net = nn.Linear(size, size)

    def phases(self) -> list[Phase]:
        return [Phase("fit", ("net",))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        x = batch.x.flatten(1)
        return Loss((self.net(x + 0.1 * torch.randn_like(x)) - x).square().mean(1))

    def draw(self, noise: Noise) -> Tensor:
        return noise.draw("x", self.spec.shape)

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        yield finished(self.net(self.draw(noise).flatten(1)).view(-1, *self.spec.shape))


class GlobalRandom(Toy):
    def draw(self, noise: Noise) -> Tensor:
        return torch.randn(len(noise), *self.spec.shape)


class ScalarLoss(Toy):
    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        return Loss(super().loss(phase, batch, seen).value.mean())


class BatchLeak(Toy):
    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        value = super().loss(phase, batch, seen).value
        return Loss(value * value.mean())


class SampleLeak(Toy):
    def draw(self, noise: Noise) -> Tensor:
        x = super().draw(noise)
        return x - x.mean(0)


class UnregisteredState(Toy):
    def __init__(self, config: BaseConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.shift = torch.zeros(spec.shape)

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        self.shift = self.shift + batch.x.mean(0)
        return super().loss(phase, batch, seen)

    def draw(self, noise: Noise) -> Tensor:
        return super().draw(noise) + self.shift


class DeadNet(Toy):
    def __init__(self, config: BaseConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        self.other = nn.Linear(3, 3)

    def phases(self) -> list[Phase]:
        return [Phase("fit", ("net", "other"))]


class WrongShape(Toy):
    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        yield finished(self.net(self.draw(noise).flatten(1)))


class NotANumber(Toy):
    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        return Loss(super().loss(phase, batch, seen).value / 0.0 * 0.0)


def failing(cls: type[Family]) -> set[str]:
    out = set()
    for clause in contract.CLAUSES:
        torch.manual_seed(0)
        family = contract.stir(cls(BaseConfig(), DataSpec("image", (1, 8, 8))))
        try:
            clause(family)
        except (AssertionError, RuntimeError):
            out.add(clause.__name__)
    return out


def test_a_sound_family_passes() -> None:
    assert failing(Toy) == set()


@pytest.mark.parametrize(
    ("cls", "clause"),
    [
        (GlobalRandom, "check_sample"),
        (ScalarLoss, "check_loss"),
        (BatchLeak, "check_rows_apart"),
        (SampleLeak, "check_sample"),
        (UnregisteredState, "check_state"),
        (DeadNet, "check_reach"),
        (WrongShape, "check_sample"),
        (NotANumber, "check_loss"),
    ],
)
def test_a_planted_bug_is_caught(cls: type[Family], clause: str) -> None:
    assert clause in failing(cls)
