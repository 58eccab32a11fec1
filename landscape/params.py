"""Named tensors of a model and the flat vector theta: order, views, kinds, filters."""

import fnmatch
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Shaped
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from landscape.errors import LandscapeError
from landscape.sharding import Space, joined

__all__ = [
    "KINDS",
    "LAYERS",
    "NORM_MODULES",
    "Layer",
    "ParamLayout",
    "Select",
    "TensorInfo",
    "is_norm",
    "layer_of",
]

KINDS = ("conv", "linear", "norm", "bias", "embedding", "other")

NORM_MODULES: tuple[type[nn.Module], ...] = (
    _BatchNorm,  # BatchNorm1d, 2d, 3d, SyncBatchNorm
    _InstanceNorm,
    nn.LayerNorm,
    nn.GroupNorm,
    *((nn.RMSNorm,) if hasattr(nn, "RMSNorm") else ()),
)
_KIND_OF_MODULE: tuple[tuple[str, tuple[type[nn.Module], ...]], ...] = (
    ("norm", NORM_MODULES),
    ("conv", (_ConvNd,)),
    ("embedding", (nn.Embedding, nn.EmbeddingBag)),
    ("linear", (nn.Linear, nn.Bilinear, nn.MultiheadAttention, nn.RNNBase, nn.RNNCellBase)),
)


@dataclass(frozen=True)
class Layer:
    """What the weight of a layer is that is not torch's own.

    kind: one of KINDS. outputs: the axes of the weight that run over output units; what belongs to
    one unit is a filter. Of torch's layers, and of what is not listed, it is axis 0.

    Example:
        >>> own = params.Layer("linear", outputs=(1,))  # y = x W + b: a column is an output unit
        >>> own.outputs
        (1,)
    """

    kind: str = "linear"
    outputs: tuple[int, ...] = (0,)


# Layers of other libraries, by class or by "package.module.Class"; subclasses are found too. Filter
# normalization, filter nulls, gradient centralization and kinds read it. Add your own:
# landscape.params.LAYERS[MyDense] = landscape.params.Layer("linear", outputs=(1,)).
LAYERS: dict[type[nn.Module] | str, Layer] = {
    # y = x W + b, W in × out: GPT-2 and its kin.
    "transformers.pytorch_utils.Conv1D": Layer("linear", outputs=(1,)),
    # Experts in one tensor: experts × in × out, or experts × out × in.
    "transformers.models.gpt_oss.modeling_gpt_oss.GptOssExperts": Layer("linear", outputs=(0, 2)),
    "transformers.models.llama4.modeling_llama4.Llama4TextExperts": Layer("linear", (0, 2)),
    "transformers.models.mixtral.modeling_mixtral.MixtralExperts": Layer("linear", (0, 1)),
    "torch_geometric.nn.dense.linear.Linear": Layer("linear"),
}


def layer_of(module: nn.Module) -> Layer | None:
    """The entry of LAYERS for a module, of its own class or the nearest above it.

    Example:
        >>> params.layer_of(nn.Linear(2, 3)) is None  # torch's own layers need no entry
        True
    """
    for kind in type(module).__mro__:
        found = LAYERS.get(kind, LAYERS.get(f"{kind.__module__}.{kind.__qualname__}"))
        if found is not None:
            return found
    return None


Select = str | Sequence[str] | Callable[["TensorInfo"], bool]


def is_norm(module: nn.Module) -> bool:
    """Whether `module` normalizes activations: Batch-, Instance-, Layer-, Group- or RMSNorm.

    Classes of other libraries count by name (`LlamaRMSNorm`, `LayerNorm2d`).

    Example:
        >>> params.is_norm(nn.LayerNorm(3)), params.is_norm(nn.Linear(3, 3))
        (True, False)
    """
    name = type(module).__name__
    return isinstance(module, NORM_MODULES) or name.endswith(("Norm", "Norm1d", "Norm2d", "Norm3d"))


@dataclass(frozen=True)
class TensorInfo:
    """One trainable tensor: `theta[start:stop].view(shape)` is `name`, owned by `module`.

    outputs: axes that run over output units, where LAYERS says so of its layer.
    kind: one of KINDS. numel: its number of elements. start: its first coordinate in theta.

    Example:
        >>> first = ParamLayout.of(model).tensors[0]
        >>> first.name, first.kind, first.shape, first.stop
        ('0.weight', 'linear', (8, 4), 32)
    """

    name: str
    shape: tuple[int, ...]
    start: int
    numel: int
    kind: str
    module: str
    outputs: tuple[int, ...] = (0,)

    @property
    def stop(self) -> int:
        """One past its last coordinate in theta."""
        return self.start + self.numel

    @property
    def ndim(self) -> int:
        """Number of axes; biases and the scales of norm layers have one."""
        return len(self.shape)


