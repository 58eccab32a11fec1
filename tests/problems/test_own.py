"""Users' code: found, or refused with the reason."""

import pytest
import torch

from landscape import problems
from landscape.errors import LandscapeError


def small(seed=0):
    return problems.make_model("cnn", num_classes=10, input_shape=(1, 8, 8), seed=seed)


def same(a, b):
    first, second = a.state_dict(), b.state_dict()
    return all(torch.equal(first[k], second[k]) for k in first)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend("/")  # so that changes of sys.path are undone
    (tmp_path / "mine_own.py").write_text(
        "import torch\n"
        "def make(num_classes, width=3):\n    return torch.nn.Linear(width, num_classes)\n"
        "def fixed():\n    return torch.nn.Linear(2, 2)\n"
        "def anything(**options):\n    return options\n"
        "def data(label_noise):\n"
        "    x, y = torch.zeros(4, 3), torch.tensor([0, 1, 0, 1])\n"
        "    return (x, y), (x, y)\n"
        "number = 3\n"
        "class Box:\n    make = staticmethod(fixed)\n"
    )
    (tmp_path / "mine_broken.py").write_text("1 / 0\n")
    (tmp_path / "mine_needs.py").write_text("import not_there_at_all\n")
    return tmp_path


def test_callables_are_found_in_the_current_folder(here):
    assert problems.import_object("mine_own:fixed")().in_features == 2
    assert problems.import_object("mine_own:Box.make")().in_features == 2


def test_factories_get_the_options_they_name(here):
    options = {"num_classes": 5, "input_shape": (3,), "seed": 0}
    assert problems.make_model("mine_own:make", **options).out_features == 5
    assert problems.make_model("mine_own:fixed", **options).out_features == 2
    with pytest.raises(LandscapeError, match="mine_own:anything returned dict"):
        problems.make_model("mine_own:anything", **options)
    assert problems.load_data("mine_own:data").num_classes == 2


def test_own_models_are_seeded(here):
    options = {"num_classes": 5, "input_shape": (3,)}
    first = problems.make_model("mine_own:make", seed=0, **options)
    assert same(first, problems.make_model("mine_own:make", seed=0, **options))
    assert not same(first, problems.make_model("mine_own:make", seed=1, **options))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mine_own", "'mine_own' does not name a callable; write 'package.module:callable'"),
        ("mine_absent:make", "No module 'mine_absent' for 'mine_absent:make' in .*; run from"),
        ("mine_own:nothing", "mine_own has no 'nothing'; it has make, fixed, anything"),
        ("mine_own:number", "mine_own:number is a int and cannot be called"),
        ("mine_broken:make", "Importing mine_broken failed: ZeroDivisionError"),
        ("mine_needs:make", "mine_needs needs 'not_there_at_all', which is not installed"),
    ],
)
def test_callables_that_are_not_there(here, spec, message):
    with pytest.raises(LandscapeError, match=message):
        problems.import_object(spec)
