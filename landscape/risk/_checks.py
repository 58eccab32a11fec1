"""What is refused, and the module, batch or example that is to blame."""

import contextlib
import dataclasses
import re
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from landscape import devices, vectors
from landscape.errors import LandscapeError
from landscape.risk import _fitting
from landscape.risk._criterion import logits_of
from landscape.risk._data import Batch
from landscape.risk._engine import Engine
from landscape.risk._second_derivatives import has_error_node
from landscape.risk._tracing import Callers, Reading
from landscape.risk._units import units_or_refusal

_ROWS, _FEW, _MANY = 32, 2, 64
# What an example's loss may change by in other company, or with a graph.
_SLACK = {torch.float64: 1e-8, torch.float32: 1e-3}
# How torch words that a derivative, or a hook on one, was asked where no graph is made.
_NO_GRAPH = "does not require grad"
_NO_GRAPHS = (_NO_GRAPH, "doesn't require gradient")
# How torch words that what is differentiated is not part of the graph.
_INNER = ("not have been used in the graph", _NO_GRAPH)


def run(engine: Engine, foreign: Mapping[str, Tensor]) -> Engine:
    """Try a few rows, and see what the model does with them; see `_run`."""
    with engine.network.finding_casts():
        return _run(engine, foreign)


def _run(engine: Engine, foreign: Mapping[str, Tensor]) -> Engine:
    """Try a few rows: what is read, targets, shapes, determinism.

    foreign: the caller's own parameters and buffers. Where rows by themselves fail and the batches
    as given do not, the engine that is returned takes these as they are.
    """
    network = engine.network
    before = devices.rng_state(engine.device)
    reading = Reading(
        network.model, foreign=foreign, stale=network.stale, borrowed=network.borrowed
    )
    engine, batch, first = _first_pass(engine, reading)
    _refuse_rewritten(engine)
    second = _losses(engine, batch)
    slack = 1e-12 if engine.dtype == torch.float64 else 1e-6
    if not torch.allclose(first, second, rtol=slack, atol=slack, equal_nan=True):
        raise LandscapeError(
            f"The loss differs between two passes over the same {batch.count} examples; "
            f"{_noisy_module(engine, batch)} is not deterministic in evaluation mode. Remove its "
            f"randomness, or what it keeps from one pass to the next."
        )
    engine.notes.narrow = list(reading.narrow)
    network.batchnorm.elsewhere = list(reading.statistics)
    network.batchnorm.refuse_mode(engine.bn)
    engine.notes.without_influence = _without_influence(engine, batch, reading)
    network.settle(network.habits)
    engine.notes.uses_rng = not devices.same_state(before, devices.rng_state(engine.device))
    return engine


def _first_pass(engine: Engine, reading: Reading) -> tuple[Engine, Batch, Tensor]:
    """Of a few rows, or where the model takes these only in company, of a batch as given."""
    batch = engine.examples.on_device(engine.examples.few(_ROWS))
    try:
        first = _first_losses(engine, batch, reading)
        if engine.examples.apart:
            _losses(engine, batch.rows(0, min(_FEW, batch.count)))
        return engine, batch, first
    except LandscapeError:
        raise
    except Exception as error:
        given = dataclasses.replace(engine, examples=engine.examples.as_units())
        whole = engine.examples.on_device(given.examples.few(_ROWS))
        if not engine.examples.apart:
            raise misfit(engine, batch, error) from error
        try:
            first = _first_losses(given, whole, reading)
        except Exception:
            raise misfit(engine, batch, error) from error
        seen = f"fail by themselves ({str(error).splitlines()[0]})"
        units = units_or_refusal(engine, seen)
        return dataclasses.replace(engine, examples=units), whole, first


def _first_losses(engine: Engine, batch: Batch, reading: Reading) -> Tensor:
    """Watched; where it takes derivatives itself, with a graph."""
    habits = engine.network.habits
    while True:
        try:
            with engine.evaluating(engine.network.theta):
                with reading.one_pass(engine.network.weights):
                    losses = _losses(engine, batch, reading)
                engine.criterion.memory.watch()
                _refuse_frozen(engine)
                engine.network.watch()
            return losses
        except LandscapeError:
            raise
        except Exception as error:
            if habits.differentiates or not any(said in str(error) for said in _NO_GRAPHS):
                raise
            habits.differentiates = True


def _refuse_frozen(engine: Engine) -> None:
    """A forward that freezes weights leaves theta without what it was made of."""
    frozen = [
        name
        for name, weight in zip(engine.network.layout.names, engine.network.weights, strict=True)
        if not weight.requires_grad
    ]
    if frozen:
        raise LandscapeError(
            f"A forward pass freezes {', '.join(frozen[:5])} (requires_grad_(False)); freeze what "
            f"is no part of theta before the model is given, and not in forward."
        )


