"""What every family is: a module with phases, a loss per phase, and a walk. Knows nothing about files or prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn

from sojourn.diffusion import langevin
from sojourn.errors import Unsupported
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step


@dataclass(frozen=True)
class Phase:
    """One kind of update: which nets it moves, and how often."""

    name: str
    nets: tuple[str, ...]
    """Names of child modules; only their parameters require gradients in this phase."""
    every: int = 1
    """In rounds. A lazy phase's loss is multiplied by it (StyleGAN2, appendix B)."""
    repeat: int = 1
    """Updates per round, each on a fresh batch."""
    start: int = 0
    """`seen` from which the phase runs."""
    stop: int | None = None
    """`seen` at which it ends. None = never."""
    lr: float = 1.0
    """Factor on the learning rate."""


Width = Annotated[int, Field(ge=8, le=4096, multiple_of=8)]
"""Channels of a resolution: group norms have eight groups."""


class BaseConfig(BaseModel):
    """How a net is built. Field docstrings give unit, range and off value."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True, frozen=True)


class BaseOptions(BaseConfig):
    """How to draw from a family."""


class LatentOptions(BaseOptions):
    """How to draw from a family that maps a latent to a sample in one step."""

    steps: int = Field(60, ge=1, le=1000)
    """Moves of the walk when a guide bends it; without one there is a single step."""
    step_size: float = Field(0.05, gt=0, le=10)
    """Length of the first moves, in the time of the prior's flow; each row then finds its own."""
    temperature: float = Field(1.0, ge=0, le=10)
    """Randomness of the guided walk: 1 samples, 0 goes to the nearest best place."""


class Family(nn.Module):
    """Base of all families. Children that train are attributes named in `phases`; frozen nets are not children."""

    Config: ClassVar[type[BaseConfig]] = BaseConfig
    Options: ClassVar[type[BaseOptions]] = BaseOptions
    can: ClassVar[frozenset[str]] = frozenset({"sample"})
    """Of "sample", "encode", "decode", "embed", "classify"."""
    kinds: ClassVar[frozenset[str]] = frozenset({"image"})
    """Kinds of DataSpec it is made for."""
    splittable: ClassVar[bool] = True
    """False when a loss needs its whole batch (minibatch statistics): the loop then refuses micro-batches."""
    bf16: ClassVar[bool] = False
    """Whether its losses hold with products in bf16; not every gradient penalty does."""
    averaged: ClassVar[tuple[str, ...]] = ()
    """Children whose moving average is what the package holds. () = all of the first phase's nets."""
    score: ClassVar[str] = "held_out/loss"
    """Held-out metric by which the best snapshot is chosen, lower is better: "held_out/loss" or "held_out/swd"."""
    keeps: ClassVar[Literal["best", "last"]] = "best"
    """Which snapshot is packaged: that of the best score, or the last, where the score says nothing of the samples."""
    told: bool = True
    """Whether classes and words of its spec change what it learns; without any there is nothing to tell."""
    guides: ClassVar[frozenset[str]] = frozenset()
    """Forms of Guide it can use: "denoise", "energy", "logits"."""

    def __init__(self, config: BaseConfig, spec: DataSpec) -> None:
        super().__init__()
        self.config = config
        self.spec = spec

    def grow(self, source: Family) -> None:
        """Begin as `source` is, whose weights were taken over: what is new here is not to spoil what it can."""

    def once(self, x: Tensor) -> Tensor:
        """What losses need of samples x (b ...), where it is the same at every visit: with `cache` computed once."""
        return x

    def phases(self) -> list[Phase]:
        raise NotImplementedError

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        """Loss of one phase, one value per sample. Random draws come from torch's global generator."""
        raise NotImplementedError

    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        """Walk from noise to samples, one per seed of `noise`; the last Step is the result.

        cond has len(noise) rows, or none at all. Raises Unsupported for a guide without a usable form.
        """
        raise Unsupported("this family cannot sample; it can {can}", can=", ".join(sorted(self.can)))

    def after(self, phase: str, stats: Mapping[str, Tensor]) -> None:
        """Take the summed statistics of a phase's micro-batches; called after its optimizer step."""

    def encode(self, x: Tensor) -> Tensor:
        """Model space to latent, deterministic. Only if "encode" in can."""
        raise Unsupported("this family cannot encode; it can {can}", can=", ".join(sorted(self.can)))

    def decode(self, z: Tensor) -> Tensor:
        """Latent to model space, deterministic, differentiable. Only if "decode" in can."""
        raise Unsupported("this family cannot decode; it can {can}", can=", ".join(sorted(self.can)))

    def embed(self, x: Tensor, length: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (b, n), real lengths (b,) to (pooled (b, d), features (b, n, d)). For text, if "embed" in can."""
        raise Unsupported("this family cannot embed; it can {can}", can=", ".join(sorted(self.can)))

    def embed_pictures(self, x: Tensor) -> Tensor:
        """Pictures in model space to unit vectors (b, d), near `embed_words` of their words. If "embed" in can."""
        raise Unsupported("this family cannot embed; it can {can}", can=", ".join(sorted(self.can)))

    def embed_words(self, cond: Cond, rows: int) -> Tensor:
        """Conditions to unit vectors (b, d). For pictures, if "embed" in can."""
        raise Unsupported("this family cannot embed; it can {can}", can=", ".join(sorted(self.can)))

    def logprobs(self, x: Tensor, cond: Cond) -> Tensor:
        """Tokens (b, n) to log-probabilities of the token after each, (b, n, vocab), in nats. For text that samples."""
        raise Unsupported("this family does not write; it can {can}", can=", ".join(sorted(self.can)))

    def classify(self, x: Tensor) -> list[Tensor]:
        """Model space to logits, (b, classes) for each label column. Only if "classify" in can."""
        raise Unsupported("this family cannot classify; it can {can}", can=", ".join(sorted(self.can)))

    def check_guides(self, guides: Sequence[Guide]) -> None:
        """Raise Unsupported for the first guide that has no form this family can use."""
        for guide in guides:
            if not any(getattr(guide, form) is not None for form in self.guides):
                raise Unsupported(
                    'guide "{guide}" has no form that {family} can use',
                    guide=guide.name,
                    family=type(self).__name__,
                )


def finished(x: Tensor) -> Step:
    """The last step of a walk that ends at x."""
    rows = x.shape[0]
    return Step(x0=x, x=x, sigma=torch.zeros(rows), done=torch.ones(rows, dtype=torch.bool))


def drawn(
    decode: Callable[[Tensor], Tensor],
    z: Tensor,
    cond: Cond,
    guides: Sequence[Guide],
    noise: Noise,
    options: LatentOptions,
) -> Iterator[Step]:
    """One Step from the latent z (b, ...); with energies among the guides, a walk in z of every decoded place."""
    energies = [guide.energy for guide in guides if guide.energy is not None]
    if not energies:
        with torch.no_grad():
            x = decode(z)
        yield finished(x)
        return
    size, heat = options.step_size, options.temperature**2  # draws of that spread have its square for a variance
    yield from langevin.walk(decode, z, cond, energies, noise, steps=options.steps, step_size=size, temperature=heat)
