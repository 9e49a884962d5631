"""What tests of measuring share: features that cost nothing, features of a file, and what an evaluation said."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from sojourn.measure.bench import Findings
from sojourn.schema import Log


class Cheap:
    """Pixels as features: what is tested is not how good they are."""

    name = identity = "Cheap"

    def __call__(self, pictures: Tensor) -> Tensor:
        return pictures[:, 0].flatten(1)


def scripted(path: Path, net: nn.Module | None = None) -> Path:
    """A TorchScript file whose features are the pixels, or what `net` makes of pictures of 8 pixels."""
    made = torch.jit.trace(net or nn.Flatten(), torch.zeros(2, 3, 8, 8))  # type: ignore[no-untyped-call]
    made.save(str(path))
    return path


def measured(events: Iterable[object]) -> tuple[Findings, list[str]]:
    """The one Findings of an evaluation, and its lines."""
    found, said = None, []
    for event in events:
        if isinstance(event, Findings):
            found = event
        elif isinstance(event, Log):
            said.append(event.text)
    assert found is not None
    return found, said


def values(found: Findings) -> dict[str, float]:
    return {metric.name: metric.value for metric in found.metrics}
