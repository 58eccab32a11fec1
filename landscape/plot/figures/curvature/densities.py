"""Density of Hessian eigenvalues on one grid: near and far, linear and logarithmic."""

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs
from landscape.plot.drawing import Axis, Band, Dash, Drawing, Line, Mark, Panel, Points
from landscape.plot.runs import VariantRuns
from landscape.streams import quadrature_bracket, student

_POINTS = 480
_WIDTH = 0.005  # of the range, or
_DECADES = 0.1  # in decades: what a point mass is drawn with
_FLOOR = 1e-5  # of what would be even
# Quadrature of a few dozen nodes does not resolve the cluster at 0, not even its sign.
_RESOLVED = 1e-3  # of the largest eigenvalue


def spectral_density(
    ds: xr.Dataset, *, setting: str | None = None, reference: str = "sgd"
) -> Drawing:
    """Density of Hessian eigenvalues by stochastic Lanczos quadrature, one panel per variant.

    All variants stand on one grid; the band is two standard errors over the probes.

    Example:
        >>> drawing = figures.spectral_density(runs["spectral_density"])
        >>> drawing.title
        'Spectral density of the Hessian'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "ritz_value", "weight")
    grid, sigma = _linear_grid(ds)
    found = list(runs.variants(ds))
    panels = []
    for v in found:
        marks: list[Mark] = []
        base = runs.partner(found, v, reference)
        if base is not None:
            marks += _density(base, grid, sigma, band=False, width=0.9)
        marks += _density(v, grid, sigma)
        panels.append(
            Panel(Axis("eigenvalue", "nats"), Axis("density", "1/nats", log=True), tuple(marks),
                  v.label)
        )  # fmt: skip
    return Drawing(
        "spectral_density",
        "Spectral density of the Hessian",
        f"Stochastic Lanczos quadrature, mean of {_probes(ds)}, first seed only, drawn as "
        f"Gaussians of width {sigma:.2g} nats on one grid. BatchNorm mode "
        f"{runs.provenance(ds, 'bn')}.",
        tuple(panels),
        columns=4,
        panel_height=1.15,
        share_x="all",
        share_y="all",
    )


def spectral_views(ds: xr.Dataset, *, setting: str | None = None) -> Drawing:
    """The same densities over each other, by magnitude, and what they sum up to.

    Linear and logarithmic view on one grid, effective dimension sum λ⁺ / (λ⁺ + z) against z where
    it was measured, and the share of eigenvalues below -z. Bands of the densities: two standard
    errors over probes; of the two sums: 95 % intervals over probes of what their nodes prove.

    Example:
        >>> drawing = figures.spectral_views(runs["spectral_density"])
        >>> drawing.title
        'Spectra of the Hessian on one grid'
    """
    ds = runs.first_seeds(runs.in_setting(ds, setting))
    runs.require(ds, "ritz_value", "weight")
    found = list(runs.variants(ds))
    grid, sigma = _linear_grid(ds)
    near = [mark for v in found for mark in _density(v, grid, sigma)]
    density = Axis("density", "1/nats", log=True)
    panels = [Panel(Axis("eigenvalue", "nats"), density, tuple(near), "linear view")]
    panels.append(_magnitudes(ds, found))
    if "effective_dimension_low" in ds:
        panels.append(_dimension(found))
    panels.append(_negative(ds, found))
    return Drawing(
        "spectral_views",
        "Spectra of the Hessian on one grid",
        f"Stochastic Lanczos quadrature, mean of {_probes(ds)}; first seed only. Logarithmic view: "
        "share of the eigenvalues per decade of |λ|, positive solid, negative dashed. Effective "
        "dimension: how many directions curve more than z. Last: the share of eigenvalues below "
        "−z; bands of these two: 95 % intervals that also hold what lies between the nodes. Left "
        f"out: |λ| below {_RESOLVED:g} of the largest, where some dozen nodes tell "
        f"neither size nor sign. BatchNorm mode {runs.provenance(ds, 'bn')}.",
        tuple(panels),
        columns=2,
        panel_height=1.75,
        narrowest=2.2,
    )


def _probes(ds: xr.Dataset) -> str:
    count = ds.sizes["probe"]
    if count < 2:
        return "1 probe (no band)"
    return f"{count} probes that all models share, band: two standard errors over them"


def _linear_grid(ds: xr.Dataset) -> tuple[np.ndarray, float]:
    low, high = float(ds.ritz_value.min()), float(ds.ritz_value.max())
    reach = max(high - low, 1e-12)
    return np.linspace(low - 0.05 * reach, high + 0.05 * reach, _POINTS), _WIDTH * reach


def _density(
    v: VariantRuns, grid: np.ndarray, sigma: float, *, band: bool = True, width: float = 1.2
) -> list[Mark]:
    run = v.ds.isel(run=0)
    per_probe = stats.broaden(run.ritz_value.values, run.weight.values, grid, sigma=sigma)
    floor = _FLOOR / (grid[-1] - grid[0])
    return _curve(v, grid, per_probe, floor, band=band, width=width)


def _curve(
    v: VariantRuns,
    x: np.ndarray,
    per_probe: np.ndarray,
    floor: float,
    *,
    band: bool = True,
    width: float = 1.2,
    dash: Dash = "solid",
    legend: bool = True,
) -> list[Mark]:
    """Mean over probes where it is above the floor, and two standard errors around it."""
    mean, count = per_probe.mean(0), len(per_probe)
    shown = mean > floor
    if not shown.any():
        return []
    line = Line(x, np.where(shown, mean, np.nan), v.label, v.color, dash=dash, width=width,
                legend=legend, symbol=v.symbol if legend else "none")  # fmt: skip
    if count < 2 or not band:
        return [line]
    error = 2 * per_probe.std(0, ddof=1) / np.sqrt(count)
    low, high = np.maximum(mean - error, floor), mean + error
    # One band per stretch above the floor: a page would fill the gaps of a single one.
    edges = np.flatnonzero(np.diff(shown.astype(int))) + 1
    stretches = [part for part in np.split(np.arange(len(x)), edges) if shown[part[0]]]
    return [
        *(Band(x[part], low[part], high[part], v.label, v.color) for part in stretches),
        line,
    ]


def _magnitudes(ds: xr.Dataset, found: list[VariantRuns]) -> Panel:
    largest = float(np.abs(ds.ritz_value).max())
    decades = np.linspace(np.log10(_RESOLVED * largest), np.log10(2 * largest), _POINTS)
    marks: list[Mark] = []
    for v in found:
        run = v.ds.isel(run=0)
        nodes, weights = run.ritz_value.values, run.weight.values
        size = np.log10(np.maximum(np.abs(nodes), 1e-6 * largest))
        for sign in (1, -1):
            part = np.where(sign * nodes > 0, weights, 0.0)
            per_probe = stats.broaden(size, part, decades, sigma=_DECADES)
            marks += _curve(v, 10**decades, per_probe, 1e-4, dash="solid" if sign > 0 else "dash",
                            legend=sign > 0)  # fmt: skip
    return Panel(
        Axis("|eigenvalue|", "nats", log=True),
        Axis("share per decade", log=True),
        tuple(marks),
        "logarithmic view",
    )


def _dimension(found: list[VariantRuns]) -> Panel:
    marks: list[Mark] = []
    for v in found:
        run = v.ds.isel(run=0)
        z, mean = run["shift"].values, run.effective_dimension.values
        low, high = run.effective_dimension_low.values, run.effective_dimension_high.values
        if np.isfinite(low).all():
            # The axis is logarithmic: an interval that reaches 0 ends at its smallest mean.
            marks.append(Band(z, low.clip(min=mean.min() / 10), high, v.label, v.color))
        marks.append(Line(z, mean, v.label, v.color, symbol=v.symbol))
        marks.append(Points(z, mean, v.label, v.color, v.symbol, size=3, legend=False))
    return Panel(
        Axis("z", "nats", log=True),
        Axis("effective dimension", log=True),
        tuple(marks),
        "directions that curve more than z",
    )


def _negative_band(
    v: VariantRuns, z: np.ndarray, nodes: np.ndarray, weights: np.ndarray, floor: float
) -> list[Mark]:
    """95 % interval of the share below -z in %: over probes, of what their nodes prove."""
    if len(nodes) < 2:
        return []
    lower, upper = quadrature_bracket(
        nodes, weights, lambda x: (x[..., None] >= -z).astype(np.float64)
    )
    low, high = student(1 - upper, 1 - lower)
    return [Band(z, (100 * low).clip(floor, 100), (100 * high).clip(floor, 100), v.label, v.color)]


def _negative(ds: xr.Dataset, found: list[VariantRuns]) -> Panel:
    largest = float(np.abs(ds.ritz_value).max())
    deepest = max(float(-ds.ritz_value.min()), 2 * _RESOLVED * largest)
    z = np.geomspace(_RESOLVED * largest, deepest, 80)
    marks: list[Mark] = []
    for v in found:
        run = v.ds.isel(run=0)
        nodes, weights = run.ritz_value.values, run.weight.values
        floor = 100 / int(runs.provenance(ds, "num_parameters") or 10**6)
        share = 100 * (weights[..., None] * (nodes[..., None] < -z)).sum(1)
        marks += _negative_band(v, z, nodes, weights, floor)
        marks += _curve(v, z, share, floor, band=False)
    return Panel(
        Axis("z", "nats", log=True),
        Axis("eigenvalues below −z", "%", log=True),
        tuple(marks),
        "negative eigenvalues",
    )
