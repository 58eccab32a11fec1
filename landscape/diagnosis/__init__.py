"""Whether the steps of a loop were those of sharpness-aware minimization: numbers and remedies.

`landscape.record(model)` watches, `Recording.diagnosis()` answers, `read` gives the answer that a
recording left in its folder.
"""

from landscape.diagnosis.counted import Counted
from landscape.diagnosis.findings import Diagnosis, Finding, read, write
from landscape.diagnosis.rules import judge
from landscape.diagnosis.watch import Watch

__all__ = ["Counted", "Diagnosis", "Finding", "Watch", "judge", "read", "write"]
