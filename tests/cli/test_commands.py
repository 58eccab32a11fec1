"""The command line as a person or a script meets it: words, exit codes, files."""

import json
import subprocess
import sys
import tomllib
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import landscape.cli as cli
from landscape import results
from landscape.study.demo import demo_text
from landscape.study.flags import Flags, study_text
from tests.study_problem import make

HERE = Path(__file__).parents[1]
COMMANDS = (
    "demo", "run", "tune", "train", "measure", "figures", "report", "verify", "check", "doctor",
    "weights", "convert",
)  # fmt: skip
SMALL = [
    "--set", "measure.loss_slice.points=3", "--set", "measure.loss_slice_eval.points=3",
    "--set", "measure.loss_plane.points=3", "--set", "measure.sharpness.rho=[0.1]",
    "--set", "measure.top_eigenvalues.k=2", "--set", "measure.hessian_trace.num_probes=4",
    "--set", "measure.crosscheck.num_probes=4", "--set", "measure.spectral_density.num_nodes=5",
]  # fmt: skip


def call(monkeypatch, capsys, *arguments):
    """Run a command in this process: (exit code, stdout, stderr)."""
    monkeypatch.setattr(sys, "argv", ["landscape", *map(str, arguments)])
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("warnings.formatwarning", warnings.formatwarning)
    with pytest.raises(SystemExit) as left:
        cli.main()
    said = capsys.readouterr()
    return left.value.code, said.out, said.err


@pytest.fixture
def at(monkeypatch, capsys, tmp_path):
    """`call` in an empty folder that holds study_problem.py."""
    (tmp_path / "study_problem.py").write_text((HERE / "study_problem.py").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "study_problem", raising=False)
    return lambda *arguments: call(monkeypatch, capsys, *arguments)


def test_help_loads_nothing_heavy_and_names_every_command():
    program = "import sys, landscape.cli as c; sys.argv = ['landscape', '--help']\ntry: c.main()\n"
    heavy = "{'torch', 'matplotlib', 'pandas', 'numpy'}"
    program += f"finally: print(sorted({heavy} & set(sys.modules)))"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stdout.strip().endswith("[]")
    for name in (*COMMANDS, "Exit codes"):
        assert name in said.stdout


def test_a_warning_is_a_sentence_without_its_line_of_code():
    program = "import sys, warnings, landscape.cli as c; sys.argv = ['landscape', '--version']\n"
    program += "try: c.main()\nfinally: warnings.warn('two threads before, one now')"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert said.stderr == "warning: two threads before, one now\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name, monkeypatch, capsys):
    code, out, _ = call(monkeypatch, capsys, name, "--help")
    assert code == 0
    assert "--json" in out


