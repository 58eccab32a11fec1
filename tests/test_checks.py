"""Arguments are refused by name, with the value and what is possible."""

import math

import numpy as np
import pytest

from landscape import checks
from landscape.errors import LandscapeError

REFUSED = [
    (checks.check_count, ("k", 0), {}, "k=0 was asked; give a whole number >= 1."),
    (checks.check_count, ("k", 2.0, 0), {}, "k=2.0 was asked; give a whole number >= 0."),
    (checks.check_count, ("k", True), {}, "k=True was asked; give a whole number >= 1."),
    (checks.check_count, ("memory", "2 GB"), {"hint": " of bytes"}, "number >= 1 of bytes."),
    (checks.check_number, ("lr", "x"), {"least": 0}, "lr='x' is not a number; .* lr >= 0"),
    (checks.check_number, ("lr", math.inf), {"least": 0}, "lr=inf was asked; it must be finite"),
    (checks.check_number, ("lr", 0), {"least": 0, "beyond": True}, "lr=0 .* finite and lr > 0"),
    (checks.check_number, ("q", 1), {"least": 0, "most": 1, "below": True}, "q >= 0 and < 1"),
    (checks.check_rho, ("rho", -1), {}, "rho=-1 was asked; a radius is finite and rho >= 0."),
    (checks.check_fraction, ("q", 95), {}, r"q=95 is outside \[0, 1\]: did you mean q=0.95\?"),
    (checks.check_fraction, ("q", 0), {"zero": False}, r"q=0 is outside \(0, 1\]"),
    (checks.check_choice, ("bn", "evl", ("eval", "full")), {},
     r"bn='evl' is unknown; did you mean 'eval'\? choose one of 'eval', 'full'."),
    (checks.check_choice, ("p", 3.0, (2.0, math.inf)), {}, "p=3.0 is unknown; .* 2.0, inf"),
]  # fmt: skip


@pytest.mark.parametrize(("check", "arguments", "options", "message"), REFUSED)
def test_what_cannot_be_meant_is_refused(check, arguments, options, message):
    with pytest.raises(LandscapeError, match=message):
        check(*arguments, **options)


def test_what_can_be_meant_is_returned():
    assert checks.check_count("k", np.int64(3)) == 3
    assert type(checks.check_count("k", np.int64(3))) is int
    assert checks.check_number("lr", np.float32(0.5), least=0) == 0.5
    assert checks.check_number("x", -3) == -3.0
    assert checks.check_rho("rho", 0) == 0.0
    assert checks.check_fraction("q", 1) == 1.0
    assert checks.check_choice("bn", "eval", ("eval",)) == "eval"
