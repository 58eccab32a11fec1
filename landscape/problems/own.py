"""What users bring: Python objects by "package.module:callable", and weights from files."""

import hashlib
import importlib
import inspect
import pickle
import sys
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from landscape.errors import LandscapeError

WRAPPERS = ("state_dict", "model_state_dict", "model", "net", "network", "weights", "params")
AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict")
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")


def import_object(spec: str) -> Callable[..., Any]:
    """The callable named "package.module:callable"; the current folder is looked in as well."""
    module_name, colon, path = spec.partition(":")
    if not colon or not module_name or not path:
        raise LandscapeError(
            f"{spec!r} does not name a callable; write 'package.module:callable', for example "
            f"'my_code.models:make'."
        )
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name and (module_name == error.name or module_name.startswith(error.name + ".")):
            raise LandscapeError(
                f"No module {error.name!r} for {spec!r} in {here} or the installed packages; run "
                f"from the folder that holds it, or install it."
            ) from None
        raise LandscapeError(
            f"{module_name} needs {error.name!r}, which is not installed."
        ) from error
    except Exception as error:
        raise LandscapeError(
            f"Importing {module_name} failed: {type(error).__name__}: {error}."
        ) from error
    for part in path.split("."):
        if not hasattr(found, part):
            public = [n for n in vars(found) if not n.startswith("_") and callable(vars(found)[n])]
            raise LandscapeError(
                f"{module_name} has no {path!r}; it has {', '.join(public) or 'no callable'}."
            )
        found = getattr(found, part)
    if not callable(found):
        raise LandscapeError(f"{spec} is a {type(found).__name__} and cannot be called.")
    return found


