"""Whether drawn pictures help a classifier: one trained on real pictures against one on real and drawn ones.

Source: Ravuri & Vinyals 2019, Classification Accuracy Score for Conditional Generative Models, sec. 3.2 (augmentation).
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch

from sojourn import package as packages
from sojourn.codecs.image import ImageCodec
from sojourn.config import Recipe, Stage, TrainConfig
from sojourn.data.dataset import Item, PackedSet, SetInfo, SetWriter
from sojourn.engine import Model
from sojourn.errors import InvalidInput
from sojourn.measure import scores
from sojourn.measure.bench import Bench, Findings
from sojourn.schema import Event, Log, Part, Progress, Prompt
from sojourn.train.build import run_recipe
from sojourn.train.feed import LEAST

ROUNDS = 3
"""Classifiers of each kind, with seeds of their own; what is told is their mean."""
BATCH = 64


def chosen(model: Model, bench: Bench) -> tuple[str, list[int], list[int]]:
    """The set's column of classes, the rows that classifiers learn from, and those they are asked about.

    Raises InvalidInput for a package that draws no classes of the set, or a set without held-out pictures.
    """
    data, column = bench.data, bench.column
    names = model.classes if "sample" in model.family.can else []
    if column is None or not names:
        raise InvalidInput(
            '"{name}" draws no classes of "{set}"; use a package with conditioner "labels" and a set with classes',
            name=model.card.name, set=data.info.name,
        )  # fmt: skip
    at = [c.name for c in data.info.labels].index(column)
    known = set(names)
    rows = [i for i in bench.real.tolist() if data.label_name(i, column) in known]
    train = [i for i in rows if data.split[i] == 0]
    taught = {data.labels[i, at] for i in train}
    first = [i for i in rows if data.rows[i].get("hex", data.rows[i]["group"]) == data.rows[i]["group"]]
    held = [i for i in first if data.split[i] != 0 and data.labels[i, at] in taught]
    if len(held) < 2 or len(taught) < 2 or len(train) < LEAST:
        raise InvalidInput(
            'a classifier needs two classes, {least} pictures to learn from and two held out; "{set}" has {classes}, '
            "{train} and {held}",
            set=data.info.name, classes=len(taught), held=len(held), train=len(train), least=LEAST,
        )  # fmt: skip
    return column, train, held


def classified(model: Model, bench: Bench, seen: int, found: Findings) -> Iterator[Event]:
    """Accuracy on held-out pictures of classifiers that saw `seen` pictures: real ones, real and drawn, drawn alone.

    As many are drawn as there are real ones in training, of the same classes. Raises what `chosen` raises.
    """
    column, train, held = chosen(model, bench)
    data = bench.data
    at = [c.name for c in data.info.labels].index(column)
    prompts = [Prompt.plain(str(data.label_name(i, column)), data.rows[i].get("style")) for i in train]
    drawn = []
    for picture in model.sample(prompts, bench.seed, BATCH, options=bench.options):
        drawn.append(picture.pil)
        if len(drawn) % BATCH == 0:
            yield Progress(
                done=len(drawn), total=len(prompts), unit="pictures", text=f"{found.name}, to train a classifier on"
            )
    height, width, channels = data.info.shape
    codec = ImageCodec({"height": height, "width": width, "channels": channels})
    labels = [int(data.labels[i, at]) for i in train]
    real = [Item(f"r{i}", data.raw(np.array([i]))[0].numpy(), labels=[k]) for i, k in zip(train, labels, strict=True)]
    fake = [Item(f"d{n}", codec.pack(pil), labels=[k]) for n, (pil, k) in enumerate(zip(drawn, labels, strict=True))]
    info = SetInfo(name="classes", kind="image", shape=data.info.shape, labels=[data.info.labels[at]])
    right = {}
    with tempfile.TemporaryDirectory(prefix="sojourn-classifier-") as place:
        for name, items in (("real", real), ("real and drawn", [*real, *fake]), ("drawn", fake)):
            folder = Path(place) / name.replace(" ", "-")
            with SetWriter(folder / "set", info) as writer:
                for item in items:
                    writer.add(item)
            rounds = []
            for seed in range(ROUNDS):
                yield Log.say(
                    "a classifier of {count:,} pictures ({name}), {number} of {most}",
                    count=len(items), name=name, number=seed + 1, most=ROUNDS,
                )  # fmt: skip
                yield from _trained(folder, seed, seen)
                rounds.append(_right(folder / str(seed), data, held, at))
            right[name] = np.mean(rounds, axis=0)  # (held,) share of the classifiers that were right
    families = bench.families(np.array(held))
    note = f"{len(held)} held-out pictures, {ROUNDS} classifiers, {seen:,} seen each"
    for name, share in right.items():
        found.add(f"classifier/{name}", float(share.mean()), scores.interval(share, families, proportion=True), note)
    gain = right["real and drawn"] - right["real"]
    found.add("classifier/gain", float(gain.mean()), scores.interval(gain, families), "real and drawn over real")


def _trained(folder: Path, seed: int, seen: int) -> Iterator[Event]:
    data = PackedSet(folder / "set")
    height, width, _ = data.info.shape
    side, common = min(height, width), math.gcd(height, width)
    widths: tuple[int, ...] = (48, 96, 192) if side >= 32 else (32, 64)
    stem = 2 if common % 8 == 0 and side >= 32 else 1
    while common % (stem * 2 ** (len(widths) - 1)):
        widths = widths[1:]  # each resolution halves the sides
    train = TrainConfig(
        seen=seen, batch_size=BATCH, lr=2e-3, decay=0.5, warmup=BATCH * 10, snapshot=seen, sheet=0, hooks=(), seed=seed,
        ema=max(BATCH, seen // 20),
    )  # fmt: skip
    stage = Stage(
        data=str(folder / "set"), family="judge", preset="64", model={"widths": widths, "stem": stem},
        codec=Part(id="image", config={"channels": 3 if data.info.shape[2] > 1 else 1}),
        conditioner=Part(id="labels"), train=train,
    )  # fmt: skip
    with closing(run_recipe(Recipe(name=f"classifier-{seed}", stage=[stage]), folder / str(seed))) as events:
        for event in events:
            if event.kind == "progress":
                yield event


@torch.no_grad()
def _right(run: Path, data: PackedSet, rows: Sequence[int], column: int) -> np.ndarray:
    """Whether the classifier of a run names each row's class, (n,) float."""
    package = packages.load(run / "model" / "package")
    out = []
    for part in np.array_split(np.array(rows), max(1, len(rows) // 128)):
        said = package.family.classify(package.codec.encode(data.raw(part)))[0].argmax(1).numpy()
        out.append(said == data.labels[part, column])
    return np.concatenate(out).astype(np.float64)
