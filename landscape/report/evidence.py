"""The evidence table: every variant with its numbers, differences and decisions, one setting."""

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr

from landscape import stats
from landscape.metrics import FLATNESS, METRICS, Metric
from landscape.plot import runs
from landscape.plot.compared import Values
from landscape.report import words
from landscape.report.family import Claim, Difference, Family
from landscape.report.study import StudyResults
from landscape.stats import Interval


@dataclass(frozen=True)
class Cell:
    """One cell of the evidence table: the number, the small print under it, what it asserts."""

    main: str
    note: str = ""
    emphasis: str = ""
    claims: tuple[Claim, ...] = ()


@dataclass(frozen=True)
class Table:
    """Rows of cells under headed columns, with footnotes."""

    setting: str
    title: str
    head: tuple[Cell, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...]

    @property
    def claims(self) -> tuple[Claim, ...]:
        """Everything that its cells assert."""
        return tuple(claim for row in self.rows for cell in row for claim in cell.claims)


class _Columns:
    """Grows the table column by column; a column without any cell is not added."""

    def __init__(self, study: StudyResults, setting: str):
        self.head = [Cell("Variant")]
        self.rows = {
            v.id: [Cell(v.label, _row_note(study, setting, v))] for v in study.variants(setting)
        }

    def add(self, title: str, note: str, cells: dict[str, Cell]) -> None:
        if cells:
            self.head.append(Cell(title, note))
            for name, row in self.rows.items():
                row.append(cells.get(name, Cell(words.MISSING)))


def _row_note(study: StudyResults, setting: str, v: runs.VariantRuns) -> str:
    seeds = study.seeds(setting, v.id, v.ds.sizes["run"])
    return f"{seeds}, control" if study.is_control(v.id, setting) else seeds


def table(family: Family, setting: str) -> Table:
    """Variant x (metric, differences, loss, curvature, sharpness, radius, time), one setting."""
    study = family.study
    columns = _Columns(study, setting)
    order = _metric_columns(family, setting, columns)
    if study.metric != "train_loss":
        losses = family.values.get((setting, "train_loss"))
        columns.add("Training loss", "nats [95 % CI]", _mean_cells(losses))
    _flatness_columns(family, setting, columns)
    _cost_columns(study, setting, columns)
    rows = sorted(columns.rows, key=lambda name: (-_known(order.get(name, math.nan)), name))
    return Table(
        setting,
        study.title(setting),
        tuple(columns.head),
        tuple(tuple(columns.rows[name]) for name in rows),
        tuple(_notes(family, setting)),
    )


def _metric_columns(family: Family, setting: str, columns: _Columns) -> dict[str, float]:
    """The metric and its differences; returns each row's mean, larger is better."""
    study = family.study
    values = family.values.get((setting, study.metric))
    if values is None:
        return {}
    unit = "%" if values.metric.is_share else values.metric.units
    columns.add(
        words.sentence(values.metric.name), f"{unit} [95 % CI of this mean]", _mean_cells(values)
    )
    for reference in study.references(setting):
        found = {one.a: one for one in family.to(setting, reference)}
        cells = {name: difference_cell(one) for name, one in found.items()}
        if cells:
            rows = study.rows_of(setting, reference)
            cells |= {name: Cell("0", "reference") for name in rows if name not in cells}
            title = f"Δ to {study.label(setting, reference)}"
            columns.add(title, f"{_unit(values.metric)}, adjusted interval and p", cells)
    return {row: values.mean(row) for row in columns.rows}


def _unit(metric: Metric) -> str:
    return "points" if metric.is_share else metric.units


