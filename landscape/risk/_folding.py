"""Frozen BatchNorm as part of the layer before it: which pairs, what they become, the proof.

With frozen statistics it is affine, gamma (W x + b - mean) / sqrt(var + eps) + beta = W' x + b',
W' = scale W, scale = gamma / sqrt(var + eps), b' = scale (b - mean) + beta.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape import vectors
from landscape.errors import LandscapeError

# Beyond what rounding may do to a loss the layers were not what they seemed.
_SLACK = {torch.float32: 2e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class Pair:
    """A layer and the BatchNorm that alone reads it."""

    layer: nn.Module
    norm: _BatchNorm


def scale_and_shift(norm: _BatchNorm, bias: Tensor | None) -> tuple[Tensor, Tensor]:
    """Scale and b' per channel, in the norm's precision; differentiable in gamma, beta and b."""
    mean, var = norm.running_mean, norm.running_var
    if mean is None or var is None:
        raise LandscapeError(f"{norm} keeps no running statistics, so it is no affine function.")
    scale = torch.rsqrt(var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight
    shift = -mean.double() if bias is None else bias.double() - mean
    shift = shift * scale
    if norm.bias is not None:
        shift = shift + norm.bias
    return scale.to(var), shift.to(var)


def column(scale: Tensor, weight: Tensor) -> Tensor:
    """One value per output channel, to be multiplied with a weight."""
    return scale.view(-1, *[1] * (weight.ndim - 1))


def pairs_of(model: nn.Module, run: Callable[[], object], layers: tuple[type, ...]) -> list[Pair]:
    """Layers of these types, called once in `run`, whose output one BatchNorm alone reads.

    The norm has frozen statistics, the layer a weight of its own, and neither has hooks.
    """
    made: list[tuple[Tensor, nn.Module]] = []
    calls, found = Counter[nn.Module](), list[Pair]()

    def after(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        calls[module] += 1
        if isinstance(module, layers) and isinstance(output, Tensor):
            made.append((output, module))
        if isinstance(module, _BatchNorm) and args:
            layer = next((layer for kept, layer in made if kept is args[0]), None)
            if layer is not None:
                found.append(Pair(layer, module))

    readers = _Readers(made)
    handles = [m.register_forward_hook(after) for m in model.modules() if not hooked(m)]
    try:
        with readers:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return [
        pair
        for pair in found
        if calls[pair.layer] == calls[pair.norm] == 1
        and readers.count[id(pair.layer)] == 1
        and owns_weight(pair.layer)
        and pair.norm.running_mean is not None
        and not pair.norm.training
    ]


class _Readers(TorchDispatchMode):
    """Counts the operations that read the output of each layer.

    Losses alone would not show a second reader that is silent at the points that are tried.
    """

    def __init__(self, made: list[tuple[Tensor, nn.Module]]) -> None:
        super().__init__()
        self.made, self.count = made, Counter[int]()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        read = {id(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        self.count.update(id(layer) for output, layer in self.made if id(output) in read)
        return func(*args, **(kwargs or {}))


def take_over(module: nn.Module, forward: Callable[..., Any]) -> None:
    """Let a module of our own copy of a model compute this instead of what its class does."""
    vars(forward)["of_the_risk"] = True
    module.forward = forward


def taken_over(module: nn.Module) -> bool:
    """Whether its forward is one of ours."""
    return getattr(vars(module).get("forward"), "of_the_risk", False)


def store_of(module: nn.Module) -> "dict[str, Tensor | None]":
    """Where a module holds weight and bias: any tensor may stand there, not only parameters."""
    return cast("dict[str, Tensor | None]", module._parameters)


def weight_of(module: nn.Module) -> Tensor:
    """The weight of a module that owns one."""
    weight = module._parameters["weight"]
    if weight is None:
        raise LandscapeError(f"{module} has no weight of its own.")
    return weight


def owns_weight(module: nn.Module) -> bool:
    """Whether its weight is a tensor of its own."""
    # A parametrized layer makes its weight anew from others.
    return module._parameters.get("weight") is not None


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def beside(theta: Tensor) -> Tensor:
    """A second point for proofs, a tenth of ‖theta‖ away."""
    source = torch.Generator().manual_seed(0)
    shift = vectors.drawn(partial(torch.randn, generator=source, dtype=torch.float64), theta)
    return theta + shift * (0.1 * vectors.norm(theta) / vectors.norm(shift))


def agree(found: Tensor, truth: Tensor) -> bool:
    """Whether every single loss is the true one, up to rounding beside the largest."""
    slack = _SLACK[truth.dtype]
    finite = truth[truth.isfinite()]
    large = max(1.0, float(finite.abs().max())) if len(finite) else 1.0
    return torch.allclose(found, truth, rtol=slack, atol=slack * large, equal_nan=True)
