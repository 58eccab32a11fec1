"""The README's lines as somebody new runs them: loss and lambda_1 beside torch and ARPACK.

Language models need `pip install transformers peft`, the checkpoint `lightning`; without them
their tests are skipped. `python -m pytest -m slow tests/risk/test_walk.py --durations=0` says what
each took.
"""

import copy
import json

import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader, TensorDataset

from landscape import EmpiricalRisk, measure, problems
from tests.risk import test_frameworks as frameworks

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def truth(model, loss):
    """Loss and largest eigenvalue in float64, by double backward of a copy and ARPACK."""
    model = copy.deepcopy(model).double().eval()
    weights = [p for p in model.parameters() if p.requires_grad]
    with sdpa_kernel([SDPBackend.MATH]):
        value = loss(model)
        gradient = torch.autograd.grad(value, weights, create_graph=True, materialize_grads=True)
    flat = torch.cat([g.reshape(-1) for g in gradient])

    def product(v):
        v = torch.from_numpy(np.ascontiguousarray(v).ravel()).double()
        parts = torch.autograd.grad(
            flat, weights, v, retain_graph=True, materialize_grads=True
        )  # fmt: skip
        return torch.cat([p.reshape(-1) for p in parts]).numpy()

    matrix = LinearOperator((len(flat), len(flat)), product, dtype=np.float64)
    start = np.random.default_rng(0).standard_normal(len(flat))
    largest = eigsh(matrix, k=1, which="LA", v0=start, return_eigenvectors=False)
    return float(value.detach()), float(largest[0])


def walks(model, loss, data, of_torch, *, within=1e-5, **options):
    """As the README has it: a risk and its largest eigenvalue, all else at its default."""
    risk = EmpiricalRisk(model, loss, data, **options)
    found = measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)
    value, largest = truth(model, of_torch)
    assert abs(float(risk.loss(risk.theta)) - value) < within * abs(value)
    assert bool(found.converged.all())
    # The bound is of the float32 risk's own matrix in exact arithmetic.
    gap = abs(float(found.eigenvalue[0]) - largest)
    assert gap <= float(found.bound[0]) + within * abs(largest)
    return risk, found


# Language models ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", frameworks.MODELS)
@pytest.mark.parametrize("training", [False, True])
def test_language_models(name, training):
    """Dropout, 0.1 in GPT-2 and in the adapters, is off in both modes."""
    torch.manual_seed(0)
    model = frameworks.MODELS[name]().train(training)
    walks(model, "causal_lm", [frameworks.WORDS], frameworks.next_tokens)


def test_an_encoder():
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = hf.BertConfig(
        vocab_size=60, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=24, max_position_embeddings=16, num_labels=3,
    )  # fmt: skip
    ids, mask, labels = frameworks.IDS, frameworks.MASK, frameworks.CLASSES
    walks(
        hf.BertForSequenceClassification(config),
        nn.CrossEntropyLoss(),
        hf.BatchEncoding({"input_ids": ids, "attention_mask": mask, "labels": labels}),
        lambda m: F.cross_entropy(m(input_ids=ids, attention_mask=mask).logits, labels),
    )


def test_adapters_whose_gradient_is_none_of_the_loss():
    """DoRA detaches a norm by design (arXiv:2402.09353, section 4.3): said, never converged."""
    torch.manual_seed(0)
    model = frameworks.adapted(frameworks.gpt2, ["c_attn"], fan_in_fan_out=True, use_dora=True)
    risk = EmpiricalRisk(model, "causal_lm", [frameworks.WORDS])
    value, _ = truth(model, frameworks.next_tokens)
    torch.testing.assert_close(float(risk.loss(risk.theta)), value, rtol=1e-5, atol=0)
    found = measure.top_eigenvalues(risk, risk.theta, k=1, seed=0)
    assert not found.converged.any()
    reasons = json.loads(found.attrs["provenance"])["unsound"]
    assert "not the slope of the loss" in reasons[0]
    assert "detach()" in reasons[0]
    assert "lora_A" in reasons[0]


