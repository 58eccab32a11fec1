"""How far a study is, read from its folder alone: at any time, by anybody, from any machine."""

import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape import storage
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import sessions
from landscape.study.progress import duration
from landscape.study.queue import Queue, Submitted
from landscape.study.run_folder import measured_keys

STATES = ("done", "running", "queued", "failed", "stopped", "waiting")


@dataclass(frozen=True)
class RunStatus:
    """One run: its state, what of it is there, and who works on it or what went wrong.

    share: of the epochs; a run whose weights come from elsewhere has all of them. seconds: of the
    sessions that ended.
    """

    run: str
    state: str
    share: float
    measured: int
    seconds: float
    note: str


@dataclass(frozen=True)
class Status:
    """A study's runs in the order of its file.

    left: seconds of work that remain, from the mean of the runs that are done; None before one is.
    busy: how many are worked on now, by which `left` is divided where a time is told.

    Example:
        >>> state = study.status(finished.root)
        >>> [run.state for run in state.runs], state.left
        (['done', 'done'], 0.0)
    """

    folder: Path
    runs: tuple[RunStatus, ...]

    @property
    def counts(self) -> dict[str, int]:
        """Runs by state."""
        found = Counter(run.state for run in self.runs)
        return {state: found[state] for state in STATES}

    @property
    def busy(self) -> int:
        """Runs that somebody works on."""
        return self.counts["running"]

    @property
    def left(self) -> float | None:
        """Seconds of work that remain."""
        done = [run.seconds for run in self.runs if run.state == "done" and run.seconds > 0]
        open_ = [run for run in self.runs if run.state != "done"]
        if not done or not open_:
            return None if open_ else 0.0
        mean = sum(done) / len(done)
        return sum(mean * (1 - _TRAINING * run.share) for run in open_)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "folder": str(self.folder),
            "counts": self.counts,
            "seconds_left": self.left,
            "runs": [vars(run) for run in self.runs],
        }

    def __str__(self) -> str:
        said = [f"{number} {state}" for state, number in self.counts.items() if number]
        lines = [f"{self.folder}: {len(self.runs)} runs planned; {', '.join(said) or 'none'}."]
        for run in self.runs:
            if run.state not in ("done", "waiting"):
                lines.append(f"  {run.run}: {run.state}, {run.note}")
        if self.left:
            each = f", {duration(self.left / self.busy)} as it runs now" if self.busy else ""
            lines.append(f"About {duration(self.left)} of work are left{each}.")
        return "\n".join(lines)


_TRAINING = 0.5  # of a run's time, where only the epochs tell how far it is


def status(folder: Path) -> Status:
    """The state of every run that `landscape run` was last asked for; nothing is run or changed.

    done: every measurement is there whole. running: heard of within a minute.
    failed: its last session said so, or its training diverged. stopped: somebody worked on it, and
    it is not whole. queued: given to a batch system, and not begun. What a study file that was
    changed afterwards asks for is not looked at: `landscape run --estimate` compares.
    folder: that of the study.

    Example:
        >>> len(study.status(finished.root).runs)
        2
    """
    place = StudyFolder(Path(folder).absolute())
    found = place.check()
    queued = Queue(place).last()
    rows = (_of(place.run(run["run"]), run, queued.get(run["run"])) for run in found["runs"])
    return Status(place.root, tuple(rows))


def _of(folder: Path, planned: dict[str, Any], queued: Submitted | None) -> RunStatus:
    name, epochs = planned["run"], (planned["training"] or {}).get("epochs", 0)
    spent, outcome = storage.sessions(folder), _read(storage.outcome_path(folder))
    seconds = sum(float(each["seconds"]) for each in spent)
    epoch = _epoch(folder)
    trained = outcome.get("status") == "finished" or not epochs
    share = 1.0 if trained else min(1.0, epoch / epochs)
    keys = measured_keys(folder) if folder.is_dir() else {}
    whole = trained and keys.keys() >= set(planned["measurements"])

    def row(state: str, note: str) -> RunStatus:
        return RunStatus(name, state, share, len(keys), seconds, note)

    worker = sessions.worker(folder)
    far = f"epoch {epoch} of {epochs}" if share < 1 else f"trained, {len(keys)} measured"
    if worker is not None and worker.alive:
        return row("running", f"{far}, by {worker.owner}, heard {duration(worker.heard)} ago")
    if outcome.get("status") == "diverged":
        return row("failed", str(outcome.get("message", "diverged")))
    if whole:
        return row("done", "")
    if queued is not None and (not spent or queued.at > spent[-1]["began"]):
        ago = duration(max(0.0, time.time() - queued.at))
        return row("queued", f"{far}, job {queued.job} submitted {ago} ago, logs {queued.logs}")
    if worker is not None:
        return row("stopped", f"{far}, {worker.owner} not heard of for {duration(worker.heard)}")
    if spent and spent[-1]["ended"] == "failed":
        return row("failed", spent[-1]["note"])
    return row("stopped" if spent else "waiting", far)


def _epoch(folder: Path) -> int:
    path = folder / "history.jsonl"
    if not path.exists():
        return 0
    records, _ = storage.read_lines(path, on_error="skip", kinds={"epoch": int})
    return max((record["epoch"] for record in records), default=0)


def _read(path: Path) -> dict[str, Any]:
    """A document, empty where there is none or it is being replaced."""
    try:
        return storage.read_json(path) if path.exists() else {}
    except LandscapeError:
        return {}
