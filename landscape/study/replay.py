"""A training looked at again: its kept checkpoints as risks, and the loss that it minimized."""

from collections.abc import Sequence
from pathlib import Path

import torch

from landscape import training
from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from landscape.study.bench import DTYPES, Bench, make_loss, make_model
from landscape.training.batches import crop_and_flip


class Checkpoints(Sequence[EmpiricalRisk]):
    """The fixed examples at every kept checkpoint, with its own running statistics.

    `epochs`: 0 (the initial weights), the multiples of `[training] keep_every`, the last one; of
    weights from elsewhere the steps of their files. `rates`: the learning rate of the last step of
    each epoch, of the first one for epoch 0; 0, for not known, of weights from elsewhere. A risk is
    loaded when it is asked for, one at a time.
    """

    def __init__(self, bench: Bench) -> None:
        self._bench = bench
        if bench.run.weights is not None:
            self._paths: list[Path | None] = [Path(path) for path in bench.run.trail.values()]
            self.epochs = list(bench.run.trail)
            self.rates = [0.0] * len(self.epochs)
            return
        folder = bench.job.folder / "checkpoints"
        last = int(bench.run.training["epochs"])
        paths = {int(p.stem.removeprefix("epoch-")): p for p in folder.glob("epoch-*.safetensors")}
        if not bench.run.training["keep_every"]:
            raise LandscapeError(
                f"Curvature along the training of {bench.run.run_id} asked, which kept no "
                f"checkpoint; set [training] keep_every (1: every epoch)."
            )
        paths[last] = folder / "final.safetensors"
        self._paths = [None, *(paths[epoch] for epoch in sorted(paths))]
        self.epochs = [0, *sorted(paths)]
        self.rates = self._rates()

    def _rates(self) -> list[float]:
        records, _ = training.read_history(self._bench.job.folder)
        rates = {record["epoch"]: float(record["lr"]) for record in records}
        options = training.TrainingOptions(**self._bench.run.training)
        size = options.steps_per_epoch(len(self._bench.data.train))
        rates[0] = options.learning_rate(0, options.epochs * size, size)
        return [rates[epoch] for epoch in self.epochs]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> EmpiricalRisk:
        bench = self._bench
        model = make_model(bench.run, bench.data, bench.job.base)
        path = self._paths[number]
        if path is not None:
            bench.load(model, path)
        return EmpiricalRisk(
            model,
            make_loss(bench.run, bench.job.base),
            bench.examples,
            bn=bench.job.spec.bn,
            device=torch.device(bench.job.device),
            dtype=DTYPES[bench.run.dtype],
        )


def training_objective(bench: Bench) -> EmpiricalRisk:
    """The fixed examples under the loss that was minimized, at the run's checkpoint.

    Label smoothing and weight decay are those of the training (decay of AdamW is no part of a
    loss), augmentation is one draw by the study's seed, the same for every run.
    """
    if bench.run.weights is not None:
        raise LandscapeError(
            f"objective = 'training' asked of {bench.run.run_id}, whose weights come from a file; "
            f"use objective = 'data'."
        )
    options = training.TrainingOptions(**bench.run.training)
    x, y = bench.examples
    if options.augment == "crop_flip":
        x = crop_and_flip(x, generator=torch.Generator(x.device).manual_seed(bench.seed))
    loss = make_loss(bench.run, bench.job.base)
    if options.label_smoothing:
        loss = torch.nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
    return EmpiricalRisk(
        bench.model,
        loss,
        (x, y),
        bn=bench.job.spec.bn,
        weight_decay=0.0 if options.base == "adamw" else options.weight_decay,
        device=torch.device(bench.job.device),
        dtype=DTYPES[bench.run.dtype],
    )
