"""What of a direction is rescaled as a whole: filters, in every kind of tensor."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvTransposeNd

from landscape import vectors
from landscape.params import ParamLayout, TensorInfo
from landscape.risk import EmpiricalRisk


@dataclass(frozen=True)
class Filters:
    """What is rescaled as a whole, for every tensor of a layout.

    Convolutions (grouped and depthwise too) and linear layers, fused QKV among them: one output
    channel, index 0. Transposed convolutions: one output channel of one group, index 1
    (`transposed` maps their names to the number of groups). Embeddings: one row. Layers of other
    libraries: one output unit, as `landscape.params.LAYERS` says of them. Other tensors: index 0
    after leading axes of length 1 are dropped, so that a positional embedding (1, n, d) has n
    filters. 1-D tensors: one filter.
    Filters of convolutions: arXiv:1712.09913, section 4; the other layers by analogy.

    Example:
        >>> rule = plane.Filters.of(model)
        >>> first = rule.layout.tensors[0]
        >>> first.name, tuple(rule.rows(first, theta[: first.stop]).shape)
        ('0.weight', (8, 4))
    """

    layout: ParamLayout
    transposed: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, model: EmpiricalRisk | nn.Module | ParamLayout) -> "Filters":
        """The rule for a risk's model, a module, or a bare layout without transposed ones."""
        if isinstance(model, ParamLayout):
            return cls(model)
        module = model if isinstance(model, nn.Module) else model.model
        layout = ParamLayout.of(module) if isinstance(model, nn.Module) else model.layout
        modules = dict(module.named_modules())
        transposed = {
            tensor.name: owner.groups
            for tensor in layout.tensors
            if isinstance(owner := modules.get(tensor.module), _ConvTransposeNd)
            and tensor.kind == "conv"
        }
        return cls(layout, transposed)

    def rows(self, tensor: TensorInfo, flat: Float[Tensor, "n"]) -> Float[Tensor, "f m"]:
        """The tensor's values, one row per filter."""
        if is_one_d(tensor):
            return flat[None]
        if tensor.name in self.transposed:
            split = self._split(tensor)
            return flat.view(split).transpose(1, 2).reshape(split[0] * split[2], -1)
        if tensor.outputs != (0,):
            whole = flat.view(tensor.shape).movedim(tensor.outputs, _first(tensor))
            return whole.reshape(math.prod(whole.shape[: len(tensor.outputs)]), -1)
        return flat.view(_squeezed(tensor)[0], -1)

    def flat(self, tensor: TensorInfo, rows: Float[Tensor, "f m"]) -> Float[Tensor, "n"]:
        """Inverse of `rows`."""
        if tensor.name in self.transposed and not is_one_d(tensor):
            groups, inputs, outputs, *kernel = self._split(tensor)
            return rows.view(groups, outputs, inputs, *kernel).transpose(1, 2).reshape(-1)
        if tensor.outputs != (0,) and not is_one_d(tensor):
            rest = [n for axis, n in enumerate(tensor.shape) if axis not in tensor.outputs]
            whole = rows.view(*(tensor.shape[axis] for axis in tensor.outputs), *rest)
            return whole.movedim(_first(tensor), tensor.outputs).reshape(-1)
        return rows.reshape(-1)

    def _split(self, tensor: TensorInfo) -> tuple[int, ...]:
        groups = self.transposed[tensor.name]
        inputs, outputs, *kernel = tensor.shape
        return (groups, inputs // groups, outputs, *kernel)

    def normalized(
        self,
        direction: Float[Tensor, "P"],
        weights: Float[Tensor, "P"],
        *,
        normalize: str = "filter",
        one_d: str = "zero",
    ) -> Float[Tensor, "P"]:
        """The direction rescaled against the weights, as `random` says; zero filters stay zero."""
        scaled = torch.zeros_like(direction)
        for tensor in self.layout.tensors:
            if one_d == "zero" and is_one_d(tensor):
                continue
            span = slice(tensor.start, tensor.stop)
            draw, weight = direction[span], weights[span]
            if normalize == "filter":
                rows = _rescaled(self.rows(tensor, draw), self.rows(tensor, weight))
                scaled[span] = self.flat(tensor, rows)
            elif normalize == "layer":
                scaled[span] = _rescaled(draw[None], weight[None])[0]
            else:
                scaled[span] = draw
        if normalize == "global":
            scaled = _rescaled(scaled[None], weights[None])[0]
        return scaled


def _first(tensor: TensorInfo) -> tuple[int, ...]:
    return tuple(range(len(tensor.outputs)))


def is_one_d(tensor: TensorInfo) -> bool:
    """Whether a tensor has one axis (bias, norm, class token) and is left alone by default.

    As in the figures of arXiv:1712.09913 (ignore='biasbn' of its code).

    Example:
        >>> {t.name: plane.is_one_d(t) for t in ParamLayout.of(model).tensors[:2]}
        {'0.weight': False, '0.bias': True}
    """
    return len(_squeezed(tensor)) <= 1


def _squeezed(tensor: TensorInfo) -> tuple[int, ...]:
    shape = list(tensor.shape)
    while tensor.kind not in ("conv", "linear", "embedding") and len(shape) > 1 and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape)


def _rescaled(draw: Tensor, weight: Tensor) -> Tensor:
    length, target = (vectors.row_norms(rows)[:, None] for rows in (draw, weight))
    factor = (target / torch.where(length > 0, length, 1)).to(draw)
    return torch.where(length > 0, draw * factor, 0)
