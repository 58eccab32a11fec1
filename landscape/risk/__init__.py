"""Loss, per-example losses, gradient and Hessian products of a network as functions of theta."""

from landscape.risk._criterion import IGNORED, BatchLosses, ModelLosses, errors_of, takes_batch
from landscape.risk._data import Examples, gathered, sha256_of
from landscape.risk._empirical import EmpiricalRisk, Evaluation
from landscape.risk._engine import BN_MODES, BNMode
from landscape.risk._linearized import LinearizedGGN, LinearizedHVP
from landscape.risk._probe import Probe
from landscape.risk._reading import targets_of
from landscape.risk._rows import Objective, RowLosses

__all__ = [
    "BN_MODES",
    "IGNORED",
    "BNMode",
    "BatchLosses",
    "EmpiricalRisk",
    "Evaluation",
    "Examples",
    "LinearizedGGN",
    "LinearizedHVP",
    "ModelLosses",
    "Objective",
    "Probe",
    "RowLosses",
    "errors_of",
    "gathered",
    "sha256_of",
    "takes_batch",
    "targets_of",
]
