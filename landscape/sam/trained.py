"""The tensors that an optimizer trains, as every step finds them."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from landscape.params import ParamLayout
from landscape.sam.shards import Shards, is_cut, local

Gradients = list[Tensor | None]  # over all trained tensors, local parts where they are cut


@dataclass(frozen=True)
class Trained:
    """The tensors that are trained: names, kinds, owning modules and parameters, in model order.

    outputs: the axes of each that run over output units.
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    modules: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    outputs: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(model: nn.Module, parameters: Sequence[nn.Parameter] | None = None) -> "Trained":
        """All trainable tensors of the model that hold numbers, or those among `parameters`."""
        model = unwrap(model)
        layout = ParamLayout.of(model)
        by_name = dict(model.named_parameters())
        wanted = None if parameters is None else {id(p) for p in parameters}
        infos = [
            i for i in layout.tensors
            if by_name[i.name].numel() and (wanted is None or id(by_name[i.name]) in wanted)
        ]  # fmt: skip
        return Trained(
            tuple(i.name for i in infos),
            tuple(i.kind for i in infos),
            tuple(i.module for i in infos),
            tuple(by_name[i.name] for i in infos),
            tuple(i.outputs for i in infos),
        )

    @cached_property
    def by_name(self) -> dict[str, nn.Parameter]:
        """The parameters by name."""
        return dict(zip(self.names, self.parameters, strict=True))

    @cached_property
    def index(self) -> dict[str, int]:
        """Where a name stands."""
        return {name: i for i, name in enumerate(self.names)}

    @cached_property
    def shapes(self) -> tuple[torch.Size, ...]:
        """Their shapes, of the whole tensors."""
        return tuple(p.shape for p in self.parameters)

    @cached_property
    def shards(self) -> Shards | None:
        """How they are cut over processes, None when all are whole."""
        return Shards.of(self.names, self.parameters)

    def tensors(self) -> list[Tensor]:
        """The parameters; the local part of one that is cut, in its own memory."""
        if self.shards is None:
            return list(self.parameters)
        return list(map(local, self.parameters))

    def gradients(self, signs: Sequence[int] | None = None) -> Gradients:
        """What lies in `.grad`, times the signs; local parts of what is cut."""
        found = [p.grad for p in self.parameters]
        if self.shards is not None:
            found = [
                cut.local(g) if g is not None and cut is not None and is_cut(g) else g
                for g, cut in zip(found, self.shards.cuts, strict=True)
            ]
        return found if signs is None else signed(found, signs)

    def put(self, i: int, gradient: Tensor | None) -> None:
        """Let `.grad` of tensor i be this; the whole's DTensor where it is cut."""
        cut = None if self.shards is None else self.shards.cuts[i]
        p = self.parameters[i]
        p.grad = gradient if gradient is None or cut is None else cut.joined(gradient)


def signed(gradients: Sequence[Tensor | None], signs: Sequence[int]) -> Gradients:
    """New tensors where the sign is -1."""
    return [
        g if g is None or s > 0 else -g for g, s in zip(gradients, signs, strict=True)
    ]  # fmt: skip


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside DistributedDataParallel, DataParallel or `torch.compile`."""
    wrappers = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while True:
        inner = getattr(model, "module" if isinstance(model, wrappers) else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
