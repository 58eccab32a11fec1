"""What torch's own criteria average over: which of them a loss is, and the weight of each row."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from landscape.errors import LandscapeError

_FUNCTIONS: dict[Any, type[nn.Module]] = {
    F.cross_entropy: nn.CrossEntropyLoss,
    F.nll_loss: nn.NLLLoss,
    F.mse_loss: nn.MSELoss,
    F.l1_loss: nn.L1Loss,
    F.smooth_l1_loss: nn.SmoothL1Loss,
    F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy: nn.BCELoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
    F.kl_div: nn.KLDivLoss,
    F.poisson_nll_loss: nn.PoissonNLLLoss,
    F.gaussian_nll_loss: nn.GaussianNLLLoss,
    F.soft_margin_loss: nn.SoftMarginLoss,
    F.hinge_embedding_loss: nn.HingeEmbeddingLoss,
    F.multi_margin_loss: nn.MultiMarginLoss,
    F.multilabel_margin_loss: nn.MultiLabelMarginLoss,
    F.multilabel_soft_margin_loss: nn.MultiLabelSoftMarginLoss,
    F.cosine_embedding_loss: nn.CosineEmbeddingLoss,
    F.margin_ranking_loss: nn.MarginRankingLoss,
    F.triplet_margin_loss: nn.TripletMarginLoss,
    F.triplet_margin_with_distance_loss: nn.TripletMarginWithDistanceLoss,
    F.ctc_loss: nn.CTCLoss,
}
# torch broadcasts outputs against targets here, with a warning at most.
_ELEMENTWISE = (
    nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss,
    nn.KLDivLoss, nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.HingeEmbeddingLoss,
)  # fmt: skip
_OF_CLASSES = (nn.CrossEntropyLoss, nn.NLLLoss)
_TRIPLETS = (nn.TripletMarginLoss, nn.TripletMarginWithDistanceLoss)
_PAIRS = (nn.CosineEmbeddingLoss, nn.MarginRankingLoss)
_OUTPUTS: dict[type[nn.Module], tuple[str, ...]] = {
    **dict.fromkeys(_TRIPLETS, ("anchor", "positive", "negative")),
    **dict.fromkeys(_PAIRS, ("input1", "input2")),
    nn.GaussianNLLLoss: ("mean", "variance"),
}


@dataclass(frozen=True)
class TorchLoss:
    """A criterion of torch.nn or torch.nn.functional with its options, from either form.

    kind: the class of torch.nn that it is; options: reduction, weight, pos_weight, ignore_index and
    label_smoothing as they were given.
    """

    kind: type[nn.Module]
    options: dict[str, Any]

    @classmethod
    def of(cls, loss: Any) -> "TorchLoss | None":
        """None for a loss that is not torch's."""
        keywords: dict[str, Any] = {}
        while isinstance(loss, functools.partial) and not loss.args:
            keywords = {**loss.keywords, **keywords}
            loss = loss.func
        kind = _FUNCTIONS.get(loss) if _hashable(loss) else None
        defaults = dict(getattr(loss, "__dict__", {}))
        if isinstance(loss, nn.Module):
            kind = next((k for k in type(loss).__mro__ if k in _FUNCTIONS.values()), None)
            if kind is None or type(loss).forward is not kind.forward:
                return None
            defaults = {**defaults, **loss._buffers}
        if kind is None:
            return None
        names = ("weight", "pos_weight", "ignore_index", "label_smoothing", "reduction")
        known = {name: defaults[name] for name in names if defaults.get(name) is not None}
        found = cls(kind, {"ignore_index": -100, "reduction": "mean", **known, **keywords})
        found.refuse_weight_of_rows()
        return found

    @property
    def of_classes(self) -> bool:
        """Whether integer targets are classes that are weighted and ignored."""
        return issubclass(self.kind, _OF_CLASSES)

    def called(self, loss: Callable[..., Tensor], output: Any, target: Any) -> Tensor:
        """loss(...) with the outputs and targets in the places that this criterion has for them."""
        takes = None if "var" in self.options else _OUTPUTS.get(self.kind)
        if takes is not None:
            found = len(output) if isinstance(output, tuple | list) else 1
            if found != len(takes):
                raise LandscapeError(
                    f"{self.kind.__name__} is a loss of {len(takes)} outputs ({', '.join(takes)}); "
                    f"the model returns {found}. Wrap it so that it returns a tuple of these."
                )
            if issubclass(self.kind, _TRIPLETS):
                return loss(*output)
            if issubclass(self.kind, _PAIRS):
                return loss(*output, target)
            return loss(output[0], target, output[1])
        if self.kind is nn.CTCLoss and isinstance(target, tuple | list):
            losses = loss(output, *target)
            lengths = torch.as_tensor(target[-1], device=losses.device).clamp_min(1)
            mean = self.options["reduction"] == "mean" and losses.ndim > 0
            return losses / lengths if mean else losses
        self._refuse_broadcast(output, target)
        return loss(output, target)

    def weights(self, target: Any, count: int, elements: int) -> Tensor:
        """What each row adds to the denominator of the mean (count,), float64.

        Σ weight[y] over what is not ignored for class targets (torch divides by nothing else, with
        label smoothing too), else the number of unreduced losses of a row, ignored ones included.
        """
        options = self.options
        if options["reduction"] == "batchmean":
            return torch.ones(count, dtype=torch.float64)
        by_class = self.of_classes and isinstance(target, Tensor) and not target.is_floating_point()
        if not by_class or options["reduction"] != "mean":
            return torch.full((count,), float(elements), dtype=torch.float64)
        counted = target != options["ignore_index"]
        weight = options.get("weight")
        if weight is None:
            return counted.reshape(count, -1).sum(1).double().cpu()
        each = weight.double().to(target.device)[target.where(counted, 0)] * counted
        return each.reshape(count, -1).sum(1).cpu()

    def described(self) -> dict[str, Any]:
        """Options that change the number, as JSON types."""
        found: dict[str, Any] = {"reduction": self.options["reduction"]}
        for name in ("weight", "pos_weight"):
            if isinstance(self.options.get(name), Tensor):
                found[name] = self.options[name].double().cpu().tolist()
        if self.of_classes:
            found["ignore_index"] = self.options["ignore_index"]
        if self.options.get("label_smoothing"):
            found["label_smoothing"] = self.options["label_smoothing"]
        return found

    def refuse_weight_of_rows(self) -> None:
        """Legacy arguments override the reduction and are not followed."""
        legacy = [name for name in ("size_average", "reduce") if name in self.options]
        if legacy:
            raise LandscapeError(
                f"{legacy[0]}= is given to {self.kind.__name__}'s function, which torch has "
                f"deprecated; say reduction='mean', 'sum' or 'none'."
            )

    def _refuse_broadcast(self, output: Any, target: Any) -> None:
        if not (isinstance(output, Tensor) and isinstance(target, Tensor)):
            return
        if issubclass(self.kind, _ELEMENTWISE) and output.shape != target.shape:
            raise LandscapeError(
                f"{self.kind.__name__} of outputs of shape {tuple(output.shape)} against targets "
                f"of shape {tuple(target.shape)}: torch would compare every output with every "
                f"target of the broadcast. Give both one shape, such as targets "
                f"{tuple(output.shape)}."
            )


def _hashable(loss: Any) -> bool:
    try:
        hash(loss)
    except TypeError:
        return False
    return True
