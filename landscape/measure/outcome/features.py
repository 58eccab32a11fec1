"""How many directions the features of a network use, module by module, and which units are dead."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn

from landscape import vectors
from landscape.checks import check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring, generator
from landscape.results import Variable
from landscape.risk import EmpiricalRisk, RowLosses

_TITLES = {
    "components": "Components for {share:.0%} of the variance",
    "components_share": "Components for {share:.0%} of the variance over those possible",
    "stable_rank": "Stable rank ‖F‖_F²/‖F‖₂²",
    "zero_share": "Share of activations that are 0",
    "dead_share": "Share of units that are 0 on every example",
    "width": "Features per example",
}


def features(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    modules: Sequence[str] = (),
    share: float = 0.99,
    num_examples: int = 256,
    seed: int,
) -> xr.Dataset:
    """Rank of each module's features on num_examples seeded examples, and its dead units.

    F (N, width) holds a module's outputs, flattened, minus their mean over the N examples.
    components(module): the number of principal components for the `share` of its variance, as
    arXiv:2305.16292 counts the features of networks trained with SAM; components_share: over
    min(N - 1, width), the most there can be. stable_rank = ‖F‖_F²/‖F‖₂², <= components(share=1)
    and without a threshold. Both depend on N: compare at one N. NaN where no feature varies.
    zero_share: exact zeros among all activations; dead_share: units that are 0 on every example at
    every position. A unit is a channel (axis 1) after a convolution of as many axes, else the
    last axis (linear layers, tokens); only rectified modules have any.

    modules: names or name ends (".conv1"), default all but the network itself; a module that is
    called more than once appears as `name`, `name#2`. Functions without a module (F.relu in a
    block) are seen in the output of the block around them. BatchNorm and dropout in eval mode.
    Exact, by the Gram matrix of the N examples, which are passed at once: memory is that of one
    forward pass. Cost: 1/3 N/N_data.

    Example:
        >>> found = measure.features(risk, theta, num_examples=24, seed=0)
        >>> found.module.values.tolist()
        ['0', '1', '2', '3']
        >>> bool((found.components >= found.stable_rank - 1e-9).all())
        True
    """
    if not 0 < share <= 1:
        raise LandscapeError(f"share={share} was asked; it is a share of variance in (0, 1].")
    check_count("num_examples", num_examples, 2)
    measuring = Measuring("features", risk, theta)
    theta = measuring.theta
    order = torch.randperm(risk.num_examples, generator=generator(seed))[:num_examples]
    model = risk.model_at(theta)
    chosen = _chosen(model, modules)
    seen_of: dict[str, _SeenFeatures] = {}
    axes = {f"Conv{n}d": n + 2 for n in (1, 2, 3)}
    convolved = {axes[type(m).__name__] for m in model.modules() if type(m).__name__ in axes}

    def seen(name: str, kind: str, output: Any) -> None:
        if not isinstance(output, Tensor) or output.ndim < 2 or len(output) != len(order):
            return
        times = sum(key == name or key.startswith(f"{name}#") for key in seen_of)
        key = f"{name}#{times + 1}" if times else name
        unit = 1 if output.ndim in convolved else output.ndim - 1
        seen_of[key] = _SeenFeatures.of(output.detach(), unit, kind)

    def watch(name: str, module: nn.Module) -> Any:
        return module.register_forward_hook(
            lambda module, _, out: seen(name, type(module).__name__, out)
        )

    handles = [watch(name, module) for name, module in chosen.items()]
    try:
        with torch.no_grad():
            RowLosses(risk, model)(order.sort().values)
    finally:
        for handle in handles:
            handle.remove()
    risk.spend(len(order) / risk.num_examples / 3)
    if not seen_of:
        raise LandscapeError(
            f"None of {', '.join(list(chosen)[:5])} returned a tensor with one row per example; "
            f"name modules whose outputs are (N, ...)."
        )
    rows = dict(zip(seen_of, _statistics(list(seen_of.values()), share), strict=True))
    variables = {
        name: Variable(
            "module", np.array([row[name] for row in rows.values()], float), "1",
            title.format(share=share),
        )
        for name, title in _TITLES.items()
    }  # fmt: skip
    kinds = np.array([seen.kind for seen in seen_of.values()], dtype=object)
    coords = {"module": np.array(list(rows), dtype=object), "kind": ("module", kinds)}
    options = {"share": share, "feature_examples": len(order), "seed": seed}
    return measuring.result(variables, coords=coords, options=options)


def _chosen(model: nn.Module, modules: Sequence[str]) -> dict[str, nn.Module]:
    named = {name: module for name, module in model.named_modules() if name}
    if not named:
        named = {type(model).__name__: model}
    found = {
        name: module
        for name, module in named.items()
        if not modules or any(name == m or name.endswith(m) for m in modules)
    }
    missing = [m for m in modules if not any(n == m or n.endswith(m) for n in named)]
    if missing:
        raise LandscapeError(
            f"The model has no module {missing[0]!r}; it has {', '.join(list(named)[:8])}"
            f"{', ...' if len(named) > 8 else ''}."
        )
    return found


@dataclass(frozen=True)
class _SeenFeatures:
    """Outputs (N, ...) of one module: numbers and the smaller Gram matrix, where they were made."""

    kind: str
    rows: int
    width: int
    eps: float
    numbers: Float[Tensor, "3"]
    gram: Float[Tensor, "n n"]

    @staticmethod
    def of(output: Float[Tensor, "N ..."], unit: int, kind: str) -> "_SeenFeatures":
        zero = output == 0
        dead = zero.transpose(0, unit).flatten(1).all(1).double().mean()
        F = output.flatten(1)
        known = torch.stack([zero.double().mean(), dead, vectors.squared_norm(output)])
        N, width = F.shape
        F = F - F.mean(0)
        gram = vectors.gram(F if width >= N else F.T)
        return _SeenFeatures(kind, N, width, torch.finfo(output.dtype).eps, known, gram)


def _statistics(modules: list[_SeenFeatures], share: float) -> list[dict[str, float]]:
    """A row for each, read from the device at once; eigenvalues are taken on the host."""
    parts = [part.reshape(-1) for seen in modules for part in (seen.numbers, seen.gram)]
    values = iter(torch.cat(parts).cpu().split([len(part) for part in parts]))
    return [
        _row(seen, next(values).tolist(), next(values).reshape(seen.gram.shape), share)
        for seen in modules
    ]


def _row(seen: _SeenFeatures, known: list[float], gram: Tensor, share: float) -> dict[str, float]:
    zero, dead, square = known
    row = {"zero_share": zero, "dead_share": dead, "width": seen.width}
    possible = min(seen.rows - 1, seen.width)
    values = torch.linalg.eigvalsh(gram).clamp_min(0).flip(0)
    total, top = float(values.sum()), float(values[0])
    # What is left of equal features is rounding: eps per entry, relative to the activations.
    floor = (seen.eps**2) * square
    if not total > 10 * floor or not math.isfinite(total):
        return row | dict.fromkeys(("components", "components_share", "stable_rank"), math.nan)
    cumulative = values.cumsum(0) / total
    # The last component is reached in spite of rounding of the sum.
    count = int((cumulative < share * (1 - 1e-12)).sum()) + 1
    return row | {
        "components": min(count, possible),
        "components_share": min(count, possible) / possible,
        "stable_rank": total / top,
    }
