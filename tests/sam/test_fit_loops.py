"""Loops as people write them: accumulation, loops that step by themselves, compiled models."""

import copy

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from landscape.sam.table import loops
from tests.sam_models import batch, closure_of, cnn, losses_of

RECIPES = ("sam", "fsam", "zsharp", "gnp", "gsam", "looksam", "esam", "sampa", "sl_sam")


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def without_batchnorm(seed=0):
    """Per-example losses that do not depend on the other examples."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(100, 12), nn.Tanh(), nn.Linear(12, 5)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model


def assert_same(ours, theirs, rtol=1e-10):
    for p, q in zip(ours.parameters(), theirs.parameters()):
        assert torch.allclose(p, q, rtol=rtol, atol=1e-13)


# ------------------------------------------------------------------------------- accumulation


@pytest.mark.parametrize("name", RECIPES)
@pytest.mark.parametrize("size", [4, 5, 16, 100])
def test_micro_batches_change_memory_and_not_the_step(name, size):
    ours, theirs = without_batchnorm(), without_batchnorm()
    a = sam.SAM(ours, sgd(ours), sam.make(name, {"rho": 0.1}))
    b = sam.SAM(theirs, sgd(theirs), sam.make(name, {"rho": 0.1}))
    seen = []

    def losses(part):
        seen.append(len(part[0]))
        return losses_of(ours)(part)

    for i in range(4):
        loss = a.step(losses, batch(i), micro_batch=size)
        expected = b.step(losses_of(theirs), batch(i))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert max(seen) <= size
    assert_same(ours, theirs)


def test_micro_batches_of_a_class_weighted_loss():
    ours, theirs = without_batchnorm(), without_batchnorm()
    variant = sam.focal_sam(0.1, class_counts=(5, 4, 3, 2, 1))
    sam.SAM(ours, sgd(ours), variant).step(losses_of(ours), batch(), micro_batch=5)
    sam.SAM(theirs, sgd(theirs), variant).step(losses_of(theirs), batch())
    assert_same(ours, theirs)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda o, m: o.step(losses_of(m), batch(), micro_batch=0), "give a whole number >= 1"),
        (lambda o, m: o.step(closure_of(m, batch()), micro_batch=4), "needs step.losses, batch."),
    ],
)
def test_micro_batches_are_checked(make, message):
    model = without_batchnorm()
    with pytest.raises(LandscapeError, match=message):
        make(sam.SAM(model, sgd(model), sam.sam(0.1)), model)


def test_micro_batches_do_not_meet_loss_terms():
    model = without_batchnorm()
    optimizer = sam.SAM(model, sgd(model), sam.mesa())
    optimizer.begin_epoch(0, 10)
    with pytest.raises(LandscapeError, match="cannot run in micro-batches"):
        optimizer.step(losses_of(model, with_logits=True), batch(), micro_batch=4)


def test_a_closure_over_micro_batches_is_one_large_batch():
    ours, theirs = without_batchnorm(), without_batchnorm()
    a, b = (sam.SAM(m, sgd(m), sam.fsam(0.1)) for m in (ours, theirs))

    def closure():
        a.zero_grad()
        total = 0.0
        for part in zip(batch()[0].split(4), batch()[1].split(4)):
            loss = nn.functional.cross_entropy(ours(part[0]), part[1]) / 4
            loss.backward()
            total = total + loss.detach()
        return total

    a.step(closure)
    b.step(closure_of(theirs, batch()))
    assert_same(ours, theirs)


# ---------------------------------------------------------------- loops that step by themselves


@pytest.mark.parametrize("name", [*RECIPES, "wsam"])
def test_backward_and_step_are_step(name):
    ours, theirs = cnn(), cnn()
    a = sam.SAM(ours, sgd(ours), sam.make(name, {"rho": 0.1}))
    b = sam.SAM(theirs, sgd(theirs), sam.make(name, {"rho": 0.1}))
    for i in range(4):
        loss = a.backward(losses_of(ours), batch(i))
        assert a.step() is None
        a.zero_grad()
        assert torch.equal(loss, b.step(losses_of(theirs), batch(i)))
    assert_same(ours, theirs, rtol=0)
    assert a.step_count == b.step_count == 4


def test_calls_of_backward_add_up_each_with_its_own_perturbation():
    ours = without_batchnorm()
    optimizer = sam.SAM(ours, sgd(ours), sam.sam(0.1))
    expected = [torch.zeros_like(p) for p in ours.parameters()]
    for i in range(2):
        other = without_batchnorm()
        plain = torch.optim.SGD(other.parameters(), lr=0.0)
        sam.SAM(other, plain, sam.sam(0.1)).step(closure_of(other, batch(i)))
        expected = [e + p.grad for e, p in zip(expected, other.parameters())]
        optimizer.backward(closure_of(ours, batch(i)))
    for e, p in zip(expected, ours.parameters()):
        assert torch.allclose(e, p.grad, rtol=1e-12)


def test_a_gradient_stepped_with_is_no_part_of_the_next():
    """A closure that calls zero_grad itself, and a loop that never does."""
    ours, theirs = without_batchnorm(), without_batchnorm()
    a, b = (sam.SAM(m, sgd(m), sam.sam(0.1), clip_norm=0.5) for m in (ours, theirs))
    for i in range(3):
        a.backward(closure_of(ours, batch(i)))
        a.step()
        b.step(closure_of(theirs, batch(i)))
    assert_same(ours, theirs, rtol=0)


def test_a_step_without_a_gradient_says_what_to_call():
    model = without_batchnorm()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    with pytest.raises(LandscapeError, match="call step"):
        optimizer.step()
    optimizer.backward(closure_of(model, batch()))
    optimizer.zero_grad()
    with pytest.raises(LandscapeError, match="call step"):
        optimizer.step()


@pytest.mark.parametrize("bad_call", [1, 2])
def test_a_bad_gradient_of_backward_is_skipped_by_step(bad_call):
    model, calls = cnn(), []
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    before = {k: v.clone() for k, v in model.state_dict().items()}

    def closure():
        calls.append(1)
        loss = nn.functional.cross_entropy(model(batch()[0]), batch()[1])
        (loss * (float("nan") if len(calls) == bad_call else 1.0)).backward()
        return loss

    optimizer.backward(closure)
    optimizer.step()
    assert optimizer.num_skipped == 1
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    optimizer.zero_grad()
    optimizer.backward(closure_of(model, batch()))
    optimizer.step()
    assert optimizer.num_skipped == 1


def documented(which, **names):
    """The names that a loop of the documentation defines; it has at most five lines."""
    code = loops().split("```python\n")[1 + which].split("```")[0]
    assert len([line for line in code.splitlines() if line.strip()]) <= 5
    exec(code, names)
    return names


def test_the_documented_loop_of_lightning_takes_the_steps():
    """`optimizers`, `manual_backward` and `log` as a LightningModule has them."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.logged = without_batchnorm(), []
            self.optimizer = sam.SAM(self.model, sgd(self.model), sam.zsharp(0.1))

        def optimizers(self, use_pl_optimizer=True):
            assert not use_pl_optimizer
            return self.optimizer

        def manual_backward(self, loss):
            loss.backward()

        def compute_loss(self, batch):
            return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

        def log(self, name, value):
            self.logged.append((name, float(value)))

        training_step = documented(0)["training_step"]

    module, theirs = Module(), without_batchnorm()
    reference, expected = sam.SAM(theirs, sgd(theirs), sam.zsharp(0.1)), []
    for i in range(4):
        module.training_step(batch(i)[:2], i)
        expected.append(("loss", float(reference.step(closure_of(theirs, batch(i))))))
    assert_same(module.model, theirs, rtol=0)
    assert module.logged == expected


