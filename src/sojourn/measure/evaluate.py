"""What `sojourn evaluate` measures: packages against a set, or two folders of pictures against each other.

A score never changes with what else is measured: prompts, seeds and rivals follow from the seed alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sojourn import config as configs
from sojourn.codecs.image import ImageCodec
from sojourn.conditioners import STYLE
from sojourn.data.dataset import PackedSet
from sojourn.data.styles import COLOUR_STYLES
from sojourn.engine import ROWS_MAX, Model
from sojourn.errors import DataError, InvalidInput
from sojourn.measure import scores
from sojourn.measure.features import EffLite0, Features, embed, perceptual, remembered
from sojourn.nets.losses import ssim
from sojourn.package import Package
from sojourn.schema import Event, Log, Metric, Progress, Prompt
from sojourn.vocabulary import HAN

RIVALS = 49
"""Other concepts among which the judge must find the asked one."""
LEAST = {"kid": 100, "fd": 2048, "precision": 1000, "r1": 50}
"""Pictures below which a number means nothing and is left out."""
SEEDS = 8
"""Pictures of one prompt, for diversity."""
ASKED_SEEDS = 4
"""Pictures of one prompt of one's own."""


@dataclass(frozen=True)
class Group:
    """Rows whose prompts are measured together: those that training saw, and those it did not."""

    name: str
    rows: np.ndarray


@dataclass
class Sheet:
    """Pictures for the report, in lines of one length."""

    title: str
    lines: list[list[Image.Image]]
    labels: list[str]


@dataclass
class Findings:
    """All that was measured of one package or folder."""

    name: str
    identity: str = ""
    metrics: list[Metric] = field(default_factory=list)
    sheets: list[Sheet] = field(default_factory=list)

    def add(self, name: str, value: float, span: tuple[float, float] | None = None, note: str = "") -> None:
        low, high = span or (None, None)
        self.metrics.append(Metric(name=name, value=value, low=low, high=high, note=note))


@dataclass
class Bench:
    """What packages are measured with."""

    data: PackedSet
    features: Features
    judge: Package | None = None
    count: int = 512
    """Pictures of a group at most."""
    seed: int = 0
    cache: Path = field(default_factory=lambda: configs.cache() / "features")
    asked: list[tuple[str, str]] = field(default_factory=list)
    """Prompts of one's own, each with the label that the judge must find in what is drawn."""

    def __post_init__(self) -> None:
        if self.data.info.kind != "image":
            raise InvalidInput('only pictures can be measured, the set "{name}" is text', name=self.data.info.name)
        height, width, _ = self.data.info.shape
        self.plain = ImageCodec({"height": height, "width": width, "channels": 3, "background": "white"})
        self.real = np.array([i for i, row in enumerate(self.data.rows) if "made" not in row])
        """Rows that are no pictures made from others."""
        stamp = (self.data.folder / "data.bin").stat()
        self.key = [self.data.info.model_dump_json(), str(stamp.st_size), str(stamp.st_mtime_ns)]
        self.column = next((c.name for c in self.data.info.labels if c.name != STYLE), None)
        """What the judge must find in a picture."""

    def pictures(self, rows: np.ndarray) -> Tensor:
        """Pictures of the set as everything is measured: (b, 3, h, w) in [-1, 1] on white."""
        return self.plain.encode(self.data.raw(rows))

    def embedded(self, rows: np.ndarray) -> np.ndarray:
        """Features of pictures of the set, kept between calls."""
        return remembered(self.features, self.key, self.cache, self.pictures, rows)

    def groups(self) -> list[Group]:
        """Up to `count` rows each, drawn by the seed: seen in training; held out, by kind where the set tells kinds.

        Of a family of rows (skin tones of one emoji) only the first counts, so that none weighs more than the others.
        """
        split, rows = self.data.split, self.data.rows
        told = any(row.get("held_out") for row in rows)
        kinds: dict[str, list[int]] = {"seen": []}
        for i in self.real.tolist():
            if rows[i].get("hex", rows[i]["group"]) != rows[i]["group"]:
                continue
            kind = rows[i].get("held_out")
            if split[i] == 0:
                kinds["seen"].append(i)
            elif kind or not told:
                kinds.setdefault(f"held-out-{kind}" if kind else "held-out", []).append(i)
        rng = np.random.default_rng([self.seed, 1])
        out = []
        for name, found in kinds.items():
            if found:
                out.append(Group(name, np.sort(rng.permutation(found)[: self.count])))
        return out

    def prompts(self, rows: np.ndarray, column: str | None) -> tuple[list[Prompt], np.ndarray]:
        """A prompt for each row, and whether it is Chinese (b,).

        The name of the row's label in `column`, as in training; without a column its first and second caption in turn.
        """
        out, chinese = [], []
        for turn, row in enumerate(rows.tolist()):
            meta = self.data.rows[row]
            captions = meta["captions"] or [""]
            text = captions[turn % 2 if len(captions) > 1 else 0]
            if column is not None:
                text = self.data.label_name(row, column) or ""
            out.append(Prompt.plain(text, meta.get("style")))
            chinese.append(HAN.search(text) is not None)
        return out, np.array(chinese)

    def families(self, rows: np.ndarray) -> list[str]:
        """The group of each row: rows of one are not independent."""
        return [str(self.data.rows[row]["group"]) for row in rows.tolist()]


