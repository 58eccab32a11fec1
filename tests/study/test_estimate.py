"""What a study costs elsewhere follows from operations that are counted."""

from pathlib import Path

import pytest

from landscape.errors import LandscapeError
from landscape.study import Options, parse
from landscape.study.estimate import estimate

HERE = Path(__file__).parents[1]
TEXT = """
name = "priced"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
[grid]
variant = ["sgd", "sam"]
seed = [0]
[measure]
examples = 24
measurements = ["generalization", "gradient_zscores"]
"""


def test_the_time_elsewhere_is_operations_over_their_rate(tmp_path):
    options = Options(device="cpu", workers=2, quiet=True)
    found = estimate(parse(TEXT, base=HERE), tmp_path / "s", options, tflops=1e-6)
    # Linear layers of 4 x 8 and 8 x 3 on 24 examples; a gradient is three losses.
    assert found.flops == 3 * 2 * 24 * (4 * 8 + 8 * 3)
    assert found.gradient_seconds == pytest.approx(found.flops / 1e6)
    gradients = sum(row.gradients for row in found.rows)
    assert found.seconds == pytest.approx(gradients * found.gradient_seconds / 2)
    # SGD: one gradient a step, SAM two; 48 examples are two times the fixed ones.
    training = next(row for row in found.rows if row.name == "training")
    assert training.gradients == (1 + 2) * 2 * 2
    assert "of 1e-06 TFLOP/s each" in found.table()
    assert "there." in found.table()
    four = estimate(parse(TEXT, base=HERE), tmp_path / "s", options, tflops=4e-6)
    assert four.seconds == pytest.approx(found.seconds / 4)


def test_no_rate_is_refused(tmp_path):
    with pytest.raises(LandscapeError, match="--tflops 0"):
        estimate(parse(TEXT, base=HERE), tmp_path / "s", Options(device="cpu"), tflops=0.0)
