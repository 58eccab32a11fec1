"""Seeds that draw their own split and label noise: the same for all variants, pairs as before."""

import numpy as np
import pytest
import torch

from landscape import problems, stats, study
from landscape.errors import LandscapeError
from landscape.report.page import write
from landscape.report.study import StudyResults
from landscape.storage import StudyFolder, read_json
from landscape.study.problem import data_key, load_data

TEXT = """
name = "redrawn"
[problem]
data = "digits"
model = "mlp"
label_noise = 0.2
splits = [100, 40, 60]
data_seed = 3
redraw = {redraw}
[training]
epochs = 1
batch_size = 50
lr = 0.1
[grid]
variant = ["sgd", "sam"]
seed = [0, 1, 2]
[variants.sam]
rho = 0.1
[measure]
examples = 40
measurements = ["generalization", "norms"]
"""


def read(tmp_path, redraw='["split", "label_noise"]', text=TEXT):
    return study.parse(text.replace("{redraw}", redraw), base=tmp_path)


def data_of(plan):
    """Data by (variant, seed)."""
    return {(r.variant, r.seed): load_data(r.problem, plan.base) for r in plan.runs}


@pytest.mark.parametrize(
    ("redraw", "inputs_differ", "labels_differ"),
    [
        ("[]", False, False),
        ('["split"]', True, True),
        ('["label_noise"]', False, True),
        ('["split", "label_noise"]', True, True),
    ],
)
def test_data_differ_between_seeds_and_agree_within(tmp_path, redraw, inputs_differ, labels_differ):
    plan = read(tmp_path, redraw)
    data = data_of(plan)
    for seed in (0, 1, 2):
        assert data["sgd", seed].sha256 == data["sam", seed].sha256
    for part in ("train", "val", "test"):
        first, second = (getattr(data["sgd", seed], part) for seed in (0, 1))
        assert torch.equal(first.x, second.x) is not inputs_differ
        assert torch.equal(first.y_clean, second.y_clean) is not inputs_differ
        # Test labels carry no noise.
        same = not inputs_differ if part == "test" else not labels_differ
        assert torch.equal(first.y, second.y) is same
    assert int(data["sgd", 1].train.wrong.sum()) == 20
    assert {run.axes.get("data_seed") for run in plan.runs} == {None}
    assert {row.name for row in plan.variants} == {"sgd", "sam"}


def test_what_a_seed_draws_can_be_drawn_by_hand(tmp_path):
    options = {"label_noise": 0.2, "splits": (100, 40, 60)}
    both = data_of(read(tmp_path))["sam", 2]
    assert both.sha256 == problems.load_data("digits", seed=5, **options).sha256
    labels = data_of(read(tmp_path, '["label_noise"]'))["sam", 2]
    by_hand = problems.load_data("digits", seed=3, noise_seed=5, **options)
    assert labels.sha256 == by_hand.sha256
    split = data_of(read(tmp_path, '["split"]'))["sam", 2]
    assert split.sha256 == problems.load_data("digits", seed=5, noise_seed=3, **options).sha256


def test_one_draw_under_two_spellings_is_one_run(tmp_path):
    """Seed 0 draws what a study without redraws has; the name of its run says so."""
    fixed, redrawn = read(tmp_path, "[]").runs, read(tmp_path).runs
    same = [a.run_id == b.run_id for a, b in zip(fixed, redrawn, strict=True)]
    assert same == [run.seed == 0 for run in fixed]
    assert len({data_key(run) for run in redrawn}) == 3
    assert data_key(fixed[0]) == data_key(redrawn[0])


@pytest.mark.thorough
def test_a_page_says_what_its_intervals_are_over(tmp_path):
    place = StudyFolder(tmp_path / "out")
    study.run(read(tmp_path), place.root)
    digests = [entry["sha256"]["train"] for entry in read_json(place.data).values()]
    assert len(set(digests)) == len(digests) == 3
    loaded = StudyResults.read(place)
    assert loaded.redrawn("default") == "split and label noise"
    page = write(place, formats=()).with_suffix(".md").read_text(encoding="utf-8")
    assert "intervals are over seeds, splits and label noise" in page
    assert "Each test set has 60 examples" in page


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('redraw = {redraw}', 'redraw = "split"'), r"redraw = 'split' must list what every seed"),
        (('redraw = {redraw}', 'redraw = ["test"]'), r"redraw = \['test'\] must list .*'split', "),
        (("label_noise = 0.2", ""), r"redraw = 'label_noise' was asked, and no run has any"),
        (("data_seed = 3", "noise_seed = -1"), r"noise_seed = -1 is not a whole number"),
        (("seed = [0, 1, 2]", "seed = [0, 1]\ndata_seed = [0, 1]"), r"axis 'data_seed' and redraw"),
        (('"norms"]', '"norms", "barrier"]'), r"\[measure.barrier\] .* Name one seed, as in seeds"),
    ],
)  # fmt: skip
def test_what_cannot_be_redrawn_is_named(tmp_path, change, said):
    with pytest.raises(LandscapeError, match=said):
        read(tmp_path, '["label_noise"]', TEXT.replace(*change))


def test_a_barrier_among_runs_of_one_seed_is_possible(tmp_path):
    text = TEXT.replace('"norms"]', '"norms", "barrier"]') + "[measure.barrier]\nseeds = [1]\n"
    plan = read(tmp_path, text=text)
    assert plan.measure.measurements[-1].options["seeds"] in ([1], (1,))


def test_a_callable_that_cannot_draw_anew_is_named(tmp_path):
    body = (
        "import torch\ndef make({}):\n    x = torch.randn(8, 2)\n    return x, torch.arange(8) % 2"
    )
    text = TEXT.replace('"digits"', '"drawn_{}:make"').replace("splits = [100, 40, 60]", "")
    text = text.replace("label_noise = 0.2", "")
    for number, (arguments, redraw, missing) in enumerate(
        [("", '["split"]', "seed"), ("seed", '["label_noise"]', "noise_seed")]
    ):
        (tmp_path / f"drawn_{number}.py").write_text(body.format(arguments), encoding="utf-8")
        plan = read(tmp_path, redraw, text.replace("drawn_{}", f"drawn_{number}"))
        with pytest.raises(LandscapeError, match=f"has no argument {missing}, so it cannot"):
            load_data(plan.runs[-1].problem, tmp_path)


def test_test_examples_that_seeds_do_not_share_add_nothing_to_the_spread_over_seeds():
    """Test sets of their own are in the spread over seeds already; a common one is not.

    A model's difference on example i in seed s is a share of its own of the example, sd 1, and of
    the run, sd 1. Over n seeds with N examples the mean has variance 1/N + 1/(n N) where the
    examples are common and 2/(n N) where every seed has its own; the error states both.
    """
    rng = np.random.default_rng(0)
    n, count, studies = 5, 200, 200
    stated = {True: [], False: []}
    for common in stated:
        for _ in range(studies):
            of_example = rng.normal(size=(1 if common else n, count))
            rows = of_example + rng.normal(size=(n, count))
            means = rows.mean(1)
            contrast = stats.Contrast(range(n), means, examples=rows - rows.mean(1, keepdims=True))
            made = stats.simultaneous({"one": contrast})["one"].interval
            half = (made.high - made.low) / 2
            stated[common].append((half / 2.776) ** 2)  # Student, 4 degrees of freedom
    # 200 studies: the mean of variances with 4 degrees of freedom is known to 5 %.
    assert np.mean(stated[True]) == pytest.approx(1 / count + 1 / (n * count), rel=0.15)
    assert np.mean(stated[False]) == pytest.approx(2 / (n * count), rel=0.15)
