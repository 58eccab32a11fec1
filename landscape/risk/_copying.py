"""A deep copy of a model, and what cannot be measured at all."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from landscape.errors import LandscapeError
from landscape.risk._sharded import refuse_flattened
from landscape.risk._sparse import is_sparse
from landscape.risk._tracing import address, storages, values
from landscape.sharding import is_cut


def refuse_odd(model: nn.Module) -> None:
    """Refuse scripted and quantized modules and tensors without values or rows, by name."""
    refuse_flattened(model)
    for name, module in model.named_modules():
        place = f"{name!r} of the model" if name else "The model"
        if isinstance(module, torch.jit.ScriptModule):
            raise LandscapeError(
                f"{place} is a TorchScript module ({type(module).__name__}), which can neither be "
                f"copied nor differentiated twice here; build the Python module and load its "
                f"weights: model.load_state_dict(scripted.state_dict())."
            )
        if ".quantized" in type(module).__module__:
            raise LandscapeError(
                f"{place} is quantized ({type(module).__name__}), so its loss is a step function "
                f"of integer weights; measure the model before it is quantized."
            )
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise LandscapeError(
                f"{name!r} is not initialized yet (a lazy module); run the model once on a batch "
                f"of data first."
            )
        if is_sparse(tensor) and tensor.requires_grad:
            raise LandscapeError(
                f"{name!r} is trainable and sparse ({str(tensor.layout).removeprefix('torch.')}), "
                f"and theta is a dense vector; make its values the Parameter and the sparse tensor "
                f"of them in forward, or keep it dense (to_dense()) with a mask."
            )
        if tensor.is_meta:
            raise LandscapeError(
                f"{name!r} is on the meta device and has no values; load the weights first "
                f"(model.to_empty(device='cpu'), then load_state_dict)."
            )
        if tensor.is_quantized:
            raise LandscapeError(
                f"{name!r} is quantized ({tensor.dtype}); measure the model before it is quantized."
            )
    _refuse_shared(model)


def _refuse_shared(model: nn.Module) -> None:
    """Refuse weights that lie over one another in memory without being one Parameter."""
    spans = sorted(
        (address(weight), first, first + _extent(weight), name)
        for name, weight in model.named_parameters()
        for first in [weight.storage_offset() * weight.itemsize]
        if weight.requires_grad and weight.numel() and not is_cut(weight) and address(weight)
    )
    for (memory, _, stop, name), (other, start, _, second) in itertools.pairwise(spans):
        if memory == other and start < stop:
            raise LandscapeError(
                f"{name!r} and {second!r} share memory without being one Parameter, so that no "
                f"theta says which value they have; tie them (b.weight = a.weight) or give one of "
                f"them memory of its own (weight.data = weight.data.clone())."
            )


def _extent(tensor: Tensor) -> int:
    """Bytes from the first to behind the last of its elements."""
    reach = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (reach + 1) * tensor.itemsize


def copied(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A deep copy that shares no memory with the model, and what of it is stale.

    Attributes that are part of a graph (the weight that old weight_norm makes in every forward) or
    views of a parameter cannot be copied as such; they come as constants, by name.
    """
    kept = stale_tensors(model)
    memo: dict[int, Any] = {id(t): t.detach().clone() for t in kept.values()}
    stale = {name: memo[id(t)] for name, t in kept.items()}
    memo |= {id(t): _sparse_copy(t) for t in _tensors(model) if is_sparse(t)}
    try:
        made = copy.deepcopy(model, memo)
    except Exception as error:
        raise LandscapeError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); measure on your "
            f"model itself with EmpiricalRisk(..., borrow=True), which puts it back bit for bit."
        ) from error
    _refuse_same(model, made)
    stale |= _views_within(model, memo)
    originals = storages(values(model))
    for tensor in (*made.parameters(), *made.buffers()):
        # A __deepcopy__ of the user's may share memory; an expanded tensor cannot be written.
        if is_sparse(tensor):
            continue
        if address(tensor) in originals or (tensor.numel() > 1 and 0 in tensor.stride()):
            tensor.data = tensor.data.clone(memory_format=torch.contiguous_format)
    return made, stale


