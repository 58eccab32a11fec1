"""Two studies side by side, two variants side by side: as page, Markdown and JSON."""

import json
import re
import shutil

import numpy as np
import pytest
from markupsafe import escape

from landscape import report, results, storage
from landscape.errors import LandscapeError
from landscape.report.family import Family
from tests.fixtures_results import write_study

ROWS = ("sgd", "sam", "zsharp", "random_mask")


@pytest.fixture(scope="module")
def study(folder):
    return report.StudyResults.read(folder)


def test_a_pair_has_the_decisions_of_the_page_where_it_has_some(study):
    found = report.diagnose(study, "zsharp", "sgd")
    family = Family.of(study)
    assert len(found.data["differences"]) > 5
    for one in found.data["differences"]:
        page = family.get("noisy", "zsharp", "sgd", one["quantity"])
        assert one["decided_by"] == "the page"
        np.testing.assert_equal(np.nan if one["p"] is None else one["p"], page.decision.p)
        assert one["sign"] == page.sign
    back = report.diagnose(study, "sgd", "zsharp").data["differences"]
    for one, turned in zip(found.data["differences"], back, strict=True):
        assert (turned["sign"], turned["p"]) == (-one["sign"], one["p"])


def test_what_the_page_does_not_compare_is_exploratory_and_one_family(study):
    found = report.diagnose(study, "zsharp", "random_mask")
    own = [one for one in found.data["differences"] if one["decided_by"] == "exploratory"]
    assert own
    assert "exploratory" in found.parts[0].text[0]
    alone = Family.of(study).values["noisy", own[0]["quantity"]]
    single = alone.contrast("zsharp", "random_mask", "x").differences
    assert own[0]["estimate"] == pytest.approx(float(np.mean(single)))


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("adam", "sam"), "variant 'adam' asked; setting 'noisy' has sgd, sam"),
        (("sam", "sam"), "'sam' is to be compared with itself; name two variants"),
        (("sam", "sgd", "dirty"), "setting 'dirty' asked; the study has noisy, clean"),
    ],
)
def test_a_pair_that_is_none_is_said(study, pair, message):
    with pytest.raises(LandscapeError, match=message):
        report.diagnose(study, *pair)


def test_a_study_beside_itself_is_identical(study):
    found = report.compare(study, study)
    assert found.data["compared"]
    assert all(one["identical"] and not one["apart"] for one in found.data["compared"])
    assert found.data["made"] == []
    assert "They were made alike" in [part.title for part in found.parts]


def test_what_was_changed_is_found_and_nothing_else(folder, study, tmp_path):
    other = tmp_path / "second"
    shutil.copytree(folder.root, other)
    resolved = storage.read_json(other / "resolved.json")
    resolved["variants"]["sam"]["options"]["rho"] = 7.5
    storage.write_json(other / "resolved.json", resolved)
    path = other / "results" / "top_eigenvalues.nc"
    ds = results.load(path)
    mine = (ds.variant.values == "sam") & (ds.setting.values == "noisy")
    ds["eigenvalue"] = ds.eigenvalue * (1 + 9 * mine[:, None])
    results.save(ds, path)
    found = report.compare(study, report.StudyResults.read(type(folder)(other)))
    assert [row[0] for row in found.data["made"]] == ["variants.sam.options.rho"]
    changed = [one for one in found.data["compared"] if not one["identical"]]
    assert [(one["variant"], one["quantity"]) for one in changed] == [("sam", "lambda1")]
    assert changed[0]["difference"] == pytest.approx(np.log(10))
    assert changed[0]["low"] < np.log(10) < changed[0]["high"]


def test_what_was_measured_otherwise_is_not_called_different(folder, study, tmp_path):
    """The same models at another radius, in another mode, on other examples: numbers differ."""
    other = tmp_path / "second"
    shutil.copytree(folder.root, other)
    path = other / "results" / "sharpness.nc"
    ds = results.load(path)
    results.save(ds.isel(rho=slice(-1, None)), path)
    path = other / "results" / "top_eigenvalues.nc"
    ds = results.load(path)
    how = json.loads(ds.attrs["provenance"])
    how["runs"] = [own | {"bn": "batch"} for own in how["runs"]]
    ds["eigenvalue"] = 7 * ds.eigenvalue
    results.save(ds.assign_attrs(provenance=json.dumps(how)), path)
    found = report.compare(study, report.StudyResults.read(type(folder)(other)))
    unlike = {one["quantity"] for one in found.data["compared"] if one["unlike"]}
    assert unlike == {"lambda1", "gaussian", "worst"}
    assert not any(one["apart"] for one in found.data["compared"])
    assert "0 resolved as different" in found.answer
    assert "measured otherwise" in found.answer
    (part,) = (part for part in found.parts if part.title == "What both measured")
    rows = [row for row in part.rows if row[2].startswith("Gaussian sharpness")]
    assert all(re.search(r" at ρ = [\d.]+ and [\d.]+$", row[2]) for row in rows)
    assert all(row[-1] == "measured otherwise" for row in rows)


def test_a_document_says_the_same_as_page_as_markdown_and_as_json(study, tmp_path):
    found = report.diagnose(study, "zsharp", "sam")
    page, twin, data = found.write(tmp_path / "pair")
    assert [p.suffix for p in (page, twin, data)] == [".html", ".md", ".json"]
    html, text, said = page.read_text(), twin.read_text(), json.loads(data.read_text())
    assert '<html lang="en">' in html
    assert f"<title>{found.title}</title>" in html
    for row in found.parts[0].rows:
        assert f"<td>{escape(row[0])}</td>" in html
        assert row[0].replace("|", r"\|") in text
    assert said["answer"] == found.answer
    assert "src=" not in html
    # A row of a table is a line, or Markdown has no table.
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.rstrip().endswith("|") for line in table)


def test_a_difference_within_the_margin_is_no_equality_and_is_not_among_those_that_differ(
    tmp_path_factory,
):
    """Resolved and small: the interval leaves out 1 and lies within the margin."""
    place = write_study(tmp_path_factory.mktemp("little") / "a", noisy=("sgd", "sam"), seeds=4)
    path = place.results / "top_eigenvalues.nc"
    ds = results.load(path)
    sam, apart = (ds.variant.values == "sam"), 1.04 + 0.001 * ds.seed.values
    base = ds.eigenvalue.values[ds.variant.values == "sgd"]
    values = ds.eigenvalue.values.copy()
    values[sam] = base * apart[sam][:, None]
    ds["eigenvalue"] = (ds.eigenvalue.dims, values, ds.eigenvalue.attrs)
    results.save(ds, path)
    found = report.diagnose(report.StudyResults.read(place), "sam", "sgd")
    (one,) = (one for one in found.data["differences"] if one["quantity"] == "lambda1")
    assert one["sign"]
    assert one["equivalent"]
    (row,) = (row for row in found.parts[0].rows if row[0] == "λ₁")
    assert "less than 10 % of the λ₁" in " ".join(row)
    assert not any(cell.startswith("equal within") for cell in row)
    assert "λ₁ × 1.0 [" not in " ".join(row)
    assert "by less than the margin in" in found.answer
    assert "λ₁" in found.answer.split("by less than the margin in")[1]


def test_studies_with_nothing_in_common_have_no_intervals_to_explain(study, tmp_path):
    other = write_study(tmp_path / "other", clean=("zsharp",), noisy=(), seeds=2)
    found = report.compare(study, report.StudyResults.read(other))
    assert found.data["compared"] == []
    (part,) = (part for part in found.parts if part.title == "What both measured")
    assert part.text[0].startswith("Nothing: no variant")
