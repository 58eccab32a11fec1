"""A finished run: its model, its data, the fixed examples it is measured on, its checkpoints."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import xarray as xr
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from landscape import problems, sam, storage, training
from landscape.errors import LandscapeError
from landscape.params import ParamLayout
from landscape.risk import BNMode, EmpiricalRisk, takes_batch
from landscape.study import together
from landscape.study.problem import DTYPES, data_key, make_loss, make_model, make_recipe, read_data
from landscape.study.spec import Job, Run
from landscape.training.batches import crop_and_flip

_OF_ROWS = {"fisher_data", "per_example_losses"}


class FinishedRun:
    """What a measurement may ask of a finished run."""

    def __init__(self, job: Job, *, trained: bool = True) -> None:
        self.job, self.run, self.seed, self.trained = job, job.run, job.spec.seed, trained
        self.weights: problems.WeightsReport | None = None  # what was measured, once it is loaded
        self._risks: dict[Any, EmpiricalRisk] = {}

    @cached_property
    def data(self) -> Any:
        """The splits."""
        return read_data(self.job)

    @cached_property
    def model(self) -> nn.Module:
        """The model with the weights of the checkpoint (initial ones when not `trained`)."""
        model = make_model(self.run, self.data, self.job.base)
        if self.trained:
            self.weights = _load(model, self.run, self.job.folder)
        # Where processes measure together, devices hold parts of it alone.
        return model if together.measuring() else model.to(self.job.device)

    @property
    def theta(self) -> Tensor:
        """Parameters of the checkpoint, (P,)."""
        return self.risk().theta

    @cached_property
    def examples(self) -> problems.Split | problems.Batches:
        """The fixed examples: a stratified subset of the split, the same for runs of one seed.

        And of all seeds, unless the study redraws its data.
        """
        split = getattr(self.data, self.job.spec.split)
        if split is None:
            raise LandscapeError(
                f"[measure] split = {self.job.spec.split!r}: the data {self.run.problem.data!r} "
                f"have no such split."
            )
        return split.some(self.job.spec.examples, seed=self.seed)

    def risk(self) -> EmpiricalRisk:
        """Mean loss over the fixed examples, made once."""
        if "fixed" not in self._risks:
            self._risks["fixed"] = self._risk(self.examples, bn=self.job.spec.bn)
        return self._risks["fixed"]

    def risk_of_other_bn(self) -> EmpiricalRisk | None:
        """The same in the other BatchNorm mode than [measure] bn; None without BatchNorm."""
        if not any(isinstance(m, _BatchNorm) for m in self.model.modules()):
            return None
        other: BNMode = "full_batch" if self.job.spec.bn == "eval" else "eval"
        return self._risk(self.examples, bn=other)

    def _risk(
        self,
        part: problems.Split | problems.Batches,
        *,
        bn: BNMode,
        model: nn.Module | None = None,
    ) -> EmpiricalRisk:
        device = torch.device(self.job.device)
        return EmpiricalRisk(
            together.cut(self.model if model is None else model, device),
            make_loss(self.run, self.job.base),
            part.data,
            bn=bn,
            reduction=None if isinstance(part, problems.Split) else part.reduction,
            device=device,
            dtype=DTYPES[self.run.dtype],
        )

    def peer(self, name: str) -> Run:
        """The run of the setting called "variant" (its first seed) or "variant/seed"."""
        variant, _, seed = name.partition("/")
        found = [run for run in self.job.peers if variant in (run.variant, run.family)]
        if seed:
            found = [run for run in found if str(run.seed) == seed]
        if not found:
            known = ", ".join(dict.fromkeys(f"{r.variant}/{r.seed}" for r in self.job.peers))
            raise LandscapeError(
                f"No trained run {name!r} in setting {self.run.setting!r}; it has {known}."
            )
        return min(found, key=lambda run: run.seed)

    def theta_of(self, run: Run) -> Tensor:
        """Parameters of another run of the setting, (P,); one of another architecture is named.

        One that was trained on another draw of the data is refused: between them lies no one loss.
        """
        if self.run.problem.redraw and data_key(run) != data_key(self.run):
            raise LandscapeError(
                f"{run.run_id} was trained on another draw of the data than {self.run.run_id} "
                f"(redraw = {list(self.run.problem.redraw)}), so there is no one loss between "
                f"them. Name runs of one seed."
            )
        model = make_model(run, read_data(replace(self.job, run=run)), self.job.base)
        _load(model, run, self.job.folder.parent / run.run_id)
        layout, own = ParamLayout.of(model), self.risk().layout
        if [(t.name, t.shape) for t in layout.tensors] != [(t.name, t.shape) for t in own.tensors]:
            raise LandscapeError(
                f"{run.run_id} has another architecture ({run.problem.model}, P = "
                f"{layout.num_parameters}) than {self.run.run_id} ({self.run.problem.model}, P = "
                f"{own.num_parameters}); nothing lies between them. Put them in two settings."
            )
        return layout.flatten(dict(model.named_parameters())).detach().to(self.theta)

    def checkpoints(self) -> dict[int, Tensor]:
        """Parameters by epoch: the initial ones, those that `keep_every` kept, the final ones.

        Of weights from elsewhere by the step in the name of their file.
        """
        model = make_model(self.run, self.data, self.job.base)
        layout = self.risk().layout
        found = {}
        if self.run.weights is not None:
            for step, path in self.run.trail.items():
                problems.load_weights(model, path, weights_key=self.run.weights_key)
                theta = layout.flatten(dict(model.named_parameters())).detach()
                found[step] = theta.to(self.theta, copy=True)
            return found
        kept = self.kept_weights()
        for epoch, path in [(0, None), *sorted(kept.items())]:
            if path is not None:
                self.load(model, path)
            theta = layout.flatten(dict(model.named_parameters())).detach()
            found[epoch] = theta.to(self.theta, copy=True)
        return found

    def load(self, model: nn.Module, path: Path) -> problems.WeightsReport:
        """The weights of a checkpoint of this run into a model; those of another are refused."""
        if self.run.weights is None:
            ended = training.checkpoint.own_outcome(self.job.folder, self.run.run_id)
            training.checkpoint.check_own(self.job.folder, path, ended)
        return problems.load_weights(model, path, weights_key=self.run.weights_key)

    def kept_weights(self) -> dict[int, Path]:
        """Weights files of the training by epoch, the final ones among them; all must be there."""
        ended = training.checkpoint.own_outcome(self.job.folder, self.run.run_id)
        training.checkpoint.check_left(self.job.folder, ended)
        last = {int(self.run.training["epochs"]): storage.final_path(self.job.folder)}
        return storage.kept_weights(self.job.folder) | last

    def kept_risks(self, split: str) -> Iterator[tuple[int, EmpiricalRisk]]:
        """(epoch, risk over a split) with weights and buffers as `keep_every` kept them."""
        data = getattr(self.data, split)
        kept = self.kept_weights()
        for epoch, path in sorted(kept.items()):
            model = make_model(self.run, self.data, self.job.base)
            self.load(model, path)
            yield epoch, self._risk(data, bn="eval", model=model)

    def initial_theta(self) -> Tensor:
        """Parameters before the first step, (P,)."""
        model = make_model(self.run, self.data, self.job.base)
        named = dict(model.named_parameters())
        return self.risk().layout.flatten(named).detach().to(self.theta)

    def split_risks(self) -> dict[str, EmpiricalRisk]:
        """One risk per split that the data have, over all of its examples."""
        splits = {name: getattr(self.data, name) for name in ("train", "val", "test")}
        return {
            name: self._risk(split, bn="eval")
            for name, split in splits.items()
            if split is not None and len(split)
        }

    @property
    def has_classes(self) -> bool:
        """Whether every example has one class as its target."""
        y = self.data.train.y
        if takes_batch(make_loss(self.run, self.job.base)) or y is None:
            return False  # what is predicted is between the model and its loss
        return y.ndim == 1 and not y.is_floating_point()

    def clean_targets(self) -> Tensor | None:
        """True classes of the training examples, where they are known and differ."""
        split = self.data.train
        if split.y_clean is None or torch.equal(split.y_clean, split.y):
            return None
        return split.y_clean

    def variant(self) -> sam.Variant | None:
        """The variant the run was trained with; None for an optimizer of the user's own."""
        made = make_recipe(self.run.recipe, self.run.options, self.job.base)
        return made if isinstance(made, sam.Variant) else None

    def counterfactuals(self, names: Sequence[str]) -> Mapping[str, sam.Variant]:
        """Variants of the study, or recipes with their defaults, by name.

        Where the loss couples the rows of a batch, those that read single examples are left out.
        """
        found = {name: self._variant_called(name) for name in names}
        if "units" not in self.risk().provenance():
            return found
        return {name: v for name, v in found.items() if not _OF_ROWS & set(v.needs)} or found

    def _variant_called(self, name: str) -> sam.Variant:
        """A row, or of a variant with several rows the one most like this run's."""
        found = [v for v in self.job.variants if v.name == name]
        found = found or [v for v in self.job.variants if v.family == name]
        if found:
            own = self.run.axes.items()
            like = max(found, key=lambda v: sum(v.axes.get(key) == value for key, value in own))
            if like.recipe != "none":
                made = make_recipe(like.recipe, like.options, self.job.base)
                if isinstance(made, sam.Variant):
                    return made
            raise LandscapeError(
                f"{name!r} cannot be asked what it would perturb here: its recipe, "
                f"{like.recipe!r}, is no variant of landscape.sam. Leave it out of the option "
                f"`variants`."
            )
        if name in sam.recipes():
            return sam.make(name, {})
        known = [*(v.name for v in self.job.variants), *sam.recipes()]
        raise LandscapeError(
            f"unknown variant {name!r} to compare; possible: {', '.join(dict.fromkeys(known))}."
        )

    def slots(self) -> dict[str, Any] | None:
        """Masks and averages of the run's optimizer at its last step; None if there are none."""
        variant = self.variant()
        if self.run.weights is not None or variant is None:
            return None
        state = training.checkpoint.read_state(self.job.folder, device=self.job.device)
        if state is None:
            return None
        ended = training.checkpoint.own_outcome(self.job.folder, self.run.run_id)
        training.checkpoint.check_identity(
            self.job.folder, state["identity"], training.checkpoint.identity_of(ended)
        )
        parameters = [p for p in self.model.parameters() if p.requires_grad]
        base = training.TrainingOptions(**self.run.training).optimizer(parameters)
        optimizer = sam.SAM(self.model, base, variant)
        optimizer.load_state_dict(state["optimizer"])
        return optimizer.slots

    def recorded(self, run: Run) -> Path:
        """The folder of a run, whose snapshots were found to be of its own training."""
        folder = self.job.folder.parent / run.run_id
        if folder.is_dir():
            training.checkpoint.own_outcome(folder, run.run_id)
            training.check_snapshots(folder)
        return folder

    def at_most(self, batch_size: int) -> int:
        """A batch size that the fixed examples allow."""
        return min(batch_size, self.examples.num_rows)

    def history(self, name: str) -> xr.Dataset | None:
        """What the training recorded, as one result; None for weights from elsewhere."""
        if self.run.weights is not None:
            return None
        return training.consolidate(self.job.folder, loss=self.run.problem.loss).get(name)


