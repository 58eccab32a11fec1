"""Figures from results: `static` (matplotlib, for paper) and `interactive` (plotly, for the page).

Both draw the same `Drawing`s, which the functions of `landscape.plot.figures` make from Datasets;
so a static figure and its interactive twin carry the same numbers, names and units.
"""

import importlib
from typing import Any

_MODULES = ("drawing", "figures", "interactive", "static", "style")
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f"landscape.plot.{name}")
    raise AttributeError(f"module 'landscape.plot' has no attribute {name!r}")
