"""python -m tests.parity [DIR] [--allow-skip NAME ...]: compare with the stored trajectories."""

import argparse
import sys
from pathlib import Path

import torch

from tests.parity.runner import run_file

DATA = Path(__file__).parent / "data"


def main(arguments: list[str] | None = None) -> int:
    """One line a case, then the counts; 1 on a failure or a skip that was not allowed."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.parity", description=__doc__.split(": ", 1)[1].capitalize()
    )
    files = "folder of problem_<model>.npz and <case>__<model>.npz; default: the stored ones"
    parser.add_argument("folder", nargs="?", type=Path, default=DATA, metavar="DIR", help=files)
    parser.add_argument(
        "--allow-skip", nargs="*", default=[], metavar="NAME",
        help="cases that may have no row here; any other skip counts as a failure",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    files = sorted(p for p in options.folder.glob("*__*.npz"))
    if not files:
        print(f"no <case>__<model>.npz in {options.folder}", file=sys.stderr)
        return 1
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    refused = 0
    for path in files:
        try:
            outcome, detail = run_file(path)
        except Exception as error:
            outcome, detail = "failed", f"{type(error).__name__}: {error}"
        counts[outcome] += 1
        allowed = {path.stem, path.stem.rsplit("__", 1)[0]} & set(options.allow_skip)
        if outcome == "skipped" and not allowed:
            refused += 1
            detail += "; name it with --allow-skip to accept that"
        print(f"{outcome:8}{path.stem:34}{detail}")
    print(", ".join(f"{n} {outcome}" for outcome, n in counts.items()))
    return 1 if counts["failed"] or refused else 0


if __name__ == "__main__":
    sys.exit(main())
