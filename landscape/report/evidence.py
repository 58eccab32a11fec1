"""The numbers behind the answer: comparisons with Holm's correction, flatness ratios, the table."""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from landscape import stats
from landscape.plot import runs
from landscape.report import words
from landscape.report.study import Study
from landscape.stats import Interval, Paired

ALPHA = 0.05


@dataclass(frozen=True)
class Comparison:
    """One row minus one reference row in the compared metric; `p_holm` is NaN if exploratory."""

    setting: str
    variant: str
    reference: str
    paired: Paired
    p_holm: float
    declared: bool

    @property
    def p(self) -> float:
        """Holm-adjusted where declared, plain where exploratory."""
        return self.p_holm if self.declared else self.paired.p

    @property
    def sign(self) -> int:
        """+1 better, -1 worse, 0 cannot be told."""
        if not (math.isfinite(self.p) and self.p < ALPHA):
            return 0
        return 1 if self.paired.difference.estimate > 0 else -1


@dataclass(frozen=True)
class Measure:
    """A measure of flatness: where it is stored and how it is named."""

    key: str
    name: str
    measurement: str
    variable: str


MEASURES = (
    Measure("lambda1", "λ₁", "top_eigenvalues", "eigenvalue"),
    Measure("trace", "Hessian trace", "hessian_trace", "trace"),
    Measure("gaussian", "Gaussian sharpness", "sharpness", "gaussian"),
    Measure("worst", "worst-case sharpness", "sharpness", "worst_case"),
)


def comparisons(study: Study) -> list[Comparison]:
    """Every variant against every reference, in every setting; Holm over the declared family.

    The family: each variant minus each reference in the declared setting; a pair of two references
    is one comparison.
    """
    made = []
    for setting in study.settings:
        per_variant = study.values("generalization", study.metric, setting)
        declared = setting == study.comparisons.get("setting")
        for reference, variant in _pairs(study, setting) if per_variant else []:
            _, a, b = study.paired(per_variant, variant, reference, study.metric)
            made.append((setting, variant, reference, stats.paired(a, b), declared))
    adjusted = iter(stats.holm([pair.p for *_, pair, declared in made if declared]))
    return [
        Comparison(
            setting, variant, reference, pair, float(next(adjusted)) if own else math.nan, own
        )
        for setting, variant, reference, pair, own in made
    ]


def _pairs(study: Study, setting: str) -> list[tuple[str, str]]:
    """(reference, variant), both rows, of equal axes as far as both have them."""
    pairs: list[tuple[str, str]] = []
    for reference in study.references(setting):
        for variant in study.variants(setting):
            partner = study.partner(setting, variant.id, reference)
            if partner is not None and (variant.id, partner) not in pairs:
                pairs.append((partner, variant.id))
    return pairs


def difference(made: list[Comparison], setting: str, a: str, b: str) -> Comparison | None:
    """The comparison a - b, turned round if b - a is the one that was made."""
    for one in made:
        if (one.setting, one.variant, one.reference) == (setting, a, b):
            return one
        if (one.setting, one.variant, one.reference) == (setting, b, a):
            ci = one.paired.difference
            turned = Interval(-ci.estimate, -ci.high, -ci.low, ci.n, ci.missing, ci.level)
            pair = Paired(turned, -one.paired.t, one.paired.p)
            return Comparison(setting, a, b, pair, one.p_holm, one.declared)
    return None


def differences_to(
    study: Study, made: list[Comparison], setting: str, reference: str
) -> list[Comparison]:
    """Every row of a setting minus its partner among the rows of one reference."""
    names = dict.fromkeys(
        name for one in made if one.setting == setting for name in (one.variant, one.reference)
    )
    found = [difference_to(study, made, setting, name, reference) for name in names]
    return [one for one in found if one is not None]


def difference_to(
    study: Study, made: list[Comparison], setting: str, name: str, reference: str
) -> Comparison | None:
    """One row minus its partner among the rows of a reference; None without one."""
    partner = study.partner(setting, name, reference)
    return None if partner is None else difference(made, setting, name, partner)


def flatness(study: Study, measure: Measure, setting: str) -> dict[str, np.ndarray]:
    """Values of a measure over seeds, per variant."""
    at = {"rank": 0} if measure.key == "lambda1" else {"rho": study.radius}
    found = study.values(measure.measurement, measure.variable, setting, **at)
    return {name: ds[measure.variable].values for name, ds in found.items()}


