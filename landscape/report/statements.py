"""One finding of a page: a lead, what backs it, and what both assert."""

from dataclasses import dataclass

from landscape.report.family import Claim


@dataclass(frozen=True)
class Statement:
    """A short lead and the sentences that back it, in one setting, and what they assert."""

    setting: str
    lead: str
    text: str
    claims: tuple[Claim, ...] = ()
