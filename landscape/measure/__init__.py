"""Measurements: pure functions (risk, theta, *, options, seed) -> `xarray.Dataset`.

Each works at any flat theta of the risk's model, alters nothing, draws from its own seed, and
returns labelled values with units and provenance (`landscape.results`).

A name is loaded when it is first used; which names there are is in the stub beside this file.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
