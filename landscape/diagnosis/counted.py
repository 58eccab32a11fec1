"""Which steps are looked at, and what is counted of every step: forward passes, losses."""

import math
from collections import Counter

import torch
from torch import Tensor

# The first steps are looked at, then one of so many: a prime, which no period of a gate divides.
CLOSE, EVERY = 16, 127
_SEARCH = 256  # steps looked at beyond these at most, to meet a kind that was only counted
_HELD = 256  # losses on a device kept until it is asked of all together


class Counted:
    """Steps by the number of their forward passes: all of them, and those looked at.

    A step with a number of forward passes that no step looked at had (a gate that opens now and
    then, a step that a GradScaler left out) lets the next ones be looked at until one such is met.
    every: steps looked at after the first 16, one of so many.

    Example:
        >>> counted = diagnosis.Counted(every=61)
        >>> for passes in (2,) * 16 + (1, 2, 1):
        ...     looked = counted.looks()
        ...     counted.end(passes, looked=looked)
        >>> counted.steps, counted.unmet(), looked
        (Counter({2: 17, 1: 2}), {}, True)
    """

    def __init__(self, every: int = EVERY) -> None:
        self.every = every
        self.steps: Counter[int] = Counter()
        self.looked: Counter[int] = Counter()
        self.num_steps = self.num_looked = 0
        self.num_losses = 0
        self._searched = 0
        self._searching = False
        self._losses: list[Tensor] = []
        self._not_finite = 0

    def looks(self) -> bool:
        """Whether the step that begins is to be looked at."""
        if self.num_steps < CLOSE or self.num_steps % self.every == 0:
            return True
        if self._searching and self._searched < _SEARCH:
            self._searched += 1
            return True
        return False

    def end(self, passes: int, *, looked: bool) -> None:
        """A step has ended, of so many forward passes."""
        self.num_steps += 1
        self.steps[passes] += 1
        if looked:
            self.num_looked += 1
            self.looked[passes] += 1
        if self._searching or not looked:
            self._searching = bool(self.unmet())

    def unmet(self) -> dict[int, int]:
        """Steps by their number of forward passes, where none of that number was looked at."""
        return {n: count for n, count in self.steps.items() if n not in self.looked}

    def differentiated(self, loss: Tensor) -> None:
        """`backward` was called on a loss of one element, detached."""
        self.num_losses += 1
        if loss.is_cpu:
            self._not_finite += not math.isfinite(loss.item())
            return
        self._losses.append(loss)
        if len(self._losses) >= _HELD:
            self.losses_not_finite()

    def losses_not_finite(self) -> int:
        """How many losses were infinite or NaN; waits for the device."""
        if self._losses:
            device = self._losses[0].device
            together = torch.stack([x.reshape(()).float().to(device) for x in self._losses])
            self._not_finite += int((~torch.isfinite(together)).sum())
            self._losses = []
        return self._not_finite
