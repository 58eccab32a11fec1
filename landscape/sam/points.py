"""What the slots of one step may read: the point made from an optimizer's model, base and clock."""

from functools import partial
from typing import Any

from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam.engine import squared_gradients, unwrap
from landscape.sam.variant import Point, check_rho


def make(optimizer: Any) -> Point:
    """The point over all trained tensors, before the first pass."""
    trained, groups = optimizer.trained, optimizer.base.param_groups
    return Point(
        names=trained.names,
        kinds=trained.kinds,
        modules=trained.modules,
        weights=list(trained.parameters),
        gradients=[],
        generator=optimizer.generator,
        host_generator=optimizer.host_generator,
        scales=_scales(optimizer),
        step=optimizer.step_count,
        epoch=optimizer.epoch,
        total_epochs=optimizer.total_epochs,
        lr=float(groups[0].get("lr", 0.0)),
        momentum=partial(momentum, optimizer),
        group=partial(_group, optimizer),
        fisher=None if optimizer.fisher_data is None else partial(_fisher, optimizer),
        scratch={"names": trained.names},
    )


def _scales(optimizer: Any) -> list[float] | None:
    """Radius of each tensor over the variant's own, from `rho` in the parameter groups."""
    base, variant = optimizer.base, optimizer.variant
    key = "sam_rho" if "rho" in base.defaults else "rho"  # Adadelta has a rho of its own
    if not any(key in g for g in base.param_groups):
        return None
    nominal = getattr(variant.radius, "rho", None)
    if not nominal:
        raise LandscapeError(
            f"a parameter group sets rho and variant {variant.name!r} has no positive "
            "constant rho to relate it to; drop rho from the group or give the variant one."
        )
    own = {
        id(p): check_rho(g.get(key, nominal), "rho of a parameter group") / nominal
        for g in base.param_groups
        for p in g["params"]
    }
    return [own[id(p)] for p in optimizer.trained.parameters]


def momentum(optimizer: Any, name: str) -> Tensor | None:
    """The base optimizer's momentum of a tensor, None where it keeps none."""
    state = optimizer.base.state.get(optimizer.trained.by_name[name], {})
    return state.get("momentum_buffer", state.get("exp_avg"))


def _group(optimizer: Any, name: str) -> dict[str, Any]:
    p = optimizer.trained.by_name[name]
    return next(g for g in optimizer.base.param_groups if any(q is p for q in g["params"]))


def _fisher(optimizer: Any, num_samples: int, **options: Any) -> dict[str, Tensor]:
    losses, data, shuffle = optimizer.fisher_data
    return squared_gradients(
        unwrap(optimizer.model), optimizer.trained, losses, data, num_samples,
        generator=optimizer.host_generator, shuffle=shuffle, **options,
    )  # fmt: skip
