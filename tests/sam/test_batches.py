"""BatchCutter in any containers are cut by example, or refused with the part that cannot be."""

from collections import OrderedDict, UserDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from landscape.sam.batches import BatchCutter
from tests.sam_models import reset, same, weights

X = torch.randn(12, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randint(3, (12,), generator=torch.Generator().manual_seed(1))
WORDS = [f"w{i}" for i in range(12)]
TABLE = dict(zip(WORDS, X, strict=True))
Pair = namedtuple("Pair", "x y")


class Encoding(UserDict):
    """As of tokenizers: no dict, and slices answer with dicts."""

    def __getitem__(self, item):
        if isinstance(item, slice):
            return {k: v[item] for k, v in self.data.items()}
        return self.data[item]


@dataclass
class Sample:
    x: torch.Tensor
    y: torch.Tensor
    task: str = "qa"


def stack(images):
    return torch.stack(list(images))


CASES = {
    "tuple": ((X, Y), lambda b: b),
    "list": ([X, Y], lambda b: b),
    "encoding": (Encoding(x=X, y=Y), lambda b: (b["x"], b["y"])),
    "ordered": (OrderedDict(x=X, y=Y), lambda b: (b["x"], b["y"])),
    "dataclass": (Sample(X, Y), lambda b: (b.x, b.y)),
    "named": (Pair(X, Y), lambda b: (b.x, b.y)),
    "array": ((X.numpy(), np.asarray(Y)), lambda b: tuple(map(torch.as_tensor, b))),
    "constants": (
        {"task": "qa", "t": torch.tensor(1.0), "n": None, "x": X, "y": Y},
        lambda b: (b["x"], b["y"]),
    ),
    "nested": ({"in": {"a": [X, (X, X)]}, "y": Y}, lambda b: (b["in"]["a"][1][0], b["y"])),
    "texts": ((WORDS, Y), lambda b: (stack(TABLE[w] for w in b[0]), b[1])),
    "texts first": ({"t": WORDS, "y": Y}, lambda b: (stack(TABLE[w] for w in b["t"]), b["y"])),
    "detection": (
        (list(X), [{"y": y} for y in Y]),
        lambda b: (stack(b[0]), stack(t["y"] for t in b[1])),
    ),
    "examples": (
        [{"x": x, "y": y} for x, y in zip(X, Y, strict=True)],
        lambda b: (stack(e["x"] for e in b), stack(e["y"] for e in b)),
    ),
    "mixup": ((X, (Y, Y.flip(0), torch.ones(12))), lambda b: (b[0], b[1][0])),
    # Of a shuffled table: labels of the rows are other numbers than their places.
    "tables": (
        (
            pd.DataFrame(X.numpy(), index=range(11, -1, -1)),
            pd.Series(Y.numpy(), index=range(11, -1, -1)),
        ),
        lambda b: (
            torch.tensor(b[0].to_numpy().copy("C")),
            torch.tensor(b[1].to_numpy().copy("C")),
        ),
    ),
}


def train(batch, get, variant, micro_batch, select=None):
    model = reset(nn.Sequential(nn.Linear(6, 4), nn.Tanh(), nn.Linear(4, 3)))
    base = torch.optim.SGD(model.parameters(), lr=0.5)
    optimizer, seen = sam.SAM(model, base, variant, select=select), []

    def losses(b):
        x, y = get(b)
        seen.append(len(y))
        return nn.functional.cross_entropy(model(x), y, reduction="none")

    optimizer.step(losses, batch, micro_batch=micro_batch)
    return weights(model), seen


WAYS = {
    "micro 1": (sam.sam(0.3), 1),
    "micro 5": (sam.sam(0.3), 5),
    "chosen": (sam.esam(0.3), None),
    "leading": (sam.async_sam(0.3, fraction=0.5), None),
    "parts": (sam.micro_batched(sam.sam(0.3), 4), None),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("case", CASES)
def test_any_container_gives_the_step_of_plain_tensors(case, way):
    expected, seen = train((X, Y), lambda b: b, *WAYS[way])
    ours, ours_seen = train(*CASES[case], *WAYS[way])
    assert ours_seen == seen
    assert same(expected, ours)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        ({"x": X, "labels": Y[:11]}, r"the batch disagree .*'x' 12, 'labels' 11; .*select=f"),
        ((X, Y[:11]), r"disagree in their number of examples: entry 0 12, entry 1 11"),
        (
            {"x": X, "meta": {"a": X, "b": Y[:4]}},
            r"part \['meta'\] of the batch disagree .*'a' 12, 'b' 4",
        ),
        ({"x": X, "sizes": torch.tensor([6, 6])}, r"'x' 12, 'sizes' 2"),
        (iter([1]), "is a list_iterator, which cannot be cut"),
        ({"x": X, "g": object()}, r"part \['g'\] of the batch is a object, which cannot be cut"),
        (torch.tensor(1.0), "no tensor or list whose length"),
        ({"images": [X[:3], X[3:6], X[6:9]]}, r"3 parts of all examples, or one entry for each"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_the_part(batch, message):
    with pytest.raises(LandscapeError, match=message):
        BatchCutter().select(batch, slice(0, 2))


@pytest.mark.parametrize("batch", [iter([X, Y]), (t for t in (X, Y)), zip(X, Y, strict=True)])
def test_what_the_first_pass_uses_up_is_no_batch(batch):
    """A loss that takes next(batch) would have other examples in each pass."""
    with pytest.raises(LandscapeError, match=r"an iterator, of which .*next\(batch\)"):
        train(batch, next, sam.sam(0.3), None)


def test_an_earlier_batch_decides_what_a_list_holds():
    batches = BatchCutter()
    pairs = lambda n: (X[:n], [Y[:n], Y[:n]])  # noqa: E731
    assert len(batches.select(pairs(5), slice(0, 3))[1]) == 2
    assert [len(y) for y in batches.select(pairs(2), slice(0, 1))[1]] == [1, 1]


def test_the_callers_own_way_to_cut():
    graph = {"x": X, "edges": torch.arange(30)}  # more edges than nodes

    def select(batch, index):
        return len(batch["x"]) if index is None else {"x": batch["x"][index], "y": Y[index]}

    expected, _ = train((X, Y), lambda b: b, sam.sam(0.3), 5)
    ours, seen = train(graph, lambda b: (b["x"], b["y"]), sam.sam(0.3), 5, select)
    assert seen == [5, 5, 2] * 2
    assert same(expected, ours)


def test_fisher_examples_are_read_by_index_and_only_those_drawn():
    class Lazy(torch.utils.data.Dataset):
        read = []

        def __len__(self):
            return 5000

        def __getitem__(self, i):
            Lazy.read.append(i)
            size = 3 + i % 2  # of their own lengths
            return torch.ones(size, 6, dtype=torch.float64), i % 3

    model = reset(nn.Sequential(nn.Linear(6, 3)))
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = sam.SAM(model, base, sam.ssam_f(0.1, num_samples=16))

    def losses(b):
        x = b[0] if b[0].ndim == 2 else b[0].mean(1)
        return nn.functional.cross_entropy(model(x), b[1], reduction="none")

    optimizer.set_fisher_data(losses, Lazy())
    for epoch in range(2):
        optimizer.begin_epoch(epoch, total_epochs=2)
        optimizer.step(losses, (X, Y))
    assert len(Lazy.read) == len(set(Lazy.read)) == 32
