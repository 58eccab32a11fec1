"""Which job of a batch system was submitted for which run: for `status`, and to find them again."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape import storage
from landscape.storage import StudyFolder


@dataclass(frozen=True)
class Submitted:
    """The last job of a run, when it was submitted (seconds of the epoch), and its output."""

    job: str
    at: float
    logs: Path


class Queue:
    """The jobs that were submitted for the runs of a study."""

    def __init__(self, place: StudyFolder) -> None:
        self.place = place

    @property
    def _path(self) -> Path:
        return self.place.jobs / "submitted.jsonl"

    def submitted(self, run: str, future: Any) -> None:
        """Note a job, where the engine gives it a number."""
        number = getattr(future, "job_id", None)
        if number is not None:
            storage.append_line(self._path, {"run": run, "job": str(number), "at": time.time()})

    def last(self) -> dict[str, Submitted]:
        """By run."""
        kinds = {"run": str, "job": str, "at": (int, float)}
        lines, _ = storage.read_lines(self._path, on_error="skip", kinds=kinds)
        return {
            line["run"]: Submitted(
                line["job"], line["at"], self.place.jobs / f"{line['job']}_0_log.out"
            )
            for line in lines
        }

    def earlier(self, engine: Any, runs: list[str]) -> dict[int, Any]:
        """Jobs of an earlier call that its end has left in the queue, by the index of the run."""
        if not hasattr(engine, "earlier"):
            return {}
        last = self.last()
        found = {i: engine.earlier(last[run].job) for i, run in enumerate(runs) if run in last}
        return {index: job for index, job in found.items() if job is not None}
