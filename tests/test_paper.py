"""Every number of paper.md is that of a committed result, and every reference can be found."""

import json
import math
import re
from pathlib import Path

import pytest

from landscape import sam
from tests.parity.runner import STORED_STEPS, TOLERANCE, TOLERANCE_ADAM

ROOT = Path(__file__).parents[1]
BODY = (ROOT / "paper.md").read_text(encoding="utf-8").split("---\n")[2]
TORCH_LOSSES = 1e-12  # tests/risk/test_torch_losses.py
# Names that hold digits, and exponents of the formats below.
NAMES = re.compile(r"\[[@;\w\s]+\]|ResNet-20|float64|`[^`]*\.(json|png)`")


def result(name):
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def product_over(peer):
    """The shortest and the longest time of a Hessian product beside a peer's, of three networks."""
    known = result("curvature-cpu")
    ratios = [
        known[f"{network}, hvp, N={examples}"]["kept_over"][peer]["ratio"]
        for network, examples in (("cnn", 128), ("resnet20", 64), ("vit", 64))
    ]
    return [f"{min(ratios):.2f}", f"{max(ratios):.2f}"]


def power_of_ten(number):
    return ["10", str(round(math.log10(number)))]


def trajectories():
    return len(list((ROOT / "tests" / "parity" / "data").glob("*__*.npz")))


def number_in(file, pattern):
    return re.search(pattern, (ROOT / file).read_text(encoding="utf-8"))[1]


def false_sentences(world):
    found = result("planted_rough")[world]
    return [f"{100 * found['shares']['false anywhere']:.1f}", f"{found['studies']:_}"]


# What the paper says, in its order, and where it is from.
CLAIMS = [
    lambda: [str(len(sam.recipes()))],
    lambda: [str(trajectories()), str(STORED_STEPS[-1])],
    lambda: [*power_of_ten(TOLERANCE), *power_of_ten(TOLERANCE_ADAM)],
    lambda: [number_in("tests/risk/test_torch_losses.py", r"test_criterion\w+_(\d+)_times")],
    lambda: power_of_ten(TORCH_LOSSES),
    lambda: product_over("curvlinops") + product_over("hessian-eigenthings"),
    lambda: false_sentences("null")[::-1],
]


def test_every_number_is_that_of_a_committed_result():
    said = re.findall(r"-?\d[\d_]*(?:\.\d+)?", NAMES.sub("", BODY).replace("\u202f", "_"))
    assert said == [number for claim in CLAIMS for number in claim()]


@pytest.mark.parametrize("entry", (ROOT / "paper.bib").read_text(encoding="utf-8").split("\n@")[1:])
def test_every_reference_can_be_found(entry):
    assert re.search(r"doi = |eprint = |\\url", entry), entry


def test_every_citation_has_its_reference_and_every_reference_is_cited():
    known = set(re.findall(r"@\w+\{(\w+),", (ROOT / "paper.bib").read_text(encoding="utf-8")))
    assert set(re.findall(r"@(\w+)", BODY)) == known


def test_every_file_that_it_names_is_committed():
    for name in re.findall(r"`([\w/.-]+\.\w+)`", BODY):
        assert (ROOT / name).exists(), name
