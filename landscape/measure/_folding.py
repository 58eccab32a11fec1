"""Values of a risk with frozen BatchNorm at many points: the same numbers from fewer operations.

In evaluation mode BatchNorm is affine, so that it can be absorbed by the convolution before it:
gamma (Wx + b - mean) / sqrt(var + eps) + beta = W' x + b'. Rows go through in blocks whose largest
activation stays in cache.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.measure._inside import model_at, spend
from landscape.risk import EmpiricalRisk, Evaluation
from landscape.risk._criterion import errors_of
from landscape.risk._network import numerics

_FOLDABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_ACTIVATION_BYTES = 2**21
# Below this many points, finding the pairs and proving them costs more than it saves.
_LEAST_POINTS = 64
# Beyond what rounding may do to a loss the layers were not what they seemed.
_SLACK = {torch.float32: 2e-5, torch.float64: 1e-12}


@dataclass(frozen=True)
class _Pair:
    """A layer and the BatchNorm that alone reads it."""

    layer: nn.Module
    norm: _BatchNorm


class Folded:
    """risk.evaluate for bn="eval", equal up to rounding; `of` gives None where it is not valid."""

    def __init__(self, risk: EmpiricalRisk, theta: Tensor) -> None:
        self._risk, self._engine = risk, risk._engine
        self._model = model_at(risk, theta).requires_grad_(False)
        modules = dict(self._model.named_modules())
        self._places = [
            (modules[t.name.rpartition(".")[0]]._parameters, t.name.rpartition(".")[2], t)
            for t in risk.layout.tensors
        ]
        self._pairs, largest = self._traced()
        self.num_folded = len(self._pairs)
        put = {(id(store), name) for store, name, _ in self._places}
        self._own = [
            {
                name: pair.layer._parameters[name]
                for name in ("weight", "bias")
                if (id(pair.layer._parameters), name) not in put
            }
            for pair in self._pairs
        ]
        for pair in self._pairs:
            pair.norm.forward = _identity  # type: ignore[method-assign]
        self.rows = max(1, min(risk.num_examples, _ACTIVATION_BYTES // max(1, largest)))

    @classmethod
    def of(cls, risk: EmpiricalRisk, theta: Tensor) -> "Folded | None":
        """An evaluator proved at theta and beside it, or None."""
        engine = risk._engine
        network = engine.network
        if (
            risk.device.type != "cpu"
            or (risk.bn != "eval" and risk.has_batchnorm)
            or engine.batch_size is not None
            or len(engine.examples.chunks) > 1
            or not engine.criterion.per_example
            or engine.notes.uses_rng
            or network.clones_inputs
            or network.recurrent
            or network.batchnorm.own
            or any(len(sites) != 1 for sites in network.sites)
        ):
            return None
        folded = cls(risk, theta)
        source = torch.Generator().manual_seed(0)
        shift = torch.randn(len(theta), generator=source, dtype=torch.float64).to(theta)
        shift *= 0.1 * torch.linalg.vector_norm(theta) / torch.linalg.vector_norm(shift)
        return folded if all(folded._proved(point) for point in (theta, theta + shift)) else None

    def evaluate(self, theta: Tensor) -> Evaluation:
        """Loss, error rate and losses at theta."""
        engine, parts, wrong = self._engine, [], []
        with numerics(self._risk.device), torch.inference_mode():
            self._put(theta)
            for batch in engine.examples.cut(self.rows):
                output = self._model(*batch.args, **batch.kwargs)
                parts.append(engine.criterion(output, batch.targets, batch.count))
                wrong.append(errors_of(output, batch.targets))
            losses = torch.cat(parts)
            mean = losses.double().mean()
            if self._risk.weight_decay:
                mean = mean + 0.5 * self._risk.weight_decay * theta.double().square().sum()
            known = all(each is not None for each in wrong)
            rate = torch.cat(wrong).sum().to(self._risk.dtype) / len(losses) if known else None
        spend(self._risk, 1 / 3)
        return Evaluation(mean.to(self._risk.dtype), rate, losses)

    def _put(self, theta: Tensor) -> None:
        for store, name, tensor in self._places:
            store[name] = theta[tensor.start : tensor.stop].view(tensor.shape)
        for pair, own in zip(self._pairs, self._own, strict=True):
            self._fold(pair, own)

    def _fold(self, pair: _Pair, own: dict[str, Tensor | None]) -> None:
        """Weights in use of a layer that does its BatchNorm's work."""
        norm, store = pair.norm, pair.layer._parameters
        # A frozen tensor is not put back at every point, so that the one in use is last point's.
        weight, bias = (own[n] if n in own else store[n] for n in ("weight", "bias"))
        scale = torch.rsqrt(norm.running_var.double() + norm.eps)
        if norm.weight is not None:
            scale = scale * norm.weight.double()
        shift = -norm.running_mean.double() if bias is None else bias.double() - norm.running_mean
        shift = shift * scale
        if norm.bias is not None:
            shift = shift + norm.bias
        store["weight"] = weight * scale.to(weight).view(-1, *[1] * (weight.ndim - 1))
        store["bias"] = shift.to(weight)

    def _traced(self) -> tuple[list[_Pair], int]:
        """Pairs found in one forward pass of a few rows, and bytes a row of the largest output."""
        made: list[tuple[Tensor, nn.Module]] = []
        calls: dict[nn.Module, int] = {}
        pairs: list[_Pair] = []
        sizes = [0]
        batch = self._engine.examples.cut(self._risk.num_examples)[0]
        batch = batch.rows(0, min(4, batch.count))

        def after(module: nn.Module, args: tuple[Tensor, ...], output: object) -> None:
            calls[module] = calls.get(module, 0) + 1
            if not isinstance(output, Tensor):
                return
            sizes.append(output.nbytes // batch.count)
            if isinstance(module, _FOLDABLE):
                made.append((output, module))
            if isinstance(module, _BatchNorm):
                layer = next((layer for kept, layer in made if kept is args[0]), None)
                if layer is not None:
                    pairs.append(_Pair(layer, module))

        hooks = [module.register_forward_hook(after) for module in self._model.modules()]
        try:
            with torch.no_grad():
                self._model(*batch.args, **batch.kwargs)
        finally:
            for hook in hooks:
                hook.remove()
        once = [p for p in pairs if calls[p.layer] == calls[p.norm] == 1 and _plain(p)]
        return once, max(sizes)

    def _proved(self, theta: Tensor) -> bool:
        """Whether every single loss is the risk's own, up to rounding."""
        found, truth = self.evaluate(theta).losses, self._risk.losses(theta)
        slack = _SLACK[self._risk.dtype]
        return torch.allclose(found.clone(), truth, rtol=slack, atol=slack, equal_nan=True)


def evaluator(
    risk: EmpiricalRisk, theta: Tensor, *, points: int
) -> tuple[Callable[[Tensor], Evaluation], str]:
    """The quickest evaluation of so many points that is valid, and its name for the provenance."""
    # A subclass may mean something else by `evaluate`.
    few = points < _LEAST_POINTS or type(risk) is not EmpiricalRisk
    folded = None if few else Folded.of(risk, theta)
    if folded is None:
        return risk.evaluate, "direct"
    return folded.evaluate, f"blocks of {folded.rows} rows, {folded.num_folded} BatchNorm folded"


def _plain(pair: _Pair) -> bool:
    """Whether folding is what the two compute: channels on axis 1, frozen statistics, no hooks."""
    norm = pair.norm
    hooked = norm._forward_hooks or norm._forward_pre_hooks or pair.layer._forward_hooks
    # A parametrized layer makes its weight anew from others.
    owns = pair.layer._parameters.get("weight") is not None
    return owns and norm.running_mean is not None and not norm.training and not hooked


def _identity(x: Tensor) -> Tensor:
    return x
