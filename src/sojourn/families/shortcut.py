"""Shortcut: a flow that also learns long strides, for walks of 1, 2, 4 ... steps with the guidance in them.

Start it from a trained flow: `sojourn train RECIPE --from PACKAGE`. Knows nothing about codecs or prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from sojourn.diffusion.guidance import PromptGuide, SourceGuide, Strength
from sojourn.diffusion.path import T_MAX, flow_sigmas, like
from sojourn.diffusion.samplers import euler
from sojourn.families.diffusion import FLOW, DiffusionOptions, Flow, FlowConfig, FlowOptions, Walk, bucketed
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss

LIMIT = 8.0
"""Largest v that strides are taught. Noise and samples of unit variance stay below; what a net tells itself can run
away."""
FLOW_STEPS = 20
"""Steps at least of a walk that strides do not know."""


class ShortcutConfig(FlowConfig):
    """How a flow with strides is built."""

    prediction: Literal["v"] = "v"
    """What the net gives: v = eps - x0, or its mean over a stride."""
    strides: int = Field(4, ge=1, le=8)
    """Strides are 1, 1/2 ... 1/2^strides of the walk."""
    share: float = Field(0.25, gt=0, lt=1)
    """Share of a batch that learns strides; the rest learns the flow."""
    guided: float = Field(3.0, ge=1, le=20)
    """Guidance that the strides have learnt. 1 = none."""


class ShortcutOptions(FlowOptions):
    """How a walk is drawn: in 1, 2, 4 ... steps by strides, as far as they were learnt, else as a flow's.

    Strides have one sampler and one spacing: `sampler` and `shift` are for walks without them.
    """

    steps: int = Field(4, ge=1, le=1000)
    """Noise levels of the walk; time grows with it. A walk from a picture takes the shortest strides, since it can
    start only at one of its levels; one away from a negative prompt, or with guidance in a part of the walk alone,
    takes 20 steps of the flow, since the strides know only the guidance away from nothing, everywhere."""


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
        x0 = batch.x
        cond = batch.cond.drop(self.config.drop) if self.training else batch.cond
        # By chance where the batch is small: a micro-batch of two must not be half of strides.
        count = int(self.config.share * len(batch) + float(torch.rand(())))
        eps = torch.randn_like(x0)
        plain = self.path.training(x0[count:], eps[count:], torch.rand(len(batch) - count, device=x0.device))
        far, t, stride, target = self.strides(x0[:count], eps[:count], cond[:count])
        none = torch.full((len(batch) - count,), -1, device=x0.device)
        out = self.velocity(torch.cat([far, plain.input]), torch.cat([t, plain.level]), cond, torch.cat([stride, none]))
        error = (out - torch.cat([target, plain.target])).square().flatten(1).mean(dim=1)  # (m,)
        logs = bucketed(error[count:].detach(), plain.sigma, batch.weight[count:])
        if count:
            logs["loss/strides"] = error[:count].mean().detach()
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

    def halfway(self, x: Tensor, t: Tensor, cond: Cond, stride: Tensor) -> Tensor:
        """v of the first half of strides: that of the next shorter one, or of the guided flow."""
        deepest, guided = self.config.strides, self.config.guided
        v = self.velocity(x, t, cond, torch.where(stride < deepest, stride + 1, -1)).float()
        rows = (stride == deepest).nonzero()[:, 0]
        if guided != 1 and len(rows):
            empty = self.velocity(x[rows], t[rows], cond[rows].null(), torch.full_like(rows, -1))
            v[rows] = empty + guided * (v[rows] - empty)
        return v

    def walk(self, options: DiffusionOptions, guides: Sequence[Guide] = ()) -> Walk:
        steps, config = options.steps, self.config
        bounded = options.guidance_low > 0 or options.guidance_high is not None
        if bounded or any(isinstance(guide, PromptGuide) and guide.away is not None for guide in guides):
            return super().walk(options.model_copy(update={"steps": max(steps, FLOW_STEPS)}), guides)
        if any(isinstance(guide, SourceGuide) for guide in guides):
            steps = max(steps, 2**config.strides)
        if steps & (steps - 1) or steps > 2**config.strides:
            return super().walk(options, guides)
        number = steps.bit_length() - 1

        def net(x: Tensor, t: Tensor, cond: Cond) -> Tensor:
            return self.velocity(x, t, cond, torch.full((len(t),), number, device=t.device))

        return Walk(self.path.denoiser(net), Strength(options.guidance / config.guided), flow_sigmas(steps), euler)
