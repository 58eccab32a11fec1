"""Loss, per-example losses, gradient and Hessian products of a network as functions of theta."""

from landscape.risk._empirical import EmpiricalRisk, Evaluation, LinearizedHVP
from landscape.risk._engine import BN_MODES

__all__ = ["BN_MODES", "EmpiricalRisk", "Evaluation", "LinearizedHVP"]
