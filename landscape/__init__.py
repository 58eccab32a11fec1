"""Measure and draw the loss landscape of networks trained with sharpness-aware minimization.

Names are loaded when they are first used, so that `landscape.plot` and `landscape.report` work
without importing torch.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_MODULES = (
    "diagnosis", "linalg", "measure", "params", "plane", "plot", "problems", "report", "results",
    "risk", "sam", "snapshots", "stats", "streams", "study", "training",
)  # fmt: skip
_NAMES = {
    "EmpiricalRisk": "landscape.risk",
    "LandscapeError": "landscape.errors",
    "ParamLayout": "landscape.params",
    "record": "landscape.recording",
}
__all__ = [*_MODULES, *_NAMES, "__version__"]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"landscape.{name}")
    if name in _NAMES:
        return getattr(importlib.import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'landscape' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
