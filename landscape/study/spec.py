"""What a study is, once its file has been read: runs, measurements, comparisons.

A run's name ends in a hash of everything that decides its numbers (problem, recipe and its options,
training options, seed, arithmetic, the weights file or user code where there are any, the version
of this package) and of nothing else: a new title keeps the results, a new rho makes a new run.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import landscape
from landscape.metrics import OUTCOMES
from landscape.storage import folder_name

if TYPE_CHECKING:
    from landscape.risk import BNMode

METRICS = OUTCOMES  # what [comparisons] metric may name
REDRAWS = ("split", "label_noise")  # what [problem] redraw may name


def fingerprint(value: Any, *, length: int = 8) -> str:
    """First `length` hexadecimal digits of the SHA-256 of canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


@dataclass(frozen=True)
class Problem:
    """Data, model and loss: names of ours, or "package.module:callable" of yours.

    data_seed: of the split, and of the label noise where `noise_seed` is None. redraw: which of
    `REDRAWS` every seed of the study draws anew; a run holds what its own seed has `drawn`.
    """

    data: str = "digits"
    model: str = "cnn"
    loss: str = "cross_entropy"
    label_noise: float = 0.0
    noise_kind: str = "symmetric"
    data_seed: int = 0
    noise_seed: int | None = None
    redraw: tuple[str, ...] = ()
    data_dir: str | None = None
    splits: tuple[int, int, int] | None = None
    verify: bool = True

    def drawn(self, seed: int) -> "Problem":
        """The problem that seed `seed` meets: what is drawn anew has its seed plus this one.

        The same for every variant, so that runs of one seed share their data and are pairs.
        """
        split = noise = self.data_seed
        if self.noise_seed is not None:
            noise = self.noise_seed
        if "split" in self.redraw:
            split += seed
        if "label_noise" in self.redraw:
            noise += seed
        # Two spellings of one draw would be two runs.
        return replace(self, data_seed=split, noise_seed=None if noise == split else noise)


@dataclass(frozen=True)
class Setting:
    """A version of the problem that all variants meet, e.g. with label noise."""

    name: str
    title: str
    problem: Problem
    training: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class VariantSpec:
    """A recipe of `landscape.sam` with its options, under the name the study gives it.

    Of a row (`Study.variants`): `family` is the variant of the file, `axes` its values on the axes.
    """

    name: str
    recipe: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    family: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Run:
    """One training, or one checkpoint trained elsewhere (`weights`).

    variant: the row, a variant of the file (`family`) with a value of each of its axes. `axes`: its
    values on the axes of the study, without the training options that the variant's own table
    fixes (`fixed`); runs of different variants are comparable where these agree.
    """

    variant: str
    label: str
    setting: str
    seed: int
    problem: Problem
    recipe: str
    options: Mapping[str, Any]
    training: Mapping[str, Any]
    dtype: str = "float32"
    weights: str | None = None
    weights_key: str | None = None  # which of several sets in that file
    code: Mapping[str, str] = field(default_factory=dict)  # sha256 of weights file and user modules
    family: str = ""
    axes: Mapping[str, Any] = field(default_factory=dict)
    fixed: tuple[str, ...] = ()
    trail: Mapping[int, str] = field(
        default_factory=dict
    )  # weights files of earlier steps, by step

    @property
    def decisive(self) -> dict[str, Any]:
        """Everything that decides the numbers; where files lie is left out."""
        given = self.problem
        # What a seed has drawn, its own seeds of data say: `redraw` adds nothing.
        unset: dict[str, Any] = {
            "data_dir": given.data_dir, "splits": None, "verify": True, "noise_seed": None,
            "redraw": given.redraw,
        }  # fmt: skip
        problem = {
            key: value
            for key, value in asdict(given).items()
            if key not in unset or value != unset[key]
        }
        parts = {
            "problem": problem,
            "recipe": self.recipe,
            "options": dict(self.options),
            "seed": self.seed,
            "dtype": self.dtype,
            "code": dict(self.code),
            "version": landscape.__version__,
        }
        # A finished checkpoint has no training of ours; epochs in [training] must not rename it.
        own = {"training": dict(self.training)} if not self.weights else {}
        return parts | own | ({"weights_key": self.weights_key} if self.weights_key else {})

    @cached_property
    def run_id(self) -> str:
        """<variant of the file>-s<seed>-<hash of `decisive`>."""
        return f"{folder_name(self.family)}-s{self.seed}-{fingerprint(self.decisive)}"

    @property
    def labels(self) -> dict[str, Any]:
        """Coordinates of this run in combined results."""
        return {
            "run": self.run_id,
            "variant": self.variant,
            "label": self.label,
            "family": self.family,
            "setting": self.setting,
            "seed": self.seed,
            "rho": self.options.get("rho", 0.0 if self.recipe == "sgd" else None),
            "lr": None if self.weights else self.training.get("lr"),
            "batch_size": None if self.weights else self.training.get("batch_size"),
            **self.axes,
            "axes": json.dumps(dict(self.axes)),
        }


