"""Passes over the data: values of all examples, graphs of batches, products with a graph."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.risk import _checks, _memory
from landscape.risk._criterion import Criterion
from landscape.risk._data import Batch, Examples, kept_rng
from landscape.risk._network import Network, numerics
from landscape.risk._spread import Spread

BN_MODES = ("eval", "full_batch", "recalibrate")
FORWARD, GRADIENT, PRODUCT = 1 / 3, 1.0, 2.0
_CPU_FULL = "DefaultCPUAllocator: can't allocate memory"


@dataclass
class Notes:
    """What risks of one model and data learn and spend together."""

    cost: float = 0.0
    uses_rng: bool = False
    modes_twice: set[str] = field(default_factory=set)
    graph_sizes: dict[tuple[int, str], tuple[float, float]] = field(default_factory=dict)


@dataclass(frozen=True)
class Engine:
    """Network, criterion and examples in one BatchNorm mode; sums, never means."""

    network: Network
    criterion: Criterion
    examples: Examples
    device: torch.device
    dtype: torch.dtype
    memory: int
    batch_size: int | None
    bn: str
    notes: Notes
    spread: Spread | None = None

    def __post_init__(self) -> None:
        if self.bn not in BN_MODES:
            raise LandscapeError(f"bn={self.bn!r} asked; possible are {', '.join(BN_MODES)}.")
        self.network.batchnorm.refuse_mode(self.bn)
        if self.couples and self.spread is not None:
            raise LandscapeError(
                f"bn={self.bn!r} asked with distributed=True, but BatchNorm then needs all "
                f"examples in one process; use bn='eval'."
            )

    @property
    def couples(self) -> bool:
        """Whether the loss of an example depends on the others, through batch statistics."""
        return bool(self.network.batchnorm) and self.bn != "eval"

    def spend(self, cost: float) -> None:
        """Count gradient-equivalents."""
        self.notes.cost += cost

    def over_all(self, sums: Tensor) -> Tensor:
        """Sums of the own examples, made those of all processes."""
        return sums if self.spread is None else self.spread.sum(sums)

    def sum(self, losses: Tensor, batch: Batch) -> Tensor:
        """Σ of losses over the rows in float64, whatever the criterion returns."""
        losses = losses.detach().double()
        return losses.sum() if losses.ndim else losses * batch.count

    def visit(self, theta: Tensor, visit: Callable[[Batch, Any, Tensor], None]) -> None:
        """One pass without derivatives: visit(batch, output, losses) for all examples in order."""
        size = self.batch_size or _memory.default_rows(self.examples)
        # Asked first: measuring a graph puts BatchNorm back to its frozen statistics.
        whole = self.couples and _memory.fits_one_pass(self)
        size = self.examples.num_examples if whole else size
        with self.evaluating(theta):
            if self.couples and not whole:
                self._gather_statistics(size)
            for batch in self.examples.cut(size):
                batch = self.examples.on_device(batch)
                output = self.network(batch)
                visit(batch, output, self.criterion(output, batch.targets, batch.count))
        self.spend(FORWARD)

    def _gather_statistics(self, size: int) -> None:
        """Statistics of the whole set for one BatchNorm site after another, each from one pass."""
        control = self.network.batchnorm
        control.gather(self.bn)
        while True:
            for batch in self.examples.cut(size):
                if not control.pass_until_site(
                    lambda b=batch: self.network(self.examples.on_device(b))
                ):
                    return
            self.spend(FORWARD)
            control.close_site()

    @contextlib.contextmanager
    def evaluating(self, theta: Tensor) -> Iterator[None]:
        """Parameters at theta, no graph."""
        with self._scope(second=False), torch.no_grad(), self._at(theta):
            yield

    @contextlib.contextmanager
    def differentiating(self, order: int) -> Iterator[None]:
        """Graphs on, kernels that have this many derivatives."""
        twice = self.network.twice
        with self._scope(second=order > 1), torch.enable_grad():
            twice.active, twice.absorbed = order > 1, order > 1 and self.bn == "eval"
            try:
                yield
            finally:
                twice.active = twice.absorbed = False

    @contextlib.contextmanager
    def _scope(self, *, second: bool) -> Iterator[None]:
        rng = kept_rng() if self.notes.uses_rng else contextlib.nullcontext()
        try:
            with rng, numerics(self.device, second=second, recurrent=self.network.recurrent):
                yield
        except RuntimeError as error:
            # A CPU has no error class of its own for this.
            if not isinstance(error, torch.OutOfMemoryError) and _CPU_FULL not in str(error):
                raise
            raise LandscapeError(
                f"{self.device} ran out of memory ({str(error).splitlines()[0]}); lower batch_size "
                f"(now {self.batch_size or 'automatic'}) or memory (now {self.memory} bytes). One "
                f"example at least has to fit."
            ) from error

    @contextlib.contextmanager
    def _at(self, theta: Tensor) -> Iterator[None]:
        control = self.network.batchnorm
        control.mode = self.bn
        try:
            with self.network.at(theta):
                yield
        finally:
            control.reset()

    def graph_batches(self, order: int) -> list[Batch]:
        """Batches whose graph fits; the whole set where BatchNorm needs it, or a refusal."""
        if order > 1 and self.bn == "eval":
            self.network.twice.prepare(self)
        if self.couples:
            _memory.refuse_large_graph(self, order)
            return self.examples.cut(self.examples.num_examples)
        return self.examples.cut(self.batch_size or _memory.graph_rows(self, order))

    def kept_and_rebuilt(self) -> tuple[list[Batch], list[Batch]]:
        """Batches whose graphs of second order are held together, and those rebuilt one by one."""
        kept, rebuilt, room = [], [], float(self.memory)
        batches = self.graph_batches(order=2)
        sizes = [_memory.graph_bytes(self, batch.count, order=2) for batch in batches]
        room -= max(sizes) if sum(sizes) > room else 0.0
        for batch, size in zip(batches, sizes, strict=True):
            room -= size
            (rebuilt if room < 0 else kept).append(batch)
        return kept, rebuilt

    def loss_graph(self, leaf: Tensor, batch: Batch) -> Tensor:
        """Σ of losses over the batch as a function of the leaf theta."""
        batch = self.examples.on_device(batch)
        with self._at(leaf):
            output = self.network(batch)
            losses = self.criterion(output, batch.targets, batch.count)
        loss = losses.sum() if losses.ndim else losses * batch.count
        if not loss.requires_grad:
            raise LandscapeError(
                f"The loss does not depend on any of the {len(leaf)} trainable parameters; look "
                f"for torch.no_grad() or detach() in the model or the loss."
            )
        return loss

    def gradient_graph(self, theta: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Σ of losses, the leaf theta, and the gradient as a function of it."""
        leaf = theta.clone().requires_grad_()
        try:
            with self.differentiating(2):
                loss = self.loss_graph(leaf, batch)
                (gradient,) = torch.autograd.grad(loss, leaf, create_graph=True)
        except RuntimeError as error:
            raise _checks.second_derivative_error(self, theta, error) from error
        _checks.refuse_cut_graph(self, theta, gradient)
        return loss.detach().double(), leaf, gradient

    def loss_only(self, theta: Tensor, batch: Batch) -> Tensor:
        """Σ of losses over the batch."""
        batch = self.examples.on_device(batch)
        with self.evaluating(theta):
            output = self.network(batch)
            return self.sum(self.criterion(output, batch.targets, batch.count), batch)

    def add_products(
        self, total: Tensor, gradient: Tensor, leaf: Tensor, rows: Tensor, *, keep: bool
    ) -> None:
        """Add the Hessian of the batch's sum times each row, by a second reverse pass each."""
        if not gradient.requires_grad:
            return
        try:
            with self.differentiating(2):
                for i, v in enumerate(rows):
                    retain = keep or i + 1 < len(rows)
                    (product,) = torch.autograd.grad(
                        gradient, leaf, v, retain_graph=retain, materialize_grads=True
                    )
                    total[i] += product
        except RuntimeError as error:
            raise _checks.second_derivative_error(self, leaf.detach(), error) from error

    def mean_of(self, total: Tensor, rows: Tensor, weight_decay: float) -> Tensor:
        """Sums over the own examples, in place made the mean over all and weight decay's share."""
        count = (self.spread or self.examples).num_examples
        total = self.over_all(total).div_(count)
        return total.add_(rows, alpha=weight_decay) if weight_decay else total
