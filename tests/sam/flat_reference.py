"""Losses, gradients and Hessian products over one flat float64 vector, for hand-written loops."""

import torch
from torch import Tensor
from torch.func import functional_call

from tests.sam_models import batch, cnn, losses_of, ready, weights


class Flat:
    """The test network as a function of one vector; each call sees the buffers of the start."""

    def __init__(self, make=cnn):
        self.model = make()
        self.names = [n for n, _ in self.model.named_parameters()]
        self.shapes = [p.shape for p in self.model.parameters()]
        self.start = flat(self.model.parameters())

    def split(self, w: Tensor) -> list[Tensor]:
        parts = w.split([s.numel() for s in self.shapes])
        return [p.view(s) for p, s in zip(parts, self.shapes, strict=True)]

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        buffers = {n: b.clone() for n, b in self.model.named_buffers()}
        return functional_call(
            self.model, dict(zip(self.names, self.split(w), strict=True)) | buffers, (x,)
        )

    def losses(self, w: Tensor, b) -> Tensor:
        return losses_of(lambda x: self.outputs(w, x))(b)

    def loss(self, w: Tensor, b) -> Tensor:
        return self.losses(w, b).mean()

    def grad(self, w: Tensor, b, of=None) -> Tensor:
        """Gradient of the mean loss, or of `of(outputs, batch)`."""
        w = w.detach().requires_grad_()
        value = self.loss(w, b) if of is None else of(self.outputs(w, b[0]), b)
        return torch.autograd.grad(value, w)[0]

    def hessian(self, w: Tensor, b) -> Tensor:
        """Dense, row by row."""
        return torch.autograd.functional.hessian(lambda v: self.loss(v, b), w.detach())


def flat(tensors) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


def unit(v: Tensor) -> Tensor:
    return v / v.norm()


def trajectory(variant, steps=6, lr=0.05, make=cnn, epochs=None, logits=False, **options):
    """Weights after each step over plain SGD, one row each, and the optimizer."""
    model = make()
    base = torch.optim.SGD(model.parameters(), lr=lr)
    optimizer = ready(model, variant, base, **options)
    rows = []
    for t in range(steps):
        if epochs is not None:
            optimizer.begin_epoch(t, epochs)
        optimizer.step(losses_of(model, with_logits=logits), batch(t % 3))
        rows.append(flat(weights(model)))
    return torch.stack(rows), optimizer


def by_hand(step, steps=6, make=cnn):
    """The same by step(f, w, batch, t) -> the next w."""
    f = Flat(make)
    w, rows = f.start, []
    for t in range(steps):
        w = step(f, w, batch(t % 3), t)
        rows.append(w.detach())
    return torch.stack(rows)


def agree(ours: Tensor, theirs: Tensor, tolerance=1e-11) -> None:
    """Rounding grows with the steps; another method is off by 1e-4 and more."""
    torch.testing.assert_close(ours, theirs, rtol=0, atol=tolerance)
