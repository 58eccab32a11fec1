"""Results of all runs, one file per measurement, remade only when a part has changed."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xarray as xr

from landscape import results, stats, storage
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import axes, run_folder, trainings
from landscape.study.run_folder import Trainings
from landscape.study.spec import Run, fingerprint


def combine_all(
    known: Trainings, place: StudyFolder, found: Mapping[str, xr.Dataset] | None = None
) -> list[str]:
    """Combine every measurement over the runs that have it; names of the files that were written.

    The file of a measurement that is no longer asked for is removed; its parts stay in the runs.
    found: results that were read already, by the SHA-256 of their files.
    """
    written = []
    index_path = place.results / "index.json"
    index = _index(place)
    measured = {measurement.name for measurement in known.study.measure.measurements}
    parts_of = _parts(known, place)
    seconds = {run.run_id: train_seconds(run, place) for run in known.study.runs}
    for name in sorted(measured):
        parts = parts_of.get(name, [])
        path = place.results / f"{name}.nc"
        mark = fingerprint([part.mark for part in parts], length=16)
        if not parts:
            path.unlink(missing_ok=True)
            index[name] = [mark, None, []]
        elif index.get(name, [])[:2] != [mark, _sha256(path)]:
            rows = _combine(place, name, parts, seconds, index.get(name), found or {})
            written.append(name)
            index[name] = [mark, _sha256(path), rows]
    told = _of_trainings(known, place, index.get(trainings.NAME))
    index[trainings.NAME] = [told, _sha256(place.results / f"{trainings.NAME}.nc"), []]
    along = _along_axes(place, measured, index, changed=bool(written))
    wanted = {*measured, trainings.NAME, *along}
    for path in place.results.glob("*.nc"):
        if path.stem not in wanted:
            path.unlink()
    index = {name: mark for name, mark in index.items() if name in wanted}
    if _index(place) != index:
        storage.write_json(index_path, index)
    return written


def _of_trainings(known: Trainings, place: StudyFolder, told: list[Any] | None) -> str:
    """Write how each training went, if it is not told already; a mark of what was told."""
    study = known.study
    ended = [(axes.labels(study, run), known.outcomes[run.run_id]) for run in study.runs]
    mark = fingerprint([ended, known.refused], length=16)
    path = place.results / f"{trainings.NAME}.nc"
    if (told or [])[:2] != [mark, _sha256(path)]:
        results.save(trainings.trainings(known), path)
    return mark


def _along_axes(
    place: StudyFolder, measured: set[str], index: dict[str, Any], *, changed: bool
) -> set[str]:
    """Write along_<axis>.nc of every axis; the stems of their files."""
    there = {path.stem: ["", _sha256(path), []] for path in place.results.glob("along_*.nc")}
    if not changed and there == {k: v for k, v in index.items() if k.startswith("along_")}:
        return set(there)
    known = {q.measurement for q in stats.QUANTITIES} & measured
    paths = {name: place.results / f"{name}.nc" for name in known}
    data = {name: results.load(path) for name, path in paths.items() if path.exists()}
    found = set()
    for axis in stats.axes_of(data):
        ds = stats.along_axis(data, axis)
        if ds is not None:
            path = results.save(ds, place.results / f"along_{axis}.nc")
            index[path.stem] = ["", _sha256(path), []]
            found.add(f"along_{axis}")
    return found


def _index(place: StudyFolder) -> dict[str, Any]:
    """What each combined file was made of; nothing where that was changed.

    [fingerprint of all parts, SHA-256 of the file, (run, fingerprint) of each row where all are
    alike, so that those that did not change since can be taken from the file].
    """
    path = place.results / "index.json"
    try:
        found = storage.read_json(path) if path.exists() else {}
    except LandscapeError:
        return {}
    # As of now: those of older versions, and what another document says, are left out.
    return {k: v for k, v in found.items() if isinstance(v, list) and len(v) == 3}


def _sha256(path: Path) -> str | None:
    return storage.file_sha256(path) if path.is_file() else None


def changed(place: StudyFolder) -> list[str]:
    """Sentences for combined results that are not as they were written, and are made again."""
    return [
        f"{path} was changed after it was written; it is combined again from the runs."
        for name, known in _index(place).items()
        if (path := place.results / f"{name}.nc").is_file() and known[1] != _sha256(path)
    ]


@dataclass(frozen=True)
class _RunResult:
    """A run's result, its labels, the SHA-256 of its file, and a fingerprint of both."""

    run: Run
    labels: dict[str, Any]
    sha256: str
    mark: str


def _parts(known: Trainings, place: StudyFolder) -> dict[str, list[_RunResult]]:
    """For each measurement the runs with a result of the options that the study asks for now."""
    parts: dict[str, list[_RunResult]] = {}
    for run in known.study.runs:
        if run.run_id in known.refused:
            continue
        labels = axes.labels(known.study, run)
        made = run_folder.whole_results(place.run(run.run_id))
        for measurement, key in known.keyed(run):
            record = made.get(measurement.name, {})
            if record.get("key") == key and not record.get("empty"):
                mark = fingerprint([labels, record["sha256"]], length=12)
                part = _RunResult(run, labels, record["sha256"], mark)
                parts.setdefault(measurement.name, []).append(part)
    return parts


def _combine(
    place: StudyFolder,
    name: str,
    parts: list[_RunResult],
    seconds: dict[str, float],
    known: list[Any] | None,
    found: Mapping[str, xr.Dataset],
) -> list[tuple[str, str]]:
    """Write a combined file; (run, fingerprint) of its rows, empty where they are not alike."""
    path = place.results / f"{name}.nc"
    labels = [{**part.labels, "train_seconds": seconds[part.run.run_id]} for part in parts]
    rows = [(part.run.run_id, part.mark) for part in parts]

    def read(part: _RunResult) -> xr.Dataset:
        if part.sha256 in found:
            return found[part.sha256]
        return results.load(run_folder.result_path(place.run(part.run.run_id), name))

    if known and known[2] and known[1] == _sha256(path):
        before = {tuple(row): number for number, row in enumerate(known[2])}
        mixed = [before[row] if row in before else read(p) for p, row in zip(parts, rows)]
        again = results.recombine(results.load(path), list(zip(labels, mixed)))
        if again is not None:
            results.save(again, path)
            return rows
    each = [read(part) for part in parts]
    results.save(results.combine(list(zip(labels, each))), path)
    return rows if results.are_alike(each) else []


def train_seconds(run: Run, place: StudyFolder) -> float:
    """Seconds (on a CPU its own) in training epochs, over all attempts that are in the history."""
    path, kinds = place.run(run.run_id) / "history.jsonl", {"epoch": int, "seconds": (int, float)}
    records, _ = storage.read_lines(path, on_error="skip", kinds=kinds)
    seconds = [record["seconds"] for record in records]
    return float(sum(seconds)) if seconds else math.nan
