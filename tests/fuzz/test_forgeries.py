"""Files by programs that know the formats: refused in a sentence or read as they were."""

import random
import re
import warnings

import pytest

from landscape.errors import LandscapeError
from landscape.problems.weights import convert, held
from tests.fuzz.forgeries import ANEW, FORGERIES
from tests.fuzz.kinds import KINDS
from tests.fuzz.test_fuzz import COUNT, FIRST, at_most, is_fewer

TIMES = max(1, COUNT // 40)
WEIGHTS = ("torch zip", "torch before zip", "safetensors of ours", "safetensors of others")


def forged(kind, path):
    """(name, bytes) of every forgery of a file."""
    content = path.read_bytes()
    for name, forge in FORGERIES.items():
        for number in range(FIRST, FIRST + TIMES):
            found = forge(content, random.Random(f"{kind.name}/{name}/{number}"))
            if found is not None and found != content:
                yield name, found


def attempt(name, kind, read, path):
    """(whether it was read, what was read); anything but one sentence fails."""
    try:
        with at_most(60), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return True, read(path)
    except LandscapeError as error:
        said = str(error)
        assert "\n" not in said.strip(), f"{kind.name}, {name}: {said}"
        assert len(said) < 1500, f"{kind.name}, {name}: {said}"
        assert not re.search(r"Traceback|<[a-z_.]+ object at", said), f"{kind.name}, {name}: {said}"
    except BaseException as error:
        raise AssertionError(f"{kind.name}, {name}: {error!r}") from error
    return False, None


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_a_forged_file_is_refused_or_read_as_it_was(kind, tmp_path):
    path = kind.make(tmp_path)
    whole, tried = kind.read(path), 0
    for name, content in forged(kind, path):
        path.write_bytes(content)
        was_read, found = attempt(name, kind, kind.read, path)
        same = found == whole or (kind.fewer and was_read and is_fewer(found, whole))
        checked = kind.checked and not (kind.name == "torch zip" and name in ANEW)
        assert same or not was_read or not checked, f"{kind.name}, {name}: read as {found!r}"[:500]
        tried += 1
    assert tried > 10


@pytest.mark.parametrize(
    "kind", [k for k in KINDS if k.name in WEIGHTS], ids=lambda kind: kind.name
)
def test_forged_weights_are_told_of_and_converted_or_refused(kind, tmp_path):
    path = kind.make(tmp_path)
    for name, content in forged(kind, path):
        path.write_bytes(content)
        attempt(name, kind, held, path)
        attempt(name, kind, lambda p: convert(p, tmp_path / "converted.safetensors"), path)
