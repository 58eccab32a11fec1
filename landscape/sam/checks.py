"""What a SAM optimizer refuses, and how it says so."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from landscape.checks import check_count, check_number
from landscape.errors import LandscapeError
from landscape.sam.trained import Trained, unwrap
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


_THIS_CLASS = (
    "here it is optimizer = SAM(model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), "
    "sam.sam(rho=0.05)), and per step loss = optimizer.step(closure) with a closure that runs "
    "forward and backward and returns the loss"
)
OTHER_CLASSES = {
    "first_step": f"both passes are one call: {_THIS_CLASS}",
    "second_step": f"both passes are one call: {_THIS_CLASS}",
    "ascent_step": f"both passes are one call: {_THIS_CLASS}",
    "descent_step": f"both passes are one call: {_THIS_CLASS}",
    "base_optimizer": "the base optimizer is optimizer.base",
    "rho": "the radius belongs to the variant, optimizer.variant.radius; make it with "
    "sam.sam(rho=...), and change it by optimizer.param_groups[0]['rho'] = ...",
}


class LandscapeAttributeError(LandscapeError, AttributeError):
    """A name of another SAM class, with the line that does it here."""


def check_arguments(model: Any, base: Any, variant: Any, other: Mapping[str, Any]) -> Variant:
    """The variant, once a SAM optimizer can be made: of a module, an optimizer of it, a variant."""
    if base is None and not isinstance(model, nn.Module):
        raise LandscapeError(
            f"SAM was made of a {_kind(model)} alone, as a framework makes an optimizer from its "
            f"class (optimizer=SAM); make it where the model is: {_THIS_CLASS}."
        )
    if isinstance(base, type):
        raise LandscapeError(
            f"the base optimizer given is the class {base.__name__}; make it first: "
            f"{base.__name__}(model.parameters(), lr=...). As a whole, {_THIS_CLASS}."
        )
    if not isinstance(model, nn.Module):
        raise LandscapeError(
            f"the model given is a {_kind(model)}; SAM(model, base, variant) needs the nn.Module "
            "itself, not its parameters."
        )
    if other:
        raise LandscapeError(
            f"SAM has no argument {', '.join(other)}: radius and form belong to the variant "
            "(sam.sam(rho=0.05), sam.asam(rho=0.5)), learning rate and momentum to the base "
            f"optimizer; {_THIS_CLASS}."
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
        given = "missing" if variant is None else f"a {_kind(variant)}, not a sam.Variant"
        raise LandscapeError(f"the variant given is {given}; {make}.")
    _check_base(base)
    return variant


def check_options(clip_norm: Any, scaler: Any) -> None:
    """A clipping norm is positive, a scaler a GradScaler or alike."""
    if clip_norm is not None:
        check_number("clip_norm", clip_norm, least=0, beyond=True)
    if scaler is not None and not hasattr(scaler, "scale"):
        raise LandscapeError(
            f"scaler={scaler!r} is a {_kind(scaler)}; give a torch.amp.GradScaler or None."
        )


USE_ANOTHER = "use a base optimizer that reads .grad alone, as SGD or AdamW"


def _kind(value: Any) -> str:
    return type(value).__name__


def _check_base(base: Optimizer) -> None:
    """The base optimizer must step with the gradient that it is given."""
    if hasattr(base, "variant") and hasattr(base, "base"):
        raise LandscapeError(
            "the base optimizer given is a SAM optimizer itself; wrap the optimizer inside it, "
            "optimizer.base, with one variant."
        )
    for one in getattr(base, "optimizers", (base,)):
        closure = inspect.signature(type(one).step).parameters.get("closure")
        needed = closure is not None and closure.default is inspect.Parameter.empty
        if isinstance(one, torch.optim.LBFGS) or needed:
            raise LandscapeError(
                f"{type(one).__name__} evaluates the loss itself, by a closure that its step "
                f"needs, and cannot step with a given descent gradient; {USE_ANOTHER}."
            )
        if one.defaults.get("differentiable"):
            raise LandscapeError(
                f"{type(one).__name__}(differentiable=True) records a graph through its step, and "
                "the weights of a SAM step are moved and put back outside of any graph; leave "
                "differentiable out."
            )


def check_signs(variant: Variant, signs: Sequence[int]) -> None:
    """A loss that some tensors maximize and others minimize has no sign of its own."""
    if len(set(signs)) == 1:
        return
    plain = variant.evaluate.whole_batch and variant.evaluate.takes_loss_term
    if variant.loss_term is not None or not plain:
        raise LandscapeError(
            f"some parameter groups have maximize=True and others do not, and variant "
            f"{variant.name!r} adds to the loss or ranks examples by it; let all groups maximize, "
            "or none, or use a variant of gradients alone."
        )


def check_dense(names: Sequence[str], gradients: Sequence[Tensor | None]) -> None:
    """Norms and masks are of dense gradients."""
    strided = torch.strided
    if any(g is not None and g.layout is not strided for g in gradients):
        named = zip(names, gradients, strict=True)
        sparse = next(n for n, g in named if g is not None and g.layout is not strided)
        raise LandscapeError(
            f"the gradient of {sparse!r} is sparse, which no ascent can use; make its embedding "
            "with sparse=False."
        )


def check_range(rho: float | Tensor, weights: Sequence[Tensor]) -> None:
    """A radius must be a number of the weights' type."""
    if isinstance(rho, Tensor) or rho < torch.finfo(torch.float16).max:
        return
    for dtype in {w.dtype for w in weights}:
        if rho > torch.finfo(dtype).max:
            raise LandscapeError(
                f"a radius of {rho:g} was asked and the largest number of the weights' type "
                f"{dtype} is {torch.finfo(dtype).max:.3g}; lower rho."
            )


