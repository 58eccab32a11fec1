"""Two processes that hold half of every weight measure what one process measures."""

import numpy as np
import pytest
import torch
from torch import nn

from landscape import EmpiricalRisk, LandscapeError, measure, plane, sam
from landscape.risk._sharded import Gathering
from landscape.sharding import ShardedVector, whole
from tests.sharding.models import (
    CE,
    Heads,
    both,
    data,
    fully_sharded,
    heads_in_parts,
    made,
    tensor_parallel,
)
from tests.two_processes import in_two_processes, needs_processes


def mesh_of_two():
    from torch.distributed.device_mesh import init_device_mesh

    return init_device_mesh("cpu", (2,))


def near(a, b, tolerance):
    a, b = (torch.as_tensor(np.asarray(whole(t) if isinstance(t, torch.Tensor) else t)).double()
            for t in (a, b))  # fmt: skip
    assert float((a - b).norm()) <= tolerance * float(b.norm())


def same_derivatives(cut, alone, tolerance=1e-12):
    theta, reference = cut.theta, alone.theta
    assert isinstance(theta, ShardedVector)
    assert theta.here.numel() < 0.7 * theta.numel()
    assert cut.fingerprint(theta) == alone.fingerprint(reference)
    V = torch.randn(2, len(reference), generator=torch.Generator().manual_seed(4)).to(reference)
    rows = cut.layout.space.own(V)
    at, point = 0.9 * theta, 0.9 * reference
    near(cut.loss(at), alone.loss(point), tolerance)
    near(cut.gradient(at), alone.gradient(point), tolerance)
    products = cut.hvp(at, ShardedVector(rows, cut.layout.space))
    assert isinstance(products, ShardedVector)
    near(products, alone.hvp(point, V), tolerance)
    near(cut.linearized_hvp(at)(V), alone.hvp(point, V), tolerance)
    near(cut.linearized_ggn(at)(V), alone.linearized_ggn(point)(V), tolerance)


def same_eigenvalues(cut, alone, **options):
    """Within both bounds: where a search stops is a decision that rounding may tip."""
    found, known = (
        measure.top_eigenvalues(risk, risk.theta, k=1, tolerance=1e-3, seed=0, **options)
        for risk in (cut, alone)
    )
    assert found["converged"].all()
    assert known["converged"].all()
    apart = np.abs(found["eigenvalue"].values - known["eigenvalue"].values)
    assert (apart <= found["bound"].values + known["bound"].values).all()


def same_probes(cut, alone):
    """The same random stream as one process has."""
    calls = [
        lambda r: measure.hessian_trace(r, r.theta, num_probes=2, seed=0)["trace_sample"],
        lambda r: measure.hessian_trace(
            r, r.theta, num_probes=6, method="hutch++", seed=0)["trace_sample"],
        lambda r: measure.spectral_density(
            r, r.theta, num_probes=1, num_nodes=4, seed=0)["ritz_value"],
    ]  # fmt: skip
    for call in calls:
        near(call(cut), call(alone), 1e-8)


def same_masks(cut, alone):
    variants = {"zsharp": sam.zsharp(rho=0.1), "ssam": sam.ssam_f(rho=0.1), "asam": sam.asam()}
    options = {"variants": variants, "batch_size": 4, "seed": 0}
    pair = [measure.mask_overlap(r, r.theta, num_permutations=9, **options) for r in (cut, alone)]
    for name in ("jaccard", "expected_jaccard"):
        np.testing.assert_array_equal(pair[0][name], pair[1][name])
    scores = [measure.gradient_zscores(r, r.theta) for r in (cut, alone)]
    assert scores[0].equals(scores[1])


def same_surfaces(cut, alone):
    planes = [plane.random(r, r.theta, num_directions=2, seed=3) for r in (cut, alone)]
    near(planes[0].directions, planes[1].directions, 1e-12)
    losses = [measure.loss_plane(r, r.theta, points=3, seed=3)["loss"] for r in (cut, alone)]
    near(*losses, 1e-12)


def derived(_rank):
    mesh = mesh_of_two()
    for name in ("language", "convolutional", "recurrent", "narrow"):
        same_derivatives(*both(name, fully_sharded, mesh, weight_decay=1e-3))
    same_derivatives(*both("language", tensor_parallel, mesh))


