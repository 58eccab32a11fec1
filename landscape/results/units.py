"""The unit of a loss: nats where it is a negative log-likelihood, otherwise its own.

Measurements, figures and sentences are written with "nats". Of a squared error, or a function of
the user's own, of which nobody can tell, the same words are said with "loss units".
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any, TypeVar

import xarray as xr

__all__ = ["NATS", "OTHER", "of_loss", "of_result", "said_in"]

NATS, OTHER = "nats", "loss units"
# Of torch.nn, and as functions of torch.nn.functional; "causal_lm" is that of the next token.
_LIKELIHOODS = frozenset({
    "CrossEntropyLoss", "NLLLoss", "BCELoss", "BCEWithLogitsLoss", "MultiLabelSoftMarginLoss",
    "SoftMarginLoss", "KLDivLoss", "PoissonNLLLoss", "GaussianNLLLoss", "CTCLoss",
    "cross_entropy", "nll_loss", "binary_cross_entropy", "binary_cross_entropy_with_logits",
    "multilabel_soft_margin_loss", "soft_margin_loss", "kl_div", "poisson_nll_loss",
    "gaussian_nll_loss", "ctc_loss", "causal_lm",
})  # fmt: skip
# A digit raised is a letter to \b.
_WORD = re.compile(r"(?<![A-Za-z])nats(?![A-Za-z])")
_T = TypeVar("_T")


def of_loss(name: str) -> str:
    """The unit of the loss of this name, as `EmpiricalRisk` and study files have it.

    name: of a criterion or function of torch, or "causal_lm"; of any other the unit is not known.

    Example:
        >>> results.units.of_loss("CrossEntropyLoss"), results.units.of_loss("MSELoss")
        ('nats', 'loss units')
    """
    return NATS if name.partition("(")[0] in _LIKELIHOODS else OTHER


def of_result(ds: xr.Dataset) -> str | None:
    """The unit of the loss in a result's variables; None where none of them has it.

    ds: a result.

    Example:
        >>> results.units.of_result(measure.loss_slice(risk, theta, seed=0))
        'nats'
    """
    said = [str(ds[name].attrs.get("units", "")) for name in ds.variables]
    if any(OTHER in units for units in said):
        return OTHER
    return NATS if any(_WORD.search(units) for units in said) else None


def said_in(value: _T, unit: str | None) -> _T:
    """Texts with this unit for nats, also within sequences, mappings, dataclasses and results.

    value: a text, or what holds some; other values are kept. unit: None leaves all as it is.

    Example:
        >>> results.units.said_in(("loss (nats)", 3), results.units.OTHER)
        ('loss (loss units)', 3)
    """
    return value if unit in (NATS, None) else _said(value, unit)


def _said(value: Any, unit: str) -> Any:
    if isinstance(value, str):
        return _WORD.sub(unit, value) if type(value) is str else value
    if isinstance(value, xr.Dataset):
        new = value.copy()
        for name in new.variables:
            new[name].attrs = _said(dict(new[name].attrs), unit)
        return new
    if isinstance(value, Mapping):
        return {key: _said(each, unit) for key, each in value.items()}
    if isinstance(value, list | tuple) and not hasattr(value, "_fields"):
        return type(value)(_said(each, unit) for each in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        own = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        return dataclasses.replace(value, **{key: _said(each, unit) for key, each in own.items()})
    return value
