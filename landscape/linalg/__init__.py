"""Eigenvalues, spectral density and trace of a linear operator that is known by its products.

Nothing here knows of networks: a `matvec` maps (size,) to (size,), and every random number comes
from the generator that is passed.
"""

from landscape.linalg import density, lanczos, trace

__all__ = ["density", "lanczos", "trace"]
