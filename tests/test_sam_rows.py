"""The table of variants is the code's own, and its evidence is what the tests show."""

import json
from pathlib import Path

import numpy as np

import landscape.sam
from landscape import sam
from landscape.sam.rows import EVIDENCE, ROWS, slots_of, table
from tests.parity.__main__ import DATA
from tests.parity.cases import variant_of
from tests.parity.problem import Problem


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
