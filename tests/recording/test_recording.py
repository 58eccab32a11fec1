"""`landscape.record`: e is seen from the weights, whoever moved them."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape
from landscape import sam, snapshots, training
from landscape.errors import LandscapeError
from landscape.plot import static
from landscape.streams import PackedMasks
from landscape.training.recorder import scalars, weight_norms, zscore_counts
from tests import training_problems as small
from tests.parity.problem import Problem

DATA = Path(__file__).parents[1] / "parity" / "data"


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr("os.fsync", lambda handle: None)


# --- update rules, and optimizers of the calling shapes that are in use --------------------------


def norm(tensors):
    return torch.stack([t.norm() for t in tensors]).norm()


def e_sam(hp, names, weights, grads, state):
    scale = hp["rho"] / (norm(grads) + 1e-12)
    return [scale * g for g in grads]


def e_asam(hp, names, weights, grads, state):
    scale = hp["rho"] / (norm([w.abs() * g for w, g in zip(weights, grads)]) + 1e-12)
    return [scale * w * w * g for w, g in zip(weights, grads)]


def e_fsam(hp, names, weights, grads, state):
    old = state.get("average")
    noise = grads if old is None else [g - hp["sigma"] * m for g, m in zip(grads, old)]
    keep = hp["lmbda"]
    new = grads if old is None else [keep * m + (1 - keep) * g for g, m in zip(grads, old)]
    state["average"] = [m.clone() for m in new]
    return e_sam(hp, names, weights, noise, state)


def e_zsharp(hp, names, weights, grads, state):
    total, found = norm(grads) + 1e-12, []
    for g in grads:
        z = ((g - g.mean()) / (g.std() + 1e-12)).abs()
        kept = g * (z > torch.quantile(z, hp["alpha"])) if g.ndim > 1 else g
        found.append(hp["rho"] * kept / (kept.norm() if g.ndim > 1 else total))
    return found


def e_norm_layers(hp, names, weights, grads, state):
    chosen = [g if "bn" in name else torch.zeros_like(g) for name, g in zip(names, grads)]
    return [hp["rho"] / norm(chosen) * g for g in chosen]


RULES = {
    "sam_davda": e_sam, "asam_davda": e_asam, "fsam_s1_l0.6": e_fsam, "fsam_s0.5_l0.9": e_fsam,
    "zsharp_sgd_a0.95": e_zsharp, "zsharp_adam_a0.8": e_zsharp, "samon": e_norm_layers,
}  # fmt: skip


class TwoSteps(torch.optim.Optimizer):
    """first_step and second_step, whose base optimizer shares the parameter groups."""

    def __init__(self, model, rule, hp, base, **options):
        self.names, params = zip(*model.named_parameters(), strict=True)
        super().__init__(params, {"rho": hp["rho"], **options})
        self.base_optimizer = base(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups
        self.rule, self.hp, self.memory = rule, hp, {}

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        params = self.param_groups[0]["params"]
        weights, grads = [p.detach() for p in params], [p.grad for p in params]
        self.e = self.rule(self.hp, self.names, weights, grads, self.memory)
        self.old = [p.detach().clone() for p in params]
        for p, e in zip(params, self.e):
            p.add_(e)
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for p, old in zip(self.param_groups[0]["params"], self.old):
            p.data = old
        self.base_optimizer.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure):
        """The closure's second call; the first was the loop's."""
        self.first_step(zero_grad=True)
        closure()
        self.second_step()


class BothPasses(TwoSteps):
    """A step that runs the closure twice and takes e back by subtraction."""

    def step(self, closure):
        closure()
        self.first_step(zero_grad=True)
        closure()
        with torch.no_grad():
            for p, e in zip(self.param_groups[0]["params"], self.e):
                p.sub_(e)
        self.base_optimizer.step()


def loop_two_steps(optimizer, model, x, y):
    F.cross_entropy(model(x), y).backward()
    optimizer.first_step(zero_grad=True)
    F.cross_entropy(model(x), y).backward()
    optimizer.second_step(zero_grad=True)


def closure_of(optimizer, model, x, y):
    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        return loss

    return closure


def loop_closure(optimizer, model, x, y):
    closure = closure_of(optimizer, model, x, y)
    closure()
    optimizer.step(closure)
    optimizer.zero_grad()


def loop_one_call(optimizer, model, x, y):
    optimizer.step(closure_of(optimizer, model, x, y))


SHAPES = {
    "two steps": (TwoSteps, loop_two_steps),
    "closure": (TwoSteps, loop_closure),
    "one call": (BothPasses, loop_one_call),
}


def made(model, rule=e_sam, hp=None, shape="two steps", base=torch.optim.SGD, **options):
    kind, loop = SHAPES[shape]
    return kind(model, rule, hp or {"rho": 0.2}, base, **({"lr": 0.1} | options)), loop


def batches(n=4):
    split = small.data().train
    return list(zip(split.x[: 16 * n].split(16), split.y[: 16 * n].split(16), strict=True))


# --- what is recorded ----------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("case", RULES)
def test_norms_are_those_of_the_reference_trajectories(tmp_path, case, shape):
    with np.load(DATA / f"{case}__mlp.npz") as stored:
        meta, reference = json.loads(str(stored["meta"])), stored["ENORM"]
        first = stored["E_0"]
    hp, problem = meta["hp"], Problem.load(DATA, "mlp")
    options = {k: hp[k] for k in ("lr", "momentum", "betas", "weight_decay") if k in hp}
    optimizer, loop = made(
        problem.model, RULES[case], hp, shape, getattr(torch.optim, meta["base"]), **options
    )
    options = {"steps_per_epoch": 5, "snapshot_every": 1}
    with landscape.record(problem.model, folder=tmp_path, **options):
        for _, (x, y) in problem.batches():
            loop(optimizer, problem.model, x, y)
    steps = snapshots.read_steps(tmp_path)
    assert steps.step.tolist() == list(range(20))
    assert steps.epoch.tolist() == [e for e in (1, 2, 3, 4) for _ in range(5)]
    assert steps["perturbation_norm"] == pytest.approx(reference, rel=0, abs=1e-10)
    assert (steps["rho"] == hp["rho"]).all()
    masks = snapshots.read_masks(tmp_path)
    start = 0
    for tensor, seen in masks[0].unpack().items():
        e = first[start : start + seen.size]
        start += seen.size
        # Biases before BatchNorm have gradients of 1e-17: such an e moves a weight or does not.
        assert (seen == (e != 0)).all() or (tensor in ("fc1.bias", "fc2.bias")), tensor
        assert np.abs(e[~seen]).max(initial=0) < 1e-15


@pytest.mark.parametrize("name", ["sam", "asam", "fsam", "sam_on", "zsharp", "random_mask"])
def test_rows_and_snapshots_equal_what_our_own_optimizer_tells(tmp_path, name):
    model = small.model().double()
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = sam.SAM(model, base, small.variant(name))
    told, masks, counts = [], [], []
    with landscape.record(model, folder=tmp_path, steps_per_epoch=2, snapshot_every=1):
        for x, y in batches():
            norms = weight_norms(list(model.parameters()))
            optimizer.step(closure_of(optimizer, model, x.double(), y))
            told.append(scalars(optimizer.perturbation, norms).numpy())
            masks.append(PackedMasks.of({n: e != 0 for n, e in optimizer.perturbation.e.items()}))
            counts.append(zscore_counts(optimizer.perturbation.g1))
    steps = snapshots.read_steps(tmp_path)
    told = np.array(told)
    for i, column in enumerate(snapshots.SCALARS):
        if column not in ("loss_clean", "loss_perturbed", "rho"):
            assert steps[column] == pytest.approx(told[:, i], rel=1e-9), column
    wide = told[:, len(snapshots.SCALARS) :].reshape(4, 4, -1)
    for i, column in enumerate(snapshots.PER_TENSOR):
        # Float32 on the disk. The first bias is cancelled by BatchNorm: it is selected, with an e
        # of 1e-17 that does not move it.
        found, expected = (np.delete(a, 1, axis=1) for a in (steps[column], wide[:, i]))
        assert found == pytest.approx(expected, rel=1e-5, abs=1e-9), column
    series = snapshots.read_masks(tmp_path)
    for i, expected in enumerate(masks):
        differing = series[i].bits ^ expected.bits
        assert np.unpackbits(differing).sum() <= 12  # of the first bias
    z = snapshots.read_zscores(tmp_path)
    assert np.array_equal(np.delete(z.counts, 1, axis=1), np.delete(np.array(counts), 1, axis=1))


def test_without_a_second_pass_e_is_nan_and_named(tmp_path):
    model = small.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with landscape.record(model, folder=tmp_path, steps_per_epoch=2, snapshot_every=2, rho=0.3):
        for x, y in batches():
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    steps = snapshots.read_steps(tmp_path)
    assert len(steps) == 4
    for column in ("perturbation_norm", "energy_share", "density", "first_order", "cosine"):
        assert np.isnan(steps[column]).all()
        assert "without a second forward pass" in steps.unseen[column]
    assert "outside the model" in steps.unseen["loss_clean"]
    assert (steps["climbed"] == 0).all()
    assert (steps["rho"] == 0.3).all()
    assert (steps["weight_norm"][:, 0] > 0).all()
    assert len(snapshots.read_masks(tmp_path)) == 0
    z = snapshots.read_zscores(tmp_path)
    assert z.counts.sum(-1).tolist() == [list(z.tensors.sizes)] * 2
    ds = training.consolidate(tmp_path)["perturbation_history"]
    assert ds.perturbation_norm.isnull().all()


def test_a_step_whose_gradients_are_nan_is_nan_and_named(tmp_path):
    model = small.model()
    optimizer, loop = made(model)
    with landscape.record(model, folder=tmp_path, steps_per_epoch=4, snapshot_every=1):
        for i, (x, y) in enumerate(batches()):
            start = [p.detach().clone() for p in model.parameters()]
            loop(optimizer, model, x * float("nan") if i == 1 else x, y)
            if i == 1:  # as a training loop that leaves such a step out
                for p, w in zip(model.parameters(), start):
                    p.data = w
                for module in model.modules():
                    if isinstance(module, nn.BatchNorm1d):
                        module.reset_running_stats()
    steps = snapshots.read_steps(tmp_path)
    assert np.isnan(steps["perturbation_norm"]).tolist() == [False, True, False, False]
    assert steps["climbed"].tolist() == [1, 0, 1, 1]
    assert steps.unseen["perturbation_norm"].endswith("or with NaN in e")
    assert snapshots.read_masks(tmp_path).steps.tolist() == [0, 2, 3]
    z = snapshots.read_zscores(tmp_path)
    assert (z.counts[1, :, -1] == z.tensors.sizes).all()


def test_a_step_now_and_then_without_a_climb(tmp_path):
    model = small.model()
    optimizer, loop = made(model)
    with landscape.record(model, folder=tmp_path, steps_per_epoch=4, snapshot_every=0):
        for i, (x, y) in enumerate(batches()):
            if i % 2:
                F.cross_entropy(model(x), y).backward()
                optimizer.base_optimizer.step()
                optimizer.zero_grad()
            else:
                loop(optimizer, model, x, y)
    steps = snapshots.read_steps(tmp_path)
    assert steps["climbed"].tolist() == [1, 0, 1, 0]
    assert np.isnan(steps["perturbation_norm"]).tolist() == [False, True, False, True]
    ds = training.consolidate(tmp_path)["perturbation_history"]
    assert float(ds.perturbation_norm[0]) == pytest.approx(0.2, rel=1e-5)  # of those with an e


def test_accumulated_batches_and_evaluations_are_no_steps_and_no_perturbations(tmp_path):
    model = small.model().double()
    reference = small.model().double()
    optimizer, _ = made(model)
    other, _ = made(reference)
    with landscape.record(model, folder=tmp_path, steps_per_epoch=2, snapshot_every=1):
        for x, y in batches():
            x = x.double()
            for part, labels in zip(x.split(8), y.split(8)):
                (F.cross_entropy(model(part), labels) / 2).backward()
            with torch.no_grad():
                model(x)
            optimizer.first_step(zero_grad=True)
            model.eval()
            F.cross_entropy(model(x), y)  # at w + e, with gradients, of no concern
            model.train()
            for part, labels in zip(x.split(8), y.split(8)):
                (F.cross_entropy(model(part), labels) / 2).backward()
            optimizer.second_step(zero_grad=True)
            model.eval()
            with torch.no_grad():
                model(x)
            model.train()
    steps = snapshots.read_steps(tmp_path)
    assert len(steps) == 4
    cosines, counts = [], []
    for x, y in batches():
        gradients = []
        for at in ("first_step", "second_step"):
            for part, labels in zip(x.double().split(8), y.split(8)):
                (F.cross_entropy(reference(part), labels) / 2).backward()
            gradients.append(torch.cat([p.grad.flatten() for p in reference.parameters()]))
            if at == "first_step":
                counts.append(zscore_counts([p.grad for p in reference.parameters()]))
            getattr(other, at)(zero_grad=True)
        cosines.append(float(F.cosine_similarity(*gradients, dim=0)))
    assert steps["cosine"] == pytest.approx(cosines, rel=1e-9)
    z = snapshots.read_zscores(tmp_path)
    assert np.array_equal(np.delete(z.counts, 1, axis=1), np.delete(np.array(counts), 1, axis=1))


def test_a_pass_after_e_was_subtracted_is_at_w_again(tmp_path):
    model = small.model()
    optimizer, _ = made(model, hp={"rho": 0.05})
    (x, y), *_ = batches()
    with landscape.record(model, folder=tmp_path, steps_per_epoch=1, snapshot_every=0):
        closure = closure_of(optimizer, model, x, y)
        closure()
        optimizer.first_step()
        closure()
        with torch.no_grad():
            for p, e in zip(model.parameters(), optimizer.e):
                p.sub_(e)
        assert any(not torch.equal(p, old) for p, old in zip(model.parameters(), optimizer.old))
        closure()
        optimizer.base_optimizer.step()
    assert snapshots.read_steps(tmp_path)["perturbation_norm"] == pytest.approx([0.05], rel=1e-4)


class ByHand:
    """An optimizer that torch does not know."""

    def __init__(self, model):
        self.params = list(model.parameters())

    @torch.no_grad()
    def climb(self):
        self.old = [p.detach().clone() for p in self.params]
        scale = 0.1 / norm([p.grad for p in self.params])
        for p in self.params:
            p.data.add_(scale * p.grad)
            p.grad = None

    @torch.no_grad()
    def descend(self):
        for p, old in zip(self.params, self.old):
            p.data = old - 0.1 * p.grad
            p.grad = None


def test_steps_ended_by_a_call(tmp_path):
    model = small.model().double()
    optimizer = ByHand(model)
    with landscape.record(
        model, folder=tmp_path, steps_per_epoch=2, snapshot_every=0, step_ends="call"
    ) as recording:
        for x, y in batches():
            F.cross_entropy(model(x.double()), y).backward()
            optimizer.climb()
            F.cross_entropy(model(x.double()), y).backward()
            optimizer.descend()
            recording.step()
            recording.step()  # nothing has happened since
    steps = snapshots.read_steps(tmp_path)
    assert steps["perturbation_norm"] == pytest.approx([0.1] * 4, rel=1e-12)
    assert np.isnan(steps["rho"]).all()


def test_an_optimizer_that_torch_does_not_know_is_found_out(tmp_path):
    model = small.model()
    optimizer = ByHand(model)
    x, y = batches()[0]
    recording = landscape.record(model, folder=tmp_path, steps_per_epoch=2)
    with (  # noqa: PT012
        pytest.raises(LandscapeError, match=r"call recording.step\(\) after each update"),
        recording,
    ):
        for _ in range(100):
            F.cross_entropy(model(x), y).backward()
            optimizer.climb()
            F.cross_entropy(model(x), y).backward()
            optimizer.descend()


class Wrapped(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@pytest.mark.parametrize("given", ["wrapper", "inner", "compiled"])
def test_wrapped_compiled_and_nested_modules(tmp_path, given):
    inner = small.model()
    called = torch.compile(inner, backend="eager") if given == "compiled" else Wrapped(inner)
    optimizer, loop = made(inner)
    given = inner if given == "inner" else called
    with landscape.record(given, folder=tmp_path, steps_per_epoch=2, snapshot_every=2):
        for x, y in batches():
            loop(optimizer, called, x, y)
    steps = snapshots.read_steps(tmp_path)
    assert steps["perturbation_norm"] == pytest.approx([0.2] * 4, rel=1e-4)
    assert len(snapshots.read_masks(tmp_path)) == 2


def test_a_recording_that_saw_no_step_says_so(tmp_path):
    model, x = nn.Linear(3, 2), torch.ones(4, 3)

    def record(name, steps):
        with landscape.record(model, folder=tmp_path / name, steps_per_epoch=1):
            for _ in range(steps):  # updates by hand, which nothing can see
                model(x).sum().backward()
                with torch.no_grad():
                    model.weight.sub_(model.weight.grad)

    with pytest.warns(UserWarning, match=r"ran at 3 different weights .* call recording.step\(\)"):
        record("a", 3)
    model.eval()
    with pytest.warns(UserWarning, match="no forward pass of the Linear in training mode"):
        record("b", 2)
    assert len(snapshots.read_steps(tmp_path / "a")) == 0


def test_the_wrong_module_is_found_out(tmp_path):
    model, other = small.model(), small.model()
    optimizer, _ = made(model)
    optimizer.base_optimizer.add_param_group({"params": list(other.parameters())})
    recording = landscape.record(other, folder=tmp_path, steps_per_epoch=2)
    with pytest.raises(LandscapeError, match="stepped 4 times and no forward pass"), recording:  # noqa: PT012
        for x, y in batches() * 2:
            F.cross_entropy(model(x), y).backward()
            optimizer.base_optimizer.step()


def test_optimizers_of_other_models_do_not_end_a_step(tmp_path):
    model, other = small.model(), small.model(seed=1)
    optimizer, _ = made(model)
    foreign = torch.optim.SGD(other.parameters(), lr=0.1)
    with landscape.record(model, folder=tmp_path, steps_per_epoch=2):
        for x, y in batches():
            F.cross_entropy(model(x), y).backward()
            optimizer.first_step(zero_grad=True)
            F.cross_entropy(other(x), y).backward()
            foreign.step()
            F.cross_entropy(model(x), y).backward()
            optimizer.second_step(zero_grad=True)
    assert snapshots.read_steps(tmp_path)["climbed"].tolist() == [1, 1, 1, 1]


def test_recording_changes_nothing_and_leaves_no_hook(tmp_path):
    plain, recorded = small.model(), small.model()
    for model in (plain, recorded):
        optimizer, loop = made(model, e_zsharp, {"rho": 0.2, "alpha": 0.8})
        if model is plain:
            for x, y in batches():
                loop(optimizer, model, x, y)
            continue
        with landscape.record(model, folder=tmp_path, steps_per_epoch=2, snapshot_every=1):
            for x, y in batches():
                loop(optimizer, model, x, y)
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), recorded.parameters()))
    assert not recorded._forward_pre_hooks
    assert not any(p._backward_hooks for p in recorded.parameters())
    loop(optimizer, recorded, *batches()[0])
    assert len(snapshots.read_steps(tmp_path)) == 4


# --- what can go wrong ---------------------------------------------------------------------------


def recorded(model, folder, count=4, **options):
    optimizer, loop = made(model)
    with landscape.record(model, folder=folder, **({"steps_per_epoch": 2} | options)) as recording:
        for x, y in batches(count):
            loop(optimizer, model, x, y)
    return recording


def test_what_was_recorded_survives_an_exception(tmp_path):
    model = small.model()
    optimizer, _ = made(model)
    recording = landscape.record(model, folder=tmp_path, steps_per_epoch=100)
    with pytest.raises(ZeroDivisionError), recording:  # noqa: PT012
        for i, (x, y) in enumerate(batches()):
            F.cross_entropy(model(x), y).backward()
            optimizer.first_step(zero_grad=True)
            if i == 3:
                1 / 0
            F.cross_entropy(model(x), y).backward()
            optimizer.second_step(zero_grad=True)
    assert snapshots.read_steps(tmp_path).step.tolist() == [0, 1, 2]
    assert not model._forward_pre_hooks


def test_a_recording_is_continued_and_never_overwritten(tmp_path):
    model = small.model()
    recorded(model, tmp_path, snapshot_every=1)
    with pytest.raises(LandscapeError, match=r"holds a recording of 4 steps.*first_step=4"):
        landscape.record(model, folder=tmp_path, steps_per_epoch=2)
    recorded(model, tmp_path, first_step=3, snapshot_every=1)
    steps = snapshots.read_steps(tmp_path)
    assert steps.step.tolist() == list(range(7))
    assert steps.epoch.tolist() == [1, 1, 2, 2, 3, 3, 4]
    assert snapshots.read_masks(tmp_path).steps.tolist() == list(range(7))
    other = nn.Sequential(nn.Linear(6, 3))
    with pytest.raises(
        LandscapeError, match=r"other tensors.*1.weight \(12 elements\) was removed"
    ):
        landscape.record(other, folder=tmp_path, steps_per_epoch=2, first_step=7)


def test_a_tensor_frozen_while_recording(tmp_path):
    model = small.model()
    recording = landscape.record(model, folder=tmp_path, steps_per_epoch=9, snapshot_every=3)
    with (  # noqa: PT012
        pytest.raises(LandscapeError, match=r"Step 3 .*4.bias \(3 elements\) was removed"),
        recording,
    ):
        for i, (x, y) in enumerate(batches(6)):
            if i == 2:
                model[4].bias.requires_grad_(False)
            F.cross_entropy(model(x), y).backward()
            torch.optim.SGD(model[4].parameters(), lr=0.1).step()
    assert len(snapshots.read_steps(tmp_path)) == 4


def full(handle):
    raise OSError(28, "No space left on device")


def test_a_full_disk_loses_nothing(tmp_path, monkeypatch):
    whole, hit = tmp_path / "whole", tmp_path / "hit"
    for folder in (whole, hit):
        model = small.model()
        optimizer, loop = made(model)
        with landscape.record(model, folder=folder, steps_per_epoch=2, snapshot_every=3):
            for i, (x, y) in enumerate(batches(6) + batches(2)):
                with monkeypatch.context() as patch:
                    if folder is hit and i in (3, 4, 5):  # snapshot, nothing to write, rows
                        patch.setattr("os.fsync", full)
                    if folder is hit and i in (3, 5):
                        with pytest.warns(UserWarning, match=r"disk is full.*goes on in memory"):
                            loop(optimizer, model, x, y)
                    else:
                        loop(optimizer, model, x, y)
    assert not list((hit / "snapshots").glob(".*"))
    for path in (whole / "snapshots").glob("*"):
        assert (hit / "snapshots" / path.name).read_bytes() == path.read_bytes(), path.name
    assert snapshots.read_steps(hit).step.tolist() == list(range(8))
    assert snapshots.read_masks(hit).steps.tolist() == [0, 3, 6]


def test_a_disk_that_stays_full_is_said_at_the_end(tmp_path, monkeypatch):
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(LandscapeError, match="disk is full"):
        recorded(small.model(), tmp_path, 1, snapshot_every=0)


def test_the_folder_stays_within_max_mb_and_the_announced_bytes(tmp_path):
    free = recorded(small.model(), tmp_path / "free", snapshot_every=1)
    bound = recorded(small.model(), tmp_path / "bound", snapshot_every=1, max_mb=0.015)
    size = {
        name: sum(p.stat().st_size for p in (tmp_path / name / "snapshots").glob("*.[nb]*"))
        for name in ("free", "bound")
    }
    announced = free.estimate_bytes(epochs=2)
    assert 0.5 * announced < size["free"] <= announced
    assert size["bound"] <= bound.estimate_bytes(epochs=2) <= 0.015e6
    assert len(snapshots.read_masks(tmp_path / "bound")) == 1
    assert bound.notes == ["no snapshot from step 1 on: max_mb=0.015 MB is reached"]
    assert len(snapshots.read_steps(tmp_path / "bound")) == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"every": 0}, "every=0 was asked; give a whole number >= 1"),
        ({"steps_per_epoch": 0}, "steps_per_epoch=0 was asked; give a whole number >= 1"),
        ({"snapshot_every": -1}, "snapshot_every=-1 was asked"),
        ({"first_step": 1.5}, "first_step=1.5 was asked"),
        ({"step_ends": "epoch"}, "step_ends='epoch' is unknown; choose one of 'optimizer', 'call'"),
    ],
)
def test_choices_are_checked(tmp_path, options, said):
    with pytest.raises(LandscapeError, match=said):
        landscape.record(small.model(), folder=tmp_path, **({"steps_per_epoch": 1} | options))


def test_an_optimizer_is_no_model(tmp_path):
    optimizer = torch.optim.SGD(small.model().parameters(), lr=0.1)
    with pytest.raises(LandscapeError, match="record was given a SGD; give the module that the"):
        landscape.record(optimizer, folder=tmp_path, steps_per_epoch=1)


def test_without_gradients(tmp_path):
    recorded(small.model(), tmp_path, gradients=False)
    steps = snapshots.read_steps(tmp_path)
    assert steps["perturbation_norm"] == pytest.approx([0.2] * 4, rel=1e-4)
    assert np.isnan(steps["cosine"]).all()
    assert np.isnan(steps["first_order"]).all()
    assert steps.unseen["cosine"] == "record(gradients=False)"


def test_the_same_results_and_figures_as_of_a_training(tmp_path):
    model = small.model()
    optimizer, loop = made(model, e_zsharp, {"rho": 0.2, "alpha": 0.8})
    with landscape.record(model, folder=tmp_path, steps_per_epoch=2, snapshot_every=1):
        for x, y in batches():
            loop(optimizer, model, x, y)
    found = training.consolidate(tmp_path)
    assert set(found) == {"perturbation_history", "mask_persistence"}
    ds = found["perturbation_history"]
    assert ds.epoch.values.tolist() == [1, 2]
    assert ds.energy_share.sum("tensor").values == pytest.approx([1, 1], rel=1e-5)
    assert found["mask_persistence"].lag.values.tolist() == [1, 2]
    drawing = landscape.plot.figures.energy_over_time(ds)
    assert drawing.panels


EXAMPLE = """
optimizer = SAM(model.parameters(), torch.optim.SGD, rho=0.05, lr=0.1)  # anybody's class
with landscape.record(model, folder="runs/sam", steps_per_epoch=len(loader)):
    for epoch in range(3):
        for x, y in loader:
            F.cross_entropy(model(x), y).backward()
            optimizer.first_step(zero_grad=True)
            F.cross_entropy(model(x), y).backward()
            optimizer.second_step(zero_grad=True)
history = landscape.training.consolidate("runs/sam")["perturbation_history"]
static.save(static.energy_over_time(history), "energy.pdf")
"""


def test_the_ten_line_example(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = small.model()

    def published(params, base, rho, lr):
        return made(model, e_sam, {"rho": rho}, base=base, lr=lr)[0]

    names = {"model": model, "loader": batches(), "SAM": published, "torch": torch, "F": F}
    names |= {"landscape": landscape, "static": static}
    exec(compile(EXAMPLE, "README.md", "exec"), names)
    assert len(snapshots.read_steps("runs/sam")) == 12
    assert (tmp_path / "energy.pdf").stat().st_size > 5_000
