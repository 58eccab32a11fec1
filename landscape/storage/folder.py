"""Where the parts of a study lie."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError
from landscape.storage.documents import load_json, unsealed_json
from landscape.storage.names import is_plain_name

# Formats count what older readers would read wrong. An older study is not rewritten, because its
# numbers may be those of older code: it is refused with the command that makes it anew, and a new
# version of the package gives its runs new names anyway. 2: runs that do not say whose files they
# hold; 1: files without digests.
STUDY_FORMAT = 3


@dataclass(frozen=True)
class StudyFolder:
    """Where the parts of a study lie.

    STUDY/  study.toml · resolved.json · data.json · runs/<run>/{spec.json, history.jsonl,
    snapshots/, checkpoints/, results/<measurement>.nc, done.json, sessions.jsonl, log.txt} ·
    results/<measurement>.nc · jobs/ · scans/ · figures/ · report.html · report.md
    """

    root: Path

    @property
    def study_toml(self) -> Path:
        """The study file as it was given."""
        return self.root / "study.toml"

    @property
    def resolved(self) -> Path:
        """Every choice spelled out, with versions, threads and the list of runs."""
        return self.root / "resolved.json"

    @property
    def data(self) -> Path:
        """SHA-256 of the data that the runs share, by problem."""
        return self.root / "data.json"

    @property
    def lock(self) -> Path:
        """Held by the process that works in the folder; there as long as the folder is."""
        return self.root / ".lock"

    @property
    def claim(self) -> Path:
        """Who works in the folder now, with a heartbeat; absent while nobody does."""
        return self.root / "working.json"

    @property
    def jobs(self) -> Path:
        """What a batch system was given, and what its jobs printed."""
        return self.root / "jobs"

    @property
    def runs(self) -> Path:
        """One folder per run."""
        return self.root / "runs"

    @property
    def results(self) -> Path:
        """Measurements combined over runs, one netCDF file each."""
        return self.root / "results"

    @property
    def figures(self) -> Path:
        """Static figures and the data behind them."""
        return self.root / "figures"

    @property
    def scans(self) -> Path:
        """Tables of other studies of the same question, which the page shows beside its own."""
        return self.root / "scans"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.root / "report.html"

    def run(self, run_id: str) -> Path:
        """Folder of one run."""
        if not is_plain_name(run_id):
            raise LandscapeError(
                f"{run_id!r} is no name of a run: it would lead out of {self.runs}."
            )
        return self.runs / run_id

    def check(self) -> dict[str, Any]:
        """Return resolved.json, refusing a folder that is no study or of another format."""
        if not self.root.is_dir():
            raise LandscapeError(f"{self.root} is not a folder. Give the folder of a study.")
        if not self.resolved.exists():
            raise LandscapeError(
                f"{self.root} holds no resolved.json, so it is not a study folder. "
                f"`landscape run study.toml --out {self.root}` makes one."
            )
        resolved = load_json(self.resolved)
        found = resolved.get("format") if isinstance(resolved, dict) else None
        if found != STUDY_FORMAT:
            said = found if isinstance(found, int) else "unknown"
            raise LandscapeError(
                f"{self.root} was made with study format {said}; this version reads format "
                f"{STUDY_FORMAT}. `landscape run {self.study_toml} --out {self.root}-new` makes it "
                f"anew; to read it as it is, use the version that made it (resolved.json says "
                f"which)."
            )
        return unsealed_json(self.resolved, resolved)