def measured(_rank):
    mesh = mesh_of_two()
    cut, alone = both("language", tensor_parallel, mesh)
    same_eigenvalues(cut, alone, select=["linear"], max_basis=12)
    same_probes(cut, alone)
    same_eigenvalues(*both("language", fully_sharded, mesh, dtype=torch.float32))
    cut, alone = both("convolutional", fully_sharded, mesh)
    same_masks(cut, alone)
    same_surfaces(cut, alone)


def everything(rank):
    derived(rank)
    measured(rank)


@pytest.mark.thorough
@needs_processes
def test_the_numbers_of_a_sharded_model_are_those_of_one_process():
    in_two_processes(everything)


def held_weights(risk):
    """Elements of whole weights that are in memory now."""
    gathering = next(
        m._parameters for m in risk._engine.network.model.modules()
        if isinstance(m._parameters, Gathering)
    )  # fmt: skip
    live = gathering.weights._live.values()
    return sum(piece.numel for reference, _, piece in live if not reference.expired())


def frugal(_rank):
    mesh = mesh_of_two()
    cut, _ = both("language", fully_sharded, mesh)
    theta, peak = cut.theta, []
    largest = max(piece.numel for piece in cut.layout.space.pieces)
    gather = cut._engine.network._gathering._known

    def known(*args):
        gather(*args)
        peak.append(held_weights(cut))

    cut._engine.network._gathering._known = known
    product = cut.linearized_hvp(theta)
    assert held_weights(cut) == 0  # a kept graph holds none
    product(theta)
    cut.gradient(theta)
    # A weight and its bias, and one layer beside them that the engine is about to leave.
    assert max(peak) <= 2.2 * largest


def kept(_rank):
    model = fully_sharded(made("language"), mesh_of_two())
    before = [p.detach().full_tensor() for p in model.parameters()]
    state = {n: dict(m.__dict__) for n, m in model.named_modules()}
    risk = EmpiricalRisk(model, CE, data("language", torch.float64))
    risk.gradient(risk.theta)
    assert {n: m.__dict__.keys() for n, m in model.named_modules()} == {
        n: kept.keys() for n, kept in state.items()
    }
    for p, was in zip(model.parameters(), before, strict=True):
        assert torch.equal(p.detach().full_tensor(), was)
        assert p.grad is None
    # It still trains as before.
    CE(model(data("language", torch.float64)[0]), data("language", torch.float64)[1]).backward()
    assert all(p.grad is not None for p in model.parameters())
    # And what a forward left whole is cut again.
    with torch.no_grad():
        model(data("language", torch.float64)[0])
    assert EmpiricalRisk(model, CE, data("language", torch.float64)).fingerprint(
        risk.theta
    ) == risk.fingerprint(risk.theta)


def refused(rank):
    mesh = mesh_of_two()
    x, y = data("language", torch.float64)
    model = fully_sharded(made("language"), mesh)
    with pytest.raises(LandscapeError, match="distributed=True asked of a sharded model"):
        EmpiricalRisk(model, CE, (x, y), distributed=True)
    with pytest.raises(LandscapeError, match="borrow=True asked of a sharded model"):
        EmpiricalRisk(model, CE, (x, y), borrow=True)
    own = slice(0, 3) if rank == 0 else slice(3, 6)
    with pytest.raises(LandscapeError, match="The 2 processes have different examples"):
        EmpiricalRisk(model, CE, (x[own], y[own]))
    risk = EmpiricalRisk(model, CE, (x, y))
    with pytest.raises(LandscapeError, match="crosscheck asked of a sharded model"):
        measure.crosscheck(risk, risk.theta, seed=0)
    with pytest.raises(LandscapeError, match="draws random numbers, every process others"):
        torch.randn_like(risk.theta)
    with pytest.raises(LandscapeError, match="no whole tensor"):
        risk.theta[1:4] += 1.0
    assert risk.provenance()["sharded_over"] == 2
    odd = nn.Sequential(nn.Linear(3, 2 + rank))  # a stage of a pipeline
    odd[0].register_parameter("cut", next(iter(fully_sharded(made("language"), mesh).parameters())))
    with pytest.raises(LandscapeError, match="hold different parameters"):
        EmpiricalRisk(odd, nn.MSELoss(), (torch.zeros(2, 3), torch.zeros(2, 2 + rank)))