def flatness_ratio(study: Study, measure: Measure, setting: str, a: str, b: str) -> Interval:
    """Geometric mean of the paired ratio a / b of a measure; below 1, a is flatter.

    b: a row, or a reference among whose rows a has its partner.
    """
    b = study.partner(setting, a, b) or b
    at = {"rank": 0} if measure.key == "lambda1" else {"rho": study.radius}
    found = study.values(measure.measurement, measure.variable, setting, **at)
    _, ours, theirs = study.paired(found, a, b, measure.variable)
    return stats.geometric_ratio(ours, theirs)


@dataclass(frozen=True)
class Cell:
    """One cell of the evidence table: the number, and the small print under it."""

    main: str
    note: str = ""
    emphasis: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells under headed columns, with footnotes."""

    setting: str
    title: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]


class _Columns:
    """Grows the table column by column; a column without any cell is not added."""

    def __init__(self, study: Study, setting: str):
        self.names = {v.id: v.label for v in study.variants(setting)}
        self.head = [Cell("Variant")]
        self.rows = {
            v.id: [Cell(v.label, study.seeds(setting, v.id, v.ds.sizes["run"]))]
            for v in study.variants(setting)
        }

    def add(self, title: str, note: str, cells: dict[str, Cell]) -> None:
        if cells:
            self.head.append(Cell(title, note))
            for name, row in self.rows.items():
                row.append(cells.get(name, Cell(words.MISSING)))


def table(study: Study, made: list[Comparison], setting: str) -> Table:
    """Variant x (accuracy, differences, loss, curvature, sharpness, radius, time), one setting."""
    columns = _Columns(study, setting)
    means = _accuracy_columns(study, made, setting, columns)
    losses = study.values("generalization", "train_loss", setting)
    cells = {name: _mean_cell(stats.mean_ci(ds.train_loss.values)) for name, ds in losses.items()}
    columns.add("Training loss", "nats [95 % CI]", cells)
    _flatness_columns(study, setting, columns)
    _cost_columns(study, setting, columns)
    order = sorted(columns.rows, key=lambda name: -_known(means.get(name, 0.0)))
    return Table(
        setting,
        study.title(setting),
        tuple(columns.head),
        tuple(tuple(columns.rows[name]) for name in order),
        tuple(_notes(study, made, setting)),
    )


def _accuracy_columns(
    study: Study, made: list[Comparison], setting: str, columns: _Columns
) -> dict[str, float]:
    per_variant = study.values("generalization", study.metric, setting)
    means = {name: stats.mean_ci(ds[study.metric].values) for name, ds in per_variant.items()}
    cells = {
        name: Cell(words.percent(ci.estimate), words.interval(ci, words.percent))
        for name, ci in means.items()
    }
    columns.add(words.sentence(study.metric.replace("_", " ")), "% [95 % CI]", cells)
    for reference in study.references(setting) if per_variant else []:
        found = {
            name: difference_to(study, made, setting, name, reference) for name in columns.rows
        }
        cells = {name: _difference_cell(one) for name, one in found.items() if one is not None}
        own = any(one is not None and one.declared for one in found.values())
        if cells:
            rows = study.rows_of(setting, reference)
            cells |= {name: Cell("0", "reference") for name in rows}
        note = "points [95 % CI], " + ("p after Holm" if own else "p not corrected")
        columns.add(f"Δ to {study.label(setting, reference)}", note, cells)
    return {name: ci.estimate for name, ci in means.items()}


def _known(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _mean_cell(ci: Interval) -> Cell:
    note = words.interval(ci) + (f" ({ci.missing} not finite)" if ci.missing else "")
    return Cell(words.number(ci.estimate), note.strip())


def _difference_cell(one: Comparison) -> Cell:
    ci = one.paired.difference
    note = "\n".join(
        part for part in (words.interval(ci, words.points), words.p_value(one.p)) if part
    )
    emphasis = {1: "better", -1: "worse", 0: ""}[one.sign]
    return Cell(words.points(ci.estimate), note if ci.n else "no common seed", emphasis)


def _flatness_columns(study: Study, setting: str, columns: _Columns) -> None:
    for measure in MEASURES[:3]:
        cells = {}
        for name, per_seed in flatness(study, measure, setting).items():
            # A trace may be negative where no minimum was reached: no geometric mean then.
            positive = all(value > 0 for value in per_seed)
            ci = (stats.geometric_mean_ci if positive else stats.mean_ci)(per_seed)
            note = words.interval(ci)
            if note and not positive:
                note += " arithmetic"
            if measure.key == "lambda1":
                note += "\n" + _residual(study, setting, name)
            cells[name] = Cell(words.number(ci.estimate), note.strip())
        title = words.sentence(measure.name)
        if measure.measurement == "sharpness":
            title += f" at ρ = {words.trimmed(study.radius)}"
        columns.add(title, f"nats, BatchNorm {study.mode(measure.measurement)}", cells)


def _residual(study: Study, setting: str, name: str) -> str:
    residuals = study.values("top_eigenvalues", "residual_norm", setting, rank=0)
    if name not in residuals:
        return ""
    worst = float(np.nanmax(residuals[name].residual_norm.values, initial=-math.inf))
    flags = study.values("top_eigenvalues", "converged", setting, rank=0)
    loose = int((np.nan_to_num(flags[name].converged.values.astype(float)) == 0).sum())
    said = f"± {words.number(worst, 2)}" if math.isfinite(worst) else ""
    return said + (f"\n{loose} not converged" if loose else "")


def _cost_columns(study: Study, setting: str, columns: _Columns) -> None:
    cells = {
        name: Cell(words.trimmed(stats.mean_ci(ds.rho_eff.values).estimate), _nominal(ds))
        for name, ds in study.values("perturbation", "rho_eff", setting).items()
    }
    columns.add("Effective ρ", "‖e‖, nominal below", cells)
    timed = {
        v.id: stats.mean_ci(v.ds.train_seconds.values)
        for v in study.variants(setting)
        if "train_seconds" in v.ds.coords
    }
    cells = {name: Cell(words.number(ci.estimate, 2)) for name, ci in timed.items() if ci.n}
    unit = "CPU s" if str(study.resolved.get("device", "")) == "cpu" else "s"
    columns.add("Training", f"{unit} per run", cells)


def _nominal(ds: xr.Dataset) -> str:
    for name in ("run_rho", "rho"):
        if name in ds.coords:
            values = np.asarray(ds[name].values, float)
            if values.size and np.isfinite(values).all() and values[0] > 0:
                return f"ρ = {words.trimmed(float(values[0]))}"
    return ""


def _notes(study: Study, made: list[Comparison], setting: str) -> list[str]:
    notes = []
    own = [one for one in made if one.setting == setting]
    family = [one for one in own if one.declared]
    if family:
        lost = sum(not math.isfinite(one.paired.p) for one in family)
        notes.append(
            f"Differences are paired by seed; p-values are corrected by Holm's method over the "
            f"{len(family)} comparisons declared in the study file"
            + (f", of which {lost} could not be made." if lost else ".")
        )
    elif own:
        notes.append(
            "Exploratory: these comparisons were not declared as primary; p-values are not "
            "corrected for their number."
        )
    counts = {v.ds.sizes["run"] for v in study.variants(setting)}
    if counts == {1}:
        notes.append("One seed per variant: no interval and no test is possible.")
    accuracy = study.get("generalization", setting)
    if accuracy is not None and "test_correct" in accuracy and study.metric == "test_accuracy":
        examples = accuracy.sizes["example"]
        mean = float(np.nanmean(accuracy[study.metric].values))
        error = stats.sampling_error(mean, examples)
        notes.append(
            f"The test set has {examples} examples: its choice alone gives one accuracy a standard "
            f"error of {100 * error:.1f} points, which intervals over seeds do not contain."
        )
    if study.has("top_eigenvalues", setting):
        notes.append(
            "λ₁, trace and sharpness: geometric mean over seeds with its 95 % interval; ± after λ₁ "
            "is the largest residual ‖Hv − λv‖. "
            f"All on the same {_examples(study)} training examples."
        )
    return notes


def _examples(study: Study) -> str:
    return runs.provenance(study.data["top_eigenvalues"], "num_examples") or "fixed"