def _refuse_rewritten(engine: Engine) -> None:
    """A forward that sets its own weights makes the loss no function of theta."""
    names = engine.network.rewritten()
    if names:
        raise LandscapeError(
            f"A forward pass in evaluation mode changes {', '.join(names[:5])}"
            f"{' and others' if len(names) > 5 else ''}, so the loss is no function of theta. "
            f"Project, clip or initialize the weights outside of forward: run the model once if "
            f"its first pass sets them, else take the change out of it."
        )


def _without_influence(engine: Engine, batch: Batch, reading: Reading) -> list[str] | None:
    """Trainable tensors that a graph of the loss does not hold; None where there is no graph.

    Of two rows, which are watched, and where these leave some out, of more.
    """
    network = engine.network
    few = batch.rows(0, min(_FEW, batch.count)) if engine.examples.apart else batch
    few, names = few.mapped(torch.clone), list(network.layout.names)
    try:
        value = float(_losses(engine, few).sum())
    except LandscapeError:
        raise
    except Exception as error:
        raise misfit(engine, few, error) from error
    try:
        with engine.differentiating(1, network.theta):
            with reading.one_pass(network.weights):
                found, names = _left_out(engine, few, names)
            network.watch()
            # A model may compute something else where no graph is made.
            slack = _SLACK[engine.dtype] * abs(value)
            network.habits.differentiates |= abs(found - value) > slack
            rows = 0
            for more in engine.examples.cut(_FEW) if names else ():
                _, names = _left_out(engine, engine.examples.on_device(more), names)
                rows += more.count
                if rows >= _MANY or not names:
                    break
    except (LandscapeError, Warning):  # a warning that the caller made an error is no answer
        raise
    except Exception as error:  # what fails is said again where a derivative is asked
        engine.notes.influence_unknown = str(error).splitlines()[0] if str(error) else "no reason"
        return None
    return names


def _left_out(engine: Engine, rows: Batch, names: list[str]) -> tuple[float, list[str]]:
    """Σ of losses, and which of these tensors its graph leaves out."""
    network = engine.network
    loss = _returned(engine, rows).sum()
    if not loss.requires_grad:
        return float(loss), names
    grads = torch.autograd.grad(loss, network.weights, allow_unused=True)
    known = dict(zip(network.layout.names, grads, strict=True))
    return float(loss.detach()), [name for name in names if known[name] is None]


def misfit(engine: Engine, batch: Batch, error: Exception) -> LandscapeError:
    shapes = [f"{str(leaf.dtype)[6:]}{tuple(leaf.shape)}" for leaf in batch.leaves()]
    if any(sign in str(error) for sign in _INNER):
        return LandscapeError(
            f"{engine.criterion.name} takes a derivative with respect to a tensor that the model "
            f"was not given ({str(error).splitlines()[0]}); the data are copied, so write the loss "
            f"as a function of (model, batch) that calls requires_grad_() on its inputs."
        )
    reason = _first_line(error)
    return LandscapeError(
        f"{type(engine.network.model).__name__} with {engine.criterion.name} fails on the first "
        f"{batch.count} examples ({', '.join(shapes)}): {reason}. Give the data in the shape and "
        f"type that the model was trained on; a model that was exported or traced takes one number "
        f"of rows only, so give the Python module itself."
    )


def _losses(engine: Engine, batch: Batch, reading: Reading | None = None) -> Tensor:
    batch = batch.mapped(torch.clone)
    versions = [leaf._version for leaf in batch.leaves()]
    with engine.evaluating(engine.network.theta):
        losses = _returned(engine, batch, reading)
    # A first layer that works in place would alter the data of all later passes.
    if versions != [leaf._version for leaf in batch.leaves()]:
        engine.network.habits.clones_inputs = True
    return losses.detach()


def _returned(engine: Engine, batch: Batch, reading: Reading | None = None) -> Tensor:
    """What the loss returns; under watch, all targets are checked before it indexes with them."""

    def look(output: Any) -> None:
        if reading is None:
            return
        for chunk in engine.examples.chunks:
            engine.criterion.check_targets(output, chunk.targets, chunk.start)
        reading.loss_begins(logits_of(output), batch.targets)

    model, batch = engine.network.ready(batch)
    return engine.criterion.of_rows(model, batch, look)[1]


