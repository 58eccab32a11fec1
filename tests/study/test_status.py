"""How far a study is, from its folder alone; who works on it, and what happened to who did."""

import json
import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from landscape import storage
from landscape.cli import app
from landscape.errors import LandscapeError
from landscape.study import Options, claims, parse, run, sessions, status

HERE = Path(__file__).parents[1]
TEXT = """
name = "tiny"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
[grid]
variant = ["sgd", "sam"]
seed = [0]
[measure]
examples = 24
[measure.hessian_trace]
num_probes = 2
"""


def study_of(text=TEXT):
    return parse(text, base=HERE)


@pytest.mark.thorough
def test_a_study_that_is_whole(tmp_path):
    run(study_of(), tmp_path / "s", Options(workers=0, quiet=True))
    found = status(tmp_path / "s")
    assert {state: n for state, n in found.counts.items() if n} == {"done": 2}
    assert found.left == 0.0
    assert all(each.seconds > 0 and each.share == 1.0 for each in found.runs)
    assert "2 runs planned; 2 done." in str(found)


def test_what_is_planned_and_not_begun_waits(tmp_path):
    run(study_of(), tmp_path / "s", Options(workers=0, quiet=True, train=True, measure=False))
    found = status(tmp_path / "s")
    assert found.counts["done"] == 0
    assert found.left is None  # nothing tells how long a run takes
    assert {each.state for each in found.runs} == {"stopped"}


def test_a_failed_run_says_why_and_the_exit_code_is_one(tmp_path, monkeypatch):
    from landscape.study import worker

    def fails(job, report):
        raise LandscapeError("the disk of this run is gone.")

    monkeypatch.setattr(worker, "_do", fails)
    run(study_of(), tmp_path / "s", Options(workers=0, quiet=True))
    shown = CliRunner().invoke(app, ["status", str(tmp_path / "s")])
    assert shown.exit_code == 1
    assert shown.output.count("failed, the disk of this run is gone.") == 2
    as_json = CliRunner().invoke(app, ["status", str(tmp_path / "s"), "--json"])
    assert json.loads(as_json.output)["counts"]["failed"] == 2


@pytest.mark.slow
def test_who_works_is_seen_and_who_is_not_heard_of_has_stopped(tmp_path, monkeypatch):
    run(study_of(), tmp_path / "s", Options(workers=0, quiet=True))
    folder = tmp_path / "s" / "runs" / status(tmp_path / "s").runs[0].run
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with sessions.session(folder):
        path = folder / "working.json"
        old = time.time() - 3 * claims.SILENCE
        os.utime(path, (old, old))
        limit = time.monotonic() + 10
        while not sessions.worker(folder).alive and time.monotonic() < limit:
            time.sleep(0.01)  # until the next beat
        now = status(tmp_path / "s").runs[0]
        assert now.state == "running"
        assert f"process {os.getpid()}" in now.note
    assert status(tmp_path / "s").runs[0].state == "done"
    (folder / "measured.jsonl").unlink()
    storage.write_json(path, {"owner": "ada@far, process 7", "began": old})
    os.utime(path, (old, old))  # killed: it said neither that it ended nor anything else
    now = status(tmp_path / "s").runs[0]
    assert now.state == "stopped"
    assert "ada@far, process 7 not heard of for 3 min" in now.note


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_session_that_is_interrupted_did_not_fail(tmp_path, error):
    with pytest.raises(error), sessions.session(tmp_path):
        raise error
    assert [each["ended"] for each in storage.sessions(tmp_path)] == ["stopped"]
    assert sessions.worker(tmp_path) is None


def test_a_folder_that_is_no_study_is_refused(tmp_path):
    with pytest.raises(LandscapeError, match="holds no resolved"):
        status(tmp_path)
