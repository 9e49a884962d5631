"""What `sojourn evaluate` measures: packages against a set, or two folders of pictures against each other.

A score never changes with what else is measured: prompts, seeds and rivals follow from the seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sojourn.codecs.image import ImageCodec
from sojourn.data.styles import COLOUR_STYLES
from sojourn.engine import ROWS_MAX, Model
from sojourn.errors import InvalidInput
from sojourn.measure import readers, scores
from sojourn.measure.augmented import classified
from sojourn.measure.bench import LEAST, Bench, Findings, Group, Sheet, tensor, too_few
from sojourn.measure.features import embed
from sojourn.measure.judged import Judged
from sojourn.schema import Event, Log, Progress, Prompt
from sojourn.vocabulary import HAN

SEEDS = 8
"""Pictures of one prompt, for diversity."""
ASKED_SEEDS = 4
"""Pictures of one prompt of one's own."""


def evaluate(
    models: Sequence[Model], bench: Bench, steps: int | None = None, classifier: int | None = None
) -> Iterator[Event | Findings]:
    """Measure each model; yields progress, what was left out and why, and Findings per model.

    classifier: pictures that classifiers see, to tell whether drawn ones help; None = not asked.
    """
    groups = bench.groups()
    judge = Judged(bench) if bench.judge is not None else None
    if judge is None:
        yield Log(level="warning", text="no judge: R@1 and style accuracy are left out (sojourn train judge)")
    for model in models:
        found = Findings(model.card.name, model.card.identity)
        if "sample" in model.family.can:
            for group in groups:
                yield from _group(model, group, bench, judge, found, steps)
            yield from _variety(model, bench, found, steps)
            if judge is not None and bench.asked:
                yield from _asked(model, bench, judge, found, steps)
        yield from readers.read(model, groups, bench, found)
        if classifier is not None:
            yield from classified(model, bench, classifier, found, steps)
        yield found


def _group(
    model: Model, group: Group, bench: Bench, judge: Judged | None, found: Findings, steps: int | None
) -> Iterator[Event]:
    """Scores of one group's prompts."""
    prompts, chinese = bench.prompts(group.rows, getattr(model.package.conditioner, "column", None))
    families = bench.families(group.rows)
    begun = time.monotonic()
    drawn = []
    for part in drawings(model, prompts, bench.seed, steps):
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
        found.add(f"{group.name}/KID-{name}", scores.kid(a, b), scores.kid_interval(a, b), f"{len(a)} pictures")
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
    train = bench.real[bench.data.split[bench.real] == 0]
    held = bench.real[bench.data.split[bench.real] != 0]
    if len(held) >= LEAST["kid"]:
        yield Progress(done=0, total=1, unit="groups", text="looking for copies of training pictures")
        near, bar = scores.near_copies(b, bench.embedded(train), bench.embedded(held))
        found.add(
            f"{group.name}/near-copies-{name}",
            float(near.mean()),
            scores.interval(near, families),
            f"nearer than {bar:.3g}",
        )
    if judge is not None:
        judge.add(group, fakes, reals, chinese, families, found)
    found.sheets.append(_sheet(group, prompts, reals, fakes))


