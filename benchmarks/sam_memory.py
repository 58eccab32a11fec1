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
    """Copies of the weights beyond the weights, one gradient and the base optimizer's state.

    in_pass_2: the most held while pass 2 makes its gradients, when activations need the memory;
    peak: of the whole step, the arithmetic between the passes included; between_steps: kept for the
    next one (`.grad` set to None). The activations of the network are not counted.
    """
    model = _model()
    size = sum(p.numel() * p.element_size() for p in model.parameters())
    optimizer = sam.SAM(
        model, torch.optim.SGD(model.parameters(), lr=1e-3), variant, keep_perturbation=keep
    )
    data = torch.randn(4, model[0].in_features, generator=torch.Generator().manual_seed(0))
    classes = torch.zeros(4, dtype=torch.long)
    passes: list[list[int]] = []

    def losses(batch: Any) -> torch.Tensor:
        gc.collect()
        passes.append([])
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
    passes.clear()
    hooks = [
        p.register_post_accumulate_grad_hook(lambda _: passes[-1].append(_live()))
        for p in model.parameters()
    ]
    optimizer.step(losses, batch)
    held = max(passes[-1])
    for hook in hooks:
        hook.remove()
    optimizer.zero_grad()
    with _Peak() as peak:
        optimizer.step(losses, batch)

    def copies(found: int, gradients: int) -> float:
        return max(0.0, round((found - model_and_data) / size - gradients, 2))

    return {
        "in_pass_2": copies(held, 1),
        "peak": copies(peak.bytes, 1),
        "between_steps": copies(idle, 0),
    }


def perturbed_share(variant: sam.Variant) -> float:
    """The share of the weights that a variant moves."""
    model = _model()
    x = torch.randn(4, model[0].in_features, generator=torch.Generator().manual_seed(0))
    found = sam.perturb(variant, model, lambda b: model(b).square().mean(1), x, seed=0)
    return sum(int(m.sum()) for m in found.mask.values()) / sum(
        p.numel() for p in model.parameters()
    )


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
    "lagnp": {"rho": 0.1, "fraction": 0.5},
    "gsam": {"rho": 0.05},
    "wsam": {"rho": 0.05},
    "looksam": {"rho": 0.05},
    "sampa": {"rho": 0.05},
    "async_sam": {"rho": 0.05},
    "sl_sam": {},
}


# Copies of the weights beyond weights and gradient that the methods need by their definitions;
# None: the weights that they move. Async-SAM's one is each of two devices'.
BY_DEFINITION = {
    "sgd": 0, "sam": 1, "asam": 1, "fsam": 2, "ssam_f": 2, "ssam_d": 2, "sam_on": None, "zsharp": 1,
    "lagnp": None, "gsam": 2, "wsam": 2, "looksam": 2, "sampa": 3, "async_sam": 1, "sl_sam": 1,
}  # fmt: skip


def table() -> dict[str, Any]:
    """Every variant without and with `keep_perturbation` (what `optimizer.perturbation` shows)."""
    measure(sam.sgd(), keep=False)  # imports and makes much, which is not to be searched
    gc.collect()
    gc.freeze()
    try:
        rows = {}
        for name, options in VARIANTS.items():
            variant, bound = sam.make(name, options), BY_DEFINITION[name]
            rows[name] = {
                "by_definition": round(perturbed_share(variant), 2) if bound is None else bound,
                "lean": measure(variant, keep=False),
                "with_perturbation_kept": measure(variant, keep=True),
            }
        return rows
    finally:
        gc.unfreeze()
