"""A study of one run, written from command-line flags: flags and files are the same thing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from landscape import toml
from landscape.errors import LandscapeError
from landscape.study.user_code import is_callable_name


@dataclass(frozen=True)
class Flags:
    """What the flags of `landscape train` and `landscape measure` say; None where not given."""

    data: str | None = None
    model: str | None = None
    loss: str | None = None
    weights: Path | None = None
    weights_key: str | None = None
    variant: str = "sgd"
    rho: float | None = None
    seed: int = 0
    label_noise: float | None = None
    data_dir: Path | None = None
    epochs: int | None = None
    lr: float | None = None
    batch_size: int | None = None
    examples: int | None = None
    measurements: tuple[str, ...] | None = None


def study_text(flags: Flags) -> str:
    """The study file that the flags stand for. A weights file makes a run that is not trained."""
    missing = [name for name in ("data", "model") if getattr(flags, name) is None]
    if missing:
        raise LandscapeError(
            f"--{' and --'.join(missing)} not given. Name ours, or yours as "
            f"package.module:callable; `landscape measure --help` shows an example."
        )
    problem = {
        "data": flags.data,
        "model": flags.model,
        "loss": flags.loss or "cross_entropy",
        "label_noise": flags.label_noise,
        "data_dir": flags.data_dir and str(flags.data_dir.absolute()),
    }
    training = {"epochs": flags.epochs, "lr": flags.lr, "batch_size": flags.batch_size}
    run = {
        "variant": flags.variant,
        "seed": flags.seed,
        "rho": flags.rho,
        "weights": flags.weights and str(flags.weights.absolute()),
        "weights_key": flags.weights_key,
    }
    measure = {"examples": flags.examples, "measurements": flags.measurements}
    return toml.dumps(
        _given(
            {
                "name": default_name(flags),
                "question": f"What does the loss landscape of {_subject(flags)} look like?",
                "problem": _given(problem),
                "training": {} if flags.weights else _given(training),
                "measure": _given(measure),
                "run": [_given(run)],
            }
        )
    )


def default_name(flags: Flags) -> str:
    """A name for the study and its folder."""
    if flags.weights is not None:
        return flags.weights.stem
    data = (flags.data or "").rpartition(":")[2]
    return f"{data}-{flags.variant}"


def _subject(flags: Flags) -> str:
    if flags.weights is not None:
        return flags.weights.name
    model = flags.model or ""
    return model.rpartition(":")[2] if is_callable_name(model) else model


def _given(table: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in table.items() if value is not None and value != {}}
