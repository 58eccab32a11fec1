"""Networks that the papers on SAM train, beside those of `resnet` and `vit`."""

import torch.nn.functional as F
from torch import Tensor, nn


class WideBlock(nn.Module):
    """BatchNorm and ReLU before each of two 3x3 convolutions (arXiv:1605.07146)."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(before)
        self.conv1 = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, bias=False)
        self.shortcut = None if before == width else nn.Conv2d(before, width, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, width, h / stride, w / stride)."""
        active = F.relu(self.bn1(x))
        kept = x if self.shortcut is None else self.shortcut(active)
        return kept + self.conv2(F.relu(self.bn2(self.conv1(active))))


class WideResNet(nn.Module):
    """Stem of 16 channels, three stages of `blocks` blocks of 16, 32, 64 times `factor`."""

    def __init__(self, blocks: int, factor: int, *, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        stages, before = [], 16
        for index, width in enumerate((16 * factor, 32 * factor, 64 * factor)):
            stage = []
            for position in range(blocks):
                stage.append(WideBlock(before, width, 2 if index and not position else 1))
                before = width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.bn = nn.BatchNorm2d(before)
        self.linear = nn.Linear(before, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, num_classes)."""
        return self.linear(F.relu(self.bn(self.stages(self.conv1(x)))).mean((2, 3)))


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, the 3x3 one with the stride, to four times the width."""

    def __init__(self, before: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, 4 * width, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * width)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or before != 4 * width:
            self.shortcut = nn.Sequential(
                nn.Conv2d(before, 4 * width, 1, stride, bias=False), nn.BatchNorm2d(4 * width)
            )

    def forward(self, x: Tensor) -> Tensor:
        """(n, before, h, w) -> (n, 4 width, h / stride, w / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(F.relu(self.bn2(self.conv2(out)))))
        return F.relu(out + self.shortcut(x))


class ImageNetResNet(nn.Module):
    """A 7x7 stem with pooling, four stages of bottlenecks (arXiv:1512.03385, Table 1)."""

    def __init__(self, blocks: tuple[int, ...], *, num_classes: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        stages, before = [], 64
        for index, count in enumerate(blocks):
            width, stage = 64 * 2**index, []
            for position in range(count):
                stage.append(Bottleneck(before, width, 2 if index and not position else 1))
                before = 4 * width
            stages.append(nn.Sequential(*stage))
        self.stages = nn.Sequential(*stages)
        self.linear = nn.Linear(before, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, num_classes)."""
        out = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.linear(self.stages(out).mean((2, 3)))


_VGG16 = (64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0)


class VGG(nn.Module):
    """3x3 convolutions with biases and BatchNorm, five poolings, mean, one linear layer."""

    def __init__(self, widths: tuple[int, ...], *, num_classes: int, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = channels
        for width in widths:
            if width:
                layers += [nn.Conv2d(before, width, 3, 1, 1), nn.BatchNorm2d(width), nn.ReLU()]
                before = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.linear = nn.Linear(before, num_classes)
        _initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) -> (n, num_classes); images of at least 32 x 32."""
        return self.linear(self.features(x).mean((2, 3)))


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):  # arXiv:1502.01852
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def wrn28_10(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """WRN-28-10 (arXiv:1605.07146): 36 536 884 parameters for 3 channels and 100 classes."""
    return WideResNet(4, 10, num_classes=num_classes, channels=input_shape[0])


def vgg16_bn(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """VGG-16 (arXiv:1409.1556, D) with BatchNorm and one linear layer, as for CIFAR.

    14 728 266 parameters for 3 channels and 10 classes.
    """
    return VGG(_VGG16, num_classes=num_classes, channels=input_shape[0])


def resnet50(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """ResNet-50 with the ImageNet stem: 25 557 032 parameters for 3 channels and 1 000 classes.

    The stride is in the 3x3 convolutions, as in today's libraries.
    """
    return ImageNetResNet((3, 4, 6, 3), num_classes=num_classes, channels=input_shape[0])
