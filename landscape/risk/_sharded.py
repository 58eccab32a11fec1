"""A private copy of a sharded model that gathers each weight where it is read, and frees it.

The copy holds what lies in this process as its parameters. Reading `module.weight` gathers the
whole within the differentiated function, so that autograd sees W = gather(shards) with its adjoint,
"my part of the gradient", whose adjoint is gather again: derivatives of any order are those of one
process, layer by layer. All processes compute on the same rows, so that every gradient of a whole
weight is there before it is cut, and nothing has to be added up over processes.

What autograd saves of a whole weight for its backward passes is not held but gathered again (a
weight is known by its storage), so that the peak is the shards, the activations and one layer.
"""

import copy
import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.multiprocessing.reductions import StorageWeakRef

from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.risk._second_derivatives import release
from landscape.sharding import Space, is_cut, local
from landscape.sharding.space import Piece


def is_sharded(model: nn.Module) -> bool:
    """Whether a parameter of the model is cut over processes."""
    return any(isinstance(m._parameters, Gathering) for m in model.modules()) or any(
        map(is_cut, (*model.parameters(), *model.buffers()))
    )


def computes_on_parts(model: nn.Module) -> bool:
    """Whether modules read parts of weights: some are cut otherwise than by fully_shard alone.

    fully_shard makes weights whole before the forward of a module, and so leaves its function.
    """
    if any(isinstance(m._parameters, Gathering) for m in model.modules()):
        return False
    kind = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", ())
    gathered = {
        id(p) for m in model.modules() if isinstance(m, kind) for p in m.parameters()
        if is_cut(p) and p.device_mesh.ndim == 1
    }  # fmt: skip
    return any(is_cut(p) and id(p) not in gathered for p in model.parameters())


def refuse_flattened(model: nn.Module) -> None:
    """Refuse engines that leave the modules without the shapes of their weights."""
    flat = getattr(sys.modules.get("torch.distributed.fsdp"), "FullyShardedDataParallel", None)
    if flat is not None and any(isinstance(m, flat) for m in model.modules()):
        raise LandscapeError(
            "The model is wrapped in FullyShardedDataParallel (FSDP1), whose flattened parameters "
            "have neither names nor shapes; shard it with torch.distributed.fsdp.fully_shard "
            "(FSDP2), or measure a checkpoint: save it with FSDP.state_dict_type(..., "
            "StateDictType.FULL_STATE_DICT) and load that into the plain model."
        )
    engine = any(
        cls.__module__.split(".")[0] == "deepspeed" for m in model.modules() for cls in
        type(m).__mro__
    )  # fmt: skip
    if engine or any(hasattr(p, "ds_id") for p in model.parameters()):
        raise LandscapeError(
            "The model belongs to DeepSpeed, whose engine moves its weights between processes by "
            "hooks of its own; measure a checkpoint: engine.save_checkpoint, then `python "
            "zero_to_fp32.py` makes a state_dict for the plain model (with ZeRO stage 1 or 2 "
            "engine.module is that model)."
        )


class Gathering(dict[str, Any]):
    """Parameters of a module: reading one that is cut gathers it; the items are its shards."""

    def __init__(
        self,
        items: dict[str, Any],
        pieces: dict[str, Piece],
        layout: ParamLayout,
        weights: "ShardedWeights",
    ) -> None:
        super().__init__(items)
        self.pieces, self.layout, self.weights = pieces, layout, weights

    def __getitem__(self, name: str) -> Any:
        shard = super().__getitem__(name)
        piece = self.pieces.get(name)
        return shard if shard is None or piece is None else self.weights.gathered(shard, piece)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Gathering":
        items = {name: copy.deepcopy(shard, memo) for name, shard in self.items()}
        return Gathering(items, self.pieces, self.layout, self.weights)


