"""A first layer without nonlinearity before it is affine in theta: its outputs are combined.

With fixed inputs X, X (W_0 + a D_1 + b D_2) = Y_0 + a Y_1 + b Y_2: three products serve every point
of a plane.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from landscape.risk._folding import store_of

# Weight and bias at the origin (0) and along direction i (i + 1).
WeightsAlong = Callable[[int], tuple[Tensor, Tensor | None]]


class FirstLayer:
    """Outputs Y of one layer on all rows, at the origin and along the directions in use.

    A bias, and a BatchNorm with fixed scale that the layer does the work of, are part of Y.
    """

    def __init__(self, layer: nn.Module, inputs: Sequence[Tensor], *, channels_last: bool) -> None:
        self._layer, self._inputs, self._channels_last = layer, inputs, channels_last
        self._outputs: dict[int, Tensor] = {}
        self._base: tuple[tuple[float, ...] | None, Tensor] = (None, torch.empty(0))
        self._step: tuple[float, Tensor | None] = (0.0, None)
        self.rows = slice(0, 0)
        # What to return instead, for whoever traces the model.
        self.given: Tensor | None = None

    def put(self, coordinates: Sequence[float], weights: WeightsAlong) -> None:
        """Prepare the outputs at a point of the plane."""
        *leading, last = coordinates
        key = tuple(leading)
        if self._base[0] != key:
            used = {0, *(j + 1 for j, c in enumerate(leading) if c), len(coordinates)}
            self._outputs = {j: y for j, y in self._outputs.items() if j in used}
            base = self._along(0, weights).clone()
            for j, c in enumerate(leading):
                if c:
                    base.add_(self._along(j + 1, weights), alpha=c)
            self._base = key, base
        self._step = (last, self._along(len(coordinates), weights) if last else None)

    def __call__(self, _x: Tensor) -> Tensor:
        """The forward that takes the layer's place."""
        return self.outputs() if self.given is None else self.given

    def outputs(self) -> Tensor:
        """Y (n, ...) of the rows, a tensor of its own."""
        base, (last, along) = self._base[1][self.rows], self._step
        return base.clone() if along is None else torch.add(base, along[self.rows], alpha=last)

    def _along(self, index: int, weights: WeightsAlong) -> Tensor:
        """Y_index (N, ...): at the origin for 0, else along direction index - 1."""
        if index not in self._outputs:
            weight, bias = weights(index)
            store = store_of(self._layer)
            kept = store["weight"], store["bias"]
            store["weight"], store["bias"] = weight, bias
            parts = [type(self._layer).forward(self._layer, x) for x in self._inputs]
            store["weight"], store["bias"] = kept
            self._outputs[index] = self._formatted(torch.cat(parts))
        return self._outputs[index]

    def _formatted(self, outputs: Tensor) -> Tensor:
        images = self._channels_last and outputs.ndim == 4
        return outputs.contiguous(memory_format=torch.channels_last) if images else outputs
