"""EmpiricalRisk: the mean loss over a fixed set of examples as a function of theta."""

import copy
import dataclasses
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor, nn

from landscape import devices, vectors
from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.risk import _checks, _fitting
from landscape.risk._copying import refuse_odd, with_gradient_hooks
from landscape.risk._criterion import Criterion, errors_of, logits_of
from landscape.risk._data import Batch, collect, kept_rng, sha256_of
from landscape.risk._engine import GRADIENT, PRODUCT, BNMode, Engine, Notes, Statistics
from landscape.risk._head import Deferred
from landscape.risk._linearized import LinearizedGGN, LinearizedHVP, normal_tensors
from landscape.risk._network import Network, unwrapped
from landscape.risk._options import check_numbers, placement
from landscape.risk._probe import Probe, Probes
from landscape.risk._same_function import refuse_other_function
from landscape.risk._spread import Spread
from landscape.risk._state import State
from landscape.risk._tokens import with_head
from landscape.risk._tracing import values
from landscape.risk._units import described, fitted, one_unit
from landscape.sharding import wholes


@dataclass(frozen=True)
class Evaluation:
    """One pass: mean loss (), share of wrong predictions () or None, data losses (N,) or None.

    error_rate is None where outputs are not those of a classifier.

    Example:
        >>> found = risk.evaluate(theta)
        >>> found.loss.shape, 0 <= float(found.error_rate) <= 1
        (torch.Size([]), True)
    """

    loss: Float[Tensor, ""]
    error_rate: Float[Tensor, ""] | None
    losses: Float[Tensor, "N"] | None


