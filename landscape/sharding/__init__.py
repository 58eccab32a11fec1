"""Tensors and flat vectors that no process has whole, each working on what of them lies in it."""

from landscape.sharding import operations as operations
from landscape.sharding.cuts import Cut, is_cut, local
from landscape.sharding.space import Space
from landscape.sharding.vector import ShardedVector, joined, operands, own, whole, wholes, write

__all__ = [
    "Cut",
    "ShardedVector",
    "Space",
    "is_cut",
    "joined",
    "local",
    "operands",
    "own",
    "whole",
    "wholes",
    "write",
]
