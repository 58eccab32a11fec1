"""What one pass of a few rows tells of a model: which layers work together, and on what."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.risk._empirical import EmpiricalRisk
from landscape.risk._folding import beside, hooked, owns_weight, pairs_of

FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class LayerTrace:
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
        self.gelus: dict[nn.Module, nn.GELU] = {}
        # Whether a linear layer works on several tokens of a row.
        self.tokens = False
        origin = buffer.clone()
        self.pairs = pairs_of(model, self._run, FOLDABLE)
        self._pass()
        buffer.copy_(beside(origin))
        self._pass()
        buffer.copy_(origin)
        once = {module for module, calls in self._calls.items() if calls == 2}
        self.linears = {m: size for m, size in self.linears.items() if m in once}
        self.gelus = {m: g for m, g in self.gelus.items() if g in once and not hooked(g)}
        self.constant = [
            module
            for (module, one), (_, two) in zip(*self._seen, strict=True)
            if module in once
            and torch.equal(one, two)
            and owns_weight(module)
            and not hooked(module)
        ]

    def _run(self) -> None:
        with torch.no_grad():
            self._model(*self._batch.args, **self._batch.kwargs)

    def _pass(self) -> None:
        made: list[tuple[Tensor, nn.Module]] = []
        fresh: list[object] = []
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

        hooks = [module.register_forward_hook(after) for module in self._model.modules()]
        try:
            self._run()
        finally:
            for hook in hooks:
                hook.remove()
        self._seen.append(inputs)
