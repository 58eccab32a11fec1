"""Optimizers of somebody else in the training loop: made by a factory, driven by a closure."""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from landscape.errors import LandscapeError
from landscape.sam.trained import Trained
from landscape.training.options import TrainingOptions

# Training options that a factory gets where its signature has them.
_SHARED = ("lr", "momentum", "nesterov", "betas", "eps", "weight_decay")


@dataclass(frozen=True)
class OptimizerFactory:
    """make(params, **options) -> torch.optim.Optimizer, in the place of a variant.

    It also gets lr, momentum, nesterov, betas, eps and weight_decay of the training where its
    signature has them. What it perturbs is not known to the recorder: `landscape.record` sees it
    from outside.
    name: for figures and errors. needs: what its steps must be given, as of `sam.Variant`.

    Example:
        >>> factory = training.OptimizerFactory(torch.optim.RMSprop, {"alpha": 0.9}, name="RMSprop")
        >>> factory.name, dict(factory.options)
        ('RMSprop', {'alpha': 0.9})
    """

    make: Callable[..., torch.optim.Optimizer]
    options: Mapping[str, Any] = field(default_factory=dict)
    name: str = "own optimizer"
    needs: frozenset[str] = frozenset()

    def optimizer(self, parameters: list[nn.Parameter], training: TrainingOptions) -> Any:
        """The optimizer, or an error that says what was given."""
        accepted = inspect.signature(self.make).parameters
        any_key = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in accepted.values())
        # Of **kwargs nobody knows what they mean, but every optimizer has a learning rate.
        shared = {k: getattr(training, k) for k in _SHARED if k in accepted}
        shared |= {"lr": training.lr} if any_key else {}
        given = shared | dict(self.options)
        try:
            made = self.make(parameters, **given)
        except TypeError as error:
            raise LandscapeError(f"{self.name} does not accept {given}: {error}.") from None
        if not hasattr(made, "param_groups") or not hasattr(made, "step"):
            raise LandscapeError(
                f"{self.name} made a {type(made).__name__}; a torch.optim.Optimizer is needed, "
                f"with param_groups and step(closure)."
            )
        return made


class Foreign:
    """Such an optimizer behind the calls that the training loop makes.

    step(closure) by torch's convention. A class with first_step and second_step, the shape of the
    published SAM classes, is driven through them, with a backward pass before each.
    """

    num_skipped = 0

    def __init__(
        self, model: nn.Module, factory: OptimizerFactory, options: TrainingOptions
    ) -> None:
        if options.clip_norm or options.amp == "fp16":
            raise LandscapeError(
                f"clip_norm={options.clip_norm:g}, amp={options.amp!r} asked of {factory.name}, "
                f"whose passes only it knows; set clip_norm=0 and amp='off' or 'bf16'."
            )
        parameters = [p for p in model.parameters() if p.requires_grad]
        self.model, self.trained = model, Trained.of(model)
        self.own = factory.optimizer(parameters, options)
        self.name = factory.name

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Those of the optimizer."""
        return self.own.param_groups

    def begin_epoch(self, epoch: int, total_epochs: int | None = None) -> None:
        """Nothing: torch's convention knows no epochs."""

    def step(self, losses: Callable[[Any], Tensor], batch: Any) -> Tensor:
        """One step on a batch; the mean loss of its first forward pass."""
        seen: list[Tensor] = []

        def closure() -> Tensor:
            self.own.zero_grad()
            with torch.enable_grad():
                loss = losses(batch).mean()
                loss.backward()
            seen.append(loss.detach())
            return loss

        if hasattr(self.own, "first_step") and hasattr(self.own, "second_step"):
            closure()
            self.own.first_step(zero_grad=True)
            closure()
            self.own.second_step(zero_grad=True)
        else:
            self.own.step(closure)
        if not seen:
            raise LandscapeError(
                f"{self.name} took a step without calling its closure; its step(closure) must call "
                f"closure(), which clears, runs forward and backward and returns the loss."
            )
        return seen[0]

    def state_dict(self) -> dict[str, Any]:
        """That of the optimizer; it has no slots of ours."""
        return {"own": self.own.state_dict(), "slots": {}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue."""
        self.own.load_state_dict(state["own"])