def test_print_study_prints_the_demo(monkeypatch, capsys):
    assert call(monkeypatch, capsys, "demo", "--print-study")[1] == demo_text()
    quick = call(monkeypatch, capsys, "demo", "--quick", "--print-study")[1]
    assert quick == demo_text(quick=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.toml"], "error: absent.toml does not exist."),
        (["report", "absent"], "absent is not a folder. Give the folder of a study."),
        (["figures", "."], "holds no resolved.json, so it is not a study folder"),
        (["measure"], "Nothing to measure: give a study.toml"),
        (["measure", "--weights", "a.pt"], "--data and --model not given."),
        (["measure", "x.toml", "--weights", "a.pt"], "Give a study (x.toml) or --weights a.pt"),
        (["train", "--variant", "sma"], "variant: unknown 'sma'. Did you mean 'sam'?"),
        (["train", "--rho", "-1"], "rho=-1.0 was asked; a radius is finite and rho >= 0"),
        (["train", "--epochs", "0"], "epochs=0 was asked"),
        (["train", "--device", "tpu"], "--device 'tpu' is unknown"),
        (["train", "--dtype", "half"], "dtype: unknown 'half'. Possible: float32, float64"),
        (["train", "--set", "training.lr"], "not of the form table.key=value"),
        (["run", "--nonsense"], "No such option: --nonsense"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(at, arguments, message):
    code, out, said = at(*arguments)
    assert message in " ".join(said.split()).replace("│ ", "")
    assert code == 2
    assert "Traceback" not in said
    assert out == ""


@pytest.mark.thorough
def test_own_model_data_loss_and_weights_end_in_a_report_of_their_own(at, tmp_path):
    torch.save({"state_dict": make().state_dict()}, tmp_path / "mine.pt")
    code, out, said = at(
        "measure", "--model", "study_problem:make", "--data", "study_problem:splits",
        "--loss", "study_problem:loss", "--weights", "mine.pt", "--variant", "sam",
        "--rho", "0.05", "--out", "own", "--workers", "0", "--json", *SMALL,
    )  # fmt: skip
    assert code == 0, said
    summary = json.loads(out)
    assert Path(summary["report"]).stat().st_size > 10_000
    names = {Path(path).stem for path in summary["results"]}
    assert {
        "top_eigenvalues", "hessian_trace", "loss_slice", "loss_plane", "gradient_zscores",
        "perturbation", "mask_overlap", "generalization", "sharpness",
    } <= names  # fmt: skip
    ds = results.load(tmp_path / "own" / "results" / "perturbation.nc")
    assert float(ds.rho_eff[0]) == pytest.approx(0.05, rel=1e-3)
    code, out, _ = at("measure", "own", "--workers", "0")
    assert code == 0
    assert out.strip().endswith("report.html")
    code, out, _ = at("figures", "own", "--only", "sharpness,spectral_density", "--json")
    kinds = {Path(path).suffix for path in json.loads(out)["figures"]}
    assert {".pdf", ".png", ".html"} <= kinds


def test_which_weights_of_a_file_were_measured_is_said_everywhere(at, tmp_path):
    weights, average = make().state_dict(), {k: 0 * v for k, v in make().state_dict().items()}
    torch.save({"model": weights, "model_ema": average, "epoch": 3}, tmp_path / "two.pt")
    flags = [
        "measure", "--model", "study_problem:make", "--data", "study_problem:splits",
        "--weights", "two.pt", "--workers", "0", "--set", 'measure.measurements=["norms"]',
    ]  # fmt: skip
    sentence = "found under 'model', NOT 'model_ema', which the file also holds"
    code, _, said = at(*flags, "--out", "raw")
    assert code == 0, said
    assert sentence in said
    ds = results.load(tmp_path / "raw" / "results" / "norms.nc")
    (own,) = results.provenance(ds)["runs"]
    assert own["weights_file"]["chosen"] == "model"
    assert own["weights_file"]["left_out"] == ["model_ema", "epoch"]
    assert len(own["weights_file"]["sha256"]) == 64
    assert sentence in own["weights_found"]
    page = tmp_path / "raw" / "report.md"
    assert "NOT 'model_ema'" in page.read_text()
    page.unlink()
    code, out, _ = at("report", "raw")
    assert (code, Path(out.strip()).name) == (0, "report.html")
    assert "NOT 'model_ema'" in page.read_text()
    code, _, said = at(*flags, "--out", "ema", "--weights-key", "model_ema")
    assert code == 0, said
    assert "found under 'model_ema', NOT 'model'" in said
    other = results.load(tmp_path / "ema" / "results" / "norms.nc")
    assert not np.array_equal(other.run, ds.run)
    assert at("weights", "two.pt")[1].count("tensors") == 2
    code, out, _ = at("weights", "two.pt", "--out", "w.safetensors", "--json")
    assert (code, json.loads(out)["checksum"]) == (0, "sha256")


def test_train_then_measure(at, tmp_path):
    flags = ["--model", "study_problem:make", "--data", "study_problem:splits"]
    code, out, said = at(
        "train", *flags, "--variant", "zsharp", "--rho", "0.1", "--epochs", "1",
        "--out", "t", "--set", "run.percentile=0.5", "--json", *SMALL,
    )  # fmt: skip
    assert code == 0, said
    (weights,) = json.loads(out)["checkpoints"]
    assert Path(weights).exists()
    spec = json.loads((Path(weights).parent.parent / "spec.json").read_text())
    assert spec["options"]["percentile"] == 0.5
    assert spec["training"]["epochs"] == 1
    code, out, said = at("measure", "t", "--estimate", "--json")
    assert code == 0, said
    found = json.loads(out)
    assert found["memory_bytes"] > 0
    assert {row["name"] for row in found["rows"]} >= {"top_eigenvalues", "loss_slice"}
    assert "training" not in {row["name"] for row in found["rows"]}
    assert found["recorded_bytes"] == 0
    assert not list(tmp_path.glob("t/results/*.nc"))
    table = at("measure", "t", "--estimate")[1]
    assert "gradients" in table
    assert "MiB of memory" in table
    assert at("measure", "t", "--workers", "0")[0] == 0
    assert (tmp_path / "t" / "report.html").exists()


def test_an_estimate_says_what_the_trainings_will_record(at, tmp_path):
    (tmp_path / "s.toml").write_text(demo_text(quick=True))
    code, out, said = at("measure", "s.toml", "--estimate")
    assert code == 0, said
    assert "The trainings record at most 2.2 MB." in out


def test_data_that_are_not_there_are_bad_input_and_it_says_where_to_get_them(at):
    code, _, said = at("train", "--data", "cifar10", "--model", "resnet20")
    assert code == 2
    assert "--data-dir" in said
    assert "Traceback" not in said


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("study_problem:explode", "study_problem:explode failed: RuntimeError: this model"),
        ("study_problem:make", "It is Sequential without a tensor; return a DataSplits"),
        ("study_problem:absent", "study_problem has no 'absent'"),
        ("study_problem", "unknown 'study_problem'"),
        ("absent:data", "no module 'absent' beside the study file"),
    ],
)
def test_data_of_no_use_are_bad_input_before_anything_starts(at, tmp_path, data, message):
    torch.save(make().state_dict(), tmp_path / "w.pt")
    own = ("--model", "study_problem:make", "--data", data)
    given = ("measure", "--weights", "w.pt", "--workers", "0"), ("train", "--variant", "sgd")
    for command in given:
        code, _, said = at(*command, *own, "--out", command[0])
        assert code == 2, said
        assert message in " ".join(said.split())
        assert "Traceback" not in said
        assert not (tmp_path / command[0] / "runs").exists()


