"""What the README shows, runs."""

import re
from pathlib import Path

import pytest

from landscape import sam, study
from landscape.sam.table import list_of
from landscape.study import measurements

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
STUDIES, LOOPS, EVIDENCE = (
    (ROOT / "docs" / page).read_text(encoding="utf-8")
    for page in ("howto/studies.md", "howto/loops.md", "explanation/evidence.md")
)


def block(language, number=0, text=README):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)[number]


def test_it_is_read_in_a_few_minutes():
    assert len(README.splitlines()) <= 150


def test_the_python_example_runs_and_draws(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    exec(compile(block("python"), "README.md", "exec"), {})
    assert (tmp_path / "eigenvalues.pdf").stat().st_size > 5_000
    assert "True" in capsys.readouterr().out


def test_the_study_file_is_valid_and_has_fifteen_runs(tmp_path):
    file = tmp_path / "study.toml"
    file.write_text(block("toml", text=STUDIES))
    assert len(study.load(file).runs) == 15


def test_a_study_may_ask_for_what_it_shows(tmp_path):
    text = block("toml", 2, STUDIES)
    base = '[variants.sam]\nrho = 0.1\n[grid]\nvariant = ["sam"]\n'
    file = tmp_path / "study.toml"
    file.write_text(text + base)
    asked = re.findall(r"\[measure\.(\w+)\]", text)
    made = [m.name for m in study.load(file).measure.measurements]
    assert len(asked) == 7
    assert set(asked) <= set(made)
    assert len(measurements.DEFAULT) == 15
    assert "Fifteen measurements" in STUDIES


def test_the_recording_shows_the_radius(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(compile(block("python", -1, LOOPS), "loops.md", "exec"), names)
    assert names["steps"]["perturbation_norm"] == pytest.approx([0.05] * 20, rel=1e-4)


def test_every_file_and_figure_it_names_exists():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    links += re.findall(r"`(tests/[\w./*]+)`", EVIDENCE)
    assert len(links) > 8
    for name in links:
        assert list(ROOT.glob(name)), name


def test_it_lists_every_recipe():
    assert list_of(sam.recipes()) in README


@pytest.mark.parametrize("command", re.search(r"`landscape (demo \| .*?)`", README)[1].split(" | "))
def test_every_command_it_names_exists(command, capsys, monkeypatch):
    from landscape import cli

    monkeypatch.setattr("sys.argv", ["landscape", command, "--help"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
    assert "Usage" in capsys.readouterr().out
