"""The two models of the reference trajectories, built from the stored problem."""

from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

BATCH, EPOCHS = 32, 4


class Mean(nn.Module):
    """Mean over height and width."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(dim=(2, 3))


def mlp() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            fc1=nn.Linear(20, 32),
            bn1=nn.BatchNorm1d(32),
            relu1=nn.ReLU(),
            fc2=nn.Linear(32, 16),
            bn2=nn.BatchNorm1d(16),
            relu2=nn.ReLU(),
            fc3=nn.Linear(16, 5),
        )
    )


def cnn() -> nn.Module:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 8, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(8),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False),
            bn2=nn.BatchNorm2d(16),
            relu2=nn.ReLU(),
            mean=Mean(),
            fc=nn.Linear(16, 5),
        )
    )


MODELS = {"mlp": mlp, "cnn": cnn}


@dataclass
class Problem:
    """A model at its stored initial weights, and the stored examples in order."""

    kind: str
    model: nn.Module
    x: Tensor
    y: Tensor

    @staticmethod
    def load(folder: Path, kind: str) -> "Problem":
        with np.load(folder / f"problem_{kind}.npz") as stored:
            arrays = {k: stored[k] for k in stored.files}
        model = MODELS[kind]().double()
        weights = {
            k.removeprefix("param:"): torch.from_numpy(v)
            for k, v in arrays.items()
            if k.startswith("param:")
        }
        missing, unexpected = model.load_state_dict(weights, strict=False)
        parameters = {n for n, _ in model.named_parameters()}
        if unexpected or parameters & set(missing):
            raise ValueError(f"problem_{kind}.npz holds other tensors than the model: {unexpected}")
        x = torch.from_numpy(arrays["x"]).double()
        return Problem(kind, model.train(), x, torch.from_numpy(arrays["y"]).long())

    def batches(self):
        """(epoch, batch) for every step."""
        for epoch in range(EPOCHS):
            for i in range(0, len(self.x), BATCH):
                yield epoch, (self.x[i : i + BATCH], self.y[i : i + BATCH])

    def flat(self) -> np.ndarray:
        parts = [p.detach().reshape(-1) for p in self.model.parameters()]
        return torch.cat(parts).numpy().copy()

    def unflatten(self, flat: np.ndarray) -> dict[str, Tensor]:
        out, start = {}, 0
        for name, p in self.model.named_parameters():
            out[name] = torch.from_numpy(np.ascontiguousarray(flat[start : start + p.numel()]))
            out[name] = out[name].view(p.shape)
            start += p.numel()
        return out
