"""Published optimizer classes to compare with, taken from an installed package or from a clone.

No code of theirs is part of this repository: a class is read from where the user has it.
"""

import ast
import contextlib
import importlib
import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from benchmarks import interleaved

OPTIONS = {"lr": 1e-5, "momentum": 0.9}


@dataclass(frozen=True)
class Peer:
    """A published class: the recipe of ours that it is compared with, and how it is made."""

    name: str
    recipe: str
    source: str
    make: Callable[..., Any]
    file: str = ""
    contains: str = ""
    classes: tuple[str, ...] = ()


def _plain(cls: Any, parameters: list[torch.Tensor], **base: Any) -> Any:
    return cls(parameters, torch.optim.SGD, rho=0.05, **OPTIONS, **base)


def _filtered(cls: Any, parameters: list[torch.Tensor], **base: Any) -> Any:
    chosen = SimpleNamespace(zsam=True, alpha=0.95)
    return cls(parameters, torch.optim.SGD, rho=0.05, hparams=chosen, **OPTIONS, **base)


PEERS = (
    Peer("davda54/sam", "sam", "git", _plain, "sam.py", "old_p", ("SAM",)),
    Peer("F-SAM", "fsam", "git", _plain, "utils.py", "lmbda", ("FriendlySAM",)),
    Peer("ZSharp", "zsharp", "git", _filtered, "main.py", "zsam_alpha", ("SAM",)),
    Peer("pytorch_optimizer SAM", "sam", "pytorch_optimizer", _plain, classes=("SAM",)),
    Peer("pytorch_optimizer FriendlySAM", "fsam", "pytorch_optimizer", _plain,
         classes=("FriendlySAM",)),
)  # fmt: skip


def load(peer: Peer, clones: dict[str, Path]) -> tuple[Callable[..., Any] | None, str]:
    """A function parameters -> optimizer and where it came from, or None and why it is missing.

    The function hands its keyword arguments to the base optimizer.
    """
    if peer.source != "git":
        try:
            package = importlib.import_module(peer.source)
        except ImportError:
            return None, f"{peer.source} is not installed"
        found = getattr(package, peer.classes[0])
        version = importlib.metadata.version(peer.source.replace("_", "-"))
        return (lambda p, **base: peer.make(found, p, **base)), f"{peer.source} {version} from PyPI"
    if peer.name not in clones:
        return None, f"no --peer {peer.name}=PATH"
    folder = clones[peer.name]
    commit = interleaved.commit_of(folder)
    found = class_in(folder / peer.file, peer.classes[0], peer.contains)

    def make(parameters: list[torch.Tensor], **base: Any) -> Any:
        with contextlib.redirect_stdout(io.StringIO()):
            return peer.make(found, parameters, **base)

    return make, f"commit {commit}, {peer.file}"


def class_in(path: Path, name: str, contains: str) -> Any:
    """One class of a script, without running the rest of it (imports, argument parsing)."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ClassDef) and node.name == name:
            code = ast.get_source_segment(text, node)
            if contains in code:
                scope = {"torch": torch}
                module = ast.Module([node], type_ignores=[])
                exec(compile(module, str(path), "exec"), scope)
                return scope[name]
    raise SystemExit(f"{path} holds no class {name} with {contains!r} in it.")
