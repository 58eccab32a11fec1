from . import (
    diagnosis,
    linalg,
    measure,
    monitoring,
    params,
    plane,
    plot,
    problems,
    report,
    results,
    risk,
    sam,
    snapshots,
    stats,
    streams,
    study,
    training,
)
from .errors import LandscapeError
from .monitoring import monitor
from .params import ParamLayout
from .recording import record
from .risk import EmpiricalRisk

__version__: str

__all__ = [
    "EmpiricalRisk",
    "LandscapeError",
    "ParamLayout",
    "__version__",
    "diagnosis",
    "linalg",
    "measure",
    "monitor",
    "monitoring",
    "params",
    "plane",
    "plot",
    "problems",
    "record",
    "report",
    "results",
    "risk",
    "sam",
    "snapshots",
    "stats",
    "streams",
    "study",
    "training",
]
