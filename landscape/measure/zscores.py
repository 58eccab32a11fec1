"""How the gradient is distributed within each tensor, and what a z-score filter would keep."""

import math

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.measure._common import Measuring, check_count, split, tensor_coords
from landscape.results import Variable
from landscape.risk import EmpiricalRisk
from landscape.streams import Grid, Histogram, Moments, host

FLAGS = ("", "zero variance", "one element", "few elements")
_ROWS = (
    ("mean", "nats / parameter", "Mean of the gradient, μ"),
    ("std", "nats / parameter", "Standard deviation of the gradient, σ"),
    ("mean_over_std", "1", "Mean over standard deviation, μ/σ"),
    ("skewness", "1", "Skewness of z"),
    ("excess_kurtosis", "1", "Excess kurtosis of z"),
    ("threshold", "1", "Threshold on |z|"),
    ("kept_share", "1", "Share of coordinates kept"),
    ("captured_energy", "1", "Share of ‖g‖² kept"),
    ("topk_jaccard", "1", "Jaccard of the z-mask and the top-|g| mask"),
    ("overflow", "1", "Share of z outside the histogram"),
)


def gradient_zscores(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    percentile: float = 0.95,
    grid: Grid = Grid(bins=241),  # noqa: B008 - frozen
) -> xr.Dataset:
    """Distribution of z = (g - mu) / sigma in each tensor of the gradient, and what |z| selects.

    mu and sigma (unbiased) run over the elements of the tensor (arXiv:2505.02369). density(tensor,
    bin): probability density of z on [-12, 12), the share beyond in overflow(tensor).
    threshold(tensor): quantile of |z| at `percentile`, linear between order statistics;
    the mask is |z| > threshold, strictly, which keeps (n-1) - floor(percentile (n-1)) elements when
    there are no ties (kept_share). captured_energy: ‖m g‖²/‖g‖²; topk_jaccard: against the mask of
    the equally many largest |g|, 1 where centring changes nothing. Standardized normal law at 0.95:
    threshold 1.960, captured energy 0.279; Laplace 2.118 and 0.42.
    flag(tensor): "zero variance" and "one element" (all values NaN), "few elements" where
    n < 1/(1-percentile) and the kept share cannot be 1-percentile. Cost: one gradient.
    """
    if not 0 <= percentile < 1:
        raise LandscapeError(
            f"percentile={percentile} was asked; it is a quantile level in [0, 1), such as 0.95."
        )
    check_count("bins", grid.bins, 1)
    measuring = Measuring("gradient_zscores", risk, theta)
    loss, g = risk.loss_and_gradient(measuring.theta)
    measuring.check_loss(loss)
    rows = [tensor_zscores(part, percentile, grid) for part in split(risk.layout, g)]
    variables = {
        name: Variable("tensor", np.array([row[name] for row in rows]), units, long_name)
        for name, units, long_name in _ROWS
    }
    variables["density"] = Variable(
        ("tensor", "bin"), np.stack([row["density"] for row in rows]), "1", "Density of z"
    )
    variables["flag"] = Variable(
        "tensor", np.array([row["flag"] for row in rows], dtype=object), "1", "What is unusual"
    )
    coords = {
        **tensor_coords(risk.layout),
        "bin": np.arange(grid.bins),
        "z": Variable("bin", grid.centres, "1", "z-score"),
    }
    options = {"percentile": percentile, "source": "gradient of the risk"}
    return measuring.result(variables, coords=coords, options=options)


def tensor_zscores(g: Float[Tensor, "n"], percentile: float, grid: Grid) -> dict[str, object]:
    """The statistics of one tensor's gradient, as `gradient_zscores` names them."""
    g = g.detach().reshape(-1)
    moments = Moments.of(g)
    row: dict[str, object] = {name: math.nan for name, _, _ in _ROWS}
    row |= {"density": np.full(grid.bins, np.nan), "mean": moments.mean, "std": moments.std}
    if g.numel() == 1:
        return row | {"flag": "one element"}
    # Equal elements leave a sigma of rounding, not of signal.
    scale = max(abs(moments.mean), float(g.abs().max()))
    if not moments.std > 10 * torch.finfo(g.dtype).eps * scale:
        return row | {"flag": "zero variance"}
    z = (g.double() - moments.mean) / moments.std
    threshold, below = _quantile(z.abs(), percentile)
    mask = z.abs() > below
    kept = int(mask.sum())
    energy = g.double() ** 2
    histogram = Histogram.of(z, grid)
    return row | {
        "mean_over_std": moments.mean / moments.std,
        "skewness": moments.skewness,
        "excess_kurtosis": moments.excess_kurtosis,
        "threshold": threshold,
        "kept_share": kept / g.numel(),
        "captured_energy": float(energy[mask].sum() / energy.sum()),
        "topk_jaccard": _topk_jaccard(energy, mask, kept),
        "overflow": (histogram.below + histogram.above) / g.numel(),
        "density": histogram.density,
        "flag": "few elements" if g.numel() * (1 - percentile) < 1 else "",
    }


def _quantile(values: Tensor, level: float) -> tuple[float, float]:
    """Quantile, linear between order statistics, and the order statistic at or below it.

    Both compare equal to what lies between them, but rounding can push the first past a tie;
    torch.quantile stops at 2^24 elements.
    """
    position = level * (values.numel() - 1)
    rank = math.floor(position)
    ranks = [rank, min(rank + 1, values.numel() - 1)]
    low, high = np.partition(host(values), ranks)[ranks]
    return float(low + (position - rank) * (high - low)), float(low)


def _topk_jaccard(energy: Tensor, mask: Tensor, kept: int) -> float:
    if kept == 0:
        return math.nan
    # A tie at the edge of the top-k may be broken either way: it is counted for the z-mask.
    edge = torch.topk(energy, kept).values[-1]
    sure = energy > edge
    ties = int((mask & (energy == edge)).sum())
    common = int((mask & sure).sum()) + min(ties, kept - int(sure.sum()))
    return common / (2 * kept - common)
