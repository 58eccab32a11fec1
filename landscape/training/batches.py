"""Batches of an epoch: their order and augmentation are functions of (seed, epoch) alone."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError
from landscape.problems import Batches, Split
from landscape.training.options import TrainingOptions

_ORDER, _AUGMENT, NOISE = 1, 2, 3
_SHIFT = 4


def derived_seed(seed: int, epoch: int, purpose: int) -> int:
    """One of many unrelated seeds made from a run's seed."""
    words = np.random.SeedSequence([seed, epoch, purpose]).generate_state(1, np.uint64)
    return int(words[0] >> np.uint64(1))  # torch takes 63 bits


def batches(
    train: Split | Batches, options: TrainingOptions, *, seed: int, epoch: int
) -> Iterator[tuple[Any, Tensor, Tensor]]:
    """(x, y, indices) of each step of an epoch, on the data's device.

    Of batches of another form (batch, indices, indices).
    """
    order_source = torch.Generator().manual_seed(derived_seed(seed, epoch, _ORDER))
    order = torch.randperm(len(train), generator=order_source)
    random = torch.Generator().manual_seed(derived_seed(seed, epoch, _AUGMENT))
    size = options.batch_size
    if isinstance(train, Split):
        order = order.to(train.x.device)
    for step in range(options.steps_per_epoch(len(train))):
        indices = order[step * size : (step + 1) * size]
        if isinstance(train, Batches):
            yield train.batch(indices), indices, indices
            continue
        x = train.x.index_select(0, indices)
        if options.augment == "crop_flip":
            x = crop_and_flip(x, generator=random)
        yield x, train.y.index_select(0, indices), indices


def crop_and_flip(x: Tensor, *, generator: torch.Generator) -> Tensor:
    """Images (n, c, h, w) shifted by up to 4 pixels each way and mirrored with probability 1/2.

    What comes in from outside is 0, the mean colour of standardized data. generator: of the CPU on
    every device, so that a seed means the same images; what it draws is uploaded without waiting.
    """
    if x.ndim != 4:
        raise LandscapeError(
            f"augment='crop_flip' needs images (n, channels, height, width) and the data have "
            f"shape {tuple(x.shape)}; use augment='none'."
        )
    n, _, height, width = x.shape
    device = x.device
    shift = torch.randint(0, 2 * _SHIFT + 1, (2, n, 1), generator=generator)
    mirror = torch.rand(n, 1, generator=generator) < 0.5
    drawn = torch.cat([shift, mirror[None]]).to(device, non_blocking=True)
    shift, mirror = drawn[:2], drawn[2].bool()
    rows = torch.arange(height, device=device) + shift[0]
    columns = torch.arange(width, device=device).expand(n, width)
    columns = torch.where(mirror, columns.flip(1), columns) + shift[1]
    padded = torch.nn.functional.pad(x, (_SHIFT,) * 4)
    images = torch.arange(n, device=device)[:, None, None]
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
