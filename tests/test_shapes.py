"""Array shapes are what the annotations say, in every package that states them."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
QUICK = ("test_params.py", "risk/test_closed_forms.py", "linalg/test_trace.py")
ALL = (
    "measure/curvature", "measure/outcome", "measure/perturbations", "measure/surfaces", "plane",
    "risk", "linalg", "vectors/test_vectors.py",
)  # fmt: skip


def stating() -> list[str]:
    """Packages and modules of landscape with array shapes among their annotations."""
    files = (ROOT / "landscape").rglob("*.py")
    stated = [f.relative_to(ROOT) for f in files if "from jaxtyping" in f.read_text("utf-8")]
    return sorted({".".join(f.with_suffix("").parts[:2]) for f in stated})


def under_the_checker(*tests: str) -> None:
    hook = f"--jaxtyping-packages={','.join(stating())},tests.shapes.checked"
    options = ["-q", "-p", "no:cacheprovider", "-p", "tests.shapes", hook]
    chosen = ["-m", "not slow and not gpu", *(str(ROOT / "tests" / name) for name in tests)]
    command = [sys.executable, "-m", "pytest", *options, *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:]


@pytest.mark.thorough
def test_shapes_are_what_the_annotations_say():
    pytest.importorskip("beartype")
    assert {"landscape.linalg", "landscape.measure", "landscape.risk"} <= set(stating())
    under_the_checker(*QUICK)


@pytest.mark.slow
@pytest.mark.parametrize("tests", ALL)
def test_shapes_are_so_in_every_test_of_these_packages(tests):
    pytest.importorskip("beartype")
    under_the_checker(tests)


@pytest.mark.thorough
def test_a_wrong_shape_is_noticed(tmp_path):
    """The control of the tests above."""
    pytest.importorskip("beartype")
    wrong = tmp_path / "test_wrong.py"
    wrong.write_text(
        "import torch\nfrom landscape import vectors\n\n\ndef test_wrong():\n"
        "    vectors.gram(torch.ones(3))\n"
    )
    with pytest.raises(AssertionError, match="TypeCheckError"):
        under_the_checker(str(wrong))
