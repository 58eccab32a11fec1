"""Dose and response over variants: whether what differs in one quantity differs in another.

The variants are few and chosen, so they are permuted, not resampled. With covariates: Freedman and
Lane (1983), which permutes what the covariates leave of the response.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from landscape.errors import LandscapeError

_DRAWS = 4999
SMALLEST_DF = 3


@dataclass(frozen=True)
class Association:
    """Partial correlation r of dose and response over n variants, df = n − 2 − covariates left.

    p: one-sided, for r > 0, adjusted for all doses that were asked together.

    Example:
        >>> flatter, better = np.array([[1.0, 2, 3, 4, 5, 6]]), [1.0, 2, 3, 4, 5, 7]
        >>> [found] = stats.dose_response(flatter, better)
        >>> found.n, found.df, found.r > 0.9
        (6, 4, True)
    """

    r: float
    p: float
    n: int
    df: int


def dose_response(
    doses: ArrayLike, response: ArrayLike, given: ArrayLike | None = None
) -> list[Association]:
    """Correlation of each dose with the response, given covariates, tested jointly for r > 0.

    doses: (m, n), response: (n,), given: (k, n), one value per variant (means over its seeds).
    Variants without a finite response or covariate are left out, and a dose with any value missing
    among the others has r and p of its own complete variants, each such set counting once more.
    p: share of permutations of the response's residuals in which any dose of the set has as large a
    correlation. The answer does not depend on the order of variants. Below 3 degrees of freedom
    there is no p.
    r between -1 and 1. The permutations are those of Freedman & Lane (1983), the family is that of
    the largest r (Westfall & Young 1993).

    Example:
        >>> doses = np.array([[1.0, 2, 3, 4, 5, 6], [2.0, 1, 4, 3, 6, 5]])
        >>> found = stats.dose_response(doses, [1.0, 2, 3, 4, 5, 7])
        >>> [one.n for one in found], found[0].r > found[1].r
        ([6, 6], True)
    """
    x = np.atleast_2d(np.asarray(doses, float))
    y = np.asarray(response, float).ravel()
    z = np.zeros((0, y.size)) if given is None else np.atleast_2d(np.asarray(given, float))
    if x.shape[1] != y.size or z.shape[1] != y.size:
        raise LandscapeError(
            f"Doses of {x.shape[1]}, response of {y.size} and covariates of {z.shape[1]} variants; "
            f"give one value per variant in each."
        )
    usable = np.isfinite(y) & np.isfinite(z).all(0)
    sets: dict[bytes, list[int]] = {}
    for row in range(len(x)):
        sets.setdefault((usable & np.isfinite(x[row])).tobytes(), []).append(row)
    found: dict[int, Association] = {}
    for mark, rows in sets.items():
        keep = np.frombuffer(mark, bool)
        for row, one in zip(rows, _together(x[rows][:, keep], y[keep], z[:, keep]), strict=True):
            # Unlike min, numpy's minimum keeps NaN.
            found[row] = Association(one.r, float(np.minimum(one.p * len(sets), 1)), one.n, one.df)
    return [found[row] for row in range(len(x))]


def partial_correlation(x: ArrayLike, y: ArrayLike, given: ArrayLike | None = None) -> float:
    """Correlation of what covariates leave of x and y; NaN with too few complete variants.

    given: covariates (k, n). Returns r, between -1 and 1; by definition, the correlation of the
    residuals of two least-squares fits.

    Example:
        >>> x, z = np.array([1.0, 2, 3, 4, 5]), np.array([1.0, -1, 1, -1, 1])
        >>> round(float(stats.partial_correlation(x, 2 * x + z, given=[z])), 6)
        1.0
    """
    z = np.zeros((0, np.size(y))) if given is None else np.atleast_2d(np.asarray(given, float))
    table = np.vstack([np.asarray(x, float), np.asarray(y, float), z])
    a, b, *rest = table[:, np.isfinite(table).all(0)]
    return _plain(np.array([a]), b, np.array(rest).reshape(len(rest), b.size))[0]


def row_means(values: Mapping[str, Mapping[int, float]]) -> dict[str, float]:
    """Mean of each row over all seeds, also of a row that lacks some: value = row + seed + rest.

    values: row -> seed -> value, in any units, which those of the means are. By least squares
    (Yates 1934), so that rows with all seeds have their plain mean. A row that lacks the seed on
    which every row is bad would look good by that alone. NaN for a row without a value or with one
    that is not finite; plain means where rows without a chain of common seeds cannot be told from
    their seeds.

    Example:
        >>> means = stats.row_means({"a": {0: 1.0, 1: 3.0}, "b": {0: 1.0, 1: 3.0}, "c": {0: 1.0}})
        >>> [round(mean, 6) for mean in means.values()]
        [2.0, 2.0, 2.0]
    """
    plain = {
        row: float(np.mean(list(seeds.values()))) if seeds else math.nan
        for row, seeds in values.items()
    }
    known = [row for row, mean in plain.items() if math.isfinite(mean)]
    numbers = sorted({seed for row in known for seed in values[row]})
    runs = [(i, seed, value) for i, row in enumerate(known) for seed, value in values[row].items()]
    if len(runs) == len(known) * len(numbers):
        return plain
    design = np.zeros((len(runs), len(known) + len(numbers)))
    for k, (i, seed, _) in enumerate(runs):
        design[k, i] = design[k, len(known) + numbers.index(seed)] = 1
    effects, _, rank, _ = np.linalg.lstsq(design, np.array([v for *_, v in runs]))
    if rank < len(known) + len(numbers) - 1:
        return plain
    level = float(effects[len(known) :].mean())
    return plain | {row: float(effects[i]) + level for i, row in enumerate(known)}


def _together(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> list[Association]:
    n = y.size
    z = _informative(z)
    df = n - 2 - len(z)
    if df < SMALLEST_DF:
        return [Association(math.nan, math.nan, n, max(df, 0)) for _ in x]
    order = np.lexsort((*np.sort(x, axis=0), *z, y))
    x, y, z = x[:, order], y[order], z[:, order]
    rest = _residual_maker(z, n)
    doses, left = _unit(x @ rest), y @ rest
    r = _plain(x, y, z)
    if not np.isfinite(r).any():
        return [Association(math.nan, math.nan, n, df) for _ in x]
    rng = np.random.default_rng(19830292)
    permuted = left[rng.permuted(np.tile(np.arange(n), (_DRAWS, 1)), axis=1)]
    largest = (_unit(permuted @ rest) @ doses.T).max(1)
    p = (1 + (largest[None, :] >= r[:, None] - 1e-12).sum(1)) / (1 + _DRAWS)
    return [
        Association(float(a), float(b) if math.isfinite(a) else math.nan, n, df)
        for a, b in zip(r, p, strict=True)
    ]


def _plain(x: np.ndarray, y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """Partial correlation of each dose; NaN where nothing of it or of the response is left."""
    z = _informative(z)
    n = y.size
    if n - 2 - len(z) < 1:
        return np.full(len(x), np.nan)
    rest = _residual_maker(z, n)
    left, doses = y @ rest, x @ rest
    gone = np.linalg.norm(doses, axis=1) <= 1e-10 * np.linalg.norm(x - x.mean(1)[:, None], axis=1)
    if float(left @ left) <= 1e-20 * max(float(y @ y), 1e-300):
        return np.full(len(x), np.nan)
    return np.where(gone, np.nan, _unit(doses) @ _unit(left[None])[0])


def _informative(z: np.ndarray) -> np.ndarray:
    """Covariates in which variants differ: a constant one conditions on nothing."""
    return z[np.ptp(z, axis=1) > 1e-12 * np.abs(z).max(1, initial=0)] if z.size else z[:0]


def _residual_maker(z: np.ndarray, n: int) -> np.ndarray:
    basis, _ = np.linalg.qr(np.vstack([np.ones(n), _standard(z)]).T)
    return np.eye(n) - basis @ basis.T


def _standard(rows: np.ndarray) -> np.ndarray:
    if not len(rows):
        return rows
    return (rows - rows.mean(1, keepdims=True)) / rows.std(1, keepdims=True)


def _unit(rows: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(norms > 1e-12, rows / norms, 0.0)
