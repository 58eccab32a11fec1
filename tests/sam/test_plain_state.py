"""A queue in a plain attribute, which both passes advance, is named at the first climb."""

import logging
from collections import deque

import pytest
import torch
from torch import nn

from landscape import sam
from tests.sam_models import batch, closure_of, reset, sgd


class Contrasted(nn.Module):
    """Logits of a linear layer; `keep` advances what it keeps, by the features of the batch."""

    def __init__(self, kept, keep):
        super().__init__()
        self.layer = reset(nn.Linear(100, 5))
        self.kept, self.keep = kept, keep

    def forward(self, x):
        out = self.layer(x.flatten(1))
        self.keep(self, out.detach().clone())
        return out


def queue():
    return torch.randn(64, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def in_place(module, new):
    start = getattr(module, "start", 0)
    module.kept[start : start + len(new)] = new
    module.start = (start + len(new)) % len(module.kept)


def columns(module, new):  # as MoCo's queue lies, (dim, K)
    module.kept = torch.cat([module.kept[:, len(new) :], new.t()], dim=1)


def shifted(module, new):
    module.kept = torch.cat([new, module.kept])[: len(module.kept)]


def appended(module, new):
    module.kept.append(new)


QUEUES = {
    "in place": (queue, in_place),
    "zeros": (lambda: torch.zeros(64, 5, dtype=torch.float64), in_place),
    "columns": (lambda: queue().t().clone(), columns),
    "shifted": (queue, shifted),
    "deque": (lambda: deque(maxlen=4), appended),
    "full deque": (lambda: deque([queue()] * 4, maxlen=4), appended),
    "list": (lambda: [queue()], appended),
}


def stepped(model, caplog, steps=2):
    optimizer = sam.SAM(model, sgd(model), sam.sam(0.1))
    with caplog.at_level(logging.WARNING, "landscape.sam"):
        for t in range(steps):
            optimizer.step(closure_of(model, batch(t)))
    return [r.getMessage() for r in caplog.records]


@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_that_advances_twice_a_step_is_named_once(name, caplog):
    kept, keep = QUEUES[name]
    (said,) = stepped(nn.ModuleDict({"encoder": Contrasted(kept(), keep)})["encoder"], caplog)
    assert said.startswith("'kept' of the model advanced in both passes")
    assert "register_buffer" in said


def test_the_advice_works(caplog):
    model = Contrasted(None, lambda module, new: shifted(module, new))
    del model.kept
    model.register_buffer("kept", queue())
    before = model.kept.clone()
    assert not stepped(model, caplog, steps=1)
    assert torch.equal(model.kept[16:], before[:-16])  # one batch, of one pass


FRESH = {
    "features": (lambda: None, lambda m, new: setattr(m, "kept", new)),
    "a cache": (lambda: torch.zeros(16, 5, dtype=torch.float64), lambda m, n: m.kept.copy_(n)),
    "rectified": (lambda: None, lambda m, new: setattr(m, "kept", new.relu())),
    "a list made anew": (lambda: [queue()], lambda m, new: setattr(m, "kept", [new])),
    "never changed": (queue, lambda *_: None),
}


@pytest.mark.parametrize("name", FRESH)
def test_what_each_pass_makes_anew_is_not_named(name, caplog):
    kept, keep = FRESH[name]
    assert not stepped(Contrasted(kept(), keep), caplog)
