"""SAM beside the tools people train with: AMP, DistributedDataParallel, torch.compile, trainers."""

import copy
import math
import os
import socket

import pytest
import torch
import torch.multiprocessing as mp
from torch import nn

from landscape import sam
from tests.sam_models import (
    batch,
    closure_of,
    cnn,
    furthest,
    losses_of,
    ready,
    same,
    sgd,
    step,
    weights,
)

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


def scaled_closure(model, b, scaler):
    def closure():
        loss = nn.functional.cross_entropy(model(b[0]), b[1])
        scaler.scale(loss).backward()
        return loss

    return closure


@pytest.mark.parametrize("form", ["closure", "losses"])
@pytest.mark.parametrize("variant", [sam.sam(0.1), sam.gsam(0.1), sam.wsam(0.1), sam.sgd()],
                         ids=lambda v: v.name)  # fmt: skip
def test_grad_scaler_changes_nothing_while_gradients_are_finite(variant, form):
    plain, scaled = cnn(), cnn()
    reference = ready(plain, variant)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = ready(scaled, variant, scaler=scaler)
    for t in range(4):
        step(reference, batch(t))
        if form == "losses":
            step(optimizer, batch(t))
        else:
            optimizer.step(scaled_closure(scaled, batch(t), scaler))
        scaler.update()
    # A power of two scales without rounding, but the closure's mean differs in the last bit.
    assert furthest(weights(plain), weights(scaled)) < 1e-12
    assert optimizer.perturbation.norm == pytest.approx(float(reference.perturbation.norm))


def test_grad_scaler_lowers_its_scale_when_a_step_overflows():
    model = cnn()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = ready(model, sam.sam(0.1), scaler=scaler)
    before, calls = weights(model), []
    inner = scaled_closure(model, batch(), scaler)

    def closure():
        loss = inner()
        calls.append(1)
        if len(calls) == 2:
            next(model.parameters()).grad[0] = torch.inf
        return loss

    optimizer.step(closure)
    scaler.update()
    assert scaler.get_scale() == 2.0**9
    assert optimizer.num_skipped == 1
    assert same(before, weights(model))


