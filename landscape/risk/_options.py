"""Options of a risk, refused where they cannot be meant."""

import torch
from torch import nn

from landscape import devices
from landscape.checks import check_count, check_number
from landscape.errors import LandscapeError


def check_numbers(batch_size: int | None, weight_decay: float, memory: int | None) -> None:
    """Refuse sizes below 1 and a weight decay that is none."""
    if batch_size is not None:
        check_count("batch_size", batch_size, hint=", or None")
    if memory is not None:
        check_count("memory", memory, hint=" of bytes, such as 2 * 2**30, or None")
    check_number("weight_decay", weight_decay, least=0)


def placement(
    model: nn.Module, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Device and dtype; by default those of the model, with float32 for what is narrower."""
    if not isinstance(model, nn.Module):
        raise LandscapeError(
            f"model is a {type(model).__name__}; give a torch.nn.Module with its weights loaded."
        )
    first = next(model.parameters(), None)
    if dtype is None:
        double = first is not None and first.dtype == torch.float64
        dtype = torch.float64 if double else torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise LandscapeError(
            f"dtype={dtype} asked; possible are torch.float32 and torch.float64 (less precision "
            f"does not carry second derivatives)."
        )
    if device is None:
        device = first.device if first is not None else "cpu"
    return _usable(device), dtype


def _usable(device: torch.device | str) -> torch.device:
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise LandscapeError(
            f"device={device!r} asked; possible are 'cpu', 'cuda' and 'cuda:0' and so on."
        ) from error
    there = devices.count(place.type)
    # A model of the meta device has no values: that is said where the model is read.
    if place.type != "meta" and (place.index or 0) >= there:
        kind = place.type.upper() if place.type == "cuda" else place.type
        raise LandscapeError(
            f"device={device!s} asked, but torch finds {there} {kind} devices; use 'cpu' or one of "
            f"those."
        )
    return place
