"""The report says what the numbers say, on made-up studies whose truth is known."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from landscape import report, results, stats, storage
from landscape.errors import LandscapeError
from landscape.metrics import METRICS
from landscape.report import axes, words
from landscape.report.crosscheck import crosscheck
from landscape.report.evidence import table
from landscape.report.family import Family
from landscape.report.findings import answer
from landscape.report.fitted import fitted
from landscape.report.rules import COMPATIBLE, CONTRADICTED, SUPPORTED, UNRESOLVED
from landscape.report.study import StudyResults
from tests.fixtures_results import STORY, write_study

FEW = ("sgd", "sam", "zsharp", "random_mask")
# Enough for the words and the tables; the figures have their own tests.
DRAWN = (
    "spectral_density", "loss_slice", "loss_slice_eval", "loss_plane", "gradient_zscores",
    "perturbation_history", "mask_overlap", "mask_persistence", "history",
)  # fmt: skip


def read(folder):
    return StudyResults.read(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return read(write_study(tmp_path_factory.mktemp("whole")))


@pytest.fixture(scope="module")
def decided(whole):
    return Family.of(whole)


def test_the_primary_family_is_what_was_declared(decided):
    primary = {(one.a, one.b) for one in decided.made.values() if one.primary}
    # 11 variants against SGD, 10 more against SAM (SAM against SGD is one comparison), and those
    # against the two controls that are not there yet: 9 against the random mask, 8 against early.
    assert len([pair for pair in primary if pair[1] in ("sgd", "sam")]) == 21
    assert all(one.setting == "noisy" for one in decided.made.values() if one.primary)
    assert all(one.metric.key == "test_accuracy" for one in decided.made.values() if one.primary)
    kinds = {one.metric.key for one in decided.made.values()}
    assert {"lambda1", "trace", "gaussian", "worst", "rho_eff", "train_loss"} <= kinds


def test_everything_that_is_claimed_was_decided_in_one_family(whole, decided):
    """No claim of page or table about two variants stands outside of the family."""
    said = answer(decided)
    tables = [table(decided, setting).claims for setting in whole.settings]
    pairs = [c for c in (*said.claims, *(c for t in tables for c in t)) if c.other]
    assert len(pairs) > 50
    for claim in pairs:
        one = decided.get(claim.setting, claim.subject, claim.other, claim.quantity)
        assert one is not None
        assert claim.kind == "within" or one.sign > 0


def test_a_comparison_turned_round_changes_its_sign(decided):
    there = decided.get("noisy", "sam", "sgd")
    back = decided.get("noisy", "sgd", "sam")
    assert back.decision.interval.estimate == -there.decision.interval.estimate
    assert back.decision.interval.low == -there.decision.interval.high
    assert (back.decision.p, back.plain) == (there.decision.p, -there.plain)
    assert (there.sign, back.sign) == (1, -1)
    assert decided.get("noisy", "sam", "nobody") is None


def test_the_answer_to_the_made_up_story(decided):
    found = answer(decided)
    # Nine variants: SGD is the reference, SGD stopped early and the random mask are controls.
    assert found.headline.startswith("All 9 variants have a higher test accuracy than SGD")
    leads = {(f.setting, f.lead) for f in found.findings}
    assert ("noisy", "All 9 variants have a higher test accuracy than SGD.") in leads
    clean = [lead for s, lead in leads if s == "clean"]
    assert "No variant is resolved to have a higher test accuracy than SGD." in clean
    assert any("does not do as well as SAM and does better" in lead for _, lead in leads)
    words_of = {(v.setting, v.key): v.word for v in found.verdicts}
    # Nine variants whose training loss goes with their curvature: not to be told apart.
    assert words_of["noisy", "flatter_lambda1"] == "confounded"
    assert words_of["clean", "flatter_lambda1"] == UNRESOLVED


def test_questions_are_answered_by_their_pairs_in_the_family(whole):
    asked = [
        {"asked": "Is it the mask?", "pairs": [["zsharp", "random_mask"], ["sam", "sgd"]]},
        {"asked": "Does it help?", "pairs": [["asam", "fsam"]]},
    ]
    declared = whole.comparisons | {"questions": asked}
    study = replace(whole, resolved=whole.resolved | {"comparisons": declared})
    family = Family.of(study)
    found = {f.lead: f for f in answer(family).findings}
    assert family.get("noisy", "asam", "fsam").primary
    for question in asked:
        for a, b in question["pairs"]:
            one = family.get("noisy", a, b)
            text = (
                f"{study.label('noisy', a)} − {study.label('noisy', b)}: "
                f"{words.plain_difference(one.metric, one.plain)}, "
                f"{words.effect(one.metric, one.decision)}, {words.p_value(one.decision.p)} (n = 5)"
            )
            assert text in found[question["asked"]].text


def test_of_several_random_masks_the_one_compared_with_is_named(whole):
    study = replace(whole)
    study.__dict__["recipes"] = whole.recipes | {"asam": "random_mask"}
    first = next(v for v in study.variants("noisy") if study.recipes[v.id] == "random_mask")
    found = answer(Family.of(study))
    leads = [f.lead for f in found.findings if "told from" in f.lead]
    assert any(f"told from a random mask ({first.label})." in lead for lead in leads)


def test_without_accuracy_nothing_is_said_about_random_masks(tmp_path):
    study = read(write_study(tmp_path, noisy=FEW, clean=(), without=(*DRAWN, "generalization")))
    found = answer(Family.of(study))
    assert not [f for f in found.findings if "random mask" in f.lead]


def told(tmp_path, noisy=tuple(STORY), **changes):
    story = {
        name: replace(one, **changes.get(name, changes.get("every", {})))
        for name, one in STORY.items()
    }
    study = read(write_study(tmp_path, story=story, noisy=noisy, clean=(), without=DRAWN))
    return answer(Family.of(study))


def a_story_of_flatness():
    """Accuracy follows curvature; training loss and radius are shuffled."""
    rank = {name: i for i, name in enumerate(sorted(STORY, key=lambda n: STORY[n].accuracy))}
    mixed = np.random.default_rng(4).permutation(len(rank))
    radii = np.random.default_rng(6).permutation(len(rank))
    return {
        name: {
            "accuracy": 0.86 + 0.008 * i,
            "curvature": 8.0 * 0.75**i,
            "train_loss": 0.1 + 0.02 * float(mixed[i]),
            "rho": 0.0 if STORY[name].recipe == "sgd" else 0.2 + 0.1 * float(radii[i]),
        }
        for name, i in rank.items()
    }


def test_flat_and_better_beyond_training_loss_and_radius_is_supported(tmp_path):
    found = told(tmp_path, **a_story_of_flatness())
    flat = [v for v in found.verdicts if v.key.startswith("flatter_")]
    assert {v.word for v in flat} == {SUPPORTED}
    assert "“better because flatter” is supported, whatever the measure (4)" in found.headline
    assert all(v.experiment is None for v in flat)


def test_without_controls_nothing_is_supported(tmp_path):
    variants = tuple(n for n in STORY if n not in ("random_mask", "sgd_early"))
    found = told(tmp_path, noisy=variants, **a_story_of_flatness())
    flat = [v for v in found.verdicts if v.key.startswith("flatter_")]
    assert {v.word for v in flat} == {COMPATIBLE}
    assert all("there is no control" in " ".join(v.reasons) for v in flat)
    assert all("as controls" in v.experiment.what for v in flat)


def test_better_but_sharper_is_contradicted(tmp_path):
    found = told(tmp_path, noisy=FEW, sam={"curvature": 20.0}, zsharp={"curvature": 20.0})
    by_key = {v.key: v for v in found.verdicts}
    assert by_key["flatter_lambda1"].word == CONTRADICTED
    assert "the other way round" in " ".join(by_key["flatter_lambda1"].reasons)
    assert "“better because flatter” is contradicted" in found.headline


def test_one_counterexample_does_not_contradict(tmp_path):
    found = told(tmp_path, lagnp={"curvature": 20.0})
    word = next(v.word for v in found.verdicts if v.key == "flatter_lambda1")
    assert word != CONTRADICTED


def test_no_difference_at_all_is_not_resolved(tmp_path):
    found = told(tmp_path, noisy=FEW, every={"accuracy": 0.9, "curvature": 3.0})
    start = "No variant is resolved to have a higher test accuracy than SGD with 20 % label noise"
    assert found.headline.startswith(start)
    seen = r"\(the smallest difference that would have been seen: an error 0\.\d+ times as large\)"
    assert re.search(seen, found.headline)
    assert {v.word for v in found.verdicts} == {UNRESOLVED}


def test_one_seed_is_described_not_tested(tmp_path):
    study = read(write_study(tmp_path, noisy=FEW, clean=(), seeds=1, without=DRAWN))
    found = answer(Family.of(study))
    assert "One seed per variant cannot say which is better" in found.headline
    assert {v.word for v in found.verdicts} == {UNRESOLVED}
    assert found.claims == ()
    page = report.write(study.folder, formats=()).read_text()
    assert "One seed per variant: no interval and no test is possible." in page
    assert "no p" in page


def test_seeds_that_gave_one_value_have_no_interval_and_a_note_says_so(whole):
    ds = whole.data["generalization"]
    same = ds.test_accuracy.where(ds.variant != "sam", 0.9)
    study = replace(whole, data=whole.data | {"generalization": ds.assign(test_accuracy=same)})
    shown = table(Family.of(study), "noisy")
    cell = next(row[1] for row in shown.rows if row[0].main == "SAM")
    assert (cell.main, cell.note) == ("90.0", "")
    said = "No interval, as all seeds gave the same value: test accuracy of SAM."
    assert any(note.startswith(said) for note in shown.notes)
    assert not any(
        note.startswith("No interval") for note in table(Family.of(whole), "noisy").notes
    )


def test_one_variant_has_nothing_to_be_compared_with(tmp_path):
    study = read(write_study(tmp_path, noisy=("sam",), clean=(), seeds=2, without=DRAWN))
    found = answer(Family.of(study))
    assert "1 variant measured with 20 % label noise: there is nothing to compare" in found.headline
    assert found.verdicts == ()
    report.write(study.folder, formats=())


@pytest.mark.parametrize("kept", ["generalization", "top_eigenvalues", "crosscheck"])
def test_a_study_with_one_measurement_still_has_a_report(tmp_path, kept):
    from tests.fixtures_results import MAKERS

    folder = write_study(
        tmp_path, noisy=FEW, clean=(), seeds=2, without=tuple(n for n in MAKERS if n != kept)
    )
    page = report.write(folder, formats=()).read_text()
    assert "Not measured in this study:" in page
    if kept != "generalization":
        assert "no test accuracy was measured" in page


def test_models_trained_elsewhere_need_no_history(tmp_path):
    folder = write_study(tmp_path, noisy=("sgd", "zsharp"), clean=(), seeds=1, trained=False)
    resolved = storage.read_json(folder.resolved)
    for key in ("comparisons", "settings", "variants", "versions"):
        del resolved[key]
    storage.write_json(folder.resolved, resolved)
    page = report.write(folder, formats=()).read_text()
    assert "Training history" not in page
    assert "ZSharp" in page


def test_diverged_runs_and_gaps_are_named(tmp_path):
    folder = write_study(
        tmp_path,
        noisy=FEW,
        clean=(),
        seeds=3,
        without=DRAWN,
        diverged=(("noisy", "zsharp", 1),),
        absent=(("noisy", "sam", 2),),
    )
    study = read(folder)
    assert "Run sam-s2-nois0a1 has no results." in study.gaps
    assert any("not finite in zsharp-s1-nois0a1 (diverged)" in gap for gap in study.gaps)
    page = report.write(folder, formats=()).read_text()
    assert "gaps in" in re.sub(r"\s+", " ", page)
    assert "zsharp-s1-nois0a1" in page
    assert "NaN" not in (folder.root / "report.md").read_text()
    rows = table(Family.of(study), "noisy").rows
    zsharp = next(row for row in rows if row[0].main == "ZSharp")
    assert any("1 of 3 not finite" in cell.note for cell in zsharp)
    assert any("1 run failed: not decided" in cell.note for cell in zsharp)
    assert not any(cell.emphasis for cell in zsharp)


def test_a_measurement_missing_for_one_run_is_a_gap(tmp_path):
    folder = write_study(tmp_path, noisy=FEW, clean=(), seeds=2)
    path = folder.results / "hessian_trace.nc"
    ds = results.load(path)
    results.save(ds.isel(run=slice(1, None)), path)
    assert read(folder).gaps == ["hessian_trace: not measured for sgd-s0-nois0a1."]


def test_sgd_without_a_perturbation_is_no_gap(tmp_path):
    folder = write_study(tmp_path, noisy=FEW, clean=(), seeds=2, without=DRAWN[:5])
    for name in ("perturbation", "mask_persistence"):
        path = folder.results / f"{name}.nc"
        ds = results.load(path)
        results.save(ds.isel(run=np.flatnonzero(ds.variant.values != "sgd")), path)
    assert read(folder).gaps == []


def test_the_whole_study_has_no_gap(whole):
    assert whole.gaps == []
    assert whole.not_measured == []


def test_table_holds_the_numbers(whole, decided):
    found = table(decided, "noisy")
    heads = [cell.main for cell in found.head]
    assert heads[:4] == ["Variant", "Test accuracy", "Δ to SGD", "Δ to SAM"]
    assert "λ₁" in heads
    assert "nats, BatchNorm eval" in found.head[heads.index("λ₁")].note
    sam = next(row for row in found.rows if row[0].main == "SAM")
    accuracy = whole.values("generalization", "test_accuracy", "noisy")["sam"].test_accuracy
    assert sam[1].main == f"{100 * float(accuracy.mean()):.1f}"
    assert sam[2].emphasis == "better"
    assert "p " in sam[2].note
    primary, other = decided.size
    said = f"{primary} comparisons of test accuracy in the first setting and {other} others"
    assert not {one.metric.key for one in decided.made.values()} - set(METRICS)
    clean = table(decided, "clean")
    for notes in (found.notes, clean.notes):
        assert any(said in note for note in notes)
    notes = {row[0].main: row[0].note for row in clean.rows}
    assert notes.pop("Random mask") == "3 seeds, control"
    assert set(notes.values()) == {"3 seeds"}


def test_crosscheck_puts_like_beside_like(whole):
    rows = crosscheck(whole)
    assert len(rows) == 17
    assert rows[0].apart == "0.050 %"
    assert "26 probes" in rows[0].their_trace


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = write_study(
        tmp_path_factory.mktemp("page"), noisy=FEW[:3], clean=("sgd", "sam"), seeds=2
    )
    report.write(folder)
    return folder


@pytest.mark.thorough
def test_page_is_self_contained(written):
    page = written.report.read_text()
    outside = re.sub(r"<script>.*?</script>", "", page, flags=re.S)
    assert not re.findall(r"""(?:src|href)=["']?https?://""", outside)
    assert not re.findall(r"@import|url\(\s*['\"]?http", outside)
    assert page.count("Plotly.newPlot(") >= 1
    assert page.count("plotly.js v") <= 2
    assert len(page) < 10e6


