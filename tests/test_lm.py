"""The language model: causality, memory, loss, and a walk in which a row depends on its own seed and prompt alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sojourn.codecs.text import BOS, EOS, PAD
from sojourn.errors import ConfigError, InvalidInput, Unsupported
from sojourn.families.lm import LM, LMConfig, LMOptions, penalise, pick, truncate
from sojourn.nets.transformer import Memory, _columns
from sojourn.types import Batch, Cond, DataSpec, Guide, Noise, Step

LENGTH, VOCAB = 24, 40
A, B, C = 3, 4, 5


def model(seed: int = 0, labels: tuple[tuple[str, int], ...] = (), **config: object) -> LM:
    torch.manual_seed(seed)
    lm = LM(
        LMConfig(**{"width": 32, "depth": 2, "heads": 2, **config}),
        DataSpec("text", (LENGTH,), vocab=VOCAB, labels=labels),
    )
    with torch.no_grad():  # fresh weights are nearly uniform; spread them, so that a wrong position or mask shows
        for parameter in lm.parameters():
            if parameter.ndim == 2:
                parameter.mul_(8)
    return lm.eval()


def texts(rows: int, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Rows of begin, ordinary tokens and end, padded, of different lengths."""
    g = torch.Generator().manual_seed(seed)
    length = torch.randint(3, LENGTH + 1, (rows,), generator=g)
    x = torch.randint(A, VOCAB, (rows, LENGTH), generator=g)
    x[:, 0] = BOS
    x[torch.arange(rows), length - 1] = EOS
    x[torch.arange(LENGTH)[None] >= length[:, None]] = PAD
    return x, length


def batch(rows: int, cond: Cond | None = None, seed: int = 1) -> Batch:
    x, length = texts(rows, seed)
    return Batch(x, cond or Cond(), torch.ones(rows), length=length)


def prompts(*rows: Sequence[int]) -> Cond:
    """Prompts padded at the right, as a conditioner gives them."""
    width = max(map(len, rows))
    tokens = torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows])
    mask = torch.arange(width)[None] < torch.tensor([len(row) for row in rows])[:, None]
    return Cond(tokens=tokens, token_mask=mask)


def walk(lm: LM, cond: Cond, seeds: Sequence[int], guides: Sequence[Guide] = (), **options: object) -> list[Step]:
    return list(lm.sample(cond, Noise(seeds), LMOptions(**options), guides))


def draw(lm: LM, cond: Cond, seeds: Sequence[int], guides: Sequence[Guide] = (), **options: object) -> Tensor:
    return walk(lm, cond, seeds, guides, **options)[-1].x0


# the net


@torch.no_grad()
def test_a_position_sees_nothing_after_it() -> None:
    lm, (x, _) = model(), texts(3)
    before = lm.net(x, Cond())
    changed = x.clone()
    changed[:, 10:] = A
    after = lm.net(changed, Cond())
    assert torch.allclose(before[:, :10], after[:, :10], atol=1e-5)
    assert not torch.allclose(before[:, 10:], after[:, 10:], atol=1e-2)


@torch.no_grad()
def test_memory_gives_what_a_whole_reading_gives_for_rows_of_any_length() -> None:
    lm, (x, _) = model(), texts(4)
    x = torch.where(x == PAD, C, x)
    first = [9, 1, 5, 9]
    left = torch.full((4, 9), PAD)
    for row, n in enumerate(first):
        left[row, 9 - n :] = x[row, :n]
    memory = lm.net.memory(torch.tensor([9 - n for n in first]), 9 + 8)
    memory.keys.fill_(torch.nan)  # what is not written yet must not be read
    memory.values.fill_(torch.nan)
    token = left
    for step in range(8):
        found = lm.net(token, Cond(), memory=memory)[:, -1]
        for row, n in enumerate(first):
            wanted = lm.net(x[row : row + 1, : n + step], Cond())[0, -1]
            assert torch.allclose(found[row], wanted, atol=1e-4)
        token = torch.stack([x[row, n + step] for row, n in enumerate(first)])[:, None]


