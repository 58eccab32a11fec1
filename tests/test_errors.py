"""Sentences for people: one line each, whatever names of others stand in them."""

import pickle

import pytest

from landscape.errors import LandscapeError


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("a\nb", r"a\nb"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),  # would clear the terminal
        ("a\u202etxt.exe", r"a\u202etxt.exe"),  # would be read from right to left
        ("\ud800", r"\ud800"),  # cannot be printed at all
        ("ρ = 0.1 ü 💥", "ρ = 0.1 ü 💥"),
    ],
)
def test_what_is_not_seen_is_spelled(name, shown):
    error = LandscapeError(f"{name} is unknown.")
    assert str(error) == f"{shown} is unknown."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    str(error).encode()
