"""Passes over the data: values of all examples, graphs of batches, products with a graph."""

import contextlib
import functools
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.utils._pytree import tree_map

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.risk._copying import real_or_complex
from landscape.risk._criterion import Criterion, counted
from landscape.risk._data import Batch, Examples, kept_rng
from landscape.risk._network import Moved, Network, numerics
from landscape.risk._second_derivatives import has_error_node
from landscape.risk._spread import Spread
from landscape.sharding import ShardedVector, own, whole

Statistics = list[tuple[Tensor, Tensor]]
BNMode = Literal["eval", "full_batch", "recalibrate"]
BN_MODES: tuple[BNMode, ...] = get_args(BNMode)
FORWARD, GRADIENT, PRODUCT = 1 / 3, 1.0, 2.0
_ROWS, _FEW, _RATIO_ROWS = 8, 2, 1024
_CPU_FULL = "DefaultCPUAllocator: can't allocate memory"


@dataclass
class Notes:
    """What risks of one model and data learn and spend together."""

    cost: float = 0.0
    uses_rng: bool = False
    # Trainable tensors that the graph of a few rows does not hold; None if there is no graph.
    without_influence: list[str] | None = None
    influence_unknown: str = ""
    # Modules that compute in half precision whatever the dtype asked (autocast within).
    narrow: list[str] = field(default_factory=list)
    # Parameters with hooks that change or read their gradient, which are no part of the loss.
    hooked: list[str] = field(default_factory=list)
    # Why a sharded model's own forward could not be compared with that of its gathered copy.
    not_compared: str = ""
    modes_twice: set[str] = field(default_factory=set)
    graph_sizes: dict[tuple[int, str], tuple[float, float]] = field(default_factory=dict)

    def provenance(self) -> dict[str, Any]:
        """What must be known of the model to read a number, as JSON types."""
        found: dict[str, Any] = {}
        if names := self.without_influence:
            found |= {"without_influence": names[:20], "num_without_influence": len(names)}
        if self.influence_unknown:
            found["influence_unknown"] = self.influence_unknown
        if self.narrow:
            found["half_precision"] = self.narrow[:20]
        if self.hooked:
            found["gradient_hooks_left_out"] = self.hooked[:20]
        if self.not_compared:
            found["sharded_forward_not_compared"] = self.not_compared
        return found


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
    bn: BNMode
    notes: Notes
    spread: Spread | None = None

    def __post_init__(self) -> None:
        if self.bn not in BN_MODES:
            raise LandscapeError(f"bn={self.bn!r} asked; possible are {', '.join(BN_MODES)}.")
        self.network.batchnorm.refuse_mode(self.bn)
        if self.couples and not self.examples.apart and len(self.examples.units) > 1:
            raise LandscapeError(
                f"bn={self.bn!r} asked of a loss whose units are the {len(self.examples.units)} "
                f"batches given, but BatchNorm then couples these; use bn='eval', or one batch."
            )
        if self.couples and self.spread is not None:
            raise LandscapeError(
                f"bn={self.bn!r} asked with distributed=True, but BatchNorm then needs all "
                f"examples in one process; use bn='eval'."
            )

    @property
    def couples(self) -> bool:
        """Whether the loss of an example depends on the others, through batch statistics."""
        return bool(self.network.batchnorm) and self.bn != "eval"

    def in_dtype(self, dtype: torch.dtype) -> "Engine":
        """The same function of theta in another dtype, with copies and a cost of its own."""
        other = replace(
            self,
            network=self.network.in_dtype(dtype),
            criterion=self.criterion.in_dtype(dtype),
            examples=self.examples.in_dtype(dtype),
            dtype=dtype,
            notes=replace(
                self.notes, cost=0.0, graph_sizes=self._sizes_in(dtype), modes_twice=set()
            ),
        )
        # What fails here is said where a number is asked.
        with other.network.finding_casts(), contextlib.suppress(Exception):
            other.loss_only(other.network.given, other.examples.few(_FEW))
        return other

    def _sizes_in(self, dtype: torch.dtype) -> dict[tuple[int, str], tuple[float, float]]:
        """What is known of graphs, in another dtype: to measure it again takes two more graphs."""
        wider = dtype.itemsize / self.dtype.itemsize
        known = self.notes.graph_sizes
        return {key: (fixed * wider, each * wider) for key, (fixed, each) in known.items()}

    def spend(self, cost: float) -> None:
        """Count gradient-equivalents."""
        self.notes.cost += cost

    def over_all(self, sums: Tensor) -> Tensor:
        """Sums of the own examples, made those of all processes."""
        if self.network.space is not None and not isinstance(sums, ShardedVector):
            return self.network.space.agreed(sums)
        return sums if self.spread is None else self.spread.sum(sums)

    @functools.cached_property
    def denominator(self) -> float:
        """What the sum over all examples is divided by; it belongs to the targets, not to theta."""
        total = self.over_all(self._own_denominator().to(self.device))
        if float(total) == 0:
            raise LandscapeError(
                f"All {self.examples.num_examples} targets are ignored or have weight 0, so that "
                f"{self.criterion.name} divides 0 by 0; give targets that count."
            )
        return 1.0 if self.criterion.sums else float(total)

    def _own_denominator(self) -> Tensor:
        if self.examples.weights is not None:
            return self.examples.weights.sum()
        parts: list[Tensor] = []
        with self.evaluating(self.network.theta), torch.enable_grad():
            for batch in self.examples.cut(self.batch_size or _RATIO_ROWS):
                model, batch = self.network.ready(self.examples.on_device(batch))
                _, numerator, found = self.criterion.of_rows(model, batch)
                parts.append(torch.tensor(numerator.numel()) if found is None else found)
        self.spend(FORWARD)
        return torch.stack([part.detach().double().sum().cpu() for part in parts]).sum()

    def denominator_of(self, rows: Tensor) -> float:
        """What the sum over these rows is divided by where they are a batch of their own."""
        if self.criterion.sums:
            return 1.0
        if self.examples.weights is None:
            return replace(self, examples=self.examples.take(rows.cpu())).denominator
        total = float(self.examples.weights[rows.cpu()].sum())
        if total == 0:
            raise LandscapeError(
                f"A batch of {len(rows)} of the {self.examples.num_examples} examples has ignored "
                f"targets only, so that its loss is 0/0; use larger batches, or leave out the "
                f"examples that are ignored."
            )
        return total

    @functools.cached_property
    def num_labels(self) -> int:
        """Targets that a share of wrong predictions is over, in all processes."""
        ignored = self.criterion.ignore_index
        own = sum(counted(chunk.targets, ignored) for chunk in self.examples.chunks)
        return max(1, int(self.over_all(torch.tensor(own, device=self.device))))

    def shares(self, losses: Tensor) -> Tensor:
        """Numerators as losses of single rows, whose mean over all N (a sum's sum) is the risk."""
        scale = 1.0 if self.criterion.sums else self.examples.num_examples / self.denominator
        return losses if scale == 1 else losses * scale

    def sum(self, losses: Tensor) -> Tensor:
        """Σ of what the criterion gives for a batch, in float64."""
        return losses.detach().double().sum()

    def visit(
        self,
        theta: Tensor,
        visit: Callable[[Batch, Any, Tensor], None],
        size: int,
        *,
        whole: bool,
        statistics: Statistics | None = None,
    ) -> None:
        """One pass without derivatives: visit(batch, output, losses) for all examples in order.

        In passes of `size` rows; whole: all examples are one pass, whose own BatchNorm statistics
        are those of the set. statistics: given ones in their place.
        """
        with self.evaluating(theta):
            if statistics is not None:
                self.network.batchnorm.give(statistics)
            elif self.couples and not whole:
                self._gather_statistics(size)
            for batch in self.examples.cut(size):
                batch = self.examples.on_device(batch)
                visit(batch, *self.outcome(batch))
        self.spend(FORWARD)

    def outcome(self, batch: Batch) -> tuple[Any, Tensor]:
        """Output and numerators of a batch on the device, without a graph of the caller's."""
        output, losses = self.returned(batch)
        if not self.network.habits.differentiates:
            return output, losses
        return _detached(output), losses.detach()

    def returned(self, batch: Batch) -> tuple[Any, Tensor]:
        """Output and numerators of a batch on the device, with the graph that is asked."""
        model, batch = self.network.ready(batch)
        return self.criterion.of(model, batch)

    def statistics(self, theta: Tensor, size: int) -> Statistics:
        """BatchNorm statistics of the examples at theta, one pair per call of a layer, in order."""
        with self.evaluating(theta):
            self._gather_statistics(size)
            return list(self.network.batchnorm.statistics)

    def _gather_statistics(self, size: int) -> None:
        """Statistics of the whole set for one BatchNorm site after another, each from one pass."""
        control = self.network.batchnorm
        control.gather(self.bn)
        while True:
            for batch in self.examples.cut(size):
                if not control.pass_until_site(
                    lambda b=batch: self.outcome(self.examples.on_device(b))
                ):
                    return
            self.spend(FORWARD)
            control.close_site()

    @contextlib.contextmanager
    def evaluating(self, theta: Tensor | Moved) -> Generator[None]:
        """Weights at theta, no graph but where the model makes one of its own."""
        graphs = torch.set_grad_enabled(self.network.habits.differentiates)
        with self._scope(second=False), graphs, self._at(theta):
            yield

    @contextlib.contextmanager
    def differentiating(self, order: int, theta: Tensor | Moved) -> Generator[None]:
        """Weights at theta, graphs on, kernels that have this many derivatives.

        Backward passes run within it as well: what is recomputed there (checkpoints) reads the
        weights again.
        """
        twice = self.network.twice
        with (
            self._scope(second=order > 1),
            torch.enable_grad(),
            self._at(theta),
            self.network.graphs(),
        ):
            twice.active, twice.absorbed = order > 1, order > 1 and self.bn == "eval"
            try:
                yield
            finally:
                twice.active = twice.absorbed = False

    @contextlib.contextmanager
    def _scope(self, *, second: bool) -> Generator[None]:
        rng = kept_rng() if self.notes.uses_rng else contextlib.nullcontext()
        settings = numerics(
            self.device, self.dtype, second=second, recurrent=self.network.recurrent
        )
        with self.naming_memory(), rng, settings, self.network.promoting():
            yield

    @contextlib.contextmanager
    def naming_memory(self) -> Generator[None]:
        """Say what to lower where memory does not suffice."""
        try:
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
    def _at(self, theta: Tensor | Moved) -> Generator[None]:
        control = self.network.batchnorm
        control.mode = self.bn
        try:
            with self.network.at(theta):
                yield
        finally:
            control.reset()

    def loss_graph(self, batch: Batch) -> Tensor:
        """Σ of losses over the batch as a function of the network's weights."""
        loss = self.returned(self.examples.on_device(batch))[1].sum()
        if not loss.requires_grad:
            raise LandscapeError(
                f"The loss does not depend on any of the {self.network.layout.num_parameters} "
                f"trainable parameters; look for torch.no_grad() or detach() in the model or the "
                f"loss."
            )
        return loss

    def add_gradient(self, total: Tensor, batch: Batch) -> Tensor:
        """Add the gradient of Σ of losses over the batch; returns that sum."""
        loss = self.loss_graph(batch)
        self.network.pull_back(total, [loss])
        return loss.detach().double()

    def gradient_graph(self, batch: Batch) -> "GradientGraph":
        """Σ of losses, and its gradient as a function of the weights."""
        loss = self.loss_graph(batch)
        grads = torch.autograd.grad(
            loss, self.network.weights, create_graph=True, allow_unused=True
        )
        self.refuse_cut(g for g in grads if g is not None and g.requires_grad)
        return GradientGraph(loss.detach().double(), grads)

    def refuse_cut(self, gradients: Iterable[Tensor]) -> None:
        """A once-differentiable function ends the graph with a node that never runs: a zero."""
        if self.bn in self.notes.modes_twice:
            return
        if has_error_node(gradients):
            raise RuntimeError("a function is marked once_differentiable")
        self.notes.modes_twice.add(self.bn)

    def prepare_second_derivatives(self) -> None:
        """Find what convolutions can absorb, once."""
        if self.bn != "eval":
            return
        rows = self.examples.on_device(self.examples.few(_ROWS))

        def losses(theta: Tensor) -> Tensor:
            with self.evaluating(theta):
                return self.outcome(rows)[1]

        self.network.twice.prepare(losses, self.network.theta)

    def loss_only(self, theta: Tensor | Moved, batch: Batch) -> Tensor:
        """Σ of losses over the batch."""
        batch = self.examples.on_device(batch)
        with self.evaluating(theta):
            return self.sum(self.outcome(batch)[1])

    def add_products(
        self, total: Tensor, graph: "GradientGraph", rows: Tensor, *, keep: bool
    ) -> None:
        """Add the Hessian of the batch's sum times each row, by a second reverse pass each."""
        for i, v in enumerate(rows):
            pull = functools.partial(self.network.pull_back, total[i])
            self._pull(pull, graph, v, keep=keep or i + 1 < len(rows))

    def visit_product(
        self, visit: Callable[[int, Tensor], None], *, graph: "GradientGraph", v: Tensor,
        keep: bool,
    ) -> None:  # fmt: skip
        """visit(i, part) of each tensor of the Hessian of the batch's sum times v; none is kept."""
        self._pull(functools.partial(self.network.visit_pulled, visit), graph, v, keep=keep)

    def _pull(
        self, pull: Callable[..., None], graph: "GradientGraph", v: Tensor, *, keep: bool
    ) -> None:
        graph.forget()
        roots = [root for root in graph.roots if root is not None]
        if not roots:
            return
        with self.network.cotangents(v) as pieces:
            pairs = zip(pieces, graph.roots, strict=True)
            given = [piece for piece, root in pairs if root is not None]
            if v.dtype == self.dtype:
                pull(roots, given, keep=keep)
            else:
                with _widened(roots, given, self.dtype) as due:
                    pull(roots, due, keep=keep)

    def mean(self, sums: Sequence[Tensor], theta: Tensor, weight_decay: float) -> Tensor:
        """L(theta) from the sums over the own examples' parts."""
        mean = self.over_all(torch.stack(list(sums)).sum()) / self.denominator
        if weight_decay:
            mean = mean + 0.5 * weight_decay * vectors.squared_norm(theta)
        return mean.to(self.dtype)

    def mean_of(self, total: Tensor, rows: Tensor, weight_decay: float) -> Tensor:
        """Sums over the own examples, made what the risk has of them, weight decay's share too."""
        total = self.over_all(total).div_(self.denominator)
        return total.add_(rows, alpha=weight_decay) if weight_decay else total

    def as_theta(self, theta: Tensor, *, widen: bool = True) -> Tensor:
        """Theta (P,) on the device, in the dtype; without `widen` float32 stays float32.

        Weights and cotangents of float64 are made of it as they are needed, with the same numbers:
        of large models every copy counts.
        """
        size = self.network.layout.num_parameters
        if not isinstance(theta, Tensor) or theta.shape != (size,):
            found = (
                f"shape {tuple(theta.shape)}"
                if isinstance(theta, Tensor)
                else f"type {type(theta).__name__}"
            )
            raise LandscapeError(
                f"theta of {found} given; this model has P={size} trainable parameters, so theta "
                f"is a tensor of shape ({size},). risk.layout.flatten makes one from named tensors."
            )
        theta = self._in_space(theta.clone() if theta.is_inference() else theta)
        return theta.detach().to(device=self.device, dtype=self._kept(theta, widen=widen))

    def _kept(self, given: Tensor, *, widen: bool) -> torch.dtype:
        stays = self.network.space is None and given.dtype == torch.float32
        return given.dtype if stays and not widen else self.dtype

    def _in_space(self, vectors: Tensor) -> Tensor:
        """Vectors that every process has whole, cut as the weights are."""
        space = self.network.space
        if space is None:
            return whole(vectors)
        if isinstance(vectors, ShardedVector):
            return vectors
        return ShardedVector(space.own(vectors.detach().to(self.device)), space)

    def like(self, V: Tensor, products: Tensor, out: Tensor | None = None) -> Tensor:
        """Products in the shape of the vectors that were asked, and whole where these were.

        out: where they belong, if they are not there already.
        """
        products = products.reshape(V.shape)
        products = products if isinstance(V, ShardedVector) else whole(products)
        if out is None:
            return products
        if own(products).data_ptr() != own(out).data_ptr():
            out.copy_(products)
        return out

    def nothing(self, V: Tensor, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Zeros (k, P) to which products with V, as rows, are added, in the memory of out."""
        if out is None:
            return torch.zeros_like(rows, dtype=self.dtype)
        if out.shape != V.shape or out.dtype != self.dtype or out.device != rows.device:
            raise LandscapeError(
                f"out of shape {tuple(out.shape)}, {out.dtype} on {out.device} given for products "
                f"with V of shape {tuple(V.shape)}; it takes that shape, {self.dtype}, on "
                f"{rows.device}."
            )
        here, given = own(out), own(rows)
        apart = abs(here.data_ptr() - given.data_ptr()) >= here.nbytes
        if here.is_contiguous() and apart:
            return self.as_vectors(out).zero_()
        # Zeros there would be in the rows, or are not where products are added.
        return torch.zeros_like(rows, dtype=self.dtype)

    def as_vectors(self, V: Tensor, *, widen: bool = True) -> Tensor:
        """Vectors V (P,) or (k, P) as rows (k, P) on the device, in the dtype, as `as_theta`."""
        size = self.network.layout.num_parameters
        if not isinstance(V, Tensor) or V.ndim not in (1, 2) or V.shape[-1] != size:
            found = tuple(V.shape) if isinstance(V, Tensor) else type(V).__name__
            raise LandscapeError(
                f"V of shape {found} given; a Hessian product takes ({size},) or (k, {size})."
            )
        V = self._in_space(V.clone() if V.is_inference() else V)
        V = V.detach().to(device=self.device, dtype=self._kept(V, widen=widen))
        return V.reshape(-1, size)


@contextlib.contextmanager
def _widened(
    roots: Sequence[GradientEdge], pieces: Sequence[Tensor], dtype: torch.dtype
) -> Generator[list[Tensor]]:
    """Cotangents in another precision, each made when its root's turn has come.

    Autograd holds what it is given until the end, which would be one more copy of all weights, a
    wide one: it is given zeros without memory, and each root adds its piece to them.
    """

    def add(at: int, piece: Tensor, zero: Tensor, gradients: tuple[Tensor, ...]) -> Any:
        found, wide = gradients[at], piece.to(zero.dtype)
        alone = found.data_ptr() == zero.data_ptr()
        return (*gradients[:at], wide if alone else found + wide, *gradients[at + 1 :])

    zeros = [torch.zeros((), dtype=real_or_complex(p, dtype), device=p.device) for p in pieces]
    with contextlib.ExitStack() as hooks:
        for root, piece, zero in zip(roots, pieces, zeros, strict=True):
            hook = root.node.register_prehook(functools.partial(add, root.output_nr, piece, zero))
            hooks.callback(hook.remove)
        yield [zero.expand_as(piece) for zero, piece in zip(zeros, pieces, strict=True)]


def _detached(output: Any) -> Any:
    return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, output)


class GradientGraph:
    """Of one batch: Σ of losses, and per tensor its gradient and the root of that one's graph.

    A gradient without a graph has no root. The first product forgets the gradients.
    """

    def __init__(self, loss: Tensor, gradients: Sequence[Tensor | None]) -> None:
        self.loss, self.gradients = loss, gradients
        self.roots: list[GradientEdge | None] = [
            get_gradient_edge(g) if g is not None and g.requires_grad else None for g in gradients
        ]

    def forget(self) -> None:
        """Let the gradients go, one more copy of the weights: products need their roots alone."""
        self.gradients = []
