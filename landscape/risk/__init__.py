"""Loss, per-example losses, gradient and Hessian products of a network as functions of theta."""

from landscape.risk._empirical import BN_MODES, EmpiricalRisk, Evaluation

__all__ = ["BN_MODES", "EmpiricalRisk", "Evaluation"]
