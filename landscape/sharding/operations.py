"""Operations of torch on vectors that are cut over processes."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

from landscape.errors import LandscapeError
from landscape.sharding.space import Space
from landscape.sharding.vector import (
    ShardedVector,
    is_sharded,
    lead_of,
    operands,
    part_of,
    whole,
)

_aten = torch.ops.aten
_Handler = Callable[..., Any]


class _Gathered(Tensor):
    """A copy of something whole, to be read: what is written into it would reach nothing."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        name = getattr(func, "__name__", "")
        writes = name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
        if (writes or name[:3] == "__i") and args and isinstance(args[0], _Gathered):
            raise _refusal(name, "writes into a part of a vector that is no whole tensor")
        with torch._C.DisableTorchFunctionSubclass():
            return tree_map(_plain, func(*args, **(kwargs or {})))


def _plain(value: Any) -> Any:
    return value.as_subclass(Tensor) if isinstance(value, _Gathered) else value


def _refusal(name: str, why: str) -> LandscapeError:
    return LandscapeError(
        f"{name} {why}, and the vector is cut over processes (the model is sharded). Gather it "
        f"first (vector.whole()), if it fits, or work on whole tensors of it "
        f"(risk.layout.unflatten)."
    )


def _gathered(func: Any, args: Any, kwargs: Any) -> Any:
    """The operation on the whole; a view is a copy that cannot be written."""
    name = func.overloadpacket.__name__
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise _refusal(name, "draws random numbers, every process others")
    schema = func._schema
    written: Any = args[0] if schema.is_mutable else None
    if schema.is_mutable and (not schema.arguments[0].is_write or "out" in kwargs):
        raise _refusal(name, "writes into another operand than its first")
    args, kwargs = tree_map(whole, (args, kwargs))
    found = func(*args, **kwargs)
    if is_sharded(written):
        rows = args[0].reshape((*lead_of(written), written.space.size))
        written.here.copy_(written.space.own(rows).reshape(written.here.shape))
        return written
    view = any(r.alias_info is not None and not r.alias_info.is_write for r in schema.returns)
    if not view:
        return found
    return tree_map(lambda t: t.as_subclass(_Gathered) if isinstance(t, Tensor) else t, found)


def _pointwise(func: Any, args: Any, kwargs: Any) -> Any:
    """On what lies here; ordinary operands are numbers, columns or vectors of the same space."""
    leaves = tree_leaves((args, kwargs))
    vectors = [leaf for leaf in leaves if is_sharded(leaf)]
    model = max(vectors, key=lambda v: v.ndim)
    alike = all(v.space.same(model.space) and v.tail == model.tail for v in vectors)
    written = args[0] if func._schema.is_mutable else None
    if not alike or "out" in kwargs or (written is not None and not is_sharded(written)):
        return NotImplemented
    axes, bad = len(model.tail), []

    def here(value: Any) -> Any:
        if is_sharded(value):
            return value.here
        if not isinstance(value, Tensor) or all(n == 1 for n in value.shape[-axes:]):
            return value
        if value.ndim < axes or value.shape[-axes:] != model.tail:
            try:
                value = value.expand(torch.broadcast_shapes(value.shape, model.tail))
            except RuntimeError:
                bad.append(value)
                return value
        lead = value.shape[: value.ndim - axes]
        rows = model.space.own(value.reshape((*lead, model.space.size)))
        return rows.reshape((*lead, *_shape_here(model)))

    args, kwargs = tree_map(here, (args, kwargs))
    if bad:
        return NotImplemented
    found = func(*args, **kwargs)
    if written is not None:
        return written
    return tree_map(
        lambda t: ShardedVector(t, model.space, model.tail) if isinstance(t, Tensor) else t, found
    )


def _shape_here(v: ShardedVector) -> tuple[int, ...]:
    return tuple(v.here.shape[v.ndim - len(v.tail) :])


