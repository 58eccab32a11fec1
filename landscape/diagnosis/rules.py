"""From what the steps showed to findings; arXiv:2010.01412, Eqs. 2 and 3 say what a step is."""

from collections.abc import Callable
from dataclasses import replace

from landscape.diagnosis import climb, descent
from landscape.diagnosis.findings import Diagnosis, Finding
from landscape.diagnosis.seen import Seen
from landscape.diagnosis.watch import Watch
from landscape.sam import schedule

_OF_A_RECIPE = ("gate", "length", "descent", "examples", "restored")
_RULES: tuple[Callable[[Seen], Finding], ...] = (
    climb.gate, climb.finite, climb.second_pass, climb.length, descent.descent, descent.examples,
    descent.dropout, descent.buffers, descent.scaling, descent.restored,
    climb.left_out, climb.size, climb.other_rho,
)  # fmt: skip


def judge(watch: Watch) -> Diagnosis:
    """The findings on all steps so far.

    watch: the `Watch` of a recording.

    Example:
        >>> base = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> with record(model, rho=0.05) as seen:
        ...     _ = sam.SAM(model, base, sam.sam(0.05)).step(losses, data)
        >>> diagnosis.judge(seen.watch).wrong
        ()
    """
    climbs = [look for look in watch.looks if look.climbed]
    clear = [look for look in climbs if not look.returned]
    seen = Seen(watch, watch.looks, climbs, clear)
    found = tuple(_by_design(rule(seen), seen) for rule in _RULES)
    return Diagnosis(watch.num_steps, watch.counted.num_looked, found)


def _by_design(finding: Finding, seen: Seen) -> Finding:
    """A recipe of `landscape.sam` that is more than Eqs. 2 and 3 departs from them on purpose."""
    own = seen.watch.own
    if own is None or finding.verdict != "wrong" or finding.key not in _OF_A_RECIPE:
        return finding
    gates = (schedule.always, schedule.never)
    if own.variant.name == "sam" or (finding.key == "gate" and own.variant.gate not in gates):
        return finding
    said = f"{finding.sentence} The recipe {own.variant.name} may do so by design."
    return replace(finding, verdict="cannot tell", sentence=said)
