"""Saving, loading and copying a SAM optimizer: everything that the next step depends on."""

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.points import radius_key
from landscape.sam.shards import local
from landscape.sam.trained import unwrap

if TYPE_CHECKING:
    from landscape.sam.optimizer import SAM

FORMAT = 2
KEY = "sam"

log = logging.getLogger("landscape.sam")


def state_dict(optimizer: "SAM") -> dict[str, Any]:
    """The base optimizer's, and all else under "sam"; tensors are references, as in torch."""
    optimizer._check_not_moved("saved")
    names = {id(p): n for n, p in unwrap(optimizer.model).named_parameters()}
    parameters = [p for group in optimizer.base.param_groups for p in group["params"]]
    own = {
        "format": FORMAT,
        "names": [names[id(p)] for p in parameters],
        "shapes": {names[id(p)]: tuple(local(p).shape) for p in parameters},
        "variant": optimizer.variant.name,
        "slots": _containers(optimizer.slots),
        "generator": optimizer.generator.get_state(),
        "step": optimizer.step_count,
        "epoch": optimizer.epoch,
        "total_epochs": optimizer.total_epochs,
        "epoch_begun": optimizer.epoch_begun,
        "skipped": optimizer.num_skipped,
    }
    if optimizer.host_generator is not optimizer.generator:
        own["host_generator"] = optimizer.host_generator.get_state()
    try:
        return {**optimizer.base.state_dict(), KEY: own}
    except RuntimeError as error:
        if "consolidate" not in str(error):
            raise
        raise LandscapeError(
            f"the state of {type(optimizer.base).__name__} lies in parts in all processes; call "
            "optimizer.base.consolidate_state_dict(to=0) in all of them, then "
            "optimizer.state_dict() in process 0, which saves it."
        ) from error


def load_state_dict(optimizer: "SAM", state: dict[str, Any]) -> None:
    """Put everything back, or raise before anything is changed."""
    optimizer._check_not_moved("loaded")
    base, own = _parts(state)
    if own is not None:
        _check(optimizer, own)
    else:
        _check_other_class(optimizer, base)
    try:
        optimizer.base.load_state_dict(base)
    except ValueError as error:
        here = [len(g["params"]) for g in optimizer.base.param_groups]
        there = [len(g["params"]) for g in base["param_groups"]]
        raise LandscapeError(
            f"the state was saved with groups of {there} tensors and the base optimizer has groups "
            f"of {here} ({error}); make it with the saved groups, or call take_over(state) for the "
            "tensors that match by name."
        ) from error
    optimizer.last = optimizer._pending = None
    if own is None:
        log.warning(
            "the loaded state holds no averages, masks or counters of SAM (it is a plain "
            "optimizer's, or went through a tool that keeps 'state' and 'param_groups' alone); "
            "those of %r start anew.",
            optimizer.variant.name,
        )
        return
    optimizer.slots = _placed(own["slots"], optimizer.device)
    optimizer.generator.set_state(own["generator"].cpu())
    if "host_generator" in own and optimizer.host_generator is not optimizer.generator:
        optimizer.host_generator.set_state(own["host_generator"].cpu())
    optimizer.step_count, optimizer.epoch = own["step"], own["epoch"]
    optimizer.total_epochs, optimizer.epoch_begun = own["total_epochs"], own["epoch_begun"]
    optimizer.skipped = own["skipped"]


def slots_of(state: Mapping[str, Any]) -> dict[str, Any]:
    """The slots' state in what `SAM.state_dict()` returned."""
    own = _parts(state)[1]
    if own is None:
        raise LandscapeError("this is the state of a plain optimizer; it holds no slots of SAM.")
    return own["slots"]