class ShardedWeights:
    """Gathers weights, and knows them again among what autograd saves."""

    def __init__(self) -> None:
        self._live: dict[int, tuple[StorageWeakRef, Tensor, Piece]] = {}

    def gathered(self, shard: Tensor, piece: Piece) -> Tensor:
        """The whole weight as a function of the shards."""
        if is_cut(shard):
            from torch.distributed.tensor import Replicate

            everywhere = [Replicate()] * shard.device_mesh.ndim
            gathered = shard.redistribute(placements=everywhere)
            return gathered.to_local(grad_placements=everywhere)
        weight = _Gather.apply(shard, piece)
        self._known(weight, shard, piece)
        return weight

    def _known(self, weight: Tensor, shard: Tensor, piece: Piece) -> None:
        self._live = {key: kept for key, kept in self._live.items() if not kept[0].expired()}
        # While the reference is held no other storage gets this address.
        reference = StorageWeakRef(weight.untyped_storage())
        self._live[reference.cdata] = reference, shard.detach(), piece

    def packed(self, tensor: Tensor) -> Any:
        """What is held of a tensor that autograd saves: of weights and their views, how to make it.

        Frozen for a graph that is kept: its shards are written anew before every backward pass.
        """
        try:
            kept = self._live.get(tensor.untyped_storage()._cdata)
        except RuntimeError:  # sparse
            kept = None
        if kept is None:
            return tensor
        _, shard, piece = kept
        return shard, piece, tensor.shape, tensor.stride(), tensor.storage_offset(), tensor.dtype

    def unpacked(self, held: Any) -> Tensor:
        if isinstance(held, Tensor):
            return held
        shard, piece, shape, stride, offset, _ = held
        with torch.no_grad():
            weight = piece.whole(shard)
        self._known(weight, shard, piece)
        return weight.as_strided(shape, stride, offset)

    @contextmanager
    def frugal(self) -> Generator[None]:
        """Within it graphs hold no whole weights."""
        with torch.autograd.graph.saved_tensors_hooks(self.packed, self.unpacked):
            yield


class _Gather(Function):
    @staticmethod
    def forward(ctx: Any, shard: Tensor, piece: Piece) -> Tensor:
        ctx.piece = piece
        return piece.whole(shard.detach())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # ty: ignore[incompatible-method-override]
        return _Take.apply(gradient, ctx.piece), None