def _like(func: Any, args: Any, kwargs: Any) -> Any:
    """Operations with one vector that keep its shape."""
    v = args[0]
    if not is_sharded(v):
        return NotImplemented
    if kwargs.get("memory_format") is not None:
        kwargs = {**kwargs, "memory_format": torch.contiguous_format}
    return ShardedVector(func(v.here, *args[1:], **kwargs), v.space, v.tail)


def _new(func: Any, args: Any, kwargs: Any) -> Any:
    """New vectors (*k, P) of the same space; any other size is an ordinary tensor."""
    v, size, *rest = args
    if v.flat and len(size) and size[-1] == v.space.size:
        here = func(v.here, [*size[:-1], v.space.size_here], *rest, **kwargs)
        return ShardedVector(here, v.space)
    return func(v.here, size, *rest, **kwargs)


def _copy(func: Any, args: Any, kwargs: Any) -> Any:
    to, source = args[:2]
    if not is_sharded(to):
        return NotImplemented
    found = _pointwise(func, args, kwargs)
    if found is NotImplemented:
        raise _refusal("copy_", f"takes a tensor of shape {tuple(source.shape)}")
    return found


def _whole_fill(func: Any, args: Any, kwargs: Any) -> Any:
    func(args[0].here, *args[1:], **kwargs)
    return args[0]


def _view(_func: Any, args: Any, _kwargs: Any) -> Any:
    """One tensor in its own shape or flat; other axes than the last."""
    v, shape = args[0], list(args[1])
    if -1 in shape:
        known = -math.prod(shape)
        shape[shape.index(-1)] = v.numel() // known if known else 0
    shape = tuple(shape)
    if math.prod(shape) != v.numel():
        return NotImplemented
    if shape == tuple(v.shape):
        return ShardedVector(v.here, v.space, v.tail)
    pieces = v.space.pieces
    axes = len(pieces[0].shape)
    if v.flat and len(pieces) == 1 and axes and shape[len(shape) - axes :] == pieces[0].shape:
        lead = shape[: len(shape) - axes]
        if math.prod(lead) * v.space.size == v.numel():
            return ShardedVector(v.here.reshape((*lead, *pieces[0].here)), v.space, pieces[0].shape)
    if shape and shape[-1] == v.space.size:
        here = v.here.reshape((*shape[:-1], v.space.size_here))
        return ShardedVector(here, v.space)
    return NotImplemented


def _axis(v: ShardedVector, dim: int) -> int:
    return dim % v.ndim if v.ndim else 0


def _lead(func: Any, args: Any, kwargs: Any) -> Any:
    """Along another axis than that of theta."""
    v, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if _axis(v, dim) >= v.ndim - len(v.tail):
        return NotImplemented
    rest = args[2:]
    found = func(v.here, _axis(v, dim), *rest)
    wrap = lambda t: ShardedVector(t, v.space, v.tail)  # noqa: E731
    return wrap(found) if isinstance(found, Tensor) else [wrap(t) for t in found]


def _unsqueeze(func: Any, args: Any, _kwargs: Any) -> Any:
    v, dim = args
    axis = dim % (v.ndim + 1)
    if axis > v.ndim - len(v.tail):
        return NotImplemented
    return ShardedVector(func(v.here, axis), v.space, v.tail)


def _expand(func: Any, args: Any, _kwargs: Any) -> Any:
    v, shape = args[0], list(args[1])
    axes = len(v.tail)
    tail = [n if m == -1 else m for n, m in zip(v.tail, shape[len(shape) - axes :], strict=True)]
    if tuple(tail) != v.tail:
        return NotImplemented
    here = func(v.here, [*shape[: len(shape) - axes], *_shape_here(v)])
    return ShardedVector(here, v.space, v.tail)