def test_a_first_reading_sees_itself_what_is_before_it_and_no_padding() -> None:
    place, mask = _columns(Memory(torch.tensor([2, 0]), torch.empty(0), torch.empty(0)), 4)
    assert place.tolist() == [[0, 0, 0, 1], [0, 1, 2, 3]]
    # A row of nothing is NaN in some kernels of attention, so padding sees itself.
    assert mask[0, 0].int().tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert mask[1, 0].int().tolist() == torch.ones(4, 4).tril().int().tolist()


@torch.no_grad()
def test_order_matters() -> None:
    lm = model()
    a, b = lm.net(torch.tensor([[BOS, A, B, C], [BOS, B, A, C]]), Cond())[:, -1]
    assert not torch.allclose(a, b, atol=1e-2)


# the loss


def test_loss_is_the_mean_cross_entropy_of_the_real_tokens() -> None:
    lm, data = model(), batch(5)
    loss = lm.loss("lm", data, 0)
    assert data.length is not None
    for row in range(5):
        n = int(data.length[row])
        logits = lm.net(data.x[row : row + 1, : n - 1], Cond())[0]
        wanted = F.cross_entropy(logits, data.x[row, 1:n])
        assert loss.value[row].item() == pytest.approx(wanted.item(), abs=1e-4)
    assert isinstance(loss.units, Tensor)
    assert loss.units.tolist() == (data.length - 1).tolist()
    assert torch.equal(loss.logs["loss/lm"], loss.value.detach())
    assert not loss.logs["loss/lm"].requires_grad


def test_length_is_found_where_it_is_not_given() -> None:
    lm, data = model(), batch(5)
    bare = Batch(data.x, data.cond, data.weight)
    assert torch.equal(lm.loss("lm", bare, 0).value, lm.loss("lm", data, 0).value)


def test_what_lies_past_the_length_does_not_count() -> None:
    lm, data = model(), batch(5)
    assert data.length is not None
    dirty = torch.where(torch.arange(LENGTH)[None] >= data.length[:, None], C, data.x)
    found = lm.loss("lm", Batch(dirty, data.cond, data.weight, length=data.length), 0)
    assert torch.allclose(found.value, lm.loss("lm", data, 0).value, atol=1e-5)


def test_a_row_without_a_next_token_costs_nothing_and_stays_finite() -> None:
    lm = model()
    x = torch.tensor([[BOS, PAD, PAD], [BOS, A, EOS]])
    loss = lm.loss("lm", Batch(x, Cond(), torch.ones(2)), 0)
    assert isinstance(loss.units, Tensor)
    assert loss.units.tolist() == [0, 2]
    assert loss.value[0].item() == 0
    assert torch.isfinite(loss.value).all()


def test_two_micro_batches_have_the_gradient_of_one() -> None:
    lm, data = model(), batch(6)
    weight = torch.tensor([1.0, 0.0, 2.0, 0.5, 1.0, 3.0])
    data = Batch(data.x, data.cond, weight, length=data.length)

    def gradient(parts: list[slice]) -> list[Tensor]:
        lm.zero_grad()
        done = [(lm.loss("lm", data[part], 0), weight[part]) for part in parts]
        total = sum((w * loss.units).sum() for loss, w in done)
        (sum((w * loss.value * loss.units).sum() for loss, w in done) / total).backward()  # type: ignore[union-attr]
        return [p.grad.clone() for p in lm.parameters() if p.grad is not None]

    for one, two in zip(gradient([slice(0, 6)]), gradient([slice(0, 2), slice(2, 6)]), strict=True):
        assert torch.allclose(one, two, atol=1e-5)


@pytest.mark.parametrize("labels", [(), (("style", 3), ("form", 2))])
def test_the_phase_reaches_every_parameter(labels: tuple[tuple[str, int], ...]) -> None:
    lm = model(labels=labels)
    cond = Cond(labels=torch.tensor([[0, 1], [2, -1], [-1, 0]])) if labels else Cond()
    lm.loss("lm", batch(3, cond), 0).value.sum().backward()
    (phase,) = lm.phases()
    assert phase.nets == tuple(dict(lm.named_children()))
    for name, parameter in lm.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_weights_come_back() -> None:
    one, two = model(0), model(1)
    assert not torch.equal(draw(one, Cond(), range(4)), draw(two, Cond(), range(4)))
    two.load_state_dict(one.state_dict())
    assert torch.equal(draw(one, Cond(), range(4)), draw(two, Cond(), range(4)))


