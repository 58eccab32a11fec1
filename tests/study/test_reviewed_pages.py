"""Tiny studies from file to page, read as a reviewer would: each sentence holds, or is not there.

Three axes; a recipe and checkpoints of one's own; no test data; a variant that diverges; a metric
that is better when lower; an axis of one variant without any reference.
"""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.sentences import asserted
from landscape import report
from landscape.metrics import METRICS
from landscape.report.study import StudyResults
from landscape.study import Options, parse, run
from tests import study_problem

HERE = Path(__file__).parents[1]
HEAD = """
name = "{name}"
question = "Is it so?"
[problem]
data = "study_problem:{data}"
model = "study_problem:{model}"
[training]
epochs = 2
batch_size = 16
lr = 0.1
"""
MEASURE = """
[measure]
examples = 24
measurements = ["generalization", "top_eigenvalues", "perturbation", "history"]
[measure.top_eigenvalues]
k = 1
"""
STUDIES = {
    "three_axes": """
[grid]
variant = ["sgd", "sam"]
rho = [0.05, 0.5]
lr = [0.05, 0.1]
epochs = [1, 2]
seed = [0, 1, 2]
[comparisons]
references = ["sgd"]
""",
    "no_test": """
[grid]
variant = ["sgd", "sam"]
seed = [0, 1, 2, 3]
[variants.sam]
rho = 0.3
[comparisons]
metric = "test_accuracy"
references = ["sgd"]
""",
    "diverged": """
[variants.sam]
rho = 0.1
[variants.far]
recipe = "sam"
rho = 0.1
training.lr = 1e30
[grid]
variant = ["sgd", "sam", "far"]
seed = [0, 1, 2]
[comparisons]
references = ["sgd"]
""",
    "lower": """
[variants.sam]
rho = 0.3
[grid]
variant = ["sgd", "sam"]
seed = [0, 1, 2]
[comparisons]
metric = "test_loss"
references = ["sgd"]
""",
    "one_axis": """
[grid]
variant = ["sam"]
rho = [0.05, 0.1, 0.2]
seed = [0, 1, 2, 3, 4]
""",
}  # fmt: skip


