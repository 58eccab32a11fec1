"""Memory of a step in copies of the weights: what a variant holds beyond weights and gradient."""

import gc
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from landscape import sam

SIZE = 1 << 19


def _tensors() -> list[torch.Tensor]:
    return [t for t in gc.get_objects() if type(t) in (torch.Tensor, nn.Parameter)]


def _live() -> int:
    """Bytes of all tensors that Python can reach, each storage once."""
    sizes = {}
    for t in _tensors():
        storage = t.untyped_storage()
        sizes[storage.data_ptr()] = storage.nbytes()
        if t.is_leaf and t.grad is not None:
            storage = t.grad.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


class _Peak(TorchDispatchMode):
    """The largest `_live()` after any operation."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self.bytes = max(self.bytes, _live())
        return out


def _model() -> nn.Module:
    """Four matrices and two norm layers."""
    width = int((SIZE // 4) ** 0.5)
    layers: list[nn.Module] = []
    for _ in range(4):
        layers += [nn.Linear(width, width), nn.LayerNorm(width), nn.Tanh()]
    return nn.Sequential(*layers)


def measure(variant: sam.Variant, *, keep: bool) -> dict[str, float]:
    """Held while pass 2 runs, peak of the whole step and kept between steps, in units of P.

    Weights, the current gradient and the base optimizer's state are not counted; activations are
    not either (gradients are handed out, not computed).
    """
    model = _model()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    optimizer = sam.SAM(
        model, torch.optim.SGD(model.parameters(), lr=1e-3), variant, keep_perturbation=keep
    )
    data = torch.randn(4, model[0].in_features, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(4, dtype=torch.long)
    held: list[int] = []

    def losses(batch: Any) -> torch.Tensor:
        gc.collect()
        held.append(_live())
        values = nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")
        return (values, model(batch[0])) if "logits" in variant.needs else values

    batch = (data, classes, torch.arange(4))
    optimizer.set_fisher_data(losses, batch)
    for epoch in range(2):
        optimizer.begin_epoch(epoch, 10)
        optimizer.step(losses, batch)
    optimizer.zero_grad()
    gc.collect()
    idle = _live()
    model_and_data = _count(model, data)
    held.clear()
    with _Peak() as peak:
        optimizer.step(losses, batch)
    passes = held[:2] if len(held) > 1 else held
    return {
        "while_pass_2_runs": round((passes[-1] - model_and_data) / size, 2),
        "peak": round((peak.bytes - model_and_data) / size - 1, 2),
        "between_steps": round((idle - model_and_data) / size, 2),
    }


def _count(model: nn.Module, data: torch.Tensor) -> int:
    tensors = [*model.parameters(), *model.buffers(), data]
    return sum(t.numel() * t.element_size() for t in tensors)


VARIANTS = {
    "sgd": {},
    "sam": {"rho": 0.05},
    "asam": {"rho": 0.5},
    "fsam": {"rho": 0.05},
    "ssam_f": {"rho": 0.1, "num_samples": 4},
    "ssam_d": {"rho": 0.1},
    "sam_on": {"rho": 0.5},
    "zsharp": {"rho": 0.05},
    "lagnp": {"rho": 0.1},
    "gsam": {"rho": 0.05},
    "wsam": {"rho": 0.05},
    "looksam": {"rho": 0.05},
    "sampa": {"rho": 0.05},
    "async_sam": {"rho": 0.05},
    "sl_sam": {},
}


# Copies of the weights beyond weights and gradient that the methods need by their definitions.
PUBLISHED = {
    "sgd": 0, "sam": 1, "asam": 1, "fsam": 2, "ssam_f": 2, "ssam_d": 2, "sam_on": 1, "zsharp": 1,
    "lagnp": 2, "gsam": 2, "wsam": 2, "looksam": 2, "sampa": 3, "async_sam": 2, "sl_sam": 1,
}  # fmt: skip


def table() -> dict[str, Any]:
    """Every variant without and with `keep_perturbation` (what `optimizer.perturbation` shows)."""
    measure(sam.sgd(), keep=False)  # imports and makes much, which is not to be searched
    gc.collect()
    gc.freeze()
    try:
        return {
            name: {
                "published_at_most": PUBLISHED[name],
                "lean": measure(sam.make(name, options), keep=False),
                "with_perturbation_kept": measure(sam.make(name, options), keep=True),
            }
            for name, options in VARIANTS.items()
        }
    finally:
        gc.unfreeze()
