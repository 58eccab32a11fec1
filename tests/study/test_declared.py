"""What is declared before the first training stands under a hash; a later change is seen."""

from pathlib import Path

import pytest

from landscape import storage
from landscape.errors import LandscapeError
from landscape.report.study import StudyResults
from landscape.study.declared import declaration
from landscape.study.reading import parse

TEXT = """
name = "d"
[problem]
data = "digits"
model = "mlp"
[grid]
variant = ["sgd", "sam"]
rho = [0.1]
seed = [0, 1]
[comparisons]
metric = "test_accuracy"
references = ["sgd"]
"""


def read(text=TEXT):
    return parse(text, base=Path.cwd())


def test_the_hash_is_of_metric_margin_comparisons_seeds_and_predictions(tmp_path):
    place = storage.StudyFolder(tmp_path)
    first = declaration(read(), place, None)
    assert first["declared_first"] == first["declared"]["sha256"]
    assert first["declared"]["margin"] == 0.1
    assert first["declared"]["seeds"] == {"default": [0, 1]}
    assert first["declared"]["predicted"]["flatter_lambda1"] == ["lambda1", 1]
    assert first["declared"]["predicted"]["fitting"] == ["train_loss", -1]
    changed = (
        TEXT + "margin = 0.2\n",
        TEXT.replace("[0, 1]", "[0, 1, 2]"),
        TEXT.replace('"test_accuracy"', '"test_loss"'),
        TEXT.replace('["sgd"]', '["sam"]'),
    )
    hashes = {declaration(read(text), place, None)["declared"]["sha256"] for text in changed}
    assert len(hashes) == 4
    assert first["declared"]["sha256"] not in hashes
    same = declaration(read(TEXT.replace('"d"', '"other"')), place, None)
    assert same["declared"]["sha256"] == first["declared"]["sha256"]


def test_a_change_after_the_first_training_keeps_the_first_hash(tmp_path):
    place = storage.StudyFolder(tmp_path)
    first = declaration(read(), place, None)
    later = read(TEXT + "margin = 0.3\n")
    # Nothing was trained yet: it may still be changed.
    assert declaration(later, place, first)["declared_first"] != first["declared_first"]
    (place.runs / "sam-s0").mkdir(parents=True)
    kept = declaration(later, place, first)
    assert kept["declared_first"] == first["declared_first"] != kept["declared"]["sha256"]
    assert declaration(later, place, {})["declared_first"] == ""


def test_rows_that_came_or_went_after_the_first_training_are_said(tmp_path):
    """Dropping a variant whose numbers were seen leaves metric, margin and seeds as they were."""
    place = storage.StudyFolder(tmp_path)
    first = declaration(read(), place, None)
    assert StudyResults(place, first, {}).declared.endswith(").")
    (place.runs / "sam-s0").mkdir(parents=True)
    other = read(TEXT.replace('["sgd", "sam"]', '["sgd", "asam", "fsam"]'))
    later = declaration(other, place, first)
    assert later["declared_first"] == later["declared"]["sha256"]
    said = StudyResults(place, later, {}).declared
    assert said.startswith("Declared before the first training")
    assert "Since then asam, fsam were added and sam was left out: which rows" in said
    # Nothing is said of a folder whose first rows were not kept.
    old = {key: value for key, value in first.items() if key != "rows_first"}
    assert StudyResults(place, declaration(other, place, old), {}).declared.endswith(").")


@pytest.mark.parametrize("margin", ["0", "1", "true", "'wide'", "-0.1"])
def test_a_margin_is_a_share(margin):
    with pytest.raises(LandscapeError, match=r"margin = .* between 0 and 1; 0\.1 is a tenth"):
        read(TEXT + f"margin = {margin}\n")


@pytest.mark.parametrize(
    ("loss", "metric"),
    [("cross_entropy", "test_accuracy"), ("mse", "test_loss"), ("causal_lm", "test_loss")],
)
@pytest.mark.parametrize("table", ['[comparisons]\nreferences = ["sgd"]', ""])
def test_without_classes_the_held_out_loss_is_declared(loss, metric, table, tmp_path):
    text = TEXT[: TEXT.index("[comparisons]")] + table
    study = read(text.replace('model = "mlp"', f'model = "mlp"\nloss = "{loss}"'))
    stands = declaration(study, storage.StudyFolder(tmp_path), None)
    assert stands["declared"]["metric"] == metric
