"""Second opinions on products and traces by packages that were written elsewhere."""

import sys
import types
from importlib.machinery import ModuleSpec

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import eigsh
from torch import nn

from landscape import measure
from landscape.measure.curvature.operator import Operator
from tests.measure_problems import cnn_risk, images

# Dependencies of curvlinops use what torch deprecates, in either word.
DEPRECATED = ("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture
def curvlinops(monkeypatch):
    """A dependency of it imports torchvision, which has no build for a CPU-only torch."""
    for name in ("torchvision", "torchvision.models"):
        module = types.ModuleType(name)
        module.__spec__ = ModuleSpec(name, None)
        monkeypatch.setitem(sys.modules, name, module)
    return pytest.importorskip("curvlinops")


@pytest.mark.filterwarnings(*DEPRECATED)
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_products_agree_with_curvlinops_where_it_is_right(curvlinops, matrix):
    """It errs on affine LayerNorm, so the network here has BatchNorm in eval mode."""
    risk, model = cnn_risk()
    kind = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}[matrix]
    parameters = list(model.eval().parameters())
    theirs = getattr(curvlinops, kind)(model, nn.CrossEntropyLoss(), parameters, [images()])
    V = torch.randn(
        3, len(risk.theta), generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    ours = Operator.of(risk, risk.theta, matrix=matrix)(V)
    torch.testing.assert_close(theirs @ V.T, ours.T, rtol=1e-9, atol=1e-12)


@pytest.mark.filterwarnings(*DEPRECATED)
@pytest.mark.parametrize("matrix", ["hessian", "ggn"])
def test_eigenvalues_agree_with_arpack_on_the_products_of_curvlinops(curvlinops, matrix):
    risk, model = cnn_risk()
    kind = {"hessian": "HessianLinearOperator", "ggn": "GGNLinearOperator"}[matrix]
    parameters = list(model.eval().parameters())
    theirs = getattr(curvlinops, kind)(model, nn.CrossEntropyLoss(), parameters, [images()])
    values = eigsh(theirs.to_scipy(), k=5, which="LA", tol=1e-10)[0][::-1]
    ours = measure.top_eigenvalues(risk, risk.theta, k=5, matrix=matrix, seed=0)
    assert (np.abs(ours["eigenvalue"] - values) <= ours["bound"] + 1e-9).all()
