"""Variants of the user's own, and runs that were trained elsewhere, by something known or not."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from landscape import report, results
from landscape.errors import LandscapeError
from landscape.study import Options, parse, run
from tests import study_problem

HERE = Path(__file__).parents[1]
HERE_ONLY = Options(device="cpu", workers=0, quiet=True)
HEAD = """
name = "own"
[problem]
data = "study_problem:splits"
model = "study_problem:make"
[training]
epochs = 2
batch_size = 16
lr = 0.1
momentum = 0.9
weight_decay = 5e-4
"""
MEASURE = """
[measure]
examples = 24
measurements = ["generalization", "history", "perturbation", "top_eigenvalues"]
[measure.top_eigenvalues]
k = 1
"""
OWN = """
[variants.mine]
recipe = "own_recipes:mine"
rho = 0.3
[variants.theirs]
recipe = "own_recipes:plain"
[variants.published]
recipe = "own_recipes:TwoSteps"
rho = 0.3
[grid]
variant = ["sgd", "sam", "mine", "theirs", "published"]
rho = [0.3]
seed = [0]
"""
MODULE = '''
import torch
from landscape import sam

def mine(rho):
    return sam.sam(rho=rho)

def plain(params, lr, momentum, weight_decay, rho=None):
    return torch.optim.SGD(params, lr=lr, momentum=momentum, weight_decay=weight_decay)

class TwoSteps(torch.optim.Optimizer):
    """The published shape: first_step, second_step, a base optimizer inside."""

    def __init__(self, params, rho, lr, momentum, weight_decay):
        super().__init__(params, {"rho": rho, "lr": lr})
        self.base = torch.optim.SGD(
            self.param_groups, lr=lr, momentum=momentum, weight_decay=weight_decay
        )
        self.param_groups = self.base.param_groups

    @torch.no_grad()
    def first_step(self, zero_grad=False):
        every = [p for g in self.param_groups for p in g["params"]]
        norm = torch.stack([p.grad.norm() for p in every]).norm()
        for p in every:
            self.state[p]["old"] = p.clone()
            p.add_(p.grad * (self.param_groups[0]["rho"] / (norm + 1e-12)))
        if zero_grad:
            self.zero_grad()

    @torch.no_grad()
    def second_step(self, zero_grad=False):
        for group in self.param_groups:
            for p in group["params"]:
                p.copy_(self.state[p]["old"])
        self.base.step()
        if zero_grad:
            self.zero_grad()

    def step(self, closure=None):
        raise AssertionError("driven through its two steps")

def wrong(rho):
    return "a word"

def lazy(params):
    class Lazy(torch.optim.SGD):
        def step(self, closure=None):
            return None
    return Lazy(params, lr=0.1)
'''


@pytest.fixture
def base(tmp_path, monkeypatch):
    for name in ("study_problem", "own_recipes"):  # of the folder of an earlier test
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "study_problem.py").write_text((HERE / "study_problem.py").read_text())
    (tmp_path / "own_recipes.py").write_text(MODULE)
    return tmp_path


def weights(place, family):
    (name,) = (path for path in place.runs.iterdir() if path.name.startswith(f"{family}-s"))
    from safetensors.torch import load_file

    return load_file(name / "checkpoints" / "final.safetensors")


def test_a_recipe_of_the_users_own_trains_as_the_same_one_of_ours(base):
    """`mine` is SAM by our class, `theirs` SGD and `published` SAM by theirs: to rounding."""
    done = run(parse(HEAD + OWN + MEASURE, base=base), base / "out", HERE_ONLY)
    assert not done.failed
    place = done.folder
    for own, same, close in (
        ("mine", "sam", 0),
        ("theirs", "sgd", 1e-6),
        ("published", "sam", 1e-5),
    ):
        a, b = weights(place, own), weights(place, same)
        for name in a:
            if "running" in name or "num_batches" in name:
                continue  # both passes of a published class update the running statistics
            torch.testing.assert_close(a[name], b[name], rtol=close, atol=close)
    ds = results.load(place.results / "perturbation.nc")
    assert set(ds.variant.values) == {"sam", "mine"}  # of an optimizer it is not known
    assert set(results.load(place.results / "generalization.nc").variant.values) == {
        "sgd", "sam", "mine", "theirs", "published"
    }  # fmt: skip


def test_an_edited_module_makes_new_runs(base):
    before = [r.run_id for r in parse(HEAD + OWN + MEASURE, base=base).runs]
    (base / "own_recipes.py").write_text(MODULE + "\n# edited\n")
    after = [r.run_id for r in parse(HEAD + OWN + MEASURE, base=base).runs]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, False, False, False]


@pytest.mark.parametrize(
    ("recipe", "options", "message"),
    [
        ("own_recipes:wrong", "rho = 1", "returned a str; a landscape.sam.Variant is needed"),
        ("own_recipes:mine", "alpha = 1", r"does not accept \{'alpha': 1\}"),
        ("own_recipes:lazy", "", "took a step without calling its closure"),
        ("own_recipes:plain", "beta = 1", "does not accept .*beta"),
    ],
)
def test_what_such_a_recipe_does_wrong_is_said_by_name(base, recipe, options, message):
    text = f'[variants.x]\nrecipe = "{recipe}"\n{options}\n[grid]\nvariant = ["x"]\n'
    done = run(parse(HEAD + text + MEASURE, base=base), base / "out", HERE_ONLY)
    (why,) = done.failed.values()
    assert re.search(message, why), why


def test_names_of_recipes_that_lead_nowhere_are_refused_when_the_file_is_read(base):
    for recipe, message in (
        ("nowhere:make", "no module 'nowhere' beside the study file"),
        ("samm", r"unknown 'samm'. Did you mean 'sam'\?.*package.module:callable"),
    ):
        text = f'[variants.x]\nrecipe = "{recipe}"\n[grid]\nvariant = ["x"]\n'
        with pytest.raises(LandscapeError, match=message):
            parse(HEAD + text, base=base)
    with pytest.raises(LandscapeError, match="trains nothing; give the weights that it left"):
        parse(HEAD + '[variants.x]\nrecipe = "none"\n[grid]\nvariant = ["x"]\n', base=base)


ELSEWHERE = """
[variants.a]
recipe = "none"
label = "Theirs"
[variants.b]
recipe = "none"
[grid]
variant = ["a", "b"]
alpha = [1, 2]
seed = [0, 1]
weights = "ckpt/{variant}_{alpha}_{seed:02d}_{step:04d}.pt"
[measure]
examples = 24
measurements = ["generalization", "perturbation", "perturbation_controls", "training_curvature",
                "trajectory", "mask_persistence"]
