"""What is refused, and the module, batch or example that is to blame."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from landscape.errors import LandscapeError
from landscape.risk._data import Batch
from landscape.risk._network import numerics

if TYPE_CHECKING:
    from landscape.risk._empirical import EmpiricalRisk

_ROWS = 32


def run(risk: "EmpiricalRisk") -> bool:
    """Try a few rows: targets, shapes, determinism, independence. True if the model draws numbers."""
    shared = risk._shared
    chunk = shared.examples.chunks[0]
    batch = chunk.rows(0, min(_ROWS, chunk.count)).mapped(lambda t: t.to(risk.device))
    batch = batch.mapped(torch.clone)
    before = torch.get_rng_state()
    first = _losses(risk, batch)
    second = _losses(risk, batch)
    if not torch.equal(first, second) and not first.isnan().any():
        raise LandscapeError(
            f"The loss differs between two passes over the same {batch.count} examples; "
            f"{_noisy_module(risk, batch)} is not deterministic in evaluation mode. Remove its "
            f"randomness."
        )
    _refuse_coupling(risk, batch, first)
    return not torch.equal(before, torch.get_rng_state())


def _losses(risk: "EmpiricalRisk", batch: Batch) -> Tensor:
    shared = risk._shared
    versions = [leaf._version for leaf in batch.leaves()]
    with numerics(risk.device), torch.no_grad(), shared.network.at(risk.theta), risk._bn_scope():
        output = shared.network(batch)
        for chunk in shared.examples.chunks:
            shared.criterion.check_targets(output, chunk.targets, chunk.start)
        losses = shared.criterion(output, batch.targets, batch.count)
    # The layers that follow must not alter the data of later passes.
    if versions != [leaf._version for leaf in batch.leaves()]:
        shared.network.clones_inputs = True
    return losses


def _refuse_coupling(risk: "EmpiricalRisk", batch: Batch, losses: Tensor) -> None:
    """Sums over batches mean something only if an example's loss does not depend on its company."""
    couples = risk.has_batchnorm and risk.bn != "eval"
    if couples or batch.count < 2 or not risk._shared.criterion.per_example:
        return
    alone = _losses(risk, batch.rows(0, 1))
    slack = 1e-8 if risk.dtype == torch.float64 else 1e-3
    if not torch.allclose(alone, losses[:1], rtol=slack, atol=slack, equal_nan=True):
        raise LandscapeError(
            f"The loss of the first example is {float(alone[0]):.6g} alone and "
            f"{float(losses[0]):.6g} among {batch.count}; a layer or the loss mixes examples, so no "
            f"mean over examples exists. Remove the mixing, or declare reduction='mean'."
        )


def _noisy_module(risk: "EmpiricalRisk", batch: Batch) -> str:
    """The first module to finish with equal inputs and unequal outputs in two passes."""
    passes: list[list[tuple[str, Any, Any]]] = []
    shared = risk._shared
    for _ in range(2):
        calls: list[tuple[str, Any, Any]] = []
        handles = [
            module.register_forward_hook(_recorder(calls, name))
            for name, module in shared.network.model.named_modules()
        ]
        try:
            _losses(risk, batch)
        finally:
            for handle in handles:
                handle.remove()
        passes.append(calls)
    for (name, seen, gave), (_, seen2, gave2) in zip(*passes, strict=False):
        if _equal(seen, seen2) and not _equal(gave, gave2):
            kind = type(shared.network.model.get_submodule(name)).__name__
            return f"module {name!r} ({kind})" if name else f"{kind}.forward"
    return f"the loss {shared.criterion.name}"


def _recorder(calls: list[tuple[str, Any, Any]], name: str) -> Callable[..., None]:
    def hook(_module: nn.Module, args: Any, output: Any) -> None:
        calls.append((name, _frozen(args), _frozen(output)))

    return hook


def _frozen(tree: Any) -> list[Tensor]:
    leaves = pytree.tree_leaves(getattr(tree, "logits", tree))
    return [leaf.detach().clone() for leaf in leaves if isinstance(leaf, Tensor)]


def _equal(first: list[Tensor], second: list[Tensor]) -> bool:
    return len(first) == len(second) and all(
        a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True)
    )


