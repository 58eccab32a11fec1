"""A private copy of a model that is evaluated at any theta, under controlled numerics."""

import contextlib
import copy
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.risk._batchnorm import BatchNormControl
from landscape.risk._data import Batch
from landscape.risk._second_derivatives import TwiceControl, release


class Network:
    """Copy of the caller's model in evaluation mode; what is done here never reaches the caller."""

    def __init__(self, model: nn.Module, *, device: torch.device, dtype: torch.dtype) -> None:
        try:
            self.model = copy.deepcopy(model)
        except Exception as error:
            raise LandscapeError(
                f"{type(model).__name__} cannot be copied ({type(error).__name__}: {error}); keep "
                f"no tensors that are part of a graph as attributes of the model."
            ) from error
        self.layout = ParamLayout.of(self.model)
        self.model._apply(lambda t: t.to(device=device, dtype=_real_or_complex(t, dtype)))
        self.model.eval()
        named = dict(self.model.named_parameters())
        self.weights = [named[name] for name in self.layout.names]
        self.theta = self.layout.flatten(named).detach().clone()
        self.model.requires_grad_(False)
        for weight in self.weights:
            weight.requires_grad_()
        # The same memory, with version counters of its own: a graph that is kept stays valid as
        # long as its theta is written before its backward passes.
        self._memory = [weight.data for weight in self.weights]
        self.twice = TwiceControl(self.model)
        self.batchnorm = BatchNormControl(self.model, self.twice.takes)
        self.clones_inputs = False
        self.recurrent = any(isinstance(m, nn.RNNBase) for m in self.model.modules())

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

    def put(self, theta: Tensor) -> None:
        """Write theta into the parameters, whatever reads them and however."""
        with torch.no_grad():
            torch._foreach_copy_(self._memory, self.pieces(theta))

    @contextlib.contextmanager
    def at(self, theta: Tensor) -> Iterator[None]:
        """The parameters have the values of theta within."""
        self.put(theta)
        yield

    def pieces(self, vector: Tensor) -> list[Tensor]:
        """Views of a vector (P,), one per weight."""
        return list(self.layout.unflatten(vector).values())

    def add(self, total: Tensor, parts: Sequence[Tensor | None]) -> None:
        """Add what belongs to each weight to total (P,), in place; None is zero."""
        pairs = [(piece, part) for piece, part in zip(self.pieces(total), parts, strict=True)
                 if part is not None]  # fmt: skip
        if pairs:
            torch._foreach_add_(*map(list, zip(*pairs, strict=True)))

    def in_dtype(self, dtype: torch.dtype) -> "Network":
        """A network of its own with the same weights and buffers in another dtype."""
        other = Network(self.released(self.theta), device=self.theta.device, dtype=dtype)
        other.clones_inputs = self.clones_inputs
        return other

    def released(self, theta: Tensor) -> nn.Module:
        """An ordinary module of its own with weights theta, in evaluation mode."""
        self.put(theta)
        return release(copy.deepcopy(self.model))

    def __call__(self, batch: Batch) -> Any:
        self.batchnorm.begin()
        if self.clones_inputs:
            batch = batch.mapped(torch.clone)
        return self.model(*batch.args, **batch.kwargs)


@contextlib.contextmanager
def numerics(
    device: torch.device, *, second: bool = False, recurrent: bool = False
) -> Iterator[None]:
    """Full precision, no autocast, no fused inference paths; kernels that differentiate twice."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.autocast(device.type, enabled=False))
        _full_precision(stack, device)
        if torch.backends.mha.get_fastpath_enabled():
            stack.callback(torch.backends.mha.set_fastpath_enabled, True)
            torch.backends.mha.set_fastpath_enabled(False)
        if second and recurrent and device.type == "cuda" and torch.backends.cudnn.enabled:
            # cuDNN's recurrent kernels have no second derivative; torch's own do.
            _set(stack, torch.backends.cudnn, "enabled", False)
        if second:
            stack.enter_context(sdpa_kernel([SDPBackend.MATH]))
        yield


def _full_precision(stack: contextlib.ExitStack, device: torch.device) -> None:
    """No TF32 and no bfloat16 inside of float32 products, whichever way the caller allowed them."""
    if not hasattr(torch.backends.mkldnn, "matmul"):  # before torch 2.9
        if torch.get_float32_matmul_precision() != "highest":
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
            torch.set_float32_matmul_precision("highest")
        if device.type == "cuda" and torch.backends.cudnn.allow_tf32:
            _set(stack, torch.backends.cudnn, "allow_tf32", False)
        return
    backends = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn)
    if device.type == "cuda":
        cudnn = torch.backends.cudnn
        backends = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn)
    for backend in backends:
        if backend.fp32_precision != "ieee":
            _set(stack, backend, "fp32_precision", "ieee")


def _set(stack: contextlib.ExitStack, place: Any, name: str, value: Any) -> None:
    stack.callback(setattr, place, name, getattr(place, name))
    setattr(place, name, value)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile, DataParallel or DistributedDataParallel."""
    while True:
        if hasattr(model, "_orig_mod"):
            model = model._orig_mod
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def _real_or_complex(tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if tensor.is_complex():
        return dtype.to_complex()
    return dtype if tensor.is_floating_point() else tensor.dtype
