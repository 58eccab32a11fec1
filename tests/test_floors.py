"""The house keeps its floors: imports go down, and drawing a result never loads torch."""

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def test_imports_go_down():
    lint = Path(sys.executable).with_name("lint-imports")
    done = subprocess.run([lint], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("module", ["results", "storage", "snapshots", "stats", "plot", "report"])
def test_light_modules_do_not_load_torch(module):
    code = f"import sys, landscape.{module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _loaded_by(code):
    code = f"import sys\n{code}\nprint(*sorted(sys.modules), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stderr.split())


def test_names_are_loaded_when_they_are_used():
    loaded = _loaded_by("import landscape, landscape.measure")
    assert not loaded & {"torch", "xarray", "pandas", "scipy.stats", "matplotlib", "plotly"}


def test_a_first_eigenvalue_loads_no_statistics_and_no_drawing():
    loaded = _loaded_by("from landscape import EmpiricalRisk, measure\nmeasure.top_eigenvalues")
    assert "torch" in loaded
    assert not loaded & {"scipy.stats", "sklearn", "matplotlib", "plotly", "pyhessian"}


@pytest.mark.parametrize("package", ["landscape", "landscape.measure"])
def test_the_stub_names_what_is_there(package):
    module = importlib.import_module(package)
    assert len(module.__all__) == len(set(module.__all__))
    for name in module.__all__:
        assert getattr(module, name) is not None
