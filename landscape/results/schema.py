"""The schema of results: labelled arrays with units and provenance.

Every variable carries `units` and `long_name`; everything that is needed to repeat a measurement
is one JSON string, `attrs["provenance"]`. Measurements of several runs are combined along `run`
(studies are ragged: a dense variant x seed cube would be mostly padding)
with these coordinates of it:

run: the name of its folder. setting, seed. variant, label: the *row*, by which runs are grouped,
"sam" or "sam rho=0.05, lr=0.1": a variant of the study file with a value of each of its axes. Runs
of one row and setting differ in their seed alone. family: the variant of the file that the row is
of; it is `variant` where the study has no axes. axes: JSON of the run's values on all axes of the
study, {"rho": 0.05, "lr": 0.1}; an axis that the recipe has not (rho of SGD) is absent. Two rows
are comparable where their axes agree as far as both have them. One coordinate per axis, and always
rho, lr and batch_size: NaN or "" where a run has no such value. place: order of the rows.
train_seconds.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr

from landscape.errors import LandscapeError
from landscape.results import units

SCHEMA = 2  # 1: without a digest; the rules are in docs/explanation/formats.md

DIMENSIONS: Mapping[str, str] = {
    "run": "one training: setting x variant x axes x seed",
    "variant": "a named SAM recipe, with its values on the axes of the study",
    "seed": "initial weights and data order",
    "epoch": "passes over the training data, counted from 1",
    "step": "optimizer steps, counted from 0",
    "rank": "eigenvalues in descending order",
    "probe": "random vectors of a stochastic estimate",
    "node": "quadrature nodes of a spectral density",
    "alpha": "coordinate along the first direction",
    "beta": "coordinate along the second direction",
    "direction": "directions of a slice",
    "tensor": "named parameters in registration order",
    "bin": "bins of a histogram",
    "lag": "steps between two masks",
    "pair": "two masks or two models that are compared",
    "other": "the second model of a pair, by the name of its run",
    "point": "named models on a plane",
    "rho": "radius of a perturbation",
    "example": "rows of the data",
    "batch": "mini-batches",
    "percentile": "quantile levels in [0, 1]",
    "parameter": "coordinates of theta",
    "block": "sets of tensors: one tensor, a module, a kind",
    "fold": "parts of the data that take turns",
    "shift": "numbers added to eigenvalues",
    "sample_size": "examples of a subset of the data",
    "level": "numbers that |z| is compared with",
    "law": "laws of probability that are compared with",
    "share": "shares of the coordinates, largest first",
    "probability": "levels of quantiles, denser in the tails",
    "module": "modules of a network in the order of the forward pass",
    "corruption": "what is done to weights or inputs",
    "severity": "strengths of a corruption, 1 the mildest",
    "comparison": "which masks are compared",
    "control": "masks that a variant's own is compared with",
    "support": "tensors that may be perturbed",
    "channel": "output channels of a layer",
    "input": "input channels of a layer",
}


@dataclass(frozen=True)
class Variable:
    """Values with the words a figure needs: dimensions, units ("1" if none), and a long name.

    dims: a name or several. values: an array with an axis for each. units: in words, as "nats".
    long_name: as it stands on an axis.

    Example:
        >>> results.Variable("seed", [0.91, 0.93], units="1", long_name="test accuracy").units
        '1'
    """

    dims: tuple[str, ...] | str
    values: Any
    units: str
    long_name: str

    def as_xarray(self) -> xr.Variable:
        """The same with its words as attributes."""
        attrs = {"units": self.units, "long_name": self.long_name}
        return xr.Variable(self.dims, np.asarray(self.values), attrs)


def make(
    measurement: str,
    variables: Mapping[str, Variable],
    *,
    coords: Mapping[str, Any] | None = None,
    provenance: Mapping[str, Any],
) -> xr.Dataset:
    """Build a result; coordinates may be arrays, (dims, array) pairs, or `Variable`s.

    variables: name -> `Variable`. coords: of the dimensions. provenance: what a reader must know;
    where it names a "loss" that is no log-likelihood, "nats" in units become "loss units".

    Example:
        >>> ds = results.make(
        ...     "my_norm",
        ...     {"my_norm": results.Variable((), 3.0, "1", "norm of mine")},
        ...     provenance={"seed": 0},
        ... )
        >>> float(ds.my_norm), ds.my_norm.attrs["long_name"]
        (3.0, 'norm of mine')
    """
    data = {name: variable.as_xarray() for name, variable in variables.items()}
    labels = {
        name: value.as_xarray() if isinstance(value, Variable) else value
        for name, value in (coords or {}).items()
    }
    attrs = {
        "measurement": measurement,
        "landscape_schema": SCHEMA,
        "provenance": json.dumps(dict(provenance), sort_keys=True, default=_jsonable),
    }
    unit = units.of_loss(str(provenance["loss"])) if "loss" in provenance else units.NATS
    return validate(units.said_in(xr.Dataset(data, coords=labels, attrs=attrs), unit))


def _jsonable(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    return str(value)


def provenance(ds: xr.Dataset) -> dict[str, Any]:
    """Provenance of a result; for a combined one, a list under "runs".

    Example:
        >>> how = results.provenance(measure.norms(risk, theta))
        >>> how["bn"], how["num_examples"], how["dtype"]
        ('eval', 48, 'float64')
    """
    return json.loads(ds.attrs["provenance"])


def validate(ds: xr.Dataset) -> xr.Dataset:
    """Return `ds` or say which rule of the schema it breaks.

    The rules are those at the head of `landscape.results.schema`: dimensions with known names,
    units and long_name for every variable, provenance.

    Example:
        >>> results.validate(measure.norms(risk, theta)).attrs["measurement"]
        'norms'
    """
    if ds.attrs.get("landscape_schema") != SCHEMA:
        raise LandscapeError(
            f"Result schema {ds.attrs.get('landscape_schema')} found where {SCHEMA} is read; "
            f"measure again with this version (`landscape measure STUDY`)."
        )
    unknown = sorted(str(dim) for dim in ds.dims if dim not in DIMENSIONS)
    if unknown:
        raise LandscapeError(
            f"Unknown dimension {', '.join(unknown)}; known: {', '.join(DIMENSIONS)}."
        )
    for name, variable in ds.data_vars.items():
        missing = [key for key in ("units", "long_name") if key not in variable.attrs]
        if missing:
            raise LandscapeError(f"Variable {name!r} has no {' and no '.join(missing)}.")
    return ds
