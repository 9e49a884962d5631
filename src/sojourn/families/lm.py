"""Language models: a transformer that walks token by token. Knows nothing about tokenizers or strings.

Reads token ids in the numbering of codecs/text.py: pad, begin, end, then ordinary tokens. Tokens of kind "codes" are a
picture's (codecs/codes.py): always as many, and none says where it ends.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from sojourn.codecs.text import BOS, EOS, PAD
from sojourn.errors import ConfigError, InvalidInput
from sojourn.families.base import BaseConfig, BaseOptions, Family, Phase, finished
from sojourn.nets.transformer import CausalLM
from sojourn.registry import register
from sojourn.types import Batch, Cond, DataSpec, Guide, Loss, Noise, Step

Rule = Callable[[Tensor, Tensor, Cond], Tensor]
ENERGY_CANDIDATES = 8
"""Candidates per sample when an energy guide is given and nothing is said about their number."""


class LMConfig(BaseConfig):
    """Size and shape of the transformer."""

    width: int = Field(256, ge=8, le=8192)
    """Features per token, 8..8192, a multiple of 2 * heads."""
    depth: int = Field(4, ge=1, le=96)
    """Blocks, 1..96."""
    heads: int = Field(4, ge=1, le=128)
    """Attention heads, 1..128."""
    hidden: int = Field(0, ge=0, le=32768)
    """Features inside the gated feed-forward. 0 = 8/3 of the width."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Share of features dropped in training, 0..1. 0 = off."""
    cond_dropout: float = Field(0.1, ge=0, le=1)
    """Share of training rows whose labels are hidden, 0..1; guidance needs it. 0 = off."""


class LMOptions(BaseOptions):
    """How tokens are chosen."""

    temperature: float = Field(1.0, ge=0, le=10)
    """Divides the logits, 0..10. 1 = the model's own; 0 = always the likeliest token."""
    top_k: int = Field(0, ge=0)
    """Choose among this many likeliest tokens. 0 = off."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Choose among the likeliest tokens that hold this share of the probability, 0..1. 1 = off."""
    max_tokens: int | None = Field(None, ge=1)
    """New tokens per sample at most. None = as many as the model's length holds."""
    repetition: float = Field(1.0, ge=1, le=10)
    """How much less likely a token becomes once it occurred, 1..10. 1 = off."""
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    """Taken off the logit of a token once it was drawn, -2..2. 0 = off."""
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    """Taken off the logit of a token for each time it was drawn, -2..2. 0 = off."""
    guidance: float = Field(1.0, ge=0, le=100)
    """How hard prompt and labels pull, 0..100, at twice the cost. 1 = off."""
    best_of: int | None = Field(None, ge=1, le=64)
    """Candidates per sample, 1..64: the best by energy guides, else the likeliest per token, is kept.
    None = 1, or 8 with an energy guide."""


@dataclass
class Rows:
    """Where a walk stands. A row of candidate j of sample i is at j * samples + i."""

    x: Tensor  # (r, length) long, padded at the right
    at: Tensor  # (r,) long, where the next token goes
    limit: Tensor  # (r,) long, where a row must end
    done: Tensor  # (r,) bool
    score: Tensor  # (r,) sum of the log-probabilities of the drawn tokens, in nats
    drawn: Tensor  # (r,) long, number of drawn tokens

    def counts(self, vocab: int) -> Tensor:
        """How often each token was drawn, (r, vocab): those of the prompt do not count."""
        place = torch.arange(self.x.shape[1], device=self.x.device)
        drawn = (place >= (self.at - self.drawn)[:, None]) & (place < self.at[:, None])  # (r, length)
        return torch.zeros(len(self.x), vocab, device=self.x.device).scatter_add_(1, self.x, drawn.float())


