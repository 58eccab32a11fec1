"""Overlap of two masks against permuted filters, which are correlated inside as weights are."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from landscape.params import TensorInfo
from landscape.plane import Filters, is_one_d
from landscape.streams import Overlap


@dataclass(frozen=True)
class FilterNull:
    """Overlap o when the filters of the second mask are permuted as wholes.

    mean and variance (T,) per tensor are exact, drawn (T, draws) are overlaps of random orders.
    """

    mean: np.ndarray
    variance: np.ndarray
    drawn: np.ndarray


class Permutations:
    """Seeded permutations of the filters of each tensor, the same for every pair of masks."""

    def __init__(self, rule: Filters, *, count: int, seed: int) -> None:
        self.rule, self.count = rule, count
        self._source, self._singles = (np.random.default_rng([seed, i]) for i in (0, 1))
        self._orders: dict[int, Int[Tensor, "count F"]] = {}

    def _of(self, filters: int, device: torch.device) -> Int[Tensor, "count F"]:
        if filters not in self._orders:
            same = np.tile(np.arange(filters), (self.count, 1))
            self._orders[filters] = torch.from_numpy(self._source.permuted(same, axis=1)).to(device)
        return self._orders[filters]

    def null(self, first: Bool[Tensor, "P"], second: Bool[Tensor, "P"]) -> FilterNull:
        """The null of two masks.

        With O_ij = |A_i and B_j| over the F filters: E[o] = sum_ij O_ij / F and Var[o] = sum_ij
        (O_ij - O_i. - O_.j + O_..)² / (F - 1), bars being means (Hoeffding 1951). The elements of a
        1-D tensor are its filters, and the law is the hypergeometric one.
        """
        return self.nulls([(first, second)])[0]

    def nulls(
        self, pairs: Sequence[tuple[Bool[Tensor, "P"], Bool[Tensor, "P"]]]
    ) -> list[FilterNull]:
        """The null of each pair of masks; a device is read once for all."""
        tensors = self.rule.layout.tensors
        asked = [self._seen(tensor, *pair) for pair in pairs for tensor in tensors]
        read = torch.cat(asked).cpu().split([len(seen) for seen in asked])
        found = map(self._told, itertools.cycle(tensors), (seen.numpy() for seen in read))
        return [
            FilterNull(*map(np.array, zip(*itertools.islice(found, len(tensors)), strict=True)))
            for _ in pairs
        ]

    def _seen(self, tensor: TensorInfo, first: Tensor, second: Tensor) -> Tensor:
        """E[o], Var[o] and o of every permutation; of a 1-D tensor what each mask selects."""
        span = slice(tensor.start, tensor.stop)
        if is_one_d(tensor):
            return torch.stack([first[span].sum(), second[span].sum()]).double()
        A, B = (self.rule.rows(tensor, mask[span]).float() for mask in (first, second))
        table, size = (A @ B.T).double(), len(A)
        rows = torch.arange(size, device=table.device)
        drawn = table[rows, self._of(size, table.device)].sum(1)
        mean = table.sum() / size
        table -= table.mean(0, keepdim=True)
        table -= table.mean(1, keepdim=True)
        variance = table.square_().sum() / max(1, size - 1)
        return torch.cat([mean[None], variance[None], drawn])

    def _told(self, tensor: TensorInfo, seen: np.ndarray) -> tuple[float, float, np.ndarray]:
        if is_one_d(tensor):
            return self._single(tensor.numel, *map(int, seen))
        mean, variance = map(float, seen[:2])
        return mean, variance if variance > 1e-9 * max(mean, 1e-9) else 0.0, seen[2:]

    def _single(self, n: int, k: int, m: int) -> tuple[float, float, np.ndarray]:
        overlap = Overlap(*(np.array(x) for x in (n, k, m, 0)))
        drawn = self._singles.hypergeometric(k, n - k, m, self.count) if m else np.zeros(self.count)
        return float(overlap.expected_common), float(overlap.variance), drawn


def filter_mean(
    rule: Filters, first: Bool[Tensor, "P"], second: Bool[Tensor, "P"]
) -> Float[Tensor, " tensor"]:
    """E[o] of `Permutations.null` alone: sum over positions of the two masks' filter counts.

    (T,) of the T tensors, left on the device.
    """
    means = []
    for tensor in rule.layout.tensors:
        span = slice(tensor.start, tensor.stop)
        if is_one_d(tensor):
            counts = [mask[span].sum().double() for mask in (first, second)]
            means.append(counts[0] * counts[1] / tensor.numel)
            continue
        A, B = (rule.rows(tensor, mask[span]) for mask in (first, second))
        means.append(A.sum(0).double() @ B.sum(0).double() / len(A))
    return torch.stack(means)


def kappa_above(common: np.ndarray, selected: np.ndarray, mean: np.ndarray) -> np.ndarray:
    """2(o - E) / (K + M - 2E): overlap above E as a share of what is possible above it."""
    room = np.where(selected - 2 * mean > 1e-9 * np.maximum(selected, 1), selected - 2 * mean, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(room > 0, 2 * (common - mean) / room, np.nan)
