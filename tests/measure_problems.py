"""Problems with known answers for the tests of `plane` and `measure`."""

import torch
from torch import nn

from landscape import EmpiricalRisk


class Linear(nn.Module):
    """x @ w, with w as its only parameter."""

    def __init__(self, w):
        super().__init__()
        self.w = nn.Parameter(w)

    def forward(self, x):
        return x @ self.w


def weighted_quadratic(output, target):
    return 0.5 * target[:, 0] * output**2 + target[:, 1] * output


def quadratic(eigenvalues, *, linear=None, seed=0):
    """Risk ½ wᵀHw + cᵀw with H of the given eigenvalues, at random w; returns (risk, H, c)."""
    values = torch.tensor(eigenvalues, dtype=torch.float64)
    size = len(values)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    x = (size * values.abs()).sqrt()[:, None] * Q
    b = torch.zeros(size, dtype=torch.float64)
    if linear is not None:
        # c = xᵀ b / size
        b = size * torch.linalg.solve(x.T, torch.tensor(linear, dtype=torch.float64))
    targets = torch.stack([values.sign(), b], dim=1)
    w = torch.randn(size, generator=generator, dtype=torch.float64)
    risk = EmpiricalRisk(Linear(w), weighted_quadratic, (x, targets), dtype=torch.float64)
    return risk, Q.T @ torch.diag(values) @ Q, x.T @ b / size


def cnn(*, seed=0, classes=4):
    """Two convolutions with BatchNorm and non-trivial running statistics, 8x8 inputs."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.Tanh(),
            nn.Conv2d(4, 6, 3, stride=2, padding=1),
            nn.BatchNorm2d(6),
            nn.Tanh(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(6, classes),
        ).double()
        model(torch.randn(32, 1, 8, 8, dtype=torch.float64) * 2 + 1)
    return model


def images(n=24, *, classes=4, seed=1):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 1, 8, 8, generator=generator, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=generator)


def cnn_risk(bn="eval", *, n=24, seed=0):
    model = cnn(seed=seed)
    loss = nn.CrossEntropyLoss()
    return EmpiricalRisk(model, loss, images(n), bn=bn, dtype=torch.float64), model


def fingerprint(model):
    """Everything a measurement must leave alone."""
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return (
        {name: tensor.detach().clone() for name, tensor in tensors.items()},
        [parameter.grad for parameter in model.parameters()],
        [parameter.requires_grad for parameter in model.parameters()],
        [module.training for module in model.modules()],
        torch.get_rng_state(),
    )


def same(before, after):
    assert before[0].keys() == after[0].keys()
    assert all(torch.equal(before[0][name], after[0][name]) for name in before[0])
    assert before[1:4] == after[1:4]
    assert torch.equal(before[4], after[4])
