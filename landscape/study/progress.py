"""Progress of many jobs: a live bar with time left on a terminal, rare plain lines elsewhere."""

import sys
import time
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TextIO

from landscape.study.pool import Event


def duration(seconds: float) -> str:
    """Seconds in words: "42 s", "3 min 05 s", "2 h 10 min"."""
    seconds = round(seconds)
    if seconds < 60:
        return f"{seconds} s"
    if seconds < 3600:
        return f"{seconds // 60} min {seconds % 60:02d} s"
    return f"{seconds // 3600} h {seconds % 3600 // 60:02d} min"


def _line() -> Any:
    """A column that is never broken into lines."""
    from rich.table import Column

    return Column(no_wrap=True)


class Progress:
    """Follows the events of jobs; `with Progress(names) as progress: ... listen=progress.hear`.

    names: one per job. weights: expected relative cost of each job.
    every: seconds between plain lines when the output is not a terminal.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        weights: Sequence[float] | None = None,
        stream: TextIO | None = None,
        every: float = 15.0,
        quiet: bool = False,
    ) -> None:
        self.names = names
        self.weights = list(weights or [1.0] * len(names))
        self.stream = stream or sys.stderr
        self.every, self.quiet = every, quiet
        self.fractions = [0.0] * len(names)
        self.finished: set[int] = set()
        self.failed = 0
        self.spoke = time.monotonic()
        self.started: tuple[float, float] | None = None  # when a worker first spoke, at what share
        self.live: Any = None
        self.task: Any = None

    def __enter__(self) -> "Progress":
        if not self.quiet and self.stream.isatty() and self.names:
            self._begin_live()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.live is not None:
            self.live.stop()

    def _begin_live(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, ProgressColumn, TextColumn
        from rich.progress import Progress as Rich
        from rich.table import Column

        console = Console(file=self.stream)
        whole = len(f"{len(self.names)}/{len(self.names)} runs, {len(self.names)} failed")
        # What is left beside the count, the longest time and the spaces: first of all for a bar.
        room = console.width - whole - len("59 min 59 s left") - 3
        columns: list[ProgressColumn] = [TextColumn("{task.fields[count]}", table_column=_line())]
        if room >= 4:
            columns.append(BarColumn(bar_width=min(30, room)))
        columns.append(TextColumn("{task.fields[left]}", table_column=_line()))
        if room >= 45:
            now = Column(no_wrap=True, overflow="ellipsis", ratio=1)
            columns.append(TextColumn("[dim]{task.fields[now]}", table_column=now))
        self.live = Rich(*columns, console=console, transient=True)
        self.live.start()
        self.task = self.live.add_task("", total=1.0, count=self._count(), left="", now="starting")

    @property
    def fraction(self) -> float:
        """Share of the work that is done."""
        total = sum(self.weights)
        done = sum(f * w for f, w in zip(self.fractions, self.weights, strict=True))
        return done / total if total else 1.0

    def left(self) -> str:
        """Time left in words; empty until it can be told."""
        if self.started is None:
            return ""
        # From when a worker first spoke: to start workers takes as long for one run as for many.
        began, before = self.started
        elapsed, done = time.monotonic() - began, self.fraction - before
        # Until then the first steps dominate, in which libraries are loaded, and it would be wild.
        if done < 0.02 or elapsed < (3 if done > 0.1 else 60):
            return ""
        return f"{duration(elapsed * (1 - self.fraction) / done)} left"

    def _count(self) -> str:
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{len(self.finished)}/{len(self.names)} runs{failed}"

    def hear(self, event: Event) -> None:
        """Take in one event of the pool."""
        name = self.names[event.job]
        if self.started is None:
            self.started = time.monotonic(), self.fraction
        if event.kind == "progress":
            self.fractions[event.job] = max(self.fractions[event.job], event.fraction)
        else:
            self.fractions[event.job] = 1.0
            self.finished.add(event.job)
        if event.kind == "failed":
            self.failed += 1
            self.say(f"{name} failed: {event.note}")
        self._show(f"{name}: {event.note}" if event.kind == "progress" else name)

    def say(self, text: str) -> None:
        """Print one line above the bar, or plainly."""
        if self.live is not None:
            self.live.console.print(text, markup=False, highlight=False)
        else:
            print(text, file=self.stream, flush=True)

    def _show(self, now: str) -> None:
        if self.live is not None:
            self.live.update(
                self.task, completed=self.fraction, count=self._count(), left=self.left(), now=now
            )
            return
        if self.quiet:
            return
        clock = time.monotonic()
        if clock - self.spoke >= self.every:
            self.spoke = clock
            left = self.left()
            print(self._count() + (f", {left}" if left else ""), file=self.stream, flush=True)
