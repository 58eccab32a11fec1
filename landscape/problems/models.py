"""Models by name, with the parameter counts of the literature, and reproducible initial weights."""

import math
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.problems.own import call_with_accepted, import_object
from landscape.problems.published import resnet50, vgg16_bn, wrn28_10
from landscape.problems.resnet import resnet18, resnet20, resnet56
from landscape.problems.vit import vit_small, vit_tiny


def cnn(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Three 3x3 convolutions (16, 32, 64; strides 1, 2, 2) with BatchNorm and ReLU, mean, linear.

    24 058 parameters on 1x8x8 inputs with 10 classes. input_shape: (channels, height, width).
    """
    before = _shape("cnn", input_shape, 3, "(channels, height, width)")[0]
    layers: dict[str, nn.Module] = {}
    for i, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2)), start=1):
        layers[f"conv{i}"] = nn.Conv2d(before, width, 3, stride, 1, bias=False)
        layers[f"norm{i}"], layers[f"relu{i}"] = nn.BatchNorm2d(width), nn.ReLU()
        before = width
    layers |= {"mean": Mean((2, 3)), "head": nn.Linear(before, num_classes)}
    return nn.Sequential(OrderedDict(layers))


def cnn1d(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """The 1-D CNN of MNIST-1D (arXiv:2011.14439) with BatchNorm: 25 channels, strides 2, linear.

    5 285 parameters on 1x40 inputs with 10 classes: the paper's 5 210 less 75 convolution biases
    plus 150 of BatchNorm. input_shape: (channels, length).
    """
    before, length = _shape("cnn1d", input_shape, 2, "(channels, length)")
    layers: dict[str, nn.Module] = {}
    for i, kernel in enumerate((5, 3, 3), start=1):
        layers[f"conv{i}"] = nn.Conv1d(before, 25, kernel, 2, 1, bias=False)
        layers[f"norm{i}"], layers[f"relu{i}"] = nn.BatchNorm1d(25), nn.ReLU()
        before, length = 25, (length + 2 - kernel) // 2 + 1
    layers |= {"flat": nn.Flatten(), "head": nn.Linear(before * length, num_classes)}
    return nn.Sequential(OrderedDict(layers))


def mlp(*, num_classes: int, input_shape: tuple[int, ...]) -> nn.Module:
    """Two hidden layers of 100, ReLU: 15 210 parameters on MNIST-1D (arXiv:2011.14439)."""
    size = math.prod(input_shape)
    layers = {
        "flat": nn.Flatten(),
        "linear1": nn.Linear(size, 100),
        "relu1": nn.ReLU(),
        "linear2": nn.Linear(100, 100),
        "relu2": nn.ReLU(),
        "head": nn.Linear(100, num_classes),
    }
    return nn.Sequential(OrderedDict(layers))


class Mean(nn.Module):
    """Average over some axes."""

    def __init__(self, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes

    def forward(self, x: Tensor) -> Tensor:
        """(n, c, ...) -> (n, c)."""
        return x.mean(self.axes)

    def extra_repr(self) -> str:
        """The axes."""
        return str(self.axes)


def _shape(model: str, found: tuple[int, ...], ndim: int, wanted: str) -> tuple[int, ...]:
    if len(found) != ndim:
        raise LandscapeError(
            f"model={model!r} takes inputs {wanted} and the data have shape {tuple(found)}; choose "
            f"another of {', '.join(MODELS)}."
        )
    return tuple(found)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn": cnn,
    "cnn1d": cnn1d,
    "mlp": mlp,
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet50": resnet50,
    "resnet56": resnet56,
    "vgg16_bn": vgg16_bn,
    "vit": vit_tiny,
    "vit_s": vit_small,
    "wrn28_10": wrn28_10,
}
_IMAGES = tuple(name for name in MODELS if name not in ("cnn", "cnn1d", "mlp"))


def make_model(
    name: str, *, num_classes: int, input_shape: tuple[int, ...], seed: int
) -> nn.Module:
    """A model in train mode on the CPU, its initial weights a function of `seed` alone.

    name: one of `MODELS`, or "package.module:callable", called with those of num_classes,
    input_shape and seed that it accepts. The global random state is as before afterwards.

    Example:
        >>> net = problems.make_model("mlp", num_classes=10, input_shape=(1, 8, 8), seed=0)
        >>> tuple(net(torch.zeros(2, 1, 8, 8)).shape)
        (2, 10)
    """
    if ":" not in name and name not in MODELS:
        raise LandscapeError(
            f"model={name!r} is unknown; choose one of {', '.join(MODELS)}, or give "
            f"'package.module:callable'."
        )
    if name in _IMAGES:
        _shape(name, input_shape, 3, "(channels, height, width)")
    make = MODELS[name] if name in MODELS else import_object(name)
    options = {"num_classes": num_classes, "input_shape": tuple(input_shape), "seed": seed}
    # Constructors draw from the global generator: lend it to them, seeded, and put it back.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        model = call_with_accepted(make, options)
    if not isinstance(model, nn.Module):
        raise LandscapeError(f"{name} returned {type(model).__name__} and not a torch.nn.Module.")
    return model.train()


LOSSES: dict[str, Callable[[], Any]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "mse": nn.MSELoss,
    "model": lambda: "model",
    "causal_lm": lambda: "causal_lm",
}


def make_loss(name: str) -> Any:
    """The criterion loss(output, target), a mean: one of `LOSSES`, or your own.

    "model" and "causal_lm" stay names, as `EmpiricalRisk` takes them: the output's own loss, and
    the next token's. "package.module:callable" names either the criterion itself, a function of
    (model, batch), or a class or factory without arguments that makes one.

    Example:
        >>> loss = problems.make_loss("cross_entropy")(torch.zeros(1, 2), torch.tensor([0]))
        >>> round(float(loss), 4)
        0.6931
    """
    if name in LOSSES:
        return LOSSES[name]()
    if ":" not in name:
        raise LandscapeError(
            f"loss={name!r} is unknown; choose one of {', '.join(LOSSES)}, or give "
            f"'package.module:callable'."
        )
    found = import_object(name)
    return found() if isinstance(found, type) and issubclass(found, nn.Module) else found
