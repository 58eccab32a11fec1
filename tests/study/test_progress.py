"""The live line of a study: whole on a narrow terminal, one line, nothing cut."""

import io
import re

import pytest

from landscape.study.pool import Event
from landscape.study.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("width", [40, 60, 80, 160])
def test_the_line_is_whole_and_one_line_at_any_width(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = Terminal()
    names = [f"zsharp-with-a-long-name-s{i}-0123abcd" for i in range(75)]
    monkeypatch.setattr(Progress, "left", lambda self: "59 min 59 s left")
    with Progress(names, stream=stream) as progress:
        for job in range(12):
            progress.hear(Event("failed" if job == 3 else "done", job, note="not finite"))
        progress.hear(Event("progress", 20, 0.5, "epoch 12 of 20, loss 0.1234"))
        progress.live.refresh()
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", stream.getvalue())
    lines = [line for part in text.split("\n") for line in part.split("\r") if line.strip()]
    live = [line for line in lines if "75 runs" in line]
    assert max(map(len, live)) <= width
    assert live[-1].startswith("12/75 runs, 1 failed")
    assert "59 min 59 s left" in live[-1]
    assert ("epoch 12 of 20" in live[-1]) == (width == 160)


def test_the_time_left_is_told_from_when_a_worker_first_spoke(monkeypatch):
    """Workers take as long to start for one run as for a hundred."""
    clock = iter([0.0, *[60.0] * 2, *[64.0] * 4])
    monkeypatch.setattr("landscape.study.progress.time.monotonic", lambda: next(clock))
    progress = Progress(["a", "b"], weights=[3.0, 1.0], quiet=True)
    progress.hear(Event("progress", 0, 0.0, "training"))
    assert progress.left() == ""
    progress.hear(Event("progress", 0, 0.5, "training"))
    # Three of eight parts in four seconds.
    assert progress.left() == "7 s left"
