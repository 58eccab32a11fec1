"""What decides the bits of a training beside its options: the machine's arithmetic."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from landscape import devices

Arithmetic = dict[str, Any]


def arithmetic(device: torch.device, dtype: torch.dtype | None) -> Arithmetic:
    """Threads, device, precision, torch and vector instructions, as this process has them.

    Sums are taken in another order with other threads or instructions, and a training amplifies
    their last bits; two trainings are comparable bit for bit where all of these agree.
    """
    cpu = device.type == "cpu"
    return {
        "threads": torch.get_num_threads(),
        "device": devices.name(device),
        "dtype": "unknown" if dtype is None else str(dtype).removeprefix("torch."),
        "torch": str(torch.__version__),
        "vectors": torch.backends.cpu.get_cpu_capability() if cpu else "",
    }


def changed(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs, in words: "threads 1 before and 2 now"; empty where nothing does."""
    other = [key for key in now if key in before and before[key] != now[key]]
    return ", ".join(f"{key} {before[key]} before and {now[key]} now" for key in other)


def in_words(stretches: Sequence[Mapping[str, Any]]) -> str:
    """Arithmetic of a training, stretch by stretch: "threads 1, cpu, float32, torch 2.13"."""
    said = []
    for part in stretches:
        known = {key: value for key, value in part.items() if key != "first_epoch" and value != ""}
        text = ", ".join(
            str(value) if key in ("device", "dtype", "vectors") else f"{key} {value}"
            for key, value in known.items()
        )
        said.append(text if len(stretches) == 1 else f"from epoch {part['first_epoch']} {text}")
    return "; ".join(said)