@register(
    "family",
    "lm",
    presets={
        "tiny": {"width": 32, "depth": 2, "heads": 2},
        "small": {"width": 256, "depth": 4, "heads": 4},
        "base": {"width": 384, "depth": 8, "heads": 6, "dropout": 0.1},
    },
    about="Decoder-only transformer that writes text token by token",
    source="Radford et al. 2019; Su et al. 2021 (RoPE); Shazeer 2020 (SwiGLU); Zhang and Sennrich 2019 (RMSNorm)",
)
class LM(Family):
    """Next-token prediction, and sampling with a memory of keys and values."""

    Config = LMConfig
    Options = LMOptions
    kinds = frozenset({"text", "codes"})
    guides = frozenset({"logits", "energy"})
    bf16 = True

    def __init__(self, config: LMConfig, spec: DataSpec) -> None:
        super().__init__(config, spec)
        if spec.kind not in self.kinds or spec.vocab <= EOS + 1:
            raise ConfigError(
                "a language model needs text with a fitted vocabulary, found kind {kind} with {vocab} tokens",
                kind=spec.kind, vocab=spec.vocab,
            )  # fmt: skip
        if config.width % (2 * config.heads):
            raise ConfigError(
                "width {width} is not a multiple of {wanted} (2 * heads)", width=config.width, wanted=2 * config.heads
            )
        self.cond_dropout = config.cond_dropout
        self.length = spec.shape[0]
        hidden = config.hidden or -(-config.width // 3) * 8
        self.net = CausalLM(spec, config.width, config.depth, config.heads, hidden, config.dropout)

    def phases(self) -> list[Phase]:
        return [Phase("lm", ("net",))]

    def loss(self, phase: str, batch: Batch, seen: int) -> Loss:
        """Mean cross entropy per predicted token of each row, in nats; units are the predicted tokens (b,)."""
        x = batch.x
        last = batch.length if batch.length is not None else _lengths(x)  # (b,)
        x = x[:, : max(int(last.max()), 2)]
        real = torch.arange(1, x.shape[1], device=x.device)[None] < last[:, None]  # (b n-1): is there a next token
        cond = batch.cond.drop(self.cond_dropout) if self.training else batch.cond
        logits = self.net(x[:, :-1], cond, keep=real)  # (m vocab)
        loss = torch.zeros(real.shape, device=x.device)
        loss[real] = F.cross_entropy(logits.float(), x[:, 1:][real], reduction="none")
        units = real.sum(dim=1)
        value = loss.sum(dim=1) / units.clamp(min=1)
        return Loss(value, {"loss/lm": value.detach()}, units)

    @torch.no_grad()
    def sample(self, cond: Cond, noise: Noise, options: BaseOptions, guides: Sequence[Guide] = ()) -> Iterator[Step]:
        """Walk token by token; x0 (b, length) is the prompt and what follows, padded at the right.

        The prompt is the ordinary tokens of `cond.tokens`; specials among them are left out, begin comes first.
        Steps show the first candidate, the last one the best. Raises InvalidInput for a prompt without room after it.
        """
        assert isinstance(options, LMOptions)
        self.check_guides(guides)
        rules = [guide.logits for guide in guides if guide.logits is not None]
        energies = [guide.energy for guide in guides if guide.logits is None and guide.energy is not None]
        copies = options.best_of or (ENERGY_CANDIDATES if energies else 1)
        if energies and copies == 1:
            raise InvalidInput("an energy guide chooses among candidates; best_of is 1, give 2 at least")
        samples = len(noise)
        device = self.net.embed.weight.device
        cond = cond.to(device).repeat(copies)
        rows, left = self._start(cond, samples * copies, options)
        # Drawn whole and by name, so that neither the number of tokens nor the batch changes a row's draws.
        u = torch.cat([noise.uniform(f"tokens/{copy}", (self.length,)) for copy in range(copies)]).to(device)
        guided = options.guidance != 1 and cond.rows > 0
        given = cond
        if guided:
            free = torch.full_like(left, PAD)
            free[:, -1] = BOS
            left, given = torch.cat([left, free]), Cond.cat([cond, cond.null()])
        pad = (left == PAD).sum(dim=1)
        memory = self.net.memory(pad, left.shape[1] + int((rows.limit - rows.at).max()))
        token = left
        for step in range(self.length):
            keep = torch.zeros_like(token, dtype=torch.bool)
            keep[:, -1] = True
            logits = self.net(token, given, keep=keep, memory=memory)  # (r or 2r, vocab)
            if guided:
                logits, base = logits.log_softmax(dim=-1).chunk(2)
                bent = base + options.guidance * (logits - base)
            else:
                bent = logits
            chosen = self._choose(bent, rows, cond, u[:, step], options, rules)
            _advance(rows, chosen, logits)
            if bool(rows.done.all()):
                break
            yield Step(
                x0=rows.x[:samples].clone(),
                x=rows.x[:samples].clone(),
                sigma=torch.zeros(samples, device=device),
                done=rows.done[:samples].clone(),
            )
            token = torch.cat([chosen, chosen])[:, None] if guided else chosen[:, None]
        if energies:
            # one candidate of every sample at a time: an energy may hold a row for each sample
            each = [(x, cond[: len(x)] if cond.rows else cond) for x in rows.x.chunk(copies)]
            badness = torch.cat([torch.stack([energy(x, c) for energy in energies]).sum(dim=0) for x, c in each])
        else:
            badness = -rows.score / rows.drawn
        best = badness.view(copies, samples).argmin(dim=0)  # (b,)
        yield finished(rows.x.view(copies, samples, -1)[best, torch.arange(samples, device=device)])

    @torch.no_grad()
    def logprobs(self, x: Tensor, cond: Cond) -> Tensor:
        """Log-probabilities of the token after each of x (b, n), (b, n, vocab), in nats: the model's own, unbent."""
        real = torch.ones_like(x, dtype=torch.bool)
        logits: Tensor = self.net(x, cond.to(x.device), keep=real)  # (b * n, vocab)
        return logits.float().log_softmax(dim=-1).view(*x.shape, -1)

    def _start(self, cond: Cond, count: int, options: LMOptions) -> tuple[Rows, Tensor]:
        """The rows with their prompts, and the same prompts padded at the left, (r, longest)."""
        device = self.net.embed.weight.device
        x = torch.full((count, self.length), PAD, device=device)
        x[:, 0] = BOS
        at = torch.ones(count, dtype=torch.long, device=device)
        for row, given in enumerate(cond.tokens if cond.tokens is not None else ()):
            if cond.token_mask is not None:
                given = given[cond.token_mask[row]]
            given = given[given > EOS]
            if len(given) + 1 >= self.length:
                raise InvalidInput(
                    "the prompt has {found} tokens; this model reads {most} at most, shorten it",
                    found=len(given), most=self.length - 2,
                )  # fmt: skip
            x[row, 1 : len(given) + 1] = given
            at[row] = len(given) + 1
        longest = int(at.max())
        left = torch.full((count, longest), PAD, device=device)
        for row, n in enumerate(at.tolist()):
            left[row, longest - n :] = x[row, :n]
        limit = (at + (options.max_tokens or self.length)).clamp(max=self.length)
        nothing = torch.zeros(count, device=device)
        return Rows(x, at, limit, nothing.bool(), nothing, torch.zeros_like(at)), left

    def _choose(
        self,
        logits: Tensor,
        rows: Rows,
        cond: Cond,
        u: Tensor,
        options: LMOptions,
        rules: Sequence[Rule],
    ) -> Tensor:
        """The next token of each row (r,), from logits (r vocab) and one uniform number per row."""
        logits = penalise(logits, rows.x, options.repetition)
        if options.presence_penalty or options.frequency_penalty:
            counts = rows.counts(logits.shape[-1])
            logits -= options.presence_penalty * (counts > 0) + options.frequency_penalty * counts
        logits[:, [PAD, BOS, EOS] if self.spec.kind == "codes" else [PAD, BOS]] = -torch.inf
        for rule in rules:
            logits = rule(logits, rows.x, cond)
        if not bool((rows.done | torch.isfinite(logits.amax(dim=-1))).all()):
            raise InvalidInput("the guides leave no token to choose; loosen them")
        if options.temperature == 0:
            return logits.argmax(dim=-1)
        return pick(truncate(logits / options.temperature, options.top_k, options.top_p), u)


def penalise(logits: Tensor, tokens: Tensor, strength: float) -> Tensor:
    """A copy of logits (b vocab) in which ordinary tokens that occur in tokens (b n) are less likely.

    Source: Keskar et al. 2019 (CTRL), sec. 4.1, on log-probabilities, so that a shift of the logits changes nothing.
    """
    if strength == 1:
        return logits.clone()
    logits = logits.log_softmax(dim=-1)
    occurred = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, tokens, True)
    occurred[:, : EOS + 1] = False
    return torch.where(occurred, logits * strength, logits)


