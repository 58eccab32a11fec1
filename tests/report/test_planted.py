"""Pages of studies whose truth is planted: what they claim, and what cannot change it.

`python -m benchmarks.planted` simulates a thousand studies of every world; here are few of each, so
the bounds are wide: what a rate at its limit exceeds once in a thousand times.
"""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy import stats as laws

from benchmarks import planted_hard as hard
from benchmarks import planted_rough as rough
from benchmarks import sentences as sentences_module
from benchmarks.planted import WORLDS, Read, make_study, plant, read_page, simulate
from benchmarks.sentences import asserted, printed
from landscape import metrics
from landscape.plot import compared as compared_module
from landscape.report import rules
from landscape.report.evidence import table
from landscape.report.family import Family
from landscape.report.findings import answer
from landscape.report.rules import SUPPORTED, weigh
from landscape.stats import Association, simultaneous

LIMIT = 0.064


def at_most(number, rate=LIMIT):
    """Counts above this are seen once in a thousand times where the rate is at its limit."""
    return laws.binom.ppf(0.999, number, rate) / number


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "number"), [("null", 30), ("null_uneven", 15), ("null_ten_seeds", 15)]
)
def test_pages_of_noise_say_nothing_false(name, number):
    assert simulate(WORLDS[name], number)["false anywhere"] <= at_most(number)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["confounded_by_radius", "confounded_by_loss", "unrelated"])
def test_flatness_that_does_nothing_is_not_supported(name):
    shares = simulate(WORLDS[name], 12)
    assert shares.get("flatness supported by some measure", 0.0) <= at_most(12)


def test_flatness_that_is_the_cause_is_found():
    """At 0.6 or more, fewer than a quarter of twenty is seen once in two thousand times."""
    shares = simulate(WORLDS["flatness"], 16)
    assert shares["λ₁ supported"] >= 0.25
    assert shares["false anywhere"] <= at_most(16)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "number"), [("null", 25), ("flatter_and_no_better", 10), ("reverse", 10)]
)
def test_rough_studies_say_nothing_false(name, number):
    """Heavy tails, unequal seeds, missing runs, settings, axes; claims and printed sentences."""
    shares = rough.simulate(rough.WORLDS[name], number)
    assert shares["false anywhere"] <= at_most(number)
    assert shares.get("flatness supported by some measure", 0.0) <= at_most(number)


def test_sentences_say_what_their_claims_say():
    """What the words assert is what is asserted beside them, both ways, over rough studies."""
    for index in range(6):
        rng = np.random.default_rng([77, index])
        truth = rough.plant(rough.WORLDS["flatness_rough"], rng)
        family = Family.of(rough.make_study(truth, rng))
        said = answer(family)
        words = set(printed(family, said))
        # The overview shows every difference to a reference, also where no sentence does.
        claims = {c for one in family.made.values() for c in one.claims} | set(said.claims)
        assert {c for c in words if c.kind == "better"} <= claims
        assert {c for one in said.findings for c in one.claims if c.kind == "better"} <= words
        judged = ("supported", "confounded", "contradicted", "associated")
        assert {c for c in words if c.kind in judged} <= claims


@pytest.mark.slow
@pytest.mark.parametrize("name", list(WORLDS))
def test_every_world_at_length(name):
    shares = simulate(WORLDS[name], 400)
    assert shares["false anywhere"] <= at_most(400)
    if WORLDS[name].drives != "flatness":
        assert shares.get("flatness supported by some measure", 0.0) <= at_most(400)


@pytest.fixture(scope="module")
def study():
    rng = np.random.default_rng(3)
    return make_study(plant(WORLDS["flatness"], rng), rng)


def test_order_and_names_of_variants_change_nothing(study):
    """Runs and seeds in another order, both called otherwise: the same words and numbers."""
    rng = np.random.default_rng(1)
    names = list(study.resolved["variants"])
    new = dict(zip(names, [f"v{i}" for i in rng.permutation(len(names))], strict=True))
    seeds = rng.permutation(10)
    data = {}
    for key, ds in study.data.items():
        ds = ds.isel(run=rng.permutation(ds.sizes["run"]))
        called = np.array([new[str(v)] for v in ds.variant.values], dtype=object)
        data[key] = ds.assign_coords(
            variant=("run", called), seed=("run", 100 + seeds[ds.seed.values])
        )
    order = rng.permutation(names)
    compared = study.comparisons | {"references": [new[r] for r in study.references("default")]}
    resolved = study.resolved | {
        "variants": {new[n]: study.resolved["variants"][n] for n in order},
        "comparisons": compared,
    }
    other = replace(study, resolved=resolved, data=data)
    for a, b in zip(
        weigh(Family.of(study), "default"), weigh(Family.of(other), "default"), strict=True
    ):
        assert (a.hypothesis.key, a.word, a.failing) == (b.hypothesis.key, b.word, b.failing)
        assert {new[r] for r in a.effects.agree} == set(b.effects.agree)
        assert a.plain.p == pytest.approx(b.plain.p, rel=1e-9)
        assert a.given.p == pytest.approx(b.given.p, rel=1e-9)
    pairs = ("better", "outside", "within")
    there, here = (set(answer(Family.of(one)).claims) for one in (study, other))
    assert here == {
        replace(c, subject=new[c.subject], other=new[c.other]) if c.kind in pairs else c
        for c in there
    }


