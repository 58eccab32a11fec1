"""What people hold data in: batch objects, loaders that choose, streams that draw."""

import collections
import dataclasses
import types

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk, _fitting
from tests.risk_problems import randn, rng, settled

X, Y = randn(24, 4), torch.randint(0, 3, (24,), generator=rng(1))
CE = nn.CrossEntropyLoss()


@dataclasses.dataclass
class Pair:
    x: torch.Tensor
    labels: torch.Tensor


Three = collections.namedtuple("Three", "x scale labels")


class Scaled(nn.Linear):
    def forward(self, x, scale=None):
        return super().forward(x if scale is None else x * scale[:, None])


def value(risk):
    return risk.loss(risk.theta)


def test_dataclasses_and_named_tuples_are_read_by_their_fields():
    model, scale = settled(Scaled(4, 3)), torch.rand(24, dtype=torch.float64)
    expected = CE(model(X), Y).detach()
    for data in (Pair(X, Y), [Pair(X[:10], Y[:10]), Pair(X[10:], Y[10:])]):
        torch.testing.assert_close(value(EmpiricalRisk(model, CE, data)), expected)
    scaled = value(EmpiricalRisk(model, CE, Three(X, scale, Y)))
    torch.testing.assert_close(scaled, CE(model(X, scale), Y).detach())


@pytest.mark.parametrize("kind", [Pair, lambda x, y: types.SimpleNamespace(x=x, labels=y)])
def test_objects_reach_a_loss_of_model_and_batch_whole_and_count_by_their_rows(kind):
    model = settled(nn.Linear(4, 3))
    batches = [kind(X[:10].float(), Y[:10]), kind(X[10:].float(), Y[10:])]

    def loss(model, batch):
        return F.cross_entropy(model(batch.x), batch.labels)

    risk = EmpiricalRisk(model, loss, batches)  # cast to the model's float64
    torch.testing.assert_close(value(risk), CE(model(X.float().double()), Y).detach())
    assert risk.num_examples == 24
    assert batches[0].x.dtype == torch.float32
    batches[0].x.zero_()
    torch.testing.assert_close(value(risk), CE(model(X.float().double()), Y).detach())


@pytest.mark.parametrize(
    "loader",
    [
        lambda data: DataLoader(data, 7, sampler=RandomSampler(data, True, 30)),
        lambda data: DataLoader(data, 8, sampler=WeightedRandomSampler(torch.ones(24), 24)),
        lambda data: DataLoader(data, 7, shuffle=True, drop_last=True),
        lambda data: DataLoader(data, 7, sampler=RandomSampler(data, num_samples=9)),
    ],
)
def test_a_loader_that_chooses_examples_at_random_is_refused_with_advice_that_works(loader):
    model, data, state = settled(nn.Linear(4, 3)), TensorDataset(X, Y), torch.get_rng_state()
    given = loader(data)
    with pytest.raises(LandscapeError, match=r"chooses other examples .*\.dataset.*list\(loader\)"):
        EmpiricalRisk(model, CE, given)
    assert torch.equal(torch.get_rng_state(), state)
    expected = CE(model(X), Y).detach()
    torch.testing.assert_close(value(EmpiricalRisk(model, CE, given.dataset)), expected)
    fixed = list(given)
    x, y = (torch.cat(column) for column in zip(*fixed, strict=True))
    found = value(EmpiricalRisk(model, CE, fixed))
    torch.testing.assert_close(found, CE(model(x), y).detach())


def test_a_loader_that_shuffles_or_drops_in_order_is_read():
    model, data = settled(nn.Linear(4, 3)), TensorDataset(X, Y)
    shuffled = EmpiricalRisk(model, CE, DataLoader(data, 7, shuffle=True))
    torch.testing.assert_close(value(shuffled), CE(model(X), Y).detach())
    dropped = EmpiricalRisk(model, CE, DataLoader(data, 7, drop_last=True))
    torch.testing.assert_close(value(dropped), CE(model(X[:21]), Y[:21]).detach())


class Stream(IterableDataset):
    def __init__(self, kind):
        self.kind = kind

    def __iter__(self):
        order = torch.randperm(24) if self.kind == "shuffled" else torch.arange(24)
        noise = torch.randn(24, 4) if self.kind == "augmented" else torch.zeros(24, 4)
        yield from ((X[i] + noise[i], Y[i]) for i in order)


