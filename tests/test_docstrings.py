"""Every public function and class says what it is, what it takes and gives, and shows itself."""

import doctest
import inspect
import io
import re
import types
from pathlib import Path

import pytest

import landscape
from landscape import study

FIRST_LINES = Path(__file__).parents[1] / "docs" / "reference" / "first_lines.py"
SOURCE = re.compile(
    r"arXiv:\d{4}\.\d+|doi:10\.|, ch\. \d|\b(19|20)\d\d\b|[Dd]efinition|our own|the control\b"
)
NUMBER = re.compile(
    r"\(([A-Za-z]\w*|\.\.\.)?(, ([\w*.]+|\.\.\.))*,?\)|\bnats\b|\bdims\b|\bshares?\b|\bunits?\b|"
    r"‖|±|√|\bbetween -?\d|\ba count\b|\bBytes\b"
)
# Functions here compute what somebody published or what is our own, and say which.
METHODS = ("measure", "sam", "stats", "plane", "linalg.lanczos", "linalg.density", "linalg.trace")
REFUSED = ("other",)  # what SAM takes to refuse it by name
NO_METHOD = {
    "sam.make": "looks a recipe up",
    "sam.recipes": "lists them",
    "plane.load": "a file",
    "plane.save": "a file",
    **dict.fromkeys(
        ("sam.every", "sam.window", "sam.with_radius"), "when and how far, in its first line"
    ),
}


def modules(module=landscape, name=""):
    """The public packages and modules: what `__all__` names, from the top."""
    found = {} if module is landscape else {name: module}
    for key in module.__all__:
        value = getattr(module, key)
        if isinstance(value, types.ModuleType):
            found |= modules(value, f"{name}.{key}".lstrip("."))
    return found


MODULES = {"landscape": landscape, **modules()}


def public(name):
    """Public callables of one module, by name; a figure's twins are the figure's."""
    twins = name in ("plot.static", "plot.interactive")
    own = [n for n in MODULES[name].__all__ if not (twins and n in landscape.plot.figures.__all__)]
    found = {n: getattr(MODULES[name], n) for n in own}
    return {
        n: v
        for n, v in found.items()
        if callable(v) and not isinstance(v, types.ModuleType) and _documented(v)
    }


def _documented(value):
    """Types that only name choices (Literal, unions) have no docstring of their own."""
    return inspect.isclass(value) or inspect.isroutine(value)


# Exported for other packages of ours; a user meets them through what is named.
INNER = {
    "problems.Batches": "EmpiricalRisk",
    "risk.Examples": "EmpiricalRisk",
    "risk.ModelLosses": "EmpiricalRisk",
    "risk.errors_of": "EmpiricalRisk.error_rate",
    "risk.gathered": "EmpiricalRisk",
    "risk.takes_batch": "EmpiricalRisk",
    "risk.targets_of": "EmpiricalRisk.targets",
    "training.check_form": "training.train",
}
SURFACE = {
    f"{name}.{n}": value
    for name in MODULES
    for n, value in public(name).items()
    if f"{name}.{n}" not in INNER
}


def said(name):
    """The docstring in words, without its example."""
    return (inspect.getdoc(SURFACE[name]) or "").split("Example:\n")[0]


def test_each_says_what_it_is_in_one_line():
    assert len(SURFACE) > 300
    assert not [name for name in SURFACE if not said(name).split("\n")[0].endswith((".", ":", "?"))]


def test_each_shows_an_example():
    texts = {name: inspect.getdoc(value) or "" for name, value in SURFACE.items()}
    assert not [name for name, text in texts.items() if "Example:\n    >>> " not in text]


def test_every_argument_is_in_its_docstring_or_in_that_of_its_package():
    """Or, of a recipe, in its declaration, which is part of its docstring."""
    unsaid = {}
    for name, value in SURFACE.items():
        package = inspect.getdoc(MODULES[name.rpartition(".")[0]]) or ""
        given = [p for p in inspect.signature(value).parameters if not p.startswith("_")]
        known = said(name) + package
        missing = [p for p in given if p not in REFUSED and not re.search(rf"\b{p}\b", known)]
        unsaid |= {name: missing} if missing else {}
    assert not unsaid


def test_numbers_have_a_shape_or_a_unit():
    for name, value in SURFACE.items():
        if not inspect.isclass(value):
            returned = str(inspect.signature(value).return_annotation)
            if re.search("Tensor|ndarray|float|Dataset", returned):
                assert NUMBER.search(said(name)), f"{name} gives numbers without a shape or a unit"


def test_a_method_has_its_source():
    methods = [n for n in SURFACE if n.rpartition(".")[0] in METHODS and n not in NO_METHOD]
    functions = [name for name in methods if not inspect.isclass(SURFACE[name])]
    assert not [name for name in functions if not SOURCE.search(said(name))]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The study that the examples read: docs/reference/everything.toml, run once."""
    plan = study.load(FIRST_LINES.with_name("everything.toml"))
    folder = tmp_path_factory.mktemp("everything") / "study"
    done = study.run(plan, folder, study.Options(device="cpu", workers=0, quiet=True))
    assert not done.failed
    return done.folder


@pytest.fixture
def first_lines(finished, monkeypatch, tmp_path):
    """What every example of the reference may use, made anew for each page of it."""
    monkeypatch.chdir(tmp_path)
    lines = compile(FIRST_LINES.read_text(encoding="utf-8"), str(FIRST_LINES), "exec")
    masked = next(run.run for run in study.status(finished.root).runs if "zsharp" in run.run)
    read = {
        "finished": finished,
        "runs": study.results(finished),
        "folder": finished.run(masked),
    }

    def names():
        made = dict(read)
        exec(lines, made)
        return made

    return names


@pytest.mark.thorough
@pytest.mark.parametrize("module", [name for name in MODULES if public(name)])
def test_the_examples_run(module, first_lines):
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS)
    parser = doctest.DocTestParser()
    for name, value in public(module).items():
        if f"{module}.{name}" in INNER:
            continue
        lines = inspect.getdoc(value)
        test = parser.get_doctest(lines, first_lines(), f"{module}.{name}", None, None)
        assert test.examples, name
        said = io.StringIO()
        assert runner.run(test, out=said.write).failed == 0, said.getvalue()


def test_the_page_shows_the_first_lines():
    page = (FIRST_LINES.parent / "index.md").read_text(encoding="utf-8")
    assert "{literalinclude} first_lines.py" in page
    assert "{literalinclude} everything.toml" in page
