"""One base optimizer, or several over different tensors of a model (Muon and AdamW) as one."""

from collections.abc import Iterator, MutableMapping, Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from landscape.errors import LandscapeError


def parameters_of(base: Optimizer) -> list[nn.Parameter]:
    """All parameters of its groups."""
    return [p for group in base.param_groups for p in group["params"]]


def together(base: Any) -> Any:
    """What was given, or several optimizers as one."""
    if not isinstance(base, (list, tuple)):
        return base
    if not base or not all(isinstance(b, Optimizer) for b in base):
        kinds = ", ".join(type(b).__name__ for b in base)
        raise LandscapeError(
            f"the base optimizers given are [{kinds}]; give torch optimizers over different "
            "parameters of the model, such as [Muon(matrices), AdamW(others)]."
        )
    return base[0] if len(base) == 1 else Several(base)


class Several(Optimizer):
    """Optimizers over different parameters, stepped in turn; groups and state are their own."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        seen: dict[int, int] = {}
        for i, optimizer in enumerate(optimizers):
            for p in parameters_of(optimizer):
                if seen.setdefault(id(p), i) != i:
                    raise LandscapeError(
                        f"base optimizers {seen[id(p)]} and {i} share a parameter of shape "
                        f"{tuple(p.shape)}, which would be stepped twice; give each its own."
                    )
        self.optimizers = list(optimizers)
        self._made = False
        super().__init__(
            [g for o in self.optimizers for g in o.param_groups],
            {k: v for o in self.optimizers for k, v in o.defaults.items()},
        )
        self._made = True

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of all, in turn."""
        return [g for o in self.optimizers for g in o.param_groups]

    @param_groups.setter
    def param_groups(self, value: Sequence[dict[str, Any]]) -> None:
        if not self._made:
            return
        sizes = [len(o.param_groups) for o in self.optimizers]
        if len(value) != sum(sizes):
            raise LandscapeError(
                f"{len(value)} parameter groups were given and the base optimizers have "
                f"{' + '.join(map(str, sizes))}; give as many, in their order."
            )
        value = list(value)
        for optimizer, size in zip(self.optimizers, sizes, strict=True):
            optimizer.param_groups, value = value[:size], value[size:]

    @property
    def state(self) -> "_JoinedState":
        """State per parameter, each in its own optimizer."""
        return _JoinedState(self.optimizers)

    @state.setter
    def state(self, value: MutableMapping[Any, Any]) -> None:  # ty: ignore[incompatible-property-override]  # reads as torch's
        if not self._made:
            return
        for optimizer in self.optimizers:
            optimizer.state.clear()
        self.state.update(value)

    def step(self, closure: None = None) -> None:  # noqa: ARG002  # ty: ignore[incompatible-method-override]  # never given
        """Each in turn."""
        for optimizer in self.optimizers:
            optimizer.step()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To the optimizer that has such options, the last one if all have."""
        if not self._made:
            return
        options = set(param_group) - {"params", "lr", "initial_lr", "rho"}
        able = [o for o in self.optimizers if options <= set(o.defaults)]
        (able or self.optimizers)[-1].add_param_group(param_group)

    def __getstate__(self) -> dict[str, Any]:
        return {"optimizers": self.optimizers, "defaults": self.defaults}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "optimizers" in state:
            self._made = False
            self.optimizers, self.defaults = state["optimizers"], state["defaults"]
            super().__setstate__({})
            self._made = True
            return
        if "param_groups" in state:
            self.param_groups = state["param_groups"]
        if "state" in state:
            self.state = state["state"]


class _JoinedState(MutableMapping):
    """The states of several optimizers as one mapping from parameters."""

    def __init__(self, optimizers: Sequence[Optimizer]) -> None:
        self._of = {id(p): o.state for o in optimizers for p in parameters_of(o)}
        self._states = [o.state for o in optimizers]

    def __getitem__(self, p: nn.Parameter) -> Any:
        return self._of[id(p)][p]

    def __setitem__(self, p: nn.Parameter, value: Any) -> None:
        self._of[id(p)][p] = value

    def __delitem__(self, p: nn.Parameter) -> None:
        del self._of[id(p)][p]

    def __iter__(self) -> Iterator[Any]:
        for state in self._states:
            yield from state

    def __len__(self) -> int:
        return sum(map(len, self._states))

    def get(self, p: Any, default: Any = None) -> Any:
        """As of a dict; a parameter without state is not given one."""
        state = self._of.get(id(p))
        return default if state is None else state.get(p, default)
