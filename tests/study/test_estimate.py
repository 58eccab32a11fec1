"""What a study costs elsewhere follows from operations that are counted."""

from dataclasses import replace
from pathlib import Path

import pytest

from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import Options, costs, parse, run_folder, running
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


def test_progress_weighs_what_is_missing_as_the_estimate_does(tmp_path):
    """A plane of 25 × 25 points is most of the work of a short training."""
    plan = parse(TEXT.replace("gradient_zscores", "loss_plane"), base=HERE)
    options, place = Options(device="cpu"), StudyFolder(tmp_path / "s")
    known = run_folder.Trainings(plan, place)
    training, each = zip(
        *(costs.missing(running.job_of(known, run, place, "cpu", options)) for run in plan.runs),
        strict=True,
    )
    found = {row.name: row for row in estimate(plan, place.root, options).rows}
    assert sum(training) == found["training"].gradients
    rest = found["generalization"].gradients + found["loss_plane"].gradients
    assert sum(map(sum, each)) == pytest.approx(rest + 4 * costs.EACH)
    assert found["loss_plane"].gradients > 10 * found["training"].gradients
    # What cannot be looked at is said in its worker, and not by what counts.
    lost = replace(plan.runs[0], problem=replace(plan.runs[0].problem, data="nowhere:make"))
    part, parts = costs.missing(running.job_of(known, lost, place, "cpu", options))
    assert part > 0 < min(parts)
