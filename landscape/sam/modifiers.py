"""Variants of variants: when they climb, how far, and on how many examples at once."""

import dataclasses
from collections.abc import Callable
from dataclasses import replace

from torch import Tensor

from landscape.errors import LandscapeError
from landscape.sam import schedule
from landscape.sam.variant import Point, State, Variant


def late(variant: Variant, start: int) -> Variant:
    """`variant` from epoch `start` on, the base optimizer before (arXiv:2410.10373).

    Example:
        >>> sam.late(sam.sam(0.05), start=10).name
        'sam'
    """
    return window(variant, start)


def window(
    variant: Variant, start: int = 0, end: int | None = None, *, unit: str = "epoch"
) -> Variant:
    """`variant` while start <= epoch < end (or step, with unit="step"), the base outside.

    Example:
        >>> sam.window(sam.sam(0.05), start=10, end=20).name
        'sam'
    """
    gate = schedule.Window(start, end, unit)
    needs = variant.needs | {"epochs"} if unit == "epoch" else variant.needs
    return replace(variant, gate=gate, needs=needs)


def every(variant: Variant, k: int) -> Variant:
    """`variant` at steps 0, k, 2k, …, the base optimizer between.

    Example:
        >>> sam.every(sam.sam(0.05), k=5).name
        'sam'
    """
    return replace(variant, gate=schedule.Every(k))


def adaptive(
    variant: Variant, *, decay: float = 0.9, low: float = -1.0, high: float = 1.0
) -> Variant:
    """`variant` when ‖g1‖² is large among its recent values (AE-SAM; `schedule.Adaptive`).

    decay: of the running mean and variance of ‖g1‖²; low, high: the variant's step is taken where
    ‖g1‖² is at least mean + c · sd, c rising from low to high over the epochs where their number is
    known (arXiv:2304.14647).

    Example:
        >>> sam.adaptive(sam.sam(0.05)).name
        'sam'
    """
    return replace(variant, gate=schedule.Adaptive(decay, low, high))


def with_radius(variant: Variant, radius: Callable[[Point, State], float | Tensor]) -> Variant:
    """`variant` with another radius: a `sam.schedule` class or any function (point, state).

    Example:
        >>> variant = sam.with_radius(sam.sam(), lambda point, state: 0.1 / (1 + point.epoch))
        >>> seen = sam.perturb(variant, model, losses, data, epoch=1, seed=0)
        >>> round(float(seen.norm), 6)
        0.05
    """
    return replace(variant, radius=radius)


def micro_batched(variant: Variant, parts: int) -> Variant:
    """m-sharpness: (g1, e, g2) on each of `parts` equal parts of the batch, gradients averaged.

    For variants that keep nothing between steps: an average, a cached gradient or the previous
    batch would be of one part.
    variant: the one that is asked of each part (arXiv:2010.01412, section 4.1).

    Example:
        >>> sam.micro_batched(sam.sam(0.05), parts=4).name
        'sam'
    """
    evaluate = variant.evaluate
    if (
        not dataclasses.is_dataclass(evaluate)
        or isinstance(evaluate, type)
        or all(f.name != "micro_batches" for f in dataclasses.fields(evaluate))
        or evaluate.partial
    ):
        raise LandscapeError(
            f"variant {variant.name!r} chooses its own examples or tensors for the second pass and "
            "cannot be cut into parts."
        )
    if variant.source.remembers or variant.correction.remembers:
        raise LandscapeError(
            f"variant {variant.name!r} carries gradients from step to step, which parts of one "
            "batch would overwrite; use a variant without memory, such as sam or zsharp."
        )
    return replace(variant, evaluate=replace(evaluate, micro_batches=parts))
