"""Datasets and models by name, and your own by "package.module:callable"."""

from landscape.problems.batches import Batches
from landscape.problems.data import DATA, load_data
from landscape.problems.models import MODELS, make_loss, make_model
from landscape.problems.noise import NOISE_KINDS, flip_labels
from landscape.problems.own import import_object
from landscape.problems.splits import DataSplits, Split, as_splits
from landscape.problems.weights import WeightsReport, load_weights

__all__ = [
    "DATA", "MODELS", "NOISE_KINDS", "Batches", "DataSplits", "Split", "WeightsReport", "as_splits",
    "flip_labels",
    "import_object", "load_data", "load_weights", "make_loss", "make_model",
]  # fmt: skip
