"""What each step perturbed: scalars of every step, masks and z-scores of some.

Written per epoch to `snapshots/steps-<epoch>.npz` (rows are steps) and per chosen step to
`snapshots/<step>.npz`; both are whole or absent. `snapshots/tensors.json` names the tensors.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape import storage
from landscape.params import ParamLayout
from landscape.sam import SAM, Perturbation
from landscape.streams import Grid, Histogram, PackedMasks, host
from landscape.training.options import RecorderOptions, TrainingOptions

SCALARS = ("loss_clean", "loss_perturbed", "perturbation_norm", "rho", "cosine")
GRID = Grid(bins=241)


def estimate_bytes(
    layout: ParamLayout, options: TrainingOptions, recorder: RecorderOptions, *, num_examples: int
) -> int:
    """Bytes that a recorder writes at most, file headers included; counted before training."""
    steps = options.epochs * options.steps_per_epoch(num_examples)
    tensors = len(layout.tensors)
    row = 4 * (len(SCALARS) + 2 * tensors) if recorder.scalars else 0
    bits = sum((t.numel + 7) // 8 for t in layout.tensors)
    snapshot = bits + 4 * tensors * (GRID.bins + 3) + 4096
    epochs = options.epochs * 2048 if recorder.scalars else 0
    return steps * row + epochs + len(recorder.steps(steps)) * snapshot


class Recorder:
    """Collects on the device, copies to the host and writes once per epoch."""

    def __init__(self, folder: Path, options: RecorderOptions, optimizer: SAM, steps: int) -> None:
        self.folder, self.options, self.optimizer = Path(folder), options, optimizer
        self.chosen = options.steps(steps)
        self.rows: list[Tensor] = []
        trained = optimizer.trained
        self.sizes = [p.numel() for p in trained.parameters]
        known = {
            "names": list(trained.names),
            "kinds": list(trained.kinds),
            "sizes": self.sizes,
            "ndims": [p.ndim for p in trained.parameters],
        }
        if self.active and not (self.folder / "tensors.json").exists():
            storage.write_json(self.folder / "tensors.json", known)

    @property
    def active(self) -> bool:
        """Whether anything is kept."""
        return self.options.scalars or bool(self.chosen)

    def forget_after(self, epoch: int, step: int) -> None:
        """Remove what a killed training wrote beyond its last checkpoint."""
        for path in self.folder.glob("[!.]*.npz"):
            number = path.stem.removeprefix("steps-")
            late = int(number) > epoch if path.stem != number else int(number) >= step
            if late:
                path.unlink()

    def record(self, step: int) -> None:
        """Keep the step that was just taken."""
        if not self.active:
            return
        seen = self.optimizer.perturbation
        if self.options.scalars:
            self.rows.append(self._row(seen))
        if step in self.chosen:
            self._snapshot(step, seen)

    def _row(self, seen: Perturbation) -> Tensor:
        like = seen.loss_clean
        scalars = [seen.loss_clean, seen.loss_perturbed, seen.norm, seen.rho, seen.cosine]
        row = [torch.as_tensor(s, dtype=torch.float32, device=like.device) for s in scalars]
        shares = [s.to(torch.float32) for s in seen.energy_share.values()]
        return torch.stack(row + shares + self._densities(seen))

    def _densities(self, seen: Perturbation) -> list[Tensor]:
        """Selected share per tensor: of the mask, or 1 where the whole tensor was perturbed."""
        device = seen.loss_clean.device
        entries = seen.masks or [True] * len(self.sizes)
        return [
            torch.full((), float(e is not None and m), device=device)
            if e is None or isinstance(m, bool)
            else m.sum(dtype=torch.float32) / size
            for e, m, size in zip(seen.perturbed, entries, self.sizes, strict=True)
        ]

    def _snapshot(self, step: int, seen: Perturbation) -> None:
        content: dict[str, Any] = {}
        if any(m is not True for m in seen.masks or []) and any(
            e is not None for e in seen.perturbed
        ):  # a variant that selects everything has no mask to remember
            content["mask_bits"] = PackedMasks.of(seen.mask).bits
        empty = np.zeros(GRID.bins + 3, dtype=np.uint32)
        counts = [empty if g is None else _zscore_counts(g) for g in seen.g1]
        content["zscore_counts"] = np.stack(counts)
        _write(self.folder / f"{step:08d}.npz", content)

    def flush(self, epoch: int) -> None:
        """Write the rows of an epoch (from 1)."""
        if not self.rows:
            return
        rows = torch.stack(self.rows).cpu().numpy()
        self.rows = []
        tensors, first = len(self.sizes), len(SCALARS)
        content = {name: rows[:, i] for i, name in enumerate(SCALARS)}
        content["energy_share"] = rows[:, first : first + tensors]
        content["density"] = rows[:, first + tensors :]
        _write(self.folder / f"steps-{epoch:06d}.npz", content)


def _zscore_counts(gradient: Tensor) -> np.ndarray:
    """Counts of (g - mean) / std per bin, then below, above and NaN; all NaN when std is 0."""
    values = host(gradient).astype(np.float64).ravel()
    spread = values.std()
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (values - values.mean()) / spread if spread > 0 else np.full_like(values, np.nan)
    found = Histogram.of(z, GRID)
    return np.array([*found.counts, found.below, found.above, found.nan], dtype=np.uint32)


def _write(path: Path, content: dict[str, Any]) -> None:
    def write(temporary: Path) -> None:
        with temporary.open("wb") as handle:
            np.savez_compressed(handle, **content)

    storage.write_atomically(path, write)
