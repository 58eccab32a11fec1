"""A study on other engines leaves what one process leaves, also when its workers are lost.

Tests that need Ray or Slurm are skipped where they are not installed; submitit's local executor
goes the same path as Slurm's.
"""

import importlib.util
import json
import os
import shutil
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from landscape.errors import LandscapeError
from landscape.study import Options, Ray, Slurm, claims, engines, logs, parse, run, status
from landscape.study.queue import Queue
from landscape.study.running import device_of
from tests.study.test_crashes import left

HERE = Path(__file__).parents[1]
TEXT = """
name = "engines"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 6
batch_size = 16
[grid]
variant = ["sgd", "sam"]
seed = [0]
[measure]
examples = 24
measurements = ["generalization", "history"]
"""
QUIET = {"device": "cpu", "quiet": True}
has = importlib.util.find_spec
needs_submitit = pytest.mark.skipif(not has("submitit"), reason="submitit is not installed")
needs_ray = pytest.mark.skipif(not has("ray"), reason="ray is not installed")
needs_slurm = pytest.mark.skipif(
    not (has("submitit") and shutil.which("sbatch")), reason="no sbatch, or no submitit"
)


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """What one process leaves."""
    return of_study(tmp_path_factory.mktemp("alone") / "s", Options(workers=0, **QUIET))


def of_study(folder, options):
    summary = run(parse(TEXT, base=HERE), folder, options)
    assert summary.failed == {}
    assert status(folder).counts["done"] == 2
    return left(folder)


class Later:
    """A future whose worker may be lost."""

    def __init__(self, work):
        self.work = work

    def done(self):
        return True

    def result(self):
        return self.work()


class Losing:
    """Runs jobs here; the first `lost` of them end without an answer."""

    def __init__(self, lost):
        self.lost = lost
        self.submitted = 0

    def submit(self, function, /, *arguments):
        self.submitted += 1
        if self.submitted <= self.lost:
            return Later(self.gone)
        return Later(lambda: function(*arguments))

    def gone(self):
        raise ConnectionError("the node\nis gone")


def square(job, report):
    report(0.5, "half")
    if job < 0:
        raise LandscapeError("below 0.")
    return job * job


def on(executor, jobs, **more):
    heard = []
    events = engines.run_on(executor, square, jobs, threads=1, listen=heard.append, **more)
    return events, heard


@pytest.fixture(autouse=True)
def _soon(monkeypatch):
    monkeypatch.setattr(engines, "EVERY", 0.01)


@pytest.fixture
def prompt_workers(monkeypatch):
    """Ray's workers wait behind all others (a niceness of 15), for minutes where cores are busy."""
    monkeypatch.setenv("RAY_worker_niceness", "0")


def test_answers_keep_the_order_of_the_jobs_and_refusals_are_not_tried_again():
    with ThreadPoolExecutor(2) as pool:
        events, _ = on(pool, [1, -2, 3])
    assert [e.kind for e in events] == ["done", "failed", "done"]
    assert [events[0].value, events[1].note, events[2].value] == [1, "below 0.", 9]


def test_a_lost_worker_is_tried_again_and_said_and_at_last_reported():
    losing = Losing(2)
    events, heard = on(losing, [1, 2])
    assert [e.value for e in events] == [1, 4]
    assert losing.submitted == 4
    said = [e.note for e in heard if e.kind == "progress"]
    assert said[0].startswith("its worker was lost (ConnectionError: the node is gone)")
    events, _ = on(Losing(100), [1])
    assert events[0].kind == "failed"
    assert f"{engines.TRIES} times. Run the same command again" in events[0].note


def test_what_takes_no_jobs_is_named():
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    with pytest.raises(LandscapeError, match=r"ThreadPoolExecutor took no jobs .*run the same"):
        on(pool, [1])
    with pytest.raises(LandscapeError, match="has no submit"):
        engines.started("dask", None, 1)


def test_jobs_that_were_submitted_before_are_followed_and_not_submitted_again():
    losing = Losing(0)
    events, _ = on(
        losing, [1, 2], earlier={0: Later(lambda: engines.Event("done", 0, value="old"))}
    )
    assert [e.value for e in events] == ["old", 4]
    assert losing.submitted == 1


def test_who_waits_is_stopped_and_cancels_what_it_submitted():
    class Never(Later):
        cancelled = 0

        def done(self):
            raise KeyboardInterrupt

        def cancel(self):
            Never.cancelled += 1

    class Executor:
        def submit(self, function, /, *arguments):
            return Never(None)

    with pytest.raises(KeyboardInterrupt):
        on(Executor(), [1, 2])
    assert Never.cancelled == 2


