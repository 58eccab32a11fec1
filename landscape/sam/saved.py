"""Saving and loading a SAM optimizer: everything that the next step depends on."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError

FORMAT = 1


def state_dict(optimizer: Any) -> dict[str, Any]:
    """Tensors are references, as in torch; save or copy before the next step."""
    state = {
        "format": FORMAT,
        "variant": optimizer.variant.name,
        "base": optimizer.base.state_dict(),
        "slots": _containers(optimizer.slots),
        "generator": optimizer.generator.get_state(),
        "step": optimizer.step_count,
        "epoch": optimizer.epoch,
        "total_epochs": optimizer.total_epochs,
        "epoch_begun": optimizer.epoch_begun,
        "skipped": optimizer.num_skipped,
    }
    if optimizer.host_generator is not optimizer.generator:
        state["host_generator"] = optimizer.host_generator.get_state()
    return state


def load_state_dict(optimizer: Any, state: dict[str, Any]) -> None:
    """Put everything back, or raise before anything is changed."""
    if not isinstance(state, dict) or "slots" not in state or "base" not in state:
        raise LandscapeError(
            "this is not the state of a SAM optimizer (it lacks 'slots' and 'base'); load what "
            "SAM.state_dict() returned."
        )
    if state["format"] != FORMAT:
        raise LandscapeError(
            f"the saved optimizer has format {state['format']} and this version reads {FORMAT}."
        )
    if state["variant"] != optimizer.variant.name:
        raise LandscapeError(
            f"the saved state belongs to variant {state['variant']!r} and this optimizer runs "
            f"{optimizer.variant.name!r}; make the optimizer with the saved variant."
        )
    shapes = dict(
        zip(optimizer.trained.names, [p.shape for p in optimizer.trained.parameters], strict=True)
    )
    check_shapes(state["slots"], shapes)
    optimizer.base.load_state_dict(state["base"])
    optimizer.slots = _placed(state["slots"], optimizer.device)
    optimizer.generator.set_state(state["generator"].cpu())
    if "host_generator" in state and optimizer.host_generator is not optimizer.generator:
        optimizer.host_generator.set_state(state["host_generator"].cpu())
    optimizer.step_count, optimizer.epoch = state["step"], state["epoch"]
    optimizer.total_epochs, optimizer.epoch_begun = state["total_epochs"], state["epoch_begun"]
    optimizer.skipped = state["skipped"]
    optimizer.last = None
    optimizer._pending = None


def _containers(value: Any) -> Any:
    """New dicts and lists around the same tensors."""
    if isinstance(value, dict):
        return {k: _containers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_containers(v) for v in value)
    return value


def _placed(value: Any, device: torch.device) -> Any:
    """A copy of nested containers with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {k: _placed(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_placed(v, device) for v in value)
    return value


def check_shapes(value: Any, shapes: Mapping[str, torch.Size]) -> None:
    """Every tensor stored under a name of the model must have that tensor's shape."""
    if not isinstance(value, dict):
        return
    named = {k: v for k, v in value.items() if isinstance(v, Tensor) and v.ndim > 0}
    known = [k for k in named if k in shapes]
    wrong = [k for k in known if named[k].shape != shapes[k]]
    foreign = [k for k in named if "." in k and k not in shapes]
    if wrong or foreign:
        name = (wrong or foreign)[0]
        here = f"shape {tuple(shapes[name])}" if name in shapes else "no such tensor"
        raise LandscapeError(
            f"the state holds {name!r} of shape {tuple(named[name].shape)} and this model has "
            f"{here}: it is of another model."
        )
    for v in value.values():
        check_shapes(v, shapes)
