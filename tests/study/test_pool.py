"""The pool: a worker that dies takes its own job with it, not the others; nobody is left behind."""

import io
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from landscape import toml
from landscape.errors import LandscapeError
from landscape.study.pool import Event, run_jobs
from landscape.study.progress import Progress, duration


def square(job, report):
    report(0.5, "half")
    return job * job


def trouble(job, report):
    if job == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if job == "exit":
        os._exit(7)
    if job == "user":
        raise LandscapeError("rho=-1 was asked; use rho >= 0.")
    if job == "bug":
        raise ZeroDivisionError("a bug")
    if job == "memory":
        raise MemoryError
    return job


def threads(job, report):
    import torch

    return torch.get_num_threads(), os.environ["OMP_NUM_THREADS"]


@pytest.mark.thorough
def test_every_job_is_done_and_answers_keep_their_order():
    heard = []
    events = run_jobs(square, [1, 2, 3, 4, 5], workers=2, threads=1, listen=heard.append)
    assert [event.value for event in events] == [1, 4, 9, 16, 25]
    assert {event.kind for event in events} == {"done"}
    assert sum(event.kind == "progress" for event in heard) == 5


def test_no_jobs_and_no_workers():
    assert run_jobs(square, [], workers=2, threads=1, listen=lambda event: None) == []
    events = run_jobs(square, [3], workers=0, threads=1, listen=lambda event: None)
    assert events[0].value == 9


@pytest.mark.thorough
def test_a_killed_worker_fails_its_job_alone_and_says_what_the_system_did():
    jobs = ["a", "kill", "b", "user", "bug", "exit", "memory", "c"]
    events = run_jobs(trouble, jobs, workers=2, threads=1, listen=lambda event: None)
    kinds = [event.kind for event in events]
    assert kinds == ["done", "failed", "done", "failed", "failed", "failed", "failed", "done"]
    assert "SIGKILL" in events[1].note
    assert "memory runs out" in events[1].note
    assert events[3].note == "rho=-1 was asked; use rho >= 0."
    assert "ZeroDivisionError: a bug" in events[4].note
    assert "Traceback" in events[4].value
    assert "exit code 7" in events[5].note
    assert "out of memory" in events[6].note


@pytest.mark.thorough
def test_workers_have_the_threads_they_were_promised_and_the_parent_keeps_its_own():
    before = os.environ.get("OMP_NUM_THREADS")
    events = run_jobs(threads, [0], workers=1, threads=3, listen=lambda event: None)
    assert events[0].value == (3, "3")
    assert os.environ.get("OMP_NUM_THREADS") == before


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_workers_end_when_their_parent_is_killed(tmp_path):
    (tmp_path / "sleeping.py").write_text(
        textwrap.dedent("""
        import os, pathlib, time
        def sleep(job, report):
            pathlib.Path(job).write_text(str(os.getpid()))
            time.sleep(60)
        if __name__ == "__main__":
            import sys
            from sleeping import sleep
            from landscape.study.pool import run_jobs
            run_jobs(sleep, [sys.argv[1]], workers=1, threads=1, listen=print)
        """)
    )
    mark = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, tmp_path / "sleeping.py", mark], cwd=tmp_path)
    try:
        worker = _wait_for(lambda: int(mark.read_text()) if mark.exists() else None)
    finally:
        parent.kill()
        parent.wait()
    _wait_for(lambda: not os.path.exists(f"/proc/{worker}"))


def _wait_for(ask, seconds=30):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if answer := ask():
                return answer
        except ValueError:  # half-written number
            pass
        time.sleep(0.05)
    raise AssertionError("waited too long")


def test_progress_without_a_terminal_is_rare_plain_lines_and_names_failures():
    stream = io.StringIO()
    with Progress(["a", "b"], stream=stream, every=0.0) as progress:
        progress.hear(Event("progress", 0, 0.5, "training"))
        progress.hear(Event("done", 0))
        progress.hear(Event("failed", 1, note="its worker died"))
    text = stream.getvalue()
    assert "1/2 runs" in text
    assert "b failed: its worker died" in text
    assert "\x1b" not in text
    assert progress.fraction == 1.0
    silent = io.StringIO()
    with Progress(["a"], stream=silent, every=3600) as progress:
        progress.hear(Event("done", 0))
    assert silent.getvalue() == ""


def test_progress_weighs_jobs_by_cost():
    progress = Progress(["short", "long"], weights=[1, 3], quiet=True)
    progress.hear(Event("done", 0))
    assert progress.fraction == 0.25


@pytest.mark.parametrize(
    ("seconds", "words"), [(42, "42 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")]
)
def test_durations_in_words(seconds, words):
    assert duration(seconds) == words


def test_toml_survives_a_round_trip():
    import tomllib

    table = {
        "name": 'quo"te\n\x7f ρ',
        "yes": True,
        "list": [1, 2.5, "a"],
        "problem": {"noise": 0.2, "deep": {"a": 1e-7}},
        "grid": [{"variant": ["sgd"]}, {"seed": [0, 1]}],
        "odd key": {"x": float("inf")},
    }
    assert tomllib.loads(toml.dumps(table)) == table
