"""What `sojourn evaluate` measures: packages against a set, or two folders of pictures against each other.

A score never changes with what else is measured: prompts, seeds and rivals follow from the seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sojourn.conditioners import Columns
from sojourn.data.styles import COLOUR_STYLES
from sojourn.diffusion import rules
from sojourn.engine import ROWS_MAX, Model
from sojourn.errors import Unsupported
from sojourn.measure import copies, readers, scores
from sojourn.measure.augmented import chosen, classified
from sojourn.measure.bench import LEAST, SHOWN, Bench, Findings, Group, Sheet, shown, tensor, too_few
from sojourn.measure.features import embed
from sojourn.measure.judged import Judged
from sojourn.schema import Event, Log, Progress, Prompt
from sojourn.vocabulary import HAN
from sojourn.wishes import Request

SEEDS = 8
"""Pictures of one prompt, for diversity."""
ASKED_SEEDS = 4
"""Pictures of one prompt of one's own."""


def evaluate(models: Sequence[Model], bench: Bench, classifier: int | None = None) -> Iterator[Event | Findings]:
    """Measure each model; yields progress, what was left out and why, and Findings per model.

    classifier: pictures that classifiers see, to tell whether drawn ones help; None = not asked. Raises, before
    anything is drawn, InvalidInput, DataError, NotFound or Unsupported for what cannot be measured.
    """
    groups = bench.groups()
    judge = Judged(bench) if bench.judge is not None else None
    asked = judge.numbers() if judge is not None and bench.asked else []
    for model in models:
        _check(model, groups, bench, asked, classifier)
    if judge is not None and bench.count < LEAST["r1"]:
        yield Log.warn("R@1 and style of {count} pictures say little: see their intervals", count=bench.count)
    if judge is None:
        yield Log.warn("no judge: R@1 and style accuracy are left out (sojourn train judge)")
    for model in models:
        found = Findings(model.card.name, model.card.identity, bench.about())
        if "sample" in model.family.can:
            seen = next((group for group in groups if group.name == "seen"), None)
            against = yield from copies.prepare(model, bench, seen, found)
            for group in groups:
                yield from _group(model, group, bench, judge, against, found)
            yield from _variety(model, bench, found)
            if judge is not None and asked:
                yield from _asked(model, bench, judge, asked, found)
        yield from readers.read(model, groups, bench, found)
        if classifier is not None:
            yield from classified(model, bench, classifier, found)
        yield found


def _check(model: Model, groups: Sequence[Group], bench: Bench, asked: Sequence[int], classifier: int | None) -> None:
    """Raise what would end a measurement after hours: a package that draws no pictures, or not what is asked."""
    if model.family.spec.kind == "text":
        can = ", ".join(model.card.can)
        raise Unsupported('"{name}" does not draw pictures; it can {can}', name=model.card.name, can=can)
    if "sample" in model.family.can:
        model.options(Request([], [], bench.options))
        columns = getattr(model.package.conditioner, "columns", None)
        prompts = [prompt for group in groups for prompt in _prompts(model, bench, group.rows)[0]]
        if asked:
            prompts += [Prompt.plain(text) for text, _ in bench.asked]
        if isinstance(columns, Columns):
            columns.labels(prompts)
    if classifier is not None:
        chosen(model, bench)


def _prompts(model: Model, bench: Bench, rows: np.ndarray) -> tuple[list[Prompt], np.ndarray]:
    return bench.prompts(rows, getattr(model.package.conditioner, "column", None))


def _group(
    model: Model,
    group: Group,
    bench: Bench,
    judge: Judged | None,
    against: copies.Copies | None,
    found: Findings,
) -> Iterator[Event]:
    """Scores of one group's prompts."""
    prompts, chinese = _prompts(model, bench, group.rows)
    begun = time.monotonic()
    drawn = []
    for part in drawings(model, prompts, bench):
        drawn.append(part)
        yield Progress(
            done=sum(map(len, drawn)), total=len(prompts), unit="pictures", text=f"{found.name}, {group.name}"
        )
    fakes = torch.cat(drawn)
    if group.name == "seen":
        found.add("pictures/s", len(fakes) / (time.monotonic() - begun), note=f"{torch.get_num_threads()} threads")
    yield Progress(done=0, total=1, unit="groups", text=f"measuring {group.name}")
    reals = bench.pictures(group.rows)
    a, b = bench.embedded(group.rows), embed(bench.features, lambda rows: fakes[rows], np.arange(len(fakes)))
    name = bench.features.name
    if len(a) >= LEAST["kid"]:
        span = scores.kid_interval(a, b, paired=True)
        found.add(f"{group.name}/KID-{name}", scores.kid(a, b, paired=True), span, f"{len(a)} pictures")
    else:
        yield too_few(f"{group.name}/KID-{name}", len(a), "kid")
    if len(a) >= LEAST["fd"]:
        found.add(f"{group.name}/FD-{name}", scores.frechet(a, b), note=f"{len(a)} pictures")
    else:
        yield too_few(f"{group.name}/FD-{name}", len(a), "fd")
    if len(a) >= LEAST["precision"]:
        precision, recall = scores.precision_recall(a, b)
        found.add(f"{group.name}/precision-{name}", precision)
        found.add(f"{group.name}/recall-{name}", recall)
    else:
        yield too_few(f"{group.name}/precision-{name}", len(a), "precision")
    if judge is not None:
        yield from judge.add(group, fakes, reals, chinese, bench.families(group.rows), found)
    labels = [f"{p.text} ({p.style})" if p.style else p.text for p in prompts[:SHOWN]]
    title = f"{group.name}: real above, drawn below"
    found.sheets.append(Sheet(title, [shown(reals), shown(fakes)], labels, group.name))
    if against is not None:
        copies.measure(against, group, fakes, b, bench, found)


