"""Splits are fixed and stratified; label noise is exact; nothing touches global randomness."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from landscape import problems
from landscape.errors import LandscapeError
from landscape.problems.noise import CIFAR10_PAIRS

# ruff: noqa: NPY002 - the global state is what is tested


def _hash(split):
    return split.x.numpy().tobytes() + split.y.numpy().tobytes()


def test_digits_are_the_1797_scans_each_in_one_split():
    from sklearn.datasets import load_digits

    data = problems.load_data("digits")
    assert [len(s) for s in (data.train, data.val, data.test)] == [1000, 297, 500]
    mean, std = data.provenance["input_mean"][0], data.provenance["input_std"][0]
    x = torch.cat([data.train.x, data.val.x, data.test.x])
    pixels = np.rint((x.double().numpy() * std + mean) * 16).astype(int).reshape(1797, 64)
    ours = sorted(map(tuple, pixels))
    theirs = sorted(map(tuple, load_digits().data.astype(int)))
    assert ours == theirs
    assert data.train.x.dtype == torch.float32
    assert data.input_shape == (1, 8, 8)


def test_digits_are_standardized_by_the_training_inputs():
    x = problems.load_data("digits").train.x.double()
    assert abs(float(x.mean())) < 1e-6
    assert abs(float(x.std(correction=0)) - 1) < 1e-6


@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_splits_are_stratified(part):
    data = problems.load_data("digits")
    split = getattr(data, part)
    whole = torch.cat([s.y_clean for s in (data.train, data.val, data.test)])
    expected = torch.bincount(whole) * len(split) / 1797
    assert (torch.bincount(split.y_clean) - expected).abs().max() <= 2


def test_data_depend_on_the_data_seed_alone_and_leave_global_randomness_alone():
    torch_before, numpy_before = torch.get_rng_state(), np.random.get_state()[1].copy()
    python_before = random.getstate()
    first = problems.load_data("mnist1d", label_noise=0.2, splits=(50, 20, 20))
    assert torch.equal(torch.get_rng_state(), torch_before)
    assert np.array_equal(np.random.get_state()[1], numpy_before)
    assert random.getstate() == python_before
    options = {"label_noise": 0.2, "splits": (50, 20, 20)}
    again = problems.load_data("mnist1d", **options)
    other = problems.load_data("mnist1d", seed=1, **options)
    assert _hash(first.train) == _hash(again.train)
    assert _hash(first.train) != _hash(other.train)


def test_mnist1d_is_the_published_set():
    """Its first training example, from the generator's fixed seed, before any split."""
    from mnist1d.data import get_dataset_args, make_dataset

    state = np.random.get_state(), random.getstate()
    made = make_dataset(get_dataset_args())
    np.random.set_state(state[0])
    random.setstate(state[1])
    data = problems.load_data("mnist1d", splits=(3999, 1, 1000))
    assert data.input_shape == (1, 40)
    mean, std = data.provenance["input_mean"][0], data.provenance["input_std"][0]
    ours = data.test.x.double().numpy()[:, 0] * std + mean
    assert np.allclose(ours, made["x_test"], atol=1e-5)
    assert np.array_equal(data.test.y.numpy(), made["y_test"])


def test_noise_is_on_train_and_validation_and_test_is_clean():
    data = problems.load_data("digits", label_noise=0.2)
    assert int(data.train.wrong.sum()) == 200
    assert int(data.val.wrong.sum()) == 59  # round(0.2 * 297)
    assert not data.test.wrong.any()
    assert data.provenance["wrong_labels"] == [200, 59, 0]
    clean = problems.load_data("digits")
    assert torch.equal(clean.train.x, data.train.x)
    assert torch.equal(clean.train.y, data.train.y_clean)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 300), st.floats(0, 1), st.integers(2, 20), st.integers(0, 2**31))
def test_symmetric_noise_replaces_exactly_round_rate_n_by_other_classes(n, rate, classes, seed):
    labels = np.random.default_rng(seed).integers(0, classes, n)
    noisy = problems.flip_labels(
        labels, rate, num_classes=classes, generator=np.random.default_rng(seed)
    )
    assert (noisy != labels).sum() == round(rate * n)
    assert noisy.min() >= 0
    assert noisy.max() < classes


def test_symmetric_noise_is_uniform_over_the_other_classes():
    labels = np.zeros(90_000, dtype=int)
    noisy = problems.flip_labels(labels, 1.0, num_classes=10, generator=np.random.default_rng(0))
    counts = np.bincount(noisy, minlength=10)
    assert counts[0] == 0
    chi2 = ((counts[1:] - 10_000) ** 2 / 10_000).sum()
    assert chi2 < 27.9  # 99.95 % quantile at 8 degrees of freedom


def test_asymmetric_noise_goes_to_the_next_class():
    labels = np.arange(10).repeat(10)
    noisy = problems.flip_labels(
        labels, 0.3, num_classes=10, kind="asymmetric", generator=np.random.default_rng(0)
    )
    wrong = noisy != labels
    assert wrong.sum() == 30
    assert np.array_equal(noisy[wrong], (labels[wrong] + 1) % 10)


