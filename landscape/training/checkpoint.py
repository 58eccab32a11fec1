"""Checkpoints: weights without code, and what the next step depends on.

`checkpoints/epoch-<k>.safetensors` is written first, then `checkpoints/last.pt`, which names it:
the second rename is the moment at which the checkpoint exists, so that the two never disagree.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from landscape import storage
from landscape.errors import LandscapeError
from landscape.problems.weights import save_tensors
from landscape.problems.weights_file import read_own
from landscape.sam import saved
from landscape.storage import final_path, kept_weights, outcome_path, state_path, weights_path

FORMAT = 3  # 2: files that do not say of which training they are; 1: without digests


def save_weights(model: nn.Module, path: Path, metadata: dict[str, Any]) -> Path:
    """Parameters and buffers as safetensors; metadata values become strings."""
    said = {k: v if isinstance(v, str) else json.dumps(v) for k, v in metadata.items()}
    return save_tensors(model.state_dict(), path, said)


def mark_of(identity: str) -> str:
    """16 hexadecimal digits of a training's identity, which each of its files carries."""
    return hashlib.sha256(identity.encode()).hexdigest()[:16]


def save(
    folder: Path, model: nn.Module, state: dict[str, Any], *, epoch: int, keep_every: int
) -> None:
    """Make `epoch` the epoch to resume after; `state` holds what torch loads without code."""
    current = weights_path(folder, epoch)
    save_weights(model, current, {"epoch": epoch, "training": mark_of(state["identity"])})
    digest = storage.sealed_sha256(current)
    whole = {
        "format": FORMAT, "epoch": epoch, "weights": current.name, "sha256": digest, **state,
    }  # fmt: skip

    def write(temporary: Path) -> None:
        torch.save(whole, temporary)
        storage.seal_zip(temporary)

    storage.write_atomically(state_path(folder), write)
    for number, path in kept_weights(folder).items():
        if path != current and not (keep_every and number < epoch and number % keep_every == 0):
            path.unlink()


def finish(
    folder: Path,
    model: nn.Module,
    outcome: dict[str, Any],
    *,
    identity: str,
    epoch: int,
    keep_every: int,
) -> None:
    """Write how the training ended, and its weights if it finished; `last.pt` stays."""
    finished = outcome["status"] == "finished"
    said = {"format": FORMAT, **outcome, "training": json.loads(identity)}
    if finished:
        save_weights(model, final_path(folder), {"epoch": epoch, "training": mark_of(identity)})
        said["weights_sha256"] = storage.sealed_sha256(final_path(folder))
    extra = weights_path(folder, epoch) if finished and not _kept(epoch, keep_every) else None
    said["files"] = [name for name in _left(folder) if extra is None or name != extra.name]
    storage.write_json(outcome_path(folder), said)
    if extra is not None:
        extra.unlink(missing_ok=True)


def _kept(epoch: int, keep_every: int) -> bool:
    return bool(keep_every) and epoch % keep_every == 0


def _left(folder: Path) -> list[str]:
    """Names of the weights of epochs, and of what was recorded, that are there and not empty."""
    place = Path(folder) / "snapshots"
    paths = (*kept_weights(folder).values(), *place.glob("[0-9]*.npz"), *place.glob("*.bin"))
    return sorted(path.name for path in paths if path.is_file() and path.stat().st_size)


def check_left(folder: Path, outcome: dict[str, Any]) -> None:
    """Refuse a training of which weights of an epoch, or a snapshot, are gone since it ended.

    outcome: `read_outcome`; those of before files were listed are not compared.
    """
    gone = sorted(set(outcome.get("files", ())) - set(_left(folder)))
    if gone:
        more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
        raise LandscapeError(
            f"{folder} has lost {gone[0]}{more}, which its training left: what is measured of the "
            f"rest is of other steps. Take it from a copy, or remove {folder} and train again."
        )


def read_outcome(folder: Path) -> dict[str, Any]:
    """How a training ended; refused where the document is not what `finish` writes."""
    path = outcome_path(folder)
    found = storage.read_json(path)
    kinds = {
        "status": str, "message": str, "epochs": int, "steps": int, "seconds": (int, float),
        "training": dict,
    }  # fmt: skip
    files = found.get("files", [])
    wrong = [name for name in kinds if not storage.fits(found, {name: kinds[name]})]
    wrong += ["files"] * (not isinstance(files, list) or not all(isinstance(f, str) for f in files))
    if found.get("format") != FORMAT or wrong:
        known = found.get("format") if isinstance(found.get("format"), int) else "unknown"
        raise LandscapeError(
            f"{path} is of format {known} where {FORMAT} is read, or lacks "
            f"{', '.join(wrong) or 'nothing'}; remove {Path(folder)} and train again."
        )
    return found


def identity_of(outcome: dict[str, Any]) -> str:
    """The identity of the training that ended so."""
    return json.dumps(outcome["training"], sort_keys=True)


