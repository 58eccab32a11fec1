"""Checkpoints: weights without code, and what the next step depends on.

`checkpoints/epoch-<k>.safetensors` is written first, then `checkpoints/last.pt`, which names it:
the second rename is the moment at which the checkpoint exists, so that the two never disagree.
"""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from landscape import storage
from landscape.errors import LandscapeError
from landscape.problems import load_weights
from landscape.sam import saved

FORMAT = 1


def weights_path(folder: Path, epoch: int) -> Path:
    """Weights after `epoch` epochs."""
    return Path(folder) / "checkpoints" / f"epoch-{epoch:06d}.safetensors"


def final_path(folder: Path) -> Path:
    """Weights of a finished training."""
    return Path(folder) / "checkpoints" / "final.safetensors"


def outcome_path(folder: Path) -> Path:
    """How a training ended."""
    return Path(folder) / "checkpoints" / "final.json"


def _state_path(folder: Path) -> Path:
    return Path(folder) / "checkpoints" / "last.pt"


def save_weights(model: nn.Module, path: Path, metadata: dict[str, Any]) -> Path:
    """Parameters and buffers as safetensors; metadata values become strings."""
    state = {k: v.detach().cpu().contiguous().clone() for k, v in model.state_dict().items()}
    said = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    return storage.write_atomically(path, lambda temporary: save_file(state, temporary, said))


def save(
    folder: Path, model: nn.Module, state: dict[str, Any], *, epoch: int, keep_every: int
) -> None:
    """Make `epoch` the epoch to resume after; `state` holds what torch loads without code."""
    current = weights_path(folder, epoch)
    save_weights(model, current, {"epoch": epoch})
    whole = {"format": FORMAT, "epoch": epoch, "weights": current.name, **state}
    storage.write_atomically(_state_path(folder), lambda temporary: torch.save(whole, temporary))
    for path in current.parent.glob("epoch-*.safetensors"):
        number = int(path.stem.removeprefix("epoch-"))
        if path != current and not (keep_every and number < epoch and number % keep_every == 0):
            path.unlink()


def finish(
    folder: Path, model: nn.Module, outcome: dict[str, Any], *, epoch: int, keep_every: int
) -> None:
    """Write how the training ended, and its weights if it finished; `last.pt` stays."""
    finished = outcome["status"] == "finished"
    if finished:
        save_weights(model, final_path(folder), {"epoch": epoch})
    storage.write_json(outcome_path(folder), {"format": FORMAT, **outcome})
    if finished and not (keep_every and epoch % keep_every == 0):
        weights_path(folder, epoch).unlink(missing_ok=True)


def optimizer_slots(folder: Path) -> dict[str, Any] | None:
    """Masks and averages of the variant after its last saved epoch; None without a checkpoint."""
    state = _read(folder)
    return None if state is None else saved.slots_of(state["optimizer"])


def load(folder: Path, model: nn.Module, identity: str) -> dict[str, Any] | None:
    """Put the last checkpoint's weights into the model and return its state; None without one."""
    state = _read(folder)
    if state is not None:
        _check_identity(folder, state["identity"], identity)
        load_weights(model, _state_path(folder).parent / state["weights"])
    return state


def _read(folder: Path) -> dict[str, Any] | None:
    path = _state_path(folder)
    if not path.exists():
        return None
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in as many ways as they have bytes
        raise LandscapeError(
            f"{path} is not a whole checkpoint ({type(error).__name__}); remove {path.parent} and "
            f"train again."
        ) from None
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise LandscapeError(
            f"{path} is no checkpoint of format {FORMAT}; remove {path.parent} and train again."
        )
    return state


def _check_identity(folder: Path, found: str, expected: str) -> None:
    """Refuse to continue a training that was another one; both are JSON texts."""
    if found == expected:
        return
    was, now = json.loads(found), json.loads(expected)
    other = [f"{k}={was.get(k)!r} (now {now.get(k)!r})" for k in now if was.get(k) != now.get(k)]
    raise LandscapeError(
        f"{folder} holds a training with {', '.join(other)}. Use another folder or remove this one."
    )