@dataclass(frozen=True)
class ParamLayout:
    """Order of the trainable tensors of a model in theta (P,).

    space: of a sharded model, whose flat vectors are cut over processes as its tensors are.

    Example:
        >>> layout = ParamLayout.of(model)
        >>> layout.names[:2], layout.num_parameters
        (('0.weight', '0.bias'), 83)
        >>> tuple(layout.unflatten(theta)["0.weight"].shape)
        (8, 4)
    """

    tensors: tuple[TensorInfo, ...]
    space: Space | None = field(default=None, compare=False, repr=False)

    @classmethod
    def of(cls, model: nn.Module) -> "ParamLayout":
        """Trainable tensors in registration order; a tied tensor counts once, a frozen one never.

        Raises LandscapeError when nothing is trainable or a tensor is complex or uninitialized.
        """
        modules = dict(model.named_modules())
        tensors, start = [], 0
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            _refuse_odd(name, parameter)
            owner, kind = _owner_and_kind(modules, name)
            shape = tuple(parameter.shape)
            outputs = _outputs(modules[owner], kind, shape)
            tensors.append(TensorInfo(name, shape, start, parameter.numel(), kind, owner, outputs))
            start += parameter.numel()
        if start == 0:
            frozen = sum(1 for _ in model.parameters())
            raise LandscapeError(
                f"{type(model).__name__} has no trainable parameter ({frozen} frozen tensors); set "
                f"requires_grad=True on the tensors that theta is made of."
            )
        return cls(tuple(tensors))

    @property
    def names(self) -> tuple[str, ...]:
        """Names as in `model.named_parameters()`."""
        return tuple(info.name for info in self.tensors)

    @property
    def num_parameters(self) -> int:
        """Length P of theta."""
        return self.tensors[-1].stop

    def flatten(
        self, named: Mapping[str, Tensor] | Iterable[tuple[str, Tensor]]
    ) -> Shaped[Tensor, "P"]:
        """Concatenate the tensors of `named` in the order of the layout; other names are ignored.

        A fresh tensor (P,), differentiable. Raises LandscapeError on a missing name or another
        shape.
        """
        given = dict(named)
        missing = [name for name in self.names if name not in given]
        if missing:
            raise LandscapeError(
                f"theta is made of {len(self.tensors)} tensors; {', '.join(missing[:5])} "
                f"{'is' if len(missing) == 1 else 'are'} missing among the {len(given)} given."
            )
        if self.space is not None:
            return joined(self.space, [given[name] for name in self.names])
        for info in self.tensors:
            if tuple(given[info.name].shape) != info.shape:
                raise LandscapeError(
                    f"{info.name} has shape {tuple(given[info.name].shape)}; this model's has "
                    f"{info.shape}. Use tensors of the same model."
                )
        return torch.cat([given[info.name].reshape(-1) for info in self.tensors])

    def unflatten(self, theta: Shaped[Tensor, "*k P"]) -> dict[str, Tensor]:
        """Views of theta by name, (*k, *shape); those of a detached theta write to it."""
        if theta.ndim == 0 or theta.shape[-1] != self.num_parameters:
            raise LandscapeError(
                f"theta of shape {tuple(theta.shape)} given; the model has P={self.num_parameters} "
                f"trainable parameters, so the last axis must have that length."
            )
        lead = theta.shape[:-1]
        parts = torch.split(theta, [info.numel for info in self.tensors], dim=-1)
        return {
            info.name: part.view((*lead, *info.shape))
            for info, part in zip(self.tensors, parts, strict=True)
        }

    def select(self, select: Select) -> tuple[TensorInfo, ...]:
        """Tensors by kind ("conv", "norm", ...), by glob on names ("head.*"), or by a predicate.

        A sequence of kinds and globs is their union. What matches nothing is refused.
        """
        if callable(select):
            return tuple(info for info in self.tensors if select(info))
        wanted = (select,) if isinstance(select, str) else tuple(select)
        chosen = set()
        for pattern in wanted:
            found = {
                info.name
                for info in self.tensors
                if info.kind == pattern
                or info.name == pattern
                or (pattern not in KINDS and fnmatch.fnmatchcase(info.name, pattern))
            }
            if not found and pattern not in KINDS:
                raise LandscapeError(
                    f"{pattern!r} matches no tensor; kinds are {', '.join(KINDS)}, and names are "
                    f"{', '.join(self.names[:8])}{', ...' if len(self.names) > 8 else ''}."
                )
            chosen |= found
        return tuple(info for info in self.tensors if info.name in chosen)

    def mask(self, select: Select) -> Bool[Tensor, "P"]:
        """Boolean (P,) over theta, true on the coordinates of `select(select)`."""
        mask = torch.zeros(self.num_parameters, dtype=torch.bool)
        for info in self.select(select):
            mask[info.start : info.stop] = True
        return mask


def _refuse_odd(name: str, parameter: nn.Parameter) -> None:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise LandscapeError(
            f"{name} is not initialized yet (a lazy layer); run the model once on an example batch."
        )
    if not parameter.is_floating_point():
        raise LandscapeError(
            f"{name} is {parameter.dtype}; theta is made of real floating-point tensors. Freeze it "
            f"or store its real and imaginary parts."
        )


def _owner_and_kind(modules: Mapping[str, nn.Module], name: str) -> tuple[str, str]:
    owner, _, leaf = name.rpartition(".")
    # torch.nn.utils.parametrize keeps `weight` as `parametrizations.weight.original*`.
    if ".parametrizations." in f".{name}":
        head, _, tail = f".{name}".rpartition(".parametrizations.")
        owner, leaf = head.lstrip("."), tail.split(".")[0]
    module = modules[owner]
    if is_norm(module) and layer_of(module) is None:
        return owner, "norm"
    if "bias" in leaf:
        return owner, "bias"
    listed = layer_of(module)
    if listed is not None:
        return owner, listed.kind
    for kind, types in _KIND_OF_MODULE:
        if isinstance(module, types):
            return owner, kind
    return owner, "other"


def _outputs(module: nn.Module, kind: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Axes over output units; a smaller tensor of a listed layer is no weight of it."""
    listed = layer_of(module)
    if listed is None or kind != listed.kind or len(shape) <= max(listed.outputs):
        return (0,)
    return listed.outputs
