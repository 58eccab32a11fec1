"""Layers of a private copy whose derivatives torch gets wrong, scales or leaves out, made exact.

A risk is differentiated as a function of theta. torch's fused weight norm has a wrong second
derivative (`torch.autograd.gradgradcheck` of `torch._weight_norm` fails), embeddings may leave out
or rescale rows of the gradient, or make it sparse, EmbeddingBag has no second derivative, and
Householder's orthogonal map lets the loss jump exactly where its weights lie.
"""

from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrize

from landscape.errors import LandscapeError


def make_exact(model: nn.Module) -> None:
    """Change these layers of the model in place; the values that they compute stay."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            _embedding(name, module)
        elif isinstance(module, parametrize.ParametrizationList):
            for part in module:
                if type(part).__name__ == "_WeightNorm":
                    part.forward = partial(_normed, dim=part.dim)
                elif type(part).__name__ == "_Orthogonal" and _holds_signs(part, module):
                    part.forward = MethodType(_orthogonal, part)
        elif hasattr(module, "_orig_mod"):
            # Compiled: kernels for one derivative at most.
            module.__dict__["forward"] = module._orig_mod  # its setattr is that of the inner one
        if getattr(module, "_compiled_call_impl", None) is not None:
            module._compiled_call_impl = None
        for key, hook in module._forward_pre_hooks.items():
            if type(hook).__name__ == "WeightNorm":
                module._forward_pre_hooks[key] = partial(_old_weight_norm, hook)


def _normed(g: Tensor, v: Tensor, *, dim: int) -> Tensor:
    """W = g v / ‖v‖ (arXiv:1602.07868, Eq. 2), the norm over all axes but `dim`."""
    return v * (g / torch.norm_except_dim(v, 2, dim))


def _old_weight_norm(hook: Any, module: nn.Module, _args: Any) -> None:
    g, v = (getattr(module, f"{hook.name}_{part}") for part in "gv")
    setattr(module, hook.name, _normed(g, v, dim=hook.dim))


def _holds_signs(part: Any, module: nn.Module) -> bool:
    """Householder's map, whose signs lie on the diagonal of the weight, where they are whole."""
    X = module.original
    if part.orthogonal_map.name != "householder" or not isinstance(X, Tensor):
        return False
    signs = X.detach().diagonal(dim1=-2, dim2=-1)
    return bool(signs.equal(signs.round()))


def _orthogonal(part: Any, X: Tensor) -> Tensor:
    """Signs rounded, where torch cuts them off: 0.9999 would be 0, so that the loss jumps at 1."""
    signs = X.detach().diagonal(dim1=-2, dim2=-1).round()
    return type(part).forward(part, X.diagonal_scatter(signs, dim1=-2, dim2=-1))


def _embedding(name: str, module: nn.Embedding | nn.EmbeddingBag) -> None:
    if module.max_norm is not None:
        raise LandscapeError(
            f"Layer {name!r} ({type(module).__name__}) has max_norm={module.max_norm}: it rewrites "
            f"its weights within forward, so the loss is no function of theta. Project them once "
            f"and take the limit away: layer.weight.data.renorm_({module.norm_type}, 0, "
            f"{module.max_norm}); layer.max_norm = None."
        )
    if type(module).forward is nn.Embedding.forward:
        module.forward = MethodType(_lookup, module)
    elif type(module).forward is nn.EmbeddingBag.forward:
        module.forward = MethodType(_bag, module)
    else:
        module.sparse = module.scale_grad_by_freq = False
        if isinstance(module, nn.Embedding):
            module.padding_idx = None


def _lookup(layer: nn.Embedding, input: Tensor) -> Tensor:
    """Rows; padding_idx only keeps its row out of the gradient, although the loss reads it."""
    return F.embedding(input, layer.weight)


def _bag(
    layer: nn.EmbeddingBag,
    input: Tensor,
    offsets: Tensor | None = None,
    per_sample_weights: Tensor | None = None,
) -> Tensor:
    """EmbeddingBag in operations that can be differentiated twice."""
    if input.ndim == 2:
        width = input.shape[1]
        offsets = torch.arange(0, input.numel(), max(1, width), device=input.device)
        bags = len(input)
    elif offsets is None:
        raise LandscapeError(
            "An EmbeddingBag was called with a flat list of indices and no offsets; give where "
            "each bag begins, or indices of shape (bags, n)."
        )
    else:
        bags = len(offsets) - bool(layer.include_last_offset)
    indices = input.reshape(-1)
    ends = torch.cat([offsets[1:bags], offsets.new_tensor([len(indices)])])
    if layer.include_last_offset and input.ndim == 1:
        ends = offsets[1:]
    places = torch.arange(bags, device=input.device).repeat_interleave(
        (ends - offsets[:bags]).long()
    )
    rows = F.embedding(indices, layer.weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.reshape(-1, 1)
    if layer.padding_idx is not None:
        kept = indices != layer.padding_idx
        rows, places = rows[kept], places[kept]
    out = rows.new_zeros(bags, rows.shape[1])
    if layer.mode == "max":
        index = places[:, None].expand_as(rows)
        return out.scatter_reduce(0, index, rows, "amax", include_self=False)
    out = out.index_add(0, places, rows)
    if layer.mode == "mean":
        counts = torch.bincount(places, minlength=bags).clamp(min=1).to(out)
        out = out / counts[:, None]
    return out
