"""A judge's opinion of pictures whose labels are known: R@1 of 50, style accuracy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from sojourn import card
from sojourn import package as packages
from sojourn.conditioners import STYLE
from sojourn.errors import DataError, InvalidInput, NotFound, SojournError
from sojourn.measure import scores
from sojourn.measure.bench import LEAST, RIVALS, Bench, Findings, Group, too_few
from sojourn.schema import Event

JUDGE = "judge"
"""The package that judges where nobody names one."""


def appoint(bench: Bench, name: str | None) -> SojournError | None:
    """Give the bench its judge. name None: the one named judge; why it is left out, where it does not fit the set.

    Raises NotFound, DataError, InvalidInput for one that was named.
    """
    try:
        bench.judge = packages.load(card.find(name or JUDGE, paths=name is not None))
        Judged(bench)
    except (NotFound, DataError) as error:
        if name is not None:
            raise
        bench.judge = None
        return error
    return None


class Judged:
    """A judge's opinion of pictures, in the label columns that the judge and the set share.

    Raises InvalidInput for a package that is no judge, DataError for one of other pictures or labels.
    """

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
        self.shared = [column.name for column in bench.data.info.labels if column.name in self.columns]
        if not self.shared:
            raise DataError(
                'the judge knows no label column of the set "{name}"; train one on this set', name=bench.data.info.name
            )
        for column in bench.data.info.labels:
            strange = set(column.values) - set(self.columns.get(column.name, column.values))
            if strange:
                raise DataError(
                    'the judge does not know "{name}" of column "{column}"; train one on this set',
                    name=min(strange), column=column.name,
                )  # fmt: skip

    def add(
        self, group: Group, fakes: Tensor, reals: Tensor, chinese: np.ndarray, families: list[str], found: Findings
    ) -> Iterator[Event]:
        """R@1 of 50 and style accuracy of fakes and of the real pictures of the same rows; rows without a label do
        not count.
        """
        bench = self.bench
        mine, theirs = self.opinions(fakes), self.opinions(reals)
        name = f"judge {self.package.card.identity[:8]}"
        if bench.column in self.shared:
            rows, asked = self.labelled(group.rows, bench.column)
            kin = [families[i] for i in rows]
            right, real = (self.among(opinion[bench.column][rows], asked) for opinion in (mine, theirs))
            note = f"of {min(RIVALS + 1, len(self.columns[bench.column]))}, {name}"
            if len(rows):
                found.add(f"{group.name}/R@1", float(right.mean()), scores.interval(right, kin), note)
                span = scores.interval(real, kin)
                found.add(f"{group.name}/R@1-real", float(real.mean()), span, "the real pictures of these prompts")
            for language, those in (("en", ~chinese[rows]), ("zh", chinese[rows])):
                if not chinese.any():
                    continue
                if those.sum() < LEAST["r1"]:
                    yield too_few(f"{group.name}/R@1-{language}", int(those.sum()), "r1")
                    continue
                span = scores.interval(right[those], [kin[i] for i in np.flatnonzero(those)])
                found.add(f"{group.name}/R@1-{language}", float(right[those].mean()), span)
        if STYLE in self.shared:
            rows, asked = self.labelled(group.rows, STYLE)
            kin = [families[i] for i in rows]
            right, real = ((opinion[STYLE][rows].argmax(1).numpy() == asked) for opinion in (mine, theirs))
            if len(rows):
                found.add(f"{group.name}/style", float(right.mean()), scores.interval(right, kin), name)
                found.add(f"{group.name}/style-real", float(real.mean()), scores.interval(real, kin))

    @torch.no_grad()
    def opinions(self, pictures: Tensor) -> dict[str, Tensor]:
        """Logits by column, (b, classes)."""
        family = self.package.family.eval()
        if family.spec.shape[0] == 1:
            pictures = pictures.mean(dim=1, keepdim=True)
        parts = [family.classify(part) for part in torch.split(pictures, 256)]
        return {name: torch.cat([part[i] for part in parts]) for i, name in enumerate(self.columns)}

    def labelled(self, rows: np.ndarray, column: str) -> tuple[np.ndarray, np.ndarray]:
        """Places in `rows` of those that have a label in `column`, and the judge's number of each: (k,), (k,)."""
        index = {value: i for i, value in enumerate(self.columns[column])}
        names = [self.bench.data.label_name(row, column) for row in rows.tolist()]
        told = [(at, index[name]) for at, name in enumerate(names) if name is not None]
        places, labels = np.array(told, np.int64).reshape(-1, 2).T
        return places, labels

    def numbers(self) -> list[int]:
        """The judge's number of the label of each of the bench's own prompts. Raises InvalidInput for one unknown."""
        column = self.bench.column
        if column not in self.shared:
            raise InvalidInput("the judge knows no labels of this set; prompts of your own need them")
        known = {value: i for i, value in enumerate(self.columns[column])}
        wrong = next((label for _, label in self.bench.asked if label not in known), None)
        if wrong is not None:
            raise InvalidInput('the judge does not know the label "{label}" of a prompt', label=wrong)
        return [known[label] for _, label in self.bench.asked]

    def among(self, logits: Tensor, asked: np.ndarray) -> np.ndarray:
        """Whether the asked class scores above RIVALS others, drawn by the seed: (b,) bool."""
        rng = np.random.default_rng([self.bench.seed, 2])
        classes = logits.shape[1]
        right = []
        for row, label in zip(logits.numpy(), asked.tolist(), strict=True):
            others = rng.permutation(classes)[: RIVALS + 1]
            others = others[others != label][: min(RIVALS, classes - 1)]
            right.append(bool(len(others) == 0 or row[label] > row[others].max()))
        return np.array(right)
