"""What the slots of one step may read: the point made from an optimizer's model, base and clock."""

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.optim import Optimizer

from landscape.checks import check_rho
from landscape.errors import LandscapeError
from landscape.sam.fisher import squared_gradients
from landscape.sam.nearby import Nearby
from landscape.sam.passes import Passes
from landscape.sam.shards import is_cut, local
from landscape.sam.trained import Trained, unwrap
from landscape.sam.variant import Point, Variant

if TYPE_CHECKING:
    from landscape.sam.optimizer import SAM


def make(optimizer: "SAM", passes: Passes) -> Point:
    """The point over all trained tensors, before the first pass."""
    trained, base = optimizer.trained, optimizer.base
    return Point(
        names=trained.names,
        kinds=trained.kinds,
        modules=trained.modules,
        outputs=trained.outputs,
        weights=trained.tensors(),
        gradients=[],
        generator=optimizer.generator,
        host_generator=optimizer.host_generator,
        scales=_scales(base, optimizer.variant, trained),
        step=optimizer.step_count,
        epoch=optimizer.epoch,
        total_epochs=optimizer.total_epochs,
        lr=float(base.param_groups[0].get("lr", 0.0)),
        momentum=partial(momentum, base, trained),
        group=partial(_group, base, trained),
        fisher=None
        if optimizer.fisher_data is None
        else partial(_fisher, optimizer, *optimizer.fisher_data),
        untrained=partial(untrained, optimizer.model),
        nearby=Nearby(passes, optimizer.buffers_nearby),
        scratch={"names": trained.names},
        shards=trained.shards,
    )


def _scales(base: Optimizer, variant: Variant, trained: Trained) -> list[float] | None:
    """Radius of each tensor over the variant's own, from `rho` in the parameter groups."""
    key = radius_key(base)
    if not any(key in g for g in base.param_groups):
        return None
    nominal = variant.radius.nominal
    if not nominal:
        raise LandscapeError(
            f"a parameter group sets rho and variant {variant.name!r} has no positive "
            "constant rho to relate it to; drop rho from the group or give the variant one."
        )
    own = {
        id(p): check_rho("rho of a parameter group", g.get(key, nominal)) / nominal
        for g in base.param_groups
        for p in g["params"]
    }
    return [own[id(p)] for p in trained.parameters]


def radius_key(base: Optimizer) -> str:
    """The key under which a group holds its radius; Adadelta has a rho of its own."""
    return "sam_rho" if "rho" in base.defaults else "rho"


def momentum(base: Optimizer, trained: Trained, name: str) -> Tensor | None:
    """The base optimizer's momentum of a tensor, None where it keeps none."""
    state = base.state.get(trained.by_name[name], {})
    found = state.get("momentum_buffer", state.get("exp_avg"))
    return local(found) if found is not None and is_cut(found) else found


def _group(base: Optimizer, trained: Trained, name: str) -> dict[str, Any]:
    p = trained.by_name[name]
    return next(g for g in base.param_groups if any(q is p for q in g["params"]))


def untrained(model: Any) -> dict[str, Tensor]:
    """The frozen weights of a model by name."""
    named = unwrap(model).named_parameters()
    return {n: local(p) for n, p in named if not p.requires_grad}


def _fisher(
    optimizer: "SAM", losses: Callable[[Any], Tensor], data: Any, shuffle: bool, num_samples: int,
    **options: Any,
) -> dict[str, Tensor]:  # fmt: skip
    return squared_gradients(
        unwrap(optimizer.model), optimizer.trained, losses, data, num_samples,
        generator=optimizer.host_generator, batches=optimizer.batches, shuffle=shuffle,
        averaged=optimizer.averaged, **options,
    )  # fmt: skip
