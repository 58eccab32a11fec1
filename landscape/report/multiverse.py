"""In what share of the specifications a verdict holds, and the verdict along epochs and radii.

A specification is one way in which the same question could have been asked: another measure of
flatness, another radius of sharpness, the other BatchNorm mode, one value of an axis of the study
(epochs, rho), or another study of the same question (`scans/`). Each is weighed by the rules of the
page, as a page of its own. Nothing is tested here: the share is a description.
"""

import csv
import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from landscape import stats
from landscape.errors import LandscapeError
from landscape.metrics import FLATNESS, METRICS
from landscape.report import words
from landscape.report.axes import AxisTable
from landscape.report.family import Family
from landscape.report.rules import weigh
from landscape.report.study import StudyResults
from landscape.storage import write_atomically

TWIN = "flatness_other_bn"
# The part of a twin that stands in for each measurement, and the variables that it has of it.
_TWINS = {
    "top_eigenvalues": ("eigenvalue", "residual_norm", "converged"),
    "hessian_trace": ("trace",),
    "sharpness": ("gaussian",),
}
WHOLE = "all rows"


@dataclass(frozen=True)
class Specification:
    """The question asked in one way, and what a page that asked so would say.

    study, setting, part: which rows ("epochs = 20"). bn: BatchNorm mode of the measure. measure: a
    row of the metric table, at `radius` if it has one. word: of the verdict. r, given_r: dose and
    response over `variants`, plain and given the covariates. better of counted: variants resolved
    better than the first reference. lowest_loss, highest_loss: of the means over seeds of training
    loss, among rows that are no controls.
    """

    study: str
    setting: str
    part: str
    bn: str
    measure: str
    radius: float
    word: str
    r: float
    given_r: float
    variants: int
    better: int
    counted: int
    lowest_loss: float
    highest_loss: float


def specifications(study: StudyResults, setting: str) -> list[Specification]:
    """Every way in which a study asks whether flatter is better, weighed."""
    found = []
    for part, rows in parts(study, setting):
        for bn, at in _modes(study.of_variants(rows), setting):
            for radius, one in _radii(at):
                found += _weighed(one, setting, part, bn, radius)
    # A measure without a radius is the same at every one.
    return list({_identity(one): one for one in found}.values())


def _identity(one: Specification) -> tuple[Any, ...]:
    return (one.study, one.setting, one.part, one.bn, one.measure, str(one.radius))


def _weighed(
    study: StudyResults, setting: str, part: str, bn: str, radius: float
) -> Iterator[Specification]:
    family = Family.of(study)
    weighed = [one for one in weigh(family, setting) if one.hypothesis.quantity in FLATNESS]
    references = study.references(setting)
    against = family.counted(family.to(setting, references[0])) if references else []
    losses = family.values.get((setting, "train_loss"))
    known = [
        stats.metric_ci(losses.metric, losses.plain(row)).estimate
        for row in (study.rows(setting) if losses is not None else ())
        if not study.is_control(row, setting) and losses is not None
    ]
    known = [loss for loss in known if math.isfinite(loss)] or [math.nan]
    for one in weighed:
        finite = METRICS[one.hypothesis.quantity].measurement == "sharpness"
        yield Specification(
            str(study.resolved.get("name") or study.folder.root.name), setting, part, bn,
            one.hypothesis.quantity, radius if finite else math.nan, one.word, one.plain.r,
            one.given.r, one.plain.n, sum(d.sign > 0 for d in against), len(against), min(known),
            max(known),
        )  # fmt: skip


def parts(study: StudyResults, setting: str) -> Iterator[tuple[str, list[str]]]:
    """All rows, and those at one value of each axis; rows without the axis are in every part.

    Where variants have values of their own along an axis (each its radii), a part is a place: the
    first, the second, ... value of each.
    """
    rows = study.variants(setting)
    yield WHOLE, [v.id for v in rows]
    for axis in dict.fromkeys(key for v in rows for key in v.axes):
        having = [v for v in rows if axis in v.axes]
        grids = {
            v.family: sorted({w.axes[axis] for w in having if w.family == v.family}, key=_sortable)
            for v in having
        }
        shared = len({tuple(map(str, grid)) for grid in grids.values()}) == 1
        count = min(map(len, grids.values()))
        if count < 2 or (not shared and count != max(map(len, grids.values()))):
            continue
        for place in range(count):
            kept = [
                v.id for v in rows
                if axis not in v.axes or v.axes[axis] == grids[v.family][place]
            ]  # fmt: skip
            value = next(iter(grids.values()))[place]
            said = f"{axis} = {value}" if shared else f"{axis}: value {place + 1} of {count}"
            yield said, kept


def _sortable(value: Any) -> tuple[bool, float, str]:
    number = isinstance(value, int | float)
    return not number, float(value) if number else 0.0, str(value)


def _modes(study: StudyResults, setting: str) -> Iterator[tuple[str, StudyResults]]:
    """The study as measured, and with flatness as its twin in the other mode has it."""
    own = next((mode for name in _TWINS if (mode := study.mode(name))), "")
    yield own, study
    twin = study.data.get(TWIN)
    if twin is None or not study.has(TWIN, setting):
        return
    data: dict[str, xr.Dataset] = {
        name: ds for name, ds in study.data.items() if name not in (*_TWINS, TWIN)
    }
    for name, variables in _TWINS.items():
        if variables[0] in twin:
            data[name] = twin[[v for v in variables if v in twin]]
    yield study.mode(TWIN), replace(study, data=data)