def test_figures_are_written_in_both_formats_and_shown_in_markdown(written):
    stems = {path.stem for path in written.figures.glob("*.png")}
    assert stems == {path.stem for path in written.figures.glob("*.pdf")}
    assert {"headline-noisy", "headline-clean", "loss_plane-noisy"} <= stems
    text = (written.root / "report.md").read_text()
    linked = set(re.findall(r"figures/([\w-]+)\.png", text))
    assert linked == stems


def test_interactive_twins_share_one_library(tmp_path):
    folder = write_study(tmp_path, noisy=FEW[:2], clean=(), seeds=2, without=DRAWN)
    paths = report.write_figures(folder, report.FigureChoice(formats=("html",)))
    assert {path.suffix for path in paths} == {".html"}
    assert (folder.figures / "plotly.min.js").stat().st_size > 4e6
    assert all(path.stat().st_size < 200_000 for path in paths)
    with pytest.raises(
        LandscapeError, match="formats: 'tiff' asked; possible are pdf, png, svg, pgf, html, gif"
    ):
        report.write_figures(folder, report.FigureChoice(formats=("tiff",)))


def test_markdown_tables_are_whole(written):
    text = (written.root / "report.md").read_text()
    lines = text.splitlines()
    for index, line in enumerate(lines):
        if re.fullmatch(r"\|(---\|)+", line):
            columns = line.count("---")
            assert lines[index - 1].count("|") == columns + 1
            assert lines[index + 1].startswith("|")
            assert lines[index + 1].count("|") == columns + 1


