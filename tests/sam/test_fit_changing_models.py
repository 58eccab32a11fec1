"""State belongs to names: tensors that come, go, freeze and thaw in the middle of a training."""

import copy
import pickle

import pytest
import torch
from torch import nn

from landscape import sam
from landscape.errors import LandscapeError
from tests.sam_models import REQUIRED, batch, losses_of, reset, same, variants, weights

LATE = {
    **{name: REQUIRED.get(name, {}) for name in variants() if name != "flat_lora"},
    "random_mask never": {"resample": "never"},
    "random_mask epoch": {"resample": "epoch"},
    "lagnp every": {"every": 10, "num_layers": 1},
    "lagnp smoothing": {"smoothing": 0.9},
    "looksam 2": {"k": 2},
    "fsam paper": {"ema_order": "paper"},
    "ssam_d weight": {"drop_strategy": "weight", "growth_strategy": "gradient"},
}


class Stack(nn.Module):
    """Blocks of which a step uses some, as LayerDrop and mixtures of experts do."""

    def __init__(self):
        super().__init__()
        self.inp = nn.Linear(100, 4)
        self.norm = nn.LayerNorm(4)
        self.blocks = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
        self.out = nn.Linear(4, 5)
        self.used = (0,)

    def forward(self, x):
        h = self.norm(self.inp(x.flatten(1)))
        for i in self.used:
            h = h + torch.tanh(self.blocks[i](h))
        return self.out(h)


def made(key):
    model = reset(Stack())
    first = [p for n, p in model.named_parameters() if not n.startswith("out")]
    base = torch.optim.SGD(first, lr=0.05, momentum=0.9)
    optimizer = sam.SAM(model, base, sam.make(key.split()[0], LATE[key]), seed=3)
    return model, told(optimizer)


def told(optimizer):
    optimizer.set_fisher_data(losses_of(optimizer.model), batch())
    return optimizer


