"""Studies with one defect each, with a planted truth: what may go wrong with a study, one by one.

    python -m benchmarks.planted_hard                            # every defect, 200 studies each
    python -m benchmarks.planted_hard --studies 50 --defects nan outlier_seed

`planted.py` and `planted_rough.py` ask how often a page is wrong over studies as they come. Here a
study has one defect, at its worst: one seed or two, scales of noise that differ hundredfold between
variants, tails without a variance, a seed or a run that lies far off, runs that are missing at
random or because they went badly, measures of flatness that are one number, accuracies at the
ceiling, a variant alone, controls that beat everything, values that are all the same, NaN and
infinite measurements, negative traces, variants that are one model under two names. Each is planted
on studies in which nothing differs, in which outcome and flatness differ for unrelated reasons, and
in which flatness is the cause. Every claim and every printed sentence of a page is held against the
truth, and no page may fail to be written.
"""

import argparse
import json
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import planted_rough as rough
from benchmarks.planted import bound
from landscape.metrics import FLATNESS
from landscape.report.study import StudyResults

OUT = Path(__file__).parent / "results" / "planted_hard.json"
WORLDS = {
    "null": rough.World("nothing", "nothing", calm=True),
    "irrelevant": rough.World("chance", "chance", calm=True),
    "flatness": rough.World("flatness", "chance", calm=True),
}
NORMAL, STUDENT, CAUCHY = "normal", "t2", "cauchy"
Tables = dict[str, list[dict[str, Any]]]


@dataclass(frozen=True)
class Sample:
    """How runs scatter around the truth.

    law: of a run's own noise. uneven: standard deviation of log scale between rows. seeds: per row.
    error: of a row of gain 0. examples: of the test set. noise: of log error, log loss and log
    flatness of a run. spoil: what is then done to the tables of one study.
    """

    law: str = NORMAL
    uneven: float = 0.0
    seeds: int = 5
    error: float = 0.1
    examples: int = 300
    noise: float = 0.06
    variants: int = 10
    metric: str = "test_accuracy"
    truth: Callable[[rough.Truth, np.random.Generator], rough.Truth] | None = None
    spoil: Callable[[Tables, np.random.Generator], Tables] | None = None


def _each(tables: Tables, change: Callable[[str, dict[str, Any]], dict[str, Any] | None]) -> Tables:
    """Every run of every table changed; None leaves it out."""
    found = {
        name: [one for part in parts if (one := change(name, part)) is not None]
        for name, parts in tables.items()
    }
    return {name: parts for name, parts in found.items() if parts}


def _runs(tables: Tables) -> list[Any]:
    return [part["key"] for part in tables["generalization"]]


def _missing(tables: Tables, rng: np.random.Generator) -> Tables:
    """Three runs of ten are not there, and half of those left lack one measurement."""
    gone = {key for key in _runs(tables) if rng.random() < 0.3}
    kept = {key for key in _runs(tables) if key not in gone and rng.random() < 0.5}

    def change(name: str, part: dict[str, Any]) -> dict[str, Any] | None:
        lacks = name == "sharpness" and part["key"] in kept
        return None if part["key"] in gone or lacks else part

    return _each(tables, change)


