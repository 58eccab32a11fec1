"""Weights from files, chosen by the model's own names and copied all or none."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from landscape import storage
from landscape.errors import LandscapeError
from landscape.problems.weights_file import WeightsFile, read, tensors_of

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
class WeightsReport:
    """What a weights file was found to be, and what was done with it.

    chosen: key and prefix before the model's names, "." without one; undone: wrappers taken out of
    names; others: further sets that fit the model and were not taken; left_out: what else the file
    holds; absent: batch counters it lacks; tied: names that share another's tensor and were left
    out by the file; converted: precisions that changed; sha256 of the file's bytes; checksum: what
    the file says of its own bytes ("sha256", "crc32"), None where nothing does.
    path: the file. num_tensors: how many were copied.

    Example:
        >>> torch.save({"state_dict": model.state_dict()}, "weights.pt")
        >>> said = problems.load_weights(make_model(seed=1), "weights.pt")
        >>> said.num_tensors, said.chosen
        (9, 'state_dict')
    """

    path: str
    sha256: str
    num_tensors: int
    chosen: str = TOP
    undone: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()
    tied: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    checksum: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """For a provenance: what there is to say, long lists cut with their length."""
        found = {key: value for key, value in asdict(self).items() if value not in ((), None)}
        return {
            key: _shortened(value) if isinstance(value, tuple) else value
            for key, value in found.items()
        }

    def __str__(self) -> str:
        said = [f"{self.num_tensors} tensors from {self.path}"]
        if self.chosen != TOP:
            said.append(f"found under {self.chosen!r}")
        if self.undone:
            said.append(f"{' and '.join(map(repr, self.undone))} taken out of names")
        if self.others:
            said.append(
                f"NOT {' or '.join(map(repr, self.others))}, which the file also holds "
                f"(weights_key chooses)"
            )
        if self.left_out:
            said.append(f"left out: {_some(self.left_out)}")
        if self.tied:
            said.append(f"tied and so not in the file: {_some(self.tied)}")
        if self.absent:
            said.append(f"{len(self.absent)} batch counters not in the file")
        said += self.converted
        said.append(f"SHA-256 {self.sha256[:16]}…")
        if self.checksum is None:
            said.append("no checksum of its own")
        return ", ".join(said) + "."


def load_weights(
    model: nn.Module,
    path: str | Path,
    *,
    weights_key: str | None = None,
    sha256: str | None = None,
    trust_pickle: str | None = None,
) -> WeightsReport:
    """Copy the tensors of a weights file into the model, all or none; nothing in it is run.

    The file is known by its content: safetensors, torch.save (.pt, .pth, .bin, .ckpt, .t7, any
    name), the index of a sharded checkpoint, a folder with one. The weights are found by the
    model's own names, under whatever keys and prefixes they lie, without the names of wrappers
    (`WRAPPERS`). Where several sets fit, an average beside raw weights is left and said, others
    are refused: weights_key names one as the message lists them, "." for names at the top.

    Missing and unexpected names, other shapes, integer, complex, quantized and non-finite values
    for real weights raise one LandscapeError that lists them. Only BatchNorm's batch counters and
    names tied to one that is there may be missing. sha256: that of the file, where it is known.
    trust_pickle: SHA-256 of a file whose Python objects may be made (`weights_file.read`).
    path: the file or folder.

    Example:
        >>> torch.save(model.state_dict(), "weights.pt")
        >>> fresh = make_model(seed=1)
        >>> problems.load_weights(fresh, "weights.pt").num_tensors
        9
        >>> bool(torch.equal(fresh[0].weight, model[0].weight))
        True
    """
    file = read(path, trust_pickle=trust_pickle)
    if sha256 is not None and sha256.lower() != file.sha256:
        raise LandscapeError(
            f"{path} has the SHA-256 {file.sha256} where {sha256} is expected: it is another file."
        )
    own = {k: v for k, v in model.state_dict().items() if isinstance(v, Tensor)}
    lazy = [name for name, value in own.items() if is_lazy(value)]
    if lazy:
        raise LandscapeError(
            f"{type(model).__name__} has no shape for {lazy[0]} yet; run one batch through it."
        )
    found = _Sets(own, file)
    chosen = found.choose(weights_key)
    _check(file, chosen, model, own)
    converted = _copy(chosen, own)
    tied = tuple(name for name in own if name not in chosen.named and name not in chosen.absent)
    return WeightsReport(
        path=str(path),
        sha256=file.sha256,
        num_tensors=len(own) - len(chosen.absent),
        chosen=chosen.label,
        undone=tuple(sorted({t for e in chosen.named.values() for t in e.wrappers})),
        others=tuple(each.label for each in found.complete if each is not chosen),
        left_out=found.left_out(chosen),
        absent=tuple(chosen.absent),
        tied=tied,
        converted=converted,
        checksum=file.checksum,
    )


@dataclass(frozen=True)
class _FileTensor:
    """A tensor of the file: the mapping it lies in, the tokens of its name, those of wrappers."""

    where: Place
    tokens: Place
    value: Tensor
    array: bool = False  # of numpy
    wrappers: Place = ()


@dataclass
class _Set:
    """Entries behind one prefix whose names are the model's."""

    prefix: Place
    named: dict[str, _FileTensor] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)
    shapes: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)

    @property
    def label(self) -> str:
        return ".".join(self.prefix) or TOP

    @property
    def fits(self) -> bool:
        return not (self.missing or self.shapes)

    @property
    def derived(self) -> bool:
        return any(_DERIVED.search(token) for token in self.prefix)

    def equals(self, other: "_Set") -> bool:
        """Whether both hold the same weights, bit for bit."""
        return self.named.keys() == other.named.keys() and all(
            _same(entry.value, other.named[name].value) for name, entry in self.named.items()
        )


