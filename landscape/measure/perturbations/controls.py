"""Would another mask have done as well? A variant's perturbation beside matched controls."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Bool, Float
from torch import Tensor

from landscape import sam, vectors
from landscape.checks import check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring, generator, split, tensor_coords
from landscape.measure.perturbations.counterfactual import Counterfactual
from landscape.params import ParamLayout
from landscape.plane import is_one_d
from landscape.results import Variable
from landscape.risk import EmpiricalRisk
from landscape.sharding import whole

CONTROLS = (
    "variant",
    "random, equal radius",
    "random, equal first order",
    "top gradient, equal radius",
    "top gradient, equal first order",
)
SUPPORTS = ("all tensors", "without 1-D tensors")
_SCALARS = {
    "radius": ("1", "‖e‖"),
    "first_order_effect": ("nats", "First-order loss increase g·e"),
    "loss_increase": ("nats", "Loss increase on the batch"),
    "loss_increase_full": ("nats", "Loss increase on all examples"),
    "density": ("1", "Share of coordinates perturbed"),
    "captured_energy": ("1", "Share of ‖g‖² in the mask"),
    "one_d_energy": ("1", "Share of ‖e‖² on 1-D tensors"),
}


def perturbation_controls(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    variant: sam.Variant,
    num_draws: int = 4,
    batch_size: int = 64,
    bn: str = "batch",
    state: dict[str, Any] | None = None,
    seed: int,
) -> xr.Dataset:
    """A variant's perturbation e, and what other masks of its density do at its strength.

    Rows along `control`: the variant's own e; then e = s m g, g the gradient of the same batch,
    with as many coordinates in every tensor as the variant selects there: at random (mean over
    num_draws masks) or those of largest |g|. s makes ‖e‖ that of the variant ("equal radius") or
    g·e ("equal first order"): a mask that catches more of ‖g‖² needs less radius for the same
    first-order effect, so that the first row of a pair compares selections at equal length and the
    second at equal strength. `support`: with the 1-D tensors (norms, biases) as the variant has
    them, or with none of them; the variant then loses what it had there, at its own s, and is what
    the controls are matched to.

    radius ‖e‖, first_order_effect g·e, loss_increase and loss_increase_full L(w + e) - L(w) on the
    batch (in the mode bn) and on the whole risk (in its own mode), density, captured_energy
    ‖m g‖²/‖g‖², one_d_energy: (control, support); energy_share(control, support, tensor).
    loss_increase_std, loss_increase_full_std: SD over draws, 0 where nothing is drawn. Cost: a
    gradient of the batch, about 20 losses of the risk. A variant that perturbs nothing is refused.
    Controls of our own definition.

    Example:
        >>> variant = sam.zsharp(0.05, percentile=0.5)
        >>> found = measure.perturbation_controls(
        ...     risk, theta, variant=variant, num_draws=2, batch_size=16, seed=0
        ... )
        >>> found.radius.dims, len(found.control)
        (('control', 'support'), 5)
    """
    check_count("num_draws", num_draws, 2)
    measuring = Measuring("perturbation_controls", risk, theta)
    theta = measuring.theta
    clean = float(measuring.finite_loss())
    here = Counterfactual(risk, theta, batch_size=batch_size, bn=bn, seed=seed)
    made = here.perturb(variant, state=state)
    e, g, mask = here.flat(made.e), here.flat_gradient(made), here.flat_mask(made)
    if not float(vectors.norm(e)) > 0:
        raise LandscapeError(
            f"{variant.name!r} perturbs nothing here; controls are matched to a perturbation. Ask "
            f"for a variant with a radius above 0."
        )
    at = _At(risk, theta, here, g, float(made.loss_clean), clean)
    keep = ~_one_d(risk.layout, theta)
    matched = [
        _random_like(risk.layout, mask, num_draws, generator(seed)),
        [_top_like(risk.layout, mask, g)],
    ]
    table = [_rows(at, e, mask, matched)]
    # What is drawn or largest in one tensor does not depend on the masks of the others.
    fewer = [[each & keep for each in masks] for masks in matched]
    table.append(_rows(at, e * keep, mask & keep, fewer))
    variables = {}
    for name, (units, title) in _SCALARS.items():
        values = np.array([[row[name] for row in rows] for rows in table]).T
        variables[name] = Variable(("control", "support"), values, units, title)
    for name in ("loss_increase_std", "loss_increase_full_std"):
        values = np.array([[row[name] for row in rows] for rows in table]).T
        title = f"{_SCALARS[name.removesuffix('_std')][1]}, SD over draws"
        variables[name] = Variable(("control", "support"), values, "nats", title)
    shares = np.array([[row["energy_share"] for row in rows] for rows in table]).swapaxes(0, 1)
    variables["energy_share"] = Variable(
        ("control", "support", "tensor"), shares, "1", "Share of ‖e‖²"
    )
    coords = {
        **tensor_coords(risk.layout),
        "control": np.array(CONTROLS, dtype=object),
        "support": np.array(SUPPORTS, dtype=object),
    }
    options = {
        "variant": variant.name,
        "num_draws": num_draws,
        "batch_size": here.batch_size,
        "bn": bn,
        "batch_bn": bn,
        "note": made.note,
        "seed": seed,
    }
    return measuring.result(variables, coords=coords, options=options)


@dataclass(frozen=True)
class _At:
    """Where perturbations are tried: one theta, one batch, its gradient and the clean losses."""

    risk: EmpiricalRisk
    theta: Tensor
    here: Counterfactual
    g: Tensor
    batch_loss: float
    full_loss: float

    @cached_property
    def energy(self) -> Tensor:
        """‖g‖²."""
        return vectors.squared_norm(self.g)

    def row(self, e: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """What one perturbation is and does, on the device."""
        parts = [vectors.squared_norm(part) for part in split(self.risk.layout, e)]
        energy, moved = torch.stack(parts), self.theta + e
        found = {
            "radius": energy.sum().sqrt(),
            "first_order_effect": vectors.dot(self.g, e),
            "loss_increase": self.here.loss_at(moved),
            "loss_increase_full": self.risk.loss(moved),
            "density": mask.sum().double() / mask.numel(),
            "captured_energy": vectors.squared_norm(self.g * mask) / self.energy,
        }
        return {name: value.double() for name, value in found.items()} | {"energy": energy}

    def read(self, row: dict[str, Tensor]) -> dict[str, Any]:
        """The same of a row on the host, with what follows from it."""
        energy, total = row["energy"].numpy(), float(row["energy"].sum())
        one_d = np.array([is_one_d(tensor) for tensor in self.risk.layout.tensors])
        found = {name: float(value) for name, value in row.items() if name != "energy"}
        return found | {
            "loss_increase": found["loss_increase"] - self.batch_loss,
            "loss_increase_full": found["loss_increase_full"] - self.full_loss,
            "one_d_energy": float(energy[one_d].sum() / total) if total > 0 else np.nan,
            "energy_share": energy / total if total > 0 else np.full(len(energy), np.nan),
        }


def _rows(
    at: _At, e: Tensor, mask: Bool[Tensor, "P"], matched: list[list[Tensor]]
) -> list[dict[str, Any]]:
    """The variant and its controls, in the order of CONTROLS; matched: random masks, and top."""
    own = at.row(e, mask)
    rows = [[own]]
    for chosen in matched:
        for strength in ("radius", "first_order_effect"):
            rows.append([at.row(_scaled(at.g, m, strength, own), m) for m in chosen])
    return [_averaged([at.read(row) for row in group]) for group in _on_host(rows)]


def _on_host(rows: list[list[dict[str, Tensor]]]) -> list[list[dict[str, Tensor]]]:
    """All of them in one transfer."""
    parts = [value.reshape(-1) for group in rows for row in group for value in row.values()]
    values = iter(torch.cat(parts).cpu().split([len(part) for part in parts]))
    return [[{name: next(values) for name in row} for row in group] for group in rows]


def _averaged(rows: list[dict[str, Any]]) -> dict[str, Any]:
    mean = {name: np.mean([row[name] for row in rows], axis=0) for name in rows[0]}
    for name in ("loss_increase", "loss_increase_full"):
        values = [row[name] for row in rows]
        mean[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return mean


def _scaled(g: Tensor, mask: Tensor, matched: str, own: dict[str, Tensor]) -> Tensor:
    """The masked gradient with the variant's length or first-order effect; 0 where g is 0."""
    f = g * mask
    energy = vectors.squared_norm(f)
    factor = own[matched] / (energy.sqrt() if matched == "radius" else energy)
    return f * torch.where(energy > 0, factor, 1.0).to(f.dtype)