def _parts(state: Any) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What is the base optimizer's, and what is ours (None in a plain optimizer's state)."""
    if isinstance(state, Mapping) and "state" in state and "param_groups" in state:
        base = {k: v for k, v in state.items() if k != KEY}
        return base, state.get(KEY)
    if isinstance(state, Mapping) and "base" in state and "slots" in state:  # format 1
        return state["base"], {k: v for k, v in state.items() if k != "base"}
    raise LandscapeError(
        "this is not the state of a SAM optimizer or a plain one (it lacks 'state' and "
        "'param_groups'); load what SAM.state_dict() returned."
    )


def _check(optimizer: "SAM", own: Mapping[str, Any]) -> None:
    if own["format"] not in (1, FORMAT):
        raise LandscapeError(
            f"the saved optimizer has format {own['format']} and this version reads {FORMAT}."
        )
    if own["variant"] != optimizer.variant.name:
        raise LandscapeError(
            f"the saved state belongs to variant {own['variant']!r} and this optimizer runs "
            f"{optimizer.variant.name!r}; make the optimizer with the saved variant, or load its "
            "state into optimizer.base alone."
        )
    shapes = {n: local(p).shape for n, p in unwrap(optimizer.model).named_parameters()}
    for name, shape in own.get("shapes", {}).items():
        if name in shapes and tuple(shapes[name]) != tuple(shape):
            raise LandscapeError(
                f"the state is of {name!r} of shape {tuple(shape)} and this model has shape "
                f"{tuple(shapes[name])}: it is of another model; call take_over(state) for the "
                "tensors that match."
            )
    check_shapes(own["slots"], shapes)


def _check_other_class(optimizer: "SAM", base: Mapping[str, Any]) -> None:
    """Other SAM classes keep radius and form in the groups, of which ours reads the radius."""
    groups, variant = base["param_groups"], optimizer.variant
    if any(g.get("adaptive") for g in groups) and variant.name in ("sam", "sgd"):
        raise LandscapeError(
            f"the loaded groups say adaptive=True, that is ASAM of another class, and this "
            f"optimizer runs {variant.name!r}; make it with sam.asam(rho={groups[0].get('rho')}, "
            "bias_metric='abs', eta=0.0), or set adaptive to False in the groups of the state."
        )
    if any("old_p" in state for state in base["state"].values()):
        raise LandscapeError(
            "the loaded state is of a SAM class that leaves the state of its base optimizer (the "
            "momentum) out; load its base_optimizer.state_dict(), or delete 'old_p' from the "
            "entries of the state to begin without momentum."
        )
    key = radius_key(optimizer.base)
    here = [g.get(key) for g in optimizer.base.param_groups]
    found = [g.get(key) for g in groups]
    if found != here and any(r is not None for r in found):
        log.warning(
            "the loaded groups set %s to %s, which is the radius from now on (before: %s); delete "
            "it from the groups to have that of the variant.",
            key, found, here,
        )  # fmt: skip


def _containers(value: Any) -> Any:
    """New dicts and lists around the same tensors."""
    if isinstance(value, dict):
        return {k: _containers(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_containers(v) for v in value)
    return value


def _placed(value: Any, device: torch.device) -> Any:
    """A copy of nested containers with their tensors on `device`."""
    if isinstance(value, Tensor):
        return value.to(device, copy=True)
    if isinstance(value, dict):
        return {k: _placed(v, device) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_placed(v, device) for v in value)
    return value


def check_shapes(value: Any, shapes: Mapping[str, torch.Size]) -> None:
    """Every tensor stored under a name of the model must have that tensor's shape."""
    if not isinstance(value, dict):
        return
    named = {k: v for k, v in value.items() if isinstance(v, Tensor) and v.ndim > 0}
    known = [k for k in named if k in shapes]
    wrong = [k for k in known if named[k].shape != shapes[k]]
    foreign = [k for k in named if "." in str(k) and k not in shapes]
    if wrong or foreign:
        name = (wrong or foreign)[0]
        here = f"shape {tuple(shapes[name])}" if name in shapes else "no such tensor"
        raise LandscapeError(
            f"the state holds {name!r} of shape {tuple(named[name].shape)} and this model has "
            f"{here}: it is of another model."
        )
    for v in value.values():
        check_shapes(v, shapes)


def take_over(optimizer: "SAM", state: Mapping[str, Any]) -> list[str]:
    """What of a state belongs to tensors of the same name and shape; returns their names."""
    base, own = _parts(state)
    if own is None or "names" not in own:
        raise LandscapeError(
            "this state does not say which tensors it is of; take over what SAM.state_dict() of "
            "this version returned."
        )
    trained = optimizer.trained
    here = dict(zip(trained.names, trained.tensors(), strict=True))
    ids = [i for group in base["param_groups"] for i in group["params"]]
    shapes = own["shapes"]
    same = [n for n in own["names"] if n in here and tuple(here[n].shape) == tuple(shapes[n])]
    for name, i in zip(own["names"], ids, strict=True):
        if name in same and i in base["state"]:
            optimizer.base.state[trained.by_name[name]] = _placed(
                base["state"][i], here[name].device
            )
    if own["variant"] == optimizer.variant.name:
        left_out = set(own["names"]) - set(same)
        optimizer.slots = _placed(_without(own["slots"], left_out), optimizer.device)
    optimizer.step_count, optimizer.epoch = own["step"], own["epoch"]
    optimizer.total_epochs, optimizer.epoch_begun = own["total_epochs"], own["epoch_begun"]
    optimizer.last = None
    return same


def _without(value: Any, names: set[str]) -> Any:
    """Nested containers without what stands under these names."""
    if isinstance(value, dict):
        return {k: _without(v, names) for k, v in value.items() if k not in names}
    return value
