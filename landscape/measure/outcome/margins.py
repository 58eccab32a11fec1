"""How far each example is from another class."""

import numpy as np
import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from landscape import vectors
from landscape.errors import LandscapeError
from landscape.measure.measuring import Measuring, split
from landscape.results import Variable
from landscape.risk import EmpiricalRisk

PERCENTILES = (0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 0.9)


def margins(risk: EmpiricalRisk, theta: Float[Tensor, "P"]) -> xr.Dataset:
    """Margin f_y - max_{j != y} f_j of every example, raw and over the size of its logits.

    margin(example): negative where the example is misclassified. normalized_margin(example) =
    margin/‖f - mean(f)‖, at most sqrt(2) in size, which does not see the scale of the logits.
    margin_quantile(percentile), normalized_quantile(percentile), mean_margin. The logarithm of the
    product of spectral norms of all weight matrices (output channels x rest), log10_spectral_norm,
    by which spectrally normalized bounds divide the margin (arXiv:1706.08498), has a meaning only
    without normalization layers. Cost: one forward pass, one SVD per tensor of two axes or more.

    Example:
        >>> found = measure.margins(risk, theta)
        >>> found.margin.sizes["example"]
        48
        >>> bool(((found.margin > 0) == measure.correct_examples(risk, theta)).all())
        True
    """
    measuring = Measuring("margins", risk, theta)
    outputs, targets = risk.outputs(measuring.theta), risk.targets
    if outputs.ndim != 2 or targets.is_floating_point() or outputs.shape[1] < 2:
        raise LandscapeError(
            f"Outputs of shape {tuple(outputs.shape)} and targets of dtype {targets.dtype} have no "
            f"margin; logits (N, C) of two or more classes and class numbers (N,) are needed."
        )
    f = outputs.double()
    own = f.gather(1, targets[:, None])[:, 0]
    others = f.scatter(1, targets[:, None], -torch.inf).max(1).values
    margin = own - others
    size = vectors.row_norms(f - f.mean(1, keepdim=True))
    normalized = torch.where(size > 0, margin / size.clamp_min(1e-300), torch.nan)
    quantiles = {
        "margin_quantile": (margin, "Margin"),
        "normalized_quantile": (normalized, "Margin over ‖logits‖"),
    }
    variables = {
        "margin": Variable("example", margin.cpu().numpy(), "1", "Margin"),
        "normalized_margin": Variable(
            "example", normalized.cpu().numpy(), "1", "Margin over ‖logits‖"
        ),
        "mean_margin": Variable((), float(margin.mean()), "1", "Mean margin"),
        "log10_spectral_norm": Variable(
            (), _log_spectral(risk, measuring.theta), "1", "log₁₀ of the product of spectral norms"
        ),
    }
    variables |= {
        name: Variable(
            "percentile",
            np.nanquantile(values.cpu().numpy(), PERCENTILES),
            "1",
            f"Quantile of the {title[0].lower()}{title[1:]}",
        )
        for name, (values, title) in quantiles.items()
    }
    coords = {"example": np.arange(len(margin)), "percentile": np.array(PERCENTILES)}
    return measuring.result(variables, coords=coords, options={})


def _log_spectral(risk: EmpiricalRisk, theta: Tensor) -> float:
    """Sum over weight matrices of log10 ‖W‖₂."""
    total = 0.0
    for tensor, flat in zip(risk.layout.tensors, split(risk.layout, theta), strict=True):
        if tensor.ndim > 1 and tensor.kind in ("conv", "linear"):
            matrix = flat.double().view(tensor.shape[0], -1)
            gram = vectors.gram(matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T)
            total += 0.5 * float(torch.linalg.eigvalsh(gram)[-1].clamp_min(1e-300).log10())
    return total
