"""Results that are read while others are still made, so that combining them need not wait."""

import threading
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import xarray as xr

from landscape import results, storage
from landscape.study import run_folder

_MOST = 512 << 20  # bytes that are held: a study may have more results than there is memory


class Ahead:
    """Reads the results of runs in a thread of its own, while workers are waited for.

    with Ahead(wanted=True) as ahead:
        ahead.add(folder)  # of a run that is done
        ...
        ahead.stop()
        ahead.found  # results by the SHA-256 of the file that each was read from

    What it could not read is not there: whoever needs it reads it again, and says what is wrong.
    """

    def __init__(self, *, wanted: bool) -> None:
        self.found: dict[str, xr.Dataset] = {}
        self._folders: deque[Path] = deque()
        self._more = threading.Semaphore(0)
        self._stopped = False
        self._thread = threading.Thread(target=self._read, daemon=True) if wanted else None

    def __enter__(self) -> "Ahead":
        if self._thread is not None:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def add(self, folder: Path) -> None:
        """A run whose results may be read from now on."""
        self._folders.append(folder)
        self._more.release()

    def stop(self) -> None:
        """Read no more than the file at hand."""
        self._stopped = True
        self._more.release()
        if self._thread is not None:
            self._thread.join()

    def _read(self) -> None:
        size = 0
        while self._more.acquire() and not self._stopped:
            for sha256, ds in self._results(self._folders.popleft()):
                size += ds.nbytes
                if self._stopped or size > _MOST:
                    return
                self.found[sha256] = ds

    def _results(self, folder: Path) -> Iterator[tuple[str, xr.Dataset]]:
        try:
            for name, record in run_folder.whole_results(folder).items():
                path = run_folder.result_path(folder, name)
                if not record.get("empty") and record["sha256"] not in self.found:
                    ds = results.load(path)
                    # A worker may have written it anew meanwhile.
                    if storage.file_sha256(path) == record["sha256"]:
                        yield record["sha256"], ds
        except Exception:  # of whatever kind: it is met again where somebody can be told
            return
