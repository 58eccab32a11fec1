"""The contract of slots: each flag and hook is stated once, and functions keep it too."""

import ast
import copy
import dataclasses
import inspect
import pickle
from dataclasses import dataclass

import pytest

from landscape import sam
from landscape.errors import LandscapeError
from landscape.sam import schedule, slot
from landscape.sam.slot import CONTRACT, Function, Slot
from landscape.sam.variant import SLOTS
from tests.sam_models import batch, cnn, ready, step


def test_every_flag_and_hook_has_a_default_and_a_text():
    body = ast.parse(inspect.getsource(Slot)).body[0].body
    documented = set()
    for node, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(node, ast.FunctionDef) and ast.get_docstring(node):
            documented.add(node.name)
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr):
            assert node.value is not None
            documented.add(node.target.id)
    assert documented - {"has", "title"} == set(CONTRACT)


def test_every_slot_of_every_recipe_keeps_the_contract():
    from tests.sam_models import variants

    for variant in variants().values():
        for place in SLOTS:
            part = getattr(variant, place)
            assert part is None or isinstance(part, Slot)


def gate_by_step(point, state):
    return point.step % 2 == 1


def test_a_function_says_what_it_asks_by_attributes():
    gate = slot.as_slot(gate_by_step, "gate")
    assert gate.needs_g1
    assert not gate.has("after_step")
    before = Function(gate_by_step, needs_g1=False)
    assert not pickle.loads(pickle.dumps(before)).needs_g1
    assert pickle.loads(pickle.dumps(gate)) == gate
    assert pickle.loads(pickle.dumps(sam.sam())) == sam.sam()
    assert copy.deepcopy(sam.sgd()).gate is schedule.never


def test_an_attribute_that_no_step_reads_is_refused():
    def gate(point, state):
        return True

    gate.need_g1 = False
    with pytest.raises(LandscapeError, match=r"slot gate has the attribute 'need_g1', which no"):
        slot.as_slot(gate, "gate")


@pytest.mark.parametrize("value", [3, "sam", Slot, None])
def test_what_is_no_slot_is_refused(value):
    with pytest.raises(LandscapeError, match=r"correction=.* was given; a slot is a function"):
        dataclasses.replace(sam.sam(), correction=value)


@dataclass
class Foreign:
    """A correction with hooks that does not derive from Slot."""

    needs_g1 = False

    def __post_init__(self):
        self.after = []

    def __call__(self, point, g1, g2, state):
        return g2

    def after_step(self, point, state):
        self.after.append(point.step)


def test_an_object_that_does_not_derive_from_slot_keeps_its_hooks():
    correction = Foreign()
    variant = dataclasses.replace(sam.sam(), correction=correction)
    optimizer = ready(cnn(), variant)
    for _ in range(2):
        step(optimizer, batch())
    assert correction.after == [0, 1]
    assert not variant.correction.needs_g1
    assert variant.correction.title == "Foreign"
