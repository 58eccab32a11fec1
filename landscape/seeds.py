"""Random streams that have nothing in common, even where everything is given the same seed.

`torch.manual_seed(0)` before a model is made and `Generator().manual_seed(0)` for a random mask are
one stream: the mask would then pick weights by their initial values. Hence a purpose beside each
seed.
"""

import zlib

import numpy as np
import torch

__all__ = ["generator"]


def generator(
    seed: int, *, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:  # fmt: skip
    """A generator of its own, a function of seed and purpose; the global ones are not touched."""
    entropy = [seed % 2**64, zlib.crc32(purpose.encode())]
    word = np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0]
    return torch.Generator(device=device).manual_seed(int(word >> np.uint64(1)))  # 63 bits