def mirrored(claim, key):
    """The claim with the other direction of the quantity `key`."""
    if claim.quantity != key or claim.kind not in ("better", "outside"):
        return claim
    return replace(claim, subject=claim.other, other=claim.subject)


@pytest.mark.parametrize("key", ["test_loss", "train_loss"])
def test_negating_a_metric_mirrors_the_page(study, monkeypatch, key):
    """With the other direction every better is a worse: in decisions, claims, and every sentence.

    Same p and mirrored intervals; what agreed with a hypothesis opposes it; and the sentences, read
    back from their words, say of each pair the reverse.
    """
    own = metrics.METRICS[key]
    turned = replace(own, better=-own.better, comparative=own.opposite, opposite=own.comparative)
    compared = {"metric": key, "setting": "default", "references": ["sgd", "sam"]}
    lost = replace(study, resolved=study.resolved | {"comparisons": compared})
    there = Family.of(lost)
    said, weighed = answer(there), weigh(there, "default")
    sentences = {c for c in printed(there, said) if c.kind in ("better", "within")}
    known = dict(metrics.METRICS)
    known[key] = turned
    for module in (metrics, rules, sentences_module):
        monkeypatch.setattr(module, "METRICS", known)
    back = Family.of(lost)
    assert any(one.sign for one in there.made.values() if one.metric.key == key)
    for place, one in there.made.items():
        other = back.made[place]
        if place[-1] != key:
            assert other.decision == one.decision
            continue
        assert other.sign == -one.sign
        assert other.decision.p == pytest.approx(one.decision.p, rel=1e-9)
        ci = other.decision.interval
        assert (ci.low, ci.high) == pytest.approx(
            (-one.decision.interval.high, -one.decision.interval.low), rel=1e-9
        )
    kinds = ("better", "outside", "within")
    claims = {mirrored(c, key) for c in said.claims if c.kind in kinds}
    turned_claims = {c for c in answer(back).claims if c.kind in kinds}
    # A margin is a share of the smaller or of the larger one, so that "outside" may differ.
    assert {c for c in claims if c.kind == "better"} == {
        c for c in turned_claims if c.kind == "better"
    }
    read = {c for c in printed(back, answer(back)) if c.kind in ("better", "within")}
    assert {mirrored(c, key) for c in sentences if c.kind == "better"} == {
        c for c in read if c.kind == "better"
    }
    for one, other in zip(weighed, weigh(back, "default"), strict=True):
        assert other.effects.agree == one.effects.oppose
        assert other.effects.oppose == one.effects.agree
        assert other.plain.r == pytest.approx(-one.plain.r, rel=1e-9, nan_ok=True)


def test_a_loss_as_metric_does_not_turn_the_page_round(study):
    """The variant of the largest test loss is not called better, in words, table or claims."""
    compared = {"metric": "test_loss", "setting": "default", "references": ["sgd"]}
    lost = replace(study, resolved=study.resolved | {"comparisons": compared})
    family = Family.of(lost)
    losses = {row: np.mean(values.plain(row)) for values in [family.values["default", "test_loss"]]
              for row in values.raw}  # fmt: skip
    for one in family.to("default", "sgd"):
        if one.sign:
            assert (one.sign > 0) == (losses[one.a] < losses["sgd"])
            assert (one.plain < 0) == (one.sign > 0)
    said = answer(family)
    assert "test loss than sgd" in said.headline
    assert "lower test loss" in said.headline or "No variant" in said.headline
    shown = table(family, "default")
    assert "Test loss" in [cell.main for cell in shown.head]
    ordered = [losses[row[0].main] for row in shown.rows]
    assert ordered == sorted(ordered) or np.all(np.diff(ordered) > -0.02)


def test_without_held_out_data_nothing_is_said_on_generalization(study):
    seen = study.data["generalization"].drop_vars(
        [name for name in study.data["generalization"].data_vars if name.startswith("test")]
    )
    part = replace(study, data=study.data | {"generalization": seen})
    assert part.metric == "train_accuracy"
    family = Family.of(part)
    said = answer(family)
    assert "training accuracy" in said.headline
    assert "Nothing is said on generalization" in said.headline
    assert not any("generaliz" in finding.lead + finding.text for finding in said.findings)
    # Nothing is explained either: what fits the training data better is no gain.
    assert said.verdicts == ()