def _known(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _mean_cells(values: Values | None) -> dict[str, Cell]:
    if values is None:
        return {}
    cells, write = {}, words.percent if values.metric.is_share else words.number
    for row in values.raw:
        ci = stats.metric_ci(values.metric, values.plain(row))
        note = words.interval(ci, write) + _failed(ci)
        cells[row] = Cell(write(ci.estimate), note.strip())
    return cells


def _failed(ci: Interval) -> str:
    return f" ({ci.missing} of {ci.n + ci.missing} not finite)" if ci.missing else ""


def difference_cell(one: Difference) -> Cell:
    """A difference with its adjusted interval and p, emphasized where it is resolved."""
    decision = one.decision
    lines = [words.effect(one.metric, decision)]
    if decision.failed:
        lines.append(f"{words.count(decision.failed, 'run')} failed: not decided")
    elif decision.equivalent:
        lines.append(f"{words.p_value(decision.p)}, equal within the margin")
    else:
        lines.append(words.p_value(decision.p))
    emphasis = {1: "better", -1: "worse", 0: ""}[one.sign]
    note = "\n".join(line for line in lines if line)
    main = words.plain_difference(one.metric, one.plain).removesuffix(" points")
    return Cell(main, note if decision.interval.n else "no common seed", emphasis, one.claims)


def _flatness_columns(family: Family, setting: str, columns: _Columns) -> None:
    study = family.study
    for key in FLATNESS:
        values = family.values.get((setting, key))
        if values is None:
            continue
        cells = {row: _flatness_cell(family, setting, values, row) for row in values.raw}
        title = words.sentence(METRICS[key].name)
        if METRICS[key].measurement == "sharpness":
            title += f" at ρ = {words.trimmed(study.radius)}"
        mode = study.mode(METRICS[key].measurement)
        columns.add(title, f"nats, BatchNorm {mode}", cells)


def _flatness_cell(family: Family, setting: str, values: Values, row: str) -> Cell:
    """Mean (geometric where all values have logarithms) and the ratio to the reference."""
    ci = stats.metric_ci(values.metric, values.plain(row))
    lines = [] if values.metric.scale == "log" else ["arithmetic mean"]
    reference = family.base(setting, values.metric.key)
    partner = family.study.partner(setting, row, reference)
    one = family.get(setting, row, partner, values.metric.key) if partner else None
    if one is not None and one.decision.tested:
        text = words.effect(values.metric, one.decision)
        lines.append(text.replace(f"{values.metric.what} ×", "ratio"))
    if values.metric.key == "lambda1":
        lines.append(_residual(family.study, setting, row))
    if ci.missing:
        lines.append(_failed(ci).strip())
    emphasis = {1: "better", -1: "worse", 0: ""}[one.sign if one else 0]
    note = "\n".join(line for line in lines if line)
    return Cell(words.number(ci.estimate), note, emphasis, one.claims if one else ())


def _residual(study: StudyResults, setting: str, name: str) -> str:
    residuals = study.values("top_eigenvalues", "residual_norm", setting, rank=0)
    if name not in residuals:
        return ""
    worst = float(np.nanmax(residuals[name].residual_norm.values, initial=-math.inf))
    flags = study.values("top_eigenvalues", "converged", setting, rank=0)
    loose = int((np.nan_to_num(flags[name].converged.values.astype(float)) == 0).sum())
    said = f"± {words.number(worst, 2)}" if math.isfinite(worst) else ""
    return said + (f"\n{loose} not converged" if loose else "")


def _cost_columns(study: StudyResults, setting: str, columns: _Columns) -> None:
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


def _notes(family: Family, setting: str) -> list[str]:
    study, notes = family.study, []
    counts = {v.ds.sizes["run"] for v in study.variants(setting)}
    found = [one for (where, *_), one in family.made.items() if where == setting]
    tested = [one for one in found if one.decision.tested]
    if counts == {1}:
        notes.append("One seed per variant: no interval and no test is possible.")
    elif tested:
        notes.append(_how_decided(family, tested))
        notes.append(study.declared)
    notes += _means(family, setting, counts)
    notes += _without_spread(family, setting)
    if (setting, study.metric) in family.values:
        notes.append(_margin_note(family, setting))
    notes += _outlying(family, setting)
    notes += _kinks(study, setting)
    if study.has("top_eigenvalues", setting):
        means = (
            "λ₁, trace and sharpness: geometric mean over seeds, and below it the ratio to the "
            "first reference with its adjusted interval; "
        )
        notes.append(
            f"{'' if counts == {1} else means}± after λ₁ is the largest residual ‖Hv − λv‖. "
            f"λ₁, trace and sharpness are of the same {_examples(study)} training examples."
        )
    return notes


def _means(family: Family, setting: str, counts: set[int]) -> list[str]:
    """On which scale the intervals of the means were made, and what two seeds can say."""
    shown = [
        values.metric
        for key in dict.fromkeys((family.study.metric, "train_loss"))
        if (values := family.values.get((setting, key))) is not None
    ]
    if max(counts) < 2 or not shown:
        return []
    said = {
        f"of {m.name} arithmetic, its interval made on the logit"
        if m.is_share
        else f"of {m.name} {'geometric' if m.scale == 'log' else 'arithmetic'}"
        for m in shown
    }
    few = " Two seeds: such an interval is mostly wide, and tells little." if 2 in counts else ""
    return [f"Means over seeds: {'; '.join(sorted(said))}.{few}"]


def _without_spread(family: Family, setting: str) -> list[str]:
    """Whose mean has no interval because its seeds gave one value, in the columns of means."""
    said = []
    for key in dict.fromkeys((family.study.metric, "train_loss")):
        values = family.values.get((setting, key))
        same = [] if values is None else [
            family.study.label(setting, row) for row in values.raw
            if len(found := [v for v in values.plain(row) if math.isfinite(v)]) > 1
            and len(set(found)) == 1
        ]  # fmt: skip
        if values is not None and same:
            said.append(f"{values.metric.name} of {words.listing(same)}")
    return [
        f"No interval, as all seeds gave the same value: {'; '.join(said)}. That is no proof that "
        f"further seeds would."
    ] if said else []  # fmt: skip


def _how_decided(family: Family, tested: list[Difference]) -> str:
    primary, other = family.size
    methods = list(dict.fromkeys(one.decision.method for one in tested if one.decision.method))
    how = {
        "sign flips": "by the largest |t| over all sign flips of whole seeds",
        "Student": "by Student's law with Šidák's bound, as not every comparison has eight seeds",
    }
    smallest = max((one.decision.smallest_p for one in tested), default=math.nan)
    least = f" No p can be below {words.number(smallest, 2)}." if smallest > 0 else ""
    compared = METRICS[family.study.metric].name
    return (
        f"Differences are paired by seed and carry the choice of test examples where those are "
        f"known. {_draws(family.study)}"
        f"Intervals and p are adjusted for everything this page states: "
        f"{words.count(primary, 'comparison')} of {compared} in the first setting and "
        f"{words.count(other, 'other')} (flatness, radius and what else explains), "
        f"{' and '.join(how[name] for name in methods)}. The page as a whole is made to state "
        f"something false in at most one study of twenty. A difference that “would have been seen” "
        f"is resolved four times in five by as many seeds.{least}"
    )


def _draws(study: StudyResults) -> str:
    """What else than initial weights and batches differs between seeds; "" where nothing does."""
    said = []
    for setting in study.settings:
        if drawn := study.redrawn(setting):
            where = f" ({study.title(setting)})" if len(study.settings) > 1 else ""
            said.append(
                f"Every seed has drawn {drawn} anew, the same for all variants{where}, so that "
                f"intervals are over seeds, {drawn.replace('split', 'splits')}. "
            )
    if any("split" in study.redrawn(setting) for setting in study.settings):
        said.append(
            "Redrawn splits of one data set have examples in common, and intervals over them speak "
            "of this data set (doi:10.1023/A:1024068626366); a test set that a seed has drawn is "
            "part of the spread over seeds. "
        )
    return "".join(said)


def _margin_note(family: Family, setting: str) -> str:
    study = family.study
    metric = family.values[setting, study.metric].metric
    share = study.margin if study.margin is not None else metric.margin
    if not share:
        return (
            f"Nothing is called as good as another: {metric.name} is not positive in every run, so "
            f"that a share of it means nothing. `margin` in [comparisons] would say how many "
            f"{metric.units} count as none."
        )
    size = (
        f"{100 * share:.3g} % of the {metric.what}"
        if metric.scale != "linear"
        else (
            f"{100 * share:.3g} point{'' if share == 0.01 else 's'}"
            if metric.is_share
            else f"{share:.3g} {metric.units}"
        )
    )
    origin = "declared in the study file" if study.margin is not None else "the default"
    text = f"As good as: the adjusted interval lies within {size} ({origin})."
    accuracy = study.get("generalization", setting)
    if study.metric == "test_accuracy" and accuracy is not None and "test_correct" in accuracy:
        examples = accuracy.sizes["example"]
        mean = float(np.nanmean(accuracy.test_accuracy.values))
        # Half an example is added on either side: none wrong of a few is no certainty.
        smooth = (mean * examples + 0.5) / (examples + 1)
        error = stats.sampling_error(smooth, examples)
        relative = 100 * error / (1 - smooth)
        text += (
            f" {'Each' if 'split' in study.redrawn(setting) else 'The'} test set has "
            f"{words.count(examples, 'example')}; their choice alone gives one accuracy a "
            f"standard error of {100 * error:.1f} points, {relative:.0f} % of the error."
        )
    return text


def _kinks(study: StudyResults, setting: str) -> list[str]:
    """Gaussian sharpness over ½ρ² tr H/P by radius: 1 where the loss is smooth, more at kinks."""
    size = (
        runs.provenance(study.data["sharpness"], "num_parameters")
        if "sharpness" in study.data
        else ""
    )
    traces = study.values("hessian_trace", "trace", setting)
    finite = study.values("sharpness", "gaussian", setting)
    found: dict[float, list[float]] = {}
    for row, ds in finite.items() if size.isdigit() and int(size) else ():
        trace = dict(zip(traces[row].run.values, traces[row].trace.values, strict=True)
                     ) if row in traces else {}  # fmt: skip
        for run, values in zip(ds.run.values, ds.gaussian.values, strict=True):
            for rho, value in zip(ds.rho.values, values, strict=True):
                quadratic = 0.5 * float(rho) ** 2 * float(trace.get(run, math.nan)) / int(size)
                if quadratic > 0 and math.isfinite(value):
                    found.setdefault(float(rho), []).append(float(value) / quadratic)
    if not found:
        return []
    shown = "; ".join(
        f"ρ = {words.trimmed(rho)}: {words.number(float(np.median(ratios)), 2)} "
        f"[{words.number(min(ratios), 2)} to {words.number(max(ratios), 2)}]"
        for rho, ratios in sorted(found.items())
    )
    return [
        f"Gaussian sharpness over ½ρ² tr H/P, median and range over runs: {shown}. At 1 it is "
        f"curvature alone. The rest may be of kinks, which the Hessian does not see, of higher "
        f"orders, or noise: both are estimates from a few directions."
    ]


def _outlying(family: Family, setting: str) -> list[str]:
    study, said = family.study, []
    for key in (study.metric, "train_loss", *FLATNESS):
        values = family.values.get((setting, key))
        if values is not None:
            said += [
                f"{study.label(setting, row)}, seed {seed}: {values.metric.name} "
                f"{words.value(values.metric, value)}"
                for row, seed, value in values.outlying
            ]
    if not said:
        return []
    shown = "; ".join(said[:6]) + (f" and {len(said) - 6} more" if len(said) > 6 else "")
    return [f"Far from the other runs of their variant and seed, and kept: {shown}."]


def _examples(study: StudyResults) -> str:
    return runs.provenance(study.data["top_eigenvalues"], "num_examples") or "fixed"
