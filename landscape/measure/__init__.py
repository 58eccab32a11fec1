"""Measurements: pure functions (risk, theta, *, options, seed) -> `xarray.Dataset`.

Each works at any flat theta of the risk's model, alters nothing, draws from its own seed, and
returns labelled values with units and provenance (`landscape.results`).

A name is loaded when it is first used; which names there are is in the stub beside this file.

What measurements share: `risk` is an `EmpiricalRisk` and `theta` (P,) the weights at which it is
measured, `risk.theta` for those of the model. `seed` is that of every random draw: the same seed
gives the same numbers. Variants are asked on a seeded batch of `batch_size` examples; `states` are
slot states of live optimizers by variant, `state` that of one. `k`, `tolerance`, `max_hvps`,
`failure_probability`, `certify` and `matrix` mean what they mean in `top_eigenvalues`;
`directions`, `normalize` and `one_d` what they mean in `loss_slice` and `plane.random`. A grid has
`points` points from -`radius` to `radius` along an axis. `bn` is a BatchNorm mode of
`EmpiricalRisk`, unless a function says otherwise.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
