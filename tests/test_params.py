import pytest
import torch
from torch import nn

from landscape.errors import LandscapeError
from landscape.params import KINDS, ParamLayout, is_norm


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv1d(2, 4, 3, bias=False)
        self.bn = nn.BatchNorm1d(4)
        self.emb = nn.Embedding(5, 4)
        self.head = nn.Linear(4, 5)
        self.tied = nn.Linear(4, 5, bias=False)
        self.tied.weight = self.emb.weight
        self.scale = nn.Parameter(torch.ones(2, 2))
        self.frozen = nn.Linear(3, 3).requires_grad_(False)


def test_kinds_are_those_of_the_owning_module_and_norm_covers_weight_and_bias():
    kinds = {info.name: info.kind for info in ParamLayout.of(Small()).tensors}
    assert kinds == {
        "scale": "other",
        "conv.weight": "conv",
        "bn.weight": "norm",
        "bn.bias": "norm",
        "emb.weight": "embedding",
        "head.weight": "linear",
        "head.bias": "bias",
    }
    assert set(kinds.values()) == set(KINDS)


def test_tied_tensors_count_once_and_frozen_ones_never():
    model = Small()
    layout = ParamLayout.of(model)
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert layout.num_parameters == sum(p.numel() for p in trainable)
    assert not any("frozen" in name or "tied" in name for name in layout.names)


def test_unflatten_gives_views_that_invert_flatten():
    model = Small()
    layout = ParamLayout.of(model)
    theta = layout.flatten(model.named_parameters()).detach()
    views = layout.unflatten(theta)
    for name, parameter in model.named_parameters():
        if name in views:
            assert torch.equal(views[name], parameter)
    views["head.bias"].fill_(7.0)
    assert (theta[layout.mask("bias")] == 7.0).all()
    assert torch.equal(layout.flatten(views), theta)


def test_unflatten_of_a_block_keeps_the_leading_axis():
    layout = ParamLayout.of(Small())
    block = torch.randn(3, layout.num_parameters, generator=torch.Generator().manual_seed(0))
    parts = layout.unflatten(block)
    assert parts["conv.weight"].shape == (3, 4, 2, 3)
    assert torch.equal(parts["head.bias"][1], layout.unflatten(block[1])["head.bias"])


def test_masks_of_kinds_partition_theta():
    layout = ParamLayout.of(Small())
    total = sum(layout.mask(kind).long() for kind in KINDS)
    assert (total == 1).all()
    assert torch.equal(layout.mask(["head.*"]), layout.mask(lambda t: t.module == "head"))
    assert layout.mask(("bn.*", "bias")).sum() == 4 + 4 + 5
    first = layout.tensors[1]
    assert (first.start, first.stop, first.ndim) == (4, 4 + first.numel, 3)


def test_parametrized_weight_belongs_to_its_layer():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(3, 2))
    infos = ParamLayout.of(nn.Sequential(layer)).tensors
    assert {info.kind for info in infos if "original" in info.name} == {"linear"}
    assert {info.module for info in infos} == {"0"}


def test_norms_of_other_libraries_are_known_by_name():
    class LlamaRMSNorm(nn.Module):
        pass

    assert is_norm(LlamaRMSNorm())
    assert is_norm(nn.LayerNorm(3))
    assert not is_norm(nn.Linear(3, 3))


def test_no_trainable_parameter_is_refused():
    with pytest.raises(LandscapeError, match="no trainable parameter \\(2 frozen tensors\\)"):
        ParamLayout.of(nn.Linear(2, 2).requires_grad_(False))


def test_lazy_and_complex_parameters_are_refused_by_name():
    with pytest.raises(LandscapeError, match="weight is not initialized yet"):
        ParamLayout.of(nn.LazyLinear(3))
    model = nn.Module()
    model.phase = nn.Parameter(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(LandscapeError, match=r"phase is torch\.complex64"):
        ParamLayout.of(model)


def test_wrong_size_name_shape_and_pattern_are_refused_with_the_values():
    layout = ParamLayout.of(nn.Linear(3, 2))
    with pytest.raises(LandscapeError, match=r"shape \(7,\) given; the model has P=8"):
        layout.unflatten(torch.zeros(7))
    with pytest.raises(LandscapeError, match="bias is missing among the 1 given"):
        layout.flatten({"weight": torch.zeros(2, 3)})
    with pytest.raises(LandscapeError, match=r"weight has shape \(3, 2\); this model's has \(2, 3"):
        layout.flatten({"weight": torch.zeros(3, 2), "bias": torch.zeros(2)})
    with pytest.raises(LandscapeError, match=r"'head.\*' matches no tensor; kinds are conv"):
        layout.mask("head.*")
