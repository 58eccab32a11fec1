"""Values of any library on the host."""

from typing import Any

import numpy as np

CHUNK = 1 << 20  # elements per pass: float64 temporaries stay below 10 MB


def host(values: Any) -> np.ndarray:
    """Values as a numpy array on the host; half precision is widened (numpy has no bfloat16).

    values: an array, a tensor on any device, or numbers. Returns the same shape and units.

    Example:
        >>> streams.host(torch.ones(2, dtype=torch.bfloat16)).dtype
        dtype('float32')
    """
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        if values.is_floating_point() and values.element_size() < 4:
            values = values.float()
        values = values.numpy()
    return np.asarray(values)