def evaluate(models: Sequence[Model], bench: Bench, steps: int | None = None) -> Iterator[Event | Findings]:
    """Measure each model; yields progress, what was left out and why, and Findings per model."""
    groups = bench.groups()
    judge = Judged(bench) if bench.judge is not None else None
    if judge is None:
        yield Log(level="warning", text="no judge: R@1 and style accuracy are left out (sojourn train judge)")
    for model in models:
        found = Findings(model.card.name, model.card.identity)
        for group in groups:
            yield from _group(model, group, bench, judge, found, steps)
        yield from _variety(model, bench, found, steps)
        if judge is not None and bench.asked:
            yield from _asked(model, bench, judge, found, steps)
        if model.card.codec.id == "latent":
            yield from _autoencoder(model, groups, bench, found)
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


class Judged:
    """A judge's opinion of pictures whose labels are known."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        assert bench.judge is not None
        self.package = bench.judge
        if "classify" not in self.package.family.can:
            raise InvalidInput('"{name}" is no judge; train one: sojourn train judge', name=self.package.card.name)
        self.columns = dict(self.package.conditioner.config["columns"])
        spec, (height, width, _) = self.package.family.spec, bench.data.info.shape
        if spec.shape[1:] != (height, width) or spec.shape[0] not in (1, 3):
            raise DataError(
                "the judge looks at pictures {wanted}, these are {found}; train one on this set",
                wanted=spec.shape, found=(3, height, width),
            )  # fmt: skip
        for column in bench.data.info.labels:
            strange = set(column.values) - set(self.columns.get(column.name, column.values))
            if strange:
                raise DataError(
                    'the judge does not know "{name}" of column "{column}"; train one on this set',
                    name=min(strange), column=column.name,
                )  # fmt: skip

    def add(
        self, group: Group, fakes: Tensor, reals: Tensor, chinese: np.ndarray, families: list[str], found: Findings
    ) -> None:
        """R@1 of 50 and style accuracy of fakes and of the real pictures of the same rows."""
        bench = self.bench
        mine, theirs = self.opinions(fakes), self.opinions(reals)
        name = f"judge {self.package.card.identity[:8]}"
        if bench.column is not None and bench.column in self.columns:
            asked = self.labels(group.rows, bench.column)
            right, real = (self.among(opinion[bench.column], asked) for opinion in (mine, theirs))
            found.add(
                f"{group.name}/R@1",
                float(right.mean()),
                scores.interval(right, families),
                f"of {min(RIVALS + 1, len(self.columns[bench.column]))}, {name}",
            )
            span = scores.interval(real, families)
            found.add(f"{group.name}/R@1-real", float(real.mean()), span, "the real pictures of these prompts")
            for language, rows in (("en", ~chinese), ("zh", chinese)):
                if rows.sum() >= LEAST["r1"] and chinese.any():
                    span = scores.interval(right[rows], [f for f, row in zip(families, rows, strict=True) if row])
                    found.add(f"{group.name}/R@1-{language}", float(right[rows].mean()), span)
        if STYLE in self.columns:
            asked = self.labels(group.rows, STYLE)
            right, real = ((opinion[STYLE].argmax(1).numpy() == asked) for opinion in (mine, theirs))
            found.add(f"{group.name}/style", float(right.mean()), scores.interval(right, families), name)
            found.add(f"{group.name}/style-real", float(real.mean()), scores.interval(real, families))

    @torch.no_grad()
    def opinions(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits by column, (b, classes)."""
        family = self.package.family.eval()
        if family.spec.shape[0] == 1:
            pictures = pictures.mean(dim=1, keepdim=True)
        parts = [family.classify(part) for part in torch.split(pictures, 256)]
        return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(self.columns)}

    def labels(self, rows: np.ndarray, column: str) -> np.ndarray:
        """The judge's number of each row's label."""
        index = {value: i for i, value in enumerate(self.columns[column])}
        return np.array([index[str(self.bench.data.label_name(int(row), column))] for row in rows])

    def among(self, logits: Tensor, asked: np.ndarray) -> np.ndarray:
        """Whether the asked class scores above RIVALS others, drawn by the seed: (b,) bool."""
        rng = np.random.default_rng([self.bench.seed, 2])
        classes = logits.shape[1]
        right = []
        for row, label in zip(logits.numpy(), asked.tolist(), strict=True):
            others = rng.permutation(classes)[: RIVALS + 1]
            others = others[others != label][: min(RIVALS, classes - 1)]
            right.append(bool(row[label] > row[others].max()))
        return np.array(right)


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


