"""Every choice of a study spelled out: `resolved.json`, what a reader of its results must know."""

import hashlib
import platform
import sys
from dataclasses import asdict
from typing import Any

import landscape
from landscape.storage import STUDY_FORMAT
from landscape.study import axes
from landscape.study.measurements import DEFAULT
from landscape.study.spec import Study


def versions() -> dict[str, str]:
    """Versions that the numbers rest on."""
    from importlib.metadata import version

    packages = ("torch", "numpy", "scipy", "xarray", "scikit-learn", "pyhessian")
    return {
        "landscape": landscape.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def resolved(study: Study, device: str, threads: int) -> dict[str, Any]:
    """Every choice spelled out: what a reader of the results needs to know."""
    first = {run.variant: run for run in reversed(study.runs)}
    return {
        "format": STUDY_FORMAT,
        "name": study.name,
        "question": study.question,
        "study_sha256": hashlib.sha256(study.text.encode()).hexdigest(),
        "base": str(study.base),
        "versions": versions(),
        "platform": f"{platform.system()} {platform.machine()}",
        "threads": threads,
        "device": device,
        "dtype": study.dtype,
        "settings": {
            s.name: {"title": s.title, **asdict(s.problem), "training": dict(s.training)}
            for s in study.settings
        },
        "variants": {
            v.name: {
                "label": v.label,
                "recipe": v.recipe,
                "options": dict(first[v.name].options),
                "training": dict(v.training),
                "family": v.family,
                "axes": dict(v.axes),
                "order": order,
            }
            for order, v in enumerate(study.variants)
        },
        "families": {v.name: {"label": v.label, "recipe": v.recipe} for v in study.families},
        "axes": axes.of(study.runs),
        "comparisons": None if study.comparisons is None else asdict(study.comparisons),
        "measure": {
            "examples": study.measure.examples,
            "split": study.measure.split,
            "bn": study.measure.bn,
            "seed": study.measure.seed,
            "usual": list(DEFAULT),
            "measurements": {
                m.name: {**m.options, "first_seed_only": m.first_seed_only}
                for m in study.measure.measurements
            },
        },
        "runs": [
            {
                **run.labels,
                "recipe": run.recipe,
                "weights": run.weights,
                "first_seed": study.first_seed(run),
                "options": dict(run.options),
                "training": None if run.weights else dict(run.training),
                "measurements": [m.name for m in study.measurements_of(run)],
            }
            for run in study.runs
        ],
    }


def finite(value: Any) -> Any:
    """JSON has no infinity (p=inf of SAM-ON) and no tuples: spell them as JSON reads them back."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if isinstance(value, float) and not abs(value) < sys.float_info.max:
        return str(value)
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)
