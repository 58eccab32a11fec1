"""What every measurement shares: checks of theta, provenance, coordinates of tensors."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import results, seeds, vectors
from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.results import Variable
from landscape.risk import EmpiricalRisk
from landscape.streams import host, student

# How residuals are made where no bound is asked: see `certificates`.
RESIDUALS = ("float64", "none")


class Measuring:
    """One measurement under way: theta checked, cost counted, the result made.

    The cost is in gradient-equivalents of the risk. Seconds are not kept: the same call gives the
    same result to the last bit.
    """

    def __init__(self, name: str, risk: EmpiricalRisk, theta: Tensor) -> None:
        self.name, self.risk = name, risk
        self.theta = check_theta(risk, theta)
        self._cost, self._probes = risk.cost, risk.probes_asked

    def finite_loss(self) -> Tensor:
        """Loss at theta; a measurement around a point without a finite loss says so at once."""
        return self.check_loss(self.risk.loss(self.theta))

    def check_loss(self, loss: Tensor) -> Tensor:
        """The loss, refused if it is NaN or infinite."""
        if not math.isfinite(float(loss)):
            raise LandscapeError(
                f"{self.name} was asked at parameters whose loss is {float(loss)} on "
                f"{self.risk.num_examples} examples (bn={self.risk.bn!r}); it needs a finite loss. "
                f"Check the checkpoint and the scaling of the inputs."
            )
        return loss

    def result(
        self,
        variables: Mapping[str, Variable],
        *,
        coords: Mapping[str, Any] | None = None,
        options: Mapping[str, Any],
    ) -> xr.Dataset:
        """The Dataset, with the risk's provenance, the options and the cost."""
        # Where products were made the result says what a probe of them found.
        made = self.risk.probes_asked > self._probes
        probe = self.risk.probe().provenance(options.get("matrix", "hessian")) if made else {}
        provenance = {
            **self.risk.provenance(),
            **probe,
            "theta_sha256": self.risk.fingerprint(self.theta),
            "cost_gradients": round(float(self.risk.cost - self._cost), 2),
            **options,
            **(self._certified(options) if made else {}),
        }
        return results.make(self.name, variables, coords=coords, provenance=provenance)

    def _certified(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """What was certified where the model has no float64."""
        probe = self.risk.probe()
        if options.get("certify", "none") == "none" or probe.has_float64:
            return {}
        return {"certify": "working", "certify_reason": f"no float64: {probe.failure}"}


def check_theta(risk: EmpiricalRisk, theta: Tensor, *, name: str = "theta") -> Tensor:
    """Theta on the risk's device and in its dtype; refused if of another model or not finite."""
    placed = _placed(risk, theta, name)
    _refuse_infinite([placed])
    return placed


def check_checkpoints(risk: EmpiricalRisk, thetas: Sequence[Tensor]) -> list[Tensor]:
    """`check_theta` of each, waiting for the device once."""
    placed = [_placed(risk, theta, f"checkpoint {i}") for i, theta in enumerate(thetas)]
    if placed:
        _refuse_infinite(placed)
    return placed


def _placed(risk: EmpiricalRisk, theta: Tensor, name: str) -> Tensor:
    expected = risk.layout.num_parameters
    if not isinstance(theta, Tensor):
        raise LandscapeError(
            f"{name} is a {type(theta).__name__}; pass a flat tensor of the model's {expected} "
            f"trainable parameters, such as risk.theta."
        )
    if theta.shape != (expected,):
        raise LandscapeError(
            f"{name} has shape {tuple(theta.shape)} where the model has P = {expected} trainable "
            f"parameters; pass a flat vector, such as risk.theta."
        )
    return theta.detach().to(device=risk.device, dtype=risk.dtype)


def _refuse_infinite(thetas: Sequence[Tensor]) -> None:
    """Refuse the first that is not finite; the device is asked once for all of them."""
    if bool(torch.stack([vectors.is_finite(theta) for theta in thetas]).all()):
        return
    bad = next(bad for theta in thetas if (bad := int((~torch.isfinite(theta)).sum())))
    raise LandscapeError(
        f"{bad} of {thetas[0].numel()} parameters are NaN or infinite; the checkpoint diverged. "
        f"Measure an earlier one."
    )


def generator(seed: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of its own: the global ones are never touched."""
    return seeds.generator(seed, purpose="measurement", device=device)


def normal_draws(
    seed: int, num: int, like: Float[Tensor, "P"], *, offset: int = 0
) -> Float[Tensor, "num P"]:
    """Standard normal rows, the same for every dtype and device: drawn in float64 on the CPU."""
    source = generator(seed + 1_000_003 * offset)
    rows = like.new_empty((num, like.numel()))
    for row in rows:
        row.copy_(vectors.drawn(partial(torch.randn, generator=source, dtype=torch.float64), like))
    return rows


def interval(name: str, samples: np.ndarray, dims: Any, units: str) -> dict[str, Variable]:
    """Variables <name>_low and <name>_high: Student's 95 % interval over probes, the first axis."""
    low, high = student(samples)
    return {
        f"{name}_low": Variable(dims, low, units, "95 % interval over probes, from"),
        f"{name}_high": Variable(dims, high, units, "95 % interval over probes, to"),
    }


def split(layout: ParamLayout, theta: Tensor) -> list[Tensor]:
    """Flat pieces of theta, one per tensor in registration order (views)."""
    return [theta[tensor.start : tensor.stop] for tensor in layout.tensors]


def tensor_coords(layout: ParamLayout) -> dict[str, Any]:
    """Coordinates along `tensor`: name, kind, size and number of axes."""
    tensors = layout.tensors
    return {
        "tensor": np.array([tensor.name for tensor in tensors], dtype=object),
        "kind": ("tensor", np.array([tensor.kind for tensor in tensors], dtype=object)),
        "size": ("tensor", np.array([tensor.numel for tensor in tensors])),
        "ndim": ("tensor", np.array([len(tensor.shape) for tensor in tensors])),
    }


def pair_coords(pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Coordinates along `pair`: both names together, the first and the second."""
    return {
        "pair": np.array([f"{a} | {b}" for a, b in pairs], dtype=object),
        "first": ("pair", np.array([a for a, _ in pairs], dtype=object)),
        "second": ("pair", np.array([b for _, b in pairs], dtype=object)),
    }


def numbers(values: Any) -> np.ndarray:
    """A float64 array of tensors, numbers or (lists of) lists of tensors; waits once."""
    return host(_stacked(values)).astype(np.float64)


def _stacked(values: Any) -> Any:
    if not isinstance(values, (list, tuple)) or not len(values):
        return values
    parts = [_stacked(value) for value in values]
    if not isinstance(parts[0], Tensor):
        return parts
    return torch.stack([part.detach() for part in parts])
