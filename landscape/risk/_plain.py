"""Batches as plain containers, and what can be said of any of them."""

from collections.abc import Mapping, Sized
from dataclasses import fields, is_dataclass
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from landscape.risk._sparse import content_of

TARGET_KEYS = ("labels", "label", "targets", "target", "y")


def plain(tree: Any, *, named: bool = True) -> Any:
    """Every Mapping (transformers' BatchEncoding) as a dict, at any depth.

    named: so also dataclasses, and named tuples with targets in more or fewer than two parts.
    """
    if named and is_dataclass(tree) and not isinstance(tree, type | Mapping):
        tree = {each.name: getattr(tree, each.name) for each in fields(tree)}
    if named and isinstance(tree, tuple) and len(tree) != 2 and set(TARGET_KEYS) & {*_names(tree)}:
        tree = dict(zip(_names(tree), tree, strict=True))
    if isinstance(tree, Mapping):
        return {key: plain(value, named=named) for key, value in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(plain(value, named=named) for value in tree)
    return tree


def _names(named: tuple[Any, ...]) -> tuple[str, ...]:
    return getattr(named, "_fields", ())


def mark(batch: Any) -> int:
    """A number that is equal for equal contents."""
    leaves = [
        tuple(content_of(leaf)) if isinstance(leaf, Tensor) else repr(leaf)
        for leaf in pytree.tree_leaves(plain(batch))
    ]
    return hash(tuple(leaves))


def length(batches: object) -> int | None:
    """Its len(), None where there is none: streams have the method and raise in it."""
    try:
        return len(batches) if isinstance(batches, Sized) else None
    except (TypeError, NotImplementedError):
        return None
