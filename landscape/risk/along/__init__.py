"""Values of a risk at many points of a line or plane, faster than one by one and proved equal."""

from landscape.risk.along.folded import Direct, Folded, PlanePoints, evaluator

__all__ = ["Direct", "Folded", "PlanePoints", "evaluator"]