def _views_within(model: nn.Module, memo: Mapping[int, Any]) -> dict[str, Tensor]:
    """Copies of views of weights that lie deeper: whatever deepcopy met is in its memo.

    A copy of a view is a constant. What NumPy computes with one shows in no tensor, so that an
    array over the memory of a weight is refused.
    """
    weights = {n: p for n, p in model.named_parameters() if p.requires_grad}
    memory, found = storages(weights), dict[str, Tensor]()
    for original in memo.get(id(memo), ()):
        if isinstance(original, Tensor) and not isinstance(original, nn.Parameter):
            if name := memory.get(address(original)):
                found[f"a view of {name}"] = memo[id(original)]
        elif isinstance(original, np.ndarray) and original.size:
            name = _lies_in(original, weights)
            if name is not None:
                raise LandscapeError(
                    f"{type(model).__name__} keeps a NumPy array of shape {original.shape} over "
                    f"the memory of {name!r}, which a copy cannot follow; make it in forward, or "
                    f"set it to None first if nothing of the loss reads it."
                )
    return found


def _lies_in(array: np.ndarray, weights: Mapping[str, Tensor]) -> str | None:
    at = array.__array_interface__["data"][0]
    for name, weight in weights.items():
        start = address(weight)
        if start and weight.is_cpu and start <= at < start + weight.untyped_storage().nbytes():
            return name
    return None


def _refuse_same(model: nn.Module, made: nn.Module) -> None:
    """Refuse a copy, by a __deepcopy__ of the user's, that shares objects with the model."""
    own = {id(each): each for each in (*model.modules(), *model.parameters(), *model.buffers())}
    shared = next(
        (m for m in (*made.modules(), *made.parameters(), *made.buffers()) if id(m) in own), None
    )
    if shared is not None:
        raise LandscapeError(
            f"A copy of {type(model).__name__} made by copy.deepcopy holds the same "
            f"{type(shared).__name__} as your model (a __deepcopy__ of your own?), which measuring "
            f"would change; measure on your model itself with EmpiricalRisk(..., borrow=True), "
            f"which puts it back bit for bit."
        )


def _sparse_copy(tensor: Tensor) -> Tensor:
    """What copy.deepcopy does not make of sparse tensors."""
    made = tensor.detach().clone()
    return nn.Parameter(made, requires_grad=False) if isinstance(tensor, nn.Parameter) else made


def _tensors(model: nn.Module) -> Iterator[Tensor]:
    """Parameters, buffers and the tensors among the attributes."""
    yield from model.parameters()
    yield from model.buffers()
    for module in model.modules():
        for value in module.__dict__.values():
            yield from (tensor for _, tensor in _leaves("", value))


def stale_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Attributes of modules that were computed from parameters or are views of them, by name."""
    memory = storages(dict(model.named_parameters()))
    return {
        ".".join(filter(None, (name, place))): tensor
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        for place, tensor in _leaves(key, value)
        if not isinstance(tensor, nn.Parameter)
        and (tensor.grad_fn is not None or address(tensor) in memory)
    }


def _leaves(key: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    """Tensors of an attribute, in a container too, each with a name of its own."""
    inside: dict[Any, Any] = {}
    if isinstance(value, list | tuple):
        inside = dict(enumerate(value))
    elif isinstance(value, dict):
        inside = value
    elif isinstance(value, Tensor):
        yield key, value
    for at, item in inside.items():
        if isinstance(item, Tensor):
            yield str(at) if key == "_buffers" else f"{key}[{at!r}]", item


def real_or_complex(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a tensor of the model has when its real numbers have `dtype`."""
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else tensor.dtype


def with_gradient_hooks(model: nn.Module) -> list[str]:
    """Trainable parameters with hooks on their gradient: a copy has none, as the loss has none."""
    kinds = ("_backward_hooks", "_post_accumulate_grad_hooks")
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and any(getattr(parameter, kind, None) for kind in kinds)
    ]