def test_specs_in_the_page_are_valid_json(written):
    page = written.report.read_text()
    specs = re.findall(r'<script type="application/json">(.*?)</script>', page, flags=re.S)
    assert len(specs) > 15
    for spec in specs:
        assert set(json.loads(spec)) >= {"data", "layout"}


@pytest.mark.thorough
def test_the_same_study_gives_the_same_page(written):
    def body(page):
        return re.sub(r"Written by landscape on [^.]*\.", "", page)

    before = written.report.read_text()
    assert body(report.write(written, formats=()).read_text()) == body(before)


def test_labels_cannot_break_the_page(tmp_path):
    evil = {**STORY, "sam": replace(STORY["sam"], label="</script><b>SAM & co</b>")}
    folder = write_study(
        tmp_path, noisy=("sgd", "sam"), clean=(), seeds=2, story=evil, without=DRAWN[1:]
    )
    page = report.write(folder, formats=()).read_text()
    assert "</script><b>" not in page
    assert "&lt;/script&gt;" in page


def test_what_is_no_study_is_refused(tmp_path):
    with pytest.raises(LandscapeError, match=r"holds no resolved\.json, so it is not a study"):
        report.write(storage.StudyFolder(tmp_path))
    folder = write_study(tmp_path / "s", noisy=("sgd",), clean=(), seeds=1)
    for path in folder.results.glob("*.nc"):
        path.unlink()
    with pytest.raises(LandscapeError, match="has no results yet, so there is nothing to report"):
        report.write(folder)


