"""What a SAM optimizer refuses, and how it says so."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import LandscapeError
from landscape.sam.engine import Trained, unwrap
from landscape.sam.variant import Variant

BY_BATCH = frozenset({"per_example_losses", "logits", "indices", "previous_batch"})


def check_belongs(model: nn.Module, trained: Trained, parameters: Sequence[nn.Parameter]) -> None:
    """The base optimizer's parameters must be this model's, and some of them trainable."""
    own = {id(p) for p in unwrap(model).parameters()}
    foreign = [i for i, p in enumerate(parameters) if id(p) not in own]
    if foreign:
        shapes = [tuple(parameters[i].shape) for i in foreign[:3]]
        raise LandscapeError(
            f"{len(foreign)} of the base optimizer's {len(parameters)} parameters do not belong to "
            f"the model (the first of shapes {shapes}); build the base optimizer from "
            "model.parameters() of this model."
        )
    if not trained.names:
        raise LandscapeError(
            "the base optimizer holds no trainable parameter of this model; nothing can be trained."
        )


def check_base(base: Optimizer) -> None:
    """The base optimizer must step with the gradient that it is given."""
    if isinstance(base, torch.optim.LBFGS):
        raise LandscapeError(
            "LBFGS evaluates the loss itself, several times per step, and cannot step with a given "
            "descent gradient; use another base optimizer."
        )


def check_dense(names: Sequence[str], gradients: Sequence[Tensor | None]) -> None:
    """Norms and masks are of dense gradients."""
    sparse = [n for n, g in zip(names, gradients, strict=True) if g is not None and g.is_sparse]
    if sparse:
        raise LandscapeError(
            f"the gradient of {sparse[0]!r} is sparse, which no ascent can use; make its embedding "
            "with sparse=False."
        )


def check_unchanged(base: Optimizer, ids: tuple[int, ...]) -> None:
    """The parameter set is fixed when the optimizer is made."""
    if tuple(id(p) for g in base.param_groups for p in g["params"]) == ids:
        return
    now = sum(len(g["params"]) for g in base.param_groups)
    raise LandscapeError(
        f"the parameter set changed between steps (it was {len(ids)} tensors, now {now} or "
        "others); make a new SAM for the new parameters."
    )


def check_needs(variant: Variant, *, has_batch: bool, has_fisher: bool, has_epochs: bool) -> None:
    """A call must offer what the variant needs."""
    needs, name = variant.needs, variant.name
    by_batch = set(needs & BY_BATCH)
    if getattr(variant.evaluate, "micro_batches", 1) > 1:
        by_batch.add("per_example_losses")
    if by_batch and not has_batch:
        raise LandscapeError(
            f"variant {name!r} needs {', '.join(sorted(by_batch))}, which step(closure) cannot "
            "offer; call step(losses, batch) with losses(batch) -> (B,)"
            + (" and the model's outputs, (losses, logits)." if "logits" in needs else ".")
        )
    if "fisher_data" in needs and not has_fisher:
        raise LandscapeError(
            f"variant {name!r} needs fisher_data; call optimizer.set_fisher_data(losses, data) "
            "before the first step."
        )
    if "epochs" in needs and not has_epochs:
        raise LandscapeError(
            f"variant {name!r} changes per epoch and has not been told of any; call "
            "optimizer.begin_epoch(epoch, total_epochs=...) when each epoch begins."
        )


def check_micro_batch(micro_batch: int, variant: Variant, *, has_batch: bool) -> None:
    """Micro-batches need a batch to cut, and losses that are sums over examples."""
    if not isinstance(micro_batch, int) or isinstance(micro_batch, bool) or micro_batch < 1:
        raise LandscapeError(f"micro_batch={micro_batch!r} was asked; give a whole number >= 1.")
    if not has_batch:
        raise LandscapeError(
            f"micro_batch={micro_batch} needs step(losses, batch); in step(closure) let the "
            "closure run several backward passes."
        )
    if variant.loss_term is not None:
        raise LandscapeError(
            f"variant {variant.name!r} adds a term over the whole batch's outputs to the loss and "
            "cannot run in micro-batches; leave micro_batch out."
        )
