"""Seeds, intervals, simultaneous tests and rank correlation: what numbers of a study allow to say.

Everything takes plain arrays. Values that are not finite (a diverged run) are left out and counted
in `missing`; an estimate from one value has no interval (`low` and `high` are NaN).

`level` is the probability with which an interval covers, `seed` that of every random draw.
"""

from landscape.stats.axes import QUANTITIES, Choice, along_axis, axes_of, choose
from landscape.stats.densities import broaden
from landscape.stats.dose import (
    SMALLEST_DF,
    Association,
    dose_response,
    partial_correlation,
    row_means,
)
from landscape.stats.family import Contrast, Decision, simultaneous
from landscape.stats.intervals import (
    LEVEL,
    SMALLEST_WILCOXON,
    Interval,
    Paired,
    geometric_mean_ci,
    geometric_ratio,
    mean_ci,
    metric_ci,
    paired,
    sampling_error,
    wilcoxon,
)
from landscape.stats.ranks import RankCorrelation, kendall, partial_kendall
from landscape.streams import holm

__all__ = [
    "LEVEL",
    "QUANTITIES",
    "SMALLEST_DF",
    "SMALLEST_WILCOXON",
    "Association",
    "Choice",
    "Contrast",
    "Decision",
    "Interval",
    "Paired",
    "RankCorrelation",
    "along_axis",
    "axes_of",
    "broaden",
    "choose",
    "dose_response",
    "geometric_mean_ci",
    "geometric_ratio",
    "holm",
    "kendall",
    "mean_ci",
    "metric_ci",
    "paired",
    "partial_correlation",
    "partial_kendall",
    "row_means",
    "sampling_error",
    "simultaneous",
    "wilcoxon",
]