def _slice(func: Any, args: Any, _kwargs: Any) -> Any:
    v: ShardedVector = args[0]
    dim, first, last, step = (*args[1:], *(0, None, None, 1)[len(args) - 1 :])
    axis = _axis(v, dim or 0)
    if axis < v.ndim - len(v.tail):
        here = func(v.here, axis, first, last, step)
        return ShardedVector(here, v.space, v.tail)
    if not v.flat or step != 1:
        return NotImplemented
    first, last, _ = slice(first, last).indices(v.space.size)
    part = v.space.piecewise(first, last)
    if part is None:
        return NotImplemented
    space = v.space
    return ShardedVector(v.here[..., space.here(first) : space.here(last)], part)


def _split(func: Any, args: Any, kwargs: Any) -> Any:
    v, sizes, dim = args[0], args[1], args[2] if len(args) > 2 else kwargs.get("dim", 0)
    if _axis(v, dim) < v.ndim - len(v.tail):
        return _lead_split(func, v, sizes, _axis(v, dim))
    if isinstance(sizes, int) or not v.flat:
        return NotImplemented
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    spaces = [v.space.piecewise(end - n, end) for end, n in zip(ends, sizes, strict=True)]
    if any(space is None for space in spaces):
        return NotImplemented
    parts = v.here.split([space.size_here for space in spaces if space is not None], -1)
    return [ShardedVector(part, space) for part, space in zip(parts, spaces, strict=True) if space]


def _lead_split(func: Any, v: ShardedVector, sizes: Any, axis: int) -> Any:
    return [ShardedVector(part, v.space, v.tail) for part in func(v.here, sizes, axis)]


def _join(func: Any, args: Any, kwargs: Any) -> Any:
    """Tensors one after another along theta, or vectors of one space below one another."""
    tensors, dim = args[0], args[1] if len(args) > 1 else kwargs.get("dim", 0)
    if not all(map(is_sharded, tensors)):
        return NotImplemented
    first = tensors[0]
    same = all(t.space.same(first.space) and t.tail == first.tail for t in tensors)
    stacking = func.overloadpacket is _aten.stack
    axis = dim % (first.ndim + stacking)
    if same and axis < first.ndim - len(first.tail) + stacking:
        return ShardedVector(func([t.here for t in tensors], axis), first.space, first.tail)
    if stacking or not all(t.flat for t in tensors) or axis != first.ndim - 1:
        return NotImplemented
    space = Space([piece for t in tensors for piece in t.space.pieces])
    return ShardedVector(torch.cat([t.here for t in tensors], -1), space)


def _index(func: Any, args: Any, _kwargs: Any) -> Any:
    """Vectors chosen by numbers or a mask."""
    v, indices = args[:2]
    if not is_sharded(v) or len(indices) > v.ndim - len(v.tail) or any(map(is_sharded, indices)):
        return NotImplemented
    return ShardedVector(func(v.here, indices), v.space, v.tail)


def _index_put(func: Any, args: Any, _kwargs: Any) -> Any:
    v, indices, values, *rest = args
    if not is_sharded(v) or len(indices) > v.ndim - len(v.tail) or any(map(is_sharded, indices)):
        return NotImplemented
    func(v.here, indices, values.here if is_sharded(values) else part_of(values, v.space), *rest)
    return v


def _masked_fill(func: Any, args: Any, kwargs: Any) -> Any:
    return _pointwise(func, args, kwargs)


def _all_of(v: ShardedVector, dims: Any) -> bool | None:
    """Whether a reduction runs over all, over the last axis of flat vectors (False), or neither."""
    dims = [] if dims is None else [dims] if isinstance(dims, int) else list(dims)
    axes = sorted(_axis(v, dim) for dim in dims)
    if not axes or axes == list(range(v.ndim)):
        return True
    return False if v.flat and axes == [v.ndim - 1] else None


def _columns(v: ShardedVector) -> Tensor:
    """What counts here, as flat rows."""
    return v.space.counted(v.here.reshape((*lead_of(v), v.space.size_here)))


def _options(func: Any, args: Any, kwargs: Any) -> dict[str, Any]:
    """All arguments by name."""
    names = [argument.name for argument in func._schema.arguments]
    return {**dict(zip(names, args, strict=False)), **kwargs}


