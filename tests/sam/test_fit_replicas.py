"""DistributedDataParallel in two gloo processes: replicas stay equal, bit for bit."""

import warnings

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import batch, closure_of, cnn, losses_of
from tests.two_processes import in_two_processes, needs_processes

RECIPES = ("sam", "fsam", "zsharp", "sam_on", "lagnp", "gnp", "wsam", "looksam", "sl_sam")
LOCAL = ("sam", "fsam", "zsharp", "sam_on", "gnp", "gsam", "wsam", "looksam")


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def smooth():
    """Without BatchNorm, so that the mean over processes is the gradient of the whole batch."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(100, 6), nn.LayerNorm(6), nn.Tanh(), nn.Linear(6, 5)
    ).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def half(b, rank):
    return tuple(x[8 * rank : 8 * rank + 8] for x in b)


def theta(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def equal_everywhere(model):
    own = theta(model)
    both = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(both, own)
    return torch.equal(*both)


def synchronized(rank, bucket_views):
    for name in RECIPES:
        ours, alone = smooth(), smooth()
        model = DistributedDataParallel(ours, gradient_as_bucket_view=bucket_views)
        a = sam.SAM(model, sgd(ours), sam.make(name, {"rho": 0.1}), seed=3)
        b = sam.SAM(alone, sgd(alone), sam.make(name, {"rho": 0.1}), seed=3)
        for i in range(4):
            if name == "fsam":
                a.step(closure_of(model, half(batch(i), rank)))
            else:
                a.step(losses_of(model), half(batch(i), rank), micro_batch=5)
            b.step(losses_of(alone), batch(i))
        assert equal_everywhere(ours), name
        assert torch.allclose(theta(ours), theta(alone), rtol=1e-9, atol=1e-12), name
        for g1, g2 in zip(a.perturbation.g1, a.perturbation.g2):
            assert g1 is None or g2 is None or g1.data_ptr() != g2.data_ptr(), name


def local(rank):
    """M-sharpness with m = 8: every process climbs by itself, all descend with the mean."""
    for name in LOCAL:
        ours, alone = cnn(), cnn()
        model = DistributedDataParallel(ours, broadcast_buffers=False)
        optimizer = sam.SAM(model, sgd(ours), sam.make(name, {"rho": 0.1}), sync_perturbation=False)
        for i in range(4):
            optimizer.step(losses_of(model), half(batch(i), rank))
        assert equal_everywhere(ours), name
        if name == "sam":  # one process doing both halves by itself, one after the other
            both = [sgd_free(alone, half(batch(0), r)) for r in range(2)]
            fresh = cnn()
            step = DistributedDataParallel(fresh, broadcast_buffers=False)
            plain = torch.optim.SGD(fresh.parameters(), lr=0.1)
            sam.SAM(step, plain, sam.sam(0.1), sync_perturbation=False).step(
                closure_of(step, half(batch(0), rank))
            )
            expected = theta(alone) - 0.1 * (both[0] + both[1]) / 2
            assert torch.allclose(theta(fresh), expected, rtol=1e-10, atol=1e-13)


def sgd_free(model, b):
    """The SAM gradient of one batch, flat; the model is left as it was."""
    frozen = torch.optim.SGD(model.parameters(), lr=0.0)
    sam.SAM(model, frozen, sam.sam(0.1)).step(closure_of(model, b))
    return torch.cat([p.grad.flatten() for p in model.parameters()])


def norm_gate(point, state):
    """Open where this process's own gradient is large: the processes disagree."""
    return bool(point.scratch["names"]) and dist.get_rank() == 0


def disagreeing(rank):
    """A gate, or a bad gradient, that one process sees and the other does not."""
    import dataclasses

    ours = cnn()
    model = DistributedDataParallel(ours, broadcast_buffers=False)
    variant = dataclasses.replace(sam.sam(0.1), gate=norm_gate)
    optimizer = sam.SAM(model, sgd(ours), variant, sync_perturbation=False)
    optimizer.step(losses_of(model), half(batch(), rank))
    assert not optimizer.perturbation.climbed
    assert equal_everywhere(ours)

    optimizer = sam.SAM(model, sgd(ours), sam.sam(0.1), sync_perturbation=False)
    before = theta(ours)

    def closure():
        loss = nn.functional.cross_entropy(model(half(batch(), rank)[0]), half(batch(), rank)[1])
        (loss * (float("nan") if rank else 1.0)).backward()
        return loss

    optimizer.step(closure)
    assert optimizer.num_skipped == 1
    assert torch.equal(theta(ours), before)


def refused(rank):
    model = DistributedDataParallel(cnn())
    for name in ("lagnp", "sl_sam"):
        with pytest.raises(LandscapeError, match="sync_perturbation=True"):
            sam.SAM(model, sgd(model), sam.make(name, {}), sync_perturbation=False)


def weighted(rank):
    """Focal-SAM takes two gradients of one graph, which a replica's reducer does not see."""
    ours, alone = smooth(), smooth()
    model = DistributedDataParallel(ours)
    variant = sam.focal_sam(0.1, class_counts=(5, 4, 3, 2, 1))
    sam.SAM(model, sgd(ours), variant).step(losses_of(model), half(batch(), rank))
    sam.SAM(alone, sgd(alone), variant).step(losses_of(alone), batch())
    assert torch.allclose(theta(ours), theta(alone), rtol=1e-9, atol=1e-12)


def zero(rank):
    """ZeroRedundancyOptimizer: each process keeps its tensors' state until they are joined."""
    with warnings.catch_warnings():  # torch compiles other optimizers of its own there
        warnings.simplefilter("ignore", DeprecationWarning)
        from torch.distributed.optim import ZeroRedundancyOptimizer
    ours, alone = smooth(), smooth()
    model = DistributedDataParallel(ours)
    base = ZeroRedundancyOptimizer(ours.parameters(), optimizer_class=torch.optim.Adam, lr=0.05)
    a = sam.SAM(model, base, sam.sam(0.1))
    b = sam.SAM(alone, torch.optim.Adam(alone.parameters(), lr=0.05), sam.sam(0.1))
    for i in range(3):
        a.step(closure_of(model, half(batch(i), rank)))
        b.step(losses_of(alone), batch(i))
    assert torch.allclose(theta(ours), theta(alone), rtol=0, atol=1e-12)
    with pytest.raises(LandscapeError, match=r"call optimizer.base.consolidate_state_dict\(to=0\)"):
        a.state_dict()
    a.base.consolidate_state_dict(to=0)
    if rank == 0:
        kept = a.state_dict()["state"]
        whole = b.base.state_dict()["state"]
        assert all(
            torch.allclose(kept[i]["exp_avg"], whole[i]["exp_avg"], atol=1e-12) for i in whole
        )


def everything(rank):
    zero(rank)
    synchronized(rank, False)
    synchronized(rank, True)
    local(rank)
    disagreeing(rank)
    refused(rank)
    weighted(rank)


@pytest.mark.thorough
@needs_processes
def test_two_processes_take_the_steps_of_one_and_never_drift_apart():
    in_two_processes(everything)
