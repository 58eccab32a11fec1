"""Small models and batches for the tests of landscape.sam, all drawn from seeded generators."""

import torch
from torch import Tensor, nn

from landscape import sam


def reset(model: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter from a seeded normal; float64."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def cnn(seed: int = 0) -> nn.Module:
    """Conv, BatchNorm, linear: all kinds of tensors, 10 x 10 inputs of one channel, 5 classes."""
    return reset(
        nn.Sequential(
            nn.Conv2d(1, 4, 3, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            nn.Conv2d(4, 6, 3, stride=2),
            nn.BatchNorm2d(6, momentum=None),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(6 * 9, 5),
        ),
        seed,
    )


class Adapted(nn.Module):
    """Low-rank adapters on one of two linear layers, named as peft names them."""

    def __init__(self, seed: int = 0):
        super().__init__()
        self.flatten = nn.Flatten()
        self.inner = nn.Module()
        self.inner.base_layer = nn.Linear(100, 8)
        self.inner.lora_A = nn.ModuleDict({"default": nn.Linear(100, 2, bias=False)})
        self.inner.lora_B = nn.ModuleDict({"default": nn.Linear(2, 8, bias=False)})
        self.head = nn.Linear(8, 5)
        reset(self, seed)
        for p in (*self.inner.base_layer.parameters(), *self.head.parameters()):
            p.requires_grad_(False)

    def forward(self, x):
        x = self.flatten(x)
        low = self.inner.lora_B["default"](self.inner.lora_A["default"](x))
        return self.head(torch.tanh(self.inner.base_layer(x) + 3.0 * low))


def model_for(name: str) -> nn.Module:
    """The model on which the tests of all recipes run one."""
    return Adapted() if name == "flat_lora" else cnn()


def batch(seed: int = 0, size: int = 16) -> tuple[Tensor, Tensor, Tensor]:
    """(inputs, labels, indices)."""
    g = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(size, 1, 10, 10, generator=g, dtype=torch.float64)
    return x, torch.randint(0, 5, (size,), generator=g), torch.arange(size)


def losses_of(model: nn.Module, with_logits: bool = False):
    def losses(b):
        logits = model(b[0])
        values = nn.functional.cross_entropy(logits, b[1], reduction="none")
        return (values, logits) if with_logits else values

    return losses


def closure_of(model: nn.Module, b, calls: list | None = None):
    def closure():
        if calls is not None:
            calls.append([p.detach().clone() for p in model.parameters()])
        loss = nn.functional.cross_entropy(model(b[0]), b[1])
        loss.backward()
        return loss

    return closure


def sgd(model: nn.Module, **options) -> torch.optim.SGD:
    return torch.optim.SGD(
        model.parameters(), **({"lr": 0.05, "momentum": 0.9, "weight_decay": 5e-4} | options)
    )


REQUIRED = {
    "focal_sam": {"class_counts": (5, 4, 3, 2, 1)},
    "saf": {"num_examples": 16, "start_epoch": -1, "delay": 1},
    "mesa": {"start_epoch": -1, "decay": 0.5},
    "ssam_f": {"num_samples": 4},
    "bsam": {"num_examples": 200},
    "sassha": {"every": 2},
    "eigen_sam": {"every": 2},
    "flat_lora": {"scaling": 3.0, "total_steps": 5},
}


def variants() -> dict[str, sam.Variant]:
    """Every recipe, with the options it requires."""
    return {name: sam.make(name, REQUIRED.get(name, {})) for name in sam.recipes()}


def ready(model: nn.Module, variant: sam.Variant, base=None, seed: int = 3, **options) -> sam.SAM:
    """An optimizer that has been told everything that any variant may need."""
    optimizer = sam.SAM(model, base or sgd(model), variant, seed=seed, **options)
    optimizer.set_fisher_data(losses_of(model), batch())
    optimizer.begin_epoch(0, total_epochs=4)
    return optimizer


def step(optimizer: sam.SAM, b):
    """One step in the form that serves every variant."""
    return optimizer.step(losses_of(optimizer.model, "logits" in optimizer.variant.needs), b)


def weights(model: nn.Module) -> list[Tensor]:
    return [p.detach().clone() for p in model.parameters()]


def same(a, b) -> bool:
    """Bit-identical lists of tensors."""
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def furthest(a, b) -> float:
    return max(float((x - y).abs().max()) for x, y in zip(a, b, strict=True))