def test_cpu_autocast_in_bfloat16():
    model = cnn().float()
    optimizer = sam.SAM(model, sgd(model), sam.zsharp(0.1))
    b = batch()
    for _ in range(3):

        def closure():
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = nn.functional.cross_entropy(model(b[0].float()), b[1])
            loss.backward()
            return loss

        loss = optimizer.step(closure)
    assert torch.isfinite(loss)
    assert float(optimizer.perturbation.norm) == pytest.approx(0.1, rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_model_trains_as_the_plain_one():
    plain, inner = cnn(), cnn()
    compiled = torch.compile(inner, backend="eager")
    for variant in (sam.sam(0.1), sam.sam_on(0.1), sam.lagnp(0.1)):
        a, b = ready(plain, variant), ready(compiled, variant)
        for t in range(2):
            step(a, batch(t))
            step(b, batch(t))
        assert furthest(weights(plain), weights(inner)) < 1e-12
        assert b.trained.names == a.trained.names


def _worker(rank: int, port: int, synchronized: bool, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    model = cnn().eval()
    parallel = nn.parallel.DistributedDataParallel(model)
    optimizer = sam.SAM(parallel, sgd(model), sam.sam(0.3), seed=0, sync_perturbation=synchronized)
    norms = []
    for t in range(3):
        part = tuple(x[8 * rank : 8 * rank + 8] for x in batch(t))
        optimizer.step(losses_of(parallel), part)
        norms.append(torch.cat([e.reshape(-1) for e in optimizer.perturbation.e.values()]))
    torch.save((weights(model), norms), f"{folder}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("synchronized", [True, False])
def test_two_processes_with_synchronized_or_local_perturbations(synchronized, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    mp.spawn(_worker, args=(port, synchronized, str(tmp_path)), nprocs=2)
    (w0, e0), (w1, e1) = (torch.load(tmp_path / f"{r}.pt", weights_only=True) for r in (0, 1))
    assert same(w0, w1)
    assert same(e0, e1) is synchronized
    assert all(float(e.norm()) == pytest.approx(0.3, rel=1e-9) for e in (*e0, *e1))

    model = cnn().eval()
    variant = sam.sam(0.3)
    if not synchronized:  # local perturbations are m-sharpness with m = the local batch
        from dataclasses import replace

        from landscape.sam.evaluate import SameBatch

        variant = replace(variant, evaluate=SameBatch(micro_batches=2))
    optimizer = ready(model, variant)
    for t in range(3):
        step(optimizer, batch(t))
    assert furthest(weights(model), w0) < 1e-10


def test_a_lightning_style_loop_with_manual_optimization():
    """The five lines: training_step returns the loss, the closure runs manual_backward."""

    class Module:
        def __init__(self, model):
            self.model = model

        def training_step(self, b):
            return nn.functional.cross_entropy(self.model(b[0]), b[1])

    module, plain = Module(cnn()), cnn()
    optimizer = ready(module.model, sam.sam(0.1))

    def closure():
        loss = module.training_step(batch())
        loss.backward()
        return loss

    optimizer.step(closure)
    reference = ready(plain, sam.sam(0.1))
    reference.step(closure_of(plain, batch()))
    assert same(weights(plain), weights(module.model))


def test_a_trainer_style_loop_with_dict_batches():
    """Batches as dicts, a forward that returns an object with logits."""
    model = cnn()
    x, y, _ = batch()
    optimizer = ready(model, sam.esam(0.1))

    def losses(inputs):
        return nn.functional.cross_entropy(model(inputs["x"]), inputs["labels"], reduction="none")

    for _ in range(3):
        loss = optimizer.step(losses, {"x": x, "labels": y})
    assert torch.isfinite(loss)


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
def test_no_step_waits_for_the_device(fused):
    for variant in (sam.sam(0.1), sam.asam(0.1), sam.fsam(0.1), sam.zsharp(0.1), sam.sam_on(0.1),
                    sam.zsharp(0.1, norm_scope="tensor"), sam.gsam(0.1), sam.random_mask(0.1),
                    sam.topk_gradient(0.1), sam.stable_sam(0.1), sam.gcsam(0.1)):  # fmt: skip
        model = cnn().float().cuda()
        base = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, fused=fused)
        optimizer = sam.SAM(model, base, variant)
        x, y = (t.cuda() for t in batch()[:2])
        losses = losses_of(model)
        optimizer.step(losses, (x.float(), y))
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(3):
                optimizer.step(losses, (x.float(), y))
        finally:
            torch.cuda.set_sync_debug_mode("default")
        assert optimizer.num_skipped == 0


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("fused", [False, True])
def test_a_bad_step_on_cuda_leaves_no_trace_in_the_weights(fused):
    model = cnn().float().cuda()
    base = torch.optim.SGD(model.parameters(), lr=0.01, fused=fused)
    optimizer = sam.SAM(model, base, sam.fsam(0.1))
    x, y = (t.cuda() for t in batch()[:2])
    optimizer.step(losses_of(model), (x.float(), y))
    before = copy.deepcopy(model.state_dict())
    optimizer.step(losses_of(model), (torch.full_like(x, math.nan).float(), y))
    assert optimizer.num_skipped == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    optimizer.step(losses_of(model), (x.float(), y))
    assert all(torch.isfinite(p).all() for p in model.parameters())


@needs_cuda
@pytest.mark.gpu
def test_mixed_precision_on_cuda():
    model = cnn().float().cuda()
    scaler = torch.amp.GradScaler("cuda")
    optimizer = sam.SAM(model, sgd(model), sam.zsharp(0.1), scaler=scaler)
    x, y = (t.cuda() for t in batch()[:2])

    def losses(b):
        with torch.autocast("cuda", dtype=torch.float16):
            return nn.functional.cross_entropy(model(b[0]), b[1], reduction="none")

    for _ in range(5):
        loss = optimizer.step(losses, (x.float(), y))
        scaler.update()
    assert torch.isfinite(loss)
    assert float(optimizer.perturbation.norm) == pytest.approx(0.1, rel=1e-4)
