"""What is said of the cost of surfaces is what stands in the file of results."""

import json
import re
from pathlib import Path

from benchmarks import surface

ROOT = Path(__file__).parents[3]
CASES = json.loads((surface.RESULTS / "surface-cpu.json").read_text(encoding="utf-8"))["cases"]


def text(*path):
    return ROOT.joinpath(*path).read_text(encoding="utf-8")


def test_the_table_of_the_benchmarks_is_that_of_the_results():
    assert "\n".join(surface.table(CASES)) in text("benchmarks", "README.md")


def test_the_readme_gives_the_ratios_to_the_best_package():
    (row,) = re.findall(r"\| a point of a loss plane \|.*\|", text("README.md"))
    ratios = [surface.best_peer(CASES[name]["grid"])[1] for name in ("mlp", "cnn", "resnet20")]
    ratios.append(surface.best_peer(CASES["vit"]["grid"])[1])
    assert re.findall(r"\d\.\d\d", row) == [f"{found['ratio']:.2f}" for found in ratios]
    assert "(MLP, CNN, ResNet-20, ViT)" in row


def test_adaptive_grids_were_held_to_their_tolerance_on_every_network():
    for name in ("cnn", "mlp", "resnet20", "vit"):
        found = CASES[name]["adaptive"]
        assert found["cells"] == 51 * 51
        assert found["share_within_tolerance"] >= 0.99
        assert found["saving"] == round(found["cells"] / found["evaluated"], 2)
