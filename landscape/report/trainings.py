"""How the trainings went: seeds that diverged, steps that were skipped, the arithmetic found."""

from collections import Counter
from dataclasses import dataclass

import numpy as np
import xarray as xr

from landscape.plot import runs
from landscape.report import words
from landscape.report.study import StudyResults


@dataclass(frozen=True)
class Training:
    """One row of the study in one setting: its seeds by how they ended, and skipped steps."""

    label: str
    setting: str
    seeds: str
    diverged: int
    skipped: str
    reason: str


def trainings(study: StudyResults) -> list[Training]:
    """Every row in every setting; empty for studies that were made before this was kept."""
    if study.trainings is None:
        return []
    return [
        _training(study, v, setting)
        for setting in runs.settings(study.trainings)
        for v in runs.variants(runs.in_setting(study.trainings, setting))
    ]


def _training(study: StudyResults, v: runs.VariantRuns, setting: str) -> Training:
    status = Counter(str(word) for word in v.ds.status.values)
    skipped, steps = v.ds.num_skipped.values, v.ds.num_steps.values
    share = ""
    if np.nansum(skipped) > 0:
        share = f"{int(np.nansum(skipped))} in all"
        # A run that was lost does not know how many steps it took.
        shares = skipped / np.where(steps > 0, steps, np.nan)
        if np.isfinite(shares).any():
            share += f", {words.percent(np.nanmax(shares))} % of a run at most"
    ended = zip(v.ds.status.values, v.ds.message.values, strict=True)
    why = [str(message) for word, message in ended if word == "diverged"]
    seeds = study.seeds(setting, v.id, status["trained"] + status["elsewhere"])
    return Training(v.label, setting, seeds, status["diverged"], share, why[0] if why else "")


def arithmetic(ds: xr.Dataset | None) -> str:
    """The set of arithmetics that trainings were made in, with how many runs each."""
    if ds is None:
        return ""
    found = Counter(str(text) for text in ds.arithmetic.values if str(text))
    many = len(found) > 1
    said = [f"{text} ({words.count(n, 'run')})" if many else text for text, n in found.items()]
    return "; ".join(said) + (
        ". Runs of different arithmetic differ in their last bits, which training amplifies"
        if many
        else ""
    )
