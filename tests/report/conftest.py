"""One study on disk for the tests that only read it."""

import pytest

from landscape import storage
from tests.fixtures_results import write_study


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> storage.StudyFolder:
    """Two settings; two references, a variant and a random mask, of which five seeds are noisy."""
    rows = ("sgd", "sam", "zsharp", "random_mask")
    place = tmp_path_factory.mktemp("shared") / "study"
    return write_study(place, noisy=rows, clean=rows[:2], seeds=5, clean_seeds=2)
