"""Mergeable summaries of long streams: moments, histograms, bit-packed masks and their overlap.

One formula, one place: the measurements and the recorder of a training both use these. Every
summary of a whole equals the merge of the summaries of its parts, in any order and for any split,
so that a tensor of 10^8 elements, a hundred batches or four processes cost one pass and bounded
memory.
Numpy only; torch tensors are accepted and copied to the host.
"""

from landscape.streams._host import host
from landscape.streams.histograms import Grid, Histogram
from landscape.streams.masks import PackedMasks
from landscape.streams.moments import Moments, spread_of_rounding
from landscape.streams.overlap import Overlap, PooledOverlap, holm, stacked
from landscape.streams.persistence import half_life, persistence
from landscape.streams.probes import quadrature_bracket, student
from landscape.streams.values import ValueHistogram

__all__ = [
    "Grid",
    "Histogram",
    "Moments",
    "Overlap",
    "PackedMasks",
    "PooledOverlap",
    "ValueHistogram",
    "half_life",
    "holm",
    "host",
    "persistence",
    "quadrature_bracket",
    "spread_of_rounding",
    "stacked",
    "student",
]
