"""One record per measurement: all that a study, its estimate, its list and its tests know of it."""

import inspect
import math
import types
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import xarray as xr

from landscape import measure
from landscape.checks import MOST
from landscape.errors import LandscapeError
from landscape.study import possible
from landscape.study.spec import Run

Options = Mapping[str, Any]
# In gradients over the same examples: a forward pass, and a Hessian product on a kept graph.
FORWARD, PRODUCT = 1 / 3, 2.0
BLOCKS = {"tensor": 20, "module": 10, "kind": 4}  # of a typical network
LANCZOS = 20  # products until an extreme eigenvalue has converged, typically


@dataclass(frozen=True)
class Work:
    """What a cost may depend on beside the options: sizes of the data, the run, its setting."""

    run: Run
    num_runs: int  # of the setting
    num_examples: int  # the fixed ones
    num_data: int  # all splits together

    @property
    def over_data(self) -> float:
        """A forward pass over all splits, in gradients over the fixed examples."""
        return self.num_data / self.num_examples * FORWARD

    @property
    def checkpoints(self) -> int:
        """Weights that the training keeps, the initial and the final ones among them."""
        if self.run.weights is not None:
            return max(1, len(self.run.trail))
        every, epochs = int(self.run.training["keep_every"]), int(self.run.training["epochs"])
        return 2 + (math.ceil(epochs / every) - 1 if every else 0)


# What the estimates of these need to say how sure they are, or a line to be one.
LEAST = {
    "points": 3, "fine_points": 3, "num_probes": 2, "num_pairs": 2, "num_draws": 2, "num_nodes": 2,
    "max_iterations": 2, "num_folds": 2,
}  # fmt: skip
_WORDS: dict[Any, str] = {
    int: "a whole number", float: "a number", str: "a word", bool: "true or false",
}  # fmt: skip
Cost = Callable[[Options, Work], float]
Agree = Callable[[Options, int], None]
Fits = Callable[[Options, Any], None]


def nothing(_options: Options, _work: Work) -> float:
    """Cost of what only reads files."""
    return 0.0


@runtime_checkable
class Measure(Protocol):
    """(bench, *, options) -> Dataset, or None where a run has nothing of the kind."""

    __name__: str

    def __call__(self, *bench: Any, **options: Any) -> xr.Dataset | None:
        """The result."""
        ...


