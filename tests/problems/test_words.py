"""What people meet in a notebook says in a line what it is."""

import torch

from landscape import EmpiricalRisk, problems, sam


def test_objects_say_in_a_line_what_they_are():
    data = problems.load_data("digits")
    assert repr(data) == (
        "DataSplits('digits': train 1,000, val 297, test 500; inputs 1 × 8 × 8, 10 classes)"
    )
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    risk = EmpiricalRisk(
        model, torch.nn.CrossEntropyLoss(), (data.train.x[:8], data.train.y[:8]), weight_decay=0.1
    )
    assert repr(risk) == (
        "EmpiricalRisk(CrossEntropyLoss of 650 parameters over 8 examples, weight decay 0.1; "
        "BatchNorm eval, float32 on cpu)"
    )


def test_a_variant_says_what_differs_from_sam_and_its_repr_stays_whole():
    variant = sam.zsharp(0.05, percentile=0.9)
    assert str(variant).startswith("Variant 'zsharp': selector = ZScore(percentile=0.9")
    assert str(sam.sam(0.05)) == "Variant 'sam': radius = Constant(rho=0.05)"
    # Trainings are told apart by the repr: whatever changes a step changes it.
    assert repr(variant) != repr(sam.zsharp(0.05, percentile=0.8))
    assert "percentile=0.9" in repr(variant)
