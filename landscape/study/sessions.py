"""Who works on a run: a claim with a heartbeat while it lasts, and a line when it has ended."""

import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from pathlib import Path

from landscape import storage
from landscape.errors import LandscapeError
from landscape.study import claims
from landscape.study.claims import WorkClaim, Worker


@contextmanager
def session(folder: Path, *, wait: Callable[[Worker], None] | None = None) -> Generator[WorkClaim]:
    """Work on a run alone, as long as the block lasts, and say how it ended.

    wait: called each second while another process works on it; without one that is refused.
    """
    with claims.claim(_heartbeat(folder), wait=wait) as held:
        began = time.time()
        ended, note = "done", ""
        try:
            yield held
        except Exception as error:
            ended, note = "failed", f"{error}"
            raise
        except BaseException:
            ended = "stopped"
            raise
        finally:
            said = {
                "run": Path(folder).name,
                "owner": claims.owner(),
                "began": began,
                "seconds": time.time() - began,
            }
            said |= {"ended": ended, "note": note}
            with suppress(LandscapeError, OSError):
                storage.append_line(storage.sessions_path(folder), said)


def worker(folder: Path) -> Worker | None:
    """Who works on a run, or did and did not say that it ended; None where nobody does."""
    return claims.read(_heartbeat(folder))


def _heartbeat(folder: Path) -> Path:
    return folder / "working.json"
