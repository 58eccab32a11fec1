"""Curvature and perturbation of a training under way, for little of its time.

    with landscape.monitor(model, optimizer, loss, (x, y), sinks=[JsonLines("run.jsonl")]):
        ...                                                # the loop as it is

`Monitor.records` holds what was seen; `sinks` names where else it goes.
"""

from landscape.monitoring.looking import Monitor, monitor
from landscape.monitoring.sinks import JsonLines, TensorBoard, WandB, terminal

__all__ = ["JsonLines", "Monitor", "TensorBoard", "WandB", "monitor", "terminal"]
