"""PyHessian 0.1 as a second opinion on eigenvalue and trace, mended where it no longer runs."""

import importlib
import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.measure.curvature.top import eigenpairs, hessian_trace
from landscape.measure.measuring import RESIDUALS, Measuring, generator, numbers
from landscape.results import Variable
from landscape.risk import EmpiricalRisk, RowLosses

# The package's attribute `hessian` is the class of that name, which hides the module.
peer = importlib.import_module("pyhessian.hessian")


def crosscheck(
    risk: EmpiricalRisk,
    theta: Float[Tensor, "P"],
    *,
    num_probes: int = 30,
    max_iterations: int = 100,
    certify: str = "float64",
    seed: int,
) -> xr.Dataset:
    """Largest-magnitude eigenvalue and trace of the Hessian by PyHessian, beside ours.

    Like with like: the same data as one batch, eval mode, the eigenvalue of largest magnitude (all
    that power iteration can find). PyHessian's eigenvalue comes without a bound and stops when two
    Rayleigh quotients agree to 1e-3; ours is within residual_norm (in float64 unless
    certify="none") of an eigenvalue. Its trace stops by itself when the running mean moves less
    than 1e-3, and after two probes whenever that mean is negative: read pyhessian_trace_probes
    (asked: num_probes). *_stderr are over probes. On a CPU one seed gives both the same probes, so
    that without such a stop the two traces differ by rounding.
    Cost: about num_probes + max_iterations Hessian products there, num_probes + 30 here.
    Eigenvalues and traces are in nats / parameter². PyHessian is that of arXiv:1912.07145.

    Example:
        >>> found = measure.crosscheck(risk, theta, num_probes=4, seed=0)
        >>> bool(np.isclose(found.pyhessian_eigenvalue, found.landscape_eigenvalue, rtol=0.05))
        True
    """
    check_count("num_probes", num_probes, 2)
    check_count("max_iterations", max_iterations, 2)
    check_choice("certify", certify, RESIDUALS)
    own = risk.with_bn("eval")
    measuring = Measuring("crosscheck", own, theta)
    measuring.finite_loss()
    with _at(own, measuring.theta, seed) as other:
        their_value = other.eigenvalue(max_iterations=max_iterations)
        their_samples = other.trace_samples(num_probes=num_probes)
    pairs = eigenpairs(measuring, k=1, which="magnitude", certify=certify, seed=seed)
    ours = hessian_trace(own, measuring.theta, num_probes=num_probes, seed=seed)

    units = "nats / parameter²"
    values = {
        "pyhessian_eigenvalue": (their_value, "Largest-magnitude eigenvalue, PyHessian"),
        "landscape_eigenvalue": (
            float(numbers(pairs.values)[0]),
            "Largest-magnitude eigenvalue, Lanczos",
        ),
        "residual_norm": (float(numbers(pairs.residual_norms)[0]), "Residual ‖Hv − λv‖, Lanczos"),
        "pyhessian_trace": (their_samples.mean(), "Trace, PyHessian"),
        "pyhessian_trace_stderr": (_stderr(their_samples), "Standard error, PyHessian"),
        "landscape_trace": (float(ours["trace"]), "Trace, Hutchinson"),
        "landscape_trace_stderr": (float(ours["trace_stderr"]), "Standard error, Hutchinson"),
    }
    variables = {
        name: Variable((), value, units, long_name) for name, (value, long_name) in values.items()
    }
    variables["pyhessian_trace_probes"] = Variable(
        (), len(their_samples), "1", "Probes PyHessian used"
    )
    options = {
        "num_probes": num_probes,
        "max_iterations": max_iterations,
        "which": "magnitude",
        "certify": certify,
        "pyhessian": "0.1",
        "seed": seed,
    }
    return measuring.result(variables, options=options)


