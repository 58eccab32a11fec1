"""Every figure script draws from a study, and again from the data that it saved."""

import runpy
import sys
from pathlib import Path

import pytest

from landscape import results
from tests import fixtures_curvature
from tests.fixtures_perturbations import measured
from tests.fixtures_results import write_study
from tests.fixtures_surfaces import write_surfaces

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted((ROOT / "analysis_scripts").glob("fig_*.py"))
# Made by the measurements themselves, beside the made-up results of a study.
MEASURED = ("gradient_zscores", "mask_selection", "mask_filters", "enrichment",
            "perturbation_controls")  # fmt: skip
CURVATURE = ("block_curvature", "training_curvature", "data_bracket", "minibatch_eigenvalues",
             "alignment")  # fmt: skip
LIMIT = 1_000_000  # bytes of data committed beside one figure


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    place = write_study(folder)
    more = fixtures_curvature.measured(*CURVATURE)
    for name, ds in (measured(*MEASURED) | more).items():
        results.save(ds, place.results / f"{name}.nc")
    write_surfaces(folder)
    # Simulated, not measured: a study has none of its own.
    power = ROOT / "figures" / "data" / "power.planted_power.nc"
    results.save(results.load(power), place.results / "planted_power.nc")
    return folder


def run(monkeypatch, script, *arguments):
    monkeypatch.setattr(sys, "argv", [script.name, *map(str, arguments)])
    monkeypatch.syspath_prepend(str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


@pytest.mark.slow
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_draws_from_a_study(monkeypatch, tmp_path, study, script):
    run(monkeypatch, script, "--study", study, "--out", tmp_path)
    name = script.stem.removeprefix("fig_")
    assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    assert b"/Type3" not in (tmp_path / f"{name}.pdf").read_bytes()
    assert list((tmp_path / "data").glob(f"{name}.*.nc"))


@pytest.mark.thorough
@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_draws_from_the_committed_data(monkeypatch, script, capsys):
    run(monkeypatch, script, "--smoke")
    assert ".png and .pdf" in capsys.readouterr().out
    name = script.stem.removeprefix("fig_")
    data = list((ROOT / "figures" / "data").glob(f"{name}.*.nc"))
    assert sum(file.stat().st_size for file in data) <= LIMIT


def test_a_folder_that_is_no_study_is_refused(monkeypatch, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, SCRIPTS[0], "--study", tmp_path)
    assert stop.value.code == 2
    assert "holds no resolved.json" in capsys.readouterr().err


def test_scripts_are_short_and_say_how_to_run_them():
    assert len(SCRIPTS) >= 5
    for script in SCRIPTS:
        text = script.read_text()
        assert len(text.splitlines()) <= 60, script.name
        assert f"python analysis_scripts/{script.name}" in text
        assert f"`{script.name}`" in (ROOT / "figures" / "README.md").read_text()