def play(model, optimizer, steps):
    losses = losses_of(model, with_logits="logits" in optimizer.variant.needs)
    for t in steps:
        optimizer.begin_epoch(t // 4, 4)
        model.used = ((0,), (0, 1), (1, 2), (2,))[t % 4]
        model.inp.requires_grad_(t % 3 != 1)
        if t == 3:  # the head joins
            optimizer.add_param_group({"params": list(model.out.parameters())})
        optimizer.step(losses, batch(t, size=16 if t % 4 else 3 if t else 16))


@pytest.mark.thorough
@pytest.mark.parametrize("key", LATE)
def test_tensors_come_and_go_and_copies_go_on_alike(key):
    model, optimizer = made(key)
    play(model, optimizer, range(6))
    again, twin = copy.deepcopy((model, optimizer))
    third, pickled = pickle.loads(pickle.dumps((model, optimizer)))
    fourth, loaded = made(key)
    fourth.load_state_dict(model.state_dict())
    loaded.add_param_group({"params": list(fourth.out.parameters())})
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    ends = []
    for m, o in ((model, optimizer), (again, twin), (third, pickled), (fourth, loaded)):
        play(m, told(o), range(6, 13))
        ends.append(weights(m))
        assert o.num_skipped == 0
        assert o.step_count == 13
    for end in ends[1:]:
        assert same(ends[0], end)
    assert all(p.isfinite().all() for p in model.parameters())


def test_what_another_model_shares_is_taken_over():
    model, optimizer = made("fsam")
    play(model, optimizer, range(6))
    new, other = made("fsam")
    new.load_state_dict(model.state_dict())
    new.blocks[2] = nn.Linear(4, 4, bias=False).double()
    base = torch.optim.SGD(new.parameters(), lr=0.05, momentum=0.9)
    other = sam.SAM(new, base, optimizer.variant)
    taken = other.take_over(optimizer.state_dict())
    kept = {n for n in dict(new.named_parameters()) if not n.startswith("blocks.2")}
    assert set(taken) == kept | {"blocks.2.weight"}  # of the same shape
    old = optimizer.slots["source"]["ema"]
    assert all(torch.equal(other.slots["source"]["ema"][n], old[n]) for n in taken if n in old)
    assert "blocks.2.bias" not in other.slots["source"]["ema"]
    p, q = new.inp.weight, model.inp.weight
    assert torch.equal(base.state[p]["momentum_buffer"], optimizer.state[q]["momentum_buffer"])
    assert other.step_count == 6
    play(new, told(other), (7, 8))
    with pytest.raises(LandscapeError, match="does not say which tensors it is of"):
        other.take_over(base.state_dict())


def test_a_gradient_in_one_pass_only_is_zero_in_the_other():
    """Tensors reached in neither pass are left alone, weight decay included."""
    for key, reached in (("gnp", {0, 1}), ("sam", {0, 1}), ("gsam", {0, 1})):
        model, optimizer = made(key)
        optimizer.base.param_groups[0]["weight_decay"] = 0.1
        passes, before = [], weights(model)

        def closure(model=model, passes=passes):
            model.used = (len(passes) % 2,)
            passes.append(1)
            loss = nn.functional.cross_entropy(model(batch()[0]), batch()[1])
            loss.backward()
            return loss

        # The repeat of pass 2 at w, which the first climb asks for, would be a third pass.
        optimizer.guard.climbs = 1
        optimizer.step(closure)
        grads = [b.weight.grad for b in model.blocks]
        assert [g is not None for g in grads] == [i in reached for i in range(3)]
        p = optimizer.perturbation
        g1 = dict(zip(p.names, p.g1, strict=True))["blocks.0.weight"]
        g2 = dict(zip(p.names, p.g2, strict=True))["blocks.1.weight"]
        scale = {"gnp": (0.2, 0.8), "sam": (0.0, 1.0)}.get(key)
        if scale:
            assert torch.allclose(grads[0], scale[0] * g1, rtol=1e-12)
            assert torch.allclose(grads[1], scale[1] * g2, rtol=1e-12)
        assert torch.equal(model.blocks[2].weight, before[list(g for g, _ in
                           model.named_parameters()).index("blocks.2.weight")])  # fmt: skip


# Where a zero that is written out differs from none by design: the tensor is reached in no pass
# whose gradient is used, or is counted among those that noise or masks are drawn over.
WRITTEN_OUT_DIFFERS = {
    "one pass": ("sgd", "msam", "randsam", "saf", "esam", "eigen_sam", "mesa"),
    "partial passes": ("sam_on", "sl_sam", "lagnp", "lagnp every", "lagnp smoothing"),
    "draws over the tensors": ("rsam", "tsam", "ssam_d", "ssam_d weight"),
}


@pytest.mark.parametrize("key", LATE)
def test_no_gradient_is_zero_in_every_recipe(key):
    """Passes that reach block 0 and block 1 in turn, against the same with zeros written out."""

    def stepped(*, written_out):
        model, optimizer = made(key)
        optimizer.base.param_groups[0]["weight_decay"] = 0.1
        optimizer.guard.climbs, count = 1, [0]
        optimizer.begin_epoch(0, 4)
        inner = losses_of(model, with_logits="logits" in optimizer.variant.needs)

        def losses(b):
            model.used = (count[0] % 2,)
            count[0] += 1
            found = inner(b)
            if not written_out:
                return found
            zero = 0.0 * sum(p.sum() for p in model.blocks[:2].parameters())
            many = isinstance(found, tuple)
            return (found[0] + zero, *found[1:]) if many else found + zero

        unused = weights(model.blocks[2])
        optimizer.step(losses, batch())
        assert same(unused, weights(model.blocks[2]))
        assert all(p.grad is None for p in model.blocks[2].parameters())
        return weights(model)

    there, zeros = stepped(written_out=False), stepped(written_out=True)
    if not any(key in keys for keys in WRITTEN_OUT_DIFFERS.values()):
        assert max(float((a - b).abs().max()) for a, b in zip(there, zeros, strict=True)) < 1e-15
