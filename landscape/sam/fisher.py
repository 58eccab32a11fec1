"""Diagonal empirical Fisher information, from single examples drawn by index."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from landscape.errors import LandscapeError
from landscape.sam.batches import BatchCutter
from landscape.sam.buffers import Buffers, frozen_beside
from landscape.sam.passes import Averaging, forget_cached_weights
from landscape.sam.trained import Trained


def squared_gradients(
    model: nn.Module,
    trained: Trained,
    losses: Callable[[Any], Tensor],
    data: Any,
    num_samples: int,
    *,
    generator: torch.Generator,
    batches: BatchCutter | None = None,
    mode: str = "eval",
    contaminated: bool = False,
    shuffle: bool = True,
    averaged: Averaging | None = None,
) -> dict[str, Tensor]:
    """Diagonal empirical Fisher information: mean over examples of (∂ loss_i / ∂ w)², per tensor.

    num_samples examples are drawn without replacement by `generator`, or the first ones are taken
    (shuffle=False); no other one is read. contaminated=True adds the gradient that lies in `.grad`
    to the first example's, as released. Mode, buffers (unless contaminated) and `.grad` are put
    back. averaged: the mean over replicas, whose examples may differ. Sharded parameters give the
    gradient that all processes make together, so their examples must be the same.
    """
    batches = batches or BatchCutter()
    size = _number(data, batches)
    if num_samples > size:
        raise LandscapeError(
            f"num_samples={num_samples} Fisher examples were asked and the data given to "
            f"set_fisher_data hold {size}; lower num_samples or give more."
        )
    order = torch.randperm(size, generator=generator) if shuffle else torch.arange(size)
    parameters = list(trained.parameters)
    grads, left = [p.grad for p in parameters], trained.gradients()
    modes = {m: m.training for m in model.modules()}
    total = [torch.zeros_like(t) for t in trained.tensors()]
    model.train(mode == "train")
    try:
        with (
            Buffers(model, frozen_beside(model, trained)).kept(not contaminated),
            torch.enable_grad(),
        ):
            for count, i in enumerate(order[:num_samples].tolist()):
                forget_cached_weights()
                loss = losses(_example(data, i, batches))
                loss = (loss[0] if isinstance(loss, tuple) else loss).sum()
                sample = _gradients(trained, loss)
                for t, g, before in zip(total, sample, left, strict=True):
                    if contaminated and count == 0 and before is not None:
                        g = before if g is None else before + g
                    if g is not None:
                        t.addcmul_(g, g)
    finally:
        for m, training in modes.items():
            m.training = training
        for p, g in zip(parameters, grads, strict=True):
            p.grad = g
    torch._foreach_div_(total, num_samples)
    mean = total if averaged is None else averaged(total)
    return dict(zip(trained.names, mean, strict=True))


def _gradients(trained: Trained, loss: Tensor) -> Sequence[Tensor | None]:
    """Of one example; sharded parameters are gathered by hooks that only `backward` runs."""
    if trained.shards is None:
        return torch.autograd.grad(loss, list(trained.parameters), allow_unused=True)
    same = trained.shards.highest(loss) == -trained.shards.highest(-loss)
    if not same:
        raise LandscapeError(
            "the processes gave set_fisher_data different examples; under fully_shard and tensor "
            "parallel give every process the same data."
        )
    for p in trained.parameters:
        p.grad = None
    loss.backward()
    return trained.gradients()


def _number(data: Any, batches: BatchCutter) -> int:
    return len(data) if _is_dataset(data) else batches.size(data)


def _example(data: Any, i: int, batches: BatchCutter) -> Any:
    """A batch of example i alone."""
    if _is_dataset(data):
        return default_collate([data[i]])
    part = batches.select(data, slice(i, i + 1))
    listed = isinstance(data, (list, tuple)) and len(part) == 1 and part[0] is data[i]
    return default_collate(list(part)) if listed else part


def _is_dataset(data: Any) -> bool:
    """Whether the data are read one example at a time."""
    return not isinstance(data, (Tensor, tuple, list, Mapping)) and not hasattr(data, "ndim")
