"""How many deaths of a study end with the same bits: at every write, and at any time.

    OMP_NUM_THREADS=1 python -m benchmarks.deaths --writes kill torn full --minutes 30
    OMP_NUM_THREADS=1 python -m benchmarks.deaths --writes kill torn full --trainings 1
    OMP_NUM_THREADS=1 python -m benchmarks.deaths --kills 200
    OMP_NUM_THREADS=1 python -m benchmarks.deaths --kills 50 --workers 2

The study is that of `tests/study/test_crashes.py`: two trainings, measuring, combining; with
`--trainings 1` its first one alone, which has every kind of write and half of their number.
`--writes` ends it (kill), ends it with half of an unsynced line left (torn), or fills the disk
(full) at each of its changes of the disk, in a random order, so that a part of them is a sample.
`--kills` sends SIGKILL at a random time to the process that works (`--workers 0`), or three times
of four to one of its workers, else to their parent. The time is that of their processors, so that
what else the machine does moves no kill towards the start. Then the study is run once more, in one
process, and must end with the bits of an undisturbed one, with every digest right and nothing
temporary left. What was tried is added to `results/deaths.json` after each trial; what failed is
printed and kept in words.

For kill and torn the folder is copied before each change of one study: what a process that is
killed there leaves (`tests/study/test_crashes.py` compares the two). Copies that are alike, as
before and after a file is synced, are gone on from once.
"""

import argparse
import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cloudpickle

from landscape.study import Options, parse, run, verify
from tests.crashing import Disk, States, in_a_child
from tests.study.test_crashes import HERE, TEXT, left

RESULTS = Path(__file__).parent / "results" / "deaths.json"
Trial = tuple[Path, str, int | None, Callable[[], str]]

_REST = 120.0  # seconds that are waited for the workers of a parent that was killed
_TICK = 0.002


_text = [TEXT]


def work(folder: Path, workers: int) -> None:
    """The study, to its end."""
    summary = run(
        parse(_text[0], base=HERE), folder, Options(device="cpu", workers=workers, quiet=True)
    )
    if summary.failed:
        raise RuntimeError(" ".join(summary.failed.values()))


def whole(place: Path) -> tuple[dict[str, Any], list[str]]:
    """What an undisturbed study leaves, and its changes of the disk.

    place/kept: what a kill at each of the changes leaves.
    """
    folder, log = place / "whole", place / "log"

    def recorded() -> None:
        with States(folder, place / "kept") as disk:
            work(folder, 0)
        log.write_text("\n".join(disk.log))

    if (said := in_a_child(recorded)) != (0, ""):
        raise SystemExit(f"The undisturbed study failed: {said[1]}")
    return left(folder), log.read_text().splitlines()


def undisturbed_seconds(place: Path, workers: int) -> float:
    """CPU seconds that the study and its workers take without the copies."""
    process = _started(place / "timed", workers)
    seconds = 0.0
    while process.is_alive():
        seconds = max(seconds, _seconds(process.pid or 0))
        time.sleep(_TICK)
    if process.exitcode:
        raise SystemExit("The undisturbed study failed.")
    return seconds


def after(folder: Path, expected: dict[str, Any]) -> str:
    """Run the study once more; what is wrong with it then, in words."""
    code, said = _tried(folder)
    if code:
        return f"run again it ended with {code}: {said}"
    found = left(folder)
    if found != expected:
        odd = [k for k in {*found, *expected} if found.get(k) != expected.get(k)]
        return f"other bits in {', '.join(sorted(odd))}"
    if problems := verify(folder).problems:
        return f"verify: {problems}"
    temporary = [str(path) for path in folder.rglob(".landscape-*")]
    return f"left behind: {temporary}" if temporary else ""


def _tried(folder: Path) -> tuple[int, str]:
    try:
        work(folder, 0)
    except Exception as error:
        return 1, f"{type(error).__name__}: {error}"
    return 0, ""


def at_write(place: Path, expected: dict[str, Any], folder: Path, how: str, at: int) -> str:
    """What a study that is stopped at a change of the disk leaves; what is wrong with its end.

    Without space it may still end well where it had written everything: then all must be there.
    """
    if how != "full":
        (place / "kept" / f"{how}-{at}").rename(folder)
        return ""
    with Disk(folder, at, how):
        code, said = _tried(folder)
    if code == 0:
        return "" if left(folder) == expected else "it ended with 0, and not all is there"
    right = "The disk is full" in said and "Traceback" not in said
    return "" if right else f"it ended with {code}: {said}"


