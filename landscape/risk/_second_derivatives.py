"""Convolutions that are quick to differentiate twice, with frozen BatchNorm absorbed by them.

torch turns the second derivative of a convolution into convolutions with kernels as large as the
image, and that of BatchNorm into a dozen passes over the activations. Both are avoidable: the three
maps below are bilinear and closed under differentiation, and frozen BatchNorm is affine,
gamma (w * x + b - mean) / sqrt(var + eps) + beta = w' * x + b', with derivatives through w' and b'.
"""

import functools
import math
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from landscape.risk._folding import (
    Pair,
    agree,
    beside,
    column,
    pairs_of,
    scale_and_shift,
    take_over,
    taken_over,
)

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_WINDOWS = 2**21  # bytes

# Stride, padding, dilation, groups; whether tensors are laid out with their channels last.
_Geometry = tuple[list[int], list[int], list[int], int, bool]


def _channels_last(x: Tensor, w: Tensor) -> bool:
    """Whether a convolution takes its tensors with the channels last.

    The float32 kernels of a CPU take them three times quicker at few channels. Not where weights
    are larger than the images: to lay out w, v and what comes of them takes longer than that gains.
    """
    return x.ndim == 4 and x.dtype == torch.float32 and w.numel() <= x.numel()


def _laid_out(t: Tensor, geometry: _Geometry) -> Tensor:
    """In the layout of the convolution.

    Outside of the functions: what they save must be what they were given.
    """
    return t.contiguous(memory_format=torch.channels_last) if geometry[-1] else t.contiguous()


def _rows(w: Tensor, spatial: Iterable[int]) -> int:
    """Examples a call. A CPU's float64 kernels copy all windows of the input, best in the cache.

    A float64 product of ResNet-20 takes a seventh less so.
    """
    windows = w[0].numel() * math.prod(spatial) * w.element_size()
    copied = w.is_cpu and w.dtype == torch.float64
    return max(1, _WINDOWS // max(1, windows)) if copied else sys.maxsize


def _forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
    stride, padding, dilation, groups, _ = geometry
    still = [0] * len(stride)

    def of(x: Tensor) -> Tensor:
        return torch.ops.aten.convolution(
            x, w, bias, stride, padding, dilation, False, still, groups
        )

    reach = zip(x.shape[2:], w.shape[2:], stride, padding, dilation, strict=True)
    spatial = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in reach]
    rows = _rows(w, spatial)
    return of(x) if len(x) <= rows else torch.cat([of(part) for part in x.split(rows)])


def _backward(g: Tensor, x: Tensor, w: Tensor, geometry: _Geometry, *, of: int) -> Tensor:
    stride, padding, dilation, groups, _ = geometry
    asked = [i == of for i in range(3)]

    def found(g: Tensor, x: Tensor) -> Tensor:
        return torch.ops.aten.convolution_backward(
            g, x, w, None, stride, padding, dilation, False, [0] * len(stride), groups, asked
        )[of]

    rows = _rows(w, g.shape[2:])
    if len(g) <= rows:
        return found(g, x)
    parts = (found(*pair) for pair in zip(g.split(rows), x.split(rows), strict=True))
    return torch.cat(list(parts)) if of == 0 else functools.reduce(Tensor.add_, parts)


def _like(shape: torch.Size, t: Tensor, geometry: _Geometry) -> Tensor:
    """Never read: the kernels ask for its shape and layout."""
    layout = torch.channels_last if geometry[-1] else torch.contiguous_format
    return torch.empty(shape, dtype=t.dtype, device=t.device, memory_format=layout)


class _Convolve(Function):
    """y = x * w + bias."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, w)
        ctx.geometry = geometry
        return _forward(x, w, bias, geometry)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:  # ty: ignore[incompatible-method-override]  # one output
        (x, w), need, g = ctx.saved_tensors, ctx.needs_input_grad, _laid_out(g, ctx.geometry)
        to_x = _ToInput.apply(g, w, x.shape, ctx.geometry) if need[0] else None
        to_w = _ToWeight.apply(x, g, w.shape, ctx.geometry) if need[1] else None
        to_bias = g.transpose(0, 1).flatten(1).sum(1) if need[2] else None
        return to_x, to_w, to_bias, None


class _ToInput(Function):
    """The gradient of <g, x * w> in x, linear in g and in w."""

    @staticmethod
    def forward(ctx: Any, g: Tensor, w: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(g, w)
        ctx.geometry = geometry
        return _backward(g, _like(shape, g, geometry), w, geometry, of=0)

    @staticmethod
    def backward(ctx: Any, h: Tensor) -> tuple[Tensor | None, ...]:  # ty: ignore[incompatible-method-override]  # one output
        (g, w), need, h = ctx.saved_tensors, ctx.needs_input_grad, _laid_out(h, ctx.geometry)
        to_g = _Convolve.apply(h, w, None, ctx.geometry) if need[0] else None
        to_w = _ToWeight.apply(h, g, w.shape, ctx.geometry) if need[1] else None
        return to_g, to_w, None, None


class _ToWeight(Function):
    """The gradient of <g, x * w> in w, linear in x and in g."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, g: Tensor, shape: torch.Size, geometry: _Geometry) -> Tensor:
        ctx.save_for_backward(x, g)
        ctx.geometry = geometry
        return _backward(g, x, _like(shape, g, geometry), geometry, of=1)

    @staticmethod
    def backward(ctx: Any, v: Tensor) -> tuple[Tensor | None, ...]:  # ty: ignore[incompatible-method-override]  # one output
        (x, g), need, v = ctx.saved_tensors, ctx.needs_input_grad, _laid_out(v, ctx.geometry)
        to_x = _ToInput.apply(g, v, x.shape, ctx.geometry) if need[0] else None
        to_g = _Convolve.apply(x, v, None, ctx.geometry) if need[1] else None
        return to_x, to_g, None, None


