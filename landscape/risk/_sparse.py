"""Tensors of any layout: torch knows no bytes, equality, or flat view of sparse ones."""

from collections.abc import Iterator

import torch
from torch import Tensor

_COMPRESSED_ROWS = (torch.sparse_csr, torch.sparse_bsr)
_COMPRESSED_COLUMNS = (torch.sparse_csc, torch.sparse_bsc)


def is_sparse(tensor: Tensor) -> bool:
    """Whether it holds indices and values, COO or compressed, and so has no rows to be taken."""
    return tensor.layout is not torch.strided


def parts_of(tensor: Tensor) -> tuple[Tensor, ...]:
    """The dense tensors that it is made of: itself, or indices and values."""
    if tensor.layout == torch.sparse_coo:
        return tensor._indices(), tensor._values()
    if tensor.layout in _COMPRESSED_ROWS:
        return tensor.crow_indices(), tensor.col_indices(), tensor.values()
    if tensor.layout in _COMPRESSED_COLUMNS:
        return tensor.ccol_indices(), tensor.row_indices(), tensor.values()
    return (tensor,)


def bytes_of(tensor: Tensor) -> int:
    """What it takes in memory."""
    return sum(part.nbytes for part in parts_of(tensor))


def content_of(tensor: Tensor) -> Iterator[bytes]:
    """The bytes of its values, part by part."""
    for part in parts_of(tensor.detach()):
        flat = part.resolve_conj().resolve_neg().cpu().contiguous().flatten()
        yield flat.view(torch.uint8).numpy().tobytes()


def equal(a: Tensor, b: Tensor) -> bool:
    """Same shape, dtype, layout, device and values; NaN is equal to NaN."""
    kind = [(t.shape, t.dtype, t.layout, t.device) for t in (a, b)]
    if kind[0] != kind[1]:
        return False
    return all(_alike(x, y) for x, y in zip(parts_of(a), parts_of(b), strict=True))


def _alike(a: Tensor, b: Tensor) -> bool:
    if a.shape != b.shape:
        return False
    if torch.equal(a, b):
        return True
    floats = a.is_floating_point() or a.is_complex()
    return floats and bool(((a == b) | (a.isnan() & b.isnan())).all())
