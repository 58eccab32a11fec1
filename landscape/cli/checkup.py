"""`landscape check`: does this installation compute, draw and store what it should?"""

import math
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import torch
    import xarray

PACKAGES = ("torch", "numpy", "scipy", "xarray", "h5netcdf", "matplotlib", "plotly", "pyhessian")


class CheckResult(NamedTuple):
    """One check: its name, whether it holds, and what was seen."""

    name: str
    holds: bool
    seen: str


def checkup() -> Iterator[CheckResult]:
    """Each check in turn; what a check raises is its finding."""
    for name, check in CHECKS.items():
        try:
            holds, seen = check()
        except Exception as error:
            holds, seen = False, f"{type(error).__name__}: {error}"
        yield CheckResult(name, holds, " ".join(seen.split()))


def _versions() -> tuple[bool, str]:
    ours = f"landscape {metadata.version('sam-landscape')}, Python {platform.python_version()}"
    return True, ", ".join([ours, *(f"{name} {metadata.version(name)}" for name in PACKAGES)])


def _devices() -> tuple[bool, str]:
    import torch

    cores = f"CPU ({torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads)"
    if not torch.cuda.is_available():
        return True, f"{cores}; no CUDA device, everything runs on the CPU"
    named = (torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    return True, f"{cores}; {', '.join(named)}"


def _curvature() -> tuple[bool, str]:
    """λ₁ of a network of 41 parameters beside the dense Hessian of torch, in float64."""
    import torch

    x, y, model = _problem()
    ours = _eigenvalues()
    names = [name for name, _ in model.named_parameters()]
    sizes = [p.shape for p in model.parameters()]

    def loss(theta: torch.Tensor) -> torch.Tensor:
        parts = theta.split([s.numel() for s in sizes])
        weights = {n: v.view(s) for n, v, s in zip(names, parts, sizes, strict=True)}
        return torch.nn.functional.cross_entropy(torch.func.functional_call(model, weights, x), y)

    theta = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
    dense = float(torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, theta))[-1])
    value, bound = float(ours.eigenvalue[0]), float(ours.residual_norm[0])
    holds = abs(value - dense) <= max(bound, 1e-9 * abs(dense))
    return holds, f"λ₁ = {value:.12g} ± {bound:.1e}, dense Hessian {dense:.12g}"


def _step() -> tuple[bool, str]:
    """One SAM step beside w − lr ∇L(w + rho g/‖g‖), written by hand (2010.01412, eq. 2)."""
    import torch

    from landscape import sam

    x, y, model = _problem()
    rho, lr = 0.05, 0.1

    def losses(batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")

    weights: list[torch.Tensor] = list(model.parameters())
    start = [p.detach().clone() for p in weights]
    g = torch.autograd.grad(losses((x, y)).mean(), weights)
    norm = math.sqrt(sum(float((part**2).sum()) for part in g))
    with torch.no_grad():
        torch._foreach_add_(weights, torch._foreach_mul(g, rho / norm))
    climbed = torch.autograd.grad(losses((x, y)).mean(), weights)
    by_hand = [w - lr * part for w, part in zip(start, climbed, strict=True)]
    with torch.no_grad():
        torch._foreach_copy_(weights, start)
    sam.SAM(model, torch.optim.SGD(weights, lr=lr), sam.sam(rho=rho)).step(losses, (x, y))
    off = max(float((a - b).detach().abs().max()) for a, b in zip(weights, by_hand, strict=True))
    return off <= 1e-12, f"a SAM step is the one written by hand to {off:.1e}"


def _storage() -> tuple[bool, str]:
    from landscape import results

    top = _eigenvalues()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "result.nc"
        results.save(top, path)
        again = results.load(path)
    return top.identical(again), "a result is read as it was written"


def _figures() -> tuple[bool, str]:
    from landscape.plot import interactive, static

    top = _eigenvalues()
    with tempfile.TemporaryDirectory() as folder:
        pdf = static.save(static.top_eigenvalues(top), Path(folder) / "figure.pdf")
        page = interactive.save(interactive.top_eigenvalues(top), Path(folder) / "figure.html")
        sizes = pdf.stat().st_size, page.stat().st_size
    return min(sizes) > 1000, f"a PDF of {sizes[0] // 1000} kB, a page of {sizes[1] // 1000} kB"


def _workers() -> tuple[bool, str]:
    from landscape.study.pool import run_jobs

    done = run_jobs(_answer, [20, 21], workers=2, threads=1, listen=lambda _: None)
    return [event.value for event in done] == [40, 42], "two worker processes answer"


def _answer(job: int, _report: object) -> int:
    return 2 * job


def _eigenvalues() -> "xarray.Dataset":
    import torch

    from landscape import EmpiricalRisk, measure

    x, y, model = _problem()
    risk = EmpiricalRisk(model, torch.nn.CrossEntropyLoss(), (x, y))
    return measure.top_eigenvalues(risk, risk.theta, k=2, seed=0)


def _problem() -> "tuple[torch.Tensor, torch.Tensor, torch.nn.Module]":
    import torch

    draw = torch.Generator().manual_seed(0)
    x = torch.randn(32, 4, generator=draw, dtype=torch.float64)
    y = torch.randint(3, (32,), generator=draw)
    model = torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))
    model.to(torch.float64)
    with torch.no_grad():
        for weight in model.parameters():
            weight.copy_(torch.randn(weight.shape, generator=draw, dtype=torch.float64) / 2)
    return x, y, model


CHECKS: dict[str, Callable[[], tuple[bool, str]]] = {
    "versions": _versions,
    "devices": _devices,
    "curvature": _curvature,
    "step": _step,
    "storage": _storage,
    "figures": _figures,
    "workers": _workers,
}


def say(findings: Iterator[CheckResult]) -> bool:
    """Print each finding as it comes; whether all hold."""
    every = True
    for finding in findings:
        every &= finding.holds
        print(f"{'ok    ' if finding.holds else 'FAILED'}  {finding.name:<10} {finding.seen}")
        sys.stdout.flush()
    return every
