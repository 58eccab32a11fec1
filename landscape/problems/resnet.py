"""Residual networks for 32x32 images (arXiv:1512.03385)."""

import torch.nn.functional as F
from torch import Tensor, nn

from landscape.errors import LandscapeError


class Shortcut(nn.Module):
    """Option A (arXiv:1512.03385 §3.3): subsample, and fill the new channels with zeros."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.stride, self.extra = stride, width - before

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, width, h / stride, w / stride)."""
        x = x[:, :, :: self.stride, :: self.stride]
        left = self.extra // 2
        return F.pad(x, (0, 0, 0, 0, left, self.extra - left))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with BatchNorm, and a shortcut that option "B" projects if needed."""

    def __init__(self, before: int, width: int, stride: int, option: str) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != width:
            self.shortcut = (
                Shortcut(before, width, stride)
                if option == "A"
                else nn.Sequential(
                    nn.Conv2d(before, width, 1, stride, bias=False), nn.BatchNorm2d(width)
                )
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, width, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem without pooling, stages of blocks that halve the image, mean, linear."""

    def __init__(
        self,
        blocks: tuple[int, ...],
        widths: tuple[int, ...],
        *,
        num_classes: int,
        channels: int = 3,
        option: str = "B",
    ) -> None:
        super().__init__()
        if option not in ("A", "B"):
            raise LandscapeError(f"option={option!r} is unknown; choose 'A' or 'B'.")
        self.conv1 = nn.Conv2d(channels, widths[0], 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        stages, before = [], widths[0]
        for index, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if index == 0 else 2] + [1] * (count - 1)
            stage = []
            for stride in strides:
                stage.append(BasicBlock(before, width, stride, option))
                before = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(before, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):  # arXiv:1502.01852
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, num_classes)."""
        out = self.stages(F.relu(self.bn1(self.conv1(x))))
        return self.linear(out.mean((2, 3)))


def resnet18(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """ResNet-18 with the CIFAR stem: 11 173 962 parameters for 3 channels and 10 classes."""
    return ResNet(
        (2, 2, 2, 2), (64, 128, 256, 512), num_classes=num_classes, channels=input_shape[0]
    )


def resnet20(*, num_classes: int, input_shape: tuple[int, ...], option: str = "A") -> nn.Module:
    """ResNet-20 of §4.2: 269 722 parameters for 3 channels and 10 classes (option "B": 272 474)."""
    return ResNet(
        (3, 3, 3), (16, 32, 64), num_classes=num_classes, channels=input_shape[0], option=option
    )


def resnet56(*, num_classes: int, input_shape: tuple[int, ...], option: str = "A") -> nn.Module:
    """ResNet-56 of §4.2: 853 018 parameters for 3 channels and 10 classes (0.85 M, Table 6)."""
    return ResNet(
        (9, 9, 9), (16, 32, 64), num_classes=num_classes, channels=input_shape[0], option=option
    )
