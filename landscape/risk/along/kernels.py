"""Convolution, addition and ReLU in one kernel, where a model can be traced to a graph.

A result that nothing else reads is overwritten instead of copied. What comes out is proved against
the model by whoever uses it; a model that cannot be traced is left as it is.
"""

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

_RELUS = (F.relu, torch.relu)
_ADDS = (operator.add, torch.add, operator.iadd)
# Make a tensor of their own, and keep no view of what they read.
_FRESH = (F.pad, *_RELUS, *_ADDS)


def fusing_is_possible() -> bool:
    """Whether this torch has the fused kernels, and may use them."""
    kernels = ("_convolution_pointwise", "_convolution_pointwise_", "_linear_pointwise")
    return torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in kernels
    )


def linear(module: nn.Linear, *, gelu: bool) -> Callable[[Tensor], Tensor]:
    """The forward of a linear layer, followed by an exact GELU."""
    store, name = module._parameters, "gelu" if gelu else "none"

    def forward(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(
            x, store["weight"], store["bias"], name, [], "none"
        )

    return forward


def fused(model: nn.Module, *, nothing: Callable[[Tensor], Tensor]) -> nn.Module | None:
    """The model with fused convolutions, or None if there is nothing to fuse or no graph.

    `nothing` is the forward of the modules that have nothing left to do. Weights are read from the
    model's modules at every call.
    """
    try:
        graph = fx.Tracer().trace(model)
    except Exception:
        return None
    rewriting = _Rewriting(model, graph)
    rewriting.drop(nothing)
    rewriting.fuse()
    if not rewriting.count:
        return None
    graph.lint()
    return fx.GraphModule(model, graph)


class _Rewriting:
    def __init__(self, model: nn.Module, graph: fx.Graph) -> None:
        self._modules, self._graph, self.count = dict(model.named_modules()), graph, 0
        # Functions of our own, which make a tensor of their own.
        self._made: set[Any] = set()

    def drop(self, nothing: Callable[[Tensor], Tensor]) -> None:
        for node in list(self._graph.nodes):
            module = self._module(node)
            idle = isinstance(module, nn.Identity | nn.modules.dropout._DropoutNd) or (
                isinstance(module, _BatchNorm) and module.__dict__.get("forward") is nothing
            )
            if idle and len(node.args) == 1 and not node.kwargs:
                node.replace_all_uses_with(node.args[0])
                self._graph.erase_node(node)

    def fuse(self) -> None:
        for node in list(self._graph.nodes):
            if not self._is_relu(node):
                continue
            source = node.args[0]
            if not isinstance(source, fx.Node) or len(source.users) > 1:
                continue
            if (module := self._convolution(source)) is not None:
                self._replace(node, _relu_of(module), (source.args[0],), source)
            elif source.op == "call_function" and source.target in _ADDS:
                self._fuse_sum(node, source)
            elif self._is_fresh(source):
                self._replace(node, torch.relu_, (source,))

    def _fuse_sum(self, node: fx.Node, total: fx.Node) -> None:
        """relu(convolution + other), written over the other where it is not needed any more."""
        if len(total.args) == 2 and not total.kwargs:
            for conv, other in (arguments(total), arguments(total)[::-1]):
                module = self._convolution(conv)
                if module is None or len(conv.users) > 1 or not self._is_free(other, total):
                    continue
                self._replace(node, _sum_of(module), (other, conv.args[0]), total, conv)
                return
        self._replace(node, torch.relu_, (total,))

    def _replace(
        self, node: fx.Node, function: Callable[..., Tensor], args: tuple[Any, ...], *spent: fx.Node
    ) -> None:
        with self._graph.inserting_before(node):
            new = self._graph.call_function(function, args)
        node.replace_all_uses_with(new)
        for each in (node, *spent):
            self._graph.erase_node(each)
        self._made.add(function)
        self.count += 1

    def _module(self, node: Any) -> nn.Module | None:
        called = isinstance(node, fx.Node) and node.op == "call_module"
        return self._modules[node.target] if called else None

    def _convolution(self, node: Any) -> nn.Conv2d | None:
        module = self._module(node)
        plain = (
            type(module) is nn.Conv2d
            and "forward" not in module.__dict__
            and module.padding_mode == "zeros"
            and not isinstance(module.padding, str)
            and not (module._forward_hooks or module._forward_pre_hooks)
            and len(node.args) == 1
        )
        return module if plain else None

    def _is_relu(self, node: fx.Node) -> bool:
        if node.op == "call_function":
            return node.target in _RELUS
        return type(self._module(node)) is nn.ReLU or (
            node.op == "call_method" and node.target == "relu"
        )

    def _is_fresh(self, node: Any) -> bool:
        if not isinstance(node, fx.Node):
            return False
        if node.op == "call_function":
            return node.target in _FRESH or node.target in self._made
        return isinstance(self._module(node), nn.Conv2d | nn.Linear)

    def _is_free(self, node: Any, last: fx.Node) -> bool:
        """Whether a tensor is nobody else's, and read last by the node given."""
        if not self._is_fresh(node):
            return False
        for user in node.users:
            reads = self._is_fresh(user) and user.target is not torch.relu_
            if user is not last and not (reads and user < last):
                return False
        return True


def arguments(node: fx.Node) -> tuple[Any, ...]:
    """Of an operation whose own schema says their types, which fx has as whatever fits a graph."""
    return node.args


def _relu_of(module: nn.Conv2d) -> Callable[[Tensor], Tensor]:
    how = [module.padding, module.stride, module.dilation, module.groups]
    store = module._parameters

    def convolution_relu(x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise(
            x, store["weight"], store["bias"], *how, "relu", [], ""
        )

    return convolution_relu


def _sum_of(module: nn.Conv2d) -> Callable[[Tensor, Tensor], Tensor]:
    how = [module.padding, module.stride, module.dilation, module.groups]
    store = module._parameters

    def convolution_sum_relu(other: Tensor, x: Tensor) -> Tensor:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            other, x, store["weight"], store["bias"], *how, "add", 1.0, "relu", [], ""
        )

    return convolution_sum_relu
