"""Which training it is: everything that decides its numbers and that its arguments show, as JSON.

Each file of a training carries a mark of it, so that one of another training is refused even where
it lies in the right place under the right name.
"""

import hashlib
import json
import re
from dataclasses import fields
from typing import Any

from torch import nn

from landscape.problems import DataSplits
from landscape.sam import Variant
from landscape.training.foreign import OptimizerFactory
from landscape.training.options import TrainingOptions, plain

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


def identify(
    model: nn.Module,
    data: DataSplits,
    variant: Variant | OptimizerFactory,
    options: TrainingOptions,
    *,
    seed: int,
    run: str,
) -> str:
    """Canonical JSON of what a training is; equal in every process."""
    said = {
        "run": run,
        "variant": variant.name,
        "recipe": {f.name: _words(getattr(variant, f.name)) for f in fields(variant)},
        "seed": seed,
        "data": data.name,
        "num_examples": len(data.train),
        "targets_sha256": _digest(data),
        "num_parameters": sum(p.numel() for p in model.parameters()),
        **plain(options),
    }
    return json.dumps(said, sort_keys=True)


def _words(value: Any) -> str:
    """A slot in words that are equal in every process: no addresses, and sets in order."""
    if isinstance(value, (set, frozenset)):
        return repr(sorted(value))
    return _ADDRESS.sub("", repr(value))


def _digest(data: DataSplits) -> str:
    """Of classes; other targets are rounded by whoever standardizes them, and told by `run`."""
    y = data.train.y
    if y is None or y.is_floating_point():
        return ""
    return hashlib.sha256(y.detach().cpu().numpy().tobytes()).hexdigest()[:16]
