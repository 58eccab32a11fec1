"""What digests cost: CPU time inside of them, over that of a study's run.

    OMP_NUM_THREADS=1 python -m benchmarks.digests

Every function that writes or compares a digest or a checksum is timed (by the thread's CPU clock)
while a short run trains and measures in this process: SAM on an MLP of digits, 20 epochs, five
measurements. The first run also loads libraries and is left out. A longer run has fewer bytes to a
second of work, so that this is an upper end.
"""

import functools
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import landscape.report
from benchmarks.interleaved import hardware, versions
from landscape.study import Options, parse, run

RESULTS = Path(__file__).parent / "results" / "digests-cpu.json"
NAMES = (
    "file_sha256", "check_zip", "seal_zip", "check_sealed_zip", "seal", "sealed_sha256",
    "declared_sha256", "digest_of", "digest", "_line", "_record", "_checksum",
)  # fmt: skip
TEXT = """
name = "digests"
[problem]
data = "digits"
model = "mlp"
[training]
epochs = 20
batch_size = 64
lr = 0.05
[grid]
variant = ["sam"]
rho = [0.1]
seed = [0]
[measure]
examples = 32
measurements = ["generalization", "history", "top_eigenvalues", "sharpness", "loss_slice"]
"""


class Clock:
    """CPU seconds of this thread inside of the functions that it wraps, nested ones once."""

    def __init__(self) -> None:
        self.seconds, self.inside = 0.0, False

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        @functools.wraps(function)
        def timed(*args: Any, **options: Any) -> Any:
            if self.inside:
                return function(*args, **options)
            self.inside, began = True, time.thread_time()
            try:
                return function(*args, **options)
            finally:
                self.seconds += time.thread_time() - began
                self.inside = False

        return timed

    def wrap_all(self) -> int:
        """Wrap the digests wherever they were imported to; how many places."""
        places = 0
        for name, module in list(sys.modules.items()):
            if name.split(".")[0] != "landscape":
                continue
            owners = [module, *(c for c in vars(module).values() if isinstance(c, type))]
            for owner in owners:
                for key in NAMES:
                    found = vars(owner).get(key)
                    if callable(found) and not hasattr(found, "__wrapped__"):
                        setattr(owner, key, self.wrap(found))
                        places += 1
        return places


def main(count: int = 6) -> None:
    """Run, time, write."""
    clock, shares, whole = Clock(), [], []
    places = clock.wrap_all()
    for _ in range(count):
        with tempfile.TemporaryDirectory() as name:
            clock.seconds, began = 0.0, time.process_time()
            options = Options(device="cpu", workers=0, quiet=True)
            summary = run(parse(TEXT, base=Path.cwd()), Path(name) / "study", options)
            whole.append(time.process_time() - began)
            shares.append(clock.seconds / whole[-1])
        assert not summary.failed
    found = {
        "hardware": hardware(),
        "versions": versions(),
        "places": places,
        "n": count - 1,
        "share": [round(share, 5) for share in shares[1:]],
        "median_share": round(statistics.median(shares[1:]), 5),
        "cpu_seconds_of_a_run": [round(seconds, 2) for seconds in whole[1:]],
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    print(found)


if __name__ == "__main__":
    assert landscape.report, "what a report reads is timed too"
    main()