@dataclass(frozen=True)
class Record:
    """A measurement of [measure.<name>].

    measure: (done, *, options) -> Dataset, or None where a run has nothing of the kind; its
    signature is the list of options with their types. of: the functions of `landscape.measure` that
    it calls, the one of its name unless given: an option without a default in the signature has
    theirs, so that a study and a call measure the same; None there, for "as many as there are" or
    "none", is 0, false or an empty list here. differs: options whose default is another than there,
    each with the reason. cost: (options, work) -> gradients over the fixed examples, counted from
    the algorithms. default: made without being asked. first_seed_only: by default once per row.
    across_runs: made when all runs of a setting are trained. choices: the words that an option may
    be, where its type is no Literal. least, most: bounds of a number (least by default: that of
    LEAST, or 1 for whole numbers, 0 for others). above, below: options that are above 0, or below a
    number. agree: (options, number of examples), refuses options that do not go together. fits:
    (options, the run before its training), refuses what its data or model has not. variants:
    options that name variants. perturbs: needs a known recipe; left out for runs of recipe "none".
    along_training: needs checkpoints of more than one step. drawn: has a figure in the report (else
    a table of its own, or data alone where they are too large).
    """

    measure: Measure
    cost: Cost
    named: str = ""
    of: tuple[Callable[..., Any], ...] = ()
    differs: Mapping[str, str] = field(default_factory=dict)
    default: bool = False
    first_seed_only: bool = False
    across_runs: bool = False
    choices: Mapping[str, Collection[str]] = field(default_factory=dict)
    least: Mapping[str, float] = field(default_factory=dict)
    most: Mapping[str, float] = field(default_factory=dict)
    above: tuple[str, ...] = ()
    below: Mapping[str, float] = field(default_factory=dict)
    agree: Agree | None = None
    fits: Fits | None = None
    variants: tuple[str, ...] = ()
    perturbs: bool = False
    along_training: bool = False
    drawn: bool = True

    @property
    def name(self) -> str:
        """The word of the study file and of the result."""
        return self.named or self.measure.__name__

    @property
    def said(self) -> str:
        """What it is: the first paragraph of the function's docstring."""
        return (inspect.getdoc(self.measure) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def sections(self) -> tuple[str, ...]:
        """Headings of the report under which it is drawn."""
        from landscape.report.sections import SECTIONS

        return tuple(
            title
            for title, entries in SECTIONS
            if any(self.name in entry.measurements for entry in entries)
        )

    @property
    def _parameters(self) -> dict[str, inspect.Parameter]:
        known = inspect.signature(self.measure).parameters.values()
        return {p.name: p for p in known if p.kind is inspect.Parameter.KEYWORD_ONLY}

    @cached_property
    def options(self) -> dict[str, Any]:
        """Options with their defaults."""
        there = self.defaults_there
        return {
            name: _plain(there[name] if p.default is p.empty else p.default, p.annotation)
            for name, p in self._parameters.items()
        }

    @cached_property
    def defaults_there(self) -> dict[str, Any]:
        """Defaults of the functions that are called, as they have them."""
        own = getattr(measure, self.name, None)
        parameters = [
            p
            for function in self.of or (() if own is None else (own,))
            for p in inspect.signature(function).parameters.values()
        ]
        return {p.name: p.default for p in parameters if p.default is not p.empty}

    def check(self, where: str, options: Options) -> dict[str, Any]:
        """The options in their declared types; a value that cannot be right is refused by name."""
        return {
            name: self._checked(f"{where} {name}", self._parameters[name], value)
            for name, value in options.items()
        }

    def _checked(self, where: str, parameter: inspect.Parameter, value: Any) -> Any:
        kind, name = parameter.annotation, parameter.name
        if typing.get_origin(kind) is tuple:
            if not isinstance(value, (list, tuple)):
                raise LandscapeError(f"{where} = {value!r} is not a list; write [{value!r}].")
            inner = typing.get_args(kind)[0]
            found = [self._one(f"{where} =", name, inner, item, within=True) for item in value]
            if len(set(found)) < len(found):
                raise LandscapeError(f"{where} = {list(value)} has a value twice; remove one.")
            if not found and self.options[parameter.name]:
                raise LandscapeError(f"{where} = [] is empty; give at least one value.")
            return found
        return self._one(f"{where} =", name, kind, value, default=self.options[name])

    def _one(
        self,
        where: str,
        name: str,
        kind: type | types.UnionType,
        value: Any,
        *,
        within: bool = False,
        default: Any = None,
    ) -> Any:
        choices = typing.get_args(kind) if typing.get_origin(kind) is typing.Literal else ()
        kind = str if choices else kind
        right = isinstance(value, kind) and (kind is bool) == isinstance(value, bool)
        if kind is float:
            right = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not right:
            raise LandscapeError(f"{where} {value!r} is not {_WORDS[kind]}.")
        if kind is str:
            choices = self.choices.get(name, choices)
            if choices:
                possible.choice(where.removesuffix(" ="), value, choices)
            return value
        if kind is bool:
            return value
        # A whole number whose default is 0 is "as many as there are" at 0.
        usual = 0 if kind is float or (default == 0 and not within) else LEAST.get(name, 1)
        low = self.least.get(name, usual)
        positive = kind is float and within and name not in self.least
        positive = positive or name in self.above
        high = self.most.get(name, math.inf if kind is float else MOST)
        under = self.below.get(name, math.inf)
        inside = math.isfinite(value) and low <= value <= high and value < under
        if not inside or (positive and value <= 0):
            bound = "above 0" if positive else f"from {low:g} on"
            bound += f", {high:g} at most" if math.isfinite(high) else ""
            bound += f", below {under:g}" if math.isfinite(under) else ""
            raise LandscapeError(f"{where} {value!r} is not possible; give a number {bound}.")
        return float(value) if kind is float else value


def _plain(default: Any, kind: Any) -> Any:
    """A default as a study file writes it."""
    if default is None:
        return [] if typing.get_origin(kind) is tuple else kind()
    return list(default) if isinstance(default, tuple) else default


def agreed(record: Record, options: Options, num_examples: int) -> None:
    """Refuse options that do not go together, on so many examples."""
    _asked(record, record.agree, options, num_examples)


def fitted(record: Record, options: Options, before: Any) -> None:
    """Refuse options that name what the data or the model of a run has not."""
    _asked(record, record.fits, options, before)


def _asked(record: Record, check: Callable[..., None] | None, *asked: Any) -> None:
    if check is None:
        return
    try:
        check(*asked)
    except LandscapeError as error:
        where = f"[measure.{record.name}]"
        said = str(error).removeprefix(where).strip()
        raise LandscapeError(f"{where} {said}") from None


def names_checked(
    record: Record, options: Options, known: Sequence[str], seeds: Collection[int]
) -> None:
    """Refuse names of variants that are neither in the study nor recipes, and seeds of no run."""
    asked = [("seeds", str(seed)) for seed in options.get("seeds", ())]
    for option in record.variants:
        for name in options.get(option, ()):
            variant, of_seed, seed = name.partition("/")
            possible.choice(f"[measure.{record.name}] {option}", variant, known)
            asked += [(option, seed)] if of_seed else []
    for option, seed in asked:
        possible.choice(f"[measure.{record.name}] {option}: seed", seed, [str(s) for s in seeds])
