"""One measurement by all processes of torchrun: each holds a part of the weights.

The first process works in the folder that was asked for, the others in copies of it that are
thrown away, so that all of them find the same things done and ask for the same things.
"""

import copy
import os
import shutil
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import nn

from landscape import devices

if TYPE_CHECKING:
    from landscape.study.running import Options

_mesh: Any = None


def asked() -> bool:
    """Whether torchrun, or something like it, started several of this process."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def processes(folder: Path, options: "Options") -> Generator[tuple[Path, "Options", bool]]:
    """(folder, options, whether this process speaks) for this one of all processes.

    Within it `cut` cuts models over all of them. Everything runs in this process, on the device of
    its local rank.
    """
    global _mesh
    from torch.distributed.device_mesh import init_device_mesh

    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = options.device
    if device == "auto" or device == "cuda":
        device = f"cuda:{local_rank}" if devices.count("cuda") > local_rank else "cpu"
    kind = device.partition(":")[0]
    if kind == "cuda":
        torch.cuda.set_device(torch.device(device))
    dist.init_process_group("cpu:gloo,cuda:nccl" if kind == "cuda" else "gloo")
    first = dist.get_rank() == 0
    try:
        _mesh = init_device_mesh(kind, (dist.get_world_size(),))
        with tempfile.TemporaryDirectory(prefix="landscape-") as beside:
            own = folder if first else Path(beside) / folder.name
            if not first and folder.exists():
                shutil.copytree(folder, own)
            dist.barrier()  # copied before the first one writes
            yield own, replace(options, device=device, workers=0, quiet=not first), first
            dist.barrier()
    finally:
        _mesh = None
        dist.destroy_process_group()


def measuring() -> bool:
    """Whether models are cut over processes now."""
    return _mesh is not None


def cut(model: nn.Module, device: torch.device) -> nn.Module:
    """The model, or within `processes` a copy whose parameters are cut along their first axis."""
    if _mesh is None or any(hasattr(p, "device_mesh") for p in model.parameters()):
        return model
    from torch.distributed.tensor import Shard, distribute_tensor

    made, parts = copy.deepcopy(model), dict[int, nn.Parameter]()
    for module in made.modules():
        for name, weight in module._parameters.items():
            if weight is None or weight.ndim == 0:
                continue
            if id(weight) not in parts:  # a tied one is cut once
                there = weight.detach().to(device)
                part = distribute_tensor(there, _mesh, [Shard(0)], src_data_rank=None)
                parts[id(weight)] = nn.Parameter(part, requires_grad=weight.requires_grad)
                parts[id(parts[id(weight)])] = parts[id(weight)]
            module._parameters[name] = parts[id(weight)]
    return made
