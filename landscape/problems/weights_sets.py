"""Which tensors of a weights file are the model's: found by its own names, behind any prefix."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.problems.weights_file import WeightsFile, tensors_of

# Names that wrappers put between a model's own: DataParallel and DDP, torch.compile, FSDP,
# activation checkpointing, DeepSpeed and Fabric.
WRAPPERS = frozenset({
    "module", "_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module",
    "_forward_module", "_original_module",
})  # fmt: skip
# Sets that lie beside the weights of a training and are derived from them.
_DERIVED = re.compile(
    r"(?:^|[_\W])(?:ema|swa|avg|averaged?|averages|polyak|shadow|optim|optimizer|momentum"
    r"|exp_avg|exp_avg_sq|grads?)(?:$|[_\W\d])",
    re.IGNORECASE,
)
# Numbers that tools leave in a state_dict and no forward pass reads.
_COUNTERS = frozenset({"total_ops", "total_params", "n_averaged", "num_batches_tracked"})
TOP = "."

Place = tuple[str, ...]


@dataclass(frozen=True)
class _FileTensor:
    """A tensor of the file: the mapping it lies in, the tokens of its name, those of wrappers."""

    where: Place
    tokens: Place
    value: Tensor
    array: bool = False  # of numpy
    wrappers: Place = ()


@dataclass
class WeightSet:
    """Entries behind one prefix whose names are the model's."""

    prefix: Place
    named: dict[str, _FileTensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        """The prefix as `weights_key` has it."""
        return ".".join(self.prefix) or TOP

    @property
    def fits(self) -> bool:
        """Whether every name of the model is there, in its shape."""
        return not (self.missing or self.shapes)

    @property
    def derived(self) -> bool:
        """Whether it is an average or a moment of the weights, by its name."""
        return any(_DERIVED.search(token) for token in self.prefix)

    def equals(self, other: "WeightSet") -> bool:
        """Whether both hold the same weights, bit for bit."""
        return self.named.keys() == other.named.keys() and all(
            _same(entry.value, other.named[name].value) for name, entry in self.named.items()
        )


class WeightSets:
    """All sets of entries in a file that carry names of the model."""

    def __init__(self, own: Mapping[str, Tensor], file: WeightsFile) -> None:
        self.own, self.file = own, file
        self.entries = [
            _FileTensor(
                where,
                (*_tokens(where), *name.split(".")),
                torch.from_numpy(value) if isinstance(value, np.ndarray) else value,
                isinstance(value, np.ndarray),
            )
            for where, name, value in tensors_of(file.content)
        ]
        self.twins = twins_of(own)
        self.sets = self._sets()
        self.complete = [each for each in self.sets if each.fits]

    def _sets(self) -> list[WeightSet]:
        wrappers = WRAPPERS
        names = {_without(name.split("."), wrappers): name for name in self.own}
        if len(names) < len(self.own):  # the model has a module called "module" of its own
            wrappers = WRAPPERS - {token for name in self.own for token in name.split(".")}
            names = {tuple(name.split(".")): name for name in self.own}
        sets: dict[Place, WeightSet] = {}
        for entry in self.entries:
            for at in range(len(entry.tokens)):
                tail = entry.tokens[at:]
                if tail[0] in wrappers:
                    continue
                name = names.get(_without(tail, wrappers))
                if name is not None:
                    found = sets.setdefault(entry.tokens[:at], WeightSet(entry.tokens[:at]))
                    inside = tuple(t for t in (*entry.tokens[:at], *tail) if t in wrappers)
                    found.named.setdefault(name, replace(entry, wrappers=inside))
        for each in sets.values():
            self._judge(each)
        return sorted(sets.values(), key=lambda s: (len(s.missing) + len(s.shapes), len(s.prefix)))

    def _judge(self, found: WeightSet) -> None:
        for name, target in self.own.items():
            entry = found.named.get(name)
            if entry is None:
                if any(twin in found.named for twin in self.twins[name]):
                    continue
                counter = name.endswith("num_batches_tracked")
                (found.absent if counter else found.missing).append(name)
            elif entry.value.shape != target.shape:
                found.shapes.append(
                    f"{name} is {tuple(entry.value.shape)} in the file and {tuple(target.shape)} "
                    f"in the model"
                )

    def choose(self, key: str | None) -> WeightSet:
        """The set that is meant; several that differ, and none, are refused with what there is."""
        if key is not None:
            asked = TOP if key in ("", TOP) else key
            named = [s for s in self.sets if asked == s.label]
            named = named or [s for s in self.sets if asked == _plain(s.prefix)]
            named = named or [s for s in self.sets if s.label.startswith(asked + ".")]
            if not named:
                raise LandscapeError(
                    f"{self.file.path} has no weights of this model under weights_key = {key!r}; "
                    f"it has {self._labels(self.complete or self.sets)}."
                )
            fitting = [each for each in named if each.fits] or named[:1]
        else:
            raw = [each for each in self.complete if not each.derived]
            fitting = raw or self.complete
        if not fitting:
            return self._with_unexpected(self.sets[0]) if self.sets else self._nothing()
        different = [each for each in fitting[1:] if not each.equals(fitting[0])]
        if different:
            raise LandscapeError(
                f"{self.file.path} holds several weights that fit the model: "
                f"{self._labels([fitting[0], *different])}. Say which with weights_key "
                f"(--weights-key)."
            )
        return self._with_unexpected(fitting[0])

    def _labels(self, sets: Sequence[WeightSet]) -> str:
        return ", ".join(repr(each.label) for each in sets[:8]) or "none"

    def _nothing(self) -> WeightSet:
        file = self.file
        if not self.entries:
            content = file.content
            keys = list(content) if isinstance(content, Mapping) else [type(content).__name__]
            hint = ""
            if {"param_groups", "state"} <= set(map(str, keys)):
                hint = " It is the state of an optimizer; the weights are in another file."
            raise LandscapeError(f"{file.path} holds no weights ({some([*map(str, keys)])}).{hint}")
        there = [".".join(entry.tokens) for entry in self.entries]
        advice = "Give the model that was trained, or its own weights."
        if any("_packed_params" in name for name in there):
            advice = "Its weights are quantized; give those of the model before quantization."
        raise LandscapeError(
            f"{file.path} holds no tensor by a name of the model: it has {some(there)} where the "
            f"model has {some([*self.own])}. {advice}"
        )

    def _with_unexpected(self, chosen: WeightSet) -> WeightSet:
        """Add what lies beside the chosen entries, under their prefix, and is not the model's."""
        tables = {entry.where for entry in chosen.named.values()}
        taken = {entry.tokens for each in self.complete for entry in each.named.values()}
        taken |= {entry.tokens for entry in chosen.named.values()}
        size = len(chosen.prefix)
        arrays = any(entry.array for entry in chosen.named.values())
        chosen.unexpected = [
            ".".join(entry.tokens[size:])
            for entry in self.entries
            if entry.where in tables
            and entry.tokens[:size] == chosen.prefix
            and entry.tokens not in taken
            and entry.tokens[-1] not in _COUNTERS
            and (arrays or not entry.array)  # a table of results beside tensors
            and not (entry.value.ndim == 0 and len(entry.tokens) == size + 1)
        ]
        return chosen

    def left_out(self, chosen: WeightSet) -> tuple[str, ...]:
        """What else the file holds, by the shortest names that tell it apart."""
        taken = {entry.tokens for entry in chosen.named.values()}
        heads = {entry.tokens[: len(entry.where)] for entry in chosen.named.values()}
        content = self.file.content
        said = []
        if isinstance(content, Mapping) and () not in heads:
            inside = {entry.tokens[0] for entry in chosen.named.values()}
            said += [key for key in map(str, content) if _tokens((key,))[0] not in inside]
        elif isinstance(content, Mapping):
            numbers = Tensor | np.ndarray
            said += [str(key) for key, value in content.items() if not isinstance(value, numbers)]
        tables = {entry.where for entry in chosen.named.values()}
        said += [
            ".".join(entry.tokens[len(_tokens(entry.where)) :])
            for entry in self.entries
            if entry.where in tables and entry.tokens not in taken
        ]
        return tuple(dict.fromkeys(said))


def _tokens(where: Place) -> Place:
    return tuple(token for part in where for token in part.split("."))


def _without(tokens: Sequence[str], wrappers: frozenset[str]) -> Place:
    return tuple(token for token in tokens if token not in wrappers)


def _plain(prefix: Place) -> str:
    return ".".join(_without(prefix, WRAPPERS)) or TOP


def twins_of(own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For each name the other names of the very same tensor."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, value in own.items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype, str(value.device))
        groups[place if value.numel() and value.layout == torch.strided else name].append(name)
    return {name: [t for t in group if t != name] for group in groups.values() for name in group}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def some(items: Sequence[str], most: int = 8) -> str:
    """The first names, and how many more there are."""
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")
