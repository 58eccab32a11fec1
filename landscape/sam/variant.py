"""A SAM variant is a row of slots; this module names the slots and what they may read."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, overload

import torch
from torch import Tensor

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.sam.shards import MaybeTensor, Shards
from landscape.sam.slot import Slot, as_slot, check_together

# A mask entry is True or False for a whole tensor, or a bool tensor of the parameter's shape.
MaskEntry = bool | Tensor
State = dict[str, Any]

SLOTS = ("source", "selector", "geometry", "radius", "gate", "evaluate", "correction", "loss_term")
NEEDS = ("per_example_losses", "logits", "indices", "previous_batch", "fisher_data", "epochs")


_UNKNOWN = torch.full((), math.nan)


@dataclass
class Point:
    """What the slots of one step may read; lists run over the tensors that have a gradient.

    names, kinds, modules: name, kind (`landscape.params.KINDS`) and owning module of each tensor;
    outputs: its axes over output units (axis 0 where none are given);
    weights: the parameters themselves, at w; gradients: g1, the first-pass gradient, never altered;
    scales: radius of a tensor relative to the variant's rho (from `rho` in its parameter group);
    step, epoch, total_epochs: counters (total_epochs is None until `begin_epoch` said it);
    lr: learning rate of the first group; loss: first-pass loss, NaN before it; generator lives on
    the weights' device, host_generator on the CPU; momentum(name): the base optimizer's or None;
    group(name): the tensor's parameter group in the base optimizer;
    fisher(num_samples, ...): squared per-example gradients, None when no data were given;
    untrained(): the frozen weights of the model by name; also: what a slot that ascends adds to
    some of them at w + e, by name, as for low-rank adapters whose merged weight is perturbed;
    nearby: losses, gradients and Hessian products around w (`landscape.sam.nearby.Nearby`);
    finite: on CUDA, where nothing waits for the device, whether g1 is finite, a 0-d bool tensor:
    what a slot keeps must not change where it is False (`torch.where`);
    scratch: what slots hand to each other within one step.

    Groups with maximize=True: their gradients, gd included, carry the sign of what is minimized.

    Tensors cut over processes (`fully_shard`, tensor parallel) stand here by their local parts, in
    weights, gradients and all lists that slots make. What is elementwise need not know. Sums over
    coordinates are asked of the point (`norms_of`, `norm_of`, `inner`), and what needs a whole
    tensor takes `whole(i, part)` and gives back `own(i, whole)`; random draws are `rand` and
    `randn`. Then every process has the answer of one that has everything.
    shards: how tensors are cut over processes, None where they are not.

    Example:
        >>> def sign_of_gradient(point, state):
        ...     return [g.sign() for g in point.gradients]
        >>> from dataclasses import replace
        >>> variant = replace(sam.sam(0.05), source=sign_of_gradient)
        >>> e = sam.perturb(variant, model, losses, data, seed=0).e["0.weight"]
        >>> len(e.abs().round(decimals=7).unique())
        1
    """

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    modules: tuple[str, ...]
    weights: list[Tensor]
    gradients: list[Tensor]
    generator: torch.Generator
    host_generator: torch.Generator
    scales: list[float] | None = None
    step: int = 0
    epoch: int = 0
    total_epochs: int | None = None
    lr: float = 0.0
    loss: Tensor = _UNKNOWN
    momentum: Callable[[str], Tensor | None] = lambda _: None
    group: Callable[[str], dict[str, Any]] = lambda _: {}
    fisher: Callable[..., dict[str, Tensor]] | None = None
    untrained: Callable[[], dict[str, Tensor]] = dict
    also: dict[str, Tensor] = field(default_factory=dict)
    nearby: Any = None
    finite: bool | Tensor = True
    outputs: tuple[tuple[int, ...], ...] = ()
    scratch: State = field(default_factory=dict)
    shards: Shards | None = None
    _norms: list[Tensor] | None = None
    _norm: Tensor | None = None
    _known: tuple[Sequence[Tensor | None], Tensor] | None = None

    # ----------------------------------------------------------------- sums over all coordinates

    @property
    def norms(self) -> list[Tensor]:
        """‖g1‖ per tensor, computed once."""
        if self._norms is not None:
            return self._norms
        if self.names and not self.gradients:
            raise LandscapeError(
                "the norm of g1 was asked when g1 was there no more (or not yet); let the slot "
                "that reads it say needs_g1 = True, or ask before pass 2."
            )
        norms = self._norms = self.norms_of(self.gradients)
        return norms

    @property
    def norm(self) -> Tensor:
        """‖g1‖ over all tensors with a gradient, 0-d, computed once."""
        if self._norm is None:
            known = self.shards is not None or self._norms is not None or not self.gradients
            self._norm = total_norm(self.norms) if known else vectors.length(self.gradients)
        return self._norm

    @overload
    def norms_of(self, tensors: Sequence[Tensor]) -> list[Tensor]: ...
    @overload
    def norms_of(self, tensors: Sequence[Tensor | None]) -> list[Tensor | None]: ...
    def norms_of(self, tensors: Sequence[Tensor | None]) -> Sequence[Tensor | None]:
        """ℓ2 norm of each tensor, in the order of the point; None stays None."""
        return norms_of_wholes(tensors, self.shards)

    def norm_of(self, tensors: Sequence[Tensor | None]) -> Tensor:
        """Their ℓ2 norm together, 0-d; that of g1, and of the list asked last, computed once."""
        if tensors is self.gradients:
            return self.norm
        known = self._known
        if known is None or tensors is not known[0]:
            norm = total_norm([n for n in self.norms_of(tensors) if n is not None])
            known = self._known = (tensors, norm)
        return known[1]

    def inner(self, a: Sequence[Tensor | None], b: Sequence[Tensor | None]) -> Tensor:
        """<a, b> over the tensors that both lists have, in the order of the point."""
        products = self.inners(a, b)
        there = [x for x in products if x is not None]
        return torch.stack(there).sum() if there else torch.zeros(())

    @overload
    def inners(self, a: Sequence[Tensor], b: Sequence[Tensor]) -> list[Tensor]: ...
    @overload
    def inners(
        self, a: Sequence[Tensor | None], b: Sequence[Tensor | None]
    ) -> list[Tensor | None]: ...
    def inners(
        self, a: Sequence[Tensor | None], b: Sequence[Tensor | None]
    ) -> Sequence[Tensor | None]:
        """<a_l, b_l> of each tensor, None where one of the lists has none."""
        products = [
            None if x is None or y is None else vectors.dot(x, y) for x, y in zip(a, b, strict=True)
        ]
        return self.sums(products)

    def sums(self, values: Sequence[MaybeTensor]) -> list[MaybeTensor]:
        """0-d values of each tensor's part, added up over its parts; None stays None."""
        return list(values) if self.shards is None else self.shards.sum(values)

    # ------------------------------------------------------------------------------ whole tensors

    def whole(self, which: int | str, part: Tensor) -> Tensor:
        """The whole tensor (index or name) of which `part` lies here; gathered where it is cut."""
        cut = None if self.shards is None else self.shards[which]
        return part if cut is None else cut.whole(part)

    def own(self, which: int | str, whole: Tensor) -> Tensor:
        """This process's part of a whole tensor."""
        cut = None if self.shards is None else self.shards[which]
        return whole if cut is None else cut.own(whole)

    def rand(self, i: int, *, normal: bool = False) -> Tensor:
        """Uniform numbers in [0, 1), or normal ones, of the shape of the whole tensor i."""
        cut = None if self.shards is None else self.shards[i]
        draw = torch.randn if normal else torch.rand
        made = draw(
            self.weights[i].shape if cut is None else cut.shape,
            generator=self.generator,
            device=self.generator.device,
        )
        return made.to(self.weights[i].device)

    def noise(self) -> list[Tensor]:
        """Standard normal numbers like the weights, this process's parts."""
        return [
            self.own(i, self.rand(i, normal=True)).to(w.dtype) for i, w in enumerate(self.weights)
        ]

    # -------------------------------------------------------------------------------- around w

    def loss_at(self, offsets: Sequence[Tensor | None]) -> Tensor:
        """The batch's loss at w + offsets, without gradients; buffers kept."""
        return self.nearby.loss_at(self.names, offsets)

    def gradient_at(
        self, offsets: Sequence[Tensor | None] | None = None, **options: Any
    ) -> list[Tensor]:
        """The gradient at w + offsets (None: at w); zeros where the loss does not reach.

        batch, objective: as for `landscape.sam.passes.Passes.backward`. Buffers, `.grad` and
        weights are as before. Cost: one forward and one backward pass.
        """
        return self.nearby.gradient_at(self.names, offsets, **options)

    def value_and_gradient_at(
        self, offsets: Sequence[Tensor | None] | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss and its gradient at w + offsets, by one forward and one backward pass."""
        return self.nearby.value_and_gradient_at(self.names, offsets)

    def hessian_product(
        self, v: Sequence[Tensor | None], offsets: Sequence[Tensor | None] | None = None
    ) -> list[Tensor]:
        """H(w + offsets) v of the batch's loss, by double backward; needs step(losses, batch).

        Cost: one forward pass and about three backward ones.
        """
        return self.nearby.hessian_product(self.names, v, offsets)

    def only(self, keep: Sequence[int]) -> "Point":
        """The same point, seen through the tensors `keep`."""
        take = lambda items: [items[i] for i in keep]  # noqa: E731
        return replace(
            self,
            names=tuple(take(self.names)),
            kinds=tuple(take(self.kinds)),
            modules=tuple(take(self.modules)),
            outputs=tuple(take(self.outputs)) if self.outputs else (),
            weights=take(self.weights),
            gradients=take(self.gradients) if self.gradients else [],
            scales=None if self.scales is None else take(self.scales),
            shards=None if self.shards is None else self.shards.only(keep),
            _norms=None if self._norms is None else take(self._norms),
            _norm=None,
            _known=None,
        )

    def forget_gradients(self) -> None:
        """Free g1, which nothing reads any more; its norms stay."""
        self.gradients, self._known = [], None


def norms_of_wholes(tensors: Sequence[Tensor | None], shards: Shards | None) -> list[Tensor | None]:
    """ℓ2 norm of each of the trained tensors, of whose wholes these may be parts."""
    found = iter(tensor_norms([x for x in tensors if x is not None]))
    norms = [None if x is None else next(found) for x in tensors]
    if shards is None:
        return norms
    squares = shards.sum([None if n is None else n.double().square() for n in norms])
    return [
        None if n is None or s is None else s.sqrt().to(n.dtype)
        for n, s in zip(norms, squares, strict=True)
    ]


def widened(x: Tensor) -> torch.dtype:
    """The type in which such numbers are added up, at least float32."""
    return torch.float32 if x.dtype in (torch.float16, torch.bfloat16) else x.dtype


def tensor_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """ℓ2 norm of each tensor, 0-d, float64, to 1e-6 of it where the tensor is float32."""
    return vectors.lengths(tensors)


def total_norm(norms: Sequence[Tensor]) -> Tensor:
    """ℓ2 norm of a list of norms, on the first one's device; () and 0 for an empty list."""
    return vectors.total_norm(norms)


def apply_mask(tensors: Sequence[Tensor], mask: Sequence[MaskEntry] | None) -> list[Tensor | None]:
    """Each tensor times its mask; None where a whole tensor is off."""
    if mask is None:
        return list(tensors)
    return [
        (t if m else None) if isinstance(m, bool) else t * m
        for t, m in zip(tensors, mask, strict=True)
    ]


def intersect(a: list[MaskEntry] | None, b: list[MaskEntry] | None) -> list[MaskEntry] | None:
    """Coordinates that both masks select."""
    if a is None or b is None:
        return b if a is None else a

    def both(x: MaskEntry, y: MaskEntry) -> MaskEntry:
        if isinstance(x, bool):
            return y if x else False
        if isinstance(y, bool):
            return x if y else False
        return x & y

    return [both(x, y) for x, y in zip(a, b, strict=True)]


class _Place:
    """A slot of a variant; a plain function that is put there becomes one."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, variant: "Variant | None", owner: type) -> Slot:
        if variant is None:  # no default: dataclasses ask the class
            raise AttributeError(self.name)
        return vars(variant)[self.name]

    def __set__(self, variant: "Variant", value: Slot | Callable[..., Any]) -> None:
        vars(variant)[self.name] = as_slot(value, self.name)


class _OptionalPlace:
    """A slot of a variant that may be empty."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, variant: "Variant | None", owner: type) -> Slot | None:
        return None if variant is None else vars(variant)[self.name]

    def __set__(self, variant: "Variant", value: Slot | Callable[..., Any] | None) -> None:
        vars(variant)[self.name] = None if value is None else as_slot(value, self.name)


@dataclass(frozen=True)
class Variant:
    """One SAM variant: source → selector → geometry × radius, gate, and how the gradient is used.

    source(point, state) -> list[Tensor]                    the direction u from g1 and memory
    selector(point, u, state) -> list[bool | Tensor] | None the coordinates; None selects all
    geometry(point, u, mask, rho) -> list[Tensor | None]    the perturbation e
    radius(point, state) -> float | Tensor                  rho of this step
    gate(point, state) -> bool                              False: the base optimizer steps with g1
    evaluate                                                where and with which data pass 2 runs
    correction(point, g1, g2, state) -> list[Tensor]        the gradient given to the base optimizer
    loss_term(point, logits, batch, state) -> Tensor        added to the loss (SAF, MESA)

    Slots are plain functions, or frozen dataclasses that derive from `landscape.sam.slot.Slot`,
    where every flag and hook is described; functions are wrapped into one. `state` is one dict per
    slot, saved by `SAM.state_dict()`.
    needs: what a call of `SAM.step` must offer, a subset of `NEEDS`.
    name: of the recipe, which results and figures know it by; label: for readers.

    Example:
        >>> variant = sam.zsharp(0.05)
        >>> variant.name, sorted(variant.needs)
        ('zsharp', [])
    """

    name: str
    source: _Place = _Place()
    selector: _Place = _Place()
    geometry: _Place = _Place()
    radius: _Place = _Place()
    gate: _Place = _Place()
    evaluate: _Place = _Place()
    correction: _Place = _Place()
    loss_term: _OptionalPlace = _OptionalPlace()
    needs: frozenset[str] = frozenset()
    label: str = ""

    def __post_init__(self) -> None:
        unknown = sorted(self.needs - set(NEEDS))
        if unknown:
            raise LandscapeError(f"needs={unknown} of variant {self.name!r}; one of {list(NEEDS)}.")
        check_together(self)

    def __str__(self) -> str:
        """Its name, and the slots that are not SAM's own."""
        from landscape.sam.table import slots_of

        shown = "; ".join(f"{slot} = {text}" for slot, text in slots_of(self).items())
        return f"Variant {self.name!r}" + (f": {shown}" if shown else "")

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """A notebook shows the short text; `repr` is whole, since trainings are told by it."""
        printer.text("Variant ..." if cycle else str(self))
