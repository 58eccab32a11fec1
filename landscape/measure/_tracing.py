"""What one pass of a few rows tells of a model: which layers work together, and on what."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape import vectors
from landscape.risk import EmpiricalRisk

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


@dataclass(frozen=True)
class Pair:
    """A layer and the BatchNorm that alone reads it."""

    layer: nn.Module
    norm: _BatchNorm


class Trace:
    """Pairs, layers with constant inputs, and bytes a row of the largest output.

    `constant` layers read the same at two very different thetas; `buffer` holds theta's values.
    """

    def __init__(self, risk: EmpiricalRisk, model: nn.Module, buffer: Tensor) -> None:
        self._model, self._calls = model, dict[nn.Module, int]()
        self._seen: list[list[tuple[nn.Module, Tensor]]] = []
        batch = risk._engine.examples.cut(risk.num_examples)[0]
        self._batch = batch.rows(0, min(4, batch.count))
        self.largest = 0
        # Read nothing but what a layer has just made: they may work in place.
        self.relus: list[nn.ReLU] = []
        # Values a row that each makes, and the GELU behind it.
        self.linears: dict[nn.Linear, int] = {}
        self.gelus: dict[nn.Linear, nn.GELU] = {}
        # Whether a linear layer works on several tokens of a row.
        self.tokens = False
        origin = buffer.clone()
        source = torch.Generator().manual_seed(0)
        pairs = self._pass()
        shift = torch.randn(len(buffer), generator=source, dtype=torch.float64).to(buffer)
        buffer.add_(shift * 0.1 * vectors.norm(origin) / vectors.norm(shift))
        self._pass()
        buffer.copy_(origin)
        once = {module for module, calls in self._calls.items() if calls == 2}
        self.linears = {m: size for m, size in self.linears.items() if m in once}
        self.gelus = {m: g for m, g in self.gelus.items() if g in once and not hooked(g)}
        self.pairs = [p for p in pairs if p.layer in once and p.norm in once and _plain(p)]
        self.constant = [
            module
            for (module, one), (_, two) in zip(*self._seen, strict=True)
            if module in once
            and torch.equal(one, two)
            and owns_weight(module)
            and not hooked(module)
        ]

    def _pass(self) -> list[Pair]:
        made: list[tuple[Tensor, nn.Module]] = []
        fresh: list[object] = []
        pairs: list[Pair] = []
        inputs: list[tuple[nn.Module, Tensor]] = []

        def after(module: nn.Module, args: tuple[Any, ...], output: object) -> None:
            self._calls[module] = self._calls.get(module, 0) + 1
            if not isinstance(output, Tensor):
                return
            self.largest = max(self.largest, output.nbytes // self._batch.count)
            if type(module) is nn.ReLU and any(args[0] is each for each in fresh):
                self.relus.append(module)
            if type(module) is nn.Linear and owns_weight(module):
                self.linears[module] = output.numel() // self._batch.count
                self.tokens |= output.ndim > 2
            if type(module) is nn.GELU and module.approximate == "none":
                self.gelus |= {m: module for kept, m in made if kept is args[0]}
            if isinstance(module, (*FOLDABLE, _BatchNorm)):
                fresh.append(output)
            if isinstance(module, FOLDABLE):
                made.append((output, module))
                inputs.append((module, args[0].clone()))
            if isinstance(module, _BatchNorm):
                layer = next((layer for kept, layer in made if kept is args[0]), None)
                if layer is not None:
                    pairs.append(Pair(layer, module))

        hooks = [module.register_forward_hook(after) for module in self._model.modules()]
        try:
            with torch.no_grad():
                self._model(*self._batch.args, **self._batch.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        self._seen.append(inputs)
        return pairs


def owns_weight(module: nn.Module) -> bool:
    """Whether its weight is a tensor of its own."""
    # A parametrized layer makes its weight anew from others.
    return module._parameters.get("weight") is not None


def hooked(module: nn.Module) -> bool:
    """Whether a call of the module does more than its forward."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _plain(pair: Pair) -> bool:
    """Whether folding is what the two compute: channels on axis 1, frozen statistics, no hooks."""
    norm = pair.norm
    frozen = norm.running_mean is not None and not norm.training
    return frozen and owns_weight(pair.layer) and not (hooked(norm) or hooked(pair.layer))