def test_weights_of_another_model_are_refused_with_their_names(at, tmp_path):
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "other.pt")
    code, _, said = at(
        "measure", "--model", "study_problem:make", "--data", "study_problem:data",
        "--weights", "other.pt", "--out", "o", "--workers", "0",
    )  # fmt: skip
    assert code == 2
    assert "holds no tensor by a name of the model: it has weight, bias where the model has" in said
    assert "Traceback" not in said


def test_flags_are_a_study_file():
    text = study_text(Flags(data="digits", model="cnn", variant="sam", rho=0.1, lr=0.2, seed=3))
    table = tomllib.loads(text)
    assert table["run"] == [{"variant": "sam", "seed": 3, "rho": 0.1}]
    assert table["training"] == {"lr": 0.2}
    assert table["name"] == "digits-sam"


@pytest.mark.slow
def test_the_quick_demo_ends_in_a_report_and_a_second_call_does_nothing(tmp_path):
    command = [sys.executable, "-m", "landscape", "demo", "--quick", "--out", tmp_path / "d"]
    first = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert first.returncode == 0, first.stderr
    assert len(json.loads(first.stdout)["done"]) == 3
    second = subprocess.run([*command, "--json"], capture_output=True, text=True)
    assert len(json.loads(second.stdout)["kept"]) == 3


def old_surface(path):
    import h5py

    with h5py.File(path, "w") as file:
        file["dir_file"] = "directions.h5"
        file["xcoordinates"] = np.linspace(-1, 1, 3)
        file["ycoordinates"] = np.linspace(-1, 1, 5)
        # x runs fastest there, under the shape (x, y); -1 was not computed.
        losses = np.add.outer(10 * np.linspace(-1, 1, 5), np.linspace(-1, 1, 3) + 20).reshape(3, 5)
        losses[2, 4] = -1
        file["train_loss"], file["train_acc"] = losses, np.where(losses == -1, -1, 80.0)
    return path


def test_old_surfaces_become_results_tables_and_figures(at, tmp_path):
    source = old_surface(tmp_path / "old.h5")
    for target in ("old.nc", "old.csv", "old.png", "old.html"):
        more = ["--figure", "loss_surface"] if target.endswith("html") else []
        code, out, _ = at("convert", source, tmp_path / target, *more)
        assert (code, out.strip()) == (0, str(tmp_path / target))
    ds = results.load(tmp_path / "old.nc")
    assert ds.loss.sel(alpha=1.0, beta=-1.0) == 11
    assert np.isnan(ds.loss.sel(alpha=1.0, beta=1.0))
    assert results.provenance(ds)["directions_file"] == "directions.h5"
    assert (tmp_path / "old.csv").read_text().startswith("alpha,beta,loss,error_rate")
    code, out, _ = at("convert", tmp_path / "old.nc", tmp_path / "again.csv", "--json")
    assert json.loads(out) == {"files": [str(tmp_path / "again.csv")]}
    assert (tmp_path / "again.csv").read_text() == (tmp_path / "old.csv").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("old.h5", "old.docx"), "ends in '.docx'; possible: .csv, .parquet"),
        (("old.txt", "old.nc"), "results are read from .nc, .h5, .hdf5"),
        (("old.h5", "x.png", "--figure", "pie"), "No figure is called 'pie'; name one of"),
        (("none.h5", "x.nc"), "none.h5 does not exist"),
        (("old.h5", "x.png", "--figure", "barrier"), "This figure needs barrier"),
    ],
)
def test_conversions_that_are_not_possible_are_named(at, tmp_path, arguments, message):
    old_surface(tmp_path / "old.h5")
    code, _, err = at("convert", *arguments)
    assert code == 2
    assert message in err


def test_a_result_is_not_converted_onto_itself(at, tmp_path):
    (tmp_path / "a.nc").write_text("x")
    code, _, err = at("convert", "a.nc", "a.nc")
    assert code == 2
    assert "is both source and target" in err


def test_what_nobody_foresaw_is_one_sentence_and_a_file(at, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise ZeroDivisionError("division by\nzero")

    monkeypatch.setattr("landscape.plot.files.convert", broken)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, said = at("convert", "a.nc", "a.csv")
    assert (code, out) == (70, "")
    assert "something went wrong inside landscape (ZeroDivisionError: division by zero)" in said
    assert "Traceback" not in said
    (kept,) = tmp_path.glob("landscape-*.log")
    assert str(kept) in said
    assert "landscape convert a.nc a.csv\nTraceback" in kept.read_text()
