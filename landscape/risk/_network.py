"""A private copy of a model, or the caller's own one on loan, evaluated at any theta."""

import contextlib
import functools
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import checkpoint

from landscape import devices
from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.risk._batchnorm import BatchNormControl
from landscape.risk._copying import copied, real_or_complex, stale_tensors
from landscape.risk._data import Batch
from landscape.risk._exact import make_exact
from landscape.risk._loan import Loan
from landscape.risk._promoting import Promoting
from landscape.risk._second_derivatives import TwiceControl, release
from landscape.risk._sharded import ShardedWeights, is_sharded, resharded, unsharded
from landscape.risk._sparse import equal
from landscape.risk._state import Place, State
from landscape.sharding import ShardedVector, Space, own


@dataclass(frozen=True)
class Moved:
    """The point `start` + Σ h v, added up where the weights are and nowhere else."""

    start: Tensor
    steps: tuple[tuple[Tensor, float], ...]


@dataclass
class Habits:
    """What forward passes of a model were seen to do."""

    # A first layer works in place, which would eat the data.
    clones_inputs: bool = False
    # Derivatives are taken inside of the model or the loss (physics-informed networks).
    differentiates: bool = False
    # Attributes and buffers that a pass writes; put back before every pass.
    volatile: set[Place] = field(default_factory=set)


