"""Shortcut: a flow that also learns long strides, for walks of 1, 2, 4 ... steps with the guidance in them, and from
where its own walks go wrong. Strides sketch, the flow refines.

Start it from a trained flow: `sojourn train RECIPE --from PACKAGE`. Knows nothing about codecs or prompts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sojourn.diffusion.guidance import PromptGuide, SourceGuide, Strength, compose
from sojourn.diffusion.path import T_MAX, flow_sigmas, like
from sojourn.diffusion.samplers import dpmpp_2m, euler
from sojourn.families.base import BaseOptions
from sojourn.families.diffusion import FLOW, DiffusionOptions, Flow, FlowConfig, FlowOptions, Walk, bucketed
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step

LIMIT = 8.0
"""Largest v that strides are taught. Noise and samples of unit variance stay below; what a net tells itself can run
away."""
FLOW_STEPS = 20
"""Steps at least of a walk that strides do not know; of the walks that are learnt from."""
SKETCH = 4
"""Strides of a picture that is refined."""
STATES = 4
"""States of one walk that are learnt from: more cost less each and tell less."""
FAR = 0.6
"""Mean square from its sample at which the end of a walk is another one: the prompt fits several, none is taught."""
SOFT = 0.1
"""t^2 at which a state of a walk counts half: what is asked of v there grows as 1 / t."""


class ShortcutConfig(FlowConfig):
    """How a flow with strides is built."""

    prediction: Literal["v"] = "v"
    """What the net gives: v = eps - x0, or its mean over a stride."""
    strides: int = Field(4, ge=1, le=8)
    """Strides are 1, 1/2 ... 1/2^strides of the walk."""
    share: float = Field(0.25, gt=0, lt=1)
    """Share of a batch that learns strides; the rest learns the flow, but for what is `walked`."""
    guided: float = Field(3.0, ge=1, le=20)
    """Guidance that the strides have learnt, and of the walks that are learnt from. 1 = none."""
    walked: float = Field(0.0, ge=0, lt=1)
    """Share of a batch that learns, from states of the model's own walks, where they should have gone: for sets where
    a prompt names one sample. 0 = off."""


class ShortcutOptions(FlowOptions):
    """How a walk is drawn: in 1, 2, 4 ... steps by strides, as far as they were learnt, else as a flow's.

    Strides have one sampler and one spacing: `sampler` and `shift` are for walks without them.
    """

    steps: int = Field(4, ge=1, le=1000)
    """Noise levels of the walk; time grows with it. A walk from a picture takes the shortest strides, since it can
    start only at one of its levels; one away from a negative prompt, or with guidance in a part of the walk alone,
    takes 20 steps of the flow, since the strides know only the guidance away from nothing, everywhere."""
    refine: float = Field(0.0, ge=0, lt=1)
    """t from which on the flow draws what four of a walk's steps have sketched in strides; for walks of other numbers
    of steps than strides have. 0 = the flow draws from noise. Source: Meng et al. 2022 (SDEdit), alg. 1."""


@register(
    "family",
    "shortcut",
    presets={name: values for name, values in FLOW.items() if values.get("prediction", "v") == "v"},
    about="a flow that draws in 1 to 16 steps, tuned from a trained one",
    source="Frans et al. 2025 (shortcut models); Meng et al. 2023, sec. 3.1 (guidance in the weights)",
)
class Shortcut(Flow):
    """The net is told the stride as one label more: none for the flow itself, i for a stride of 1/2^i."""

    Config = ShortcutConfig
    Options = ShortcutOptions

    config: ShortcutConfig

    def __init__(self, config: ShortcutConfig, spec: DataSpec) -> None:
        super().__init__(config, replace(spec, labels=(*spec.labels, ("stride", config.strides + 1))))
        self.spec = spec
        nn.init.zeros_(self.net.cond.labels[-1].get_parameter("weight"))

    def predict(self, x: Tensor, level: Tensor, cond: Cond) -> Tensor:
        return self.velocity(x, level, cond, torch.full((len(level),), -1, device=x.device))

    def velocity(self, x: Tensor, t: Tensor, cond: Cond, stride: Tensor) -> Tensor:
        """The net's v at x (b, ...) and t (b,), for strides (b,) numbered by their halvings, -1 = none."""
        labels = cond.labels
        if labels is None:
            labels = torch.full((len(t), len(self.spec.labels)), -1, device=t.device)
        out: Tensor = self.net(x, t, replace(cond, labels=torch.cat([labels, stride[:, None]], dim=1)))
        return out

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        x0, config = batch.x, self.config
        cond = batch.cond.drop(config.drop) if self.training else batch.cond
        count, own = part(config.share, len(batch)), part(config.walked if self.training else 0.0, len(batch))
        own = min(own, len(batch) - count)
        rest = count + own
        eps = torch.randn_like(x0)
        plain = self.path.training(x0[rest:], eps[rest:], torch.rand(len(batch) - rest, device=x0.device))
        far, level, stride, target = self.strides(x0[:count], eps[:count], cond[:count])
        x, t, targets = [far, plain.input], [level, plain.level], [target, plain.target]
        weight = torch.ones(len(batch), device=x0.device)
        if own:
            mine = slice(count, rest)
            state, level, target, weight[mine], told = self.walked(x0[mine], eps[mine], batch.cond[mine])
            x.insert(1, state)
            t.insert(1, level)
            targets.insert(1, target)
            cond = Cond.cat([cond[:count], told, cond[rest:]])
        none = torch.full((len(batch) - count,), -1, device=x0.device)
        out = self.velocity(torch.cat(x), torch.cat(t), cond, torch.cat([stride, none]))
        error = weight * (out - torch.cat(targets)).square().flatten(1).mean(dim=1)  # (m,)
        logs = bucketed(error[rest:].detach(), plain.sigma, batch.weight[rest:])
        for name, rows in (("strides", error[:count]), ("walked", error[count:rest])):
            if len(rows):
                logs[f"loss/{name}"] = rows.mean().detach()
        return Loss(value=error, logs=logs)

    @torch.no_grad()
    def strides(self, x0: Tensor, eps: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Where strides begin (b, ...), at which t (b,), their numbers (b,), and the mean v of two half strides.

        The halves of the shortest are steps of the guided flow. Source: Frans et al. 2025, eq. 5 and alg. 1.
        """
        rows, deepest = len(x0), self.config.strides
        stride = torch.randint(deepest + 1, (rows,), device=x0.device)
        count = 2**stride
        t = T_MAX * (1 + (torch.rand(rows, device=x0.device) * count).floor().clamp(max=count - 1)) / count
        half = T_MAX / count / 2
        begin = (1 - like(t, x0)) * x0 + like(t, x0) * eps
        first = self.halfway(begin, t, cond, stride)
        second = self.halfway(begin - like(half, x0) * first, t - half, cond, stride)
        return begin, t, stride, ((first + second) / 2).clamp(-LIMIT, LIMIT)

    @torch.no_grad()
    def walked(self, x0: Tensor, eps: Tensor, cond: Cond) -> tuple[Tensor, Tensor, Tensor, Tensor, Cond]:
        """States (b, ...) of own walks for the first of cond's rows, at t (b,), the v from there to x0, how much each
        counts (b,), and its condition.

        A noised sample shows what it shall be. A walk shows what the net has made so far, and what went wrong early
        is kept to its end. Source: Ross et al. 2011 (a learner's own states); Ning et al. 2023, sec. 3.
        """
        walks = math.ceil(len(x0) / STATES)
        sigmas = flow_sigmas(FLOW_STEPS).to(x0.device)
        denoise = compose(self.path.denoiser(self.predict), (), Strength(self.config.guided))
        steps = list(dpmpp_2m(denoise, sigmas[0] * eps[:walks], sigmas, cond[:walks], Noise(())))
        # As many states of each walk as there is room for, at random, all but its end.
        level = torch.rand(walks, FLOW_STEPS - 1).argsort(dim=1)[:, :STATES].T.flatten()[: len(x0)]
        row = torch.arange(walks).repeat(STATES)[: len(x0)]
        x = torch.stack([step.x for step in steps[:-1]])[level, row]
        sigma = sigmas[1 + level]
        t, x_t = sigma / (1 + sigma), x / like(1 + sigma, x)
        near = (steps[-1].x - x0[:walks]).square().flatten(1).mean(dim=1) < FAR
        return x_t, t, (x_t - x0[row]) / like(t, x), near[row] * t.square() / (t.square() + SOFT), cond[row]

    def halfway(self, x: Tensor, t: Tensor, cond: Cond, stride: Tensor) -> Tensor:
        """v of the first half of strides: that of the next shorter one, or of the guided flow."""
        deepest, guided = self.config.strides, self.config.guided
        v = self.velocity(x, t, cond, torch.where(stride < deepest, stride + 1, -1)).float()
        rows = (stride == deepest).nonzero()[:, 0]
        if guided != 1 and len(rows):
            empty = self.velocity(x[rows], t[rows], cond[rows].null(), torch.full_like(rows, -1))
            v[rows] = empty + guided * (v[rows] - empty)
        return v

    @torch.no_grad()
    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        assert isinstance(options, ShortcutOptions)
        count = min(SKETCH, 2**self.config.strides)
        begun = unknown(options, guides) or any(isinstance(guide, SourceGuide) for guide in guides)
        if not options.refine or begun or options.steps <= count or not self.flows(options.steps):
            yield from super().sample(cond, noise, options, guides)
            return
        for sketch in super().sample(cond, noise, options.model_copy(update={"steps": count}), guides):
            yield sketch
        walk = super().walk(options, guides)
        levels = flow_sigmas(options.steps - count, options.shift or self.config.shift, options.refine)
        x = sketch.x0 + levels[0] * noise.draw("refine", self.spec.shape).to(sketch.x0)
        yield from walk.sampler(compose(walk.denoise, guides, walk.strength), x, levels, cond.to(x.device), noise)

    def flows(self, steps: int) -> bool:
        """Whether so many steps are the flow's, for strides have other numbers."""
        return bool(steps & (steps - 1)) or steps > 2**self.config.strides

    def walk(self, options: DiffusionOptions, guides: Sequence[Guide] = ()) -> Walk:
        assert isinstance(options, ShortcutOptions)
        steps, config = options.steps, self.config
        if any(isinstance(guide, SourceGuide) for guide in guides):
            steps = max(steps, 2**config.strides)
        if unknown(options, guides) or (self.flows(steps) and options.refine):
            return super().walk(options.model_copy(update={"steps": max(steps, FLOW_STEPS)}), guides)
        if self.flows(steps):
            return super().walk(options, guides)
        number = steps.bit_length() - 1

        def net(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return self.velocity(x, t, cond, torch.full((len(t),), number, device=t.device))

        guidance = options.guidance / config.guided
        strength = Strength(guidance, colours=options.colour_weight, labels=options.label_weight)
        return Walk(self.path.denoiser(net), strength, flow_sigmas(steps), euler)


def unknown(options: DiffusionOptions, guides: Sequence[Guide]) -> bool:
    """Whether strides do not know the guidance: they have learnt that away from nothing, all along."""
    bounded = options.guidance_low > 0 or options.guidance_high is not None
    return bounded or any(isinstance(guide, PromptGuide) and guide.away is not None for guide in guides)


def part(share: float, count: int) -> int:
    """So many of count rows, by chance where the batch is small: a micro-batch of two must not be half of strides."""
    return int(share * count + float(torch.rand(()))) if share else 0
