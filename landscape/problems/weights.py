"""Weights from files, chosen by the model's own names and copied all or none."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
from landscape.problems.weights_sets import TOP, WeightSet, WeightSets, some, twins_of


@dataclass(frozen=True)
class WeightsReport:
    """What a weights file was found to be, and what was done with it.

    chosen: key and prefix before the model's names, "." without one; undone: wrappers taken out of
    names; others: further sets that fit the model and were not taken; left_out: what else the file
    holds; absent: batch counters it lacks; tied: names that share another's tensor and were left
    out by the file; converted: precisions that changed; sha256 of the file's bytes; checksum: what
    the file says of its own bytes ("sha256", "crc32"), None where nothing does.
    path: the file. num_tensors: how many were copied. beside: other weights files of the folder
    that was given, which were not read.

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
    beside: tuple[str, ...] = ()

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
        if self.beside:
            said.append(f"NOT {', '.join(self.beside)}, which lies beside it (name the file)")
        if self.left_out:
            said.append(f"left out: {some(self.left_out)}")
        if self.tied:
            said.append(f"tied and so not in the file: {some(self.tied)}")
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
    found = WeightSets(own, file)
    chosen = found.choose(weights_key)
    _check(file, chosen, model, own)
    converted = _copy(chosen, own)
    tied = tuple(name for name in own if name not in chosen.named and name not in chosen.absent)
    return WeightsReport(
        path=str(file.path),
        beside=file.beside,
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


def _check(
    file: WeightsFile, chosen: WeightSet, model: nn.Module, own: Mapping[str, Tensor]
) -> None:
    """Names, shapes and values, before anything is copied."""
    tables = (
        ("missing", chosen.missing), ("unexpected", chosen.unexpected),
        ("other shapes", chosen.shapes),
    )  # fmt: skip
    problems = [f"{title}: {some(items)}" for title, items in tables if items]
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
    for names in {tuple(sorted([name, *twins])) for name, twins in twins_of(own).items() if twins}:
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
    if strange := _strange(value):
        return strange
    if target.is_meta:
        return "is without values (meta) in the model"
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
    value = value.float() if value.itemsize == 1 else value  # of 8-bit floats torch knows little
    bad = int((~value.isfinite()).sum())
    if bad:
        return (
            f"has {bad} values that are NaN or infinite, of {value.numel()}: the training had "
            f"diverged, or the file is damaged. Take an earlier checkpoint"
        )
    if not bool(value.to(now).isfinite().all()):
        return f"has values beyond the range of the model's {now}; build the model in {was}"
    return ""


def _strange(value: Tensor) -> str:
    """Why a tensor of a file is no array of numbers; empty where it is one."""
    if value.is_quantized or value.layout != torch.strided or type(value) not in _PLAIN:
        kind = "quantized" if value.is_quantized else f"a {type(value).__name__} ({value.layout})"
        return f"is {kind} in the file; save it as a plain tensor first"
    return "is without values (meta) in the file" if value.is_meta else ""


_PLAIN = (Tensor, nn.Parameter, nn.Buffer)


def _copy(chosen: WeightSet, own: Mapping[str, Tensor]) -> tuple[str, ...]:
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
    for name, value in named.items():
        if strange := _strange(value):
            raise LandscapeError(f"{file.path}: {name} {strange}.")
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
        "keys": some(keys),
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
