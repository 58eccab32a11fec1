"""The path of a gradient through a step is in one class of one file."""

import ast
from pathlib import Path

from landscape import sam

ROOM = Path(sam.__file__).parent
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in ROOM.rglob("*.py")}


def functions(tree):
    return [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.Lambda))]


def test_no_function_takes_any_optimizer():
    loose = [
        f"{path.name}:{node.lineno}"
        for path, tree in TREES.items()
        for node in functions(tree)
        for a in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)
        if a.arg == "optimizer" and (a.annotation is None or ast.unparse(a.annotation) == "Any")
    ]
    assert loose == []


def test_a_step_is_read_from_top_to_bottom():
    """First pass, ascent, second pass, descent, in this order, each a method of the one class."""
    (step,) = (
        n for n in TREES[ROOM / "step.py"].body if isinstance(n, ast.ClassDef) and n.name == "Step"
    )
    methods = {n.name: n for n in step.body if isinstance(n, ast.FunctionDef)}
    called = [
        n.func.attr
        for n in ast.walk(methods["_run"])
        if isinstance(n, ast.Call) and ast.unparse(n.func).startswith("self.")
    ]
    path = ["first_pass", "ascent", "second_pass", "descent"]
    lines = [methods[name].lineno for name in path]
    assert lines == sorted(lines)
    assert set(path) | {"closed"} <= set(called)
    moving = {  # who moves the weights to w + e and back, and who runs a gate
        path.name
        for path, tree in TREES.items()
        for n in ast.walk(tree)
        if isinstance(n, ast.Call) and ast.unparse(n.func).endswith("weights.restore")
    }
    assert moving == {"step.py"}
