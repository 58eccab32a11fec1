"""The networks that several benchmarks measure, and images for them to be trained on briefly."""

import torch
from torch import Tensor, nn

from landscape.problems.vit import ViT

SHAPE = (3, 32, 32)


def cnn() -> nn.Module:
    """54 682 parameters: three convolutions with BatchNorm and ReLU, mean, linear."""
    layers: list[nn.Module] = []
    for before, width, stride in ((3, 24, 1), (24, 48, 2), (48, 98, 2)):
        layers += [nn.Conv2d(before, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width),
                   nn.ReLU()]  # fmt: skip
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(98, 10))


def cifar_vit() -> nn.Module:
    """308 042 parameters: patches of 4, width 64, six blocks of four heads."""
    return ViT(image=SHAPE, patch=4, dim=64, depth=6, heads=4, num_classes=10)


def noisy_prototypes(examples: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images of ten random prototypes with noise as strong as they are."""
    y = torch.randint(10, (examples,), generator=source)
    x = torch.randn(10, *SHAPE, generator=source)[y]
    return x + torch.randn(x.shape, generator=source), y


def train_briefly(
    model: nn.Module, x: Tensor, y: Tensor, steps: int, source: torch.Generator
) -> None:
    """Steps of SGD on batches of 32, away from the symmetries of the initial weights."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    for _ in range(steps):
        rows = torch.randint(len(x), (32,), generator=source)
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimizer.step()
    optimizer.zero_grad()


def settle_statistics(model: nn.Module, x: Tensor, times: int = 50) -> None:
    """Running statistics of BatchNorm for the weights as they are: brief training lags behind."""
    model.train()
    with torch.no_grad():
        for _ in range(times):
            model(x)
    model.eval()