@dataclass(frozen=True)
class Measurement:
    """One measurement with all its options spelled out."""

    name: str
    options: Mapping[str, Any]
    first_seed_only: bool = False
    across_runs: bool = False  # made once all runs of the setting are trained
    perturbs: bool = False  # asks what the run's own recipe perturbs


@dataclass(frozen=True)
class MeasureSpec:
    """What is measured, and the fixed examples it is measured on."""

    examples: int
    split: str
    bn: "BNMode"
    seed: int
    measurements: tuple[Measurement, ...]

    def key(
        self,
        measurement: Measurement,
        peers: Sequence[Run] = (),
        variants: Sequence[VariantSpec] = (),
    ) -> str:
        """Fingerprint of what is behind a result; with another one it is measured again.

        peers: the runs of the setting, for a measurement across runs. variants: all of the study,
        which a measurement may name in its option `variants`.
        """
        common = (self.examples, self.split, self.bn, self.seed)
        parts = [measurement.name, dict(measurement.options), common]
        if measurement.across_runs:
            parts.append([run.run_id for run in peers])
        named = measurement.options.get("variants", ())
        asked = [
            (v.name, v.recipe, dict(v.options))
            for v in variants
            if v.name in named or v.family in named
        ]
        if asked:
            parts.append(asked)
        return fingerprint(parts, length=16)


@dataclass(frozen=True)
class Question:
    """What is asked, and the pairs of variants (a, b) whose differences a - b answer it."""

    asked: str
    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Comparisons:
    """The comparisons declared before the numbers are seen.

    margin: the change of the metric that counts as none, a share of the error or of the loss, or
    the metric's own unit for a gap; None for the metric's own (a tenth of the error).
    """

    metric: str
    setting: str
    references: tuple[str, ...]
    questions: tuple[Question, ...] = ()
    margin: float | None = None


@dataclass(frozen=True)
class Study:
    """A study file, read and checked.

    name, question: as in the file. base: where paths and modules of the file are looked up. text:
    the file, `file` its path ("" for a text without one). settings, variants, runs: what is
    trained; families: the variants as the file has them, controls: those that are only compared
    with. measure, comparisons: what is asked of the runs. dtype: "float32" or "float64".

    Example:
        >>> plan = study.parse(study.demo_text(quick=True), base=Path.cwd())
        >>> plan.name, len(plan.variants), len(plan.runs)
        ('digits-quick', 3, 3)
    """

    name: str
    question: str
    base: Path  # relative paths and user modules are looked up here
    text: str  # the file as it was given
    settings: tuple[Setting, ...]
    variants: tuple[VariantSpec, ...]  # the rows, variants in the order of the file
    runs: tuple[Run, ...]
    measure: MeasureSpec
    comparisons: Comparisons | None
    dtype: str = "float32"
    families: tuple[VariantSpec, ...] = ()  # the variants of the file that have runs
    controls: tuple[VariantSpec, ...] = ()  # [variants.<name>] that no run trains: to compare with
    file: str = ""  # which a folder belongs to, see `landscape.study.continued`

    def first_seed(self, run: Run) -> bool:
        """Whether `run` has the lowest seed of its setting and row."""
        return run.seed == self._first_seeds[run.setting, run.variant]

    @cached_property
    def _first_seeds(self) -> dict[tuple[str, str], int]:
        """Lowest seed of each setting and row, found in one pass over the runs."""
        seeds: dict[tuple[str, str], int] = {}
        for run in self.runs:
            row = (run.setting, run.variant)
            seeds[row] = min(seeds.get(row, run.seed), run.seed)
        return seeds

    def measurements_of(self, run: Run) -> tuple[Measurement, ...]:
        """The measurements that this run gets."""
        first = self.first_seed(run)
        return tuple(
            m
            for m in self.measure.measurements
            if (first or not m.first_seed_only) and not (m.perturbs and run.recipe == "none")
        )


@dataclass(frozen=True)
class Job:
    """What a worker needs to know about one run."""

    run: Run
    folder: Path
    base: Path
    measurements: tuple[tuple[Measurement, str], ...]  # with the key its result must carry
    variants: tuple[VariantSpec, ...]  # of the whole study: masks are compared between variants
    spec: MeasureSpec
    device: str
    threads: int
    train: bool = True
    measure: bool = True
    peers: tuple[Run, ...] = ()  # trained runs of the setting, this one among them
