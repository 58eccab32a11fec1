"""What each variant would do at one theta, on one seeded batch of a risk's data."""

import functools
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from landscape import sam, vectors
from landscape.checks import check_choice, check_count
from landscape.errors import LandscapeError
from landscape.measure.measuring import generator
from landscape.risk import EmpiricalRisk, RowLosses
from landscape.sam.engine import new_slots
from landscape.sam.perturbation import counterfactual
from landscape.sam.sources import Friendly
from landscape.sam.trained import Gradients, Trained
from landscape.sharding import local, own, write

BATCH_BN = ("batch", "eval")


def check_variants(name: str, variants: Mapping[str, sam.Variant]) -> None:
    """Refuse what is no mapping of names to variants."""
    if not isinstance(variants, Mapping):
        raise LandscapeError(
            f"{name} got variants as a {type(variants).__name__}; pass a dictionary of names and "
            f'variants, such as {{"zsharp": sam.zsharp(rho=0.05)}}.'
        )
    for variant in variants.values():
        check_variant(variant)


def check_variant(variant: sam.Variant) -> None:
    """Refuse what is no variant."""
    if not isinstance(variant, sam.Variant):
        raise LandscapeError(
            f"{variant!r} is a {type(variant).__name__} and no variant; pass one of "
            f"landscape.sam, such as sam.zsharp(rho=0.05)."
        )