def non_finite_error(
    risk: "EmpiricalRisk", theta: Tensor, loss: Tensor, what: str
) -> LandscapeError:
    """Say where the first NaN or infinity is: theta, an example, or only the derivative."""
    bad_theta = (~torch.isfinite(theta)).nonzero()
    if len(bad_theta):
        at = int(bad_theta[0])
        name = next(info.name for info in risk.layout.tensors if at < info.stop)
        return LandscapeError(
            f"{what} asked at a theta with {len(bad_theta)} values that are not finite, the first "
            f"in {name!r}; measure at a finite theta."
        )
    if bool(torch.isfinite(loss)):
        return LandscapeError(
            f"The loss at theta is {float(loss):.6g}, but its {what} is not finite; look for a "
            f"square root, norm or logarithm at 0, or use dtype=torch.float64."
        )
    return LandscapeError(
        f"{what} asked where the loss is {float(loss)}: {_first_bad(risk, theta)}. Lower the "
        f"distance from the trained weights, mend the data, or use dtype=torch.float64."
    )


def _first_bad(risk: "EmpiricalRisk", theta: Tensor) -> str:
    bad: list[str] = []

    def visit(batch: Batch, _output: Any, losses: Tensor) -> None:
        rows = (~torch.isfinite(losses)).reshape(-1).nonzero()
        if len(rows) and not bad:
            row, value = int(rows[0]), float(losses.reshape(-1)[int(rows[0])])
            single = losses.ndim > 0
            place = f"example {batch.start + row}" if single else f"examples from {batch.start}"
            bad.append(f"first {value} at {place} of {risk.num_examples}")

    risk._visit(theta, visit)
    return bad[0] if bad else "each example is finite, their sum is not"


def second_derivative_error(
    risk: "EmpiricalRisk", theta: Tensor, error: RuntimeError
) -> RuntimeError:
    """LandscapeError for an operation without second derivative; other errors pass unchanged."""
    if isinstance(error, torch.OutOfMemoryError):
        return LandscapeError(
            f"A Hessian product ran out of memory ({error}); lower batch_size or memory."
        )
    text = str(error)
    signs = ("is not implemented", "twice", "does not support", "double backward", "create_graph")
    blamed = [] if isinstance(error, LandscapeError) else _not_twice(risk, theta)
    if isinstance(error, LandscapeError) or not (blamed or any(sign in text for sign in signs)):
        return error
    names = f"{', '.join(blamed)} cannot" if blamed else "An operation of the model or loss cannot"
    return LandscapeError(
        f"{names} be differentiated twice ({text.splitlines()[0]}); replace it by torch operations, "
        f"or use measurements without Hessian products (losses, slices, sharpness)."
    )


def _not_twice(risk: "EmpiricalRisk", theta: Tensor) -> list[str]:
    """Leaf modules whose own second derivative fails on the inputs they get."""
    shared, calls = risk._shared, {}
    model = shared.network.model
    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any) -> None:
            calls.setdefault(name, args)

        return hook

    handles = [module.register_forward_pre_hook(keep(name)) for name, module in leaves]
    batch = shared.examples.chunks[0].rows(0, min(2, shared.examples.chunks[0].count))
    batch = batch.mapped(lambda leaf: leaf.to(risk.device))
    try:
        with numerics(risk.device), torch.no_grad(), shared.network.at(theta), risk._bn_scope():
            shared.network(batch)
    finally:
        for handle in handles:
            handle.remove()
    with numerics(risk.device, second=True), torch.enable_grad(), risk._bn_scope():
        return [
            f"module {name!r} ({type(module).__name__})"
            for name, module in leaves
            if name in calls and _fails_twice(module, calls[name])
        ]


def _fails_twice(module: nn.Module, args: tuple[Any, ...]) -> bool:
    inputs = [a.detach().clone().requires_grad_(a.is_floating_point()) if isinstance(a, Tensor)
              else a for a in args]  # fmt: skip
    wanted = [a for a in inputs if isinstance(a, Tensor) and a.requires_grad]
    try:
        outputs = [o for o in pytree.tree_leaves(module(*inputs)) if isinstance(o, Tensor)]
        loss = sum(o.square().sum() for o in outputs if o.requires_grad)
        if not wanted or not isinstance(loss, Tensor):
            return False
        grads = torch.autograd.grad(loss, wanted, create_graph=True, materialize_grads=True)
        total = sum(g.square().sum() for g in grads)
        if total.requires_grad:
            torch.autograd.grad(total, wanted, materialize_grads=True)
    except RuntimeError:
        return True
    return False
