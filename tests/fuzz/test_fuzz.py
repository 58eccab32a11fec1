"""Changed files of every kind: refused in one sentence or read as they were, and soon.

LANDSCAPE_FUZZ=20000 changes so many of each kind (`make fuzz`); LANDSCAPE_FUZZ_SEED begins
elsewhere. A failure names the seed of its change.
"""

import os
import random
import signal
import warnings
from contextlib import contextmanager

import pytest

from landscape.errors import LandscapeError
from tests.fuzz.kinds import KINDS
from tests.fuzz.mutators import mutate

COUNT = int(os.environ.get("LANDSCAPE_FUZZ", "40"))
FIRST = int(os.environ.get("LANDSCAPE_FUZZ_SEED", "0"))
SECONDS = 60  # a reader that needs longer for a file of some kilobytes hangs


class Hangs(BaseException):
    """No reader catches it, as some catch TimeoutError, which is an OSError."""


@contextmanager
def at_most(seconds):
    def stop(*_):
        raise Hangs(f"no answer in {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def is_fewer(found, whole):
    """Whether what was read is a part of what there was, in order."""
    if isinstance(whole, (bytes, list)):
        if isinstance(whole, bytes):
            return whole.startswith(found) or whole.endswith(found)
        rest = iter(whole)
        return all(any(item == other for other in rest) for item in found)
    if isinstance(whole, dict):
        return found.items() <= whole.items()
    if isinstance(whole, tuple):
        return all(a == b or is_fewer(a, b) for a, b in zip(found, whole, strict=True))
    return found == whole


@pytest.mark.skipif(not hasattr(signal, "SIGALRM"), reason="no alarm on this system")
@pytest.mark.parametrize("how", ["bytes", "edited"])
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
def test_changed_files_are_refused_or_read_as_they_were(kind, how, tmp_path):
    path = kind.make(tmp_path)
    whole, content = kind.read(path), path.read_bytes()
    for number in range(FIRST, FIRST + (COUNT if how == "bytes" else COUNT // 2)):
        rng = random.Random(f"{kind.name}/{number}")
        path.write_bytes(mutate(content, rng) if how == "bytes" else content)
        if how == "edited":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                kind.edit(path, rng)
        try:
            with at_most(SECONDS), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found = kind.read(path)
        except LandscapeError as error:
            if "\n" in str(error).strip():
                pytest.fail(f"{kind.name}, change {number}: several lines: {error}")
            continue
        except BaseException as error:
            raise AssertionError(f"{kind.name}, change {number}: {error!r}") from error
        same = found == whole or (kind.fewer and is_fewer(found, whole))
        # Of weights that were saved anew their SHA-256 is said: the format has nothing else.
        checked = kind.checked and not (how == "edited" and kind.name == "torch zip")
        assert same or not checked, f"{kind.name}, change {number}: read as {found!r}"[:500]
