"""Whether the gathered copy of a sharded model computes what the sharded model itself does."""

import contextlib
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.risk._criterion import logits_of
from landscape.risk._data import Batch
from landscape.risk._engine import Engine
from landscape.risk._network import numerics
from landscape.risk._sharded import computes_on_parts
from landscape.sharding import is_cut, local

_ROWS = 2


def refuse_other_function(engine: Engine, model: nn.Module) -> None:
    """Refuse, in every process, a forward that is another function once its weights are whole.

    model: the caller's, sharded so that its modules compute on parts of their weights; a few rows
    pass through it and the copy, in evaluation mode. A forward that counts the heads of its process
    is one function of the parts, and of whole weights another. Where the model's own pass fails
    nothing is known, and the notes say so.
    """
    if not computes_on_parts(model):
        return
    batch = engine.examples.on_device(engine.examples.few(_ROWS)).mapped(torch.clone)
    with engine.evaluating(engine.network.theta):
        whole = _answer(engine, engine.network.ready(batch)[0], batch)
    try:
        own = _of_the_callers(engine, model, batch)
        apart, reason = _apart(own.to(whole), whole), ""
        tolerance = max(torch.finfo(t.dtype).eps for t in (own, whole)) ** 0.5
    except Exception as error:  # of the model, the loss or of tensors that do not go together
        apart, tolerance = 0.0, 1.0
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (apart, tolerance, reason))
    reasons = [reason for _, _, reason in told if reason]
    engine.notes.not_compared = reasons[0] if reasons else ""
    differs = [(apart, tolerance) for apart, tolerance, _ in told if not apart <= tolerance]
    if differs:
        apart, tolerance = differs[0]
        raise LandscapeError(
            f"With whole weights {type(model).__name__} is another function than sharded: on "
            f"{batch.count} rows the outputs differ by {apart:.2g} of their size, where rounding "
            f"allows {tolerance:.1g}. A sharded model is measured on a copy that gathers each "
            f"weight where it is read, so that its forward must not count what lies in one process "
            f"(view(..., heads // world_size, -1)); take sizes from the tensors "
            f"(x.unflatten(-1, (-1, head_size))), or measure the plain model with the gathered "
            f"weights (full_tensor() of each parameter)."
        )


def _of_the_callers(engine: Engine, model: nn.Module, batch: Batch) -> Tensor:
    """Its own forward, hooks and all, in its own dtype and place; whoever asks puts it back."""
    weight = next(local(p) for p in model.parameters() if p.is_floating_point())

    def there(leaf: Tensor) -> Tensor:
        return leaf.to(weight.device, weight.dtype if leaf.is_floating_point() else None)

    model.eval()
    try:
        with (
            torch.set_grad_enabled(engine.network.habits.differentiates),
            numerics(weight.device, weight.dtype),
        ):
            return _answer(engine, model, batch.mapped(there))
    finally:
        for module in model.modules():  # what fully_shard left whole
            reshard = getattr(module, "reshard", None)
            if callable(reshard):
                with contextlib.suppress(Exception):
                    reshard()


def _answer(engine: Engine, model: Callable[..., Any], batch: Batch) -> Tensor:
    """The logits or the tensor that a model returns, else what the loss makes of it."""
    if engine.criterion.form != "batch":
        output = model(*batch.args, **batch.kwargs)
        logits = logits_of(output)
        if isinstance(logits, Tensor):
            return (logits.full_tensor() if is_cut(logits) else logits).detach()
        return engine.criterion.of_rows(lambda *_, **__: output, batch)[1].detach()
    return engine.criterion.of_rows(model, batch)[1].detach()


def _apart(own: Tensor, whole: Tensor) -> float:
    """‖own − whole‖ / ‖whole‖; of a process's part of the outputs beside the part it may be."""
    axes = [i for i, (a, b) in enumerate(zip(own.shape, whole.shape, strict=True)) if a != b]
    if not axes:  # what is not finite in both is no difference
        own, whole = (t.nan_to_num(0.0, 0.0, 0.0) for t in (own, whole))
        return float(vectors.norm(own - whole) / vectors.norm(whole).clamp(min=1e-30))
    (axis,) = axes
    here, total = own.shape[axis], whole.shape[axis]
    starts = {*range(0, total - here + 1, here), total - here}
    return min(_apart(own, whole.narrow(axis, start, here)) for start in starts)
