"""One process at a time works in a folder: also across machines, clocks, kills and takeovers."""

import json
import os
import platform
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from landscape.errors import LandscapeError
from landscape.study import claims


def held_by(path, *, where=("elsewhere", 1), age=0.0, job="", token="theirs"):
    said = {"owner": "ada@elsewhere, process 1", "began": 0.0, "token": token,
            "where": list(where), "job": job}  # fmt: skip
    path.write_text(json.dumps(said))
    then = time.time() - age
    os.utime(path, (then, then))


def test_a_claim_lasts_as_long_as_its_block_and_leaves_nothing(tmp_path):
    path = tmp_path / "working.json"
    with claims.claim(path) as held:
        assert claims.read(path).alive
        assert not held.lost
        said = f"worked on by .*process {os.getpid()}"
        with pytest.raises(LandscapeError, match=said), claims.claim(path):
            pass
    assert list(tmp_path.iterdir()) == []


def test_another_machine_that_was_heard_of_is_waited_for_and_taken_over_when_silent(tmp_path):
    path = tmp_path / "working.json"
    held_by(path)
    said = "ada@elsewhere, process 1, heard of 0 s ago"
    with pytest.raises(LandscapeError, match=said), claims.claim(path):
        pass
    waited = []

    def wait(other):
        waited.append(other.owner)
        held_by(path, age=claims.SILENCE + 1)

    with claims.claim(path, wait=wait):
        assert claims.read(path).where == (platform.node(), os.getpid())
    assert waited == ["ada@elsewhere, process 1"]


def test_a_process_of_this_machine_that_was_killed_is_taken_over_at_once(tmp_path):
    path = tmp_path / "working.json"
    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    held_by(path, where=(platform.node(), child.pid))
    with claims.claim(path):
        assert claims.read(path).token != "theirs"


def test_this_very_job_of_a_batch_system_is_itself_when_it_is_started_again(tmp_path, monkeypatch):
    path = tmp_path / "working.json"
    monkeypatch.setenv("SLURM_JOB_ID", "12")
    held_by(path, job="Slurm job 13")
    with pytest.raises(LandscapeError, match="being worked on"), claims.claim(path):
        pass
    held_by(path, job="Slurm job 12")
    with claims.claim(path):
        assert "Slurm job 12" in claims.read(path).owner


def test_the_age_of_a_claim_is_told_by_the_file_system_and_not_by_this_clock(tmp_path, monkeypatch):
    path = tmp_path / "working.json"
    held_by(path)
    clock = time.time
    monkeypatch.setattr(time, "time", lambda: clock() + 3600)  # this machine's clock is ahead
    with pytest.raises(LandscapeError, match="being worked on"), claims.claim(path):
        pass


def test_one_that_woke_up_after_it_was_taken_over_is_told_and_takes_nothing_away(tmp_path):
    path = tmp_path / "working.json"
    with claims.claim(path) as held:
        held.check()
        held_by(path, token="another")
        with pytest.raises(LandscapeError, match="was taken over by ada@elsewhere"):
            held.check()
    assert claims.read(path).token == "another"


def test_a_claim_of_which_nothing_is_written_yet_is_somebodys(tmp_path):
    path = tmp_path / "working.json"
    path.touch()
    with pytest.raises(LandscapeError, match="did not say its name"), claims.claim(path):
        pass
    os.utime(path, (0, 0))  # killed before it said anything
    with claims.claim(path):
        pass


@pytest.mark.parametrize("left", ["nothing", "a dead claim"])
def test_of_many_at_once_one_holds_it_at_any_time(tmp_path, left, monkeypatch):
    path = tmp_path / "working.json"
    if left == "a dead claim":
        held_by(path, age=1e6)
    monkeypatch.setattr(time, "sleep", lambda _: threading.Event().wait(1e-4))
    inside, most, turns = [], [], []

    def work(name):
        with claims.claim(path, wait=lambda _: None):
            inside.append(name)
            most.append(len(inside))
            threading.Event().wait(1e-3)
            inside.remove(name)
            turns.append(name)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(24)))
    assert max(most) == 1
    assert sorted(turns) == list(range(24))
    assert list(tmp_path.iterdir()) == []


def test_the_key_to_taking_over_is_not_lost_with_the_process_that_held_it(tmp_path):
    path, key = tmp_path / "working.json", tmp_path / "working.json.key"
    held_by(path, age=1e6)
    key.touch()
    os.utime(key, (0, 0))
    with claims.claim(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_claim_that_a_full_disk_kept_is_nobodys_for_the_process_that_held_it(
    tmp_path, monkeypatch
):
    path = tmp_path / "working.json"

    def full(_):
        raise LandscapeError("The disk is full.")

    with monkeypatch.context() as patch, pytest.raises(LandscapeError, match="full"):  # noqa: SIM117
        with claims.claim(path):
            patch.setattr(claims, "_fresh", full)
    assert path.exists()
    with claims.claim(path):
        assert path.exists()
    assert not path.exists()


@pytest.mark.parametrize("moved", [False, True])
def test_a_claim_of_a_time_to_come_is_nobodys_unless_somebody_moves_it(
    tmp_path, monkeypatch, moved
):
    """A folder that was copied with its times from a machine whose clock was ahead."""
    path, ahead = tmp_path / "working.json", time.time() + 1e6
    said = {"owner": "x@far", "began": ahead, "token": "t", "where": ["far", 1]}
    path.write_text(json.dumps(said))
    os.utime(path, (ahead, ahead))

    def sleep(_):
        if moved:
            os.utime(path, (ahead + 5, ahead + 5))

    monkeypatch.setattr(claims.time, "sleep", sleep)
    if moved:
        with pytest.raises(LandscapeError, match="worked on by x@far"), claims.claim(path):
            pass
    else:
        with claims.claim(path) as held:
            assert not held.lost
