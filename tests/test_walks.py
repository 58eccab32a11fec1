"""How many places a newcomer touches: for a recipe, a measurement, data and a model.

CONTRIBUTING.md says which; these tests count them, so that there are never more.
"""

import re
from pathlib import Path

import pytest

from landscape import sam, study
from landscape.sam.table import derived
from landscape.study.measurements import RECORDS

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "landscape"
MADE = {*derived(sam.recipes()), PACKAGE / "study" / "MEASUREMENTS.md"}
EXAMPLE = re.compile(r"^ *(>>>|\.\.\.) .*$", re.MULTILINE)  # may name anything
TEXTS = {
    path.relative_to(PACKAGE).as_posix(): EXAMPLE.sub("", path.read_text(encoding="utf-8"))
    for path in PACKAGE.rglob("*")
    if path.suffix in (".py", ".pyi", ".json", ".md", ".toml", ".html") and path not in MADE
}
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
# Measurements that nothing is concluded from: no rule of the verdict asks for them.
PLAIN = ("curvature_map", "zscore_history", "three_points", "features")


def places(name):
    """Files of the package, written by hand, that define, export or name it as a whole word."""
    shapes = (rf'"{name}"', rf"\bdef {name}\(", rf"^ +{name},$", rf"import [^\n]*\b{name}\b",
              rf"\b(measure|figures)\.{name}\b")  # fmt: skip
    pattern = re.compile("|".join(shapes), re.MULTILINE)
    return {file for file, text in TEXTS.items() if name in text and pattern.search(text)}


def test_a_recipe_is_one_place():
    for name in ("tsam", "sagm", "eigen_sam", "lookbehind_sam", "crsam"):
        assert len(places(name)) == 1, places(name)


@pytest.mark.parametrize("name", PLAIN)
def test_a_measurement_is_three_functions_and_their_lines(name):
    """The function, its record and its figure; where each is exported or shown, one line."""
    found = places(name)
    lines = {"measure/__init__.pyi", "plot/figures/__init__.py", "report/sections.py"}
    assert lines <= found
    cited = {"report/references.json"}  # where papers are behind it
    rooms = sorted("/".join(file.split("/")[:2]) for file in found - lines - cited)
    assert rooms[0].startswith("measure/")
    assert rooms[1:] == ["plot/figures", "study/measurements"]
    assert name in RECORDS


def test_data_and_a_model_are_none():
    """A study file names them where they are; the package knows nothing of them."""
    plan = study.load(ROOT / "docs" / "reference" / "everything.toml")
    assert plan.runs[0].problem.model == "first_lines:make_model"
    assert not any("first_lines" in text for text in TEXTS.values())


@pytest.mark.parametrize("name", ["resnet20", "vit"])
def test_a_model_of_the_package_is_its_file_and_a_line(name):
    assert len(places(name)) <= 2, places(name)


def test_the_guide_counts_as_these_do():
    assert "**A recipe: one place.**" in CONTRIBUTING
    assert "**A measurement: three functions and their lines.**" in CONTRIBUTING
    assert "**Data and a model: none.**" in CONTRIBUTING
