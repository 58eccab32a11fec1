"""What a training left behind, as results."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from landscape import results, storage
from landscape.errors import LandscapeError
from landscape.results import Variable
from landscape.streams import PackedMasks, persistence


def consolidate(folder: Path) -> dict[str, xr.Dataset]:
    """Results of a run's folder by measurement name; what was not recorded is absent.

    history (epoch): train_loss, val_loss, val_accuracy, lr, epoch_seconds.
    perturbation_history (epoch, tensor): means over the steps of an epoch of energy_share, density,
    perturbation_norm, radius_ratio ‖e‖/rho, cosine cos(g1, g2), sharpness_gap L(w+e) - L(w).
    mask_persistence (lag): jaccard, kappa and the chance value expected_jaccard of masks `lag`
    steps apart, means over pairs; only for variants with masks.
    """
    folder = Path(folder)
    records, torn = storage.read_lines(folder / "history.jsonl")
    if not records:
        why = _outcome(folder).get("message") or "it was not trained yet"
        raise LandscapeError(f"{folder} holds no epoch of a training: {why}.")
    said = {"torn_lines": torn, **_outcome(folder)}
    found = {"history": _history(records, said)}
    steps = read_steps(folder)
    tensors = folder / "snapshots" / "tensors.json"
    if steps:
        found["perturbation_history"] = _perturbations(steps, storage.read_json(tensors), said)
    masks = read_masks(folder)
    if len(masks) > 1:
        found["mask_persistence"] = _persistence(masks, said)
    return found


def _outcome(folder: Path) -> dict[str, Any]:
    path = folder / "checkpoints" / "final.json"
    return storage.read_json(path) if path.exists() else {}


def read_steps(folder: Path) -> dict[str, np.ndarray]:
    """Per-step scalars of all epochs, (steps,) or (steps, tensors), with the `epoch` of each."""
    parts, epochs = [], []
    for path in sorted((Path(folder) / "snapshots").glob("steps-*.npz")):
        parts.append(_npz(path))
        epochs += [int(path.stem.removeprefix("steps-"))] * len(parts[-1]["rho"])
    if not parts:
        return {}
    return {"epoch": np.array(epochs)} | {
        name: np.concatenate([part[name] for part in parts]) for name in parts[0]
    }


def read_masks(folder: Path) -> list[tuple[int, PackedMasks]]:
    """(step, masks) of the snapshots that have masks."""
    folder = Path(folder) / "snapshots"
    if not (folder / "tensors.json").exists():
        return []
    tensors = storage.read_json(folder / "tensors.json")
    found = []
    for path in sorted(folder.glob("[0-9]*.npz")):
        content = _npz(path)
        if "mask_bits" in content:
            packed = PackedMasks(
                tuple(tensors["names"]), tuple(tensors["sizes"]), content["mask_bits"]
            )
            found.append((int(path.stem), packed))
    return found


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as content:
            return dict(content)
    except Exception as error:  # a damaged archive fails in many ways
        raise LandscapeError(
            f"{path} is not a whole snapshot ({type(error).__name__}). Remove the run's folder and "
            f"train again."
        ) from None


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
    epochs = [record["epoch"] for record in records]
    return results.make("history", variables, coords={"epoch": epochs}, provenance=said)


def _perturbations(
    steps: Mapping[str, np.ndarray], tensors: Mapping[str, Any], said: Mapping[str, Any]
) -> xr.Dataset:
    epochs = np.unique(steps["epoch"])

    def mean(values: np.ndarray) -> np.ndarray:
        return np.stack([values[steps["epoch"] == e].mean(0) for e in epochs]).astype(np.float32)

    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(steps["rho"] > 0, steps["perturbation_norm"] / steps["rho"], np.nan)
    both = ("epoch", "tensor")
    variables = {
        "energy_share": Variable(both, mean(steps["energy_share"]), "1", "Share of ‖e‖²"),
        "density": Variable(both, mean(steps["density"]), "1", "Share of coordinates perturbed"),
        "perturbation_norm": Variable("epoch", mean(steps["perturbation_norm"]), "1", "‖e‖"),
        "radius_ratio": Variable("epoch", mean(ratio), "1", "Effective over nominal radius ‖e‖/ρ"),
        "cosine": Variable("epoch", mean(steps["cosine"]), "1", "cos(g₁, g₂)"),
        "sharpness_gap": Variable(
            "epoch",
            mean(steps["loss_perturbed"] - steps["loss_clean"]),
            "nats",
            "Loss increase of the ascent step on its own batch",
        ),
    }
    coords = {
        "epoch": epochs,
        "tensor": tensors["names"],
        "kind": ("tensor", tensors["kinds"]),
        "size": ("tensor", tensors["sizes"]),
    }
    return results.make("perturbation_history", variables, coords=coords, provenance=said)


def _persistence(masks: list[tuple[int, PackedMasks]], said: Mapping[str, Any]) -> xr.Dataset:
    last = masks[-1][0]
    lags = [2**i for i in range(max(1, last).bit_length()) if 2**i <= last]
    found, overlaps = persistence(masks, lags)
    pooled = [overlap.pooled() for overlap in overlaps]

    def mean(name: str) -> np.ndarray:
        values = [np.asarray(getattr(p, name), dtype=float) for p in pooled]
        return np.array(
            [v[~np.isnan(v)].mean() if (~np.isnan(v)).any() else np.nan for v in values]
        )

    words = {
        "jaccard": "Jaccard overlap of masks",
        "expected_jaccard": "Jaccard overlap expected by chance",
        "kappa": "Overlap beyond chance (Cohen's κ)",
    }
    variables = {name: Variable("lag", mean(name), "1", text) for name, text in words.items()}
    pairs = [len(p.common) for p in pooled]
    variables["num_pairs"] = Variable("lag", pairs, "1", "Pairs of masks")
    steps = [step for step, _ in masks]
    return results.make(
        "mask_persistence", variables, coords={"lag": found}, provenance={**said, "steps": steps}
    )