def _variety(model: Model, bench: Bench, found: Findings) -> Iterator[Event]:
    """How far apart the pictures of one prompt are: without a style, against the real styles of that concept; and in
    one style, where nothing but the seed differs.
    """
    if not model.styles:
        return
    rows: dict[str, list[int]] = {}
    for i in bench.real.tolist():
        meta = bench.data.rows[i]
        if bench.data.split[i] == 0 and meta["style"] in COLOUR_STYLES and meta["id"].startswith(meta["group"] + "/"):
            rows.setdefault(meta["group"], []).append(i)
    wide = [found_rows for found_rows in rows.values() if len(found_rows) >= 4]
    name = bench.features.name
    if len(wide) < LEAST["variety"]:
        yield too_few(f"variety-{name}", len(wide), "variety", "concepts in four styles")
        return
    rng = np.random.default_rng([bench.seed, 3])
    picked = [wide[i] for i in rng.permutation(len(wide))[:24]]
    style = next((style for style in COLOUR_STYLES if style in model.styles), model.styles[0])
    ours: dict[str | None, list[float]] = {None: [], style: []}
    theirs = []
    for at, several in enumerate(picked):
        text = _prompts(model, bench, np.array(several[:1]))[0][0].text
        for asked, values in ours.items():
            yield Progress(done=at, total=len(picked), unit="prompts", text=f"{found.name}, variety")
            request = model.request(Prompt.plain(text, asked), n=SEEDS, seed=bench.seed)
            drawn = torch.cat(list(drawings(model, request.prompts, bench)))
            a = embed(bench.features, lambda rows, x=drawn: x[rows], np.arange(SEEDS))  # type: ignore[misc]
            values.append(float(scores.diversity(a[None])[0]))
        theirs.append(float(scores.diversity(bench.embedded(np.array(several))[None])[0]))
    for kind, asked, note in (("", None, "colour styles by the seed"), ("-one-style", style, style)):
        apart = np.array(ours[asked])
        found.add(f"variety{kind}-{name}", float(apart.mean()), scores.interval(apart), f"{SEEDS} seeds, {note}")
    found.add(f"variety-real-{name}", float(np.mean(theirs)), None, "between real styles")


def _asked(model: Model, bench: Bench, judge: Judged, asked: Sequence[int], found: Findings) -> Iterator[Event]:
    """R@1 of the bench's own prompts, drawn without a style; asked: the judge's number of each one's label."""
    assert bench.column is not None
    fakes = []
    for at, (text, _) in enumerate(bench.asked):
        yield Progress(done=at, total=len(bench.asked), unit="prompts", text=f"{found.name}, prompts of your own")
        request = model.request(Prompt.plain(text), n=ASKED_SEEDS, seed=bench.seed)
        fakes += list(drawings(model, request.prompts, bench))
    labels = np.repeat(asked, ASKED_SEEDS)
    texts = np.repeat([text for text, _ in bench.asked], ASKED_SEEDS)
    right = judge.among(judge.opinions(torch.cat(fakes))[bench.column], labels)
    chinese = np.array([HAN.search(text) is not None for text in texts])
    for name, rows in (("", chinese | True), ("-en", ~chinese), ("-zh", chinese)):
        if rows.any() and (not name or chinese.any()):
            span = scores.interval(right[rows], texts[rows].tolist())
            found.add(f"prompts/R@1{name}", float(right[rows].mean()), span, f"{ASKED_SEEDS} seeds")
    per = [f"{text} {right[at * ASKED_SEEDS :][:ASKED_SEEDS].sum()}" for at, (text, _) in enumerate(bench.asked)]
    yield Log.say("right of {count}: {prompts}", count=ASKED_SEEDS, prompts=", ".join(per))


def drawings(model: Model, prompts: Sequence[Prompt], bench: Bench) -> Iterator[Tensor]:
    """Pictures (b, 3, h, w) in [-1, 1] of the prompts, in parts, one seed after another from the bench's on.

    All are of the set's size: features and the judge tell sizes apart, and would measure those.
    """
    shape = bench.plain.spec.shape
    part: list[Tensor] = []
    for picture in model.sample(prompts, bench.seed, options=bench.options):
        part.append(tensor(picture.pil))
        if len(part) == ROWS_MAX:
            yield rules.fitted(torch.stack(part), shape)
            part = []
    if part:
        yield rules.fitted(torch.stack(part), shape)