def test_asymmetric_noise_of_cifar10_flips_the_five_similar_classes():
    labels = np.arange(10).repeat(20)
    noisy = problems.flip_labels(
        labels, 0.4, num_classes=10, kind="asymmetric", generator=np.random.default_rng(0),
        pairs=CIFAR10_PAIRS,
    )  # fmt: skip
    wrong = noisy != labels
    assert wrong.sum() == 40  # 0.4 of the 100 examples of five classes
    pairs = set(zip(labels[wrong].tolist(), noisy[wrong].tolist()))
    assert pairs == {(9, 1), (2, 0), (3, 5), (5, 3), (4, 7)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "places365"}, r"data='places365' is unknown; choose one of digits, mnist1d"),
        ({"label_noise": 1.2}, r"label_noise=1.2 was asked; it is the share of wrong labels"),
        ({"noise_kind": "pink"}, r"noise_kind='pink' is unknown; choose one of 'symmetric'"),
        ({"splits": (1000, 500, 500)}, r"splits=\(1000, 500, 500\) were asked of digits.*1797"),
        ({"splits": (1000, 0, 500)}, r"three positive numbers"),
    ],
)
def test_bad_options_are_named(options, message):
    with pytest.raises(LandscapeError, match=message):
        problems.load_data(options.pop("name", "digits"), **options)


def _pair(n=8, classes=3):
    return torch.randn(n, 5, generator=torch.Generator().manual_seed(n)), torch.arange(n) % classes


def test_own_data_in_every_form():
    x, y = _pair()
    dataset = torch.utils.data.TensorDataset(x, y)
    forms = [
        {"train": (x, y), "test": dataset},
        ((x, y), dataset),
        (dataset, None, (x.numpy(), y.numpy())),
        {"train": (x, y, y), "val": None, "test": (x, y)},
    ]
    for form in forms:
        data = problems.as_splits(form, name="mine")
        assert data.val is None
        assert data.num_classes == 3
        assert torch.equal(data.train.x, x)
        assert torch.equal(data.test.y, y)
    assert problems.as_splits(data, name="again") is data


def test_own_data_may_have_continuous_targets():
    x, _ = _pair()
    data = problems.as_splits(((x, x[:, :2]), (x, x[:, :2])), name="mine")
    assert data.num_classes == 2
    assert data.train.y.is_floating_point()
    assert not data.train.wrong.any()


def test_own_data_know_their_wrong_labels():
    x, y = _pair()
    data = problems.as_splits({"train": (x, (y + 1) % 3, y)}, name="mine")
    assert data.train.wrong.all()
    assert data.provenance["wrong_labels"] == [8, 0, 0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (3, "mine returned int; return a DataSplits"),
        ({"train": _pair(), "extra": _pair()}, "mine has parts extra"),
        ((None, _pair()), "mine has no training data"),
        (((torch.zeros(3, 2), torch.zeros(2)), _pair()), "3 inputs and 2 targets"),
        (((torch.zeros(0, 2), torch.zeros(0)), _pair()), "0 inputs and 0 targets"),
        (
            ((torch.zeros(2, 2), torch.tensor([-1, 0])), _pair()),
            "has label -1; classes are counted",
        ),
        ((("a", "b"), _pair()), "without a tensor; return a DataSplits"),
    ],
)
def test_bad_own_data_are_named(value, message):
    with pytest.raises(LandscapeError, match=message):
        problems.as_splits(value, name="mine")


def test_pixels_become_floats_and_tokens_stay_integers():
    y = torch.arange(4) % 2
    for dtype, expected in ((torch.uint8, torch.float32), (torch.int64, torch.int64)):
        x = torch.ones(4, 3, dtype=dtype)
        assert problems.as_splits(((x, y), (x, y)), name="mine").train.x.dtype == expected


class Items(torch.utils.data.Dataset):
    def __init__(self, make, n=6):
        self.make, self.n = make, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.make(i)


def test_a_loader_or_a_dataset_of_dicts_is_a_part_of_its_own():
    x = torch.arange(12.0).reshape(6, 2)
    items = Items(lambda i: {"pixels": x[i], "label": i % 3})
    loader = torch.utils.data.DataLoader(Items(lambda i: (x[i], i % 3)), batch_size=4)
    data = problems.as_splits((loader, items), name="mine")
    assert torch.equal(data.train.x, x)
    assert torch.equal(data.test.x, x)
    assert torch.equal(data.train.y, torch.arange(6) % 3)
    assert data.num_classes == 3


def test_items_that_are_drawn_anew_are_no_split():
    items = Items(lambda i: (torch.rand(2), i % 3))
    with pytest.raises(
        LandscapeError, match=r"mine \(train\): Items\[0\] differs from one reading"
    ):
        problems.as_splits((items, items), name="mine")


def test_items_that_cannot_be_collated_are_named_with_the_cure():
    ragged = Items(lambda i: (torch.zeros(i + 1), i % 3))
    with pytest.raises(LandscapeError, match=r"Item 0 holds Tensor \(1,\), int.*collate_fn"):
        problems.as_splits((ragged, ragged), name="mine")
    loader = torch.utils.data.DataLoader(
        ragged,
        batch_size=6,
        collate_fn=lambda items: (
            torch.nn.utils.rnn.pad_sequence([x for x, _ in items], batch_first=True),
            torch.tensor([y for _, y in items]),
        ),
    )
    assert problems.as_splits((loader, loader), name="mine").train.x.shape == (6, 6)


def test_targets_of_minus_100_are_ignored_and_no_class():
    x, y = torch.zeros(4, 2), torch.tensor([0, -100, 2, 1])
    assert problems.as_splits(((x, y), (x, y)), name="mine").num_classes == 3
