"""Parameter counts of the literature, and initial weights that are a function of the seed."""

import pytest
import torch
from torch import nn

from landscape import problems
from landscape.errors import LandscapeError
from landscape.problems.resnet import resnet20
from landscape.problems.vit import ViT

DIGITS, SIGNAL, CIFAR = (1, 8, 8), (1, 40), (3, 32, 32)
SHAPES = {
    "cnn": DIGITS, "cnn1d": SIGNAL, "mlp": SIGNAL, "resnet18": CIFAR, "resnet20": CIFAR,
    "vit": CIFAR, "resnet50": (3, 224, 224), "resnet56": CIFAR, "vgg16_bn": CIFAR, "vit_s": CIFAR,
    "wrn28_10": CIFAR,
}  # fmt: skip


LARGE = ("resnet50", "vgg16_bn", "vit_s", "wrn28_10")  # seconds each; see tests/test_papers.py


def count(model):
    return sum(p.numel() for p in model.parameters())


def make(name, seed=0, **options):
    options = {"num_classes": 10, "input_shape": SHAPES[name]} | options
    return problems.make_model(name, seed=seed, **options)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("cnn", 24_058),
        ("cnn1d", 5_210 - 3 * 25 + 2 * 3 * 25),  # arXiv:2011.14439's, biases replaced by BatchNorm
        ("mlp", 15_210),  # arXiv:2011.14439
        ("resnet18", 11_173_962),
        ("resnet20", 269_722),  # arXiv:1512.03385 Table 6: 0.27 M, option A
        ("resnet56", 853_018),  # arXiv:1512.03385 Table 6: 0.85 M, option A
        ("vgg16_bn", 14_728_266),
        ("vit", 5_362_762),
        ("vit_s", 21_342_346),
        ("wrn28_10", 36_479_194),  # arXiv:1605.07146: 36.5 M
    ],
)
def test_parameter_counts(name, parameters):
    assert count(make(name)) == parameters


@pytest.mark.parametrize(
    ("name", "classes", "shape", "parameters"),
    [
        ("wrn28_10", 100, CIFAR, 36_536_884),
        ("resnet50", 1000, (3, 224, 224), 25_557_032),  # torchvision's documentation
        ("vit", 1000, (3, 224, 224), 5_717_416),  # DeiT-Ti, arXiv:2012.12877: 5.7 M
        ("vit_s", 1000, (3, 224, 224), 22_050_664),  # DeiT-S, arXiv:2012.12877: 22 M
    ],
)
def test_parameter_counts_of_other_data(name, classes, shape, parameters):
    with torch.device("meta"):
        made = problems.models.MODELS[name](num_classes=classes, input_shape=shape)
    assert count(made) == parameters


def test_resnet20_with_projections():
    assert count(resnet20(num_classes=10, input_shape=CIFAR, option="B")) == 272_474


def test_resnet18_of_100_classes():
    assert count(make("resnet18", num_classes=100)) == 11_220_132


@pytest.mark.parametrize(
    ("image", "patch", "dim", "depth", "heads", "classes", "published"),
    [
        ((3, 224, 224), 16, 192, 12, 3, 1000, 5_717_416),  # DeiT-Ti, arXiv:2012.12877
        ((3, 224, 224), 16, 768, 12, 12, 1000, 86_567_656),  # ViT-B/16, arXiv:2010.11929
        ((3, 32, 32), 4, 192, 12, 3, 10, 5_362_762),
    ],
)
def test_vit_has_the_published_and_the_closed_form_count(
    image, patch, dim, depth, heads, classes, published
):
    tokens = (image[1] // patch) * (image[2] // patch) + 1
    embedding = image[0] * patch**2 * dim + dim + dim + tokens * dim
    block = 12 * dim**2 + 13 * dim  # qkv, proj, two MLP layers, their biases, two LayerNorms
    closed = embedding + depth * block + 2 * dim + dim * classes + classes
    with torch.device("meta"):
        model = ViT(
            image=image, patch=patch, dim=dim, depth=depth, heads=heads, num_classes=classes
        )
    assert count(model) == closed == published


def test_vit_attention_is_softmax_of_scaled_products():
    from landscape.problems.vit import Attention

    attention = Attention(8, 2).double()
    x = torch.randn(3, 5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q, k, v = attention.qkv(x).chunk(3, dim=-1)
    heads = []
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        weights = torch.softmax(q[..., part] @ k[..., part].transpose(1, 2) / 2.0, dim=-1)
        heads.append(weights @ v[..., part])
    expected = attention.proj(torch.cat(heads, dim=-1))
    assert torch.allclose(attention(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in LARGE])
def test_outputs_have_one_column_a_class(name):
    model = make(name, num_classes=7)
    x = torch.randn(2, *SHAPES[name], generator=torch.Generator().manual_seed(0))
    assert model.training
    assert model(x).shape == (2, 7)


@pytest.mark.parametrize("name", ["cnn", "cnn1d", "mlp", "resnet20"])
def test_initial_weights_are_a_function_of_the_seed_alone(name):
    before = torch.get_rng_state()
    first = make(name).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(3)
    again, other = make(name).state_dict(), make(name, seed=1).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert any(not torch.equal(first[k], other[k]) for k in first)


def test_a_shortcut_without_parameters_pads_with_zeros():
    model = make("resnet20")
    shortcut = model.stages[1][0].shortcut
    x = torch.randn(2, 16, 8, 8)
    out = shortcut(x)
    assert torch.equal(out[:, 8:24], x[:, :, ::2, ::2])
    assert not out[:, :8].any()
    assert not out[:, 24:].any()


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("gan", DIGITS, "model='gan' is unknown; choose one of cnn, cnn1d, mlp, resnet18"),
        ("cnn", SIGNAL, r"model='cnn' takes inputs \(channels, height, width\).*\(1, 40\)"),
        ("cnn1d", DIGITS, r"model='cnn1d' takes inputs \(channels, length\)"),
        ("vit", (3, 30, 30), "30 x 30 cannot be cut into patches of 4 x 4"),
        ("resnet18", SIGNAL, "model='resnet18' takes inputs"),
    ],
)
def test_bad_models_are_named(name, shape, message):
    with pytest.raises(LandscapeError, match=message):
        problems.make_model(name, num_classes=10, input_shape=shape, seed=0)


def test_losses_by_name():
    assert isinstance(problems.make_loss("cross_entropy"), nn.CrossEntropyLoss)
    assert isinstance(problems.make_loss("mse"), nn.MSELoss)
    assert isinstance(problems.make_loss("torch.nn:L1Loss"), nn.L1Loss)
    assert problems.make_loss("torch.nn.functional:mse_loss") is nn.functional.mse_loss
    with pytest.raises(LandscapeError, match="loss='hinge' is unknown; choose one of cross"):
        problems.make_loss("hinge")