class TwiceControl:
    """Takes over the forward of the convolutions of a private copy of the model.

    It acts only while `active`, on a CPU (cuDNN's own second derivatives are left alone); while
    `absorbed`, BatchNorm layers whose work a convolution does are the identity. `prepare` finds
    them, once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model, self.active, self.absorbed = model, False, False
        self.pairs: list[Pair] | None = None
        self.norms: dict[int, _BatchNorm] = {}
        for module in model.modules():
            plain = type(module) in _CONVOLUTIONS and "forward" not in module.__dict__
            if plain and isinstance(module, _ConvNd):
                take_over(module, self._forward_of(module))

    def takes(self, norm: nn.Module) -> bool:
        """Whether a convolution does this layer's work now."""
        return self.absorbed and any(norm is pair for pair in self.norms.values())

    def _forward_of(self, module: _ConvNd) -> Callable[[Tensor], Tensor]:
        plain = type(module).forward
        fixed = not isinstance(module.padding, str) and module.padding_mode == "zeros"

        def forward(x: Tensor) -> Tensor:
            batched = fixed and x.ndim == len(module.kernel_size) + 2
            if not (self.active and batched):
                return plain(module, x)
            weight, bias = module.weight, module.bias
            if self.absorbed and id(module) in self.norms:
                weight, bias = _absorbed(weight, bias, self.norms[id(module)])
            padding = [int(size) for size in module.padding]
            last = _channels_last(x, weight)
            geometry = list(module.stride), padding, list(module.dilation), module.groups, last
            return _Convolve.apply(*(_laid_out(t, geometry) for t in (x, weight)), bias, geometry)

        return forward

    def prepare(self, losses: Callable[[Tensor], Tensor], theta: Tensor) -> None:
        """Find the pairs; keep them if a few rows lose the same, here and at a point beside.

        losses: of these rows at a theta, evaluated.
        """
        if self.pairs is not None:
            return
        if not any(isinstance(module, _BatchNorm) for module in self.model.modules()):
            self.pairs = []
            return
        pairs = pairs_of(self.model, lambda: losses(theta), _CONVOLUTIONS)
        self.pairs = [pair for pair in pairs if _absorbable(pair)]
        self.norms = {id(pair.layer): pair.norm for pair in self.pairs}
        for point in (theta, beside(theta)) if self.pairs else ():
            if not agree(self._absorbing(losses, point), losses(point)):
                self.pairs, self.norms = [], {}
                return

    def _absorbing(self, losses: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
        self.active = self.absorbed = True
        try:
            return losses(theta)
        finally:
            self.active = self.absorbed = False


def _absorbed(w: Tensor, bias: Tensor | None, norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    scale, shift = scale_and_shift(norm, bias)
    return w * column(scale, w), shift


def _absorbable(pair: Pair) -> bool:
    """A convolution whose forward is ours, with zero padding, and a norm that is torch's own."""
    layer = pair.layer
    if not isinstance(layer, _ConvNd) or type(layer) not in _CONVOLUTIONS:
        return False
    fixed = not isinstance(layer.padding, str) and layer.padding_mode == "zeros"
    return type(pair.norm) in _NORMS and taken_over(layer) and fixed


def release(model: nn.Module) -> nn.Module:
    """Give a copy of the private model its own forward methods back."""
    for module in model.modules():
        if taken_over(module):
            del module.__dict__["forward"]
    return model


def has_error_node(tensors: Iterable[Tensor]) -> bool:
    """Whether their graph holds the node that once-differentiable functions leave.

    One walk for all: hundreds of gradients share nearly all of it.
    """
    seen, open_nodes = set(), [tensor.grad_fn for tensor in tensors]
    while open_nodes:
        node = open_nodes.pop()
        if node is None or node in seen:
            continue
        if node.name() == "torch::autograd::Error":
            return True
        seen.add(node)
        open_nodes += [following for following, _ in node.next_functions]
    return False
