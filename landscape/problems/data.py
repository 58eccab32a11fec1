"""Data by name: whole splits in memory, as tensors."""

import random
from collections.abc import Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from landscape.errors import LandscapeError
from landscape.problems.cifar import read_cifar
from landscape.problems.images import Images, check_memory, read_folders, read_svhn
from landscape.problems.noise import CIFAR10_PAIRS, flip_labels
from landscape.problems.own import call_with_accepted, import_object
from landscape.problems.splits import DataSplits, Split, as_splits

DATA = ("digits", "mnist1d", "cifar10", "cifar100", "svhn", "tiny_imagenet", "imagenet")
SPLITS = {
    "digits": (1000, 297, 500),
    "mnist1d": (3500, 500, 1000),
    "cifar10": (45000, 5000, 10000),
    "cifar100": (45000, 5000, 10000),
    "svhn": (65931, 7326, 26032),
    "tiny_imagenet": (90000, 10000, 10000),
    "imagenet": (1231167, 50000, 50000),
}


def load_data(
    name: str,
    *,
    data_dir: str | Path | None = None,
    label_noise: float = 0.0,
    noise_kind: str = "symmetric",
    seed: int = 0,
    noise_seed: int | None = None,
    splits: tuple[int, int, int] | None = None,
    verify: bool = True,
) -> DataSplits:
    """Train, validation and test data, standardized by the training inputs' mean and sd.

    name: "digits" (1 797 scans, 1x8x8, of scikit-learn), "mnist1d" (arXiv:2011.14439, 1x40,
    generated with its published seed), "cifar10", "cifar100", "svhn" (3x32x32), "tiny_imagenet"
    (3x64x64), "imagenet" (3x224x224; splits that fit the memory), these from data_dir, or
    "package.module:callable" of yours, called with those of data_dir, label_noise, noise_kind,
    seed, noise_seed and splits that it accepts; it returns what `as_splits` reads, its label noise
    made by itself.
    label_noise: share of training and validation labels replaced (see `flip_labels`); test labels
    are clean. seed: of the stratified split and of the noise, so that all trainings share the
    data. noise_seed: of the noise alone; None: `seed`. splits: numbers of training, validation and
    test examples. verify=False reads CIFAR files whose checksum is not the published one. No global
    random state is altered.

    Example:
        >>> digits = problems.load_data("digits", label_noise=0.2)
        >>> tuple(digits.train.x.shape), digits.num_classes
        ((1000, 1, 8, 8), 10)
    """
    if ":" in name:
        options = {"data_dir": data_dir, "label_noise": label_noise, "noise_kind": noise_kind}
        seeds = {"seed": seed, "noise_seed": noise_seed}
        made = call_with_accepted(import_object(name), options | seeds | {"splits": splits})
        return as_splits(made, name=name)
    if name not in DATA:
        raise LandscapeError(
            f"data={name!r} is unknown; choose one of {', '.join(DATA)}, or give "
            f"'package.module:callable'."
        )
    sizes = SPLITS[name] if splits is None else tuple(splits)
    x, y, num_test, classes, origin = _raw(name, data_dir, verify)
    chosen = _choose(name, y, num_test, sizes, seed)
    if isinstance(x, Images):
        check_memory(name, x.shape, sizes)
    noise = seed if noise_seed is None else noise_seed
    labels = [_noisy(name, y[i], label_noise, noise_kind, classes, (noise, part), part == 2)
              for part, i in enumerate(chosen)]  # fmt: skip
    inputs = [x[i] for i in chosen]
    mean, std = _moments(inputs[0])
    parts = [
        Split(
            torch.from_numpy(((part - mean) / std).astype(np.float32)),
            torch.from_numpy(noisy.astype(np.int64)),
            torch.from_numpy(y[i].astype(np.int64)),
        )
        for i, part, noisy in zip(chosen, inputs, labels, strict=True)
    ]
    said = {
        "data": name, "splits": list(sizes), "label_noise": label_noise, "noise_kind": noise_kind,
        "data_seed": seed, **({} if noise_seed is None else {"noise_seed": noise_seed}),
        "wrong_labels": [int(part.wrong.sum()) for part in parts],
        "input_mean": mean.ravel().tolist(), "input_std": std.ravel().tolist(), **origin,
    }  # fmt: skip
    return DataSplits(*parts, num_classes=classes, name=name, provenance=said)


