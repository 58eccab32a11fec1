"""Small networks and data for the tests of the risk; float64, seeded, nothing global is drawn."""

import torch
from torch import nn

F64 = torch.float64


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def randn(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=F64)


def settled(model, seed=0):
    """Weights of unit gain and running statistics that differ from those of any batch."""
    generator = rng(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            fan = parameter[0].numel() if parameter.ndim > 1 else 1
            draw = torch.randn(parameter.shape, generator=generator, dtype=F64)
            parameter.copy_(draw / fan**0.5 if parameter.ndim > 1 else 0.7 + 0.3 * draw)
        for name, buffer in model.named_buffers():
            if "running" in name:
                buffer.copy_(0.5 + torch.rand(buffer.shape, generator=generator))
    return model.double()


def mlp_bn():
    return settled(
        nn.Sequential(
            nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 5), nn.BatchNorm1d(5),
            nn.Tanh(), nn.Linear(5, 3),
        )
    )  # fmt: skip


def cnn_bn():
    return settled(
        nn.Sequential(
            nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.BatchNorm2d(3), nn.Softplus(),
            nn.Conv2d(3, 4, 3, stride=2, bias=False), nn.BatchNorm2d(4, affine=False), nn.Tanh(),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
        )
    )  # fmt: skip


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(3, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, 6, dropout=0.5, batch_first=True,
                                                activation="gelu")  # fmt: skip
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(self.embed(x)).mean(1))


def transformer():
    return settled(Transformer())


PROBLEMS = {
    "mlp_bn": (mlp_bn, (4,)),
    "cnn_bn": (cnn_bn, (1, 5, 5)),
    "transformer": (transformer, (5, 3)),
}


def problem(name, n=12):
    make, shape = PROBLEMS[name]
    return make(), (randn(n, *shape, seed=1), torch.randint(0, 3, (n,), generator=rng(2)))


def dense_hessian(function, theta):
    """Hessian by rows of double backward through the caller's own function, no package code."""
    theta = theta.detach().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(function(theta), theta, create_graph=True)
    rows = [torch.autograd.grad(g, theta, retain_graph=True)[0] for g in gradient]
    return torch.stack(rows)


def hessian_of_model(model, loss):
    """The same in the trainable parameters of a model, for loss(model) -> ()."""
    weights = [p for p in model.parameters() if p.requires_grad]
    gradient = torch.autograd.grad(loss(model), weights, create_graph=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])
    rows = [torch.autograd.grad(g, weights, retain_graph=True) for g in flat]
    return torch.stack([torch.cat([r.reshape(-1) for r in row]) for row in rows])
