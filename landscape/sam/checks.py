"""What a SAM optimizer refuses, and how it says so."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.errors import LandscapeError
from landscape.sam.engine import Trained, unwrap
from landscape.sam.variant import Variant, check_count, check_number

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


def check_arguments(model: Any, base: Any, variant: Any) -> None:
    """What a SAM optimizer is made of: a module, an optimizer of it, and a variant."""
    if not isinstance(model, nn.Module):
        raise LandscapeError(
            f"the model given is a {_kind(model)}; SAM(model, base, variant) needs the nn.Module "
            "itself, not its parameters."
        )
    if isinstance(base, type):
        raise LandscapeError(
            f"the base optimizer given is the class {base.__name__}; make it first: "
            f"{base.__name__}(model.parameters(), lr=...)."
        )
    if not isinstance(base, Optimizer):
        raise LandscapeError(
            f"the base optimizer given is a {_kind(base)}; SAM(model, base, variant) needs a "
            "torch.optim.Optimizer."
        )
    if not isinstance(variant, Variant):
        called = getattr(variant, "__name__", None) if callable(variant) else None
        make = f"call it: {called}(rho=...)" if called else "make one, as sam.sam(rho=0.05)"
        if isinstance(variant, str):
            make = f"make it: sam.make({variant!r}, {{'rho': ...}})"
        raise LandscapeError(f"the variant given is a {_kind(variant)}, not a sam.Variant; {make}.")
    _check_base(base)


def check_options(clip_norm: Any, scaler: Any) -> None:
    """A clipping norm is positive, a scaler a GradScaler or alike."""
    if clip_norm is not None:
        check_number(clip_norm, "clip_norm", least=0, beyond=True)
    if scaler is not None and not hasattr(scaler, "scale"):
        raise LandscapeError(
            f"scaler={scaler!r} is a {_kind(scaler)}; give a torch.amp.GradScaler or None."
        )


def _kind(value: Any) -> str:
    return type(value).__name__


def _check_base(base: Optimizer) -> None:
    """The base optimizer must step with the gradient that it is given."""
    if hasattr(base, "variant") and hasattr(base, "base"):
        raise LandscapeError(
            "the base optimizer given is a SAM optimizer itself; wrap the optimizer inside it, "
            "optimizer.base, with one variant."
        )
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
    how = f"now {now}" if now != len(ids) else "now as many others"
    raise LandscapeError(
        f"the parameter set changed between steps (it was {len(ids)} tensors, {how}); make a new "
        "SAM for the new parameters."
    )


def check_trainable(trainable: Sequence[bool]) -> None:
    """Something must be left to train."""
    if not any(trainable):
        raise LandscapeError(
            f"all {len(trainable)} tensors of the base optimizer are frozen "
            "(requires_grad=False); nothing can be trained."
        )


def check_still_there(
    optimizer: Any, gradients: Sequence[Tensor | None], asked: Sequence[bool] | None
) -> None:
    """A tensor without a gradient may be unused, or its layer may have been replaced."""
    missing = [
        i for i, g in enumerate(gradients) if g is None and (asked is None or asked[i])
    ]  # fmt: skip
    if not missing or missing == optimizer.known_unused:
        return
    own = {id(p) for p in unwrap(optimizer.model).parameters()}
    trained = optimizer.trained
    gone = [trained.names[i] for i in missing if id(trained.parameters[i]) not in own]
    if gone:
        raise LandscapeError(
            f"the parameter set changed between steps: {gone[0]!r} of the base optimizer is no "
            f"longer in the model ({len(gone)} such tensors), a layer was replaced; make the base "
            "optimizer and SAM anew from model.parameters()."
        )
    optimizer.known_unused = missing


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
    check_count(micro_batch, "micro_batch")
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