def everything_else(rank):
    frugal(rank)
    kept(rank)
    refused(rank)


@pytest.mark.thorough
@needs_processes
def test_no_graph_holds_whole_weights_the_model_stays_and_what_cannot_be_measured_is_refused():
    in_two_processes(everything_else)


def without_hooks(mesh):
    """DTensors that plain tensors cannot meet: the module by itself computes nothing."""
    from torch.distributed.tensor import Shard, distribute_tensor

    layer = nn.Linear(8, 8)
    for name, weight in list(layer.named_parameters()):
        setattr(layer, name, nn.Parameter(distribute_tensor(weight.detach(), mesh, [Shard(0)])))
    return layer


def compared(_rank):
    """A forward that is written for parts of weights, and the same one written for any."""
    from torch.distributed.tensor import Shard
    from torch.distributed.tensor.parallel import RowwiseParallel

    mesh, source = mesh_of_two(), torch.Generator().manual_seed(1)
    rows = torch.randn(6, 3, 8, generator=source), torch.randint(8, (6,), generator=source)
    other = heads_in_parts(Heads(local_heads=2), mesh)
    for options in ({}, {"local_heads": 2}):
        torch.manual_seed(0)
        model = heads_in_parts(Heads(**options), mesh)
        model(rows[0])
        kept = {name: b.clone() for name, b in model.named_buffers()}
        drawn, weights = torch.get_rng_state(), list(map(id, model.parameters()))
        for dtype in (torch.float32, torch.float64):
            if options:
                with pytest.raises(LandscapeError, match="Heads is another function than sharded"):
                    EmpiricalRisk(model, CE, rows, dtype=dtype)
            else:
                risk = EmpiricalRisk(model, CE, rows, dtype=dtype)
                assert "sharded_forward_not_compared" not in risk.provenance()
                with pytest.raises(LandscapeError, match="another function"):
                    risk.with_model(other)
                assert risk.with_model(model).num_examples == 6
        assert torch.equal(torch.get_rng_state(), drawn)
        assert all(torch.equal(b, kept[name]) for name, b in model.named_buffers())
        assert all(module.training for module in model.modules())
        assert list(map(id, model.parameters())) == weights
    # Outputs of which each process returns a part, and a forward that fails by itself.
    torch.manual_seed(0)
    part = RowwiseParallel(output_layouts=Shard(-1))
    model = heads_in_parts(Heads(), mesh, out=part)
    model.norm = nn.Identity()
    assert model(rows[0]).shape == (6, 4)
    assert "sharded_forward_not_compared" not in EmpiricalRisk(model, CE, rows).provenance()
    bare = without_hooks(mesh)
    risk = EmpiricalRisk(bare, CE, (rows[0][:, 0], rows[1]))
    assert "DTensor" in risk.provenance()["sharded_forward_not_compared"]


@pytest.mark.thorough
@needs_processes
def test_a_forward_that_is_another_function_of_whole_weights_is_refused():
    in_two_processes(compared)


@needs_processes
def test_flattened_parameters_are_refused_by_name():
    from torch.distributed.fsdp import FullyShardedDataParallel

    wrapper = FullyShardedDataParallel.__new__(FullyShardedDataParallel)  # asks for a GPU itself
    nn.Module.__init__(wrapper)
    model = nn.Sequential(nn.Linear(3, 2))
    model.add_module("wrapped", wrapper)
    with pytest.raises(LandscapeError, match="FSDP1"):
        EmpiricalRisk(model, nn.MSELoss(), (torch.ones(2, 3), torch.ones(2, 2)))


def test_deepspeed_is_refused_by_name():
    class DeepSpeedEngine(nn.Sequential):
        __module__ = "deepspeed.runtime.engine"

    with pytest.raises(LandscapeError, match="belongs to DeepSpeed"):
        EmpiricalRisk(DeepSpeedEngine(nn.Linear(3, 2)), nn.MSELoss(), (torch.ones(2, 3),) * 2)
    partitioned = nn.Linear(3, 2)
    partitioned.weight.ds_id = 0
    with pytest.raises(LandscapeError, match="zero_to_fp32"):
        EmpiricalRisk(partitioned, nn.MSELoss(), (torch.ones(2, 3), torch.ones(2, 2)))