def _random_like(
    layout: ParamLayout, mask: Bool[Tensor, "P"], num_draws: int, source: torch.Generator
) -> list[Bool[Tensor, "P"]]:
    """As many coordinates in every tensor, anywhere in it; uploaded once."""
    own = whole(mask).cpu()
    drawn = torch.empty((num_draws, len(own)), dtype=torch.bool)
    for row in drawn:
        for part, to in zip(split(layout, own), split(layout, row), strict=True):
            to.copy_(part[torch.randperm(len(part), generator=source)])
    return list(drawn.to(mask.device))


def _top_like(
    layout: ParamLayout, mask: Bool[Tensor, "P"], g: Float[Tensor, "P"]
) -> Bool[Tensor, "P"]:
    """As many coordinates in every tensor, those of largest |g|."""
    parts = []
    for part, size in zip(split(layout, mask), split(layout, g.abs()), strict=True):
        chosen = torch.zeros_like(part)
        chosen[torch.topk(size, int(part.sum())).indices] = True
        parts.append(chosen)
    return torch.cat(parts)


def _one_d(layout: ParamLayout, theta: Tensor) -> Bool[Tensor, "P"]:
    mask = torch.zeros(theta.numel(), dtype=torch.bool, device=theta.device)
    for tensor in layout.tensors:
        mask[tensor.start : tensor.stop] = is_one_d(tensor)
    return mask