def _worst(tables: Tables, _: np.random.Generator) -> Tables:
    """The worst tenth of all runs is not there."""
    seen = {part["key"]: float(part["test_accuracy"]) for part in tables["generalization"]}
    gone = sorted(seen, key=lambda key: seen[key])[: max(1, len(seen) // 10)]
    return _each(tables, lambda _, part: None if part["key"] in gone else part)


def _disjoint(tables: Tables, rng: np.random.Generator) -> Tables:
    """Every other variant has seeds of its own, so that few pairs have a seed in common."""
    rows = list(dict.fromkeys(key[0] for key in _runs(tables)))
    moved = set(rng.permutation(rows)[: len(rows) // 2])

    def change(_: str, part: dict[str, Any]) -> dict[str, Any]:
        row, setting, seed = part["key"]
        return part | {"key": (row, setting, seed + 100 * (row in moved))}

    return _each(tables, change)


def _one_number(tables: Tables, _: np.random.Generator) -> Tables:
    """All measures of flatness are λ₁."""
    known = {p["key"]: float(p["eigenvalue"][0]) for p in tables["top_eigenvalues"]}

    def change(name: str, part: dict[str, Any]) -> dict[str, Any]:
        value = known[part["key"]]
        if name == "hessian_trace":
            return part | {"trace": 12 * value}
        if name == "sharpness":
            grid = value * np.array(rough.RADII) ** 2
            return part | {"gaussian": grid, "worst_case": 3 * grid}
        return part

    return _each(tables, change)


def _of_one_number(truth: rough.Truth, _: np.random.Generator) -> rough.Truth:
    """What is true of every measure of flatness is what is true of λ₁."""
    values = {
        (setting, key): dict(truth.values[setting, "lambda1"]) if key in FLATNESS else column
        for (setting, key), column in truth.values.items()
    }
    return replace(truth, values=values)


def _identical(tables: Tables, _: np.random.Generator) -> Tables:
    """Every run has the values of the first one."""
    first = {name: parts[0] for name, parts in tables.items()}
    return _each(tables, lambda name, part: first[name] | {"key": part["key"]})


def _twins(tables: Tables, _: np.random.Generator) -> Tables:
    """Three variants are one model: asam and gsam have the numbers of sgd, seed by seed."""
    known = {(name, part["key"]): part for name, parts in tables.items() for part in parts}

    def change(name: str, part: dict[str, Any]) -> dict[str, Any]:
        row, setting, seed = part["key"]
        # SGD has no radius to copy.
        if row not in ("asam", "gsam") or name == "perturbation":
            return part
        return known[name, ("sgd", setting, seed)] | {"key": part["key"]}

    return _each(tables, change)


def _broken(value: float, share: float) -> Callable[[Tables, np.random.Generator], Tables]:
    """A share of all numbers becomes one value: NaN or infinity, whatever it was of."""

    def spoil(tables: Tables, rng: np.random.Generator) -> Tables:
        def change(_: str, part: dict[str, Any]) -> dict[str, Any]:
            return {
                key: np.asarray(x, float) * np.nan + value
                if key not in ("key", "converged", "test_correct") and rng.random() < share
                else x
                for key, x in part.items()
            }

        return _each(tables, change)

    return spoil


def _below_zero(tables: Tables, rng: np.random.Generator) -> Tables:
    """Traces and sharpness of a third of the runs are not positive."""

    def change(name: str, part: dict[str, Any]) -> dict[str, Any]:
        if name not in ("hessian_trace", "sharpness") or rng.random() > 0.3:
            return part
        keys = {"trace", "gaussian", "worst_case"} & part.keys()
        return part | {key: -0.1 * np.asarray(part[key]) for key in keys}

    return _each(tables, change)


def _outlier(tables: Tables, rng: np.random.Generator) -> Tables:
    """One seed of one row, and another one of all rows, are far off in everything, either way."""
    keys = _runs(tables)
    alone = keys[rng.integers(len(keys))]
    common = int(rng.integers(max(key[-1] for key in keys) + 1))
    sign = rng.choice([-1.0, 1.0], 2)

    def change(_: str, part: dict[str, Any]) -> dict[str, Any]:
        size = 1.5 * sign[0] * (part["key"] == alone) + 1.0 * sign[1] * (part["key"][-1] == common)
        return _moved(part, float(size))

    return _each(tables, change)


def _moved(part: dict[str, Any], size: float) -> dict[str, Any]:
    """Every positive number of a run times exp(size); of an accuracy the error."""
    moved = dict(part)
    for key, x in part.items():
        if key in ("key", "converged", "test_correct", "train_accuracy"):
            continue
        if key == "test_accuracy":
            moved[key] = 1 - min((1 - x) * np.exp(size), 0.95)
        else:
            moved[key] = np.asarray(x) * np.exp(size)
    if size and "test_correct" in moved:
        # The examples are those of the accuracy.
        right = np.zeros(moved["test_correct"].size, bool)
        right[: round(moved["test_accuracy"] * right.size)] = True
        moved |= {"test_correct": right, "test_accuracy": float(right.mean())}
    return moved


def _good_controls(truth: rough.Truth, _: np.random.Generator) -> rough.Truth:
    """Controls are better than every variant, and no flatter than SGD."""
    values = {place: dict(column) for place, column in truth.values.items()}
    best = max(values["a", truth.metric].values())
    for name in ("noise_mask", "short"):
        values["a", truth.metric][name] = best + 0.3
        for key in FLATNESS:
            values["a", key][name] = values["a", key]["sgd"]
    return replace(truth, values=values)


DEFECTS: dict[str, Sample] = {
    "none": Sample(),
    "one_seed": Sample(seeds=1),
    "two_seeds": Sample(seeds=2),
    "three_seeds": Sample(seeds=3),
    "eight_seeds": Sample(seeds=8, law=STUDENT),
    "scales_apart": Sample(uneven=1.2),
    "scales_apart_three_seeds": Sample(uneven=1.2, seeds=3),
    "no_variance": Sample(law=CAUCHY),
    "no_variance_ten_seeds": Sample(law=CAUCHY, seeds=10),
    "outlier_seed": Sample(spoil=_outlier),
    "outlier_seed_three": Sample(spoil=_outlier, seeds=3),
    "missing": Sample(spoil=_missing),
    "went_badly": Sample(spoil=_worst),
    "disjoint": Sample(spoil=_disjoint),
    "one_number": Sample(spoil=_one_number, truth=_of_one_number, seeds=10),
    "loss": Sample(metric="test_loss", law=STUDENT),
    "ceiling": Sample(error=0.003),
    "ceiling_two_seeds": Sample(error=0.003, seeds=2),
    "small_test_set": Sample(examples=20),
    "one_variant": Sample(variants=1),
    "two_variants": Sample(variants=2),
    "good_controls": Sample(truth=_good_controls, seeds=10),
    "identical": Sample(spoil=_identical),
    "no_noise": Sample(noise=0.0, examples=100_000),
    "twins": Sample(spoil=_twins),
    "nan": Sample(spoil=_broken(np.nan, 0.05)),
    "nan_everywhere": Sample(spoil=_broken(np.nan, 1.0)),
    "infinite": Sample(spoil=_broken(np.inf, 0.05)),
    "below_zero": Sample(spoil=_below_zero),
}


def _noise(sample: Sample, shape: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    """(rows, seeds), symmetric around 0."""
    drawn = {
        NORMAL: lambda: rng.normal(size=shape),
        STUDENT: lambda: rng.standard_t(2, size=shape),
        # A law without a mean has no true mean either; its centre is what is planted.
        CAUCHY: lambda: np.clip(rng.standard_cauchy(size=shape), -20, 20),
    }[sample.law]()
    return drawn * np.exp(sample.uneven * rng.normal(size=(shape[0], 1)))


def observe(truth: rough.Truth, sample: Sample, rng: np.random.Generator) -> Tables:
    """The runs of a study by measurement, before its defect."""
    rows = truth.rows
    shape = (len(rows), sample.seeds)

    def log(key: str) -> np.ndarray:
        return -np.array([truth.values["a", key][row.name] for row in rows])[:, None]

    shift = 0.1 * rng.normal(size=(1, sample.seeds)) * (sample.noise > 0)
    outcome = log(truth.metric) + shift + sample.noise * _noise(sample, shape, rng)
    error = np.clip(sample.error * np.exp(outcome), 1e-5, 0.95)
    fresh, difficulty = rng.random((*shape, sample.examples)), rng.random((1, 1, sample.examples))
    hard = np.where(rng.random((*shape, sample.examples)) < 0.6, difficulty, fresh)
    right = hard > error[..., None]
    loss = np.exp(log("train_loss") + sample.noise * _noise(sample, shape, rng))
    flat = {
        key: np.exp(log(key) + 2 * sample.noise * _noise(sample, shape, rng)) for key in FLATNESS
    }
    radius = np.exp(log("rho_eff")) * np.ones(shape)
    tables: Tables = {}
    for i, row in enumerate(rows):
        for s in range(sample.seeds):
            key = (row.name, "a", s)
            seen = {"train_loss": loss[i, s], "train_accuracy": float(np.exp(-min(loss[i, s], 50)))}
            if truth.metric == "test_loss":
                seen["test_loss"] = 3 * error[i, s]
            elif sample.noise:
                seen |= {"test_accuracy": right[i, s].mean(), "test_correct": right[i, s]}
            else:
                seen["test_accuracy"] = 1 - error[i, s]
            grid, ranks = np.array(rough.RADII) ** 1.8, np.array([1.0, 0.6]) * flat["lambda1"][i, s]
            found: dict[str, dict[str, Any]] = {
                "generalization": seen,
                "top_eigenvalues": {"eigenvalue": ranks, "residual_norm": 1e-4 * ranks,
                                    "converged": np.ones(2, bool)},
                "hessian_trace": {"trace": 12 * flat["trace"][i, s]},
                "sharpness": {"gaussian": flat["gaussian"][i, s] * grid,
                              "worst_case": 3 * flat["worst"][i, s] * grid},
            }  # fmt: skip
            if row.recipe != "sgd":
                found["perturbation"] = {"rho_eff": radius[i, s], "rho": radius[i, s]}
            for name, values in found.items():
                tables.setdefault(name, []).append({"key": key, **values})
    return tables


def make_study(
    defect: str, world: str, rng: np.random.Generator
) -> tuple[StudyResults, rough.Truth]:
    """One study with a defect, and what is true of it."""
    sample = DEFECTS[defect]
    truth = replace(
        rough.plant(replace(WORLDS[world], variants=max(sample.variants, 2)), rng),
        metric=sample.metric,
    )
    # One setting, and the compared metric of the defect.
    planted = next(key for place, key in truth.values if place == "a" and key not in
                   ("train_loss", "rho_eff", *FLATNESS))  # fmt: skip
    values = {("a", sample.metric if key == planted else key): column
              for (place, key), column in truth.values.items() if place == "a"}  # fmt: skip
    truth = replace(truth, values=values)
    if sample.variants == 1:
        kept = tuple(row for row in truth.rows if row.name == "sgd")
        truth = replace(truth, rows=kept)
    if sample.truth is not None:
        truth = sample.truth(truth, rng)
    tables = observe(truth, sample, rng)
    planned = _runs(tables)
    if sample.spoil is not None:
        tables = sample.spoil(tables, rng)
    if defect == "identical" or defect == "twins":
        truth = _as_seen(truth, defect)
    known = {name: rough.dataset(name, parts, truth.rows) for name, parts in tables.items()}
    ended = [(*key, "trained") for key in _runs(tables)]
    if defect == "went_badly":
        ended += [(*key, "diverged") for key in planned if key not in _runs(tables)]
    trainings = rough.trainings(ended, truth.rows)
    study = rough.study_of(truth, known, trainings, asks=bool(rng.random() < 0.3),
                           both=bool(rng.random() < 0.7))  # fmt: skip
    return study, truth


def _as_seen(truth: rough.Truth, defect: str) -> rough.Truth:
    """What is true of variants that are one model: they are equal."""
    values = {}
    for place, column in truth.values.items():
        same = tuple(column) if defect == "identical" else ("asam", "gsam")
        same = () if defect == "twins" and place[1] == "rho_eff" else same
        values[place] = {name: column["sgd" if name in same else name] for name in column}
    return replace(truth, values=values)


def simulate(defect: str, world: str, number: int, *, first: int = 0) -> dict[str, float]:
    """Shares of studies with a false statement, by place, and with flatness supported."""
    counts: Counter[str] = Counter({"false anywhere": 0})
    for index in range(first, first + number):
        rng = np.random.default_rng([90_210, index])
        study, truth = make_study(defect, world, rng)
        page = rough.read_page(study, truth)
        seen = [f"false in {place}" for place, n in page.false.items() if n]
        seen += ["false anywhere"] if seen else []
        flat = [word for key, word in page.words.items() if key.startswith("flatter_")]
        seen += ["flatness supported"] * ("supported" in flat)
        counts.update(seen)
    return {name: count / number for name, count in sorted(counts.items())}


def main() -> None:
    """Simulate defects and write the shares to a file."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--studies", type=int, default=200)
    parser.add_argument("--defects", nargs="*", default=list(DEFECTS), choices=list(DEFECTS))
    parser.add_argument("--worlds", nargs="*", default=list(WORLDS), choices=list(WORLDS))
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    found = json.loads(options.out.read_text()) if options.out.exists() else {}
    for defect in options.defects:
        for world in options.worlds:
            started = time.process_time()
            shares = simulate(defect, world, options.studies)
            found[f"{defect}, {world}"] = {
                "studies": options.studies, "shares": shares, "bound": bound(options.studies),
            }  # fmt: skip
            options.out.write_text(json.dumps(found, indent=1) + "\n")
            spent = time.process_time() - started
            print(f"{defect}, {world}: {shares} {spent:.0f} CPU s", flush=True)


if __name__ == "__main__":
    main()
