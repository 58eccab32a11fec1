"""What a study brings, tried before anything starts: data that stay the same, and weights."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from landscape import storage
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study.jobs import Job
from landscape.study.spec import Run, fingerprint

if TYPE_CHECKING:
    from landscape.problems import DataSplits


def begin(place: StudyFolder, todo: Sequence[Job], *, keep: bool) -> None:
    """Read the data of every problem and the weights that are given; refuse what cannot be used.

    The digests of data that the study has not met yet are kept in its data.json. keep: the data
    stay in memory, for runs in this process.
    """
    from landscape.study import bench

    for job in {_key(job.run): job for job in todo}.values():
        known = _known(place)
        data = bench.read_data(job)
        if _key(job.run) not in known:
            entry = {"problem": _of_data(job.run), "sha256": data.sha256}
            storage.write_json(place.data, known | {_key(job.run): entry})
        refuse_other_data(place, job.run, data)
    for job in todo:
        if job.run.weights is not None:
            bench.try_weights(job)
    if not keep:
        bench.load_data.cache_clear()


def refuse_other_data(place: StudyFolder, run: Run, data: "DataSplits") -> None:
    """Refuse data that are not those that the study was begun with; runs on others are no pairs."""
    kept = _known(place).get(_key(run), {}).get("sha256")
    if kept is None or kept == data.sha256:
        return
    parts = ", ".join(
        f"{part} {data.sha256.get(part, 'none')[:12]} for {kept.get(part, 'none')[:12]}"
        for part in dict.fromkeys([*kept, *data.sha256])
        if kept.get(part) != data.sha256.get(part)
    )
    raise LandscapeError(
        f"The data {run.problem.data!r} are not those that this study was begun with (SHA-256 of "
        f"{parts}, in {place.data}), so that its runs would be no pairs. Data are read in every "
        f"process: where the callable draws numbers, seed them within it. Where the data have "
        f"changed since, give a new folder with --out."
    )


def _known(place: StudyFolder) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    return storage.read_json(place.data) if place.data.exists() else {}


def _key(run: Run) -> str:
    return fingerprint(_of_data(run), length=16)


def _of_data(run: Run) -> dict[str, object]:
    """What decides the data of a run: its problem without model and loss, and the user's file."""
    own = {key: v for key, v in asdict(run.problem).items() if key not in ("model", "loss")}
    return own | {"code": run.code.get(run.problem.data)}
