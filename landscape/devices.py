"""What is asked of a device: the CPU, CUDA, or another that torch has a module for.

Nothing else in this package tells CUDA from other accelerators, unless it is about a library or a
number format of CUDA's own.
"""

import contextlib
import ctypes
import gc
import pickle
import random
import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "RandomState",
    "count",
    "free_memory",
    "in_use",
    "is_accelerator",
    "name",
    "rng_state",
    "same_state",
    "seed",
    "set_rng_state",
    "synchronize",
    "trim",
]

_WORTH_A_TRIM = 2**26  # bytes of a vector

# Of torch on the CPU and on a device, of Python's `random` and, pickled, of numpy's `random`.
RandomState = tuple[Tensor, Tensor | None, tuple[Any, ...], bytes]


def is_accelerator(device: torch.device) -> bool:
    """Whether the host has to wait for numbers of this device, so that loops had better not ask."""
    return device.type not in ("cpu", "meta")


def count(kind: str) -> int:
    """Devices of this type ("cpu", "cuda", "mps", ...) that torch can use here."""
    if kind == "cpu":
        return 1
    try:
        module = torch.get_device_module(kind)
    except RuntimeError:
        return 0
    return module.device_count() if module.is_available() else 0


def name(device: torch.device) -> str:
    """The device's type, and the hardware's name where torch knows it."""
    module = _module(device)
    known = getattr(module, "get_device_name", None)
    return device.type if known is None else f"{device.type} ({known(device)})"


def free_memory(device: torch.device) -> int | None:
    """Bytes free on an accelerator; None where torch cannot say, as of the host."""
    ask = getattr(_module(device), "mem_get_info", None)
    return None if ask is None else ask(device)[0]


def trim(size: int, *, networks: bool = False) -> None:
    """Give back to the system what a phase has freed whose vectors have `size` bytes, if many.

    glibc keeps freed blocks of up to 32 MiB, most of a network's tensors, where what needs larger
    ones next cannot use them: after a phase that held many they would count until the end.
    networks: some were let go as well. One whose forward is bound to it holds itself until it is
    collected, which takes a third of a second.
    """
    if size < _WORTH_A_TRIM:
        return
    if networks:
        gc.collect()
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done what was asked of it."""
    module = _module(device)
    if module is not None:
        module.synchronize()


def rng_state(device: torch.device) -> RandomState:
    """State of all global generators: torch's of the CPU and of `device`, Python's and numpy's.

    Layers are dropped by `random.random()` and inputs mixed by `np.random.beta` no less than
    activations by torch.
    """
    module = _module(device)
    return (
        torch.get_rng_state(),
        None if module is None else module.get_rng_state(*_of(device)),
        random.getstate(),
        pickle.dumps(np.random.get_state(legacy=False)),  # noqa: NPY002  # what others draw from
    )


def set_rng_state(state: RandomState, device: torch.device) -> None:
    """Put back what `rng_state` returned."""
    of_torch, of_device, of_python, of_numpy = state
    torch.set_rng_state(of_torch)
    if of_device is not None:
        _module(device).set_rng_state(of_device, *_of(device))
    random.setstate(of_python)
    np.random.set_state(pickle.loads(of_numpy))  # noqa: NPY002


def same_state(a: RandomState, b: RandomState) -> bool:
    """Whether nothing was drawn between the two."""
    return a[2:] == b[2:] and all(
        x is y if x is None or y is None else torch.equal(x, y)
        for x, y in zip(a[:2], b[:2], strict=True)
    )


def seed(value: int, device: torch.device) -> None:
    """Seed the global generators of the CPU and of `device`, and of no other."""
    torch.default_generator.manual_seed(value)
    module = _module(device)
    if module is not None:
        with contextlib.nullcontext() if device.type == "mps" else module.device(device):
            module.manual_seed(value)


def in_use() -> list[torch.device]:
    """Accelerators that this process has begun to use."""
    kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if kind is None:
        return []
    module = torch.get_device_module(kind.type)
    if not getattr(module, "is_initialized", module.is_available)():
        return []
    return [torch.device(kind.type, i) for i in range(module.device_count())]


def _module(device: torch.device) -> Any:
    """The device's module in torch; None for the host."""
    return None if device.type in ("cpu", "meta") else torch.get_device_module(device.type)


def _of(device: torch.device) -> tuple[torch.device, ...]:
    """The argument of functions on one device's generator, of which Apple's has one for all."""
    return () if device.type == "mps" else (device,)