def test_numbers_have_sensible_digits():
    said = [words.number(v) for v in (0.012345, 4.5678, 123.4, 12345.6, 1.2e-5, 0, np.nan)]
    assert said == ["0.0123", "4.57", "123", "1.2e4", "1.2e−5", "0", "–"]
    assert [words.points(v) for v in (0.0213, -0.004, -0.0001)] == ["+2.1", "−0.4", "0.0"]
    assert [words.p_value(p) for p in (1e-9, 0.0314, 0.31, np.nan)] == [
        "p < 0.001", "p = 0.031", "p = 0.31", "no p",
    ]  # fmt: skip
    assert words.listing(["a", "b", "c"]) == "a, b and c"
    assert words.count(1, "seed") == "1 seed"
    assert words.interval(stats.mean_ci([1.0])) == ""


def test_gaussian_sharpness_stands_beside_what_curvature_makes_of_it(tmp_path):
    """Sharpness planted at twice ½ρ² tr H/P at every radius but the largest, where it is five."""
    folder = write_study(tmp_path, noisy=FEW, clean=(), seeds=2, without=DRAWN)
    path = folder.results / "sharpness.nc"
    ds, trace = results.load(path), results.load(folder.results / "hessian_trace.nc").trace
    size = 24058
    factor = np.where(ds.rho.values > 0.3, 5.0, 2.0)
    ds["gaussian"].values[:] = factor * 0.5 * ds.rho.values**2 * trace.values[:, None] / size
    found = json.loads(ds.attrs["provenance"])
    found["runs"] = [run | {"num_parameters": size} for run in found["runs"]]
    results.save(ds.assign_attrs(provenance=json.dumps(found)), path)
    notes = table(Family.of(read(folder)), "noisy").notes
    (said,) = [note for note in notes if "½ρ² tr H/P" in note]
    assert "ρ = 0.02: 2.0 [2.0 to 2.0]" in said
    assert "ρ = 0.4: 5.0 [5.0 to 5.0]" in said