class PyHessian:
    """PyHessian's estimates on one batch, as a context that leaves no trace.

    On exit the model's mode, `.grad` and `requires_grad` are what they were, and the graph that
    PyHessian keeps in `.grad` is freed. Random vectors come from `seed`, in the model's dtype and
    on its device, without touching the global generators; `torch.eig`, removed from torch, is
    supplied for symmetric matrices; the math kernel of attention is used, the only one that can be
    differentiated twice. Parameters the loss does not reach are left out.
    criterion(output, targets) -> a scalar loss of the batch (inputs, targets), each with N rows.
    The package is that of arXiv:1912.07145.

    Example:
        >>> x, y = data
        >>> with measure.PyHessian(model, nn.CrossEntropyLoss(), x, y, seed=0) as estimates:
        ...     samples = estimates.trace_samples(num_probes=4)
        >>> len(samples)
        4
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: Callable[[Any, Tensor], Tensor],
        inputs: Tensor,
        targets: Tensor,
        *,
        seed: int,
    ) -> None:
        self.model, self.criterion = model, criterion
        self.inputs, self.targets = inputs, targets
        self._seed = seed
        self._peer: peer.hessian | None = None

    @property
    def _inside(self) -> peer.hessian:
        if self._peer is None:
            raise LandscapeError(
                "PyHessian's estimates were asked outside of `with PyHessian(...) as peer:`, where "
                "its graph is freed; ask inside."
            )
        return self._peer

    def __enter__(self) -> "PyHessian":
        parameters = list(self.model.parameters())
        self._modes = [(module, module.training) for module in self.model.modules()]
        self._before = [(p, p.requires_grad, p.grad) for p in parameters]
        try:
            for parameter in parameters:
                parameter.grad = None
            self._leave_out_unused([p for p in parameters if p.requires_grad])
            with self._mended():
                self._peer = peer.hessian(
                    self.model,
                    self.criterion,
                    data=(self.inputs, self.targets),
                    cuda=False,  # inputs are where they belong
                )
                self._peer.device = self.inputs.device  # ty: ignore[invalid-assignment]  # as good as its name
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._peer = None
        for parameter, requires_grad, grad in self._before:
            parameter.requires_grad_(requires_grad)
            parameter.grad = grad
        for module, training in self._modes:
            module.training = training

    def eigenvalue(self, *, max_iterations: int, tolerance: float = 1e-3) -> float:
        """Largest-magnitude eigenvalue by its power iteration."""
        with self._mended():
            return float(self._inside.eigenvalues(maxIter=max_iterations, tol=tolerance)[0][0])

    def trace_samples(self, *, num_probes: int, tolerance: float = 1e-3) -> np.ndarray:
        """The vᵀHv of the probes it used: at most num_probes."""
        with self._mended():
            samples = self._inside.trace(maxIter=num_probes, tol=tolerance)
        return np.array(samples, dtype=np.float64)

    def density(self, *, num_nodes: int, num_probes: int) -> tuple[np.ndarray, np.ndarray]:
        """Ritz values and weights (num_probes, num_nodes) of its Lanczos quadrature."""
        with self._mended():
            nodes, weights = self._inside.density(iter=num_nodes, n_v=num_probes)
        return np.array(nodes, dtype=np.float64), np.array(weights, dtype=np.float64)

    def _leave_out_unused(self, parameters: list[nn.Parameter]) -> None:
        self.model.eval()
        loss = self.criterion(self.model(self.inputs), self.targets)
        reached = torch.autograd.grad(loss, parameters, allow_unused=True)
        for parameter, gradient in zip(parameters, reached, strict=True):
            parameter.requires_grad_(gradient is not None)

    @contextmanager
    def _mended(self) -> Generator[None]:
        """PyHessian's module sees a torch with `eig` and seeded draws; everyone else's is torch."""
        like = next(p for p in self.model.parameters() if p.requires_grad)
        original = peer.torch
        peer.torch = _Torch(like, self._seed)  # ty: ignore[invalid-assignment]  # stands for it
        try:
            with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
                # Its backward(create_graph=True) warns of a leak that __exit__ frees.
                warnings.filterwarnings("ignore", message="Using backward.* with create_graph=True")
                yield
        finally:
            peer.torch = original


class _Torch:
    """`torch` for PyHessian's eyes."""

    def __init__(self, like: Tensor, seed: int) -> None:
        self._like = like
        self._generator = generator(seed)  # of the CPU: its early stop is that of every device

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def randn(self, size: torch.Size) -> Tensor:
        return torch.randn(size, generator=self._generator, dtype=self._like.dtype).to(self._like)

    def randint_like(self, tensor: Tensor, *, high: int, device: str) -> Tensor:  # noqa: ARG002
        drawn = torch.randint(high, tensor.shape, generator=self._generator, dtype=tensor.dtype)
        return drawn.to(tensor)

    def zeros(self, *size: Any) -> Tensor:
        return torch.zeros(*size, dtype=self._like.dtype, device=self._like.device)

    def eig(self, matrix: Tensor, *, eigenvectors: bool) -> tuple[Tensor, Tensor]:  # noqa: ARG002
        values, vectors = torch.linalg.eigh(matrix)
        return torch.stack([values, torch.zeros_like(values)], dim=1), vectors


def _stderr(samples: np.ndarray) -> float:
    return float(samples.std(ddof=1) / len(samples) ** 0.5) if len(samples) > 1 else float("nan")


def _at(risk: EmpiricalRisk, theta: Tensor, seed: int) -> PyHessian:
    """PyHessian on all examples of the risk as one batch, at theta."""
    rows = torch.arange(risk.num_examples, device=risk.device)
    return PyHessian(_RiskModule(risk, theta), _mean, rows, rows, seed=seed)


class _RiskModule(nn.Module):
    """Rows of the data -> what the risk averages there, weight decay included."""

    def __init__(self, risk: EmpiricalRisk, theta: Tensor) -> None:
        super().__init__()
        if risk.layout.space is not None:
            raise LandscapeError(
                "crosscheck asked of a sharded model, which PyHessian cannot differentiate twice; "
                "check a smaller model of the same kind that fits one process."
            )
        self.model = risk.model_at(theta)
        self._losses = RowLosses(risk, self.model, weight_decay=True)

    def forward(self, rows: Tensor) -> Tensor:
        return self._losses(rows)


def _mean(losses: Tensor, _: Tensor) -> Tensor:
    return losses.mean()
