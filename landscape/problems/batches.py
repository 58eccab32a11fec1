"""Examples in batches of any form: several inputs, dicts, tokens with masks, graphs, objects."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from landscape.errors import LandscapeError
from landscape.risk import Examples, sha256_of, targets_of


@dataclass(frozen=True)
class Batches:
    """What `EmpiricalRisk` takes as batches, in the place of a `Split` of inputs and targets.

    Where all batches fit one table, an example is a row of it. Where they do not (graphs, ragged
    lists, batches of unequal shape), an example is a whole batch as it was given. y: targets of the
    rows, (n, ...), where a batch is (inputs, targets) or a dict that names them, else None.
    """

    examples: Examples
    y: Tensor | None

    @classmethod
    def of(cls, examples: Examples) -> "Batches":
        """Of data that were `gathered`."""
        table = examples.apart and len(examples.chunks) == 1
        y = targets_of(examples.chunks[0].targets)[1] if table else None
        return cls(examples, y)

    @property
    def made_of_rows(self) -> bool:
        """Whether an example is a row."""
        return self.examples.apart and len(self.examples.chunks) == 1

    def __len__(self) -> int:
        return self.examples.num_examples if self.made_of_rows else len(self._units)

    def __repr__(self) -> str:
        what = "rows" if self.made_of_rows else "batches"
        return f"Batches({len(self):,} {what}; {outline(self._units[0])})"

    @cached_property
    def _units(self) -> list[Any]:
        """The batches as they were given."""
        return [unit.targets for unit in self.examples.as_units().cut(0)]

    @property
    def y_clean(self) -> Tensor | None:
        """The targets: what noise there is in them is not known."""
        return self.y

    @property
    def wrong(self) -> Tensor:
        """Which labels are noise, bool (n,): none is known to be."""
        return torch.zeros(len(self), dtype=torch.bool)

    def batch(self, indices: Tensor) -> Any:
        """The batch of these examples: rows, or the one batch that is asked."""
        if self.made_of_rows:
            return self.examples.take(indices.cpu()).chunks[0].targets
        if len(indices) != 1:
            raise LandscapeError(
                f"A batch of {len(indices)} examples asked, but an example is a whole batch here "
                f"({outline(self._units[0])}), of which no two are joined; set [training] "
                f"batch_size = 1."
            )
        return self._units[int(indices)]

    @property
    def num_rows(self) -> int:
        """Examples as a risk counts them."""
        return self.examples.num_examples

    def some(self, count: int, *, seed: int) -> "Batches":
        """`count` rows to be measured, or fewer: whole batches where several were given.

        A loss may couple the rows of a batch. At least one is taken.
        """
        sizes, random = self.examples.units, torch.Generator().manual_seed(seed)
        if self.made_of_rows and len(sizes) == 1:
            rows = torch.randperm(len(self), generator=random)[:count].sort().values
            return Batches.of(self.examples.take(rows))
        chosen: list[int] = []
        held, starts = 0, [sum(sizes[:number]) for number in range(len(sizes))]
        for number in torch.randperm(len(sizes), generator=random).tolist():
            if not chosen or held + sizes[number] <= count:
                chosen.append(number)
                held += sizes[number]
        rows = [torch.arange(starts[n], starts[n] + sizes[n]) for n in sorted(chosen)]
        return Batches(self.examples.as_units().take(torch.cat(rows)), None)

    @property
    def reduction(self) -> Literal["mean"] | None:
        """How a risk is to be reduced: over whole batches where these are not made of rows."""
        return None if self.examples.apart else "mean"

    @property
    def data(self) -> list[Any]:
        """All of it, as a risk takes it."""
        return list(self._units)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Batches":
        """The same with a function of every tensor."""
        chunks = [chunk.mapped(function) for chunk in self.examples.chunks]
        examples = replace(self.examples, chunks=chunks, _cuts={})
        return Batches(examples, None if self.y is None else function(self.y))

    def to(self, device: torch.device | str) -> "Batches":
        """The same examples on a device."""
        return self.mapped(lambda leaf: leaf.to(device))

    @property
    def sha256(self) -> str:
        """SHA-256 of all tensors, and of what holds them."""
        names = "|".join(outline(chunk.targets, values=True) for chunk in self.examples.chunks)
        return sha256_of(self.examples.leaves(), f"{names}{self.examples.units}")


def outline(batch: Any, *, values: bool = False) -> str:
    """Shapes of a batch, under its keys; values: so that other batches have other outlines."""
    leaves, spec = pytree.tree_flatten(batch)
    said = [_said(leaf, values=values) for leaf in leaves]
    if values:
        return f"{spec} {', '.join(said)}"
    keys = list(batch) if isinstance(batch, dict) and len(batch) == len(leaves) else []
    named = [f"{key} {word}" for key, word in zip(keys, said, strict=True)] if keys else said
    return ", ".join(named[:8])


def _said(leaf: Any, *, values: bool) -> str:
    if isinstance(leaf, Tensor):
        return " × ".join(map(str, leaf.shape)) or "a number"
    plain = isinstance(leaf, str | int | float | bool | None)
    return repr(leaf) if values and plain else type(leaf).__name__
