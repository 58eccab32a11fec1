"""A small seeded problem, and a training of it that another process can run."""

import sys
from pathlib import Path

import torch
from torch import nn

from landscape import problems, sam, training

RECIPES = {
    "sgd": {}, "sam": {"rho": 0.2}, "asam": {"rho": 0.5}, "fsam": {"rho": 0.2},
    "sam_on": {"rho": 0.2}, "ssam_f": {"rho": 0.2, "num_samples": 8}, "ssam_d": {"rho": 0.2},
    "zsharp": {"rho": 0.2}, "lagnp": {"rho": 0.2}, "random_mask": {"rho": 0.2},
}  # fmt: skip


def variant(name):
    return sam.make(name, RECIPES[name])


def data(n=96):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n + 40, 6, generator=generator)
    y = (x[:, :3].argmax(1) + (x[:, 3] > 1)) % 3
    parts = [(x[:n], y[:n]), (x[n : n + 20], y[n : n + 20]), (x[n + 20 :], y[n + 20 :])]
    return problems.as_splits(parts, name="made up")


def model(seed=0, dropout=0.0):
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Dropout(dropout), nn.Linear(12, 3)
        )


def train(folder, name="sam", *, seed=0, dropout=0.0, epochs=3, **options):
    made = model(seed, dropout)
    progress = options.pop("progress", None)
    recorder = options.pop("recorder", training.RecorderOptions())
    loss = options.pop("loss", None)
    result = training.train(
        made, data(), variant(name) if isinstance(name, str) else name,
        training.TrainingOptions(**{"epochs": epochs, "batch_size": 16, "lr": 0.1} | options),
        seed=seed, folder=Path(folder), progress=progress, recorder=recorder, loss=loss,
    )  # fmt: skip
    return made, result


if __name__ == "__main__":
    torch.set_num_threads(1)
    train(sys.argv[1], sys.argv[2], dropout=0.2, epochs=int(sys.argv[3]))