class Network:
    """The model in evaluation mode, its weights written at will; nothing of it reaches the caller.

    A copy, whose parameters are written in place. borrow: the caller's own modules, which within
    `at` read tensors and have forwards of ours, and outside of it are as they were.
    Of a sharded model the parameters are what lies in this process, and so are `pieces`; theta is a
    vector of `space`, which is None of any other model.
    ours: the model is a copy that nobody else holds.
    given: the model's weights (P,) in any dtype, as they are known already; they are never written.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        device: torch.device,
        dtype: torch.dtype,
        borrow: bool = False,
        ours: bool = False,
        given: Tensor | None = None,
    ) -> None:
        self.space: Space | None = None
        self._gathering: ShardedWeights | None = None
        if is_sharded(model):
            if borrow:
                raise LandscapeError(
                    "borrow=True asked of a sharded model, whose own forward gathers its weights "
                    "by hooks; leave borrow out: the risk's copy gathers them itself."
                )
            self.model, self.layout, self._gathering = unsharded(model)
            self.space, self.stale = self.layout.space, {}
        else:
            if ours:
                self.model, self.stale = model, {}
            else:
                self.model, self.stale = (model, stale_tensors(model)) if borrow else copied(model)
            self.layout = ParamLayout.of(self.model)
        self._loan = Loan(model, device=device, dtype=dtype) if borrow else None
        if self._loan is None:
            self.model._apply(lambda t: t.to(device=device, dtype=real_or_complex(t, dtype)))
            self._dress()
            self.given = self._flat() if given is None else given
        else:
            with self._loan.first_use():
                self._dress()
                self.given = self._flat() if given is None else given
        self._dtype, self.habits = dtype, Habits()
        # Whether casts to float32 follow float64 weights; found out by a few rows.
        self.promotes = False
        self.recurrent = any(isinstance(m, nn.RNNBase) for m in self.model.modules())

    def _dress(self) -> None:
        """Everything that differs from the model as it was given."""
        self.model.eval()
        named = dict(self.model.named_parameters())
        self.weights = [named[name] for name in self.layout.names]
        trainable = set(map(id, self.weights))
        for parameter in named.values():
            parameter.requires_grad_(id(parameter) in trainable)
        # The same memory, with version counters of its own: a graph that is kept stays valid as
        # long as its theta is written before its backward passes.
        self._memory = [weight.data.as_subclass(Tensor) for weight in self.weights]
        make_exact(self.model)
        self.twice = TwiceControl(self.model)
        self.batchnorm = BatchNormControl(self.model, self.twice.takes)
        self._state = State(self.model)

    def _flat(self) -> Tensor:
        flat = torch.cat([w.detach().as_subclass(Tensor).reshape(-1) for w in self.weights])
        return flat if self.space is None else ShardedVector(flat, self.space)

    @property
    def theta(self) -> Tensor:
        """The model's own weights, flat (P,), not to be written."""
        return self.given.to(real_or_complex(self.given, self._dtype))

    @property
    def tied(self) -> bool:
        """Whether a trainable tensor has several places in the model."""
        places = Counter(
            id(tensor)
            for module in self.model.modules()
            for tensor in module._parameters.values()
            if tensor is not None
        )
        return any(places[id(weight)] > 1 for weight in self.weights)

    def put(self, theta: Tensor | Moved) -> None:
        """Write theta into the parameters, whatever reads them and however."""
        start, steps = (theta.start, theta.steps) if isinstance(theta, Moved) else (theta, ())
        with torch.no_grad():
            torch._foreach_copy_(self._memory, self.pieces(start))
            for v, h in steps:
                for weight, piece in zip(self._memory, self.pieces(v), strict=True):
                    # Both of one precision: torch adds mixed ones four times slower.
                    weight.add_(piece.to(weight.dtype), alpha=h)

    @contextlib.contextmanager
    def at(self, theta: Tensor | Moved) -> Generator[None]:
        """The parameters have the values of theta within."""
        with self._loan or contextlib.nullcontext():
            self.put(theta)
            yield

    @contextlib.contextmanager
    def finding_casts(self) -> Generator[None]:
        """Within it casts to float32 follow, and afterwards if there were any."""
        self.promotes, self._found = self._dtype == torch.float64, False
        yield
        self.promotes = self._found

    @contextlib.contextmanager
    def promoting(self) -> Generator[None]:
        """Within it casts to float32 follow float64 weights, where the model makes any."""
        if not self.promotes:
            yield
            return
        with Promoting() as casts:
            yield
        self._found |= casts.changed

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector (P,), one per weight."""
        if self.space is None:
            return list(self.layout.unflatten(vector).values())
        parts = zip(self.space.split(own(vector)), self.space.pieces, strict=True)
        return [part.view(piece.here) for part, piece in parts]

    def graphs(self) -> contextlib.AbstractContextManager[None]:
        """Within it graphs hold no gathered weights."""
        return contextlib.nullcontext() if self._gathering is None else self._gathering.frugal()

    def packed(self, tensor: Tensor) -> Any:
        """What a graph holds of a tensor that autograd saves; the tensor but for gathered ones."""
        return tensor if self._gathering is None else self._gathering.packed(tensor)

    def unpacked(self, held: Any) -> Tensor:
        """The tensor again."""
        return held if self._gathering is None else self._gathering.unpacked(held)

    def agreed(self, number: float) -> float:
        """The first process's number, where all of them have to act alike."""
        if self.space is None:
            return number
        told = torch.tensor(number, dtype=torch.float64, device=self.given.device)
        return float(self.space.agreed(told))

    @contextlib.contextmanager
    def cotangents(self, vector: Tensor) -> Generator[list[Tensor]]:
        """The pieces as tensors to be pulled back: complex views begin at even places.

        They are the vector's own memory, which backward functions of the caller's must not write.
        """
        here = own(vector).data  # versions of its own: what lies beside it may be written
        version = here._version
        yield [p.clone() if p.storage_offset() % 2 else p for p in self.pieces(here)]
        if here._version != version:
            raise LandscapeError(
                "A backward function of the model or the loss wrote into the gradient that it was "
                "given, which is the vector of the product; let it return a new tensor "
                "(`return -gradient` in place of `gradient.neg_()`)."
            )

    def pull_back(
        self,
        total: Tensor,
        outputs: Sequence[Tensor] | Sequence[GradientEdge],
        cotangents: Sequence[Tensor] | None = None,
        *,
        keep: bool = False,
    ) -> None:
        """Add Σ (∂output/∂weights)ᵀ cotangent to total (P,), in place; keep: the graph.

        Autograd adds each weight's part where it belongs: fresh memory for all parts would be one
        more copy of the weights, and takes longer to get than the sum. But hooks may hang on what
        a caller's own parameters accumulate.
        """
        if self.borrowed:
            parts = torch.autograd.grad(
                outputs, self.weights, cotangents, retain_graph=keep, allow_unused=True
            )
            self.add(total, parts)
            return
        for weight, piece in zip(self.weights, self.pieces(total), strict=True):
            weight.grad = piece
        try:
            torch.autograd.backward(outputs, cotangents, retain_graph=keep, inputs=self.weights)
        finally:
            for weight in self.weights:
                weight.grad = None

    def visit_pulled(
        self,
        visit: Callable[[int, Tensor], None],
        outputs: Sequence[Tensor] | Sequence[GradientEdge],
        cotangents: Sequence[Tensor],
        *,
        keep: bool = False,
    ) -> None:
        """visit(i, (∂output/∂weight_i)ᵀ cotangent) of each weight, none of which is kept."""
        if self.borrowed:
            parts = torch.autograd.grad(
                outputs, self.weights, cotangents, retain_graph=keep, allow_unused=True
            )
            for i, part in enumerate(parts):
                if part is not None:
                    visit(i, part)
            return

        def take(i: int, weight: Tensor) -> None:
            part, weight.grad = weight.grad, None
            if part is not None:
                visit(i, part)

        with contextlib.ExitStack() as hooks:
            for i, weight in enumerate(self.weights):
                hook = weight.register_post_accumulate_grad_hook(functools.partial(take, i))
                hooks.callback(hook.remove)
            torch.autograd.backward(outputs, cotangents, retain_graph=keep, inputs=self.weights)

    def add(self, total: Tensor, parts: Sequence[Tensor | None], *, alpha: float = 1.0) -> None:
        """Add alpha times what belongs to each weight to total (P,), in place; None is zero."""
        pairs = [(piece, part) for piece, part in zip(self.pieces(total), parts, strict=True)
                 if part is not None]  # fmt: skip
        if pairs:
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)), alpha=alpha)

    @property
    def borrowed(self) -> bool:
        """Whether the modules are the caller's."""
        return self._loan is not None

    def buffers(self) -> dict[str, Tensor]:
        """Copies of the buffers."""
        with self.at(self.theta):
            self.restore()
            return {name: buffer.clone() for name, buffer in self.model.named_buffers()}

    def in_dtype(self, dtype: torch.dtype) -> "Network":
        """A network of its own with the same weights and buffers in another dtype."""
        device = self.given.device
        if self.space is not None:
            self.put(self.theta)
            self.restore()
            other = Network(self.model, device=device, dtype=dtype)
        elif self._loan is None:
            model = self.released(self.given)
            other = Network(model, device=device, dtype=dtype, ours=True, given=self.given)
        else:
            with self.at(self.theta):
                self.restore()
                other = Network(
                    self.model, device=device, dtype=dtype, borrow=True, given=self.given
                )
        devices.trim(8 * self.layout.num_parameters)
        other.settle(self.habits)
        other.batchnorm.elsewhere = self.batchnorm.elsewhere
        return other

    def watch(self) -> None:
        """Take note of what passes have written since the network was made."""
        self.habits.volatile |= self._state.changed()

    def settle(self, habits: Habits) -> None:
        """Nothing else will be found out about the model."""
        self.habits = habits
        self._state.forget_values(but=habits.volatile)

    def rewritten(self) -> list[str]:
        """ShardedWeights that a pass at theta has left with other values."""
        pairs = zip(self.layout.names, self._memory, self.pieces(self.theta), strict=True)
        return [name for name, found, put in pairs if not equal(found, put)]

    def restore(self) -> None:
        """Put back what passes write."""
        self._state.restore(self.habits.volatile)

    def released(self, theta: Tensor) -> nn.Module:
        """An ordinary module of its own with weights theta, in evaluation mode.

        Of a sharded model with DTensors as parameters, gathered where they are read.
        """
        if self._loan is not None:
            raise LandscapeError(
                f"A module of its own asked of {type(self.model).__name__}, which was given with "
                f"borrow=True because it cannot be copied; measurements that change the model "
                f"(features, robustness, counterfactuals, crosscheck) need one that can."
            )
        self.put(theta)
        self.restore()
        return release(copied(self.model)[0] if self.space is None else resharded(self.model))

    def ready(self, batch: Batch) -> tuple[nn.Module, Batch]:
        """The model, and the batch as it may be given to it."""
        self.batchnorm.begin()
        if self.habits.volatile:
            self.restore()
        return self.model, batch.mapped(torch.clone) if self.habits.clones_inputs else batch