def test_the_documented_trainer_takes_the_steps_clips_and_accumulates():
    """`training_step` returns a detached loss; the loop accumulates, clips, steps and zeroes."""

    class Trainer:
        def __init__(self, model, optimizer):
            self.model, self.optimizer = model, optimizer

        def training_step(self, model, inputs, num_items_in_batch=None):
            model.train()
            loss = nn.functional.cross_entropy(model(inputs[0]), inputs[1])
            loss = loss / 2  # two accumulation steps
            loss.backward()
            return loss.detach()

        def train(self, batches):
            for step, inputs in enumerate(batches, 1):
                self.training_step(self.model, inputs)
                if step % 2 == 0:
                    nn.utils.clip_grad_norm_(self.model.parameters(), 0.3)
                    self.optimizer.step()
                    self.model.zero_grad()

    batches = [batch(i)[:2] for i in range(4)]
    ours, theirs = without_batchnorm(), without_batchnorm()
    optimizer = sam.SAM(ours, sgd(ours), sam.sam(0.1))
    made = documented(1, Trainer=Trainer, sam_optimizer=optimizer)
    made["SAMTrainer"](ours, optimizer).train(batches)

    base = sgd(theirs)
    frozen = torch.optim.SGD(theirs.parameters(), lr=0.0)
    reference = sam.SAM(theirs, frozen, sam.sam(0.1))
    for pair in (batches[:2], batches[2:]):
        total = [torch.zeros_like(p) for p in theirs.parameters()]
        theirs.zero_grad()
        for b in pair:
            reference.step(closure_of(theirs, b))
            total = [t + p.grad / 2 for t, p in zip(total, theirs.parameters())]
        for p, t in zip(theirs.parameters(), total):
            p.grad = t
        nn.utils.clip_grad_norm_(theirs.parameters(), 0.3)
        base.step()
    assert_same(ours, theirs)


