"""What a run trains on: data, model, loss and recipe, ours or the user's own."""

import inspect
from collections.abc import Mapping
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape import problems, sam, storage, training
from landscape.errors import LandscapeError
from landscape.storage import StudyFolder
from landscape.study import user_code
from landscape.study.spec import Job, Problem, Run, fingerprint

DTYPES = {"float32": torch.float32, "float64": torch.float64}


@lru_cache(maxsize=4)
def load_data(problem: Problem, base: Path) -> problems.DataSplits:
    """The data of a problem, read once per worker."""
    options = {
        "data_dir": problem.data_dir and str(base / problem.data_dir),
        "label_noise": problem.label_noise,
        "noise_kind": problem.noise_kind,
        "seed": problem.data_seed,
        "noise_seed": problem.noise_seed,
        "splits": problem.splits,
        "verify": problem.verify,
    }
    if not user_code.is_callable_name(problem.data):
        return problems.load_data(problem.data, **options)
    with user_code.calling(base, problem.data):
        make = problems.import_object(problem.data)
        accepts = inspect.signature(make).parameters
        if problem.label_noise and "label_noise" not in accepts:
            raise LandscapeError(
                f"label_noise = {problem.label_noise} was asked of {problem.data}, which has no "
                f"argument label_noise; make the noise in that callable and return (x, y, y_clean)."
            )
        needed = {"seed": "split" in problem.redraw, "noise_seed": problem.noise_seed is not None}
        for name in (name for name, needs in needed.items() if needs and name not in accepts):
            raise LandscapeError(
                f"{problem.data} has no argument {name}, so it cannot draw data anew for every "
                f"seed of the study (redraw = {list(problem.redraw)}, data_seed = "
                f"{problem.data_seed}, noise_seed = {problem.noise_seed}); add it, and seed the "
                f"{'label noise' if name == 'noise_seed' else 'split and the label noise'} with it."
            )
        if problem.splits is not None and "splits" not in accepts:
            raise LandscapeError(
                f"splits = {list(problem.splits)} was asked of {problem.data}, which has no "
                f"argument splits; cut the data in that callable."
            )
        made = make(**{key: value for key, value in options.items() if key in accepts})
    return problems.as_splits(made if _are_parts(made) else {"train": made}, name=problem.data)


def read_data(job: Job) -> problems.DataSplits:
    """The data of a run, refused if they are not those that its study was begun with."""
    data = load_data(job.run.problem, job.base)
    refuse_other_data(StudyFolder(job.folder.parents[1]), job.run, data)
    return data


def _are_parts(made: Any) -> bool:
    """Whether it is several splits rather than the training data alone: a pair, loader, batches."""
    if isinstance(made, Mapping):
        return "train" in made
    if isinstance(made, tuple | list) and len(made) in (2, 3):
        # An array is inputs or targets, and no part of a problem.
        return not any(hasattr(each, "shape") for each in made)
    return isinstance(made, problems.DataSplits)


def make_model(run: Run, data: problems.DataSplits, base: Path) -> nn.Module:
    """The model of a run, with the initial weights of its seed."""
    with user_code.calling(base, run.problem.model):
        return problems.make_model(
            run.problem.model,
            num_classes=data.num_classes,
            input_shape=data.input_shape,
            seed=run.seed,
        ).to(DTYPES[run.dtype])


def make_loss(run: Run, base: Path) -> Any:
    """The loss of a run, loss(output, target)."""
    with user_code.calling(base, run.problem.loss):
        return problems.make_loss(run.problem.loss)


def make_recipe(
    recipe: str, options: Mapping[str, Any], base: Path
) -> sam.Variant | training.OptimizerFactory:
    """The variant of a recipe; of the user's own callable, what it makes or is.

    The callable is a Variant, returns one from the options, or takes the parameters first and
    returns a torch optimizer: make(params, **options).
    """
    if not user_code.is_callable_name(recipe):
        return sam.make(recipe, dict(options))
    with user_code.calling(base, recipe):
        make = problems.import_object(recipe)
        if isinstance(make, sam.Variant):
            return make
        first = next(iter(inspect.signature(make).parameters), "")
        if first in ("params", "parameters"):
            return training.OptimizerFactory(make, dict(options), recipe)
        try:
            made = make(**options)
        except TypeError as error:
            raise LandscapeError(f"{recipe} does not accept {dict(options)}: {error}.") from None
    if not isinstance(made, sam.Variant):
        raise LandscapeError(
            f"{recipe} returned a {type(made).__name__}; a landscape.sam.Variant is needed. An "
            f"optimizer factory takes the parameters first: def {recipe.partition(':')[2]}(params, "
            f"...)."
        )
    return made


def refuse_other_data(place: StudyFolder, run: Run, data: problems.DataSplits) -> None:
    """Refuse data that are not those that the study was begun with; runs on others are no pairs."""
    kept = known_data(place).get(data_key(run), {}).get("sha256")
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


def known_data(place: StudyFolder) -> Mapping[str, Mapping[str, Mapping[str, str]]]:
    """Digests of the data that a study was begun with, by their key."""
    found = storage.read_json(place.data) if place.data.exists() else {}
    if not all(storage.fits(entry, {"sha256": dict}) for entry in found.values()):
        raise LandscapeError(
            f"{place.data} is another document, renamed or copied there. Put back the right one; "
            f"without it no later run can be told to be of the same data."
        )
    return found


def data_key(run: Run) -> str:
    """The key of a run's data."""
    return fingerprint(of_data(run), length=16)


def of_data(run: Run) -> dict[str, object]:
    """What decides the data of a run: its problem without model and loss, and the user's file."""
    left = {"model", "loss", "redraw"} | (
        {"noise_seed"} if run.problem.noise_seed is None else set()
    )
    own = {key: v for key, v in asdict(run.problem).items() if key not in left}
    return own | {"code": run.code.get(run.problem.data)}