class _Sets:
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
        self.twins = _twins(own)
        self.sets = self._sets()
        self.complete = [each for each in self.sets if each.fits]

    def _sets(self) -> list[_Set]:
        wrappers = WRAPPERS
        names = {_without(name.split("."), wrappers): name for name in self.own}
        if len(names) < len(self.own):  # the model has a module called "module" of its own
            wrappers = WRAPPERS - {token for name in self.own for token in name.split(".")}
            names = {tuple(name.split(".")): name for name in self.own}
        sets: dict[Place, _Set] = {}
        for entry in self.entries:
            for at in range(len(entry.tokens)):
                tail = entry.tokens[at:]
                if tail[0] in wrappers:
                    continue
                name = names.get(_without(tail, wrappers))
                if name is not None:
                    found = sets.setdefault(entry.tokens[:at], _Set(entry.tokens[:at]))
                    inside = tuple(t for t in (*entry.tokens[:at], *tail) if t in wrappers)
                    found.named.setdefault(name, replace(entry, wrappers=inside))
        for each in sets.values():
            self._judge(each)
        return sorted(sets.values(), key=lambda s: (len(s.missing) + len(s.shapes), len(s.prefix)))

    def _judge(self, found: _Set) -> None:
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

    def choose(self, key: str | None) -> _Set:
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

    def _labels(self, sets: Sequence[_Set]) -> str:
        return ", ".join(repr(each.label) for each in sets[:8]) or "none"

    def _nothing(self) -> _Set:
        file = self.file
        if not self.entries:
            content = file.content
            keys = list(content) if isinstance(content, Mapping) else [type(content).__name__]
            hint = ""
            if {"param_groups", "state"} <= set(map(str, keys)):
                hint = " It is the state of an optimizer; the weights are in another file."
            raise LandscapeError(
                f"{file.path} holds no weights ({_some([*map(str, keys)])}).{hint}"
            )
        there = [".".join(entry.tokens) for entry in self.entries]
        advice = "Give the model that was trained, or its own weights."
        if any("_packed_params" in name for name in there):
            advice = "Its weights are quantized; give those of the model before quantization."
        raise LandscapeError(
            f"{file.path} holds no tensor by a name of the model: it has {_some(there)} where the "
            f"model has {_some([*self.own])}. {advice}"
        )

    def _with_unexpected(self, chosen: _Set) -> _Set:
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

    def left_out(self, chosen: _Set) -> tuple[str, ...]:
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