def _raw(
    name: str, data_dir: str | Path | None, verify: bool
) -> tuple[np.ndarray | Images, np.ndarray, int, int, dict[str, Any]]:
    """Inputs, labels, number of test examples at the end (0: none set apart), classes, origin."""
    if name == "digits":
        from sklearn.datasets import load_digits

        bunch = load_digits()
        x = (bunch.images / 16.0).astype(np.float32)[:, None]
        return x, bunch.target, 0, 10, {"source": "scikit-learn load_digits (UCI optdigits)"}
    if name == "mnist1d":
        x, y, num_test = _mnist1d()
        return x, y, num_test, 10, {"source": "mnist1d.data.make_dataset, seed 42"}
    if name == "svhn":
        return read_svhn(data_dir, verify=verify)
    if name in ("tiny_imagenet", "imagenet"):
        return read_folders(name, data_dir)
    return read_cifar(name, data_dir, verify=verify)


@lru_cache(maxsize=1)
def _mnist1d() -> tuple[np.ndarray, np.ndarray, int]:
    """The canonical 5 000 signals, training part first."""
    with _global_random_state():
        from mnist1d.data import get_dataset_args, make_dataset

        made = make_dataset(get_dataset_args())
    x = np.concatenate([made["x"], made["x_test"]]).astype(np.float32)[:, None]
    return x, np.concatenate([made["y"], made["y_test"]]), len(made["y_test"])


@contextmanager
def _global_random_state():
    """The generator of MNIST-1D seeds numpy's and Python's global state: put both back."""
    ours, theirs = np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(ours)  # noqa: NPY002
        random.setstate(theirs)


def _choose(
    name: str, y: np.ndarray, num_test: int, sizes: Sequence[int], seed: int
) -> list[np.ndarray]:
    """Stratified indices of the three parts; test is drawn from the published test set if any."""
    pools = (len(y) - num_test, num_test) if num_test else (len(y), len(y))
    fits = (
        sizes[0] + sizes[1] <= pools[0] and sizes[2] <= pools[1]
        if num_test
        else sum(sizes) <= len(y)
    )
    if len(sizes) != 3 or min(sizes) < 1 or not fits:
        have = f"{pools[0]} + {num_test} for test" if num_test else f"{len(y)}"
        raise LandscapeError(
            f"splits={tuple(sizes)} were asked of {name}, which has {have} examples; give three "
            f"positive numbers (train, validation, test) that fit."
        )
    train_val = _stratified(y[: pools[0]], np.random.default_rng([seed, 10]))
    cut = np.cumsum(sizes)
    if not num_test:
        return [train_val[: cut[0]], train_val[cut[0] : cut[1]], train_val[cut[1] : cut[2]]]
    test = np.sort(_stratified(y[pools[0] :], np.random.default_rng([seed, 11]))[: sizes[2]])
    return [train_val[: cut[0]], train_val[cut[0] : cut[1]], pools[0] + test]


def _stratified(y: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """An order of the examples of which every stretch has the classes in proportion (± 1)."""
    place = np.empty(len(y))
    for label in np.unique(y):
        members = generator.permutation(np.flatnonzero(y == label))
        place[members] = (np.arange(len(members)) + generator.random()) / len(members)
    return np.argsort(place, kind="stable")


def _noisy(
    name: str,
    y: np.ndarray,
    rate: float,
    kind: str,
    classes: int,
    key: tuple[int, int],
    clean: bool,
) -> np.ndarray:
    return flip_labels(
        y,
        0.0 if clean else rate,
        num_classes=classes,
        kind=kind,
        generator=np.random.default_rng([*key, 20]),
        pairs=CIFAR10_PAIRS if name == "cifar10" else None,
    )


def _moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sd per channel of an image with several channels, of everything otherwise."""
    axes = (0, *range(2, x.ndim)) if x.ndim == 4 and x.shape[1] > 1 else None
    mean = x.mean(axis=axes, keepdims=True, dtype=np.float64)
    std = x.std(axis=axes, keepdims=True, dtype=np.float64)
    return mean.astype(np.float32), std.astype(np.float32)
