"""BatchNorm as a stated choice: frozen, of the whole set, or re-estimated layer by layer."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm

from landscape.errors import LandscapeError
from landscape.risk._folding import take_over

_KNOWN_FORWARDS = (_BatchNorm.forward, nn.SyncBatchNorm.forward)


class Reached(Exception):  # noqa: N818
    """Ends a forward pass at the layer whose statistics are being gathered."""


class BatchNormControl:
    """Takes over the forward of every BatchNorm layer of a private copy of the model.

    A site is one call of a layer within a forward pass. `mode`: "eval" (running statistics),
    "full_batch" (mean and biased variance of the rows at hand, as torch normalizes in training),
    "recalibrate" (the same with the unbiased variance, which is what running statistics hold), and
    "fixed" (statistics of earlier sites given, those of the next one gathered). `absorbed` says
    of a layer whether a convolution does its work.
    """

    def __init__(self, model: nn.Module, absorbed: Callable[[nn.Module], bool]) -> None:
        self.absorbed = absorbed
        self.layers = {n: m for n, m in model.named_modules() if isinstance(m, _BatchNorm)}
        self.names = {id(module): name for name, module in self.layers.items()}
        self.own = [n for n, m in self.layers.items() if type(m).forward not in _KNOWN_FORWARDS]
        # Running statistics that are read by what is not one of these layers, as a pass showed.
        self.elsewhere: list[str] = []
        self.reset()
        self.begin()
        for name, module in self.layers.items():
            if name not in self.own:
                take_over(module, self._forward_of(module))

    def __bool__(self) -> bool:
        return bool(self.layers)

    def reset(self) -> None:
        """Frozen running statistics; called after every use."""
        self.mode, self.purpose = "eval", "eval"
        self.statistics: list[tuple[Tensor, Tensor]] = []
        self.gathered = _ChannelMoments()

    def give(self, statistics: list[tuple[Tensor, Tensor]]) -> None:
        """Use these statistics, re-estimated elsewhere, site after site."""
        self.mode, self.purpose, self.statistics = "fixed", "recalibrate", statistics

    def gather(self, purpose: str) -> None:
        """Start to gather statistics of the whole set for `purpose`, site after site."""
        self.mode, self.purpose, self.statistics = "fixed", purpose, []

    def refuse_mode(self, mode: str) -> None:
        """Say which layer cannot be put in this mode."""
        for name, layer in self.layers.items():
            if mode == "eval" and layer.running_mean is None:
                raise LandscapeError(
                    f"bn='eval' asked, but BatchNorm layer {name!r} keeps no running statistics; "
                    f"use bn='full_batch' or bn='recalibrate'."
                )
        if mode != "eval" and self.elsewhere:
            raise LandscapeError(
                f"bn={mode!r} asked, but the forward reads {', '.join(self.elsewhere[:5])} where "
                f"no BatchNorm layer of torch is called, so that these statistics cannot be taken "
                f"over; use bn='eval', or call a plain nn.BatchNorm."
            )
        if mode != "eval" and self.own:
            kind = type(self.layers[self.own[0]]).__name__
            raise LandscapeError(
                f"bn={mode!r} asked, but layer {self.own[0]!r} ({kind}) has a forward of its own, "
                f"whose statistics cannot be taken over; use bn='eval' or a plain BatchNorm."
            )

    def begin(self) -> None:
        """Called before every forward pass."""
        self.site, self.called = 0, set[int]()

    def _forward_of(self, module: _BatchNorm) -> Callable[[Tensor], Tensor]:
        frozen = type(module).forward

        def forward(x: Tensor) -> Tensor:
            if self.mode == "eval":
                return x if self.absorbed(module) else frozen(module, x)
            if self.mode == "fixed":
                return self._fixed(module, x)
            return self._of_these_rows(module, x)

        return forward

    def _of_these_rows(self, module: _BatchNorm, x: Tensor) -> Tensor:
        self._enter(module)
        count = x.numel() // x.shape[1]
        if count < 2:
            raise self._too_few(module)
        weight, bias, eps = module.weight, module.bias, module.eps
        if self.mode == "recalibrate":
            # (x - m) / sqrt(s² n/(n-1) + eps) with the fused kernel, which knows only s².
            ratio = (count - 1) / count
            weight = x.new_ones(x.shape[1]) if weight is None else weight
            weight, eps = weight * math.sqrt(ratio), eps * ratio
        return F.batch_norm(x, None, None, weight, bias, training=True, eps=eps)

    def _fixed(self, module: _BatchNorm, x: Tensor) -> Tensor:
        self._enter(module)
        if self.site == len(self.statistics):
            self.gathered.add(x)
            raise Reached
        mean, var = self.statistics[self.site]
        self.site += 1
        return F.batch_norm(
            x, mean, var, module.weight, module.bias, training=False, eps=module.eps
        )

    def _enter(self, module: _BatchNorm) -> None:
        if "recalibrate" in (self.mode, self.purpose) and id(module) in self.called:
            raise LandscapeError(
                f"BatchNorm layer {self.names[id(module)]!r} is called twice in a forward pass, so "
                f"its one set of running statistics cannot be re-estimated layer by layer; use "
                f"bn='eval' or bn='full_batch'."
            )
        self.called.add(id(module))

    def pass_until_site(self, forward: Callable[[], object]) -> bool:
        """Run `forward` to the next site without statistics; False if there is none."""
        try:
            forward()
        except Reached:
            return True
        return False

    def close_site(self) -> None:
        """Turn what was gathered into the statistics of the next site."""
        self.statistics.append(self.gathered.result(unbiased=self.purpose == "recalibrate"))
        self.gathered = _ChannelMoments()

    def _too_few(self, module: _BatchNorm) -> LandscapeError:
        return LandscapeError(
            f"BatchNorm layer {self.names[id(module)]!r} sees one value per channel; its "
            f"statistics need at least two examples. Give more data, or use bn='eval'."
        )


class _ChannelMoments:
    """Mean and variance per channel over batches, merged in float64 (Chan et al. 1979)."""

    def __init__(self) -> None:
        self.count = 0

    def add(self, x: Tensor) -> None:
        rows = x.transpose(0, 1).flatten(1)
        var, mean = torch.var_mean(rows.double(), dim=1, correction=0)
        count, self.dtype = rows.shape[1], x.dtype
        if self.count == 0:
            self.mean, self.squares = mean, var * count
        else:
            delta, total = mean - self.mean, self.count + count
            self.squares = self.squares + var * count + delta**2 * (self.count * count / total)
            self.mean = self.mean + delta * (count / total)
        self.count += count

    def result(self, *, unbiased: bool) -> tuple[Tensor, Tensor]:
        if self.count < 2:
            raise LandscapeError(
                "BatchNorm statistics of one value per channel asked; give more data, or use "
                "bn='eval'."
            )
        var = self.squares / (self.count - 1 if unbiased else self.count)
        return self.mean.to(self.dtype), var.to(self.dtype)