def call_with_accepted(function: Callable[..., Any], options: Mapping[str, Any]) -> Any:
    """Call with those options that the signature names (all of them if it takes **kwargs)."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return function()
    if not any(p.kind is p.VAR_KEYWORD for p in parameters):
        names = {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        options = {key: value for key, value in options.items() if key in names}
    return function(**options)


@dataclass(frozen=True)
class WeightsReport:
    """What a weights file was found to be.

    wrappers: keys the weights lay under; prefixes: removed from all names; ignored: averages that
    lay beside them; absent: batch counters the file did not have; sha256 of the file's bytes.
    """

    path: str
    sha256: str
    num_tensors: int
    wrappers: tuple[str, ...] = ()
    prefixes: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    def __str__(self) -> str:
        said = [f"{self.num_tensors} tensors from {self.path}"]
        if self.wrappers:
            said.append(f"found under {'.'.join(self.wrappers)!r}")
        if self.prefixes:
            said.append(f"prefix {''.join(self.prefixes)!r} removed")
        if self.ignored:
            said.append(f"{', '.join(map(repr, self.ignored))} ignored")
        if self.absent:
            said.append(f"{len(self.absent)} batch counters not in the file")
        return ", ".join(said) + "."


def load_weights(model: nn.Module, path: str | Path) -> WeightsReport:
    """Copy the tensors of a .safetensors, .pt or .pth file into the model, all or none.

    The file is never executed (`weights_only=True`). Wrappings as `state_dict`, `model` or `net`
    and prefixes as `module.` or `_orig_mod.` are undone and said in the report. Missing and
    unexpected names and other shapes raise one LandscapeError that lists them; only BatchNorm's
    `num_batches_tracked` may be missing.
    """
    path = Path(path)
    content, stored = _read(path)
    wrappers, ignored, named = _unwrap(stored, path)
    own = model.state_dict()
    prefixes, named = _strip(named, own)
    missing = [k for k in own if k not in named]
    absent = [k for k in missing if k.endswith("num_batches_tracked")]
    missing = [k for k in missing if k not in set(absent)]
    unexpected = [k for k in named if k not in own]
    shapes = [
        f"{k} is {tuple(named[k].shape)} in the file and {tuple(own[k].shape)} in the model"
        for k in own
        if k in named and named[k].shape != own[k].shape
    ]
    if missing or unexpected or shapes:
        problems = [
            f"{title}: {_some(items)}"
            for title, items in (
                ("missing", missing), ("unexpected", unexpected), ("other shapes", shapes),
            )
            if items
        ]  # fmt: skip
        raise LandscapeError(
            f"{path} holds the weights of another model than {type(model).__name__} "
            f"({'; '.join(problems)}). Give the model that was trained, or its own weights."
        )
    with torch.no_grad():
        for name, target in own.items():
            if name in named:
                target.copy_(named[name])
    return WeightsReport(
        str(path), hashlib.sha256(content).hexdigest(), len(own) - len(absent),
        tuple(wrappers), tuple(prefixes), tuple(ignored), tuple(absent),
    )  # fmt: skip


def _some(items: list[str], most: int = 8) -> str:
    return ", ".join(items[:most]) + (f" and {len(items) - most} more" if len(items) > most else "")


def _read(path: Path) -> tuple[bytes, Any]:
    if not path.is_file():
        raise LandscapeError(f"The weights file {path} does not exist.")
    content = path.read_bytes()
    if path.suffix == ".safetensors":
        try:
            return content, load_safetensors(content)
        except (SafetensorError, ValueError) as error:
            raise LandscapeError(
                f"{path} is not a whole safetensors file ({error}); copy it again."
            ) from None
    if path.suffix not in (".pt", ".pth", ".ckpt", ".bin"):
        raise LandscapeError(
            f"{path} ends in {path.suffix!r}; weights are read from .safetensors, .pt and .pth."
        )
    try:
        return content, torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if "Unsupported global" in str(error) or "WeightsUnpickler" in str(error):
            raise LandscapeError(
                f"{path} holds Python objects and not weights alone; they were not run. Save "
                f"model.state_dict() and give that file."
            ) from None
        raise LandscapeError(_damaged(path, error)) from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise LandscapeError(_damaged(path, error)) from None


def _damaged(path: Path, error: Exception) -> str:
    first = str(error).splitlines()[0] if str(error) else type(error).__name__
    return f"{path} is not a whole weights file ({first}); copy it again."


def _is_weights(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(
        isinstance(k, str) and isinstance(v, Tensor) for k, v in value.items()
    )  # fmt: skip


def _unwrap(stored: Any, path: Path) -> tuple[list[str], list[str], dict[str, Tensor]]:
    """Wrappers gone through, averages left aside, and the named tensors."""
    wrappers: list[str] = []
    ignored: list[str] = []
    while not _is_weights(stored):
        held = stored if isinstance(stored, Mapping) else {}
        inner = [k for k in WRAPPERS if isinstance(held.get(k), Mapping)]
        averages = [k for k in AVERAGES if isinstance(held.get(k), Mapping)]
        if not inner and not averages:
            keys = ", ".join(map(str, list(held)[:8])) or type(stored).__name__
            raise LandscapeError(
                f"{path} holds no weights ({keys}); they are looked for at the top and under "
                f"{', '.join(WRAPPERS + AVERAGES)}."
            )
        key, *others = [*inner, *averages]
        wrappers.append(key)
        ignored += others
        stored = held[key]
    return wrappers, ignored, dict(stored)


def _strip(named: dict[str, Tensor], own: Mapping[str, Any]) -> tuple[list[str], dict[str, Tensor]]:
    """Remove prefixes that all names share and the model's names do not."""
    removed: list[str] = []
    while not any(k in own for k in named):
        prefix = next((p for p in PREFIXES if all(k.startswith(p) for k in named)), None)
        if prefix is None:
            break
        removed.append(prefix)
        named = {k.removeprefix(prefix): v for k, v in named.items()}
    # A model compiled part by part has the prefix inside its names as well.
    if any("_orig_mod." in k for k in named) and not any("_orig_mod." in k for k in own):
        removed.append("_orig_mod.")
        named = {k.replace("_orig_mod.", ""): v for k, v in named.items()}
    return removed, named
