"""What modules keep in plain attributes: no buffer, so that both passes of a step advance it."""

from collections import deque
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

Kept = Tensor | list[Any]
_MOST = 1 << 24  # entries of an attribute that is copied; data lie in larger ones


class PlainState:
    """Plain tensors of a model, and lists and deques of tensors, at three moments of a step.

    An attribute advances where pass 1 changed it, and pass 2 again while some of it stayed: rows of
    a queue that are written or shifted, items of a deque. What is made anew in each pass (features,
    attention maps) keeps nothing; with a graph it is no state.
    """

    def __init__(self) -> None:
        self._seen: list[dict[str, Kept]] = []

    @torch.no_grad()
    def look(self, model: nn.Module, *, begin: bool = False) -> None:
        """Remember them; at the begin of a step, or after one of its passes."""
        self._seen = [*([] if begin else self._seen), _found(model)]

    def advanced(self) -> list[str]:
        """Names of those that both passes advanced; forgets what was seen."""
        seen, self._seen = self._seen, []
        if len(seen) != 3:
            return []
        before, between, after = seen
        return [
            name
            for name, now in after.items()
            if name in before
            and name in between
            and not _equal(before[name], between[name])
            and _is_continued(between[name], now)
        ]


def told(names: list[str]) -> str:
    """The sentence about them."""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return (
        f"{names[0]!r}{more} of the model advanced in both passes of a step: it is a plain "
        "attribute, which is not put back as buffers are. Keep it as a tensor that is registered "
        "(self.register_buffer(name, tensor)) and written in forward; then bn= says which pass "
        "advances it."
    )


def _found(model: nn.Module) -> dict[str, Kept]:
    out: dict[str, Kept] = {}
    for prefix, module in model.named_modules():
        for name, value in vars(module).items():
            full = f"{prefix}.{name}" if prefix else name
            if isinstance(value, Tensor) and _is_small_state(value):
                out[full] = value.detach().clone()
            elif isinstance(value, (list, deque)) and any(isinstance(x, Tensor) for x in value):
                out[full] = list(value)
            elif isinstance(value, deque):  # to be filled
                out[full] = []
    return out


def _is_small_state(value: Tensor) -> bool:
    plain = value.layout == torch.strided and not value.requires_grad
    return plain and value.ndim > 0 and value.numel() <= _MOST


def _equal(a: Kept, b: Kept) -> bool:
    if isinstance(a, Tensor) or isinstance(b, Tensor):
        return isinstance(a, Tensor) and isinstance(b, Tensor) and torch.equal(a, b)
    return list(map(id, a)) == list(map(id, b))


def _is_continued(old: Kept, new: Kept) -> bool:
    """Whether some of the old is there and something else is new."""
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        same = old.shape == new.shape and old.dtype == new.dtype
        return same and any(
            _share(_rows(old, dim), _rows(new, dim)) for dim in {0, old.ndim - 1}
        )  # fmt: skip
    if isinstance(old, list) and isinstance(new, list):
        return _share(map(id, old), map(id, new))
    return False


def _share(old: Iterable[Any], new: Iterable[Any]) -> bool:
    old, new = set(old), set(new)
    return bool(old & new) and bool(new - old)


def _rows(x: Tensor, dim: int) -> list[bytes]:
    """The slices along a dimension that are not zero."""
    rows = x.movedim(dim, 0).reshape(x.shape[dim], -1).cpu().contiguous()
    rows = rows[rows.ne(0).any(1)]
    return [row.tobytes() for row in rows.view(torch.uint8).numpy()] if len(rows) else []
