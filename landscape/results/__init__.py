"""Results: labelled arrays with units and provenance, saved whole or not at all, with a digest.

A measurement is an `xarray.Dataset`. Measurements of several runs are combined along `run`, with
`variant`, `seed` and `setting` as coordinates of it (studies are ragged: a dense variant x seed
cube would be mostly padding).

`ds` is such a Dataset, `path` the .nc file that holds it.
"""

from landscape.results import units
from landscape.results.combining import are_alike, combine, recombine
from landscape.results.files import Stored, digest, load, read, save
from landscape.results.schema import DIMENSIONS, SCHEMA, Variable, make, provenance, validate

__all__ = [
    "DIMENSIONS", "SCHEMA", "Stored", "Variable", "are_alike", "combine", "digest", "load", "make",
    "provenance", "read", "recombine", "save", "units", "validate",
]  # fmt: skip
