"""What torch asks of an optimizer, answered by the one inside: groups, state, copies, pickles."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch.optim import Optimizer

from landscape.errors import LandscapeError
from landscape.sam import saved
from landscape.sam.checks import OTHER_CLASSES, LandscapeAttributeError

if TYPE_CHECKING:
    from landscape.sam.optimizer import SAM

_COPIED = frozenset(
    [
        "model",
        "base",
        "variant",
        "bn",
        "same_rng_both_passes",
        "clip_norm",
        "scaler",
        "sync_perturbation",
        "keep_perturbation",
        "wait_for_device",
        "batches",
        "slots",
        "step_count",
        "epoch",
        "total_epochs",
        "epoch_begun",
        "skipped",
    ]
)


class AroundBase(Optimizer):
    """An optimizer around a base optimizer, whose groups, state and modes are its own."""

    base: Any
    _made: bool

    # The base optimizer's own, also after its load_state_dict has replaced them.
    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The base optimizer's parameter groups."""
        return self.base.param_groups

    @param_groups.setter
    def param_groups(self, value: list[dict[str, Any]]) -> None:
        if self._made:
            self.base.param_groups = value

    @property
    def state(self) -> Any:
        """The base optimizer's state per parameter."""
        return self.base.state

    @state.setter
    def state(self, value: Any) -> None:
        if self._made:
            self.base.state = value

    def train(self, mode: bool = True) -> None:
        """Tell a base optimizer that has modes (a schedule-free one) that training goes on."""
        self._tell("train" if mode else "eval")

    def eval(self) -> None:
        """Tell a base optimizer that has modes to put its averaged weights in place."""
        self._tell("eval")

    def _tell(self, mode: str) -> None:
        for base in getattr(self.base, "optimizers", (self.base,)):
            change = getattr(base, mode, None)
            if callable(change):
                change()

    def state_dict(self) -> dict[str, Any]:
        """The base optimizer's state_dict, and under "sam" slots, generators and counters.

        Slots hold masks and averages by tensor name. A plain optimizer loads it and ignores "sam".
        Tools that keep "state" and "param_groups" alone (`torch.distributed.checkpoint.state_dict`)
        leave ours out: save `state_dict()["sam"]` beside them; loading without it is logged.
        """
        return self._with_hooks("state_dict", lambda: saved.state_dict(self._sam))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue exactly where `state_dict()` was taken, bit for bit at equal thread count."""
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            state_dict = hook(self, dict(state_dict)) or state_dict
        saved.load_state_dict(self._sam, state_dict)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def take_over(self, state_dict: dict[str, Any]) -> list[str]:
        """Take from another SAM's `state_dict()` what its tensors of equal name and shape have.

        For a model whose head was replaced, a new set of parameter groups, another variant: slots
        of the same kind, the base optimizer's state, counters and generators. Returns the names.
        """
        return saved.take_over(self._sam, state_dict)

    def _with_hooks(self, what: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        for hook in getattr(self, f"_optimizer_{what}_pre_hooks").values():
            hook(self)
        made = make()
        for hook in getattr(self, f"_optimizer_{what}_post_hooks").values():
            made = hook(self, made) or made
        return made

    @property
    def _sam(self) -> "SAM":
        return cast("SAM", self)

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: all but what a process makes for itself.

        The examples of `set_fisher_data` are left out too, since their losses run the old model.
        """
        self._check_not_moved("copied")
        own = {k: v for k, v in self.__dict__.items() if k in _COPIED}
        return own | {
            "generator": self._sam.generator.get_state(),
            "host_generator": self._sam.host_generator.get_state(),
            "defaults": self.defaults,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy; or torch's {"state": ..., "param_groups": ...}, for the base optimizer."""
        if "model" not in state:
            self.base.__setstate__(state)
            return
        own, generators = self._sam, (state.pop("generator"), state.pop("host_generator"))
        self.__dict__.update(state)
        self._made = True
        own.fisher_data = None
        own._join_parameters()
        own._prepare()
        own.generator = own.host_generator = torch.Generator(device=own.device)
        own.generator.set_state(generators[0])
        if own.device.type != "cpu":
            own.host_generator = torch.Generator()
            own.host_generator.set_state(generators[1])
        super().__setstate__({})

    def _check_not_moved(self, what: str) -> None:
        if self._sam.stepping:
            raise LandscapeError(
                f"the optimizer was {what} within a step of its own, when its weights may be at "
                "w + e and its averages half made; do it between steps."
            )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add tensors to the base optimizer; they take part from the next step on."""
        if self._made:
            self.base.add_param_group(param_group)
            self._sam._join_parameters()

    def __repr__(self) -> str:
        return f"SAM({self._sam.variant.name}, {self.base!r})"

    def __getattr__(self, name: str) -> Any:
        """Tell who comes from another SAM class which line works here."""
        line = OTHER_CLASSES.get(name)
        if line is None:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        raise LandscapeAttributeError(f"SAM has no {name}; {line}.")