def _thin(folder, measurement, **keep):
    """The study as it is where a measurement was asked for little."""
    path = folder.results / f"{measurement}.nc"
    whole = results.load(path).load()
    whole.close()
    results.save(whole.isel(keep), path)


@pytest.fixture(scope="module")
def smallest(tmp_path_factory):
    """One setting without a title, two seeds far apart, and one of everything that is counted."""
    story = STORY | {"sam": replace(STORY["sam"], accuracy=0.5)}
    folder = write_study(
        tmp_path_factory.mktemp("small"), noisy=("sgd", "sam"), clean=(), seeds=2, story=story
    )
    resolved = folder.check()
    resolved["settings"]["noisy"]["title"] = ""
    storage.write_json(folder.resolved, resolved)
    accuracy = results.load(folder.results / "generalization.nc").load()
    accuracy.close()
    accuracy = accuracy.drop_vars("test_correct")
    accuracy["test_accuracy"].values[:] = np.where(accuracy.seed.values == 0, 0.38, 0.61)
    results.save(accuracy, folder.results / "generalization.nc")
    _thin(folder, "top_eigenvalues", rank=[0])
    _thin(folder, "hessian_trace", probe=[0])
    _thin(folder, "spectral_density", probe=[0])
    for name in ("loss_slice", "loss_slice_eval"):
        _thin(folder, name, direction=[0])
    report.write(folder, formats=())
    return folder


