"""Where the folder of a training keeps its weights, how it ended, and who worked on it."""

from pathlib import Path
from typing import Any

from landscape.storage.documents import Kinds, read_lines


def weights_path(folder: Path, epoch: int) -> Path:
    """Weights after `epoch` epochs."""
    return _checkpoints(folder) / f"epoch-{epoch:06d}.safetensors"


def final_path(folder: Path) -> Path:
    """Weights of a finished training."""
    return _checkpoints(folder) / "final.safetensors"


def outcome_path(folder: Path) -> Path:
    """How a training ended."""
    return _checkpoints(folder) / "final.json"


def state_path(folder: Path) -> Path:
    """What the next step of an unfinished training depends on."""
    return _checkpoints(folder) / "last.pt"


SESSION: Kinds = {"began": (int, float), "seconds": (int, float), "ended": str, "note": str}
MEASURED: Kinds = {"name": str, "key": str}


def sessions(folder: Path) -> list[dict[str, Any]]:
    """The sessions of a run that said how they ended, in time; torn lines are left out."""
    return read_lines(sessions_path(folder), on_error="skip", kinds=SESSION)[0]


def sessions_path(folder: Path) -> Path:
    """Who worked on a run, from when for how long, and how that ended: a line each."""
    return Path(folder) / "sessions.jsonl"


def kept_weights(folder: Path) -> dict[int, Path]:
    """Weights of single epochs that are there, by epoch."""
    paths = _checkpoints(folder).glob("epoch-*.safetensors")
    return dict(sorted((int(path.stem.removeprefix("epoch-")), path) for path in paths))


def _checkpoints(folder: Path) -> Path:
    return Path(folder) / "checkpoints"
