"""The contract of slots: each flag and hook is stated once, and functions keep it too."""

import ast
import copy
import dataclasses
import inspect
import pickle
from dataclasses import dataclass

import pytest
import torch

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
        if isinstance(node, ast.Assign) and isinstance(after, ast.Expr):
            documented |= {target.id for target in node.targets}
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


class Uncalled(Slot):
    """A slot that nobody can call, which only evaluate may be."""


def test_a_slot_that_cannot_be_called_is_refused_where_it_would_be():
    with pytest.raises(LandscapeError, match=r"geometry=.*derives from .*Slot and can be called"):
        dataclasses.replace(sam.sam(), geometry=Uncalled())
    assert not callable(dataclasses.replace(sam.sam(), evaluate=Uncalled()).evaluate)


@dataclass(frozen=True)
class Flags(Slot):
    """Each form in which a flag may be overridden."""

    needs_g1: bool = False
    reads = ("noise",)

    @property
    def leaves(self):
        return ("noise",) if self.needs_g1 else ()

    def __call__(self, point, state):
        return True


def test_a_flag_is_overridden_by_an_attribute_a_field_or_a_property():
    assert Flags().reads == Flags(needs_g1=True).leaves == ("noise",)
    assert Flags(needs_g1=True).needs_g1
    assert not Flags().needs_g1
    assert Flags().micro_batches == Slot.micro_batches == 1


@dataclass(frozen=True)
class ByExample(Slot):
    """A pass that reads losses of single examples without saying so in the variant's needs."""

    def second(self, passes, point, state, only):
        return passes.per_example(passes.batch)[0].mean()


def test_losses_of_examples_are_refused_where_a_closure_gives_none():
    model = cnn()
    optimizer = ready(model, dataclasses.replace(sam.sam(), evaluate=ByExample()))
    x, y = batch()[:2]

    def closure():
        loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss

    with pytest.raises(LandscapeError, match=r"losses of single examples .* call step\(losses, b"):
        optimizer.step(closure)


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