def test_unequal_fits_are_told_with_their_numbers(study):
    """From the lowest to the highest mean training loss, and how many end where SGD does."""
    family = Family.of(study)
    losses = family.values["default", "train_loss"]
    ends = {row: np.exp(np.mean(np.log(losses.plain(row)))) for row in losses.raw
            if row not in ("random_mask", "sgd_early")}  # fmt: skip
    (told,) = [f for f in answer(family).findings if f.lead.startswith("Training loss at the end")]
    low, high = min(ends, key=ends.get), max(ends, key=ends.get)
    assert f"({low})" in told.lead
    assert f"({high}) nats." in told.lead
    near = [r for r in ends if r != "sgd"
            and abs(ends[r] - ends["sgd"]) <= 0.15 * max(ends[r], ends["sgd"])]  # fmt: skip
    assert told.text.startswith(f"{len(near)} of {len(ends) - 1} variants end within 15 % of sgd's")
    assert told.claims == ()


def test_controls_are_not_variants(study):
    said = answer(Family.of(study))
    counted = {c.subject for c in said.headline_claims}
    assert not counted & {"random_mask", "sgd_early"}
    for one in weigh(Family.of(study), "default"):
        # SGD is a variant, and has no radius.
        assert one.plain.n == (9 if one.hypothesis.quantity == "rho_eff" else 10)


def doubled(study, kept):
    """The study of some variants, each under two names."""
    data = {}
    for key, ds in study.data.items():
        part = ds.isel(run=np.isin(ds.variant.values.astype(str), kept))
        names = np.array([f"{v}_again" for v in part.variant.values], object)
        ids = np.array([f"{r}-again" for r in part.run.values], object)
        again = part.assign_coords(variant=("run", names), label=("run", names), run=("run", ids))
        data[key] = xr.concat([part, again], "run")
    variants = {name: study.resolved["variants"][name] for name in kept}
    variants |= {f"{n}_again": v | {"label": f"{n}_again"} for n, v in variants.items()}
    return replace(study, data=data, resolved=study.resolved | {"variants": variants})


def test_one_model_under_two_names_is_one_point_and_one_effect(study):
    """What six variants show, twelve that are these six twice do not show better."""
    kept = ["sgd", "sam", "asam", "fsam", "zsharp", "sam_on"]
    alone = replace(study, data={
        key: ds.isel(run=np.isin(ds.variant.values.astype(str), kept))
        for key, ds in study.data.items()
    })  # fmt: skip
    both = doubled(study, kept)
    once, twice = (weigh(Family.of(one), "default") for one in (alone, both))
    for one, other in zip(once, twice, strict=True):
        assert other.plain.n == one.plain.n <= 6
        assert other.plain.r == pytest.approx(one.plain.r, rel=1e-9)
        assert other.effects.total <= len(kept)
        assert not any(row.endswith("_again") for row in other.effects.agree + other.effects.oppose)
    told = [f.lead for f in answer(Family.of(both)).findings if f.lead.startswith("The same num")]
    assert len(told) == 1
    assert all(f"{name}_again has every value of {name}" in told[0] for name in kept)
    asserted(both)


def test_equal_accuracies_make_no_two_variants_one(study):
    """Shares of few examples are equal by chance: a double needs another number in common."""
    accuracy = study.data["generalization"][["test_accuracy"]]
    equal = accuracy.assign(test_accuracy=("run", np.full(accuracy.sizes["run"], 0.9)))
    family = Family.of(replace(study, data={"generalization": equal}))
    assert family.repeated("default") == {}


def test_sgd_is_a_control_only_where_it_stopped_earlier(study):
    """SGD with more decay, for as long or for longer, is a variant, and nobody's early stopping."""
    assert study.is_control("sgd_early", "default")
    variants = study.resolved["variants"]
    for epochs in (20, 40, None):
        own = {} if epochs is None else {"epochs": epochs}
        other = variants | {"sgd_early": variants["sgd_early"] | {"training": own}}
        long = replace(study, resolved=study.resolved | {"variants": other})
        assert not long.is_control("sgd_early", "default")
        said = answer(Family.of(long))
        assert not any("a control: " in finding.text for finding in said.findings)
        early = [one for one in said.verdicts if one.key == "early_stopping"]
        assert all("there is no control (SGD stopped early)" in one.reasons for one in early)
    # Neither where SAM is the only reference, and SGD trained as long.
    compared = study.comparisons | {"references": ["sam"]}
    assert not replace(study, resolved=study.resolved | {"comparisons": compared}).is_control(
        "sgd", "default"
    )