def _twins(own: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """For each name the other names of the very same tensor."""
    groups: dict[Any, list[str]] = defaultdict(list)
    for name, value in own.items():
        place = (value.data_ptr(), value.shape, value.stride(), value.dtype, str(value.device))
        groups[place if value.numel() and value.layout == torch.strided else name].append(name)
    return {name: [t for t in group if t != name] for group in groups.values() for name in group}


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def _check(file: WeightsFile, chosen: _Set, model: nn.Module, own: Mapping[str, Tensor]) -> None:
    """Names, shapes and values, before anything is copied."""
    tables = (
        ("missing", chosen.missing), ("unexpected", chosen.unexpected),
        ("other shapes", chosen.shapes),
    )  # fmt: skip
    problems = [f"{title}: {_some(items)}" for title, items in tables if items]
    if problems:
        advice = "Give the model that was trained, or its own weights."
        if file.shard and chosen.missing:
            advice = "It is one shard of several: give the index (….index.json) or the folder."
        elif chosen.missing and all("running_" in name for name in chosen.missing):
            advice = (
                "Its parameters were saved without BatchNorm's statistics; save model.state_dict()."
            )
        raise LandscapeError(
            f"{file.path} holds the weights of another model than {type(model).__name__} "
            f"({'; '.join(problems)}). {advice}"
        )
    for name, target in own.items():
        if name in chosen.named:
            why = _unfit(chosen.named[name].value, target)
            if why:
                raise LandscapeError(f"{file.path}: {name} {why}.")
    for names in {tuple(sorted([name, *twins])) for name, twins in _twins(own).items() if twins}:
        given = [name for name in names if name in chosen.named]
        first = given[0] if given else ""
        for other in given[1:]:
            if not torch.equal(chosen.named[first].value, chosen.named[other].value):
                raise LandscapeError(
                    f"{file.path} has different values for {first} and {other}, which are one "
                    f"tensor of this {type(model).__name__}. Build the model with untied weights."
                )


def _unfit(value: Tensor, target: Tensor) -> str:
    """Why a tensor of the file cannot stand for one of the model; empty where it can."""
    if value.is_quantized or value.layout != torch.strided or type(value) not in _PLAIN:
        kind = "quantized" if value.is_quantized else f"a {type(value).__name__} ({value.layout})"
        return f"is {kind} in the file; save it as a plain tensor first"
    if value.is_meta or target.is_meta:
        return f"is without values (meta) in the {'file' if value.is_meta else 'model'}"
    was, now = value.dtype, target.dtype
    if now.is_floating_point != was.is_floating_point or now.is_complex != was.is_complex:
        exact = not (was.is_complex or now.is_complex or now.is_floating_point)
        if not (exact and torch.equal(value.to(now).to(was), value)):
            return (
                f"has {was} values in the file and {now} ones in the model; a conversion would "
                f"make other weights. Undo what made them (quantization, a cast) first"
            )
    if not (now.is_floating_point or now.is_complex):
        if not torch.equal(value.to(now).to(value.dtype), value):
            return f"does not fit from {was} into the model's {now}"
        return ""
    bad = int((~value.isfinite()).sum())
    if bad:
        return (
            f"has {bad} values that are NaN or infinite, of {value.numel()}: the training had "
            f"diverged, or the file is damaged. Take an earlier checkpoint"
        )
    if not bool(value.to(now).isfinite().all()):
        return f"has values beyond the range of the model's {now}; build the model in {was}"
    return ""


_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def _copy(chosen: _Set, own: Mapping[str, Tensor]) -> tuple[str, ...]:
    changed: dict[str, int] = defaultdict(int)
    with torch.no_grad():
        for name, target in own.items():
            if name not in chosen.named:
                continue
            value = chosen.named[name].value
            if value.dtype != target.dtype and target.is_floating_point():
                changed[f"{_word(value.dtype)} to {_word(target.dtype)}"] += 1
            target.copy_(value)
    return tuple(f"{count} converted from {words}" for words, count in changed.items())


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _some(items: Sequence[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _shortened(items: tuple[str, ...], most: int = 20) -> list[str]:
    return [*items[:most], *([f"and {len(items) - most} more"] if len(items) > most else [])]


def convert(path: Path, target: Path, *, trust_pickle: str | None = None) -> WeightsFile:
    """Write every tensor of a file as safetensors with a digest; names say where each lay."""
    if Path(target).exists() and Path(target).samefile(path):
        raise LandscapeError(f"{path} is both source and target; give the target another name.")
    file = read(path, trust_pickle=trust_pickle)
    named = {
        ".".join((*where, name)): torch.as_tensor(value)
        for where, name, value in tensors_of(file.content)
    }
    if not named:
        raise LandscapeError(f"{path} holds no tensors, so there is nothing to write.")
    save_tensors(named, target, {"converted_from": file.path.name, "sha256": file.sha256})
    return file


def held(path: Path, *, trust_pickle: str | None = None) -> dict[str, Any]:
    """What a weights file holds, in words: its hash, its checksum, and its sets of tensors."""
    file = read(path, trust_pickle=trust_pickle)
    sets: dict[str, list[Any]] = defaultdict(list)
    for where, name, value in tensors_of(file.content):
        sets[".".join((*where, *name.split(".")[:-2])) or TOP].append(value)
    counted = {
        key: f"{len(values)} tensors, {sum(int(np.prod(v.shape)) for v in values):,} elements"
        for key, values in sets.items()
    }
    content = file.content
    keys = [str(key) for key in content] if isinstance(content, Mapping) else []
    return {
        "file": str(file.path),
        "sha256": file.sha256,
        "checksum": file.checksum or "none in the file",
        "keys": _some(keys),
        **dict(list(counted.items())[:50]),
    }


def save_tensors(named: Mapping[str, Tensor], path: Path, said: Mapping[str, str]) -> Path:
    """Write tensors as safetensors that carries the digest of its own bytes, whole or not at all.

    Tied tensors are written once for each name.
    """
    state = {k: v.detach().cpu().contiguous().clone() for k, v in named.items()}

    def write(temporary: Path) -> None:
        save_file(state, temporary, {**said, **storage.unsealed()})
        storage.seal(temporary)

    return storage.write_atomically(path, write)
