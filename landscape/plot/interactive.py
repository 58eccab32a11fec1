"""Figures for the page: plotly twins of `static`, with the same names, signatures and numbers.

`width` decides only on the number of columns; the page decides on pixels. `CONFIG` is the
configuration to show them with: nothing is sent anywhere.
"""

from collections.abc import Sequence
from pathlib import Path

import plotly.graph_objects as go
import xarray as xr
from plotly.offline import get_plotlyjs

from landscape.errors import LandscapeError
from landscape.plot import figures
from landscape.plot._plotly import CONFIG, render
from landscape.storage import write_text

__all__ = [
    "CONFIG",
    "energy_over_time",
    "flatness_vs_accuracy",
    "gradient_zscores",
    "headline",
    "hessian_trace",
    "history",
    "loss_plane",
    "loss_slice",
    "mask_overlap",
    "mask_persistence",
    "perturbation",
    "perturbation_over_time",
    "render",
    "save",
    "sharpness",
    "spectral_density",
    "top_eigenvalues",
]


def save(figure: go.Figure, path: Path, *, shared: bool = False) -> Path:
    """Write a page of one figure that opens without a network (.html).

    It holds plotly.js (5 MB); `shared` puts that beside it once, as plotly.min.js, for many pages.
    """
    path = Path(path)
    if path.suffix != ".html":
        raise LandscapeError(f"{path.name} ends in {path.suffix!r}; a page is written as .html.")
    if shared and not (path.parent / "plotly.min.js").exists():
        write_text(path.parent / "plotly.min.js", get_plotlyjs())
    source = "directory" if shared else True
    return write_text(path, figure.to_html(config=CONFIG, include_plotlyjs=source))


def headline(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    metric: str = "test_accuracy",
    references: Sequence[str] = ("sgd", "sam"),
    width: str | float = "neurips",
) -> go.Figure:
    """Accuracy of each variant with seeds and 95 % intervals; paired differences beside it."""
    drawing = figures.headline(ds, setting=setting, metric=metric, references=references)
    return render(drawing, width=width)


def flatness_vs_accuracy(
    generalization: xr.Dataset,
    eigenvalues: xr.Dataset | None = None,
    sharpness: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    rho: float | None = None,
    metric: str = "test_accuracy",
    width: str | float = "neurips",
) -> go.Figure:
    """Accuracy against lambda_1, Gaussian sharpness and training loss."""
    drawing = figures.flatness_vs_accuracy(
        generalization, eigenvalues, sharpness, setting=setting, rho=rho, metric=metric
    )
    return render(drawing, width=width)


def history(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    width: str | float = "neurips",
) -> go.Figure:
    """Training loss and validation accuracy over epochs."""
    drawing = figures.history(ds, setting=setting)
    return render(drawing, width=width)


def top_eigenvalues(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    width: str | float = "neurips",
) -> go.Figure:
    """Leading Hessian eigenvalues with residuals; unconverged ones hollow."""
    drawing = figures.top_eigenvalues(ds, setting=setting)
    return render(drawing, width=width)


def hessian_trace(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    width: str | float = "neurips",
) -> go.Figure:
    """Trace of the Hessian with its standard error and 95 % interval."""
    drawing = figures.hessian_trace(ds, setting=setting)
    return render(drawing, width=width)


def spectral_density(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    reference: str = "sgd",
    width: str | float = "neurips",
) -> go.Figure:
    """Density of Hessian eigenvalues, one panel per variant."""
    drawing = figures.spectral_density(ds, setting=setting, reference=reference)
    return render(drawing, width=width)


def sharpness(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    reference: str = "sgd",
    width: str | float = "neurips",
) -> go.Figure:
    """Loss increase against radius, and its ratio to the reference."""
    drawing = figures.sharpness(ds, setting=setting, reference=reference)
    return render(drawing, width=width)


def loss_slice(
    ds: xr.Dataset,
    other: xr.Dataset | None = None,
    *,
    setting: str | None = None,
    references: tuple[str, ...] = ("sgd", "sam"),
    width: str | float = "neurips",
) -> go.Figure:
    """Loss along random directions in two windows, each BatchNorm mode in its own columns."""
    drawing = figures.loss_slice(ds, other, setting=setting, references=references)
    return render(drawing, width=width)


def loss_plane(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    levels: int = 15,
    width: str | float = "neurips",
) -> go.Figure:
    """Loss on a random plane through each model, with shared levels."""
    drawing = figures.loss_plane(ds, setting=setting, levels=levels)
    return render(drawing, width=width)


def gradient_zscores(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    tensors: tuple[str, ...] | None = None,
    width: str | float = "neurips",
) -> go.Figure:
    """Density of the standardized gradient per tensor."""
    drawing = figures.gradient_zscores(ds, setting=setting, tensors=tensors)
    return render(drawing, width=width)


def perturbation(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    width: str | float = "neurips",
) -> go.Figure:
    """Energy share, parameter share and density per tensor."""
    drawing = figures.perturbation(ds, setting=setting)
    return render(drawing, width=width)


def energy_over_time(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    width: str | float = "neurips",
) -> go.Figure:
    """Share of the perturbation's energy by kind of tensor over epochs."""
    drawing = figures.energy_over_time(ds, setting=setting)
    return render(drawing, width=width)


def perturbation_over_time(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    width: str | float = "neurips",
) -> go.Figure:
    """Effective radius, gradient agreement and loss increase over epochs."""
    drawing = figures.perturbation_over_time(ds, setting=setting)
    return render(drawing, width=width)


def mask_overlap(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    references: tuple[str, ...] = ("sgd", "sam"),
    width: str | float = "neurips",
) -> go.Figure:
    """Cohen's kappa between the masks of all variants at one theta."""
    drawing = figures.mask_overlap(ds, setting=setting, references=references)
    return render(drawing, width=width)


def mask_persistence(
    ds: xr.Dataset,
    *,
    setting: str | None = None,
    width: str | float = "neurips",
) -> go.Figure:
    """Cohen's kappa between masks by the steps between them."""
    drawing = figures.mask_persistence(ds, setting=setting)
    return render(drawing, width=width)
