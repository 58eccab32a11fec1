"""Values of a risk with frozen BatchNorm at many points: the same numbers from fewer operations.

BatchNorm is absorbed by the layer before it (`landscape.risk._folding`), the first layer is not
computed anew (`FirstLayer`), tokens that nobody reads are left out (`unread_tokens`), images lie in
memory channel by channel within a pixel, and rows go through in blocks whose largest activation
stays in cache.
"""

import contextlib
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape import devices, vectors
from landscape.risk._data import Batch
from landscape.risk._empirical import EmpiricalRisk, Evaluation
from landscape.risk._folding import (
    agree,
    column,
    hooked,
    owns_weight,
    scale_and_shift,
    store_of,
    take_over,
    weight_of,
)
from landscape.risk._network import numerics
from landscape.risk.along.first_layer import FirstLayer
from landscape.risk.along.kernels import fused, fusing_is_possible, linear
from landscape.risk.along.outcomes import Outcomes
from landscape.risk.along.traced import LayerTrace
from landscape.risk.along.unread_tokens import without_unread

_ACTIVATION_BYTES = 2**21
# Multiplications from which on a product gains more than its call costs.
_LARGE_PRODUCT = 2**24
# Below this many points, finding the layers and proving them costs more than it saves.
_LEAST_POINTS = 64

Coordinates = Sequence[float]


@runtime_checkable
class PlanePoints(Protocol):
    """A line or plane: the points origin + sum_i c_i d_i, `directions` (m, P)."""

    @property
    def origin(self) -> Tensor:
        """(P,)."""
        ...

    @property
    def directions(self) -> Tensor:
        """(m, P)."""
        ...

    def point(self, *coordinates: float) -> Tensor:
        """Theta (P,) at the coordinates; fewer of them leave the rest at 0."""
        ...


@dataclass
class _FoldedLayer:
    """A layer whose weights are prepared for use at every point, with the norm it works for."""

    module: nn.Module
    norm: _BatchNorm | None
    # The module's own parameters: views of the buffer that moves, or frozen tensors.
    weight: Tensor
    bias: Tensor | None
    used: Tensor
    # Scale and shift of the norm if no direction moves them.
    fixed: tuple[Tensor, Tensor] | None = None


class _Read(Exception):  # noqa: N818
    """Ends a forward pass at the layer whose inputs were asked."""


class Direct:
    """The risk's own evaluation at the points."""

    method = "direct"

    def __init__(self, risk: EmpiricalRisk, plane: PlanePoints) -> None:
        self._risk, self._plane = risk, plane

    def session(self) -> contextlib.AbstractContextManager[None]:
        """Within it points are evaluated."""
        return contextlib.nullcontext()

    def evaluate(self, coordinates: Coordinates) -> Evaluation:
        """Loss, error rate and losses at the coordinates."""
        return self._risk.evaluate(self._plane.point(*coordinates))