@contextlib.contextmanager
def numerics(
    device: torch.device, dtype: torch.dtype, *, second: bool = False, recurrent: bool = False
) -> Generator[None]:
    """Full precision, no autocast, no fused inference paths; kernels that differentiate twice.

    What the model makes itself (an LSTM's first state) has the dtype of the weights by default.
    """
    with contextlib.ExitStack() as stack:
        if torch.get_default_dtype() != dtype:
            stack.callback(torch.set_default_dtype, torch.get_default_dtype())
            torch.set_default_dtype(dtype)
        stack.enter_context(torch.autocast(device.type, enabled=False))
        _full_precision(stack, device)
        if torch.backends.mha.get_fastpath_enabled():
            stack.callback(torch.backends.mha.set_fastpath_enabled, True)
            torch.backends.mha.set_fastpath_enabled(False)
        # Re-entrant checkpoints run backward() of their own. The class itself is changed, since who
        # imported it calls it by no name of torch's.
        function: Any = checkpoint.CheckpointFunction
        if "apply" not in vars(function):
            stack.callback(delattr, function, "apply")
            function.apply = staticmethod(_whole if second else _again)
        if second and recurrent and device.type == "cuda" and torch.backends.cudnn.enabled:
            # cuDNN's recurrent kernels have no second derivative; torch's own do.
            _set(stack, torch.backends.cudnn, "enabled", False)
        if second:
            stack.enter_context(sdpa_kernel([SDPBackend.MATH]))
        yield


