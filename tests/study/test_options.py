"""Whatever stands in a study file is accepted and works, or is refused in one sentence first."""

import math
from dataclasses import fields
from pathlib import Path

import pytest

from landscape import toml
from landscape.errors import LandscapeError
from landscape.study import Options, parse, possible, run
from landscape.study.finished_run import FinishedRun
from landscape.study.measure_table import measurement
from landscape.study.measurements import RECORDS, measure_run
from landscape.study.run_folder import Trainings
from landscape.study.running import job_of
from landscape.study.spec import Problem
from tests.study.test_records import CHEAP

HERE = Path(__file__).parents[1]
NONE = [-1, -1.5, math.nan, math.inf, -math.inf, [[1]], [math.nan], {"a": 1}, 10**30]
SOME = [0, 1, 2, 0.5, 2.5, 1e-320, "x", "", "1", True, [], [1, 1], ["a"], [-1], [0.5], [-1.0, 1.0]]
LINES = {
    "problem": 'data = "study_problem:splits"\nmodel = "study_problem:make"\n',
    "training": "epochs = 2\nbatch_size = 16\nlr = 0.1\nkeep_every = 1\n",
    "variants.sam": "rho = 0.1\n",
    "grid": 'variant = ["sam"]\nseed = [0, 1, 2]\n',
    "measure": 'examples = 24\nmeasurements = ["norms"]\n',
    "comparisons": 'references = ["sam"]\n',
}


def written(value):
    if isinstance(value, float) and not math.isfinite(value):
        return {math.inf: "inf", -math.inf: "-inf"}.get(value, "nan")
    if isinstance(value, list):
        return f"[{', '.join(map(written, value))}]"
    return "{a = 1}" if isinstance(value, dict) else toml.value_text(value)


def text(table="", key="", value=None):
    """The study file with one line in one of its tables changed or added."""
    top, out = f"{key} = {written(value)}\n" if key and not table else "", []
    for name, lines in LINES.items():
        if not table and name.partition(".")[0] == key:
            continue
        kept = [line for line in lines.splitlines() if line.partition(" = ")[0] != key]
        kept = kept if name == table else lines.splitlines()
        out += [f"[{name}]", *kept, *([f"{key} = {written(value)}"] if name == table else [])]
    return "\n".join(["" if key == "name" else 'name = "o"', top, *out])


def refused(study):
    """Whether it is; anything but one sentence is an error here."""
    said = ""
    try:
        parse(study, base=HERE)
    except LandscapeError as error:
        said = str(error)
    assert "\n" not in said
    assert "TOML" not in said
    assert not said or len(said) > 20
    return bool(said)


def entries():
    numbers = list(possible.training_defaults())
    yield from (("problem", f.name) for f in fields(Problem))
    yield from (("training", key) for key in numbers)
    yield from (("variants.sam", f"training.{key}") for key in numbers)
    yield from (("variants.sam", key) for key in ("rho", "recipe", "label", "training"))
    yield from (("grid", key) for key in ("variant", "setting", "seed", "weights", "rho", *numbers))
    yield from (("measure", key) for key in ("measurements", "examples", "split", "bn", "seed"))
    yield from (
        ("comparisons", key) for key in ("metric", "setting", "references", "questions", "margin")
    )
    top = "name question dtype problem training settings variants grid run measure comparisons"
    yield from (("", key) for key in top.split())


@pytest.mark.parametrize(("table", "key"), list(entries()), ids=lambda word: word or "top")
def test_a_value_that_nothing_can_be_is_refused_in_one_sentence(table, key):
    """NaN, infinities, a table, a list of lists, 10^30 and numbers below 0 are no value here."""
    free = {"lr", "rho", "weight_decay", "eps", "clip_norm"}  # any size, as large as it may be
    for value in NONE:
        large = value == 10**30 and key.removeprefix("training.") in free
        tables = isinstance(value, dict) and key in ("variants", "problem", "measure", "grid")
        assert refused(text(table, key, value)) or large or tables, (table, key, value)


@pytest.mark.parametrize(("table", "key"), list(entries()), ids=lambda word: word or "top")
def test_any_other_value_is_accepted_or_refused_in_one_sentence(table, key):
    for value in SOME:
        refused(text(table, key, value))


@pytest.mark.parametrize("table", ["problem", "training", "variants.sam", "grid", "measure", ""])
def test_an_unknown_name_is_refused_in_one_sentence(table):
    assert refused(text(table, "nonsense", 1))


def checked(name, option, value):
    """The option as the reader leaves it; None where it is refused in one sentence."""
    try:
        return measurement(name, {**CHEAP[name], option: value}, ["sam"], [0, 1, 2], 24).options
    except LandscapeError as error:
        said = str(error)
    assert said.startswith(f"[measure.{name}]")
    assert "\n" not in said
    return None


def test_options_of_every_measurement_that_nothing_can_be_are_refused():
    for name, record in RECORDS.items():
        for option in (*record.options, "first_seed_only"):
            for value in NONE:
                large = value == 10**30 and isinstance(record.options.get(option), float)
                below = value in (-1, -1.5) and record.least.get(option, 0) < 0
                assert checked(name, option, value) is None or large or below, (name, option, value)
        assert checked(name, "nonsense", 1) is None


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    study = parse(text(), base=HERE)
    options = Options(device="cpu", workers=0, quiet=True)
    done = run(study, tmp_path_factory.mktemp("options") / "study", options)
    known = Trainings(study, done.folder)
    job = job_of(known, study.runs[0], done.folder, "cpu", options, across=True)
    return FinishedRun(job)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(RECORDS))
def test_what_the_reader_accepts_works_after_the_training(name, trained):
    """No option is refused after a night of training that could have been refused before it.

    What needs the data or the model of the run is tried before its training.
    """
    record = RECORDS[name]
    for option in record.options:
        if option in (*record.variants, "seeds"):
            continue
        for value in (*SOME, 3, 24, 25):
            found = checked(name, option, value)
            if found is None:
                continue
            try:
                if record.fits is not None:
                    record.fits(found, trained)
            except LandscapeError:
                continue
            measure_run(trained, name, found)