def _noisy_module(engine: Engine, batch: Batch) -> str:
    """The first module to finish with equal inputs and unequal outputs in two passes."""
    passes: list[list[tuple[str, Any, Any]]] = []
    for _ in range(2):
        calls: list[tuple[str, Any, Any]] = []
        # A borrowed model has hooks of ours only while it is evaluated.
        with engine.evaluating(engine.network.theta):
            handles = [
                module.register_forward_hook(_recorder(calls, name))
                for name, module in engine.network.model.named_modules()
            ]
            try:
                _losses(engine, batch)
            finally:
                for handle in handles:
                    handle.remove()
        passes.append(calls)
    for (name, seen, gave), (_, seen2, gave2) in zip(*passes, strict=False):
        if _equal(seen, seen2) and not _equal(gave, gave2):
            kind = type(engine.network.model.get_submodule(name)).__name__
            return f"module {name!r} ({kind})" if name else f"{kind}.forward"
    return f"the loss {engine.criterion.name}"


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


def refuse_non_finite(
    engine: Engine, theta: Tensor, loss: Tensor, value: Tensor, what: str
) -> None:
    """Refuse what is not finite, and say where that begins."""
    if not bool(torch.isfinite(loss) & vectors.is_finite(value)):
        raise _non_finite_error(engine, theta, loss, what)


def _non_finite_error(engine: Engine, theta: Tensor, loss: Tensor, what: str) -> LandscapeError:
    """Say where the first NaN or infinity is: theta, an example, or only the derivative."""
    bad_theta = (~torch.isfinite(theta)).nonzero()
    if len(bad_theta):
        at = int(bad_theta[0])
        name = next(info.name for info in engine.network.layout.tensors if at < info.stop)
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
        f"{what} asked where the loss is {float(loss)}: {_first_bad(engine, theta)}. Lower the "
        f"distance from the trained weights, mend the data, or use dtype=torch.float64."
    )


def _first_bad(engine: Engine, theta: Tensor) -> str:
    bad: list[str] = []

    def visit(batch: Batch, _output: Any, losses: Tensor) -> None:
        rows = (~torch.isfinite(losses)).reshape(-1).nonzero()
        if len(rows) and not bad:
            row, value = int(rows[0]), float(losses.reshape(-1)[int(rows[0])])
            single = losses.ndim > 0
            place = f"example {batch.start + row}" if single else f"examples from {batch.start}"
            bad.append(f"first {value} at {place} of {engine.examples.num_examples}")

    _fitting.visit(engine, theta, visit)
    return bad[0] if bad else "each example is finite, their sum is not"


@contextlib.contextmanager
def explaining(engine: Engine, theta: Tensor, order: int = 2) -> Generator[None]:
    """Say which module has no derivative, or memory, where that is what fails within."""
    try:
        with engine.naming_memory():
            yield
    except (LandscapeError, Warning):
        raise
    except Exception as error:
        if order == 1:
            raise LandscapeError(
                f"The model or loss cannot be differentiated ({_first_line(error)}); use "
                f"measurements of losses alone (slices, planes, outcomes)."
            ) from error
        raise _second_derivative_error(engine, theta, error) from error


def _second_derivative_error(engine: Engine, theta: Tensor, error: Exception) -> LandscapeError:
    """For an operation without second derivative, and whatever else fails there."""
    blamed = _not_twice(engine, theta) or _callers(engine, theta, str(error))
    names = f"{', '.join(blamed)} cannot" if blamed else "An operation of the model or loss cannot"
    return LandscapeError(
        f"{names} be differentiated twice ({_first_line(error)}); replace it by torch "
        f"operations, or use measurements without Hessian products (losses, slices, sharpness)."
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _callers(engine: Engine, theta: Tensor, text: str) -> list[str]:
    """Modules that call the operation whose backward the error names."""
    named = re.search(r"'(?:aten::)?_*(\w+?)_backward", text)
    if not named:
        return []
    model = engine.network.model
    callers = Callers(model, named.group(1))
    few = engine.examples.on_device(engine.examples.few(_FEW))
    with engine.evaluating(theta), callers.one_pass():
        engine.outcome(few)
    return [
        f"module {name!r} ({kind})" if name else f"{kind}.forward"
        for name in callers.names
        for kind in [type(model.get_submodule(name)).__name__]
    ]


def _not_twice(engine: Engine, theta: Tensor) -> list[str]:
    """Leaf modules whose own second derivative fails on the inputs they get."""
    calls: dict[str, tuple[Any, ...]] = {}
    model = engine.network.model
    leaves = [(n, m) for n, m in model.named_modules() if not any(m.children())]

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any) -> None:
            calls.setdefault(name, args)

        return hook

    batch = engine.examples.on_device(engine.examples.few(2))
    with engine.evaluating(theta):
        handles = [module.register_forward_pre_hook(keep(name)) for name, module in leaves]
        try:
            engine.outcome(batch)
        finally:
            for handle in handles:
                handle.remove()
    with engine.differentiating(2, theta):
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
        if isinstance(total, Tensor) and total.requires_grad:
            if has_error_node([total]):
                return True
            torch.autograd.grad(total, wanted, materialize_grads=True)
    except RuntimeError:
        return True
    return False
