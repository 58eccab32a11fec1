"""What a risk is made of, and what it takes as an argument."""

import copy
import hashlib
from typing import Any

import torch
from jaxtyping import Float, Shaped
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.risk._engine import Engine
from landscape.risk._twice import release


class Described:
    """The part of a risk that computes nothing: its model, its data, its options, its cost."""

    _engine: Engine
    _weight_decay: float

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
    def bn(self) -> str:
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
        return {k: v.clone() for k, v in self._engine.network.model.named_buffers()}

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
        """The private copy of the model, in evaluation mode: to be read and not changed."""
        return self._engine.network.model

    def model_at(self, theta: Float[Tensor, "P"]) -> nn.Module:
        """An ordinary module of its own with weights theta, trainable, in evaluation mode."""
        model = release(copy.deepcopy(self.model))
        named = dict(model.named_parameters())
        with torch.no_grad():
            for name, value in self.layout.unflatten(self._as_theta(theta)).items():
                named[name].copy_(value)
                named[name].requires_grad_()
        return model.eval()

    @property
    def targets(self) -> Shaped[Tensor, "N *C"]:
        """Targets of all examples, in the order of the data."""
        self._refuse_spread("targets")
        chunks = self._engine.examples.chunks
        return torch.cat([chunk.targets for chunk in chunks]).to(self.device)

    def spend(self, gradients: float) -> None:
        """Count what was computed beside the risk in its gradient-equivalents."""
        self._engine.spend(gradients)

    def fingerprint(self, theta: Float[Tensor, "P"]) -> str:
        """SHA-256 of theta's bytes in the risk's dtype."""
        values = self._as_theta(theta).to("cpu").contiguous()
        return hashlib.sha256(values.numpy().tobytes()).hexdigest()

    def provenance(self) -> dict[str, Any]:
        """What must be known to read a number of this risk, as JSON types."""
        return {
            "bn": self._engine.bn,
            "num_examples": self.num_examples,
            "num_parameters": self.layout.num_parameters,
            "loss": self._engine.criterion.name,
            "weight_decay": self._weight_decay,
            "dtype": str(self.dtype).removeprefix("torch."),
            "device": str(self.device),
            "torch": str(torch.__version__),
        }

    def _as_theta(self, theta: Tensor) -> Tensor:
        size = self.layout.num_parameters
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
        theta = theta.clone() if theta.is_inference() else theta
        return theta.detach().to(device=self.device, dtype=self.dtype)

    def _as_vectors(self, V: Tensor) -> Tensor:
        size = self.layout.num_parameters
        if not isinstance(V, Tensor) or V.ndim not in (1, 2) or V.shape[-1] != size:
            found = tuple(V.shape) if isinstance(V, Tensor) else type(V).__name__
            raise LandscapeError(
                f"V of shape {found} given; a Hessian product takes ({size},) or (k, {size})."
            )
        V = V.clone() if V.is_inference() else V
        return V.detach().to(device=self.device, dtype=self.dtype).reshape(-1, size)

    def _refuse_spread(self, what: str) -> None:
        if self._engine.spread is not None:
            raise LandscapeError(
                f"{what} asked of a risk with distributed=True, whose examples are with "
                f"{self._engine.spread.num_processes} processes; make a risk of all examples in "
                f"one process."
            )