def _whole(function: Callable[..., Any], _preserve_rng: bool, *args: Any) -> Any:
    """In the place of CheckpointFunction.apply: a graph of the gradient holds all of it anyway."""
    return function(*args)


def _again(function: Callable[..., Any], preserve_rng: bool, *args: Any) -> Any:
    """In its place where one derivative is asked: computed anew in the backward pass."""
    again = functools.partial(
        checkpoint.checkpoint, use_reentrant=False, preserve_rng_state=preserve_rng
    )
    try:
        return again(function, *args)
    except RuntimeError as error:
        if "saved tensor hooks" not in str(error):  # torch.func within the function
            raise
        return function(*args)


def _full_precision(stack: contextlib.ExitStack, device: torch.device) -> None:
    """No TF32 and no bfloat16 inside of float32 products, whichever way the caller allowed them."""
    if not hasattr(torch.backends.mkldnn, "matmul"):  # before torch 2.9
        if torch.get_float32_matmul_precision() != "highest":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            _set(stack, torch.backends.cudnn, "allow_tf32", False)
        return
    # torch.backends makes some of its parts where types do not see it.
    mkldnn: Any = torch.backends.mkldnn
    backends = (mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
    if device.type == "cuda":
        cudnn: Any = torch.backends.cudnn
        backends = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    for backend in backends:
        if backend.fp32_precision != "ieee":
            _set(stack, backend, "fp32_precision", "ieee")


def _set(stack: contextlib.ExitStack, place: Any, name: str, value: Any) -> None:
    stack.callback(setattr, place, name, getattr(place, name))
    setattr(place, name, value)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel or DistributedDataParallel."""
    wrappers = nn.DataParallel | nn.parallel.DistributedDataParallel
    while True:
        inner = getattr(model, "module" if isinstance(model, wrappers) else "_orig_mod", None)
        if not isinstance(inner, nn.Module):
            return model
        model = inner
