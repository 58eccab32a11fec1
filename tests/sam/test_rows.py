"""The table of variants is the code's own, and its evidence is what the tests show."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import landscape.sam
from landscape import sam
from landscape.sam.rows import EVIDENCE, OWN_SLOTS, ROWS, slots_of, table
from tests.parity.__main__ import DATA
from tests.parity.cases import variant_of
from tests.parity.problem import Problem
from tests.sam_models import batch, closure_of, cnn, ready, same, step, weights


def test_every_recipe_has_a_row_and_every_row_a_recipe():
    assert list(ROWS) == list(sam.recipes())
    for row in ROWS.values():
        assert row.evidence in EVIDENCE


def test_the_written_table_is_what_the_code_says():
    written = Path(landscape.sam.__file__).with_name("VARIANTS.md").read_text(encoding="utf-8")
    assert written == table(sam.recipes())


def test_parity_is_claimed_for_the_recipes_that_reproduce_a_published_trajectory():
    shown = set()
    for path in DATA.glob("*__mlp.npz"):
        with np.load(path) as stored:
            arrays = {k: stored[k] for k in stored.files}
        meta = json.loads(str(arrays.pop("meta")))
        shown.add(variant_of(meta, arrays, Problem.load(DATA, "mlp")).name)
    assert shown == {name for name, row in ROWS.items() if row.evidence == "parity"}


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
    assert len(point_losses) == 4  # g1, two losses, g2
    assert same(point_losses[0], before)
    assert int(model[1].num_batches_tracked) == 1


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


def test_docstrings_name_source_and_evidence():
    for name, recipe in sam.recipes().items():
        text = " ".join(recipe.__doc__.split())
        assert ROWS[name].source in text, name
        if ROWS[name].evidence in ("parity", "equation"):
            assert f"Evidence: {ROWS[name].evidence}" in text, name
        if ROWS[name].evidence == "our reading":
            assert "our reading" in text, name
