"""PyHessian's numbers beside ours, like with like."""

from dataclasses import dataclass

import numpy as np

from landscape.plot import runs
from landscape.report import words
from landscape.report.study import StudyResults


@dataclass(frozen=True)
class Check:
    """One model: largest-magnitude eigenvalue and trace from both programs."""

    label: str
    setting: str
    ours: str
    theirs: str
    apart: str
    our_trace: str
    their_trace: str
    sigmas: str


def crosscheck(study: StudyResults) -> list[Check]:
    """Rows of the cross-check table; empty where it was not measured."""
    checks = []
    for setting in study.settings:
        ds = study.get("crosscheck", setting)
        if ds is None:
            continue
        for v in runs.variants(ds):
            checks.append(_check(v, study.title(setting)))
    return checks


def _check(v: runs.VariantRuns, title: str) -> Check:
    def at(name: str) -> float:
        return float(v.ds[name].values[0]) if name in v.ds else np.nan

    ours, theirs = at("landscape_eigenvalue"), at("pyhessian_eigenvalue")
    spread = np.hypot(at("landscape_trace_stderr"), at("pyhessian_trace_stderr"))
    sigmas = abs(at("landscape_trace") - at("pyhessian_trace")) / spread if spread > 0 else np.nan
    probes = at("pyhessian_trace_probes")
    return Check(
        v.label,
        title,
        f"{words.number(ours, 5)} ± {words.number(at('residual_norm'), 2)}",
        words.number(theirs, 5),
        f"{words.number(100 * abs(theirs - ours) / abs(ours), 2)} %" if ours else words.MISSING,
        f"{words.number(at('landscape_trace'))} ± {words.number(at('landscape_trace_stderr'), 2)}",
        f"{words.number(at('pyhessian_trace'))} ± {words.number(at('pyhessian_trace_stderr'), 2)}"
        + (f" ({words.count(int(probes), 'probe')})" if np.isfinite(probes) else ""),
        words.number(sigmas, 2),
    )