class Counterfactual:
    """One model at theta and one batch, on which variants are asked what they would perturb.

    bn: "batch" or "eval", the mode of BatchNorm in everything that is asked of any variant, the
    Fisher information of SSAM-F's mask included.
    """

    def __init__(
        self, risk: EmpiricalRisk, theta: Tensor, *, batch_size: int, bn: str, seed: int
    ) -> None:
        check_count("batch_size", batch_size, 1)
        check_choice("bn", bn, BATCH_BN)
        self.risk, self.seed, self.bn = risk, seed, bn
        self.batch_size = min(batch_size, risk.num_examples)
        if bn == "batch" and self.batch_size == 1 and risk.has_batchnorm:
            raise LandscapeError(
                "batch_size=1 was asked with bn='batch', and a BatchNorm layer has no statistics "
                "of one example; raise batch_size, or give bn='eval'."
            )
        order = torch.randperm(risk.num_examples, generator=generator(seed))
        self.rows = order[: self.batch_size]
        self.model, self._theta = risk.model_at(theta), theta
        for module in self.model.modules():
            # Dropout and the like stay off: the answer must not depend on a draw.
            if bn == "batch" and isinstance(module, _BatchNorm):
                module.train()
        self.losses = RowLosses(risk, self.model)
        self._order, self._trained = order, Trained.of(self.model)
        # Rows, and loss and gradient of them: what variants climb from, until others are asked.
        self._first: tuple[Tensor, tuple[Tensor, Gradients]] | None = None

    def perturb(
        self,
        variant: sam.Variant,
        *,
        state: dict[str, Any] | None = None,
        seed: int | None = None,
        rows: Tensor | None = None,
    ) -> sam.Perturbation:
        """The variant's perturbation here, its own draws from `seed`; nothing is computed at w + e.

        rows: of another batch than the first one. Variants that are asked one after another about
        the same rows share one gradient of them, but for those that find an ascent of their own.

        Without a state, F-SAM's average of past gradients is taken to be the mean of this model's
        gradients over all batches of the data, which is what it estimates.
        """
        check_variant(variant)
        rows = self.rows if rows is None else rows
        note = None
        whole = len(rows) == self.risk.num_examples
        if state is None and isinstance(variant.source, Friendly) and not whole:
            means = self.risk.layout.unflatten(self.mean_gradient)
            state = new_slots() | {
                "source": {"ema": {name: own(mean) for name, mean in means.items()}}
            }
            note = "no state: the average is the mean gradient over all batches"
        draws = self.seed if seed is None else seed
        fisher = functools.partial(self._fisher, rows) if self._joint else None
        if self._first is not None and not torch.equal(self._first[0], rows):
            self._first = None
        plain = not variant.evaluate.finds_ascent
        first = self._first[1] if self._first is not None and plain else None
        made = counterfactual(
            variant, self.model, self._trained, self.losses, rows,
            state=state, seed=draws, fisher=fisher, first=first, second=False,
        )  # fmt: skip
        made.note = note or made.note
        if first is None:
            self.risk.spend(len(rows) / self.risk.num_examples)
            self._refuse_infinite(made, variant, rows)
            if plain:
                self._first = rows, (made.loss_clean, made.g1)
        return made

    def _refuse_infinite(self, made: sam.Perturbation, variant: sam.Variant, rows: Tensor) -> None:
        """Refuse a gradient that is not finite, with the name of the first such tensor."""
        finite = [vectors.is_finite(g) for g in made.g1 if g is not None]
        if not finite or bool(torch.stack(finite).all()):
            return
        for name, g in zip(made.names, made.g1, strict=True):
            if g is not None and (bad := int((~torch.isfinite(g)).sum())):
                raise LandscapeError(
                    f"The gradient of {name} has {bad} NaN or infinite values of {g.numel()} on a "
                    f"batch of {len(rows)} examples; {variant.name!r} needs a finite gradient. "
                    f"Check the checkpoint and the inputs."
                )

    @property
    def _joint(self) -> bool:
        """Whether the losses of a batch depend on each other: by its BatchNorm statistics."""
        return self.bn == "batch" and self.risk.has_batchnorm

    def _fisher(self, rows: Tensor, count: int) -> dict[str, Tensor]:
        """Mean over examples of (∂ loss_i / ∂ w)² with the other examples of the batch beside them.

        One graph of the batch, so that a mask of Fisher information is asked in the BatchNorm mode
        of all others; one example alone has no statistics of a batch.
        """
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        total = {name: torch.zeros_like(p) for name, p in trained.items()}
        some = min(count, len(rows))
        with torch.enable_grad():
            losses = self.losses(rows)
            if losses.ndim == 0:
                raise LandscapeError(
                    "Fisher information was asked with bn='batch' of a loss that is known as a "
                    "mean alone; give bn='eval', or a loss per example."
                )
            for i in range(some):
                found = torch.autograd.grad(
                    losses[i], list(trained.values()), materialize_grads=True, retain_graph=True
                )
                for name, g in zip(trained, found, strict=True):
                    total[name].addcmul_(g, g)
        self.risk.spend(some * len(rows) / self.risk.num_examples)
        return {name: local(t) / some for name, t in total.items()}

    def batches(self, count: int) -> list[Tensor]:
        """Rows of `count` disjoint batches of the seeded order; the first is that of `perturb`."""
        whole = [
            rows for rows in self._order.split(self.batch_size) if len(rows) == self.batch_size
        ]
        if count > len(whole):
            raise LandscapeError(
                f"num_batches={count} batches of {self.batch_size} were asked of "
                f"{len(self._order)} examples, which hold {len(whole)}; lower num_batches or "
                f"batch_size, or measure on more examples."
            )
        return whole[:count]

    def gradient(self, rows: Tensor) -> Tensor:
        """Gradient of the rows' mean loss (P,) in the mode of the step, 0 where a tensor has none.

        Weight decay is not part of it, as it is not part of what a variant sees.
        """
        trained = {n: p for n, p in self.model.named_parameters() if p.requires_grad}
        loss = self.losses(rows).mean()
        found = torch.autograd.grad(loss, list(trained.values()), materialize_grads=True)
        self.risk.spend(len(rows) / self.risk.num_examples)
        return self.flat(dict(zip(trained, found, strict=True)))

    def loss_at(self, theta: Tensor) -> Tensor:
        """Mean loss () of the batch at other weights, in the mode of the step."""
        try:
            with torch.no_grad():
                self._put(theta)
                return self.losses(self.rows).mean()
        finally:
            self._put(self._theta)
            self.risk.spend(self.batch_size / self.risk.num_examples / 3)

    @torch.no_grad()
    def _put(self, theta: Tensor) -> None:
        named = dict(self.model.named_parameters())
        for name, value in self.risk.layout.unflatten(theta).items():
            write(named[name], value)

    @functools.cached_property
    def mean_gradient(self) -> Tensor:
        """Mean over all batches of the gradient in the mode of the step, (P,)."""
        batches = self._order.split(self.batch_size)
        shares = (self.gradient(rows) * (len(rows) / len(self._order)) for rows in batches)
        return functools.reduce(torch.add, shares)

    def flat(self, named: dict[str, Tensor]) -> Tensor:
        """Named tensors as one flat vector."""
        return self.risk.layout.flatten(named)

    def flat_mask(self, made: sam.Perturbation) -> Tensor:
        """The selected coordinates, (P,) bool."""
        return self.flat(made.mask)

    def flat_gradient(self, made: sam.Perturbation) -> Tensor:
        """The gradient of the batch, zero where a tensor has none."""
        filled = {
            name: torch.zeros(shape, dtype=self.risk.dtype, device=self.risk.device)
            if gradient is None
            else gradient
            for name, shape, gradient in zip(made.names, made.shapes, made.g1, strict=True)
        }
        return self.flat(filled)
