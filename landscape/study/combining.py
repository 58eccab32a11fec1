"""Results of all runs, one file per measurement, remade only when a part has changed."""

import math

from landscape import results, stats, storage
from landscape.storage import StudyFolder
from landscape.study import axes, jobs, trainings
from landscape.study.spec import Run, Study, fingerprint


def combine_all(study: Study, place: StudyFolder) -> list[str]:
    """Combine every measurement over the runs that have it; names of the files that were written.

    The file of a measurement that is no longer asked for is removed; its parts stay in the runs.
    """
    written = []
    index_path = place.results / "index.json"
    index = storage.read_json(index_path) if index_path.exists() else {}
    measured = {measurement.name for measurement in study.measure.measurements}
    for name in sorted(measured):
        parts = _parts(study, place, name)
        path = place.results / f"{name}.nc"
        mark = fingerprint([_mark(study, place, run, name) for run in parts], length=16)
        if not parts:
            path.unlink(missing_ok=True)
        elif not path.exists() or index.get(name) != mark:
            _combine(study, place, name, parts)
            written.append(name)
        index[name] = mark
    index[trainings.NAME] = _of_trainings(study, place, index.get(trainings.NAME))
    along = _along_axes(place, measured, changed=bool(written))
    wanted = {*measured, trainings.NAME}
    for path in place.results.glob("*.nc"):
        if path.stem not in wanted | along:
            path.unlink()
    index = {name: mark for name, mark in index.items() if name in wanted}
    if not index_path.exists() or storage.read_json(index_path) != index:
        storage.write_json(index_path, index)
    return written


def _of_trainings(study: Study, place: StudyFolder, known: str | None) -> str:
    """Write how each training went, if it is not told already; a mark of what was told."""
    ended = [(axes.labels(study, run), trainings.outcome(run, place)) for run in study.runs]
    mark = fingerprint(ended, length=16)
    path = place.results / f"{trainings.NAME}.nc"
    if mark != known or not path.exists():
        results.save(trainings.trainings(study, place), path)
    return mark


def _along_axes(place: StudyFolder, measured: set[str], *, changed: bool) -> set[str]:
    """Write along_<axis>.nc of every axis; the stems of their files."""
    if not changed:
        return {path.stem for path in place.results.glob("along_*.nc")}
    known = {q.measurement for q in stats.QUANTITIES} & measured
    paths = {name: place.results / f"{name}.nc" for name in known}
    data = {name: results.load(path) for name, path in paths.items() if path.exists()}
    found = set()
    for axis in stats.axes_of(data):
        ds = stats.along_axis(data, axis)
        if ds is not None:
            results.save(ds, place.results / f"along_{axis}.nc")
            found.add(f"along_{axis}")
    return found


def _parts(study: Study, place: StudyFolder, name: str) -> list[Run]:
    """Runs with a result made with the options that the study asks for now."""
    runs = []
    for run in study.runs:
        wanted = {m.name: key for m, key in jobs.keyed(study, run, place)}
        folder = place.run(run.run_id)
        if (
            name in wanted
            and jobs.is_measured(folder, name, wanted[name])
            and jobs.result_path(folder, name).exists()
        ):
            runs.append(run)
    return runs


def _mark(study: Study, place: StudyFolder, run: Run, name: str) -> list[object]:
    stat = jobs.result_path(place.run(run.run_id), name).stat()
    return [axes.labels(study, run), stat.st_size, stat.st_mtime_ns]


def _combine(study: Study, place: StudyFolder, name: str, runs: list[Run]) -> None:
    parts = []
    for run in runs:
        folder = place.run(run.run_id)
        labels = {**axes.labels(study, run), "train_seconds": train_seconds(run, place)}
        parts.append((labels, results.load(jobs.result_path(folder, name))))
    results.save(results.combine(parts), place.results / f"{name}.nc")


def train_seconds(run: Run, place: StudyFolder) -> float:
    """Seconds (on a CPU its own) in training epochs, over all attempts that are in the history."""
    records, _ = storage.read_lines(place.run(run.run_id) / "history.jsonl", on_error="skip")
    seconds = [record["seconds"] for record in records if record.get("seconds") is not None]
    return float(sum(seconds)) if seconds else math.nan
