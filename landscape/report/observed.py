"""A quantity of the metric table as a study measured it in one setting."""

import numpy as np

from landscape.metrics import metric
from landscape.plot.compared import PER_EXAMPLE, Values, compared
from landscape.report.study import StudyResults


def observe(study: StudyResults, setting: str, key: str) -> Values | None:
    """The quantity called `key` in one setting; None where it was not measured."""
    quantity = metric(key)
    at: dict[str, float] = dict(quantity.at)
    if quantity.measurement == "sharpness":
        at["rho"] = study.radius
    found = study.values(quantity.measurement, quantity.variable, setting, **at)
    if not found:
        return None
    tables = (np.asarray(ds[quantity.variable].values, float) for ds in found.values())
    if not any(np.isfinite(table).any() for table in tables):
        return None
    kinds = [ds.kind.values.astype(str) for ds in found.values()] if quantity.kinds else []
    if kinds and not any(np.isin(each, quantity.kinds).any() for each in kinds):
        return None  # nothing is said of layers that the model does not have
    if key == "rho_eff":
        # A row that does not perturb has no radius, also where it was written down as 0.
        found = {row: ds for row, ds in found.items() if np.any(ds.rho_eff.values != 0)}
    per_example = PER_EXAMPLE.get(key, "")
    examples = study.values("generalization", per_example, setting)
    lost = {row: study.diverged(setting, row) for row in study.rows(setting)}
    diverged = {row: seeds for row, seeds in lost.items() if seeds}
    return compared(quantity, found, examples, diverged=diverged)