class Loader:
    """A loader of the user's own."""

    def __init__(self, stream):
        self.stream = stream

    def __iter__(self):
        return iter(DataLoader(self.stream, 5))


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: DataLoader(s, 5), Loader])
def test_streams_are_read_in_any_order_and_refused_where_they_draw(wrap):
    model = settled(nn.Linear(4, 3))
    expected = CE(model(X), Y).detach()
    for kind in ("plain", "shuffled"):
        found = value(EmpiricalRisk(model, CE, wrap(Stream(kind))))
        torch.testing.assert_close(found, expected)
    with pytest.raises(LandscapeError, match=r"other examples at a second reading.*list\(data\)"):
        EmpiricalRisk(model, CE, wrap(Stream("augmented")))


def test_what_can_be_read_once_is_read_once():
    model = settled(nn.Linear(4, 3))
    batches = ((X[i : i + 6], Y[i : i + 6]) for i in range(0, 24, 6))
    torch.testing.assert_close(value(EmpiricalRisk(model, CE, batches)), CE(model(X), Y).detach())


class Broken(Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, i):
        if i == 17:
            raise OSError("the disk is gone")
        return X[i], Y[i]


@pytest.mark.parametrize("wrap", [lambda d: d, lambda d: DataLoader(d, 5)])
def test_the_item_that_cannot_be_read_is_named(wrap):
    with pytest.raises(LandscapeError, match=r"Item 17 of the data \(Broken\).*disk is gone"):
        EmpiricalRisk(settled(nn.Linear(4, 3)), CE, wrap(Broken()))


@pytest.mark.parametrize(
    "data",
    [
        [(X[i], Y[i]) for i in range(24)],
        (X.tolist(), Y.tolist()),
        DataLoader(TensorDataset(X, Y), batch_size=None),
    ],
)
def test_numbers_and_single_examples_are_no_rows(data):
    model = settled(nn.Linear(4, 3))
    with pytest.raises(LandscapeError, match=r"single examples are no rows.*torch.as_tensor"):
        EmpiricalRisk(model, CE, data)
    mended = DataLoader([(X[i], Y[i]) for i in range(24)], batch_size=32)
    torch.testing.assert_close(value(EmpiricalRisk(model, CE, mended)), CE(model(X), Y).detach())


def test_nested_tensors_are_refused_by_name():
    ragged = torch.nested.nested_tensor([X[:2], X[:3]], layout=torch.jagged)
    with pytest.raises(LandscapeError, match="nested tensor, which has no shape; pad it"):
        EmpiricalRisk(settled(nn.Linear(4, 3)), CE, (ragged, Y[:2]))


def test_losses_and_gradients_are_taken_in_even_pieces_that_caches_hold(monkeypatch):
    """Sums over pieces: the numbers of one pass, to what float64 rounds."""
    x, y = randn(300, 3, 16, 16), torch.randint(0, 3, (300,), generator=rng(2))
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(784, 3)).double()
    whole = EmpiricalRisk(model, CE, (x, y), batch_size=300)
    monkeypatch.setattr(_fitting, "_CPU_BATCH", 2**20)
    pieces = EmpiricalRisk(model, CE, (x, y))
    graphs = _fitting.graph_batches(pieces._engine, order=1)
    sizes = [batch.count for batch in graphs]
    assert sum(sizes) == 300
    assert max(sizes) <= max(32, 300 * 2**20 / _fitting.graph_bytes(pieces._engine, 300, order=1))
    passes = _fitting.pass_rows(pieces._engine)
    assert passes <= 2**21 // pieces._engine.examples.row_bytes
    for found in (sizes, [passes, 300 - (-(-300 // passes) - 1) * passes]):
        assert min(found) > 0.8 * max(found)
    theta = whole.theta
    torch.testing.assert_close(pieces.loss(theta), whole.loss(theta), rtol=1e-13, atol=0)
    torch.testing.assert_close(
        pieces.gradient(theta), whole.gradient(theta), rtol=1e-11, atol=1e-14
    )
