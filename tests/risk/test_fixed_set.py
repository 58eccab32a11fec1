"""A risk is over one fixed set: what samplers give and items draw is followed or refused."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from landscape import problems
from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from tests.risk_problems import randn, settled

N = 23
X, Y = randn(N, 4, seed=1), torch.arange(N) % 3
MODEL, CE = settled(nn.Linear(4, 3)), nn.CrossEntropyLoss()
DATA = TensorDataset(X, Y)


class EveryThird(torch.utils.data.Sampler):
    def __init__(self, repeats=1):
        self.rows = [i for i in range(0, N, 3) for _ in range(repeats)]

    def __iter__(self):
        return iter(self.rows)

    def __len__(self):
        return len(self.rows)


class ByLength(torch.utils.data.Sampler):
    """A batch sampler of the user's: batches of unequal size."""

    def __iter__(self):
        yield from ([0, 5, 7], [1], [2, 3, 4, 6])

    def __len__(self):
        return 3


FOLLOWED = {
    "in order": (lambda: DataLoader(DATA, 5), range(N)),
    "shuffled": (lambda: DataLoader(DATA, 5, shuffle=True), range(N)),
    "shuffled and nothing to drop": (
        lambda: DataLoader(TensorDataset(X[:20], Y[:20]), 5, shuffle=True, drop_last=True),
        range(20),
    ),
    "permuted by weights": (
        lambda: DataLoader(DATA, 5, sampler=WeightedRandomSampler(torch.rand(N) + 1, N, False)),
        range(N),
    ),
    "random batches of all": (
        lambda: DataLoader(DATA, batch_sampler=BatchSampler(RandomSampler(DATA), 4, False)),
        range(N),
    ),
    "one process": (lambda: DataLoader(DATA, 5, sampler=DistributedSampler(DATA, 1, 0)), range(N)),
    "subset": (lambda: DataLoader(DATA, 5, sampler=SubsetRandomSampler([2, 9, 4])), [2, 4, 9]),
    "of the user's": (lambda: DataLoader(DATA, 5, sampler=EveryThird()), range(0, N, 3)),
    "batches of the user's": (lambda: DataLoader(DATA, batch_sampler=ByLength()), range(8)),
    "dropped in order": (lambda: DataLoader(DATA, 5, drop_last=True), range(20)),
    "without batches": (lambda: DataLoader(DATA, 5, sampler=SequentialSampler(DATA)), range(N)),
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_the_rows_of_one_epoch_are_measured_once_each_and_those_left_out_are_counted(kind):
    make, rows = FOLLOWED[kind]
    rows = list(rows)
    loader = make()
    risk = EmpiricalRisk(MODEL, CE, loader)
    expected = CE(MODEL(X[rows]), Y[rows]).detach()
    torch.testing.assert_close(risk.loss(risk.theta), expected, rtol=1e-12, atol=0)
    assert risk.num_examples == len(rows)
    size = len(loader.dataset)
    said = risk.provenance().get("rows_of_dataset")
    assert said == (None if len(rows) == size else [len(rows), size])


REFUSED = {
    "with replacement": lambda: RandomSampler(DATA, True, N),
    "by weights": lambda: WeightedRandomSampler(torch.ones(N), N),
    "some at random": lambda: RandomSampler(DATA, num_samples=9),
    "all of them twice": lambda: RandomSampler(DATA, num_samples=2 * N),
    "oversampled in order": lambda: EveryThird(repeats=2),
    "the share of a process": lambda: DistributedSampler(DATA, 2, 0),
    "a padded share": lambda: DistributedSampler(DATA, 2, 1, shuffle=False),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_loaders_without_one_fixed_set_are_refused_and_their_dataset_is_not(kind):
    loader = DataLoader(DATA, 5, sampler=REFUSED[kind]())
    with pytest.raises(LandscapeError, match=r"The DataLoader.*\(\.dataset\)"):
        EmpiricalRisk(MODEL, CE, loader)
    risk = EmpiricalRisk(MODEL, CE, loader.dataset)
    torch.testing.assert_close(risk.loss(risk.theta), CE(MODEL(X), Y).detach())


def test_shares_of_processes_are_taken_where_these_are_asked_and_no_row_is_padded():
    share = DataLoader(DATA, 5, sampler=DistributedSampler(DATA, 2, 0))
    with pytest.raises(LandscapeError, match=r"1 of the 23 rows .*again.*range\(rank, 23, 2\)"):
        EmpiricalRisk(MODEL, CE, share, distributed=True)


def test_a_list_of_batches_may_repeat_rows():
    batches = list(DataLoader(DATA, 5, sampler=EveryThird(repeats=2)))
    risk = EmpiricalRisk(MODEL, CE, batches)
    assert risk.num_examples == 2 * len(range(0, N, 3))


# Random items -------------------------------------------------------------------------------------


class Items(Dataset):
    """Rows of X, changed by `change(x, index)`."""

    def __init__(self, change, size=400):
        self.change, self.size = change, size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return self.change(X[index % N].clone(), index), int(Y[index % N])


def seldom(draw, p=0.01):
    return lambda x, _: -x if draw() < p else x


def often(draw):
    return lambda x, _: -x if draw() > 0.99 else x


class Held:
    def __init__(self, generator):
        self.generator = generator

    def __call__(self, x, _):
        return -x if self.generator.random() < 0.05 else x


def late(x, index):
    """After a crop that uses many numbers."""
    torch.randperm(20)
    return -x if float(torch.rand(())) < 0.01 else x


def of_one_class(x, index):
    return x + np.random.rand() if index == 250 else x  # noqa: NPY002


def unseeded(x, _):
    return -x if np.random.default_rng().random() < 0.05 else x


RANDOM = {
    "torch": seldom(lambda: float(torch.rand(()))),
    "numpy": seldom(lambda: np.random.rand()),  # noqa: NPY002
    "random": seldom(random.random),
    "randint": lambda x, _: -x if random.randint(0, 99) == 0 else x,
    "torch's integers": lambda x, _: -x if int(torch.randint(0, 100, ())) == 0 else x,
    "seldom large": often(lambda: float(torch.rand(()))),
    "numpy seldom large": often(lambda: np.random.rand()),  # noqa: NPY002
    "random seldom large": often(random.random),
    "after others": late,
    "held random": Held(random.Random(0)),
    "held numpy": Held(np.random.default_rng(0)),
    "held old numpy": Held(np.random.RandomState(0)),
    "held, of the system": Held(random.SystemRandom()),
    "unseeded numpy": unseeded,
    "one item of 400": of_one_class,
}
WRAPS = {
    "dataset": lambda data: data,
    "loader": lambda data: DataLoader(data, 50),
    "shuffled": lambda data: DataLoader(data, 7, shuffle=True),
}


@pytest.mark.parametrize("wrap", WRAPS)
@pytest.mark.parametrize("kind", RANDOM)
def test_an_augmentation_that_acts_once_in_a_hundred_readings_is_refused(kind, wrap):
    data = Items(RANDOM[kind])
    given = WRAPS[wrap](data)
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    with pytest.raises(LandscapeError, match=r"Items\[\d+\] differs from one reading to the next"):
        EmpiricalRisk(MODEL, CE, given)
    after = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:]
    assert data is given or given.dataset is data
    with pytest.raises(LandscapeError, match=r"^mine \(train\): Items.* differs from one"):
        problems.as_splits({"train": given}, name="mine")


def seeded_by_index(x, index):
    return x + torch.randn(4, generator=torch.Generator().manual_seed(index)).to(x)


def seeded_globally(x, index):
    random.seed(index)
    torch.manual_seed(index)
    return x + torch.randn(4).to(x) + random.random()


FIXED = {
    "never": seldom(lambda: float(torch.rand(())), p=0),
    "always": seldom(random.random, p=1),
    "seeded by index": seeded_by_index,
    "seeded globally": seeded_globally,
    "held, of the system, unused": type("Unused", (Held,), {"__call__": lambda _, x, i: x + i})(
        random.SystemRandom()
    ),
    "new generator": lambda x, i: x + np.random.default_rng(i).normal(),
    "held, without effect": lambda x, _: x + 0 * np.random.rand(),  # noqa: NPY002
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", FIXED)
def test_items_that_draw_and_stay_the_same_are_no_random_data(kind):
    data = Items(FIXED[kind])
    x = torch.stack([data[i][0] for i in range(400)])
    y = torch.tensor([data[i][1] for i in range(400)])
    risk = EmpiricalRisk(MODEL, CE, DataLoader(data, 64, shuffle=True))
    torch.testing.assert_close(risk.loss(risk.theta), CE(MODEL(x), y).detach())


def test_a_random_item_is_named_from_a_worker_too():
    with pytest.raises(LandscapeError, match=r"^Items\[250\] differs from one reading to the next"):
        EmpiricalRisk(MODEL, CE, DataLoader(Items(of_one_class), 64, num_workers=1))


def test_a_collate_function_that_seldom_acts_is_refused():
    def collate(items):
        x, y = (torch.stack([torch.as_tensor(i[k]) for i in items]) for k in (0, 1))
        return (x.flip(0) if random.random() < 0.01 else x), y

    with pytest.raises(LandscapeError, match=r"collate_fn \(.*collate\) makes other batches"):
        EmpiricalRisk(MODEL, CE, DataLoader(Items(lambda x, _: x), 50, collate_fn=collate))


class Filtered(IterableDataset):
    """A stream that leaves rows out at random: another number of batches each time."""

    def __iter__(self):
        return ((X[i], Y[i]) for i in range(N) if i == 0 or random.random() < 0.5)


def test_a_stream_that_leaves_rows_out_at_random_is_refused():
    for given in (Filtered(), DataLoader(Filtered(), 1)):
        with pytest.raises(LandscapeError, match="other examples at a second reading"):
            EmpiricalRisk(MODEL, CE, given)
