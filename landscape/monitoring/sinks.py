"""Where records of a monitor go: any function of a record, and those of common loggers."""

import math
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from landscape import storage
from landscape.errors import LandscapeError

_SHOWN = (
    ("risk", "risk"), ("loss_gap", "gap"), ("perturbation_norm", "‖e‖"), ("radius_ratio", "‖e‖/ρ"),
    ("critical_sharpness", "critical sharpness"), ("lambda_1", "λ₁"),
)  # fmt: skip


def terminal(record: Mapping[str, Any]) -> None:
    """One line on stderr, and one for each alarm.

    record: one of `Monitor.records`.

    Example:
        >>> monitoring.terminal({"step": 3, "risk": 0.5, "alarms": []})  # to stderr
    """
    said = [
        f"{label} {record[name]:.4g}"
        for name, label in _SHOWN
        if name in record and not math.isnan(record[name])
    ]
    print(f"step {record['step']}: {', '.join(said)}", file=sys.stderr)
    for alarm in record["alarms"]:
        print(f"step {record['step']}: WRONG {alarm}", file=sys.stderr)


class JsonLines:
    """A line of JSON per record, appended and synced; a number that is not finite is null.

    path: the file, which is made with its first line.

    Example:
        >>> lines = monitoring.JsonLines("lines.jsonl")
        >>> lines({"step": 3, "lambda_1": float("nan")})
        >>> print(Path("lines.jsonl").read_text().strip())
        {"step": 3, "lambda_1": null, "crc32": "7204b7a7"}
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        storage.append_line(self.path, _finite(record))


class TensorBoard:
    """Scalars under `tag`, at the step of the record; alarms as text.

    writer: a `torch.utils.tensorboard.SummaryWriter`, or the folder of a new one.

    Example:
        >>> class Writer:  # in place of torch.utils.tensorboard.SummaryWriter("logs")
        ...     def add_scalar(self, tag, value, step): print(tag, value, step)
        ...     def flush(self): pass
        >>> monitoring.TensorBoard(Writer())({"step": 3, "risk": 0.5, "alarms": []})
        landscape/risk 0.5 3
    """

    def __init__(self, writer: Any, *, tag: str = "landscape") -> None:
        self.tag = tag
        self._own = isinstance(writer, Path | str)
        if self._own:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError:
                raise LandscapeError(
                    "TensorBoard needs tensorboard, which is not installed: pip install "
                    "'sam-landscape[monitors]'."
                ) from None
            writer = SummaryWriter(str(writer))
        self.writer = writer

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        for name, value in scalars(record):
            self.writer.add_scalar(f"{self.tag}/{name}", value, record["step"])
        if record["alarms"]:
            self.writer.add_text(
                f"{self.tag}/alarms", "\n\n".join(record["alarms"]), record["step"]
            )
        self.writer.flush()

    def close(self) -> None:
        """Close the writer, if it was made here."""
        if self._own:
            self.writer.close()


class WandB:
    """Scalars under `prefix`, at the step of the record; alarms by `run.alert`.

    run: what `wandb.init` returned; the metrics get an axis of their own, so that other logging
    keeps its steps.

    Example:
        >>> class Run:  # in place of wandb.init()
        ...     def define_metric(self, *names, **options): pass
        ...     def log(self, values, **options): print(values)
        >>> monitoring.WandB(Run())({"step": 3, "risk": 0.5, "alarms": []})
        {'landscape/risk': 0.5, 'landscape/step': 3}
    """

    def __init__(self, run: Any, *, prefix: str = "landscape") -> None:
        self.run, self.prefix = run, prefix
        self._alarmed: set[str] = set()
        run.define_metric(f"{prefix}/step")
        run.define_metric(f"{prefix}/*", step_metric=f"{prefix}/step")

    def __call__(self, record: Mapping[str, Any]) -> None:
        """Take in one record."""
        values = {f"{self.prefix}/{name}": value for name, value in scalars(record)}
        self.run.log(values | {f"{self.prefix}/step": record["step"]})
        for alarm in record["alarms"]:
            if (key := alarm.partition(":")[0]) not in self._alarmed:
                self._alarmed.add(key)
                self.run.alert(title=f"landscape: {key}", text=alarm)


def scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Each number of a record by its name, those by tensor as name/tensor; nan is left out."""
    for name, value in record.items():
        if name == "step":
            continue
        if isinstance(value, Mapping):
            yield from ((f"{name}/{key}", float(each)) for key, each in value.items())
        elif isinstance(value, bool | int | float) and not math.isnan(value):
            yield name, float(value)


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
