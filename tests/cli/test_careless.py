"""Careless calls: one sentence each, with what is possible, exit code 2, and no file harmed."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

import landscape.cli as cli
from tests.fixtures_results import write_study
from tests.study_problem import make

HERE = Path(__file__).parents[1]
STUDY = """
name = "careless"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 1
[grid]
variant = ["sam"]
rho = [0.1]
[measure]
examples = 24
measurements = ["generalization"]
"""
OWN = "measure --model study_problem:make --data study_problem:data"
CALLS = (
    ("help", "No such command 'help'"),
    ("demo --workers two", "Invalid value for '--workers'"),
    ("demo --threads 0", "--threads 0 is below 1"),
    ("demo --device cuda:x", "--device 'cuda:x' is unknown; use auto, cpu, cuda or cuda:0"),
    ("demo --out text.txt", "text.txt is a file; give a folder"),
    ("demo --quick --out text.txt/x", "text.txt/x cannot be made there: Not a directory"),
    ("demo --out junk", "junk holds other files and no resolved.json"),
    ('demo --quick --out ""', "holds other files and no resolved.json"),
    ("run", "Missing argument 'STUDY'"),
    ("run study.toml study.toml", "Got unexpected extra argument(s)"),
    ("run study.toml --jsn", "No such option: --jsn (Possible options: --json"),
    ("run text.txt", "text.txt: not valid TOML"),
    ("run empty.toml", "the study file has no runs; add a [grid] table"),
    ("run bytes.toml", "bytes.toml is not a text file"),
    ("run study --out junk", "study is a folder; give the study file, a .toml"),
    ("run junk", "junk holds no resolved.json, so it is not a study folder"),
    ("run study.toml --set name=", "name = '' is empty; give a name"),
    ("run study.toml --set =", "not of the form table.key=value"),
    ("run study.toml --set grid=3", "[grid] must be a table, or several in double brackets, not 3"),
    ("run study.toml --set run=true", "[[run]] must be a table, or several"),
    ("run study.toml --set measure=7", "[measure] must be a table, not 7"),
    ("run study.toml --set settings=7", "[settings] must be a table of tables, not 7"),
    ("run study.toml --set grid.variant=[[1]]", "[grid] variant: unknown [1]"),
    ("run study.toml --set grid.seed=[0.5]", "seed = 0.5 is not a whole number from 0 to"),
    ("run study.toml --set grid.rho=[nan]", "rho=nan was asked; a radius is finite"),
    ("run study.toml --set variants.sam.label=5", "label = 5 must be a text in quotes"),
    ("run study.toml --set problem.data=nosuch", "unknown 'nosuch'. Possible: digits"),
    ("run study.toml --set problem.data=no.such:thing", "no module 'no.such' beside the study"),
    ("run study.toml --set measure.split=holdout", "unknown 'holdout'. Possible: train, val, test"),
    ("run old", "made with study format 1"),
    ("train --variant nosuch", "variant: unknown 'nosuch'. Possible: sgd, sam"),
    ("train --lr inf", "lr=inf was asked; it must be finite"),
    ("train --seed -3", "seed = -3 is not a whole number from 0 to"),
    ("measure study --weights w.pt", "Give a study (study) or --weights w.pt, not both"),
    (f"{OWN} --weights absent.pt", "absent.pt' does not exist"),
    (f"{OWN} --weights text.txt", "text.txt is text and not weights ('hello')"),
    (f"{OWN} --weights junk", "junk is a folder without model.safetensors.index.json"),
    (f"{OWN} --weights study/resolved.json", "is JSON; of JSON only an index of shards"),
    (f"{OWN} --weights w.pt --weights-key nosuch", "under weights_key = 'nosuch'; it has '.'"),
    (f"{OWN} --weights w.pt --examples -1", "examples = -1 is not a whole number from 1 to"),
    (
        "measure --model study_problem:explode --data study_problem:data --weights w.pt",
        "study_problem:explode failed: RuntimeError: this model cannot be made",
    ),
    ("figures study --only nosuch", "nosuch"),
    ("figures study --variants nosuch", "'nosuch' asked; possible are sgd"),
    ("figures study --venue nature", "Unknown width 'nature'; known: neurips"),
    ("figures study --dpi 0", "dpi=0 asked; give 30 to 1200"),
    ("figures study --setting nosuch", "setting 'nosuch' asked; the study has"),
    ("report text.txt", "text.txt is not a folder. Give the folder of a study"),
    ("report junk", "junk holds no resolved.json"),
    ("report old", "made with study format 1"),
    ("verify junk", "junk holds no resolved.json"),
    ("verify old", "made with study format 1"),
    ("doctor junk", "junk holds no diagnosis.json"),
    ("weights text.txt", "text.txt is text and not weights"),
    ("weights w.pt --out w.pt", "w.pt is both source and target"),
    ("weights w.pt --trust-pickle 0000", "0000 is trusted: another file. It was not opened"),
    ("convert text.txt x.csv", "text.txt ends in '.txt'; results are read from"),
    ("convert study/results/sharpness.nc x.doc", "x.doc ends in '.doc'; possible: .csv"),
    ("convert study x.csv", "study ends in ''; results are read from"),
    ("tune study.toml --axis nosuch", "--axis 'nosuch'"),
)  # fmt: skip


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    folder = tmp_path_factory.mktemp("careless")
    shutil.copy(HERE / "study_problem.py", folder)
    (folder / "study.toml").write_text(STUDY)
    (folder / "empty.toml").write_text("")
    (folder / "bytes.toml").write_bytes(bytes(range(256)))
    (folder / "text.txt").write_text("hello")
    (folder / "junk").mkdir()
    (folder / "junk" / "a.txt").write_text("x")
    torch.save(make().state_dict(), folder / "w.pt")
    write_study(folder / "study", seeds=2, clean=())
    shutil.copytree(folder / "study", folder / "old")
    found = json.loads((folder / "study" / "resolved.json").read_text())
    (folder / "old" / "resolved.json").write_text(json.dumps(found | {"format": 1}))
    return folder


def _files(folder):
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc"}


@pytest.mark.parametrize(("line", "message"), CALLS, ids=lambda value: value[:40])
def test_a_careless_call_is_one_sentence(desk, line, message, monkeypatch, capsys):
    monkeypatch.chdir(desk)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["landscape", *shlex.split(line)])
    monkeypatch.delitem(sys.modules, "study_problem", raising=False)
    before = _files(desk)
    with pytest.raises(SystemExit) as left:
        cli.main()
    out, said = capsys.readouterr()
    words = " ".join(said.replace("│", " ").split())
    assert message in words, words
    assert left.value.code == 2
    assert "Traceback" not in said
    assert out == ""
    after = _files(desk)
    assert {p: after.get(p) for p in before} == before
    made = {p.name for p in after.keys() - before.keys()}
    assert made <= {"study.toml", "resolved.json", "data.json", ".lock"}, made
    shutil.rmtree(desk / "studies", ignore_errors=True)


def test_the_advice_for_an_older_study_makes_it_anew(desk, monkeypatch, capsys):
    folder = desk / "older"
    shutil.copytree(desk / "old", folder)
    (folder / "study.toml").write_text(STUDY.replace("study_problem", "tests.study_problem"))
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["landscape", "report", str(folder)])
    with pytest.raises(SystemExit):
        cli.main()
    advice = capsys.readouterr().err.split("`")[1]
    arguments = shlex.split(advice)
    assert arguments[:2] == ["landscape", "run"]
    monkeypatch.setattr(sys, "argv", [*arguments, "--workers", "0"])
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 0, capsys.readouterr().err
    assert (desk / "older-new" / "report.html").exists()