@pytest.mark.thorough
def test_a_study_on_an_executor_of_another_library_leaves_what_one_process_leaves(alone, tmp_path):
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        assert of_study(tmp_path / "s", Options(on=pool, **QUIET)) == alone
    text = logs.path(next((tmp_path / "s" / "runs").iterdir())).read_text()
    assert "training, recording at most" in text
    assert "generalization" in text
    assert text.rstrip().endswith("100 %  done")


def kill_one_that_trains(folder, how=signal.SIGKILL, epochs=1):
    """Kill a process that works on a run, once it has trained some epochs; its number."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        for path in (folder / "runs").glob("*/working.json"):
            history = path.with_name("history.jsonl")
            worker = claims.read(path)
            if worker and history.exists() and history.read_text().count("\n") > epochs:
                os.kill(worker.where[1], how)
                return path.parent.name
        time.sleep(0.002)
    raise AssertionError("nobody trained")


def during(work, act, *arguments):
    """What `act` returns, while `work` runs."""
    found = []
    thread = threading.Thread(target=lambda: found.append(act(*arguments)), daemon=True)
    thread.start()
    result = work()
    thread.join(1)
    assert found, "it was over before anything could happen to it"
    return result, found[0]


LOCAL = Slurm(cluster="local", hours=1, at_once=1)


@needs_submitit
@pytest.mark.slow
def test_submitit(alone, tmp_path):
    assert of_study(tmp_path / "s", Options(on=LOCAL, **QUIET)) == alone
    jobs = Queue(_place(tmp_path / "s")).last()
    assert len(jobs) == 2
    assert all(job.logs.exists() for job in jobs.values())


@needs_submitit
@pytest.mark.slow
def test_a_job_of_submitit_that_is_killed_is_submitted_again(alone, tmp_path, monkeypatch):
    long = TEXT.replace("epochs = 6", "epochs = 120")
    monkeypatch.setattr(sys.modules[__name__], "TEXT", long)
    whole = of_study(tmp_path / "whole", Options(workers=0, **QUIET))
    options = Options(on=LOCAL, **QUIET)
    found, run_id = during(
        lambda: of_study(tmp_path / "s", options), kill_one_that_trains, tmp_path / "s"
    )
    assert found == whole
    assert len(_lines(tmp_path / "s", run_id)) == 2


@needs_submitit
@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="signals")
def test_a_job_of_submitit_that_is_preempted_is_queued_again_and_continues(tmp_path, monkeypatch):
    long = TEXT.replace("epochs = 6", "epochs = 120")
    monkeypatch.setattr(sys.modules[__name__], "TEXT", long)
    whole = of_study(tmp_path / "whole", Options(workers=0, **QUIET))
    found, run_id = during(
        lambda: of_study(tmp_path / "s", Options(on=LOCAL, **QUIET)),
        kill_one_that_trains, tmp_path / "s", signal.SIGUSR2,
    )  # fmt: skip
    assert found == whole
    assert len(_lines(tmp_path / "s", run_id)) == 1  # it is the same job
    ended = [json.loads(line)["ended"] for line in _sessions(tmp_path / "s", run_id)]
    assert ended == ["stopped", "done"]


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_cluster_of_ray_that_loses_a_node(prompt_workers, tmp_path, monkeypatch):
    import ray
    from ray.cluster_utils import Cluster

    long = TEXT.replace("epochs = 6", "epochs = 120")
    monkeypatch.setattr(sys.modules[__name__], "TEXT", long)
    whole = of_study(tmp_path / "whole", Options(workers=0, **QUIET))
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
    )
    second = cluster.add_node(num_cpus=1)
    try:
        options = Options(on=Ray(address=cluster.address), **QUIET)

        def lose_the_second():
            deadline = time.monotonic() + 600
            while time.monotonic() < deadline:
                at_work = list((tmp_path / "s" / "runs").glob("*/history.jsonl"))
                if len(at_work) == 2:
                    cluster.remove_node(second, allow_graceful=False)
                    return True
                time.sleep(0.01)
            return False

        found, lost = during(lambda: of_study(tmp_path / "s", options), lose_the_second)
        assert lost
        assert found == whole
        sessions = [len(_sessions(tmp_path / "s", p.name)) for p in _runs(tmp_path / "s")]
        assert sorted(sessions) == [1, 1]  # the killed one could not say that it ended
    finally:
        ray.shutdown()
        cluster.shutdown()


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_here(prompt_workers, alone, tmp_path):
    assert of_study(tmp_path / "s", Options(on=Ray(), **QUIET)) == alone


@needs_slurm
@pytest.mark.slow
@pytest.mark.parametrize("act", ["nothing", "kill", "preempt"])
def test_slurm(act, tmp_path, monkeypatch):
    long = TEXT.replace("epochs = 6", "epochs = 120")
    monkeypatch.setattr(sys.modules[__name__], "TEXT", long)
    whole = of_study(tmp_path / "whole", Options(workers=0, **QUIET))
    options = Options(on=Slurm(hours=0.2, at_once=2), **QUIET)
    if act == "nothing":
        assert of_study(tmp_path / "s", options) == whole
        return
    how = signal.SIGKILL if act == "kill" else signal.SIGUSR2
    found, _ = during(
        lambda: of_study(tmp_path / "s", options), kill_one_that_trains, tmp_path / "s", how
    )
    assert found == whole


def test_flags_that_belong_elsewhere_are_refused_by_name():
    assert "--on 'lsf' is unknown; use one of here, slurm, ray." in _refused(on="lsf")
    assert "--partition is of --on slurm" in _refused(partition="gpu")
    assert "--hours is of --on slurm, and --on is 'ray'" in _refused(on="ray", hours=2.0)
    assert "NAME=VALUE" in _refused(on="slurm", settings=["account"])
    assert "Ray itself decides" in _refused(on="ray", workers=3)
    assert "is of --on slurm or --on ray" in _refused(settings=["account=me"])
    assert "slurm or local" in _refused(on="slurm", settings=["cluster=lsf"])


def _refused(*, on="here", partition=None, hours=None, workers=None, settings=()):
    with pytest.raises(LandscapeError) as caught:
        engines.named(on, partition=partition, hours=hours, workers=workers, settings=settings)
    return str(caught.value)


def test_flags_become_settings_of_the_engine():
    found = engines.named(
        "slurm", partition="gpu", hours=8.0, workers=16, settings=["account=me", "mem_gb=1.5",
        "gpus_per_node=1"],
    )  # fmt: skip
    assert found == Slurm(
        "gpu", 8.0, 16, settings={"account": "me", "mem_gb": 1.5, "gpus_per_node": 1}
    )
    assert device_of(Options(on=found)) == "cuda"
    assert device_of(Options(on=Slurm())) == device_of(Options(on=Ray())) == "cpu"
    assert device_of(Options(on=Ray(settings={"num_gpus": 1}))) == "cuda"
    found = engines.named(
        "ray", partition=None, hours=None, workers=None, settings=["address=auto"]
    )
    assert found == Ray("auto", {})


@needs_submitit
def test_what_submitit_does_not_know_is_refused_with_its_words(tmp_path):
    odd = Slurm(cluster="local", settings={"colour": "red"})
    with pytest.raises(LandscapeError, match="colour"):
        run(parse(TEXT, base=HERE), tmp_path / "s", Options(on=odd, **QUIET))
    if not shutil.which("sbatch"):
        with pytest.raises(LandscapeError, match="cluster=local tries the same path here"):
            run(parse(TEXT, base=HERE), tmp_path / "s", Options(on=Slurm(), **QUIET))


def test_status_tells_which_job_a_run_waits_for(tmp_path):
    run(parse(TEXT, base=HERE), tmp_path / "s", Options(workers=0, train=False, **QUIET))
    queue = Queue(_place(tmp_path / "s"))
    name = status(tmp_path / "s").runs[0].run
    time.sleep(0.01)
    future = Later(None)
    future.job_id = "12_3"
    queue.submitted(name, future)
    queue.submitted(name, Later(None))  # of an engine that gives no numbers
    found = status(tmp_path / "s").runs[0]
    assert found.state == "queued"
    assert "job 12_3 submitted" in found.note
    assert "jobs/12_3_0_log.out" in found.note


def _place(folder):
    from landscape.storage import StudyFolder

    return StudyFolder(folder)


def _runs(folder):
    return sorted((folder / "runs").iterdir())


def _lines(folder, run_id):
    text = (folder / "jobs" / "submitted.jsonl").read_text().splitlines()
    return [line for line in text if run_id in line]


def _sessions(folder, run_id):
    return (folder / "runs" / run_id / "sessions.jsonl").read_text().splitlines()