COUNTED = (
    "seeds", "runs", "variants", "examples", "probes", "directions", "eigenvalues", "trainings",
    "epochs", "comparisons", "others", "measures", "specifications", "tensors", "rows", "batches",
    "steps", "results", "values", "largest eigenvalues",
)  # fmt: skip


def reads_well(text):
    """What no page may say, whatever was measured."""
    assert not re.findall(r"^#+\s*$", text, flags=re.M)
    assert not re.findall(rf"(?<![\d.,])1 (?:{'|'.join(COUNTED)})\b.{{0,30}}", text)
    assert "λ₁ to λ₁" not in text
    assert "** \n" not in text  # a finding that ends after its lead


def test_a_page_of_one_of_everything_reads_well(smallest):
    text = (smallest.root / "report.md").read_text()
    page = re.sub(r"<script.*?</script>", "", smallest.report.read_text(), flags=re.S)
    reads_well(text)
    reads_well(re.sub(r"<[^>]+>", "", page))
    assert "### The largest eigenvalue of the Hessian" in text
    assert "Hutchinson's standard error from 1 probe that" in text


def test_pages_of_many_and_of_one_seed_read_well(whole, tmp_path, written):
    reads_well((written.root / "report.md").read_text())
    folder = write_study(tmp_path, noisy=FEW[:2], clean=(), seeds=1, without=DRAWN[:-1])
    report.write(folder, formats=())
    text = (folder.root / "report.md").read_text()
    reads_well(text)
    assert "One seed each, paired: there is no interval" in text
    captions = [p for p in text.split("\n\n") if re.search("ean over 1 seed|t-interval", p)]
    assert len(captions) > 3
    assert all("a mean is that seed, without an interval" in p for p in captions)
    assert "geometric mean over seeds, and below" not in text


def test_two_seeds_that_disagree_have_an_interval_of_accuracies(smallest):
    text = (smallest.root / "report.md").read_text()
    rows = [line for line in text.splitlines() if re.match(r"\| \S+ 2 seeds \|", line)]
    assert len(rows) == 2
    for row in rows:
        low, high = map(float, re.search(r"\[(\S+), (\S+)\]", row.split("|")[2]).groups())
        assert 0 < low < 49.5 < high < 100
    assert "Two seeds: such an interval is mostly wide" in text