def truncate(logits: Tensor, top_k: int, top_p: float) -> Tensor:
    """Logits (b vocab) with all but the likeliest at -inf: the first k, then those that hold the share p.

    Source: Fan et al. 2018 (top-k); Holtzman et al. 2020, sec. 3.1 (nucleus). Ties with the last kept one are kept.
    """
    if 0 < top_k < logits.shape[-1]:
        least = logits.topk(top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < least, -torch.inf)
    if top_p < 1:
        ranked, order = logits.double().softmax(dim=-1).sort(dim=-1, descending=True)
        outside = ranked.cumsum(dim=-1) - ranked >= top_p  # the share before it is enough already
        logits = logits.masked_fill(torch.zeros_like(outside).scatter(1, order, outside), -torch.inf)
    return logits


def pick(logits: Tensor, u: Tensor) -> Tensor:
    """One token a row (b,) from logits (b vocab) by inversion of the distribution at u (b,) in [0, 1).

    In the order of the vocabulary, not of likelihood: a rounding error then moves an edge and swaps no two tokens.
    """
    edges = logits.double().softmax(dim=-1).cumsum(dim=-1)
    token = torch.searchsorted(edges, u.double()[:, None] * edges[:, -1:], right=True)[:, 0]
    likely = logits.shape[-1] - 1 - torch.isfinite(logits).flip(-1).long().argmax(dim=-1)  # the last possible one
    return torch.minimum(token, likely)


def _advance(rows: Rows, chosen: Tensor, logits: Tensor) -> None:
    """Append the chosen tokens (r,) to the rows that are not done, and note which are now."""
    going = ~rows.done
    where = torch.arange(len(chosen), device=chosen.device)[going]
    rows.x[where, rows.at[going]] = chosen[going]
    rows.score = rows.score + logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0] * going
    rows.drawn = rows.drawn + going
    rows.at = rows.at + going
    rows.done = rows.done | (chosen == EOS) | (rows.at >= rows.limit)


def _lengths(x: Tensor) -> Tensor:
    """Tokens per row of x (b n) up to the last that is not padding, (b,)."""
    place = torch.arange(1, x.shape[1] + 1, device=x.device)
    return ((x != PAD) * place).amax(dim=1)
