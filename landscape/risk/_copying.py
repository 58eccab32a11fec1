"""A deep copy of a model, and what cannot be measured at all."""

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError


def refuse_odd(model: nn.Module) -> None:
    """Refuse scripted and quantized modules and tensors without values, by name."""
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
        if tensor.is_meta:
            raise LandscapeError(
                f"{name!r} is on the meta device and has no values; load the weights first "
                f"(model.to_empty(device='cpu'), then load_state_dict)."
            )
        if tensor.is_quantized:
            raise LandscapeError(
                f"{name!r} is quantized ({tensor.dtype}); measure the model before it is quantized."
            )


def copied(model: nn.Module) -> tuple[nn.Module, dict[str, Tensor]]:
    """A deep copy that shares no memory with the model, and what of it is stale.

    Attributes that are part of a graph (the weight that old weight_norm makes in every forward)
    cannot be copied as such; they come as constants, by name.
    """
    graphs = graph_tensors(model)
    memo = {id(t): t.detach().clone() for t in graphs.values()}
    stale = {name: memo[id(t)] for name, t in graphs.items()}
    try:
        made = copy.deepcopy(model, memo)
    except Exception as error:
        raise LandscapeError(
            f"{type(model).__name__} cannot be copied ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no reason given'}); measure on your "
            f"model itself with EmpiricalRisk(..., borrow=True), which puts it back bit for bit."
        ) from error
    originals = {t.untyped_storage().data_ptr() for t in _tensors(model)}
    for tensor in _tensors(made):
        # A __deepcopy__ of the user's may share on purpose.
        if tensor.numel() and tensor.untyped_storage().data_ptr() in originals:
            tensor.data = tensor.data.clone()
    return made, stale


def _tensors(model: nn.Module) -> list[Tensor]:
    return [t for t in (*model.parameters(), *model.buffers()) if t.layout is torch.strided]


def graph_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Attributes of modules that were computed from others, by name."""
    return {
        f"{name}.{key}" if name else key: tensor
        for name, module in model.named_modules()
        for key, value in module.__dict__.items()
        for tensor in _leaves(value)
        if tensor.grad_fn is not None
    }


def _leaves(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        yield from (item for item in value if isinstance(item, Tensor))
    elif isinstance(value, dict):
        yield from (item for item in value.values() if isinstance(item, Tensor))


def real_or_complex(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    """The dtype that a tensor of the model has when its real numbers have `dtype`."""
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else tensor.dtype