def test_only_the_controls_that_are_missing_are_asked_for(tmp_path):
    variants = tuple(n for n in STORY if n != "sgd_early")
    found = told(tmp_path, noisy=variants, **a_story_of_flatness())
    asked = [v.experiment.what for v in found.verdicts if v.experiment is not None]
    assert any("SGD stopped early, as a control" in what for what in asked)
    assert not any("a random mask" in what for what in asked)


@pytest.mark.parametrize(("values", "said"), [
    ([0.1, 0.2, 0.4], "lies at the end of the grid: values of rho beyond it may be better"),
    ([0.1, 0.2], "Of two values each is an end: what lies between or beyond was not tried"),
])  # fmt: skip
def test_the_end_of_a_grid_is_spoken_of_where_there_is_a_middle(values, said):
    n = len(values)
    ds = xr.Dataset(
        {"chosen": ("variant", [0.0] * (n - 1) + [1.0]), "num_trainings": ("variant", [1.0] * n),
         "optimism": ("variant", [np.nan] * n), "regret": ("variant", [np.nan] * n),
         "by_loss": ("variant", [0.0] * n)},
        coords={"value": ("variant", values)},
    )  # fmt: skip
    note = axes._note("rho", ds)
    assert said in note
    assert "highest mean validation accuracy" in note
    losses = axes._note("rho", ds.assign(by_loss=ds.by_loss + 1, regret=ds.chosen * 0 + 0.25))
    assert "lowest mean validation loss" in losses
    assert "the best value on the test set is 0.250 below it" in losses
    assert "took 1 training." in note


def history_study(losses, rates, **more):
    """A study of one setting whose rows have the given losses and rates by epoch."""
    count = len(next(iter(losses.values())))
    names = np.array(list(losses), object)
    ds = xr.Dataset(
        {
            "train_loss": (("run", "epoch"), np.array(list(losses.values()))),
            "lr": (("run", "epoch"), np.tile(rates, (len(names), 1))),
        },
        coords={
            "run": ("run", names), "variant": ("run", names), "label": ("run", names),
            "seed": ("run", np.zeros(len(names), int)), "epoch": np.arange(count),
            "setting": ("run", np.full(len(names), "default", object)),
        },
        attrs={"measurement": "history", "landscape_schema": 1, "provenance": "{}"},
    )  # fmt: skip
    return report.StudyResults(storage.StudyFolder(Path()), {"name": "x"} | more, {"history": ds})


def test_whether_trainings_were_level_when_they_ended_is_said_with_numbers():
    """The last tenth beside the tenth before, by closed form; a rate of 0 levels anything."""
    flat, falling = np.full(40, 0.5), np.full(40, 0.5)
    falling[-4:] = 0.44
    constant, to_zero = np.full(40, 0.1), np.linspace(0.1, 0, 40)
    (told,) = fitted(Family.of(history_study({"a": flat, "b": falling}, constant)), "default")
    assert told.lead == "Not every training was level when it ended: b −12.0 %."
    assert told.text.endswith("1 of 2 rows are level.")
    (told,) = fitted(Family.of(history_study({"a": flat, "b": 1.02 * flat}, to_zero)), "default")
    assert told.lead == "Training loss was level when each training ended."
    assert "A learning rate that falls to 0 makes any training level" in told.text
    (told,) = fitted(Family.of(history_study({"a": flat}, constant)), "default")
    assert "falls to 0" not in told.text
    short = np.where(np.arange(40) < 2, 0.5, np.nan)
    (told,) = fitted(Family.of(history_study({"a": flat, "b": short}, constant)), "default")
    assert told.lead == "Training loss was level when 1 of 2 rows ended."
    assert told.text.startswith("1 row had too few epochs to say, or no loss.")
    # Two epochs have no tenth before the last; a run that diverged has no loss.
    assert fitted(Family.of(history_study({"a": flat[:2]}, constant[:2])), "default") == []
    assert fitted(Family.of(history_study({"a": flat * np.nan}, constant)), "default") == []
