"""Whether a study's folder still holds what was written: every digest compared, nothing run."""

import hashlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from landscape import results, snapshots, storage
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.training import checkpoint, history


@dataclass
class Verified:
    """What was found: files compared, those without a digest, and what is wrong in words."""

    folder: Path
    checked: int = 0
    unsealed: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "folder": str(self.folder),
            "checked": self.checked,
            "unsealed": self.unsealed,
            "problems": self.problems,
        }

    def __str__(self) -> str:
        said = [f"{self.checked} files of {self.folder} compared with their digests."]
        said += [f"no digest: {path}" for path in self.unsealed]
        said += [f"problem: {text}" for text in self.problems]
        n = len(self.problems)
        said.append(f"{n} problem{'s' * (n > 1)}." if n else "All as they were written.")
        return "\n".join(said)


def verify(folder: Path) -> Verified:
    """Compare every file of a study with the digest that it, or another file, carries of it.

    Returns what was compared: `checked`, a count of files, `unsealed`, those without a digest, and
    `problems`, in words.

    Example:
        >>> found = study.verify(finished.root)
        >>> found.checked > 100, found.problems
        (True, [])
    """
    place = StudyFolder(Path(folder).absolute())
    found = Verified(place.root)
    resolved = place.check()
    found.checked += 1
    for check in _checks(place, resolved):
        found.checked += 1
        try:
            unsealed = check()
        except LandscapeError as error:
            found.problems.append(str(error))
        else:
            if unsealed is not None:
                found.unsealed.append(str(unsealed))
    return found


Check = Callable[[], Path | None]  # raises on a problem; returns a file that has no digest


def _checks(place: StudyFolder, resolved: dict[str, Any]) -> Iterator[Check]:
    yield lambda: _study_file(place, resolved)
    for path in sorted(place.results.glob("[!.]*.nc")):
        yield lambda path=path: path if results.read(path).sha256 is None else None
    if (place.results / "index.json").exists():
        yield lambda: _whole(storage.read_json(place.results / "index.json"))
    if place.data.exists():
        yield lambda: _whole(storage.read_json(place.data))
    if place.report.exists():
        yield lambda: _report(place)
    runs = sorted(place.runs.iterdir()) if place.runs.is_dir() else []
    for run in runs:
        if run.is_dir():
            yield from _run(run)


def _whole(_: Any) -> None:
    return None


def _study_file(place: StudyFolder, resolved: dict[str, Any]) -> None:
    with storage.reading(place.study_toml):
        found = hashlib.sha256(place.study_toml.read_bytes()).hexdigest()
    if found != resolved.get("study_sha256"):
        raise LandscapeError(
            f"{place.study_toml} is not the file that the results were made with; `landscape run "
            f"{place.root}` makes those that it asks for."
        )


def _report(place: StudyFolder) -> None:
    """Refuse a report of other results than lie beside it."""
    with storage.reading(place.report):
        text = place.report.read_text(encoding="utf-8", errors="replace")
    script = re.search(r'id="landscape-results">(\{.*?\})</script>', text)
    said = json.loads(script.group(1)) if script else None
    known = {p.stem: results.read(p).sha256 for p in sorted(place.results.glob("[!.]*.nc"))}
    if said != known:
        odd = sorted(
            {*(said or {}), *known} - {n for n in known if (said or {}).get(n) == known[n]}
        )
        raise LandscapeError(
            f"{place.report} is of other results than lie beside it ({', '.join(odd)}); "
            f"`landscape report {place.root}` writes it anew."
        )


def _run(run: Path) -> Iterator[Check]:
    for name in ("spec.json", "done.json"):
        if (run / name).exists():
            yield lambda path=run / name: _named(path, run.name)
    if storage.sessions_path(run).exists():
        yield lambda: _sessions(run)
    if checkpoint.outcome_path(run).exists():
        yield lambda: _whole(checkpoint.own_outcome(run, run.name))
    if (run / "history.jsonl").exists():
        yield lambda: _whole(history.read_history(run))
    for path in sorted((run / "checkpoints").glob("[!.]*.safetensors")):
        yield lambda path=path: _weights(run, path)
    if (run / "checkpoints" / "last.pt").exists():
        yield lambda: _state(run)
    if (run / "snapshots").is_dir():
        yield lambda: history.check_snapshots(run)
        yield lambda: _whole(snapshots.read_steps(run))
        yield lambda: _whole(snapshots.read_masks(run))
        yield lambda: _whole(snapshots.read_zscores(run))
        yield lambda: _whole(snapshots.read_correctness(run))
    written: dict[str, str] = {}
    if (run / "measured.jsonl").exists():
        yield lambda: _measured(run, written)
    for path in sorted((run / "results").glob("[!.]*.nc")):
        yield lambda path=path: _result(path, written)


def _named(path: Path, run: str) -> None:
    """Refuse a document of another run than the folder's."""
    whose = storage.read_json(path).get("run")
    if whose != run:
        raise LandscapeError(
            f"{path} is of the run {whose!r} and not of {run!r}: it was renamed or copied there. "
            f"Put back the right one, or remove it and run the study again."
        )


def _sessions(run: Path) -> None:
    """Refuse a record of work on another run, or one whose lines were changed."""
    path = storage.sessions_path(run)
    lines, _ = storage.read_lines(path, kinds=storage.SESSION)
    whose = {str(line.get("run", run.name)) for line in lines} - {run.name}
    if whose:
        raise LandscapeError(
            f"{path} is of the run {min(whose)!r} and not of {run.name!r}: it was renamed or "
            f"copied there. Put back the right one, or remove it: no number rests on it."
        )


def _weights(run: Path, path: Path) -> Path | None:
    sealed = storage.sealed_sha256(path)
    ended = checkpoint.own_outcome(run, run.name)
    if ended:
        checkpoint.check_own(run, path, ended)
    return path if sealed is None else None


def _state(run: Path) -> None:
    state = checkpoint.read_state(run)
    ended = checkpoint.own_outcome(run, run.name)
    if state and ended:
        checkpoint.check_identity(run, state["identity"], checkpoint.identity_of(ended))


def _result(path: Path, written: dict[str, str]) -> Path | None:
    """A result of which no digest is known; one whose bytes are as they were written is whole."""
    if written.get(path.stem) == storage.file_sha256(path):
        return None
    return path if results.read(path).sha256 is None else None


def _measured(run: Path, written: dict[str, str]) -> None:
    """Refuse results that are not those that were measured, or not of the weights that lie here.

    written: is told the SHA-256 that each was written with.
    """
    records, _ = storage.read_lines(run / "measured.jsonl", kinds=storage.MEASURED)
    last = {record["name"]: record for record in records if record["key"]}
    weights = storage.declared_sha256(checkpoint.final_path(run))
    written.update({name: str(record.get("sha256")) for name, record in last.items()})
    for name, record in last.items():
        path = run / "results" / f"{name}.nc"
        if not record.get("empty") and storage.file_sha256(path) != record.get("sha256"):
            raise LandscapeError(
                f"{path} is not the result that was measured; `landscape run` measures it again."
            )
        if record.get("checkpoint") != weights:
            raise LandscapeError(
                f"{path} was measured at other weights than {checkpoint.final_path(run)}; "
                f"`landscape run` measures it again."
            )