class Folded:
    """risk.evaluate for bn="eval", equal up to rounding; `of` gives None where it is not valid."""

    def __init__(
        self, risk: EmpiricalRisk, plane: PlanePoints, *, channels_last: bool, fuse: bool
    ) -> None:
        self._risk, self._plane, self._engine = risk, plane, risk._engine
        self._model = risk.model_at(plane.origin).requires_grad_(False)
        self._buffer = plane.origin.clone()
        self._base: tuple[tuple[float, ...], Tensor] = ((), plane.origin)
        modules = dict(self._model.named_modules())
        for t in risk.layout.tensors:
            owner, _, name = t.name.rpartition(".")
            modules[owner]._parameters[name] = self._buffer[t.start : t.stop].view(t.shape)
        trace = LayerTrace(risk, self._model, self._buffer)
        # Most of a transformer's activations are far smaller than its largest.
        room = _ACTIVATION_BYTES * (2 if trace.tokens else 1)
        self.rows = _even(risk.num_examples, room // max(1, trace.largest))
        self.channels_last = channels_last
        self._layers = self._prepared(trace)
        self.num_folded = sum(layer.norm is not None for layer in self._layers)
        for relu in trace.relus:
            relu.inplace = True
        for layer in self._layers:
            self._fold(layer)
            if layer.norm is not None:
                take_over(layer.norm, _identity)
        self._outcomes = Outcomes(risk)
        self._batches = [self._formatted(b) for b in self._engine.examples.cut(self.rows)]
        self._first = self._first_layer(trace.constant)
        kernels = fuse and risk.dtype == torch.float32 and fusing_is_possible()
        quick = self._quicken(trace) if kernels else 0
        graph = fused(self._model, nothing=_identity) if kernels and channels_last else None
        self._fused = bool(quick) or graph is not None
        self._call = self._model if graph is None else graph.forward
        # By the number of rows.
        self._narrowed: dict[int, Callable[[Batch], Any]] = {}
        if fuse and graph is None and trace.tokens:
            self._narrow()

    @classmethod
    def of(
        cls, risk: EmpiricalRisk, plane: PlanePoints, probes: Sequence[Coordinates]
    ) -> "Folded | None":
        """An evaluator proved at the probes, or None."""
        engine = risk._engine
        network = engine.network
        if (
            devices.is_accelerator(risk.device)
            or (risk.bn != "eval" and risk.has_batchnorm)
            or engine.batch_size is not None
            or len(engine.examples.chunks) > 1
            or not engine.criterion.per_example
            or not engine.examples.apart
            or engine.criterion.form == "batch"
            or engine.criterion.head is not None  # logits that are not held whole
            or engine.notes.uses_rng
            or network.habits.clones_inputs
            or network.habits.volatile
            or network.borrowed
            or network.recurrent
            or network.batchnorm.own
            or network.tied
        ):
            return None
        truth = [risk.losses(plane.point(*probe)) for probe in probes]
        for images, fuse in _ways(network.model, risk):
            # Code that cannot take another memory format, say.
            with contextlib.suppress(RuntimeError):
                folded = cls(risk, plane, channels_last=images, fuse=fuse)
                if all(map(folded._agrees, probes, truth)):
                    return folded
        return None

    @property
    def method(self) -> str:
        """For the provenance: results depend on it to the last bit."""
        parts = [f"blocks of {self.rows} rows", f"{self.num_folded} BatchNorm folded"]
        parts += ["first layer combined"] if self._first else []
        parts += ["channels last"] if self.channels_last else []
        parts += ["fused"] if self._fused else []
        parts += ["tokens in use"] if self._narrowed else []
        return ", ".join(parts)

    @contextlib.contextmanager
    def session(self) -> Generator[None]:
        """Within it points are evaluated."""
        with numerics(self._risk.device, self._risk.dtype), torch.inference_mode():
            yield

    def evaluate(self, coordinates: Coordinates) -> Evaluation:
        """Loss, error rate and losses at the coordinates."""
        parts, wrong = [], []
        self._put(coordinates)
        for batch in self._batches:
            losses, errors = self._outcomes(self._output(batch), batch)
            parts.append(losses)
            wrong.append(errors)
        losses = torch.cat(parts) if len(parts) > 1 else parts[0]
        mean = losses.double().sum() / self._engine.denominator
        if self._risk.weight_decay:
            mean = mean + 0.5 * self._risk.weight_decay * vectors.squared_norm(self._buffer)
        rate = None
        if all(each is not None for each in wrong):
            rate = torch.cat(wrong).sum().to(self._risk.dtype) / self._engine.num_labels
        self._risk.spend(1 / 3)
        return Evaluation(mean.to(self._risk.dtype), rate, self._engine.shares(losses))

    def _output(self, batch: Batch) -> Any:
        if self._first:
            self._first.rows = slice(batch.start, batch.start + batch.count)
        call = self._narrowed.get(batch.count)
        return self._call(*batch.args, **batch.kwargs) if call is None else call(batch)

    def _narrow(self) -> None:
        """Leave out the tokens that nobody reads, for every size of a block."""
        with self.session():
            self._put((0.0,) * len(self._plane.directions))
            for batch in {batch.count: batch for batch in self._batches}.values():
                if self._first:
                    self._first.rows = slice(batch.start, batch.start + batch.count)
                call = without_unread(self._model, self._first, batch)
                if call is not None:
                    self._narrowed[batch.count] = call

    def _put(self, coordinates: Coordinates) -> None:
        *leading, last = coordinates
        if self._base[0] != (key := tuple(leading)):
            self._base = key, self._plane.point(*leading)
        if last:
            direction = self._plane.directions[len(leading)]
            torch.add(self._base[1], direction, alpha=last, out=self._buffer)
        else:
            self._buffer.copy_(self._base[1])
        for layer in self._layers:
            if self._first is None or layer is not self._combined:
                self._fold(layer)
        if self._first is not None and self._combined is not None:
            self._first.put(coordinates, partial(self._along, self._combined))

    def _fold(self, layer: _FoldedLayer) -> None:
        if layer.norm is None:
            layer.used.copy_(layer.weight)
            return
        scale, shift = layer.fixed or scale_and_shift(layer.norm, layer.bias)
        torch.mul(layer.weight, column(scale, layer.weight), out=layer.used)
        store_of(layer.module)["bias"] = shift

    def _prepared(self, trace: LayerTrace) -> list[_FoldedLayer]:
        """Layers whose weights in use are not the model's own ones."""
        norms = {pair.layer: pair.norm for pair in trace.pairs}
        layers = []
        for module in self._model.modules():
            images = self.channels_last and isinstance(module, nn.Conv2d) and owns_weight(module)
            if module not in norms and not images:
                continue
            store = store_of(module)
            weight, bias = weight_of(module), store["bias"]
            used = torch.empty_like(
                weight, memory_format=torch.channels_last if images else torch.contiguous_format
            )
            layer = _FoldedLayer(module, norms.get(module), weight, bias, used)
            if layer.norm is not None and self._is_fixed(layer.norm, bias):
                layer.fixed = scale_and_shift(layer.norm, bias)
            store["weight"] = used
            layers.append(layer)
        return layers

    def _is_fixed(self, norm: _BatchNorm, bias: Tensor | None) -> bool:
        """Whether no direction moves what scales and shifts the layer's channels."""
        return all(not bool(step.any()) for step in self._steps((norm.weight, norm.bias, bias)))

    def _steps(self, tensors: Sequence[Tensor | None]) -> list[Tensor]:
        """What the directions add to these parameters, (m, n) each; nothing for frozen ones."""
        found = []
        for tensor in tensors:
            if tensor is not None and _inside(tensor, self._buffer):
                start = tensor.storage_offset()
                found.append(self._plane.directions[:, start : start + tensor.numel()])
        return found

    def _first_layer(self, constant: Sequence[nn.Module]) -> FirstLayer | None:
        """The layer whose inputs do not depend on theta, ready to be combined."""
        self._combined: _FoldedLayer | None = None
        if len(constant) != 1:
            return None
        module = constant[0]
        self._combined = next((each for each in self._layers if each.module is module), None)
        if self._combined is None:
            weight, bias = weight_of(module), store_of(module)["bias"]
            self._combined = _FoldedLayer(module, None, weight, bias, torch.empty_like(weight))
        if self._combined.norm is not None and self._combined.fixed is None:
            return None
        inputs, size = self._inputs_of(module)
        # At the origin, along both axes, and the sum of two of them.
        if 4 * size * self._risk.num_examples > self._engine.memory:
            return None
        first = FirstLayer(module, inputs, channels_last=self.channels_last)
        take_over(module, first)
        return first

    def _inputs_of(self, module: nn.Module) -> tuple[list[Tensor], int]:
        """What the module reads, block by block, and bytes a row of what it makes."""
        inputs: list[Tensor] = []
        sizes: list[int] = []

        def read(x: Tensor) -> Tensor:
            inputs.append(x)
            output = type(module).forward(module, x[:1])
            sizes.append(output.nbytes)
            raise _Read

        take_over(module, read)
        with self.session():
            for batch in self._batches:
                with contextlib.suppress(_Read):
                    self._model(*batch.args, **batch.kwargs)
        del module.forward
        return inputs, max(sizes)

    def _quicken(self, trace: LayerTrace) -> int:
        """How many large linear layers run in a kernel that does the GELU behind them as well."""
        count = 0
        for module, outputs in trace.linears.items():
            large = outputs * self.rows * module.in_features >= _LARGE_PRODUCT
            if not large or "forward" in module.__dict__ or hooked(module):
                continue
            gelu = trace.gelus.get(module)
            count += 1
            take_over(module, linear(module, gelu=gelu is not None))
            if gelu is not None:
                take_over(gelu, _identity)
        return count

    def _along(self, layer: _FoldedLayer, index: int) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the combined layer at the origin (0) or along a direction."""
        vector = self._plane.origin if index == 0 else self._plane.directions[index - 1]
        weight = self._part(vector, layer.weight, frozen=index == 0)
        if layer.fixed is None:
            bias = layer.bias
            return weight, None if bias is None else self._part(vector, bias, frozen=index == 0)
        scale, shift = layer.fixed
        return weight * column(scale, weight), shift if index == 0 else None

    def _part(self, vector: Tensor, tensor: Tensor, *, frozen: bool) -> Tensor:
        if not _inside(tensor, self._buffer):
            return tensor if frozen else torch.zeros_like(tensor)
        start = tensor.storage_offset()
        return vector[start : start + tensor.numel()].view(tensor.shape)

    def _formatted(self, batch: Batch) -> Batch:
        if not self.channels_last:
            return batch
        return batch.mapped(
            lambda leaf: (
                leaf.contiguous(memory_format=torch.channels_last) if leaf.ndim == 4 else leaf
            )
        )

    def _agrees(self, probe: Coordinates, truth: Tensor) -> bool:
        """Whether every single loss is the risk's own, up to rounding."""
        with self.session():
            found = self.evaluate(probe).losses
        return found is not None and agree(found, truth)


def evaluator(
    risk: EmpiricalRisk, plane: PlanePoints, *, probes: Sequence[Coordinates], points: int
) -> Direct | Folded:
    """The quickest evaluation of so many points that is valid, proved at the probes."""
    # A subclass may mean something else by `evaluate`.
    few = points < _LEAST_POINTS or type(risk) is not EmpiricalRisk
    folded = None if few else Folded.of(risk, plane, probes)
    return Direct(risk, plane) if folded is None else folded


def _ways(model: nn.Module, risk: EmpiricalRisk) -> list[tuple[bool, bool]]:
    """Channels last or not, rewritten or not: from the quickest to the most modest."""
    # In float64 torch has no kernels of its own for either.
    if risk.dtype != torch.float32 or not fusing_is_possible():
        return [(False, True), (False, False)]
    images = any(isinstance(module, nn.Conv2d) for module in model.modules())
    return [*([(True, True), (True, False)] if images else []), (False, True), (False, False)]


def _even(total: int, most: int) -> int:
    """Rows of equal blocks, of about `most` at most."""
    blocks = -(-total // max(1, most))
    return -(-total // blocks)


def _inside(tensor: Tensor, buffer: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() == buffer.untyped_storage().data_ptr()


def _identity(x: Tensor) -> Tensor:
    return x
