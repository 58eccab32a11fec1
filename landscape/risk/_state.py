"""What the modules of a model hold beside their weights, to see what a pass changes and undo it."""

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from landscape.risk._sparse import equal

# (name of the module, name of its attribute, buffer or parameter)
Place = tuple[str, str]
# Frozen parameters of so many elements are state that a pass may write, as the vectors of a
# spectral norm are; larger ones are a frozen backbone, which would be in memory twice.
_SMALL = 2**16


class State:
    """Attributes, containers among them one level deep, and values of buffers at one time.

    Modes, hooks and patched methods are attributes; small frozen parameters count as buffers.
    Weights are known by identity alone, and so are buffers without `values`.
    """

    def __init__(self, model: nn.Module, *, values: bool = True) -> None:
        self._modules = dict(model.named_modules())
        self._attributes = {name: dict(m.__dict__) for name, m in self._modules.items()}
        self._contents = {
            (name, key): contents_of(value)
            for name, kept in self._attributes.items()
            for key, value in kept.items()
            if isinstance(value, list | dict | set)
        }
        self._values = {
            (name, key): (owner, tensor, tensor.detach().clone())
            for name, module in self._modules.items()
            for owner in (module._buffers, module._parameters)
            for key, tensor in owner.items()
            if values and tensor is not None and _is_state(owner is module._buffers, tensor)
        }

    def changed(self) -> set[Place]:
        """What is no longer as it was."""
        found = {
            (name, key)
            for name, kept in self._attributes.items()
            for key in kept.keys() | self._modules[name].__dict__.keys()
            if kept.get(key, self) is not self._modules[name].__dict__.get(key, self)
        }
        found |= {
            place
            for place, contents in self._contents.items()
            if not alike(contents, contents_of(self._attributes[place[0]][place[1]]))
        }
        return found | {
            place for place, (_, tensor, kept) in self._values.items() if not equal(tensor, kept)
        }

    def forget_values(self, but: Iterable[Place]) -> None:
        """Keep values of these tensors alone."""
        self._values = {place: self._values[place] for place in but if place in self._values}

    def restore(self, places: Iterable[Place] | None = None) -> None:
        """Put back these places (default: all) as they were."""
        for place in self._places() if places is None else places:
            name, key = place
            held, kept = self._modules[name].__dict__, self._attributes[name]
            if key in kept:
                held[key] = kept[key]
            elif place not in self._values:
                held.pop(key, None)
            if place in self._contents:
                refill(kept[key], self._contents[place])
            if place in self._values:
                owner, tensor, value = self._values[place]
                owner[key] = tensor
                if not equal(tensor, value):
                    tensor.data.copy_(value)

    def _places(self) -> Iterator[Place]:
        for name, kept in self._attributes.items():
            yield from ((name, key) for key in kept.keys() | self._modules[name].__dict__.keys())
        yield from self._values


def _is_state(is_buffer: bool, tensor: Tensor) -> bool:
    return is_buffer or (not tensor.requires_grad and tensor.numel() <= _SMALL)


def contents_of(value: Any) -> Any:
    return list(value.items()) if isinstance(value, dict) else list(value)


def refill(container: Any, contents: list[Any]) -> None:
    if alike(contents, contents_of(container)):
        return
    container.clear()
    if isinstance(container, list):
        container.extend(contents)
    else:
        container.update(contents)


def alike(a: list[Any], b: list[Any]) -> bool:
    if len(a) != len(b):
        return False
    pairs = zip(a, b, strict=True)
    return all(
        x is y or (isinstance(x, tuple) and isinstance(y, tuple) and all(map(_is, x, y)))
        for x, y in pairs
    )


def _is(a: Any, b: Any) -> bool:
    return a is b