def _radii(study: StudyResults) -> Iterator[tuple[float, StudyResults]]:
    """The study at each radius of its sharpness alone."""
    ds = study.data.get("sharpness")
    if ds is None or "rho" not in ds.dims:
        yield math.nan, study
        return
    for place, radius in enumerate(ds.rho.values):
        alone = study.data | {"sharpness": ds.isel(rho=[place])}
        yield float(radius), replace(study, data=alone)


def holds(found: Sequence[Specification], word: str) -> str:
    """In how many specifications the word is the same, in words; "" with fewer than two."""
    if len(found) < 2:
        return ""
    same = sum(one.word == word for one in found)
    plain = [one for one in found if math.isfinite(one.r)]
    given = [one for one in found if math.isfinite(one.given_r)]
    ways = [words.count(len({one.measure for one in found}), "measure")]
    if radii := {one.radius for one in found if math.isfinite(one.radius)}:
        ways.append(words.count(len(radii), "radius", "radii") + " of sharpness")
    if len(modes := {one.bn for one in found}) > 1:
        ways.append(f"{len(modes)} BatchNorm modes")
    if len(cuts := {(one.study, one.part) for one in found}) > 1:
        ways.append(f"{len(cuts)} sets of rows")
    said = (
        f"The word is “{word}” in {same} of {words.count(len(found), 'specification')} "
        f"({', '.join(ways)})"
    )
    if plain:
        said += f"; r > 0 in {sum(one.r > 0 for one in plain)} of {len(plain)}"
    if given:
        said += f", given the covariates in {sum(one.given_r > 0 for one in given)} of {len(given)}"
    return f"{said}. A description, without a test."


def specification_table(
    found: Sequence[Specification], titles: Mapping[str, str]
) -> AxisTable | None:
    """What each part of a study, and each scan, says; None where all is one part.

    titles: the words for a setting.
    """
    groups: dict[tuple[str, str, str, str], list[Specification]] = {}
    for one in found:
        groups.setdefault((one.study, one.setting, one.part, one.bn), []).append(one)
    if len({key[::2] for key in groups}) < 2 and len({key[3] for key in groups}) < 2:
        return None
    measures = [key for key in FLATNESS if any(one.measure == key for one in found)]
    head = (
        "study", "rows", "BatchNorm", "resolved better than the first reference",
        "training loss, lowest to highest variant", *(METRICS[key].title for key in measures),
    )  # fmt: skip
    rows = []
    for (study, setting, part, bn), several in groups.items():
        one = several[0]
        where = f"{part} ({titles[setting]})" if titles.get(setting) else part
        losses = f"{words.number(one.lowest_loss)} to {words.number(one.highest_loss)}"
        rows.append((
            study, where, bn or words.MISSING, f"{one.better} of {one.counted}", losses,
            *(_said([s for s in several if s.measure == key]) for key in measures),
        ))  # fmt: skip
    note = (
        "Whether “better because flatter” holds, by rows, BatchNorm mode and measure: the word, "
        "and the correlation r of flatness and outcome over variants (their range over radii). "
        "Each line is weighed as a page of its own would be; lines share runs, and nothing is "
        "tested between them."
    )
    return AxisTable("Does the verdict depend on how it is asked?", head, tuple(rows), note)


def _said(found: Sequence[Specification]) -> str:
    if not found:
        return words.MISSING
    said = " or ".join(dict.fromkeys(one.word for one in found))
    r = sorted(one.r for one in found if math.isfinite(one.r))
    if not r:
        return said
    ends = [f"{value:+.2f}".replace("-", "−") for value in (r[0], r[-1])]
    return f"{said}, r = {ends[0]}" + (f" to {ends[1]}" if ends[0] != ends[1] else "")


def write(found: Iterable[Specification], path: Path) -> Path:
    """The specifications as CSV, a row each: what another study's page reads from `scans/`."""
    names = [one.name for one in dataclasses.fields(Specification)]

    def write_rows(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(names)
            writer.writerows([_cell(getattr(one, name)) for name in names] for one in found)

    return write_atomically(path, write_rows)


def _cell(value: Any) -> Any:
    return float(f"{value:.6g}") if isinstance(value, float | np.floating) else value


def scans(folder: Path) -> list[Specification]:
    """The specifications of other studies that lie in the folder `scans` of this one."""
    return [one for path in sorted(folder.glob("[!.]*.csv")) for one in _read(path)]


def _read(path: Path) -> Iterator[Specification]:
    kinds: dict[str, Any] = {one.name: one.type for one in dataclasses.fields(Specification)}
    try:
        with path.open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        made = [Specification(**{k: kinds[k](row[k]) for k in kinds}) for row in rows]
    except (KeyError, ValueError, TypeError, UnicodeDecodeError, csv.Error) as error:
        raise LandscapeError(
            f"{path} is no table of specifications ({error!r}); put there the "
            f"figures/data/specifications.csv of a study, or remove it."
        ) from None
    yield from made