def _reduced(
    reduce: Callable[..., Tensor], join: Callable[[Space, Tensor], Tensor]
) -> _Handler:  # fmt: skip
    """A reduction of what lies here, joined over the processes."""

    def handler(func: Any, args: Any, kwargs: Any) -> Any:
        v, given = args[0], _options(func, args, kwargs)
        over = _all_of(v, given.get("dim"))
        if over is None:
            return NotImplemented
        columns = _columns(v)
        # Axes of length one in place of none: every process reduces something.
        rows = columns.reshape(1, -1) if over else columns
        found = join(v.space, reduce(rows, given.get("dtype")))
        found = found.reshape(()) if over else found
        if given.get("keepdim"):
            return found.reshape([1] * v.ndim) if over else found[..., None]
        return found

    return handler


def _sums(rows: Tensor, dtype: Any) -> Tensor:
    return rows.sum(-1, dtype=dtype)


def _mean(func: Any, args: Any, kwargs: Any) -> Any:
    v, given = args[0], _options(func, args, kwargs)
    total = _SUM(_aten.sum.dim_IntList, (v, given.get("dim"), given.get("keepdim", False)), {})
    if total is NotImplemented:
        return total
    return total / (v.numel() // max(1, total.numel()))


def _some(rows: Tensor, _dtype: Any) -> Tensor:
    return rows.any(-1).to(torch.int32)


def _every(rows: Tensor, _dtype: Any) -> Tensor:
    return rows.all(-1).to(torch.int32)


def _largest(space: Space, value: Tensor) -> Tensor:
    return space.every(value).amax(0)


def _smallest(space: Space, value: Tensor) -> Tensor:
    return space.every(value).amin(0)


def _extreme(sign: int) -> Callable[..., Tensor]:
    def of(rows: Tensor, _dtype: Any) -> Tensor:
        least = -math.inf if rows.dtype.is_floating_point else torch.iinfo(rows.dtype).min
        beside = rows.new_full((*rows.shape[:-1], 1), least if sign > 0 else -least)
        joined = torch.cat([rows, beside], -1)
        return joined.amax(-1) if sign > 0 else joined.amin(-1)

    return of


def _found(handler: _Handler) -> _Handler:
    def boolean(func: Any, args: Any, kwargs: Any) -> Any:
        found = handler(func, args, kwargs)
        return found if found is NotImplemented else found.bool()

    return boolean


def _whole_only(handler: _Handler) -> _Handler:
    """Of reductions that along an axis return two tensors."""

    def of(func: Any, args: Any, kwargs: Any) -> Any:
        return handler(func, args, kwargs) if len(args) == 1 and not kwargs else NotImplemented

    return of


def _norm(func: Any, args: Any, kwargs: Any) -> Any:
    given = _options(func, args, kwargs)
    order = given.get("ord", given.get("p", 2))
    order = 2.0 if order is None else float(order)
    if order == 0:
        return NotImplemented

    def of(rows: Tensor, dtype: Any) -> Tensor:
        if not rows.shape[-1]:
            rows = rows.new_zeros((*rows.shape[:-1], 1))
        return torch.linalg.vector_norm(rows, order, dim=-1, dtype=dtype)

    def join(space: Space, value: Tensor) -> Tensor:
        return torch.linalg.vector_norm(space.every(value), order, dim=0)

    return _reduced(of, join)(func, args, kwargs)


def _norms(_func: Any, args: Any, kwargs: Any) -> Any:
    order = args[1] if len(args) > 1 else 2
    dtype = kwargs.get("dtype")
    return [torch.linalg.vector_norm(t, order, dtype=dtype) for t in args[0]]


def _dot(_func: Any, args: Any, _kwargs: Any) -> Any:
    space, (a, b) = operands(*args[:2])
    if space is None or a.shape[-1] != b.shape[-1]:
        return NotImplemented
    return space.sum(torch.dot(space.counted(a), space.counted(b)))


def _product(func: Any, args: Any, _kwargs: Any) -> Any:
    """A small matrix times rows of vectors, or rows times a vector."""
    a, b = args[:2]
    if is_sharded(b) and not is_sharded(a) and b.flat and b.ndim == 2:
        return ShardedVector(func(a, b.here), b.space)
    if is_sharded(a) and a.flat and b.ndim == 1:
        space, (rows, w) = operands(a, b)
        assert space is not None
        return space.sum(space.counted(rows) @ space.counted(w))
    return NotImplemented


def _add_product(func: Any, args: Any, kwargs: Any) -> Any:
    total, a, b = args[:3]
    if not (is_sharded(total) and is_sharded(b) and total.flat and b.flat) or is_sharded(a):
        return NotImplemented
    found = func(total.here, a, b.here, **kwargs)
    return total if func._schema.is_mutable else ShardedVector(found, total.space)


def _equal(_func: Any, args: Any, _kwargs: Any) -> Any:
    a, b = args
    if a.shape != b.shape or not (is_sharded(a) and is_sharded(b)):
        return False if a.shape != b.shape else NotImplemented
    return bool((a == b).all())


_SUM = _reduced(_sums, lambda space, value: space.sum(value))

_HANDLERS: dict[Any, _Handler] = {
    **dict.fromkeys(
        (_aten.detach, _aten.clone, _aten.alias, _aten._to_copy, _aten.empty_like,
         _aten.zeros_like, _aten.ones_like, _aten.full_like, _aten.lift_fresh),
        _like,
    ),
    **dict.fromkeys((_aten.new_empty, _aten.new_zeros, _aten.new_ones, _aten.new_full), _new),
    **dict.fromkeys((_aten.zero_, _aten.fill_), _whole_fill),
    **dict.fromkeys((_aten.view, _aten._unsafe_view, _aten.reshape), _view),
    **dict.fromkeys((_aten.select, _aten.unbind), _lead),
    **dict.fromkeys((_aten.cat, _aten.stack), _join),
    **dict.fromkeys((_aten.mv, _aten.mm, _aten.matmul), _product),
    **dict.fromkeys((_aten.addmm, _aten.addmm_), _add_product),
    _aten.unsqueeze: _unsqueeze,
    _aten.expand: _expand,
    _aten.copy_: _copy,
    _aten.masked_fill: _masked_fill,
    _aten.masked_fill_: _masked_fill,
    _aten.slice: _slice,
    _aten.split_with_sizes: _split,
    _aten.split: _split,
    _aten.index: _index,
    _aten.index_put_: _index_put,
    _aten.sum: _SUM,
    _aten.mean: _mean,
    _aten.any: _found(_reduced(_some, _largest)),
    _aten.all: _found(_reduced(_every, _smallest)),
    _aten.amax: _reduced(_extreme(1), _largest),
    _aten.amin: _reduced(_extreme(-1), _smallest),
    _aten.max: _whole_only(_reduced(_extreme(1), _largest)),
    _aten.min: _whole_only(_reduced(_extreme(-1), _smallest)),
    _aten.linalg_vector_norm: _norm,
    _aten.norm: _norm,
    _aten._foreach_norm: _norms,
    _aten.dot: _dot,
    _aten.vdot: _dot,
    _aten.equal: _equal,
}  # fmt: skip


def run(func: Any, args: Any, kwargs: Any) -> Any:
    """What an operation of torch does with sharded vectors among its operands."""
    handler = _HANDLERS.get(func.overloadpacket)
    if handler is not None:
        found = handler(func, args, kwargs)
        if found is not NotImplemented:
            return found
    if torch.Tag.pointwise in func.tags:
        found = _pointwise(func, args, kwargs)
        if found is not NotImplemented:
            return found
    return _gathered(func, args, kwargs)


ShardedVector.run = staticmethod(run)