@pytest.mark.parametrize("r", [-0.2, -0.9, np.nan])
def test_one_variant_decides_nothing(r):
    """One variant that is sharper and better is odd, whatever the sign of a correlation."""
    plain, given = Association(r, 1.0, 8, 6), Association(np.nan, np.nan, 8, 4)
    for oppose, word in ((("a",), rules.UNRESOLVED), (("a", "b"), rules.CONTRADICTED)):
        effects = rules.Effects((), oppose, (), (), (), 0)
        assert rules._word(effects, plain, given, "", ("not shown",)) == word
        # Nor does one that agrees make a prediction compatible.
        agree = rules.Effects(oppose, (), (), (), (), 0)
        fits = rules.COMPATIBLE if len(oppose) > 1 else rules.UNRESOLVED
        assert rules._word(agree, plain, given, "", ("not shown",)) == fits
        flat = rules.Effects((), (), (), (), oppose, len(oppose))
        assert rules._word(flat, plain, given, "", ("not shown",)) == word


@pytest.mark.parametrize(("wrong", "equal"), [(0, False), (3, False), (150, True)])
def test_models_that_are_right_about_the_same_examples_need_not_be_so_about_others(
    study, wrong, equal
):
    """No error of 500 twice is not the same error; 150 that are the same ones nearly is."""
    table_ = study.data["generalization"]
    right = np.arange(table_.sizes["example"]) >= wrong
    correct = np.tile(right, (table_.sizes["run"], 1))
    alike = table_.assign(
        test_correct=(("run", "example"), correct), test_accuracy=("run", correct.mean(1))
    )
    family = Family.of(replace(study, data=study.data | {"generalization": alike}))
    made = [one for one in family.made.values() if one.metric.key == "test_accuracy"]
    assert made
    assert {one.decision.equivalent for one in made} == {equal}
    # Of how many examples a share is, nobody knows: it is not told to be equal either.
    bare = alike.drop_vars("test_correct")
    family = Family.of(replace(study, data=study.data | {"generalization": bare}))
    made = [one for one in family.made.values() if one.metric.key == "test_accuracy"]
    assert not any(one.decision.equivalent for one in made)


def test_a_page_is_read_the_same_twice(study):
    rng = np.random.default_rng(3)
    truth = plant(WORLDS["flatness"], rng)
    first, second = (read_page(make_study(truth, np.random.default_rng(8)), truth) for _ in (0, 1))
    assert isinstance(first, Read)
    assert first == second
    assert SUPPORTED in {*first.words.values(), SUPPORTED}


@pytest.mark.parametrize("key", ["test_loss", "test_accuracy"])
def test_differences_carry_the_choice_of_test_examples(key):
    """What an example adds is the derivative of the scale by its weight; intervals widen by it."""
    rng = np.random.default_rng(2)
    name = compared_module.PER_EXAMPLE[key]
    # What is hard for one variant is so in each of its seeds.
    hard = rng.exponential(size=(2, 1, 30)) + 0.1 * rng.random((2, 4, 30))
    drawn = hard if key == "test_loss" else hard < 1
    rows = {
        row: xr.Dataset(
            {name: (("run", "example"), values), key: ("run", values.mean(1))},
            coords={"seed": ("run", np.arange(4))},
        )
        for row, values in zip("ab", drawn, strict=True)
    }
    metric = metrics.METRICS[key]
    with_them, without = (compared_module.compared(metric, rows, e) for e in (rows, None))
    h = 1e-6
    for example in (0, 7):
        weights = np.ones(30)
        weights[example] += h
        moved = [metric.scaled(np.average(drawn[0, 1], weights=w / w.sum()), examples=30)
                 for w in (weights, np.ones(30))]  # fmt: skip
        found = with_them.influence["a"][1][example]
        assert (moved[0] - moved[1]) / h * 30 == pytest.approx(found, rel=1e-4)
    wide, narrow = (
        simultaneous({0: v.contrast("a", "b", key)})[0].interval for v in (with_them, without)
    )
    assert wide.high - wide.low > narrow.high - narrow.low


@pytest.mark.thorough
@pytest.mark.parametrize("defect", list(hard.DEFECTS))
def test_a_page_of_a_study_with_a_defect_is_written_and_true(defect):
    """Every kind of defect, in each world: each sentence is known, and rarely false."""
    for world in hard.WORLDS:
        shares = hard.simulate(defect, world, 2)
        assert shares["false anywhere"] <= 0.5
        if world != "flatness":
            assert shares.get("flatness supported", 0.0) == 0.0


def test_one_outlying_run_makes_no_association_of_variants():
    """A run that is sharp and bad at once: without the rule 6 of 40 such pages are wrong."""
    shares = hard.simulate("outlier_seed_three", "null", 25)
    assert shares["false anywhere"] <= at_most(25)
