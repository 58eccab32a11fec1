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
    ("convert loop.nc x.csv", "loop.nc does not exist"),
    ("report loop.nc", "loop.nc is not a folder"),
    ("run study.toml --out loop.nc", "loop.nc cannot be made there"),
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
    ("run study.toml --tflops 3", "--tflops 3 is of --estimate"),
    ("run study.toml --estimate --tflops nan", "--tflops nan: give 10"),
    ("run study.toml --threads 1.5", "Invalid value for '--threads'"),
    ("run study.toml --workers -2", "--workers -2 is below 0"),
    ("run study.toml --dtype float16", "unknown 'float16'. Did you mean 'float64'?"),
    ("run study.toml --on cluster", "--on 'cluster' is unknown; use one of here, slurm, ray"),
    ("run study.toml --on slurm --hours -1", "--hours -1 is no time limit; give hours above 0"),
    ("run study.toml --partition gpu", "--partition is of --on slurm, and --on is 'here'"),
    ("run study.toml --on slurm --engine gpus", "--engine 'gpus' is not NAME=VALUE"),
    ("run study.toml --engine a=1", "--engine a=1 is of --on slurm or --on ray"),
    ("run study.toml --on ray --workers 2", "--workers 2: Ray itself decides how many tasks"),
    ("run absent.toml", "absent.toml does not exist. `landscape demo --print-study > study.toml`"),
    ("run twice.toml", "twice.toml: not valid TOML: Cannot"),
    ("run unclosed.toml", "unclosed.toml: not valid TOML: Unclosed array (at line"),
    ("run latin1.toml", "latin1.toml is not a text file in UTF-8 (invalid continuation byte)"),
    ("run dates.toml", "rho=datetime.date(2020, 1, 1) is not a number; give a radius rho >= 0"),
    ("run nested.toml", "[measure.generalization] has no entry 'more'. Possible: num_bins"),
    ("run study.toml --set", "Option '--set' requires an argument"),
    ("run study.toml --set training.epochs", "'training.epochs' is not of the form table.key=v"),
    ("run study.toml --set a..b=3", "--set 'a..b=3' is not of the form table.key=value"),
    ("run study.toml --set name.x=3", "'name' is not a table of the study file"),
    ("run study.toml --set name=3", "name = 3 must be a text in quotes"),
    (r"""run study.toml --set 'name="a\u0000b"'""", "holds the character '\\x00', which cannot be"),
    ("run study.toml --set nme=x", "has no entry 'nme'. Did you mean 'name'?"),
    ("run study.toml --set question=3", "question = 3 must be a text in quotes"),
    ("run study.toml --set dtype=5", "dtype: unknown 5. Possible: float32, float64"),
    ("run study.toml --set trainng.epochs=3", "no entry 'trainng'. Did you mean 'training'?"),
    ("run study.toml --set training=[]", "[training] must be a table, not []"),
    ("run study.toml --set training.epochs=", "epochs='' was asked; give a whole number >= 1"),
    ("run study.toml --set training.epochs=ten", "epochs='ten' was asked; give a whole number"),
    ("run study.toml --set training.epochs=-5", "epochs=-5 was asked; give a whole number >= 1"),
    ("run study.toml --set training.epochs=1.5", "epochs=1.5 was asked; give a whole number"),
    ("run study.toml --set training.epochs=true", "epochs=True was asked; give a whole number"),
    ("run study.toml --set training.epoch=3", "no entry 'epoch'. Did you mean 'epochs'?"),
    ("run study.toml --set training.lr=-0.1", "lr=-0.1 was asked; it must be finite and lr >= 0"),
    ("run study.toml --set training.lr=[0.1]", "lr=[0.1] is not a number; give one with lr >= 0"),
    ("run study.toml --set training.batch_size=1e3", "batch_size=1000.0 was asked; give a whole"),
    ("run study.toml --set training.momentum=1.5", "momentum=1.5 is outside [0, 1]"),
    ("run study.toml --set training.schedule=cosin", "'cosin' is unknown; did you mean 'cosine'?"),
    ("run study.toml --set grid=[1]", "[grid] must be a table of axes, not 1"),
    ("run study.toml --set grid={}", "[grid] names no variant; add variant=[...]"),
    ("run study.toml --set grid.rho=[]", "[grid] axis 'rho' is empty; give at least one value"),
    ("run study.toml --set grid.seed=[]", "[grid] axis 'seed' is empty; give at least one value"),
    ("""run study.toml --set 'grid.seed=["0"]'""", "[grid] seed = '0' is not a whole number"),
    ("run study.toml --set grid.seed=[true]", "[grid] seed = True is not a whole number"),
    ("run study.toml --set grid.seeds=[0]", "no axis 'seeds'. Did you mean 'seed'?"),
    ("""run study.toml --set 'grid.rho=["0.1"]'""", "rho='0.1' is not a number; give a radius"),
    ("run study.toml --set grid.rho={a=1}", "rho={'a': 1} is not a number; give a radius"),
    ("run study.toml --set grid.variant=SAM", "unknown 'SAM'"),
    ("run study.toml --set grid.varient=sam", "no axis 'varient'. Did you mean 'variant'?"),
    ("run study.toml --set grid.setting=noisy", "unknown 'noisy'. Possible: default"),
    ("run study.toml --set grid.percentile=[0.5]", "[grid] has no axis 'percentile'. Possible:"),
    ("run study.toml --set grid.label_noise=[2]", "label_noise = 2 is not a share between 0 and 1"),
    ("run study.toml --set grid.weights=5", "weights = 5 must be the path of a file, in quotes"),
    ("run study.toml --set grid.weights=no.pt", "weights file 'no.pt' does not exist"),
    ("""run study.toml --set 'grid.weights="{variant"'""", "cannot be filled in (ValueError"),
    ("""run study.toml --set 'grid.weights="{colour}.pt"'""", "cannot be filled in (KeyError"),
    ("""run study.toml --set 'grid.weights="{0}.pt"'""", "{step} and any axis, as {rho}"),
    ("""run study.toml --set 'grid.weights="{seed.real.x}"'""", "filled in (AttributeError"),
    ("""run study.toml --set 'grid.weights="{seed[0]}"'""", "cannot be filled in (TypeError"),
    (
        "run study.toml --set grid.weights=w.pt --set grid.seed=[0,1]",
        "the seeds 0 and 1 of 'sam' have the same weights",
    ),
    ("run study.toml --set grid.weights_key=a", "the file that `weights` gives; give both"),
    ("run study.toml --set run=[{rho=0.1}]", "number 1 names no variant; add variant="),
    ("""run study.toml --set 'run=[{variant="sam",roh=1}]'""", "'roh'. Did you mean 'rho'?"),
    ("""run study.toml --set 'run=[{variant="sam",seed="x"}]'""", "seed = 'x' is not a whole"),
    ("run study.toml --set run=[3]", "[[run]] number 1 must be a table, not 3"),
    ("run study.toml --set problem.data=5", "data = 5 must be a name"),
    ("run study.toml --set problem.data=digitss", "unknown 'digitss'. Did you mean 'digits'?"),
    ("run study.toml --set problem.data=study_problem:nosuch", "study_problem has no 'nosuch'"),
    ("run study.toml --set problem.data=study_problem.py:splits", "package.module:callable, with"),
    ("run study.toml --set problem.label_noise=some", "'some' is not a share between 0 and 1"),
    ("run study.toml --set problem.splits=[1,2]", "must be three whole numbers above 0"),
    ("run study.toml --set problem.verify=no", "verify = 'no' must be true or false"),
    ("run study.toml --set problem.dta=digits", "no entry 'dta'. Did you mean 'data'?"),
    ("run study.toml --set settings.noisy.title=7", "title = 7 must be a text in quotes"),
    ("run study.toml --set variants=[]", "[variants] must be a table of tables, not []"),
    ("run study.toml --set variants.mine.rho=0.1", "[variants.mine] recipe: unknown 'mine'"),
    ("run study.toml --set variants.sam.roh=0.1", "no entry 'roh'. Did you mean 'rho'?"),
    ("run study.toml --set measure.examples=all", "examples = 'all' is not a whole number"),
    ("run study.toml --set measure.measurements=sharpness", "must be a list, not 'sharpness'"),
    ("run study.toml --set 'measure.measurements=[1]'", "[measure] measurement: unknown 1"),
    ("run study.toml --set measure.generalization=3", "generalization = 3 is no table; ask for it"),
    ("run study.toml --set measure.sharpness=false", "sharpness = False is no table; ask for it"),
    ("run study.toml --set measure.sharpness.rho=[1]", "'sharpness' is not in `measurements`"),
    ("run study.toml --set measure.bn=train", "[measure] bn: unknown 'train'. Possible: eval"),
    ("run all.toml --set measure.sharpness.rho=[]", "rho = [] is empty; give at least one value"),
    ("run all.toml --set measure.sharpness.rho=0.1", "rho = 0.1 is not a list; write [0.1]"),
    ("run all.toml --set measure.sharpness.rho=[-1]", "rho = -1"),
    ("run all.toml --set measure.top_eigenvalues.k=-1", "k = -1 is not possible; give a number"),
    ("run all.toml --set measure.top_eigenvalues.which=small", "which: unknown 'small'. Did you"),
    ("run all.toml --set measure.m_sharpness.batch_sizes=[99]", "99 asked of 24 examples; 24 at"),
    ("run all.toml --set measure.training_curvature.k=1", "needs checkpoints of the training"),
    ("run study.toml --set comparisons=3", "[comparisons] must be a table, not 3"),
    ("run study.toml --set comparisons.metric=accuracyy", "unknown 'accuracyy'. Did you mean"),
    ("run study.toml --set comparisons.references=nosuch", "unknown 'nosuch'. Possible: sam"),
    ("train --rho big", "Invalid value for '--rho'"),
    ("train --rho -1", "rho=-1.0 was asked; a radius is finite and rho >= 0"),
    ("train --epochs 0", "epochs=0 was asked; give a whole number >= 1"),
    ("train --batch-size -3", "batch_size=-3 was asked; give a whole number >= 1"),
    ("run old", "made with study format 1"),
    ("train --variant nosuch", "variant: unknown 'nosuch'. Possible: sgd, sam"),
    ("train --lr inf", "lr=inf was asked; it must be finite"),
    ("train --seed -3", "seed = -3 is not a whole number from 0 to"),
    ("measure study --weights w.pt", "Give a study (study) or --weights w.pt, not both"),
    ("measure study --examples 9", "--examples 9 is of --weights, and study is a study"),
    ("measure study --variant sam", "--variant sam is of --weights, and study is a study"),
    ("measure study --rho 0.1", "--rho 0.1 is of --weights, and study is a study"),
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
    (folder / "twice.toml").write_text(STUDY + "[grid]\nseed = [1]\n")
    (folder / "unclosed.toml").write_text(STUDY.replace("[0.1]", "[0.1"))
    (folder / "latin1.toml").write_bytes('name = "\u00e9"'.encode("latin-1"))
    (folder / "dates.toml").write_text(STUDY.replace("[0.1]", "[2020-01-01]"))
    (folder / "nested.toml").write_text(STUDY + "[measure.generalization.more]\na = 1\n")
    (folder / "all.toml").write_text(STUDY.partition("measurements")[0])
    (folder / "text.txt").write_text("hello")
    (folder / "loop.nc").symlink_to("loop.nc")
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


@pytest.mark.thorough
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
