"""One graph: its nodes are rows that cannot be taken apart, and its adjacency is often sparse."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from landscape import measure
from landscape.errors import LandscapeError
from landscape.risk import EmpiricalRisk
from tests.risk_problems import hessian_of_model, randn, rng, settled

N = 12
X, Y = randn(N, 4), torch.randint(0, 3, (N,), generator=rng(1))
Y[::3] = -100  # outside of the training mask
LINKS = (torch.rand(N, N, generator=rng(2), dtype=torch.float64) < 0.3).double() + torch.eye(N)
DENSE = LINKS / LINKS.sum(1, keepdim=True)
LAYOUTS = {
    "dense": torch.Tensor.clone,
    "coo": torch.Tensor.to_sparse,
    "csr": torch.Tensor.to_sparse_csr,
}
pytestmark = pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")


class Convolution(nn.Module):
    """Two graph convolutions; the adjacency is given, or an attribute."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x, adjacency=None):
        A = self.adjacency if adjacency is None else adjacency
        return self.last(A @ torch.tanh(self.first(A @ x)))


def truth(model):
    """Loss, gradient and Hessian of torch with the dense adjacency."""

    def loss(m):
        return F.cross_entropy(m(X, DENSE), Y)

    return loss(model), hessian_of_model(model, loss)


def agree(risk, model):
    value, H = truth(model)
    torch.testing.assert_close(risk.loss(risk.theta), value.detach(), rtol=1e-12, atol=1e-14)
    top = measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)
    assert bool(top.converged.all())
    assert float(top.eigenvalue[0]) == pytest.approx(float(torch.linalg.eigvalsh(H)[-1]), rel=1e-8)


@pytest.mark.parametrize("place", ["buffer", "constant", "attribute"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_graph_that_the_model_holds_is_one_unit(layout, place):
    model, kept = settled(Convolution()), LAYOUTS[layout](DENSE)
    if place == "buffer":
        model.register_buffer("adjacency", kept)
    elif place == "constant":
        model.adjacency = kept = nn.Parameter(kept, requires_grad=False)
    else:
        model.adjacency = kept
    for options in ({}, {"reduction": "whole"}, {"borrow": True}):
        risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (X, Y), **options)
        agree(risk, model)
        assert model.adjacency is kept
        assert torch.equal(kept.to_dense(), DENSE)
        assert len(risk.fingerprints()["data_sha256"]) == 64


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_graph_that_comes_with_the_batch(layout):
    model, graph = settled(Convolution()), LAYOUTS[layout](DENSE)
    agree(EmpiricalRisk(model, nn.CrossEntropyLoss(), ((X, graph), Y), reduction="whole"), model)

    def loss(model, batch):
        return F.cross_entropy(model(batch["x"], batch["graph"]), batch["y"])

    agree(EmpiricalRisk(model, loss, {"x": X, "graph": graph, "y": Y}), model)


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_features_have_no_rows_and_dense_ones_do(layout):
    features = X * (X > 0.5)
    model, sparse = settled(nn.Linear(4, 3)), LAYOUTS[layout](features)
    with pytest.raises(LandscapeError, match=r"sparse tensor.*reduction='whole'.*to_dense\(\)"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), (sparse, Y))
    risk = EmpiricalRisk(model, nn.CrossEntropyLoss(), (sparse.to_dense(), Y))
    value = F.cross_entropy(model(features), Y)
    torch.testing.assert_close(risk.loss(risk.theta), value.detach(), rtol=1e-12, atol=1e-14)


def test_a_trainable_sparse_tensor_is_refused():
    model = settled(nn.Linear(4, 3))
    model.mask = nn.Parameter(torch.eye(3).double().to_sparse())
    with pytest.raises(LandscapeError, match=r"'mask' is trainable and sparse \(sparse_coo\)"):
        EmpiricalRisk(model, nn.CrossEntropyLoss(), (X, Y))
