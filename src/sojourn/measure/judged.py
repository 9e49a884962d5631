"""A judge's opinion of pictures whose labels are known: R@1 of 50, style accuracy."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sojourn import card
from sojourn import package as packages
from sojourn.conditioners import STYLE
from sojourn.errors import DataError, InvalidInput, NotFound, SojournError
from sojourn.measure import scores
from sojourn.measure.bench import LEAST, RIVALS, Bench, Findings, Group

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
