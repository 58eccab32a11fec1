"""`Recording.diagnosis`: faults planted in plain loops are named, and sound steps raise none."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

import landscape
from landscape import diagnosis, sam, snapshots
from landscape.errors import LandscapeError
from tests import training_problems as small
from tests.cli.test_commands import call
from tests.sam_models import REQUIRED, model_for, variants
from tests.sam_models import batch as examples
from tests.sam_models import losses_of as losses_with

RHO = 0.05


def batches(n=4):
    split = small.data().train
    return list(zip(split.x[: 16 * n].split(16), split.y[: 16 * n].split(16), strict=True))


class Loop:
    """A plain SAM step; each fault is one method that a subclass replaces."""

    rho, dropout = RHO, 0.0

    def __init__(self):
        self.model = self.network()
        self.base = torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def network(self):
        return small.model(dropout=self.dropout)

    def parameters(self):
        return list(self.model.parameters())

    def loss(self, x, y):
        return F.cross_entropy(self.model(x), y)

    def e(self, gradients):
        norm = torch.stack([g.norm() for g in gradients]).norm()
        return [self.rho / (norm + 1e-12) * g for g in gradients]

    def climb(self, params):
        for p, e in zip(params, self.e([p.grad for p in params]), strict=True):
            p.add_(e)

    def restore(self, params, old):
        for p, w in zip(params, old, strict=True):
            p.copy_(w)

    def other_batch(self, x, y):
        return x, y

    def between(self):
        self.model.zero_grad()

    def before_second(self):
        """Random state, statistics."""
        self.statistics = [b.clone() for b in self.model.buffers()]

    def after_second(self):
        for b, kept in zip(self.model.buffers(), self.statistics, strict=True):
            b.copy_(kept)

    def first_gradient(self, params):
        self.g1 = [p.grad.clone() for p in params]

    def second_gradient(self, params):
        """What the optimizer is to get."""

    def descend(self):
        self.base.step()

    def step(self, x, y):
        self.model.zero_grad()
        state = torch.get_rng_state()
        self.backward(x, y)
        params = self.parameters()
        with torch.no_grad():
            self.first_gradient(params)
            old = [p.detach().clone() for p in params]
            self.climb(params)
            self.between()
            self.before_second()
        self.same_random(state)
        self.backward(*self.other_batch(x, y))
        with torch.no_grad():
            self.after_second()
            self.restore(params, old)
            self.second_gradient(params)
        self.descend()

    def backward(self, x, y):
        self.loss(x, y).backward()

    def same_random(self, state):
        torch.set_rng_state(state)

    def diagnose(self, **options):
        torch.manual_seed(0)
        with landscape.record(self.model, **({"rho": self.rho} | options)) as seen:
            for x, y in batches():
                self.step(x, y)
        return seen.diagnosis()


class WithoutNorm(Loop):
    def network(self):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 3))


class AtW(Loop):
    def climb(self, params):
        for p, e in zip(params, self.e([p.grad for p in params]), strict=True):
            p.detach().clone().add_(e)


class NotNormalized(Loop):
    def e(self, gradients):
        return [self.rho * g for g in gradients]


class Downhill(Loop):
    def e(self, gradients):
        return [-e for e in super().e(gradients)]


class AddedTwice(Loop):
    def climb(self, params):
        super().climb(params)
        super().climb(params)


class NormOfScaled(Loop):
    """e of the unscaled gradient, divided by the norm of the scaled one."""

    factor = 1024.0

    def backward(self, x, y):
        (self.factor * self.loss(x, y)).backward()

    def e(self, gradients):
        norm = torch.stack([g.norm() for g in gradients]).norm()
        return [self.rho / norm * g / self.factor for g in gradients]

    def second_gradient(self, params):
        for p in params:
            p.grad /= self.factor


class Scale:
    def get_scale(self):
        return 1024.0


class NeverUnscaled(NormOfScaled):
    e = Loop.e

    def second_gradient(self, params):
        pass


class UnscaledTwice(NeverUnscaled):
    def second_gradient(self, params):
        for p in params:
            p.grad /= self.factor**2


class FirstGradient(Loop):
    def second_gradient(self, params):
        for p, g in zip(params, self.g1, strict=True):
            p.grad.copy_(g)


class NotCleared(Loop):
    def between(self):
        pass


class OtherExamples(Loop):
    def other_batch(self, x, y):
        generator = torch.Generator().manual_seed(1)
        return x + 0.1 * torch.randn(x.shape, generator=generator), y


class OtherDropout(Loop):
    dropout = 0.3

    def same_random(self, state):
        pass


class StatisticsTwice(Loop):
    def after_second(self):
        pass


class GroupLeftOut(Loop):
    def __init__(self):
        self.model = self.network()
        own = list(self.model.parameters())
        self.base = torch.optim.SGD([{"params": own[:4]}, {"params": own[4:]}], lr=0.1)

    def climb(self, params):
        super().climb(self.base.param_groups[0]["params"])


class NotRestored(Loop):
    def restore(self, params, old):
        pass


class RestoredTwice(Loop):
    def restore(self, params, old):
        for p, w in zip(params, old, strict=True):
            p.copy_(2 * w - p)


class TooSmall(Loop):
    rho = 1e-9


class BarelyMoves(WithoutNorm):
    rho = 2e-6


class NeverOpen(Loop):
    def step(self, x, y):
        self.model.zero_grad()
        self.backward(x, y)
        self.descend()


class ReadsCopies(WithoutNorm):
    """As weights that were gathered before they moved: forward reads values of pass 1."""

    def step(self, x, y):
        self.gathered = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        super().step(x, y)

    def network(self):
        loop, inner = self, super().network()

        class Gathered(nn.Module):
            def __init__(self):
                super().__init__()
                self.inner = inner

            def forward(self, x):
                held = {
                    n: loop.gathered[f"inner.{n}"] + (p - p.detach())
                    for n, p in self.inner.named_parameters()
                }
                return torch.func.functional_call(self.inner, held, (x,))

        return Gathered()


FAULTS = [
    (AtW, "second pass"), (NotNormalized, "length"), (AddedTwice, "length"),
    (NormOfScaled, "scaling"), (NormOfScaled, "length"), (FirstGradient, "descent"),
    (NotCleared, "descent"), (OtherExamples, "examples"), (OtherDropout, "dropout"),
    (StatisticsTwice, "statistics"), (GroupLeftOut, "left out"), (NotRestored, "restored"),
    (RestoredTwice, "restored"), (TooSmall, "second pass"), (BarelyMoves, "size"),
    (NeverOpen, "gate"), (ReadsCopies, "second pass"), (Downhill, "second pass"),
]  # fmt: skip
COMPANIONS = {  # what follows from a fault is wrong too
    AtW: {"gate"}, TooSmall: {"gate"}, NormOfScaled: {"length", "scaling"},
    BarelyMoves: {"other rho"}, ReadsCopies: {"other rho"}, NotRestored: set(),
    NotNormalized: set(), AddedTwice: set(),
}  # fmt: skip


@pytest.mark.parametrize(("loop", "key"), FAULTS)
def test_a_planted_fault_is_named_with_numbers_and_a_remedy_and_nothing_else_is(loop, key):
    found = loop().diagnose()
    assert found[key].verdict == "wrong", str(found)
    assert found[key].numbers
    assert found[key].remedy
    others = {f.key for f in found.wrong} - {key}
    assert others <= COMPANIONS.get(loop, set()), str(found)


@pytest.mark.parametrize(("loop", "said"), [(NeverUnscaled, "never"), (UnscaledTwice, "twice")])
def test_a_gradient_that_is_unscaled_wrongly_is_told_with_the_scaler(loop, said):
    found = loop().diagnose(scaler=Scale())
    assert said in found["scaling"].sentence
    assert {f.key for f in found.wrong} == {"scaling"}, str(found)


class Scaled(Loop):
    """GradScaler as its documentation has it for two passes."""

    def __init__(self):
        super().__init__()
        self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    def backward(self, x, y):
        self.scaler.scale(self.loss(x, y)).backward()

    def first_gradient(self, params):
        for p in params:
            p.grad /= self.scaler.get_scale()

    def descend(self):
        self.scaler.step(self.base)
        self.scaler.update()


def test_a_real_scaler_is_followed():
    loop = Scaled()
    found = loop.diagnose(scaler=loop.scaler)
    assert not found.wrong, str(found)
    assert found["scaling"].verdict == "ok"
    found = Scaled().diagnose()
    assert not found.wrong, str(found)
    assert "scaler=scaler" in found["scaling"].remedy


def test_the_remedies_for_statistics_and_groups_work():
    class NoMomentum(StatisticsTwice):
        def before_second(self):
            self.model[1].momentum = 0.0

        def after_second(self):
            self.model[1].momentum = 0.1

    class Asked(GroupLeftOut):
        def __init__(self):
            super().__init__()
            self.base.param_groups[1]["rho"] = 0

    assert not NoMomentum().diagnose().wrong
    found = Asked().diagnose()
    assert not found.wrong, str(found)
    assert "rho=0" in found["left out"].sentence


def test_tensors_left_out_within_a_group_are_named_as_a_fact():
    class PartLeftOut(Loop):
        def climb(self, params):
            super().climb(params[:-1])

    found = PartLeftOut().diagnose()["left out"]
    last = [n for n, _ in small.model().named_parameters()][-1]
    assert found.verdict == "cannot tell"
    assert f"have a gradient: {last}. That is right for a method that masks" in found.sentence
    assert "wrong for SAM" in found.sentence


@pytest.mark.parametrize("name", ["esam", "wsam", "tsam", "rsam", "randsam", "sagm", "fisher_sam"])
def test_what_a_recipe_does_by_design_is_no_fault_and_said(name):
    model = small.model()
    base = torch.optim.SGD(model.parameters(), lr=0.02)
    optimizer = sam.SAM(model, base, sam.make(name))
    with landscape.record(model) as seen:
        for x, y in batches():
            optimizer.step(losses_of(model), (x, y))
    found = seen.diagnosis()
    assert not found.wrong, str(found)
    assert name == "esam" or "by design" in str(found)


class PerMicroBatch(WithoutNorm):
    """A climb and a second pass for each half of the batch, and one step."""

    def descend(self):
        """After both halves."""

    def step(self, x, y):
        total = [torch.zeros_like(p) for p in self.parameters()]
        for half, labels in zip(x.split(8), y.split(8), strict=True):
            super().step(half, labels)
            total = [t + p.grad / 2 for t, p in zip(total, self.parameters(), strict=True)]
        for p, t in zip(self.parameters(), total, strict=True):
            p.grad = t
        self.base.step()


class Accumulated(WithoutNorm):
    def backward(self, x, y):
        for part, labels in zip(x.split(4), y.split(4), strict=True):
            (self.loss(part, labels) / 4).backward()


def test_what_is_not_seen_is_not_judged():
    found = PerMicroBatch().diagnose()
    assert not found.wrong, str(found)
    for key in ("descent", "examples", "statistics", "size"):
        assert found[key].verdict == "cannot tell"
        assert "come back to w" in found[key].sentence
    found = Loop().diagnose(gradients=False)
    assert not found.wrong, str(found)
    assert {found[k].verdict for k in ("left out", "descent", "scaling")} == {"cannot tell"}
    found = Accumulated().diagnose()
    assert {f.verdict for f in found.findings} == {"ok"}, str(found)


def test_a_gate_of_ours_that_never_opens_is_a_fault():
    model = small.model()
    base = torch.optim.SGD(model.parameters(), lr=0.02)
    optimizer = sam.SAM(model, base, sam.window(sam.sam(rho=0.05), start=3))
    with landscape.record(model) as seen:
        optimizer.begin_epoch(0, total_epochs=4)
        for x, y in batches():
            optimizer.step(losses_of(model), (x, y))
    assert [f.key for f in seen.diagnosis().wrong] == ["gate"]


def test_weights_too_coarse_to_tell_e_are_not_called_well():
    class Coarse(WithoutNorm):
        def network(self):
            return super().network().bfloat16()

        def backward(self, x, y):
            self.loss(x.bfloat16(), y).backward()

    found = Coarse().diagnose(rho=0.01)
    assert found["length"].verdict == "cannot tell", str(found)


def test_what_differs_is_in_the_numbers():
    twice = AddedTwice().diagnose()["length"]
    assert twice.numbers["ratio"] == pytest.approx(2, rel=1e-5)
    assert "added 2 times" in twice.sentence
    assert NotRestored().diagnose()["restored"].numbers["times e"] == pytest.approx(1)
    assert RestoredTwice().diagnose()["restored"].numbers["times e"] == pytest.approx(-1)
    assert "rho is below the rounding" in TooSmall().diagnose()["second pass"].sentence


def test_a_sound_loop_has_no_wrong_finding_and_tells_the_rise_of_its_loss():
    loop = WithoutNorm()
    model = loop.network()
    model.load_state_dict(loop.model.state_dict())
    x, y = batches()[0]
    with landscape.record(loop.model, rho=RHO) as seen:
        loop.step(x, y)
    clean = F.cross_entropy(model(x), y)
    gradients = torch.autograd.grad(clean, list(model.parameters()))
    norm = torch.stack([g.norm() for g in gradients]).norm()
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradients, strict=True):
            p.add_(RHO * g / norm)
    rise = float(F.cross_entropy(model(x), y).detach() / clean.detach() - 1)
    found = seen.diagnosis()
    assert not found.wrong, str(found)
    assert all(f.verdict == "ok" for f in found.findings), str(found)
    size = found["size"].numbers
    assert size["rise of the loss"] == pytest.approx(rise, rel=1e-4)
    assert size["rise of the loss to first order"] == pytest.approx(
        float(RHO * norm / clean.detach()), rel=1e-4
    )
    assert not Loop().diagnose().wrong


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sam", {"rho": 0.05}), ("asam", {"rho": 0.5}), ("fsam", {"rho": 0.05}),
        ("zsharp", {"rho": 0.05}), ("sam_on", {"rho": 0.05}),
        ("ssam_f", {"rho": 0.05, "num_samples": 8}), ("ssam_d", {"rho": 0.05}),
        ("lagnp", {"rho": 0.05}), ("gsam", {}), ("looksam", {}),
    ],
)  # fmt: skip
def test_no_false_alarm_on_our_own_steps(name, options, dropout):
    variant = sam.make(name, options)
    model = small.model(dropout=dropout)
    base = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    optimizer = sam.SAM(model, base, variant, same_rng_both_passes=True)
    split = small.data().train
    if name == "ssam_f":
        optimizer.set_fisher_data(losses_of(model), (split.x, split.y))
    with landscape.record(model) as seen:
        optimizer.begin_epoch(0, total_epochs=2)
        for x, y in batches(6):
            optimizer.step(losses_of(model), (x, y))
    found = seen.diagnosis()
    assert not found.wrong, str(found)
    if name == "looksam":
        assert "closed" in found["gate"].sentence
        assert found["gate"].numbers["of these with a second pass"] < 6
    else:
        assert found["second pass"].verdict == "ok", str(found)
        assert found["restored"].verdict == "ok", str(found)


@pytest.mark.slow
@pytest.mark.parametrize("name", variants())
def test_no_false_alarm_on_any_recipe(name):
    model = model_for(name)
    trained = [p for p in model.parameters() if p.requires_grad]
    base = torch.optim.SGD(trained, lr=0.05, momentum=0.9)
    variant = sam.make(name, REQUIRED.get(name, {}))
    optimizer = sam.SAM(model, base, variant, same_rng_both_passes=True)
    losses = losses_with(model, with_logits="logits" in variant.needs)
    optimizer.set_fisher_data(losses_with(model), examples())
    with landscape.record(model) as seen:
        for t in range(8):
            if t % 4 == 0:
                optimizer.begin_epoch(t // 4, 2)
            optimizer.step(losses, examples(t))
    found = seen.diagnosis()
    assert not found.wrong, str(found)


def test_whoever_maximizes_climbs_down_the_loss():
    """A group with maximize=True: what it trains is -L."""
    loop = Downhill()
    for group in loop.base.param_groups:
        group["maximize"] = True
    assert not loop.diagnose().wrong


def losses_of(model):
    def losses(batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    return losses


def test_no_forward_pass_is_added_and_the_steps_are_those_without_a_recording():
    plain, watched = Loop(), Loop()
    calls = []
    watched.model.register_forward_hook(lambda *_: calls.append(1))
    own = torch.autograd.backward
    for x, y in batches():
        plain.step(x, y)
    watched.diagnose()
    assert len(calls) == 2 * len(batches())
    assert torch.autograd.backward is own
    for a, b in zip(plain.model.state_dict().values(), watched.model.state_dict().values()):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("loop", "code"), [(WithoutNorm, 0), (FirstGradient, 1)])
def test_doctor_prints_what_a_recording_left(monkeypatch, capsys, tmp_path, loop, code):
    found = loop().diagnose(folder=tmp_path / "theirs", steps_per_epoch=4)
    assert diagnosis.read(tmp_path / "theirs") == found
    left, out, _ = call(monkeypatch, capsys, "doctor", tmp_path / "theirs")
    assert (left, out.strip()) == (code, str(found))
    left, out, _ = call(monkeypatch, capsys, "doctor", tmp_path / "theirs", "--json")
    assert left == code
    assert '"descent"' in out
    left, _, err = call(monkeypatch, capsys, "doctor", tmp_path)
    assert left == 2
    assert "diagnosis.json" in err


def test_a_folder_wants_the_steps_of_an_epoch_and_findings_are_listed(tmp_path):
    with pytest.raises(LandscapeError, match="without steps_per_epoch"):
        landscape.record(small.model(), folder=tmp_path)
    with pytest.raises(LandscapeError, match="choose one of gate, finite, second pass"):
        Loop().diagnose()["nothing"]


class Gated(Loop):
    """Climbs where `opens` says so, and makes one pass elsewhere."""

    count = 0

    def opens(self, i):
        return i % 10 == 9

    def step(self, x, y):
        i, self.count = self.count, self.count + 1
        if self.opens(i):
            super().step(x, y)
        else:
            self.model.zero_grad()
            self.backward(x, y)
            self.descend()

    def run(self, steps, **options):
        with landscape.record(self.model, rho=self.rho, **options) as seen:
            for i in range(steps):
                self.step(*batches()[i % 4])
        return seen


def test_of_steps_that_are_not_looked_at_the_forward_passes_are_counted():
    loop = Gated()
    with landscape.record(loop.model, rho=RHO) as seen:
        for i in range(30):
            loop.step(*batches()[i % 4])
            assert all(g is None for g in seen.seen.g1)
            assert bool(seen.listeners) == (i < 15)  # nothing hears the gradients of the others
    found = seen.diagnosis()
    assert (found.num_steps, found.num_looked_at) == (30, 16)
    assert "closely, 14 only counted" in str(found)
    gate = found["gate"]
    assert gate.numbers == {"steps": 30, "looked at": 16, "of these with a second pass": 1}
    assert "1 of 16 steps that were looked at had a second pass" in gate.sentence
    assert "14 others, whose forward passes were counted, 12 made 1, 2 made 2" in gate.sentence
    loop = Gated()
    found = loop.run(30, every=1).diagnosis()
    assert (found.num_looked_at, found["gate"].numbers["of these with a second pass"]) == (30, 3)


def test_a_gate_that_opens_late_is_met_and_its_fault_is_named():
    """The first 16 steps have one pass each; the next kind of step is looked at when it returns."""

    class Late(Gated, AddedTwice):
        def opens(self, i):
            return i >= 16 and i % 10 == 9

    loop = Late()
    seen = loop.run(20)  # has opened once, and was not looked at
    found = seen.diagnosis()
    assert not found.wrong, str(found)
    assert found["gate"].verdict == "cannot tell"
    assert "1 made 2 (none that made 2 was looked at)" in found["gate"].sentence
    assert "every=1" in found["gate"].remedy
    loop = Late()
    found = loop.run(40).diagnosis()
    assert "length" in {f.key for f in found.wrong}, str(found)
    assert found.num_looked_at == 16 + 10  # from the step after the first opening to the next
    assert found["gate"].verdict == "ok"


def test_losses_and_gradients_that_are_not_finite_are_counted_in_all_steps():
    class Now(WithoutNorm):
        def __init__(self, at):
            super().__init__()
            self.at, self.count = at, 0

        def step(self, x, y):
            i, self.count = self.count, self.count + 1
            old = [p.detach().clone() for p in self.parameters()]
            super().step(x * float("nan") if i == self.at else x, y)
            if i == self.at:  # the step is left out
                with torch.no_grad():
                    self.restore(self.parameters(), old)
                    for state in self.base.state.values():
                        state["momentum_buffer"].zero_()

    for at, not_looked_at in ((3, 1), (20, 0)):
        loop = Now(at)
        with landscape.record(loop.model, rho=RHO) as seen:
            for i in range(24):
                loop.step(*batches()[i % 4])
        found = seen.diagnosis()
        assert {f.key for f in found.wrong} == {"finite"}, str(found)
        assert found["finite"].numbers == {
            "losses": 48, "of these not finite": 2, "steps looked at": 16,
            "of these with gradients not finite": not_looked_at,
        }  # fmt: skip
    assert Loop().diagnose()["finite"].verdict == "ok"


def test_rows_of_steps_that_were_not_looked_at_are_nan_and_every_1_looks_at_all(tmp_path):
    for name, every, looked in (
        ("some", 7, [*range(16), 21, 25]), ("all", 1, list(range(28))),
    ):  # fmt: skip
        loop, folder = Loop(), tmp_path / name
        options = {"folder": folder, "steps_per_epoch": 10, "snapshot_every": 25, "every": every}
        with landscape.record(loop.model, rho=RHO, **options) as seen:
            for i in range(28):
                loop.step(*batches()[i % 4])
        steps = snapshots.read_steps(folder)
        assert steps.step.tolist() == list(range(28))
        assert steps.epoch.tolist() == [step // 10 + 1 for step in range(28)]
        for column in ("perturbation_norm", "climbed", "rho", "cosine"):
            assert np.flatnonzero(~np.isnan(steps[column])).tolist() == looked, column
        assert steps["perturbation_norm"][looked] == pytest.approx(RHO, rel=1e-3)
        assert "every=1 looks at all" in steps.unseen["climbed"]
        assert snapshots.read_masks(folder).steps.tolist() == [0, 25]
        size = sum(p.stat().st_size for p in (folder / "snapshots").glob("*.[nb]*"))
        assert size <= seen.estimate_bytes(epochs=3)
