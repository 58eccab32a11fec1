"""Blends of g1 and g2 that autograd adds up: the same bits, fewer copies of the weights."""

import gc

import pytest
import torch
from torch import nn

from landscape import sam
from tests.sam_models import batch, cnn, ready, reset, same
from tests.sam_models import weights as weights_of


class Sometimes(nn.Module):
    """Its second layer takes part in the first pass of every step only."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.calls = nn.Linear(7, 7), nn.Linear(7, 7), 0
        reset(self)

    def forward(self, x):
        self.calls += 1
        return self.two(self.one(x)) if self.calls % 2 else self.one(x)


@pytest.mark.parametrize(
    "variant",
    [sam.gnp(0.1), sam.gnp(0.1, unit_g1=True), sam.gnp(0.1, alpha=1.0), sam.gnp(0.1, alpha=0.0),
     sam.lagnp(0.1, fraction=0.9), sam.lagnp(0.1, fraction=1.0)],
)  # fmt: skip
@pytest.mark.parametrize("make", [cnn, Sometimes])
def test_a_blend_summed_by_autograd_is_the_blend(variant, make):
    """Without the perturbation kept g2 is added to c g1 in `.grad`; whatever the caller clears."""
    ends = []
    for keep in (True, False):
        model = make()
        optimizer = ready(model, variant, keep_perturbation=keep)

        def losses(b, model=model, optimizer=optimizer):
            optimizer.zero_grad()
            x = b[0] if make is cnn else b[0].flatten(1)[:, :7]
            return nn.functional.cross_entropy(model(x), b[1], reduction="none")

        for t in range(3):
            optimizer.begin_epoch(t, 3)
            optimizer.step(losses, batch(t))
        ends.append(weights_of(model))
    assert same(*ends) if make is cnn else all(map(torch.allclose, *ends))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("variant", "copies"), [(sam.gnp(0.1), 1), (sam.lagnp(0.1, fraction=0.5), 0.5)]
)
def test_a_blend_holds_the_weights_that_moved_and_nothing_else(variant, copies):
    """Beside weights and gradient, when pass 2 has made its last gradient."""
    model = nn.Sequential(*[nn.Linear(200, 200, bias=False) for _ in range(4)])
    base = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = sam.SAM(model, base, variant, keep_perturbation=False)
    x = torch.randn(4, 200, generator=torch.Generator().manual_seed(0))
    seen = []

    def count(_):
        found = [t for t in gc.get_objects() if issubclass(type(t), torch.Tensor)]
        found += [p.grad for p in model.parameters() if p.grad is not None]
        seen.append(len({t.data_ptr() for t in found if t.numel() == 40_000}) / 4 - 2)

    handles = [p.register_post_accumulate_grad_hook(count) for p in model.parameters()]
    for _ in range(3):
        seen.clear()
        optimizer.step(lambda b: model(b).square().mean(1), x)
    for handle in handles:  # torch does not see the cycle that they close
        handle.remove()
    assert seen[-1] == max(seen) == copies
