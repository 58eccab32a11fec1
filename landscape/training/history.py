"""What a training left behind, as results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from landscape import measure, results, snapshots, storage
from landscape.errors import LandscapeError
from landscape.results import Variable
from landscape.snapshots import Steps
from landscape.training import checkpoint


def consolidate(folder: Path, *, loss: str = "cross_entropy") -> dict[str, xr.Dataset]:
    """Results of a run's folder by measurement name; what was not recorded is absent.

    history (epoch): train_loss, val_loss, val_accuracy, lr, epoch_seconds, num_skipped (steps of
    the epoch without a finite gradient, which move nothing).
    perturbation_history (epoch, tensor): means over the steps of an epoch of energy_share, density,
    norm_ratio ‖e_l‖/‖w_l‖, first_order g1_l·e_l, perturbation_norm, radius_ratio ‖e‖/rho, cosine
    cos(g1, g2), sharpness_gap L(w+e) - L(w); NaN steps are left out (`landscape.record`).
    mask_persistence (lag): `measure.mask_persistence`; only for variants with masks.
    loss: name of the loss that was trained, which decides whether losses are in nats.

    Example:
        >>> found = training.consolidate(folder)
        >>> sorted(found)
        ['history', 'mask_persistence', 'perturbation_history']
    """
    folder = Path(folder)
    records, torn = read_history(folder)
    check_snapshots(folder)
    steps = snapshots.read_steps(folder)
    if not records and not len(steps):
        why = _outcome(folder).get("message") or "it was not trained yet"
        raise LandscapeError(f"{folder} holds no epoch of a training: {why}.")
    said = {"torn_lines": torn, "loss": loss, **_outcome(folder)}
    found = {"history": _history(records, said)} if records else {}
    if len(steps):
        found["perturbation_history"] = _perturbations(steps, said)
    masks = snapshots.read_masks(folder)
    if len(masks) > 1:
        said = {**said, "steps": masks.steps.tolist()}
        found["mask_persistence"] = measure.mask_persistence(masks, provenance=said)
    return found


def _outcome(folder: Path) -> dict[str, Any]:
    return checkpoint.read_outcome(folder) if checkpoint.outcome_path(folder).exists() else {}


_NUMBERS = ("train_loss", "val_loss", "val_accuracy", "lr", "seconds")


def read_history(folder: Path, *, training: str | None = None) -> tuple[list[dict[str, Any]], int]:
    """Records of a training's epochs 1, 2, ... and the number of torn lines; others are refused.

    training: the mark of the one that they must be of; by default that which the folder's
    `final.json` tells of, where there is one.

    Example:
        >>> records, torn = training.read_history(folder)
        >>> len(records), torn, "train_loss" in records[0]
        (2, 0, True)
    """
    path = Path(folder) / "history.jsonl"
    records, torn = storage.read_lines(path)
    ended = _outcome(Path(folder))
    if training is None and ended:
        training = checkpoint.mark_of(checkpoint.identity_of(ended))
    marks = {str(record.pop("training", "")) for record in records}
    if len(marks) > 1 or (marks and training is not None and marks != {training}):
        raise LandscapeError(
            f"{path} is of another training than this folder's: it was renamed or copied there. "
            f"Put back the right one, or remove {path.parent} and train again."
        )
    epochs = [record.get("epoch") for record in records]
    wrong = [
        name
        for record in records
        for name in _NUMBERS
        if not isinstance(record.get(name), (int, float, type(None)))
    ]
    count = ended.get("epochs", len(records))
    if epochs != list(range(1, len(records) + 1)) or wrong or count != len(records):
        raise LandscapeError(
            f"{path} has {len(records)} epochs ({', '.join(map(str, epochs[:3]))}, ...) where 1 to "
            f"{count} were trained{', and no number for ' + wrong[0] if wrong else ''}: lines were "
            f"lost or changed. Take it from a copy, or remove {path.parent} and train again."
        )
    return records, torn


def check_snapshots(folder: Path) -> None:
    """Refuse snapshots of another training than the one that ended here, or if some are gone.

    Example:
        >>> training.check_snapshots(folder)  # says nothing where all is of one training
    """
    tensors, ended = snapshots.read_tensors(folder), _outcome(folder)
    mark = checkpoint.mark_of(checkpoint.identity_of(ended)) if ended else None
    if tensors is not None and mark not in (None, tensors.run):
        raise LandscapeError(
            f"{folder / 'snapshots'} is of another training than {checkpoint.outcome_path(folder)} "
            f"tells of: it was copied there. Put back the right folder, or remove {folder} and "
            f"train again."
        )
    checkpoint.check_left(folder, ended)
    _check_count(folder, "steps.bin", len(snapshots.read_steps(folder)), ended.get("steps", 0))
    seen = len(snapshots.read_correctness(folder).epochs)
    _check_count(folder, "correct.bin", seen, ended.get("epochs", 0))


def _check_count(folder: Path, name: str, found: int, trained: int) -> None:
    """Refuse a record that lost its end after the training was over."""
    if 0 < found < trained:
        raise LandscapeError(
            f"{folder / 'snapshots' / name} has {found} rows where {trained} were written: its end "
            f"was lost. Take it from a copy, or remove {folder} and train again."
        )


def _history(records: list[dict[str, Any]], said: Mapping[str, Any]) -> xr.Dataset:
    def column(name: str) -> np.ndarray:
        return np.array([np.nan if r.get(name) is None else r[name] for r in records], dtype=float)

    table = {
        "train_loss": ("nats", "Training loss, mean of the first passes"),
        "val_loss": ("nats", "Validation loss"),
        "val_accuracy": ("1", "Validation accuracy"),
        "lr": ("1", "Learning rate"),
    }
    variables = {
        name: Variable("epoch", column(name), units, words)
        for name, (units, words) in table.items()
    }
    variables["epoch_seconds"] = Variable("epoch", column("seconds"), "s", "Seconds per epoch")
    # Records count from the beginning of the training; NaN where an old one did not count.
    skipped = np.diff(column("num_skipped"), prepend=0.0)
    words = "Steps skipped in the epoch, without a finite gradient"
    variables["num_skipped"] = Variable("epoch", skipped, "1", words)
    epochs = [record["epoch"] for record in records]
    return results.make("history", variables, coords={"epoch": epochs}, provenance=said)


def _perturbations(steps: Steps, said: Mapping[str, Any]) -> xr.Dataset:
    epochs = np.unique(steps.epoch)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([_mean(values[steps.epoch == e]) for e in epochs]).astype(np.float32)

    norm, share, weights = steps["perturbation_norm"], steps["energy_share"], steps["weight_norm"]
    with np.errstate(divide="ignore", invalid="ignore"):
        radius = np.where(steps["rho"] > 0, norm / steps["rho"], np.nan)
        ratio = np.where(weights > 0, np.sqrt(share) * norm[:, None] / weights, np.nan)
    gap = steps["loss_perturbed"] - steps["loss_clean"]
    both = ("epoch", "tensor")
    table = {
        "energy_share": (both, share, "1", "Share of ‖e‖²"),
        "density": (both, steps["density"], "1", "Share of coordinates perturbed"),
        "norm_ratio": (both, ratio, "1", "Perturbation over weights ‖e_l‖/‖w_l‖"),
        "first_order": (both, steps["first_order"], "nats", "First-order effect g₁·e"),
        "perturbation_norm": ("epoch", norm, "1", "‖e‖"),
        "radius_ratio": ("epoch", radius, "1", "Effective over nominal radius ‖e‖/ρ"),
        "cosine": ("epoch", steps["cosine"], "1", "cos(g₁, g₂)"),
        "sharpness_gap": ("epoch", gap, "nats", "Loss increase of the ascent on its own batch"),
    }
    variables = {k: Variable(d, mean(v), units, words) for k, (d, v, units, words) in table.items()}
    known = steps.tensors
    coords = {
        "epoch": epochs.astype(np.int64),
        "tensor": list(known.names),
        "kind": ("tensor", list(known.kinds)),
        "size": ("tensor", list(known.sizes)),
    }
    said = {**said, "unseen": dict(known.unseen), "skipped": list(steps.skipped)}
    return results.make("perturbation_history", variables, coords=coords, provenance=said)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean over steps, of those that could be seen."""
    seen = ~np.isnan(values)
    with np.errstate(invalid="ignore"):
        return np.where(seen, values, 0.0).sum(0, dtype=np.float64) / seen.sum(0)