def own_outcome(folder: Path, run: str) -> dict[str, Any]:
    """How the training of a run ended; empty where it has not, refused where it is another's."""
    if not outcome_path(folder).exists():
        return {}
    found = read_outcome(folder)
    whose = found["training"].get("run")
    if whose != run:
        raise LandscapeError(
            f"{outcome_path(folder)} is of the run {whose!r} and not of {run!r}: it was renamed or "
            f"copied there. Put back the right files, or remove {folder} and run the study again."
        )
    return found


def check_own(folder: Path, path: Path, outcome: dict[str, Any]) -> None:
    """Refuse weights that are not of the training that ended so, or of another epoch of it."""
    if not path.exists():
        raise LandscapeError(
            f"{path}, which {outcome_path(folder)} tells of, is not there; copy it too, or remove "
            f"{folder} and train again."
        )
    said = storage.metadata(path)
    if path == final_path(folder):
        right = storage.declared_sha256(path) == outcome.get("weights_sha256")
    else:
        right = path == weights_path(folder, int(said.get("epoch", -1)))
    if said.get("training") != mark_of(identity_of(outcome)) or not right:
        raise LandscapeError(
            f"{path} is not of the training that {outcome_path(folder)} tells of: it was renamed "
            f"or copied there. Put back the right file, or remove {folder} and train again."
        )


def optimizer_slots(folder: Path) -> dict[str, Any] | None:
    """Masks and averages of the variant after its last saved epoch; None without a checkpoint.

    Example:
        >>> "selector" in training.optimizer_slots(folder)
        True
    """
    state = read_state(folder)
    return None if state is None else saved.slots_of(state["optimizer"])


def load(folder: Path, model: nn.Module, identity: str) -> dict[str, Any] | None:
    """Put the last checkpoint's weights into the model and return its state; None without one."""
    state = read_state(folder)
    if state is not None:
        check_identity(folder, state["identity"], identity)
        path = state_path(folder).parent / state["weights"]
        if not path.exists():  # a copy in part, or without the file that says it has ended
            raise LandscapeError(
                f"{path}, which {_STATE} goes on from, is not there; copy it too, or remove "
                f"{path.parent} and train again."
            )
        restore(model, path, state["sha256"])
    return state


def restore(model: nn.Module, path: Path, sha256: str | None = None) -> None:
    """Put weights that `save_weights` wrote back into the model, as they are."""
    named, found = read_own(path)
    if sha256 is not None and found != sha256:
        raise LandscapeError(
            f"{path} is not the file that {_STATE} was written with; remove {path.parent} and "
            f"train again."
        )
    try:
        model.load_state_dict(named)
    except RuntimeError as error:
        said = " ".join(str(error).split())[:300]
        raise LandscapeError(
            f"{path} holds the weights of another model than {type(model).__name__} ({said}); use "
            f"another folder or remove this one."
        ) from None


_STATE = "last.pt"
_FIELDS: dict[str, type | tuple[type, ...]] = {
    "format": int, "epoch": int, "weights": str, "sha256": str, "identity": str,
    "optimizer": dict, "seconds": float,
}  # fmt: skip


def read_state(folder: Path, *, device: Any = "cpu") -> dict[str, Any] | None:
    """What the next step depends on, after its checksums were compared; None without it."""
    path = state_path(folder)
    if not path.exists():
        return None
    try:
        storage.check_zip(path)
        state = torch.load(path, map_location=device, weights_only=True)
        known = isinstance(state, dict) and state.get("format") == FORMAT
        if known:
            storage.check_sealed_zip(path)
    except Exception as error:  # damaged files fail in as many ways as they have bytes
        said = str(error).splitlines()[0][:200] if str(error) else ""
        raise LandscapeError(
            f"{path} is not a whole checkpoint ({type(error).__name__}: {said}); remove "
            f"{path.parent} and train again."
        ) from None
    if not known:
        raise LandscapeError(
            f"{path} is no checkpoint of format {FORMAT}; remove {path.parent} and train again."
        )
    wrong = [name for name, kind in _FIELDS.items() if not isinstance(state.get(name), kind)]
    if wrong or state["epoch"] < 1 or not storage.is_plain_name(state["weights"]):
        raise LandscapeError(
            f"{path} says nothing sensible of {', '.join(wrong) or 'its epoch and weights'}; "
            f"remove {path.parent} and train again."
        )
    return state


def check_identity(folder: Path, found: str, expected: str) -> None:
    """Refuse to continue a training that was another one; both are JSON texts."""
    if found == expected:
        return
    was, now = _flat(json.loads(found)), _flat(json.loads(expected))
    names = [name for name in {**now, **was} if was.get(name) != now.get(name)]
    other = [f"{name}={was.get(name)!r} (now {now.get(name)!r})" for name in names]
    raise LandscapeError(
        f"{folder} holds a training with {', '.join(other)}. Use another folder or remove this one."
    )


def _flat(said: dict[str, Any]) -> dict[str, Any]:
    """The parts of tables beside what is none."""
    parts: dict[str, Any] = {}
    for name, value in said.items():
        parts |= value if isinstance(value, dict) else {name: value}
    return parts