@torch.no_grad()
def _autoencoder(model: Model, groups: Sequence[Group], bench: Bench, found: Findings) -> Iterator[Event]:
    """What is lost between a held-out picture and its latent's decoding."""
    held = [group.rows for group in groups if group.name != "seen"]
    rows = np.concatenate(held or [groups[0].rows])[: bench.count]
    note = "held-out pictures" if held else "pictures seen in training"
    psnr, similar, apart = [], [], []
    for at, part in enumerate(np.array_split(rows, max(1, len(rows) // 32))):
        yield Progress(done=at * 32, total=len(rows), unit="pictures", text=f"{found.name}, autoencoder")
        codec = model.package.codec
        x = bench.pictures(part)
        y = codec.decode(codec.encode(bench.data.raw(part))).clamp(-1, 1)[:, :3]
        psnr.append(-10 * ((x - y) / 2).square().flatten(1).mean(1).clamp(min=1e-10).log10())
        similar.append(ssim(x, y))
        if isinstance(bench.features, EffLite0):
            apart.append(perceptual(bench.features, x, y))
    for name, parts in (("PSNR", psnr), ("SSIM", similar), ("perceptual-EffLite0", apart)):
        if parts:
            values = torch.cat(parts).double().numpy()
            found.add(f"autoencoder/{name}", float(values.mean()), scores.interval(values), note)


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


def tensor(picture: Image.Image) -> Tensor:
    """A picture as (3, h, w) in [-1, 1], on white."""
    if picture.mode not in ("RGB", "L"):
        picture = picture.convert("RGBA")
        ground = Image.new("RGBA", picture.size, "white")
        ground.alpha_composite(picture)
        picture = ground
    return torch.from_numpy(np.array(picture.convert("RGB"))).permute(2, 0, 1).float().div_(127.5).sub_(1)


def too_few(name: str, count: int, kind: str) -> Log:
    return Log(level="warning", text=f"{name} is left out: {count} pictures, it needs {LEAST[kind]}")


def _sheet(group: Group, prompts: Sequence[Prompt], reals: Tensor, fakes: Tensor) -> Sheet:
    """The first pictures of a group, real above drawn."""
    show = ImageCodec({"height": reals.shape[2], "width": reals.shape[3], "channels": 3})
    count = min(16, len(fakes))
    labels = [f"{p.text} ({p.style})" if p.style else p.text for p in prompts[:count]]
    return Sheet(f"{group.name}: real above, drawn below", [show.unpack(x[:count]) for x in (reals, fakes)], labels)
