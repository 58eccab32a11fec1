"""Two gloo processes on this machine that run a function of the test module."""

import os
import socket
from collections.abc import Callable
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

needs_processes = pytest.mark.skipif(not dist.is_available(), reason="torch without distributed")


def in_two_processes(work: Callable[[int], None]) -> None:
    """work(rank) in each, a function of a module; what either raises is raised here."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_process, args=(port, work), nprocs=2, join=True)


def _process(rank: int, port: int, work: Callable[[int], None]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    try:
        work(rank)
        dist.barrier()  # so that neither tears down what the other still talks to
    finally:
        dist.destroy_process_group()
    os._exit(0)  # threads of gloo that outlive the interpreter abort, once in many runs
