"""Examples spread over the processes of torch.distributed, one share each."""

import torch
import torch.distributed as dist
from torch import Tensor

from landscape import vectors
from landscape.errors import LandscapeError


class Spread:
    """Sums over all processes of the default group; every process gets the same bits.

    What one process computes from its share alone never leaves `sum`, so that all of them take the
    same decisions.
    """

    def __init__(self, count: int, theta: Tensor) -> None:
        if not (dist.is_available() and dist.is_initialized()):
            raise LandscapeError(
                "distributed=True given, but torch.distributed has no process group; start the "
                "processes with torchrun and call torch.distributed.init_process_group first."
            )
        self.num_processes = dist.get_world_size()
        self.num_examples = int(self.sum(torch.tensor(count, device=theta.device)))
        own = torch.stack([theta.double().sum(), vectors.squared_norm(theta)])
        low, high = own.clone(), own.clone()
        dist.all_reduce(low, dist.ReduceOp.MIN)
        dist.all_reduce(high, dist.ReduceOp.MAX)
        if not torch.equal(low, high):
            raise LandscapeError(
                f"The {self.num_processes} processes hold different weights (sums from "
                f"{float(low[0]):.6g} to {float(high[0]):.6g}); load the same checkpoint in all."
            )

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over processes; the argument is left alone."""
        total = tensor.clone()
        dist.all_reduce(total)
        return total
