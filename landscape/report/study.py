"""A study as the report reads it: what was asked, run, measured, and what is missing."""

import datetime
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from landscape import results
from landscape.errors import LandscapeError
from landscape.metrics import METRICS
from landscape.plot import runs
from landscape.plot.figures.outcome.headline import middle, pair_by_seed
from landscape.report import words
from landscape.storage import StudyFolder, sessions

# Coordinates along `run` that say which run it is, beside its name and seed.
_NAMES = ("variant", "label", "setting", "family", "axes", "place", "train_seconds")


@dataclass(frozen=True)
class StudyResults:
    """resolved.json and every combined result of a study folder.

    data: combined results by measurement. trainings: one row per run of how its training ended.
    digests: those that the files of the results carry.

    Example:
        >>> loaded = report.StudyResults.read(finished)
        >>> loaded.settings, sorted(loaded.data)[:2]
        (['default'], ['adaptive_sharpness', 'alignment'])
    """

    folder: StudyFolder
    resolved: dict[str, Any]
    data: dict[str, xr.Dataset]
    trainings: xr.Dataset | None = None  # how every training went, also those without results
    digests: dict[str, str | None] = field(default_factory=dict)  # of the results that were read

    @classmethod
    def read(cls, folder: StudyFolder) -> "StudyResults":
        """Read a study folder; one without any result is refused."""
        resolved = folder.check()
        names = sorted(path.stem for path in folder.results.glob("[!.]*.nc"))
        names = [name for name in names if not name.startswith("along_")]  # of the others
        found = {name: results.read(folder.results / f"{name}.nc") for name in names}
        data = {name: runs.as_runs(stored.ds) for name, stored in found.items()}
        trainings = data.pop("trainings", None)
        if not data:
            raise LandscapeError(
                f"{folder.root} has no results yet, so there is nothing to report. "
                f"`landscape run` or `landscape measure` makes them."
            )
        digests = {name: stored.sha256 for name, stored in found.items()}
        return cls(folder, resolved, data, trainings, digests)

    def of_variants(self, chosen: Sequence[str]) -> "StudyResults":
        """The study as if these variants were all it had; runs without a variant go too."""
        kept = {
            name: ds.isel(run=np.flatnonzero(np.isin(ds.variant.values.astype(str), list(chosen))))
            for name, ds in self.data.items()
        }
        return replace(self, data={name: ds for name, ds in kept.items() if ds.sizes["run"]})

    @cached_property
    def settings(self) -> list[str]:
        """Settings that have results, the one of the declared comparisons first."""
        declared = list(self.resolved.get("settings") or {})
        found = [name for ds in self.data.values() for name in runs.settings(ds)]
        present = list(dict.fromkeys([*(s for s in declared if s in found), *found]))
        primary = (self.comparisons or {}).get("setting")
        return sorted(present, key=lambda name: name != primary)

    @property
    def comparisons(self) -> dict[str, Any]:
        """What was declared as the primary comparisons, possibly nothing."""
        return self.resolved.get("comparisons") or {}

    @cached_property
    def metric(self) -> str:
        """The variable of `generalization` that is compared: the declared one if it is there."""
        asked = self.asked_metric
        measured = self.data.get("generalization", ())
        # A checkpoint may come with training data alone.
        found = (name for name in (asked, "val_accuracy", "train_accuracy") if name in measured)
        return next(found, asked)

    @cached_property
    def loss_unit(self) -> str | None:
        """In which unit losses are said: nats of a log-likelihood; see `results.units`."""
        found = {results.units.of_result(ds) for ds in self.data.values()}
        return results.units.OTHER if results.units.OTHER in found else None

    @property
    def asked_metric(self) -> str:
        """The metric that was declared, whether or not it was measured."""
        declared = (self.resolved.get("declared") or {}).get("metric", "test_accuracy")
        return str(self.comparisons.get("metric", declared))

    @cached_property
    def recipes(self) -> dict[str, str]:
        """Variant id to recipe."""
        known = self.resolved.get("variants") or {}
        found = {str(v) for ds in self.data.values() for v in ds.variant.values}
        return {v: str((known.get(v) or {}).get("recipe", v)) for v in [*known, *sorted(found)]}

    def recipe(self, row: str) -> str:
        """Recipe of a row; "" where it is not known."""
        return self.recipes.get(row, "")

    def is_control(self, row: str, setting: str) -> bool:
        """Whether a row is there to be compared with: masks at random or by |g|, SGD stopped early.

        Controls are never counted among the variants. SGD that trained as long as a reference, or
        nobody knows how long, is a variant.
        """
        if self.recipe(row) in ("random_mask", "topk_gradient"):
            return True
        named = [self.rows_of(setting, name) for name in self.references(setting)]
        if self.recipe(row) != "sgd" or any(row in rows for rows in named):
            return False
        for name, rows in zip(self.references(setting), named, strict=True):
            partner = self.partner(setting, row, name)
            # One that does not go along the epochs of a reference stopped before its shortest.
            known = [self._epochs(setting, other) for other in ([partner] if partner else rows)]
            if known and self._epochs(setting, row) < min(known):
                return True
        return False

    def _epochs(self, setting: str, row: str) -> float:
        """Epochs that a row was trained for; NaN where that is not known."""
        if (setting, row) in self._trained_for:
            return self._trained_for[setting, row]
        own = ((self.resolved.get("variants") or {}).get(row) or {}).get("training") or {}
        return float(own.get("epochs", math.nan))

    @cached_property
    def _trained_for(self) -> dict[tuple[str, str], float]:
        """Epochs by setting and row, of the runs that this study trained."""
        return {
            (str(run.get("setting", "")), str(run["variant"])): float(run["training"]["epochs"])
            for run in self.resolved.get("runs", [])
            if (run.get("training") or {}).get("epochs") is not None
        }

    def by_variant(self, setting: str, rows: Sequence[str]) -> dict[str, list[str]]:
        """Rows by the variant of the file that they are values of."""
        found: dict[str, list[str]] = {}
        for v in self.variants(setting):
            if v.id in rows:
                found.setdefault(v.family or v.id, []).append(v.id)
        return found

    def noun(self, setting: str) -> str:
        """What its rows are called where they are counted: values of an axis are no variants."""
        rows = self.rows(setting)
        return "variant" if len(self.by_variant(setting, rows)) == len(rows) else "row"

    def controls(self, setting: str, recipe: str) -> list[str]:
        """Rows that are controls by one recipe."""
        rows = [v.id for v in self.variants(setting)]
        return [r for r in rows if self.recipe(r) == recipe and self.is_control(r, setting)]

    def control_families(self, setting: str, recipe: str) -> list[str]:
        """Variants of the file whose rows are controls by one recipe."""
        rows = set(self.controls(setting, recipe))
        return list(dict.fromkeys(v.family or v.id for v in self.variants(setting) if v.id in rows))

    def title(self, setting: str) -> str:
        """The words for a setting."""
        return str(
            ((self.resolved.get("settings") or {}).get(setting) or {}).get("title") or setting
        )

    def redrawn(self, setting: str) -> str:
        """What every seed has drawn anew, in words: "split", "split and label noise", or ""."""
        own = (self.resolved.get("settings") or {}).get(setting) or {}
        noisy = own.get("label_noise") or "label_noise" in (self.resolved.get("axes") or {})
        parts = [str(part) for part in own.get("redraw") or ()]
        # A callable of the user's may make noise that the file does not say.
        kept = [p for p in parts if p != "label_noise" or noisy or ":" in str(own.get("data"))]
        return words.listing([part.replace("_", " ") for part in kept])

    def has(self, name: str, setting: str) -> bool:
        """Whether a measurement has runs in a setting."""
        return name in self.data and setting in runs.settings(self.data[name])

    def get(self, name: str, setting: str) -> xr.Dataset | None:
        """One measurement in one setting."""
        return self._parts.get((name, setting))

    @cached_property
    def _parts(self) -> dict[tuple[str, str], xr.Dataset]:
        """By measurement and setting: a page asks for each of them many times."""
        found = {}
        for name, whole in self.data.items():
            there = runs.settings(whole)
            for setting in there:
                part = whole if len(there) == 1 else runs.in_setting(whole, setting)
                found[name, setting] = part
        return found

    def variants(self, setting: str) -> list[runs.VariantRuns]:
        """Variants of a setting, from the measurement that has most runs."""
        return self._variants.get(setting, [])

    @cached_property
    def _variants(self) -> dict[str, list[runs.VariantRuns]]:
        found = {}
        for setting in self.settings:
            present = [ds for name in self.data if (ds := self.get(name, setting)) is not None]
            found[setting] = list(runs.variants(max(present, key=lambda ds: ds.sizes["run"])))
        return found

    def label(self, setting: str, name: str) -> str:
        """The words for a row, or for a variant with several rows."""
        found = next((v.label for v in self.variants(setting) if v.id == name), "")
        families = self.resolved.get("families") or {}
        return found or str((families.get(name) or {}).get("label", name))

    def seeds(self, setting: str, name: str, have: int) -> str:
        """Seeds of a row that a number rests on: "5 seeds", or "3 of 5 seeds, 2 diverged"."""
        ds = self.trainings
        here = [] if ds is None else ds.status.values[
            (ds.setting.values == setting) & (ds.variant.values == name)
        ].tolist()  # fmt: skip
        lost = here.count("diverged")
        if not lost and have >= len(here):
            return words.count(have, "seed")
        return f"{have} of {words.count(len(here), 'seed')}" + (
            f", {lost} diverged" if lost else ""
        )

    def diverged(self, setting: str, name: str) -> list[int]:
        """Seeds of a row whose training diverged: they are counted, and are no evidence."""
        ds = self.trainings
        if ds is None:
            return []
        here = (ds.setting.values == setting) & (ds.variant.values == name)
        return [int(seed) for seed in ds.seed.values[here & (ds.status.values == "diverged")]]

    def rows_of(self, setting: str, name: str) -> list[str]:
        """The row called so, or the rows of the variant called so."""
        found = self.variants(setting)
        return [v.id for v in found if v.id == name] or [v.id for v in found if v.family == name]

    def partner(self, setting: str, name: str, reference: str) -> str | None:
        """The row of a reference that a row is compared with (`runs.partner`)."""
        found = self.variants(setting)
        own = next((v for v in found if v.id == name), None)
        other = None if own is None else runs.partner(found, own, reference)
        return None if other is None else other.id

    def row_pairs(self, setting: str, a: str, b: str) -> list[tuple[str, str]]:
        """Rows of a with their partners among those of b; or of b with theirs among a's."""
        ahead = [(row, self.partner(setting, row, b)) for row in self.rows_of(setting, a)]
        back = [(self.partner(setting, row, a), row) for row in self.rows_of(setting, b)]
        found = [(x, y) for x, y in (*ahead, *back) if x is not None and y is not None]
        return list(dict.fromkeys(found))

    def references(self, setting: str) -> list[str]:
        """Reference variants: the declared ones, else the first of recipes sgd and sam.

        Each is a variant of the file or one of its rows; `partner` finds the row to compare with.
        """
        rows = self.variants(setting)
        present = list(dict.fromkeys([*(v.family or v.id for v in rows), *(v.id for v in rows)]))
        declared = [str(name) for name in self.comparisons.get("references", [])]
        if not declared:
            for recipe in ("sgd", "sam"):
                declared += [v.family or v.id for v in rows if self.recipes.get(v.id) == recipe][:1]
        return [name for name in declared if name in present] or present[:1]

    def rows(self, setting: str) -> list[str]:
        """Rows of a setting by name."""
        return [v.id for v in self.variants(setting)]

    @property
    def declared(self) -> str:
        """Whether what is compared was declared before the first training, in words."""
        now = (self.resolved.get("declared") or {}).get("sha256", "")
        first = self.resolved.get("declared_first", "")
        if not now or not first:
            return "It is not known whether this was declared before the first training."
        if self.metric != self.asked_metric:
            asked, found = (METRICS[key].name for key in (self.asked_metric, self.metric))
            return (
                f"Declared was {asked}, which no run has (sha256 {first[:12]}); {found} is "
                f"compared instead, which was not declared, and all of this is exploratory."
            )
        if now == first:
            return f"Declared before the first training (sha256 {now[:12]}).{self._since()}"
        return (
            f"The declaration was changed after the first training (sha256 {first[:12]} became "
            f"{now[:12]}): metric, margin, comparisons, seeds or predicted directions are not as "
            f"they were fixed before, and all of this is exploratory."
        )

    def _since(self) -> str:
        """Which rows came, went or changed after the first training; "" where none did."""
        first, declared = self.resolved.get("rows_first"), self.resolved.get("declared") or {}
        if not isinstance(first, dict) or "rows" not in declared:
            return ""
        now, then = _by_place(declared["rows"]), _by_place(first)
        several = len({setting for setting, _ in (*now, *then)}) > 1
        told = {
            "added": [at for at in now if at not in then],
            "left out": [at for at in then if at not in now],
            "changed": [at for at in now if then.get(at) and now[at] and now[at] != then[at]],
        }
        moved = []
        for word, found in told.items():
            names = [row + (f" ({setting})" if several else "") for setting, row in found]
            if names:
                moved.append(f"{_some(names)} {'was' if len(names) == 1 else 'were'} {word}")
        if not moved:
            return ""
        return (
            f" Since then {words.listing(moved)}: which rows are compared was not all fixed before "
            f"a number was seen."
        )

    @cached_property
    def worked(self) -> str:
        """When the last of the runs was worked on, by their own records; "" where none says.

        Not the time of now: the same files give the same page.
        """
        runs_of = (self.folder.run(str(run["run"])) for run in self.resolved.get("runs", []))
        ends = [
            float(line["began"]) + float(line["seconds"])
            for folder in runs_of
            for line in sessions(folder)
            if line.get("run", folder.name) == folder.name
        ]
        if not ends:
            return ""
        last = datetime.datetime.fromtimestamp(max(ends), datetime.UTC)
        return last.strftime("%Y-%m-%d %H:%M UTC")

    @property
    def margin(self) -> float | None:
        """The margin declared for the metric; None for the metric's own."""
        declared = self.comparisons.get("margin")
        return None if declared is None else float(declared)

    def values(self, name: str, variable: str, setting: str, **at: float) -> dict[str, xr.Dataset]:
        """Variant id to a dataset with `variable` along `run`, at the given coordinates."""
        key = (name, variable, setting, tuple(sorted(at.items())))
        if key not in self._picked:
            ds = self.get(name, setting)
            if ds is None or variable not in ds:
                return {}
            here = {k: v for k, v in at.items() if k in ds.dims}
            # Without what names a run: a page splits tables often, and every coordinate costs.
            bare = ds[[variable]].drop_vars(_NAMES, errors="ignore")
            picked = bare.sel(here, method="nearest") if here else bare
            rows = ds.variant.values.astype(str)
            self._picked[key] = {
                str(row): picked.isel(run=np.flatnonzero(rows == row))
                for row in dict.fromkeys(rows)
            }
        return self._picked[key]

    @cached_property
    def _picked(self) -> dict[tuple[Any, ...], dict[str, xr.Dataset]]:
        """What `values` has picked already: a page asks for the same many times."""
        return {}

    @cached_property
    def radius(self) -> float:
        """The radius at which sharpness is tabulated: the middle of the measured ones."""
        return middle(self.data["sharpness"].rho.values) if "sharpness" in self.data else np.nan

    def paired(
        self, per_variant: dict[str, xr.Dataset], a: str, b: str, variable: str
    ) -> tuple[list[int], np.ndarray, np.ndarray]:
        """Seeds that variants a and b share and their values."""
        if a not in per_variant or b not in per_variant:
            return [], np.array([]), np.array([])
        return pair_by_seed(per_variant[a], per_variant[b], variable)

    @cached_property
    def gaps(self) -> list[str]:
        """What is missing, in words: runs, measurements of runs, values that are not finite."""
        listed = [str(run["run"]) for run in self.resolved.get("runs", [])]
        anywhere = {str(run) for ds in self.data.values() for run in ds.run.values}
        gaps = [
            f"Run {run} has no results{self._why_not(run)}."
            for run in listed
            if run not in anywhere
        ]
        for name, ds in self.data.items():
            here = {str(run) for run in ds.run.values}
            absent = [
                run
                for run in listed
                if run in anywhere and run not in here and not self._without(name, run)
            ]
            if absent and not self.first_seed_only(name):
                gaps.append(f"{name}: not measured for {_some(absent)}.")
        for name, variable in (("generalization", "test_loss"), ("top_eigenvalues", "eigenvalue")):
            if name in self.data and variable in self.data[name]:
                table = self.data[name][variable]
                finite = (abs(table) < math.inf).all([dim for dim in table.dims if dim != "run"])
                bad = [str(run) for run in table.run.values[~finite.values]]
                if bad:
                    gaps.append(f"{name}: {variable.replace('_', ' ')} is not finite in "
                                f"{_some(bad)} (diverged); means leave these out.")  # fmt: skip
        return gaps

    def _why_not(self, run: str) -> str:
        ds = self.trainings
        if ds is None or run not in ds.run.values:
            return ""
        message = str(ds.message.values[ds.run.values.tolist().index(run)])
        return f": it {message.rstrip('.')}" if message else ""

    def _without(self, measurement: str, run: str) -> bool:
        """Whether there is nothing to measure: SGD does not perturb, a dense one has no mask."""
        variant = self._variant_of.get(run, "")
        if measurement in ("perturbation", "perturbation_history", "mask_overlap"):
            recipe = self.recipes.get(variant, "")
            # "none" is not known, "package.module:callable" may be an optimizer of any kind.
            return recipe in ("sgd", "none") or ":" in recipe
        return measurement == "mask_persistence" and variant not in {
            str(name) for name in self.data[measurement].variant.values
        }

    @cached_property
    def _variant_of(self) -> dict[str, str]:
        return {str(run["run"]): str(run["variant"]) for run in self.resolved.get("runs", [])}

    @property
    def not_measured(self) -> list[str]:
        """Measurements that a study makes unasked and that no run of this one has."""
        usual = (self.resolved.get("measure") or {}).get("usual", ())
        return [str(name).replace("_", " ") for name in usual if name not in self.data]

    def first_seed_only(self, name: str) -> bool:
        """Whether a measurement was made for one seed per variant where the study has more."""
        return all(
            v.ds.sizes["run"] == 1
            for setting in runs.settings(self.data[name])
            for v in runs.variants(runs.in_setting(self.data[name], setting))
        )

    def mode(self, name: str) -> str:
        """BatchNorm mode of a measurement."""
        return runs.provenance(self.data[name], "bn") if name in self.data else ""


def _by_place(rows: dict[str, Any]) -> dict[tuple[str, str], str]:
    """How each row is trained, by (setting, row); "" of a folder that kept names alone."""
    return {
        (setting, row): known[row] if isinstance(known, dict) else ""
        for setting, known in rows.items()
        for row in known
    }


def _some(names: Sequence[str], most: int = 6) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
