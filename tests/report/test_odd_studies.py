"""Studies that are odd in one way: their sentences are known, and carried by numbers."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from benchmarks import planted_rough as rough
from benchmarks.sentences import printed
from landscape.report.evidence import table
from landscape.report.family import Family
from landscape.report.findings import answer
from landscape.report.study import StudyResults
from landscape.storage import StudyFolder


@dataclass(frozen=True)
class Model:
    """A variant: its recipe, the expected values of its runs, and how far these scatter."""

    name: str
    recipe: str = "sam"
    epochs: int = 20
    seeds: tuple[int, ...] | None = None  # None: all
    measured: tuple[str, ...] = ("generalization", "top_eigenvalues", "hessian_trace", "sharpness")
    outcome: float = 0.85  # the metric
    loss: float = 0.3
    flat: float = 1.0
    noise: float = 0.05


SGD = Model("sgd", "sgd")


@dataclass(frozen=True)
class Odd:
    """A study, what its headline begins with, and what stands and does not stand on its page."""

    models: tuple[Model, ...]
    head: str
    says: tuple[str, ...] = ()
    never: tuple[str, ...] = ()
    metric: str = "test_accuracy"
    seeds: int = 5
    examples: int = 300
    references: tuple[str, ...] = ("sgd",)
    declared: dict = field(default_factory=dict)

    def study(self):
        rng = np.random.default_rng(0)
        rows = tuple(rough.Row(m.name, m.recipe, m.name, {}, False) for m in self.models)
        tables, ended = {}, []
        for seed in range(self.seeds):
            difficulty = rng.random(self.examples)
            for m in self.models:
                key = (m.name, "a", seed)
                alive = m.seeds is None or seed in m.seeds
                ended.append((*key, "trained" if alive else "diverged"))
                seen = self._run(m, rng, difficulty) if alive else {}
                for name, values in seen.items():
                    tables.setdefault(name, []).append({"key": key, **values})
        data = {name: rough.dataset(name, parts, rows) for name, parts in tables.items()}
        resolved = {
            "name": "odd",
            "variants": {
                m.name: {"label": m.name, "recipe": m.recipe, "training": {"epochs": m.epochs}}
                for m in self.models
            },
            "settings": {"a": {"title": "a"}},
            "comparisons": {"metric": self.metric, "setting": "a",
                            "references": list(self.references)} | self.declared,
        }  # fmt: skip
        return StudyResults(StudyFolder(Path()), resolved, data, rough.trainings(ended, rows))

    def _run(self, m, rng, difficulty):
        near = lambda x: x * math.exp(m.noise * rng.normal())  # noqa: E731
        seen = {"train_loss": near(m.loss), "train_accuracy": 0.9}
        if self.metric == "test_accuracy":
            right = np.where(rng.random(self.examples) < 0.6, difficulty, rng.random(self.examples))
            right = right > near(1 - m.outcome)
            seen |= {"test_accuracy": right.mean(), "test_correct": right}
        else:
            seen[self.metric] = near(m.outcome)
        flat, grid = near(m.flat), np.array(rough.RADII) ** 1.8
        made = {
            "generalization": seen,
            "top_eigenvalues": {"eigenvalue": flat * np.array([10.0, 6.0]),
                                "residual_norm": np.full(2, 1e-3), "converged": np.ones(2, bool)},
            "hessian_trace": {"trace": near(100 * m.flat)},
            "sharpness": {"gaussian": near(m.flat) * grid, "worst_case": near(10 * m.flat) * grid},
        }  # fmt: skip
        return {name: values for name, values in made.items() if name in m.measured}


NO_ACCURACY = ("top_eigenvalues", "hessian_trace", "sharpness")
NO = "No variant is resolved to have a higher test accuracy than sgd in a"
ODD = {
    "one variant beside the reference": Odd(
        (SGD, Model("sam", outcome=0.95)), "sam has a higher test accuracy than sgd in a;"
    ),
    "two, both better": Odd(
        (SGD, Model("sam", outcome=0.95), Model("asam", "asam", outcome=0.95)),
        "Both variants have a higher test accuracy than sgd in a;",
    ),
    "all worse": Odd(
        (Model("sgd", "sgd", outcome=0.95), Model("sam"), Model("asam", "asam")),
        f"{NO}, and 2 have a lower test accuracy;", never=("higher test accuracy: ",),
    ),
    "the one worse": Odd(
        (Model("sgd", "sgd", outcome=0.95), Model("sam")),
        "sam has a lower test accuracy than sgd in a;",
    ),
    "all others diverged": Odd(
        (SGD, Model("sam", seeds=())),
        "1 variant measured in a: there is nothing to compare it with, as no training of sam went "
        "well.",
    ),
    "every run the same": Odd(
        (Model("sgd", "sgd", noise=0), Model("sam", noise=0)),
        "No variant is resolved to have a lower test loss than sgd in a; whether flatness matters "
        "cannot be asked of fewer than two variants.",
        says=("sam has every value of sgd", "No interval, as all seeds gave the same value: test"),
        metric="test_loss",
    ),
    "controls alone": Odd(
        (SGD, Model("mask", "random_mask", outcome=0.93), Model("early", "sgd", 5, outcome=0.93)),
        "All that is compared with sgd in a are controls; whether flatness matters cannot",
        says=("Controls, not counted, higher test accuracy: ",), never=("No variant is",),
    ),
    "no better than a mask": Odd(
        (SGD, Model("mask", "random_mask", outcome=0.93), Model("zsharp", "zsharp", outcome=0.93)),
        "zsharp has a higher test accuracy than sgd in a, but it is not resolved to do better than "
        "a random mask;",
    ),
    "at the ceiling": Odd(
        (Model("sgd", "sgd", outcome=1.0), Model("sam", outcome=1.0)),
        f"{NO} (the smallest difference that would have been seen: an error a hundredth as large "
        "or less);",
        says=("standard error of 0.2 points", "No interval, as all seeds gave the same value"),
        never=("standard error of 0.0 points",),
    ),
    "one test example": Odd(
        (SGD, Model("sam")), NO, says=("The test set has 1 example;",), never=("of 0.0 points",),
        examples=1,
    ),
    "losses below zero": Odd(
        (Model("sgd", "sgd", outcome=-1.2), Model("sam", outcome=-1.5)),
        "sam has a lower test loss than sgd in a;",
        says=("Nothing is called as good as another: test loss is not positive in every run",),
        never=("lies within 0 nats",), metric="test_loss",
    ),
    "a gap": Odd(
        (Model("sgd", "sgd", outcome=0.05, noise=1), Model("sam", outcome=0.05, noise=1)),
        "No variant is resolved to have a lower gap in accuracy than sgd in a (the smallest "
        "difference that would have been seen: a difference of ",
        says=("lies within 1 point (the default)",), metric="accuracy_gap",
    ),
    "negative traces": Odd(
        (SGD, Model("sam", outcome=0.95, flat=-1.0)), "sam has a higher test accuracy",
        says=("Ratios to sgd (of λ₁, Hessian trace, Gaussian sharpness and worst-case sharpness "
              "the interval of differences) with",),
    ),
    "one without accuracy": Odd(
        (SGD, Model("sam", measured=NO_ACCURACY), Model("asam", "asam", outcome=0.95)),
        "1 of 2 variants has a higher test accuracy", says=("sam (–; no seed in common)",),
    ),
    "a reference without accuracy": Odd(
        (Model("sgd", "sgd", measured=NO_ACCURACY), Model("sam")),
        "No difference to sgd in a can be tested.", never=("Seen, and not to be told",),
    ),
    "one variant that diverged": Odd(
        (SGD, Model("sam", seeds=()), Model("asam", "asam", outcome=0.95)),
        "asam has a higher test accuracy", says=("sam 0 of 5 seeds, 5 diverged",),
    ),
    "thirty seeds": Odd(
        (SGD, Model("sam", outcome=0.9)), "sam has a higher test accuracy", seeds=30
    ),
    "forty variants": Odd(
        (SGD, *(Model(f"v{i}") for i in range(40))), NO, never=("supported", "contradicted"),
        seeds=3,
    ),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Mean of empty slice", "ignore:invalid value encountered")
@pytest.mark.parametrize("name", ODD)
def test_what_an_odd_study_says_is_carried_by_its_numbers(name):
    odd = ODD[name]
    family = Family.of(odd.study())
    said = answer(family)
    assert said.headline.startswith(odd.head)
    notes = table(family, "a").notes
    reasons = [reason for one in said.verdicts for reason in (one.word, *one.reasons)]
    page = "\n".join(
        [said.headline, *(f"{f.lead} {f.text}" for f in said.findings), *notes, *reasons]
    )
    assert all(text in page for text in odd.says)
    assert not any(text in page for text in odd.never)
    # The grammar refuses a sentence that it does not know, and its claims are the page's.
    claims = {claim for one in family.made.values() for claim in one.claims} | set(said.claims)
    assert {claim for claim in printed(family, said) if claim.kind == "better"} <= claims


def test_too_few_variants_are_told_how_many_more_decide():
    """Dose and response, given loss and radius, take seven variants that perturb."""
    said = answer(Family.of(ODD["two, both better"].study()))
    flat = next(one for one in said.verdicts if one.key == "flatter_lambda1")
    assert "3 variants: too few for dose and response" in flat.reasons
    assert "4 more variants (fsam, gsam, zsharp and sam_on;" in flat.experiment.what