def try_weights(job: Job) -> None:
    """Load the weights that a run is given, and refuse those of another model."""
    model = make_model(job.run, read_data(job), job.base)
    _load(model, job.run, job.folder)


def _load(model: nn.Module, run: Run, folder: Path) -> problems.WeightsReport:
    """The weights of a run into its model; those of another run in its folder are refused."""
    if run.weights is not None:
        return problems.load_weights(model, Path(run.weights), weights_key=run.weights_key)
    path = storage.final_path(folder)
    ended = training.checkpoint.own_outcome(folder, run.run_id)
    training.checkpoint.check_own(folder, path, ended)
    return problems.load_weights(model, path)


class Checkpoints(Sequence[EmpiricalRisk]):
    """The fixed examples at every kept checkpoint, with its own running statistics.

    `epochs`: 0 (the initial weights), the multiples of `[training] keep_every`, the last one; of
    weights from elsewhere the steps of their files. `rates`: the learning rate of the last step of
    each epoch, of the first one for epoch 0; 0, for not known, of weights from elsewhere. A risk is
    loaded when it is asked for, one at a time.
    """

    def __init__(self, done: FinishedRun) -> None:
        self._done = done
        if done.run.weights is not None:
            self._paths: list[Path | None] = [Path(path) for path in done.run.trail.values()]
            self.epochs = list(done.run.trail)
            self.rates = [0.0] * len(self.epochs)
            return
        if not done.run.training["keep_every"]:
            raise LandscapeError(
                f"Curvature along the training of {done.run.run_id} asked, which kept no "
                f"checkpoint; set [training] keep_every (1: every epoch)."
            )
        paths = dict(sorted(done.kept_weights().items()))
        self._paths = [None, *paths.values()]
        self.epochs = [0, *paths]
        self.rates = self._rates()

    def _rates(self) -> list[float]:
        records, _ = training.read_history(self._done.job.folder)
        rates = {record["epoch"]: float(record["lr"]) for record in records}
        options = training.TrainingOptions(**self._done.run.training)
        size = options.steps_per_epoch(len(self._done.data.train))
        rates[0] = options.learning_rate(0, options.epochs * size, size)
        return [rates[epoch] for epoch in self.epochs]

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, number: int) -> EmpiricalRisk:  # ty: ignore[incompatible-method-override]  # one at a time
        done = self._done
        model = make_model(done.run, done.data, done.job.base)
        path = self._paths[number]
        if path is not None:
            done.load(model, path)
        return done._risk(done.examples, bn=done.job.spec.bn, model=model)


def training_objective(done: FinishedRun) -> EmpiricalRisk:
    """The fixed examples under the loss that was minimized, at the run's checkpoint.

    Label smoothing and weight decay are those of the training (decay of AdamW is no part of a
    loss), augmentation is one draw by the study's seed, the same for every run.
    """
    if done.run.weights is not None:
        raise LandscapeError(
            f"objective = 'training' asked of {done.run.run_id}, whose weights come from a file; "
            f"use objective = 'data'."
        )
    options = training.TrainingOptions(**done.run.training)
    part = done.examples
    if options.augment == "crop_flip" and isinstance(part, problems.Split):
        random = torch.Generator().manual_seed(done.seed)
        part = replace(part, x=crop_and_flip(part.x, generator=random))
    loss = make_loss(done.run, done.job.base)
    if options.label_smoothing:
        loss = torch.nn.CrossEntropyLoss(label_smoothing=options.label_smoothing)
    return EmpiricalRisk(
        done.model,
        loss,
        part.data,
        bn=done.job.spec.bn,
        reduction=None if isinstance(part, problems.Split) else part.reduction,
        weight_decay=0.0 if options.base == "adamw" else options.weight_decay,
        device=torch.device(done.job.device),
        dtype=DTYPES[done.run.dtype],
    )