@pytest.mark.parametrize(
    ("config", "spec", "message"),
    [
        ({}, DataSpec("image", (3, 8, 8)), "needs text with a fitted vocabulary, found kind image"),
        ({}, DataSpec("text", (8,)), "found kind text with 0 tokens"),
        ({"width": 36, "heads": 4}, DataSpec("text", (8,), vocab=9), r"width 36 is not a multiple of 8"),
    ],
)
def test_what_cannot_be_built_is_refused(config: dict[str, object], spec: DataSpec, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        LM(LMConfig(**config), spec)


# the walk

ROWS = ([BOS, A, B, C, 9, 8, 7], [], [BOS, 11], [BOS, 20, 21, 22])


@pytest.mark.parametrize("options", [{}, {"best_of": 3}, {"guidance": 2.0}, {"top_p": 0.8, "repetition": 1.3}])
def test_a_row_depends_on_its_own_seed_and_prompt_alone(options: dict[str, object]) -> None:
    lm, cond, seeds = model(), prompts(*ROWS), [5, 6, 7, 8]
    together = draw(lm, cond, seeds, **options)
    assert len({tuple(row) for row in together.tolist()}) == 4
    for row in range(4):
        alone = draw(lm, prompts(ROWS[row] or [PAD]), [seeds[row]], **options)
        assert alone[0].tolist() == together[row].tolist()
    turned = draw(lm, cond[torch.tensor([3, 1, 0, 2])], [8, 6, 5, 7], **options)
    assert torch.equal(turned, together[[3, 1, 0, 2]])
    assert not torch.equal(draw(lm, cond, [1, 2, 3, 4], **options), together)


def test_penalties_are_of_what_was_drawn() -> None:
    """Against the formula, by hand: OpenAI's logit - count * frequency - (count > 0) * presence."""
    lm = model()
    cond = prompts([BOS, A, A, A, B])
    options = {"temperature": 0, "presence_penalty": 0.4, "frequency_penalty": 0.7}
    drawn = draw(lm, cond, [1], **options)[0].tolist()
    given = 5
    assert len([token for token in drawn if token != PAD]) > given + 3
    for at in range(given, len(drawn)):
        if drawn[at] == PAD:
            break
        logits = lm.net(torch.tensor([drawn[:at]]), Cond())[0, -1].detach()
        for token in set(drawn[given:at]):
            logits[token] -= 0.4 + 0.7 * drawn[given:at].count(token)
        logits[[PAD, BOS]] = -torch.inf
        assert int(logits.argmax()) == drawn[at]
    assert drawn != draw(lm, cond, [1], temperature=0)[0].tolist()


def test_log_probabilities_are_those_of_the_loss() -> None:
    lm = model()
    x = torch.tensor([[BOS, A, B, C, EOS]])
    told = lm.logprobs(x[:, :-1], Cond())
    assert told.shape == (1, 4, lm.spec.vocab)
    assert torch.allclose(told.exp().sum(dim=-1), torch.ones(1, 4), atol=1e-5)
    own = -told.gather(2, x[:, 1:, None]).mean()
    assert torch.allclose(own, lm.eval().loss("lm", Batch(x, Cond(), torch.ones(1)), 0).value.mean(), atol=1e-5)


def test_a_row_starts_with_its_prompt_and_specials_in_it_are_left_out() -> None:
    lm = model()
    x = draw(lm, prompts([BOS, A, B, EOS], [C, C, C, C], []), [1, 2, 3])
    assert x[0, :3].tolist() == [BOS, A, B]
    assert x[1, :5].tolist() == [BOS, C, C, C, C]
    assert x[2, 0] == BOS
    assert torch.equal(x[2:], draw(lm, Cond(), [3]))
    hidden = Cond(tokens=torch.tensor([[BOS, A, B]]), token_mask=torch.zeros(1, 3, dtype=torch.bool))
    assert torch.equal(draw(lm, hidden, [3]), x[2:])


def test_steps_grow_by_one_token_and_end_in_padding() -> None:
    lm = model()
    # Flattened, so that every token is drawn somewhere, among them those that never may be.
    steps = walk(lm, prompts(*ROWS).repeat(12), range(48), temperature=3)
    sizes = torch.stack([(step.x0 != PAD).sum(dim=1) for step in steps])
    assert (sizes.diff(dim=0) <= 1).all()
    assert (sizes.diff(dim=0) >= 0).all()
    last = steps[-1]
    assert last.x0.shape == (48, LENGTH)
    assert last.done.all()
    assert not steps[0].done.all()
    assert last.sigma.tolist() == [0.0] * 48
    for step, later in pairwise(steps):
        assert torch.equal(torch.where(step.x0 == PAD, later.x0, step.x0), later.x0)  # what is written stays
        assert torch.equal(later.x0[step.done], step.x0[step.done])
    ends = 0
    for row in last.x0.tolist():
        text = row[: row.index(PAD)] if PAD in row else row
        assert set(row[len(text) :]) <= {PAD}
        assert not {PAD, BOS, EOS} & set(text[1:-1])
        assert text[-1] == EOS or (len(text) == LENGTH and text[-1] != BOS)
        ends += text[-1] == EOS
    assert 0 < ends < 48


def test_every_token_has_a_draw_of_its_own() -> None:
    flat = Guide("flat", logits=lambda logits, tokens, cond: torch.zeros_like(logits))
    x = draw(model(), Cond(), range(400), [flat], max_tokens=3)
    for first, second in ((1, 2), (2, 3), (1, 3)):
        both = (x[:, first] > EOS) & (x[:, second] > EOS)
        assert (x[both, first] == x[both, second]).float().mean() < 0.1  # 1 in 40 by chance


def test_max_tokens_cuts_and_changes_nothing_before() -> None:
    lm = model()
    long, short = draw(lm, prompts(*ROWS), [1, 2, 3, 4]), draw(lm, prompts(*ROWS), [1, 2, 3, 4], max_tokens=4)
    for row, given in enumerate(([BOS, A, B, C, 9, 8, 7], [BOS], [BOS, 11], [BOS, 20, 21, 22])):
        assert short[row, : len(given) + 4].tolist() == long[row, : len(given) + 4].tolist()
        assert (short[row, len(given) + 4 :] == PAD).all()


def test_a_prompt_without_room_is_refused() -> None:
    lm = model()
    fits = draw(lm, prompts([A] * (LENGTH - 2)), [1])
    assert (fits != PAD).all()
    with pytest.raises(InvalidInput, match=f"has {LENGTH - 1} tokens; this model reads {LENGTH - 2} at most"):
        draw(lm, prompts([A] * (LENGTH - 1)), [1])


@torch.no_grad()
def test_temperature_0_is_the_likeliest_token_each_time() -> None:
    lm = model()
    found = draw(lm, prompts([A, B]), [1], temperature=0)[0]
    text = [BOS, A, B]
    while len(text) < LENGTH and text[-1] != EOS:
        logits = lm.net(torch.tensor([text]), Cond())[0, -1]
        logits[[PAD, BOS]] = -torch.inf
        text.append(int(logits.argmax()))
    assert found[: len(text)].tolist() == text
    assert torch.equal(found, draw(lm, prompts([A, B]), [2], temperature=0)[0])


@torch.no_grad()
def test_first_tokens_follow_the_models_distribution() -> None:
    lm, count = model(), 4000
    first = draw(lm, Cond(), range(count), max_tokens=1)[:, 1]
    logits = lm.net(torch.tensor([[BOS]]), Cond())[0, -1].double()
    logits[[PAD, BOS]] = -torch.inf
    wanted = logits.softmax(dim=-1)
    found = torch.bincount(first, minlength=VOCAB) / count
    error = ((wanted * (1 - wanted)) / count).sqrt()
    assert ((found - wanted).abs() <= 5 * error + 1e-9).all()


def test_sampling_leaves_gradients_as_they_were() -> None:
    lm = model()
    steps = lm.sample(Cond(), Noise([1]), LMOptions())
    step = next(steps)
    assert torch.is_grad_enabled()
    assert not step.x0.requires_grad
    steps.close()


# how a token is chosen


def test_pick_inverts_the_distribution() -> None:
    p = torch.tensor([0.0, 0.1, 0.0, 0.6, 0.3, 0.0])
    u = (torch.arange(1000) + 0.5) / 1000
    found = torch.bincount(pick(p.log().expand(1000, -1), u), minlength=6) / 1000
    assert torch.allclose(found, p, atol=2e-3)
    ends = pick(p.log().expand(2, -1), torch.tensor([0.0, 1 - 2**-24]))
    assert ends.tolist() == [1, 4]  # never one of probability 0


def test_truncate_keeps_the_likeliest() -> None:
    logits = torch.tensor([[0.4, 0.1, 0.3, 0.2], [0.1, 0.1, 0.1, 0.7]]).log()

    def kept(k: int, p: float) -> list[list[int]]:
        return [row.isfinite().nonzero()[:, 0].tolist() for row in truncate(logits, k, p)]

    assert kept(0, 1.0) == [[0, 1, 2, 3], [0, 1, 2, 3]]
    assert kept(2, 1.0) == [[0, 2], [0, 1, 2, 3]]
    assert kept(1, 1.0) == [[0], [3]]
    assert kept(99, 1.0) == kept(0, 1.0)
    assert kept(0, 0.65) == [[0, 2], [3]]
    assert kept(0, 0.01) == [[0], [3]]
    assert torch.equal(truncate(logits, 2, 1.0)[0, [0, 2]], logits[0, [0, 2]])


def test_penalise_lowers_what_occurred_whatever_the_offset() -> None:
    logits = torch.tensor([[1.0, 2.0, 0.5, 3.0, -1.0, 0.0]])
    tokens = torch.tensor([[BOS, 3, 5, EOS, PAD]])
    plain, found = logits.softmax(dim=-1), penalise(logits, tokens, 1.5).softmax(dim=-1)
    assert (found / plain)[0, [3, 5]].max() < (found / plain)[0, [0, 1, 2, 4]].min()
    assert torch.allclose(found, penalise(logits + 7, tokens, 1.5).softmax(dim=-1), atol=1e-6)
    off = penalise(logits, tokens, 1.0)
    assert torch.equal(off, logits)
    assert off.data_ptr() != logits.data_ptr()


# guides


def test_a_logits_guide_sees_the_text_so_far_and_bends_the_next_token() -> None:
    lm, seen = model(), []

    def after_a_only_b(logits: Tensor, tokens: Tensor, cond: Cond) -> Tensor:
        seen.append(tokens.clone())
        last = tokens.gather(1, (tokens != PAD).sum(dim=1, keepdim=True) - 1)
        only = torch.full_like(logits, -torch.inf)
        only[:, B] = 0
        return torch.where(last == A, only, logits)

    guide = Guide("after", logits=after_a_only_b)
    x = draw(lm, prompts([A], [C, A]), [1, 2], [guide])
    assert x[0, 2] == B
    assert x[1, 3] == B
    assert seen[0].tolist() == [[BOS, A, *[PAD] * (LENGTH - 2)], [BOS, C, A, *[PAD] * (LENGTH - 3)]]
    assert seen[1][0, 2] == B


def rare(x: Tensor, cond: Cond) -> Tensor:
    """Few tokens below 20."""
    return ((x >= A) & (x < 20)).float().sum(dim=1)


def test_an_energy_guide_chooses_the_best_of_the_candidates() -> None:
    lm, seeds, cond = model(), [1, 2, 3, 4], prompts(*ROWS)
    few = rare(draw(lm, cond, seeds, [Guide("few", energy=rare)], best_of=2), cond)
    many = rare(draw(lm, cond, seeds, [Guide("few", energy=rare)]), cond)
    plain = rare(draw(lm, cond, seeds), cond)
    assert (few <= plain).all()  # the plain sample is the first candidate
    assert (many <= few).all()
    assert many.sum() < plain.sum()
    twice = [Guide("few", energy=rare), Guide("not", energy=lambda x, c: -3 * rare(x, c))]
    assert rare(draw(lm, cond, seeds, twice), cond).sum() > plain.sum()


@torch.no_grad()
def test_best_of_without_an_energy_keeps_the_likeliest_per_token() -> None:
    lm, seeds = model(), list(range(12))

    def nats(x: Tensor) -> Tensor:
        return lm.loss("lm", Batch(x, Cond(), torch.ones(len(x))), 0).value

    one, best = draw(lm, Cond(), seeds), draw(lm, Cond(), seeds, best_of=4)
    assert (nats(best) <= nats(one) + 1e-4).all()
    assert nats(best).mean() < nats(one).mean() - 0.1


def test_guides_that_cannot_be_used_are_refused() -> None:
    lm = model()
    with pytest.raises(Unsupported, match='guide "mask" has no form that LM can use'):
        draw(lm, Cond(), [1], [Guide("mask", denoise=lambda d: d)])
    with pytest.raises(InvalidInput, match="best_of is 1"):
        draw(lm, Cond(), [1], [Guide("few", energy=rare)], best_of=1)
    nothing = Guide("none", logits=lambda logits, tokens, cond: torch.full_like(logits, -torch.inf))
    with pytest.raises(InvalidInput, match="no token to choose"):
        draw(lm, Cond(), [1], [nothing])


def test_a_guide_that_leaves_nothing_after_the_end_stops_no_other_row() -> None:
    def first_row_ends(logits: Tensor, tokens: Tensor, cond: Cond) -> Tensor:
        ended = (tokens == EOS).any(dim=1)
        end = torch.full_like(logits, -torch.inf)
        end[:, EOS] = torch.where(ended, -torch.inf, 0.0)
        return torch.where(torch.arange(len(logits))[:, None] == 0, end, logits)

    x = draw(model(), Cond(), [1, 2], [Guide("end", logits=first_row_ends)])
    assert x[0].tolist() == [BOS, EOS, *[PAD] * (LENGTH - 2)]
    assert torch.equal(x[1:], draw(model(), Cond(), [2]))


# labels and guidance


def learn() -> LM:
    """A model of texts that repeat A under label 0 and B under label 1."""
    lm = model(labels=(("style", 2),), cond_dropout=0.2).train()
    x = torch.tensor([[BOS, A, A, A, EOS], [BOS, B, B, B, EOS]]).repeat(8, 1)
    data = Batch(x, Cond(labels=torch.tensor([[0], [1]]).repeat(8, 1)), torch.ones(16))
    optimizer = torch.optim.Adam(lm.parameters(), 3e-3)
    torch.manual_seed(0)
    for _ in range(80):
        optimizer.zero_grad()
        lm.loss("lm", data, 0).value.mean().backward()
        optimizer.step()
    return lm.eval()


def test_labels_and_guidance() -> None:
    lm, seeds = learn(), list(range(40))
    cond = Cond(labels=torch.tensor([[0], [1]]).repeat(20, 1))
    x = draw(lm, cond, seeds)
    right = (x[:, 1] == torch.tensor([A, B]).repeat(20)).float().mean()
    assert right > 0.9
    free = draw(lm, cond.null(), seeds)
    assert {A, B} <= set(free[:, 1].tolist())
    # Without its pull a label does nothing; against it, the other label's text comes.
    assert torch.equal(draw(lm, cond, seeds, guidance=0), free)
    data = Batch(torch.tensor([[BOS, A], [BOS, B]]), Cond(labels=torch.tensor([[1], [0]])), torch.ones(2))
    assert lm.loss("lm", data, 0).value.min() > 1.5


def test_guidance_0_forgets_the_prompt_and_1_is_off() -> None:
    lm, cond = model(), prompts([A, B, C], [9])
    free = draw(lm, Cond(), [1, 2], max_tokens=5)
    without = draw(lm, cond, [1, 2], guidance=0, max_tokens=5)
    assert without[0, 4:9].tolist() == free[0, 1:6].tolist()
    assert without[1, 2:7].tolist() == free[1, 1:6].tolist()
    near = draw(lm, cond, [1, 2], guidance=1 + 1e-6)
    assert torch.equal(near, draw(lm, cond, [1, 2], guidance=1))
    assert not torch.equal(near, draw(lm, cond, [1, 2], guidance=3))