[measure.trajectory]
grid = 2
"""


def checkpoints(base, steps=(0, 5, 20)):
    (base / "ckpt").mkdir()
    for variant in "ab":
        for alpha in (1, 2):
            for seed in (0, 1):
                torch.manual_seed(seed + 10 * alpha)
                model = study_problem.make()
                for step in steps:
                    for p in model.parameters():
                        p.data += 0.1 * torch.randn_like(p)
                    name = f"{variant}_{alpha}_{seed:02d}_{step:04d}.pt"
                    torch.save(model.state_dict(), base / "ckpt" / name)


@pytest.mark.thorough
def test_checkpoints_from_elsewhere_are_rows_by_pattern_with_curvature_along_their_steps(base):
    checkpoints(base)
    plan = parse(HEAD + ELSEWHERE, base=base)
    assert [row.name for row in plan.variants] == [
        "a alpha=1",
        "a alpha=2",
        "b alpha=1",
        "b alpha=2",
    ]
    assert all(list(r.trail) == [0, 5, 20] for r in plan.runs)
    assert all(r.weights.endswith("_0020.pt") for r in plan.runs)
    done = run(plan, base / "out", HERE_ONLY)
    assert not done.failed
    place = done.folder
    ds = results.load(place.results / "training_curvature.nc")
    assert ds.epoch.values.tolist() == [0, 5, 20]
    assert np.isfinite(ds.eigenvalue).all()
    assert {part["epoch_is"] for part in results.provenance(ds)["runs"]} == {"step"}
    assert (place.results / "trajectory.nc").exists()
    assert not (place.results / "perturbation.nc").exists()  # nobody knows what they perturbed
    assert results.load(place.results / "trainings.nc").status.values.tolist() == ["elsewhere"] * 8
    text = report.write(place, formats=()).with_suffix(".md").read_text(encoding="utf-8")
    assert "no recipe is known" in text
    assert "perturbation: not measured" not in text


def test_how_weights_from_elsewhere_were_trained_is_not_taken_from_our_table(base):
    """Their learning rate is not [training]'s: no run of ours is their partner by it."""
    checkpoints(base, steps=(1,))
    text = """
    [variants.a]
    recipe = "none"
    [[grid]]
    variant = ["sgd"]
    lr = [0.05, 0.1]
    [[grid]]
    variant = ["a"]
    weights = "ckpt/{variant}_1_{seed:02d}_0001.pt"
    """
    rows = {row.name: row.axes for row in parse(HEAD + text, base=base).variants}
    assert rows == {"a": {}, "sgd lr=0.05": {"lr": 0.05}, "sgd lr=0.1": {"lr": 0.1}}


def test_another_file_of_an_earlier_step_makes_another_run(base):
    checkpoints(base)
    before = [r.run_id for r in parse(HEAD + ELSEWHERE, base=base).runs]
    (base / "ckpt" / "a_1_00_0005.pt").write_bytes((base / "ckpt" / "a_1_01_0005.pt").read_bytes())
    after = [r.run_id for r in parse(HEAD + ELSEWHERE, base=base).runs]
    assert [x == y for x, y in zip(before, after, strict=True)] == [False] + [True] * 7


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("ckpt/{who}.pt", "cannot be filled in .KeyError: 'who'.. Possible: .variant., .seed."),
        ("ckpt/{variant}_{seed}.pt", "weights file 'ckpt/a_0.pt' does not exist"),
        (
            "ckpt/{variant}_{alpha}_{seed:02d}_{step}.txt",
            "no file is called .* with a whole",
        ),
        ("ckpt/{variant}_{alpha}_{seed:02d}_0005.pt", "needs weights of several steps"),
    ],
)
def test_patterns_that_lead_nowhere_are_refused_when_the_file_is_read(base, pattern, message):
    checkpoints(base)
    text = ELSEWHERE.replace("ckpt/{variant}_{alpha}_{seed:02d}_{step:04d}.pt", pattern)
    with pytest.raises(LandscapeError, match=message):
        parse(HEAD + text, base=base)
