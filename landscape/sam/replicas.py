"""Several processes, compiled models, mixed precision: what the passes must know about them."""

import contextlib
import sys
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from landscape.errors import LandscapeError
from landscape.sam.shards import MaybeTensor, Shards, is_cut
from landscape.sam.variant import Variant


def replicated(model: nn.Module) -> DistributedDataParallel | None:
    """The DistributedDataParallel around or inside a `torch.compile`d model, if there is one."""
    model = getattr(model, "_orig_mod", model)
    return model if isinstance(model, DistributedDataParallel) else None


def unsynced(model: nn.Module) -> Any:
    """A context in which backward passes leave each replica its own gradient."""
    replica = replicated(model)
    return contextlib.nullcontext() if replica is None else replica.no_sync()


def all_gradients_at_once(model: nn.Module) -> bool:
    """Whether a backward pass must compute all gradients or none.

    A replica's reducer waits for every parameter that it was built with, and a compiled model is
    compiled anew for every set of parameters that need a gradient.
    """
    compiled = any(
        getattr(m, "_compiled_call_impl", None) is not None or hasattr(m, "_orig_mod")
        for m in model.modules()
    )
    return compiled or replicated(model) is not None or any(map(is_cut, model.parameters()))


def own_gradients(model: nn.Module, gradients: Sequence[Tensor | None]) -> list[Tensor | None]:
    """Gradients that the next backward pass does not overwrite.

    With gradient_as_bucket_view=True they are views of buffers that it fills again.
    """
    replica = replicated(model)
    if replica is None or not replica.gradient_as_bucket_view:
        return list(gradients)
    return [None if g is None else g.clone() for g in gradients]


def mean_over_replicas(
    replica: DistributedDataParallel, tensors: Sequence[MaybeTensor]
) -> list[MaybeTensor]:
    """Each tensor averaged over all processes, in one message per dtype and device."""
    out = list(tensors)
    groups: dict[tuple[torch.dtype, torch.device], list[tuple[int, Tensor]]] = {}
    for i, t in enumerate(out):
        if t is not None:
            groups.setdefault((t.dtype, t.device), []).append((i, t))
    for alike in groups.values():
        flat = torch.cat([t.reshape(-1) for _, t in alike])
        dist.all_reduce(flat, group=replica.process_group)
        flat /= dist.get_world_size(replica.process_group)
        parts = flat.split([t.numel() for _, t in alike])
        for (i, t), part in zip(alike, parts, strict=True):
            out[i] = part.view(t.shape)
    return out


def all_agree(
    replica: DistributedDataParallel, answer: bool | Tensor, device: torch.device
) -> bool | Tensor:
    """Whether the answer is True in all processes; a tensor stays one and does not wait."""
    flag = torch.as_tensor(answer, device=device).to(torch.int32)
    dist.all_reduce(flag, op=dist.ReduceOp.MIN, group=replica.process_group)
    return flag.bool() if isinstance(answer, Tensor) else bool(flag)


def check_local(variant: Variant) -> None:
    """Refuse local perturbations where replicas would train different tensors."""
    if variant.correction.needs_e:
        raise LandscapeError(
            f"variant {variant.name!r} descends by what it finds along its own perturbation, and "
            "with sync_perturbation=False every replica would find something else and drift away; "
            "use sync_perturbation=True."
        )
    if variant.evaluate.partial:
        raise LandscapeError(
            f"variant {variant.name!r} updates the tensors that it selects, and with "
            "sync_perturbation=False every replica would select its own and drift away; use "
            "sync_perturbation=True."
        )


def agree(model: nn.Module, shards: Shards | None, answer: bool) -> bool:
    """Whether the answer is True in every process that works on this model."""
    replica = replicated(model)
    if replica is not None:
        answer = bool(all_agree(replica, answer, next(model.parameters()).device))
    return answer if shards is None else bool(shards.agree(answer))


def check_sharded(model: nn.Module) -> None:
    """Refuse the class that flattens parameters: a process has pieces without shape."""
    flat = sys.modules.get("torch.distributed.fsdp")
    kind = getattr(flat, "FullyShardedDataParallel", None)
    if kind is not None and any(isinstance(m, kind) for m in model.modules()):
        raise LandscapeError(
            "the model is wrapped in FullyShardedDataParallel, whose flattened parameters have "
            "neither names nor shapes that a variant could choose by; shard it with "
            "torch.distributed.fsdp.fully_shard (FSDP2), under which every variant works."
        )


def still_scaled(scaler: Any, optimizer: torch.optim.Optimizer) -> bool:
    """Whether `.grad` is in the scaler's units, neither unscale_ nor step having been called."""
    if scaler is None or not scaler.is_enabled():
        return False
    states = getattr(scaler, "_per_optimizer_states", None)
    return states is not None and not states.get(id(optimizer), {}).get("found_inf_per_device")