def made(name, folder):
    data = "data" if name == "no_test" else "splits"
    model = "plain" if name in ("no_test", "diverged") else "make"
    text = HEAD.format(name=name, data=data, model=model) + STUDIES[name] + MEASURE
    done = run(parse(text, base=HERE), folder, Options(device="cpu", workers=0, quiet=True))
    report.write(done.folder, formats=())
    return done.folder


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Each study once: what was read of it, and the text of its page."""
    root, known = tmp_path_factory.mktemp("pages"), {}

    def page(name):
        if name not in known:
            folder = made(name, root / name)
            text = (folder.root / "report.md").read_text(encoding="utf-8")
            known[name] = (StudyResults.read(folder), text)
        return known[name]

    return page


def values(study, key, row):
    quantity = METRICS[key]
    ds = study.values(quantity.measurement, quantity.variable, study.settings[0])[row]
    return dict(zip(ds.seed.values.tolist(), ds[quantity.variable].values, strict=True))


@pytest.mark.thorough
@pytest.mark.parametrize("name", list(STUDIES))
def test_every_sentence_is_known_and_what_it_claims_is_so_in_the_numbers(pages, name):
    """Each "better" of the page has a mean difference of that sign; none is of unequal axes."""
    study, text = pages(name)
    said, places = asserted(study)
    assert said.headline
    for claim in (c for claims in places.values() for c in claims if c.kind == "better"):
        if claim.quantity not in (study.metric, "train_loss"):
            continue
        a, b = (values(study, claim.quantity, row) for row in (claim.subject, claim.other))
        gain = np.mean([a[s] - b[s] for s in a if s in b])
        assert METRICS[claim.quantity].better * gain > 0
    told = text.replace("training loss was nan", "")  # why a run diverged
    assert not re.search(r"\bnan\b|None(?! is drawn)|\binf\b", told)
    assert ": : " not in text
    assert "  " not in said.headline


def test_three_axes_are_a_row_each_and_pairs_are_of_equal_axes(pages):
    study, text = pages("three_axes")
    rows = study.variants("default")
    assert len(rows) == 2 * 2 + 2 * 2 * 2
    assert all(v.ds.sizes["run"] == 3 for v in rows)
    for v in rows:
        if v.family == "sam":
            partner = study.partner("default", v.id, "sgd")
            other = next(w for w in rows if w.id == partner)
            assert all(other.axes[key] == v.axes[key] for key in ("lr", "epochs"))
    assert "against rho" in text
    assert "against lr" in text
    assert "against epochs" in text
    # Each part of the axes is asked for itself.
    assert "| three_axes | rho = 0.05 |" in text
    assert "12 seeds" not in text


def test_without_test_data_training_accuracy_is_called_so(pages):
    study, text = pages("no_test")
    told = text.split("## Provenance")[0].replace("Test accuracy", "test")
    assert "test accuracy" not in told.replace("Declared was test accuracy", "")
    assert study.metric == "train_accuracy"
    assert "Nothing is said on generalization" in text
    # The study file declares test accuracy: what is compared instead was not declared.
    assert "Declared was test accuracy, which no run has" in text
    assert "Declared before the first training" not in text
    assert "Is the flatter model the better one?" not in text
    assert "Does training accuracy go with flatness?" in text
    assert "Why? Each explanation" not in text


def test_what_diverged_is_counted_and_is_neither_flat_nor_good(pages):
    study, text = pages("diverged")
    assert "Not every training went well: far 0 of 3 seeds, 3 diverged." in text
    said, places = asserted(study)
    every = [claim for claims in places.values() for claim in claims]
    assert not [c for c in every if "far" in (c.subject, c.other)]
    assert "far" not in study.data["top_eigenvalues"].variant.values
    assert "far" not in said.headline


def test_a_loss_that_is_lower_is_called_better(pages):
    study, text = pages("lower")
    assert "test loss" in text
    sam, sgd = (np.mean(list(values(study, "test_loss", row).values())) for row in ("sam", "sgd"))
    if "has a lower test loss" in text:
        assert sam < sgd
    if "a higher test loss" in text.split("\n")[2] and "No variant" not in text.split("\n")[2]:
        assert sam > sgd
    assert "higher test accuracy" not in text


def test_an_axis_of_one_variant_has_its_rows_and_five_seeds_each(pages):
    study, text = pages("one_axis")
    assert "15 seeds" not in text
    assert len(study.variants("default")) == 3
    assert all(v.ds.sizes["run"] == 5 for v in study.variants("default"))
    assert re.search(r"\| 0\.05( \(chosen by validation\))? \| .*\(n = 5\)", text)


MODULE = """
from landscape import sam

def mine(rho):
    return sam.sam(rho=rho)
"""
OWN = """
[variants.mine]
recipe = "reviewed_recipes:mine"
rho = 0.3
[variants.theirs]
recipe = "none"
label = "Theirs"
[[grid]]
variant = ["sgd", "mine"]
seed = [0, 1]
[[grid]]
variant = ["theirs"]
seed = [0, 1]
weights = "ckpt/{variant}_{seed}.pt"
[comparisons]
references = ["sgd"]
"""


def test_a_recipe_and_checkpoints_of_ones_own(tmp_path):
    """What another optimizer perturbed is left out and said so; its training is not told."""
    (tmp_path / "reviewed_recipes.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "study_problem.py").write_text(
        Path(study_problem.__file__).read_text(encoding="utf-8"), encoding="utf-8"
    )
    (tmp_path / "ckpt").mkdir()
    for seed in (0, 1):
        torch.manual_seed(seed)
        torch.save(study_problem.make().state_dict(), tmp_path / "ckpt" / f"theirs_{seed}.pt")
    text = HEAD.format(name="own", data="splits", model="make") + OWN + MEASURE
    plan = parse(text, base=tmp_path)
    done = run(plan, tmp_path / "study", Options(device="cpu", workers=0, quiet=True))
    assert not done.failed
    report.write(done.folder, formats=())
    page = (done.folder.root / "report.md").read_text(encoding="utf-8")
    study = StudyResults.read(done.folder)
    asserted(study)
    assert "what Theirs perturb" in page
    assert set(study.data["perturbation"].variant.values) == {"mine"}
    assert set(study.data["top_eigenvalues"].variant.values) == {"sgd", "mine", "theirs"}
    assert not re.search(r"\bnan\b|None(?! is drawn)", page)