# Other tasks --------------------------------------------------------------------------------------


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.norm = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.middle, self.up = nn.Conv2d(4, 6, 3, padding=1), nn.ConvTranspose2d(6, 4, 2, 2)
        self.out = nn.Conv2d(8, 3, 1)

    def forward(self, x):
        first = F.silu(self.norm(self.down(x)))
        second = F.silu(self.middle(F.avg_pool2d(first, 2)))
        return self.out(torch.cat([first, self.up(second)], 1))


def test_a_u_net_with_ignored_pixels():
    torch.manual_seed(0)
    x, y = torch.randn(6, 1, 8, 8), torch.randint(0, 3, (6, 8, 8))
    y[torch.rand(6, 8, 8) < 0.3] = 255
    w = torch.tensor([0.3, 1.0, 2.0])
    model = UNet()
    model(x)
    loader = DataLoader(TensorDataset(x, y), 4, shuffle=True)
    walks(
        model, nn.CrossEntropyLoss(weight=w, ignore_index=255), loader,
        lambda m: F.cross_entropy(m(x.double()), y, weight=w.double(), ignore_index=255),
    )  # fmt: skip


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 8), nn.Linear(8, 3)

    def forward(self, x, adjacency):
        return self.b(adjacency @ torch.tanh(self.a(adjacency @ x)))


def test_a_graph_network_on_one_graph():
    torch.manual_seed(0)
    links = torch.rand(20, 20) < 0.2
    links = (links | links.T | torch.eye(20, dtype=torch.bool)).float()
    adjacency, x = links / links.sum(1, keepdim=True), torch.randn(20, 5)
    y = torch.randint(0, 3, (20,))
    y[12:] = -100  # not in the training mask
    walks(
        Graph(), nn.CrossEntropyLoss(), ((x, adjacency.to_sparse()), y),
        lambda m: F.cross_entropy(m(x.double(), adjacency.double()), y), reduction="whole",
    )  # fmt: skip


def test_a_physics_informed_network():
    torch.manual_seed(0)
    points, net = torch.rand(32, 1), nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))

    def residual(model, batch):
        x = batch.requires_grad_()
        (du,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return ((du - torch.cos(3 * x)) ** 2)[:, 0]

    walks(net, residual, points, lambda m: residual(m, points.double()).mean())


def test_simclr():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 4))
    views = [(torch.randn(8, 6), torch.randn(8, 6)) for _ in range(3)]

    def nce(model, batch):
        a, b = (F.normalize(model(v), dim=1) for v in batch)
        return F.cross_entropy(a @ b.T / 0.5, torch.arange(len(a)))

    walks(
        encoder, nce, views, lambda m: sum(nce(m, (a.double(), b.double())) for a, b in views) / 3
    )


def test_a_policy_gradient():
    torch.manual_seed(0)
    policy = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    rollout = {"state": torch.randn(40, 4), "action": torch.randint(0, 2, (40,)),
               "advantage": torch.randn(40)}  # fmt: skip

    def surrogate(model, batch):
        chosen = model(batch["state"]).log_softmax(1).gather(1, batch["action"][:, None])[:, 0]
        return -batch["advantage"] * chosen

    double = {k: v.double() if v.is_floating_point() else v for k, v in rollout.items()}
    walks(policy, surrogate, rollout, lambda m: surrogate(m, double).mean())


def test_a_lightning_checkpoint_with_averaged_weights(tmp_path):
    pytest.importorskip("lightning")
    torch.manual_seed(0)
    trained = frameworks.lightning_run(tmp_path)
    x, y = trained.x, trained.y
    for key in (None, "state_dict.ema"):
        model = frameworks.small()
        said = str(problems.load_weights(model, trained.path, weights_key=key))
        assert "which the file also holds" in said
        walks(model, nn.CrossEntropyLoss(), (x, y), lambda m: F.cross_entropy(m(x.double()), y))
