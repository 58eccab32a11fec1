"""Results of all runs, one file per measurement, remade only when a part has changed."""

import math
from pathlib import Path
from typing import Any

from landscape import results, stats, storage
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import axes, run_folder, trainings
from landscape.study.run_folder import Trainings
from landscape.study.spec import Run, Study, fingerprint


def combine_all(known: Trainings, place: StudyFolder) -> list[str]:
    """Combine every measurement over the runs that have it; names of the files that were written.

    The file of a measurement that is no longer asked for is removed; its parts stay in the runs.
    """
    written, study = [], known.study
    index_path = place.results / "index.json"
    index = _index(place)
    measured = {measurement.name for measurement in study.measure.measurements}
    parts_of = _parts(known, place)
    for name in sorted(measured):
        parts = parts_of.get(name, [])
        path = place.results / f"{name}.nc"
        mark = fingerprint([_mark(study, place, run, name) for run in parts], length=16)
        if not parts:
            path.unlink(missing_ok=True)
        elif index.get(name) != [mark, _sha256(path)]:
            _combine(study, place, name, parts)
            written.append(name)
        index[name] = [mark, _sha256(path)]
    told = _of_trainings(known, place, index.get(trainings.NAME))
    index[trainings.NAME] = [told, _sha256(place.results / f"{trainings.NAME}.nc")]
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
    if told != [mark, _sha256(path)]:
        results.save(trainings.trainings(known), path)
    return mark


def _along_axes(
    place: StudyFolder, measured: set[str], index: dict[str, Any], *, changed: bool
) -> set[str]:
    """Write along_<axis>.nc of every axis; the stems of their files."""
    there = {path.stem: ["", _sha256(path)] for path in place.results.glob("along_*.nc")}
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
            index[path.stem] = ["", _sha256(path)]
            found.add(f"along_{axis}")
    return found


def _index(place: StudyFolder) -> dict[str, Any]:
    """What each combined file was made of, and its SHA-256; nothing where that was changed."""
    path = place.results / "index.json"
    try:
        return storage.read_json(path) if path.exists() else {}
    except LandscapeError:
        return {}


def _sha256(path: Path) -> str | None:
    return storage.file_sha256(path) if path.is_file() else None


def changed(place: StudyFolder) -> list[str]:
    """Sentences for combined results that are not as they were written, and are made again."""
    return [
        f"{path} was changed after it was written; it is combined again from the runs."
        for name, known in _index(place).items()
        if (path := place.results / f"{name}.nc").is_file() and known[1:] != [_sha256(path)]
    ]


def _parts(known: Trainings, place: StudyFolder) -> dict[str, list[Run]]:
    """For each measurement the runs with a result of the options that the study asks for now."""
    parts: dict[str, list[Run]] = {}
    for run in known.study.runs:
        if run.run_id in known.refused:
            continue
        folder = place.run(run.run_id)
        made = run_folder.measured_keys(folder)
        for measurement, key in known.keyed(run):
            name = measurement.name
            if made.get(name) == key and run_folder.result_path(folder, name).exists():
                parts.setdefault(name, []).append(run)
    return parts


def _mark(study: Study, place: StudyFolder, run: Run, name: str) -> list[object]:
    stat = run_folder.result_path(place.run(run.run_id), name).stat()
    return [axes.labels(study, run), stat.st_size, stat.st_mtime_ns]


def _combine(study: Study, place: StudyFolder, name: str, runs: list[Run]) -> None:
    parts = []
    for run in runs:
        folder = place.run(run.run_id)
        labels = {**axes.labels(study, run), "train_seconds": train_seconds(run, place)}
        parts.append((labels, results.load(run_folder.result_path(folder, name))))
    results.save(results.combine(parts), place.results / f"{name}.nc")


def train_seconds(run: Run, place: StudyFolder) -> float:
    """Seconds (on a CPU its own) in training epochs, over all attempts that are in the history."""
    records, _ = storage.read_lines(place.run(run.run_id) / "history.jsonl", on_error="skip")
    seconds = [record["seconds"] for record in records if record.get("seconds") is not None]
    return float(sum(seconds)) if seconds else math.nan