def _variety(model: Model, bench: Bench, found: Findings, steps: int | None) -> Iterator[Event]:
    """How far apart the pictures of one prompt are, without a style, against the real styles of that concept."""
    if bench.column is None or not model.styles:
        return
    rows: dict[str, list[int]] = {}
    for i in bench.real.tolist():
        meta = bench.data.rows[i]
        if bench.data.split[i] == 0 and meta["style"] in COLOUR_STYLES and meta["id"].startswith(meta["group"] + "/"):
            rows.setdefault(meta["group"], []).append(i)
    wide = [found_rows for found_rows in rows.values() if len(found_rows) >= 4]
    if not wide:
        return
    rng = np.random.default_rng([bench.seed, 3])
    chosen = [wide[i] for i in rng.permutation(len(wide))[:24]]
    ours, theirs = [], []
    for at, several in enumerate(chosen):
        yield Progress(done=at, total=len(chosen), unit="prompts", text=f"{found.name}, variety")
        text = bench.data.rows[several[0]]["captions"][0]
        request = model.request(Prompt.plain(text), n=SEEDS, seed=bench.seed, steps=steps)
        drawn = torch.cat(list(drawings(model, request.prompts, bench.seed, steps)))
        a = embed(bench.features, lambda rows, x=drawn: x[rows], np.arange(SEEDS))  # type: ignore[misc]
        ours.append(float(scores.diversity(a[None])[0]))
        theirs.append(float(scores.diversity(bench.embedded(np.array(several))[None])[0]))
    name = bench.features.name
    found.add(f"variety-{name}", float(np.mean(ours)), scores.interval(np.array(ours)), f"{SEEDS} seeds")
    found.add(f"variety-real-{name}", float(np.mean(theirs)), None, "between real styles")


def _asked(model: Model, bench: Bench, judge: Judged, found: Findings, steps: int | None) -> Iterator[Event]:
    """R@1 of the bench's own prompts, drawn without a style."""
    column = bench.column
    if column is None or column not in judge.columns:
        raise InvalidInput("the judge knows no labels of this set; prompts of your own need them")
    known = {value: i for i, value in enumerate(judge.columns[column])}
    wrong = next((label for _, label in bench.asked if label not in known), None)
    if wrong is not None:
        raise InvalidInput('the judge does not know the label "{label}" of a prompt', label=wrong)
    fakes = []
    for at, (text, _) in enumerate(bench.asked):
        yield Progress(done=at, total=len(bench.asked), unit="prompts", text=f"{found.name}, prompts of your own")
        request = model.request(Prompt.plain(text), n=ASKED_SEEDS, seed=bench.seed, steps=steps)
        fakes += list(drawings(model, request.prompts, bench.seed, steps))
    labels = np.repeat([known[label] for _, label in bench.asked], ASKED_SEEDS)
    texts = np.repeat([text for text, _ in bench.asked], ASKED_SEEDS)
    right = judge.among(judge.opinions(torch.cat(fakes))[column], labels)
    chinese = np.array([HAN.search(text) is not None for text in texts])
    for name, rows in (("", chinese | True), ("-en", ~chinese), ("-zh", chinese)):
        if rows.any() and (not name or chinese.any()):
            span = scores.interval(right[rows], texts[rows].tolist())
            found.add(f"prompts/R@1{name}", float(right[rows].mean()), span, f"{ASKED_SEEDS} seeds")
    per = [f"{text} {right[at * ASKED_SEEDS :][:ASKED_SEEDS].sum()}" for at, (text, _) in enumerate(bench.asked)]
    yield Log(text=f"right of {ASKED_SEEDS}: {', '.join(per)}")


def drawings(model: Model, prompts: Sequence[Prompt], seed: int, steps: int | None) -> Iterator[Tensor]:
    """Pictures (b, 3, h, w) in [-1, 1] of the prompts, in parts, one seed after another from `seed` on."""
    options = {} if steps is None else {"steps": steps}
    part: list[Tensor] = []
    for picture in model.sample(prompts, seed, options=options):
        part.append(tensor(picture.pil))
        if len(part) == ROWS_MAX:
            yield torch.stack(part)
            part = []
    if part:
        yield torch.stack(part)


def _sheet(group: Group, prompts: Sequence[Prompt], reals: Tensor, fakes: Tensor) -> Sheet:
    """The first pictures of a group, real above drawn."""
    show = ImageCodec({"height": reals.shape[2], "width": reals.shape[3], "channels": 3})
    count = min(16, len(fakes))
    labels = [f"{p.text} ({p.style})" if p.style else p.text for p in prompts[:count]]
    return Sheet(f"{group.name}: real above, drawn below", [show.unpack(x[:count]) for x in (reals, fakes)], labels)
