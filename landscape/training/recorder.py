"""What each step perturbed: scalars of every step, masks and z-scores of some.

Collected on the device, copied to the host and appended once per epoch or 200 steps
(`landscape.snapshots`).
"""

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from landscape import snapshots, vectors
from landscape.params import ParamLayout
from landscape.sam import SAM, Perturbation
from landscape.snapshots import GRID, PER_TENSOR, SCALARS, Tensors
from landscape.streams import Histogram, PackedMasks, host, spread_of_rounding
from landscape.training.options import RecorderOptions, TrainingOptions

Gradients = Sequence[Tensor | None]
_FLUSH = 200  # steps kept in memory at most


def estimate_bytes(
    layout: ParamLayout, options: TrainingOptions, recorder: RecorderOptions, *, num_examples: int
) -> int:
    """Bytes that a recorder writes at most, file headers included; counted before training.

    layout: of the model; options, recorder: of the training; num_examples: of the training set.

    Example:
        >>> options = training.TrainingOptions(epochs=2, batch_size=16)
        >>> layout, kept = ParamLayout.of(model), training.RecorderOptions(snapshots=1)
        >>> training.estimate_bytes(layout, options, kept, num_examples=48) > 0
        True
    """
    steps = options.epochs * options.steps_per_epoch(num_examples)
    tensors = tensors_of(layout)
    rows = steps * tensors.row.itemsize if recorder.scalars else 0
    chosen = recorder.most(steps) * tensors.snapshot_bytes
    right = options.epochs * (16 + (num_examples + 7) // 8) if recorder.correctness else 0
    return rows + chosen + right


def tensors_of(
    layout: ParamLayout, unseen: dict[str, str] | None = None, *, run: str = ""
) -> Tensors:
    """The recorded tensors of a model, in the recording that `run` names."""
    infos = layout.tensors
    return Tensors(
        layout.names,
        tuple(i.kind for i in infos),
        tuple(i.numel for i in infos),
        tuple(i.ndim for i in infos),
        unseen or {},
        run,
    )


def weight_norms(parameters: Sequence[Tensor]) -> Tensor:
    """‖w_l‖ per tensor, (tensors,)."""
    with torch.no_grad():
        norms = vectors.lengths([p.detach() for p in parameters])
        return torch.stack([norm.to(norms[0].device) for norm in norms])


class Log:
    """Rows and snapshots of steps, whoever took them; written to a run's `snapshots` folder."""

    def __init__(self, folder: Path, tensors: Tensors) -> None:
        self.folder, self.tensors = Path(folder), tensors
        self.rows: list[tuple[int, int, Tensor]] = []
        self.waiting: list[tuple[int, np.ndarray, np.ndarray | None]] = []
        self.begun = False

    def row(self, epoch: int, step: int, seen: Perturbation, norms: Tensor) -> None:
        """Keep the scalars of a step. norms: ‖w_l‖ at w."""
        self.rows.append((epoch, step, row_of(seen, norms)))

    def snapshot(self, step: int, seen: Perturbation) -> None:
        """Write masks and z-scores of a step; what a full disk refuses is kept for `flush`."""
        whole = seen.masks is None or all(m is True for m in seen.masks)
        bits = None  # a variant that selects everything has no mask to remember
        if not whole and any(e is not None for e in seen.perturbed):
            bits = PackedMasks.of(seen.mask).bits
        self.waiting.append((step, zscore_counts(seen.g1), bits))
        self._write_waiting()

    def begin(self) -> None:
        """Say what the files are about, once."""
        if not self.begun:
            snapshots.write_tensors(self.folder, self.tensors)
            self.begun = True

    def _write_waiting(self) -> None:
        self.begin()
        while self.waiting:
            step, counts, bits = self.waiting[0]
            snapshots.write_snapshot(
                self.folder, step, self.tensors, zscore_counts=counts, mask_bits=bits
            )
            del self.waiting[0]

    def flush(self) -> None:
        """Append the rows kept so far; they stay kept when that fails."""
        self.begin()
        if self.rows:
            found = torch.stack([values for _, _, values in self.rows]).cpu().numpy()
            rows = np.zeros(len(found), self.tensors.row)
            rows["epoch"] = [epoch for epoch, _, _ in self.rows]
            rows["step"] = [step for _, step, _ in self.rows]
            for i, name in enumerate(SCALARS):
                rows[name] = found[:, i]
            wide = found[:, len(SCALARS) :].reshape(len(found), len(PER_TENSOR), -1)
            for i, name in enumerate(PER_TENSOR):
                rows[name] = wide[:, i]
            snapshots.steps_file(self.folder, self.tensors).append(rows)
            self.rows = []
        self._write_waiting()


class Recorder:
    """Follows a SAM optimizer through `train`."""

    def __init__(
        self,
        folder: Path,
        options: RecorderOptions,
        optimizer: SAM,
        chosen: Collection[int],
        *,
        run: str = "",
    ) -> None:
        self.options, self.optimizer = options, optimizer
        self.chosen = chosen
        self.log = Log(folder, tensors_of(ParamLayout.of(optimizer.model), run=run))
        self.norms = torch.empty(0)

    def forget_after(self, epoch: int, step: int) -> None:
        """Remove what a killed training wrote beyond its last checkpoint."""
        snapshots.forget_after(self.log.folder, epoch=epoch, step=step)

    def before(self) -> None:
        """Look at the weights before a step."""
        if self.options.scalars:
            self.norms = weight_norms(self.optimizer.trained.parameters)

    def record(self, epoch: int, step: int) -> None:
        """Keep the step that was just taken, of an epoch from 1."""
        if self.options.scalars:
            self.log.row(epoch, step, self.optimizer.perturbation, self.norms)
        if step in self.chosen:
            self.log.snapshot(step, self.optimizer.perturbation)
        if len(self.log.rows) >= _FLUSH:  # an epoch can be long, and is read while it goes on
            self.log.flush()

    def correctness(self, epoch: int, correct: Tensor) -> None:
        """Keep which training examples (N,) are right after an epoch (from 1)."""
        self.log.begin()  # says of which training the rows are
        file = snapshots.correctness_file(self.log.folder, len(correct), self.log.tensors.run)
        file.append(snapshots.correctness_row(file, epoch, host(correct)))

    def flush(self) -> None:
        """Write what is kept."""
        if self.options.scalars or self.chosen:
            self.log.flush()


def row_of(seen: Perturbation, norms: Tensor, *, gradients: bool = True) -> Tensor:
    """The scalars of a step. norms: ‖w_l‖ at w. gradients: whether they were kept."""
    values = scalars(seen, norms)
    if not gradients:
        values[-len(norms) :] = torch.nan  # the first-order effect, last of PER_TENSOR
    return values


def scalars(seen: Perturbation, norms: Tensor) -> Tensor:
    """A row of steps.bin: SCALARS, then PER_TENSOR one after the other, float64 on the device."""
    like = seen.loss_clean
    told = [seen.loss_clean, seen.loss_perturbed, seen.norm, seen.rho, seen.cosine, seen.climbed]
    head = torch.stack([_wide(s, like.device) for s in told])
    shares = torch.stack(list(seen.energy_share.values()))
    wide = [shares, torch.stack(_densities(seen)), norms, _first_order(seen)]
    return torch.cat([head, *(w.to(torch.float64) for w in wide)])


def _first_order(seen: Perturbation) -> Tensor:
    """<g1_l, e_l> of every tensor, 0 where one of the two is missing."""
    both = [
        (i, g, e) for i, (g, e) in enumerate(zip(seen.g1, seen.perturbed, strict=True))
        if g is not None and e is not None
    ]  # fmt: skip
    # Placed by the host: an index of the device would be an upload in every step.
    zero = torch.zeros((), dtype=torch.float64, device=seen.loss_clean.device)
    out = [zero] * len(seen.names)
    if both:
        found = vectors.dots([g for _, g, _ in both], [e for _, _, e in both])
        for (i, _, _), dot in zip(both, found, strict=True):
            out[i] = dot.to(zero)
    return torch.stack(out)


def _wide(value: Tensor | float, device: torch.device) -> Tensor:
    """In float64 on the device, where a number is filled in and not uploaded."""
    if isinstance(value, Tensor):
        return value.to(device, torch.float64)
    return torch.full((), float(value), dtype=torch.float64, device=device)


def _densities(seen: Perturbation) -> list[Tensor]:
    """Selected share per tensor: of the mask, or 1 where the whole tensor was perturbed."""
    device = seen.loss_clean.device
    entries = seen.masks or [True] * len(seen.names)
    return [
        torch.full((), float(e is not None and m), device=device)
        if e is None or isinstance(m, bool)
        else torch.count_nonzero(m) / m.numel()
        for e, m in zip(seen.perturbed, entries, strict=True)
    ]


def zscore_counts(gradients: Gradients) -> np.ndarray:
    """Counts of (g - mean) / std per tensor: (tensors, bins + 3), then below, above and NaN.

    std is unbiased. All NaN where there is none (one element, equal ones, NaN); all zero where
    there was no gradient.
    """
    empty = np.zeros(GRID.bins + 3, dtype=np.uint32)
    return np.stack([empty if g is None else _counts(g) for g in gradients])


def _counts(gradient: Tensor) -> np.ndarray:
    found = host(gradient).ravel()
    values, eps = found.astype(np.float64), float(np.finfo(found.dtype).eps)
    mean, std = values.mean(), values.std(ddof=1) if values.size > 1 else 0.0
    varies = std > spread_of_rounding(values, eps)  # False for NaN
    z = (values - mean) / std if varies else np.full_like(values, np.nan)
    seen = Histogram.of(z, GRID)
    return np.array([*seen.counts, seen.below, seen.above, seen.nan], dtype=np.uint32)
