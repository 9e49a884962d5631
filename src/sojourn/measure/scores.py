"""Formulas that compare sets of pictures by their features. Pure functions; knows nothing about files or models.

Features are (n, d) float64 arrays, one row a picture; every score says so by the name of what made the features.
"""

from __future__ import annotations

from collections.abc import Callable

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


def kid(a: Array, b: Array) -> float:
    """Squared maximum mean discrepancy of a (n, d) and b (m, d), unbiased: around 0 for equal distributions.

    Kernel (x.y / d + 1)^3. Source: Binkowski et al. 2018, sec. 4 and eq. 4.
    """
    d = a.shape[1]
    aa, bb, ab = ((x @ y.T / d + 1) ** 3 for x, y in ((a, a), (b, b), (a, b)))
    n, m = len(a), len(b)
    within = (aa.sum() - np.trace(aa)) / (n * (n - 1)) + (bb.sum() - np.trace(bb)) / (m * (m - 1))
    return float(within - 2 * ab.mean())


def precision_recall(real: Array, fake: Array, k: int = 3) -> tuple[float, float]:
    """Share of fakes within the real manifold, and of reals within the fake one; a manifold is the balls that reach
    to each row's k-th neighbour. Source: Kynkaanniemi et al. 2019, eq. 1 and 2.
    """

    def inside(points: Array, centres: Array) -> float:
        reach = np.sort(distances(centres, centres), axis=1)[:, k]  # column 0 is the row itself
        return float((distances(points, centres) <= reach[None]).any(axis=1).mean())

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


def near_copies(fake: Array, train: Array, held_out: Array) -> tuple[Array, float]:
    """Which rows of fake (n, d) lie nearer to a training row than 99 % of the held-out rows do: (n,) bool, and that
    distance. Source: after Meehan et al. 2020 (held-out data as the measure of what is too near).
    """
    bar = float(np.percentile(distances(held_out, train).min(axis=1), 1))
    out: Array = distances(fake, train).min(axis=1) < bar
    return out, bar


def interval(values: Array, score: Callable[[Array], float], rounds: int = 200, seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of score over the rows of values. Source: Efron 1979, percentile form."""
    rng = np.random.default_rng(seed)
    found = [score(values[rng.integers(len(values), size=len(values))]) for _ in range(rounds)]
    return float(np.percentile(found, 2.5)), float(np.percentile(found, 97.5))


def kid_interval(a: Array, b: Array, size: int = 500, rounds: int = 100, seed: int = 0) -> tuple[float, float]:
    """95 % interval of the mean KID over random subsets of `size` rows without replacement (Binkowski 2018, sec. 4).

    Subsets are drawn within each side, so that no row meets itself, which would bias the estimate upward.
    """
    rng = np.random.default_rng(seed)
    size = min(size, len(a), len(b))
    found = np.array([kid(a[rng.permutation(len(a))[:size]], b[rng.permutation(len(b))[:size]]) for _ in range(rounds)])
    # The spread over subsets is that of `size` rows; the whole set's is smaller by the root of the ratio.
    spread = 1.96 * found.std(ddof=1) * np.sqrt(size / min(len(a), len(b)))
    middle = kid(a, b)
    return float(middle - spread), float(middle + spread)