class EmpiricalRisk:
    """L(theta) = criterion(model(x; theta), y) + ½·weight_decay·‖theta‖², over all N examples.

    A deterministic function of theta (P,): it works on its own copies of model and data, sums over
    examples and divides once by what the criterion divides by, so the answer does not depend on
    batches, and leaves the caller's model, RNG and numeric settings as they were. Dropout is off.

    data: a DataLoader, a Dataset, one batch, or a list of batches of any sizes; a batch is
    (inputs, targets) or a dict with the targets under "labels", "label", "targets", "target", "y".
    Of a loader the rows of one epoch count, each once: one that draws other rows each time, gives
    rows twice (a DistributedSampler's padding) or the share of one process is refused by name, and
    rows that it leaves out for good (a subset, `drop_last` in order) are counted in the provenance.
    loss: any criterion, torch's own as a module, a function or a functools.partial of it. Its mean
    over the whole set is taken as torch takes it over one batch: Σ_i w[y_i]·loss_i / Σ_i w[y_i]
    over the targets that are not ignored (tokens and pixels too), all elements where targets are no
    classes, and 1 for a sum; this denominator belongs to the targets and is in the provenance.
    Another callable returns per-example losses, or the mean over its rows if declared
    reduction="mean". Outputs with `.logits` reach the loss as those logits.

    bn: "eval" uses the running statistics of the model. "full_batch" uses mean and biased variance
    of all N examples, as training on one batch of them would. "recalibrate" re-estimates running
    statistics at each theta, layer by layer over all N examples, with the unbiased variance that
    torch keeps as running variance; it has no gradient here. λ₁ differs by factors between modes.

    batch_size: rows of a pass (default: all, up to what fits); memory: bytes for kept graphs
    (default 1 GiB on a CPU, half of what is free on a GPU); dtype: float32 (TF32 off) or float64
    (default: float64 if the model's parameters are, else float32).
    distributed: each process of torch.distributed's default group gives its own share of the data
    (of any size) and gets the numbers of all of them; every process must ask for the same things.
    Values of single examples stay apart, and BatchNorm statistics of all examples cannot be had.
    A model that is sharded over processes (`fully_shard`, tensor parallel) is measured as it is:
    every process gives the same examples and asks for the same things; theta and the gradient are
    cut like the weights (`landscape.sharding`), and so are products of vectors that are; each layer
    is gathered while it computes, and the numbers are those of one process. A tensor-parallel
    forward that is another function once its weights are whole (it counts the heads of its process)
    is refused, and so are wrappers that flatten the weights (FSDP1, DeepSpeed).
    borrow: measure on the caller's own modules, for models that no copy can stand for (hooks,
    lambdas and patched forwards that keep pointing at them). Within a call they read tensors of the
    risk's; afterwards they are bit for bit as before, whatever was raised. Graphs are then not kept
    between products, and what needs a module of its own (`model_at`) is refused.
    `cost` counts gradient-equivalents: a pass over all examples is 1/3, a gradient 1, a Hessian
    product 2 with its graph kept and 3 when rebuilt; statistics of a set too large for one pass add
    1/3 for each BatchNorm layer.
    device: where the copies live (default: where the model's parameters are).

    Example:
        >>> risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), data, dtype=torch.float64)
        >>> theta = risk.theta
        >>> tuple(theta.shape), risk.num_examples
        ((83,), 48)
        >>> with torch.no_grad():
        ...     plain = nn.CrossEntropyLoss()(model.double().eval()(data[0].double()), data[1])
        >>> _ = model.float().train()
        >>> bool(torch.isclose(risk.loss(theta), plain)), tuple(risk.hvp(theta, theta).shape)
        (True, (83,))
    """

    @normal_tensors
    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any] | str,
        data: Any,
        *,
        batch_size: int | None = None,
        bn: BNMode = "eval",
        weight_decay: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        memory: int | None = None,
        reduction: Literal["none", "mean", "sum", "whole"] | None = None,
        distributed: bool = False,
        borrow: bool = False,
    ) -> None:
        check_numbers(batch_size, weight_decay, memory)
        inner = unwrapped(model)
        place, dtype = placement(inner, device, dtype)
        refuse_odd(inner)
        foreign, caller = values(inner), State(inner)
        network = Network(inner, device=place, dtype=dtype, borrow=borrow)
        if distributed and network.space is not None:
            raise LandscapeError(
                "distributed=True asked of a sharded model, whose processes gather each layer "
                "together and so have to make the same passes; give all examples in every process "
                "and leave distributed out."
            )
        criterion = Criterion(loss, reduction, device=place, dtype=dtype)
        whole = criterion.form == "batch" or reduction in ("mean", "whole")
        examples = collect(
            data, network.model.forward, device=place, dtype=dtype, form=criterion.form,
            whole_batches=whole, distributed=distributed,
        )  # fmt: skip
        self._engine = Engine(
            network=network,
            criterion=criterion,
            examples=examples,
            device=place,
            dtype=dtype,
            memory=int(network.agreed(_fitting.default(place) if memory is None else memory)),
            batch_size=batch_size,
            bn=bn,
            notes=Notes(hooked=with_gradient_hooks(inner)),
            spread=Spread(examples.num_examples, network.theta) if distributed else None,
        )
        if network.space is not None:
            network.space.refuse_other(
                sha256_of(examples.leaves()), "examples", "give all of them the same ones"
            )
        if reduction == "whole":
            self._engine = dataclasses.replace(self._engine, examples=one_unit(self._engine))
        self._weight_decay = float(weight_decay)
        self._check(inner, foreign, caller)
        self._probes = Probes(self._engine)

    # Others like it ---------------------------------------------------------------------------

    def with_bn(self, mode: BNMode) -> "EmpiricalRisk":
        """The risk of another BatchNorm mode; shares model copy, data and cost counter."""
        twin = copy.copy(self)
        twin._engine = dataclasses.replace(self._engine, bn=mode)
        return twin

    @normal_tensors
    def with_model(self, model: nn.Module) -> "EmpiricalRisk":
        """The risk of another model, say another run's checkpoint, on the very same data.

        Shares the data on the device, the loss and all options; the copy of the model, its buffers
        (BatchNorm statistics) and the cost counter are its own.
        """
        self._refuse_spread("Another model")
        inner, borrow = unwrapped(model), self._engine.network.borrowed
        placement(inner, self.device, self.dtype)
        refuse_odd(inner)
        foreign, caller = values(inner), State(inner)
        network = Network(inner, device=self.device, dtype=self.dtype, borrow=borrow)
        twin = copy.copy(self)
        notes = Notes(hooked=with_gradient_hooks(inner))
        twin._engine = dataclasses.replace(self._engine, network=network, notes=notes)
        twin._check(inner, foreign, caller)
        twin._probes = Probes(twin._engine)
        return twin

    @normal_tensors
    def with_dtype(self, dtype: torch.dtype) -> "EmpiricalRisk":
        """The same function of theta in torch.float32 or torch.float64, to see what rounding does.

        Weights, buffers and data keep their values; float64 from float32 is thus the exact function
        of the rounded numbers. It has its own copies of them and its own cost counter.
        """
        placement(self._engine.network.model, self.device, dtype)
        if dtype == self.dtype:
            return self
        twin = copy.copy(self)
        twin._engine = self._engine.in_dtype(dtype)
        return twin

    @normal_tensors
    def subset(self, rows: Int[Tensor, "B"]) -> "EmpiricalRisk":
        """The risk of these rows of the data alone, (1/B) times their sum; shares the model copy.

        In mode "full_batch" their own BatchNorm statistics, as training on them as a batch has. Its
        cost counter is its own, in passes over the subset. Raises LandscapeError for rows outside.
        """
        self._refuse_spread("A subset")
        rows = torch.as_tensor(rows, dtype=torch.long).reshape(-1).cpu()
        if len(rows) == 0 or int(rows.min()) < 0 or int(rows.max()) >= self.num_examples:
            raise LandscapeError(
                f"A subset of {len(rows)} rows asked of {self.num_examples} examples; give at "
                f"least one index, each from 0 to {self.num_examples - 1}."
            )
        notes = self._engine.notes
        part = copy.copy(self)
        part._engine = dataclasses.replace(
            self._engine,
            examples=self._engine.examples.take(rows),
            notes=dataclasses.replace(notes, cost=0.0),
        )
        return part

    # What it is made of ----------------------------------------------------------------------

    def __repr__(self) -> str:
        decay = f", weight decay {self._weight_decay:g}" if self._weight_decay else ""
        return (
            f"EmpiricalRisk({self._engine.criterion.name} of {self.layout.num_parameters:,} "
            f"parameters over {self.num_examples:,} examples{decay}; BatchNorm {self.bn}, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device})"
        )

    @property
    def theta(self) -> Float[Tensor, "P"]:
        """The model's own parameters, flat (P,); a fresh copy."""
        return self._engine.network.theta.clone()

    @property
    def layout(self) -> ParamLayout:
        """Names, shapes and kinds of the coordinates of theta."""
        return self._engine.network.layout

    @property
    def num_examples(self) -> int:
        """N, over all processes."""
        spread = self._engine.spread
        return self._engine.examples.num_examples if spread is None else spread.num_examples

    @property
    def device(self) -> torch.device:
        """Where everything is computed."""
        return self._engine.device

    @property
    def dtype(self) -> torch.dtype:
        """torch.float32 or torch.float64."""
        return self._engine.dtype

    @property
    def bn(self) -> BNMode:
        """BatchNorm mode."""
        return self._engine.bn

    @property
    def weight_decay(self) -> float:
        """Coefficient of ½·‖theta‖²."""
        return self._weight_decay

    @property
    def has_batchnorm(self) -> bool:
        """Whether the BatchNorm mode matters."""
        return bool(self._engine.network.batchnorm)

    @property
    def buffers(self) -> dict[str, Tensor]:
        """Copies of the model's buffers (running statistics), which belong to the risk."""
        return self._engine.network.buffers()

    @property
    def cost(self) -> float:
        """Gradient-equivalents spent so far, together with the risks that share its data."""
        return self._engine.notes.cost

    @property
    def memory(self) -> int:
        """Bytes for kept graphs."""
        return self._engine.memory

    @property
    def model(self) -> nn.Module:
        """The private copy of the model (or the borrowed one): to be read and not changed."""
        with self._engine.network.at(self.theta):
            return self._engine.network.model

    def model_at(self, theta: Float[Tensor, "P"]) -> nn.Module:
        """An ordinary module of its own with weights theta, trainable, in evaluation mode."""
        return self._engine.network.released(self._engine.as_theta(theta))

    @property
    def targets(self) -> Shaped[Tensor, "N *C"]:
        """Targets of all examples, in the order of the data."""
        self._refuse_spread("targets")
        chunks = self._engine.examples.chunks
        return torch.cat([chunk.targets for chunk in chunks]).to(self.device)

    @property
    def inputs(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Arguments (args, kwargs) of the model for all examples: one table, or one per shape."""
        self._refuse_spread("inputs")
        return [(chunk.args, chunk.kwargs) for chunk in self._engine.examples.chunks]

    @property
    def batch_size(self) -> int | None:
        """Rows of a pass if they were chosen."""
        return self._engine.batch_size

    def fingerprints(self) -> dict[str, str]:
        """SHA-256 of inputs and targets of all examples, and of the model's buffers."""
        self._refuse_spread("fingerprints")
        buffers = [leaf for _, leaf in sorted(self.buffers.items())]
        names = " ".join(sorted(self.buffers))
        return {
            "data_sha256": sha256_of(self._engine.examples.leaves()),
            "buffers_sha256": sha256_of(buffers, names),
        }

    def spend(self, gradients: float) -> None:
        """Count what was computed beside the risk in its gradient-equivalents."""
        self._engine.spend(gradients)

    def fingerprint(self, theta: Float[Tensor, "P"]) -> str:
        """SHA-256 of theta's bytes in the risk's dtype."""
        found = hashlib.sha256()
        for part in wholes(self._engine.as_theta(theta)):
            found.update(part.to("cpu").contiguous().numpy())
        return found.hexdigest()

    def provenance(self) -> dict[str, Any]:
        """What must be known to read a number of this risk, as JSON types."""
        space = self._engine.network.space
        return {
            "bn": self._engine.bn,
            "num_examples": self.num_examples,
            "num_parameters": self.layout.num_parameters,
            "loss": self._engine.criterion.name,
            **self._engine.criterion.described(),
            "denominator": self._engine.denominator,
            **described(self._engine.examples),
            "weight_decay": self._weight_decay,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "torch": str(torch.__version__),
            **self._engine.notes.provenance(),
            **({"borrowed": True} if self._engine.network.borrowed else {}),
            **({"sharded_over": space.num_processes} if space is not None else {}),
        }

    # Values -----------------------------------------------------------------------------------

    @normal_tensors
    def loss(self, theta: Float[Tensor, "P"]) -> Float[Tensor, ""]:
        """L(theta) in nats (for cross-entropy), (); NaN stays NaN. Cost 1/3."""
        theta = self._engine.as_theta(theta)
        sums: list[Tensor] = []
        _fitting.visit(
            self._engine, theta, lambda _b, _o, losses: sums.append(self._engine.sum(losses))
        )
        return self._mean(sums, theta)

    @normal_tensors
    def standard_error(self, losses: Float[Tensor, "*k N"]) -> Float[Tensor, "*k"]:
        """Standard error of the loss whose `losses` (..., N) are given, over the draw of the rows.

        Rows are taken as drawn independently. Where they weigh alike it is S/√N; of a mean of rows
        of weights d (class weights, targets that count) it is that of a ratio,
        √(N/(N − 1)·Σᵢ (lᵢ/N − L·dᵢ/Σd)²) (Cochran, Sampling Techniques, 1977, § 6.3); of a sum
        √N·S.
        """
        count = losses.shape[-1]
        losses = losses.double()
        if self._engine.criterion.sums:
            return losses.std(-1, correction=1) * math.sqrt(count)
        weights = self._engine.examples.weights
        if weights is None:
            return losses.std(-1, correction=1) / math.sqrt(count)
        share = (weights / weights.sum()).to(losses, non_blocking=True)
        residual = losses / count - losses.mean(-1, keepdim=True) * share
        flat = vectors.row_norms(residual.reshape(-1, count)) * math.sqrt(count / (count - 1))
        return flat.reshape(losses.shape[:-1])

    @normal_tensors
    def losses(self, theta: Float[Tensor, "P"]) -> Float[Tensor, "N"]:
        """Loss of each example (N,) in the order of the data, without weight decay. Cost 1/3.

        Scaled so that their mean is the loss: N·(its sum)/(the criterion's denominator), where an
        ignored target counts 0; of a criterion that sums, unscaled, so that their sum is the loss.
        Raises LandscapeError for a loss declared reduction="mean".
        """
        self._refuse_spread("losses")
        if not self._engine.criterion.per_example:
            raise LandscapeError(
                f"losses of single examples asked, but {self._engine.criterion.name} tells the "
                f"{self._engine.criterion.returns} of a batch only; give a loss that returns one "
                f"value per example."
            )
        parts: list[Tensor] = []
        _fitting.visit(
            self._engine, self._engine.as_theta(theta), lambda _b, _o, losses: parts.append(losses)
        )
        return self._engine.shares(torch.cat(parts))

    @normal_tensors
    def outputs(self, theta: Float[Tensor, "P"]) -> Shaped[Tensor, "N *C"]:
        """Model outputs (logits) of all examples in the order of the data. Cost 1/3."""
        self._refuse_spread("outputs")
        if self._engine.criterion.form == "batch":
            raise LandscapeError(
                f"Outputs asked, but {self._engine.criterion.name} is a function of (model, "
                f"batch), so that it is not said what the model's outputs are; give a loss(output, "
                f"target), or use measurements of the loss."
            )
        parts: list[Tensor] = []

        def visit(_batch: Batch, output: Any, _losses: Tensor) -> None:
            output = logits_of(output)
            if not isinstance(output, Tensor):
                raise LandscapeError(
                    f"The model returns a {type(output).__name__}; outputs are stacked only when "
                    f"they are tensors or have `.logits`. Wrap the model."
                )
            parts.append(output.dense() if isinstance(output, Deferred) else output)

        _fitting.visit(self._engine, self._engine.as_theta(theta), visit)
        return torch.cat(parts)

    @normal_tensors
    def error_rate(self, theta: Float[Tensor, "P"]) -> Float[Tensor, ""]:
        """Share of examples with argmax(output) ≠ target, (); a NaN output is wrong. Cost 1/3.

        Raises LandscapeError when the task is not classification.
        """
        rate = self.evaluate(theta).error_rate
        if rate is None:
            raise LandscapeError(
                f"error_rate asked of {self._engine.criterion.name}, but outputs and targets are "
                f"not those of a classifier (outputs (N, C), class targets (N,)); use losses."
            )
        return rate

    @normal_tensors
    def evaluate(
        self, theta: Float[Tensor, "P"], *, statistics: Statistics | None = None
    ) -> Evaluation:
        """Loss, error rate (None if not a classifier) and losses in one pass. Cost 1/3.

        statistics: of BatchNorm, from `batchnorm_statistics` of another risk of the same model, to
        be used in the place of those of the own mode.
        """
        theta = self._engine.as_theta(theta)
        sums: list[Tensor] = []
        parts: list[Tensor] = []
        wrong: list[Tensor | None] = []

        def visit(batch: Batch, output: Any, losses: Tensor) -> None:
            sums.append(self._engine.sum(losses))
            parts.append(losses)
            errors = errors_of(output, batch.targets, self._engine.criterion.ignore_index)
            wrong.append(None if errors is None else errors.sum())

        _fitting.visit(self._engine, theta, visit, statistics=statistics)
        rate, known = None, [count for count in wrong if count is not None]
        if len(known) == len(wrong):
            count = self._engine.over_all(torch.stack(known).sum())
            rate = count.to(self.dtype) / self._engine.num_labels
        whole = self._engine.criterion.per_example and self._engine.spread is None
        losses = self._engine.shares(torch.cat(parts)) if whole else None
        return Evaluation(self._mean(sums, theta), rate, losses)

    @normal_tensors
    def batchnorm_statistics(self, theta: Float[Tensor, "P"]) -> Statistics:
        """Mean and variance that the BatchNorm mode takes from all examples at theta.

        A pair per call of a layer, in order; refused in mode "eval", which takes none. Cost: 1/3
        for each.
        """
        if not self._engine.couples:
            raise LandscapeError(
                f"batchnorm_statistics asked with bn={self.bn!r} of a model with "
                f"{'' if self.has_batchnorm else 'no '}BatchNorm, which takes no statistics from "
                f"the examples; use risk.with_bn('recalibrate') or risk.with_bn('full_batch')."
            )
        size = _fitting.pass_rows(self._engine)
        return self._engine.statistics(self._engine.as_theta(theta), size)

    # Derivatives ------------------------------------------------------------------------------

    @normal_tensors
    def gradient(self, theta: Float[Tensor, "P"]) -> Float[Tensor, "P"]:
        """∇L(theta) (P,). Cost 1. Raises LandscapeError where loss or gradient is not finite."""
        return self.loss_and_gradient(theta)[1]

    @normal_tensors
    def loss_and_gradient(
        self, theta: Float[Tensor, "P"], *, finite: bool = True
    ) -> tuple[Float[Tensor, ""], Float[Tensor, "P"]]:
        """L(theta) () and ∇L(theta) (P,) in one pass. Cost 1.

        finite: refuse what is not, for which the host waits for a device; False: return it.
        """
        self._refuse_derivative("gradient")
        theta = self._engine.as_theta(theta)
        engine, total = self._engine, torch.zeros_like(theta)
        batches = _fitting.graph_batches(engine, order=1)
        with _checks.explaining(engine, theta, order=1), engine.differentiating(1, theta):
            sums = [engine.add_gradient(total, batch) for batch in batches]
        engine.spend(GRADIENT)
        gradient = engine.mean_of(total, theta, self._weight_decay)
        loss = self._mean(sums, theta)
        if finite:
            _checks.refuse_non_finite(engine, theta, loss, gradient, "gradient")
        return loss, gradient

    @normal_tensors
    def hvp(self, theta: Float[Tensor, "P"], V: Float[Tensor, "*k P"]) -> Float[Tensor, "*k P"]:
        """Hessian-vector products ∇²L(theta)·v for V (P,) or each row of V (k, P), same shape.

        Reverse over reverse, one graph a batch for all k. Cost 1 + 2k. Raises LandscapeError where
        the loss is not finite or a module cannot be differentiated twice.
        """
        self._refuse_derivative("hvp")
        self.probe()
        engine, sums = self._engine, []
        theta, rows = engine.as_theta(theta, widen=False), engine.as_vectors(V, widen=False)
        with _checks.explaining(engine, theta):
            total = torch.zeros_like(rows, dtype=engine.dtype)
            batches = _fitting.graph_batches(engine, order=2)
            with engine.differentiating(2, theta):
                for batch in batches:
                    graph = engine.gradient_graph(batch)
                    graph.forget()
                    if not devices.is_accelerator(engine.device):
                        devices.trim(theta.numel() * engine.dtype.itemsize)
                    engine.add_products(total, graph, rows, keep=False)
                    sums.append(graph.loss)
        engine.spend(GRADIENT + PRODUCT * len(rows))
        product = engine.mean_of(total, rows, self._weight_decay)
        mean = self._mean(sums, theta)
        _checks.refuse_non_finite(engine, theta, mean, product, "Hessian product")
        return engine.like(V, product)

    @normal_tensors
    def linearized_hvp(self, theta: Float[Tensor, "P"]) -> LinearizedHVP:
        """V ↦ ∇²L(theta)·v with the graph of the gradient kept, for many products at one theta.

        Graphs are kept up to `memory` bytes; the examples beyond are rebuilt at each product. Cost
        1, then 2 a product (3 for the rebuilt share).
        """
        self._refuse_derivative("linearized_hvp")
        self.probe()
        theta = self._engine.as_theta(theta, widen=False)
        return LinearizedHVP(self._engine, theta, self._weight_decay)

    @normal_tensors
    def linearized_ggn(self, theta: Float[Tensor, "P"]) -> LinearizedGGN:
        """V ↦ G·v of the generalized Gauss-Newton matrix, as linearized_hvp is of the Hessian."""
        self._refuse_derivative("Gauss-Newton products")
        self.probe()
        theta = self._engine.as_theta(theta, widen=False)
        return LinearizedGGN(self._engine, theta, self._weight_decay)

    @normal_tensors
    def probe(self) -> Probe:
        """Whether gradient and products are those of the loss, made before the first product.

        On at most 16 rows of the data that the risk was made of, in float64, at the model's own
        theta; kept for every risk that shares the model copy. Not counted as cost.
        """
        return self._probes.of(self.bn)

    @property
    def probes_asked(self) -> int:
        """How often products were asked for."""
        return self._probes.asked

    # Inside -----------------------------------------------------------------------------------

    def _check(self, model: nn.Module, foreign: dict[str, Tensor], caller: State) -> None:
        """Try a few rows; whatever code of the caller's runs then, its model stays as it was."""
        try:
            with kept_rng():
                self._engine = fitted(_checks.run(with_head(self._engine), foreign))
                self._engine.criterion.memory.watch()
                _ = self._engine.denominator
                refuse_other_function(self._engine, model)
        finally:
            caller.restore()

    def _mean(self, sums: list[Tensor], theta: Tensor) -> Tensor:
        return self._engine.mean(sums, theta, self._weight_decay)

    def _refuse_derivative(self, what: str) -> None:
        if self._engine.bn == "recalibrate":
            raise LandscapeError(
                f"{what} asked with bn='recalibrate', which gives losses only (statistics are "
                f"re-estimated outside of the graph); use risk.with_bn('eval') or "
                f"risk.with_bn('full_batch')."
            )

    def _refuse_spread(self, what: str) -> None:
        if self._engine.spread is not None:
            raise LandscapeError(
                f"{what} asked of a risk with distributed=True, whose examples are with "
                f"{self._engine.spread.num_processes} processes; make a risk of all examples in "
                f"one process."
            )
