"""What a pass reads: tensors of the caller, and tensors that an earlier pass left behind."""

import contextlib
import weakref
from collections.abc import Callable, Generator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from landscape.errors import LandscapeError


def address(tensor: Tensor) -> int:
    """Where its memory begins; 0 where it has none of the usual kind."""
    try:
        return tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return 0


def storages(tensors: Mapping[str, Tensor]) -> dict[int, str]:
    """Address of each tensor's memory -> its name."""
    found: dict[int, str] = {}
    for name, tensor in tensors.items():
        found.setdefault(address(tensor), name)
    found.pop(0, None)
    return found


def values(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, in the memory that they have now."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    return {name: tensor.detach() for name, tensor in named.items()}


@contextlib.contextmanager
def _names_on(stack: list[str], model: nn.Module) -> Generator[None]:
    """Within it the names of the modules that are being called are on the stack."""

    def hooks(name: str, module: nn.Module) -> list[Any]:
        def enter(_module: nn.Module, _args: Any) -> None:
            stack.append(name)

        def leave(_module: nn.Module, _args: Any, _output: Any) -> None:
            if name in stack:
                del stack[len(stack) - 1 - stack[::-1].index(name) :]

        return [
            module.register_forward_pre_hook(enter, prepend=True),
            module.register_forward_hook(leave, always_call=True),
        ]

    handles = [handle for name, module in model.named_modules() for handle in hooks(name, module)]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        stack.clear()


class Callers(TorchDispatchMode):
    """Names of the modules that call an operation whose name has `part` in it."""

    def __init__(self, model: nn.Module, part: str) -> None:
        super().__init__()
        self._model, self._part = model, part
        self._stack: list[str] = []
        self.names: list[str] = []

    @contextlib.contextmanager
    def one_pass(self) -> Generator[None]:
        """Within it operations are watched."""
        with _names_on(self._stack, self._model), self:
            yield

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        name = self._stack[-1] if self._stack else None
        if self._part in str(func) and name is not None and name not in self.names:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def _is_running(name: str) -> bool:
    return name.rpartition(".")[2] in ("running_mean", "running_var")


class Reading(TorchDispatchMode):
    """Passes under watch, refused before they read what is not the private copy's.

    foreign: tensors of the caller's own model, by name. A closure (a hook, a lambda, a patched
    forward) keeps them when the model is copied, so that theta would not reach what it computes;
    the graph shows none that are frozen, buffers, or behind a checkpoint.
    Memoized: what one pass computes from theta and another reads, outside of the modules'
    attributes (which are put back). Addresses are compared while their tensors are alive.
    stale: attributes that were part of a graph when the model was given, by name; a forward that
    makes them anew (weight norm) never reads them.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        foreign: Mapping[str, Tensor],
        stale: Mapping[str, Tensor],
        borrowed: bool,
    ) -> None:
        super().__init__()
        self._model, self._borrowed = model, borrowed
        self._foreign, self._kept = storages(foreign), stale
        self._stale: dict[int, str] = {}
        self._own: dict[int, str] = {}
        self._made: dict[int, weakref.ref[Tensor]] = {}
        self._earlier: dict[int, weakref.ref[Tensor]] = {}
        self._of_theta = set[int]()
        self._stack: list[str] = []
        # Output and target, where a broadcast of one against the other would pair every two rows.
        self._apart: tuple[Tensor, Tensor] | None = None
        # Where half precision was made, and running statistics that other modules read.
        self.narrow: dict[str, None] = {}
        self.statistics: dict[str, None] = {}
        self._running: dict[int, str] = {}

    @contextlib.contextmanager
    def one_pass(self, weights: list[nn.Parameter]) -> Generator[None]:
        """Within it everything computed is watched."""
        # A borrowed model has ours only now, and so have buffers that were views of its weights.
        self._own, self._stale = storages(values(self._model)), storages(self._kept)
        self._running = {at: name for at, name in self._own.items() if _is_running(name)}
        self._of_theta = {address(weight) for weight in weights}
        with _names_on(self._stack, self._model), self:
            yield
        alive = {at: ref for at, ref in self._made.items() if ref() is not None}
        self._earlier = {at: ref for at, ref in alive.items() if at in self._of_theta}
        self._made, self._apart = {}, None

    def loss_begins(self, output: Any, target: Any) -> None:
        """From here on the loss is computed, of as many outputs as targets in another shape."""
        if isinstance(output, Tensor) and isinstance(target, Tensor):
            differ = output.shape != target.shape and output.numel() == target.numel()
            self._apart = (output, target) if differ else None

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        operands = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        read = [address(t) for t in operands]
        for at, operand in zip(read, operands, strict=True):
            if at in self._foreign:
                raise self._reads_foreign(self._foreign[at])
            if at in self._stale:
                raise self._reads_stale(self._stale[at])
            if self._is_unregistered(operand, at):
                raise self._reads_unregistered(operand)
            if at in self._earlier and self._earlier[at]() is not None:
                raise self._reads_earlier()
            if at in self._running and not self._in_batchnorm():
                self.statistics[self._running[at]] = None
        self._refuse_broadcast(operands)
        output = func(*args, **(kwargs or {}))
        of_theta = any(at in self._of_theta for at in read)
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor):
                if tensor.dtype in (torch.bfloat16, torch.float16):
                    self.narrow[f"{self._where()}: {str(tensor.dtype)[6:]}"] = None
                at = address(tensor)
                if at not in read:
                    self._of_theta.discard(at)
                    self._earlier.pop(at, None)
                if at and of_theta:
                    self._of_theta.add(at)
                if at and at not in read:
                    self._made[at] = weakref.ref(tensor)
        return output

    def _is_unregistered(self, operand: Tensor, at: int) -> bool:
        """Nothing of theta is in a tensor without elements, which has no memory to be known by."""
        trained = isinstance(operand, nn.Parameter) and operand.requires_grad
        return trained and operand.numel() > 0 and at not in self._own

    def _in_batchnorm(self) -> bool:
        return bool(self._stack) and isinstance(
            self._model.get_submodule(self._stack[-1]), _BatchNorm
        )

    def _where(self) -> str:
        if not self._stack:
            return "The loss (or code around the model)"
        name = self._stack[-1]
        kind = type(self._model.get_submodule(name)).__name__
        return f"Module {name!r} ({kind})" if name else f"{kind}"

    def _refuse_broadcast(self, operands: list[Tensor]) -> None:
        """Every output against every target, as (N, 1) against (N,) gives them."""
        if self._apart is None or len(operands) != 2:
            return
        output, target = self._apart
        if {address(t) for t in operands} != {address(output), address(target)}:
            return
        try:
            shape = torch.broadcast_shapes(*(t.shape for t in operands))
        except RuntimeError:
            return
        if shape.numel() > output.numel():
            raise LandscapeError(
                f"The loss compares outputs of shape {tuple(output.shape)} with targets of shape "
                f"{tuple(target.shape)}: torch broadcasts them to {tuple(shape)}, every output "
                f"against every target. Give both one shape, such as targets "
                f"{tuple(output.shape)}."
            )

    def _reads_foreign(self, tensor: str) -> LandscapeError:
        if self._borrowed:
            return LandscapeError(
                f"{self._where()} reads the memory of your model's {tensor!r} and not the tensor "
                f"itself (a view that was kept?), so theta would not reach it; read the parameter "
                f"through the module in forward."
            )
        return LandscapeError(
            f"{self._where()} reads {tensor!r} of your own model and not of the copy that is "
            f"measured: a hook, a lambda, a patched forward or the loss keeps pointing at the "
            f"model that it was made with, so theta would not reach it. Measure on your model "
            f"itself with EmpiricalRisk(..., borrow=True) (it is put back bit for bit), or write "
            f"it as a method of the module that owns {tensor!r}."
        )

    def _reads_stale(self, attribute: str) -> LandscapeError:
        return LandscapeError(
            f"{self._where()} reads {attribute!r}, a tensor that was computed from the parameters "
            f"before and kept, so theta would not reach it; compute it in forward (or set it to "
            f"None first, if forward then computes it anew)."
        )

    def _reads_unregistered(self, tensor: Tensor) -> LandscapeError:
        return LandscapeError(
            f"{self._where()} reads a trainable nn.Parameter of shape {tuple(tensor.shape)} that "
            f"model.parameters() does not list (one in a plain list, a dict or a closure?), so it "
            f"would be no part of theta. Register it (nn.ParameterList, nn.ParameterDict or an "
            f"attribute of a module), or requires_grad_(False) if it is a constant."
        )

    def _reads_earlier(self) -> LandscapeError:
        return LandscapeError(
            f"{self._where()} reads a tensor that an earlier pass made from the parameters (a "
            f"cache outside of the module's attributes, such as functools.cache), so theta would "
            f"not reach it; compute it anew in every forward."
        )