class _Take(Function):
    """This process's part, and in the backward pass the parts of all processes."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, piece: Piece) -> Tensor:
        ctx.piece = piece
        return piece.own(whole.detach().contiguous())

    @staticmethod
    def backward(ctx: Any, part: Tensor) -> tuple[Tensor, None]:  # ty: ignore[incompatible-method-override]
        return _Gather.apply(part, ctx.piece), None


def unsharded(model: nn.Module) -> tuple[nn.Module, ParamLayout, ShardedWeights]:
    """The copy, the layout of its trainable tensors with their space, and what gathers them.

    Hooks and attributes of torch.distributed (of fully_shard and of tensor parallelism) stay
    behind: with whole weights the forward is that of one process.
    """
    for module in model.modules():
        if isinstance(module._parameters, Gathering):
            return _another(model)
        # A forward may have left whole weights in place of the shards; no number changes.
        reshard = getattr(module, "reshard", None)
        if _distributed(type(module)) and callable(reshard):
            reshard()
    trained = dict(model.named_parameters())
    space = Space.of([p for p in trained.values() if p.requires_grad])
    layout = replace(ParamLayout.of(model), space=space)
    pieces = {id(p): piece for p, piece in zip(
        (p for p in trained.values() if p.requires_grad), space.pieces, strict=True
    )}  # fmt: skip
    frozen = [p for p in trained.values() if not p.requires_grad]
    if frozen:
        pieces |= zip(map(id, frozen), Space.of(frozen).pieces, strict=True)
    memo: dict[int, Any] = {}
    for p in trained.values():
        memo[id(p)] = nn.Parameter(local(p).detach().clone(), requires_grad=p.requires_grad)
    for module in model.modules():
        for value in (*module._buffers.values(), *module.__dict__.values()):
            if isinstance(value, Tensor) and is_cut(value):
                whole: Any = value.detach()
                memo[id(value)] = whole.full_tensor()
    made, weights = _copied(model, memo), ShardedWeights()
    for module, twin in zip(model.modules(), made.modules(), strict=True):
        cut = {
            name: pieces[id(p)]
            for name, p in module._parameters.items()
            if p is not None and pieces[id(p)].cut is not None
        }
        if cut:
            twin.__dict__["_parameters"] = Gathering(twin._parameters, cut, layout, weights)
            if isinstance(twin, nn.RNNBase):
                _read_anew(twin)
    return made, layout, weights


def _another(model: nn.Module) -> tuple[nn.Module, ParamLayout, ShardedWeights]:
    """The same of a copy made here before."""
    made = release(copy.deepcopy(model))
    held = [m._parameters for m in model.modules() if isinstance(m._parameters, Gathering)]
    return made, held[0].layout, held[0].weights


def resharded(model: nn.Module) -> nn.Module:
    """A copy of a model made here whose parameters are DTensors again, as those that it was of.

    Its forward is that of one process on the same rows in all; a gradient is cut as its parameter.
    """
    memo: dict[int, Any] = {}
    for module in model.modules():
        held = module._parameters
        for name, piece in held.pieces.items() if isinstance(held, Gathering) else ():
            shard = dict.__getitem__(held, name)
            assert piece.cut is not None
            cut = piece.cut.joined(shard.detach().clone())
            memo.setdefault(id(shard), nn.Parameter(cut, requires_grad=shard.requires_grad))
    return copy.deepcopy(model, memo)


def _copied(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """copy.deepcopy, which classes that fully_shard makes refuse, without what is distributed."""
    modules = list(model.modules())
    for module in modules:
        plain: Any = next(cls for cls in type(module).__mro__ if not _distributed(cls))
        memo[id(module)] = plain.__new__(plain)
    for module in modules:
        twin = memo[id(module)]
        for key, value in module.__dict__.items():
            held = value.values() if isinstance(value, dict) else [value]
            if any(_distributed(type(h)) and not isinstance(h, nn.Module) for h in held):
                continue  # what fully_shard keeps of its own
            if key.endswith("_hooks") and isinstance(value, dict):
                value = type(value)((k, h) for k, h in value.items() if not _of_sharding(h))
            try:
                twin.__dict__[key] = copy.deepcopy(value, memo)
            except Exception as error:
                raise LandscapeError(
                    f"{type(module).__name__}.{key} cannot be copied ({type(error).__name__}: "
                    f"{str(error).splitlines()[0] if str(error) else 'no reason given'}), and a "
                    f"sharded model is measured on a copy that gathers its weights; keep it out of "
                    f"the module, or measure a gathered checkpoint."
                ) from error
    return memo[id(model)]


def _distributed(cls: type) -> bool:
    """Whether torch.distributed, or a call of it, made the class."""
    name = cls.__module__
    if name.startswith("torch.distributed.tensor") and cls.__name__ == "DTensor":
        return False
    return name.startswith("torch.distributed.") and "checkpoint" not in name


def _of_sharding(hook: Any) -> bool:
    while True:
        inner = getattr(hook, "__wrapped__", None) or getattr(hook, "func", None)
        if inner is None:
            break
        hook = inner
    hook = getattr(hook, "__func__", hook)
    module = getattr(hook, "__module__", None) or type(hook).__module__
    return module.startswith("torch.distributed.") and "checkpoint" not in module


def _read_anew(layer: nn.RNNBase) -> None:
    """Recurrent layers keep a list of their weights, made at the start."""

    def read(layer: Any, _args: Any) -> None:
        layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]

    def drop(layer: Any, _args: Any, _output: Any) -> None:
        layer._flat_weights = []

    layer.register_forward_pre_hook(read)
    layer.register_forward_hook(drop)
    layer.__dict__["_flat_weights"] = []