def check_own_memory(trained: Trained) -> None:
    """Each tensor must be writable, and none may share its memory with another one."""
    seen: dict[Any, str] = {}
    for name, w in zip(trained.names, trained.tensors(), strict=True):
        repeated = any(s == 0 and n > 1 for s, n in zip(w.stride(), w.shape))
        if repeated or (w.numel() and seen.setdefault((w.device, w.data_ptr()), name) != name):
            other = "itself" if repeated else repr(seen[(w.device, w.data_ptr())])
            raise LandscapeError(
                f"{name!r} shares memory with {other}, which would be moved twice; make it a "
                "tensor of its own (expanded.clone()), or tie the two as one parameter "
                "(a.weight = b.weight)."
            )


def check_mode(base: Optimizer) -> None:
    """A base optimizer with averaged weights must have the ones in place that it trains."""
    if any(g.get("train_mode") is False for g in base.param_groups):
        raise LandscapeError(
            f"the base optimizer {type(base).__name__} is in evaluation mode, its averaged weights "
            "are in place; call optimizer.train() before training goes on."
        )


def check_trainable(trainable: Sequence[bool]) -> None:
    """Something must be left to train."""
    if not any(trainable):
        raise LandscapeError(
            f"all {len(trainable)} tensors of the base optimizer are frozen "
            "(requires_grad=False); nothing can be trained."
        )


def without_gradient(
    model: nn.Module,
    trained: Trained,
    gradients: Sequence[Tensor | None],
    asked: Sequence[bool] | None,
    known: list[int],
) -> list[int]:
    """Where tensors have no gradient: they may be unused, or their layer may have been replaced.

    `known` of them have been looked at.
    """
    missing = [
        i for i, g in enumerate(gradients) if g is None and (asked is None or asked[i])
    ]  # fmt: skip
    if missing and missing != known:
        check_still_there(model, trained)
    return missing or known


def check_still_there(model: nn.Module, trained: Trained) -> None:
    """Refuse tensors that are no parameters of the model any more."""
    own = {id(p) for p in unwrap(model).parameters()}
    gone = [n for n, p in zip(trained.names, trained.parameters, strict=True) if id(p) not in own]
    if gone:
        raise LandscapeError(
            f"the parameter set changed between steps: {gone[0]!r} of the base optimizer is no "
            f"longer in the model ({len(gone)} such tensors), a layer was replaced or weights were "
            "loaded with assign=True; make the base optimizer and SAM anew from model.parameters()."
        )


def check_still_frozen(model: nn.Module, frozen: Sequence[nn.Parameter]) -> None:
    """Refuse a pass that made gradients for tensors that were frozen when the step began."""
    found = {id(p) for p in frozen if p.grad is not None}
    if found:
        named = unwrap(model).named_parameters()
        name = next((n for n, p in named if id(p) in found), "a tensor of the base optimizer")
        raise LandscapeError(
            f"{name!r} was frozen when the step began ({len(found)} such tensors) and has a "
            "gradient after the first pass: the closure itself sets requires_grad. Set it before "
            "the step, which then perturbs and trains these tensors too, or leave them frozen."
        )


def check_moved_by_nobody(
    trained: Trained, gradients: Sequence[Tensor | None], versions: Sequence[int]
) -> None:
    """Refuse a pass that moved tensors and left no gradient of them."""
    both = zip(trained.names, trained.parameters, gradients, versions, strict=True)
    moved = [n for n, p, g, version in both if g is None and p._version != version]
    if moved:
        raise LandscapeError(
            f"the first pass moved {moved[0]!r} ({len(moved)} such tensors) and left no gradient "
            "of it: something steps within backward (a hook after accumulation), at w and again "
            "at w + e. Remove the hook and let SAM's base optimizer step."
        )


def check_needs(variant: Variant, *, has_batch: bool, has_fisher: bool, has_epochs: bool) -> None:
    """A call must offer what the variant needs."""
    needs, name = variant.needs, variant.name
    by_batch = set(needs & BY_BATCH)
    if variant.evaluate.micro_batches > 1:
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
    check_count("micro_batch", micro_batch)
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
