"""Float64 throughout: what a model casts to float32, or makes in it, follows its weights."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

_WIDER = {torch.float32: torch.float64, torch.complex64: torch.complex128}


class Promoting(TorchDispatchMode):
    """Operations that ask for float32 give float64, and float32 beside float64 is made float64.

    A first state made by torch.zeros, a table of positions, a norm that is computed in float32: in
    exact arithmetic these are what they compute in float64. Half precision is left alone, it is
    meant. `changed`: whether an operation was another one without this.
    """

    def __init__(self) -> None:
        super().__init__()
        self.changed = False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:  # fmt: skip
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") in _WIDER:
            kwargs["dtype"], self.changed = _WIDER[kwargs["dtype"]], True
        dtypes = {t.dtype for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        mixed = dtypes & _WIDER.keys() and dtypes & set(_WIDER.values())
        if mixed and not func._schema.is_mutable:
            args, kwargs = tree_map(self._double, (args, kwargs))
            self.changed = True
        return func(*args, **kwargs)

    def _double(self, leaf: Any) -> Any:
        narrow = isinstance(leaf, Tensor) and leaf.dtype in _WIDER
        return leaf.to(_WIDER[leaf.dtype]) if narrow else leaf
