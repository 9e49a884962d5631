"""Formulas that compare sets of pictures by their features. Pure functions; knows nothing about files or models.

Features are (n, d) float64 arrays, one row a picture; every score says so by the name of what made the features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy import linalg

Array = np.ndarray


def frechet(a: Array, b: Array) -> float:
    """Frechet distance of the Gaussians fitted to a (n, d) and b (m, d). Source: Heusel et al. 2017, eq. 6.

    Biased upward by few samples: compare equal counts only.
    """
    gap = a.mean(axis=0) - b.mean(axis=0)
    first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # tr sqrt(AB) = sum of sqrt of the eigenvalues of sqrt(A) B sqrt(A), which is symmetric: no complex numbers.
    values, vectors = linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    cross = np.sqrt(linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(gap @ gap + np.trace(first) + np.trace(second) - 2 * cross)


def kid(a: Array, b: Array, paired: bool = False) -> float:
    """Squared maximum mean discrepancy of a (n, d) and b (m, d), unbiased: around 0 for equal distributions.

    paired: row i of both comes from one draw (a picture of a prompt, and the real one of that prompt). The two are not
    independent, so no pair i, i counts; n = m. Kernel (x.y / d + 1)^3.
    Source: Binkowski et al. 2018, sec. 4 and eq. 4; paired: Gretton et al. 2012, eq. 4.
    """
    n, m = len(a), len(b)
    within = (_kernel(a, a) - _diagonal(a, a)) / (n * (n - 1)) + (_kernel(b, b) - _diagonal(b, b)) / (m * (m - 1))
    if paired:
        return float(within - 2 * (_kernel(a, b) - _diagonal(a, b)) / (n * (n - 1)))
    return float(within - 2 * _kernel(a, b) / (n * m))


def _kernel(a: Array, b: Array) -> float:
    """Sum of the kernel over all pairs, in parts that fit memory."""
    return float(sum(((part @ b.T / a.shape[1] + 1) ** 3).sum() for part in _parts(a, b)))


def _diagonal(a: Array, b: Array) -> float:
    """Sum of the kernel over the pairs of one row number."""
    return float((((a * b).sum(axis=1) / a.shape[1] + 1) ** 3).sum())


def _parts(a: Array, b: Array) -> list[Array]:
    """Rows of a (n, d), in parts whose table with all rows of b (m, d) stays below 256 MB."""
    rows = max(1, min(2048, 2**25 // max(1, len(b))))
    return [a[first : first + rows] for first in range(0, len(a), rows)]


def precision_recall(real: Array, fake: Array, k: int = 3) -> tuple[float, float]:
    """Share of fakes within the real manifold, and of reals within the fake one; a manifold is the balls that reach
    to each row's k-th neighbour. Source: Kynkaanniemi et al. 2019, eq. 1 and 2.
    """

    def inside(points: Array, centres: Array) -> float:
        # column 0 is the row itself
        reach = np.concatenate(
            [np.partition(distances(part, centres), k, axis=1)[:, k] for part in _parts(centres, centres)]
        )
        within = [(distances(part, centres) <= reach[None]).any(axis=1) for part in _parts(points, centres)]
        return float(np.concatenate(within).mean())

    return inside(fake, real), inside(real, fake)


def distances(a: Array, b: Array) -> Array:
    """Euclidean distance of every row of a (n, d) to every row of b (m, d): (n, m)."""
    squares = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    out: Array = np.sqrt(squares.clip(0))
    return out


def diversity(groups: Array) -> Array:
    """Mean distance of the pairs within each group: (g, n, d) -> (g,)."""
    n = groups.shape[1]
    out: Array = np.array([distances(rows, rows)[np.triu_indices(n, 1)].mean() for rows in groups])
    return out


def copy_bar(held_out: Array, train: Array) -> float:
    """The distance to a training row than which 99 % of the held-out rows lie farther. What is nearer is too near.

    Source: after Meehan et al. 2020 (held-out data as the measure of what is too near).
    """
    return float(np.percentile(nearest(held_out, train)[0], 1))


def nearest(a: Array, b: Array) -> tuple[Array, Array]:
    """Distance of each row of a (n, d) to the nearest row of b (m, d), and that row's number: (n,), (n,)."""
    near, at = [], []
    for part in _parts(a, b):
        found = distances(part, b)
        at.append(found.argmin(axis=1))
        near.append(found.min(axis=1))
    return np.concatenate(near), np.concatenate(at)


def interval(
    values: Array,
    groups: Sequence[str] | None = None,
    rounds: int = 400,
    seed: int = 0,
    proportion: bool | None = None,
) -> tuple[float, float]:
    """95 % bootstrap interval of the mean of values (n,). Source: Efron 1979, percentile form.

    groups: a name per row; rows of one name are drawn together, since they are not independent.
    proportion: values are shares in 0..1; None = where they are bool. Where no draw differs from another (none right,
    or all), theirs is Wilson's interval of as many tries as there are groups.
    """
    _, at = np.unique(np.arange(len(values)) if groups is None else np.array(groups), return_inverse=True)
    count = int(at.max()) + 1
    sums, sizes = np.bincount(at, values, count), np.bincount(at, minlength=count)
    picks = np.random.default_rng(seed).integers(count, size=(rounds, count))
    found = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    if np.ptp(found) < 1e-12 and (values.dtype == bool if proportion is None else proportion):
        return wilson(float(values.mean()), count)
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def ratio_interval(
    above: Array, below: Array, groups: Sequence[str] | None = None, rounds: int = 400, seed: int = 0
) -> tuple[float, float]:
    """95 % bootstrap interval of sum(above) / sum(below), each (n,), in which the two of a row go together, and rows of
    one name among `groups`."""
    if groups is not None:
        _, at = np.unique(np.array(groups), return_inverse=True)
        above, below = np.bincount(at, above), np.bincount(at, below)
    picks = np.random.default_rng(seed).integers(len(above), size=(rounds, len(above)))
    found = above[picks].sum(axis=1) / below[picks].sum(axis=1)
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % interval of a share of `count` tries. Source: Wilson 1927; Brown et al. 2001, eq. 4."""
    z = 1.96
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    reach = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return max(0.0, float(middle - reach)), min(1.0, float(middle + reach))


def kid_interval(
    a: Array, b: Array, size: int = 500, rounds: int = 100, seed: int = 0, paired: bool = False
) -> tuple[float, float]:
    """95 % interval of the KID of all rows, from its spread over random subsets without replacement.

    Rows are never drawn twice, since a row that meets itself biases the estimate upward; subsets of `size` or half the
    rows, of the same rows in both where they are paired (see `kid`). Source: Binkowski et al. 2018, sec. 4; the
    spread's scale: delete-d jackknife (Shao & Wu 1989, eq. 2.1).
    """
    rng = np.random.default_rng(seed)
    n = min(len(a), len(b))
    size = min(size, n // 2)
    found = []
    for _ in range(rounds):
        first = rng.permutation(len(a))[:size]
        second = first if paired else rng.permutation(len(b))[:size]
        found.append(kid(a[first], b[second], paired))
    spread = 1.96 * np.std(found, ddof=1) * np.sqrt(size / (n - size))
    middle = kid(a, b, paired)
    return float(middle - spread), float(middle + spread)