def test_clipping_leaves_the_shown_gradient_as_it_was():
    model = cnn()
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1), clip_norm=1e-3)
    optimizer.step(closure_of(model, batch()))
    norm = torch.sqrt(sum(g.square().sum() for g in optimizer.perturbation.g2))
    assert norm > 0.1
    clipped = torch.sqrt(sum(p.grad.square().sum() for p in model.parameters()))
    assert clipped.item() == pytest.approx(1e-3, rel=1e-3)


# ----------------------------------------------------------------------------- compiled models


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("name", ["sam", "sam_on", "lagnp", "sl_sam"])
def test_a_compiled_model_takes_the_same_steps(backend, name):
    torch._dynamo.reset()
    ours, theirs = cnn(), cnn()
    compiled = torch.compile(ours, backend=backend)
    a = sam.SAM(compiled, sgd(ours), sam.make(name, {"rho": 0.1}))
    b = sam.SAM(theirs, sgd(theirs), sam.make(name, {"rho": 0.1}))
    for i in range(4):
        a.step(losses_of(compiled), batch(i))
        b.step(losses_of(theirs), batch(i))
    assert_same(ours, theirs, rtol=1e-9)
    assert not any(n.startswith("_orig_mod") for n in a.perturbation.e)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs <= 2  # not one per set of selected tensors


def test_an_in_place_compiled_model_takes_the_same_steps():
    torch._dynamo.reset()
    ours, theirs = cnn(), cnn()
    ours.compile(backend="eager")
    for m in (ours, theirs):
        sam.SAM(m, sgd(m), sam.sam_on(0.1)).step(losses_of(m), batch())
    assert_same(ours, theirs, rtol=1e-9)


def test_a_model_compiled_after_a_mid_training_state_is_loaded():
    torch._dynamo.reset()
    first, second = cnn(), cnn()
    a = sam.SAM(first, sgd(first), sam.fsam(0.1))
    a.step(losses_of(first), batch())
    second.load_state_dict(first.state_dict())
    compiled = torch.compile(second, backend="eager")
    b = sam.SAM(compiled, sgd(second), sam.fsam(0.1))
    b.load_state_dict(copy.deepcopy(a.state_dict()))
    a.step(losses_of(first), batch(1))
    b.step(losses_of(compiled), batch(1))
    assert_same(first, second, rtol=1e-9)
