"""The table of variants is the code's own, and its evidence is what the tests show."""

import dataclasses
import inspect
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import landscape
from landscape import sam
from landscape.sam.table import OWN_SLOTS, derived, slots_of
from tests.parity.__main__ import DATA
from tests.parity.cases import variant_of
from tests.parity.problem import Problem
from tests.sam_models import batch, closure_of, cnn, ready, same, step, weights

PACKAGE = Path(landscape.__file__).parent
DECLARED = {name: recipe.declaration for name, recipe in sam.recipes().items()}


def test_whatever_follows_from_the_declarations_has_been_written():
    for path, text in derived(sam.recipes()).items():
        assert path.read_text(encoding="utf-8") == text, f"python -m landscape.sam --write ({path})"


def test_a_recipe_is_written_in_one_place():
    """Of the package's files, one declares it; the others are made from that one.

    `sgd`, `sam` and `random_mask` are what everything is compared with, `zsharp` stands in
    examples; measurements, figures and the report name those that they compare unless others are
    asked.
    """
    figures = PACKAGE / "plot" / "figures"
    choosing = (PACKAGE / "study" / "measurements", figures, PACKAGE / "report")
    made = {path for path in derived(sam.recipes())}
    sources = [p for p in PACKAGE.rglob("*.*") if p.suffix in (".py", ".json") and p not in made]
    texts = {p: p.read_text(encoding="utf-8") for p in sources}
    for name, recipe in sam.recipes().items():
        file = Path(inspect.getsourcefile(inspect.unwrap(recipe)))
        assert file.parent.name == "recipes"
        if name in ("sgd", "sam", "zsharp", "random_mask"):
            continue
        declares = [p for p, text in texts.items() if re.search(rf"def {name}\(", text)]
        quotes = [p for p, text in texts.items() if f'"{name}"' in text]
        assert declares == [file], name
        assert all(p == file or not set(choosing).isdisjoint(p.parents) for p in quotes), name


def test_every_declaration_says_what_it_is_and_looks_like_no_other():
    assert len({d.look for d in DECLARED.values()}) == len(DECLARED)
    assert len({d.label for d in DECLARED.values()}) == len(DECLARED)
    for name, facts in DECLARED.items():
        assert facts.equation, name
        assert facts.source or facts.evidence in ("control", "parity"), name


def test_parity_is_claimed_for_the_recipes_that_reproduce_a_published_trajectory():
    shown = set()
    for path in DATA.glob("*__mlp.npz"):
        with np.load(path) as stored:
            arrays = {k: stored[k] for k in stored.files}
        meta = json.loads(str(arrays.pop("meta")))
        shown.add(variant_of(meta, arrays, Problem.load(DATA, "mlp")).name)
    assert shown == {name for name, facts in DECLARED.items() if facts.evidence == "parity"}


def test_the_written_examples_of_own_slots_run():
    blocks = [part.split("```")[0] for part in OWN_SLOTS.split("```python\n")[1:]]
    names = {"torch": torch, "dataclasses": dataclasses, "sam": sam}
    exec("\n".join(blocks), names)
    model = cnn()
    names["torch"].set_default_dtype(torch.float64)
    try:
        optimizer = ready(model, names["variant"])
        before = weights(model)
        point_losses = []
        optimizer.step(closure_of(model, batch(), point_losses))
    finally:
        torch.set_default_dtype(torch.float32)
    for name, e in optimizer.perturbation.e.items():
        w = dict(model.named_parameters())[name]
        expected = 0.1 * ((w.shape[0] / w[0].numel()) ** 0.5 if w.ndim > 1 else 1.0)
        assert float(e.norm()) == pytest.approx(expected, rel=1e-9)
    assert len(point_losses) - 4 in (0, 2)  # g1, two losses, g2; the guard may look once more
    assert same(point_losses[0], before)
    assert int(model[1].num_batches_tracked) == 1


