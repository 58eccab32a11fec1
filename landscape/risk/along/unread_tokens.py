"""A forward pass as a graph in which tokens that nobody reads are not computed.

A classifier that reads one token of many needs its last block for that token alone: a slice of
tokens moves up through whatever treats them one by one (linear layers, norms over the features,
activations, sums, the queries of attention). What comes out is proved against the model by whoever
uses it.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from landscape.risk._data import Batch
from landscape.risk.along.first_layer import FirstLayer
from landscape.risk.along.kernels import arguments

_aten = torch.ops.aten
_SELECT, _SLICE = _aten.select.int, _aten.slice.Tensor
_UNARY = (_aten.gelu.default, _aten.relu.default, _aten.silu.default, _aten.tanh.default,
          _aten.sigmoid.default, _aten.dropout.default, _aten.clone.default)  # fmt: skip
_BINARY = (_aten.add.Tensor, _aten.sub.Tensor, _aten.mul.Tensor)
_RESHAPES = (_aten.view.default, _aten.reshape.default, _aten._unsafe_view.default)
_ATTENTION = _aten.scaled_dot_product_attention.default
_PRODUCTS = {_aten.linear.default, _ATTENTION}
if hasattr(torch.ops.mkldnn, "_linear_pointwise"):
    _PRODUCTS.add(torch.ops.mkldnn._linear_pointwise.default)


def without_unread(
    model: nn.Module, first: FirstLayer | None, batch: Batch
) -> Callable[[Batch], Any] | None:
    """The model on batches of this size, or None if it has no graph or nothing to leave out.

    Weights are read from the model's tensors at every call, and what `first` gives as well.
    """

    def call(*inputs: Tensor) -> Any:
        leaves = iter(inputs)
        if first is not None:
            first.given = next(leaves)
        own = batch.mapped(lambda _: next(leaves))
        return model(*own.args, **own.kwargs)

    def inputs_of(batch: Batch) -> list[Tensor]:
        return [*([] if first is None else [first.outputs()]), *batch.leaves()]

    try:
        graph = _narrowed(call, inputs_of(batch))
    finally:
        if first is not None:
            first.given = None
    return None if graph is None else lambda batch: graph(*inputs_of(batch))


def _narrowed(call: Callable[..., Any], inputs: list[Tensor]) -> fx.GraphModule | None:
    try:
        # Before dispatch layers and attention are still whole operations.
        module = make_fx(call, pre_dispatch=True)(*inputs)
    except Exception:
        return None
    operations = [node.target for node in module.graph.nodes if node.op == "call_function"]
    if any(isinstance(op, torch._ops.OpOverload) and op._schema.is_mutable for op in operations):
        return None
    narrowing = _Narrowing(module)
    narrowing.run()
    if not narrowing.count:
        return None
    module.graph.lint()
    module.recompile()
    return module


class _Narrowing:
    """`count`: products that were narrowed."""

    def __init__(self, module: fx.GraphModule) -> None:
        self._module, self._graph, self.count = module, module.graph, 0

    def run(self) -> None:
        for node in list(self._graph.nodes):
            if node.target is _SELECT:
                self._split(node)
            elif node.target is _SLICE and not node.kwargs:
                self._normalize(node)
        while any(self._lifted(node) for node in list(self._graph.nodes)[::-1]):
            self._graph.eliminate_dead_code()

    def _split(self, node: fx.Node) -> None:
        """select(x, dim, i) as select(x[i : i + 1], dim, 0)."""
        source, dim, index = arguments(node)
        shape = self._shape(source)
        dim, index = dim % len(shape), index % shape[dim]
        with self._graph.inserting_before(node):
            part = self._slice(source, dim, index, index + 1)
        node.args = (part, dim, 0)

    def _normalize(self, node: fx.Node) -> None:
        """A slice without steps as (source, dim, start, end) within 0 and the length."""
        given = arguments(node)
        usual: tuple[Any, ...] = (None, 0, None, None, 1)
        source, dim, start, end, step = given + usual[len(given) :]
        shape = self._shape(source)
        start, end, _ = slice(start, end).indices(shape[dim])
        if step == 1:
            node.args = (source, dim % len(shape), start, end)

    def _lifted(self, node: fx.Node) -> bool:
        """Move a slice before the operation whose result it cuts; whether that could be done."""
        if node.target is not _SLICE or len(node.args) != 4:
            return False
        source, dim, start, end = arguments(node)
        shape = self._shape(source)
        cut = (dim, start, end)
        if source.op != "call_function" or not 0 <= start < end <= shape[dim]:
            return False
        users = list(source.users)
        if end - start == shape[dim] or any(not _cuts(user, cut) for user in users):
            return False
        with self._graph.inserting_before(source):
            made = self._applied(source, shape, *cut)
        if made is None:
            return False
        made.meta["shape"] = (*shape[:dim], end - start, *shape[dim + 1 :])
        for user in users:
            user.replace_all_uses_with(made)
            self._graph.erase_node(user)
        # Dead code that might draw random numbers is not taken away with the rest.
        self._graph.erase_node(source)
        self.count += source.target in _PRODUCTS
        return True

    def _applied(
        self, source: fx.Node, shape: tuple[int, ...], dim: int, start: int, end: int
    ) -> fx.Node | None:
        """The operation on cut inputs; None where a cut of the result is none of the inputs."""
        op, args = source.target, list(arguments(source))
        rank = len(shape)

        def cut(x: Any, at: int = dim) -> fx.Node:
            return self._slice(x, at, start, end)

        if op in _UNARY:
            args[0] = cut(args[0])
        elif op in _BINARY:
            args[:2] = [self._aligned(each, shape, dim, cut) for each in args[:2]]
        elif op is _ATTENTION:
            if dim != rank - 2 or len(args) != 3 or set(source.kwargs) - {"scale"}:
                return None
            args[0] = cut(args[0])
        elif op in _PRODUCTS:
            if dim == rank - 1:
                return None
            args[0] = cut(args[0])
        elif op is _aten.layer_norm.default:
            if dim >= rank - len(args[1]):
                return None
            args[0] = cut(args[0])
        elif op is _aten.transpose.int:
            first, second = args[1] % rank, args[2] % rank
            args[0] = cut(args[0], {first: second, second: first}.get(dim, dim))
        elif op is _aten.permute.default:
            args[0] = cut(args[0], args[1][dim] % rank)
        elif op in _RESHAPES:
            if self._shape(args[0])[: dim + 1] != shape[: dim + 1]:
                return None
            # A cut may leave no view.
            op = _aten.reshape.default
            args = [cut(args[0]), [*shape[:dim], end - start, *shape[dim + 1 :]]]
        else:
            return None
        return self._graph.call_function(op, tuple(args), dict(source.kwargs))

    def _aligned(
        self, operand: Any, shape: tuple[int, ...], dim: int, cut: Callable[..., fx.Node]
    ) -> Any:
        """An operand of a sum, cut where it is not broadcast."""
        if not isinstance(operand, fx.Node):
            return operand
        own = self._shape(operand)
        at = dim - (len(shape) - len(own))
        return operand if at < 0 or own[at] == 1 else cut(operand, at)

    def _slice(self, source: fx.Node, dim: int, start: int, end: int) -> fx.Node:
        shape = self._shape(source)
        made = self._graph.call_function(_SLICE, (source, dim, start, end))
        made.meta["shape"] = (*shape[:dim], end - start, *shape[dim + 1 :])
        return made

    def _shape(self, node: fx.Node) -> tuple[int, ...]:
        if "shape" in node.meta:
            return node.meta["shape"]
        if node.op == "get_attr":
            return tuple(getattr(self._module, str(node.target)).shape)
        return tuple(node.meta["tensor_meta"].shape)


def _cuts(user: fx.Node, cut: tuple[int, int, int]) -> bool:
    return user.target is _SLICE and user.args[1:] == cut
