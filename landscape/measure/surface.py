"""Loss along lines and over planes through theta, exactly as direct evaluation would give it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import plane as planes
from landscape.measure._axes import at_theta, own_grid, symmetric_grid
from landscape.measure._cells import Cells
from landscape.measure._common import Measuring, numbers
from landscape.measure._inside import spend
from landscape.measure._tiles import Tiles, risk_key
from landscape.plane import Plane
from landscape.results import Variable
from landscape.risk import EmpiricalRisk


def loss_slice(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    directions: Plane | None = None,
    num_directions: int = 8,
    normalize: str = "filter",
    one_d: str = "zero",
    radius: float = 1.0,
    points: int = 21,
    alphas: Float[np.ndarray, "a"] | None = None,
    bn: str = "recalibrate",
    also: Mapping[str, EmpiricalRisk] | None = None,
    name: str = "loss_slice",
    seed: int,
) -> xr.Dataset:
    """L(theta + alpha d_i) for alpha in [-radius, radius] along several directions d_i.

    loss(direction, alpha) in nats and error_rate(direction, alpha), each equal to direct evaluation
    of the risk there; alpha is in units of the direction, whose absolute length is
    direction_norm(direction). center_loss is the loss at theta, which every line holds at alpha =
    0; theta_norm tells the absolute scale of filter-normalized directions.
    directions: a `Plane` at theta (say of eigenvectors); else random ones of `seed`, the same draws
    for every model, normalized to this one (arXiv:1712.09913, section 4). alphas: own grid instead.
    bn="recalibrate" re-estimates BatchNorm's running statistics at every point; "eval" keeps those
    of the checkpoint, as the original did. NaN and infinity are kept as they are.

    loss_stderr = s / sqrt(N): how far the loss may lie from that of the population the N examples
    were drawn from; rise_stderr, the same for L(point) - L(theta), is smaller, because all cells
    use the same examples. Both hold the BatchNorm statistics fixed. also: risks of the same model
    on other data, {"test": risk}, give test_loss, test_error_rate and test_loss_stderr at the same
    points; under bn="recalibrate" with the BatchNorm statistics of the measured examples.
    Cost: num_directions * (points - 1) + 1 forward passes over the data, twice with recalibration.
    """
    own = risk.with_bn(bn)
    measuring = Measuring(name, own, theta)
    grid = symmetric_grid("alpha", radius, points) if alphas is None else own_grid("alpha", alphas)
    cells = Cells(measuring, also)
    if directions is None:
        directions = planes.random(
            own,
            measuring.theta,
            num_directions=num_directions,
            normalize=normalize,
            one_d=one_d,
            seed=seed,
        )
    line = at_theta(directions, measuring.theta)
    shape = (len(line.directions), len(grid))
    values = np.full((*shape, len(cells.names)), np.nan)
    for i, j in np.ndindex(shape):
        # The centre lies on every line; evaluated again on the first, it proves determinism.
        known = i > 0 and grid[j] == 0
        values[i, j] = cells.center if known else cells.at(line, [0.0] * i + [float(grid[j])])
    cells.check(values[:, grid == 0, 0])

    dims = ("direction", "alpha")
    variables = {
        **cells.variables(dims, values),
        "direction_norm": Variable("direction", numbers(line.norms), "1", "Length ‖d‖"),
        "center_loss": Variable((), cells.loss, "nats", "Loss of the checkpoint"),
        "theta_norm": Variable((), _norm(measuring.theta), "1", "Parameter norm ‖θ‖"),
    }
    coords = {
        "alpha": Variable("alpha", grid, "‖d‖", "Position α along the direction"),
        "direction": np.array(line.labels, dtype=object),
    }
    return measuring.result(
        variables, coords=coords, options={**line.provenance(), "seed": seed, **cells.provenance()}
    )


def loss_plane(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    directions: Plane | None = None,
    normalize: str = "filter",
    one_d: str = "zero",
    radius: float = 1.0,
    points: int = 21,
    alphas: Float[np.ndarray, "a"] | None = None,
    betas: Float[np.ndarray, "b"] | None = None,
    bn: str = "recalibrate",
    also: Mapping[str, EmpiricalRisk] | None = None,
    tiles: Path | None = None,
    name: str = "loss_plane",
    seed: int,
) -> xr.Dataset:
    """L(theta + alpha d_1 + beta d_2) on a grid that holds theta itself at (0, 0).

    loss(alpha, beta) in nats and error_rate(alpha, beta), each equal to direct evaluation of the
    risk there. axis_cosine is the cosine of the two axes (random ones are not orthogonalized, since
    that would break their filter norms); alpha_norm, beta_norm their absolute lengths.
    directions, normalize, one_d, bn, alphas, betas, also, standard errors: as for `loss_slice`. A
    random plane illustrates; it is not evidence: the spread over directions is as large as that
    between variants.
    tiles: a folder that keeps one file per alpha; the same call after Ctrl-C, a kill or a full disk
    goes on from there and gives the same arrays to the last bit. A damaged file is named in a
    warning and computed again; tiles of another grid are refused.
    Cost: points² forward passes over the data, twice with recalibration.
    """
    own = risk.with_bn(bn)
    measuring = Measuring(name, own, theta)
    first = symmetric_grid("alpha", radius, points) if alphas is None else own_grid("alpha", alphas)
    second = symmetric_grid("beta", radius, points) if betas is None else own_grid("beta", betas)
    cells = Cells(measuring, also)
    if directions is None:
        directions = planes.random(
            own, measuring.theta, num_directions=2, normalize=normalize, one_d=one_d, seed=seed
        )
    surface = at_theta(directions, measuring.theta, axes=2)
    values, tiled = _rows(cells, surface, first, second, tiles)
    cells.check(values[first == 0][:, second == 0, 0])

    dims = ("alpha", "beta")
    lengths = numbers(surface.norms)
    variables = {
        **cells.variables(dims, values),
        "center_loss": Variable((), cells.loss, "nats", "Loss of the checkpoint"),
        "axis_cosine": Variable((), float(surface.cosines[0, 1]), "1", "Cosine of the two axes"),
        "alpha_norm": Variable((), lengths[0], "1", "Length of the first axis"),
        "beta_norm": Variable((), lengths[1], "1", "Length of the second axis"),
        "theta_norm": Variable((), _norm(measuring.theta), "1", "Parameter norm ‖θ‖"),
    }
    coords = {
        "alpha": Variable("alpha", first, "‖d₁‖", f"α along {surface.labels[0]}"),
        "beta": Variable("beta", second, "‖d₂‖", f"β along {surface.labels[1]}"),
    }
    return measuring.result(
        variables,
        coords=coords,
        options={**surface.provenance(), "seed": seed, **cells.provenance(), **tiled},
    )


def _rows(
    cells: Cells, plane: Plane, first: np.ndarray, second: np.ndarray, folder: Path | None
) -> tuple[np.ndarray, dict[str, Any]]:
    """Values (alpha, beta, names) row by row, whole tiles read from disk; what to say of it."""

    def row(alpha: float) -> tuple[np.ndarray, float]:
        before = cells.risk.cost
        found = np.stack([cells.at(plane, [float(alpha), float(beta)]) for beta in second])
        return found, cells.risk.cost - before

    if folder is None:
        return np.stack([row(alpha)[0] for alpha in first]), {}
    key = {
        **risk_key(cells.risk),
        **{f"{name}_risk": risk_key(other) for name, other in cells.also.items()},
        "names": list(cells.names),
        "plane_sha256": plane.fingerprint(),
        "alphas": [float(alpha).hex() for alpha in first],
        "betas": [float(beta).hex() for beta in second],
    }
    store, parts, read = Tiles(folder, key), [], 0
    for i, alpha in enumerate(first):
        shape = (len(second), len(cells.names))
        values, cost, kept = store.get(f"alpha-{i:04d}", shape, lambda alpha=alpha: row(alpha))
        parts.append(values)
        # The result says what the grid cost, not what was left of it to pay.
        spend(cells.risk, cost if kept else 0.0)
        read += kept
    return np.stack(parts), {"tiles": len(parts), "tiles_resumed": read}


def _norm(theta: Tensor) -> float:
    return float(torch.linalg.vector_norm(theta))
