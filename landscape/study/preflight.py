"""What a study brings, tried before anything starts: data that stay the same, and weights."""

from collections.abc import Sequence

from landscape import storage
from landscape.storage import StudyFolder
from landscape.study.spec import Job


def begin(place: StudyFolder, todo: Sequence[Job]) -> None:
    """Read the data of every problem and the weights that are given; refuse what cannot be used.

    The digests of data that the study has not met yet are kept in its data.json.
    """
    from landscape.study import problem
    from landscape.study.finished_run import try_weights
    from landscape.training import TrainingOptions, check_form

    for job in {problem.data_key(job.run): job for job in todo}.values():
        known = problem.known_data(place)
        data = problem.read_data(job)
        if problem.data_key(job.run) not in known:
            entry = {"problem": problem.of_data(job.run), "sha256": data.sha256}
            storage.write_json(place.data, {**known, problem.data_key(job.run): entry})
        problem.refuse_other_data(place, job.run, data)
    for job in {repr((job.run.problem, job.run.training)): job for job in todo}.values():
        if job.run.weights is None:
            check_form(problem.read_data(job), TrainingOptions(**job.run.training))
    for job in todo:
        if job.run.weights is not None:
            try_weights(job)
    for job in {job.run.problem: job for job in todo if job.measure}.values():
        _try_options(job)


def _try_options(job: Job) -> None:
    """Refuse options of measurements that these data or this model cannot have."""
    from landscape.study import measurements
    from landscape.study.finished_run import FinishedRun

    before = FinishedRun(job, trained=False)
    count = before.examples.num_rows
    for measurement, _ in job.measurements:
        record = measurements.RECORDS[measurement.name]
        measurements.agreed(record, measurement.options, count)
        measurements.fitted(record, measurement.options, before)
