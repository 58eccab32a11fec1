"""Networks beside the model, whose statistics both passes of a step would change."""

import contextlib
import sys
from collections.abc import Generator
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def changes(model: nn.Module) -> Generator[list[str]]:
    """Buffers of modules outside the model that a forward pass in the block changes, by name."""
    found: list[str] = []
    if _may_be_traced():
        yield found
        return
    own = set(map(id, model.modules()))
    before: dict[int, tuple[nn.Module, dict[str, tuple[Tensor, Tensor]]]] = {}

    def look(module: nn.Module, _: Any) -> None:
        if id(module) not in own and id(module) not in before:
            there = {n: b for n, b in module._buffers.items() if b is not None}
            before[id(module)] = (module, {n: (b, b.detach().clone()) for n, b in there.items()})

    handle = nn.modules.module.register_module_forward_pre_hook(look)
    try:
        yield found
    finally:
        handle.remove()
    for module, kept in before.values():
        for name, (buffer, old) in kept.items():
            if module._buffers.get(name) is not buffer or not torch.equal(buffer, old):
                found.append(f"{type(module).__name__}.{name}")


def _may_be_traced() -> bool:
    """Whether anything has been compiled in this process: a global hook would compile it anew."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    return dynamo is not None and bool(dynamo.utils.counters["frames"])


def told(names: list[str]) -> str:
    """The sentence about them."""
    what = names[0] if names else "in another process"
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"the second pass changed {what}{more}, buffers of a network beside the model that "
        "both passes update (a GAN's discriminator, a loss with statistics of its own). Make the "
        "optimizer with one model that holds both, SAM(nn.ModuleList([model, other]), base, ...), "
        "where base has the parameters of the trained one alone: bn= then says which pass counts. "
        "Or call other.eval() while this one steps; bn='both' leaves both passes to count."
    )