def _content(folder: Path) -> str:
    """A digest of every name and byte below a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(f"{path.relative_to(folder)}\0".encode())
        found.update(path.read_bytes() if path.is_file() else b"")
    return found.hexdigest()


def at_time(folder: Path, workers: int, seconds: float, *, child: bool) -> str:
    """SIGKILL to the study after some CPU seconds, or to one of its workers; whom it met."""
    process = _started(folder, workers)
    pid = process.pid or 0
    while process.is_alive() and _seconds(pid) < seconds:
        time.sleep(_TICK)
    met = "nobody"
    if process.is_alive():
        spawned = _children(pid)
        victim = random.choice(spawned) if child and spawned else pid
        met = "worker" if victim != pid else "parent"
        os.kill(victim, signal.SIGKILL)
        process.join(_REST if met == "parent" else None)
        until = time.monotonic() + _REST
        while any(map(_lives, spawned)) and time.monotonic() < until:
            time.sleep(0.05)
        if any(map(_lives, spawned)):
            met = "orphan"
    process.join()
    return met


def _started(folder: Path, workers: int) -> Any:
    context = get_context("forkserver")
    process = context.Process(
        target=_told, args=(cloudpickle.dumps(lambda: work(folder, workers)),)
    )
    process.start()
    return process


def _seconds(pid: int) -> float:
    """CPU seconds of a process and its workers."""
    nanoseconds = 0
    for one in (pid, *_children(pid)):
        with contextlib.suppress(OSError):
            nanoseconds += int(Path(f"/proc/{one}/schedstat").read_text().split()[0])
    return nanoseconds / 1e9


def _told(work_: bytes) -> None:
    # What a killed worker makes of this call is said by the call, and the next one goes on.
    try:
        cloudpickle.loads(work_)()
    except RuntimeError:
        os._exit(1)
    os._exit(0)


def _children(pid: int) -> list[int]:
    """The spawned workers of a process (its resource tracker is none)."""
    found = []
    with contextlib.suppress(OSError):
        for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
            if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def count(key: str, at: int | None, fault: str, of: int) -> None:
    """Add a trial to the results; `of`: how many changes of the disk the study has."""
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    row = found.setdefault(key, {"tried": 0, "faults": []})
    row["tried"] += 1
    if at is not None:
        row["places"] = sorted({*row.get("places", []), at})
        row["of"] = of
    if fault:
        print(f"{key}: {fault}", flush=True)
        row["faults"].append(fault)
    RESULTS.write_text(json.dumps(found, indent=None, sort_keys=True) + "\n")


def main() -> None:
    """Parse, try, count."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--writes", nargs="+", choices=("kill", "torn", "full"), default=())
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--trainings", type=int, choices=(1, 2), default=2)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    asked = parser.parse_args()
    random.seed(asked.seed)
    if asked.trainings == 1:
        _text[0] = TEXT.replace("seed = [0, 1]", "seed = [0]")
    until = time.monotonic() + 60 * asked.minutes
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        expected, log = whole(place)
        seconds = undisturbed_seconds(place, asked.workers) if asked.kills else 0.0
        print(f"{len(log)} changes of the disk, {seconds:.1f} CPU seconds", flush=True)
        for folder, key, at, stop in trials(asked, place, expected, log, seconds):
            if time.monotonic() > until:
                break
            met = stop()
            again = after(folder, expected)
            named = f"at change {at} of {len(log)}, {log[at - 1]}: " if at else ""
            fault = "; ".join(filter(None, (met if at or met == "orphan" else "", again)))
            count(
                key if at else f"SIGKILL to {met}", at, f"{named}{fault}" if fault else "", len(log)
            )
            shutil.rmtree(folder, ignore_errors=True)


def trials(
    asked: argparse.Namespace,
    place: Path,
    expected: dict[str, Any],
    log: list[str],
    seconds: float,
) -> Iterator[Trial]:
    """(folder, what is counted, the change, how it is stopped) of each trial."""
    tried = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    seen: set[str] = set()
    pairs = [
        (how, at)
        for how in asked.writes
        for at in range(1, len(log) + 1)
        if how == "full" or (place / "kept" / f"{how}-{at}").exists()
    ]
    random.shuffle(pairs)
    few = ", one training" if asked.trainings == 1 else ""
    for how, at in pairs:
        if at in tried.get(how + few, {}).get("places", ()):
            continue
        folder = place / f"{how}-{at}"
        if how != "full":
            alike = _content(place / "kept" / folder.name)
            if alike in seen:
                count(how + few, at, "", len(log))
                continue
            seen.add(alike)
        yield folder, how + few, at, _bound(at_write, place, expected, folder, how, at)
    for number in range(asked.kills):
        folder, child = place / f"kill-{number}", bool(asked.workers) and number % 4 > 0
        when = random.uniform(0.01, 1.02 * seconds)
        yield folder, "", None, _bound(at_time, folder, asked.workers, when, child=child)


def _bound(function: Callable[..., str], *args: Any, **options: Any) -> Callable[[], str]:
    return lambda: function(*args, **options)


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))  # the study's data lie in tests/
    main()
