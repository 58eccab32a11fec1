"""The folder of one run: what lies where, what is there whole, and what is still missing.

A result counts while its file is as it was written, with the options and the weights of now, so
that a killed job continues where it stopped and a changed file is measured again.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from landscape import results, storage
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study.spec import Job, Measurement, Run, Study


def outcome(run: Run, folder: Path) -> dict[str, Any]:
    """How the training of a run ended; empty where it has not, or was elsewhere."""
    from landscape.training import checkpoint

    return {} if run.weights is not None else checkpoint.own_outcome(folder, run.run_id)


def is_trained(run: Run, folder: Path) -> bool:
    """Whether the weights of this run are there."""
    return run.weights is not None or outcome(run, folder).get("status") == "finished"


def has_diverged(run: Run, folder: Path) -> bool:
    """Whether the training of this run ended without weights that could be measured."""
    return outcome(run, folder).get("status") == "diverged"


class Trainings:
    """How the trainings of a study ended, each folder looked at once.

    outcomes: by run, empty where it has not ended. refused: runs whose files are damaged, or those
    of another run. peers: the trained runs of each setting, in the order of the study.
    """

    def __init__(self, study: Study, place: StudyFolder) -> None:
        self.study = study
        self.outcomes: dict[str, dict[str, Any]] = {}
        self.refused: dict[str, str] = {}
        trained: dict[str, list[Run]] = {}
        for run in study.runs:
            try:
                ended = outcome(run, place.run(run.run_id))
            except LandscapeError as error:
                ended, self.refused[run.run_id] = {}, str(error)
            self.outcomes[run.run_id] = ended
            if run.weights is not None or ended.get("status") == "finished":
                trained.setdefault(run.setting, []).append(run)
        self.peers = {setting: tuple(runs) for setting, runs in trained.items()}
        self._keys: dict[tuple[str, str], str] = {}

    def keyed(self, run: Run) -> tuple[tuple[Measurement, str], ...]:
        """The measurements of a run, each with the key that its result must carry now."""
        return tuple(
            (each, self._key(each, run.setting)) for each in self.study.measurements_of(run)
        )

    def _key(self, measurement: Measurement, setting: str) -> str:
        """Equal for the runs of a setting, and over all of its peers: found once."""
        at = (measurement.name, setting)
        if at not in self._keys:
            peers = self.peers.get(setting, ()) if measurement.across_runs else ()
            variants = (*self.study.variants, *self.study.controls)
            self._keys[at] = self.study.measure.key(measurement, peers, variants)
        return self._keys[at]


def result_path(folder: Path, name: str) -> Path:
    """Where a run's measurement lies."""
    return folder / "results" / f"{name}.nc"


def measured_keys(folder: Path) -> dict[str, str]:
    """The key of each measurement whose result is as it was written, of the weights as they are."""
    return {name: str(record["key"]) for name, record in whole_results(folder).items()}


def whole_results(folder: Path) -> dict[str, dict[str, Any]]:
    """The last record of each measurement whose result is as it was written."""
    records, _ = _measured(folder)
    last = {record["name"]: record for record in records}
    weights = storage.declared_sha256(storage.final_path(folder))
    return {
        name: record
        for name, record in last.items()
        if record.get("key")
        and record.get("checkpoint") == weights  # trained anew since, if it differs
        and _as_written(result_path(folder, name), record)
    }


def _measured(folder: Path) -> tuple[list[dict[str, Any]], int]:
    path = folder / "measured.jsonl"
    return storage.read_lines(path, on_error="skip", kinds=storage.MEASURED)


def _as_written(path: Path, record: dict[str, Any]) -> bool:
    # An empty result (SGD has no masks) leaves a line and no file.
    if record.get("empty"):
        return True
    if not path.is_file():
        return False
    stat = path.stat()
    return _sha256(path, stat.st_size, stat.st_mtime_ns, stat.st_ino) == record.get("sha256")


@lru_cache(maxsize=1 << 20)
def _sha256(path: Path, *_: int) -> str:
    """The digest of a file as it is at this size and time: a study is gone over several times."""
    return storage.file_sha256(path)


def changed_results(folder: Path) -> list[str]:
    """Sentences for results that are not as they were written, and so are measured again."""
    records, left_out = _measured(folder)
    last = {record["name"]: record for record in records}
    said = [
        f"{result_path(folder, name)} was changed after it was written; it is measured again."
        for name, record in last.items()
        if record.get("key")
        and result_path(folder, name).is_file()
        and not _as_written(result_path(folder, name), record)
    ]
    if left_out:
        said.append(
            f"{folder / 'measured.jsonl'} has {left_out} lines that were torn or changed; what "
            f"they said is measured again."
        )
    return said


def missing(job: Job) -> tuple[bool, list[tuple[Measurement, str]]]:
    """(must be trained, measurements to be made) of a job."""
    if has_diverged(job.run, job.folder):
        return False, []
    train = job.train and not is_trained(job.run, job.folder)
    if not job.measure:
        return train, []
    keys = measured_keys(job.folder)
    return train, [(m, key) for m, key in job.measurements if keys.get(m.name) != key]


def keep(job: Job, measurement: Measurement, key: str, ds: Any, weights: Any) -> None:
    """Write a result and the line that says with which options it was made."""
    name, log = measurement.name, job.folder / "measured.jsonl"
    # Void the old line first: a kill between file and line must not leave a wrong pair.
    storage.append_line(log, {"name": name, "key": ""})
    if ds is None:
        result_path(job.folder, name).unlink(missing_ok=True)
    else:
        results.save(_signed(job, ds, measurement, key, weights), result_path(job.folder, name))
    line = {
        "name": name,
        "key": key,
        "empty": ds is None,
        "weights_sha256": weights.sha256,
        "checkpoint": storage.declared_sha256(storage.final_path(job.folder)),
    }
    if ds is not None:
        line["sha256"] = storage.file_sha256(result_path(job.folder, name))
    storage.append_line(log, line)


def _signed(job: Job, ds: Any, measurement: Measurement, key: str, weights: Any) -> Any:
    said = {"options": dict(measurement.options), "key": key, "weights_file": weights.as_dict()}
    if job.run.weights:
        said["weights_found"] = str(weights)
    own = results.provenance(ds) | said
    return ds.assign_attrs(provenance=json.dumps(own, sort_keys=True))


def write_spec(job: Job) -> None:
    """What decides the numbers of this run, for a reader of its folder."""
    path = job.folder / "spec.json"
    spec = {
        "run": job.run.run_id,
        **job.run.decisive,
        "variant": job.run.variant,
        "axes": dict(job.run.axes),
        "label": job.run.label,
        "setting": job.run.setting,
        "weights": job.run.weights,
        "threads": job.threads,
        "device": job.device,
    }
    spec = json.loads(json.dumps(spec, default=str))
    if not path.exists() or storage.read_json(path) != spec:
        storage.write_json(path, spec)
