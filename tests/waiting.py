"""Operations that make the host wait for a device, noticed on any device."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode

WAITING = (
    "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select", "unique",
    "_unique2", "bincount",
)  # fmt: skip


class Waiting(TorchDispatchMode):
    """Collects the names of operations whose result the host must read: .item(), bool(), masks."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        name = function.overloadpacket.__name__
        indices = arguments[1] if name in ("index", "index_put", "index_put_") else ()
        masked = any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in indices)
        if name in WAITING or masked:
            self.seen.append(name)
        return function(*arguments, **(keywords or {}))
