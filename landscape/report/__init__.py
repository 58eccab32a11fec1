"""Results of a study to a page that answers its question: report.html and its Markdown twin.

Names are loaded when they are first used: who needs the rules of the verdict loads no figures.
"""

import importlib
from typing import Any

_NAMES = {
    "FigureChoice": "paper",
    "StudyResults": "study",
    "compare": "comparison",
    "diagnose": "pair",
    "write": "page",
    "write_figures": "paper",
}
__all__ = list(_NAMES)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(importlib.import_module(f"landscape.report.{_NAMES[name]}"), name)
    raise AttributeError(f"module 'landscape.report' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