@pytest.mark.parametrize("example", ["weighed", "further"])
def test_the_written_corrections_descend_as_they_say(example):
    names = {"torch": torch, "dataclasses": dataclasses, "sam": sam}
    exec("\n".join(part.split("```")[0] for part in OWN_SLOTS.split("```python\n")[1:]), names)
    model = cnn()
    optimizer = ready(model, names[example], torch.optim.SGD(model.parameters(), lr=0.0))
    mean = None
    for t in range(3):
        step(optimizer, batch(t))
        p = optimizer.perturbation
        gd = [q.grad for q in model.parameters()]
        if example == "weighed":
            sharpness = float(p.loss_perturbed - p.loss_clean)
            mean = sharpness if mean is None else 0.9 * mean + 0.1 * sharpness
            expected = [a + sharpness / mean * (b - a) for a, b in zip(p.g1, p.g2, strict=True)]
        else:
            moved = cnn()
            for w, e in zip(moved.parameters(), p.e.values(), strict=True):
                w.data.add_(2.0 * e)
            closure_of(moved, batch(t))()
            beyond = [w.grad for w in moved.parameters()]
            expected = [(a + b) / 2 for a, b in zip(p.g2, beyond, strict=True)]
        for a, b in zip(gd, expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def test_the_written_x_sam_on_a_quadratic():
    """L = wᵀ diag(h) w/2: v is the axis of the largest h, whatever sign it came with."""
    names = {"torch": torch, "dataclasses": dataclasses, "sam": sam}
    exec("\n".join(part.split("```")[0] for part in OWN_SLOTS.split("```python\n")[1:]), names)
    h, w, rho = (torch.tensor(x, dtype=torch.float64) for x in ([9.0, 2.0, 1.0], [-1, 2, 3], 0.1))
    model = torch.nn.Linear(3, 1, bias=False).double()
    model.weight.data.copy_(w)

    def losses(x):
        return (h * model.weight[0].square()).sum() / 2 + 0 * x

    slot = dataclasses.replace(names["away"].correction, num_iterations=60)
    variant = dataclasses.replace(names["away"], correction=slot)
    optimizer = ready(model, variant, torch.optim.SGD(model.parameters(), lr=1.0))
    optimizer.step(losses, torch.zeros(2, dtype=torch.float64))
    g2 = h * (w + rho * h * w / (h * w).norm())
    v = torch.tensor([-1.0, 0, 0], dtype=torch.float64)  # <g1, v> > 0
    expected = w - (g2 / g2.norm() - 0.2 * (g2 @ v).abs() * v)
    torch.testing.assert_close(model.weight[0].detach(), expected, rtol=1e-9, atol=1e-9)


def test_a_zeroth_order_source_climbs():
    """The two-loss slope along z times z has a positive inner product with the gradient."""
    names = {"torch": torch}
    exec(OWN_SLOTS.split("```python\n")[1].split("```")[0], names)
    model = cnn().float()
    b = (batch()[0].float(), *batch()[1:])
    variant = dataclasses.replace(sam.sam(0.1), source=names["zeroth_order"])
    optimizer = ready(model, variant)
    for _ in range(5):
        step(optimizer, b)
        p = optimizer.perturbation
        gain = sum(float((g * e).sum()) for g, e in zip(p.g1, p.e.values(), strict=True))
        assert gain > 0


def test_slots_name_what_differs_from_sam():
    assert slots_of(sam.sam(0.1)) == {"radius": "Constant(rho=0.1)"}
    assert slots_of(sam.gnp(0.1, alpha=0.5))["correction"] == "Blend(alpha=0.5)"


def test_docstrings_end_with_the_facts():
    for name, recipe in sam.recipes().items():
        text = " ".join(recipe.__doc__.split())
        assert DECLARED[name].source in text, name
        assert f"Evidence: {DECLARED[name].evidence} (" in text, name
        assert DECLARED[name].passes in text, name
