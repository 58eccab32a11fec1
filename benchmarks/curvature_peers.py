"""Hessians by other packages, behind one interface; none of their code is here.

Each peer gets all examples as one batch, which is its best case, and torch's attention kernel that
has second derivatives.
"""

import contextlib
import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

PACKAGES = ("pyhessian", "hessian-eigenthings", "curvlinops-for-pytorch", "scipy")


class Counter:
    """How often a function was called."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function, self.calls = function, 0

    def __call__(self, *args: Any) -> Any:
        self.calls += 1
        return self.function(*args)


def stub_torchvision() -> None:
    """A dependency of curvlinops imports torchvision, which has no build for a CPU-only torch."""
    for name in ("torchvision", "torchvision.models"):
        if name not in sys.modules:
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            sys.modules[name] = module


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(model(x), y)


class PyHessian:
    """PyHessian 0.1 with the graph of one batch kept; largest |eigenvalue| by power iteration.

    Its density needs torch.eig, which torch no longer has.
    """

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.module = importlib.import_module("pyhessian.hessian")
        self.hessian = self.module.hessian(model, nn.CrossEntropyLoss(), data=(x, y), cuda=False)
        self.shapes = [p.shape for p in self.hessian.params]

    def close(self) -> None:
        """Break the cycle between weights and their graph."""
        for p in self.hessian.params:
            p.grad = None

    def product(self, v: Tensor) -> Tensor:
        parts = v.split([shape.numel() for shape in self.shapes])
        rows = [part.view(shape) for part, shape in zip(parts, self.shapes, strict=True)]
        found = self.module.hessian_vector_product(self.hessian.gradsH, self.hessian.params, rows)
        return torch.cat([row.reshape(-1) for row in found])

    def top(self, k: int, *, tol: float, most: int = 1000) -> tuple[Tensor, Tensor, int]:
        counter = Counter(self.module.hessian_vector_product)
        self.module.hessian_vector_product = counter
        try:
            values, vectors = self.hessian.eigenvalues(maxIter=most, tol=tol, top_n=k)
        finally:
            self.module.hessian_vector_product = counter.function
        flat = torch.stack([torch.cat([p.reshape(-1) for p in v]).detach() for v in vectors])
        return torch.tensor(values, dtype=torch.float64), flat, counter.calls

    def trace(self, num: int) -> list[float]:
        with contextlib.redirect_stdout(None):
            return self.hessian.trace(maxIter=num, tol=0.0)


class Eigenthings:
    """hessian-eigenthings: a product rebuilt each time, Lanczos of a fixed number of steps."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        self.package = importlib.import_module("hessian_eigenthings")
        loss = self.package.supervised_loss(nn.CrossEntropyLoss())
        self.operator = self.package.HessianOperator(model, [(x, y)], loss)

    def close(self) -> None:
        pass

    def product(self, v: Tensor) -> Tensor:
        return self.operator.matvec(v)

    def top(self, k: int, *, steps: int) -> tuple[Tensor, Tensor, int]:
        found = self.package.lanczos(self.operator, k=k, max_iter=steps, which="LA", seed=0)
        return found.eigenvalues.double(), found.eigenvectors, steps

    def trace(self, num: int) -> Any:
        return self.package.hutchinson(self.operator, num_samples=num, seed=0)

    def density(self, nodes: int) -> Any:
        algorithms = importlib.import_module("hessian_eigenthings.algorithms")
        return algorithms.spectral_density(
            self.operator, num_runs=1, lanczos_steps=nodes, num_grid_points=1000, seed=0
        )


class Curvlinops:
    """curvlinops: a linear operator whose eigenvalues SciPy's ARPACK finds."""

    def __init__(self, model: nn.Module, x: Tensor, y: Tensor) -> None:
        stub_torchvision()
        package = importlib.import_module("curvlinops")
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.operator = package.HessianLinearOperator(
            model, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
        )

    def close(self) -> None:
        pass

    def product(self, v: Tensor) -> Tensor:
        return self.operator @ v

    def top(self, k: int, *, tol: float) -> tuple[Tensor, Tensor, int]:
        linalg = importlib.import_module("scipy.sparse.linalg")
        inner = self.operator.to_scipy()
        counter = Counter(inner.matvec)
        counted = linalg.LinearOperator(inner.shape, matvec=counter, dtype="float32")
        values, vectors = linalg.eigsh(counted, k=k, which="LA", tol=tol)
        order = values.argsort()[::-1]
        rows = torch.from_numpy(vectors.T[order].copy())
        return torch.from_numpy(values[order].copy()).double(), rows, counter.calls

    def trace(self, num: int) -> Any:
        trace = importlib.import_module("curvlinops").hutchinson_trace
        return trace(self.operator, num_matvecs=num)

    def density(self, nodes: int) -> Any:
        package = importlib.import_module("curvlinops")
        return package.lanczos_approximate_spectrum(self.operator, nodes)


PEERS = {"pyhessian": PyHessian, "hessian-eigenthings": Eigenthings, "curvlinops": Curvlinops}
