"""The answers: what was found, its numbers, and what mends it."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from landscape import storage
from landscape.errors import LandscapeError

Verdict = Literal["ok", "wrong", "cannot tell"]
_FILE = "diagnosis.json"


@dataclass(frozen=True)
class Finding:
    """One question about the steps: its answer in a sentence, with the numbers behind it.

    key: the question in a word or two, as "second pass". verdict: "ok", "wrong" or "cannot tell".
    remedy: what mends it, empty where nothing is wrong.

    Example:
        >>> finding = diagnosis.Finding("length", "ok", "e has the length asked.", {"norm": 0.05})
        >>> print(finding)
        ok          length: e has the length asked.
                    norm 0.05
    """

    key: str
    verdict: Verdict
    sentence: str
    numbers: dict[str, float] = field(default_factory=dict)
    remedy: str = ""

    def __str__(self) -> str:
        lines = [f"{self.verdict.upper() if self.verdict == 'wrong' else self.verdict:<12}"
                 f"{self.key}: {self.sentence}"]  # fmt: skip
        if self.numbers:
            told = ", ".join(f"{name} {value:.4g}" for name, value in self.numbers.items())
            lines.append(f"{'':<12}{told}")
        if self.remedy:
            lines.append(f"{'':<12}mend: {self.remedy}")
        return "\n".join(lines)


@dataclass(frozen=True)
class Diagnosis:
    """What the steps of a recording showed. `diagnosis["length"]` is one finding of it.

    num_steps: steps seen. num_looked_at: those of which passes, weights and gradients were
    compared; of the others forward passes and losses were counted. findings: one `Finding` for each
    question.

    Example:
        >>> base = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> with record(model, rho=0.05) as seen:
        ...     _ = sam.SAM(model, base, sam.sam(0.05)).step(losses, data)
        >>> seen.diagnosis().num_steps, seen.diagnosis()["length"].verdict
        (1, 'ok')
    """

    num_steps: int
    num_looked_at: int
    findings: tuple[Finding, ...]

    def __getitem__(self, key: str) -> Finding:
        for finding in self.findings:
            if finding.key == key:
                return finding
        known = ", ".join(f.key for f in self.findings)
        raise LandscapeError(f"finding {key!r} is unknown; choose one of {known}.")

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """The findings whose verdict is "wrong"."""
        return tuple(f for f in self.findings if f.verdict == "wrong")

    def __str__(self) -> str:
        order = ("wrong", "cannot tell", "ok")
        found = sorted(self.findings, key=lambda f: order.index(f.verdict))
        counts = [(sum(f.verdict == word for f in found), word) for word in order]
        told = ", ".join(f"{number} {word}" for number, word in counts if number)
        others = self.num_steps - self.num_looked_at
        counted = f", {others} only counted" if others else ""
        head = (
            f"{self.num_steps} steps, {self.num_looked_at} of them looked at closely{counted}. "
            f"{len(found)} questions were asked of them: {told}."
        )
        return "\n".join([head, *map(str, found)])

    def as_dict(self) -> dict[str, Any]:
        """For JSON; a number that is not finite is null."""
        found = [
            {
                "key": f.key,
                "verdict": f.verdict,
                "sentence": f.sentence,
                "remedy": f.remedy,
                "numbers": {k: v if math.isfinite(v) else None for k, v in f.numbers.items()},
            }
            for f in self.findings
        ]
        return {
            "num_steps": self.num_steps, "num_looked_at": self.num_looked_at, "findings": found
        }  # fmt: skip


def write(folder: Path, diagnosis: Diagnosis) -> None:
    """Leave the diagnosis in the folder of a recording.

    Example:
        >>> answer = diagnosis.Diagnosis(1, 1, (diagnosis.Finding("length", "ok", "As asked."),))
        >>> Path("mine").mkdir(exist_ok=True)
        >>> diagnosis.write(Path("mine"), answer)
        >>> diagnosis.read(Path("mine")) == answer
        True
    """
    storage.write_json(Path(folder) / _FILE, diagnosis.as_dict())


def read(folder: Path) -> Diagnosis:
    """The diagnosis that a recording left in its folder.

    folder: that of a `landscape.record(model, folder=...)` which has ended. Raises LandscapeError
    where it holds no diagnosis.

    Example:
        >>> base = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> with record(model, folder="seen", rho=0.05, steps_per_epoch=1) as seen:
        ...     _ = sam.SAM(model, base, sam.sam(0.05)).step(losses, data)
        >>> diagnosis.read(Path("seen")).num_steps
        1
    """
    path = Path(folder) / _FILE
    if not path.exists():
        raise LandscapeError(
            f"{folder} holds no {_FILE}; give the folder=... of a landscape.record that has ended, "
            f"or record a few steps of the loop again."
        )
    known = storage.read_json(path)
    try:
        findings = tuple(
            Finding(f["key"], f["verdict"], f["sentence"],
                    {k: math.nan if v is None else v for k, v in f["numbers"].items()}, f["remedy"])
            for f in known["findings"]
        )  # fmt: skip
        return Diagnosis(known["num_steps"], known["num_looked_at"], findings)
    except (KeyError, TypeError, AttributeError):
        raise LandscapeError(f"{path} is no diagnosis; record the steps again.") from None
